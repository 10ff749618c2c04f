"""What the pages about Consents, holds and broken glass ask of notify (consenting.Desk).

Each answer is one transaction with its audit record. Whose patient somebody is, and whose a
Consent, is asked of the reader's clinic or site each time; work items are read in the request
role, which sees no other's (CS-36).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from sqlalchemy import Row

from services.notify import breaking, intake, override, paper, reading, resolving, store, telling
from services.notify.consent import SENSITIVITY_ABOVE, Effect, Permit
from services.notify.flow import Turn
from services.notify.holding import Why
from services.notify.intake import Capture
from services.notify.override import Ground, Notice, Verdict
from services.notify.paper import Choices, Entered
from services.notify.store import Facts
from services.notify.telling import House
from services.notify.web import consent_views as views
from services.notify.web import showing
from services.notify.web.consent_views import Held, Kept, Offer, Office, Option, Place, Sought
from services.notify.web.desk import DEMOGRAPHICS, names_for
from services.notify.web.pages import Ask, Shown
from services.notify.web.showing import Names
from services.notify.web.views import Person, Role
from services.notify.web.words import in_language
from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.clock import real_now
from services.plumbing.db import Database, Tx
from services.plumbing.identifiers import canonical_system, normalise
from services.plumbing.web import Rejection

MOST: Final = 200
"""Work items on one page."""
LABELS: Final = tuple(sorted(SENSITIVITY_ABOVE))


@dataclass(frozen=True, slots=True)
class Recorded:
    id: str
    version: int


class ConsentOffice:
    """The desk, on notify's own database."""

    def __init__(
        self,
        *,
        db: Database,
        house: House,
        now: Callable[[], datetime],
        override_lasts: timedelta = timedelta(minutes=60),
        hold_alarm: timedelta = timedelta(hours=24),
    ) -> None:
        self._db = db
        self._house = house
        self._now = now
        self._lasts = override_lasts
        self._alarm = hold_alarm

    # H3

    async def office(self, ask: Ask, sought: Sought, entered: Entered | None) -> Shown[Office]:
        """H3, on whom was looked up; `entered` is what a form that was refused had in it."""
        now = self._now()
        async with self._db.work() as tx:
            found = await self._seek(tx, ask, sought, now)
            content = self._office(ask, found, entered, now)
            if sought.system or sought.key:
                content = replace(content, kept=await self._kept_about(tx, ask, found))
                patients = [found.facts.patient] if found.facts and found.person else []
                await audit.record(tx, self._trail(ask, now).searched("Consent", patients))
            coverage = await self._coverage(tx, ask, now)
        return Shown(content, now, coverage)

    async def record(
        self, ask: Ask, sought: Sought, entered: Entered, *, nothing: bool
    ) -> Recorded | Shown[Office]:
        """Record what the person says; the page again with what is wrong, if anything is."""
        now = self._now()
        async with self._db.work() as tx:
            found = await self._seek(tx, ask, sought, now)
        faults = dict(found.faults)
        if found.place is Place.FOREIGN:
            faults["number"] = "foreign"
        today = telling.today(self._house.region(), now)
        offered = self._offer(ask)
        recipients = frozenset(
            one.value
            for several in (offered.clinics, offered.groups, offered.people)
            for one in several
        )
        born = found.person.born if found.person else None
        wish, wrong = (
            (paper.NOTHING, {})
            if nothing
            else paper.read(entered, Choices(recipients, today), born)
        )
        if nothing:
            wish = replace(paper.NOTHING, language=ask.language.value, risks=entered.risks == "yes")
        faults |= wrong
        if faults or wish is None or found.reference is None:
            return await self._again(ask, sought, entered, faults)
        tenant = _tenant(ask)
        site = self._house.region().site(tenant)
        policy = telling.policy_of(self._house.region()).name
        at = now.astimezone(ZoneInfo(self._house.region().timezone))
        body = paper.resource(wish, found.reference, tenant if site else None, policy, at)
        capture = Capture(
            body,
            tenant,
            ask.who.id,
            sought.replaces or None,
            if_version=sought.version,
            may_create=not sought.replaces,
            only_own_panel=_clinic(ask) is not None,
            any_tenant=ask.who.has(Role.PRIVACY),
        )
        trail = self._trail(ask, now)
        try:
            done = await intake.take_consent(self._db, self._house, capture, trail, now)
        except Rejection as refusal:
            if refusal.status not in {403, 412}:
                raise
            fault = "foreign" if refusal.status == 403 else "stale"
            return await self._again(ask, sought, entered, {"number": fault})
        if sought.refused is not None and sought.item is not None:
            async with self._db.work() as tx:
                name = f"Consent/{done.id}/_history/{done.version}"
                await resolving.replaced(
                    sought.refused, sought.item, ask.who.id, name, self._turn(tx, now), trail
                )
        return Recorded(done.id, done.version)

    async def _again(
        self, ask: Ask, sought: Sought, entered: Entered, faults: dict[str, str]
    ) -> Shown[Office]:
        shown = await self.office(ask, sought, entered)
        return replace(shown, content=replace(shown.content, faults=faults))

    async def consent(self, ask: Ask, id_: str) -> Shown[views.ConsentPage] | None:
        """Every version of a Consent that the reader's place captured; the officer, of any."""
        now = self._now()
        async with self._db.work() as tx:
            rows = await store.consent_history(tx, id_)
            if not rows or not self._may_read(ask, rows[0]):
                return None
            patients = await store.matched(tx, [(rows[0].key_id, rows[0].digest)])
            facts = await self._facts(tx, patients)
            person = await self._person_for(tx, ask, facts, now)
            page = views.ConsentPage([self._kept(ask, row) for row in rows], person)
            name = f"Consent/{id_}/_history/{rows[0].version}"
            patient = facts.patient if facts else None
            await audit.record(tx, [self._trail(ask, now).read(name, patient)])
            coverage = await self._coverage(tx, ask, now)
        return Shown(page, now, coverage)

    async def withdraw(self, ask: Ask, id_: str, version: int, item: UUID | None) -> bool | None:
        """True: it speaks no more. False: it is not the version they saw. None: not theirs."""
        now = self._now()
        by = Capture(
            {},
            _tenant(ask),
            ask.who.id,
            only_own_panel=_clinic(ask) is not None,
            any_tenant=ask.who.has(Role.PRIVACY),
        )
        try:
            async with self._db.work() as tx:
                row = await store.consent(tx, id_)
                if row is None or not self._may_read(ask, row):
                    return None
                turn, trail = self._turn(tx, now), self._trail(ask, now)
                await resolving.withdraw(id_, version, by, item, turn, trail)
        except Rejection as refusal:
            if refusal.status != 412:
                raise
            return False
        return True

    # Holds

    async def holds(self, ask: Ask) -> Shown[views.Holds]:
        now = self._now()
        async with self._items(ask) as tx:
            rows = await store.items(tx, MOST + 1)
        async with self._db.work() as tx:
            items = [await self._held(tx, ask, row, now) for row in rows[:MOST]]
            about = [one.patient for one in items if one.patient is not None]
            await audit.record(tx, self._trail(ask, now).searched("holds", about))
            coverage = await self._coverage(tx, ask, now)
        return Shown(views.Holds(items, more=len(rows) > MOST), now, coverage)

    async def hold(self, ask: Ask, id_: UUID) -> Shown[views.HoldPage] | None:
        now = self._now()
        async with self._items(ask) as tx:
            row = await store.item(tx, id_)
        if row is None:
            return None
        async with self._db.work() as tx:
            page = await self._hold(tx, ask, row, now)
            trail = self._trail(ask, now)
            await audit.record(tx, [trail.read(f"WorkItem/{id_}", row.patient)])
            coverage = await self._coverage(tx, ask, now)
        return Shown(page, now, coverage)

    async def _hold(self, tx: Tx, ask: Ask, row: Row[Any], now: datetime) -> views.HoldPage:
        held = await self._held(tx, ask, row, now)
        page = views.HoldPage(held, labels=LABELS)
        if held.why is Why.OVERRIDE:
            broken = await store.override(tx, row.about)
            return replace(page, broken=None if broken is None else self._broken(ask, broken))
        if row.patient is None:
            one = await store.refused(tx, row.about)
            return replace(page, refused=[] if one is None else [self._refused(ask, one)])
        facts = await self._facts(tx, [row.patient])
        if facts is None:
            return page
        refused = await store.refused_of(tx, facts.keys) if held.why is Why.REFUSED else []
        return replace(
            page,
            consents=await self._basis(tx, ask, row.basis),
            refused=[self._refused(ask, one) for one in refused if self._may_read(ask, one)],
            visits=self._unlabelled(ask, facts) if held.why is Why.UNKNOWN_LABEL else (),
            candidates=await self._candidates(tx, ask, row.basis, now)
            if held.why is Why.DISPUTED
            else (),
        )

    async def dismiss(self, ask: Ask, id_: UUID, refused: UUID, why: str) -> bool:
        """A refused Consent is set aside, with the reason; False: it is not there to be."""
        item = await self._mine(ask, id_)
        if item is None:
            return False
        now = self._now()
        async with self._db.work() as tx:
            row = await store.refused(tx, refused)
            if row is None or not self._may_read(ask, row):
                return False
            return await resolving.dismiss(
                refused, id_, ask.who.id, why, self._turn(tx, now), self._trail(ask, now)
            )

    async def assess(self, ask: Ask, id_: UUID, encounter: UUID, labels: Sequence[str]) -> bool:
        """How sensitive a visit is; False: it is not one of those that are asked about."""
        item = await self._mine(ask, id_)
        if item is None or item.patient is None or not set(labels) <= set(LABELS):
            return False
        now = self._now()
        async with self._db.work() as tx:
            facts = await self._facts(tx, [item.patient])
            asked = {} if facts is None else {v.encounter: v for v in self._unlabelled(ask, facts)}
            if facts is None or encounter not in asked:
                return False
            await resolving.assess(
                encounter,
                facts.patient,
                labels,
                ask.who.id,
                id_,
                self._turn(tx, now),
                self._trail(ask, now),
            )
        return True

    async def assign(
        self, ask: Ask, id_: UUID, consent: str, version: int, patient: UUID
    ) -> bool | None:
        """Whose a disputed Consent is. False: not the version they saw; None: nothing to say."""
        item = await self._mine(ask, id_)
        if item is None or f"Consent/{consent}/_history/{version}" not in item.basis:
            return None
        now = self._now()
        async with self._db.work() as tx:
            row = await store.consent(tx, consent)
            if row is None or not self._may_read(ask, row):
                return None
            turn, trail = self._turn(tx, now), self._trail(ask, now)
            done = await resolving.assign(consent, version, patient, ask.who.id, id_, turn, trail)
        return True if done is not None else None

    # The glass

    async def glass(
        self, ask: Ask, authenticated: datetime | None, entered: override.Entered | None
    ) -> Shown[views.Glass]:
        """The form; with what they had entered when they had to sign in again."""
        now, real = self._now(), real_now()
        async with self._db.work() as tx:
            if entered is None:
                turn = self._turn(tx, now)
                entered = await breaking.take_draft(ask.who.id, self._house, turn, real)
            coverage = await self._coverage(tx, ask, now)
        content = views.Glass(
            offer=self._offer(ask),
            fresh=override.is_fresh(authenticated, real),
            minutes=round(self._lasts.total_seconds() / 60),
            entered=entered or override.Entered(),
        )
        return Shown(content, now, coverage)

    async def break_glass(
        self, ask: Ask, authenticated: datetime | None, entered: override.Entered
    ) -> UUID | Shown[views.Glass]:
        """The opening's id; else the form again, with what is wrong or that nothing opens."""
        now, real = self._now(), real_now()
        offer = self._offer(ask)
        systems = [one.value for one in offer.systems]
        faults = override.faults(entered, systems, authenticated, real)
        person = self._house.region().person(ask.who.id)
        opened = None
        async with self._db.work() as tx:
            turn = self._turn(tx, now)
            if "again" in faults:
                await breaking.keep_draft(ask.who.id, entered, turn, real)
            if not faults and person is not None:
                attempt = breaking.Attempt(person, _tenant(ask), entered, self._lasts)
                opened = await breaking.break_glass(attempt, turn, self._trail(ask, now))
        if opened is not None:
            return opened
        shown = await self.glass(ask, authenticated, entered)
        return replace(shown, content=replace(shown.content, faults=faults, shut=not faults))

    async def behind(self, ask: Ask, id_: UUID) -> Shown[views.Behind] | None:
        """The patient of an opening, decided anew; None: it is not theirs, or over."""
        now = self._now()
        person = self._house.region().person(ask.who.id)
        if person is None:
            return None
        async with self._db.work() as tx:
            turn, trail = self._turn(tx, now), self._trail(ask, now)
            opened = await breaking.look(id_, person, _tenant(ask), turn, trail)
            coverage = await self._coverage(tx, ask, now)
        if opened is None:
            return None
        names = self._names(ask)
        explained = showing.why(opened.told, names)
        if explained is None:
            return None
        content = views.Behind(
            person=self._person(opened.told.facts, names, now),
            why=explained,
            ends=opened.ends,
            ground=opened.ground,
            by_policy=isinstance(opened.told.decision, Permit) and not opened.told.decision.basis,
        )
        return Shown(content, now, coverage)

    async def review(self, ask: Ask, id_: UUID, verdict: Verdict, why: str) -> bool:
        item = await self._mine(ask, id_)
        if item is None or item.reason != Why.OVERRIDE:
            return False
        now = self._now()
        async with self._db.work() as tx:
            turn, trail = self._turn(tx, now), self._trail(ask, now)
            return await breaking.review(item.about, id_, ask.who.id, verdict, why, turn, trail)

    async def told(self, ask: Ask, id_: UUID) -> bool:
        """The patient was told that the glass was broken."""
        item = await self._mine(ask, id_)
        if item is None or item.reason != Why.OVERRIDE:
            return False
        now = self._now()
        async with self._db.work() as tx:
            turn, trail = self._turn(tx, now), self._trail(ask, now)
            return await breaking.notice_given(item.about, id_, ask.who.id, turn, trail)

    # What each of them needs

    def _items(self, ask: Ask) -> Any:
        """Sees the work items of this reader, and no others."""
        role = Role.PRIVACY if ask.who.has(Role.PRIVACY) else Role.HOSP_CM
        return self._db.request(_tenant(ask), role=role)

    async def _mine(self, ask: Ask, id_: UUID) -> Row[Any] | None:
        """An open work item that is this reader's to work off."""
        async with self._items(ask) as tx:
            row = await store.item(tx, id_)
        return None if row is None or row.closed is not None else row

    def _turn(self, tx: Tx, now: datetime) -> Turn:
        return Turn(tx=tx, now=now, house=self._house)

    def _trail(self, ask: Ask, now: datetime) -> Trail:
        return Trail.of(ask.request, ask.who, now)

    async def _coverage(self, tx: Tx, ask: Ask, now: datetime) -> Any:
        heard = await store.sites_heard(tx)
        return showing.coverage(self._house.region(), heard, self._names(ask), now)

    def _names(self, ask: Ask) -> Names:
        return names_for(self._house.region(), ask)

    def _offer(self, ask: Ask) -> Offer:
        region = self._house.region()

        def named(names: Any) -> str:
            return in_language(names, ask.language)

        systems = [Option(system, named(names)) for system, names in region.cards.items()]
        systems += [
            Option(system, named(site.name))
            for site in region.sites
            if site.id in ask.who.sites
            for system in site.record_systems
        ]
        today = telling.today(region, self._now())
        people = [
            person
            for person in region.people
            if person.roles and (person.clinic or person.site) and telling.is_active(person, today)
        ]
        return Offer(
            systems=systems,
            clinics=[Option(f"Organization/{c.id}", named(c.name)) for c in region.clinics],
            groups=[Option(f"{g.kind}/{g.id}", g.id) for g in region.groups],
            people=[Option(f"Practitioner/{p.id}", p.name) for p in people],
            labels=LABELS,
        )

    def _office(self, ask: Ask, found: "_Found", entered: Entered | None, now: datetime) -> Office:
        today = telling.today(self._house.region(), now)
        begun = entered or Entered(start=today.isoformat(), language=ask.language.value, level="1")
        return Office(
            offer=self._offer(ask),
            today=today,
            sought=found.sought,
            place=found.place,
            person=found.person,
            entered=begun,
            faults=found.faults,
        )

    async def _seek(self, tx: Tx, ask: Ask, sought: Sought, now: datetime) -> "_Found":
        """Whom a number or key names, and what they are to the reader's place."""
        if sought.key is None and not (sought.system or sought.number):
            return _Found(sought)
        house = self._house
        reference: dict[str, Any]
        if sought.key is not None:
            tokens = [(store.KEY, str(sought.key))]
            reference = {"reference": f"Patient/{sought.key}"}
        else:
            systems = {one.value for one in self._offer(ask).systems}
            canonical = canonical_system(sought.system, house.region().aliases)
            plain = normalise(canonical, sought.number)
            if sought.system not in systems:
                return _Found(sought, faults={"system": "system"})
            if plain is None:
                return _Found(sought, faults={"number": "number"})
            tokens = house.tokens.all(canonical, plain)
            reference = {"identifier": {"system": canonical, "value": plain}}
        patients = await store.matched(tx, tokens)
        facts = await self._facts(tx, patients)
        person = await self._person_for(tx, ask, facts, now)
        place = Place.OWN
        if person is None:
            place = Place.UNKNOWN if _clinic(ask) is None else Place.FOREIGN
            if sought.key is not None and not ask.who.has(Role.PRIVACY):
                raise Rejection("not-found", "There is nothing at this address.", status=404)
        keys = facts.keys if facts and person else ()
        tokens = [*tokens, *(await store.tokens_of(tx, keys) if keys else [])]
        return _Found(sought, place, facts, person, reference, tuple(tokens))

    async def _facts(self, tx: Tx, patients: Sequence[UUID]) -> Facts | None:
        """Of the one person behind these keys; None: nobody, or several."""
        found = await store.facts(tx, patients) if patients else {}
        return next(iter(found.values())) if len(found) == 1 else None

    async def _person_for(
        self, tx: Tx, ask: Ask, facts: Facts | None, now: datetime
    ) -> Person | None:
        """Who somebody is, to the officer, the clinic whose confirmed panel they are on, and the
        hospital that sent something of them (NW section 3).
        """
        if facts is None:
            return None
        clinic = _clinic(ask)
        if clinic is not None:
            routes = telling.routes(self._house.region(), facts, now)
            own = any(route.clinic == clinic for route in routes)
        else:
            sent = await store.sites_of(tx, facts.keys)
            sites = {site for several in sent.values() for site in several}
            own = ask.who.has(Role.PRIVACY) or bool(sites & ask.who.sites)
        return self._person(facts, self._names(ask), now) if own else None

    def _person(self, facts: Facts, names: Names, now: datetime) -> Person:
        fields = {name: telling.demographic(self._house, facts, name) for name in DEMOGRAPHICS}
        return showing.person({**fields, "language": ""}, names, now)

    def _may_read(self, ask: Ask, row: Row[Any]) -> bool:
        """Who captured it; the privacy officer all of them (CS-56)."""
        return ask.who.has(Role.PRIVACY) or row.tenant == _tenant(ask)

    async def _kept_about(self, tx: Tx, ask: Ask, found: "_Found") -> list[Kept]:
        tenant = None if ask.who.has(Role.PRIVACY) else _tenant(ask)
        rows = await store.consents_about(tx, found.tokens, tenant)
        return [self._kept(ask, row) for row in rows]

    async def _basis(self, tx: Tx, ask: Ask, names: Sequence[str]) -> list[Kept]:
        """The Consents a work item rests on; of others' only that there are such."""
        found = []
        for name in names:
            parts = name.split("/")
            row = await store.consent(tx, parts[1])
            if row is not None:
                found.append(self._kept(ask, row))
        return found

    def _kept(self, ask: Ask, row: Row[Any]) -> Kept:
        names, readable = self._names(ask), self._may_read(ask, row)
        body = intake.opened_consent(self._house, row) if readable else None
        plain = Kept(
            id=row.id,
            version=row.version,
            status=row.status,
            recorded=row.recorded,
            by=names.person(row.captured_by) or "",
            place=_place(names, row.tenant),
            readable=body is not None,
            changeable=readable and row.latest,
            computable=row.computable,
            disputed=row.disputed_with is not None,
        )
        if body is None:
            return plain
        zone = telling.policy_of(self._house.region()).zone
        said = paper.summary(reading.directive(body, zone), body)
        return replace(
            plain,
            lines=[_line(line, names) for line in said.lines],
            whole=said.whole,
            dated=said.dated,
            by_relative=said.by_relative,
            risks=said.risks,
            signed=said.signed,
            source=said.source,
            text="" if said.whole and row.computable else _as_sent(body),
        )

    async def _held(self, tx: Tx, ask: Ask, row: Row[Any], now: datetime) -> Held:
        names = self._names(ask)
        facts = await self._facts(tx, [row.patient]) if row.patient is not None else None
        return Held(
            id=row.id,
            why=Why(row.reason),
            opened=row.opened,
            patient=row.patient,
            person=await self._person_for(tx, ask, facts, now),
            sites=[names.site(site, named=True) for site in row.sites],
            late=row.closed is None and now - row.opened >= self._alarm,
            closed=row.closed,
            closed_by=names.person(row.closed_by),
            outcome=row.outcome,
        )

    def _refused(self, ask: Ask, row: Row[Any]) -> views.RefusedPaper:
        names = self._names(ask)
        body = None
        if self._may_read(ask, row):
            body = intake.opened_refused(self._house, row)
        return views.RefusedPaper(
            id=row.id,
            received=row.received,
            place=_place(names, row.tenant),
            by=names.person(row.captured_by) or "",
            issues=[(issue["path"], issue["rule"]) for issue in row.issues],
            text="" if body is None else _as_sent(body),
            holds=row.holds,
        )

    def _unlabelled(self, ask: Ask, facts: Facts) -> list[views.Visit]:
        """Visits of the reader's hospital (the officer: of any) that are not assessed."""
        standing = telling.standing_of(facts)
        if standing is None:
            return []
        names, everywhere = self._names(ask), ask.who.has(Role.PRIVACY)
        return [
            views.Visit(visit.key, names.site(visit.site, named=True), visit.start)
            for unit in standing.units
            for visit in unit.visits
            if visit.labels is None
            and visit.item not in facts.assessed
            and (everywhere or visit.site in ask.who.sites)
        ]

    async def _candidates(
        self, tx: Tx, ask: Ask, names: Sequence[str], now: datetime
    ) -> list[views.Candidate]:
        """Whose a disputed Consent may be: the two that were one."""
        keys: set[UUID] = set()
        for name in names:
            row = await store.consent(tx, name.split("/")[1])
            if row is not None and row.disputed_with is not None:
                keys |= {row.disputed_with, *(await store.matched(tx, [(row.key_id, row.digest)]))}
        found = await store.facts(tx, keys) if keys else {}
        return [
            views.Candidate(key, await self._person_for(tx, ask, facts, now))
            for key, facts in sorted(found.items())
        ]

    def _broken(self, ask: Ask, row: Row[Any]) -> views.Broken:
        names = self._names(ask)
        box = {"why": (row.why_key_id, row.why)}
        return views.Broken(
            id=row.id,
            person=names.person(row.person) or "",
            place=_place(names, row.tenant),
            at=row.at,
            ground=Ground(row.ground),
            why=telling.opened(self._house, row.id, box, "why") or "",
            opened=row.ends is not None,
            ends=row.ends,
            basis=row.basis,
            by_policy=row.opened_by == override.By.POLICY,
            notice=Notice(row.notice),
            reviewed=row.reviewed,
            reviewed_by=names.person(row.reviewed_by),
            verdict=None if row.verdict is None else Verdict(row.verdict),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """Who was looked up, as far as the reader may know."""

    sought: Sought
    place: Place | None = None
    facts: Facts | None = None
    person: Person | None = None
    reference: dict[str, Any] | None = None
    """How a Consent names them."""
    tokens: tuple[tuple[str, str], ...] = ()
    faults: dict[str, str] = field(default_factory=dict)


def _clinic(ask: Ask) -> str | None:
    """The clinic a reader is bound to; the privacy officer is bound to none."""
    return None if ask.who.has(Role.PRIVACY) else ask.who.clinic


def _tenant(ask: Ask) -> str:
    """For whom the reader records: their clinic, their site, or the region."""
    if ask.who.tenant is not None:
        return ask.who.tenant
    if ask.who.has(Role.PRIVACY):
        return ""
    raise Rejection("not-found", "There is nothing at this address.", status=404)


def _place(names: Names, tenant: str) -> str:
    """Of a clinic, a hospital, or (empty) the region's privacy officer."""
    region = names.region
    found = region.clinic(tenant) or region.site(tenant)
    return in_language(found.name if found else region.name, names.language)


def _as_sent(body: Mapping[str, Any]) -> str:
    """To be read by a person; what is attached is left out."""
    return orjson.dumps(intake.without_attachments(body), option=orjson.OPT_INDENT_2).decode()


def _line(line: paper.Line, names: Names) -> views.Line:
    period = line.period
    return views.Line(
        permits=line.effect is Effect.PERMIT,
        whom=[_recipient(one, names) for one in line.whom],
        level=line.level,
        labels=line.labels,
        start=period.start if period else None,
        end=period.end if period else None,
    )


def _recipient(reference: str, names: Names) -> str:
    """The name of who is meant; what the directory does not know, as it stands."""
    kind, _, id_ = reference.partition("/")
    if kind == "Organization":
        found = names.region.clinic(id_) or names.region.site(id_)
        return in_language(found.name, names.language) if found else reference
    if kind in {"Practitioner", "PractitionerRole"}:
        person = names.region.person(id_)
        return person.name if person else reference
    return id_ or reference
