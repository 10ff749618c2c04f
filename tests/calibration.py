"""How far the simulated region is like what was published: CAL-01 to CAL-14.

`make calibrate` draws 20,000 people for four years with five seeds, without noise, and prints
the table of docs/simulator.md. Only lives are drawn: what is counted here is counted anew, by
other means than the product's.
"""

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from statistics import fmean
from typing import NamedTuple

from services.simulator.life import NEWBORNS, Care, Happening, Leaving, Service, instant, life
from services.simulator.profiles import Profile, profile
from services.simulator.region import ZONE, people

SEEDS = (1, 2, 3, 4, 5)
PEOPLE = 20_000
YEARS = 4
YEAR = timedelta(days=365)
HALF_YEAR = timedelta(days=183)
OVER = 4
"""ED visits in 365 days: the ED clause."""


class Check(NamedTuple):
    """A row of simulator.md section 6."""

    id: str
    quantity: str
    low: float
    high: float
    published: str
    digits: int = 1
    unit: str = ""

    def shown(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"

    @property
    def tolerance(self) -> str:
        return f"{self.low:.{self.digits}f} to {self.high:.{self.digits}f}{self.unit}"


PERCENT = " %"
NOT_THE_WORLD = "none: describes the model"
CHECKS = (
    Check(
        "CAL-01",
        "ED visits per person-year",
        0.40,
        0.44,
        "0.32 (Ontario 2000, ICES), about 0.46 (Quebec 2015-16)",
        3,
    ),
    Check(
        "CAL-02",
        "people with a visit in a year",
        22,
        25,
        "19.6 (ICES), 26.0 (Montreal, cardiac risk)",
        unit=PERCENT,
    ),
    Check("CAL-03", "of these, one visit", 63, 68, "two-thirds (ICES)", unit=PERCENT),
    Check("CAL-04", "of these, 3 or more", 13, 17, "13.8 to 15.3 (BC, Moe 2021)", unit=PERCENT),
    Check("CAL-05", "of these, 4 or more", 7, 10, "6.6 (ICES)", unit=PERCENT),
    Check("CAL-06", "visits made by those with 3 or more", 38, 44, "40.3 (BC)", unit=PERCENT),
    Check(
        "CAL-07",
        "users with 4 or more in each of the next 3 years",
        0.5,
        1.4,
        "1.10, chronic conditions (Chiu 2020)",
        2,
        PERCENT,
    ),
    Check("CAL-08", "stays per 1,000 person-years", 66, 74, "70 (CIHI 2023-24)"),
    Check("CAL-09", "arrivals from 09:00 to 17:59", 58, 61, "about 60 (England)", unit=PERCENT),
    Check("CAL-10", "Monday 11 h : Wednesday 04 h", 8, 10, "about 9 (England)", 2),
    Check("CAL-11", "left without being seen", 6.5, 7.5, "6.7 (Canada 2022)", 2, PERCENT),
    Check("CAL-12", "over the ED clause on a day, per 10,000", 170, 215, NOT_THE_WORLD, 0),
    Check("CAL-13", "upward crossings a year, per 10,000", 265, 320, NOT_THE_WORLD, 0),
    Check(
        "CAL-14a",
        "ED visits in 183 days after a crossing, against 183 before",
        -32,
        -20,
        "none: regression to the mean",
        unit=PERCENT,
    ),
    Check(
        "CAL-14b",
        "the same of those on a list of one date",
        -54,
        -42,
        "none: regression to the mean",
        unit=PERCENT,
    ),
)


class Seen(NamedTuple):
    """One person's years, as they are counted here."""

    arrivals: list[datetime]
    """Of ED visits, in order."""
    by_year: list[int]
    stays: int
    unseen: int
    hours: Counter[tuple[int, int]]
    """ED arrivals by local weekday and hour."""


def region(seed: int, size: int = PEOPLE) -> Profile:
    return profile("demo", clean=True, seed=seed, people=size, days=365 * YEARS)


def measure(drawn: Profile) -> dict[str, float]:
    """All quantities of the table, by id, of one region."""
    seen = list(_seen(drawn))
    n = len(seen)
    per_year = [count for one in seen for count in one.by_year]
    users = [count for count in per_year if count]
    first = [one for one in seen if one.by_year[0]]
    hours = Counter[tuple[int, int]]()
    for one in seen:
        hours.update(one.hours)
    arrivals = sum(hours.values())
    working = sum(count for (_, hour), count in hours.items() if 9 <= hour < 18)
    start = instant(drawn, 0, 0)
    crossings = [(one.arrivals, at) for one in seen for at in _crossings(one.arrivals)]
    settled = [(own, at) for own, at in crossings if at >= start + YEAR]
    halves = [(own, at) for own, at in settled if at + HALF_YEAR <= start + YEARS * YEAR]
    listed = [
        (one.arrivals, at)
        for at in (start + years * YEAR for years in (1, 2, 3))
        for one in seen
        if _within(one.arrivals, at - YEAR, at) >= OVER
    ]
    return {
        "CAL-01": sum(per_year) / (n * YEARS),
        "CAL-02": 100 * len(users) / len(per_year),
        "CAL-03": 100 * sum(count == 1 for count in users) / len(users),
        "CAL-04": 100 * sum(count >= 3 for count in users) / len(users),
        "CAL-05": 100 * sum(count >= OVER for count in users) / len(users),
        "CAL-06": 100 * sum(count for count in users if count >= 3) / sum(users),
        "CAL-07": 100 * sum(min(one.by_year[1:]) >= OVER for one in first) / len(first),
        "CAL-08": 1000 * sum(one.stays for one in seen) / (n * YEARS),
        "CAL-09": 100 * working / arrivals,
        "CAL-10": hours[0, 11] / hours[2, 4],
        "CAL-11": 100 * sum(one.unseen for one in seen) / arrivals,
        "CAL-12": 10_000 * sum(_share_over(one.arrivals, start) for one in seen) / n,
        "CAL-13": 10_000 * len(settled) / (n * (YEARS - 1)),
        "CAL-14a": _change(halves),
        "CAL-14b": _change(listed),
    }


def _seen(drawn: Profile) -> Iterator[Seen]:
    start = instant(drawn, 0, 0)
    for person in people(drawn):
        own = [each for each in life(drawn, person, drawn.days) if each.person < NEWBORNS]
        ed = sorted((each for each in own if each.care is Care.ED), key=lambda each: each.start)
        by_year = [0] * YEARS
        hours = Counter[tuple[int, int]]()
        for each in ed:
            local = each.start.astimezone(ZONE)
            hours[local.weekday(), local.hour] += 1
            by_year[min((each.start - start) // YEAR, YEARS - 1)] += 1
        yield Seen(
            [each.start for each in ed],
            by_year,
            sum(map(is_stay, own)),
            sum(each.leaving is Leaving.UNSEEN for each in ed),
            hours,
        )


def is_stay(each: Happening) -> bool:
    """A hospital stay as it is reported: no series, no newborn, none that was taken back."""
    series = (Service.DIALYSIS, Service.CHEMOTHERAPY, Service.NEWBORN, Service.ORGAN_DONATION)
    return (
        each.care is Care.STAY
        and each.service not in series
        and each.leaving is not Leaving.REVERTED
    )


def _within(arrivals: Sequence[datetime], after: datetime, until: datetime) -> int:
    """How many lie in the half-open stretch (after, until]."""
    return bisect_right(arrivals, until) - bisect_right(arrivals, after)


def _crossings(arrivals: Sequence[datetime]) -> Iterator[datetime]:
    """The arrivals that bring the count of 365 days up to the clause from below."""
    for number, at in enumerate(arrivals):
        just_before = number - bisect_left(arrivals, at - YEAR)
        if just_before < OVER <= number + 1 - bisect_right(arrivals, at - YEAR):
            yield at


def _share_over(arrivals: Sequence[datetime], start: datetime) -> float:
    """Share of the time after the first year in which the count is over the clause."""
    begin, end = start + YEAR, start + YEARS * YEAR
    over = timedelta()
    until = begin
    for number in range(OVER - 1, len(arrivals)):
        since = max(arrivals[number], until)
        until_here = min(arrivals[number - OVER + 1] + YEAR, end)
        if until_here > since:
            over += until_here - since
            until = until_here
    return over / (end - begin)


def _change(anchored: Sequence[tuple[Sequence[datetime], datetime]]) -> float:
    """Visits in the half year after each instant against the half year up to it, in per cent."""
    before = sum(_within(own, at - HALF_YEAR, at) for own, at in anchored)
    after = sum(_within(own, at, at + HALF_YEAR) for own, at in anchored)
    return 100 * (after / before - 1)


def table(measured: Sequence[Mapping[str, float]]) -> list[str]:
    """The table of docs/simulator.md; each region of `measured` by one seed."""
    rows = [
        "| id | quantity | published | tolerance | simulated | seeds | ok |",
        "|---|---|---|---|---|---|---|",
    ]
    for check in CHECKS:
        values = [one[check.id] for one in measured]
        mean = fmean(values)
        spread = (
            f"{check.shown(min(values)).removesuffix(check.unit)} to {check.shown(max(values))}"
        )
        ok = "yes" if check.low <= mean <= check.high else "**no**"
        rows.append(
            f"| {check.id} | {check.quantity} | {check.published} | {check.tolerance}"
            f" | {check.shown(mean)} | {spread} | {ok} |"
        )
    return rows


def main() -> int:
    """Prints the table; 1 if a mean is outside its tolerance."""
    rows = table([measure(region(seed)) for seed in SEEDS])
    print("\n".join(rows))
    return int(any("**no**" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
