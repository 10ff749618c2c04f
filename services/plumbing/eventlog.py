"""The event log: `append` writes, a `Reader` reads, and what a reader did and how far it read
are one transaction.

Two carriers with one set of promises (tests/promises/test_log.py): the outbox read in place by
PostgreSQL (`PostgresCarrier`, here), and Apache Kafka (kafka.py). A carrier only fetches
records and knows places; everything a promise hangs on is in `Reader`.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import asyncpg
import structlog
from pydantic import ValidationError
from sqlalchemy import ARRAY, DateTime, Text, Uuid, bindparam, text

from schemas.envelope import Envelope, Event
from services.plumbing import telemetry
from services.plumbing.clock import Clock
from services.plumbing.db import (
    APPENDED,
    CHANNEL,
    Database,
    Tx,
    is_passing,
    libpq_url,
    sqlstate,
)

log = structlog.get_logger()

BATCH = 1000
"""Records a batch has at most."""
TRIES = 3
POLL = 1.0
"""Real seconds after which a reader looks again although nobody woke it."""
SOON = 0.02
"""The same, after it was woken; then longer and longer."""

E = TypeVar("E", bound=Event)
T = TypeVar("T", bound="Turn")
T_contra = TypeVar("T_contra", bound="Turn", contravariant=True)

_APPEND = text(
    "insert into outbox (id, type, subject, time, traceparent, data)"
    " select * from unnest(:ids, :types, :subjects, :times, :traces, :data)"
).bindparams(
    bindparam("ids", type_=ARRAY(Uuid)),
    bindparam("types", type_=ARRAY(Text)),
    bindparam("subjects", type_=ARRAY(Uuid)),
    bindparam("times", type_=ARRAY(DateTime(timezone=True))),
    bindparam("traces", type_=ARRAY(Text)),
    bindparam("data", type_=ARRAY(Text)),
)


async def append(tx: Tx, events: Sequence[Event], now: datetime) -> None:
    """State `events`, if and when `tx` commits: into the outbox of the service that owns `tx`."""
    if not events:
        return
    trace = telemetry.traceparent()
    await tx.execute(
        _APPEND,
        {
            "ids": [telemetry.new_id() for _ in events],
            "types": [event.type for event in events],
            "subjects": [event.subject for event in events],
            "times": [now] * len(events),
            "traces": [trace] * len(events),
            "data": [event.text for event in events],
        },
    )
    tx.info[APPENDED] = True


@dataclass(frozen=True)
class Turn:
    """One batch's transaction and business instant. A service adds what its handlers need."""

    tx: Tx
    now: datetime


@dataclass(frozen=True, slots=True)
class Read(Generic[T_contra]):
    """That events of one type go to one handler. Made by `on`, which types the pair."""

    event: type[Event]
    do: Callable[[Sequence[Any], T_contra], Awaitable[None]]


def on(event: type[E], do: Callable[[Sequence[E], T], Awaitable[None]]) -> Read[T]:
    """Hand events of type `event` to `do`, in batches, oldest first.

    `do` runs in the turn's transaction and neither commits nor catches. It is called again with
    the same events after a crash or a failure, so it ignores what it knows already.
    """
    return Read(event, do)


@dataclass(frozen=True, slots=True)
class Place:
    """A point in one partition of a source. `xid` is empty on Kafka; positions are offsets."""

    xid: str
    position: int


BEGINNING = Place("", -1)


@dataclass(frozen=True, slots=True)
class Record:
    """One position of the log. `envelope` is None where the event is of no interest here."""

    source: str
    partition: int
    place: Place
    envelope: Envelope | None


class LostPlaceError(Exception):
    """Another reader moved this place meanwhile; what was done in this turn is undone."""


class LogError(Exception):
    """The log cannot go on by itself; the message says what an operator must do."""


class Carrier(Protocol):
    """Fetches what follows the places that `Reader` keeps."""

    async def start(self, reader: "Reader[Any]") -> None: ...

    async def fetch(self) -> Sequence[Record]:
        """What comes next, at most BATCH records; waits POLL seconds at most for the first."""

    async def rewind(self) -> None:
        """Go back to the stored places: a batch was not taken, or a place was lost."""

    async def taken(self, records: Sequence[Record]) -> None:
        """`records` are committed."""

    async def close(self) -> None: ...


