"""The event log over Apache Kafka, for installations of many machines.

`append` stays an insert into the producer's outbox. The producer's process carries the rows to
Kafka (`Relay`) and trims them after the broker has them. Readers take batches by consumer group
(`KafkaCarrier`), but how far they have read stands in their own database, moved in the
transaction of what they did: Kafka's own offsets are told for the lag metrics, never believed.

Delivery to Kafka is at least once, and a rebalance delivers again: a row carried twice, or read
by two readers, has its effect once, because the place is a compare-and-set and handlers ignore
what they know.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from pydantic import SecretStr

from schemas.envelope import Envelope
from services.plumbing import telemetry
from services.plumbing.clock import Clock
from services.plumbing.db import CHANNEL, Database, is_passing, libpq_url
from services.plumbing.eventlog import (
    BATCH,
    POLL,
    SOON,
    LogError,
    Place,
    Reader,
    Record,
    lock_number,
)
from services.plumbing.settings import Settings

log = structlog.get_logger()

RETENTION = 30 * 24 * 3600 * 1000
"""Milliseconds a topic keeps an event (CS-120)."""
LARGEST = 4 * 1024 * 1024
"""`max.message.bytes` of a topic when it is made; an operator may raise it."""
NO_LIMIT = 64 * 1024 * 1024
"""What this side lets pass: the topic's own limit decides, and can be raised without us."""
PARTING = 5.0
"""Real seconds that a broker which is away may delay a process that stops."""
STUCK = 60.0
"""Real seconds between two attempts to carry a record the topic refused."""
MISSING = "a topic is missing; run `passerelle topics`"

_REFUSED = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)


class BrokerAwayError(ConnectionError):
    """Kafka does not answer, or not as it should; it is asked again."""


@dataclass(frozen=True)
class Link:
    """How to reach the cluster, and what our topics are called there."""

    bootstrap: str
    prefix: str = ""
    security: str = "PLAINTEXT"
    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: SecretStr | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The link of a process; `kafka_bootstrap` is set."""
        assert settings.kafka_bootstrap is not None
        secure = settings.kafka_security != "plaintext"
        ca = settings.kafka_ca_file
        return cls(
            bootstrap=settings.kafka_bootstrap,
            prefix=settings.kafka_prefix,
            security=settings.kafka_security.upper(),
            tls=ssl.create_default_context(cafile=ca) if secure else None,
            username=settings.kafka_username,
            password=settings.kafka_password,
        )

    def topic(self, kind: str) -> str:
        """The topic of an event type."""
        return f"{self.prefix}{kind}"

    def kind(self, topic: str) -> str:
        """The event type of a topic."""
        return topic.removeprefix(self.prefix)

    def group(self, reader: str) -> str:
        """The consumer group of a reader."""
        return f"{self.prefix}passerelle-{reader}"

    def options(self) -> dict[str, Any]:
        """What every client of the cluster is given."""
        return {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security,
            "ssl_context": self.tls,
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password.get_secret_value() if self.password else None,
        }


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Kafka's errors as what passes (BrokerAwayError) and what an operator must mend (LogError)."""
    try:
        yield
    except _REFUSED as error:
        raise LogError(
            f"Kafka refuses this service ({type(error).__name__}). Check PASSERELLE_KAFKA_USERNAME,"
            " PASSERELLE_KAFKA_PASSWORD, PASSERELLE_KAFKA_SECURITY and the cluster's ACLs."
        ) from None
    except UnknownTopicOrPartitionError:
        raise BrokerAwayError(MISSING) from None
    except KafkaError as error:
        raise BrokerAwayError(type(error).__name__) from None


# Topics


