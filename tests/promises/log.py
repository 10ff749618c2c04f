"""A log to make promises with: one producer (ingest), readers of one service (screening).

The carriers differ in `Log.carrier` and `Log.carrying`; all else is the same for both.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import text

from schemas.envelope import Event
from services.plumbing.clock import Clock
from services.plumbing.db import Database
from services.plumbing.eventlog import (
    Carrier,
    PostgresCarrier,
    Reader,
    Record,
    Turn,
    append,
    on,
)
from services.plumbing.kafka import KafkaCarrier, Link, Relay, create_topics

CLOCK = Clock()
PATIENCE = 60.0
"""Seconds a test waits for what was promised."""
CANARY = "TEST-canary-9731"

TABLES = """
create table screening.heard (nr bigserial, patient uuid not null, number int not null);
grant select, insert on screening.heard to passerelle_screening_worker;
grant usage on screening.heard_nr_seq to passerelle_screening_worker;
"""


class Stated(Event):
    type: ClassVar[str] = "test.stated.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID
    number: int
    words: str = ""

    @property
    def subject(self) -> UUID:
        return self.patient


class Unheard(Event):
    """Of a type that the reader does not read."""

    type: ClassVar[str] = "test.unheard.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID

    @property
    def subject(self) -> UUID:
        return self.patient


def stated(number: int, patient: UUID | None = None, words: str = "") -> Stated:
    return Stated(patient=patient or uuid4(), number=number, words=words)


KINDS = [Stated.type, Unheard.type]


class PoisonError(Exception):
    """What a handler raises of an event it cannot take."""


@dataclass
class Hearer:
    """A handler that would count an event twice if it were asked twice."""

    poison: set[int] = field(default_factory=set)
    ignores_what_it_knows: bool = False
    """As the handlers of the services do; otherwise it counts twice what it is given twice."""
    asked: list[list[int]] = field(default_factory=list)
    """Numbers of each batch it was given."""
    failures: list[Exception] = field(default_factory=list)
    """Raised, one a batch, before it does anything."""
    hold: asyncio.Event | None = None
    """Its work done, it waits for this inside the transaction."""
    holding: asyncio.Event = field(default_factory=asyncio.Event)

    async def hear(self, batch: Sequence[Stated], turn: Turn) -> None:
        self.asked.append([event.number for event in batch])
        if self.failures:
            raise self.failures.pop(0)
        for event in batch:
            if event.number in self.poison:
                raise PoisonError(event.words)
        for event in batch:
            known = self.ignores_what_it_knows and await turn.tx.scalar(
                text("select true from heard where number = :number"), {"number": event.number}
            )
            if not known:
                await turn.tx.execute(
                    text("insert into heard (patient, number) values (:patient, :number)"),
                    {"patient": event.patient, "number": event.number},
                )
        if self.hold is not None:
            self.holding.set()
            await self.hold.wait()


class Observed:
    """A carrier, and a bell for what it does."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self._bell = asyncio.Condition()
        self.looks = 0
        self.taken_records: list[Record] = []
        self.close = carrier.close
        self.rewinds = 0
        self.start = carrier.start

    async def fetch(self) -> Sequence[Record]:
        records = await self.carrier.fetch()
        self.looks += 1
        await self._ring()
        return records

    async def taken(self, records: Sequence[Record]) -> None:
        await self.carrier.taken(records)
        self.taken_records += records
        await self._ring()

    async def rewind(self) -> None:
        await self.carrier.rewind()
        self.rewinds += 1
        await self._ring()

    async def _ring(self) -> None:
        async with self._bell:
            self._bell.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._bell:
            await self._bell.wait_for(true)

    async def looked(self, times: int = 2) -> None:
        """Whoever would see something now has seen it."""
        enough = self.looks + times
        await self.until(lambda: self.looks >= enough)


