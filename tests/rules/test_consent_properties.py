"""CP1 to CP8 (CS-37): what may never happen, whatever the Consents say."""

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.notify.consent import (
    Base,
    Decision,
    Default,
    Found,
    Hold,
    Outcome,
    Permit,
    Reason,
    Reference,
    decide,
    decide_again_at,
    is_computable,
)
from tests.consent.worlds import NOW, WORLDS, World

EXAMPLES = settings(deadline=None)
"""How many is said by the hypothesis profile: 2,000 in CI, 50,000 nightly (CS-37)."""

FINAL = {
    Reason.RESTRICTED,
    Reason.NOT_COVERED,
    Reason.NO_CONSENT,
    Reason.PERFORMER_NOT_ENTITLED,
}
GRANTS = {Reason.PERMITTED, Reason.IMPLIED}


def released(decision: Decision) -> frozenset[str]:
    return frozenset(f.item for f in decision.findings if f.outcome is Outcome.RELEASE)


@EXAMPLES
@given(WORLDS)
def test_cp1_the_order_of_consents_is_irrelevant(world: World) -> None:
    shuffled = list(world.on_file)
    world.chance.shuffle(shuffled)
    turned = replace(world.asked, readers=world.asked.readers[::-1], items=world.asked.items[::-1])
    decided = decide(world.on_file, world.asked, world.policy)
    again = decide(shuffled, turned, world.policy)
    assert replace(again, readers=world.asked.readers) == decided


@EXAMPLES
@given(WORLDS)
def test_cp2_a_further_deny_enlarges_no_release(world: World) -> None:
    before = released(decide(world.on_file, world.asked, world.policy))
    after = decide([*world.on_file, world.denial], world.asked, world.policy)
    assert released(after) <= before


@EXAMPLES
@given(WORLDS)
def test_cp3_a_further_permit_shrinks_no_opt_in_release(world: World) -> None:
    assume(is_computable(world.grant))
    opt_in = replace(world.policy, default=Default.OPT_IN)
    before = released(decide(world.on_file, world.asked, opt_in))
    assert before <= released(decide([*world.on_file, world.grant], world.asked, opt_in))


@EXAMPLES
@given(WORLDS)
def test_cp4_opt_in_releases_no_more_than_implied(world: World) -> None:
    opt_in = replace(world.policy, default=Default.OPT_IN)
    implied = replace(world.policy, default=Default.IMPLIED)
    most = released(decide(world.on_file, world.asked, implied))
    assert released(decide(world.on_file, world.asked, opt_in)) <= most


@EXAMPLES
@given(WORLDS)
def test_cp5_other_patients_consents_change_nothing(world: World) -> None:
    others = replace(world.further, patient=Reference("Patient/TEST-p2"))
    decided = decide(world.on_file, world.asked, world.policy)
    assert decide([*world.on_file, others], world.asked, world.policy) == decided


@EXAMPLES
@given(WORLDS)
def test_cp6_a_further_reader_or_forgetting_who_reads_enlarges_nothing(world: World) -> None:
    known = world.asked.readers or (world.reader,)
    before = released(decide(world.on_file, replace(world.asked, readers=known), world.policy))
    more = replace(world.asked, readers=(*known, world.reader))
    nobody_knows = replace(world.asked, readers=())
    assert released(decide(world.on_file, more, world.policy)) <= before
    assert released(decide(world.on_file, nobody_knows, world.policy)) <= before


FORGOTTEN = st.sets(
    st.sampled_from(["labels", "codes", "author", "start", "custodian"]), min_size=1
)


@EXAMPLES
@given(WORLDS, FORGOTTEN)
def test_cp7_forgetting_labels_codes_author_or_date_enlarges_nothing(
    world: World, forgotten: set[str]
) -> None:
    blank: dict[str, None] = dict.fromkeys(forgotten)
    items = tuple(replace(item, **blank) for item in world.asked.items)  # type: ignore[arg-type]
    before = released(decide(world.on_file, world.asked, world.policy))
    after = decide(world.on_file, replace(world.asked, items=items), world.policy)
    assert released(after) <= before


@EXAMPLES
@given(WORLDS)
def test_cp8_an_item_fares_the_same_alone_and_in_a_batch(world: World) -> None:
    together = {f.item: f for f in decide(world.on_file, world.asked, world.policy).findings}
    for item in world.asked.items:
        alone = decide(world.on_file, replace(world.asked, items=(item,)), world.policy)
        assert alone.findings == (together[item.id],)


# --- and what follows from the value itself (CS-34, CS-35, CS-61) ------------------------------


@EXAMPLES
@given(WORLDS)
def test_a_permit_covers_released_items_only_and_each_outcome_has_its_reasons(
    world: World,
) -> None:
    decision = decide(world.on_file, world.asked, world.policy)
    assert Reason.DECISION_ERROR not in frozenset().union(*(f.reasons for f in decision.findings))
    assert isinstance(decision, Permit) is bool(released(decision))
    for finding in decision.findings:
        assert finding.reasons
        match finding.outcome:
            case Outcome.RELEASE:
                assert finding.reasons <= GRANTS
                assert finding.explicit is (finding.reasons == {Reason.PERMITTED})
            case Outcome.HOLD:
                assert not finding.explicit
                assert not finding.reasons & (FINAL | GRANTS)
                assert finding.basis
            case Outcome.WITHHOLD:
                assert not finding.explicit
                assert finding.reasons <= FINAL
    if isinstance(decision, Permit):
        assert decision.released == released(decision)
    else:
        outcome = Outcome.HOLD if isinstance(decision, Hold) else Outcome.WITHHOLD
        kept = [f for f in decision.findings if f.outcome is outcome]
        assert decision.reasons == frozenset().union(*(f.reasons for f in kept))
        assert kept
    if decision.found is Found.DENY:
        assert not released(decision)


@EXAMPLES
@given(WORLDS)
def test_what_cannot_be_computed_releases_nothing_and_is_never_a_plain_no(world: World) -> None:
    """CS-13: it denies everything; alone it is a Hold."""
    unreadable = replace(
        world.further,
        computable=False,
        active=True,
        privacy=True,
        patient=Reference(world.asked.patient),
    )
    decision = decide([*world.on_file, unreadable], world.asked, world.policy)
    assert not released(decision)
    alone = decide([unreadable], world.asked, world.policy)
    assert {f.outcome for f in alone.findings} == {Outcome.HOLD}


@EXAMPLES
@given(WORLDS)
def test_what_is_silent_leaves_the_default(world: World) -> None:
    """CS-22, CS-32: a Consent that is not in force yet and grants nothing is as if it were not."""
    tomorrow = NOW + timedelta(days=1)
    future = replace(world.grant, base=Base.OPTIN, root=None, computable=True, dated=tomorrow)
    decided = decide(world.on_file, world.asked, world.policy)
    after = decide([*world.on_file, future], world.asked, world.policy)
    assert after.findings == decided.findings


@EXAMPLES
@given(WORLDS, st.integers(0, 90))
def test_nothing_changes_before_the_instant_that_is_told(world: World, days: int) -> None:
    """CS-51: between now and `decide_again_at`, time alone changes nothing."""
    until = decide_again_at(world.on_file, world.asked, world.policy)
    later = NOW + timedelta(days=days)
    assume(until is None or later < until)

    def outcomes(at: datetime) -> list[Outcome]:
        decision = decide(world.on_file, replace(world.asked, at=at), world.policy)
        return [f.outcome for f in decision.findings]

    assert outcomes(later) == outcomes(NOW)
