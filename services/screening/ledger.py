"""What is known of patients: encounters, persons, and which keys are one person.

Nothing here is ever edited: a newer version, or an undone link, supersedes and is kept
beside what it superseded, so that any earlier knowledge can be looked at again (CT-02).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class Status(StrEnum):
    """FHIR R4 EncounterStatus."""

    UNKNOWN = "unknown"
    PLANNED = "planned"
    ARRIVED = "arrived"
    TRIAGED = "triaged"
    IN_PROGRESS = "in-progress"
    ONLEAVE = "onleave"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"


class Disposition(StrEnum):
    HOME = "home"
    ADMITTED = "admitted"
    TRANSFERRED = "transferred"
    LEFT_WITHOUT_BEING_SEEN = "lwbs"
    LEFT_AGAINST_ADVICE = "left-against-advice"
    REDIRECTED = "redirected"
    DIED = "died"
    DEAD_ON_ARRIVAL = "dead-on-arrival"
    NONACUTE_CARE = "nonacute-care"
    OTHER = "other"


class Service(StrEnum):
    """What kind of care, where counting needs it (CR-16, CR-20 to CR-27)."""

    OBSTETRICS = "obstetrics"
    NEWBORN = "newborn"
    DIALYSIS = "dialysis"
    SERIES = "series"
    PALLIATIVE = "palliative"
    MENTAL_HEALTH = "mental-health"
    DAY_SURGERY = "day-surgery"
    ORGAN_DONATION = "organ-donation"
    OTHER = "other"


VOID = frozenset({Status.CANCELLED, Status.ENTERED_IN_ERROR})


@dataclass(frozen=True, slots=True)
class Moment:
    """The range of instants that a date or time may mean. Equal ends: an exact time (CT-24)."""

    earliest: datetime
    latest: datetime

    @property
    def exact(self) -> bool:
        return self.earliest == self.latest


@dataclass(frozen=True, slots=True)
class Coding:
    system: str
    code: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One version of what is known of one encounter."""

    encounter: UUID
    version: int
    patient: UUID
    """The key it was sent with; links are resolved on top (CT-01)."""
    site: str
    status: Status
    classes: tuple[tuple[str, datetime], ...]
    """Class history: normalised class, and the instant from which it held (CT-14)."""
    start: Moment | None
    end: Moment | None
    event_time: datetime
    recorded: datetime
    first_recorded: datetime
    """When the first version of this encounter was recorded."""
    triaged: bool = False
    disposition: Disposition | None = None
    service: Service | None = None
    part_of: UUID | None = None
    from_emergency: bool = False
    transfer_in: bool = False
    transfer_out: bool = False
    planned: bool = False
    codes: tuple[Coding, ...] | None = field(default=None, repr=False)
    labels: tuple[Coding, ...] | None = field(default=None, repr=False)
    time_is_ambiguous: bool = False
    start_is_assumed: bool = False
    backfill: bool = False
    excluded: bool = False
    """A person took it out of the count, whatever the site sends (CT-17)."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One version of the statement that an encounter is not to be counted, or is after all."""

    encounter: UUID
    version: int
    excluded: bool
    recorded: datetime


