"""The notify service: builds it and runs it."""

import asyncio
import base64
import contextlib
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from fastapi import FastAPI

from schemas.episode_changed_v1 import EpisodeChanged
from schemas.flag_changed_v1 import FlagChanged
from schemas.patient_identified_v1 import PatientIdentified
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.site_heard_v1 import SiteHeard
from services.notify import breaking, flow, worklist
from services.notify.api import Door, add_door
from services.notify.delivery import Courier
from services.notify.flow import Turn
from services.notify.telling import House
from services.notify.web.consenting import ConsentPages
from services.notify.web.desk import NotifyDesk
from services.notify.web.incidents import IncidentPages, Registrar
from services.notify.web.office import ConsentOffice
from services.notify.web.pages import Pages
from services.plumbing import audit, carriers, chain, egress, process, settings, signin, telemetry
from services.plumbing.auth import Auth, Authority, guard
from services.plumbing.clock import Clock, real_now
from services.plumbing.db import Database, Tx, is_passing, sqlstate
from services.plumbing.egress import Egress
from services.plumbing.eventlog import Reader, on
from services.plumbing.limits import Limits
from services.plumbing.process import Background
from services.plumbing.region import Region, RegionError, RegionFile
from services.plumbing.sealing import Seals, Tokens
from services.plumbing.settings import NotifySettings, SettingsError
from services.plumbing.signin import SignIn
from services.plumbing.web import make_app

log = structlog.get_logger()

PORT: Final = 8003
SWEEP_EVERY: Final = 1.0
"""Real seconds between looks for what is due by the calendar (CS-51: within 60 s)."""
WATCH_EVERY: Final = 30.0
"""Real seconds between looks at what waits for a person, and at the directory."""

READS = [
    on(SiteHeard, flow.on_sites_heard),
    on(PatientIdentified, flow.on_patients_identified),
    on(PatientMerged, flow.on_patients_merged),
    on(PatientUnmerged, flow.on_patients_unmerged),
    on(EpisodeChanged, flow.on_episodes_changed),
    on(FlagChanged, flow.on_flags_changed),
]


@dataclass(frozen=True, slots=True)
class Built:
    """The service's parts, for this process and for tests that run the same wiring."""

    app: FastAPI
    db: Database
    clock: Clock
    house: House
    authority: Authority
    courier: Courier
    background: list[Background]


def build(said: NotifySettings) -> Built:
    """The service as `said` has it. RegionError: the region file cannot be used."""
    db = Database(said.database_url.get_secret_value(), "notify", pool=said.database_pool)
    clock = Clock(said.clock)
    region = RegionFile(said.region)
    house = House(
        region=region.current,
        seals=Seals(said.date_keys, said.seal_keys),
        tokens=Tokens(said.token_keys),
        base=f"{said.notify_url}/fhir",
        invalid_holds=said.consent_invalid == "hold",
        reachable=region.reachable,
    )
    authority = Authority.of(said)
    sign_in = SignIn(
        service="notify",
        public_url=said.notify_url,
        db=db,
        region=region.current,
        authority=authority,
        settings=said,
    )
    pages = Pages(
        desk=NotifyDesk(db=db, house=house, now=clock.now),
        sign_in=sign_in,
        region=region.current,
        issuer=said.issuer,
        fallback_phone=said.fallback_phone,
        demo=said.local,
        secure=not said.local,
    )
    app = make_app("notify", db, error_page=pages.error)
    guard(
        app,
        Auth(authority, said.audience, region.current),
        audit.refusals(db, clock.now),
        Limits.of(said, "notify"),
    )

    def gate(clinic: str) -> Egress:
        return gate_of(region.current(), clinic, local=said.local)

    cursor_key = base64.b64decode(said.cursor_key.get_secret_value())
    add_door(app, Door(db, house, clock.now, cursor_key, gate, authority))
    signin.install(app, sign_in)
    pages.install(app)
    office = ConsentOffice(
        db=db,
        house=house,
        now=clock.now,
        override_lasts=timedelta(minutes=said.override_minutes),
        hold_alarm=timedelta(hours=said.hold_alarm_hours),
    )
    ConsentPages(pages, office).install(app)
    IncidentPages(pages, Registrar(db=db, house=house, now=clock.now)).install(app)

    def turn(tx: Tx, now: datetime) -> Turn:
        return Turn(tx=tx, now=now, house=house)

    reader = Reader(db, READS, turn, carriers.reading(said, db), clock)
    courier = Courier(db=db, house=house, now=clock.now, gate=gate, http=egress.client())

    async def sweeping(stop: asyncio.Event) -> None:
        await sweep_on(db, house, clock, stop)

    async def watching(stop: asyncio.Event) -> None:
        await watch_on(db, clock, timedelta(hours=said.hold_alarm_hours), stop)

    background = [
        reader.run,
        courier.run,
        sweeping,
        watching,
        *carriers.relaying(said, db),
        *chain.sealing(said, db),
    ]
    return Built(app, db, clock, house, authority, courier, background)


def gate_of(region: Region, clinic: str, *, local: bool) -> Egress:
    """Where notifications of a clinic may go, as the region file opens it."""
    known = region.clinic(clinic)
    return Egress(local=local, hosts=frozenset(known.endpoint_hosts if known else ()))


async def sweep_on(db: Database, house: House, clock: Clock, stop: asyncio.Event) -> None:
    """Decide again, soon, for whom the calendar may have changed the answer (CS-51)."""
    while not stop.is_set():
        telemetry.gauge("notify_directory_away", "notify").set(not house.reachable())
        try:
            async with db.work() as tx:
                swept = await flow.sweep(Turn(tx=tx, now=clock.now(), house=house))
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("sweep_waits", error=type(error).__name__, sqlstate=sqlstate(error))
            swept = 0
        if swept < flow.SWEEP:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), SWEEP_EVERY)


async def watch_on(db: Database, clock: Clock, longest: timedelta, stop: asyncio.Event) -> None:
    """Say what waits for a person, and too long (CS-36)."""
    while not stop.is_set():
        try:
            async with db.work() as tx:
                await worklist.watch(tx, clock.now(), longest)
                await breaking.forget_drafts(tx, real_now())
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("watch_waits", error=type(error).__name__, sqlstate=sqlstate(error))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), WATCH_EVERY)


async def run(said: NotifySettings) -> int:
    """Serve until told to stop; the exit code."""
    built = build(said)
    try:
        return await process.serve(
            built.app, said.host, said.port or PORT, built.background, local=said.local
        )
    finally:
        await built.courier.http.aclose()
        await built.db.close()
        await built.authority.http.aclose()


def main() -> int:
    """`passerelle notify`. Exit code 2: the settings or the region file are wrong."""
    try:
        said = settings.read(NotifySettings)
        telemetry.set_up("notify", said.log_level, said.otlp_endpoint)
        return process.run(run(said))
    except (SettingsError, RegionError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
