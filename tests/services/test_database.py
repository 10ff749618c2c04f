"""The two roles of a service, and that neither gets past row-level security (CS-91)."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from schemas.patient_merged_v1 import PatientMerged
from services.plumbing.db import Database
from services.plumbing.eventlog import append
from services.plumbing.migrate import migrate
from tests.conftest import FreshDatabase

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def merged() -> PatientMerged:
    return PatientMerged(surviving=uuid4(), retired=uuid4(), version=1, recorded=NOW)


async def test_a_request_may_state_an_event_and_not_read_the_log(
    db: Callable[[str], Database],
) -> None:
    async with db("ingest").request("hospital-a") as tx:
        await append(tx, [merged()], NOW)
    with pytest.raises(DBAPIError, match="permission denied"):
        async with db("ingest").request("hospital-a") as tx:
            await tx.execute(text("select * from outbox"))
    async with db("ingest").work() as tx:
        assert (await tx.execute(text("select count(*) from outbox"))).scalar_one() == 1


async def test_without_a_role_a_service_may_do_nothing(db: Callable[[str], Database]) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        async with db("ingest").engine.begin() as tx:
            await tx.execute(text("select * from ingest.outbox"))


async def test_no_role_of_a_service_owns_or_bypasses(database: FreshDatabase) -> None:
    owner = await database.owner()
    try:
        strong = await owner.fetch(
            "select rolname from pg_roles where rolname like 'passerelle%' and"
            " (rolsuper or rolbypassrls)"
        )
        assert strong == []
        for role in ("ingest", "screening", "notify", "authority"):
            assert not await owner.fetchval(
                "select pg_has_role($1, 'passerelle_owner', 'MEMBER')", f"passerelle_{role}"
            )
    finally:
        await owner.close()


async def test_migrating_again_does_nothing(database: FreshDatabase) -> None:
    assert await migrate(database.url("owner"), {}) == []
