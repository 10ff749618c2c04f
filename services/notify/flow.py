"""The story of notify: flags and episodes change; whose patient, may they be told, which card.

Read, decide, write, tell. A handler is given a batch and a transaction; nothing here commits.
Whatever changes what may be told (a flag, an episode, an identity, a panel, a Consent, the
calendar) ends in `reconsider`, which settles the patients' cards at every clinic.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import structlog

from schemas.count_correction_v1 import CountCorrection
from schemas.count_correction_v1 import Reason as ToldReason
from schemas.episode_changed_v1 import EpisodeChanged
from schemas.flag_changed_v1 import Explanation, FlagChanged, Notice
from schemas.patient_identified_v1 import PatientIdentified
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.site_heard_v1 import SiteHeard
from services.notify import days, panel, reading, recount, store, telling, worklist
from services.notify.card import (
    TAKEN_BACK,
    Ask,
    Card,
    Event,
    Situation,
    Status,
    Why,
    acknowledged,
    event_of,
    settle,
)
from services.notify.consent import Decision, Permit, Withhold
from services.notify.correction import Correction, Subject, Wish, corrected
from services.notify.recount import Kind, Standing, State
from services.notify.store import Facts, FlagRow, Outlook
from services.notify.telling import House, Told
from services.notify.worklist import Judged
from services.plumbing import audit, eventlog, telemetry
from services.plumbing.audit import Trail
from services.plumbing.clock import real_now
from services.plumbing.db import Tx

log = structlog.get_logger()


@dataclass(frozen=True)
class Turn(eventlog.Turn):
    """One batch's transaction and instant, and what deciding needs."""

    house: House

    @property
    def trail(self) -> Trail:
        return Trail.background("notify", self.now)


# --- what other services state ----------------------------------------------------------------


async def on_flags_changed(batch: Sequence[FlagChanged], turn: Turn) -> None:
    """Every standing is kept; then the patients' cards are settled by the newest."""
    patients = {event.patient for event in batch}
    await store.lock(turn.tx, patients)
    known = await store.newest_standings(turn.tx, patients)
    events: dict[UUID, list[FlagChanged]] = defaultdict(list)
    for event in batch:
        events[event.patient].append(event)
    fresh: list[tuple[FlagChanged, int, bool]] = []
    for patient in sorted(patients):
        fresh += _spells(events[patient], known.get(patient))
    await store.keep_standings(turn.tx, fresh, turn.now)
    await reconsider({event.patient for event, _, _ in fresh}, turn)


def _spells(
    events: Sequence[FlagChanged], known: store.StandingRow | None
) -> list[tuple[FlagChanged, int, bool]]:
    """Of one patient: each event that is news, with where its flagged time began, and how."""
    sequence = known.sequence if known else 0
    flagged = known is not None and known.state == State.FLAGGED
    spell, quiet = (known.spell, known.quiet) if known else (0, False)
    found = []
    for event in sorted(events, key=lambda e: e.sequence):
        if event.sequence <= sequence:
            continue
        sequence = event.sequence
        now_flagged = State(event.explanation.state) is State.FLAGGED
        if spell == 0 or (now_flagged and not flagged):
            spell, quiet = sequence, event.notice is Notice.QUIET
        flagged = now_flagged
        found.append((event, spell, quiet))
    return found


async def on_episodes_changed(batch: Sequence[EpisodeChanged], turn: Turn) -> None:
    """May come before or after the flag that it goes with."""
    patients = {event.patient for event in batch}
    await store.lock(turn.tx, patients)
    await store.keep_episodes(turn.tx, [(event, reading.episode_news(event)) for event in batch])
    await reconsider(patients, turn)


async def on_patients_identified(batch: Sequence[PatientIdentified], turn: Turn) -> None:
    """Panels and Consents that came before it now find their patient."""
    patients = {event.patient for event in batch}
    tokens = {event.patient: set[store.Token]() for event in batch}
    for event in batch:
        tokens[event.patient] |= telling.tokens_of(turn.house, event)
    await store.hold_tokens(turn.tx, [digest for own in tokens.values() for _, digest in own])
    await store.lock(turn.tx, patients)
    await store.keep_identified(turn.tx, batch, tokens)
    await match_panels(patients, turn)
    await reconsider(patients, turn, access=True)


