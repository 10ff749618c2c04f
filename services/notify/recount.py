"""What one recipient may see of a patient's standing (CS-40).

"Four visits" reveals each visit. So if nothing is hidden from a recipient, the flag's own
values are shown; if anything is, the counts are made again from the visible units alone, by
simple counting, and no hold applies: below the threshold there is then nothing to see.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from services.notify.consent import Code, Item, labelled

HINTS: Final = frozenset({"ADMITTED", "DURING_STAY", "LINKED"})
"""Codes that point from one unit to another, which may be hidden (CS-40)."""


class State(StrEnum):
    BELOW = "below"
    WATCH = "watch"
    FLAGGED = "flagged"


class Kind(StrEnum):
    ED = "ed"
    HOSPITAL = "hospital"


@dataclass(frozen=True, slots=True)
class Visit:
    """One encounter of a unit. None = not assessed or unknown."""

    key: UUID
    site: str
    start: datetime
    end: datetime | None = None
    labels: frozenset[Code] | None = field(default=None, repr=False)
    codes: frozenset[Code] | None = field(default=None, repr=False)

    @property
    def item(self) -> str:
        return f"Encounter/{self.key}"


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


@dataclass(frozen=True, slots=True)
class Clause:
    kind: Kind
    at_least: int
    days: int
    leads_to: State
    count: int
    met: bool


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

    @property
    def window(self) -> timedelta:
        """The longest of the clauses' windows."""
        return timedelta(days=max((c.days for c in self.clauses), default=365))


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

    def count(self, kind: Kind) -> int:
        """As the clause of that kind counts it; without one, the counted units."""
        for clause in self.clauses:
            if clause.kind is kind:
                return clause.count
        return sum(1 for unit in self.units if unit.counted and unit.kind is kind)

    @property
    def met(self) -> Clause | None:
        """The clause that is met, the flagging one first; None while only the hold stands."""
        met = [c for c in self.clauses if c.met and c.leads_to is self.state]
        return met[0] if met else None


def is_whole(standing: Standing, released: frozenset[str]) -> bool:
    return all(unit.visible_to(released) for unit in standing.units)


def see(standing: Standing, released: frozenset[str], now: datetime) -> View:
    """What a recipient of `released` sees at `now`."""
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
            units=standing.units,
            known_sites=standing.known_sites,
            connected_sites=standing.connected_sites,
            complete=standing.complete,
            whole=True,
            pathway=standing.pathway,
            hold_until=standing.hold_until,
            outside_window=standing.outside_window,
        )
    units = tuple(_without_hints(u) for u in standing.units if u.visible_to(released))
    clauses = _recounted(standing.clauses, units, now)
    state = _state(clauses, every=standing.every)
    return View(
        state=state,
        held=False,
        since=_since(standing, units, now, state),
        next_change=_next_change(standing.clauses, units, now),
        after=now - standing.window,
        until=now,
        policy=standing.policy,
        clauses=clauses,
        units=tuple(u for u in units if now - standing.window < u.anchor <= now),
        known_sites=standing.known_sites,
        connected_sites=standing.connected_sites,
        complete=standing.complete,
        whole=False,
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


def items(standing: Standing) -> tuple[Item, ...]:
    """What a card of this standing tells, at level L1: each encounter (CS-44).

    One that is not finished ends at `as_of` (CS-41). A standing without encounters still tells
    that there is a patient: that is one item of which nothing is known.
    """
    found: dict[str, Item] = {}
    for unit in standing.units:
        for visit in unit.visits:
            found[visit.item] = visit_item(visit, standing.as_of)
    return tuple(found.values()) or (Item(id="Encounter/none", kind="Encounter"),)


def visit_item(visit: Visit, at: datetime) -> Item:
    return Item(
        id=visit.item,
        kind="Encounter",
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


def _count(clause: Clause, units: Iterable[Unit], at: datetime) -> int:
    after = at - timedelta(days=clause.days)
    return sum(1 for u in units if u.counted and u.kind is clause.kind and after < u.anchor <= at)


def _recounted(
    clauses: Sequence[Clause], units: Sequence[Unit], at: datetime
) -> tuple[Clause, ...]:
    counts = [(clause, _count(clause, units, at)) for clause in clauses]
    return tuple(replace(c, count=n, met=n >= c.at_least) for c, n in counts)


def _state(clauses: Sequence[Clause], *, every: bool) -> State:
    flagging = [c.met for c in clauses if c.leads_to is State.FLAGGED]
    if flagging and (all(flagging) if every else any(flagging)):
        return State.FLAGGED
    if any(c.met for c in clauses if c.leads_to is State.WATCH):
        return State.WATCH
    return State.BELOW


def _instants(clauses: Sequence[Clause], units: Sequence[Unit]) -> list[datetime]:
    """When a count changes: a unit begins to count, or has left the window (CR-40)."""
    begun = {u.anchor for u in units if u.counted}
    left = {
        u.anchor + timedelta(days=c.days)
        for c in clauses
        for u in units
        if u.counted and u.kind is c.kind
    }
    return sorted(begun | left)


def _since(
    standing: Standing, units: Sequence[Unit], now: datetime, state: State
) -> datetime | None:
    """The instant at which the visible units first met the present state, without a break."""
    if state is State.BELOW:
        return None
    since: datetime | None = None
    for instant in _instants(standing.clauses, units):
        if instant > now:
            break
        there = _state(_recounted(standing.clauses, units, instant), every=standing.every)
        if there is not state:
            since = None
        elif since is None:
            since = instant
    return since


def _next_change(
    clauses: Sequence[Clause], units: Sequence[Unit], now: datetime
) -> datetime | None:
    return next((i for i in _instants(clauses, units) if i > now), None)
