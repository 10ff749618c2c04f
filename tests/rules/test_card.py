"""What becomes of a card: made once, brought back, taken back, and what a clinic may do."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notify import consent, recount
from services.notify.card import (
    CLINIC_MAY,
    CLOSED,
    RESURFACING,
    SNOOZE_LIMIT,
    TAKEN_BACK,
    UNACCEPTED,
    Ask,
    Card,
    Cause,
    Dismissal,
    EpisodeNews,
    Event,
    Moment,
    NotAllowedError,
    Situation,
    Status,
    Tier,
    What,
    Why,
    acknowledged,
    brought_up_to,
    compose,
    correction_note,
    event_of,
    is_stub,
    opens,
    reason_to_take_back,
    settle,
    shown_reason,
    taken_back,
)
from services.notify.consent import Default, Permit, Policy, Request
from services.notify.recount import Clause, Kind, Standing, State, Unit, View, Visit

NOW = datetime(2026, 3, 2, 19, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PATIENT = UUID(int=7)


def key(number: int) -> UUID:
    return UUID(int=number)


def card(status: Status = Status.REQUESTED, **more: object) -> Card:
    said: dict[str, object] = {
        "id": key(1),
        "clinic": "clinic-a",
        "patient": PATIENT,
        "key": "episode:" + str(key(50)),
        "spell": 1,
        "what": What.THRESHOLD,
        "tier": Tier.TODAY,
        "status": status,
        "version": 1,
        "opened": NOW - DAY,
        "updated": NOW - DAY,
        "surfaced": NOW - DAY,
        "owner": "nurse-a",
        "due": NOW + 6 * DAY,
        **more,
    }
    return Card(**said)  # type: ignore[arg-type]


def news(moment: Moment, sequence: int = 2, at: datetime = NOW, **more: object) -> EpisodeNews:
    said: dict[str, object] = {
        "episode": key(50),
        "sequence": sequence,
        "moment": moment,
        "at": at,
        "site": "hospital-a",
        "in_hospital": False,
        "ended": False,
        "void": False,
        "encounters": (key(50),),
        **more,
    }
    return EpisodeNews(**said)  # type: ignore[arg-type]


def standing(visits: int = 4) -> Standing:
    units = tuple(
        Unit(
            Kind.ED,
            NOW - n * DAY,
            None,
            ("hospital-a",),
            (Visit(key(60 + n), "hospital-a", NOW - n * DAY),),
            counted=True,
        )
        for n in range(1, visits + 1)
    )
    return Standing(
        patient=PATIENT,
        sequence=1,
        state=State.FLAGGED if visits >= 4 else State.BELOW,
        held=False,
        since=NOW,
        next_change=None,
        as_of=NOW,
        policy="qc-default/1",
        clauses=(Clause(Kind.ED, 4, 365, State.FLAGGED, visits, visits >= 4),),
        every=False,
        units=units,
        known_sites=1,
        connected_sites=1,
        complete=True,
        episode=key(50),
    )


def view(visits: int = 4) -> View:
    told = standing(visits)
    return recount.see(told, frozenset(i.id for i in recount.items(told)), NOW)


def situation(visits: int = 4, **more: object) -> Situation:
    told = standing(visits)
    said: dict[str, object] = {
        "clinic": "clinic-a",
        "patient": PATIENT,
        "now": NOW,
        "routed": True,
        "owner": "nurse-a",
        "view": view(visits),
        "released": frozenset([*(i.id for i in recount.items(told)), f"Encounter/{key(50)}"]),
        "on_hold": False,
        "by_own_consent": False,
        "inbox": True,
        "standing": told,
        "cause": Cause.EVENT,
        "retracts": False,
        "merged": False,
        "spell": 1,
        "quiet": False,
        "newly_told": False,
        "episodes": (),
        "said_otherwise": False,
        "reads_otherwise": False,
        "counts_before": {},
        "due": lambda opened: opened + 7 * DAY,
        **more,
    }
    return Situation(**said)  # type: ignore[arg-type]


def ids() -> Callable[[], UUID]:
    numbers = count(1000)
    return lambda: key(next(numbers))


def settled(s: Situation, *cards: Card) -> list[Card]:
    """All cards as they are afterwards."""
    changed = settle(s, cards, ids())
    return [*(changed.pop(c.id, c) for c in cards), *changed.values()]


# --- composing --------------------------------------------------------------------------------


def test_a_card_says_only_what_its_permit_releases() -> None:
    told = standing()
    asked = Request(
        at=NOW,
        patient="Patient/7",
        recipient="Organization/clinic-a",
        readers=("Practitioner/nurse-a",),
        items=recount.items(told)[:3],
        circle=True,
    )
    permit = consent.decide([], asked, Policy(Default.IMPLIED))
    assert isinstance(permit, Permit)
    assert compose(told, permit).count(Kind.ED) == 3


# --- opening ----------------------------------------------------------------------------------


def test_a_threshold_that_is_reached_makes_one_card_and_the_same_again_none() -> None:
    (made,) = settled(situation())
    assert (made.key, made.owner, made.status) == (f"episode:{key(50)}", "nurse-a", "requested")
    assert settle(situation(), [made], ids()) == {}


def test_without_an_episode_the_key_is_the_flags_sequence() -> None:
    """NW-10."""
    bare = situation(standing=replace(standing(), episode=None), spell=9)
    assert settled(bare)[0].key == "flag:9"


def test_a_threshold_joins_the_card_of_its_episode() -> None:
    """NW-10."""
    there = card(what=What.LEFT_ED, spell=0)
    (joined,) = settled(situation(), there)
    assert (joined.id, joined.what, joined.spell, joined.surfaced) == (
        there.id,
        What.THRESHOLD,
        1,
        NOW,
    )


def test_a_closed_card_of_the_same_flagged_time_is_enough() -> None:
    for status in CLOSED:
        done = card(status, closed=NOW)
        assert settled(situation(), done) == [done]


@pytest.mark.parametrize(
    ("quiet", "newly", "made"),
    [(False, False, 1), (True, False, 0), (True, True, 1), (False, True, 1)],
)
def test_a_quiet_entry_makes_a_card_only_when_it_may_first_be_told(
    *, quiet: bool, newly: bool, made: int
) -> None:
    """CT-42, CA-43."""
    assert len(settled(situation(quiet=quiet, newly_told=newly))) == made


@pytest.mark.parametrize(
    ("moment", "what"),
    [
        (Moment.ARRIVED, None),
        (Moment.ADMITTED, None),
        (Moment.LEFT, What.LEFT_ED),
        (Moment.DISCHARGED, What.DISCHARGED),
    ],
)
def test_which_moments_of_a_flagged_patient_open_a_card(moment: Moment, what: What | None) -> None:
    """NW-12."""
    assert opens(news(moment), view(), NOW) is what


def test_what_is_older_than_72_hours_opens_nothing_and_72_hours_do() -> None:
    """CA-43."""
    edge = NOW - 72 * HOUR
    assert opens(news(Moment.LEFT, at=edge), view(), NOW) is What.LEFT_ED
    assert opens(news(Moment.LEFT, at=edge - timedelta(microseconds=1)), view(), NOW) is None


def test_leaving_the_ed_by_admission_opens_nothing() -> None:
    assert opens(news(Moment.LEFT, in_hospital=True), view(), NOW) is None


def test_an_episode_that_is_hidden_opens_nothing() -> None:
    s = situation(
        quiet=True,
        episodes=[news(Moment.LEFT)],
        released=frozenset(i.id for i in recount.items(standing())),
    )
    assert settled(s) == []
    assert len(settled(replace(s, released=s.released | {f"Encounter/{key(50)}"}))) == 1


# --- coming back (NW-11) ----------------------------------------------------------------------


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("status", [s for s in Status if s not in TAKEN_BACK])
def test_only_some_moments_bring_a_card_back(moment: Moment, status: Status) -> None:
    before = card(status, moment=Moment.ARRIVED, seen=NOW - HOUR)
    after = brought_up_to(before, news(moment), NOW)
    back = moment in RESURFACING
    assert (after.surfaced == NOW) is back
    assert (after.seen is None) is back
    if back and status in {*CLOSED, Status.ON_HOLD}:
        assert after.status is Status.REQUESTED
    else:
        assert after.status is status


@pytest.mark.parametrize("reason", list(Dismissal))
def test_some_reasons_keep_a_card_closed(reason: Dismissal) -> None:
    before = card(Status.REJECTED, dismissal=reason)
    after = brought_up_to(before, news(Moment.DISCHARGED), NOW)
    comes_back = reason in {Dismissal.ALREADY_KNOWN, Dismissal.NOT_COMPLEX, Dismissal.OTHER}
    assert (after.status is Status.REQUESTED) is comes_back
    assert after.moment is Moment.DISCHARGED


def test_the_same_or_an_older_moment_changes_nothing() -> None:
    before = card(applied=5)
    assert brought_up_to(before, news(Moment.LEFT, sequence=5), NOW) is before
    assert brought_up_to(before, news(Moment.LEFT, sequence=4), NOW) is before


def test_nine_messages_are_one_card_that_comes_back_twice() -> None:
    """US-N3: ED, admission, discharge."""
    s = situation(quiet=False, episodes=[news(Moment.ARRIVED, 1, NOW - HOUR)])
    (only,) = settled(s)
    back = 0
    moments = [Moment.ARRIVED] * 3 + [Moment.ADMITTED] * 3 + [Moment.DISCHARGED] * 3
    for n, moment in enumerate(moments, start=2):
        later = NOW + n * HOUR
        told = news(moment, n, later, in_hospital=moment is Moment.ADMITTED)
        (after,) = settled(replace(s, now=later, episodes=[told]), only)
        back += after.surfaced != only.surfaced
        only = after
    assert back == 2


def test_an_episode_that_joins_an_older_one_takes_its_card_along() -> None:
    """CT-26."""
    alone = card(what=What.LEFT_ED)
    moved = situation(episodes=[news(Moment.CORRECTED, joined_into=key(40))], quiet=True)
    (after,) = settled(moved, alone)
    assert after.key == f"episode:{key(40)}"
    older = card(id=key(2), key=f"episode:{key(40)}")
    assert sorted(c.status for c in settled(moved, alone, older)) == ["cancelled", "requested"]


def test_an_episode_that_is_taken_back_takes_its_own_card_only() -> None:
    s = situation(episodes=[news(Moment.CORRECTED, void=True)])
    (own,) = [c for c in settled(s, card(what=What.LEFT_ED)) if c.id == key(1)]
    assert (own.status, own.why) == (Status.CANCELLED, Why.VISIT_CANCELLED)
    (threshold,) = settled(s, card())
    assert threshold.status is Status.REQUESTED


# --- taken back (CA-30 to CA-32) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "retracts", "merged", "why"),
    [
        (Cause.VOID, True, False, Why.VISIT_CANCELLED),
        (Cause.CORRECTION, True, False, Why.COUNT_CORRECTED),
        (Cause.MERGE, False, True, Why.MERGED),
        (Cause.UNMERGE, False, False, Why.WRONG_PERSON),
        (Cause.DEATH, False, False, Why.DECEASED),
        (Cause.ELIGIBILITY, True, False, Why.NO_LONGER_APPLIES),
        (Cause.VOID, False, False, None),
        (Cause.EVENT, False, False, None),
        (Cause.DECAY, True, False, None),
        (Cause.HOLD_END, True, False, None),
        (Cause.POLICY, True, False, None),
    ],
)
def test_each_cause_takes_cards_back_for_its_own_reason(
    cause: Cause, why: Why | None, *, retracts: bool, merged: bool
) -> None:
    assert reason_to_take_back(cause, retracts=retracts, merged=merged) is why


@pytest.mark.parametrize("why", list(Why))
@pytest.mark.parametrize("status", list(Status))
def test_who_loses_a_card_and_who_keeps_it(status: Status, why: Why) -> None:
    after = taken_back(card(status), why, NOW)
    if status in TAKEN_BACK:
        assert after.status is status
    elif why is Why.WRONG_PERSON:
        assert after.status is Status.ENTERED_IN_ERROR
    elif status in UNACCEPTED or why not in {
        Why.COUNT_CORRECTED,
        Why.VISIT_CANCELLED,
        Why.DECEASED,
    }:
        assert (after.status, after.why) == (Status.CANCELLED, why)
    else:
        assert after.status is status


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({"view": None}, Why.CONSENT_WITHDRAWN),
        ({"view": None, "on_hold": True}, Why.NO_LONGER_APPLIES),
        ({"routed": False}, Why.PANEL_CHANGED),
        ({"routed": False, "view": None}, Why.PANEL_CHANGED),
    ],
)
def test_who_may_not_be_told_any_more_keeps_nothing_in_any_state(
    lost: dict[str, Any], why: Why
) -> None:
    for status in set(Status) - TAKEN_BACK:
        (after,) = settled(replace(situation(), **lost), card(status))
        assert (after.status, after.why) == (Status.CANCELLED, why)
        assert is_stub(after)


def test_only_the_clinic_that_captured_the_consent_reads_that_it_was_withdrawn() -> None:
    """CS-43."""
    gone = card(Status.CANCELLED, why=Why.CONSENT_WITHDRAWN)
    assert shown_reason(gone) is Why.NO_LONGER_APPLIES
    assert shown_reason(replace(gone, by_own_consent=True)) is Why.CONSENT_WITHDRAWN


def test_a_card_of_a_retired_key_is_merged() -> None:
    (after, *made) = settled(situation(quiet=True), card(patient=key(8)))
    assert (after.status, after.why, made) == (Status.CANCELLED, Why.MERGED, [])


def test_a_lower_count_is_noted_once() -> None:
    assert correction_note({"ed": 4}, {"ed": 3}) == "count corrected from 4 to 3"
    assert correction_note({"ed": 4}, {"ed": 4}) is None
    s = situation(3, cause=Cause.VOID, retracts=True, said_otherwise=True, counts_before={"ed": 4})
    (kept,) = settled(s, card(Status.ACCEPTED))
    assert [n.text for n in kept.notes] == ["count corrected from 4 to 3"]
    (again,) = settled(s, kept)
    assert len(again.notes) == 1


def test_what_an_emr_is_told_of_a_change() -> None:
    before = card()
    assert event_of(None, before) is Event.OPENED
    assert event_of(before, replace(before, status=Status.CANCELLED)) is Event.RETRACTED
    assert event_of(before, replace(before, surfaced=NOW)) is Event.RESURFACED
    assert event_of(before, replace(before, owner=None)) is Event.CHANGED


# --- what a clinic may do ---------------------------------------------------------------------


def asks(status: Status) -> Ask:
    reason = Dismissal.DECLINED if status is Status.REJECTED else None
    return Ask(status=status, dismissal=reason)


@pytest.mark.parametrize("to", list(Status))
@pytest.mark.parametrize("status", list(Status))
def test_the_table_of_section_4_and_nothing_else(status: Status, to: Status) -> None:
    """CA-23."""
    before = card(status, closed=NOW if status in CLOSED else None)
    if to in CLINIC_MAY[status]:
        assert acknowledged(before, asks(to), NOW, "nurse-a").status is to
    elif to is status and status not in TAKEN_BACK:
        assert acknowledged(before, Ask(status=to), NOW, "nurse-a") is before
    else:
        with pytest.raises(NotAllowedError) as caught:
            acknowledged(before, asks(to), NOW, "nurse-a")
        assert caught.value.element == "Task.status"


def test_undo_restores_owner_and_due_within_30_minutes() -> None:
    """NW-14."""
    before = card(Status.IN_PROGRESS)
    done = acknowledged(before, Ask(status=Status.COMPLETED), NOW, "nurse-a")
    passed_on = replace(done, owner=None, due=None)
    in_time = NOW + timedelta(minutes=30)
    back = acknowledged(passed_on, Ask(status=Status.ACCEPTED), in_time, "nurse-a")
    assert (back.owner, back.due, back.status) == ("nurse-a", before.due, Status.ACCEPTED)
    late = in_time + timedelta(microseconds=1)
    with pytest.raises(NotAllowedError):
        acknowledged(passed_on, Ask(status=Status.ACCEPTED), late, "nurse-a")


def test_other_needs_three_characters() -> None:
    """NW-16."""
    for text, fits in ((None, False), ("no", False), ("   ", False), ("moved", True)):
        ask = Ask(Status.REJECTED, dismissal=Dismissal.OTHER, dismissal_text=text)
        if fits:
            assert acknowledged(card(), ask, NOW, "nurse-a").dismissal_text == "moved"
        else:
            with pytest.raises(NotAllowedError):
                acknowledged(card(), ask, NOW, "nurse-a")


def test_a_snooze_lasts_14_days_at_most_and_by_default() -> None:
    """CA-25."""
    asleep = acknowledged(card(), Ask(Status.ON_HOLD), NOW, "nurse-a")
    assert asleep.snoozed_until == NOW + SNOOZE_LIMIT
    for until, fits in (
        (NOW + SNOOZE_LIMIT, True),
        (NOW + SNOOZE_LIMIT + HOUR, False),
        (NOW, False),
    ):
        ask = Ask(Status.ON_HOLD, snooze_until=until)
        if fits:
            assert acknowledged(card(), ask, NOW, "nurse-a").snoozed_until == until
        else:
            with pytest.raises(NotAllowedError):
                acknowledged(card(), ask, NOW, "nurse-a")


def test_a_snooze_or_a_reason_without_its_status_is_refused() -> None:
    for ask in (Ask(until_discharge=True), Ask(dismissal=Dismissal.DECLINED)):
        with pytest.raises(NotAllowedError):
            acknowledged(card(Status.ACCEPTED), ask, NOW, "nurse-a")


@given(
    st.lists(
        st.sampled_from(
            [
                situation(),
                situation(view=None),
                situation(routed=False),
                situation(newly_told=True),
                situation(3, cause=Cause.VOID, retracts=True, said_otherwise=True),
                situation(episodes=[news(Moment.LEFT, 3)]),
                situation(episodes=[news(Moment.DISCHARGED, 4)], quiet=True),
            ]
        ),
        max_size=8,
    )
)
def test_there_is_never_more_than_one_living_card_of_an_episode(
    steps: Sequence[Situation],
) -> None:
    """NW-10."""
    cards: list[Card] = []
    make = ids()
    for step in steps:
        changed = settle(step, cards, make)
        cards = [*(changed.pop(c.id, c) for c in cards), *changed.values()]
        alive = [c.key for c in cards if c.status not in TAKEN_BACK]
        assert len(alive) == len(set(alive))
        if step.view is None or not step.routed:
            assert alive == []
