"""What is counted, and how each count moves through a life: CT-30, CT-31, CT-45, CT-46."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.screening import why
from services.screening.episodes import Group
from services.screening.flag import Cause, State, course, face, stand
from services.screening.ledger import Fact
from services.screening.measures import Counted, steps
from services.screening.policy import Measure, Policy
from tests.histories import SECOND, at, ed_visit, instants, ledger, lives, policy, stay

NOW = "2026-08-08 13:00-04"
MICROSECOND = timedelta(microseconds=1)


def rule(measure: str, at_least: int, more: str = "", days: int | None = None) -> Policy:
    own = f", days: {days}" if days else ""
    clause = f"{{measure: {measure}, at_least: {at_least}{own}}}"
    return policy(f"flag: {{any: [{clause}]}}\nwatch: null\n{more}")


def count(measured: Policy, facts: Sequence[Fact], now: str | datetime) -> int:
    instant = at(now) if isinstance(now, str) else now
    return stand(ledger(*facts), measured, instant).counts[0]


# Sites


def test_ct_31_two_visits_to_one_ed_are_one_site() -> None:
    facts = [
        ed_visit("a", "2026-06-01 09:00-04", site="site-a"),
        ed_visit("b", "2026-06-11 09:00-04", site="site-a"),
        ed_visit("c", "2026-06-21 09:00-04", site="site-b"),
    ]
    assert count(rule("ed_sites", 3), facts, NOW) == 2


def test_ct_31_a_site_is_seen_until_its_last_visit_has_left_the_window() -> None:
    sites = rule("ed_sites", 3, days=90)
    facts = [
        ed_visit("a", "2026-06-01 09:00-04", site="site-a"),
        ed_visit("b", "2026-06-11 09:00-04", site="site-a"),
        ed_visit("c", "2026-06-21 09:00-04", site="site-b"),
    ]
    for instant, seen in (
        ("2026-06-01 08:59-04", 0),
        ("2026-06-01 09:00-04", 1),
        ("2026-06-21 09:00-04", 2),
        ("2026-08-30 09:00-04", 2),  # the first has left, the second holds the site
        ("2026-09-09 09:00-04", 1),
        ("2026-09-19 09:00-04", 0),
    ):
        assert count(sites, facts, instant) == seen


def test_cr_04_a_visit_that_went_on_at_another_ed_was_at_both() -> None:
    facts = [
        ed_visit(
            "a", "2026-06-01 08:00-04", "2026-06-01 10:00-04", site="site-a", transfer_out=True
        ),
        ed_visit("b", "2026-06-01 11:00-04", site="site-b"),
    ]
    seen = stand(ledger(*facts), rule("ed_sites", 2), at(NOW))
    assert (seen.ed_visits, seen.counts) == (1, (2,))


def test_a_visit_that_does_not_count_shows_no_site() -> None:
    assert count(rule("ed_sites", 1), [ed_visit("a", NOW, planned=True)], NOW) == 0


# Days


@pytest.mark.parametrize(
    ("admitted", "left", "days"),
    [
        ("2026-06-01 10:00-04", "2026-06-01 18:00-04", 1),  # no midnight is a day all the same
        ("2026-06-01 23:59-04", "2026-06-02 00:00-04", 1),
        ("2026-06-01 10:00-04", "2026-06-04 09:00-04", 3),
        ("2026-06-01 00:00-04", "2026-06-04 00:00-04", 3),  # its own first instant is not inside
        ("2026-03-07 10:00-05", "2026-03-09 10:00-04", 2),  # a night of 23 hours is a night
        ("2026-06-01 03:30Z", "2026-06-01 05:00Z", 1),  # 23:30 to 01:00 in Toronto: one midnight
        ("2026-06-01 03:30Z", "2026-06-02 05:00Z", 2),
    ],
)
def test_ct_31_hospital_days_are_local_midnights_and_at_least_one(
    admitted: str, left: str, days: int
) -> None:
    facts = [stay("a", at(admitted.replace("Z", "+00:00")), at(left.replace("Z", "+00:00")))]
    assert count(rule("hospital_days", 3), facts, NOW) == days


def test_ct_31_whose_midnights_is_said_by_the_policy() -> None:
    facts = [stay("a", "2026-06-01 01:00-04", "2026-06-02 03:30-04")]
    assert count(rule("hospital_days", 9), facts, NOW) == 1
    west = rule("hospital_days", 9, "timezone: America/Vancouver")
    assert count(west, facts, NOW) == 2


def test_ct_31_a_stay_on_leave_or_moved_is_counted_through() -> None:
    """The gap of a transfer belongs to the episode (CR-17)."""
    facts = [
        stay("a", "2026-06-01 10:00-04", "2026-06-01 22:00-04"),
        stay("b", "2026-06-02 03:00-04", "2026-06-03 09:00-04", site="site-b"),
    ]
    assert count(rule("hospital_days", 9), facts, NOW) == 2


def test_ct_31_an_open_stay_goes_on_also_beyond_the_end_we_assume() -> None:
    """CT-23 assumes an end for grouping and presence: who is in bed for 40 days has 40."""
    facts = [stay("a", "2026-06-01 10:00-04")]
    days = rule("hospital_days", 31)
    for instant, counted in (
        ("2026-06-01 10:00-04", 1),
        ("2026-06-02 00:00-04", 1),
        ("2026-06-03 00:00-04", 2),
        ("2026-07-11 00:00-04", 40),
    ):
        assert count(days, facts, instant) == counted


def test_ct_45_a_midnight_in_the_bed_is_an_instant_of_change() -> None:
    """Flagged at the midnight itself, by time alone; and the row is due then."""
    days = rule("hospital_days", 3)
    known = ledger(stay("a", "2026-06-01 10:00-04"))
    before = stand(known, days, at("2026-06-03 23:59-04"))
    assert (before.state, before.counts) == (State.BELOW, (2,))
    assert before.next
    assert (before.next.at, before.next.counts) == (at("2026-06-04 00:00-04"), (3,))
    assert before.stirs == at("2026-06-04 00:00-04")
    entered = stand(known, days, at("2026-06-04 00:00-04"))
    assert (entered.state, entered.since, entered.by) == (
        State.FLAGGED,
        at("2026-06-04 00:00-04"),
        Cause.DECAY,
    )


def test_days_of_a_stay_leave_with_its_admission() -> None:
    facts = [stay("a", "2026-06-01 10:00-04", "2026-06-11 10:00-04")]
    days = rule("hospital_days", 99, days=30)
    assert count(days, facts, at("2026-07-01 10:00-04") - SECOND) == 10
    assert count(days, facts, "2026-07-01 10:00-04") == 0


def test_a_stay_is_not_longer_than_now() -> None:
    """An end that is known and has not come is no day yet."""
    facts = [stay("a", "2026-06-01 10:00-04", "2026-06-11 10:00-04")]
    assert count(rule("hospital_days", 9), facts, "2026-06-03 12:00-04") == 2


# Windows


def visits(*days: str) -> list[Fact]:
    return [ed_visit(f"v-{n}", f"{day} 10:00-05") for n, day in enumerate(days)]


def test_ct_31_consecutive_windows_must_each_meet_the_clauses() -> None:
    """One visit in each of two years of 365 days that adjoin: not two in the newer."""
    each = rule("ed_visits", 1, "window: {days: 365, consecutive: 2}\nhold_days: 0")
    facts = visits("2025-01-10", "2025-12-10")
    for instant, counted, earlier, state in (
        ("2025-12-10 10:00-05", 2, 0, State.BELOW),
        ("2026-01-10 09:59-05", 2, 0, State.BELOW),
        ("2026-01-10 10:00-05", 1, 1, State.FLAGGED),
        ("2026-12-10 09:59-05", 1, 1, State.FLAGGED),
        ("2026-12-10 10:00-05", 0, 2, State.BELOW),
        ("2027-01-10 10:00-05", 0, 1, State.BELOW),
        ("2027-12-10 10:00-05", 0, 0, State.BELOW),
    ):
        standing = stand(ledger(*facts), each, at(instant))
        assert (standing.counts, standing.earlier) == ((counted,), ((earlier,),))
        assert standing.state is state


def test_ct_31_an_entry_by_time_alone_has_no_event() -> None:
    each = rule("ed_visits", 1, "window: {days: 365, consecutive: 2}")
    standing = stand(ledger(*visits("2025-01-10", "2025-12-10")), each, at("2026-01-10 10:00-05"))
    assert (standing.since, standing.by) == (at("2026-01-10 10:00-05"), Cause.DECAY)


def test_ct_31_another_clause_may_be_the_one_in_another_year() -> None:
    """`any`: a frequent user in each year, be it here by visits and there by stays."""
    both = "{measure: ed_visits, at_least: 2}, {measure: hospital_episodes, at_least: 1}"
    facts = [
        stay("s", "2024-11-01 10:00-04", "2024-11-03 10:00-05"),
        *visits("2025-12-01", "2025-12-10"),
    ]
    years = "window: {days: 365, consecutive: 2}\nwatch: null\n"
    for mode, state in (("any", State.FLAGGED), ("all", State.BELOW)):
        each = policy(f"{years}flag: {{{mode}: [{both}]}}")
        assert stand(ledger(*facts), each, at("2025-12-10 10:00-05")).state is state


def test_ct_31_the_windows_of_a_clause_adjoin_each_other_whatever_the_policys_length() -> None:
    """45 days before 45 days; not 45 of each 90."""
    own = rule("ed_visits", 1, "window: {days: 90, consecutive: 2}", days=45)
    recent, before, older = visits("2026-05-01", "2026-04-01", "2026-02-20")
    now = at("2026-05-10 10:00-04")
    standing = stand(ledger(recent, before), own, now)
    assert (standing.counts, standing.earlier) == ((2,), ((0,),))
    standing = stand(ledger(recent, older), own, now)
    assert (standing.counts, standing.earlier, standing.state) == ((1,), ((1,),), State.FLAGGED)


def test_consecutive_holds_for_watch_too() -> None:
    near = policy(
        "window: {days: 100, consecutive: 2}\nflag: null\n"
        "watch: {any: [{measure: ed_visits, at_least: 1}]}"
    )
    facts = visits("2026-01-01", "2026-05-01")
    assert stand(ledger(*facts[1:]), near, at("2026-05-01 10:00-05")).state is State.BELOW
    assert stand(ledger(*facts), near, at("2026-05-01 10:00-05")).state is State.WATCH


def test_a_clause_may_look_back_farther_than_the_policy() -> None:
    """And what it looks back to is explained, with everything in it (CT-60)."""
    far = policy(
        "window: {days: 30}\nwatch: null\n"
        "flag: {all: [{measure: ed_visits, at_least: 3, days: 400}]}"
    )
    known = ledger(*visits("2025-05-01", "2026-01-01", "2026-05-01", "2024-01-01"))
    now = at("2026-05-02 10:00-05")
    standing = stand(known, far, now)
    assert (standing.ed_visits, standing.counts, standing.state) == (1, (3,), State.FLAGGED)
    reasons = why.explain(known.facts, standing.judged, far, now)
    assert (len(reasons.items), reasons.outside_window) == (3, 1)
    assert reasons.restless == at("2026-06-05 10:00-05")  # 400 days after the oldest shown


def test_what_several_windows_look_back_to_is_explained() -> None:
    each = rule("ed_visits", 1, "window: {days: 365, consecutive: 3}")
    known = ledger(*visits("2023-06-01", "2024-06-01", "2025-06-01", "2026-01-01"))
    now = at("2026-05-30 10:00-05")
    standing = stand(known, each, now)
    assert (standing.ed_visits, standing.counts, standing.earlier) == (2, (2,), ((1, 1),))
    reasons = why.explain(known.facts, standing.judged, each, now)
    assert (len(reasons.items), reasons.outside_window) == (4, 0)
    before = face(standing, reasons, each)
    later = now + timedelta(hours=12)
    after = stand(known, each, later)
    assert face(after, why.explain(known.facts, after.judged, each, later), each) == before


# Whatever the life

EVERYTHING = policy("""
window: {days: 90, consecutive: 2}
flag:
  any:
    - {measure: ed_sites, at_least: 2, days: 45}
    - {measure: hospital_days, at_least: 8}
