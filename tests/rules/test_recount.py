"""What one recipient may see of a standing (CS-40)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from services.notify.consent import ACT_CODE, Code
from services.notify.recount import (
    Clause,
    Kind,
    Standing,
    State,
    Tally,
    Unit,
    Visit,
    changes_by_itself,
    is_met,
    items,
    see,
    visit_item,
)

NOW = datetime(2026, 3, 2, 19, tzinfo=UTC)
DAY = timedelta(days=1)


def key(number: int) -> UUID:
    return UUID(int=number)


def item(number: int) -> str:
    return f"Encounter/{key(number)}"


def ed_visit(number: int, days_ago: float, *, reason: str | None = None) -> Unit:
    start = NOW - days_ago * DAY
    visit = Visit(key(number), "hospital-a", start, start + timedelta(hours=3))
    return Unit(
        Kind.ED,
        start,
        visit.end,
        ("hospital-a",),
        (visit,),
        counted=reason is None,
        reason=reason,
    )


def standing(*units: Unit, state: State = State.FLAGGED, held: bool = False) -> Standing:
    counted = sum(u.counted for u in units)
    return Standing(
        patient=key(99),
        sequence=7,
        state=state,
        held=held,
        since=NOW - 30 * DAY,
        next_change=NOW + 5 * DAY,
        as_of=NOW,
        policy="qc-default/1",
        clauses=(
            Clause(Kind.ED, 4, 365, State.FLAGGED, counted, counted >= 4),
            Clause(Kind.HOSPITAL, 3, 365, State.FLAGGED, 0, False),
            Clause(Kind.ED, 3, 365, State.WATCH, counted, counted >= 3),
        ),
        every=False,
        units=units,
        known_sites=4,
        connected_sites=3,
        complete=False,
        outside_window=2,
    )


FOUR = tuple(ed_visit(n, days) for n, days in ((1, 300), (2, 200), (3, 100), (4, 1)))
ALL = frozenset(item(n) for n in range(1, 9))


def test_if_nothing_is_hidden_the_flags_own_values_are_shown() -> None:
    seen = see(standing(*FOUR), ALL, NOW)
    assert (seen.state, seen.since, seen.next_change) == (
        State.FLAGGED,
        NOW - 30 * DAY,
        NOW + 5 * DAY,
    )
    assert (seen.count(Kind.ED), seen.outside_window, seen.whole) == (4, 2, True)


def test_a_hidden_visit_lowers_the_count_and_the_state() -> None:
    seen = see(standing(*FOUR), ALL - {item(2)}, NOW)
    assert (seen.state, seen.count(Kind.ED)) == (State.WATCH, 3)
    assert seen.outside_window is None
    assert len(seen.units) == 3


def test_below_the_threshold_there_is_nothing_to_tell() -> None:
    assert is_met(standing(*FOUR), ALL - {item(2)}, NOW)  # watch
    assert not is_met(standing(*FOUR), ALL - {item(2), item(3)}, NOW)


def test_no_hold_applies_where_something_is_hidden() -> None:
    three = standing(*FOUR[1:], ed_visit(5, 400), held=True)
    assert (see(three, ALL, NOW).state, see(three, ALL, NOW).held) == (State.FLAGGED, True)
    seen = see(three, ALL - {item(5)}, NOW)
    assert (seen.state, seen.held) == (State.WATCH, False)


def test_a_stay_is_visible_only_if_every_encounter_in_it_is() -> None:
    start = NOW - 9 * DAY
    parts = (
        Visit(key(6), "hospital-a", start, start + DAY),
        Visit(key(7), "hospital-b", start + DAY, start + 2 * DAY),
    )
    stay = Unit(Kind.HOSPITAL, start, None, ("hospital-a", "hospital-b"), parts, counted=True)
    both = standing(*FOUR, stay)
    assert see(both, ALL, NOW).units[-1] == stay
    assert stay not in see(both, ALL - {item(7)}, NOW).units


def test_since_is_when_the_visible_visits_first_met_it() -> None:
    five = (*FOUR, ed_visit(5, 50))
    seen = see(standing(*five), ALL - {item(4)}, NOW)
    assert seen.state is State.FLAGGED
    assert seen.since == NOW - 50 * DAY


def test_a_recount_falls_without_an_event_and_says_when() -> None:
    """CS-40: a visible count falls by itself."""
    five = standing(*FOUR, ed_visit(5, 50))
    visible = ALL - {item(5)}
    falls = changes_by_itself(five, visible, NOW)
    assert falls == NOW + 65 * DAY  # the visit of 300 days ago leaves
    assert see(five, visible, falls - timedelta(microseconds=1)).state is State.FLAGGED
    assert see(five, visible, falls).state is State.WATCH
    assert see(five, visible, falls).next_change == NOW + 165 * DAY
    assert changes_by_itself(five, ALL, NOW) is None


def test_reasons_that_point_to_a_hidden_stay_are_not_shown() -> None:
    """CS-40."""
    admitted = ed_visit(8, 20, reason="ADMITTED")
    excluded = ed_visit(7, 20, reason="PLANNED")
    seen = see(standing(*FOUR, admitted, excluded), ALL - {item(1)}, NOW)
    assert [u.reason for u in seen.units if not u.counted] == [None, "PLANNED"]
    whole = see(standing(*FOUR, admitted), ALL, NOW)
    assert whole.units[-1].reason == "ADMITTED"


def test_each_encounter_is_an_item_and_an_unfinished_one_ends_now() -> None:
    """CS-41."""
    start = NOW - DAY
    unit = Unit(
        Kind.ED, start, None, ("hospital-a",), (Visit(key(1), "hospital-a", start),), counted=True
    )
    (only,) = items(standing(unit))
    assert (only.id, only.custodian, only.end) == (item(1), "Organization/hospital-a", NOW)


def test_a_standing_without_encounters_still_tells_that_there_is_a_patient() -> None:
    (only,) = items(standing(state=State.BELOW))
    assert (only.labels, only.start) == (None, None)


def test_all_of_the_clauses_may_be_needed() -> None:
    needs_both = replace(standing(*FOUR, ed_visit(5, 2)), every=True)
    seen = see(needs_both, ALL - {item(5)}, NOW)
    assert seen.state is State.WATCH


def test_a_unit_without_encounters_is_visible_to_nobody() -> None:
    """CS-40: of nothing, "every encounter" would be true."""
    empty = Unit(Kind.ED, NOW - DAY, None, ("hospital-a",), (), counted=True)
    assert not empty.visible_to(frozenset())
    view = see(standing(*(ed_visit(n, n + 1) for n in range(3)), empty), frozenset(), NOW)
    assert view.units == ()
    assert view.state is State.BELOW


@pytest.mark.parametrize(
    ("code", "brought"),
    [
        ("F10.2", {"SUD"}),
        ("F19", {"SUD"}),
        ("F20", {"MH", "PSY"}),
        ("f32.1", {"MH", "PSY"}),
        ("F99", {"MH", "PSY"}),
        ("F09", set()),
        ("B19.9", set()),
        ("B20.0", {"HIV"}),
        ("B24", {"HIV"}),
        ("B25", set()),
        ("Z21", {"HIV"}),
        ("Z22.1", set()),
        ("T74.1", {"SDV"}),
        ("Y04", set()),
        ("Y05", {"SDV"}),
        ("Y07.0", {"SDV"}),
        ("Y08", set()),
        ("J44.1", set()),
    ],
)
def test_a_diagnosis_brings_its_label_again_at_use(code: str, brought: set[str]) -> None:
    """CS-59: what the sender did not label is sensitive all the same."""
    icd = frozenset({Code("http://hl7.org/fhir/sid/icd-10-ca", code)})
    local = frozenset({Code("https://example.ca/codes", code)})
    own = Code(ACT_CODE, "SEX")

    def used(labels: frozenset[Code] | None, codes: frozenset[Code] | None) -> object:
        visit = Visit(key(1), "hospital-a", NOW, labels=labels, codes=codes)
        return visit_item(visit, NOW).labels

    assert used(frozenset(), icd) == {Code(ACT_CODE, label) for label in brought}
    assert used(frozenset({own}), icd) == {own} | {Code(ACT_CODE, label) for label in brought}
    assert used(frozenset(), local) == frozenset()
    assert used(frozenset(), None) == frozenset()
    assert used(None, icd) is None


def test_since_begins_again_after_a_break() -> None:
    """Four in the first year, three for a while, then four again."""
    first = [ed_visit(n, days) for n, days in ((1, 700), (2, 400), (3, 360), (4, 340))]
    later = [ed_visit(6, 300), ed_visit(7, 5), ed_visit(8, 1)]
    seen = see(standing(*first, *later), ALL - {item(8)}, NOW)
    assert (seen.state, seen.since) == (State.FLAGGED, NOW - 5 * DAY)


# Measures, windows (CT-31)

TORONTO = ZoneInfo("America/Toronto")


def bed(number: int, days_ago: float, days: float | None, site: str = "hospital-a") -> Unit:
    start = NOW - days_ago * DAY
    end = None if days is None else start + days * DAY
    visit = Visit(key(number), site, start, end)
    return Unit(Kind.HOSPITAL, start, end, (site,), (visit,), counted=True)


def by(clause: Clause, *units: Unit, **more: Any) -> Standing:
    found = replace(standing(*units), clauses=(clause,), zone=TORONTO, days=365)
    return replace(found, **more)


SITES = Clause(Kind.ED, 3, 90, State.FLAGGED, 3, True, Tally.SITES)
DAYS = Clause(Kind.HOSPITAL, 5, 365, State.FLAGGED, 9, True, Tally.DAYS)


def test_ct_31_sites_are_counted_again_from_visible_visits_alone() -> None:
    there = [
        replace(ed_visit(n, 10 * n), sites=(f"hospital-{n % 3}",)) for n in range(1, 5)
    ]  # 1, 2, 0, 1
    assert see(by(SITES, *there), ALL - {item(8)}, NOW).clauses[0].count == 3
    seen = see(by(SITES, *there), ALL - {item(1)}, NOW)
    assert (seen.clauses[0].count, seen.state) == (3, State.FLAGGED)
    seen = see(by(SITES, *there), ALL - {item(2)}, NOW)
    assert (seen.clauses[0].count, seen.state) == (2, State.BELOW)


def test_ct_31_days_are_counted_again_from_visible_stays_alone() -> None:
    both = by(DAYS, bed(1, 30, 4), bed(2, 10, 5))
    seen = see(both, ALL - {item(1)}, NOW)
    assert (seen.clauses[0].count, seen.state) == (5, State.FLAGGED)
    seen = see(both, ALL - {item(2)}, NOW)
    assert (seen.clauses[0].count, seen.state) == (4, State.BELOW)


def test_ct_31_an_open_stay_grows_at_local_midnight_and_the_recount_says_when() -> None:
    """NOW is 14:00 in Toronto: in bed since three days, the fourth midnight is tonight."""
    both = by(replace(DAYS, at_least=4), bed(1, 400, 2), bed(2, 3, None))
    seen = see(both, ALL - {item(1)}, NOW)
    midnight = datetime(2026, 3, 3, 5, tzinfo=UTC)
    assert (seen.clauses[0].count, seen.state, seen.next_change) == (3, State.BELOW, midnight)
    then = see(both, ALL - {item(1)}, midnight)
    assert (then.clauses[0].count, then.state, then.since) == (4, State.FLAGGED, midnight)


def test_days_that_cannot_be_counted_again_are_told_to_nobody_rather_than_guessed() -> None:
    """Whose midnights is not said: whoever sees all of it sees the flag's own values, else none."""
    both = by(DAYS, bed(1, 30, 4), bed(2, 10, 5), zone=None)
    assert see(both, ALL, NOW).state is State.FLAGGED
    seen = see(both, ALL - {item(1)}, NOW)
    assert (seen.state, seen.units) == (State.BELOW, ())
    assert not is_met(both, ALL - {item(1)}, NOW)


