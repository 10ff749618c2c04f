"""Years later: what has been kept long enough is destroyed, and nothing else (CS-120, CS-121)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import create_async_engine

from services.cli import purging
from services.cli.house import House
from services.cli.purging import Purge
from services.plumbing import chain, region
from services.plumbing.clock import drive, real_now
from services.plumbing.db import driver_url
from services.plumbing.settings import SettingsError
from services.simulator.flow import REGION_FILE
from tests.story.conftest import a_house
from tests.story.feed import Caller, Person, encounter, eventually, patient, upload_panel
from tests.story.test_story import SITE, callers, consent, put, tasks

THEN = datetime.fromisoformat("2027-03-01T12:00:00+00:00")
LATER = THEN + timedelta(days=8 * 365)
pytestmark = pytest.mark.slow


@pytest.fixture
def five_years(tmp_path: Path) -> Path:
    file = tmp_path / "region.yaml"
    file.write_text(REGION_FILE.read_text() + "\nretention: {facts: 1827}\n")
    return file


async def rows(house: House, sql: str, *values: object) -> list[asyncpg.Record]:
    """As the superuser, who sees everything."""
    url = house.server.url("postgres", house.server.password, "passerelle")
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(sql, *values)
    finally:
        await connection.close()


async def left_of(house: House, keys: list[UUID]) -> dict[str, int]:
    """Rows about these patients, in every table that has any."""
    columns = await rows(
        house,
        "select table_schema || '.' || table_name as name, column_name from"
        " information_schema.columns where column_name in ('patient', 'retired')"
        " and data_type = 'uuid'"
        " and table_schema in ('ingest', 'screening', 'notify') and table_name <> 'audit'"
        " union values ('ingest.patient', 'key'), ('screening.patient', 'key'),"
        " ('notify.patient', 'key')",
    )
    found = {}
    for name, column in columns:
        [row] = await rows(house, f'select count(*) from {name} where "{column}" = any ($1)', keys)
        if row["count"]:
            found[name] = row["count"]
    return found


@asynccontextmanager
async def a_purge(house: House, region_file: Path, now: datetime) -> AsyncIterator[Purge]:
    kept = orjson.loads((house.plan.data / "secrets.json").read_bytes())
    url = house.server.url("passerelle_owner", kept["passwords"]["owner"], "passerelle")
    engine = create_async_engine(driver_url(url))
    try:
        yield Purge(
            engine=engine,
            region=region.load(region_file),
            by="privacy",
            now=now,
            real=real_now(),
            key=chain.signing_key(SecretStr(str(kept["checkpoint_key"]))),
            batch=2,
        )
    finally:
        await engine.dispose()


def somebody(number: int, last: datetime, visits: int) -> Person:
    return Person(
        number, "clinic-a", tuple(last - timedelta(days=9 * n) for n in reversed(range(visits)))
    )


async def key_of(house: House, encounters: int) -> UUID:
    """The patient with so many encounters."""
    [row] = await rows(
        house,
        "select patient from screening.fact group by patient having count(*) = $1",
        encounters,
    )
    return UUID(str(row["patient"]))


async def arrive(hospital: Caller, one: Person) -> None:
    await put(hospital, patient(one, SITE))
    for index in range(len(one.visits)):
        await put(hospital, encounter(one, index, SITE))


async def test_what_is_over_is_destroyed_and_what_is_held_or_young_stays(
    five_years: Path, tmp_path: Path
) -> None:
    clock = tmp_path / "clock.json"
    drive(clock, THEN, 1)
    flagged, few, held = (somebody(n, THEN - timedelta(hours=5), n) for n in (4, 2, 3))
    extra = {"PASSERELLE_SWEEP_SECONDS": "1"}
    async with (
        a_house(five_years, extra, clock) as house,
        callers(house) as (hospital, emr, _),
    ):
        await upload_panel(emr, [flagged], "nurse-a")
        for one in (flagged, few, held):
            await arrive(hospital, one)
        [task] = await tasks(emr, 1)
        withdrawn = {**consent(few, "deny"), "dateTime": THEN.isoformat(), "status": "inactive"}
        done = await hospital.http.put(
            f"{house.url('notify')}/fhir/Consent/c-2",
            json=withdrawn,
            headers={"Content-Type": "application/fhir+json", **await hospital.headers()},
        )
        assert done.is_success, done.text
        three = [await key_of(house, n) for n in (4, 2, 3)]
        assert len(await left_of(house, three)) > 15

        # Eight years on, the card was closed, and somebody new has come.
        for index in range(4):
            corrected = encounter(flagged, index, SITE, status="entered-in-error")
            await put(hospital, corrected)

        async def closed() -> bool:
            return [
                r["closed"] is not None for r in await rows(house, "select closed from notify.card")
            ] == [True]

        assert await eventually(closed, 30)
        drive(clock, LATER, 1)
        new = somebody(1, LATER - timedelta(hours=3), 1)
        await arrive(hospital, new)

        async def below() -> bool:
            found = await rows(
                house,
                "select count(*) from screening.patient where state <> 'below' or due_at < $1",
                LATER,
            )
            return (
                found[0]["count"] == 0
                and len(await rows(house, "select key from screening.patient")) == 4
            )

        assert await eventually(below, 30)
        await a_short_term_is_refused(house, tmp_path)
        async with a_purge(house, five_years, LATER) as purge:
            assert await purging.place(purge, three[2], "TEST-matter-1")
            assert not await purging.place(purge, three[2], "TEST-matter-1")
            await purge_and_look(house, purge, three, task["id"])


async def purge_and_look(house: House, purge: Purge, three: list[UUID], task: str) -> None:
    due = {one.kind: one.count for one in await purge.due()}
    assert (due["cards"], due["facts"], due["consents"]) == (1, 6, 1)
    done = {one.kind: one.count for one in await purge.apply()}
    assert done["facts"] == 6
    assert done["people"] == 1  # a clinic's panel still names the other (CS-120)
    assert await left_of(house, three[1:2]) == {}
    named = await left_of(house, three[:1])
    assert named["ingest.patient"] == 1
    assert not {"screening.fact", "screening.fact_version", "notify.card"} & named.keys()
    kept = await left_of(house, three[2:])
    assert kept["screening.fact"] == 3
    assert kept["ingest.patient"] == 1
    [young] = await rows(house, "select count(*) from screening.fact where patient <> $1", three[2])
    assert young["count"] == 1
    assert await rows(house, "select from ingest.version where kind = 'Encounter'") != []
    assert not await rows(house, "select from notify.card where id = $1", UUID(task))
    assert {one.count for one in await purge.apply()} == {0}

    # Each batch has its proof: class, range and count, and of whom not a word.
    proofs = await rows(
        house,
        "select entities, query, agent, patient from screening.audit where shape = 'Delete'"
        " and entities = array['retention/facts']",
    )
    assert [p["query"].rpartition("&")[2] for p in proofs] == ["count=2"] * 3
    assert {(p["agent"], p["patient"]) for p in proofs} == {("privacy", None)}

    # A lifted hold, and the rest goes.
    assert await purging.held(purge) != []
    assert await purging.lift(purge, three[2])
    assert await purging.held(purge) == []
    assert {one.kind: one.count for one in await purge.apply()}["facts"] == 3
    assert await left_of(house, three[1:]) == {"notify.legal_hold": 1}


async def a_short_term_is_refused(house: House, tmp_path: Path) -> None:
    """CS-120: never below the longest policy window, hold and quiet re-entry."""
    file = tmp_path / "short.yaml"
    file.write_text(REGION_FILE.read_text() + "\nretention: {facts: 700}\n")
    async with a_purge(house, file, LATER) as purge:
        with pytest.raises(SettingsError, match="700 days is less than the 725"):
            await purge.due()
