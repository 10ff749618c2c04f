"""The region that never existed: the same everywhere, and like one that could (SIM-01 to 06)."""

import hashlib
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from services.simulator import files
from services.simulator.draws import Draws, code, number
from services.simulator.life import (
    HOURS,
    NEWBORNS,
    Care,
    Happening,
    Leaving,
    Service,
    arrivals,
    instant,
    life,
)
from services.simulator.profiles import Profile, profile
from services.simulator.region import (
    COMPLEX,
    GENERAL,
    ZONE,
    Segment,
    calm_rate,
    crisis_share,
    memberships,
    people,
    person,
    wishes,
)

GOLDEN = {
    "demo": "411737170a301f6710148324bf47e4a947a4abf86c89be76bf6353cccff86464",
    "demo, clean": "9015c82162b21601f958b5aec923454b255153699e12db116942f903ac06ffda",
}
"""SHA-256 over names and bytes of all files (SIM-03). A change here is a change of the region:
say so in CHANGELOG.md."""


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            whole.update(f"{file.relative_to(folder)}\n".encode())
            whole.update(file.read_bytes())
    return whole.hexdigest()


def lives(region: Profile, days: int | None = None) -> dict[int, list[Happening]]:
    return {
        each.number: life(region, each, region.days if days is None else days)
        for each in people(region)
    }


@pytest.mark.parametrize("clean", [False, True])
def test_the_demo_is_the_same_bytes_everywhere(tmp_path: Path, clean: bool) -> None:
    """SIM-03"""
    files.write(tmp_path, profile="demo", seed=2018, clean=clean)
    assert digest(tmp_path) == GOLDEN["demo, clean" if clean else "demo"]


def test_the_raw_bits_and_their_transforms_never_change() -> None:
    """SIM-04: known answers, computed by hand from BLAKE2b of a keyed counter."""
    draws = Draws(2018, 1, "ed")
    key = hashlib.blake2b(b"2018|1|ed", digest_size=32).digest()
    block = hashlib.blake2b((0).to_bytes(8, "little"), key=key, digest_size=64).digest()
    last = int.from_bytes(block[56:], "little")
    assert draws.unit() == (last >> 11) / 2**53
    assert number(1000, "a", 1) == number(1000, "a", 1) != number(1000, "a", 2)
    assert code(1)[14] == "8"
    assert code(1) != code(2)


