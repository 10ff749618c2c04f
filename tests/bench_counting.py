"""`make bench-counting`: what counting costs at 10,000, 100,000 and 1,000,000 encounters (CT-82).

A ledger of each size is filled through the door that live events take: events in ingest's
outbox, read by screening's own reader. Patients are made from their number alone, so the first
thousand have the same lives in all three. Absolute figures depend on the machine; the ratios of
recounts (CT-83) travel.
"""

import argparse
import asyncio
import gc
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson

from schemas.encounter_recorded_v1 import EncounterRecorded
from services.cli import postgres
from services.plumbing.clock import Clock
from services.plumbing.db import Database
from services.plumbing.eventlog import PostgresCarrier, Reader, Record, append
from services.screening import backtesting, flow, policy, presets
from services.screening.__main__ import READS
from services.screening.backtest import Period
from services.screening.backtesting import Asked
from tests.conftest import TEMPLATE, Cluster, FreshDatabase, _template
from tests.histories import qc_default
from tests.services.screening import Screening, identified

NOW = datetime(2026, 11, 24, 17, 0, tzinfo=UTC)
YEARS = timedelta(days=3 * 365)
IMPORTED = NOW - timedelta(hours=2)
PATIENTS_A_BUNDLE = 100
PER_PATIENT = 10
FULL = 100_000
"""Patients of which the targets speak."""
LIVE = 400
"""Live events that are timed."""
RECOUNTS = 200
"""Patients that are counted once more at each size."""
DUE = 3_000
FEW, SOME, MANY = (2, 6), (8, 20), (30, 58)
"""Encounters of most patients, of a fifth, and of a tenth: ten on average."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    target: str = ""
    met: bool | None = None


def show(*rows: Row) -> None:
    """Each figure as soon as it is known: a bench that is cut short has still said something."""
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "**no**"
        print(f"| {row.what} | {row.figure} | {row.target} | {met} |", flush=True)


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


# People who never existed


def patient_key(number: int) -> UUID:
    return UUID(int=(0x7E57 << 112) | (4 << 76) | (2 << 62) | number)


def encounter_key(number: int, which: int) -> UUID:
    """In no order, as ingest's are: an index on them is written everywhere."""
    bits = random.Random(number * 1000 + which).getrandbits(128)
    return UUID(int=bits, version=4)


def encounters(number: int, *, by_day: bool = False) -> Iterator[tuple[datetime, str]]:
    """When each encounter of a patient began, and the event that states it, as JSON.

    They were all recorded today, in one import: patient by patient, or `by_day` as time went.
    """
    dice = random.Random(number)
    low, high = dice.choices((FEW, SOME, MANY), (70, 20, 10))[0]
    patient = str(patient_key(number))
    for which in range(dice.randint(low, high)):
        start = NOW - timedelta(minutes=dice.randrange(1, YEARS // timedelta(minutes=1)))
        is_stay = dice.random() < 0.2
        minutes = dice.randrange(1440, 14400) if is_stay else dice.randrange(60, 900)
        end = min(start + timedelta(minutes=minutes), NOW)
        batch = (start - NOW + YEARS).days if by_day else number // PATIENTS_A_BUNDLE
        said = _event(number, which, patient, start, end, dice, is_stay=is_stay)
        said["recorded"] = _instant(IMPORTED + timedelta(seconds=batch))
        yield start, orjson.dumps(said).decode()


def _event(
    number: int,
    which: int,
    patient: str,
    start: datetime,
    end: datetime,
    dice: random.Random,
    *,
    is_stay: bool,
) -> dict[str, object]:
    """What `EncounterRecorded` says as JSON, field by field, at a tenth of its cost."""
    begun, done = _instant(start), _instant(end)
    return {
        "patient": patient,
        "encounter": str(encounter_key(number, which)),
        "version": 1,
        "site": dice.choice(("site-a", "site-a", "site-b")),
        "status": "finished",
        "classes": [{"code": "IMP" if is_stay else "EMER", "since": begun}],
        "triaged": not is_stay,
        "start": {"earliest": begun, "latest": begun, "precision": "instant"},
        "end": {"earliest": done, "latest": done, "precision": "instant"},
        "disposition": "home" if dice.random() < 0.9 else "lwbs",
        "service": None,
        "part_of": None,
        "from_emergency": False,
        "transfer_in": False,
        "transfer_out": False,
        "planned": dice.random() < 0.05,
        "codes": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "J44.1"}]
        if is_stay
        else None,
        "labels": [],
        "time_is_ambiguous": False,
        "start_is_assumed": False,
        "event_time": done,
        "recorded": done,
        "backfill": True,
    }


