"""Each hot query of screening is served by the index it names (CT-80, CT-81), and reads only
the rows of its patients.
"""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.sql import Executable

from services.plumbing.db import Database, Tx
from services.screening import flow, registry, store
from tests.conftest import FreshDatabase
from tests.histories import P, at, ed_visit, key
from tests.services.screening import Screening, recorded

NOW = at("2026-08-08 13:00-04")
ONE = {"patients": [P]}


@pytest.fixture
async def tx(db: Callable[[str], Database]) -> AsyncIterator[Tx]:
    async with db("screening").work() as made:
        await made.execute(text("set local enable_seqscan = off"))
        yield made


async def explained(tx: Tx, query: Executable, values: dict[str, Any]) -> str:
    """The plan of `query` as it is sent."""
    sent: list[tuple[str, Any]] = []

    def listen(*said: Any) -> None:
        sent.append((said[2], said[3]))

    event.listen(tx.sync_connection, "before_cursor_execute", listen)
    await tx.execute(query, values)
    event.remove(tx.sync_connection, "before_cursor_execute", listen)
    ((statement, parameters),) = sent
    raw = await tx.get_raw_connection()
    assert raw.driver_connection is not None
    rows = await raw.driver_connection.fetch(f"explain {statement}", *parameters)
    return "\n".join(row[0] for row in rows)


LIST = {
    "states": ["flagged"],
    "site": None,
    "since_change": None,
    "before": None,
    "before_key": None,
    "most": 10,
}


@pytest.mark.parametrize(
    ("query", "values", "indexes"),
    [
        (store.LEDGER, ONE, ["fact_patient_start"]),
        (store.STANDINGS, ONE, ["patient_pkey"]),
        (store.VERSIONS, ONE, ["fact_version_patient", "fact_version_pkey"]),
        (store.KIN, {"keys": [P], "encounters": [P]}, ["fact_pkey", "link_pkey", "link_surviving"]),
        (store.LINKS, {"keys": [P]}, ["link_version_pkey", "link_version_surviving"]),
        (store.DUE, {"now": NOW, "most": 10}, ["patient_due"]),
        (store.FLAGS, LIST, ["patient_changed"]),
        (store.CHANGES, {"patient": P}, ["change_pkey"]),
        (store.FLAGS_SHADOW, LIST | {"run": 1}, ["shadow_changed"]),
        (
            registry.SHADOW_DUE,
            {"now": NOW, "runs": [1], "most": 10},
            ["shadow_due", "patient_pkey"],
        ),
        (registry.FOLLOWING, {"place": P, "most": 10}, ["patient_pkey"]),
        (registry.WAITING, {"now": NOW}, ["activation_waiting"]),
        (registry.UNFINISHED, {}, ["activation_unfinished"]),
    ],
    ids=[
        "ledger",
        "standings",
        "versions",
        "kin",
        "links",
        "due",
        "flags",
        "changes",
        "flags in shadow",
        "due in shadow",
        "everybody",
        "activations that wait",
        "activations at work",
    ],
)
async def test_a_hot_query_is_served_by_the_index_it_names(
    tx: Tx, query: Executable, values: dict[str, Any], indexes: list[str]
) -> None:
    plan = await explained(tx, query, values)
    assert [index for index in indexes if index not in plan] == [], plan
    assert "Seq Scan" not in plan, plan


async def rows_read(tx: Tx) -> dict[str, int]:
    """Rows of each table that this connection has fetched and the server not yet added up."""
    found = await tx.execute(
        text(
            "select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) as rows"
            " from pg_stat_xact_user_tables where schemaname = 'screening'"
        )
    )
    return {row.relname: row.rows for row in found}


async def test_ct_80_a_recount_reads_the_rows_of_its_patient_however_many_others_there_are(
    db: Callable[[str], Database], database: FreshDatabase
) -> None:
    screening = Screening(db("screening"))
    others = [key(f"TEST-{n}") for n in range(500)]
    await screening.meet(P, *others)
    many = [
        ed_visit(f"{n}-{m}", f"2026-0{m}-01 10:00-04", patient=patient)
        for n, patient in enumerate(others)
        for m in (4, 5, 6)
    ]
    await screening.take(*many, now=NOW)
    mine = [ed_visit(f"e-{m}", f"2026-0{m}-01 10:00-04") for m in (4, 5, 6)]
    await screening.take(*mine, now=NOW)
    owner = await database.owner()
    await owner.execute("analyze")
    await owner.close()
    async with screening.at(NOW) as turn:
        before = await rows_read(turn.tx)
        visit = ed_visit("e-9", "2026-08-08 09:00-04")
        await flow.on_encounters_recorded([recorded(visit)], turn)
        after = await rows_read(turn.tx)
    read = {table: after[table] - before[table] for table in after}
    assert 4 <= read["fact"] <= 12
    assert read["fact_version"] <= 12
    assert read["patient"] <= 12


async def test_ct_81_with_nothing_due_a_sweep_reads_no_fact(db: Callable[[str], Database]) -> None:
    screening = Screening(db("screening"))
    await screening.meet(P)
    visits = [ed_visit(f"e-{m}", f"2026-0{m}-01 10:00-04") for m in (4, 5, 6)]
    await screening.take(*visits, now=NOW)
    async with screening.at(NOW + timedelta(days=1)) as turn:
        before = await rows_read(turn.tx)
        assert await flow.sweep(turn) == 0
        assert (await rows_read(turn.tx))["fact"] == before["fact"]
