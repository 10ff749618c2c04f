"""What the pages show, got from notify for one reader at one instant (NW-02).

Each answer is one transaction in the request role of the reader's clinic: consent is heard,
decided for this person alone, and the audit record written, or nothing is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from services.notify import card as cards
from services.notify import flow, store, telling
from services.notify.card import TAKEN_BACK, Status
from services.notify.correction import Wish
from services.notify.store import Facts
from services.notify.telling import House, Told
from services.notify.web import showing
from services.notify.web.pages import Ask, Shown
from services.notify.web.showing import Names
from services.notify.web.views import (
    Card,
    CardPage,
    Conflict,
    Coverage,
    Disclosure,
    Filter,
    Followed,
    MyList,
    Option,
    Order,
    Outcome,
    PatientPage,
    Patients,
    Person,
    Progress,
    Refusal,
    Register,
    Report,
    Standing,
    Step,
    Tier,
)
from services.notify.web.words import LOCALES, Language, Words
from services.plumbing import account, audit
from services.plumbing.audit import AuditRecord, Content, Trail
from services.plumbing.db import Database, Tx
from services.plumbing.region import Region
from services.plumbing.web import Rejection

STAYS_VISIBLE: Final = timedelta(days=7)
"""How long a card that was taken back is shown with its reason (NW-11)."""
MOST: Final = 100
"""Entries of each kind on the privacy officer's page."""
DEMOGRAPHICS: Final = ("family", "given", "birthDate", "gender", "healthCard")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A card that its reader may see, and what they were told for it."""

    work: cards.Card
    told: Told
    view: Card


class NotifyDesk:
    """The desk of the pages (pages.Desk), on notify's own database."""

    def __init__(self, *, db: Database, house: House, now: Callable[[], datetime]) -> None:
        self._db = db
        self._house = house
        self._now = now

    # N1

    async def my_list(self, ask: Ask, chosen: Filter, order: Order) -> Shown[MyList]:
        now, clinic, names = self._now(), _clinic(ask), self._names(ask)
        async with self._db.request(clinic, role="clinic_cm") as tx:
            listed = [c for c in await store.cards_of_clinic(tx, clinic) if _is_listed(c, now)]
            told = await self._tell(tx, listed, ask, now)
            seen = [
                self._see(work, told[work.id], names, now)
                for work in cards.in_order(listed)
                if told[work.id].shows(work)
            ]
            await audit.record(tx, self._records(ask, listed, told, now, whole=False))
            coverage = await self._coverage(tx, names, now)
        return Shown(_listed(seen, chosen, order), now, coverage)

    # N2

    async def card(self, ask: Ask, key: UUID) -> Shown[CardPage] | None:
        now, clinic, names = self._now(), _clinic(ask), self._names(ask)
        async with self._db.request(clinic, role="clinic_cm") as tx:
            work = await self._find(tx, clinic, key)
            if work is None:
                await self._tell(tx, [], ask, now)  # it takes as long (CS-42)
                return None
            told = (await self._tell(tx, [work], ask, now))[work.id]
            await audit.record(tx, self._records(ask, [work], {work.id: told}, now, whole=True))
            if not told.shows(work):
                return None
            if work.status is Status.REQUESTED and not ask.prefetch and not ask.background:
                work = await self._mark_seen(tx, work, ask, now)
            page = CardPage(
                card=self._see(work, told, names, now).view,
                why=showing.why(told, names),
                history=await self._history(tx, work, names),
                remarks=showing.remarks(work, names),
            )
            coverage = await self._coverage(tx, names, now)
        return Shown(page, now, coverage)

    async def take(self, ask: Ask, key: UUID, version: int) -> bool | Conflict | None:
        now, clinic, names = self._now(), _clinic(ask), self._names(ask)
        async with self._db.request(clinic, role="clinic_cm") as tx:
            wish = cards.Ask(status=Status.ACCEPTED, owner=ask.who.id)
            try:
                done = await self._act(self._turn(tx, now), key, wish, version, ask)
            except cards.NotAllowedError:
                done = await self._as_it_is(tx, clinic, key)
            match done:
                case None:
                    return None
                case flow.Stale(work):
                    told = (await self._tell(tx, [work], ask, now))[work.id]
                    if not told.shows(work):
                        return None
                    records = self._records(ask, [work], {work.id: told}, now, whole=False)
                    await audit.record(tx, records)
                    steps = await self._history(tx, work, names)
                    seen = self._see(work, told, names, now).view
                    return Conflict(seen, steps[-1] if steps else None)
                case cards.Card():
                    return True

    async def _act(
        self, turn: flow.Turn, key: UUID, wish: cards.Ask, version: int | None, ask: Ask
    ) -> cards.Card | flow.Stale | None:
        act = flow.Act(
            clinic=_clinic(ask),
            card=key,
            ask=wish,
            by=ask.who.id,
            person=ask.who.id,
            version=version,
        )
        return await flow.acknowledge(act, turn, Trail.of(ask.request, ask.who, turn.now))

    def _turn(self, tx: Tx, now: datetime) -> flow.Turn:
        return flow.Turn(tx=tx, now=now, house=self._house)

    async def _as_it_is(self, tx: Tx, clinic: str, key: UUID) -> flow.Stale | None:
        """Of a card whose state allows no such act, which the person could not know."""
        work = await self._find(tx, clinic, key)
        return None if work is None else flow.Stale(work)

    async def _mark_seen(self, tx: Tx, work: cards.Card, ask: Ask, now: datetime) -> cards.Card:
        """Opened by a person; if somebody was faster, as they left it."""
        wish = cards.Ask(status=Status.RECEIVED)
        done = await self._act(self._turn(tx, now), work.id, wish, None, ask)
        return done if isinstance(done, cards.Card) else work

    async def _find(self, tx: Tx, clinic: str, key: UUID) -> cards.Card | None:
        """The card; a stub tells nothing, so it is no page (CA-32)."""
        work = await store.card(tx, clinic, key)
        return None if work is None or cards.is_stub(work) else work

    async def _history(self, tx: Tx, work: cards.Card, names: Names) -> Sequence[Step]:
        """Each change of state, and by whom; versions that only say otherwise are left out."""
        steps: list[Step] = []
        for row in await store.history(tx, work.id):
            progress = showing.PROGRESS[Status(row.status)]
            if not steps or steps[-1].progress is not progress:
                steps.append(Step(row.at, progress, names.person(row.by)))
        return steps

    # H1, H2

    async def patients(self, ask: Ask) -> Shown[Patients]:
        now, site, names = self._now(), _site(ask), self._names(ask)
        async with self._db.request(site, role="hosp_cm") as tx:
            keys = await store.followed(tx, site, MOST + 1)
            told = await self._tell_of_visits(tx, keys[:MOST], ask, now)
            followed = [
                page for one in told if (page := await self._patient(tx, one, ask, now)) is not None
            ]
            trail = Trail.of(ask.request, ask.who, now)
            await audit.record(
                tx,
                [
                    *self._decisions(ask, told, now),
                    *trail.searched("patients", [page.key for page in followed]),
                ],
            )
            coverage = await self._coverage(tx, names, now)
        people = [
            Followed(
                key=page.key,
                person=page.person,
                standing=page.standing,
                visits=len(page.visits),
                excluded=sum(visit.excluded for visit in page.visits),
                latest=page.visits[0].start,
            )
            for page in followed
        ]
        return Shown(Patients(people, more=len(keys) > MOST), now, coverage)

    async def patient(self, ask: Ask, key: UUID) -> Shown[PatientPage] | None:
        now, names = self._now(), self._names(ask)
        async with self._db.request(_site(ask), role="hosp_cm") as tx:
            told = await self._tell_of_visits(tx, [key], ask, now)
            pages = [await self._patient(tx, one, ask, now) for one in told]
            page = next((one for one in pages if one is not None and one.key == key), None)
            trail = Trail.of(ask.request, ask.who, now)
            records = self._decisions(ask, told, now)
            if page is not None:
                content = Content(
                    items=(f"visit:{len(page.visits)}",),
                    level="L1" if told[0].view is None else f"L{told[0].view.level}",
                    basis=tuple(sorted(told[0].decision.basis)),
                    policy=told[0].decision.policy,
                )
                records.append(trail.read(f"Patient/{key}", key, content=content))
            await audit.record(tx, records)
            coverage = await self._coverage(tx, names, now)
        return None if page is None else Shown(page, now, coverage)

    async def correct(
        self, ask: Ask, key: UUID, encounter: UUID, wish: Wish, version: int
    ) -> bool | None:
        now, site = self._now(), _site(ask)
        act = flow.Correcting(site, key, encounter, wish, by=ask.who.id, version=version)
        async with self._db.request(site, role="hosp_cm") as tx:
            trail = Trail.of(ask.request, ask.who, now)
            done = await flow.correct(act, self._turn(tx, now), trail)
        return None if done is None else not isinstance(done, flow.Overtaken)

    async def _tell_of_visits(
        self, tx: Tx, patients: Sequence[UUID], ask: Ask, now: datetime
    ) -> Sequence[Told]:
        """What this case manager may be told of each patient, in the order of `patients`."""
        await store.hear_consents(tx, patients)
        facts = await store.facts(tx, patients)
        order = {key: place for place, key in enumerate(patients)}
        told = [
            telling.tell_hospital(self._house, one, _site(ask), ask.who.id, now)
            for one in facts.values()
        ]
        return sorted(told, key=lambda one: min(order.get(k, len(order)) for k in one.facts.keys))

    async def _patient(self, tx: Tx, told: Told, ask: Ask, now: datetime) -> PatientPage | None:
        """None: no visit to this hospital may be shown."""
        names, site = self._names(ask), _site(ask)
        said = await store.corrections(tx, telling.visits_at(told, site))
        visits = showing.visits(told, site, said, names)
        if not visits or not (told.lists or said) or told.view is None or told.standing is None:
            return None
        policy, _, version = told.view.policy.rpartition("/")
        return PatientPage(
            key=told.facts.patient,
            person=self._person(told.facts, names, "", now),
            standing=Standing(told.view.state.value),
            counted_at=told.standing.as_of,
            policy=policy,
            policy_version=int(version) if version.isdecimal() else 0,
            visits=visits,
        )

    def _decisions(self, ask: Ask, told: Sequence[Told], now: datetime) -> list[AuditRecord]:
        trail = Trail.of(ask.request, ask.who, now)
        return [
            replace(flow.decision_record(trail, one.facts, _site(ask), one), reader=ask.who.id)
            for one in told
        ]

    # O5

    async def register(
        self, ask: Ask, patient: UUID | None, person: str | None = None
    ) -> Shown[Register]:
        now, names = self._now(), self._names(ask)
        trail = Trail.of(ask.request, ask.who, now)
        async with self._db.request("", role="privacy") as tx:
            refused = await store.refusals(tx, patient, person, MOST + 1)
            told = await store.disclosures(tx, patient, person, MOST + 1)
            about = {row.patient for row in (*refused[:MOST], *told[:MOST])}
            facts = await store.facts(tx, about)
            people = {
                key: self._person(one, names, "", now) for one in facts.values() for key in one.keys
            }
            await audit.record(tx, trail.searched("register", sorted(about)))
            coverage = await self._coverage(tx, names, now)
        content = Register(
            refusals=[
                Refusal(
                    at=row.at,
                    patient=row.patient,
                    recipient=names.clinic(row.clinic),
                    outcome=Outcome(row.outcome),
                    reasons=row.reasons,
                    person=people.get(row.patient),
                    basis=row.basis,
                )
                for row in refused[:MOST]
            ],
            disclosures=[
                Disclosure(
                    at=row.recorded,
                    patient=row.patient,
                    recipient=names.clinic(row.recipient or row.tenant),
                    channel=showing.channel(row.shape, row.agent_kind),
                    person=people.get(row.patient),
                    by=names.person(row.agent) if row.agent_kind == "person" else None,
                    level=int(row.level[1]) if row.level else showing.FACT,
                    basis=row.basis,
                )
                for row in told[:MOST]
            ],
            people=[Option(one.id, one.name) for one in names.region.people if one.roles],
            patient=patient,
            person=person,
            more=len(refused) > MOST or len(told) > MOST,
        )
        return Shown(content, now, coverage)

    async def report(
        self, ask: Ask, patient: UUID, language: Language, *, for_patient: bool
    ) -> Shown[Report] | None:
        now, names = self._now(), self._names(ask)
        async with self._db.request("", role="privacy") as tx:
            [facts] = (await store.facts(tx, [patient])).values() or [None]
            if facts is None:
                return None
            records = [audit.stored(row) for row in await store.audited(tx, facts.keys)]
            name = "disclosures" if for_patient else "disclosures-and-refusals"
            trail = Trail.of(ask.request, ask.who, now)
            await audit.record(tx, [trail.exported(name, patient)])
            coverage = await self._coverage(tx, names, now)
        lines = account.account(records)
        said = account.written(
            account.for_patient(lines) if for_patient else lines,
            names.region,
            account.Language(language),
            now,
            privacy=not for_patient,
        )
        return Shown(Report(said, language, for_patient), now, coverage)

    # What each of them needs

    async def _tell(
        self, tx: Tx, listed: Sequence[cards.Card], ask: Ask, now: datetime
    ) -> Mapping[UUID, Told]:
        """By card: what this person may be told of its patient now, Consents held still."""
        patients = {work.patient for work in listed}
        await store.hear_consents(tx, patients)
        facts = await store.facts(tx, patients)
        of_key = {key: one for one in facts.values() for key in one.keys}
        told = {
            one.patient: telling.tell_person(self._house, one, _clinic(ask), ask.who.id, now)
            for one in facts.values()
        }
        return {work.id: told[of_key[work.patient].patient] for work in listed}

    def _see(self, work: cards.Card, told: Told, names: Names, now: datetime) -> _Seen:
        row = telling.present_row(told.facts, work.clinic)
        spoken = row.language if row else ""
        who = self._person(told.facts, names, spoken, now)
        return _Seen(work, told, showing.card(told.trimmed(work), told, who, names, now))

    def _person(self, facts: Facts, names: Names, spoken: str, now: datetime) -> Person:
        fields = {name: telling.demographic(self._house, facts, name) for name in DEMOGRAPHICS}
        return showing.person({**fields, "language": spoken}, names, now)

    async def _coverage(self, tx: Tx, names: Names, now: datetime) -> Coverage:
        return showing.coverage(self._house.region(), await store.sites_heard(tx), names, now)

    def _names(self, ask: Ask) -> Names:
        return names_for(self._house.region(), ask)

    def _records(
        self,
        ask: Ask,
        listed: Sequence[cards.Card],
        told: Mapping[UUID, Told],
        now: datetime,
        *,
        whole: bool,
    ) -> list[AuditRecord]:
        """One of each decision, and one of each card shown; of a page's own refresh, once a
        session and card version (E-1, E-2, CS-110). `whole`: the page has the visits' reasons too.
        """
        trail = Trail.of(ask.request, ask.who, now)
        records = []
        for work in listed:
            one, entity = told[work.id], f"Task/{work.id}/_history/{work.version}"
            decided = replace(
                flow.decision_record(trail, one.facts, work.clinic, one), reader=ask.who.id
            )
            if ask.background:
                name = f"{entity}/{decided.outcome}/{','.join(decided.reasons)}"
                decided = replace(decided, once=uuid5(ask.session, name))
            records.append(decided)
            if one.shows(work):
                content = telling.content(one)
                if content is not None and not whole:
                    content = replace(content, level="L1")
                records.append(
                    trail.refreshed(entity, work.patient, ask.session, content)
                    if ask.background
                    else trail.read(entity, work.patient, content=content)
                )
        return records


