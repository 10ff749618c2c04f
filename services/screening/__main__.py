"""The screening service: builds it and runs it."""

import asyncio
import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from fastapi import FastAPI

from schemas.count_correction_v1 import CountCorrection
from schemas.encounter_recorded_v1 import EncounterRecorded
from schemas.patient_identified_v1 import PatientIdentified
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.restatement_ended_v1 import RestatementEnded
from schemas.site_heard_v1 import SiteHeard
from services.plumbing import audit, carriers, chain, process, settings, telemetry
from services.plumbing.auth import Auth, Authority, guard
from services.plumbing.clock import Clock
from services.plumbing.db import Database, Tx
from services.plumbing.eventlog import Reader, on
from services.plumbing.limits import Limits
from services.plumbing.process import Background
from services.plumbing.region import Region, RegionError, RegionFile
from services.plumbing.sealing import Seals
from services.plumbing.settings import ScreeningSettings, SettingsError
from services.plumbing.web import make_app
from services.screening import backtesting, flow, policy, presets, registry
from services.screening.api import House, add_door
from services.screening.policy import Policy, PolicyRefused
from services.screening.rulebook import add_policies
from services.screening.telling import KnownSite
from services.screening.whatif import add_backtests

PORT = 8002

READS = [
    on(SiteHeard, flow.on_sites_heard),
    on(PatientIdentified, flow.on_patients_identified),
    on(PatientMerged, flow.on_patients_merged),
    on(PatientUnmerged, flow.on_patients_unmerged),
    on(EncounterRecorded, flow.on_encounters_recorded),
    on(CountCorrection, flow.on_counts_corrected),
    on(RestatementEnded, flow.on_restatement_ended),
]


class PolicyTakenError(Exception):
    """The name and version of the policy file belong to another policy on this database."""


@dataclass(frozen=True, slots=True)
class Built:
    """The service's parts, for this process and for tests that run the same wiring."""

    app: FastAPI
    db: Database
    clock: Clock
    authority: Authority
    policy: Policy
    background: list[Background]


def build(said: ScreeningSettings) -> Built:
    """The service as `said` has it. RegionError, PolicyRefused: a file cannot be used."""
    db = Database(said.database_url.get_secret_value(), "screening", pool=said.database_pool)
    clock = Clock(said.clock)
    region = RegionFile(said.region)
    rule = policy.load(policy_text(region.current(), said.region.parent))
    seals = Seals(said.date_keys)
    authority = Authority.of(said)

    def sites() -> Sequence[KnownSite]:
        return known_sites(region.current())

    def turn(tx: Tx, now: datetime) -> flow.Turn:
        return flow.Turn(tx, now, policy=rule, sites=sites(), seals=seals)

    app = make_app("screening", db)
    guard(
        app,
        Auth(authority, said.audience, region.current),
        audit.refusals(db, clock.now),
        Limits.of(said, "screening"),
    )
    cursor_key = base64.b64decode(said.cursor_key.get_secret_value())
    house = House(db, clock.now, rule, sites, cursor_key)
    add_door(app, house)
    add_policies(app, house)
    add_backtests(app, house)
    reader = Reader(db, READS, turn, carriers.reading(said, db), clock)

    async def sweeping(stop: asyncio.Event) -> None:
        await flow.sweeping(db, lambda tx: turn(tx, clock.now()), said.sweep_seconds, stop)

    async def backtests(stop: asyncio.Event) -> None:
        await backtesting.running(db, clock.now, stop)

    background = [
        reader.run,
        sweeping,
        backtests,
        *chain.sealing(said, db),
        *carriers.relaying(said, db),
    ]
    return Built(app, db, clock, authority, rule, background)


def policy_text(region: Region, folder: Path) -> str:
    """The policy file that the region names, or the preset of that name; else qc-default."""
    if region.policy is None:
        return presets.text(presets.DEFAULT)
    if f"{region.policy}" in presets.names():
        return presets.text(f"{region.policy}")
    try:
        return (folder / region.policy).read_text()
    except OSError as error:
        raise RegionError(f"policy {region.policy}: {error.strerror}") from None


def known_sites(region: Region) -> Sequence[KnownSite]:
    return [
        KnownSite(site.id, site.connected, site.data_from, ZoneInfo(site.timezone))
        for site in region.sites
    ]


async def run(said: ScreeningSettings) -> int:
    """Serve until told to stop; the exit code."""
    built = build(said)
    try:
        async with built.db.work() as tx:
            if not await registry.adopt(tx, built.policy, built.clock.now()):
                raise PolicyTakenError(
                    f"Policy {built.policy.label} is another one on this database."
                    " Give the changed file a new version."
                )
        return await process.serve(
            built.app, said.host, said.port or PORT, built.background, local=said.local
        )
    finally:
        await built.db.close()
        await built.authority.http.aclose()


def main() -> int:
    """`passerelle screening`. Exit code 2: the settings, region or policy file are wrong."""
    try:
        said = settings.read(ScreeningSettings)
        telemetry.set_up("screening", said.log_level, said.otlp_endpoint)
        return process.run(run(said))
    except (SettingsError, RegionError, PolicyRefused, PolicyTakenError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
