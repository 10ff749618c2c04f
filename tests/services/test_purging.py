"""The audit is cut where its older records have been kept long enough (CS-121)."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from services.cli import purging
from services.cli.purging import Purge
from services.plumbing import chain, region
from services.plumbing.db import Database, driver_url
from services.plumbing.settings import SettingsError
from services.simulator.flow import REGION_FILE
from tests.conftest import FreshDatabase
from tests.services.authorities import DrivenClock
from tests.services.test_chain import KEY, OTHER_KEY, TENANTS, Kept

LATER = datetime(2032, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
async def kept(database: FreshDatabase, db: Callable[[str], Database]) -> Kept:
    """Three chains of four records, a checkpoint of 2026, and two records more of one clinic."""
    made = Kept(database, db("notify"))
    clock = DrivenClock(datetime(2026, 3, 2, 12, tzinfo=UTC))
    sealer = made.sealer(key=KEY, now=clock)
    await made.add(*TENANTS * 4)
    await sealer.seal()
    await sealer.checkpoint()
    await made.add("clinic-a", "clinic-a", first=100)
    await sealer.seal()
    clock.instant = datetime(2032, 5, 1, tzinfo=UTC)
    await sealer.checkpoint()
    return made


@pytest.fixture
async def purge(kept: Kept) -> AsyncIterator[Purge]:
    engine = create_async_engine(driver_url(kept.database.url("owner")))
    known = region.load(REGION_FILE)
    yield Purge(engine, known, "privacy", LATER, LATER, KEY, batch=5)
    await engine.dispose()


async def audit_of_notify(purge: Purge) -> int:
    done = {one.kind: one.count for one in await purge.apply()}
    return done["audit of notify"]


async def test_a_cut_audit_is_whole_and_goes_on(kept: Kept, purge: Purge) -> None:
    due = {one.kind: one.count for one in await purge.due()}
    assert due["audit of notify"] == 12
    assert (await kept.verdict()).records == 14
    assert await audit_of_notify(purge) == 12
    verdict = await kept.verdict()
    assert (verdict.bad, verdict.records) == ([], 2)
    assert await audit_of_notify(purge) == 0

    await kept.add("clinic-b", "clinic-a", first=200)  # one whose records are all gone goes on
    await kept.sealer().seal()
    verdict = await kept.verdict()
    assert (verdict.bad, verdict.pending) == ([], 0)
    assert verdict.records == 2 + 2 + 3  # and three batches with their proofs


async def test_a_purge_that_was_killed_goes_on_where_it_stopped(kept: Kept, purge: Purge) -> None:
    class KilledError(Exception):
        pass

    destroyed = purging._destroyed

    def once(kind: str, row: Any) -> purging.Destroyed:
        purging._destroyed = destroyed
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(purging, "_destroyed", once)
        with pytest.raises(KilledError):
            await purge.apply()
    assert (await kept.verdict()).bad == []
    assert await audit_of_notify(purge) == 12
    assert (await kept.verdict()).bad == []


@pytest.mark.parametrize(
    "sql",
    [
        "delete from chain.cut",
        "update chain.cut set checkpoint = 2",
        "delete from chain.link where position <= 4",
        "update chain.link set hash = sha256('x') where position = 4 and tenant = 'clinic-b'",
        "delete from notify.audit where position = (select max(position) from notify.audit"
        " where tenant = 'clinic-a')",
    ],
)
async def test_what_is_tampered_with_after_a_cut_is_found(
    kept: Kept, purge: Purge, sql: str
) -> None:
    await audit_of_notify(purge)
    await kept.owner_does(sql)
    assert (await kept.verdict()).bad != []


async def test_nobody_without_the_key_can_cut(kept: Kept, purge: Purge) -> None:
    """Records destroyed before their time, with a cut of one's own to hide it."""
    forged = chain.cut_statement("notify", 1, LATER, OTHER_KEY)
    await kept.owner_does(
        "delete from notify.audit where position <= 12; delete from chain.link where position < 4;"
        f" insert into chain.cut values ('notify', 1, now(), '{forged}')"
    )
    said = [str(bad) for bad in (await kept.verdict()).bad]
    assert "notify: the cut at checkpoint 1 is not signed" in said


async def test_without_the_key_nothing_is_cut(kept: Kept, purge: Purge) -> None:
    keyless = Purge(purge.engine, purge.region, purge.by, purge.now, purge.real, None)
    with pytest.raises(SettingsError, match="PASSERELLE_CHECKPOINT_KEY"):
        await keyless.apply()
    assert (await kept.verdict()).records == 14


async def test_a_segment_with_a_held_patient_stays_whole(kept: Kept, purge: Purge) -> None:
    assert await purging.place(purge, UUID(int=2), "TEST-matter-7")
    assert await audit_of_notify(purge) == 0
    assert await purging.lift(purge, UUID(int=2))
    assert await audit_of_notify(purge) == 12


async def test_what_is_younger_than_its_term_stays(kept: Kept, purge: Purge) -> None:
    young = Purge(
        purge.engine, purge.region, "privacy", purge.now, LATER - timedelta(days=1 + 365 * 2), KEY
    )
    assert {one.count for one in await young.apply()} == {0}
