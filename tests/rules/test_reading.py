"""A resource → what it says, held, or a refusal (hospital-api.md sections 1 and 9)."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.folding import Code, Moment, Status
from services.ingest.reading import (
    ACT_CODE,
    EncounterRead,
    Identifier,
    PatientRead,
    Reason,
    RefusedError,
    SiteRules,
    event_time,
    moment,
    read_encounter,
    read_patient,
)
from tests.rules.test_gate import encounter

TORONTO = ZoneInfo("America/Toronto")
NOW = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
RULES = SiteRules("site-a")
ICD = "http://hl7.org/fhir/sid/icd-10"


def read(rules: SiteRules = RULES, moves: bool = False, **changes: Any) -> EncounterRead:
    return read_encounter(
        encounter(**changes), rules, digest="d", told_at=NOW, now=NOW, moves=moves
    )


def klass(coding: dict[str, str]) -> dict[str, Any]:
    return {"class": coding}


def read_person(**fields: Any) -> PatientRead:
    tree = {"resourceType": "Patient", **fields}
    return read_patient(tree, RULES, digest="d", told_at=NOW)


def reason(**changes: Any) -> Reason | None:
    hold = read(**changes).hold
    return None if hold is None else hold.reason


@pytest.mark.parametrize(
    ("said", "earliest", "latest", "precision"),
    [
        ("2026-05-02T20:00:00-04:00", "2026-05-03T00:00:00", "2026-05-03T00:00:00", "instant"),
        ("2026-05-02T20:00:00.1234569Z", *["2026-05-02T20:00:00.123456"] * 2, "instant"),
        ("2016-12-31T23:59:60Z", *["2017-01-01T00:00:00"] * 2, "instant"),
        ("2026-05-02", "2026-05-02T04:00:00", "2026-05-03T03:59:59.999999", "day"),
        ("2026-03-08", "2026-03-08T05:00:00", "2026-03-09T03:59:59.999999", "day"),
        ("2026-11-01", "2026-11-01T04:00:00", "2026-11-02T04:59:59.999999", "day"),
        ("2026-12", "2026-12-01T05:00:00", "2027-01-01T04:59:59.999999", "month"),
        ("2026", "2026-01-01T05:00:00", "2027-01-01T04:59:59.999999", "year"),
    ],
)
def test_a_date_is_the_range_of_instants_it_may_mean(
    said: str, earliest: str, latest: str, precision: str
) -> None:
    """HA-05, CT-24: days of 23 and 25 hours among them."""
    first, last = (datetime.fromisoformat(f"{one}+00:00") for one in (earliest, latest))
    assert moment(said, TORONTO) == Moment(first, last, precision)


@given(st.datetimes(datetime(1900, 1, 2), datetime(2999, 1, 1), timezones=st.timezones()))
def test_an_instant_is_read_as_itself(when: datetime) -> None:
    """HA-05: whatever the offset. FHIR's offsets have no seconds."""
    offset = when.utcoffset()
    assert offset is not None
    if offset.total_seconds() % 60:
        when = when.astimezone(UTC)
    read_back = moment(when.isoformat().replace("+00:00", "Z"), TORONTO)
    assert read_back.earliest == read_back.latest == when.astimezone(UTC)


def test_an_encounter_says_what_counting_needs() -> None:
    got = read(
        statusHistory=[{"status": "triaged", "period": {"start": "2026-05-02"}}],
        classHistory=[{"class": {"system": ACT_CODE, "code": "EMER"}, "period": {}}],
        hospitalization={
            "admitSource": {"coding": [
                {"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": "emd"}]},
            "dischargeDisposition": {"coding": [
                {"system": "http://terminology.hl7.org/CodeSystem/discharge-disposition",
                 "code": "other-hcf"}]},
        },
        reasonCode=[{"coding": [{"system": ICD, "code": "F32"}]}],
        meta={"versionId": "7", "security": [{"system": ACT_CODE, "code": "PSY"}]},
    ).message  # fmt: skip
    assert got.status is Status.FINISHED
    assert got.code == "EMER"
    assert got.triaged
    assert (got.from_emergency, got.transfer_in, got.transfer_out) == (True, False, True)
    assert got.disposition == "transferred"
    assert got.codes == (Code(ICD, "F32"),)
    assert got.labels == (Code(ACT_CODE, "PSY"),)
    assert got.source_version == 7
    assert got.start == moment("2026-05-02T20:00:00-04:00", TORONTO)


