"""The region that never existed: the same everywhere, and like one that could (SIM-01 to 06)."""

import hashlib
import tracemalloc
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from services.simulator import files
from services.simulator.draws import Draws, code, running
from services.simulator.feed import of_person, visits
from services.simulator.life import (
    HOURS,
    NEWBORNS,
    Care,
    Happening,
    Leaving,
    Service,
    arrivals,
    changed,
    enrolments,
    instant,
    life,
)
from services.simulator.profiles import Profile, profile
from services.simulator.region import (
    COMPLEX,
    GENERAL,
    ZONE,
    Flaw,
    Restriction,
    Segment,
    calm_rate,
    crisis_share,
    memberships,
    people,
    person,
    wishes,
)
from tests.calibration import is_stay

GOLDEN: dict[tuple[str, int, bool], str] = {
    ("demo", 2_000, False): "195b64c8e0fe45c3e0ea1dd0e1c2ec9e365cece30ae31554f16cfc61d5ea2686",
    ("demo", 2_000, True): "c7ebb1708b47eb89e3be8fb5ea3c73ceb2ba4db0419708b47aafdfca5b98a3e5",
    ("region", 1_500, False): "b9a3ea6303e892d660e1eb21dce35ca6148c4d9abb8d71eac688c218b2ef8b6a",
    ("wide", 1_500, False): "029116a9241a64a56c8a7b5e7eb72abd8e5a830097e4e3451c643fd50a878929",
    ("dense", 150, False): "5daf7c4dd349db5e8a6f4429f9a503ceb6acf0fead649946aa62ea42031d7daa",
}
"""SHA-256 over names and bytes of all files, by profile, people and whether clean (SIM-03).
A change here is a change of the region: say so in CHANGELOG.md."""


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


@pytest.mark.parametrize(("name", "size", "clean"), GOLDEN)
def test_a_profile_is_the_same_bytes_everywhere(
    tmp_path: Path, name: str, size: int, clean: bool
) -> None:
    """SIM-03"""
    files.write(tmp_path, profile=name, seed=2018, people=size, clean=clean)
    assert digest(tmp_path) == GOLDEN[name, size, clean]