watch:
  all:
    - {measure: hospital_days, at_least: 2, days: 120}
    - {measure: ed_visits, at_least: 1}
hold_days: 20
""")


def by_hand(measure: Measure, counted: Counted, length: timedelta, now: datetime) -> int:
    """The count at one instant, from the definition."""

    def inside(groups: Sequence[Group]) -> list[Group]:
        return [g for g in groups if now - length < g.anchor <= now]

    match measure:
        case Measure.ED_VISITS:
            return len(inside(counted.visits))
        case Measure.HOSPITAL_EPISODES:
            return len(inside(counted.stays))
        case Measure.ED_SITES:
            return len({m.fact.site for g in inside(counted.visits) for m in g.members})
        case Measure.HOSPITAL_DAYS:
            days = 0
            for group in inside(counted.stays):
                last = now if group.is_open else min(now, group.end.earliest)
                nights = last.astimezone(EVERYTHING.zone).date()
                first = group.anchor.astimezone(EVERYTHING.zone).date()
                days += max(1, (nights - first).days)
            return days


@given(st.data(), lives(), st.sampled_from(Measure), st.sampled_from([20, 90, 365]))
def test_ct_31_the_steps_of_a_measure_add_up_to_its_count(
    data: st.DataObject, facts: list[Fact], measure: Measure, days: int
) -> None:
    now = data.draw(instants(facts))
    length = timedelta(days=days)
    counted = Counted.of(stand(ledger(*facts), EVERYTHING, now).judged)
    moves = list(steps(measure, counted, length, EVERYTHING.zone))
    for instant in (now, *[when for when, _ in moves[:4]]):
        assert sum(by for when, by in moves if when <= instant) == by_hand(
            measure, counted, length, instant
        )
    assert sum(by for _, by in moves) == 0


@given(st.data(), lives(most=6))
def test_pt_09_nothing_changes_before_next_change_whatever_the_measure(
    data: st.DataObject, facts: list[Fact]
) -> None:
    now = data.draw(instants(facts))
    known = ledger(*facts)
    here = stand(known, EVERYTHING, now)
    if here.next is None:
        assert not any(s.at > now for s in course(known, EVERYTHING))
        return
    last = stand(known, EVERYTHING, here.next.at - MICROSECOND)
    there = stand(known, EVERYTHING, here.next.at)
    seen = [(s.counts, s.earlier, s.state, s.held) for s in (here, last, there)]
    assert seen[0] == seen[1] != seen[2]
    assert (here.next.counts, here.next.state) == (there.counts, there.state)


@given(st.data(), lives(most=6))
def test_ct_45_nothing_published_changes_before_it_is_due_whatever_the_measure(
    data: st.DataObject, facts: list[Fact]
) -> None:
    now = data.draw(instants(facts))
    known = ledger(*facts)

    def shown(instant: datetime) -> tuple[str, datetime | None]:
        standing = stand(known, EVERYTHING, instant)
        reasons = why.explain(known.facts, standing.judged, EVERYTHING, instant)
        turns = [turn for turn in (standing.stirs, reasons.restless) if turn]
        said = face(standing, reasons, EVERYTHING)
        return said if standing.state is not State.BELOW else "", min(turns, default=None)

    before, due = shown(now)
    assert due is None or due > now
    later = now + data.draw(st.sampled_from([SECOND, timedelta(days=1), timedelta(days=200)]))
    instant = later if due is None else min(later, due - MICROSECOND)
    assert shown(instant)[0] == before
