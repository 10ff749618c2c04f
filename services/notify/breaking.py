"""The story of a broken glass: named, judged, opened for a while, recorded, reviewed (CS-55).

Every view decides anew, under purpose BTG and for this one person; what opened it is asked again
each time. Nothing here is called by a delivery, a retry or a machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import orjson

from services.notify import card, override, recount, store, telling, worklist
from services.notify.consent import Permit
from services.notify.flow import Turn, decision_row
from services.notify.holding import Why
from services.notify.override import Entered, Ground, Judged, Notice, Verdict
from services.notify.recount import Kind
from services.notify.store import Facts
from services.notify.telling import House, Told
from services.plumbing import audit, telemetry
from services.plumbing.audit import AuditRecord, Content, Trail
from services.plumbing.db import Tx
from services.plumbing.identifiers import canonical_system, normalise
from services.plumbing.region import Person
from services.plumbing.sealing import SealBrokenError, UnknownKeyError

DRAFT_LASTS: Final = timedelta(minutes=15)
"""Real time."""
PAGE: Final = "break-glass"
LEVEL: Final = "L1"
DRAFTS: Final = UUID(int=0)
"""Whom a draft is sealed under: of nobody yet."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A complete form, of a person who proved a moment ago who they are."""

    person: Person
    place: str
    """Their clinic or site."""
    said: Entered = field(repr=False)
    lasts: timedelta


@dataclass(frozen=True, slots=True)
class Opened:
    """One patient, to one person, at one instant; read only."""

    told: Told
    ends: datetime
    ground: Ground


async def break_glass(attempt: Attempt, turn: Turn, trail: Trail) -> UUID | None:
    """Record the attempt and what came of it, for the privacy officer to review.

    The opening's id; None: it does not open, and whether anybody was found is not said.
    """
    tx, now, said = turn.tx, turn.now, attempt.said
    id_ = telemetry.new_id()
    facts = await _find(said, turn)
    judged, told = (None, None) if facts is None else _judge(attempt, facts, turn)
    by = None if judged is None else judged.by
    key_id, box = turn.house.seals.seal(id_, "why", said.why)
    wants_notice = by is not None and turn.house.region().consent.tell_of_override
    patient = None if facts is None else facts.patient
    await store.add_override(
        tx,
        id=id_,
        person=attempt.person.id,
        tenant=attempt.place,
        patient=patient,
        ground=said.ground,
        why_key_id=key_id,
        why=box,
        at=now,
        ends=None if by is None else now + attempt.lasts,
        opened_by=by,
        basis=[] if judged is None else sorted(judged.decision.basis),
        notice=Notice.TO_DO if wants_notice else Notice.NONE,
    )
    await worklist.open_about(tx, id_, Why.OVERRIDE, now, patient=patient, sites=[])
    records = [replace(trail.updated(f"Override/{id_}", None, "create"), purpose=override.PURPOSE)]
    if facts is not None and judged is not None:
        records += _records(trail, attempt.person, facts, judged, told, said.ground)
        row = decision_row(facts.patient, attempt.place, judged.decision, None, "read")
        await store.put_decisions(tx, [row])
    await audit.record(tx, records)
    return None if by is None else id_


async def look(id_: UUID, person: Person, place: str, turn: Turn, trail: Trail) -> Opened | None:
    """What the opening shows now. None: it is another's, over, or no longer permitted."""
    tx, now = turn.tx, turn.now
    row = await store.override(tx, id_)
    if row is None or row.person != person.id or row.patient is None:
        return None
    if not override.is_open(row.ends, row.verdict, now):
        return None
    await store.hear_consents(tx, [row.patient])
    facts = next(iter((await store.facts(tx, [row.patient])).values()), None)
    if facts is None:
        return None
    attempt = Attempt(person, place, Entered(ground=row.ground), timedelta())
    judged, told = _judge(attempt, facts, turn)
    await audit.record(tx, _records(trail, person, facts, judged, told, row.ground))
    return None if told is None else Opened(told, row.ends, Ground(row.ground))


async def _find(said: Entered, turn: Turn) -> Facts | None:
    """The one person that number names, their Consents held still."""
    house = turn.house
    system = canonical_system(said.system, house.region().aliases)
    value = normalise(system, said.number)
    if value is None:
        return None
    keys = await store.matched(turn.tx, house.tokens.all(system, value))
    roots = await store.families(turn.tx, keys)
    if len(roots) != 1:
        return None
    await store.hear_consents(turn.tx, roots)
    return next(iter((await store.facts(turn.tx, roots)).values()), None)