def names_for(region: Region, ask: Ask) -> Names:
    """How the region's places and people are called on a page for this reader."""
    words = Words(ask.language, ZoneInfo(region.timezone))
    clinic = region.clinic(ask.who.clinic) if ask.who.clinic else None
    return Names(
        region=region,
        language=ask.language,
        anonymous=words.say("place.hospital"),
        reader=ask.who.id,
        zone=words.zone,
        own=clinic.language if clinic else ask.language.value,
        tongue=lambda code: LOCALES[ask.language].languages.get(code, code),
    )


def _clinic(ask: Ask) -> str:
    """The reader's clinic. A nurse of none has no cards: there is nothing at the address."""
    if ask.who.clinic is None:
        raise Rejection("not-found", "There is nothing at this address.", status=404)
    return ask.who.clinic


def _site(ask: Ask) -> str:
    """The reader's hospital. A case manager of none has no patients."""
    site = ask.who.tenant if ask.who.clinic is None else None
    if site is None:
        raise Rejection("not-found", "There is nothing at this address.", status=404)
    return site


def _is_listed(work: cards.Card, now: datetime) -> bool:
    """Work that is open, and for a week what was taken back with a reason that may be said."""
    if work.is_open:
        return True
    recent = work.closed is not None and now - work.closed < STAYS_VISIBLE
    return work.status in TAKEN_BACK and recent and not cards.is_stub(work)


