"""The hot statements of ingest read by index, also if they were planned on empty tables."""

import json

import asyncpg
import pytest

from tests.conftest import FreshDatabase

FEW = 400
"""Buffers, of 8 KiB: far fewer than the tables have, more than index look-ups take."""

FILL = """
insert into ingest.resource (key, site, kind, id, version, digest, updated, told_at, patient)
select md5('k' || n)::uuid, 'hospital-a', case n % 10 when 0 then 'Patient' else 'Encounter' end,
  'e' || n, 1, 'd', now(), now(), md5('p' || n % 5000)::uuid
from generate_series(1, 60000) n;
insert into ingest.handle (site, kind, name, key)
select site, kind, 'id/' || id, key from ingest.resource;
insert into ingest.version (key, version, site, kind, digest, arrived, told_at, door, client, said)
select key, 1, site, kind, 'd', now(), now(), 'rest', 'c', '{"status": "finished"}'
from ingest.resource;
insert into ingest.identifier (site, kind, digest, key)
select site, kind, 't' || id, key from ingest.resource;
insert into ingest.patient (key, version)
select md5('p' || n)::uuid, 1 from generate_series(0, 4999) n;
insert into ingest.token (digest, key_id, system, is_card, patient)
select 't' || n, 'k', 's', false, md5('p' || n)::uuid from generate_series(0, 4999) n;
"""

CALLS = {
    "claim": "select * from claim('hospital-a', array['Encounter', 'Patient'],"
    " array['id/e7', 'id/e10'], array[gen_random_uuid(), gen_random_uuid()],"
    " array[md5('k9')::uuid])",
    "meet": "select * from meet('hospital-a', array['t7', 'new'], array['k', 'k'],"
    " array['s', 's'], array[false, false], array[md5('p9')::uuid])",
    "settle": """select settle('[{
      "key": "bb0c1cd7-2a7f-4e0b-8a30-0d0c3b6e4a11", "version": 2,
      "fields": {}, "sites": [],
      "attributed": [], "link_version": 0, "apart": [], "digests": ["t7"],
      "recorded": "2026-01-01T00:00:00Z"}]', '[]')""",
    "keep": """select keep('hospital-a', 'c', '[{
      "key": "bb0c1cd7-2a7f-4e0b-8a30-0d0c3b6e4a12",
      "kind": "Encounter", "id": "n", "version": 1, "digest": "d", "deleted": false,
      "updated": "2026-01-01T00:00:00Z",
      "temporary": false, "told_at": "2026-01-01T00:00:00Z", "fact_version": 0,
      "existed": true, "identifiers": ["x"]}]', '[]')""",
    "waiting": "select * from waiting('hospital-a', array[md5('k7')::uuid],"
    " array[md5('k9')::uuid])",
    "matching": "select * from matching('hospital-a', array['te7', 'te8'])",
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_hot_statement_reads_by_index(database: FreshDatabase, call: str) -> None:
    """CT-80's like for ingest: first planned on empty tables, then 60,000 rows, no analyze."""
    connection = await asyncpg.connect(database.url("ingest"))
    enter = (
        "select set_config('role', 'passerelle_ingest_request', true),"
        " set_config('passerelle.tenant', 'hospital-a', true)"
    )
    try:
        planning = connection.transaction()
        await planning.start()
        await connection.execute(enter)
        await connection.execute(CALLS[call])
        await planning.rollback()
        owner = await database.owner()
        try:
            await owner.execute(FILL)
        finally:
            await owner.close()
        async with connection.transaction():
            await connection.execute(enter)
            plan = await connection.fetchval(
                f"explain (analyze, buffers, format json) {CALLS[call]}"
            )
        top = json.loads(plan)[0]["Plan"]
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < FEW
    finally:
        await connection.close()
