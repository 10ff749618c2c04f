"""What ingest states again for a rebuild: kept beside the live work, counted once it is whole.

A fact stated again replaces what is kept of that version; nothing is forgotten before everything
has come, so nobody is ever counted on a part of their history. Then what ingest does not have is
dropped, and everybody is counted again, quietly: only real differences are announced, in the same
sequence as before. What a person corrected here (CT-17) and what was announced stays.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import structlog

from schemas.encounter_recorded_v1 import EncounterRecorded
from schemas.patient_identified_v1 import PatientIdentified
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.restatement_ended_v1 import RestatementEnded
from services.plumbing.db import Tx
from services.screening import store
from services.screening.ledger import Link, Person

log = structlog.get_logger()

IN_HAND = timedelta(minutes=10)
"""Longer than ingest has a message in hand: what was recorded so shortly before a rebuild began
may have been committed after ingest's store was read, and is not taken for unknown to it."""

E = TypeVar("E", bound=EncounterRecorded | PatientIdentified | PatientMerged | PatientUnmerged)


def news(batch: Sequence[E]) -> list[E]:
    """Those of `batch` that are stated for the first time."""
    return [event for event in batch if event.restated is None]


def again(batch: Sequence[E]) -> list[E]:
    return [event for event in batch if event.restated is not None]


async def encounters(tx: Tx, batch: Sequence[EncounterRecorded], now: datetime) -> None:
    """Keep those that are stated again; their patients are locked."""
    if batch:
        await store.keep_again(tx, batch, now)
        came = ((event.restated, event.encounter, event.version) for event in batch)
        await _came(tx, "encounters", came, now)


async def persons(
    tx: Tx, batch: Sequence[PatientIdentified], opened: Sequence[Person], now: datetime
) -> None:
    """Keep those that are stated again; `opened` are the same, unsealed."""
    if batch:
        await store.identify_again(tx, opened, now)
        came = ((event.restated, event.patient, event.version) for event in batch)
        await _came(tx, "persons", came, now)


async def links(
    tx: Tx,
    batch: Sequence[PatientMerged | PatientUnmerged],
    said: Sequence[Link],
    now: datetime,
) -> None:
    """Keep those that are stated again; `said` are the same, as links."""
    if batch:
        await store.link_again(tx, said, now)
        came = ((event.restated, event.retired, event.version) for event in batch)
        await _came(tx, "links", came, now)


async def ended(tx: Tx, batch: Sequence[RestatementEnded], now: datetime) -> None:
    """Ingest has stated everything again; it may not all have come."""
    for event in batch:
        await store.rebuild_ended(tx, event, now)
        await _complete(tx, event.restatement, now)


async def _came(
    tx: Tx, kind: str, came: Iterable[tuple[UUID | None, UUID, int]], now: datetime
) -> None:
    by_rebuild: dict[UUID, set[tuple[UUID, int]]] = {}
    for rebuild, key, version in came:
        assert rebuild is not None
        by_rebuild.setdefault(rebuild, set()).add((key, version))
    for rebuild, versions in sorted(by_rebuild.items()):
        await store.came_again(tx, rebuild, kind, versions, now)
        await _complete(tx, rebuild, now)


async def _complete(tx: Tx, rebuild: UUID, now: datetime) -> None:
    """If all has come: drop what ingest does not have, and have everybody counted again."""
    begun = await store.rebuild_is_whole(tx, rebuild)
    if begun is None:
        return
    dropped = await store.drop_unknown(tx, rebuild, begun - IN_HAND)
    patients = await store.count_all_again(tx, rebuild, now)
    log.info("rebuild_complete", id=str(rebuild), patients=patients, dropped=dropped)
