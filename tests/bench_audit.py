"""`python -m tests.bench_audit`: how fast audit records are sealed and verified (CS-113).

Figures depend on the machine; the floor is 50,000 records verified a second.
"""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from services.cli import postgres
from services.plumbing import chain
from services.plumbing.chain import Sealer
from services.plumbing.db import Database
from tests.conftest import TEMPLATE, Cluster, FreshDatabase, _template

RECORDS = int(os.environ.get("BENCH_AUDIT", "300000"))  # noqa: TID251 - a knob of the bench
WANTED = 50_000

_FILL = (
    "insert into notify.audit (recorded, shape, interaction, outcome, tenant, agent, agent_kind,"
    " roles, network, patient, entities, purpose, policy, items, level, basis, request_id)"
    " select now() - n * interval '1 second', 'PatientRead', 'read', 0, 'clinic-' || n % 20,"
    " 'nurse-' || n % 100, 'person', '{clinic_cm}', '192.0.2.7', gen_random_uuid(),"
    " array['Task/' || gen_random_uuid() || '/_history/2'], 'COC', 'qc/implied',"
    " '{ed-visit:4,hospital-stay:1}', 'L1', '{Consent/TEST-1/_history/2}',"
    " 'TEST-request-' || lpad(n::text, 12, '0') from generate_series(1, $1) n"
)


async def measure(database: FreshDatabase) -> bool:
    owner = await database.owner()
    await owner.execute(_FILL, RECORDS)
    await owner.execute("analyze")
    db = Database(database.url("notify"), "notify")
    sealer = Sealer(db)
    began = time.perf_counter()
    while await sealer.seal():
        pass
    sealing = RECORDS / (time.perf_counter() - began)
    await owner.execute("analyze")
    began = time.perf_counter()
    async with owner.transaction(isolation="repeatable_read"):
        verdict = await chain.verify(owner, [])
    verifying = verdict.records / (time.perf_counter() - began)
    assert verdict.records == RECORDS
    assert not verdict.bad
    await db.close()
    await owner.close()
    print(f"audit, {os.cpu_count()} cores, {RECORDS:,} records, 20 tenants")
    print(f"sealed    {sealing:>10,.0f} records/s")
    print(f"verified  {verifying:>10,.0f} records/s (wanted: {WANTED:,})")
    return verifying >= WANTED


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:
        Path(folder).chmod(0o711)
        with postgres.running(Path(folder) / "pg") as server:
            cluster = Cluster(server)

            async def run() -> bool:
                await _template(cluster)
                await cluster.run(
                    f"create database bench template {TEMPLATE} owner {postgres.OWNER}"
                )
                return await measure(FreshDatabase(cluster, "bench"))

            return 0 if asyncio.run(run()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