async def on_patients_merged(batch: Sequence[PatientMerged], turn: Turn) -> None:
    """The Consents of both keys speak (CS-53); the retired key's cards name the survivor's."""
    patients = {key for event in batch for key in (event.surviving, event.retired)}
    await store.change_consents(turn.tx, patients)
    await store.lock(turn.tx, patients)
    for event in sorted(batch, key=lambda e: e.version):
        await store.merge(turn.tx, event.retired, event.surviving, event.version, event.recorded)
    await match_panels(patients, turn)
    await reconsider(patients, turn)


async def on_patients_unmerged(batch: Sequence[PatientUnmerged], turn: Turn) -> None:
    """Consents recorded while they were one speak against both until a person says whose."""
    patients = {key for event in batch for key in (event.surviving, event.retired)}
    await store.change_consents(turn.tx, patients)
    await store.lock(turn.tx, patients)
    for event in sorted(batch, key=lambda e: e.version):
        since = await store.merged_at(turn.tx, event.retired)
        undone = await store.merge(turn.tx, event.retired, None, event.version, event.recorded)
        if undone and since is not None:
            await store.dispute(turn.tx, event.surviving, event.retired, since)
    await match_panels(patients, turn)
    await reconsider(patients, turn)


async def on_sites_heard(batch: Sequence[SiteHeard], turn: Turn) -> None:
    await store.keep_heard(turn.tx, batch)


# --- whose patient ----------------------------------------------------------------------------


async def match_panels(patients: Iterable[UUID], turn: Turn) -> None:
    """Confirm the claims that what hospitals sent of these patients bears out (CA-46)."""
    family = await store.families(turn.tx, patients)
    keys = [key for own in family.values() for key in own]
    await store.let_reach(turn.tx, await store.claims(turn.tx, keys))
    waiting = await store.unconfirmed(turn.tx, keys)
    if not waiting:
        return
    facts = await store.facts(turn.tx, {row.patient for row in waiting})
    of_key = {key: facts[root] for root, own in family.items() for key in own if root in facts}
    found: dict[UUID, str] = {}
    for row in waiting:
        confirmation = _confirmation(row.id, row.clinic, row.boxes, of_key[row.patient], turn.house)
        if confirmation is not None:
            found[row.id] = confirmation
    await store.confirm(turn.tx, found, turn.now)


def _confirmation(
    row: UUID, clinic: str, boxes: Mapping[str, store.Box], facts: Facts, house: House
) -> str | None:
    if any(clinic in patient.attributed for patient in facts.rows):
        return panel.Confirmation.ATTRIBUTED
    claim = panel.Identity(
        card=telling.opened(house, row, boxes, "card"),
        family=telling.opened(house, row, boxes, "family"),
        birth_date=telling.opened(house, row, boxes, "birthDate"),
    )
    for patient in facts.rows:
        sent = panel.Identity(
            card=telling.opened(house, patient.key, patient.demographics, "healthCard"),
            family=telling.opened(house, patient.key, patient.demographics, "family"),
            birth_date=telling.opened(house, patient.key, patient.demographics, "birthDate"),
        )
        if panel.confirms(claim, sent):
            return panel.Confirmation.DEMOGRAPHICS
    return None


# --- which card -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """What a look at the patients came to, before it is written."""

    cards: dict[UUID, Card] = field(default_factory=dict)
    before: dict[UUID, Card] = field(default_factory=dict)
    told: dict[UUID, Told] = field(default_factory=dict)
    """By card: what the inbox may see."""
    decided: dict[UUID, list[Decision]] = field(default_factory=lambda: defaultdict(list))
    """By surviving key: about each clinic that would be told."""
    flags: list[tuple[FlagRow, FlagRow | None, bool]] = field(default_factory=list)
    """New, before, and whether the inbox may see it."""
    outlooks: list[dict[str, object]] = field(default_factory=list)
    decisions: list[dict[str, object]] = field(default_factory=list)
    records: list[audit.AuditRecord] = field(default_factory=list)
    due: dict[UUID, datetime | None] = field(default_factory=dict)
    routed: set[UUID] = field(default_factory=set)
    unroutable: dict[UUID, str] = field(default_factory=dict)
    sequences: dict[UUID, int] = field(default_factory=dict)
    reach: set[tuple[str, UUID]] = field(default_factory=set)


