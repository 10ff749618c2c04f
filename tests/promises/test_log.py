"""What the event log promises, whatever carries it (architecture.md, "The event log").

Each carrier brings a `log` fixture; `LogPromises` is run on both. What only one of them can
break stands in its own class.
"""

import asyncio
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from services.plumbing import eventlog
from services.plumbing.eventlog import LogError, append
from tests.promises.log import (
    CANARY,
    CLOCK,
    PATIENCE,
    Hearer,
    KafkaLog,
    Log,
    Unheard,
    stated,
)


class LogPromises:
    """What a log promises, whatever carries it. Each carrier brings a `log` fixture."""

    async def test_what_was_stated_before_there_was_a_reader_is_delivered(self, log: Log) -> None:
        await log.state(stated(1), stated(2))
        async with log.at_work(Hearer()) as reading:
            await reading.took(2)
        assert await log.heard() == [1, 2]

    async def test_what_is_stated_while_a_reader_waits_is_delivered_at_once(self, log: Log) -> None:
        async with log.at_work(Hearer()) as reading:
            await log.state(stated(1))
            await reading.took(1)
            started = asyncio.get_running_loop().time()
            await log.state(stated(2))
            await reading.took(2)
            assert asyncio.get_running_loop().time() - started < eventlog.POLL
        assert await log.heard() == [1, 2]

    async def test_a_reader_goes_on_where_it_stopped(self, log: Log) -> None:
        for number in (1, 2, 3):
            async with log.at_work(Hearer()) as reading:
                await log.state(stated(number))
                await reading.took(1)
        assert await log.heard() == [1, 2, 3]

    async def test_an_event_of_a_rolled_back_transaction_is_never_delivered(self, log: Log) -> None:
        async with log.at_work(Hearer()) as reading:
            async with log.producer.work() as tx:
                await append(tx, [stated(1)], CLOCK.now())
                await tx.rollback()
            await log.state(stated(2))
            await reading.took(1)
            await reading.observed.looked()
        assert await log.heard() == [2]

    async def test_a_row_that_commits_late_is_still_delivered(self, log: Log) -> None:
        async with log.at_work(Hearer()) as reading:
            async with log.producer.work() as late:
                await append(late, [stated(1)], CLOCK.now())
                await log.state(stated(2))  # a later position, committed earlier
                await reading.observed.looked(3)
            await reading.took(2)
        assert sorted(await log.heard()) == [1, 2]

    async def test_a_crash_between_effect_and_place_undoes_both(self, log: Log) -> None:
        await log.state(stated(1), stated(2))
        dying = Hearer(hold=asyncio.Event())
        async with log.at_work(dying) as reading:
            await asyncio.wait_for(dying.holding.wait(), PATIENCE)
            await reading.die()
        assert await log.heard() == []
        async with log.at_work(Hearer()) as reading:
            await reading.took(2)
        assert await log.heard() == [1, 2]

    async def test_a_database_that_hangs_up_before_the_commit_is_waited_for(self, log: Log) -> None:
        await log.state(stated(1), stated(2))
        hearer = Hearer(hold=asyncio.Event())
        async with log.at_work(hearer) as reading:
            await asyncio.wait_for(hearer.holding.wait(), PATIENCE)
            await log.hang_up_on_readers()
            assert hearer.hold is not None
            hearer.hold.set()
            await reading.took(2)
        assert await log.heard() == [1, 2]
        assert await log.buried() == []

    async def test_an_event_carried_twice_is_delivered_twice_by_the_same_id(self, log: Log) -> None:
        await log.state_again(stated(1))
        async with log.at_work(Hearer()) as reading:
            await reading.took(2)
            first, second = (one.envelope for one in reading.observed.taken_records)
        assert first is not None
        assert second is not None
        assert first.id == second.id

    async def test_two_readers_at_once_do_everything_once(self, log: Log) -> None:
        one, other = Hearer(), Hearer()
        async with log.carrying(), log.reading(one), log.reading(other):
            for number in range(200):
                await log.state(stated(number))
            await log.comes_true("select count(*) >= 200 from screening.heard")
        assert sorted(await log.heard()) == list(range(200))

    async def test_a_reader_that_lost_its_place_cannot_commit(self, log: Log) -> None:
        """Two believe that a partition is theirs: one holds its turn, the other waits and loses."""
        go = asyncio.Event()
        one, other = Hearer(hold=go), Hearer(hold=go)
        async with (
            log.carrying(),
            log.reading(one) as first,
            log.reading(other, log.rogue()) as second,
        ):
            await log.state(stated(0))
            await log.a_reader_waits_for_a_lock()
            go.set()
            await asyncio.gather(first.observed.looked(), second.observed.looked())
            await log.state(stated(1))
            await log.comes_true("select count(*) > 1 from screening.heard")
            await asyncio.gather(first.observed.looked(), second.observed.looked())
        assert first.observed.rewinds + second.observed.rewinds > 0
        assert sorted(one.asked + other.asked) == [[0], [1]]
        assert await log.heard() == [0, 1]

    async def test_a_poison_event_holds_up_no_other_patient(self, log: Log) -> None:
        """CS-132: at most 5 s."""
        await log.state(*(stated(number) for number in range(1000)))
        async with log.at_work(Hearer(poison={500})) as reading:
            await reading.took(1)
            started = asyncio.get_running_loop().time()
            await reading.took(1000)
            assert asyncio.get_running_loop().time() - started < 5
        assert sorted(await log.heard()) == [n for n in range(1000) if n != 500]
        assert await log.buried_numbers() == [500]

    async def test_a_poison_event_is_tried_thrice_and_buried_with_its_reason(
        self, log: Log
    ) -> None:
        await log.state(stated(1, words=CANARY))
        hearer = Hearer(poison={1})
        with capture_logs() as said:
            async with log.at_work(hearer) as reading:
                await reading.took(1)
        (grave,) = await log.buried()
        assert hearer.asked == [[1]] * eventlog.TRIES
        assert grave["attempts"] == eventlog.TRIES
        assert grave["state"] == "waiting"
        assert grave["reason"].startswith("PoisonError at hear:")
        assert CANARY not in grave["reason"]
        assert CANARY not in str(said)

    async def test_an_event_that_is_not_as_its_contract_says_is_buried(self, log: Log) -> None:
        await log.state_raw(f'{{"patient": "{CANARY}", "number": "{CANARY}"}}', uuid4())
        await log.state_raw(CANARY, uuid4())
        await log.state(stated(3))
        with capture_logs() as said:
            async with log.at_work(Hearer()) as reading:
                await reading.took(3)
        assert await log.heard() == [3]
        reasons = [grave["reason"] for grave in await log.buried()]
        assert [reason.split(":")[0] for reason in reasons] == ["not readable"] * 2
        assert CANARY not in "".join(reasons) + str(said)

    async def test_a_dead_letter_is_replayed_when_a_person_asks(self, log: Log) -> None:
        await log.state(stated(1))
        hearer = Hearer(poison={1})
        async with log.at_work(hearer) as reading:
            await reading.took(1)
            (waiting,) = await eventlog.dead_letters(log.service)

            await eventlog.ask_replay(log.service, [waiting.id], by="TEST-ops")
            await reading.observed.looked(3)
            (again,) = await eventlog.dead_letters(log.service)
            assert again.state == "waiting", "the handler has not been mended yet"
            assert again.attempts == eventlog.TRIES + 1

            hearer.poison.clear()
            assert await eventlog.ask_replay(log.service, None, by="TEST-ops") == 1
            await reading.observed.looked(3)
        assert await eventlog.dead_letters(log.service) == []
        (grave,) = await log.buried()
        assert (grave["state"], grave["settled_by"]) == ("replayed", "TEST-ops")
        assert await log.heard() == [1]

    async def test_a_batch_whose_handler_raised_is_delivered_again(self, log: Log) -> None:
        await log.state(*(stated(number) for number in range(10)))
        hearer = Hearer(failures=[PermissionError("once"), PermissionError("twice")])
        async with log.at_work(hearer) as reading:
            await reading.took(10)
        assert hearer.asked[0] == hearer.asked[1] == hearer.asked[2] == list(range(10))
        assert await log.heard() == list(range(10))
        assert await log.buried() == []

    async def test_a_fault_of_the_handler_splits_the_batch_and_loses_nothing(
        self, log: Log
    ) -> None:
        await log.state(*(stated(number) for number in range(10)))
        async with log.at_work(Hearer(failures=[ValueError()])) as reading:
            await reading.took(10)
        assert await log.heard() == list(range(10))
        assert await log.buried() == []

    async def test_the_events_of_a_patient_keep_their_order(self, log: Log) -> None:
        patients = [uuid4() for _ in range(7)]
        async with log.at_work(Hearer()) as reading:
            await log.state_each([stated(n, patients[n % 7]) for n in range(140)])
            await reading.took(140)
        for number, patient in enumerate(patients):
            assert await log.heard_of(patient) == list(range(number, 140, 7))

    async def test_transactions_are_ordered_as_numbers_not_as_text(self, log: Log) -> None:
        for transaction in (98, 99, 100, 101):
            await log.state_as(transaction, stated(transaction))
        async with log.at_work(Hearer()) as reading:
            await reading.took(4)
            await reading.observed.looked()
        assert await log.heard() == [98, 99, 100, 101]

    async def test_a_type_that_is_not_read_is_passed_over(self, log: Log) -> None:
        async with log.at_work(Hearer()) as reading:
            await log.state(Unheard(patient=uuid4()), stated(1), Unheard(patient=uuid4()))
            await reading.took(1)
        assert await log.heard() == [1]

    async def test_a_place_beyond_the_end_of_the_log_stops_the_reader(self, log: Log) -> None:
        await log.state(stated(1))
        async with log.at_work(Hearer()) as reading:
            await reading.took(1)
        await log.move_place(1_000_000)
        async with log.at_work(Hearer()) as reading:
            with pytest.raises(LogError, match=r"Nothing is read until `passerelle rebuild"):
                await asyncio.wait_for(reading.task, PATIENCE)

    async def test_a_reader_that_is_told_to_reads_all_of_the_log_again(self, log: Log) -> None:
        await log.state(stated(1), stated(2))
        hearer = Hearer(ignores_what_it_knows=True)
        async with log.at_work(hearer) as reading:
            await reading.took(2)
            assert await eventlog.reread(log.service) == [log.source]
            await reading.took(4)
            await eventlog.reread(log.service)
            await log.state(stated(3))
            await reading.took(7)
        assert await log.heard() == [1, 2, 3]
        assert [n for batch in hearer.asked for n in batch] == [1, 2, 1, 2, 1, 2, 3]

    async def test_reading_again_mends_a_place_beyond_the_end_of_the_log(self, log: Log) -> None:
        await log.state(stated(1))
        async with log.at_work(Hearer()) as reading:
            await reading.took(1)
        await log.move_place(1_000_000)
        await eventlog.reread(log.service)
        async with log.at_work(Hearer(ignores_what_it_knows=True)) as reading:
            await reading.took(1)
        assert await log.heard() == [1]

    async def test_a_reader_ends_at_once_when_told(self, log: Log) -> None:
        async with log.at_work(Hearer()) as reading:
            await reading.observed.looked(1)
            reading.stop.set()
            await asyncio.wait_for(reading.task, 5)


