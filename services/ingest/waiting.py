"""The story of what waits: held messages are let go when their cause ends, refused ones replayed.

All goes through the same flow as live messages, under the original arrival and event time and
today's rules (HA-81).
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import orjson
import structlog

from services.ingest import bundles, flow, store, taking, verbatim
from services.ingest.bundles import Entry
from services.ingest.flow import Door, House, Item
from services.ingest.gate import Problem
from services.ingest.reading import Identifier, Reason
from services.ingest.tables import Kept, RefusedRow
from services.plumbing import telemetry
from services.plumbing.audit import Trail
from services.plumbing.db import Tx, is_passing
from services.plumbing.region import Region
from services.plumbing.sealing import UnknownKeyError
from services.plumbing.web import keys_missing

log = structlog.get_logger()

BATCH = 500
EVERY = 5.0
"""Real seconds between two looks."""


def door_of(house: House, site: str, name: str = "rest") -> Door:
    """The door of background work for `site`: nobody calls, so nothing is forbidden."""
    now = house.clock.now()
    region = house.region()
    return Door(
        site=site,
        client="passerelle/ingest",
        now=now,
        rules=flow.rules_of(region, site),
        region=region,
        keys=house.keys,
        trail=Trail.background("ingest", now, site),
        may=lambda _kind, _letter: True,
        heard=house.heard,
        name=name,
    )


async def reconsider(tx: Tx, house: House, rows: Sequence[Kept]) -> int:
    """Let held versions come by again; how many are held no more."""
    released = 0
    for site in sorted({row.site for row in rows}):
        if house.region().site(site) is None:
            continue  # it left the region file: its messages wait for it to come back
        door = door_of(house, site)
        items = [flow.revived(row, door) for row in rows if row.site == site]
        await flow.take_in(tx, items, door)
        released += sum(not item.problems and item.hold is None for item in items)
    return released


async def release_due(house: House) -> int:
    """Let go what only time held: a start reached, a start given up (HA-76, CR-30)."""
    await flow.open_key(house)
    async with house.db.work() as tx:
        rows = await store.due(tx, house.clock.now(), BATCH)
        if rows:
            await reconsider(tx, house, rows)
        return len(rows)


async def release_mapped(house: House) -> int:
    """Let go what waited for a class that the code map has now (HA-74)."""
    await flow.open_key(house)
    after, released = (store.FIRST, 0), 0
    while True:
        async with house.db.work() as tx:
            rows = await store.held(tx, Reason.UNKNOWN_CLASS, after, BATCH)
            released += await reconsider(tx, house, rows)
        if len(rows) < BATCH:
            return released
        after = (rows[-1].key, rows[-1].version)


async def look_after(house: House, stop: asyncio.Event) -> None:
    """Until `stop`: time-based releases, mappings when the region file changed, old bodies."""
    mapped: Region | None = None
    while not stop.is_set():
        try:
            region = house.region()
            if region is not mapped:
                await release_mapped(house)
                mapped = region
            while await release_due(house) == BATCH:
                pass
            async with house.db.work() as tx:
                await store.purge(tx, house.clock.now())
                for kind, number in (await store.waiting_for_a_person(tx)).items():
                    telemetry.gauge("waiting_for_a_person", kind).set(number)
        except UnknownKeyError as error:
            keys_missing("ingest", error)
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("waiting_waits", error=type(error).__name__)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), EVERY)


async def admit(house: House, key: UUID, version: int, by: str) -> bool:
    """A person lets a held message pass, as that of a recycled number; False if it waits on."""
    await flow.open_key(house)
    async with house.db.work() as tx:
        await store.admit(tx, key, version, by)
        row = await store.one_held(tx, key, version)
        return row is not None and await reconsider(tx, house, [row]) == 1


async def discard(house: House, key: UUID, version: int, by: str, reason: str) -> bool:
    """A person sets a held message aside, with a reason; False if it does not wait (HA-81)."""
    async with house.db.work() as tx:
        return await store.discard(tx, key, version, by, reason)


async def listed(house: House, site: str | None = None) -> list[RefusedRow]:
    """The refused queue, oldest first."""
    async with house.db.work() as tx:
        return await store.refused(tx, site=site)


async def discard_refused(house: House, ids: Sequence[UUID], by: str) -> int:
    """A person sets refused bodies aside for good; how many. Their records stay."""
    async with house.db.work() as tx:
        rows = await store.refused(tx, ids=ids)
        for row in rows:
            await store.refused_settled(
                tx, row.id, state="discarded", by=by, result="", now=house.clock.now()
            )
        return len(rows)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one refused body."""

    id: UUID
    site: str
    result: str
    """`accepted`, or the issue codes that refuse it again."""