async def reconsider(patients: Iterable[UUID], turn: Turn, *, access: bool = False) -> None:
    """Settle the cards of `patients` at every clinic, as of `turn.now`.

    `access`: a Consent, a panel, an identity or the calendar brought us here, not a visit; so a
    flag that stands makes its card if it may now be told for the first time (CA-43).
    """
    tx = turn.tx
    family = await store.lock(tx, patients)
    keys = {key for own in family.values() for key in own}
    if not keys:
        return
    facts = await store.facts(tx, family)
    cards: dict[UUID, list[Card]] = defaultdict(list)
    for card in await store.cards_of(tx, keys):
        cards[card.patient].append(card)
    flags: dict[UUID, list[FlagRow]] = defaultdict(list)
    for flag in await store.flags_of(tx, keys):
        flags[flag.patient].append(flag)
    outlooks = await store.outlooks(tx, keys)
    then = await store.standings_at(tx, [(p, o.sequence) for (_, p), o in outlooks.items()])
    found = _Found(before={card.id: card for several in cards.values() for card in several})
    for root, own in family.items():
        known = _Known(
            facts=facts[root],
            cards=[card for key in own for card in cards[key]],
            flags=[flag for key in own for flag in flags[key]],
            outlooks=outlooks,
            then=then,
        )
        _consider(known, turn, access=access, found=found)
    await _write(found, turn)
    judged = [Judged(facts[root], found.decided[root]) for root in family]
    await worklist.settle(tx, turn.house, judged, turn.now)


@dataclass(frozen=True, slots=True)
class _Known:
    """One patient's part of what reconsider has read; of all their keys."""

    facts: Facts
    cards: Sequence[Card]
    flags: Sequence[FlagRow]
    outlooks: Mapping[tuple[str, UUID], Outlook]
    then: Mapping[tuple[UUID, int], store.StandingRow]


def _consider(known: _Known, turn: Turn, *, access: bool, found: _Found) -> None:
    """One patient, every clinic that has or had to do with them."""
    facts, house, now = known.facts, turn.house, turn.now
    root = facts.patient
    standing = telling.standing_of(facts)
    if standing is None or facts.standing is None:
        return
    region = house.region()
    routes = {route.clinic: route for route in telling.routes(region, facts, now)}
    clinics = set(routes) | {card.clinic for card in known.cards}
    clinics |= {flag.clinic for flag in known.flags}
    found.sequences[root] = standing.sequence
    sites = {visit.site for unit in standing.units for visit in unit.visits}
    found.reach |= {(one, key) for one in clinics | sites for key in facts.keys}
    if routes or standing.state is not State.FLAGGED:
        found.routed.add(root)
    else:
        found.unroutable[root] = panel.unroutable(
            telling.panel_rows(facts, now), telling.today(region, now), telling.clinics_of(region)
        )
    for flag in known.flags:
        if flag.patient != root and flag.status == "active":
            gone = replace(flag, version=flag.version + 1, state=State.BELOW, status="inactive")
            found.flags.append((gone, flag, False))  # a retired key stands nowhere any more
    dues: list[datetime | None] = [telling.panel_changes_at(region, facts, now)]
    for clinic in sorted(clinics):
        route = routes.get(clinic)
        if route is None:
            told, inbox = telling.tell_inbox(house, facts, clinic, now, standing=standing), True
        else:
            told, inbox = telling.tell_anyone(house, facts, route, now, standing=standing)
            found.decided[root].append(told.decision)
        prior = known.outlooks.get((clinic, root))
        was = None if prior is None else known.then.get((root, prior.sequence))
        flag_known = [f for f in known.flags if f.clinic == clinic and f.patient == root]
        situation = _situation(
            facts, told, turn, clinic=clinic, route=route, prior=prior, was=was, inbox=inbox,
            access=access, was_less=any(f.state != State.FLAGGED for f in flag_known),
        )  # fmt: skip
        own = [card for card in known.cards if card.clinic == clinic]
        changed = settle(situation, own, telemetry.new_id)
        found.cards |= changed
        found.told |= dict.fromkeys(changed, told if inbox else _refusal_of_inbox(told))
        _flag(found, flag_known[0] if flag_known else None, situation, turn)
        _decided(found, facts, told, prior=prior, s=situation, changed=changed)
        dues.append(telling.look_again_at(house, facts, told, now))
        dues.append(telling.readers_change_at(region, facts, clinic, now))
        dues += [
            card.snoozed_until
            for card in {**{c.id: c for c in own}, **changed}.values()
            if card.status is Status.ON_HOLD
        ]
    found.due[root] = min((at for at in dues if at is not None and at > now), default=None)


