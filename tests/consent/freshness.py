"""`make freshness`: 10,000 random schedules of consent and of who wants to know (CS-50).

    python -m tests.consent.freshness [--schedules 10000] [--seed 20260302] [--jobs 2]

Batches of schedules run each in a database of their own, in processes of their own. Exit code 0
only if nothing was disclosed after a withdrawal was acknowledged, nothing that had to be told was
lost, and nothing came twice that no worker had died over.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from services.cli import postgres
from services.plumbing.db import Database
from tests.conftest import TEMPLATE, THROWAWAY, Cluster, FreshDatabase, _template
from tests.consent.schedules import Batch, Found

PATIENTS: Final = 50
"""Schedules of a batch."""
STEPS: Final = 8


async def batch(database: FreshDatabase, seed: int, patients: int = PATIENTS) -> Found:
    """Some schedules, in that database."""
    db = Database(database.url("notify"), "notify", pool=40)
    try:
        return await Batch(db, seed, patients, STEPS).run()
    finally:
        await db.close()


async def _in_new_database(cluster: Cluster, seed: int, patients: int) -> Found:
    name = f"f{seed}"
    await cluster.run(f"create database {name} template {TEMPLATE} owner {postgres.OWNER}")
    try:
        return await batch(FreshDatabase(cluster, name), seed, patients)
    finally:
        await cluster.run(f"drop database {name} with (force)")


def _run(cluster: Cluster, seed: int, patients: int) -> Found:
    return asyncio.run(_in_new_database(cluster, seed, patients))


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--schedules", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=20260302)
    asked.add_argument("--jobs", type=int, default=2)
    said = asked.parse_args()
    sizes = [PATIENTS] * (said.schedules // PATIENTS)
    if said.schedules % PATIENTS:
        sizes.append(said.schedules % PATIENTS)
    found, begun = Found(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        Path(folder).chmod(0o711)
        with postgres.running(Path(folder) / "pg", THROWAWAY) as server:
            cluster = Cluster(server)
            asyncio.run(_template(cluster))
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(said.jobs, mp_context=context) as pool:
                waiting = [
                    pool.submit(_run, cluster, said.seed + n, size) for n, size in enumerate(sizes)
                ]
                for done in as_completed(waiting):
                    found.add(done.result())
    for fault in found.faults:
        print(f"  {fault}")
    told = ", ".join(f"{number:,} {channel}" for channel, number in sorted(found.told.items()))
    after = sum("disclosed:" in fault for fault in found.faults)
    print(
        f"Freshness, seed {said.seed}: {found.schedules:,} schedules, {found.writes:,} changes,"
        f" {sum(found.told.values()):,} attempts ({told}),"
        f" {found.late:,} requests within the second after their decision,"
        f" disclosures after withdrawal: {after}, other faults: {len(found.faults) - after};"
        f" {time.perf_counter() - begun:.0f} s."
    )
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
