"""The simulated hospitals before the real ingest door, on real PostgreSQL."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from services.plumbing.db import Database
from services.plumbing.region import load
from services.simulator import cast
from services.simulator.door import Door, Tally
from services.simulator.feed import Message, feed, visits
from services.simulator.flow import REGION_FILE
from services.simulator.hospital import Engine
from services.simulator.life import Care, life
from services.simulator.profiles import Profile, profile
from services.simulator.region import people
from tests.services.ingest_door import BASE, IngestDoor, opened

SITES = ("hospital-a", "hospital-b")


@pytest.fixture
async def door(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[IngestDoor]:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        made.regions[0] = made.stage.region[0] = load(REGION_FILE)
        yield made


def engines(door: IngestDoor) -> list[tuple[Engine, Door]]:
    async def token_for(client: str) -> str:
        return door.token(client)

    doors = [Door(BASE, site, token_for, door.stage.http) for site in SITES]
    return [(Engine(site, n == 1, doors[n]), doors[n]) for n, site in enumerate(SITES)]


async def backfill(door: IngestDoor, messages: list[Message]) -> Tally:
    total = Tally()
    for site, (engine, way) in enumerate(engines(door)):
        await engine.backfill([each for each in messages if each.site == site], lambda _: None)
        total += way.tally
    return total


async def deliver(door: IngestDoor, messages: list[Message]) -> Tally:
    total = Tally()
    for site, (engine, way) in enumerate(engines(door)):
        await engine.deliver([each for each in messages if each.site == site])
        total += way.tally
    return total


def truth(region: Profile) -> Counter[str]:
    """Encounters that ever were an ED visit or a stay, as they really were."""
    found: Counter[str] = Counter()
    for person in people(region):
        for visit in visits(life(region, person, region.days)):
            cares = {piece.care for piece in visit.pieces}
            found["EMER"] += Care.ED in cares
            found["IMP"] += Care.STAY in cares
    return found


async def known(door: IngestDoor) -> Counter[str]:
    """The same as the door states it."""
    newest = {fact["encounter"]: fact for fact in await door.facts()}
    found: Counter[str] = Counter()
    for fact in newest.values():
        classes = {each["code"] for each in fact["classes"]}
        found["EMER"] += "EMER" in classes
        found["IMP"] += "IMP" in classes
    return found


@pytest.mark.parametrize("way", [backfill, deliver], ids=["history", "live"])
async def test_a_clean_region_arrives_as_it_was(
    door: IngestDoor, way: Callable[[IngestDoor, list[Message]], object]
) -> None:
    """By Bundles and message by message: every encounter once, with its classes."""
    region = profile("demo", people=150, clean=True, cast=False)
    messages = feed(region, region.days)
    door.at(messages[-1].sent + timedelta(hours=1))
    tally = await (backfill if way is backfill else deliver)(door, messages)
    assert (tally.refused, tally.held, tally.accepted) == (0, 0, len(messages))
    assert await known(door) == truth(region)


async def test_a_noisy_region_is_taken_in_twice_and_changes_nothing_the_second_time(
    door: IngestDoor,
) -> None:
    region = profile("demo", people=150, unmapped_class=0.05, temporary_identity=0.05, merge=0.05)
    messages = feed(region, region.days, cast.messages(region))
    door.at(messages[-1].sent + timedelta(hours=1))
    first = await backfill(door, messages)
    assert first.refused == 0
    assert first.sent == len(messages)
    holds = Counter(await door.held())
    assert set(holds) <= {"unknown-class", "temporary-identity"}
    assert holds["unknown-class"]
    events = len(await door.events())
    again = await backfill(door, messages)
    assert (again.refused, again.sent) == (0, len(messages))
    assert len(await door.events()) == events


async def test_the_cast_arrives_merges_included(door: IngestDoor) -> None:
    """D-05: merged, then unmerged; D-15: identified the next day (CR-34, CR-35)."""
    region = profile("demo", people=1)
    messages = sorted(cast.messages(region), key=lambda each: (each.sent, each.lane, each.order))
    door.at(messages[-1].sent + timedelta(hours=1))
    tally = await deliver(door, messages)
    assert tally.refused == 0
    kinds = Counter(event["type"] for event in await door.events())
    assert kinds["patient.merged.v1"] == 2
    assert kinds["patient.unmerged.v1"] == 1
    assert await door.held() == []
