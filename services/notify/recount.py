"""What one recipient may see of a patient's standing (CS-40).

"Four visits" reveals each visit. So if nothing is hidden from a recipient, the flag's own
values are shown; if anything is, the counts are made again from the visible units alone, by
simple counting, and no hold applies: below the threshold there is then nothing to see.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID

from services.notify.consent import (
    KIND_OF_LEVEL,
    Ceilings,
    Code,
    Detail,
    Finding,
    Item,
    Level,
    detail,
    labelled,
)

HINTS: Final = frozenset({"ADMITTED", "DURING_STAY", "LINKED"})
"""Codes that point from one unit to another, which may be hidden (CS-40)."""
NOTHING_MORE: Final[Mapping[UUID, Detail]] = MappingProxyType({})
"""Of each visit the fact alone."""


class State(StrEnum):
    BELOW = "below"
    WATCH = "watch"
    FLAGGED = "flagged"


class Kind(StrEnum):
    ED = "ed"
    HOSPITAL = "hospital"


class Tally(StrEnum):
    """What of the units a clause counts (CT-31)."""

    UNITS = "units"
    SITES = "sites"
    """How many different sites they were at."""
    DAYS = "days"
    """The midnights in them, at least one each."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One encounter of a unit. None = not assessed or unknown."""

    key: UUID
    site: str
    start: datetime
    end: datetime | None = None
    labels: frozenset[Code] | None = field(default=None, repr=False)
    codes: frozenset[Code] | None = field(default=None, repr=False)
    disposition: str | None = field(default=None, repr=False)
    """How it ended, in the words of encounter.recorded."""
    level: Level = Level.FACT
    """How much of it is in here, once it is in a View (CS-44)."""
    named: bool = False
    """In a View: its hospital may be named though it is a sensitive one (CS-45)."""

    @property
    def item(self) -> str:
        return f"Encounter/{self.key}"

    def cut(self, to: Detail | None) -> "Visit":
        """With what that detail lets through and nothing else; None: the fact alone."""
        level = Level.FACT if to is None else to.level
        more = level > Level.FACT
        return replace(
            self,
            labels=None,
            codes=self.codes if more else None,
            disposition=self.disposition if more else None,
            level=level,
            named=to is not None and to.named,
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """An ED visit or a hospital episode that was considered, with all its encounters."""

    kind: Kind
    anchor: datetime
    end: datetime | None
    sites: tuple[str, ...]
    visits: tuple[Visit, ...]
    counted: bool
    precision: str = "instant"
    reason: str | None = None
    """Code why not counted."""
    rule: str | None = None
    """Spec id of the rule behind `reason`."""
    notes: tuple[str, ...] = ()

    def visible_to(self, released: frozenset[str]) -> bool:
        """Only if every encounter in it is released; one without any shows to nobody."""
        return bool(self.visits) and all(visit.item in released for visit in self.visits)

    def cut(self, details: Mapping[UUID, Detail]) -> "Unit":
        return replace(self, visits=tuple(v.cut(details.get(v.key)) for v in self.visits))


@dataclass(frozen=True, slots=True)
class Clause:
    kind: Kind
    at_least: int
    days: int
    leads_to: State
    count: int
    met: bool
    tally: Tally = Tally.UNITS
    earlier: tuple[int, ...] = ()
    """Counts in the adjoining windows before, newest first, where the policy asks for several."""

    def held_in(self, ago: int) -> bool:
        """Whether it is met in the window that many windows ago."""
        return (self.count, *self.earlier)[ago] >= self.at_least


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a patient stands, as screening last said it (`flag.changed`, newest sequence)."""

    patient: UUID
    sequence: int
    state: State
    held: bool
    since: datetime | None
    next_change: datetime | None
    as_of: datetime
    policy: str
    """`name/version`."""
    clauses: tuple[Clause, ...]
    every: bool
    """All of the flagging clauses are needed, not any."""
    units: tuple[Unit, ...]
    known_sites: int
    connected_sites: int
    complete: bool
    episode: UUID | None = None
    pathway: str | None = None
    hold_until: datetime | None = None
    outside_window: int = 0
    windows: int = 1
    """In how many adjoining windows the clauses must be met (CT-31)."""
    days: int | None = None
    """Of the window in which units are counted that no clause counts; None: the longest."""
    every_watch: bool = False
    """All of the clauses that lead to `watch` are needed, not any."""
    zone: tzinfo | None = None
    """Whose midnights a day has. None: not said, so days cannot be counted again."""

    @property
    def window(self) -> timedelta:
        """All that a clause looks back to."""
        lengths = [clause.days for clause in self.clauses]
        if self.days is not None:
            lengths.append(self.days)
        return timedelta(days=self.windows * max(lengths, default=365))

    @property
    def countable(self) -> bool:
        """Whether what is visible of it can be counted again. If not, nothing is told."""
        return self.zone is not None or all(c.tally is not Tally.DAYS for c in self.clauses)


@dataclass(frozen=True, slots=True)
class View:
    """A standing as one recipient may see it."""

    state: State
    held: bool
    since: datetime | None
    next_change: datetime | None
    after: datetime
    """The window is (`after`, `until`]."""
    until: datetime
    policy: str
    clauses: tuple[Clause, ...]
    units: tuple[Unit, ...]
    known_sites: int
    connected_sites: int
    complete: bool
    whole: bool
    """Nothing is hidden from this recipient. Never shown: it would itself tell (CS-42)."""
    pathway: str | None = None
    hold_until: datetime | None = None
    outside_window: int | None = None
    """None: not shown, something is hidden."""
    days: int | None = None
    details: Mapping[UUID, Detail] = field(default_factory=lambda: NOTHING_MORE, repr=False)
    """By visit, hidden ones left out; `units` are cut to it already."""

    def count(self, kind: Kind) -> int:
        """As the first clause of that kind counts it; without one, the counted units."""
        for clause in self.clauses:
            if clause.kind is kind and clause.tally is Tally.UNITS:
                return clause.count
        after = self.after if self.days is None else self.until - timedelta(days=self.days)
        return sum(u.counted and u.kind is kind and after < u.anchor for u in self.units)

    @property
    def level(self) -> Level:
        """The highest level at which any of its visits is shown."""
        return max((v.level for unit in self.units for v in unit.visits), default=Level.FACT)

    @property
    def met(self) -> Clause | None:
        """The clause that is met, the flagging one first; None while only the hold stands."""
        met = [c for c in self.clauses if c.met and c.leads_to is self.state]
        return met[0] if met else None


def is_whole(standing: Standing, released: frozenset[str]) -> bool:
    return all(unit.visible_to(released) for unit in standing.units)


def assessed(standing: Standing, labels: Mapping[str, frozenset[Code]]) -> Standing:
    """With the labels a person gave, by `Visit.item`, to visits that have none (CS-36)."""
    if not labels:
        return standing

    def known(visit: Visit) -> Visit:
        return visit if visit.labels is not None else replace(visit, labels=labels.get(visit.item))

    units = tuple(replace(u, visits=tuple(known(v) for v in u.visits)) for u in standing.units)
    return replace(standing, units=units)


def details(
    standing: Standing, findings: Iterable[Finding], ceilings: Ceilings
) -> dict[UUID, Detail]:
    """How much of each visit may be seen; a visit that is hidden is not in it (CS-45)."""
    by_item = {finding.item: finding for finding in findings}
    found: dict[UUID, Detail] = {}
    for visit in (v for unit in standing.units for v in unit.visits):
        own = {
            kind: by_item[name]
            for kind in KIND_OF_LEVEL.values()
            if (name := f"{kind}/{visit.key}") in by_item
        }
        seen = detail(labelled(visit.labels, visit.codes), own, ceilings)
        if seen is not None:
            found[visit.key] = seen
    return found


def see(
    standing: Standing,
    released: frozenset[str],
    now: datetime,
    details: Mapping[UUID, Detail] = NOTHING_MORE,
) -> View:
    """What a recipient of `released` sees at `now`, and of each visit as far as `details` go."""
    if is_whole(standing, released):
        return View(
            state=standing.state,
            held=standing.held,
            since=standing.since,
            next_change=standing.next_change,
            after=standing.as_of - standing.window,
            until=standing.as_of,
            policy=standing.policy,
            clauses=standing.clauses,
            units=tuple(u.cut(details) for u in standing.units),
            known_sites=standing.known_sites,
            connected_sites=standing.connected_sites,
            complete=standing.complete,
            whole=True,
            pathway=standing.pathway,
            hold_until=standing.hold_until,
            outside_window=standing.outside_window,
            days=standing.days,
            details=details,
        )
    units = tuple(
        _without_hints(u.cut(details))
        for u in standing.units
        if standing.countable and u.visible_to(released)
    )
    clauses = _recounted(standing, units, now)
    state = _state(standing, clauses)
    return View(
        state=state,
        held=False,
        since=_since(standing, units, now, state),
        next_change=_next_change(standing, units, now),
        after=now - standing.window,
        until=now,
        policy=standing.policy,
        clauses=clauses,
        units=tuple(u for u in units if now - standing.window < u.anchor <= now),
        known_sites=standing.known_sites,
        connected_sites=standing.connected_sites,
        complete=standing.complete,
        whole=False,
        days=standing.days,
        details=details,
    )


def is_met(standing: Standing, released: frozenset[str], now: datetime) -> bool:
    """Whether `released` alone leave anything to tell (the condition of CS-35)."""
    return is_whole(standing, released) or see(standing, released, now).state is not State.BELOW


def changes_by_itself(
    standing: Standing, released: frozenset[str], now: datetime
) -> datetime | None:
    """When a recount falls or rises without an event; None if the flag's own values are shown,
    whose changes screening announces.
    """
    return None if is_whole(standing, released) else see(standing, released, now).next_change


def items(standing: Standing, up_to: Level = Level.FACT) -> tuple[Item, ...]:
    """What a card of this standing may tell, up to a level: each encounter, its condition, its
    document (CS-44).

    One that is not finished ends at `as_of` (CS-41). A standing without encounters still tells
    that there is a patient: that is one item of which nothing is known.
    """
    found: dict[str, Item] = {}
    for unit in standing.units:
        for visit in unit.visits:
            for level in Level:
                if level <= up_to:
                    item = visit_item(visit, standing.as_of, level)
                    found[item.id] = item
    return tuple(found.values()) or (Item(id="Encounter/none", kind="Encounter"),)


def visit_item(visit: Visit, at: datetime, level: Level = Level.FACT) -> Item:
    kind = KIND_OF_LEVEL[level]
    return Item(
        id=f"{kind}/{visit.key}",
        kind=kind,
        custodian=f"Organization/{visit.site}",
        start=visit.start,
        end=visit.end or max(at, visit.start),
        labels=labelled(visit.labels, visit.codes),
        codes=visit.codes,
        encounter=visit.item,
    )


def _without_hints(unit: Unit) -> Unit:
    return replace(
        unit,
        reason=None if unit.reason in HINTS else unit.reason,
        rule=None if unit.reason in HINTS else unit.rule,
        notes=tuple(n for n in unit.notes if n not in HINTS),
    )


def _count(standing: Standing, clause: Clause, units: Iterable[Unit], at: datetime) -> int:
    after = at - timedelta(days=clause.days)
    seen = [u for u in units if u.counted and u.kind is clause.kind and after < u.anchor <= at]
    match clause.tally:
        case Tally.UNITS:
            return len(seen)
        case Tally.SITES:
            return len({site for unit in seen for site in unit.sites})
        case Tally.DAYS:
            return sum(_days(unit, at, standing.zone) for unit in seen)


def _days(unit: Unit, at: datetime, zone: tzinfo | None) -> int:
    """The local midnights of a unit up to its end, or to `at`; at least one day."""
    last = at if unit.end is None else min(unit.end, at)
    return max(1, (_local_date(last, zone) - _local_date(unit.anchor, zone)).days)


def _local_date(instant: datetime, zone: tzinfo | None) -> date:
    return instant.astimezone(zone or UTC).date()


def _recounted(standing: Standing, units: Sequence[Unit], at: datetime) -> tuple[Clause, ...]:
    """The clauses as `units` alone meet them, each of their windows as it was seen at its end."""
    found = []
    for clause in standing.clauses:
        count, *earlier = (
            _count(standing, clause, units, at - ago * timedelta(days=clause.days))
            for ago in range(standing.windows)
        )
        met = count >= clause.at_least
        found.append(replace(clause, count=count, met=met, earlier=tuple(earlier)))
    return tuple(found)


def _state(standing: Standing, clauses: Sequence[Clause]) -> State:
    for state, every in ((State.FLAGGED, standing.every), (State.WATCH, standing.every_watch)):
        leading = [c for c in clauses if c.leads_to is state]
        enough = all if every else any
        if leading and all(
            enough(c.held_in(ago) for c in leading) for ago in range(standing.windows)
        ):
            return state
    return State.BELOW


def _instants(standing: Standing, units: Sequence[Unit]) -> list[datetime]:
    """When a count changes: a unit enters or leaves a window (CR-40), or a day of it begins."""
    found = {u.anchor for u in units if u.counted}
    for clause in standing.clauses:
        length = timedelta(days=clause.days)
        for unit in units:
            if not unit.counted or unit.kind is not clause.kind:
                continue
            turns = [unit.anchor, unit.anchor + length]
            if clause.tally is Tally.DAYS:
                turns += _midnights(unit, unit.anchor + length, standing.zone)
            found |= {turn + ago * length for turn in turns for ago in range(standing.windows)}
    return sorted(found)


def _midnights(unit: Unit, gone: datetime, zone: tzinfo | None) -> Iterable[datetime]:
    last = gone if unit.end is None else min(unit.end, gone)
    day = _local_date(unit.anchor, zone) + timedelta(days=1)
    while (midnight := datetime.combine(day, time(), zone or UTC)) <= last:
        yield midnight.astimezone(UTC)
        day += timedelta(days=1)


def _since(
    standing: Standing, units: Sequence[Unit], now: datetime, state: State
) -> datetime | None:
    """The instant at which the visible units first met the present state, without a break."""
    if state is State.BELOW:
        return None
    since: datetime | None = None
    for instant in _instants(standing, units):
        if instant > now:
            break
        there = _state(standing, _recounted(standing, units, instant))
        if there is not state:
            since = None
        elif since is None:
            since = instant
    return since


def _next_change(standing: Standing, units: Sequence[Unit], now: datetime) -> datetime | None:
    """The first instant after `now` at which a clause counts otherwise."""
    here = _recounted(standing, units, now)
    coming = (i for i in _instants(standing, units) if i > now)
    return next((i for i in coming if _recounted(standing, units, i) != here), None)