async def create_topics(
    link: Link, kinds: Iterable[str], partitions: int, replication: int
) -> list[str]:
    """Make the topics of `kinds` that are missing; one sentence for each topic.

    A topic that exists is left as it is: with another number of partitions, a patient's events
    would move to another partition, where they could overtake older ones.
    """
    topics = [link.topic(kind) for kind in sorted(kinds)]
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(RETENTION),
        "max.message.bytes": str(LARGEST),
        "min.insync.replicas": str(max(replication - 1, 1)),
    }
    said = []
    async with _admin(link) as admin:
        known = set(await admin.list_topics())  # to describe a missing topic might make it
        missing = [topic for topic in topics if topic not in known]
        described = await admin.describe_topics([topic for topic in topics if topic in known])
        have = {topic["topic"]: len(topic["partitions"]) for topic in described}
        made = await admin.create_topics(
            [NewTopic(topic, partitions, replication, topic_configs=config) for topic in missing]
        )
        for topic, code, *_ in made.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise LogError(f"Kafka does not make the topic {topic}: error {code}.")
            said.append(f"{topic}: made, {partitions} partitions")
    for topic, count in have.items():
        differs = f", not {partitions}; left as it is" if count != partitions else ""
        said.append(f"{topic}: exists, {count} partitions{differs}")
    return sorted(said)


async def topics(link: Link) -> set[str]:
    """The topics there are."""
    async with _admin(link) as admin:
        return set(await admin.list_topics())


@asynccontextmanager
async def _admin(link: Link) -> AsyncIterator[AIOKafkaAdminClient]:
    with _in_our_words():
        admin = AIOKafkaAdminClient(**link.options())
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()


# The producer's side


class _Stuck(Exception):  # noqa: N818 - a state, shown to the operator
    """The first row of the outbox is larger than its topic takes."""

    def __init__(self, row: asyncpg.Record, topic: str) -> None:
        super().__init__()
        self.position: int = row["position"]
        self.size = len(row["data"].encode())
        self.topic = topic


_ROWS = (
    "select o.xid::text as xid, o.position, o.id, o.type, o.subject, o.time, o.traceparent, o.data"
    " from outbox o where o.xid < pg_snapshot_xmin(pg_current_snapshot())"
    " order by o.xid, o.position limit $1"  # `xid` alone would be the text
)
_TRIM = (
    "with carried as (delete from outbox where (xid, position) <= ($1::text::xid8, $2))"
    " insert into outbox_trimmed (xid, position) values ($1::text::xid8, $2)"
    " on conflict (one) do update set xid = excluded.xid, position = excluded.position"
)