def _judge(attempt: Attempt, facts: Facts, turn: Turn) -> tuple[Judged | None, Told | None]:
    house, region = turn.house, turn.house.region()
    standing = telling.standing_of(facts)
    if standing is None:
        return None, None
    standing = recount.assessed(standing, facts.assessed)
    policy = telling.policy_of(region)
    asked = telling.question(
        house,
        facts,
        standing,
        clinic=attempt.place,
        readers=(f"Practitioner/{attempt.person.id}",),
        at=turn.now,
    )
    overriding = frozenset(f"Organization/{site.id}" for site in region.sites if site.override)
    judged = override.judge(telling.directives(house, facts, policy), asked, policy, overriding)
    if not isinstance(judged.decision, Permit) or judged.by is None:
        return judged, None
    view = card.compose(standing, judged.decision)
    return judged, Told(facts, judged.decision, standing, view)


def _records(
    trail: Trail,
    person: Person,
    facts: Facts,
    judged: Judged | None,
    told: Told | None,
    ground: str,
) -> list[AuditRecord]:
    """The override itself, and what was read by it: two events (CS-55)."""
    if judged is None:
        return []
    decision = judged.decision
    policy = "override" if judged.by is override.By.POLICY else decision.policy
    records = [
        trail.decided(
            facts.patient,
            decision.recipient.removeprefix("Organization/"),
            permitted=judged.by is not None,
            reasons=[ground, *sorted(telling.reasons_of(decision))],
            consents=sorted(decision.basis),
            policy=policy,
            reader=person.id,
            purpose=override.PURPOSE,
        )
    ]
    if told is not None and told.view is not None:
        read = trail.read(
            f"Patient/{facts.patient}", facts.patient, content=_content(told, told.view, policy)
        )
        records.append(replace(read, purpose=override.PURPOSE, reasons=(ground,)))
    return records


def _content(told: Told, view: recount.View, policy: str) -> Content:
    return Content(
        items=(
            f"ed-visit:{view.count(Kind.ED)}",
            f"hospital-stay:{view.count(Kind.HOSPITAL)}",
        ),
        level=LEVEL,
        basis=tuple(sorted(told.decision.basis)),
        policy=policy,
    )


async def review(
    id_: UUID, item: UUID, by: str, verdict: Verdict, why: str, turn: Turn, trail: Trail
) -> bool:
    """What the privacy officer found. An opening that was not justified is over with it."""
    tx, now = turn.tx, turn.now
    box = turn.house.seals.seal(id_, "review", why)
    done = await store.review_override(
        tx, id=id_, by=by, verdict=verdict, review=list(box), now=now
    )
    if done:
        await audit.record(tx, [trail.updated(f"Override/{id_}", None)])
        await _close(id_, item, by, turn)
    return done


async def notice_given(id_: UUID, item: UUID, by: str, turn: Turn, trail: Trail) -> bool:
    """The patient was told, by a person."""
    done = await store.told_of_override(turn.tx, id_, by)
    if done:
        await audit.record(turn.tx, [trail.updated(f"Override/{id_}", None)])
        await _close(id_, item, by, turn)
    return done


async def _close(id_: UUID, item: UUID, by: str, turn: Turn) -> None:
    """Reviewed, and the patient told if they are to be: then nothing is left to do."""
    row = await store.override(turn.tx, id_)
    if row is not None and row.reviewed is not None and row.notice != Notice.TO_DO:
        await store.close_items(turn.tx, [item], turn.now, by=by, outcome="reviewed")


# --- what was entered when they had to sign in again ------------------------------------------


async def keep_draft(person: str, said: Entered, turn: Turn, real: datetime) -> None:
    body = {
        "system": said.system,
        "number": said.number,
        "ground": said.ground,
        "cannot_ask": said.cannot_ask,
        "why": said.why,
    }
    key_id, box = turn.house.seals.seal(DRAFTS, "draft", orjson.dumps(body).decode())
    await store.keep_draft(turn.tx, person=person, page=PAGE, key_id=key_id, box=box, at=real)


async def take_draft(person: str, house: House, turn: Turn, real: datetime) -> Entered | None:
    """What they had entered; once."""
    row = await store.take_draft(turn.tx, person, PAGE)
    if row is None or row.at <= real - DRAFT_LASTS:
        return None
    try:
        said: Mapping[str, str] = orjson.loads(
            house.seals.open(DRAFTS, "draft", row.key_id, row.box)
        )
    except (UnknownKeyError, SealBrokenError):
        return None
    return Entered(**{name: said[name] for name in Entered.__dataclass_fields__})


async def forget_drafts(tx: Tx, real: datetime) -> None:
    """What nobody came back for."""
    await store.forget_drafts(tx, real - DRAFT_LASTS)