class TestPostgresCarrier(LogPromises):
    @pytest.fixture
    def log(self, postgres_log: Log) -> Log:
        return postgres_log

    async def test_a_log_cut_off_behind_a_place_stops_the_reader_and_reading_again_mends_it(
        self, log: Log
    ) -> None:
        await log.state_each([stated(1), stated(2), stated(3)])
        await log.owner.execute(
            "insert into ingest.outbox_trimmed (xid, position)"
            " select xid, position from ingest.outbox order by xid, position offset 1 limit 1"
        )
        await log.owner.execute(
            "delete from ingest.outbox o using ingest.outbox_trimmed t"
            " where (o.xid, o.position) <= (t.xid, t.position)"
        )
        await log.owner.execute(
            "insert into screening.place values ('screening', 'ingest', 0, '3', 1, now())"
        )
        async with log.at_work(Hearer()) as reading:
            with pytest.raises(LogError, match=r"events are missing\. Nothing is read until"):
                await asyncio.wait_for(reading.task, PATIENCE)
        await eventlog.reread(log.service)
        async with log.at_work(Hearer()) as reading:
            await reading.took(1)
        assert await log.heard() == [3]


@pytest.mark.kafka
class TestKafkaCarrier(LogPromises):
    @pytest.fixture
    def log(self, kafka_log: KafkaLog) -> Log:
        return kafka_log