def _listed(seen: Sequence[_Seen], chosen: Filter, order: Order) -> MyList:
    """The list of what is seen; what is snoozed is counted, what was taken back is news only."""
    awake = [
        replace(one.view, tier=Tier.DIGEST) if one.work.status in TAKEN_BACK else one.view
        for one in seen
        if one.view.progress is not Progress.SLEEP
    ]
    kept: Mapping[Filter, Sequence[Card]] = {
        Filter.ALL: awake,
        Filter.MINE: [one for one in awake if one.mine],
        Filter.UNASSIGNED: [one for one in awake if one.owner is None],
    }
    return MyList(
        cards=_sorted(kept[chosen], order),
        counts={one: len(found) for one, found in kept.items()},
        due_now=sum(one.tier is Tier.NOW for one in awake),
        due_today=sum(one.tier is Tier.TODAY for one in awake),
        snoozed=sum(one.view.progress is Progress.SLEEP for one in seen),
        chosen=chosen,
        order=order,
    )


def _sorted(found: Sequence[Card], order: Order) -> Sequence[Card]:
    """Stable: what is equal stays as a nurse reads cards, the last to come up first."""
    match order:
        case Order.PATIENT:
            return sorted(found, key=lambda one: one.person.name.casefold())
        case Order.OWNER:
            return sorted(found, key=lambda one: (one.owner is not None, one.owner or ""))
        case Order.DUE:
            return sorted(found, key=lambda one: (-one.late_days, one.due is None, one.due))
        case Order.LATEST:
            return found
