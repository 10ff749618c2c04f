"""A clinic at notify's door: its panel, the wishes of its patients, and a small EMR."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import httpx
import orjson
import structlog

from services.simulator.door import Door
from services.simulator.draws import Draws
from services.simulator.fhir import Json
from services.simulator.papers import Panel

PAGE = 50
LANES = 4
"""Consents recorded at a time."""
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
        response = await _put(door, f"fhir/Consent/{consent['id']}", orjson.dumps(consent))
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


async def keep_up(emr: Emr, seed: int, never: float, every: float) -> None:
    """Looks every `every` real seconds and takes on what asks for it, but for a share `never`."""
    while True:
        for card in await emr.look():
            if card.status == "requested" and not Draws(seed, card.id, "emr").chance(never):
                await emr.take_on(card)
        await asyncio.sleep(every)