class Relay:
    """Carries the outbox of one service to Kafka, oldest first, and trims what has arrived.

    All processes of a service run one; an advisory lock lets one of them work. The lock, the
    reading and the trimming share a session: who has lost the lock cannot trim. While Kafka is
    away the outbox grows and the service's door stays open.
    """

    def __init__(self, db: Database, link: Link, clock: Clock) -> None:
        self._db = db
        self._link = link
        self._clock = clock
        self._most = BATCH
        self._wake = asyncio.Event()
        self._wait = POLL
        """Real seconds. Short after a bell: what rang may still lie behind an open transaction
        that states nothing itself, and so will not ring when it ends.
        """

    async def run(self, stop: asyncio.Event) -> None:
        """Carry until `stop` is set. LogError: Kafka refuses this service."""
        wait = 0.1
        while not stop.is_set():
            try:
                async with self._leadership(stop) as session, self._producer() as producer:
                    while not stop.is_set():
                        await self._one_chunk(session, producer, stop)
                        wait = 0.1
            except _Stuck as stuck:
                # Alone from now on: what stands behind it would be carried again and again.
                self._most = 1
                limit = await self._limit(stuck.topic)
                log.error(  # noqa: TRY400 - a state, not a bug; a traceback says less
                    "carrier_stopped",
                    why=f"Kafka carrier stopped at outbox position {stuck.position}:"
                    f" {_megabytes(stuck.size)} > {limit}. Nothing is lost. Raise"
                    f" `max.message.bytes` of {stuck.topic}; the carrier tries again"
                    " every minute, or at once after a restart.",
                )
                await self._pause(stop, STUCK)
            except Exception as error:
                if not (is_passing(error) or isinstance(error, asyncpg.InterfaceError)):
                    raise
                why = str(error) if isinstance(error, BrokerAwayError) else type(error).__name__
                log.warning("carrier_waits", service=self._db.service, why=why)
                await self._pause(stop, wait)
                wait = min(wait * 2, 10.0)

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)

    @asynccontextmanager
    async def _leadership(self, stop: asyncio.Event) -> AsyncIterator[asyncpg.Connection]:
        """A session that holds this service's lock, as its worker role."""
        session = await asyncpg.connect(libpq_url(self._db.engine.url))
        try:
            await session.execute(f"set role passerelle_{self._db.service}_worker")
            await session.add_listener(CHANNEL, self._heard)
            number = lock_number(f"relay {self._db.service}")
            while not await session.fetchval("select pg_try_advisory_lock($1)", number):
                await self._pause(stop, POLL)
                if stop.is_set():
                    break
            yield session
        finally:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
                await session.close(timeout=PARTING)

    def _heard(self, _session: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == self._db.service:
            self._wake.set()

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        with _in_our_words():
            producer = AIOKafkaProducer(
                **self._link.options(),
                enable_idempotence=True,
                acks="all",
                max_request_size=NO_LIMIT,
                linger_ms=0,
            )
            try:
                await producer.start()
                yield producer
            finally:
                await _part(producer)

    async def _one_chunk(
        self, session: asyncpg.Connection, producer: AIOKafkaProducer, stop: asyncio.Event
    ) -> None:
        self._wake.clear()
        rows = await session.fetch(_ROWS, self._most)
        waiting = (self._clock.now() - rows[0]["time"]).total_seconds() if rows else 0.0
        telemetry.gauge("log_uncarried_seconds", self._db.service).set(max(waiting, 0.0))
        if not rows:
            await _first(self._wait, stop.wait(), self._wake.wait())
            self._wait = SOON if self._wake.is_set() else min(self._wait * 2, POLL)
            return
        self._wait = SOON
        carrying = asyncio.create_task(self._carry(producer, rows))
        try:
            while not (carrying.done() or stop.is_set()):
                await _first(PARTING, _done(carrying), stop.wait())
                if session.is_closed():
                    raise BrokerAwayError("the session that leads was lost")
                if not carrying.done():
                    log.warning("carrier_waits", service=self._db.service, why="no answer")
            await _first(PARTING, _done(carrying))
            if not carrying.done():
                return  # told to stop while the broker is away; the rows stay
            arrived, trouble = carrying.result()
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)
        if arrived:
            last = rows[arrived - 1]
            await session.execute(_TRIM, last["xid"], last["position"])
        if isinstance(trouble, MessageSizeTooLargeError):
            row = rows[arrived]
            raise _Stuck(row, self._link.topic(row["type"]))
        if trouble is not None:
            raise trouble
        self._most = BATCH

    async def _carry(
        self, producer: AIOKafkaProducer, rows: Sequence[asyncpg.Record]
    ) -> tuple[int, BaseException | None]:
        """How many of `rows`, from the first on, the broker has; and what befell the next."""
        sent: list[asyncio.Future[Any]] = []
        trouble: BaseException | None = None
        try:
            for row in rows:
                sent.append(await self._send(producer, row))  # noqa: PERF401 - kept if the next fails
        except KafkaError as error:
            trouble = error
        try:
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
        except asyncio.CancelledError:
            for one in sent:
                one.cancel()
            raise
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                return number, outcome
        return len(sent), trouble

    async def _send(self, producer: AIOKafkaProducer, row: asyncpg.Record) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any] = await producer.send(
            self._link.topic(row["type"]),
            row["data"].encode(),
            key=str(row["subject"]).encode() if row["subject"] else None,
            headers=_headers(row, self._db.service),
        )
        return sent

    async def _limit(self, topic: str) -> str:
        """The largest record `topic` takes, in words."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        with contextlib.suppress(OSError, LogError):
            async with _admin(self._link) as admin:
                answers = await admin.describe_configs([resource])
                entries = answers[0].resources[0][4]
                settings = {entry[0]: entry[1] for entry in entries}
                return _megabytes(int(settings["max.message.bytes"]))
        return "the topic's limit"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"


def _headers(row: asyncpg.Record, service: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0, binary mode: attributes are headers, the value is the data alone."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": str(row["id"]),
        "ce_source": f"passerelle/{service}",
        "ce_type": row["type"],
        "ce_time": row["time"].astimezone(UTC).isoformat(),
        "ce_subject": str(row["subject"]) if row["subject"] else None,
        "ce_traceparent": row["traceparent"],
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in attributes.items() if value is not None]


async def _done(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task})


async def _first(seconds: float, *waits: Any) -> None:
    """Return when one of `waits` is done, or after `seconds`."""
    tasks = {asyncio.ensure_future(wait) for wait in waits}
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _part(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Leave the cluster; a broker that is away is not waited for longer than PARTING."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        await asyncio.wait_for(client.stop(), PARTING)


# The reader's side


class KafkaCarrier:
    """Fetches for a `Reader` as a member of its consumer group.

    A partition is *ready* once it has been sought to the stored place after its assignment.
    What arrives of a partition that is not ready is let go: it will come again.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._consumer: AIOKafkaConsumer | None = None
        self._reader: Reader[Any] | None = None
        self._ready: set[TopicPartition] = set()
        self._polling: asyncio.Task[dict[TopicPartition, list[Any]]] | None = None
        self._told: dict[TopicPartition, int] = {}
        self._tell_at = 0.0

    async def start(self, reader: Reader[Any]) -> None:
        self._reader = reader
        await self._join()

    async def _join(self) -> AIOKafkaConsumer:
        """A member of the group; joining goes on while `fetch` waits."""
        assert self._reader is not None
        topics = sorted(self._link.topic(kind) for kind in self._reader.events)
        async with _admin(self._link) as admin:
            missing = sorted(set(topics) - set(await admin.list_topics()))
        if missing:
            log.error("topics_missing", topics=missing, advice="Run `passerelle topics`.")
            raise BrokerAwayError(MISSING)
        with _in_our_words():
            consumer = AIOKafkaConsumer(
                **self._link.options(),
                group_id=self._link.group(self._reader.name),
                enable_auto_commit=False,
                auto_offset_reset="none",
            )
            try:
                await consumer.start()
                consumer.subscribe(topics, listener=_Unready(self._ready))
            except BaseException:
                await _part(consumer)
                raise
        self._consumer = consumer
        return consumer

    async def fetch(self) -> Sequence[Record]:
        consumer = self._consumer or await self._join()
        try:
            with _in_our_words():
                got = await self._poll(consumer)
        except BrokerAwayError:
            await self._leave()
            raise
        return [
            self._record(message)
            for partition, messages in got.items()
            if partition in self._ready
            for message in messages
            if message.offset > self._place(partition).position
        ]

    async def _poll(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, list[Any]]:
        if self._polling is None:
            await self._make_ready(consumer)
            await self._tell(consumer)
            self._polling = asyncio.create_task(
                consumer.getmany(timeout_ms=int(POLL * 1000), max_records=BATCH)
            )
        await asyncio.wait({self._polling}, timeout=POLL)
        if not self._polling.done():
            return {}  # between two assignments, or the broker is away
        polled, self._polling = self._polling, None
        try:
            return polled.result()
        except (NoOffsetForPartitionError, OffsetOutOfRangeError):
            self._ready.clear()  # just assigned, or outside the log: making ready will tell
            return {}

    def _place(self, partition: TopicPartition) -> Place:
        assert self._reader is not None
        return self._reader.places[partition.topic, partition.partition]

    async def _make_ready(self, consumer: AIOKafkaConsumer) -> None:
        """Seek what was assigned to the stored places. LogError: a place is outside the log."""
        assert self._reader is not None
        fresh = [one for one in consumer.assignment() if one not in self._ready]
        if not fresh:
            return
        begins = await consumer.beginning_offsets(fresh)
        ends = await consumer.end_offsets(fresh)
        for one in fresh:
            first = Place("", begins[one] - 1)
            at = await self._reader.begin_at(one.topic, one.partition, first)
            name = self._reader.name
            remedy = f"Nothing is read until `passerelle rebuild {name}` has been run."
            if at.position >= ends[one]:
                raise LogError(
                    f"{name} has read {one.topic}/{one.partition} to offset {at.position}, and it"
                    f" ends at {ends[one] - 1}: the topic was made anew, or restored from an older"
                    f" copy. {remedy}"
                )
            if at.position + 1 < begins[one]:
                raise LogError(
                    f"{one.topic}/{one.partition} begins at offset {begins[one]}, after the place"
                    f" of {name} ({at.position}): events are missing. {remedy}"
                )
            if one in consumer.assignment():
                consumer.seek(one, at.position + 1)
                self._ready.add(one)

    def _record(self, message: Any) -> Record:
        return Record(
            source=message.topic,
            partition=message.partition,
            place=Place("", message.offset),
            envelope=self._envelope(message),
        )

    def _envelope(self, message: Any) -> Envelope:
        """The event of a Kafka record. One that is not ours in form is an event all the same:
        its data will not be readable, and it goes to the dead letters, where a person sees it.
        """
        assert self._reader is not None
        kind = self._link.kind(message.topic)
        headers = dict(message.headers)
        try:
            return Envelope.model_construct(
                id=UUID(headers["ce_id"].decode()),
                source=headers["ce_source"].decode(),
                type=kind,
                time=datetime.fromisoformat(headers["ce_time"].decode()),
                subject=UUID(headers["ce_subject"].decode()) if "ce_subject" in headers else None,
                traceparent=headers["ce_traceparent"].decode()
                if "ce_traceparent" in headers
                else None,
                data=_text(message.value).encode(),
            )
        except (KeyError, ValueError):
            at = f"kafka:{message.topic}/{message.partition}/{message.offset}"
            return Envelope.model_construct(
                id=uuid5(NAMESPACE_URL, at),
                source=at,
                type=kind,
                time=datetime.fromtimestamp(message.timestamp / 1000, UTC),
                subject=None,
                traceparent=None,
                data=_text(message.value).encode(),
            )

    async def rewind(self) -> None:
        self._ready.clear()

    async def taken(self, records: Sequence[Record]) -> None:
        """Remember what Kafka may be told; the lag metrics of the cluster live on it."""
        for record in records:
            self._told[TopicPartition(record.source, record.partition)] = record.place.position + 1

    async def _tell(self, consumer: AIOKafkaConsumer) -> None:
        now = asyncio.get_running_loop().time()
        offsets = {one: at for one, at in self._told.items() if one in self._ready}
        if not offsets or now < self._tell_at:
            return
        self._told.clear()
        self._tell_at = now + 1.0
        # Told again after the next batch; while the broker is away a commit would wait for ever.
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(consumer.commit(offsets), PARTING)

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        polling, self._polling = self._polling, None
        self._ready = set()
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
        if consumer is not None:
            await _part(consumer)

    async def close(self) -> None:
        if self._consumer is not None:
            self._tell_at = 0.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._tell(self._consumer), PARTING)
        await self._leave()


def _text(value: bytes | None) -> str:
    """`value` as text that PostgreSQL can keep."""
    return (value or b"").decode("utf-8", "replace").replace("\0", "\ufffd")


class _Unready(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Whatever changes hands is not ready until it has been sought to its place."""

    def __init__(self, ready: set[TopicPartition]) -> None:
        self._ready = ready

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._ready.difference_update(revoked)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._ready.difference_update(assigned)
