"""Whether the time of an answer tells that something is withheld (`make silence`, CS-42).

    python -m tests.bench_silence [--pairs 10000]

A clinic asks in turn for a patient whose alert is suppressed and for one to whom nothing
happened, in random order, in every way it has. Prints the medians of both and their difference;
exit code 0 if it is at most 5 ms in each way and in all.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import httpx

from services.cli import postgres
from services.notify import store
from services.plumbing.db import Database
from tests.conftest import TEMPLATE, THROWAWAY, Cluster, FreshDatabase, _template
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import CSV, DENY_A, FHIR, hear

LIMIT: Final = 0.005
"""Seconds between the medians."""
FLAGGED: Final = 5
"""Patients whose cards are seen, so that a search has something to find."""
Way = Callable[[httpx.AsyncClient, UUID, UUID], Awaitable[httpx.Response]]
WAYS: Final[dict[str, Way]] = {
    "read a Patient": lambda c, p, _: c.get(f"/fhir/Patient/{p}"),
    "read a Task": lambda c, _, card: c.get(f"/fhir/Task/{card}"),
    "read a version": lambda c, _, card: c.get(f"/fhir/Task/{card}/_history/1"),
    "search by patient": lambda c, p, _: c.get(f"/fhir/Task?patient={p}"),
    "search by card number": lambda c, p, _: c.post(
        "/fhir/Task/_search", data={"patient:identifier": f"{build.CARD}|{build.number(p)}"}
    ),
}


async def measured(cluster: Cluster, pairs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each answer by way: of the suppressed patient, and of the other."""
    await cluster.run(f"create database silence template {TEMPLATE} owner {postgres.OWNER}")
    db = Database(FreshDatabase(cluster, "silence").url("notify"), "notify")
    door, chance = Doorway(db, build.house()), random.Random(20260302)
    hidden, quiet, seen = uuid4(), uuid4(), [uuid4() for _ in range(FLAGGED)]
    emr = door.client("clinic-a-emr")
    for p in (hidden, quiet, *seen):
        await hear(door, build.identified(p))
    await emr.post("/panel?dry_run=false", content=panel(hidden, quiet, *seen), headers=CSV)
    for p in (hidden, *seen):
        await hear(door, build.flag(p))
    async with db.work() as tx:
        (card,) = await store.cards_here(tx, "clinic-a", [hidden])
    answer = await door.client("hospital-a").post(
        "/fhir/Consent", json=consent(hidden, DENY_A), headers=FHIR
    )
    assert answer.is_success, answer.text
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in WAYS}
    for number in range(pairs):
        if number % 500 == 0:
            emr = door.client("clinic-a-emr")  # a token lasts five minutes
        name = list(WAYS)[number % len(WAYS)]
        two = [(0, hidden, card.id), (1, quiet, uuid4())]
        chance.shuffle(two)
        bodies = set()
        for which, patient, its_card in two:
            begun = time.perf_counter()
            said = await WAYS[name](emr, patient, its_card)
            found[name][which].append(time.perf_counter() - begun)
            bodies.add(said.status_code)
        assert len(bodies) == 1, name
    await door.close()
    await db.close()
    return found


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--pairs", type=int, default=10_000)
    said = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="ps-") as folder:
        Path(folder).chmod(0o711)
        with postgres.running(Path(folder) / "pg", THROWAWAY) as server:
            cluster = Cluster(server)
            asyncio.run(_template(cluster))
            found = asyncio.run(measured(cluster, said.pairs))
    everything: tuple[list[float], list[float]] = (
        [t for one, _ in found.values() for t in one],
        [t for _, one in found.values() for t in one],
    )
    good = True
    print("| way | pairs | withheld, median ms | nothing there, median ms | difference ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, (one, other) in [*found.items(), ("all", everything)]:
        first, second = statistics.median(one), statistics.median(other)
        good &= abs(first - second) <= LIMIT
        print(
            f"| {name} | {len(one):,} | {first * 1000:.2f} | {second * 1000:.2f}"
            f" | {(first - second) * 1000:+.2f} |"
        )
    print(f"{'SILENT' if good else 'NOT SILENT'}: at most {LIMIT * 1000:.0f} ms apart wanted.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