def _refusal_of_inbox(told: Told) -> Told:
    return replace(told, view=None)


def _situation(
    facts: Facts,
    told: Told,
    turn: Turn,
    *,
    clinic: str,
    route: panel.Route | None,
    prior: Outlook | None,
    was: store.StandingRow | None,
    inbox: bool,
    access: bool,
    was_less: bool,
) -> Situation:
    row, standing = facts.standing, told.standing
    assert row is not None
    assert standing is not None
    same = was is not None and was.sequence == standing.sequence
    before = standing if same else None if was is None else _standing(was)
    return Situation(
        clinic=clinic,
        patient=facts.patient,
        now=turn.now,
        routed=route is not None,
        owner=None if route is None else _owner(route, told),
        view=told.view,
        released=told.released,
        on_hold=not isinstance(told.decision, Permit | Withhold),
        by_own_consent=_by_own_consent(facts, told.decision, clinic),
        inbox=inbox,
        standing=standing,
        cause=row.cause,
        retracts=row.retracts is not None,
        merged=row.merged_into is not None,
        spell=row.spell,
        quiet=row.quiet,
        newly_told=access and (prior is None or prior.outcome != "permit" or was_less),
        episodes=facts.episodes,
        said_otherwise=not same
        and before is not None
        and _said(before, told) != _said(standing, told),
        counts_before={} if before is None else _counts(before, told),
        reads_otherwise=prior is not None and prior.reads not in {"", _digest(told)},
        due=_due(turn.house, clinic),
    )


def _standing(row: store.StandingRow) -> Standing:
    return reading.standing(Explanation.model_validate_json(row.explanation), row.sequence)


def _said(standing: Standing, told: Told) -> tuple[object, ...]:
    """What a card would say of `standing` to who may be told now."""
    view = told.view
    if view is None:
        return ()
    seen = view if standing is told.standing else _seen_before(standing, told)
    return (
        seen.state,
        seen.held,
        None if seen.since is None else seen.since.astimezone(UTC).isoformat(),
        [(c.kind, c.at_least, c.count, c.met, c.earlier) for c in seen.clauses],
        [([_said_of(v) for v in u.visits], u.counted, u.reason) for u in seen.units],
    )


def _said_of(visit: recount.Visit) -> tuple[object, ...]:
    codes = sorted(f"{code.system}|{code.code}" for code in visit.codes or ())
    return str(visit.key), int(visit.level), visit.named, codes, visit.disposition


def _digest(told: Told) -> str:
    """Of all that a card may say now; empty: nothing."""
    if told.view is None or told.standing is None:
        return ""
    return hashlib.sha256(repr(_said(told.standing, told)).encode()).hexdigest()


def _seen_before(standing: Standing, told: Told) -> recount.View:
    """An earlier standing as it reads now. Its visits that are gone were not hidden then."""
    gone = {item.id for item in recount.items(standing)}
    if told.standing is not None:
        gone -= {item.id for item in recount.items(told.standing)}
    details = recount.NOTHING_MORE if told.view is None else told.view.details
    return recount.see(standing, told.released | gone, told.decision.at, details)


def _counts(standing: Standing, told: Told) -> dict[str, int]:
    if told.view is None:
        return {}
    seen = _seen_before(standing, told)
    return {str(kind): seen.count(kind) for kind in Kind}


def _owner(route: panel.Route, told: Told) -> str | None:
    """The nurse, if among those who may be told; else the clinic's pool (CA-43)."""
    if route.nurse is None or f"Practitioner/{route.nurse}" not in told.decision.readers:
        return None
    return route.nurse


def _by_own_consent(facts: Facts, decision: Decision, clinic: str) -> bool:
    captured = {
        f"Consent/{c.id}/_history/{c.version}" for c in facts.consents if c.tenant == clinic
    }
    return bool(captured & decision.basis)


