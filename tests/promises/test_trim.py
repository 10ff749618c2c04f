"""On PostgreSQL the outbox keeps an event for thirty days; nobody who was away longer is misled."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from schemas.patient_merged_v1 import PatientMerged
from services.plumbing.clock import Clock, drive
from services.plumbing.db import Database
from services.plumbing.eventlog import LogError, PostgresCarrier, Reader, Trimmer, Turn, append, on

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


async def seen(_batch: Sequence[PatientMerged], _turn: Turn) -> None:
    return None


def reader(db: Database, clock: Clock) -> Reader[Turn]:
    return Reader(db, [on(PatientMerged, seen)], Turn, PostgresCarrier(db), clock)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    drive(tmp_path / "clock.json", NOW, 0)
    return Clock(tmp_path / "clock.json")


async def state(db: Database, at: datetime) -> None:
    async with db.work() as tx:
        fact = PatientMerged(surviving=uuid4(), retired=uuid4(), version=1, recorded=at)
        await append(tx, [fact], at)


async def left(db: Database) -> int:
    async with db.work() as tx:
        return int((await tx.execute(text("select count(*) from outbox"))).scalar_one())


async def test_what_is_thirty_days_old_goes_and_what_is_younger_stays(
    db: Callable[[str], Database], clock: Clock
) -> None:
    await state(db("ingest"), NOW - timedelta(days=30, seconds=1))
    await state(db("ingest"), NOW - timedelta(days=30))
    assert await Trimmer(db("ingest"), clock).trim()
    assert await left(db("ingest")) == 1
    assert not await Trimmer(db("ingest"), clock).trim()


async def test_a_reader_that_was_away_longer_stops_and_says_what_to_do(
    db: Callable[[str], Database], clock: Clock
) -> None:
    await PostgresCarrier(db("screening")).start(reader(db("screening"), clock))
    await state(db("ingest"), NOW - timedelta(days=31))
    await Trimmer(db("ingest"), clock).trim()
    with pytest.raises(LogError, match="passerelle rebuild screening"):
        await reader(db("screening"), clock).run(asyncio.Event())


async def test_a_reader_that_has_read_all_goes_on_after_a_trim(
    db: Callable[[str], Database], clock: Clock
) -> None:
    await state(db("ingest"), NOW - timedelta(days=31))
    stop = asyncio.Event()
    running = asyncio.create_task(reader(db("screening"), clock).run(stop))
    async with db("screening").work() as tx:
        moved = text("select position from place where reader = 'screening' and source = 'ingest'")
    for _ in range(200):
        async with db("screening").work() as tx:
            if ((await tx.execute(moved)).scalar() or -1) > 0:
                break
        await asyncio.sleep(0.02)
    stop.set()
    await running
    assert await Trimmer(db("ingest"), clock).trim()
    stop = asyncio.Event()
    again = asyncio.create_task(reader(db("screening"), clock).run(stop))
    await asyncio.sleep(0.2)
    stop.set()
    await again