async def replay(
    house: House, by: str, *, ids: Sequence[UUID] | None = None, site: str | None = None
) -> list[Replayed]:
    """Send refused bodies through today's gate and rules again (HA-81); `passerelle replay`.

    Each in its own transaction. What is accepted is settled; what is refused again waits on.
    """
    await flow.open_key(house)
    async with house.db.work() as tx:
        rows = await store.refused(tx, ids=ids, site=site)
    done: list[Replayed] = []
    for row in rows:
        if row.body is None or house.region().site(row.site) is None:
            continue
        done.append(await _replay_one(house, row, by))
    return done


class _RefusedAgain(Exception):  # noqa: N818 - the transaction must not have been
    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems


async def _replay_one(house: House, row: RefusedRow, by: str) -> Replayed:
    door = replace(door_of(house, row.site, row.door), client=row.client, arrived=row.arrived)
    assert row.body is not None, "purged bodies are not replayed"
    opened = house.keys.seals.open(flow.owner_of(row.digest), flow.BODY, row.key_id, row.body)
    said = orjson.loads(opened)
    condition = said["condition"] and Identifier(*said["condition"])
    result, state = "accepted", "replayed"
    async with house.db.work() as tx:
        try:
            async with tx.begin_nested():
                await _take_again(tx, door, row, said["text"], condition)
        except _RefusedAgain as again:
            result = " ".join(sorted({problem.issue for problem in again.problems}))
            state = "waiting"
        await store.refused_settled(
            tx, row.id, state=state, by=by, result=result, now=house.clock.now()
        )
    return Replayed(row.id, row.site, result)


async def _take_again(
    tx: Tx, door: Door, row: RefusedRow, text: str, condition: Identifier | None
) -> None:
    items, problems = _items(door, row, text)
    if problems or any(item.problems for item in items):
        raise _RefusedAgain([*problems, *(one for item in items for one in item.problems)])
    for item in items:
        item.condition = item.condition or condition
    await flow.take_in(tx, items, door)
    if any(item.problems for item in items):
        raise _RefusedAgain([one for item in items for one in item.problems])


def _items(door: Door, row: RefusedRow, text: str) -> tuple[list[Item], list[Problem]]:
    try:
        if row.kind != "Bundle":
            piece = verbatim.read(text.encode())
            entry = Entry(
                -1, row.request["method"], row.kind, row.request.get("id"),
                resource=piece.tree, text=piece.text,
            )  # fmt: skip
            return [taking.single(entry, door)], []
        tree, texts = verbatim.read_bundle(text.encode())
    except verbatim.NotJsonError as error:
        return [], [Problem("structure", row.kind, str(error))]
    if problems := bundles.general(tree):
        return [], problems
    if tree["type"] == "message":
        taken = bundles.message(tree, texts)
        if not isinstance(taken, bundles.Message):
            return [], taken
        return taking.message_items(taken, replace(door, name="message"))
    made = bundles.requests(tree, texts, "")
    entries = [one for one in made if isinstance(one, Entry)]
    slots = taking.slots_of(made, door)
    problems = taking.in_one_transaction(entries, slots) if tree["type"] == "transaction" else []
    return taking.items_of(slots), problems