@dataclass(frozen=True, slots=True)
class _due:  # noqa: N801 - a function with its clinic
    """Day 7, at the clinic's closing time."""

    house: House
    clinic: str

    def __call__(self, opened: datetime) -> datetime:
        clinic = self.house.region().clinic(self.clinic)
        zone = days.zone(clinic.timezone if clinic else self.house.region().timezone)
        day = (opened.astimezone(zone) + timedelta(days=7)).date()
        closes = clinic.closes if clinic else time(17)
        return datetime.combine(day, closes, zone)


def _flag(found: _Found, known: FlagRow | None, s: Situation, turn: Turn) -> None:
    """The clinic's Flag follows the state in every case (CA-31)."""
    view = s.view if s.routed else None
    state = State.BELOW if view is None else view.state
    status = "inactive" if state is State.BELOW else "active"
    since = None if view is None else view.since
    if known is None and state is State.BELOW:
        return
    if known is not None and (known.state, known.status, known.since) == (state, status, since):
        return
    row = FlagRow(
        id=known.id if known else telemetry.new_id(),
        clinic=s.clinic,
        patient=s.patient,
        version=known.version + 1 if known else 1,
        state=state,
        status=status,
        since=since,
        updated=turn.now,
    )
    found.flags.append((row, known, view is not None and s.inbox))


def _decided(
    found: _Found,
    facts: Facts,
    told: Told,
    *,
    prior: Outlook | None,
    s: Situation,
    changed: Mapping[UUID, Card],
) -> None:
    """Recorded for the privacy officer when it is another decision than before (CS-110)."""
    if not s.routed or (s.standing.state is not State.FLAGGED and prior is None and not changed):
        return
    decision = told.decision
    outcome, reasons = telling.kind_of(decision), telling.reasons_of(decision)
    same = prior is not None and (
        (prior.outcome, prior.reasons, prior.basis) == (outcome, reasons, decision.basis)
        and prior.sequence >= s.spell
    )
    found.outlooks.append(
        {
            "clinic": s.clinic,
            "patient": s.patient,
            "outcome": outcome,
            "reasons": sorted(reasons),
            "basis": sorted(decision.basis),
            "sequence": s.standing.sequence,
            "at": s.now,
            "reads": _digest(told),
        }
    )
    if same and not changed:
        return
    telemetry.counter("notify_decisions_total", outcome).inc()
    found.decisions.append(
        decision_row(facts.patient, s.clinic, decision, next(iter(changed), None), "card")
    )
    found.records.append(decision_record(Trail.background("notify", s.now), facts, s.clinic, told))


def decision_row(
    patient: UUID, clinic: str, decision: Decision, card: UUID | None, attempt: str
) -> dict[str, object]:
    return {
        "id": telemetry.new_id(),
        "at": decision.at,
        "clinic": clinic,
        "patient": patient,
        "card": card,
        "attempt": attempt,
        "outcome": telling.kind_of(decision),
        "reasons": sorted(telling.reasons_of(decision)),
        "basis": sorted(decision.basis),
        "signs": sorted(str(sign) for sign in decision.signs),
        "readers": list(decision.readers),
        "policy": decision.policy,
    }


def decision_record(trail: Trail, facts: Facts, clinic: str, told: Told) -> audit.AuditRecord:
    decision = told.decision
    return trail.for_tenant(clinic).decided(
        facts.patient,
        clinic,
        permitted=isinstance(decision, Permit),
        reasons=sorted(telling.reasons_of(decision)),
        consents=sorted(decision.basis),
        policy=decision.policy,
    )


async def _write(found: _Found, turn: Turn) -> None:
    """All that was found, in one order: reach, cards, flags, what clinics' systems are told."""
    tx = turn.tx
    await store.let_reach(tx, found.reach)
    clinics = {card.clinic for card in found.cards.values()} | {f.clinic for f, _, _ in found.flags}
    stamps = await store.stamp(tx, clinics, turn.now) if clinics else {}
    cards = _versions(found, stamps)
    await store.put_cards(tx, cards, found.sequences, by=None)
    flags = [replace(flag, updated=stamps[flag.clinic]) for flag, _, _ in found.flags]
    await store.put_flags(tx, flags)
    await store.put_outlooks(tx, found.outlooks)
    await store.put_decisions(tx, found.decisions)
    await store.put_unroutable(tx, found.routed, found.unroutable, turn.now)
    await store.put_due(tx, found.due)
    await audit.record(tx, found.records)
    told = [
        Happened(card, event_of(found.before.get(card.id), card))
        for card in cards
        if _may_hear(card, found)
    ]
    seen = {flag.id for flag, _, visible in found.flags if visible}
    await announce(tx, told, [flag for flag in flags if flag.id in seen], turn.now)


