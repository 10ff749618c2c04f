"""All messages of an encounter → one fact (counting.md section 2, hospital-api.md section 10)."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.folding import (
    ClassSpell,
    Code,
    Message,
    Moment,
    Status,
    fold,
    is_reused,
)

EIGHT_PM = datetime(2026, 5, 3, 0, 0, tzinfo=UTC)  # 2026-05-02 20:00 in Toronto
HALF_PAST_FOUR = EIGHT_PM + timedelta(hours=8, minutes=30)
FIVE_DAYS_ON = EIGHT_PM + timedelta(days=5)
P, Q = UUID(int=1), UUID(int=2)


def at(when: datetime) -> Moment:
    return Moment(when, when)


def message(event_time: datetime, status: str = "in-progress", **more: Any) -> Message:
    """One message; its digest is made of what it says."""
    return Message(event_time, Status(status), digest=repr((event_time, status, more)), **more)


ARRIVAL = message(EIGHT_PM, "arrived", code="EMER", start=at(EIGHT_PM), patient=P)
ADMISSION = message(HALF_PAST_FOUR, code="IMP", start=at(EIGHT_PM), patient=P)
DISCHARGE = message(
    FIVE_DAYS_ON, "finished", code="IMP", end=at(FIVE_DAYS_ON), disposition="home", patient=P
)


def test_a_class_change_on_one_encounter_is_kept() -> None:
    """W-5, CT-14: EMER from the arrival, IMP from the event that first showed it."""
    fact = fold([ARRIVAL, ADMISSION, DISCHARGE])
    assert fact.classes == (("EMER", EIGHT_PM), ("IMP", HALF_PAST_FOUR))
    assert fact.status is Status.FINISHED
    assert fact.start == at(EIGHT_PM)
    assert fact.end == at(FIVE_DAYS_ON)
    assert fact.disposition == "home"


def test_was_emergency_once_survives_when_only_the_last_message_came() -> None:
    """CT-14: from the message's own class history."""
    only = message(
        FIVE_DAYS_ON,
        "finished",
        code="IMP",
        start=at(EIGHT_PM),
        class_history=(ClassSpell("EMER", at(EIGHT_PM), at(HALF_PAST_FOUR)),),
    )
    assert fold([only]).classes == (("EMER", EIGHT_PM), ("IMP", HALF_PAST_FOUR))


def test_a_class_history_with_its_own_start_dates_the_change() -> None:
    """CT-14: before the event time of the message that showed it."""
    late = message(FIVE_DAYS_ON, code="IMP", class_history=(ClassSpell("IMP", at(HALF_PAST_FOUR)),))
    assert fold([ARRIVAL, late]).classes == (("EMER", EIGHT_PM), ("IMP", HALF_PAST_FOUR))


def test_a_class_taken_back_is_in_the_history_three_times() -> None:
    """CR-50: A07."""
    back = message(FIVE_DAYS_ON, code="EMER")
    assert [code for code, _ in fold([ARRIVAL, ADMISSION, back]).classes] == ["EMER", "IMP", "EMER"]


def test_what_was_announced_before_it_began_holds_from_the_beginning() -> None:
    """CT-14: a plan of last week does not date the visit."""
    plan = message(EIGHT_PM - timedelta(days=7), "planned", code="EMER", start=at(EIGHT_PM))
    assert fold([plan, ARRIVAL]).classes == (("EMER", EIGHT_PM),)


def test_a_newer_lower_status_reopens_and_drops_the_end() -> None:
    """CT-11: A13."""
    reopened = message(FIVE_DAYS_ON + timedelta(hours=1))
    fact = fold([ARRIVAL, DISCHARGE, reopened])
    assert fact.status is Status.IN_PROGRESS
    assert fact.end is None


def test_an_older_lower_status_changes_nothing() -> None:
    """HA-82: older is history only."""
    assert fold([DISCHARGE, ARRIVAL]).status is Status.FINISHED


def test_at_equal_times_the_higher_status_wins() -> None:
    """HA-83."""
    same = [message(EIGHT_PM, "finished"), message(EIGHT_PM, "arrived")]
    assert fold(same).status is fold(same[::-1]).status is Status.FINISHED


def test_unknown_never_replaces_a_known_status() -> None:
    """CT-11, HA-83."""
    assert fold([ARRIVAL, message(FIVE_DAYS_ON, "unknown")]).status is Status.ARRIVED


def test_a_transfer_never_ends_a_stay() -> None:
    """HA-45: even if the sender says finished, with an end."""
    moved = message(HALF_PAST_FOUR, "finished", moves=True, end=at(HALF_PAST_FOUR))
    fact = fold([ARRIVAL, moved])
    assert fact.status is Status.IN_PROGRESS
    assert fact.end is None
    assert fold([DISCHARGE, message(FIVE_DAYS_ON + timedelta(days=1), moves=True)]).end is not None


@pytest.mark.parametrize("void", ["cancelled", "entered-in-error"])
def test_only_a_newer_explicit_status_restores_what_is_void(void: str) -> None:
    """CT-12."""
    voided = message(HALF_PAST_FOUR, void)
    assert fold([ARRIVAL, voided]).status is Status(void)
    assert fold([ARRIVAL, voided, message(FIVE_DAYS_ON, "unknown")]).status is Status(void)
    assert fold([ARRIVAL, voided, message(FIVE_DAYS_ON, moves=True)]).status is Status(void)
    assert fold([voided, message(HALF_PAST_FOUR, "finished")]).status is Status(void)
    assert fold([ARRIVAL, voided, DISCHARGE]).status is Status.FINISHED


