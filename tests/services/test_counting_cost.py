"""What a recount and a sweep read (CT-80, CT-81, CT-83): by the plans of the very statements that
they send, and by the rows those read, on a ledger and on the same one grown tenfold.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from services.plumbing.db import Database, Tx
from services.screening import flow
from tests.bench_counting import NOW, encounters, live_event, patient_key
from tests.conftest import FreshDatabase
from tests.histories import qc_default
from tests.services.screening import Screening

FEWER, SOME, MORE = 600, 2_000, 6_000
"""Patients, of ten encounters each. With fewer a scan of all would be the better plan."""
GROWING = {"fact", "fact_version", "patient", "person_version", "change", "episode"}
"""Tables that grow with the region."""
SUBJECT = next(n for n in range(FEWER) if len(list(encounters(n))) >= 30)
OWN = len(list(encounters(SUBJECT)))
DUE = 7

Work = Callable[[flow.Turn], Awaitable[object]]


@dataclass(frozen=True)
class Sent:
    """A statement as it went to the server."""

    sql: str
    parameters: Sequence[Any]


@dataclass(frozen=True)
class Read:
    """One node of a plan that reads a table."""

    node: str
    table: str
    index: str | None
    rows: int
    """Rows it fetched, those it threw away included."""
    blocks: int
    """Pages of table and index it went through for them."""


class Ledger:
    """Screening, and who is in it."""

    def __init__(self, db: Database, owner: asyncpg.Connection) -> None:
        self.screening = Screening(db)
        self.owner = owner
        self.patients = 0

    async def grow(self, patients: int) -> None:
        """Up to so many patients, by COPY of the rows that events would have made."""
        facts, versions = [], []
        for number in range(self.patients, patients):
            patient = patient_key(number)
            for start, data in encounters(number):
                which = UUID(orjson.loads(data)["encounter"])
                facts.append((which, 1, patient, "finished", start, start, data))
                versions.append((which, 1, patient, "site-a", start, start, data))
        known = NOW - timedelta(days=1200)
        people = [patient_key(number) for number in range(self.patients, patients)]
        born = date(1970, 5, 17)
        soon = [NOW + timedelta(hours=1 + n % 5000) for n in range(len(people))]
        for table, columns, rows in (
            ("fact", "encounter version patient status start first_recorded fact", facts),
            ("fact_version", "encounter version patient site recorded learnt fact", versions),
            (
                "patient",
                "key person_version birth_date identified policy due_at",
                [
                    (one, 1, born, known, qc_default().sha256, due)
                    for one, due in zip(people, soon, strict=True)
                ],
            ),
            (
                "person_version",
                "key version birth_date recorded learnt",
                [(one, 1, born, known, known) for one in people],
            ),
        ):
            await self.owner.copy_records_to_table(
                table, schema_name="screening", columns=columns.split(), records=rows
            )
        self.patients = patients
        await self.owner.execute("vacuum analyze")

    async def sent(self, work: Work, now: datetime = NOW) -> list[Sent]:
        """What `work` sends; then it is undone, so that the next one finds what this one found."""
        found: list[Sent] = []

        def listen(*said: Any) -> None:
            found.append(Sent(said[2], said[3]))

        async with self.screening.db.work() as tx:
            inner = await tx.begin_nested()
            sqlalchemy_event.listen(tx.sync_connection, "before_cursor_execute", listen)
            await work(self.screening.turn(tx, now))
            sqlalchemy_event.remove(tx.sync_connection, "before_cursor_execute", listen)
            await inner.rollback()
        return [one for one in found if not one.sql.upper().startswith(("SAVEPOINT", "RELEASE"))]

    async def read(self, work: Work, now: datetime = NOW) -> list[Read]:
        """Every read of a growing table that `work` makes, from the plans it is run by."""
        found: list[Read] = []
        for one in await self.sent(work, now):
            async with self.screening.db.work() as tx:
                inner = await tx.begin_nested()
                found += reads(await explained(tx, one))
                await inner.rollback()
        return found

    async def generic(self, work: Work) -> list[Read]:
        """The same, from the plans a connection keeps for any parameters."""
        found: list[Read] = []
        for one in await self.sent(work):
            async with self.screening.db.work() as tx:
                await tx.execute(text("set local plan_cache_mode = force_generic_plan"))
                connection = await driver(tx)
                await connection.execute(f"prepare probe as {one.sql}")
                nothing = ", ".join(["null"] * len(one.parameters))
                called = f"execute probe({nothing})" if nothing else "execute probe"
                plan = await connection.fetchval(f"explain (format json) {called}")
                await connection.execute("deallocate probe")
                found += reads(plan)
        return found


async def driver(tx: Tx) -> asyncpg.Connection:
    raw = await tx.get_raw_connection()
    assert raw.driver_connection is not None
    connection: asyncpg.Connection = raw.driver_connection
    return connection


async def explained(tx: Tx, one: Sent) -> Any:
    connection = await driver(tx)
    plan = f"explain (analyze, buffers, timing off, format json) {one.sql}"
    return await connection.fetchval(plan, *one.parameters)


def reads(plan: Any) -> Iterator[Read]:
    """The reads of growing tables in `explain (format json)`; targets of writes are not reads."""
    nodes = [plan[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        table = node.get("Relation Name")
        if table not in GROWING or node["Node Type"] == "ModifyTable":
            continue
        each = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
        index = node.get("Index Name") or next(
            (below.get("Index Name") for below in node.get("Plans", [])), None
        )
        rows = round(each * node.get("Actual Loops", 0))
        blocks = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
        yield Read(node["Node Type"], table, index, rows, blocks)


def rows(found: Sequence[Read]) -> Counter[str]:
    """Rows read, by table."""
    total: Counter[str] = Counter()
    for one in found:
        total[one.table] += one.rows
    return total


def scans(found: Sequence[Read]) -> list[Read]:
    return [one for one in found if "Seq Scan" in one.node or one.index is None]


@pytest.fixture
async def ledger(db: Callable[[str], Database], database: FreshDatabase) -> AsyncIterator[Ledger]:
    owner = await database.owner()
    made = Ledger(db("screening"), owner)
    await made.grow(FEWER)
    yield made
    await owner.close()


async def one_more(turn: flow.Turn) -> None:
    """A visit of a patient who is flagged by it, so that everything there is to read is read."""
    await flow.on_encounters_recorded([live_event(SUBJECT, 0, NOW)], turn)


async def test_ct_80_a_recount_reads_its_patient_by_index_and_no_more_of_a_ledger_grown_tenfold(
    ledger: Ledger,
) -> None:
    before = await ledger.read(one_more)
    await ledger.grow(MORE)
    after = await ledger.read(one_more)
    assert scans(after) == []
    assert rows(after) == rows(before)
    assert {one.index for one in after if one.table == "fact" and one.rows > 1} == {
        "fact_patient_start"
    }
    pages = [sum(one.blocks for one in some if one.table == "fact") for some in (before, after)]
    assert pages[1] <= pages[0] + 10  # a higher tree, not a longer walk
    # The newest facts once, and once more every version, for whether it is an alert.
    assert OWN <= rows(after)["fact"] <= OWN + 2
    assert OWN <= rows(after)["fact_version"] <= 3 * (OWN + 1)
    assert rows(after)["patient"] <= 4


async def test_ct_80_so_do_the_plans_that_a_connection_keeps(ledger: Ledger) -> None:
    await ledger.grow(SOME)
    assert scans(await ledger.generic(one_more)) == []


async def test_ct_81_with_nothing_due_a_sweep_asks_its_index_and_reads_no_row(
    ledger: Ledger,
) -> None:
    found = await ledger.read(flow.sweep)
    assert [(one.index, one.rows) for one in found] == [("patient_due", 0)]


async def test_ct_81_a_sweep_reads_those_who_are_due_and_no_more_of_a_ledger_grown_tenfold(
    ledger: Ledger,
) -> None:
    due = [patient_key(number) for number in range(DUE)]
    mine = sum(len(list(encounters(number))) for number in range(DUE))
    await ledger.owner.execute(
        "update screening.patient set due_at = $1 where key = any($2)", NOW, due
    )
    before = await ledger.read(flow.sweep)
    await ledger.grow(MORE)
    after = await ledger.read(flow.sweep)
    assert scans(after) == []
    for table in ("fact", "fact_version", "episode", "change"):
        assert rows(after)[table] == rows(before)[table], table
    assert rows(after)["patient"] == 3 * DUE  # found, read, written
    assert [one.rows for one in after if one.index == "patient_due"] == [DUE]
    assert rows(after)["fact"] == mine