def test_the_number_of_processes_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIM-03"""
    for workers in (1, 2):
        files.write(
            tmp_path / str(workers), profile="region", seed=3, people=1_200, workers=workers
        )
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    monkeypatch.setattr(files, "PART", 700)
    files.write(tmp_path / "parts", profile="region", seed=3, people=1_200)
    assert digest(tmp_path / "parts") == digest(tmp_path / "1")


def test_memory_does_not_grow_with_the_number_of_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIM-10: of what is held at once, at its peak."""
    monkeypatch.setattr(files, "PART", 60)
    peaks = []
    for size in (60, 180, 600):
        tracemalloc.start()
        files.write(tmp_path / str(size), profile="wide", seed=1, people=size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


def test_the_raw_bits_and_their_transforms_never_change() -> None:
    """SIM-04: known answers, computed by hand from BLAKE2b of the purpose and a counter."""
    draws = Draws(2018, 1, "ed")
    first = hashlib.blake2b(b"2018|1|ed", digest_size=64).digest()
    counter = b"\xff" + (1).to_bytes(8, "little")
    second = hashlib.blake2b(b"2018|1|ed" + counter, digest_size=64).digest()
    words = [int.from_bytes((first + second)[at : at + 8], "little") for at in range(0, 128, 8)]
    assert [draws.unit() for _ in words] == [(word >> 11) / 2**53 for word in words]
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
    picked = Counter(draws.weighted(running((1, 2, 7))) for _ in range(n))
    assert picked[2] / n == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("segment", [GENERAL, COMPLEX])
def test_the_calm_rate_gives_each_segment_its_mean(segment: Segment) -> None:
    """`r` of simulator.md section 1, checked by drawing what the quadrature computed."""
    draws = Draws("calm", segment.mean)
    n, total = 20_000, 0.0
    for _ in range(n):
        base = draws.gamma(0.6)
        total += calm_rate(segment, 0.6) * base * (1 + 14 * crisis_share(segment, base, 0.6))
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
        assert hours[hour] / total == pytest.approx(weight / sum(HOURS), abs=0.008)
    assert 0.58 <= sum(hours[hour] for hour in range(9, 18)) / total <= 0.61
    assert spring
    assert spring[2] == 0


@pytest.mark.parametrize(
    ("name", "size", "ed", "stays"),
    [
        # simulator.md section 7: per person, in the profile's own time.
        ("region", 4_000, 120_000 / 280_000, 20_000 / 280_000),
        ("wide", 4_000, 2 * 0.42, 2 * 0.07),
    ],
)
def test_a_profile_has_the_care_it_should(name: str, size: int, ed: float, stays: float) -> None:
    region = profile(name, people=size)
    had = [each for own in lives(region).values() for each in own]
    assert sum(each.care is Care.ED for each in had) / size == pytest.approx(ed, rel=0.12)
    assert sum(map(is_stay, had)) / size == pytest.approx(stays, rel=0.2)


def test_wide_is_a_million_encounters_in_two_years() -> None:
    region = profile("wide", people=5_000)
    told = [visit for own in lives(region).values() for visit in visits(own)]
    assert len(told) / region.people == pytest.approx(1_000_000 / 1_000_000, rel=0.1)


def test_dense_is_a_million_encounters_in_a_year_of_people_nearly_all_flagged() -> None:
    region = profile("dense", people=600)
    had = lives(region)
    told = [visit for own in had.values() for visit in visits(own)]
    assert len(told) / region.people == pytest.approx(1_000_000 / 100_000, rel=0.1)
    often = sum(sum(each.care is Care.ED for each in own) >= 4 for own in had.values())
    assert often / region.people > 0.9


def test_a_hospital_that_is_not_connected_is_used_and_says_nothing() -> None:
    """CR-39"""
    region = profile("region", people=1_000)
    had = lives(region)
    away = {each.site for own in had.values() for each in own}
    assert away == {0, 1, 2, 3}
    for person_ in people(region):
        for message in of_person(region, person_, had[person_.number], region.days):
            assert message.site < 3


def test_without_effect_nobody_is_spared_a_visit_and_with_it_one_in_five_of_the_enrolled() -> None:
    """simulator.md section 3: `--effect`; what came before enrolment is untouched."""
    plain = profile("dense", people=500, clean=True)
    helped = profile("dense", people=500, clean=True, effect=0.2)
    before: list[int] = []
    after: list[int] = []
    for each in people(plain):
        without, treated = life(plain, each, 365), life(helped, each, 365)
        times = enrolments(plain, each, without)
        if not times:
            assert treated == without
            continue
        since, until = times[0]
        assert enrolments(helped, each, treated)[0] == (since, until)
        assert [x for x in without if x.start < since] == [x for x in treated if x.start < since]
        for had, counts in ((without, before), (treated, after)):
            counts.append(sum(x.care is Care.ED and since <= x.start < until for x in had))
    assert len(before) > 200
    assert sum(after) / sum(before) == pytest.approx(0.8, abs=0.05)


def test_who_is_enrolled_is_an_adult_frequent_user_on_a_panel_who_restricts_nothing() -> None:
    region = profile("dense", people=400, clean=True, deny_all=0.3, never_acknowledged=0.2)
    joined = 0
    for each in people(region):
        had = life(region, each, 365)
        for since, until in enrolments(region, each, had):
            joined += 1
            assert until - since == timedelta(days=183)
            crossed = since - timedelta(days=14)
            recent = [
                x
                for x in had
                if x.care is Care.ED and crossed - timedelta(days=365) < x.start <= crossed
            ]
            assert len(recent) >= 4
            assert each.age(crossed.date()) >= 18
            assert memberships(region, each.number)
            said = [w for w in wishes(region, each.number) if w.said <= crossed]
            assert not said or said[-1].restriction is Restriction.NONE
    assert 60 < joined < 350


def test_panels_cover_what_they_should() -> None:
    region = profile("demo", people=10_000)
    found = [memberships(region, n) for n in range(1, 10_001)]
    at_once = [len({m.clinic for m in own if m.end is None}) for own in found]
    assert 0.83 <= sum(n == 1 for n in at_once) / 10_000 <= 0.87
    assert 0.015 <= sum(n == 2 for n in at_once) / 10_000 <= 0.025
    moved = [own for own in found if any(m.end for m in own) and len(own) == 2]
    assert 50 <= len(moved) <= 120
    assert all(own[0].end and own[0].end < own[1].start for own in moved)
    longer = profile("demo", people=10_000, days=730)
    assert sum(len({m.end for m in memberships(longer, n)}) == 2 for n in range(1, 10_001)) >= 130


def test_a_few_rows_are_stale_and_a_few_are_bad() -> None:
    """simulator.md section 3; none in a clean region."""
    region, clean = profile("demo", people=10_000), profile("demo", people=10_000, clean=True)
    rows = [m for n in range(1, 10_001) for m in memberships(region, n)]
    stale = [m for m in rows if m.flaw is Flaw.STALE]
    assert 8 <= len(stale) <= 50
    assert all(m.end and m.end < region.start for m in stale)
    assert 10 <= sum(m.flaw is Flaw.BAD for m in rows) <= 50
    assert not any(m.flaw for n in range(1, 10_001) for m in memberships(clean, n))


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


def test_who_changes_their_mind_does_so_between_a_visit_and_what_is_told_of_it() -> None:
    """simulator.md section 3; a restriction of before the simulated time stays where it was."""
    region = profile("demo", people=400, raised=6.0, consent_changed_rate=1.0)
    between = 0
    for each in people(region):
        had, said = life(region, each, region.days), wishes(region, each.number)
        arrived = [x.start + timedelta(minutes=1) for x in had if x.care is Care.ED]
        for wish, then in zip(said, changed(region, said, had), strict=True):
            assert then.restriction is wish.restriction
            if then != wish:
                between += 1
                assert wish.said >= instant(region, 0, 0)
                assert then.said in arrived
                assert not any(wish.said < at < then.said for at in arrived)
    assert between > 60


def test_most_people_restrict_nothing() -> None:
    region = profile("demo", people=10_000)
    restricting = sum(bool(wishes(region, n)) for n in range(1, 10_001))
    assert 0.07 <= restricting / 10_000 <= 0.1
