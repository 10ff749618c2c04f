"""A clinic at notify's door: its panel, the wishes of its patients, and a small EMR."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import orjson
import structlog

from services.plumbing.clock import Clock
from services.simulator.door import Door
from services.simulator.draws import Draws
from services.simulator.fhir import Json
from services.simulator.papers import Panel
from services.simulator.region import ZONE

PAGE = 50
LANES = 4
"""Consents recorded at a time."""
OPENS, CLOSES = time(8), time(16)
"""When a nurse works, Monday to Friday (assumed)."""
ANSWERED_AFTER = 4.0
"""Working hours, median of a lognormal (assumed)."""
MERGE_PATCH = "application/merge-patch+json"


async def upload_panel(door: Door, panel: Panel) -> None:
    """The whole panel, in force at once (CA-40); what is bad in it stays in the clinic's list."""
    door.tally.sent += 1
    response = await door.send(
        "POST",
        "panel?" + urlencode({"mode": "delta", "dry_run": "false"}),
        panel.csv.encode(),
        Content_Type="text/csv; charset=utf-8",
        Accept="application/json",
    )
    if response.is_success:
        door.tally.accepted += 1
        return
    door.tally.refused += 1
    structlog.get_logger().warning(
        "simulator.panel_refused", clinic=panel.clinic, status=response.status_code
    )


async def record_consents(door: Door, consents: Sequence[tuple[datetime, Json]]) -> None:
    """As the consent office that captured them (CS-56); the versions of one in their order."""
    lanes: dict[int, list[Json]] = {}
    for _, consent in consents:
        lanes.setdefault(zlib.crc32(consent["id"].encode()) % LANES, []).append(consent)
    async with asyncio.TaskGroup() as together:
        for lane in lanes.values():
            together.create_task(_one_by_one(door, lane))


async def _one_by_one(door: Door, consents: Sequence[Json]) -> None:
    for consent in consents:
        door.tally.sent += 1
        body = orjson.dumps({key: value for key, value in consent.items() if key != "meta"})
        response = await _put(door, f"fhir/Consent/{consent['id']}", body)
        if response.is_success:
            door.tally.accepted += 1
            continue
        door.tally.refused += 1
        structlog.get_logger().warning("simulator.consent_refused", status=response.status_code)


async def _put(door: Door, path: str, body: bytes) -> httpx.Response:
    """Make it; or, told that a version is there, change that one (CA-21)."""
    response = await door.send("PUT", path, body)
    if response.status_code != 400:
        return response
    known = await door.send("GET", path)
    return await door.send("PUT", path, body, If_Match=known.headers.get("ETag", ""))


@dataclass(frozen=True, slots=True)
class Seen:
    """A card as the EMR has it."""

    id: str
    version: str
    status: str
    updated: str


class Emr:
    """Polls for what is new and takes some of it on, as a clinic's own system does (CA-15)."""

    def __init__(self, door: Door) -> None:
        self.cards: dict[str, Seen] = {}
        self._door = door
        self._since: str | None = None

    async def look(self) -> list[Seen]:
        """The cards that are new or changed since the last look, oldest change first."""
        query = {"_sort": "_lastUpdated", "_count": str(PAGE)}
        if self._since is not None:
            query["_lastUpdated"] = f"ge{self._since}"
        fresh = []
        async for task in self._search("fhir/Task?" + urlencode(query)):
            meta = task["meta"]
            seen = Seen(task["id"], meta["versionId"], task["status"], meta["lastUpdated"])
            self._since = seen.updated
            known = self.cards.get(seen.id)
            if known is None or known.version != seen.version:
                self.cards[seen.id] = seen
                fresh.append(seen)
        return fresh

    async def _search(self, path: str) -> AsyncIterator[dict[str, Any]]:
        while True:
            response = await self._door.send("GET", path)
            if not response.is_success:
                structlog.get_logger().warning(
                    "simulator.search_refused", status=response.status_code
                )
                return
            bundle = orjson.loads(response.content)
            for entry in bundle.get("entry", []):
                if entry["resource"]["resourceType"] == "Task":
                    yield entry["resource"]
            following = [
                link["url"] for link in bundle.get("link", []) if link["relation"] == "next"
            ]
            if not following:
                return
            path = "fhir/Task?" + following[0].partition("?")[2]

    async def take_on(self, card: Seen) -> bool:
        """Accepts a card; False if it has changed meanwhile, or may no longer be."""
        response = await self._door.send(
            "PATCH",
            f"fhir/Task/{card.id}",
            orjson.dumps({"status": "accepted"}),
            Content_Type=MERGE_PATCH,
            If_Match=f'W/"{card.version}"',
        )
        return response.is_success


async def keep_up(emr: Emr, clock: Clock, seed: int, never: float, every: float) -> None:
    """Looks every `every` real seconds and takes on what asks for it, as its nurses would.

    Each card some working hours after it was first seen; a share `never`, not at all.
    """
    due: dict[str, datetime] = {}
    while True:
        for card in await emr.look():
            if card.status == "requested" and card.id not in due:
                draws = Draws(seed, card.id, "emr")
                if not draws.chance(never):
                    hours = draws.lognormal(ANSWERED_AFTER, 1.0)
                    due[card.id] = working(clock.now(), timedelta(hours=hours))
        for id_ in [each for each, at in due.items() if at <= clock.now()]:
            card = emr.cards[id_]
            if card.status != "requested" or await emr.take_on(card):
                del due[id_]
        await asyncio.sleep(every)


def working(since: datetime, length: timedelta) -> datetime:
    """When `length` of working time has passed since `since`; holidays are worked."""
    at, left = since.astimezone(ZONE), length
    while True:
        opens, closes = (datetime.combine(at.date(), hour, ZONE) for hour in (OPENS, CLOSES))
        begin = max(at, opens)
        if at.weekday() < 5 and begin < closes:
            if left <= closes - begin:
                return begin + left
            left -= closes - begin
        at = datetime.combine(at.date() + timedelta(days=1), OPENS, ZONE)
