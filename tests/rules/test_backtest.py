"""What a policy would have listed, day by day (CT-71), against who counts each day anew."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.screening import backtest
from services.screening.backtest import Period, Tally, shown
from services.screening.flag import course
from services.screening.ledger import Fact, Person
from services.screening.policy import Policy
from tests.histories import (
    VARIANT,
    at,
    ed_visit,
    ledger,
    lives,
    on,
    parsed,
    people,
    person,
    plain,
    policy,
    qc_default,
)
from tests.oracle import Oracle

POLICIES = [
    qc_default(),
    policy(VARIANT),
    policy("flag: {any: [{measure: ed_visits, at_least: 2}]}"),
]
Patient = tuple[list[Fact], Person]


def tallied(patients: Sequence[Patient], rules: Sequence[Policy], period: Period) -> Tally:
    tally = Tally.of(period, len(rules))
    for facts, who in patients:
        tally.add([course(ledger(*facts, who=who), rule) for rule in rules])
    return tally


def over(facts: Patient, rule: Policy) -> Oracle:
    return Oracle(
        [plain(f) for f in facts[0]],
        {"birth_date": facts[1].birth_date, "death": facts[1].death},
        parsed(rule),
    )


def last_moments(period: Period) -> list[datetime]:
    """By another way than the rule's: the first second of the next day, less a microsecond."""
    found: list[datetime] = []
    day = period.first
    while day <= period.last:
        day += timedelta(days=1)
        midnight = datetime(day.year, day.month, day.day, tzinfo=period.zone)
        found.append(midnight.astimezone(UTC) - timedelta(microseconds=1))
    return found


def was_met(oracle: Oracle, since: datetime, until: datetime) -> bool:
    """Whether the flag's clauses held at any time after `since` and before `until`."""
    return any(
        a < until and b > since and oracle.true("flag", a) for a, b in pairwise(oracle.instants)
    )