def _versions(found: _Found, stamps: Mapping[str, datetime]) -> list[Card]:
    survivors = {
        (card.clinic, card.patient): card.id
        for card in {**found.before, **found.cards}.values()
        if card.status not in TAKEN_BACK
    }
    cards = []
    for id_, card in found.cards.items():
        before = found.before.get(id_)
        surviving = card.surviving
        if card.why is Why.MERGED and before is not None and before.why is None:
            heirs = [i for (clinic, _), i in survivors.items() if clinic == card.clinic]
            surviving = heirs[0] if len(heirs) == 1 else None
        cards.append(
            replace(
                card,
                version=1 if before is None else before.version + 1,
                updated=stamps[card.clinic],
                surviving=surviving,
            )
        )
    return cards


def _may_hear(card: Card, found: _Found) -> bool:
    """A withheld event gets no number; a retraction goes to who had the card (CA-56, CA-32)."""
    if card.status in TAKEN_BACK:
        return card.shown
    return card.inbox and found.told[card.id].shows(card)


# --- what a clinic's system is told -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Happened:
    card: Card
    event: Event


async def announce(
    tx: Tx,
    cards: Sequence[Happened],
    flags: Sequence[FlagRow],
    now: datetime,
    *,
    not_to: str | None = None,
) -> None:
    """Number the events for each subscription that asked for them. `not_to`: a client's own
    change is not sent back to it (CA-26).
    """
    if not cards and not flags:
        return
    clinics = {h.card.clinic for h in cards} | {f.clinic for f in flags}
    counters: dict[UUID, int] = {}
    rows: list[dict[str, object]] = []
    for subscription in await store.listening(tx, clinics, now):
        if subscription.client == not_to:
            continue
        number = subscription.counter
        for told in _events(subscription.topic, subscription.clinic, cards, flags):
            if not _matches(subscription.filters, told):
                continue
            number += 1
            rows.append(
                {
                    "id": telemetry.new_id(),
                    "subscription": subscription.id,
                    "clinic": subscription.clinic,
                    "kind": "event",
                    "number": number,
                    "event": told.event if isinstance(told, Happened) else Event.CHANGED,
                    "card": told.card.id if isinstance(told, Happened) else None,
                    "flag": None if isinstance(told, Happened) else told.id,
                    "patient": told.card.patient if isinstance(told, Happened) else told.patient,
                    "at": now,
                    "state": "pending",
                    "attempts": 0,
                    "due": real_now(),
                    "fence": 0,
                }
            )
        if number != subscription.counter:
            counters[subscription.id] = number
    await store.add_notifications(tx, rows, counters)


def _events(
    topic: str, clinic: str, cards: Sequence[Happened], flags: Sequence[FlagRow]
) -> Sequence[Happened | FlagRow]:
    if topic == "card":
        return [h for h in cards if h.card.clinic == clinic]
    return [f for f in flags if f.clinic == clinic]


def _matches(filters: Mapping[str, Sequence[str]], told: Happened | FlagRow) -> bool:
    """`Task?owner|priority|code=`, AND-ed; each a list of alternatives (CA-50)."""
    if isinstance(told, FlagRow):
        return True
    values = {
        "owner": reading.owner_reference(told.card.owner, told.card.clinic),
        "priority": reading.priority(told.card.tier),
        "code": str(told.card.what),
    }
    return all(values.get(name) in wanted for name, wanted in filters.items())


# --- what a clinic does with a card -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Act:
    """Somebody at a clinic changes a card, on the page or from their own system."""

    clinic: str
    card: UUID
    ask: Ask
    by: str
    """Person or client."""
    person: str | None = None
    """The reader is this person alone; None: the clinic's system and whoever reads it."""
    version: int | None = None
    """The version they saw; None: whichever it is now."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The card has changed since they saw it; nothing was done."""

    card: Card