def test_draws_have_the_distributions_they_claim() -> None:
    draws = Draws("distributions")
    n = 20_000
    gammas = [draws.gamma(0.6) for _ in range(n)]
    mean = sum(gammas) / n
    assert mean == pytest.approx(1.0, abs=0.04)
    assert sum((x - mean) ** 2 for x in gammas) / n == pytest.approx(1 / 0.6, rel=0.08)
    normals = [draws.normal() for _ in range(n)]
    assert sum(normals) / n == pytest.approx(0, abs=0.03)
    assert sum(x * x for x in normals) / n == pytest.approx(1, abs=0.04)
    medians = sorted(draws.lognormal(4.1, 0.8) for _ in range(n))
    assert medians[n // 2] == pytest.approx(4.1, rel=0.04)
    picked = Counter(draws.weighted((1, 2, 7)) for _ in range(n))
    assert picked[2] / n == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("segment", [GENERAL, COMPLEX])
def test_the_calm_rate_gives_each_segment_its_mean(segment: Segment) -> None:
    """`r` of simulator.md section 1, checked by drawing what the quadrature computed."""
    draws = Draws("calm", segment.mean)
    n, total = 20_000, 0.0
    for _ in range(n):
        base = draws.gamma(0.6)
        total += calm_rate(segment) * base * (1 + 14 * crisis_share(segment, base))
    assert total / n == pytest.approx(segment.mean, rel=0.06)


def test_noise_never_disturbs_what_happened(tmp_path: Path) -> None:
    """SIM-02: clean and noisy regions hold the same visits."""
    for clean in (True, False):
        files.write(tmp_path / str(clean), profile="demo", seed=7, clean=clean, people=300)
    truth = [(tmp_path / name / "truth.ndjson").read_bytes() for name in ("True", "False")]
    sent = [
        (tmp_path / name / "hospital-a" / "Encounter.ndjson").read_bytes()
        for name in ("True", "False")
    ]
    assert truth[0] == truth[1]
    assert sent[0] != sent[1]


def test_more_people_leave_those_there_as_they_were() -> None:
    """SIM-05"""
    few, many = profile("demo", people=200), profile("demo", people=400)
    assert lives(few) == {n: had for n, had in lives(many).items() if n <= 200}
    assert [person(few, n) for n in range(1, 201)] == [person(many, n) for n in range(1, 201)]


def test_a_longer_time_leaves_what_was_as_it_was() -> None:
    """SIM-05: only what is cut off at the end is new."""
    region = profile("demo", people=500)
    end = instant(region, 365, 0)
    longer = lives(region, 730)
    assert {n: [each for each in had if each.start < end] for n, had in longer.items()} == {
        n: [each for each in had if each.start < end] for n, had in lives(region, 365).items()
    }
    assert any(each.start >= end for had in longer.values() for each in had)


def test_a_hospital_more_moves_visits_and_changes_nothing_else() -> None:
    """SIM-05: when somebody comes, why and how it ends does not depend on where."""
    two = profile("demo", people=500, clean=True, ed_transfer=0.0)
    three = profile(
        "demo",
        people=500,
        clean=True,
        ed_transfer=0.0,
        sites=("hospital-a", "hospital-b", "hospital-c"),
    )
    assert _anywhere(lives(two)) == _anywhere(lives(three))
    homes = [(person(two, n).home, person(three, n).home) for n in range(1, 501)]
    assert {after for before, after in homes if after != before} == {2}


def _anywhere(had: dict[int, list[Happening]]) -> list[tuple[object, ...]]:
    return [
        (each.person, each.number, each.care, each.start, each.end, each.leaving, each.code)
        for each_had in had.values()
        for each in each_had
    ]


def test_one_probability_changed_moves_no_arrival() -> None:
    """SIM-04: one stream a purpose."""
    region, other = profile("demo"), profile("demo", left_unseen=0.5, admitted=0.0)
    chosen = person(region, 12)
    assert list(arrivals(region, chosen, 3650)) == list(arrivals(other, chosen, 3650))


def test_all_times_are_whole_seconds() -> None:
    """SIM-04"""
    for had in lives(profile("demo", people=800)).values():
        for each in had:
            for at in (each.start, each.end, each.triaged or each.start, *(each.away or ())):
                assert at.microsecond == 0
                assert at.utcoffset() == timedelta(0)


def test_nobody_is_in_two_places_at_once() -> None:
    """Save those whom a ward sends to another emergency department (CR-49)."""
    for had in lives(profile("demo", people=3000)).values():
        own = sorted(
            (each for each in had if each.person < NEWBORNS and not each.transfer_in),
            key=lambda each: each.start,
        )
        for before, after in pairwise(own):
            assert before.end <= after.start


def test_what_happens_has_an_end_and_an_order_in_itself() -> None:
    for had in lives(profile("demo", people=3000)).values():
        for each in had:
            assert each.start < each.end
            assert each.triaged is None or each.start < each.triaged < each.end
            assert each.away is None or each.start < each.away[0] < each.away[1] < each.end


def test_the_dead_do_not_come_back() -> None:
    for had in lives(profile("demo", people=6000)).values():
        deaths = [
            index
            for index, each in enumerate(had)
            if each.leaving in (Leaving.DIED, Leaving.DEAD_ON_ARRIVAL)
        ]
        if deaths:
            after = had[deaths[0] + 1 :]
            assert all(each.service is Service.ORGAN_DONATION for each in after)


@pytest.mark.parametrize(
    ("local", "repeated", "expected"),
    [
        # Spring: 02:30 does not exist on 8 March 2026; it is an hour later on the wall.
        ((date(2026, 3, 8), 2.5), False, datetime(2026, 3, 8, 7, 30, tzinfo=UTC)),
        ((date(2026, 3, 8), 3.5), False, datetime(2026, 3, 8, 7, 30, tzinfo=UTC)),
        # Autumn: 01:30 comes twice on 1 November 2026.
        ((date(2026, 11, 1), 1.5), False, datetime(2026, 11, 1, 5, 30, tzinfo=UTC)),
        ((date(2026, 11, 1), 1.5), True, datetime(2026, 11, 1, 6, 30, tzinfo=UTC)),
        ((date(2026, 11, 1), 2.5), True, datetime(2026, 11, 1, 7, 30, tzinfo=UTC)),
        ((date(2026, 7, 1), 12), False, datetime(2026, 7, 1, 16, 0, tzinfo=UTC)),
    ],
)
def test_local_hours_hold_on_the_nights_the_clock_changes(
    local: tuple[date, float], repeated: bool, expected: datetime
) -> None:
    region = profile("demo")
    day = (local[0] - region.start).days
    assert instant(region, day, int(local[1] * 3600), repeated=repeated) == expected


def test_arrivals_follow_the_hours_of_the_day_the_nights_of_clock_changes_included() -> None:
    """CAL-09, CAL-10: local hours, summer and winter alike."""
    region = profile("dense", people=1500, clean=True)
    hours: Counter[int] = Counter()
    spring: Counter[int] = Counter()
    changed = {date(2025, 3, 9)}
    for each in people(region):
        for at, _ in arrivals(region, each, 365):
            local = at.astimezone(ZONE)
            hours[local.hour] += 1
            if local.date() in changed:
                spring[local.hour] += 1
    total = sum(hours.values())
    assert total > 10_000
    for hour, weight in enumerate(HOURS):
        assert hours[hour] / total == pytest.approx(weight / sum(HOURS), abs=0.006)
    assert 0.58 <= sum(hours[hour] for hour in range(9, 18)) / total <= 0.61
    assert spring
    assert spring[2] == 0


def test_the_region_uses_its_hospitals_as_published() -> None:
    """CAL-01 to 06, 08 and 11, roughly: one seed of 10,000 people and two years.

    The tolerances are those of section 6, widened for one seed instead of five.
    """
    region = profile("demo", people=10_000, clean=True)
    per_year: list[int] = []
    stays, ed = 0, Counter[Leaving]()
    for had in lives(region, 730).values():
        for year in range(2):
            low, high = instant(region, 365 * year, 0), instant(region, 365 * (year + 1), 0)
            seen = [each for each in had if low <= each.start < high and each.person < NEWBORNS]
            per_year.append(sum(each.care is Care.ED for each in seen))
            stays += sum(_is_stay(each) for each in seen)
            ed.update(each.leaving for each in seen if each.care is Care.ED)
    n = len(per_year)
    users = [count for count in per_year if count]
    assert 0.39 <= sum(per_year) / n <= 0.45
    assert 0.215 <= len(users) / n <= 0.255
    assert 0.61 <= sum(count == 1 for count in users) / len(users) <= 0.69
    assert 0.12 <= sum(count >= 3 for count in users) / len(users) <= 0.18
    assert 0.065 <= sum(count >= 4 for count in users) / len(users) <= 0.105
    assert 62 <= 1000 * stays / n <= 78
    assert 0.06 <= ed[Leaving.UNSEEN] / sum(ed.values()) <= 0.08


def _is_stay(each: Happening) -> bool:
    series = (Service.DIALYSIS, Service.CHEMOTHERAPY, Service.NEWBORN, Service.ORGAN_DONATION)
    return (
        each.care is Care.STAY
        and each.service not in series
        and each.leaving is not Leaving.REVERTED
    )


def test_every_situation_that_a_feed_can_show_occurs_in_ten_thousand_people() -> None:
    """SIM-01: of counting.md section 7; what the feed adds is in test_simulator_feed.py."""
    region = profile("demo", people=10_000, clean=True)
    had = [each for own in lives(region).values() for each in own]
    cares, leavings = {each.care for each in had}, {each.leaving for each in had}
    services, codes = {each.service for each in had}, {each.code[0] for each in had}
    assert cares == set(Care)
    assert leavings == set(Leaving)
    assert services == {None, *Service}
    assert {"O", "F"} <= codes
    assert any(each.planned for each in had if each.care is Care.ED)
    assert any(each.planned for each in had if each.care is Care.STAY)
    assert any(each.away for each in had)
    assert any(each.label == "HIV" for each in had)
    ed = [each for each in had if each.care is Care.ED]
    assert any(each.transfer_in for each in ed)
    gaps = {_gap(before, after) for before, after in pairwise(had) if _moved(before, after)}
    assert {"short", "middle", "long"} <= gaps
    again = [
        (after.start - before.end).total_seconds() / 60
        for before, after in pairwise(ed)
        if before.person == after.person and before.site == after.site
    ]
    assert any(0 <= minutes < 120 for minutes in again)
    assert any(120 < minutes < 720 for minutes in again)


def _moved(before: Happening, after: Happening) -> bool:
    return (
        before.person == after.person
        and before.care is after.care is Care.STAY
        and before.site != after.site
    )


def _gap(before: Happening, after: Happening) -> str:
    hours = (after.start - before.end).total_seconds() / 3600
    return "short" if hours < 7 else "middle" if hours <= 12 else "long"


def test_panels_cover_what_they_should() -> None:
    region = profile("demo", people=10_000)
    found = [memberships(region, n) for n in range(1, 10_001)]
    at_once = [len({m.clinic for m in own if m.end is None}) for own in found]
    assert 0.83 <= sum(n == 1 for n in at_once) / 10_000 <= 0.87
    assert 0.015 <= sum(n == 2 for n in at_once) / 10_000 <= 0.025
    moved = [own for own in found if any(m.end for m in own)]
    assert 50 <= len(moved) <= 120
    assert all(own[0].end and own[0].end < own[1].start for own in moved)


def test_a_nurse_keeps_only_patients_of_her_own_clinic() -> None:
    home = {
        "nurse-a": "clinic-a",
        "nurse-b": "clinic-b",
        "nurse-c": "clinic-c",
        "nurse-d": "clinic-a",
    }
    region = profile("demo")
    for n in range(1, 2001):
        for each in memberships(region, n):
            assert home[each.nurse] == each.clinic


def test_most_people_restrict_nothing() -> None:
    region = profile("demo", people=10_000)
    restricting = sum(bool(wishes(region, n)) for n in range(1, 10_001))
    assert 0.07 <= restricting / 10_000 <= 0.1
