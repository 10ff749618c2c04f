"""The demo's cast, D-01 to D-15, before a whole house: what each story shows at the doors.

What the product cannot show yet (docs/simulator.md: the "now" card of D-13, escalation of D-14)
is looked for as far as it exists.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.cli.house import House
from services.plumbing.clock import drive
from services.simulator import cast, flow, papers
from services.simulator.clinic import record_consents, upload_panel
from services.simulator.door import Door
from services.simulator.feed import Message, in_order
from services.simulator.hospital import Engine
from services.simulator.profiles import Profile, profile
from tests.story.conftest import a_house
from tests.story.feed import Caller, all_tasks, eventually

pytestmark = [pytest.mark.slow]

CLINICS = ("clinic-a", "clinic-b", "clinic-c")
OPEN = ("requested", "received")


def card(number: int) -> str:
    return f"TEST{cast.FIRST + number:08d}"


@dataclass
class Region:
    """The cast's region, its house, and all who look at it."""

    profile: Profile
    house: House
    clock: Path
    doors: list[Door]
    office: Door
    emrs: dict[str, Caller]
    operator: Caller
    messages: list[Message]
    at: datetime
    """Until when it has been lived."""
    seen: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    """By clinic and health card: each Task as it was seen after each step, oldest first."""
    whose: dict[str, str] = field(default_factory=dict)
    """Health card by Task; one that was taken back tells it no more."""
    counted: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By patient key: each line of the list of flags, likewise."""

    async def live(self, until: datetime) -> None:
        """Sends what is to be sent until then, and waits until all of it is worked off."""
        due = [each for each in self.messages if self.at <= each.sent < until]
        drive(self.clock, until, 0)
        for site, door in enumerate(self.doors):
            engine = Engine(door.client, site == 1, door)
            await engine.deliver([each for each in due if each.site == site])
            assert door.tally.refused == 0
        self.at = until
        assert await eventually(self.worked_off, 30, every=0.05)
        await self.look()

    async def worked_off(self) -> bool:
        """Whether every reader has read the log to its end."""
        connection = await self.database()
        try:
            left = 0
            for reader in ("screening", "notify"):
                for place in await connection.fetch(f"select * from {reader}.place"):
                    left += await connection.fetchval(
                        f"select count(*) from {place['source']}.outbox"
                        " where (xid, position) > (cast($1 as text)::xid8, $2)",
                        place["xid"] or "0",
                        place["position"],
                    )
            return left == 0
        finally:
            await connection.close()

    async def database(self) -> asyncpg.Connection:
        server = self.house.server
        return await asyncpg.connect(server.url("postgres", server.password, "passerelle"))

    async def look(self) -> None:
        for clinic, emr in self.emrs.items():
            for task in await all_tasks(emr):
                if task["id"] not in self.whose:
                    patient = await emr.send("GET", f"/fhir/{task['for']['reference']}")
                    assert patient.is_success, patient.text
                    self.whose[task["id"]] = patient.json()["identifier"][0]["value"]
                self.seen.setdefault((clinic, self.whose[task["id"]]), []).append(task)
        answer = await self.operator.send("GET", "/v1/flags", params={"_count": "100"})
        assert answer.is_success, answer.text
        for line in answer.json()["flags"]:
            self.counted.setdefault(line["patient"], []).append(line)

    def tasks(self, number: int, clinic: str) -> list[dict[str, Any]]:
        """What clinic has seen of the person's cards, step by step."""
        return self.seen.get((clinic, card(number)), [])

    def only_at(self, number: int, *clinics: str) -> dict[str, Any]:
        """The one Task of a person, as it was seen last; those clinics see it and no other."""
        for clinic in CLINICS:
            ids = {task["id"] for task in self.tasks(number, clinic)}
            assert len(ids) == (clinic in clinics), (number, clinic, ids)
        return self.tasks(number, clinics[0])[-1]

    async def explanations(self) -> list[dict[str, Any]]:
        found = []
        for key in self.counted:
            answer = await self.operator.send("GET", f"/v1/patients/{key}/flag")
            assert answer.is_success, answer.text
            found.append(answer.json())
        return found


@asynccontextmanager
async def a_region(folder: Path) -> AsyncIterator[Region]:
    """The cast alone but for one neighbour, its year told, on the morning it goes live."""
    region = profile("demo", people=1, clean=True)
    clock = folder / "clock.json"
    went_live = cast.live(region) - flow.WEEKS
    drive(clock, went_live, 0)
    quick = {"PASSERELLE_SWEEP_SECONDS": "1"}
    async with (
        a_house(clock=clock, extra=quick) as house,
        httpx.AsyncClient(timeout=30, trust_env=False) as http,
    ):
        doors = [
            Door(f"{house.url('ingest')}/fhir", site, house.token, http) for site in region.sites
        ]
        office = Door(house.url("notify"), "hospital-a", house.token, http)
        emrs = {
            clinic: Caller(house.url("notify"), f"{clinic}-emr", house.token, http)
            for clinic in CLINICS
        }
        for panel in papers.panels(region):
            door = Door(house.url("notify"), f"{panel.clinic}-emr", house.token, http)
            await upload_panel(door, panel)
            assert door.tally.refused == 0
        await record_consents(office, list(papers.consents(region)))
        assert office.tally.refused == 0
        operator = Caller(house.url("screening"), "ops-client", house.token, http)
        messages = sorted(cast.messages(region), key=in_order)
        told = Region(
            region, house, clock, doors, office, emrs, operator, messages, messages[0].sent
        )
        await told.live(went_live)
        yield told


