"""What changes by the calendar or the directory alone, and what waits while either is away
(CS-51, CS-52).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import yaml

from services.notify import flow, store
from services.notify.card import Card, Status
from services.notify.telling import DirectoryAwayError, House
from services.plumbing.db import Database
from services.plumbing.region import RegionFile
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_builders import NOW, SEALS, TOKENS
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import CSV, FHIR, PERMIT_A, ROLE, hear, tasks
from tests.services.test_notify_delivery import Scene, staged

NOT_STUDENTS = {
    **PERMIT_A,
    "provision": [
        {"type": "deny", "actor": [{"role": ROLE, "reference": {"reference": "Group/students"}}]}
    ],
}
NOT_NURSE_D = {
    **PERMIT_A,
    "provision": [
        {
            "type": "deny",
            "actor": [{"role": ROLE, "reference": {"reference": "Practitioner/nurse-d"}}],
        }
    ],
}


class Town:
    """A region file that a test rewrites, and notify that reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.said = build.region().model_dump(mode="json", exclude_none=True)
        self.write()
        self.region = RegionFile(file)
        self.house = House(
            region=self.region.current,
            seals=SEALS,
            tokens=TOKENS,
            base=build.BASE,
            reachable=self.region.reachable,
        )

    def write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(yaml.safe_dump(self.said))
        new.rename(self.file)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path / "region.yaml")


@pytest.fixture
async def scene(db: Callable[[str], Database], town: Town) -> AsyncIterator[Scene]:
    async with staged(Doorway(db("notify"), town.house, resolved=("127.0.0.1",))) as made:
        yield made


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


async def told(door: Doorway, provision: dict[str, Any] | None, **more: Any) -> UUID:
    p = uuid4()
    await hear(door, build.identified(p, birth_date=more.pop("born", "1950-02-03")))
    rows = panel(p).replace("1950-02-03", more.pop("on_panel", "1950-02-03"))
    await door.client("clinic-a-emr").post("/panel?dry_run=false", content=rows, headers=CSV)
    if provision is not None:
        body = consent(p, provision, **more)
        answer = await door.client("hospital-a").post("/fhir/Consent", json=body, headers=FHIR)
        assert answer.is_success, answer.text
    await hear(door, build.flag(p))
    return p


async def cards(door: Doorway) -> list[Card]:
    async with door.db.work() as tx:
        return await store.cards_of_clinic(tx, "clinic-a")


async def swept(door: Doorway, at: datetime) -> int:
    door.now = at
    async with door.db.work() as tx:
        return await flow.sweep(build.turn(tx, door.house, at))


async def test_a_colleague_who_joins_a_group_shuts_the_inbox_without_an_event(
    scene: Scene, town: Town
) -> None:
    """CS-51: who belongs where is in the region file, which nobody announces."""
    town.said["groups"][0]["members"] = ["nurse-b"]
    town.write()
    await told(scene.door, NOT_STUDENTS)
    assert await swept(scene.door, NOW) == 0
    (card,) = await cards(scene.door)
    assert card.inbox
    town.said["groups"][0]["members"] = ["nurse-d"]
    town.write()
    assert await tasks(scene.door.client("clinic-a-emr")) == []  # each read decides for itself
    assert await swept(scene.door, NOW + timedelta(seconds=2)) == 1
    (card,) = await cards(scene.door)
    assert (card.inbox, card.status) == (False, Status.REQUESTED)
    assert await swept(scene.door, NOW + timedelta(seconds=3)) == 0


async def test_a_clinic_that_is_new_in_the_region_gets_the_cards_that_waited(
    scene: Scene, town: Town
) -> None:
    """CA-43: a standing flag makes its card when it first becomes routable."""
    clinic = town.said["clinics"].pop(0)
    people = [p for p in town.said["people"] if p.get("clinic") == "clinic-a"]
    clients = [c for c in town.said["clients"] if c.get("clinic") == "clinic-a"]
    emr = scene.door.client("clinic-a-emr")
    p = uuid4()
    await hear(scene.door, build.identified(p))
    await emr.post("/panel?dry_run=false", content=panel(p), headers=CSV)
    for one in people:
        town.said["people"].remove(one)
    for one in clients:
        town.said["clients"].remove(one)
    groups, town.said["groups"] = town.said["groups"], []
    town.write()
    await hear(scene.door, build.flag(p))
    assert await cards(scene.door) == []
    await swept(scene.door, NOW)
    town.said["clinics"].append(clinic)
    town.said["people"] += people
    town.said["clients"] += clients
    town.said["groups"] = groups
    town.write()
    await swept(scene.door, NOW)
    (card,) = await cards(scene.door)
    assert card.status is Status.REQUESTED


