"""Promise 1: answered with 2xx, counted exactly once, told exactly once, whatever is killed."""

import asyncio
import os
import signal
from collections import Counter
from datetime import timedelta

import httpx
import pytest

from services.cli.house import House
from services.plumbing.clock import real_now
from tests.story.conftest import a_house
from tests.story.feed import (
    FLAGGED_AT,
    Caller,
    Person,
    all_tasks,
    encounter,
    eventually,
    people,
    push_people,
    upload_panel,
)

KILLS = 50
SITE = "hospital-a"
CLINICS = {"clinic-a": "nurse-a", "clinic-b": "nurse-b"}
COUNTS = [4] * 1000 + [1] * 500 + [2] * 250
"""1,000 people over the threshold, 750 below: 5,000 encounters."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


async def kill(house: House, name: str) -> None:
    process = house.parts[name].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


async def push(house: House, members: list[Person]) -> int:
    """Push every visit, eight at a time in shuffled order, killing a service every 100."""
    hospital = Caller(f"{house.url('ingest')}/fhir", SITE, house.token)
    todo = [(one, index) for one in members for index in range(len(one.visits))]
    todo.sort(key=lambda pair: (pair[0].number * 7919 + pair[1] * 104729) % 5003)
    every = len(todo) // KILLS
    accepted = kills = 0

    async def work() -> None:
        nonlocal accepted, kills
        while todo:
            one, index = todo.pop()
            body = encounter(one, index, SITE)
            await hospital.until_accepted("PUT", f"/Encounter/{body['id']}", body)
            accepted += 1
            if accepted % every == 0 and kills < KILLS:
                kills += 1
                await kill(house, ("ingest", "screening", "notify")[kills % 3])

    await asyncio.gather(*(work() for _ in range(8)))
    await hospital.close()
    assert kills == KILLS
    return accepted


async def test_fifty_kills_lose_nothing_and_double_nothing(carried: dict[str, str]) -> None:
    async with a_house(extra=carried) as house:
        members = people(COUNTS, real_now() - timedelta(hours=1), tuple(CLINICS), seed=1)
        hospital = Caller(f"{house.url('ingest')}/fhir", SITE, house.token)
        await push_people(hospital, members, SITE)
        await hospital.close()
        for clinic, nurse in CLINICS.items():
            emr = Caller(house.url("notify"), f"{clinic}-emr", house.token)
            await upload_panel(emr, [one for one in members if one.clinic == clinic], nurse)
            await emr.close()

        assert await push(house, members) == sum(COUNTS)

        wanted = {
            clinic: {one.card for one in members if one.is_flagged and one.clinic == clinic}
            for clinic in CLINICS
        }

        async def settled() -> bool:
            try:
                seen = [await total(house, clinic) for clinic in CLINICS]
            except httpx.TransportError:
                return False  # the last to be killed is starting again
            return seen == [len(cards) for cards in wanted.values()]

        await eventually(settled, seconds=240, every=2)
        for clinic, cards in wanted.items():
            got = await tasks_of(house, clinic)
            assert Counter(got) == Counter(cards)
        assert await counted(house) == Counter(COUNTS)


async def total(house: House, clinic: str) -> int:
    """How many Tasks the clinic's search counts."""
    emr = Caller(house.url("notify"), f"{clinic}-emr", house.token)
    try:
        answer = await emr.send("GET", "/fhir/Task", params={"_count": "0"})
        return int(answer.json()["total"]) if answer.is_success else -1
    finally:
        await emr.close()


async def tasks_of(house: House, clinic: str) -> list[str]:
    """The card number of each Task's patient, as the clinic's EMR reads it."""
    emr = Caller(house.url("notify"), f"{clinic}-emr", house.token)
    try:
        cards = []
        for task in await all_tasks(emr):
            answer = await emr.send("GET", f"/fhir/{task['for']['reference']}")
            assert answer.is_success, answer.text
            cards.append(answer.json()["identifier"][0]["value"])
        return cards
    finally:
        await emr.close()


async def counted(house: House) -> Counter[int]:
    """How many patients have how many ED visits, as screening answers operations."""
    operator = Caller(house.url("screening"), "ops-client", house.token)
    try:
        keys = await patient_keys(house)
        found: Counter[int] = Counter()
        for key in keys:
            answer = await operator.send("GET", f"/v1/patients/{key}/flag")
            assert answer.is_success, answer.text
            clauses = answer.json()["clauses"]
            visits = next(c["count"] for c in clauses if c["measure"] == "ed_visits")
            assert visits <= FLAGGED_AT
            found[visits] += 1
        return found
    finally:
        await operator.close()


async def patient_keys(house: House) -> list[str]:
    """Every patient of whom screening keeps a fact, read beside the doors."""
    import asyncpg

    connection = await asyncpg.connect(
        house.server.url("postgres", house.server.password, "passerelle")
    )
    try:
        rows = await connection.fetch("select distinct patient from screening.fact")
        return [str(row["patient"]) for row in rows]
    finally:
        await connection.close()
