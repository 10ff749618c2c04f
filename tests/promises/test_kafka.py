"""What only the Kafka carrier can break: rebalances, the relay, the broker's own troubles."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from structlog.testing import capture_logs

from services.plumbing import kafka
from services.plumbing.db import Database
from services.plumbing.eventlog import LogError, append
from services.plumbing.kafka import KafkaCarrier, Link, Relay, create_topics
from tests.broker import Broker, a_broker
from tests.conftest import FreshDatabase
from tests.promises.log import (
    CLOCK,
    KINDS,
    PATIENCE,
    Hearer,
    KafkaLog,
    stated,
)

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def administering(link: Link) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=link.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def on_topic(log: KafkaLog, count: int) -> list[Any]:
    """The first `count` records of the topic, as anybody may read them."""
    consumer = AIOKafkaConsumer(
        log.topic, bootstrap_servers=log.link.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(PATIENCE):
            return [await anext(consumer) for _ in range(count)]
    finally:
        await consumer.stop()


async def put_on_topic(log: KafkaLog, *values: bytes) -> None:
    """As a program that is not ours would."""
    async with AIOKafkaProducer(bootstrap_servers=log.link.bootstrap) as producer:
        for value in values:
            await producer.send_and_wait(log.topic, value)


async def said(entries: list[Any], event: str) -> dict[str, Any]:
    """The first log line `event`, once it has been written."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for entry in entries:
                if entry["event"] == event:
                    return dict(entry)
            await asyncio.sleep(0.02)


# Readers


async def test_a_rebalance_in_mid_batch_does_everything_once(kafka_log: KafkaLog) -> None:
    log = await kafka_log.with_partitions(4)
    holder = Hearer(hold=asyncio.Event())
    async with log.at_work(holder) as first:
        await log.state(*(stated(number) for number in range(80)))
        await asyncio.wait_for(holder.holding.wait(), PATIENCE)
        async with log.reading(Hearer()) as second:
            await log.a_reader_waits_for_a_lock()  # the second was given a partition of the first
            assert holder.hold is not None
            holder.hold.set()
            await log.comes_true("select count(*) >= 80 from screening.heard")
            await first.observed.looked()
            await second.observed.looked()
    assert sorted(await log.heard()) == list(range(80))


async def test_readers_that_come_and_go_lose_and_double_nothing(kafka_log: KafkaLog) -> None:
    """CS-136, in small."""
    log = await kafka_log.with_partitions(4)

    async def producing() -> None:
        for number in range(600):
            await log.state(stated(number))

    async with log.carrying(), log.reading(Hearer()) as staying:
        work = asyncio.create_task(producing())
        for cycle in range(6):
            async with log.reading(Hearer()) as guest:
                await guest.observed.looked()
                if cycle % 2:
                    await guest.die()
        await work
        await log.comes_true("select count(*) >= 600 from screening.heard")
        await staying.observed.looked()
    assert sorted(await log.heard()) == list(range(600))


async def test_a_record_that_is_not_ours_is_buried_and_holds_up_nothing(
    kafka_log: KafkaLog,
) -> None:
    log = kafka_log
    ours = stated(1).model_dump_json().encode()
    async with log.at_work(Hearer()) as reading:
        await put_on_topic(log, b"\xff\x00 no JSON", b"", b"{}", ours)
        await log.state(stated(2))
        await reading.took(5)
    graves = await log.buried()
    assert [grave["reason"].split(":")[0] for grave in graves] == ["not readable"] * 3
    assert {grave["source"] for grave in graves} == {f"kafka:{log.topic}/0/{n}" for n in range(3)}
    assert await log.heard() == [1, 2]


async def test_a_place_that_the_log_no_longer_reaches_back_to_stops_the_reader(
    kafka_log: KafkaLog,
) -> None:
    log = kafka_log
    await log.state_each([stated(number) for number in range(3)])
    async with log.at_work(Hearer()) as reading:
        await reading.took(3)
    await log.state_each([stated(number) for number in range(3, 9)])
    async with log.carrying():
        await log.carried()
    async with administering(log.link) as admin:
        await admin.delete_records({TopicPartition(log.topic, 0): RecordsToDelete(6)})
    async with log.reading(Hearer()) as reading:
        with pytest.raises(LogError, match=r"begins at offset 6, .* \(2\): events are missing"):
            await asyncio.wait_for(reading.task, PATIENCE)
    assert await log.heard() == [0, 1, 2]


async def test_a_new_reader_begins_with_the_oldest_event_there_is(kafka_log: KafkaLog) -> None:
    log = kafka_log
    await log.state_each([stated(number) for number in range(5)])
    async with log.carrying():
        await log.carried()
    async with administering(log.link) as admin:
        await admin.delete_records({TopicPartition(log.topic, 0): RecordsToDelete(2)})
    async with log.reading(Hearer()) as reading:
        await reading.took(3)
    assert await log.heard() == [2, 3, 4]


