"""Work items: opened when something is on hold, closed when it is decided another way (CS-36).

Called with every settling of a patient's cards, in its transaction; nothing here decides who may
be told what.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row

from services.notify import holding, recount, store, telling
from services.notify.consent import Decision, Hold, Outcome, Permit
from services.notify.holding import Filed, Judgement, Open, Why
from services.notify.recount import Standing
from services.notify.store import Facts
from services.notify.telling import House
from services.plumbing import telemetry
from services.plumbing.db import Tx

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Judged:
    """A patient, and how it was just decided about each clinic that would be told."""

    facts: Facts
    decisions: Sequence[Decision]


async def settle(tx: Tx, house: House, judged: Sequence[Judged], now: datetime) -> None:
    """Open, change and close the work items of these patients, whom the caller holds."""
    there: dict[UUID, list[Open]] = defaultdict(list)
    root_of = {key: one.facts.patient for one in judged for key in one.facts.keys}
    refused = {row.uid: one.facts.patient for one in judged for row in _refused(one.facts)}
    for row in await store.open_items(tx, [*root_of, *refused]):
        root = root_of.get(row.patient) or refused.get(row.about)
        if root is not None:
            there[root].append(_open(row))
    should_be = {one.facts.patient: _wanted(house, one) for one in judged}
    concerned = [one for one in judged if should_be[one.facts.patient] or there[one.facts.patient]]
    if not concerned:
        return
    sent = await store.sites_of(tx, [key for one in concerned for key in one.facts.keys])
    opens, changes, closes = [], [], list[UUID]()
    for one in concerned:
        patient = one.facts.patient
        sites = _sites(one.facts, sent)
        found = holding.settle(patient, should_be[patient], there[patient], sites)
        opens += [_row(patient, wish, sites) for wish in found.opens]
        changes += [_changed(id_, wish, sites) for id_, wish in found.changes]
        closes += found.closes
    await store.close_items(tx, closes, now)
    await store.change_items(tx, changes)
    await store.add_items(tx, opens, now)


def _refused(facts: Facts) -> list[store.ConsentRow]:
    return [row for row in facts.consents if row.refused]


def _wanted(house: House, judged: Judged) -> list[holding.Wanted]:
    facts = judged.facts
    policy = telling.policy_of(house.region())
    read = telling.directives(house, facts, policy) if facts.consents else []
    on_file = [
        Filed(directive, disputed=row.disputed, refused=row.refused)
        for directive, row in zip(read, facts.consents, strict=True)
    ]
    standing = telling.standing_of(facts)
    judgements = [Judgement(one, _keeps_back(one, standing)) for one in judged.decisions]
    return holding.wanted(judgements, on_file)


def _keeps_back(decision: Decision, standing: Standing | None) -> bool:
    """Whether more would be said of the patient if what is in doubt were released."""
    if isinstance(decision, Hold):
        return True
    if standing is None or not isinstance(decision, Permit):
        return False
    doubtful = {f.item for f in decision.findings if f.outcome is Outcome.HOLD}
    if not doubtful:
        return False
    told = recount.see(standing, decision.released, decision.at)
    whole = recount.see(standing, decision.released | doubtful, decision.at)
    return told.state is not whole.state


def _sites(facts: Facts, sent: Mapping[UUID, tuple[str, ...]]) -> frozenset[str]:
    """The custodians: who sent something of the patient, and whose visits are counted."""
    sites = {site for key in facts.keys for site in sent.get(key, ())}
    standing = telling.standing_of(facts)
    if standing is not None:
        sites |= {visit.site for unit in standing.units for visit in unit.visits}
    return frozenset(sites)


def _open(row: Row[Any]) -> Open:
    return Open(
        id=row.id,
        patient=row.patient,
        about=row.about,
        why=Why(row.reason),
        sites=frozenset(row.sites),
        basis=frozenset(row.basis),
    )


def _row(patient: UUID, wish: holding.Wanted, sites: frozenset[str]) -> dict[str, object]:
    return {
        "id": telemetry.new_id(),
        "patient": patient,
        "about": None,
        "reason": str(wish.why),
        "sites": sorted(sites),
        "basis": sorted(wish.basis),
    }


def _changed(id_: UUID, wish: holding.Wanted, sites: frozenset[str]) -> dict[str, object]:
    return {"id": id_, "sites": sorted(sites), "basis": sorted(wish.basis)}


async def open_about(
    tx: Tx, about: UUID, why: Why, now: datetime, *, patient: UUID | None, sites: Sequence[str]
) -> None:
    """An item about one thing: a Consent refused of nobody we know, an override."""
    row = {
        "id": telemetry.new_id(),
        "patient": patient,
        "about": about,
        "reason": str(why),
        "sites": sorted(sites),
        "basis": [],
    }
    await store.add_items(tx, [row], now)


async def watch(tx: Tx, now: datetime, longest: timedelta) -> None:
    """Say how many wait, and once of each that it waits too long; no value, no patient."""
    for row in await store.overdue(tx, now - longest, now):
        log.warning("work_item_overdue", item=str(row.id), reason=row.reason, opened=row.opened)
    waiting = {row.reason: (row.items, row.overdue) for row in await store.waiting(tx)}
    for why in Why:
        items, overdue = waiting.get(str(why), (0, 0))
        telemetry.gauge("waiting_for_a_person", str(why)).set(items)
        telemetry.gauge("waiting_too_long", str(why)).set(overdue)
