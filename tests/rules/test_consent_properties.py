"""CP1 to CP8 (CS-37): what may never happen, whatever the Consents say."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.notify.consent import (
    ACT_CODE,
    ACT_REASON,
    CONFIDENTIALITY,
    CONSENT_ACTION,
    PARTICIPATION,
    RESOURCE_TYPES,
    Actor,
    Base,
    Code,
    Datum,
    Decision,
    Default,
    Directive,
    Directory,
    Effect,
    Item,
    Outcome,
    Period,
    Permit,
    Policy,
    Profile,
    Reference,
    Request,
    Rule,
    decide,
    decide_again_at,
)

EXAMPLES = settings(deadline=None)
"""How many is said by the hypothesis profile: 2,000 in CI, 50,000 nightly (CS-37)."""

NOW = datetime(2026, 3, 2, tzinfo=UTC)
PATIENT = Reference("Patient/TEST-p1")
DIRECTORY = Directory(
    part_of={"Organization/north": "Organization/network"},
    affiliation={
        "Practitioner/n1": frozenset({"Organization/north"}),
        "Practitioner/n2": frozenset({"Organization/north"}),
    },
    groups={"Practitioner/n1": frozenset({"Group/g1"})},
)
REFERENCES = st.sampled_from(
    [
        Reference("Organization/north"),
        Reference("Organization/network"),
        Reference("Organization/south"),
        Reference("Practitioner/n1"),
        Reference("Practitioner/n2"),
        Reference("Group/g1"),
        Reference("Group/nobody-knows"),
        Reference(None),
    ]
)
LABELS = st.sampled_from(
    [
        Code(ACT_CODE, "SUD"),
        Code(ACT_CODE, "SPI"),
        Code(ACT_CODE, "HIV"),
        Code(CONFIDENTIALITY, "R"),
        Code(CONFIDENTIALITY, "V"),
        Code("https://example.ca/local", "x"),
    ]
)
CODES = st.sampled_from([Code("icd", "F32"), Code("icd", "J44"), Code("local", "1")])
INSTANTS = st.integers(-40, 40).map(lambda days: NOW + timedelta(days=days))
PERIODS = st.builds(Period, st.none() | INSTANTS, st.none() | INSTANTS)


def several(of: st.SearchStrategy[Code]) -> st.SearchStrategy[tuple[Code, ...]]:
    return st.just(()) | st.just(()) | st.lists(of, min_size=1, max_size=2).map(tuple)


def rules(effects: st.SearchStrategy[Effect], children: bool = True) -> st.SearchStrategy[Rule]:
    def layer(below: st.SearchStrategy[tuple[Rule, ...]]) -> st.SearchStrategy[Rule]:
        return st.builds(
            Rule,
            effect=effects,
            period=st.none() | PERIODS,
            actors=st.just(())
            | st.lists(
                st.builds(
                    Actor,
                    st.sampled_from(["IRCP", "IRCP", "PRCP", "CST", "AUT", "WIT"]).map(
                        lambda c: Code(PARTICIPATION, c)
                    ),
                    REFERENCES,
                ),
                max_size=2,
            ).map(tuple),
            actions=several(
                st.sampled_from([Code(CONSENT_ACTION, "access"), Code(CONSENT_ACTION, "use")])
            ),
            purposes=several(
                st.sampled_from(
                    [Code(ACT_REASON, "TREAT"), Code(ACT_REASON, "HRESCH"), Code(None, None)]
                )
            ),
            labels=several(LABELS),
            classes=several(
                st.sampled_from(
                    [Code(RESOURCE_TYPES, "Encounter"), Code(RESOURCE_TYPES, "Condition")]
                )
            ),
            codes=several(CODES),
            data_period=st.none() | st.none() | PERIODS,
            data=st.just(())
            | st.just(())
            | st.lists(
                st.builds(
                    Datum,
                    st.sampled_from(["instance", "authoredby", "related"]),
                    st.sampled_from([Reference("Encounter/v0"), Reference("Organization/north")]),
                ),
                max_size=1,
            ).map(tuple),
            children=below,
        )

    leaf = layer(st.just(()))
    if not children:
        return leaf
    middle = layer(st.lists(leaf, max_size=2).map(tuple))
    return layer(st.lists(middle, max_size=2).map(tuple))


ANY_EFFECT = st.sampled_from(list(Effect))


def directives(
    roots: st.SearchStrategy[Rule | None], bases: st.SearchStrategy[Base | None]
) -> st.SearchStrategy[Directive]:
    return st.builds(
        Directive,
        id=st.sampled_from("abcdef"),
        version=st.sampled_from([1, 1, 1, 2]),
        active=st.sampled_from([True, True, True, False]),
        privacy=st.just(True),
        patient=st.just(PATIENT),
        dated=st.none() | INSTANTS,
        base=bases,
        root=roots,
        by_relatives_alone=st.sampled_from([False, False, True]),
        computable=st.sampled_from([True, True, True, True, True, False]),
    )


ANY_BASE = st.none() | st.sampled_from(list(Base))
ANYTHING = directives(st.none() | rules(ANY_EFFECT), ANY_BASE)
DENYING = directives(rules(st.just(Effect.DENY)), st.none() | st.just(Base.OPTOUT))
PERMITTING = directives(rules(st.just(Effect.PERMIT), children=False), st.none())
FILES = st.lists(ANYTHING, max_size=4, unique_by=lambda d: (d.id, d.version))


@st.composite
def items(draw: st.DrawFn) -> tuple[Item, ...]:
    count = draw(st.integers(1, 3))
    return tuple(
        Item(
            id=f"v{n}",
            kind=draw(st.sampled_from(["Encounter", "Condition"])),
            custodian=draw(st.none() | st.just("Organization/north")),
            author=draw(st.none() | st.just("Organization/north")),
            start=draw(st.none() | INSTANTS),
            labels=draw(st.none() | st.frozensets(LABELS, max_size=2)),
            codes=draw(st.none() | st.frozensets(CODES, max_size=2)),
        )
        for n in range(count)
    )


REQUESTS = st.builds(
    Request,
    at=st.just(NOW),
    patient=st.just("Patient/TEST-p1"),
    recipient=st.just("Organization/north"),
    readers=st.sampled_from([(), ("Practitioner/n1",), ("Practitioner/n1", "Practitioner/n2")]),
    items=items(),
    circle=st.booleans(),
    birth_date=st.none() | st.just(datetime(2020, 1, 1, tzinfo=UTC).date()),
    directory=st.just(DIRECTORY),
)
DEFAULTS = st.sampled_from(list(Default)).map(lambda d: Policy(d, Profile.QC))
OPT_IN = Policy(Default.OPT_IN, Profile.QC)
IMPLIED = Policy(Default.IMPLIED, Profile.QC)


def released(decision: Decision) -> frozenset[str]:
    return frozenset(f.item for f in decision.findings if f.outcome is Outcome.RELEASE)


def fresh(directive: Directive) -> Directive:
    """Under an id of its own, so that it replaces no other version."""
    return replace(directive, id="further", version=1)


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS, st.randoms())
def test_cp1_the_order_of_consents_is_irrelevant(
    on_file: list[Directive], asked: Request, policy: Policy, chance: object
) -> None:
    shuffled = list(on_file)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(on_file, asked, policy) == decide(shuffled, asked, policy)


@EXAMPLES
@given(FILES, DENYING, REQUESTS, DEFAULTS)
def test_cp2_a_further_deny_enlarges_no_release(
    on_file: list[Directive], further: Directive, asked: Request, policy: Policy
) -> None:
    before = released(decide(on_file, asked, policy))
    assert released(decide([*on_file, fresh(further)], asked, policy)) <= before


@EXAMPLES
@given(FILES, PERMITTING, REQUESTS)
def test_cp3_a_further_permit_shrinks_no_opt_in_release(
    on_file: list[Directive], further: Directive, asked: Request
) -> None:
    assume(further.computable)
    before = released(decide(on_file, asked, OPT_IN))
    assert before <= released(decide([*on_file, fresh(further)], asked, OPT_IN))


@EXAMPLES
@given(FILES, REQUESTS)
def test_cp4_opt_in_releases_no_more_than_implied(on_file: list[Directive], asked: Request) -> None:
    assert released(decide(on_file, asked, OPT_IN)) <= released(decide(on_file, asked, IMPLIED))


@EXAMPLES
@given(FILES, ANYTHING, REQUESTS, DEFAULTS)
def test_cp5_other_patients_consents_change_nothing(
    on_file: list[Directive], other: Directive, asked: Request, policy: Policy
) -> None:
    others = replace(fresh(other), patient=Reference("Patient/TEST-p2"))
    assert decide([*on_file, others], asked, policy) == decide(on_file, asked, policy)


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS)
def test_cp6_a_further_reader_or_forgetting_who_reads_enlarges_nothing(
    on_file: list[Directive], asked: Request, policy: Policy
) -> None:
    alone = released(decide(on_file, replace(asked, readers=("Practitioner/n1",)), policy))
    both = replace(asked, readers=("Practitioner/n1", "Practitioner/n2"))
    nobody_knows = replace(asked, readers=())
    assert released(decide(on_file, both, policy)) <= alone
    assert released(decide(on_file, nobody_knows, policy)) <= alone


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS, st.sampled_from(["labels", "codes", "author", "start"]))
def test_cp7_forgetting_labels_codes_author_or_date_enlarges_nothing(
    on_file: list[Directive], asked: Request, policy: Policy, forgotten: str
) -> None:
    blank: dict[str, None] = {forgotten: None}
    less = replace(asked, items=tuple(replace(i, **blank) for i in asked.items))  # type: ignore[arg-type]
    before = released(decide(on_file, asked, policy))
    assert released(decide(on_file, less, policy)) <= before


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS)
def test_cp8_an_item_fares_the_same_alone_and_in_a_batch(
    on_file: list[Directive], asked: Request, policy: Policy
) -> None:
    together = {f.item: f for f in decide(on_file, asked, policy).findings}
    for item in asked.items:
        (alone,) = decide(on_file, replace(asked, items=(item,)), policy).findings
        assert alone == together[item.id]


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS)
def test_a_permit_covers_released_items_only_and_a_refusal_has_a_reason(
    on_file: list[Directive], asked: Request, policy: Policy
) -> None:
    decision = decide(on_file, asked, policy)
    if isinstance(decision, Permit):
        assert decision.released == released(decision)
        assert decision.released
    else:
        assert decision.reasons
        assert not released(decision)


@EXAMPLES
@given(FILES, REQUESTS, DEFAULTS, st.integers(0, 90))
def test_nothing_changes_before_the_instant_that_is_told(
    on_file: list[Directive], asked: Request, policy: Policy, days: int
) -> None:
    """CS-51: between now and `decide_again_at`, time alone changes nothing."""
    until = decide_again_at(on_file, asked, policy)
    later = NOW + timedelta(days=days)
    assume(until is None or later < until)

    def outcomes(at: datetime) -> Sequence[Outcome]:
        return [f.outcome for f in decide(on_file, replace(asked, at=at), policy).findings]

    assert outcomes(later) == outcomes(NOW)