async def test_a_reader_whose_role_has_ended_is_no_reader_from_midnight_on(
    scene: Scene, town: Town
) -> None:
    """CS-81."""
    nurse = next(p for p in town.said["people"] if p["id"] == "nurse-d")
    nurse["active_until"] = "2026-03-02"
    town.write()
    await told(scene.door, NOT_NURSE_D)
    await swept(scene.door, NOW)
    (card,) = await cards(scene.door)
    assert not card.inbox
    assert await swept(scene.door, datetime(2026, 3, 3, 4, 59, 59, tzinfo=UTC)) == 0
    assert await swept(scene.door, datetime(2026, 3, 3, 5, tzinfo=UTC)) == 1
    (card,) = await cards(scene.door)
    assert card.inbox


async def test_on_the_fourteenth_birthday_a_parents_permit_ends(
    db: Callable[[str], Database],
) -> None:
    """CS-16, CS-51: at midnight where the clinic is, and nobody sends anything."""
    house = build.house(build.region("opt-in", profile="qc"))
    async with staged(Doorway(db("notify"), house)) as scene:
        mother = {"performer": [{"reference": "RelatedPerson/TEST-mother"}]}
        await told(scene.door, PERMIT_A, born="2012-03-03", on_panel="2012-03-03", **mother)
        assert await swept(scene.door, NOW) == 0
        (card,) = await cards(scene.door)
        assert card.status is Status.REQUESTED
        assert await swept(scene.door, datetime(2026, 3, 3, 4, 59, 59, tzinfo=UTC)) == 0
        assert await swept(scene.door, datetime(2026, 3, 3, 5, tzinfo=UTC)) == 1
        (card,) = await cards(scene.door)
        assert card.status is Status.CANCELLED


async def test_a_period_that_ends_or_begins_is_acted_on_without_an_event(
    db: Callable[[str], Database],
) -> None:
    house = build.house(build.region("opt-in"))
    async with staged(Doorway(db("notify"), house)) as scene:
        until = {**PERMIT_A, "period": {"start": "2026-03-04", "end": "2026-03-05"}}
        await told(scene.door, until)
        await swept(scene.door, NOW)
        assert await cards(scene.door) == []
        assert await swept(scene.door, datetime(2026, 3, 4, 5, tzinfo=UTC)) == 1
        (card,) = await cards(scene.door)
        assert card.status is Status.REQUESTED
        assert await swept(scene.door, datetime(2026, 3, 6, 5, tzinfo=UTC)) == 1
        (card,) = await cards(scene.door)
        assert card.status is Status.CANCELLED


async def test_while_the_directory_is_away_nothing_is_told_and_then_all_of_it(
    scene: Scene, town: Town
) -> None:
    """CS-52: hold, and resume by itself; 0 sent meanwhile."""
    emr = scene.door.client("clinic-a-emr")
    await scene.subscribe(emr)
    await told(scene.door, None)
    kept = town.file.read_text()
    town.file.unlink()
    with pytest.raises(DirectoryAwayError):
        await scene.courier.round()
    assert (await emr.get("/fhir/Task")).status_code == 503
    with pytest.raises(DirectoryAwayError):
        await hear(
            scene.door, build.flag(uuid4()), build.flag((await cards(scene.door))[0].patient, 2)
        )
    stop = asyncio.Event()
    running = asyncio.create_task(scene.courier.run(stop))
    assert scene.endpoint.events == []
    town.file.write_text(kept)
    while not scene.endpoint.events:
        await asyncio.sleep(0.02)
    stop.set()
    await running
    assert (await emr.get("/fhir/Task")).status_code == 200
    assert len(scene.endpoint.events) == 1


async def test_while_consents_cannot_be_read_nothing_is_sent(
    scene: Scene, owner: asyncpg.Connection
) -> None:
    """CS-52: a delivery waits for them; what was restricted meanwhile is respected."""
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    p = await told(scene.door, None)
    async with owner.transaction():
        await owner.execute("lock table notify.consent in access exclusive mode")
        sending = asyncio.create_task(scene.courier.round())
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        assert scene.endpoint.events == []
    await sending
    (bundle,) = scene.endpoint.events
    assert str(p) not in str(bundle)