def test_the_code_map_of_the_site_speaks_first() -> None:
    """CT-03, CR-07, CS-59."""
    rules = SiteRules(
        "site-a",
        classes={"https://example.ca/classes|URG": "EMER", "B": "IMP"},
        services={"OBS": "obstetrics"},
        dispositions={"https://example.ca/out|7": "lwbs"},
        planned=frozenset({"RDV"}),
        labels_assessed=True,
        sensitive_services={"OBS": ("SEX",)},
    )
    local = {"system": "https://example.ca/classes", "code": "URG"}
    got = read(
        rules,
        serviceType={"coding": [{"code": "OBS"}]},
        type=[{"coding": [{"code": "RDV"}]}],
        hospitalization={
            "dischargeDisposition": {"coding": [{"system": "https://example.ca/out", "code": "7"}]}
        },
        **klass(local),
    ).message
    assert got.code == "EMER"
    assert got.service == "obstetrics"
    assert got.disposition == "lwbs"
    assert got.planned
    assert got.labels == (Code(ACT_CODE, "SEX"),)
    assert read(rules).message.labels == ()
    assert read().message.labels is None
    assert reason(**klass(local)) is Reason.UNKNOWN_CLASS


@pytest.mark.parametrize(
    ("system", "code", "normalised"),
    [
        (ACT_CODE, "OBSENC", "OBSENC"),
        ("http://hl7.org/fhir/v3/ActCode", "EMER", "EMER"),
        ("https://terminology.hl7.org/CodeSystem/v3-ActCode", "EMER", "EMER"),
        ("http://terminology.hl7.org/CodeSystem/v2-0004", "E", "EMER"),
        ("http://terminology.hl7.org/CodeSystem/v2-0004", "I", "IMP"),
        ("http://terminology.hl7.org/CodeSystem/v2-0004", "R", None),
        (None, "EMER", None),
        (ACT_CODE, "emer", None),
    ],
)
def test_standard_classes_need_no_mapping_and_no_other_is_guessed(
    system: str | None, code: str, normalised: str | None
) -> None:
    """CT-03, HA-74, HA-85."""
    coding = {"code": code} | ({"system": system} if system else {})
    got = read(**klass(coding))
    assert got.message.code == normalised
    assert (got.hold is not None) == (normalised is None)


def test_priority_makes_no_emergency() -> None:
    """CT-05, HA-85."""
    urgent = {"coding": [{"system": ACT_CODE, "code": "EM"}]}
    coding = {"system": ACT_CODE, "code": "AMB"}
    got = read(priority=urgent, **klass(coding)).message
    assert got.code == "AMB"
    assert not got.from_emergency


@pytest.mark.parametrize("subject", [..., {"display": "TEST"}, {"reference": "Group/1"},
                                     {"type": "Group", "identifier": {"value": "x"}}])  # fmt: skip
def test_a_subject_that_names_no_patient_is_refused(subject: Any) -> None:
    """HA-71."""
    with pytest.raises(RefusedError) as refused:
        read(subject=subject)
    assert [p.status for p in refused.value.problems] == [422]
    assert refused.value.problems[0].expression == "Encounter.subject"


def test_a_class_without_code_is_refused_unless_the_encounter_is_void() -> None:
    """HA-73."""
    with pytest.raises(RefusedError):
        read(**klass({"display": "x"}))
    assert reason(status="cancelled", **klass({"display": "x"})) is None


def test_a_start_that_is_missing_or_vague_is_waited_for() -> None:
    """HA-75: a plan may be vague, what is void needs none."""
    assert reason(period=...) is Reason.START_MISSING
    assert reason(period={"end": "2026-05-02"}) is Reason.START_MISSING
    assert reason(period={"start": "2026-05"}) is Reason.START_IMPRECISE
    for status in ("planned", "cancelled", "entered-in-error"):
        assert reason(period=..., status=status) is None


def test_a_missing_start_has_a_best_instant_to_stand_in() -> None:
    """CR-30."""
    arrived = {"status": "arrived", "period": {"start": "2026-05-02T20:00:00Z"}}
    got = read(period=..., statusHistory=[arrived])
    assert got.best_start == moment("2026-05-02T20:00:00Z", TORONTO)
    assert got.hold is not None
    assert got.hold.due == NOW + timedelta(hours=24)
    assert read(period=...).best_start is None


def test_a_start_ahead_waits_until_it_is_reached() -> None:
    """HA-76: five minutes are allowed."""
    in_time, ahead = ((NOW + timedelta(minutes=5, seconds=n)).isoformat() for n in (0, 1))
    assert reason(period={"start": in_time}) is None
    assert reason(period={"start": ahead}) is Reason.FUTURE
    assert reason(period={"start": ahead}, status="planned") is None


@pytest.mark.parametrize(
    ("identifiers", "visit"),
    [
        ([{"system": "s", "value": "1"}], "1"),
        ([{"value": "1"}, {"system": "s", "value": "2"}], "2"),
        ([{"system": "s", "value": "1"},
          {"system": "t", "value": "2", "type": {"coding": [
              {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "VN"}]}}], "2"),
        ([{"system": "s", "value": "1"}, {"system": "visits", "value": "2"}], "2"),
        ([{"system": "s", "value": "1"}, {"system": "t", "value": "2"}], None),
        ([{"value": "1"}], None),
        ([], None),
    ],
)  # fmt: skip
def test_the_visit_number_is_found_by_rule_or_asked_for(
    identifiers: list[dict[str, Any]], visit: str | None
) -> None:
    """HA-70."""
    rules = SiteRules("site-a", visit_systems=frozenset({"visits"}))
    got = read(rules, identifier=identifiers or ...)
    assert (got.visit.value if got.visit else None) == visit
    assert (got.no_visit is None) == (visit is not None)
    if len(identifiers) > 1 and got.no_visit:
        assert "visit_systems" in got.no_visit.advice


