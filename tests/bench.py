"""`make bench`: how fast, how late, how much memory, on this machine, in one run.

Every absolute figure depends on the machine; ratios against the floor of the same run travel.
Load goes to this machine's loopback only, and every loop is bounded.
"""

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import orjson

from services.cli.house import House
from services.plumbing.clock import real_now
from tests.story.conftest import a_house
from tests.story.feed import (
    Caller,
    Person,
    all_tasks,
    bundle,
    encounter,
    eventually,
    people,
    push_people,
    upload_panel,
)

SITE = "hospital-a"
SINGLE = int(os.environ.get("BENCH_SINGLE", "3000"))  # noqa: TID251 - a knob of the bench
BUNDLED = int(os.environ.get("BENCH_BUNDLED", "20000"))  # noqa: TID251
LATENCY = int(os.environ.get("BENCH_LATENCY", "1000"))  # noqa: TID251
BACKFILL = int(os.environ.get("BENCH_BACKFILL", "100000"))  # noqa: TID251
RATE = 100.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    note: str = ""


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def numbered(members: list[Person], first: int) -> list[Person]:
    """The same people under other numbers, so that runs do not meet."""
    return [Person(first + one.number, one.clinic, one.visits) for one in members]


async def singles(house: House, members: Sequence[Person]) -> Row:
    """PUTs of one Encounter each, 16 at a time, each answered after its commit with fsync."""
    callers = [Caller(f"{house.url('ingest')}/fhir", SITE, house.token) for _ in range(16)]
    todo = [encounter(one, 0, SITE) for one in members]
    for caller in callers:
        await caller.headers()
    began = time.perf_counter()

    async def work(caller: Caller) -> None:
        while todo:
            body = todo.pop()
            await caller.until_accepted("PUT", f"/Encounter/{body['id']}", body)

    await asyncio.gather(*(work(caller) for caller in callers))
    taken = time.perf_counter() - began
    await asyncio.gather(*(caller.close() for caller in callers))
    return Row("single PUTs, fsync on", f"{len(members) / taken:,.0f}/s", "16 connections")


async def in_bundles(
    house: House, resources: Sequence[dict[str, object]], size: int, together: int
) -> float:
    """Seconds to have all `resources` accepted in batches of `size`."""
    todo = [
        orjson.dumps(bundle(resources[at : at + size])) for at in range(0, len(resources), size)
    ]
    callers = [Caller(f"{house.url('ingest')}/fhir", SITE, house.token) for _ in range(together)]
    for caller in callers:
        await caller.headers()
    began = time.perf_counter()

    async def work(caller: Caller) -> None:
        while todo:
            answer = await caller.until_accepted("POST", "", todo.pop())
            bad = [
                entry
                for entry in answer.json()["entry"]
                if not entry["response"]["status"].startswith("2")
            ]
            assert not bad, bad[:1]

    await asyncio.gather(*(work(caller) for caller in callers))
    taken = time.perf_counter() - began
    await asyncio.gather(*(caller.close() for caller in callers))
    return taken


async def latency(house: House, members: Sequence[Person]) -> list[Row]:
    """From the request that brings the fourth visit to the Task a clinic's search shows."""
    hospital = Caller(f"{house.url('ingest')}/fhir", SITE, house.token)
    emr = Caller(house.url("notify"), "clinic-a-emr", house.token)
    await push_people(hospital, members, SITE)
    await upload_panel(emr, members, "nurse-a")
    early = [encounter(one, index, SITE) for one in members for index in range(3)]
    await in_bundles(house, early, 100, 2)
    await caught_up(house)

    before = {task["id"] for task in await all_tasks(emr)}
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}
    done = asyncio.Event()

    async def poll() -> None:
        since = (real_now() - timedelta(seconds=1)).isoformat()
        following: list[str] = []
        while not done.is_set() or len(seen) < len(members):
            if following:
                answer = await emr.http.get(following[0], headers=await emr.headers())
            else:
                answer = await emr.send(
                    "GET",
                    "/fhir/Task",
                    params={"_lastUpdated": f"ge{since}", "_sort": "_lastUpdated",
                            "_count": "200", "_include": "Task:patient"},
                )  # fmt: skip
            at = time.perf_counter()
            page = answer.json()
            cards = {
                entry["resource"]["id"]: entry["resource"]["identifier"][0]["value"]
                for entry in page.get("entry", [])
                if entry["resource"]["resourceType"] == "Patient"
            }
            for entry in page.get("entry", []):
                task = entry["resource"]
                if task["resourceType"] == "Task":
                    since = task["meta"]["lastUpdated"]  # nothing older appears later (CA-15)
                if task["resourceType"] == "Task" and task["id"] not in before:
                    card = cards.get(task["for"]["reference"].split("/")[1])
                    if card is not None:
                        seen.setdefault(card, at)
            if done.is_set() and time.perf_counter() - last > 60:
                return
            # Cards of one batch have one time, and may be more than a page.
            following = [link["url"] for link in page["link"] if link["relation"] == "next"]
            await asyncio.sleep(0 if following else 0.02)

    polling = asyncio.create_task(poll())
    tasks: list[asyncio.Task[object]] = []
    began = last = time.perf_counter()
    for number, one in enumerate(members):
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        body = encounter(one, 3, SITE)
        sent[one.card] = time.perf_counter()
        tasks.append(
            asyncio.create_task(hospital.until_accepted("PUT", f"/Encounter/{body['id']}", body))
        )
    await asyncio.gather(*tasks)
    rate = len(members) / (time.perf_counter() - began)
    last = time.perf_counter()
    done.set()
    await polling
    took = [seen[card] - at for card, at in sent.items() if card in seen]
    await hospital.close()
    await emr.close()
    if not took:
        return [Row("event to Task", "none arrived")]
    return [
        Row(
            f"event to Task in search, {rate:.0f} events/s",
            " / ".join(f"{percentile(took, part):.2f} s" for part in (0.5, 0.95, 0.99)),
            f"p50 / p95 / p99 of {len(took)} of {len(sent)}; polled each 20 ms",
        )
    ]


