"""The simulated region against what was published: CAL-01 to CAL-14 (simulator.md section 6)."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean

import pytest

from tests import calibration
from tests.calibration import CHECKS, SEEDS, Check, measure, region, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "simulator.md"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def measured() -> Sequence[Mapping[str, float]]:
    """All that section 6 asks for: 20,000 people, 4 years, clean, 5 seeds."""
    return [measure(region(seed)) for seed in SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_the_mean_is_inside_its_tolerance(
    measured: Sequence[Mapping[str, float]], check: Check
) -> None:
    assert check.low <= fmean(one[check.id] for one in measured) <= check.high


@pytest.mark.slow
def test_the_document_shows_what_is_measured(measured: Sequence[Mapping[str, float]]) -> None:
    """`make calibrate` prints it; it is the same everywhere, as the region is."""
    assert "\n".join(table(measured)) in DOCUMENT.read_text()


def test_a_mean_outside_is_shown_as_outside() -> None:
    high = {check.id: check.high + 1 for check in CHECKS}
    assert all("**no**" in row for row in table([high])[2:])


AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "crossings"),
    [
        ((0, 1, 2, 3), [3]),
        ((0, 1, 2, 365), []),  # the first has just left (CT-30)
        ((0, 1, 2, 364), [364]),
        ((0, 1, 2, 3, 4, 366), [3]),  # one leaves as another comes: never below
        ((0, 1, 2, 3, 370, 371, 372, 373), [3, 373]),
    ],
)
def test_crossings_are_counted_as_the_clause_counts(
    days: Sequence[int], crossings: Sequence[int]
) -> None:
    found = list(calibration._crossings([AT + day * DAY for day in days]))
    assert found == [AT + day * DAY for day in crossings]


def test_time_over_the_clause_is_counted_once() -> None:
    """Over from day 400 to 700 and from 720 to 765, of the three years after the first."""
    arrivals = [AT + day * DAY for day in (335, 340, 350, 400, 720, 730)]
    share = calibration._share_over(arrivals, AT)
    over = sum(
        sum(day - 365 < each <= day for each in (335, 340, 350, 400, 720, 730)) >= 4
        for day in range(365, 4 * 365)
    )
    assert share * 3 * 365 == pytest.approx(over, abs=1.5)
