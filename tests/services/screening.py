"""Screening as the tests of its flow run it: its handlers on a real database, no reader."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import text

from schemas.encounter_recorded_v1 import ClassSince, EncounterClass, EncounterRecorded
from schemas.encounter_recorded_v1 import Disposition as ToldDisposition
from schemas.encounter_recorded_v1 import Service as ToldService
from schemas.encounter_recorded_v1 import Status as ToldStatus
from schemas.envelope import Coding as ToldCoding
from schemas.envelope import Moment as ToldMoment
from schemas.episode_changed_v1 import EpisodeChanged
from schemas.flag_changed_v1 import FlagChanged
from schemas.patient_identified_v1 import PatientIdentified, Sealed
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from services.plumbing.db import Database, Tx
from services.plumbing.sealing import Seals
from services.screening import flow, registry
from services.screening.ledger import Coding, Fact, Moment
from services.screening.policy import Policy
from services.screening.telling import KnownSite
from tests.conftest import keyring
from tests.histories import P, at, qc_default

SITES = (
    KnownSite(
        "site-a", connected=True, data_from=date(2024, 1, 1), zone=ZoneInfo("America/Toronto")
    ),
    KnownSite(
        "site-b", connected=True, data_from=date(2025, 6, 1), zone=ZoneInfo("America/Toronto")
    ),
    KnownSite("site-c", connected=False, data_from=None, zone=ZoneInfo("America/Toronto")),
)
SEALS = Seals(keyring("dates"))


@dataclass
class Screening:
    """The service on `db`, at whatever instant a test says."""

    db: Database
    policy: Policy = field(default_factory=qc_default)

    def turn(self, tx: Tx, now: str | datetime) -> flow.Turn:
        instant = at(now) if isinstance(now, str) else now
        return flow.Turn(tx, instant, policy=self.policy, sites=SITES, seals=SEALS)

    @asynccontextmanager
    async def at(self, now: str | datetime) -> AsyncIterator[flow.Turn]:
        async with self.db.work() as tx:
            yield self.turn(tx, now)

    async def meet(self, *keys: UUID, now: str = "2020-01-01 00:00-05", **other: Any) -> None:
        async with self.at(now) as turn:
            await flow.on_patients_identified([identified(key, **other) for key in keys], turn)

    async def take(self, *facts: Fact, now: str | datetime) -> None:
        async with self.at(now) as turn:
            await flow.on_encounters_recorded([recorded(fact) for fact in facts], turn)

    async def merge(self, retired: UUID, surviving: UUID, now: str, version: int = 1) -> None:
        async with self.at(now) as turn:
            said = PatientMerged(
                surviving=surviving, retired=retired, version=version, recorded=at(now)
            )
            await flow.on_patients_merged([said], turn)

    async def unmerge(self, retired: UUID, surviving: UUID, now: str, version: int = 2) -> None:
        async with self.at(now) as turn:
            said = PatientUnmerged(
                surviving=surviving, retired=retired, version=version, recorded=at(now)
            )
            await flow.on_patients_unmerged([said], turn)

    async def sweep(self, now: str | datetime) -> int:
        async with self.at(now) as turn:
            return await flow.sweep(turn)

    async def reevaluate(self, now: str | datetime) -> int:
        """Look at everybody under what was activated, in as many turns as it takes; how many."""
        found = 0
        while True:
            async with self.at(now) as turn:
                if await registry.unfinished(turn.tx, turn.now) is None:
                    return found
                found += await flow.reevaluate(turn)

    async def said(self, kind: str) -> list[str]:
        async with self.db.work() as tx:
            rows = await tx.execute(
                text("select data from outbox where type = :kind order by xid, position"),
                {"kind": kind},
            )
            return [row.data for row in rows]

    async def flags(self, patient: UUID = P) -> list[FlagChanged]:
        """What was announced of a patient's flag, oldest first."""
        said = map(FlagChanged.model_validate_json, await self.said(FlagChanged.type))
        return [event for event in said if event.patient == patient]

    async def moments(self, patient: UUID = P) -> list[EpisodeChanged]:
        """What was announced of a patient's care episodes, oldest first."""
        said = map(EpisodeChanged.model_validate_json, await self.said(EpisodeChanged.type))
        return [event for event in said if event.patient == patient]


def identified(
    key: UUID,
    version: int = 1,
    birth_date: str | None = "1970-05-17",
    deceased: str | None = None,
    when: str = "2020-01-01 00:00-05",
) -> PatientIdentified:
    fields = {"birthDate": birth_date, "deceased": deceased}
    sealed = {n: SEALS.seal(key, n, value) for n, value in fields.items() if value}
    return PatientIdentified(
        patient=key,
        version=version,
        tokens=(),
        demographics={n: Sealed(key_id=k, box=box) for n, (k, box) in sealed.items()},
        recorded=at(when),
    )


def recorded(fact: Fact) -> EncounterRecorded:
    """The event that states a fact."""
    return EncounterRecorded(
        patient=fact.patient,
        encounter=fact.encounter,
        version=fact.version,
        site=fact.site,
        status=ToldStatus(fact.status),
        classes=tuple(ClassSince(code=EncounterClass(c), since=s) for c, s in fact.classes),
        triaged=fact.triaged,
        start=_moment(fact.start),
        end=_moment(fact.end),
        disposition=ToldDisposition(fact.disposition) if fact.disposition else None,
        service=ToldService(fact.service) if fact.service else None,
        part_of=fact.part_of,
        from_emergency=fact.from_emergency,
        transfer_in=fact.transfer_in,
        transfer_out=fact.transfer_out,
        planned=fact.planned,
        codes=_codings(fact.codes),
        labels=_codings(fact.labels),
        time_is_ambiguous=fact.time_is_ambiguous,
        start_is_assumed=fact.start_is_assumed,
        event_time=fact.event_time,
        recorded=fact.recorded,
        backfill=fact.backfill,
    )


def _moment(moment: Moment | None) -> ToldMoment | None:
    if moment is None:
        return None
    return ToldMoment(
        earliest=moment.earliest,
        latest=moment.latest,
        precision="instant" if moment.exact else "day",
    )


def _codings(codes: Sequence[Coding] | None) -> tuple[ToldCoding, ...] | None:
    return None if codes is None else tuple(ToldCoding(system=c.system, code=c.code) for c in codes)


def later(instant: datetime, **by: float) -> datetime:
    return (instant + timedelta(**by)).astimezone(UTC)