async def caught_up(house: House, seconds: float = 300) -> bool:
    """Whether both readers have read all that was stated."""
    connection = await asyncpg.connect(
        house.server.url("postgres", house.server.password, "passerelle")
    )

    async def even() -> bool:
        behind = await connection.fetchval(
            "select "
            + " + ".join(
                f"(select count(*) from {source}.outbox o, {reader}.place p"  # constants
                f" where p.source = '{source}' and (o.xid, o.position)"
                " > (coalesce(nullif(p.xid, ''), '0')::xid8, p.position))"
                for source, reader in (
                    ("ingest", "screening"),
                    ("ingest", "notify"),
                    ("screening", "notify"),
                )
            )
        )
        return bool(behind == 0)

    try:
        return await eventually(even, seconds, every=0.1)
    finally:
        await connection.close()


async def floor(house: House, resources: Sequence[dict[str, object]]) -> float:
    """Seconds to parse the same bytes with orjson and COPY the same rows: nothing can be faster."""
    lines = [orjson.dumps(resource) for resource in resources]
    connection = await asyncpg.connect(
        house.server.url("postgres", house.server.password, "passerelle")
    )
    await connection.execute(
        "create table public.floor (id text primary key, start timestamptz, class text, body bytea)"
    )
    began = time.perf_counter()
    rows = []
    for line in lines:
        said = orjson.loads(line)
        start = real_now().fromisoformat(said["period"]["start"])
        rows.append((said["id"], start, said["class"]["code"], line))
    await connection.copy_records_to_table("floor", records=rows, schema_name="public")
    taken = time.perf_counter() - began
    await connection.execute("drop table public.floor")
    await connection.close()
    return taken


def peak(house: House) -> list[Row]:
    """Peak resident memory of each process since it started."""
    rows = []
    for name, part in house.parts.items():
        assert part.process is not None
        status = Path(f"/proc/{part.process.pid}/status").read_text()
        high = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        rows.append(Row(f"peak memory: {name}", f"{int(high.split()[1]) / 1024:,.0f} MB"))
    return rows


def show(*rows: Row) -> None:
    """Each figure as soon as it is known: a bench that is cut short has still said something."""
    for row in rows:
        print(f"| {row.what} | {row.figure} | {row.note} |", flush=True)


async def measure() -> None:
    """All rows, in order."""
    now = real_now() - timedelta(hours=1)
    async with a_house() as house:
        hospital = Caller(f"{house.url('ingest')}/fhir", SITE, house.token)
        alone = people([1] * SINGLE, now, ("clinic-a",), 1)
        await push_people(hospital, alone, SITE)
        show(await singles(house, alone))

        bundled = numbered(people([4] * (BUNDLED // 4), now, ("clinic-b",), 2), 100_000)
        await push_people(hospital, bundled, SITE)
        visits = [encounter(one, at, SITE) for one in bundled for at in range(4)]
        taken = await in_bundles(house, visits, 100, 2)
        show(Row("Encounters by Bundles of 100", f"{len(visits) / taken:,.0f}/s", "accepted"))
        await caught_up(house)

        due = numbered(people([4] * LATENCY, now, ("clinic-a",), 3), 200_000)
        show(*await latency(house, due))

        history = numbered(people([5] * (BACKFILL // 5), now, ("clinic-c",), 4), 300_000)
        await push_people(hospital, history, SITE)
        await caught_up(house)
        visits = [encounter(one, at, SITE) for one in history for at in range(5)]
        least = await floor(house, visits)
        began = time.perf_counter()
        accepted = await in_bundles(house, visits, 1000, 2)
        await caught_up(house)
        whole = time.perf_counter() - began
        show(
            Row(
                f"backfill of {len(visits):,} Encounters, counted",
                f"{whole:.1f} s ({len(visits) / whole:,.0f}/s)",
                f"accepted after {accepted:.1f} s; Bundles of 1,000",
            )
        )
        show(
            Row(
                "its floor: orjson + COPY of the same rows",
                f"{least:.2f} s",
                f"ratio {whole / least:.0f}",
            )
        )
        show(*peak(house))
        await hospital.close()


def main() -> None:
    """Print the table as Markdown."""
    cores = os.cpu_count()
    print(f"Python {platform.python_version()}, {cores} cores, {tempfile.gettempdir()} as disk\n")
    print("| what | figure | note |")
    print("|---|---|---|", flush=True)
    asyncio.run(measure())


if __name__ == "__main__":
    main()
