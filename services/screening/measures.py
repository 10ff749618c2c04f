"""What is counted, and how each count moves through a life: counting.md CT-30, CT-31.

A count is a step function of the instant it is seen from. It is told here by its steps, when
and by how much, so that nobody has to look at any instant at which nothing changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from services.screening.episodes import Group, Kind
from services.screening.policy import Measure
from services.screening.why import Judged

Step = tuple[datetime, int]


@dataclass(frozen=True, slots=True)
class Counted:
    """The ED visits and hospital episodes of one person that count, by anchor."""

    visits: Sequence[Group]
    stays: Sequence[Group]

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> "Counted":
        counted = [j.group for j in judged if j.reason is None]
        return cls(
            [group for group in counted if group.kind is Kind.ED],
            [group for group in counted if group.kind is Kind.HOSPITAL],
        )


def steps(measure: Measure, counted: Counted, length: timedelta, zone: ZoneInfo) -> Iterator[Step]:
    """The steps of `measure` in a window of `length`, in no order (CT-30).

    `zone` is whose midnights a hospital day has; they go on for as long as a stay is open.
    """
    match measure:
        case Measure.ED_VISITS:
            yield from _each(counted.visits, length)
        case Measure.HOSPITAL_EPISODES:
            yield from _each(counted.stays, length)
        case Measure.ED_SITES:
            yield from _sites(counted.visits, length)
        case Measure.HOSPITAL_DAYS:
            for stay in counted.stays:
                yield from _days(stay, length, zone)


def _each(groups: Sequence[Group], length: timedelta) -> Iterator[Step]:
    for group in groups:
        yield group.anchor, 1
        yield group.anchor + length, -1


def _sites(visits: Sequence[Group], length: timedelta) -> Iterator[Step]:
    """A site is seen from its first visit on until its last has left without another.

    A visit that went on at a second site was a visit to both (CR-04).
    """
    anchors: dict[str, list[datetime]] = {}
    for visit in visits:
        for site in {member.fact.site for member in visit.members}:
            anchors.setdefault(site, []).append(visit.anchor)
    for seen in anchors.values():
        until: datetime | None = None
        for anchor in sorted(seen):
            if until is None or anchor > until:
                if until is not None:
                    yield until, -1
                yield anchor, 1
            until = anchor + length
        if until is not None:
            yield until, -1


def _days(stay: Group, length: timedelta, zone: ZoneInfo) -> Iterator[Step]:
    """The local midnights of a stay, up to now or its end; at least one day (CT-31).

    So the first midnight moves nothing: it is the day that every stay has.
    """
    gone = stay.anchor + length
    last = gone if stay.is_open else stay.end.earliest
    days = 1
    yield stay.anchor, 1
    for midnight in islice(_midnights(stay.anchor, zone), 1, None):
        if midnight > last or midnight >= gone:
            break
        days += 1
        yield midnight, 1
    yield gone, -days


def _midnights(after: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    day = after.astimezone(zone).date()
    while True:
        day += timedelta(days=1)
        yield datetime.combine(day, time(), zone).astimezone(UTC)
