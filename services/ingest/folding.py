"""All messages of an encounter → the one fact they tell together (CT-10 to CT-16, HA-82 to 84).

Messages come late, twice and out of order. The fact is a function of the set of them: sorted by
when they say that it happened, then walked. Nothing earlier goes in but the messages.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

V = TypeVar("V")


class Status(StrEnum):
    """FHIR R4 EncounterStatus, in the order of the lattice (CT-11); the last two are void."""

    UNKNOWN = "unknown"
    PLANNED = "planned"
    ARRIVED = "arrived"
    TRIAGED = "triaged"
    IN_PROGRESS = "in-progress"
    ONLEAVE = "onleave"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"

    @property
    def is_void(self) -> bool:
        return self in _VOID


_VOID = frozenset({Status.CANCELLED, Status.ENTERED_IN_ERROR})
RANK = {status: rank for rank, status in enumerate(Status)}
"""The lattice as numbers. A void status wins a tie, since it yields only to a newer one (HA-83)."""


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """A date or instant as the range of instants it may mean (HA-05)."""

    earliest: datetime
    latest: datetime
    precision: str = "instant"


@dataclass(frozen=True, slots=True)
class ClassSpell:
    """An entry of a message's own class history; `None` bounds are not known."""

    code: str
    start: Moment | None = None
    end: Moment | None = None


@dataclass(frozen=True, slots=True)
class Code:
    system: str
    code: str


