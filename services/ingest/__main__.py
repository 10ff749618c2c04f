"""The ingest service: builds it and runs it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from fastapi import FastAPI

from services.ingest import restating, waiting
from services.ingest.api import add_door
from services.ingest.flow import Heard, House, Keys
from services.plumbing import audit, carriers, chain, process, settings, telemetry
from services.plumbing.auth import Auth, Authority, guard
from services.plumbing.clock import Clock
from services.plumbing.db import Database
from services.plumbing.limits import Limits
from services.plumbing.process import Background
from services.plumbing.region import RegionError, RegionFile
from services.plumbing.sealing import Seals, Tokens
from services.plumbing.settings import IngestSettings, Settings, SettingsError
from services.plumbing.web import make_app

PORT = 8001


@dataclass(frozen=True, slots=True)
class Built:
    """The service's parts, for this process and for tests that run the same wiring."""

    app: FastAPI
    house: House
    background: list[Background]


def build(said: IngestSettings) -> Built:
    """The service as `said` has it."""
    db = Database(said.database_url.get_secret_value(), "ingest", pool=said.database_pool)
    clock = Clock(said.clock)
    region = RegionFile(said.region)
    authority = Authority.of(said)
    house = House(
        db=db,
        clock=clock,
        region=region.current,
        keys=Keys(Tokens(said.token_keys), Seals(said.date_keys, said.seal_keys)),
        heard=Heard(),
        base=f"{said.ingest_url}/fhir",
        authority=authority,
    )
    app = make_app("ingest", db)
    guard(
        app,
        Auth(authority, said.audience, region.current),
        audit.refusals(db, clock.now),
        Limits.of(said, "ingest"),
    )
    add_door(app, house)

    async def held(stop: asyncio.Event) -> None:
        await waiting.look_after(house, stop)

    return Built(app, house, [held, *carriers.relaying(said, db), *chain.sealing(said, db)])


async def replay(
    said: IngestSettings, ids: Sequence[UUID], by: str, *, every: bool, discard: bool
) -> list[str]:
    """`passerelle replay ingest`: a line a refused body; without ids or `every` only listed.

    No line holds a value: id, site, type, status, issue codes, result.
    """
    house = build(said).house
    try:
        if discard:
            done = await waiting.discard_refused(house, ids, by)
            return [f"{done} discarded"]
        if ids or every:
            return [
                f"{one.id} {one.site} {one.result}"
                for one in await waiting.replay(house, by, ids=None if every else ids)
            ]
        return [
            f"{row.id} {row.site} {row.kind} {row.arrived:%Y-%m-%d %H:%M:%SZ} {row.status}"
            f" {row.times} times: "
            + ", ".join(dict.fromkeys(issue["code"] for issue in row.outcome["issue"]))
            for row in await waiting.listed(house)
        ] or ["Nothing waits."]
    finally:
        await house.db.close()
        await house.authority.http.aclose()


async def restate(said: Settings, by: str) -> AsyncIterator[str]:
    """`passerelle rebuild screening --from ingest`: a line a step, of how far it has come."""
    if said.database_url is None:
        raise SettingsError("PASSERELLE_DATABASE_URL: is not set (that of ingest)")
    db = Database(said.database_url.get_secret_value(), "ingest", pool=2)
    try:
        async for at in restating.restate(db, Clock(said.clock).now, by):
            yield f"{at.persons} persons, {at.links} links, {at.encounters} encounters"
    finally:
        await db.close()


async def run(said: IngestSettings) -> int:
    """Serve until told to stop; the exit code."""
    built = build(said)
    try:
        return await process.serve(
            built.app, said.host, said.port or PORT, built.background, local=said.local
        )
    finally:
        await built.house.db.close()
        await built.house.authority.http.aclose()


def main() -> int:
    """`passerelle ingest`. Exit code 2: the settings or the region file are wrong."""
    try:
        said = settings.read(IngestSettings)
        telemetry.set_up("ingest", said.log_level, said.otlp_endpoint)
        return process.run(run(said))
    except (SettingsError, RegionError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
