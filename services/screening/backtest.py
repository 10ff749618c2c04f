"""What a policy would have listed, day by day: the tallies of a back-test (CT-71).

Each patient's course is walked once and its stretches are added to the days they cover. A day
is looked at in its last microsecond in the policy's zone, so that a visit of that day, also one
known by its date alone (CT-24), is among what counts.

Only numbers of patients leave this module, and as `shown` has them. A number from 1 to 4 is
None. Every other is rounded down to a multiple of 5, each by itself: what is the sum or difference
of two published numbers is then uncertain by 4, which is as much as it might otherwise tell.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate, pairwise
from typing import Any
from zoneinfo import ZoneInfo

from services.screening.flag import State, Stretch
from services.screening.policy import Policy

SMALLEST = 5
"""A smaller number of patients is not told; greater ones are told as multiples of it."""
WEEK = 7
TOP_PERCENT = (10, 5, 1)


@dataclass(frozen=True, slots=True)
class Period:
    """Whole days in one zone, both ends included."""

    first: date
    last: date
    zone: ZoneInfo

    def days(self) -> list[date]:
        return [self.first + timedelta(n) for n in range((self.last - self.first).days + 1)]

    def begin(self) -> datetime:
        """The first instant."""
        return self._midnight(self.first)

    def ends(self) -> list[datetime]:
        """The last microsecond of each day. A day of 23 or 25 hours is a day."""
        return [
            self._midnight(day + timedelta(1)) - timedelta(microseconds=1) for day in self.days()
        ]

    def _midnight(self, day: date) -> datetime:
        return datetime.combine(day, time(), self.zone).astimezone(UTC)


_Spans = list[tuple[int, int]]


class Listing:
    """The list of one policy: of each day how many stand on it, of each week who came onto it."""

    def __init__(self, days: int) -> None:
        self._watch = [0] * (days + 1)
        self._flagged = [0] * (days + 1)
        self._held = [0] * (days + 1)
        weeks = (days + WEEK - 1) // WEEK
        self.entries = [0] * weeks
        """Per week: who became flagged."""
        self.alerts = [0] * weeks
        """Of these, whom a nurse would have been alerted to, had every fact been on time."""
        self.visits: Counter[int] = Counter()
        """Patients by ED visits in the window, at the end of the last day."""
        self.episodes: Counter[int] = Counter()

    @property
    def watch(self) -> list[int]:
        return _each_day(self._watch)

    @property
    def flagged(self) -> list[int]:
        """Those held included."""
        return _each_day(self._flagged)

    @property
    def held(self) -> list[int]:
        return _each_day(self._held)

    def add(self, course: Sequence[Stretch], begin: datetime, ends: Sequence[datetime]) -> _Spans:
        """One patient; on which days (first, first no more) they are flagged."""
        flagged: _Spans = []
        was = State.BELOW
        for stretch, until in _with_ends(course):
            lo = bisect_left(ends, stretch.at)
            hi = len(ends) if until is None else bisect_left(ends, until)
            if stretch.state is State.WATCH:
                _cover(self._watch, lo, hi)
            elif stretch.state is State.FLAGGED:
                _cover(self._flagged, lo, hi)
                flagged.append((lo, hi))
                if stretch.held:
                    _cover(self._held, lo, hi)
                if was is not State.FLAGGED and stretch.at >= begin and lo < len(ends):
                    self.entries[lo // WEEK] += 1
                    self.alerts[lo // WEEK] += not stretch.again
            if lo < len(ends) == hi:
                self.visits[stretch.counts[0]] += 1
                self.episodes[stretch.counts[1]] += 1
            was = stretch.state
        return flagged


@dataclass(slots=True)
class Tally:
    """What a back-test counts: the list of a policy, and of another beside it if there is one."""

    period: Period
    listings: tuple[Listing, ...]
    _begin: datetime
    _ends: Sequence[datetime]
    _both: list[int] = field(repr=False)

    @classmethod
    def of(cls, period: Period, policies: int) -> "Tally":
        ends = period.ends()
        listings = tuple(Listing(len(ends)) for _ in range(policies))
        return cls(period, listings, period.begin(), ends, [0] * (len(ends) + 1))

    @property
    def both(self) -> list[int]:
        """Of each day, how many stand on both lists."""
        return _each_day(self._both)

    def add(self, courses: Sequence[Sequence[Stretch]]) -> None:
        """One patient: their course under each policy."""
        spans = [
            listing.add(course, self._begin, self._ends)
            for listing, course in zip(self.listings, courses, strict=True)
        ]
        if len(spans) > 1:
            for lo, hi in spans[0]:
                for other_lo, other_hi in spans[1]:
                    _cover(self._both, max(lo, other_lo), min(hi, other_hi))


def _with_ends(course: Sequence[Stretch]) -> Iterable[tuple[Stretch, datetime | None]]:
    yield from ((one, following.at) for one, following in pairwise(course))
    if course:
        yield course[-1], None


def _cover(steps: list[int], lo: int, hi: int) -> None:
    if lo < hi:
        steps[lo] += 1
        steps[hi] -= 1


def _each_day(steps: Sequence[int]) -> list[int]:
    return list(accumulate(steps))[:-1]


# What is told of it


def shown(number: float) -> int | None:
    """A number of patients as it may be told: none, fewer than 5 (None), or rounded down to 5.

    Down, not to the nearest: 8 as 10 beside two parts of fewer than 5 would tell both.
    """
    if number == 0:
        return 0
    return None if number < SMALLEST else SMALLEST * int(number // SMALLEST)


def result(tally: Tally, policies: Sequence[Policy]) -> dict[str, Any]:
    """The tallies as they are published: aggregates only, nothing below 5 (CT-71)."""
    names = ("policy", "against")[: len(policies)]
    sides = dict(zip(names, tally.listings, strict=True))
    days, both = tally.period.days(), tally.both
    watch = {name: one.watch for name, one in sides.items()}
    flagged = {name: one.flagged for name, one in sides.items()}
    held = {name: one.held for name, one in sides.items()}
    told: dict[str, Any] = {
        **{name: _named(rule) for name, rule in zip(names, policies, strict=True)},
        "from": days[0].isoformat(),
        "to": days[-1].isoformat(),
        "timezone": tally.period.zone.key,
        "rounded_down_to": SMALLEST,
        "summary": {
            name: {
                "flagged": _spread(flagged[name]),
                "held": _spread(held[name]),
                "watch": _spread(watch[name]),
                "entries": _in_weeks(one.entries, len(days)),
                "alerts": _in_weeks(one.alerts, len(days)),
            }
            for name, one in sides.items()
        },
        "counts": {name: _distributions(one) for name, one in sides.items()},
        "weeks": [
            {
                "from": days[first].isoformat(),
                "to": days[min(first + WEEK, len(days)) - 1].isoformat(),
                **{
                    name: {
                        "entries": shown(one.entries[week]),
                        "alerts": shown(one.alerts[week]),
                    }
                    for name, one in sides.items()
                },
            }
            for week, first in enumerate(range(0, len(days), WEEK))
        ],
        "days": [
            {
                "date": day.isoformat(),
                **{
                    name: {
                        "watch": shown(watch[name][n]),
                        "flagged": shown(flagged[name][n]),
                        "held": shown(held[name][n]),
                    }
                    for name in names
                },
            }
            for n, day in enumerate(days)
        ],
    }
    if len(sides) > 1:
        overlap = {
            "both": both,
            "only_policy": [a - b for a, b in zip(flagged["policy"], both, strict=True)],
            "only_against": [a - b for a, b in zip(flagged["against"], both, strict=True)],
        }
        told["summary"]["overlap"] = {name: _spread(each) for name, each in overlap.items()}
        for n, day in enumerate(told["days"]):
            day["overlap"] = {name: shown(each[n]) for name, each in overlap.items()}
    return told


def _named(rule: Policy) -> dict[str, Any]:
    return {"name": rule.name, "version": rule.version, "sha256": rule.sha256}


def _spread(each_day: Sequence[int]) -> dict[str, int | None]:
    return {
        "last": shown(each_day[-1]),
        "mean": shown(sum(each_day) / len(each_day)),
        "most": shown(max(each_day)),
    }


def _in_weeks(each_week: Sequence[int], days: int) -> dict[str, float | None]:
    """In all, and a week on average, to one decimal."""
    total = shown(sum(each_week))
    return {"in_all": total, "a_week": None if total is None else round(total * WEEK / days, 1)}


def _distributions(listing: Listing) -> dict[str, Any]:
    counted = {"ed_visits": listing.visits, "hospital_episodes": listing.episodes}
    return {
        name: {"at_least": _at_least(numbers), "top_percent": _top(numbers)}
        for name, numbers in counted.items()
    }


def _at_least(numbers: Mapping[int, int]) -> list[dict[str, int | None]]:
    """How many patients have one or more, two or more …, up to the first number not told."""
    found: list[dict[str, int | None]] = []
    for least in range(1, max(numbers, default=0) + 1):
        patients = shown(sum(n for count, n in numbers.items() if count >= least))
        found.append({"count": least, "patients": patients})
        if patients is None:
            break
    return found


def _top(numbers: Mapping[int, int]) -> dict[str, int | None]:
    """The lowest count that at most so many percent of those with any reach (Ottawa's rule)."""
    anyone = sum(n for count, n in numbers.items() if count > 0)
    found: dict[str, int | None] = {}
    for percent in TOP_PERCENT:
        least = 1
        while (
            reach := sum(n for count, n in numbers.items() if count >= least)
        ) * 100 > percent * anyone:
            least += 1
        found[str(percent)] = least if reach >= SMALLEST else None
    return found