async def test_kafka_is_told_how_far_a_reader_is(kafka_log: KafkaLog) -> None:
    """Autoscaling measures the lag by it."""
    log = kafka_log
    async with log.at_work(Hearer()) as reading:
        await log.state_each([stated(number) for number in range(3)])
        await reading.took(3)
    async with administering(log.link) as admin:
        group = await admin.list_consumer_group_offsets(log.link.group("screening"))
    assert group[TopicPartition(log.topic, 0)].offset == 3


# Topics


async def test_a_reader_waits_for_topics_that_are_missing(kafka_log: KafkaLog) -> None:
    log = await kafka_log.with_partitions(0)
    with capture_logs() as entries:
        async with log.at_work(Hearer()) as reading:
            await log.state(stated(1))
            line = await said(entries, "topics_missing")
            assert line["topics"] == [log.topic]
            assert line["advice"] == "Run `passerelle topics`."
            await create_topics(log.link, KINDS, partitions=1, replication=1)
            await reading.took(1)
    assert await log.heard() == [1]


async def test_topics_that_exist_are_left_as_they_are(kafka_log: KafkaLog) -> None:
    link = kafka_log.link
    told = await create_topics(link, [*KINDS, "test.new.v1"], partitions=2, replication=1)
    assert told == [
        f"{link.prefix}test.new.v1: made, 2 partitions",
        f"{link.prefix}test.stated.v1: exists, 1 partitions, not 2; left as it is",
        f"{link.prefix}test.unheard.v1: exists, 1 partitions, not 2; left as it is",
    ]
    again = await create_topics(link, ["test.new.v1"], partitions=2, replication=1)
    assert again == [f"{link.prefix}test.new.v1: exists, 2 partitions"]


async def test_a_topic_keeps_its_events_for_thirty_days(kafka_log: KafkaLog) -> None:
    """CS-120."""
    resource = ConfigResource(ConfigResourceType.TOPIC, kafka_log.topic)
    async with administering(kafka_log.link) as admin:
        (answer,) = await admin.describe_configs([resource])
    settings = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert settings["retention.ms"] == str(30 * 24 * 3600 * 1000)
    assert settings["cleanup.policy"] == "delete"


# The relay


async def test_an_event_travels_as_a_cloud_event_keyed_by_its_patient(kafka_log: KafkaLog) -> None:
    log = kafka_log
    event = stated(1)
    await log.state(event)
    async with log.carrying():
        await log.carried()
    (record,) = await on_topic(log, 1)
    headers = {name: value.decode() for name, value in record.headers}
    assert record.key == str(event.patient).encode()
    assert json.loads(record.value) == json.loads(event.model_dump_json())
    assert UUID(headers.pop("ce_id")).version == 4
    assert headers.pop("ce_time").endswith("+00:00")
    assert headers == {
        "ce_specversion": "1.0",
        "ce_source": "passerelle/ingest",
        "ce_type": "test.stated.v1",
        "ce_subject": str(event.patient),
        "content-type": "application/json",
    }


async def test_a_relay_that_dies_before_it_trims_carries_again(kafka_log: KafkaLog) -> None:
    log = kafka_log
    await log.state_each([stated(number) for number in range(5)])
    async with log.owner.transaction():
        await log.owner.execute("lock table ingest.outbox_trimmed in access exclusive mode")
        relay = asyncio.create_task(Relay(log.producer, log.link, CLOCK).run(asyncio.Event()))
        carried = await on_topic(log, 5)
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
    assert await log.outbox() == 5
    async with log.at_work(Hearer(ignores_what_it_knows=True)) as reading:
        await reading.took(10)
    twice = await on_topic(log, 10)
    assert [dict(one.headers)["ce_id"] for one in twice[5:]] == [
        dict(one.headers)["ce_id"] for one in carried
    ]
    assert await log.heard() == list(range(5))


async def test_of_two_relays_one_carries_and_the_other_takes_over(kafka_log: KafkaLog) -> None:
    log = kafka_log
    patient = uuid4()
    async with log.reading(Hearer()) as reading, log.carrying():
        async with log.carrying():
            await log.state_each([stated(number, patient) for number in range(100)])
            await reading.took(100)
        await log.state_each([stated(number, patient) for number in range(100, 200)])
        await reading.took(200)
    assert await log.heard_of(patient) == list(range(200))