@dataclass(frozen=True, slots=True)
class Message:
    """What one message says of an encounter. None = it does not say (CT-13)."""

    event_time: datetime
    """When it says that it happened (HA-82)."""
    status: Status
    digest: str
    """Of its content; the last tie-breaker (CT-10)."""
    source_version: int = 0
    moves: bool = False
    """A transfer: no effect on status or end (HA-45)."""
    keeps_status: bool = False
    """An update that never changes a known status (A08)."""
    code: str | None = None
    """Normalised class."""
    class_history: tuple[ClassSpell, ...] = ()
    triaged: bool = False
    start: Moment | None = None
    start_is_assumed: bool = False
    end: Moment | None = None
    disposition: str | None = None
    service: str | None = None
    part_of: UUID | None = None
    from_emergency: bool | None = None
    transfer_in: bool | None = None
    transfer_out: bool | None = None
    planned: bool | None = None
    codes: tuple[Code, ...] | None = None
    labels: tuple[Code, ...] | None = None
    time_is_ambiguous: bool = False
    patient: UUID | None = None
    backfill: bool = False


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of one encounter; the content of an `encounter.recorded` (CT-15)."""

    status: Status
    event_time: datetime
    """Of the newest message."""
    patient: UUID | None = None
    classes: tuple[tuple[str, datetime], ...] = ()
    """(class, since), in time order, never two equal neighbours (CT-14)."""
    triaged: bool = False
    start: Moment | None = None
    start_is_assumed: bool = False
    end: Moment | None = None
    disposition: str | None = None
    service: str | None = None
    part_of: UUID | None = None
    from_emergency: bool = False
    transfer_in: bool = False
    transfer_out: bool = False
    planned: bool = False
    codes: tuple[Code, ...] | None = None
    labels: tuple[Code, ...] | None = None
    time_is_ambiguous: bool = False
    backfill: bool = False


def fold(messages: Iterable[Message]) -> Fact:
    """The fact that `messages`, at least one, tell. Their order and repetition do not matter.

    `backfill` is set if no message came live.
    """
    told = in_order(messages)
    if len(told) == 1 and not told[0].class_history:
        return _of_one(told[0])
    newest, back = told[-1], told[::-1]
    status, end = _status_and_end(told)
    start, assumed = _start(told)
    return Fact(
        status=status,
        event_time=newest.event_time,
        patient=_last(m.patient for m in back),
        classes=_classes(told, start),
        triaged=any(m.triaged or m.status is Status.TRIAGED for m in told),
        start=start,
        start_is_assumed=assumed,
        end=end,
        disposition=_last(m.disposition for m in back),
        service=_last(m.service for m in back),
        part_of=_last(m.part_of for m in back),
        from_emergency=bool(_last(m.from_emergency for m in back)),
        transfer_in=bool(_last(m.transfer_in for m in back)),
        transfer_out=bool(_last(m.transfer_out for m in back)),
        planned=bool(_last(m.planned for m in back)),
        codes=_last(m.codes for m in back),
        labels=_last(m.labels for m in back),
        time_is_ambiguous=any(m.time_is_ambiguous for m in told),
        backfill=all(m.backfill for m in told),
    )


def _of_one(message: Message) -> Fact:
    """The fact of an encounter that has one message: the common case, and the cheap one."""
    status, end = _status_and_end((message,))
    since = message.event_time
    if message.start is not None:
        since = message.start.earliest
    return Fact(
        status=status,
        event_time=message.event_time,
        patient=message.patient,
        classes=() if message.code is None else ((message.code, since),),
        triaged=message.triaged or message.status is Status.TRIAGED,
        start=message.start,
        start_is_assumed=message.start_is_assumed and message.start is not None,
        end=end,
        disposition=message.disposition,
        service=message.service,
        part_of=message.part_of,
        from_emergency=bool(message.from_emergency),
        transfer_in=bool(message.transfer_in),
        transfer_out=bool(message.transfer_out),
        planned=bool(message.planned),
        codes=message.codes,
        labels=message.labels,
        time_is_ambiguous=message.time_is_ambiguous,
        backfill=message.backfill,
    )


def in_order(messages: Iterable[Message]) -> Sequence[Message]:
    """By event time; ties: higher status, then source version, then digest (CT-10)."""
    return sorted(messages, key=_order)


def _order(message: Message) -> tuple[datetime, int, int, str]:
    return (message.event_time, RANK[message.status], message.source_version, message.digest)


def _last(values: Iterable[V | None]) -> V | None:
    """The newest message that has a value speaks; absence does not erase (CT-13)."""
    return next((value for value in values if value is not None), None)


def _status_and_end(told: Sequence[Message]) -> tuple[Status, Moment | None]:
    """Walk the lattice (CT-11, CT-12, HA-45)."""
    status = alive = Status.UNKNOWN
    end: Moment | None = None
    for message in told:
        said = message.status
        if message.moves:
            if not status.is_void and RANK[status] < RANK[Status.IN_PROGRESS]:
                status = alive = min(said, Status.IN_PROGRESS, key=RANK.__getitem__)
            continue
        if said is Status.UNKNOWN or (message.keeps_status and status is not Status.UNKNOWN):
            said = status
        if RANK[said] < RANK[alive]:
            end = None  # reopened: it has not ended after all
        if said is not Status.PLANNED:  # the end of a plan is no end
            end = message.end or end
        status = said
        alive = alive if said.is_void else said
    return status, end


def _start(told: Sequence[Message]) -> tuple[Moment | None, bool]:
    """The newest start that a message gives; an assumed one only while there is no other."""
    for assumed in (False, True):
        for message in reversed(told):
            if message.start is not None and message.start_is_assumed is assumed:
                return message.start, assumed
    return None, False


def _classes(told: Sequence[Message], start: Moment | None) -> tuple[tuple[str, datetime], ...]:
    """Classes of all messages and of their histories, in time order, never shortened (CT-14).

    A change starts where a history says so, else at the event time of the first message that
    shows it. The first class holds from the encounter's own start.
    """
    points: dict[tuple[str, datetime], None] = {}
    shown: str | None = None
    for message in told:
        known_end: Moment | None = None
        current_is_dated = False
        for spell in message.class_history:
            if spell.start is not None:
                points[spell.code, spell.start.earliest] = None
                current_is_dated = current_is_dated or spell.code == message.code
            if spell.end is not None and (known_end is None or known_end < spell.end):
                known_end = spell.end
        if message.code is None:
            continue
        if message.code != shown and not current_is_dated:
            if known_end is not None:
                since = known_end.earliest
            else:  # announced before it began, it holds from the beginning
                since = max(message.event_time, start.earliest if start else message.event_time)
            points[message.code, since] = None
        shown = message.code
    in_time = sorted(points, key=lambda point: point[1])
    if start is not None and in_time:
        first, since = in_time[0]
        in_time[0] = (first, min(start.earliest, since))
    return tuple(
        point
        for index, point in enumerate(in_time)
        if index == 0 or point[0] != in_time[index - 1][0]
    )


REUSED_AFTER = timedelta(days=30)
"""A closed encounter's number that starts again later than this is another encounter's (HA-70b)."""


def is_reused(fact: Fact, message: Message, same_person: bool) -> bool:
    """Whether `message` looks like another encounter under a recycled key (HA-70b).

    `same_person`: its patient is that of `fact`, links resolved.
    """
    if fact.patient is not None and message.patient is not None and not same_person:
        return True
    closed = fact.end if fact.status is Status.FINISHED else None
    if closed is None or message.start is None:
        return False
    return message.start.earliest > closed.latest + REUSED_AFTER