def test_what_comes_back_to_life_below_finished_has_not_ended() -> None:
    """CT-11, CT-12."""
    later = FIVE_DAYS_ON + timedelta(days=1)
    fact = fold([DISCHARGE, message(later, "cancelled"), message(later + timedelta(hours=1))])
    assert (fact.status, fact.end) == (Status.IN_PROGRESS, None)


def test_void_then_restored_is_as_it_was() -> None:
    """PT-07."""
    later = FIVE_DAYS_ON + timedelta(days=1)
    restored = message(later + timedelta(hours=1), "finished")
    fact = fold([DISCHARGE, message(later, "entered-in-error"), restored])
    assert (fact.status, fact.end) == (Status.FINISHED, at(FIVE_DAYS_ON))


def test_what_a_message_does_not_say_it_does_not_erase() -> None:
    """CT-13."""
    update = message(FIVE_DAYS_ON + timedelta(days=20), "finished")
    assert fold([DISCHARGE, update]).end == at(FIVE_DAYS_ON)
    coded = message(EIGHT_PM, codes=(Code("icd", "F32"),), labels=(), service="other")
    fact = fold([coded, DISCHARGE])
    assert fact.codes == (Code("icd", "F32"),)
    assert fact.labels == ()
    assert fact.service == "other"
    assert fact.disposition == "home"


def test_a_corrected_start_is_the_newest_that_was_given() -> None:
    moved = message(HALF_PAST_FOUR, start=at(EIGHT_PM - timedelta(hours=1)))
    assert fold([ARRIVAL, moved]).start == moved.start


def test_an_assumed_start_stands_in_only_while_there_is_no_other() -> None:
    """CR-30."""
    assumed = message(FIVE_DAYS_ON, start=at(HALF_PAST_FOUR), start_is_assumed=True)
    assert fold([assumed]).start_is_assumed
    assert fold([assumed, ARRIVAL]).start == at(EIGHT_PM)
    assert not fold([assumed, ARRIVAL]).start_is_assumed


def test_the_newest_message_says_whose_it_is() -> None:
    """CT-01."""
    assert fold([ARRIVAL, message(FIVE_DAYS_ON, patient=Q)]).patient == Q


def test_what_came_live_at_all_is_not_backfill() -> None:
    """HA-53."""
    imported = message(EIGHT_PM, backfill=True)
    assert fold([imported]).backfill
    assert not fold([imported, ARRIVAL]).backfill


def test_a_recycled_number_is_noticed() -> None:
    """HA-70b: another patient, or a start over 30 days after the end."""
    closed = fold([ARRIVAL, DISCHARGE])
    month = timedelta(days=30)
    assert is_reused(closed, message(EIGHT_PM, patient=Q), same_person=False)
    assert not is_reused(closed, message(EIGHT_PM, patient=Q), same_person=True)
    in_time = message(EIGHT_PM, start=at(FIVE_DAYS_ON + month))
    too_late = message(EIGHT_PM, start=at(FIVE_DAYS_ON + month + timedelta(seconds=1)))
    assert not is_reused(closed, in_time, same_person=True)
    assert is_reused(closed, too_late, same_person=True)
    assert not is_reused(fold([ARRIVAL]), too_late, same_person=True)


minutes = st.integers(0, 6).map(lambda n: EIGHT_PM + timedelta(minutes=n))
moments = st.none() | minutes.map(at)
messages = st.builds(
    message,
    minutes,
    st.sampled_from([str(status) for status in Status]),
    source_version=st.integers(0, 2),
    moves=st.booleans(),
    keeps_status=st.booleans(),
    code=st.none() | st.sampled_from(["EMER", "IMP", "AMB"]),
    class_history=st.lists(
        st.builds(ClassSpell, st.sampled_from(["EMER", "IMP"]), moments, moments), max_size=2
    ).map(tuple),
    start=moments,
    end=moments,
    disposition=st.none() | st.sampled_from(["home", "died"]),
    planned=st.none() | st.booleans(),
    patient=st.sampled_from([None, P, Q]),
)


@given(st.lists(messages, min_size=1, max_size=7).flatmap(
    lambda told: st.tuples(st.just(told), st.permutations(told))
))  # fmt: skip
def test_pt_15_shuffled_messages_fold_equally(told: tuple[list[Message], list[Message]]) -> None:
    """PT-15."""
    assert fold(told[0]) == fold(told[1])


@given(st.lists(messages, min_size=1, max_size=6), st.data())
def test_repeated_messages_fold_equally(told: list[Message], data: st.DataObject) -> None:
    """PT-02, CR-32."""
    again = data.draw(st.lists(st.sampled_from(told), max_size=5))
    assert fold(told) == fold([*told, *again])


@given(st.lists(messages, min_size=1, max_size=6), messages)
def test_the_class_history_is_never_shortened(told: list[Message], more: Message) -> None:
    """CT-14: a class once seen is seen for ever."""
    before = {code for code, _ in fold(told).classes}
    assert before <= {code for code, _ in fold([*told, more]).classes}


@given(st.lists(messages, min_size=1, max_size=6))
def test_classes_are_in_time_order_without_equal_neighbours(told: list[Message]) -> None:
    classes = fold(told).classes
    since = [when for _, when in classes]
    assert since == sorted(since)
    assert all(one[0] != two[0] for one, two in itertools.pairwise(classes))


@given(messages)
def test_one_message_alone_folds_as_it_does_twice(message: Message) -> None:
    """The short way is the long way."""
    assert fold([message]) == fold([message, message])