async def acknowledge(act: Act, turn: Turn, trail: Trail) -> Card | Stale | None:
    """The card as it now is. None: there is no such card for this reader. In the request role.

    NotAllowedError: the card's rules do not allow it. A repeat changes nothing.
    """
    tx = turn.tx
    found = await store.card(tx, act.clinic, act.card)
    if found is None:
        return None
    await store.hear_consents(tx, [found.patient])
    facts = await store.facts(tx, [found.patient])
    about = next(iter(facts.values()), None)
    if about is None:
        return None
    told = (
        telling.tell_inbox(turn.house, about, act.clinic, turn.now)
        if act.person is None
        else telling.tell_person(turn.house, about, act.clinic, act.person, turn.now)
    )
    card = await store.card(tx, act.clinic, act.card, hold=True)
    if card is None or not told.shows(card):
        return None
    if act.version is not None and act.version != card.version:
        return Stale(card)
    changed = acknowledged(card, act.ask, turn.now, act.by)
    if changed is card:
        return card
    stamps = await store.stamp(tx, [act.clinic], turn.now)
    changed = replace(changed, version=card.version + 1, updated=stamps[act.clinic])
    sequence = told.standing.sequence if told.standing else 0
    await store.change_card(tx, changed, sequence, act.by)
    entity = f"Task/{card.id}/_history/{changed.version}"
    await audit.record(tx, [trail.updated(entity, card.patient, "patch")])
    told_of = [Happened(changed, Event.CHANGED)] if changed.inbox else []
    await announce(tx, told_of, [], turn.now, not_to=None if act.person else act.by)
    return changed


# --- what a hospital does about a count ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Correcting:
    """A case manager of a hospital takes a visit to it out of the count, or puts it back."""

    site: str
    patient: UUID
    encounter: UUID
    wish: Wish
    by: str
    version: int
    """Of the last correction they saw; 0: there was none."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Somebody said otherwise since they looked; nothing was done."""

    known: Correction | None


async def correct(act: Correcting, turn: Turn, trail: Trail) -> Correction | Overtaken | None:
    """Keep it, have it on record, and tell screening (CT-17). In the request role.

    None: there is no such visit for this reader. A repeat changes nothing.
    """
    tx = turn.tx
    await store.hear_consents(tx, [act.patient])
    facts = (await store.facts(tx, [act.patient])).get(act.patient)
    if facts is None:
        return None
    told = telling.tell_hospital(turn.house, facts, act.site, act.by, turn.now)
    if act.encounter not in telling.visits_at(told, act.site):
        return None
    known = (await store.corrections(tx, [act.encounter])).get(act.encounter)
    if known is None and not told.lists:
        return None
    if act.version != (known.version if known else 0):
        return Overtaken(known)
    about = Subject(act.encounter, facts.patient, act.site)
    said = corrected(about, known, act.wish, act.by, turn.now)
    if said is None:
        return known or Overtaken(None)
    if not await store.add_correction(tx, said):
        return Overtaken((await store.corrections(tx, [act.encounter])).get(act.encounter))
    entity = f"Encounter/{said.encounter}/correction/_history/{said.version}"
    await audit.record(
        tx,
        [
            decision_record(trail, facts, act.site, told),
            trail.created(entity, facts.patient)
            if said.version == 1
            else trail.updated(entity, facts.patient),
        ],
    )
    await eventlog.append(
        tx,
        [
            CountCorrection(
                patient=said.patient,
                encounter=said.encounter,
                version=said.version,
                excluded=said.excluded,
                reason=ToldReason(said.reason) if said.reason else None,
                by=said.by,
                recorded=said.at,
            )
        ],
        turn.now,
    )
    return said


# --- by the calendar --------------------------------------------------------------------------

SWEEP = 200
"""Patients a sweep takes at a time."""


async def sweep(turn: Turn) -> int:
    """Decide again for whom time alone, or who belongs where, may have changed the answer (CS-51);
    how many.
    """
    await store.note_directory(turn.tx, turn.house.digest(), turn.now)
    patients = await store.due_patients(turn.tx, turn.now, SWEEP)
    await reconsider(patients, turn, access=True)
    return len(patients)