_START = text(
    "insert into place (reader, source, partition, xid, position, moved)"
    " values (:reader, :source, :partition, :xid, :position, now()) on conflict do nothing"
)
_PLACE = text(
    "select xid, position from place"
    " where reader = :reader and source = :source and partition = :partition"
)
_COUNT_PLACES = text("select count(*) from place where reader = :reader")
_FORGET = text("delete from place where reader = :reader returning source")
_MOVE = text(
    "update place set xid = :xid, position = :position, moved = now()"
    " where reader = :reader and source = :source and partition = :partition"
    " and xid = :from_xid and position = :from_position"
)
_BURY = text(
    "insert into dead_letter (id, reader, type, source, subject, time, traceparent, data,"
    " reason, attempts, first_failed, last_failed)"
    " values (:id, :reader, :type, :source, :subject, :time, :traceparent, :data,"
    " :reason, :attempts, :now, :now)"
    " on conflict (reader, id) do update set reason = excluded.reason, state = 'waiting',"
    " attempts = dead_letter.attempts + excluded.attempts, last_failed = excluded.last_failed"
)
_TO_REPLAY = text(
    "select id, type, source, subject, time, traceparent, data from dead_letter"
    " where reader = :reader and state = 'replay' order by time, id limit :most"
)
_REPLAYED = text(
    "update dead_letter set state = 'replayed', settled = :now where reader = :reader and id = :id"
)
_ASK_REPLAY = text(
    "update dead_letter set state = 'replay', settled_by = :by"
    " where state = 'waiting' and (:all or id = any(:ids)) returning id"
).bindparams(bindparam("ids", type_=ARRAY(Uuid)))
_DISCARD = text(
    "update dead_letter set state = 'discarded', settled = :now, settled_by = :by"
    " where state = 'waiting' and id = any(:ids) returning id"
).bindparams(bindparam("ids", type_=ARRAY(Uuid)))
_WAITING = text(
    "select id, reader, type, subject, reason, attempts, first_failed, last_failed, state"
    " from dead_letter where state in ('waiting', 'replay') order by first_failed, id"
)


