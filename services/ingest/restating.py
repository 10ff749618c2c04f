"""The story of a full rebuild, ingest's part: every fact is stated again (counting.md section 9).

Persons, then merges and unmerges, then encounters: each version as it was stated, with the time
it was recorded, so that what was known when survives. A step is one transaction that states some
and notes how far it has come: broken off, it goes on from there. Live messages go on meanwhile;
what they state is news, and needs no restating.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from uuid import UUID

from schemas.encounter_recorded_v1 import EncounterRecorded
from schemas.envelope import Event
from schemas.patient_identified_v1 import PatientIdentified, Sealed, Token
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.restatement_ended_v1 import RestatementEnded
from schemas.site_heard_v1 import SiteHeard
from services.ingest import flow, store
from services.ingest.folding import fold
from services.ingest.tables import Restatement, StatedEncounter, StatedLink, StatedPerson
from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.db import Database, Tx
from services.plumbing.eventlog import append
from services.plumbing.telemetry import new_id

STEP = 500
"""Patients, retired keys or encounters of one transaction."""
FOLLOWING = {"persons": "links", "links": "encounters", "encounters": "ended"}


async def restate(
    db: Database, now: Callable[[], datetime], by: str, most: int = STEP
) -> AsyncGenerator[Restatement, None]:
    """State everything again, or go on with it where it was broken off; yields after each step."""
    async with db.work() as tx:
        if await store.restatement(tx) is None:
            id_ = new_id()
            await store.begin_restatement(tx, id_, by, now())
            trail = Trail(at=now(), agent=by, agent_kind="service")
            await audit.record(tx, [trail.configured(f"rebuild/{id_}")])
    while True:
        async with db.work() as tx:
            under_way = await store.restatement(tx)
            if under_way is None:
                return  # another command has ended it
            under_way = await _step(tx, under_way, now(), most)
        yield under_way
        if under_way.ended is not None:
            return


async def _step(tx: Tx, at: Restatement, now: datetime, most: int) -> Restatement:
    """State the next ones of the stage, or begin the following stage."""
    match at.stage:
        case "persons":
            persons = await store.stated_persons(tx, at.after, most)
            events: Sequence[Event] = [person(one, at.id) for one in persons]
            last = [one.key for one in persons[-1:]]
        case "links":
            links = await store.stated_links(tx, at.after, most)
            events = [link(one, at.id) for one in links]
            last = [one.retired for one in links[-1:]]
        case _:
            encounters = await store.stated_encounters(tx, at.after, most)
            events = [event for one in encounters for event in facts(one, at.id)]
            last = [one.key for one in encounters[-1:]]
    await append(tx, events, now)
    if last:
        return await store.restated(tx, at.id, at.stage, last[0], {at.stage: len(events)})
    following = FOLLOWING[at.stage]
    ended = now if following == "ended" else None
    at = await store.restated(tx, at.id, following, store.FIRST, {}, ended)
    if ended is not None:
        said = RestatementEnded(
            restatement=at.id,
            begun=at.begun,
            persons=at.persons,
            links=at.links,
            encounters=at.encounters,
            recorded=now,
        )
        sites = [
            SiteHeard(site=site, last_event=event, heard=heard)
            for site, event, heard in await store.all_heard(tx)
        ]
        await append(tx, [*sites, said], now)
    return at


def person(one: StatedPerson, restatement: UUID) -> PatientIdentified:
    """A version of a patient. An older one says only what counting needs of it: its dates."""
    return PatientIdentified(
        patient=one.key,
        version=one.version,
        tokens=tuple(Token(**token) for token in one.tokens),
        demographics={
            name: Sealed(key_id=said["k"], box=said["b"])
            for name, said in one.fields.items()
            if "b" in said
        },
        attributed=tuple(one.attributed) if one.is_newest else (),
        sites=tuple(one.sites) if one.is_newest else (),
        recorded=one.recorded,
        restated=restatement,
    )


def link(one: StatedLink, restatement: UUID) -> PatientMerged | PatientUnmerged:
    kind = PatientMerged if one.merged else PatientUnmerged
    return kind(
        surviving=one.surviving,
        retired=one.retired,
        version=one.version,
        recorded=one.at,
        restated=restatement,
    )


def facts(one: StatedEncounter, restatement: UUID) -> list[EncounterRecorded]:
    """Each fact the encounter had, folded again from the messages it was made of (CT-15)."""
    found: list[EncounterRecorded] = []
    for version in sorted({number for number, _, _ in one.messages if number}):
        recorded = min(settled for number, settled, _ in one.messages if number == version)
        fact = fold(
            message
            for number, settled, message in one.messages
            if number < version or (number == version and settled == recorded)
        )
        if fact.patient is not None:
            found.append(flow.statement(one.key, version, one.site, fact, recorded, restatement))
    return found