@dataclass
class Reading:
    """A reader at work."""

    reader: Reader[Turn]
    observed: Observed
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def took(self, count: int) -> None:
        """`count` events were taken in, or buried, and committed."""

        def enough() -> bool:
            taken = [one for one in self.observed.taken_records if one.envelope is not None]
            return len(taken) >= count

        waiting = asyncio.create_task(self.observed.until(enough))
        await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            waiting.cancel()
            self.task.result()
        await waiting

    async def die(self) -> None:
        """As if the process were killed: nothing more of it happens."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Log:
    """The PostgreSQL carrier; `KafkaLog` is the other."""

    def __init__(self, producer: Database, service: Database, owner: asyncpg.Connection) -> None:
        self.producer = producer
        self.service = service
        self.owner = owner
        """A superuser's connection, for looking and for damage."""

    # What differs

    @property
    def source(self) -> str:
        """What a place calls the log."""
        return "ingest"

    def carrier(self) -> Carrier:
        return PostgresCarrier(self.service)

    def rogue(self) -> Carrier:
        """Of a reader that reads what another reads, against all order."""
        return self.carrier()

    @asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        """What a producer's process does beside its door."""
        yield

    async def move_place(self, by: int) -> None:
        """Damage: the stored place is `by` positions (or transactions) further."""
        await self.owner.execute(
            "update screening.place set xid = (xid::bigint + $1)::text where xid <> ''", by
        )

    # What is the same

    async def state(self, *events: Event) -> None:
        async with self.producer.work() as tx:
            await append(tx, events, CLOCK.now())

    async def state_each(self, events: Sequence[Event]) -> None:
        """One transaction each, in order."""
        for event in events:
            await self.state(event)

    async def state_raw(self, data: str, patient: UUID) -> None:
        """A row as a producer with a fault would write it."""
        await self.owner.execute(
            "insert into ingest.outbox (id, type, subject, time, data)"
            " values ($1, $2, $3, now(), $4)",
            *(uuid4(), Stated.type, patient, data),
        )

    async def state_as(self, transaction: int, event: Stated) -> None:
        """As if `event` had been stated by a certain older transaction."""
        await self.owner.execute(
            "insert into ingest.outbox (xid, id, type, subject, time, data)"
            " values ($1::text::xid8, $2, $3, $4, now(), $5)",
            *(str(transaction), uuid4(), event.type, event.subject, event.model_dump_json()),
        )

    async def state_again(self, *events: Stated) -> None:
        """The same events, by the same ids, twice on the log."""
        for event in events:
            key = uuid4()
            for _ in range(2):
                await self.owner.execute(
                    "insert into ingest.outbox (id, type, subject, time, data)"
                    " values ($1, $2, $3, now(), $4)",
                    *(key, event.type, event.subject, event.model_dump_json()),
                )

    @asynccontextmanager
    async def reading(
        self, hearer: Hearer, carrier: Carrier | None = None
    ) -> AsyncIterator[Reading]:
        observed = Observed(carrier or self.carrier())
        reader = Reader(self.service, [on(Stated, hearer.hear)], Turn, observed, CLOCK)
        stop = asyncio.Event()
        task = asyncio.create_task(reader.run(stop))
        try:
            yield Reading(reader, observed, stop, task)
        finally:
            stop.set()
            if hearer.hold is not None:
                hearer.hold.set()
            await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def at_work(self, hearer: Hearer) -> AsyncIterator[Reading]:
        """A producer that carries, and one reader."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.carrying())
            yield await stack.enter_async_context(self.reading(hearer))

    async def heard(self) -> list[int]:
        """Numbers whose effect is committed, in that order."""
        rows = await self.owner.fetch("select number from screening.heard order by nr")
        return [row["number"] for row in rows]

    async def heard_of(self, patient: UUID) -> list[int]:
        rows = await self.owner.fetch(
            "select number from screening.heard where patient = $1 order by nr", patient
        )
        return [row["number"] for row in rows]

    async def buried(self) -> list[asyncpg.Record]:
        return list(await self.owner.fetch("select * from screening.dead_letter order by time, id"))

    async def buried_numbers(self) -> list[int]:
        return [json.loads(row["data"])["number"] for row in await self.buried()]

    async def outbox(self) -> int:
        return int(await self.owner.fetchval("select count(*) from ingest.outbox"))

    async def comes_true(self, sql: str) -> None:
        """Wait until the database answers `sql` with true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.owner.fetchval(sql):
                await asyncio.sleep(0.02)

    async def hang_up_on_readers(self) -> None:
        """The database ends every connection of the reading service."""
        await self.owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where usename = 'passerelle_screening' and datname = current_database()"
        )

    async def a_reader_waits_for_a_lock(self) -> None:
        await self.comes_true(
            "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock'"
            " and usename = 'passerelle_screening' and datname = current_database()"
        )


class RogueLink(Link):
    """Of a member of another group, which is therefore given all partitions as well."""

    def group(self, reader: str) -> str:
        return super().group(reader) + "-rogue"


class KafkaLog(Log):
    def __init__(
        self, producer: Database, service: Database, owner: asyncpg.Connection, link: Link
    ) -> None:
        super().__init__(producer, service, owner)
        self.link = link

    def carrier(self) -> Carrier:
        return KafkaCarrier(self.link)

    @property
    def source(self) -> str:
        return self.topic

    def rogue(self) -> Carrier:
        return KafkaCarrier(RogueLink(self.link.bootstrap, self.link.prefix))

    @asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(Relay(self.producer, self.link, CLOCK).run(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def move_place(self, by: int) -> None:
        await self.owner.execute(
            "update screening.place set position = position + $1 where position >= 0", by
        )

    async def with_partitions(self, count: int) -> "KafkaLog":
        """Another log in the same database, of so many partitions; with 0 it has no topics."""
        link = Link(self.link.bootstrap, prefix=f"{self.link.prefix}{count}.")
        if count:
            await create_topics(link, KINDS, partitions=count, replication=1)
        return KafkaLog(self.producer, self.service, self.owner, link)

    @property
    def topic(self) -> str:
        return self.link.topic(Stated.type)

    async def carried(self) -> None:
        """The outbox has been trimmed: all of it is on Kafka."""
        await self.comes_true("select count(*) = 0 from ingest.outbox")