def _instant(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def live_event(number: int, which: int, at: datetime) -> EncounterRecorded:
    """One more ED visit of a patient, now."""
    patient, left = str(patient_key(number)), at + timedelta(minutes=3)
    said = _event(number, 900 + which, patient, at, left, random.Random(0), is_stay=False)
    return EncounterRecorded.model_validate(said | {"backfill": False, "planned": False})


# A ledger of one size


class Watched(PostgresCarrier):
    """The carrier of production; says when a batch is committed."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.committed = asyncio.Event()
        self.records = 0

    async def taken(self, records: Sequence[Record]) -> None:
        await super().taken(records)
        self.records += len(records)
        self.committed.set()


@dataclass
class Ledger:
    """Screening on a database of its own."""

    size: int
    database: FreshDatabase
    screening: Screening
    ingest: Database
    carrier: Watched
    stated: int = 0
    """Events in the log; `size` of them are wanted, dice are thrown for them."""
    took: float = 0.0
    busy: float = 0.0
    """Seconds of processor time that screening's process took of it."""
    peak: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def patients(self) -> int:
        return self.size // PER_PATIENT

    def met(self, target: bool) -> bool | None:
        """Whether a target of CT-82 is met: one of a million encounters, of no fewer."""
        return target if self.patients >= FULL else None

    @asynccontextmanager
    async def reading(self, now: datetime = NOW) -> AsyncIterator[None]:
        """Screening's reader runs, as in its service, at business time `now`."""
        reader = Reader(
            self.screening.db,
            READS,
            lambda tx, _: self.screening.turn(tx, now),
            self.carrier,
            Clock(),
        )
        self.stop.clear()
        running = asyncio.create_task(reader.run(self.stop))
        try:
            yield
        finally:
            self.stop.set()
            await running

    async def close(self) -> None:
        await self.screening.db.close()
        await self.ingest.close()


@asynccontextmanager
async def ledger(cluster: Cluster, size: int, *, by_time: bool) -> AsyncIterator[Ledger]:
    """`size` encounters, all counted by the reader that live events have."""
    name = f"bench_{size}"
    await cluster.run(f"create database {name} template {TEMPLATE} owner {postgres.OWNER}")
    database = FreshDatabase(cluster, name)
    db = Database(database.url("screening"), "screening")
    made = Ledger(
        size,
        database,
        Screening(db),
        Database(database.url("ingest"), "ingest"),
        Watched(db),
    )
    try:
        await meet(made)
        await state(made, by_time=by_time)
        await backfill(made)
        yield made
    finally:
        await made.close()


async def meet(made: Ledger) -> None:
    """Every patient is known before the first encounter comes."""
    for first in range(0, made.patients, 1000):
        async with made.screening.at(NOW - YEARS) as turn:
            people = range(first, min(first + 1000, made.patients))
            await flow.on_patients_identified([identified(patient_key(n)) for n in people], turn)


async def state(made: Ledger, *, by_time: bool) -> None:
    """The events in ingest's outbox: patient by patient, or as time brought them."""
    owner = await made.database.owner()
    every = (
        event for number in range(made.patients) for event in encounters(number, by_day=by_time)
    )
    chosen: Iterable[tuple[datetime, str]] = sorted(every) if by_time else every
    rows: list[tuple[str, UUID, datetime, str]] = []
    stated = 0
    for _, data in chosen:
        rows.append((EncounterRecorded.type, UUID(data[12:48]), NOW, data))
        stated += 1
        if len(rows) == 50_000:
            await _copy(owner, rows)
            rows.clear()
    await _copy(owner, rows)
    await owner.execute("analyze")
    await owner.close()
    made.stated = stated


async def _copy(owner: asyncpg.Connection, rows: Sequence[tuple[str, UUID, datetime, str]]) -> None:
    await owner.copy_records_to_table(
        "outbox",
        schema_name="ingest",
        columns=("type", "subject", "time", "data"),
        records=rows,
    )


async def backfill(made: Ledger) -> None:
    """From the first event in the log to the last one counted and committed."""
    forget_peak()
    began, busy = time.perf_counter(), time.process_time()
    async with made.reading():
        while made.carrier.records < made.stated:
            made.carrier.committed.clear()
            await made.carrier.committed.wait()
    made.took, made.busy = time.perf_counter() - began, time.process_time() - busy
    made.peak = memory()
    owner = await made.database.owner()
    await owner.execute("vacuum analyze")
    await owner.close()


def forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def memory() -> float:
    """Peak resident memory of this process since it was last reset, MB."""
    status = Path("/proc/self/status").read_text()
    high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) / 1024


# What is measured on it


async def live(made: Ledger) -> Row:
    """One event at a time: from its commit in ingest to the commit of the flag it changes."""
    owner = await made.database.owner()
    chosen = await owner.fetch(
        "select key from screening.patient where state <> 'below' order by key limit $1", LIVE
    )
    before = await owner.fetchval("select count(*) from screening.change")
    took: list[float] = []
    async with made.reading():
        for which, row in enumerate(chosen):
            number = row["key"].int & 0xFFFFFFFF
            event = live_event(number, which % 90, NOW - timedelta(minutes=5))
            made.carrier.committed.clear()
            async with made.ingest.work() as tx:
                await append(tx, [event], NOW)
            began = time.perf_counter()
            await made.carrier.committed.wait()
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
    changed = await owner.fetchval("select count(*) from screening.change") - before
    await owner.close()
    assert changed == len(chosen), (changed, len(chosen))
    p50, p95 = (percentile(took, part) * 1000 for part in (0.5, 0.95))
    return Row(
        f"one live event, committed fact to committed flag, p50 / p95 of {len(took)}",
        f"{p50:.1f} ms / {p95:.1f} ms",
        "p95 ≤ 20 ms",
        made.met(p95 <= 20),
    )