def test_ct_31_visible_visits_must_meet_it_in_each_of_several_windows() -> None:
    clause = Clause(Kind.ED, 1, 100, State.FLAGGED, 1, True, earlier=(2,))
    units = [ed_visit(1, 10), ed_visit(2, 150), ed_visit(3, 160)]
    each = by(clause, *units, windows=2, days=100)
    seen = see(each, ALL - {item(3)}, NOW)
    assert (seen.clauses[0].count, seen.clauses[0].earlier) == (1, (1,))
    assert (seen.state, seen.since) == (State.FLAGGED, NOW - 10 * DAY)
    assert seen.next_change == NOW + 50 * DAY
    assert len(seen.units) == 2
    assert seen.count(Kind.ED) == 1
    assert see(each, ALL - {item(2), item(3)}, NOW).state is State.BELOW
    assert see(each, ALL - {item(1)}, NOW).state is State.BELOW


def test_what_no_clause_counts_is_counted_in_the_policys_window() -> None:
    """A clause that looks back two years does not make the number of visits one of two years."""
    far = by(replace(DAYS, days=730), ed_visit(1, 400), ed_visit(2, 100), bed(3, 500, 9))
    assert see(far, ALL, NOW).count(Kind.ED) == 1
    assert see(far, ALL - {item(8)}, NOW).after == NOW - 730 * DAY


def test_all_of_the_watching_clauses_may_be_needed() -> None:
    watching = [replace(c, leads_to=State.WATCH) for c in (SITES, replace(DAYS, at_least=3))]
    units = [replace(ed_visit(n, n), sites=(f"hospital-{n}",)) for n in (1, 2, 3)]
    both = by(SITES, *units, ed_visit(5, 5))
    for every, state in ((False, State.WATCH), (True, State.BELOW)):
        near = replace(both, clauses=tuple(watching), every_watch=every)
        assert see(near, ALL - {item(5)}, NOW).state is state