async def test_a_relay_that_lost_its_session_goes_on_with_a_new_one(kafka_log: KafkaLog) -> None:
    log = kafka_log
    async with log.at_work(Hearer()) as reading:
        await log.state(stated(1))
        await reading.took(1)
        ended = await log.owner.fetchval(
            "select count(pg_terminate_backend(pid))"
            " from pg_locks join pg_stat_activity using (pid)"
            " where locktype = 'advisory' and granted and usename = 'passerelle_ingest'"
            " and datname = current_database()"
        )
        assert ended == 1
        await log.state(stated(2))
        await reading.took(2)
    assert await log.heard() == [1, 2]


async def test_a_record_that_is_too_large_stops_the_relay_and_loses_nothing(
    kafka_log: KafkaLog,
) -> None:
    log = kafka_log
    with capture_logs() as entries:
        async with log.at_work(Hearer()) as reading:
            await log.state_each([stated(1), stated(2, words="x" * 5_000_000), stated(3)])
            line = await said(entries, "carrier_stopped")
            await reading.took(1)
            assert await log.heard() == [1]
            assert await log.outbox() == 2
            await log.state(stated(4))  # the door stays open
    position = await log.owner.fetchval("select min(position) from ingest.outbox")
    assert line["why"].startswith(
        f"Kafka carrier stopped at outbox position {position}: 5 MB > 4.19 MB. Nothing is lost."
        f" Raise `max.message.bytes` of {log.topic};"
    )
    larger = {"max.message.bytes": "8000000"}
    async with administering(log.link) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, log.topic, larger)])
    async with log.at_work(Hearer()) as reading:
        await reading.took(3)
    assert await log.heard() == [1, 2, 3, 4]


# The broker


@pytest.fixture
async def own_broker(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Broker]:
    """A broker that may be stopped without harm to others."""
    if not broker.ours:
        pytest.skip("Not run: the broker at KAFKA_BOOTSTRAP is not ours to stop.")
    own = a_broker(tmp_path_factory.mktemp("own") / "kafka")
    await own.start()
    yield own
    await own.close()


@pytest.fixture
async def own_log(
    own_broker: Broker,
    database: FreshDatabase,
    owner: asyncpg.Connection,
    db: Callable[[str], Database],
) -> KafkaLog:
    link = Link(own_broker.bootstrap)
    await create_topics(link, KINDS, partitions=2, replication=1)
    return KafkaLog(db("ingest"), db("screening"), owner, link)


async def test_while_the_broker_is_away_the_door_is_open_and_all_resumes(
    own_broker: Broker, own_log: KafkaLog
) -> None:
    log = own_log
    async with log.at_work(Hearer()) as reading:
        await log.state_each([stated(number) for number in range(5)])
        await reading.took(5)
        await own_broker.stop()
        await log.state_each([stated(number) for number in range(5, 10)])
        await reading.observed.looked(3)
        assert await log.outbox() == 5
        await own_broker.start()
        await reading.took(10)
    assert sorted(await log.heard()) == list(range(10))
    assert await log.buried() == []


async def test_a_row_that_commits_while_younger_ones_are_carried_is_not_trimmed_with_them(
    own_broker: Broker, own_log: KafkaLog
) -> None:
    log = own_log
    async with log.at_work(Hearer()) as reading:
        await log.state(stated(0))
        await reading.took(1)
        await own_broker.stop()
        async with log.producer.work() as late:
            await append(late, [stated(1)], CLOCK.now())
            await log.state(stated(2))
            await reading.observed.looked(3)
        await own_broker.start()
        await reading.took(3)
    assert sorted(await log.heard()) == [0, 1, 2]


async def test_what_starts_while_the_broker_is_away_waits_for_it(
    own_broker: Broker, own_log: KafkaLog
) -> None:
    log = own_log
    await own_broker.stop()
    with capture_logs() as entries:
        async with log.at_work(Hearer()) as reading:
            await log.state(stated(1))
            await said(entries, "carrier_waits")
            await said(entries, "log_waits")
            await own_broker.start()
            await reading.took(1)
    assert await log.heard() == [1]


async def test_a_place_that_was_not_told_yet_keeps_nobody_waiting_for_the_broker(
    own_broker: Broker, own_log: KafkaLog
) -> None:
    log = own_log
    async with log.at_work(Hearer()) as reading:
        await log.state(stated(1))
        await reading.took(1)
        await own_broker.stop()
        carrier = reading.observed.carrier
        assert isinstance(carrier, KafkaCarrier)
        carrier._told = dict.fromkeys(carrier._ready, 1)
        carrier._tell_at = 0.0
        await reading.observed.looked(8)
    assert carrier._told == {}


async def test_a_process_ends_although_the_broker_is_away(
    own_broker: Broker, own_log: KafkaLog
) -> None:
    log = own_log
    async with log.at_work(Hearer()) as reading:
        await log.state(stated(1))
        await reading.took(1)
        await own_broker.stop()
        await log.state(stated(2))
        await reading.observed.looked()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 3 * kafka.PARTING
    assert await log.outbox() == 1