async def recounts(made: Sequence[Ledger]) -> dict[int, float]:
    """Seconds of one recount after one more encounter, by size: the median over the same
    patients, each counted at every size before the next one.
    """
    took: dict[int, list[float]] = {one.size: [] for one in made}
    for number in range(RECOUNTS):
        for one in made:
            event = live_event(number, 99, NOW - timedelta(minutes=4))
            began = time.perf_counter()
            async with one.screening.at(NOW) as turn:
                await flow.on_encounters_recorded([event], turn)
            took[one.size].append(time.perf_counter() - began)
    return {size: statistics.median(found[20:]) for size, found in took.items()}


async def swept(made: Ledger) -> Row:
    """The first instant at which DUE patients are due of themselves, and their recount."""
    owner = await made.database.owner()
    when = await owner.fetchval(
        "select due_at from screening.patient where due_at is not null"
        " order by due_at offset $1 limit 1",
        min(DUE, made.patients // 30) - 1,
    )
    await owner.close()
    found = 0
    began = time.perf_counter()
    while True:
        async with made.screening.at(when) as turn:
            count = await flow.sweep(turn)
        found += count
        if count < flow.SWEEP:
            break
    took = time.perf_counter() - began
    return Row(
        f"sweep of {found:,} due patients", f"{took:.2f} s", "≤ 2 s for 3,000", made.met(took <= 2)
    )


async def tried(made: Ledger) -> list[Row]:
    """A back-test of one year over the whole ledger, beside the live policy (CT-71)."""
    rules = [policy.load(presets.text("conect6-entry")), qc_default()]
    last = NOW.date() - timedelta(days=1)
    period = Period(last - timedelta(days=364), last, rules[0].zone)
    forget_peak()
    began = time.perf_counter()
    async with made.screening.db.work() as tx:
        await backtesting.counted(tx, Asked(rules, period))
    took, peak = time.perf_counter() - began, memory()
    what = f"one-year back-test of {made.patients:,} patients, two policies"
    return [
        Row(what, f"{took:.1f} s", "≤ 120 s", made.met(took <= 120)),
        Row("its peak memory", f"{peak:,.0f} MB", "≤ 256 MB", made.met(peak <= 256)),
    ]


async def measure(cluster: Cluster, sizes: Sequence[int], *, by_time: bool) -> None:
    """All rows, in order."""
    async with (
        ledger(cluster, sizes[0], by_time=by_time) as small,
        ledger(cluster, sizes[1], by_time=by_time) as middle,
        ledger(cluster, sizes[2], by_time=by_time) as large,
    ):
        every = (small, middle, large)
        for one in every:
            is_target = one is large
            show(
                Row(
                    f"backfill of {one.stated:,} encounters, {one.patients:,} patients, counted",
                    f"{one.took:.1f} s ({one.stated / one.took:,.0f}/s)",
                    "≤ 90 s" if is_target else "",
                    one.met(one.took <= 90),
                ),
                Row("its processor time in Python", f"{one.busy:.1f} s"),
                Row("its peak memory", f"{one.peak:,.0f} MB"),
            )
        cost = await recounts(every)
        for one in every:
            show(Row(f"one recount among {one.size:,}", f"{cost[one.size] * 1000:.2f} ms"))
        for less, target in ((middle, 1.3), (small, 1.5)):
            ratio = cost[large.size] / cost[less.size]
            show(
                Row(
                    f"recount at {large.size:,} against {less.size:,}",
                    f"{ratio:.2f}",
                    f"≤ {target}",
                    ratio <= target,
                )
            )
        show(await live(large))
        show(*await tried(large))
        show(await swept(large))


def main() -> None:
    """Print the table as Markdown."""
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("--encounters", type=int, default=1_000_000, help="of the largest ledger")
    said.add_argument("--by-time", action="store_true", help="all patients mixed, as time went")
    asked = said.parse_args()
    sizes = [asked.encounters // 100, asked.encounters // 10, asked.encounters]
    order = "as time went" if asked.by_time else "patient by patient"
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, fsync on, {order}\n")
    print("| what | figure | target | met |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:
        Path(folder).chmod(0o711)
        with postgres.running(Path(folder) / "pg") as server:
            cluster = Cluster(server)

            async def run() -> None:
                await _template(cluster)
                await measure(cluster, sizes, by_time=asked.by_time)

            asyncio.run(run())


if __name__ == "__main__":
    main()