class Reader(Generic[T]):
    """Reads the log for one service and hands batches to its handlers.

    A batch is one transaction: places, effects, announcements. A handler that raises has its
    batch split until the event that cannot be taken stands alone; that one is tried TRIES times
    and then goes to the dead letters, while all others go on. Trouble that passes (a database
    that restarts, a deadlock) is waited out and buries nothing.
    """

    def __init__(
        self,
        db: Database,
        reads: Sequence[Read[T]],
        turn: Callable[[Tx, datetime], T],
        carrier: Carrier,
        clock: Clock,
    ) -> None:
        self.db = db
        self.name = db.service
        self.reads = reads
        self.events = {read.event.type: read.event for read in reads}
        self.sources = sorted({read.event.source for read in reads})
        self.places: dict[tuple[str, int], Place] = {}
        self._turn = turn
        self._carrier = carrier
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop` is set; what is in hand is finished. LogError: cannot go on."""
        wait = 0.1
        started = behind = False
        try:
            while not stop.is_set():
                try:
                    if not started:
                        await self._carrier.start(self)
                        started = True
                    if behind:
                        await self._carrier.rewind()
                        behind = False
                    await self.replay_asked()
                    records = await self._carrier.fetch()
                    if records:
                        await self.take(records)
                        telemetry.gauge("log_lag_seconds", self.name).set(self._lag(records))
                    else:
                        await self._mind_places()
                    wait = 0.1
                except LostPlaceError:
                    log.info("place_lost", reader=self.name)
                    behind = True
                except Exception as error:
                    if not is_passing(error):
                        raise
                    behind = started
                    wait = await self._pause(stop, wait, error)
        finally:
            await self._carrier.close()

    async def _pause(self, stop: asyncio.Event, wait: float, error: BaseException) -> float:
        log.warning(
            "log_waits", reader=self.name, error=type(error).__name__, sqlstate=sqlstate(error)
        )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait)
        return min(wait * 2, 10.0)

    def _lag(self, records: Sequence[Record]) -> float:
        newest = records[-1].envelope
        if newest is None:
            return 0.0
        return max((self._clock.now() - newest.time).total_seconds(), 0.0)

    async def begin_at(self, source: str, partition: int, first: Place | None = None) -> Place:
        """The stored place of a partition. If there is none, the one after which it begins
        (`first`) is stored, so that what is cut off from now on is missed, not skipped.
        """
        key = {"reader": self.name, "source": source, "partition": partition}
        first = first or BEGINNING
        async with self.db.work() as tx:
            await tx.execute(_START, key | {"xid": first.xid, "position": first.position})
            row = (await tx.execute(_PLACE, key)).one()
        self.places[source, partition] = Place(row.xid, row.position)
        return self.places[source, partition]

    async def _mind_places(self) -> None:
        """LostPlaceError: places were forgotten (`reread`), and no event came to show it."""
        async with self.db.work() as tx:
            kept = await tx.scalar(_COUNT_PLACES, {"reader": self.name})
        if kept < len(self.places):
            self.places.clear()
            raise LostPlaceError

    async def take(self, records: Sequence[Record]) -> None:
        """Effects of `records` and their places, committed; or split, or buried."""
        try:
            await self._deliver(records)
        except LostPlaceError:
            raise
        except Exception as error:
            if is_passing(error):
                raise
            if len(records) > 1:
                half = len(records) // 2
                await self.take(records[:half])
                await self.take(records[half:])
                return
            await self._last_tries(records[0], error)

    async def _last_tries(self, record: Record, error: Exception) -> None:
        for pause in (0.05, 0.25)[: TRIES - 1]:
            await asyncio.sleep(pause)
            try:
                await self._deliver([record])
            except LostPlaceError:
                raise
            except Exception as again:
                if is_passing(again):
                    raise
                error = again
            else:
                return
        await self._deliver([record], burial=error)

    async def _deliver(self, records: Sequence[Record], burial: Exception | None = None) -> None:
        moves: dict[tuple[str, int], Place] = {}
        for record in records:
            moves[record.source, record.partition] = record.place
        async with self.db.work() as tx:
            await self._move(tx, moves)
            envelopes = [record.envelope for record in records if record.envelope is not None]
            if burial is None:
                await self._handle(tx, envelopes)
            else:
                for envelope in envelopes:
                    await self._bury(tx, envelope, burial, TRIES)
        self.places.update(moves)
        await self._carrier.taken(records)

    async def _move(self, tx: Tx, moves: dict[tuple[str, int], Place]) -> None:
        """Compare and set, first of all: a second reader waits here and then finds it lost."""
        for (source, partition), to in sorted(moves.items()):
            at = self.places[source, partition]
            moved = await tx.execute(
                _MOVE,
                {
                    "reader": self.name,
                    "source": source,
                    "partition": partition,
                    "xid": to.xid,
                    "position": to.position,
                    "from_xid": at.xid,
                    "from_position": at.position,
                },
            )
            if moved.rowcount != 1:
                raise LostPlaceError

    async def _handle(self, tx: Tx, envelopes: Sequence[Envelope]) -> None:
        turn = self._turn(tx, self._clock.now())
        with telemetry.following(envelopes[0].traceparent if envelopes else None, self.name):
            for read in self.reads:
                batch = [
                    _decode(read.event, envelope)
                    for envelope in envelopes
                    if envelope.type == read.event.type
                ]
                if batch:
                    await read.do(batch, turn)

    async def _bury(self, tx: Tx, envelope: Envelope, error: Exception, attempts: int) -> None:
        reason = reason_of(error)
        log.error(
            "dead_letter", reader=self.name, id=str(envelope.id), type=envelope.type, why=reason
        )
        telemetry.counter("log_dead_letters_total", self.name).inc()
        await tx.execute(
            _BURY,
            {
                **_columns(envelope),
                "reader": self.name,
                "reason": reason,
                "attempts": attempts,
                "now": self._clock.now(),
            },
        )

    async def replay_asked(self) -> int:
        """Take in the dead letters somebody asked to replay; how many were asked for."""
        async with self.db.work() as tx:
            rows = (await tx.execute(_TO_REPLAY, {"reader": self.name, "most": BATCH})).all()
        for row in rows:
            envelope = Envelope(**{**row._mapping, "data": row.data.encode()})  # noqa: SLF001
            key = {"reader": self.name, "id": row.id, "now": self._clock.now()}
            try:
                async with self.db.work() as tx:
                    await self._handle(tx, [envelope])
                    await tx.execute(_REPLAYED, key)
            except Exception as error:
                if is_passing(error):
                    raise
                async with self.db.work() as tx:
                    await self._bury(tx, envelope, error, 1)
        return len(rows)


def _decode(event: type[E], envelope: Envelope) -> E:
    return event.read(envelope.data)


def _columns(envelope: Envelope) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "type": envelope.type,
        "source": envelope.source,
        "subject": envelope.subject,
        "time": envelope.time,
        "traceparent": envelope.traceparent,
        "data": envelope.data.decode(),
    }


def reason_of(error: BaseException) -> str:
    """What may be written down of an error: its kind and place, never a value (ST-03, ST-05)."""
    if isinstance(error, ValidationError):
        faults = error.errors(include_input=False, include_context=False, include_url=False)
        return "not readable: " + "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'][:4])} {fault['type']}"
            for fault in faults[:5]
        )
    state = sqlstate(error)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame is not None else "?"
    return f"{type(error).__name__}{f' {state}' if state else ''} at {where}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that waits for a person."""

    id: UUID
    reader: str
    type: str
    subject: UUID | None
    reason: str
    attempts: int
    first_failed: datetime
    last_failed: datetime
    state: str


async def dead_letters(db: Database) -> list[DeadLetter]:
    """What waits, oldest first."""
    async with db.work() as tx:
        return [DeadLetter(**row._mapping) for row in await tx.execute(_WAITING)]  # noqa: SLF001


async def ask_replay(db: Database, ids: Iterable[UUID] | None, by: str) -> int:
    """Mark dead letters (None: all that wait) for replay; the running reader takes them in."""
    async with db.work() as tx:
        params = {"all": ids is None, "ids": list(ids or []), "by": by}
        return len((await tx.execute(_ASK_REPLAY, params)).all())


async def reread(db: Database) -> list[str]:
    """Forget how far this service has read, so that it reads again all that the log still holds.

    A running reader goes back at once. The sources whose place was forgotten.
    """
    async with db.work() as tx:
        forgotten = await tx.execute(_FORGET, {"reader": db.service})
        return sorted({row.source for row in forgotten})


async def discard(db: Database, ids: Iterable[UUID], by: str, now: datetime) -> int:
    """Set dead letters aside for good; they stay on record."""
    async with db.work() as tx:
        return len((await tx.execute(_DISCARD, {"ids": list(ids), "by": by, "now": now})).all())


class PostgresCarrier:
    """Reads the producers' outboxes in place, woken by NOTIFY."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._wake = asyncio.Event()
        self._ear: asyncpg.Connection[Any] | None = None
        self._reader: Reader[Any] | None = None
        self._fetch = {}  # type: dict[str, Any]
        self._turns = 0
        self._wait = POLL
        """Real seconds. Short after a bell: what rang may still lie behind an open transaction
        that states nothing itself, and so will not ring when it ends.
        """

    async def start(self, reader: Reader[Any]) -> None:
        self._reader = reader
        for source in reader.sources:
            self._fetch[source] = text(
                "select o.xid::text as xid, o.position,"  # noqa: S608 - names of our own schemas
                " o.id, o.type, o.subject, o.time, o.traceparent,"
                " case when o.type = any(:types) then o.data end as data"
                f" from {source}.outbox o"
                " where (o.xid, o.position) > (cast(cast(:xid as text) as xid8), :position)"
                "   and o.xid < pg_snapshot_xmin(pg_current_snapshot())"
                " order by o.xid, o.position limit :most"
            ).bindparams(bindparam("types", type_=ARRAY(Text)))
        await self.rewind()
        await self._listen()

    async def _begin(self, source: str) -> None:
        """Go to the stored place. LogError: the log does not reach there, or no longer."""
        assert self._reader is not None
        trimmed = text(f"select xid, position from {source}.outbox_trimmed")  # noqa: S608
        async with self._db.work() as tx:
            cut = (await tx.execute(trimmed)).first()
        first = BEGINNING if cut is None else Place(str(cut.xid), cut.position)
        at = await self._reader.begin_at(source, 0, first)
        async with self._db.work() as tx:
            found = (
                await tx.execute(
                    text(
                        "select cast(:xid as text)::xid8 >= pg_snapshot_xmax(pg_current_snapshot())"  # noqa: S608
                        " as beyond, exists (select from "
                        f"{source}.outbox_trimmed t"
                        " where (cast(:xid as text)::xid8, :position) < (t.xid, t.position)) as cut"
                    ),
                    {"xid": at.xid or "0", "position": at.position},
                )
            ).one()
        if found.beyond:
            raise LogError(
                f"{self._reader.name} has read {source}'s log further than it goes: the database"
                " was restored from an older copy. Nothing is read until"
                f" `passerelle rebuild {self._reader.name}` has been run."
            )
        if found.cut:
            raise LogError(
                f"{source}'s log was trimmed beyond the place of {self._reader.name}: events are"
                f" missing. Nothing is read until `passerelle rebuild {self._reader.name}` has"
                " been run."
            )

    async def _listen(self) -> None:
        if self._ear is not None and not self._ear.is_closed():
            return
        self._ear = await asyncpg.connect(libpq_url(self._db.engine.url))
        await self._ear.add_listener(CHANNEL, self._heard)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if self._reader is not None and payload in self._reader.sources:
            self._wake.set()

    async def fetch(self) -> Sequence[Record]:
        """The next records of one source; sources take turns, so none starves another."""
        assert self._reader is not None
        await self._listen()
        self._wake.clear()
        sources = self._reader.sources
        for _ in sources:
            source = sources[self._turns % len(sources)]
            self._turns += 1
            records = await self._next(source)
            if records:
                self._wait = SOON
                return records
        try:
            await asyncio.wait_for(self._wake.wait(), self._wait)
            self._wait = SOON
        except TimeoutError:
            self._wait = min(self._wait * 2, POLL)
        return []

    async def _next(self, source: str) -> Sequence[Record]:
        assert self._reader is not None
        at = self._reader.places[source, 0]
        async with self._db.work() as tx:
            rows = await tx.execute(
                self._fetch[source],
                {
                    "xid": at.xid or "0",
                    "position": at.position,
                    "most": BATCH,
                    "types": list(self._reader.events),
                },
            )
            return [
                Record(
                    source=source,
                    partition=0,
                    place=Place(row.xid, row.position),
                    envelope=None
                    if row.data is None
                    else Envelope.model_construct(
                        id=row.id,
                        source=f"passerelle/{source}",
                        type=row.type,
                        subject=row.subject,
                        time=row.time,
                        traceparent=row.traceparent,
                        data=row.data.encode(),
                    ),
                )
                for row in rows
            ]

    async def rewind(self) -> None:
        assert self._reader is not None
        for source in self._reader.sources:
            await self._begin(source)

    async def taken(self, records: Sequence[Record]) -> None:
        """Nothing to do: the place is all there is."""

    async def close(self) -> None:
        if self._ear is not None and not self._ear.is_closed():
            await self._ear.close()


KEPT = timedelta(days=30)
"""How long the outbox keeps an event where PostgreSQL is the carrier; Kafka keeps as long."""
TRIM_EVERY = 3600.0
"""Real seconds."""

_TRIM = text(
    "with cut as (select xid, position from outbox where time < :before"
    "   order by xid, position limit :most),"
    " gone as (delete from outbox o using cut where (o.xid, o.position) = (cut.xid, cut.position)"
    "   returning o.xid, o.position)"
    " insert into outbox_trimmed (xid, position)"
    " select xid, position from gone order by xid desc, position desc limit 1"
    " on conflict (one) do update set xid = excluded.xid, position = excluded.position"
    "   where (excluded.xid, excluded.position) > (outbox_trimmed.xid, outbox_trimmed.position)"
    " returning position"
)


class Trimmer:
    """Takes from a service's outbox what every reader has had time to read.

    A reader that was away for longer finds its place cut off, stops, and says so.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Once an hour until `stop` is set; a database that is away is asked again then."""
        while not stop.is_set():
            try:
                while await self.trim():
                    pass
            except Exception as error:
                if not is_passing(error):
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), TRIM_EVERY)

    async def trim(self) -> bool:
        """Take a bounded number of events away; whether there were any."""
        before = self._clock.now() - KEPT
        async with self._db.work() as tx:
            return (
                await tx.execute(_TRIM, {"before": before, "most": 10 * BATCH})
            ).first() is not None


def lock_number(name: str) -> int:
    """A stable 63-bit number for an advisory lock called `name`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