@dataclass(frozen=True, slots=True)
class Person:
    """One version of what is known of who is behind a key."""

    key: UUID
    version: int
    recorded: datetime
    birth_date: date | None = field(default=None, repr=False)
    death: datetime | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """One version of the statement that `retired` is `surviving`, or is not after all."""

    retired: UUID
    surviving: UUID
    version: int
    active: bool
    recorded: datetime


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that counting looks at: one person, over all their keys, as known at one instant."""

    facts: tuple[Fact, ...] = ()
    birth_date: date | None = field(default=None, repr=False)
    death: datetime | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class History:
    """Every version known of some keys, superseded ones included."""

    facts: list[Fact]
    persons: list[Person]
    links: list[Link]
    corrections: list[Correction] = field(default_factory=list)

    def at(self, known_at: datetime) -> "History":
        """What a fresh system would know that was fed only what was recorded by then (CT-70)."""
        corrections = _newest(
            ((c.encounter, c.version), c) for c in self.corrections if c.recorded <= known_at
        )
        return History(
            facts=corrected(current(f for f in self.facts if f.recorded <= known_at), corrections),
            persons=_newest(
                ((p.key, p.version), p) for p in self.persons if p.recorded <= known_at
            ),
            links=_newest(
                ((k.retired, k.version), k) for k in self.links if k.recorded <= known_at
            ),
            corrections=corrections,
        )

    def until(self, known_at: datetime) -> "History":
        """The versions that were recorded by then, superseded ones included."""
        return History(
            facts=[f for f in self.facts if f.recorded <= known_at],
            persons=[p for p in self.persons if p.recorded <= known_at],
            links=[k for k in self.links if k.recorded <= known_at],
            corrections=[c for c in self.corrections if c.recorded <= known_at],
        )

    def instants(self) -> list[datetime]:
        """When anything became known, oldest first."""
        return sorted(
            {f.recorded for f in self.facts}
            | {p.recorded for p in self.persons}
            | {k.recorded for k in self.links}
            | {c.recorded for c in self.corrections}
        )


def current(versions: Iterable[Fact]) -> list[Fact]:
    """The newest version of each encounter (CT-15), with the time it was first heard of."""
    versions = list(versions)
    first: dict[UUID, datetime] = {}
    for fact in versions:
        known = first.get(fact.encounter)
        if known is None or fact.recorded < known:
            first[fact.encounter] = fact.recorded
    newest = _newest(((f.encounter, f.version), f) for f in versions)
    return [
        f
        if f.first_recorded == first[f.encounter]
        else replace(f, first_recorded=first[f.encounter])
        for f in newest
    ]


def corrected(facts: Iterable[Fact], corrections: Iterable[Correction]) -> list[Fact]:
    """`facts` without or with what persons say of them; `corrections` are the newest (CT-17)."""
    excluded = {c.encounter for c in corrections if c.excluded}
    return [
        f
        if f.excluded is (f.encounter in excluded)
        else replace(f, excluded=f.encounter in excluded)
        for f in facts
    ]


def _newest(versions: Iterable[tuple[tuple[UUID, int], T]]) -> list[T]:
    """Of each thing its highest version; equal versions are the same statement twice."""
    best: dict[UUID, tuple[int, T]] = {}
    for (thing, version), value in versions:
        known = best.get(thing)
        if known is None or version > known[0]:
            best[thing] = (version, value)
    return [value for _, value in best.values()]


def survivor(key: UUID, into: Mapping[UUID, UUID]) -> UUID:
    """The key that speaks for `key`: the end of its chain of links (CT-01).

    Ingest holds merges that would close a circle (HA-97); should one come all the same,
    its smallest key speaks, so that nobody vanishes.
    """
    seen = [key]
    while (key := into.get(key, key)) != seen[-1]:
        if key in seen:
            return min(seen[seen.index(key) :])
        seen.append(key)
    return key


def in_force(links: Iterable[Link]) -> dict[UUID, UUID]:
    """Retired key → key it was merged into, by the newest version of each link."""
    newest = _newest(((k.retired, k.version), k) for k in links)
    return {k.retired: k.surviving for k in newest if k.active}


def gather(
    keys: Collection[UUID],
    into: Mapping[UUID, UUID],
    facts: Iterable[Fact],
    persons: Iterable[Person],
) -> dict[UUID, Ledger]:
    """The ledger of each surviving key among `keys`, with all that is linked to it.

    A fact whose person fact has not arrived is left out until it does (section 1). Birth date:
    the survivor's own, else the earliest among the retired; death: the earliest stated.
    """
    known = {p.key: p for p in persons}
    folded: dict[UUID, list[UUID]] = {}
    for key in known:
        folded.setdefault(survivor(key, into), []).append(key)
    held: dict[UUID, list[Fact]] = {}
    for fact in facts:
        if fact.patient in known:
            held.setdefault(survivor(fact.patient, into), []).append(fact)
    ledgers: dict[UUID, Ledger] = {}
    for key in keys:
        if survivor(key, into) != key or key not in folded:
            continue
        people = [known[k] for k in folded[key]]
        own = known[key].birth_date if key in known else None
        births = [p.birth_date for p in people if p.birth_date is not None]
        deaths = [p.death for p in people if p.death is not None]
        ledgers[key] = Ledger(
            facts=tuple(sorted(held.get(key, ()), key=lambda f: f.encounter)),
            birth_date=own or min(births, default=None),
            death=min(deaths, default=None),
        )
    return ledgers