@pytest.mark.parametrize(
    ("subject", "logical_id", "value"),
    [
        ({"reference": "Patient/p1"}, "p1", None),
        ({"reference": "https://example.org/fhir/Patient/p1/_history/3"}, "p1", None),
        ({"reference": "Patient?identifier=sys|TEST-1"}, None, "TEST-1"),
        ({"identifier": {"system": "sys", "value": "TEST-1"}}, None, "TEST-1"),
        ({"reference": "#p"}, None, "TEST-2"),
    ],
)
def test_a_subject_is_followed_however_it_is_written(
    subject: dict[str, Any], logical_id: str | None, value: str | None
) -> None:
    """HA-33."""
    inner = {"resourceType": "Patient", "id": "p", "identifier": [{"value": "TEST-2"}]}
    got = read(subject=subject, contained=[inner]).subject
    assert got.logical_id == logical_id
    assert [one.value for one in got.identifiers] == ([value] if value else [])


def test_a_status_given_only_as_absent_is_unknown() -> None:
    """HA-78."""
    assert read(status=...).message.status is Status.UNKNOWN


def test_the_sending_systems_own_time_counts_only_where_the_site_says_so() -> None:
    """HA-82: and never if it is ahead."""
    trusting = SiteRules("site-a", sets_last_updated=True)
    past, ahead = NOW - timedelta(hours=6), NOW + timedelta(seconds=1)
    assert event_time(encounter(meta={"lastUpdated": past.isoformat()}), RULES, NOW) == NOW
    assert event_time(encounter(meta={"lastUpdated": past.isoformat()}), trusting, NOW) == past
    assert event_time(encounter(meta={"lastUpdated": ahead.isoformat()}), trusting, NOW) == NOW


def test_codes_of_conditions_come_with_the_encounter_unless_they_are_taken_back() -> None:
    """HA-25."""

    def condition(code: str, verified: str) -> dict[str, Any]:
        return {
            "resourceType": "Condition",
            "code": {"coding": [{"system": ICD, "code": code}]},
            "verificationStatus": {"coding": [{"code": verified}]},
            "meta": {"security": [{"system": ACT_CODE, "code": "ETH"}]},
        }

    got = read_encounter(
        encounter(), RULES, digest="d", told_at=NOW, now=NOW,
        conditions=[condition("F10", "confirmed"), condition("F20", "refuted")],
    )  # fmt: skip
    assert got.message.codes == (Code(ICD, "F10"),)
    assert got.message.labels == (Code(ACT_CODE, "ETH"),)


def test_a_patient_says_who_it_is() -> None:
    got = read_person(
        identifier=[{"system": "s", "value": "TEST 1"}, {"value": "old", "use": "old"}],
        name=[{"use": "maiden", "family": "TESTOLD"}, {"family": "TESTNEW", "given": ["A", "B"]}],
        birthDate="1980-02-03",
        gender="female",
        deceasedDateTime="2026-05-02",
        generalPractitioner=[{"identifier": {"system": "lic", "value": "TEST-9"}}],
    )
    assert got.identifiers == (Identifier("s", "TEST 1"),)
    assert got.fields["family"] == "TESTNEW"
    assert got.fields["given"] == "A B"
    assert got.fields["birthDate"] == "1980-02-03"
    assert got.fields["deceased"] == "2026-05-02T04:00:00+00:00"
    assert [one.value for one in got.caregivers] == ["TEST-9"]
    assert "TEST" not in repr(got)


def test_a_birth_date_that_is_not_a_day_is_not_used_and_a_death_can_be_taken_back() -> None:
    got = read_person(birthDate="1980-02", deceasedBoolean=False)
    assert "birthDate" not in got.fields
    assert got.fields["deceased"] is None
    assert read_person(deceasedBoolean=True).fields["deceased"] == NOW.isoformat()


def test_a_merged_record_names_the_one_that_replaces_it() -> None:
    """HA-97."""
    got = read_person(
        active=False, link=[{"type": "replaced-by", "other": {"reference": "Patient/2"}}]
    )
    assert not got.active
    assert got.replaced_by is not None
    assert got.replaced_by.logical_id == "2"


def test_a_temporary_identity_is_known_by_pattern_or_type() -> None:
    """HA-96."""
    import re

    rules = SiteRules("site-a", temporary_identity=re.compile("TMP.*"))
    tree = {"resourceType": "Patient", "identifier": [{"system": "s", "value": "TMP-1"}]}
    assert read_patient(tree, rules, digest="d", told_at=NOW).temporary
    assert not read_patient(tree, RULES, digest="d", told_at=NOW).temporary
