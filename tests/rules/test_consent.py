"""May this recipient be told, now? Cases of consent-security.md sections 2 to 4."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.notify import reading
from services.notify.consent import (
    ACT_CODE,
    CONFIDENTIALITY,
    Code,
    Decision,
    Default,
    Directory,
    Found,
    Hold,
    Item,
    Outcome,
    Permit,
    Policy,
    Profile,
    Reason,
    Request,
    Sign,
    Withhold,
    decide,
    decide_again_at,
)

NOW = datetime(2026, 3, 2, 19, 0, tzinfo=UTC)
TORONTO = ZoneInfo("America/Toronto")
IMPLIED = Policy(Default.IMPLIED, Profile.CORE)
OPT_IN = Policy(Default.OPT_IN, Profile.CORE)
QC = Policy(Default.IMPLIED, Profile.QC)
NORTH, SOUTH = "Organization/TEST-north", "Organization/TEST-south"
NURSE, STUDENT = "Practitioner/TEST-rn-7", "Practitioner/TEST-student-1"
TERMS = "http://terminology.hl7.org/CodeSystem/"
DIRECTORY = Directory(
    part_of={NORTH: "Organization/TEST-network"},
    affiliation={NURSE: frozenset({NORTH}), STUDENT: frozenset({NORTH})},
    groups={
        NURSE: frozenset({"CareTeam/TEST-team"}),
        STUDENT: frozenset({"Group/TEST-students"}),
    },
    identifiers={"https://example.ca/licence|TEST-9": NURSE},
    bases=("https://notify.example.ca/fhir",),
)


def consent(provision: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "resourceType": "Consent",
        "id": "TEST-c1",
        "status": "active",
        "scope": {"coding": [{"system": TERMS + "consentscope", "code": "patient-privacy"}]},
        "patient": {"reference": "Patient/TEST-p1"},
        "dateTime": "2026-01-15T10:00:00-05:00",
    }
    if provision is not None:
        found["provision"] = provision
    return {**found, **more}


def actor(reference: str, role: str = "IRCP") -> dict[str, Any]:
    return {
        "role": {"coding": [{"system": TERMS + "v3-ParticipationType", "code": role}]},
        "reference": {"reference": reference},
    }


def purpose(code: str) -> dict[str, Any]:
    return {"system": TERMS + "v3-ActReason", "code": code}


def action(code: str) -> dict[str, Any]:
    return {"coding": [{"system": TERMS + "consentaction", "code": code}]}


def base(code: str) -> dict[str, Any]:
    return {"coding": [{"system": ACT_CODE, "code": code}]}


def of_class(code: str) -> dict[str, Any]:
    return {"system": "http://hl7.org/fhir/resource-types", "code": code}


def visit(name: str = "TEST-v1", **more: Any) -> Item:
    return Item(id=name, kind="Encounter", start=NOW - timedelta(days=9), **more)


def sensitive(*codes: str) -> frozenset[Code]:
    return frozenset(Code(ACT_CODE, code) for code in codes)


def level(code: str) -> frozenset[Code]:
    return frozenset({Code(CONFIDENTIALITY, code)})


def request(*items: Item, **more: Any) -> Request:
    asked: dict[str, Any] = {
        "at": NOW,
        "patient": "Patient/TEST-p1",
        "recipient": NORTH,
        "readers": (NURSE,),
        "items": items or (visit(),),
        "circle": True,
        "directory": DIRECTORY,
    }
    return Request(**{**asked, **more})


def asked_of(
    on_file: Sequence[dict[str, Any]], *items: Item, policy: Policy = IMPLIED, **more: Any
) -> Decision:
    read = [reading.directive(c, TORONTO) for c in on_file]
    return decide(read, request(*items, **more), policy)


def outcomes(decision: Decision) -> dict[str, Outcome]:
    return {f.item: f.outcome for f in decision.findings}


# --- the default ------------------------------------------------------------------------------


def test_silence_releases_in_the_circle_of_care_under_implied() -> None:
    """CS-32."""
    decision = asked_of([])
    assert isinstance(decision, Permit)
    assert decision.found is Found.NO_CONSENT
    assert decision.findings[0].reasons == {Reason.IMPLIED}


def test_silence_withholds_outside_the_circle() -> None:
    assert isinstance(asked_of([], circle=False), Withhold)


def test_silence_withholds_for_another_purpose_than_treatment() -> None:
    assert isinstance(asked_of([], purpose="CAREMGT"), Withhold)


def test_silence_withholds_under_opt_in() -> None:
    decision = asked_of([], policy=OPT_IN)
    assert isinstance(decision, Withhold)
    assert decision.reasons == {Reason.NO_CONSENT}


def test_there_is_nothing_to_permit_without_an_item() -> None:
    assert isinstance(decide([], request(items=()), IMPLIED), Withhold)


# --- which Consents speak (CS-10 to CS-16) ----------------------------------------------------

DENY_ALL = {"type": "deny"}
PERMIT_ALL = {"type": "permit"}


@pytest.mark.parametrize(
    "status", ["draft", "proposed", "rejected", "inactive", "entered-in-error"]
)
def test_only_an_active_consent_speaks(status: str) -> None:
    """CS-10."""
    assert isinstance(asked_of([consent(DENY_ALL, status=status)]), Permit)
    assert isinstance(asked_of([consent(DENY_ALL)]), Withhold)


def test_the_latest_version_alone_speaks_whatever_the_order() -> None:
    first = consent(DENY_ALL)
    second = consent(PERMIT_ALL, meta={"versionId": "2"}, status="inactive")
    for on_file in ([first, second], [second, first]):
        assert isinstance(asked_of(on_file), Permit)


def test_version_ten_is_later_than_version_nine() -> None:
    ninth = consent(PERMIT_ALL, meta={"versionId": "9"})
    tenth = consent(DENY_ALL, meta={"versionId": "10"})
    assert isinstance(asked_of([tenth, ninth]), Withhold)


def test_another_scope_is_no_privacy_consent() -> None:
    """CS-11: category speaks only where scope has no consentscope coding."""
    research = {"coding": [{"system": TERMS + "consentscope", "code": "research"}]}
    privacy = {"coding": [{"system": TERMS + "consentscope", "code": "patient-privacy"}]}
    assert isinstance(asked_of([consent(DENY_ALL, scope=research)]), Permit)
    assert isinstance(asked_of([consent(DENY_ALL, scope=research, category=[privacy])]), Permit)
    assert isinstance(asked_of([consent(DENY_ALL, scope={}, category=[privacy])]), Withhold)


def test_another_patients_consent_has_no_effect() -> None:
    """CS-12."""
    other = consent(DENY_ALL, patient={"reference": "Patient/TEST-p2"})
    assert isinstance(asked_of([other]), Permit)
    assert isinstance(asked_of([other], aliases=frozenset({"Patient/TEST-p2"})), Withhold)


def test_a_patient_named_by_identifier_or_own_address_is_found() -> None:
    card = {"system": "https://health-card.example.ca", "value": "TEST-0001"}
    directory = Directory(
        identifiers={"https://health-card.example.ca|TEST-0001": "Patient/TEST-p1"}
    )
    by_card = consent(DENY_ALL, patient={"identifier": card})
    assert isinstance(asked_of([by_card], directory=directory), Withhold)
    absolute = {"reference": "https://notify.example.ca/fhir/Patient/TEST-p1"}
    assert isinstance(asked_of([consent(DENY_ALL, patient=absolute)]), Withhold)


NOT_COMPUTABLE: dict[str, dict[str, Any]] = {
    "modifier extension": consent(PERMIT_ALL, modifierExtension=[{"url": "https://example.ca/x"}]),
    "modifier deep inside": consent(
        {"type": "permit", "provision": [{"type": "deny", "modifierExtension": [{"url": "u"}]}]}
    ),
    "implicit rules": consent(PERMIT_ALL, implicitRules="https://example.ca/rules"),
    "nested rule without type": consent({"type": "permit", "provision": [{"actor": []}]}),
    "unreadable dateTime": consent(PERMIT_ALL, dateTime="last Tuesday"),
    "unreadable period": consent({"type": "permit", "period": {"end": "2026-13"}}),
    "unreadable version": consent(PERMIT_ALL, meta={"versionId": "b"}),
    "nothing said": consent(),
    "root without type or known policy": consent({"actor": [actor(NORTH)]}, policyRule=base("X")),
    "a type nobody knows": consent({"type": "perhaps"}),
    "an actor that is no list": consent({"type": "permit", "actor": {"x": 1}}),
    "an element nobody knows": consent({"type": "permit", "sensitivityCode": ["x"]}),
}


@pytest.mark.parametrize("name", NOT_COMPUTABLE)
def test_a_consent_that_cannot_be_computed_is_a_hold(name: str) -> None:
    """CS-13: it denies everything, and a person sees it."""
    decision = asked_of([NOT_COMPUTABLE[name]])
    assert isinstance(decision, Hold)
    assert decision.reasons == {Reason.NOT_COMPUTABLE}
    assert decision.signs == {Sign.NOT_COMPUTABLE}


def test_what_cannot_be_computed_cannot_be_outvoted() -> None:
    on_file = [
        NOT_COMPUTABLE["nothing said"],
        consent(PERMIT_ALL, id="TEST-c2", dateTime="2026-02"),
    ]
    assert isinstance(asked_of(on_file, policy=OPT_IN), Hold)


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        (datetime(2026, 6, 30, 23, 30, tzinfo=TORONTO), True),
        (datetime(2026, 7, 1, 0, 10, tzinfo=TORONTO), False),
        (datetime(2026, 6, 1, 3, 59, tzinfo=UTC), False),
        (datetime(2026, 6, 1, 4, 0, tzinfo=UTC), True),
    ],
)
def test_a_partial_date_includes_its_whole_month_in_the_policys_zone(
    at: datetime, *, inside: bool
) -> None:
    """CS-14 and the last illustration of section 4."""
    permit = consent({"type": "permit", "period": {"start": "2026-06", "end": "2026-06"}})
    decision = asked_of([permit], at=at.astimezone(UTC), policy=OPT_IN)
    assert isinstance(decision, Permit) is inside


def test_a_permit_dated_in_the_future_grants_nothing_yet_and_a_deny_stands() -> None:
    """CS-15."""
    later = "2027-01-01T00:00:00Z"
    assert isinstance(asked_of([consent(PERMIT_ALL, dateTime=later)], policy=OPT_IN), Withhold)
    assert isinstance(asked_of([consent(DENY_ALL, dateTime=later)]), Withhold)


RELATIVE = [{"reference": "RelatedPerson/TEST-mother"}]


def test_a_parent_consents_for_a_child_under_fourteen_only() -> None:
    """CS-16."""
    on_file = [consent(PERMIT_ALL, performer=RELATIVE)]
    strict = Policy(Default.OPT_IN, Profile.QC)
    young = asked_of(on_file, policy=strict, birth_date=date(2012, 3, 3))
    assert isinstance(young, Permit)
    grown = asked_of(on_file, policy=strict, birth_date=date(2012, 3, 2))
    assert isinstance(grown, Withhold)
    assert grown.reasons >= {Reason.PERFORMER_NOT_ENTITLED}
    assert grown.signs == {Sign.PERFORMER_NOT_ENTITLED}
    unknown = asked_of(on_file, policy=strict)
    assert isinstance(unknown, Hold)
    assert unknown.reasons == {Reason.UNKNOWN_AGE}


def test_a_parents_restriction_stands_whatever_the_age() -> None:
    on_file = [consent(DENY_ALL, performer=RELATIVE)]
    assert isinstance(asked_of(on_file, policy=QC, birth_date=date(1990, 1, 1)), Withhold)


# --- organisation, person, period, action, purpose --------------------------------------------


def test_a_deny_of_the_organisation_withholds_and_of_another_does_not() -> None:
    decision = asked_of([consent({"type": "deny", "actor": [actor(NORTH)]})])
    assert isinstance(decision, Withhold)
    assert decision.reasons == {Reason.RESTRICTED}
    assert decision.basis == {"Consent/TEST-c1/_history/1"}
    assert isinstance(asked_of([consent({"type": "deny", "actor": [actor(SOUTH)]})]), Permit)


def test_a_rule_flows_down_to_the_parts_of_an_organisation_never_up() -> None:
    """CS-24."""
    network = consent({"type": "deny", "actor": [actor("Organization/TEST-network")]})
    assert isinstance(asked_of([network]), Withhold)
    part = consent({"type": "deny", "actor": [actor(NORTH)]})
    assert isinstance(asked_of([part], recipient="Organization/TEST-network"), Permit)


def test_a_permit_for_the_organisation_is_needed_under_opt_in() -> None:
    assert isinstance(
        asked_of([consent({"type": "permit", "actor": [actor(NORTH)]})], policy=OPT_IN), Permit
    )
    assert isinstance(
        asked_of([consent({"type": "permit", "actor": [actor(SOUTH)]})], policy=OPT_IN), Withhold
    )


def test_a_deny_of_a_person_keeps_it_from_an_inbox_that_person_reads() -> None:
    """CS-33."""
    on_file = [consent({"type": "deny", "actor": [actor(STUDENT)]})]
    assert isinstance(asked_of(on_file, readers=(NURSE,)), Permit)
    assert isinstance(asked_of(on_file, readers=(STUDENT,)), Withhold)
    assert isinstance(asked_of(on_file, readers=(NURSE, STUDENT)), Withhold)
    held = asked_of(on_file, readers=())
    assert isinstance(held, Hold)
    assert held.reasons == {Reason.UNKNOWN_READERS}


def test_a_deny_of_a_stranger_does_not_concern_an_inbox_whose_readers_are_unknown() -> None:
    on_file = [consent({"type": "deny", "actor": [actor("Practitioner/TEST-elsewhere")]})]
    assert isinstance(asked_of(on_file, readers=()), Permit)


@pytest.mark.parametrize(
    "who",
    [
        {"reference": "Group/TEST-nobody-knows"},
        {"reference": "PractitionerRole/TEST-nobody-knows"},
        {"identifier": {"system": "https://example.ca/licence", "value": "TEST-0"}},
        {"reference": "https://elsewhere.example.org/fhir/Organization/9"},
        {"reference": "#contained"},
        {"display": "the night team"},
    ],
)
def test_an_actor_that_cannot_be_resolved_is_a_hold(who: dict[str, Any]) -> None:
    rule = {"type": "deny", "actor": [{**actor("x"), "reference": who}]}
    decision = asked_of([consent(rule)])
    assert isinstance(decision, Hold)
    assert decision.reasons == {Reason.UNKNOWN_ACTOR}


def test_an_identifier_in_the_directory_is_the_person_it_names() -> None:
    who = {"identifier": {"system": "https://example.ca/licence", "value": "TEST-9"}}
    rule = {"type": "deny", "actor": [{**actor("x"), "reference": who}]}
    assert isinstance(asked_of([consent(rule)]), Withhold)
    assert isinstance(asked_of([consent(rule)], readers=(STUDENT,)), Permit)


def test_a_role_that_is_no_recipient_never_grants_and_is_doubted_where_it_would_match() -> None:
    witness = consent({"type": "deny", "actor": [actor(NORTH, "WIT")]})
    assert isinstance(asked_of([witness]), Hold)
    elsewhere = consent({"type": "deny", "actor": [actor(SOUTH, "WIT")]})
    assert isinstance(asked_of([elsewhere]), Permit)
    granting = consent({"type": "permit", "actor": [actor(NORTH, "WIT")]})
    assert isinstance(asked_of([granting], policy=OPT_IN), Hold)


def test_a_custodian_is_the_site_that_holds_the_item() -> None:
    on_file = [consent({"type": "deny", "actor": [actor("Organization/hospital-a", "CST")]})]
    here = visit("TEST-v1", custodian="Organization/hospital-a")
    there = visit("TEST-v2", custodian="Organization/hospital-b")
    unknown = visit("TEST-v3")
    decision = asked_of(on_file, here, there, unknown)
    assert outcomes(decision) == {
        "TEST-v1": Outcome.WITHHOLD,
        "TEST-v2": Outcome.RELEASE,
        "TEST-v3": Outcome.HOLD,
    }


def test_a_purpose_covers_what_is_under_it() -> None:
    assert isinstance(
        asked_of([consent({"type": "deny", "purpose": [purpose("TREAT")]})]), Withhold
    )
    assert isinstance(asked_of([consent({"type": "deny", "purpose": [purpose("COC")]})]), Withhold)
    assert isinstance(asked_of([consent({"type": "deny", "purpose": [purpose("HRESCH")]})]), Permit)
    assert isinstance(asked_of([consent({"type": "deny", "purpose": [purpose("ETREAT")]})]), Permit)
    unknown = asked_of([consent({"type": "deny", "purpose": [purpose("XYZ")]})])
    assert isinstance(unknown, Hold)


def test_access_and_disclose_are_two_ends_of_one_flow() -> None:
    for code in ("access", "disclose"):
        assert isinstance(asked_of([consent({"type": "deny", "action": [action(code)]})]), Withhold)
    assert isinstance(asked_of([consent({"type": "deny", "action": [action("correct")]})]), Permit)
    text_only = consent({"type": "deny", "action": [{"text": "phone calls"}]})
    assert isinstance(asked_of([text_only]), Hold)


# --- both encodings (CS-20 to CS-22) ----------------------------------------------------------


def test_policy_rule_alone_is_the_answer() -> None:
    assert isinstance(asked_of([consent(policyRule=base("OPTIN"))], policy=OPT_IN), Permit)
    assert isinstance(asked_of([consent(policyRule=base("OPTOUT"))]), Withhold)
    assert isinstance(asked_of([consent(policyRule=base("EMRGONLY"))]), Withhold)
    emergency = asked_of([consent(policyRule=base("EMRGONLY"))], purpose="ERTREAT", policy=OPT_IN)
    assert isinstance(emergency, Permit)


def test_a_root_with_a_condition_and_no_type_is_an_exception_to_its_base() -> None:
    exception = {"actor": [actor(NORTH)]}
    opted_in = consent(exception, policyRule=base("OPTIN"))
    assert isinstance(asked_of([opted_in]), Withhold)
    assert isinstance(asked_of([opted_in], recipient=SOUTH, policy=OPT_IN), Permit)
    opted_out = consent(exception, policyRule=base("OPTOUT"))
    assert isinstance(asked_of([opted_out], policy=OPT_IN), Permit)
    assert isinstance(asked_of([opted_out], recipient=SOUTH), Withhold)


def test_a_root_without_condition_or_type_is_a_container() -> None:
    nested = {"provision": [{"type": "deny", "actor": [actor(NORTH)]}]}
    opted_in = consent(nested, policyRule=base("OPTIN"))
    assert isinstance(asked_of([opted_in]), Withhold)
    assert isinstance(asked_of([opted_in], recipient=SOUTH, policy=OPT_IN), Permit)


def test_a_base_permit_reaches_its_purposes_only() -> None:
    for on_file in ([consent(policyRule=base("OPTIN"))], [consent({}, policyRule=base("OPTIN"))]):
        assert isinstance(asked_of(on_file, policy=OPT_IN, purpose="COC"), Permit)
        assert isinstance(asked_of(on_file, policy=OPT_IN, purpose="HRESCH"), Withhold)


def test_an_expired_root_is_silent() -> None:
    gone = consent({"type": "deny", "period": {"end": "2026-02"}}, policyRule=base("OPTOUT"))
    assert isinstance(asked_of([gone]), Permit)


# --- the tree (CS-25) -------------------------------------------------------------------------


def test_a_child_overrides_its_parent() -> None:
    rule = {"type": "permit", "provision": [{"type": "deny", "actor": [actor(NORTH)]}]}
    assert isinstance(asked_of([consent(rule)]), Withhold)
    back = {"type": "deny", "provision": [{"type": "permit", "actor": [actor(NORTH)]}]}
    assert isinstance(asked_of([consent(back)], policy=OPT_IN), Permit)


def test_a_restriction_that_names_the_reader_survives_under_a_permit_for_another() -> None:
    """CS-25 (1)."""
    rule = {
        "type": "permit",
        "actor": [actor(SOUTH)],
        "provision": [{"type": "deny", "actor": [actor(NORTH)]}],
    }
    assert isinstance(asked_of([consent(rule)]), Withhold)
    elsewhere = {**rule, "provision": [{"type": "deny", "actor": [actor("Organization/x")]}]}
    assert isinstance(asked_of([consent(elsewhere)]), Permit)
    expired = {**rule, "period": {"end": "2026-01"}}
    assert isinstance(asked_of([consent(expired)]), Permit)


def test_an_exception_grants_no_more_than_was_surely_withheld() -> None:
    """CS-25 (4)."""
    rule = {
        "type": "deny",
        "actor": [actor("Group/TEST-nobody-knows")],
        "provision": [{"type": "permit", "actor": [actor(NORTH)]}],
    }
    assert isinstance(asked_of([consent(rule)], policy=OPT_IN), Hold)
    sure = {**rule, "actor": [actor(NORTH)]}
    assert isinstance(asked_of([consent(sure)], policy=OPT_IN), Permit)


def test_a_permit_of_a_class_denies_the_others_it_does_not_name() -> None:
    """CS-25 (5), implicit-deny."""
    rule = {"type": "permit", "class": [of_class("Condition")]}
    decision = asked_of([consent(rule)])
    assert isinstance(decision, Withhold)
    assert decision.reasons == {Reason.NOT_COVERED}
    assert decision.found is Found.DENY


def test_a_permit_whose_actor_is_unknown_grants_nothing_and_its_denials_stand() -> None:
    """CS-25 (6)."""
    rule = {"type": "permit", "actor": [actor("Group/TEST-nobody-knows")]}
    assert isinstance(asked_of([consent(rule)], policy=OPT_IN), Hold)
    nested = {**rule, "provision": [{"type": "deny", "purpose": [purpose("COC")]}]}
    assert isinstance(asked_of([consent(nested)]), Withhold)


# --- illustrations of section 4 ---------------------------------------------------------------


def test_a_nested_deny_of_documents_leaves_the_visit() -> None:
    deny = {"type": "deny", "actor": [actor(NORTH)], "class": [of_class("DocumentReference")]}
    document = Item(id="TEST-d1", kind="DocumentReference")
    decision = asked_of([consent({"type": "permit", "provision": [deny]})], visit(), document)
    assert isinstance(decision, Permit)
    assert decision.released == {"TEST-v1"}
    assert decision.obligations == {"REDACT", "NORDSCLCD"}


def test_opt_in_save_one_diagnosis() -> None:
    icd = "http://hl7.org/fhir/sid/icd-10-ca"
    except_depression = {"code": [{"coding": [{"system": icd, "code": "F32.1"}]}]}
    decision = asked_of(
        [consent(except_depression, policyRule=base("OPTIN"))],
        visit("TEST-v1", codes=frozenset({Code(icd, "F32.1")})),
        visit("TEST-v2", codes=frozenset({Code(icd, "J44.1")})),
        visit("TEST-v3"),
    )
    assert outcomes(decision) == {
        "TEST-v1": Outcome.WITHHOLD,
        "TEST-v2": Outcome.RELEASE,
        "TEST-v3": Outcome.HOLD,
    }


def test_opt_out_save_one_team() -> None:
    on_file = [consent({"actor": [actor("CareTeam/TEST-team")]}, policyRule=base("OPTOUT"))]
    assert isinstance(asked_of(on_file), Permit)
    assert isinstance(asked_of(on_file, readers=(NURSE, STUDENT)), Withhold)
    assert isinstance(asked_of(on_file, readers=()), Hold)


def test_a_permit_up_to_restricted() -> None:
    up_to = {"type": "permit", "securityLabel": [{"system": CONFIDENTIALITY, "code": "R"}]}
    decision = asked_of(
        [consent(up_to)],
        visit("TEST-v1", labels=sensitive("SEX")),
        visit("TEST-v2", labels=level("V")),
        visit("TEST-v3"),
    )
    assert outcomes(decision) == {
        "TEST-v1": Outcome.RELEASE,
        "TEST-v2": Outcome.WITHHOLD,
        "TEST-v3": Outcome.HOLD,
    }


def test_a_newer_permit_against_an_older_deny_is_for_a_person_to_settle() -> None:
    """CS-31."""
    old = consent({"type": "deny", "purpose": [purpose("TREAT")]}, dateTime="2025-03")
    new = consent({"type": "permit", "class": [of_class("Encounter")]}, id="TEST-c2")
    condition = Item(id="TEST-k1", kind="Condition")
    decision = asked_of([old, new], visit(), condition)
    assert isinstance(decision, Hold)
    assert outcomes(decision) == {"TEST-v1": Outcome.HOLD, "TEST-k1": Outcome.WITHHOLD}
    assert decision.signs == {Sign.CONFLICT_NEWER_PERMIT}
    older_permit = {**new, "dateTime": "2025-02"}
    assert isinstance(asked_of([old, older_permit], visit()), Withhold)
    same_instant = {**new, "dateTime": "2025-03"}
    assert isinstance(asked_of([old, same_instant], visit()), Withhold)


def test_a_deny_of_november_leaves_three_visits() -> None:
    november = {"start": "2025-11", "end": "2025-11"}
    on_file = [consent({"type": "permit", "provision": [{"type": "deny", "dataPeriod": november}]})]

    def stay(name: str, start: datetime, end: datetime) -> Item:
        return Item(id=name, kind="Encounter", start=start, end=end)

    day = timedelta(days=1)
    october = datetime(2025, 10, 20, 12, tzinfo=UTC)
    ends_first_of_november = stay("TEST-s1", october, datetime(2025, 11, 1, 12, tzinfo=UTC))
    inside = stay("TEST-s2", october + 20 * day, october + 21 * day)
    before = stay("TEST-s3", october, october + day)
    undated = Item(id="TEST-s4", kind="Encounter")
    decision = asked_of(on_file, ends_first_of_november, inside, before, undated)
    assert outcomes(decision) == {
        "TEST-s1": Outcome.WITHHOLD,
        "TEST-s2": Outcome.WITHHOLD,
        "TEST-s3": Outcome.RELEASE,
        "TEST-s4": Outcome.HOLD,
    }


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "labels", "expected"),
    [
        ("SPI", sensitive("ETHUD"), Outcome.WITHHOLD),
        ("ETH", sensitive("SUD"), Outcome.WITHHOLD),
        ("SUD", sensitive("SPI"), Outcome.HOLD),  # an ancestor: may be meant
        ("SUD", sensitive("HIV"), Outcome.RELEASE),
        ("SUD", frozenset(), Outcome.RELEASE),
        ("SUD", None, Outcome.HOLD),
        ("SUD", frozenset({Code("https://example.ca/local", "x")}), Outcome.HOLD),
    ],
)
def test_a_deny_of_a_sensitivity(
    rule: str, labels: frozenset[Code] | None, expected: Outcome
) -> None:
    deny = {"type": "deny", "securityLabel": [{"system": ACT_CODE, "code": rule}]}
    decision = asked_of([consent(deny)], visit(labels=labels))
    assert decision.findings[0].outcome is expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (sensitive("MH"), Outcome.RELEASE),
        (sensitive("MH", "HIV"), Outcome.WITHHOLD),
        (frozenset(), Outcome.WITHHOLD),
        (None, Outcome.HOLD),
        (sensitive("MH") | {Code(None, None)}, Outcome.HOLD),
    ],
)
def test_a_permit_of_a_sensitivity_needs_every_label(
    labels: frozenset[Code] | None, expected: Outcome
) -> None:
    permit = {"type": "permit", "securityLabel": [{"system": ACT_CODE, "code": "SPI"}]}
    decision = asked_of([consent(permit)], visit(labels=labels), policy=OPT_IN)
    assert decision.findings[0].outcome is expected


def test_old_names_of_code_systems_are_understood() -> None:
    old = {"system": "http://hl7.org/fhir/v3/Confidentiality", "code": "HIV"}
    deny = consent({"type": "deny", "securityLabel": [old]})
    assert isinstance(asked_of([deny], visit(labels=sensitive("HIV"))), Withhold)
    assert isinstance(asked_of([deny], visit(labels=frozenset())), Permit)


# --- the value --------------------------------------------------------------------------------


def test_a_card_needs_enough_released_visits_and_a_hold_needs_enough_doubtful_ones() -> None:
    """CS-35, CS-40."""
    deny = consent({"type": "deny", "securityLabel": [{"system": ACT_CODE, "code": "HIV"}]})
    plain = [visit(f"TEST-v{n}", labels=frozenset()) for n in range(3)]

    def four(visible: frozenset[str]) -> bool:
        return len(visible) >= 4

    doubtful = visit("TEST-v9")
    hidden = visit("TEST-v9", labels=sensitive("HIV"))
    open_ = visit("TEST-v9", labels=frozenset())
    assert isinstance(asked_of([deny], *plain, open_, met=four), Permit)
    assert isinstance(asked_of([deny], *plain, doubtful, met=four), Hold)
    assert isinstance(asked_of([deny], *plain, hidden, met=four), Withhold)


def test_the_calendar_alone_changes_the_answer_at_a_known_instant() -> None:
    """CS-51."""
    rule = {"type": "permit", "period": {"start": "2026-04-02", "end": "2026-12"}}
    read = [reading.directive(consent(rule), TORONTO)]
    asked = request()
    begins = decide_again_at(read, asked, OPT_IN)
    assert begins == datetime(2026, 4, 2, 4, tzinfo=UTC)
    assert isinstance(decide(read, asked, OPT_IN), Withhold)
    assert isinstance(decide(read, request(at=begins), OPT_IN), Permit)
    ends = decide_again_at(read, request(at=begins), OPT_IN)
    assert ends == datetime(2027, 1, 1, 5, tzinfo=UTC)
    assert isinstance(decide(read, request(at=ends), OPT_IN), Withhold)
    child = [reading.directive(consent(PERMIT_ALL, performer=RELATIVE), TORONTO)]
    born = request(birth_date=date(2012, 3, 5))
    birthday = decide_again_at(child, born, Policy(Default.OPT_IN, Profile.QC))
    assert birthday == datetime(2026, 3, 5, 5, tzinfo=UTC)