async def test_the_cast_plays_its_stories(tmp_path: Path) -> None:
    async with a_region(tmp_path) as region:
        at = cast.live(region.profile)
        assert region.seen == {}  # CR-31: the year before makes no storm of cards

        await region.live(at - timedelta(days=19))
        taken = region.only_at(13, "clinic-c")
        accepted = await region.emrs["clinic-c"].send(
            "PATCH",
            f"/fhir/Task/{taken['id']}",
            {"status": "accepted"},
            {
                "Content-Type": "application/merge-patch+json",
                "If-Match": f'W/"{taken["meta"]["versionId"]}"',
            },
        )
        assert accepted.is_success, accepted.text
        await region.live(at)
        for hours in (15, 24, 36.5, 60, 84.5):
            await region.live(at + timedelta(hours=hours))

        await _told(region)
        await _counted(region)
        await _not_told(region)


async def _told(region: Region) -> None:
    """D-01, D-02, D-04, D-05, D-07, D-09, D-10, D-13, D-14, D-15: what the clinics see."""
    first = region.only_at(1, "clinic-a")
    assert first["code"]["coding"][0]["code"] == "threshold-reached"
    assert _input(first, "ed-visits") == 4

    moved = region.only_at(2, "clinic-a")
    assert _input(moved, "hospital-stays") == 1

    voided = region.only_at(4, "clinic-a")
    assert region.tasks(4, "clinic-a")[0]["status"] in OPEN
    assert voided["status"] in ("cancelled", "entered-in-error")

    merged = region.tasks(5, "clinic-b")
    assert merged[0]["status"] in OPEN
    assert merged[-1]["status"] in ("cancelled", "entered-in-error")

    third = region.only_at(7, "clinic-c")
    assert (_input(third, "clause-met"), _input(third, "hospital-stays")) == ("hospital", 3)

    sensitive = region.only_at(9, "clinic-a")
    assert "F32" not in str(sensitive)
    assert "F41" not in str(sensitive)

    for clinic in ("clinic-a", "clinic-b"):
        assert len({task["id"] for task in region.tasks(10, clinic)}) == 1

    cards = {task["id"]: task for task in region.tasks(13, "clinic-c")}
    taken_on, back = cards.values()
    assert taken_on["status"] == "accepted"
    assert back["status"] in OPEN
    assert back["code"]["coding"][0]["code"] == "left-ed"
    assert _input(back, "ed-visits") == 5

    open_still = region.only_at(14, "clinic-a")
    assert open_still["status"] in OPEN
    assert open_still["owner"]["reference"].endswith("nurse-d")

    known = region.tasks(15, "clinic-b")
    assert known
    assert _input(region.only_at(15, "clinic-b"), "ed-visits") == 4


async def _counted(region: Region) -> None:
    """D-03, D-06, D-07, D-12: what counting says of those of whom less or nothing is told."""
    lines = [own[-1] for own in region.counted.values()]
    watched = [x for x in lines if (x["state"], x["ed_visits"], x["held"]) == ("watch", 3, False)]
    assert len(watched) >= 1
    held = [x for x in lines if x["state"] == "flagged" and x["held"]]
    assert [line["ed_visits"] for line in held] == [3]
    found = await region.explanations()
    reasons = [
        {item["reason"]["code"] for item in one["items"] if not item["counted"]} for one in found
    ]
    notes = [{note["code"] for item in one["items"] for note in item["notes"]} for one in found]
    planned = [index for index, codes in enumerate(reasons) if "PLANNED" in codes]
    assert len(planned) == 1
    assert "REREGISTERED" in notes[planned[0]]
    assert _ed(found[planned[0]]) == 4
    assert any("LINKED" in codes for codes in notes)


async def _not_told(region: Region) -> None:
    """D-03, D-06, D-08, D-11: nothing, and for the refusal and the missing clinic, why."""
    for number in (3, 8, 11):
        assert not any(region.tasks(number, clinic) for clinic in CLINICS)
    connection = await region.database()
    try:
        refusals = await connection.fetch(
            "select clinic, reasons from notify.decision where outcome = 'withhold'"
        )
        assert {row["clinic"] for row in refusals} == {"clinic-b"}
        assert all(row["reasons"] for row in refusals)
        lost = await connection.fetch("select reason from notify.unroutable")
        assert [row["reason"] for row in lost] == ["no-panel"]
    finally:
        await connection.close()


def _input(task: dict[str, Any], code: str) -> Any:
    """The value of the input of that code."""
    (found,) = [
        {key: value for key, value in each.items() if key.startswith("value")}
        for each in task["input"]
        if each["type"]["coding"][0]["code"] == code
    ]
    (value,) = found.values()
    return value


def _ed(explanation: dict[str, Any]) -> int:
    return int(next(x["count"] for x in explanation["clauses"] if x["measure"] == "ed_visits"))