def counted_anew(patients: Sequence[Patient], rule: Policy, period: Period) -> dict[str, Any]:
    """Every day for itself, every patient looked at again from nothing."""
    oracles = [over(patient, rule) for patient in patients]
    ends = last_moments(period)
    days = [[_answer(oracle, end) for oracle in oracles] for end in ends]
    weeks = [(n, n) for n in range((len(ends) + 6) // 7)]
    entries, alerts = [0 for _ in weeks], [0 for _ in weeks]
    begin = datetime(
        period.first.year, period.first.month, period.first.day, tzinfo=period.zone
    ).astimezone(UTC)
    quiet = timedelta(days=parsed(rule)["quiet_reentry_days"])
    for oracle in oracles:
        for since, _ in oracle.flags:
            if begin <= since <= ends[-1]:
                week = next(n for n, end in enumerate(ends) if since <= end) // 7
                entries[week] += 1
                alerts[week] += not was_met(oracle, since - quiet, since)
    return {
        "flagged": [sum(a["state"] == "flagged" for a in day) for day in days],
        "watch": [sum(a["state"] == "watch" for a in day) for day in days],
        "held": [sum(a["held"] for a in day) for day in days],
        "who": [{n for n, a in enumerate(day) if a["state"] == "flagged"} for day in days],
        "entries": entries,
        "alerts": alerts,
        "visits": sorted(a["ed_visits"] for a in days[-1] if a["ed_visits"]),
        "episodes": sorted(a["hospital_episodes"] for a in days[-1] if a["hospital_episodes"]),
    }


def _answer(oracle: Oracle, end: datetime) -> dict[str, Any]:
    visits, episodes, state, held = oracle.seen(end)[:4]
    return {"ed_visits": visits, "hospital_episodes": episodes, "state": state, "held": held}


@st.composite
def periods(draw: st.DrawFn, patients: Sequence[Patient], rule: Policy) -> Period:
    """Some days about an instant at which something happens, or is a window later."""
    starts = [f.start.earliest for facts, _ in patients for f in facts if f.start]
    about = draw(st.sampled_from(starts or [at("2026-03-08 12:00-05")]))
    about += draw(st.sampled_from([timedelta(), rule.window, rule.hold]))
    first = about.astimezone(rule.zone).date() - timedelta(draw(st.integers(0, 9)))
    return Period(first, first + timedelta(draw(st.integers(0, 12))), rule.zone)


@settings(deadline=None, max_examples=max(20, settings().max_examples // 4))
@given(
    st.data(),
    st.lists(st.tuples(lives(most=6), people), min_size=1, max_size=3),
    st.sampled_from([(a, b) for a in POLICIES for b in POLICIES]),
)
def test_ct_71_walking_once_says_what_looking_at_every_day_says(
    data: st.DataObject, patients: list[Patient], rules: tuple[Policy, Policy]
) -> None:
    """PT-04 for the back-test: the independent oracle, asked at the end of each day."""
    period = data.draw(periods(patients, rules[0]))
    tally = tallied(patients, rules, period)
    anew = [counted_anew(patients, rule, period) for rule in rules]
    for listing, expected in zip(tally.listings, anew, strict=True):
        assert listing.flagged == expected["flagged"]
        assert listing.watch == expected["watch"]
        assert listing.held == expected["held"]
        assert listing.entries == expected["entries"]
        assert listing.alerts == expected["alerts"]
        assert sorted(n for n in listing.visits.elements() if n) == expected["visits"]
        assert sorted(n for n in listing.episodes.elements() if n) == expected["episodes"]
    both = [len(a & b) for a, b in zip(anew[0]["who"], anew[1]["who"], strict=True)]
    assert tally.both == both


W_1 = [
    ed_visit("TEST-1", "2025-11-24 10:00-05"),
    ed_visit("TEST-2", "2026-02-02 09:00-05"),
    ed_visit("TEST-3", "2026-05-05 09:00-04"),
    ed_visit("TEST-4", "2026-08-08 09:00-04"),
]


def test_w_1_day_by_day() -> None:
    """Watch, the day it is flagged, the day it is held, the day it is over."""
    zone = qc_default().zone

    def between(first: date, last: date) -> Tally:
        return tallied([(W_1, person())], [qc_default()], Period(first, last, zone))

    (listing,) = between(date(2026, 8, 6), date(2026, 8, 9)).listings
    assert (listing.watch, listing.flagged) == ([1, 1, 0, 0], [0, 0, 1, 1])
    assert (listing.entries, listing.alerts) == ([1], [1])
    (listing,) = between(date(2026, 11, 23), date(2026, 11, 25)).listings
    assert (listing.flagged, listing.held) == ([1, 1, 1], [0, 1, 1])
    assert listing.entries == [0]
    (listing,) = between(date(2027, 2, 3), date(2027, 2, 5)).listings
    assert (listing.flagged, listing.watch) == ([1, 0, 0], [0, 0, 0])


def test_w_8_a_re_entry_is_an_entry_and_no_alert() -> None:
    """CT-42: met within the 180 days before, so quiet; without quiet days it alerts."""
    days = ("2026-01-10", "2026-03-05", "2026-04-01", "2026-05-20", "2027-02-20")
    facts = [ed_visit(f"TEST-{day}", f"{day} 10:00-05") for day in days]
    rules = [qc_default(), policy("quiet_reentry_days: 30")]
    period = Period(date(2027, 2, 15), date(2027, 2, 28), qc_default().zone)
    quiet, loud = tallied([(facts, person())], rules, period).listings
    assert (quiet.entries, quiet.alerts) == ([1, 0], [0, 0])
    assert (loud.entries, loud.alerts) == ([1, 0], [1, 0])


def test_a_visit_known_by_its_date_alone_is_counted_on_that_day() -> None:
    """CT-24: it counts from local midnight, which is not yet the end of the day before."""
    facts = [ed_visit(f"TEST-{n}", on(f"2026-08-0{n}")) for n in (1, 3, 5, 7)]
    period = Period(date(2026, 8, 6), date(2026, 8, 7), qc_default().zone)
    (listing,) = tallied([(facts, person())], [qc_default()], period).listings
    assert listing.flagged == [0, 1]


def test_the_days_of_a_clock_change_are_days() -> None:
    period = Period(date(2026, 3, 7), date(2026, 3, 9), qc_default().zone)
    a, b, c = period.ends()
    assert (b - a, c - b) == (timedelta(hours=23), timedelta(hours=24))


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, 0), (1, None), (4, None), (5, 5), (9, 5), (10, 10), (4.9, None), (0.2, None), (14.5, 10)],
)
def test_small_numbers_are_masked_and_others_rounded(number: float, told: int | None) -> None:
    assert shown(number) == told


def test_a_masked_number_cannot_be_had_by_subtracting_published_ones() -> None:
    """CT-71: of list = both + only one side, whichever is 1 to 4 stays uncertain."""
    seen: dict[tuple[int | None, ...], set[tuple[int, int]]] = {}
    for both in range(200):
        for only in range(60):
            published = (shown(both), shown(only), shown(both + only))
            seen.setdefault(published, set()).add((both, only))
    for told, possible in seen.items():
        if told[0] is None:
            assert len({both for both, _ in possible}) > 1, told
        if told[1] is None:
            assert len({only for _, only in possible}) > 1, told


def test_what_is_published_holds_no_small_number_anywhere() -> None:
    few = [(W_1, person()) for _ in range(3)]
    many = [(W_1[:3], person()) for _ in range(23)]
    rules = [qc_default(), policy("flag: {any: [{measure: ed_visits, at_least: 3}]}")]
    period = Period(date(2026, 8, 1), date(2026, 8, 20), qc_default().zone)
    told = backtest.result(tallied([*few, *many], rules, period), rules)
    day = told["days"][-1]
    assert day["policy"]["flagged"] is None
    assert day["against"]["flagged"] == 25
    assert day["overlap"] == {"both": None, "only_policy": 0, "only_against": 20}
    visits = told["counts"]["policy"]["ed_visits"]
    assert visits["at_least"] == [
        {"count": 1, "patients": 25},
        {"count": 2, "patients": 25},
        {"count": 3, "patients": 25},
        {"count": 4, "patients": None},
    ]
    assert visits["top_percent"] == {"10": None, "5": None, "1": None}
    assert told["summary"]["policy"]["alerts"] == {"in_all": None, "a_week": None}
    assert [n for n in numbers(told) if 0 < n < 5] == []


def numbers(told: Any) -> list[int]:
    """Every number of patients in a result."""
    if isinstance(told, dict):
        return [
            n
            for name, value in told.items()
            if name not in ("version", "count", "rounded_down_to", "a_week", "top_percent")
            for n in numbers(value)
        ]
    if isinstance(told, list):
        return [n for value in told for n in numbers(value)]
    return [told] if isinstance(told, int) else []


def test_the_top_percent_is_the_count_that_at_most_so_many_reach() -> None:
    """Ottawa's definition, entered as the number a back-test reports (section 6)."""
    tally = Tally.of(Period(date(2026, 1, 1), date(2026, 1, 1), qc_default().zone), 1)
    tally.listings[0].visits.update({0: 500, 1: 800, 2: 140, 3: 40, 6: 11, 9: 9})
    told = backtest.result(tally, [qc_default()])
    assert told["counts"]["policy"]["ed_visits"]["top_percent"] == {"10": 3, "5": 4, "1": 7}
