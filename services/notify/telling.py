"""Who may be told what of a patient, now: the store's facts, judged by consent.py.

Every attempt, read, search match and page comes through `tell`; nothing else makes a view.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from uuid import UUID

from schemas.flag_changed_v1 import Explanation
from schemas.patient_identified_v1 import PatientIdentified
from services.notify import card as cards
from services.notify import consent, days, panel, reading, recount
from services.notify.card import Card
from services.notify.consent import (
    KIND_OF_LEVEL,
    Ceilings,
    Decision,
    Default,
    Directive,
    Directory,
    Finding,
    Hold,
    Item,
    Level,
    Outcome,
    Permit,
    Policy,
    Profile,
    Reason,
    Request,
    Withhold,
)
from services.notify.recount import Kind, Standing, State, Unit, View
from services.notify.store import Box, Facts, PanelRow
from services.plumbing.audit import Content
from services.plumbing.region import Clinic, Person, Region, Site
from services.plumbing.sealing import (
    SealBrokenError,
    Seals,
    Tokens,
    UnknownKeyError,
    identifiers_of,
)

SEES_PATIENTS = frozenset({"clinic_cm", "physician", "lead_md"})
"""Roles at a clinic that may see its patients: who reads its shared inbox (CS-33, NW)."""


class DirectoryAwayError(OSError):
    """Who belongs where cannot be known now, so nothing is told until it can (CS-52)."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A region file, worked out."""

    region: Region
    directory: Directory
    digest: str


@dataclass(frozen=True, slots=True)
class House:
    """What deciding and composing need besides the database."""

    region: Callable[[], Region]
    seals: Seals = field(repr=False)
    tokens: Tokens = field(repr=False)
    base: str
    """Public `[base]` of the clinics' door, without a slash at its end."""
    invalid_holds: bool = True
    """A Consent that is no valid R4 holds its patient's cards until a person has looked (CS-57)."""
    reachable: Callable[[], bool] = field(default=lambda: True, repr=False)
    """Whether the region file can be read."""
    _kept: list[_Read] = field(default_factory=list, repr=False)

    def directory(self) -> Directory:
        """Who belongs where, as the region file has it now. DirectoryAwayError."""
        if not self.reachable():
            raise DirectoryAwayError
        return self._read().directory

    def digest(self) -> str:
        """The same for the same directory and settings of consent."""
        return self._read().digest

    def _read(self) -> _Read:
        region = self.region()
        if not self._kept or self._kept[0].region is not region:
            said = region.model_dump_json(exclude={"clients"})
            digest = hashlib.sha256(said.encode()).hexdigest()
            self._kept[:] = [_Read(region, directory_of(region, self.base), digest)]
        return self._kept[0]


@dataclass(frozen=True, slots=True)
class Told:
    """What one recipient may see of one patient. Made anew each time; never kept."""

    facts: Facts
    decision: Decision
    standing: Standing | None
    view: View | None
    """None: a refusal, or nothing is known that could be told."""

    @property
    def released(self) -> frozenset[str]:
        return self.decision.released if isinstance(self.decision, Permit) else frozenset()

    @property
    def lists(self) -> bool:
        """Whether there is an entry of this patient at all: to who sees only a part, and no
        threshold in it, there is none (CS-40).
        """
        return self.view is not None and (self.view.whole or self.view.state is not State.BELOW)

    @property
    def by_consent(self) -> bool:
        """Whether a Consent opened a visit, and not the region's default alone."""
        return self.view is not None and any(f.explicit for f in facts_of(self.decision))

    def names(self, card: Card) -> bool:
        """Whether the hospital of its last event may be named though it is sensitive (CS-45)."""
        news = self.news(card)
        if news is None or self.view is None or not news.encounters:
            return False
        details = [self.view.details.get(key) for key in news.encounters]
        return all(detail is not None and detail.named for detail in details)

    def shows(self, card: Card) -> bool:
        """Whether this card, with its content, is there for this recipient."""
        if self.view is None or not self.releases(card):
            return False
        return self.view.whole or self.view.state is State.FLAGGED

    def releases(self, card: Card) -> bool:
        """A card made by a moment of an episode tells of that episode."""
        if card.what is cards.What.THRESHOLD:
            return True
        news = self.news(card)
        return news is not None and news.visible_to(self.released)

    def trimmed(self, card: Card) -> Card:
        """Without the last event, where its episode is hidden from this recipient."""
        news = self.news(card)
        if news is None or news.visible_to(self.released):
            return card
        return replace(card, moment=None, moment_at=None, site=None)

    def news(self, card: Card) -> cards.EpisodeNews | None:
        """The newest of the card's episode, whether visible or not."""
        kept = [n for n in self.facts.episodes if f"episode:{n.episode}" == card.key]
        return kept[-1] if kept else None


# --- the region's answers ---------------------------------------------------------------------


def policy_of(region: Region) -> Policy:
    said = region.consent
    return Policy(
        default=Default(said.default),
        profile=Profile(said.profile),
        optin_purposes=frozenset(said.optin_purposes),
        zone=days.zone(said.timezone),
    )


def ceilings_of(region: Region, clinic: str) -> Ceilings:
    """How much of a visit each ground may open to this clinic (CS-45)."""
    known, said = region.clinic(clinic), region.consent
    agreed = known.agreed_level if known is not None else None
    return Ceilings(
        implied=_level(said.implied_level),
        explicit=_level(said.explicit_level),
        agreed=_level(agreed or said.explicit_level),
    )


def _level(said: str) -> Level:
    return Level(int(said.removeprefix("L")))


def clinics_of(region: Region) -> frozenset[str]:
    return frozenset(clinic.id for clinic in region.clinics)


def is_active(person: Person, on: date) -> bool:
    return person.active_until is None or on <= person.active_until


def readers_of(region: Region, clinic: str, on: date) -> tuple[str, ...]:
    """Who reads the shared inbox of a clinic; empty: the region file keeps no such list."""
    return tuple(
        sorted(
            f"Practitioner/{p.id}"
            for p in region.people
            if p.clinic == clinic and SEES_PATIENTS & set(p.roles) and is_active(p, on)
        )
    )


def directory_of(region: Region, base: str) -> Directory:
    organisations: list[Site | Clinic] = [*region.sites, *region.clinics]
    groups: dict[str, set[str]] = {
        f"Practitioner/{p.id}": {f"PractitionerRole/{p.id}"} for p in region.people
    }
    for group in region.groups:
        for member in group.members:
            groups[f"Practitioner/{member}"].add(f"{group.kind}/{group.id}")
    affiliation = {
        f"Practitioner/{p.id}": frozenset(
            f"Organization/{place}" for place in (p.clinic, p.site) if place is not None
        )
        for p in region.people
    }
    identifiers = {
        said: f"Organization/{clinic.id}"
        for clinic in region.clinics
        for said in clinic.identifiers
    }
    return Directory(
        part_of={
            f"Organization/{one.id}": f"Organization/{one.part_of}"
            for one in organisations
            if one.part_of is not None
        },
        affiliation=affiliation,
        groups={person: frozenset(held) for person, held in groups.items()},
        identifiers=identifiers,
        bases=(base,),
    )


# --- what is kept sealed ----------------------------------------------------------------------


def opened(house: House, owner: UUID, boxes: Mapping[str, Box], name: str) -> str | None:
    """One sealed field; None if it is not there or cannot be opened, which is never a guess."""
    box = boxes.get(name)
    if box is None:
        return None
    try:
        return house.seals.open(owner, name, *box)
    except (UnknownKeyError, SealBrokenError):
        return None


def tokens_of(house: House, event: PatientIdentified) -> set[tuple[str, str]]:
    """The tokens an event brings; while a key changes, those under our other keys too (HA-98).

    Ingest may have told them under a key that no panel or Consent of ours is kept under yet, or
    any more; what they are made of is sealed beside them.
    """
    found = {(token.key_id, token.digest) for token in event.tokens}
    if house.tokens.rotating:
        boxes = {name: (one.key_id, one.box) for name, one in event.demographics.items()}
        for system, value in identifiers_of(house.seals, event.patient, boxes):
            found |= set(house.tokens.all(system, value))
    return found


def demographic(house: House, facts: Facts, name: str) -> str | None:
    """A field as a hospital sent it, of the surviving key first."""
    rows = sorted(facts.rows, key=lambda row: (row.key != facts.patient, row.key))
    for row in rows:
        value = opened(house, row.key, row.demographics, name)
        if value is not None:
            return value
    return None


def birth_date(house: House, facts: Facts) -> date | None:
    said = demographic(house, facts, "birthDate")
    try:
        return None if said is None else date.fromisoformat(said)
    except ValueError:
        return None


def directives(house: House, facts: Facts, policy: Policy) -> list[Directive]:
    """The patient's Consents, opened and read. One that does not open, or was refused as no
    valid R4, denies everything.
    """
    found = []
    for row in facts.consents:
        try:
            body = json.loads(house.seals.open(row.uid, "consent", *row.body))
            read = _unreadable(row.id) if row.refused else reading.directive(body, policy.zone)
        except (UnknownKeyError, SealBrokenError, ValueError):
            read = _unreadable(row.id)
        found.append(
            replace(
                read,
                id=row.id,
                version=row.version,
                active=row.status == "active",
                patient=consent.Reference(f"Patient/{facts.patient}"),
                computable=read.computable and not row.disputed,
            )
        )
    return found


def _unreadable(id_: str) -> Directive:
    """A Consent whose text cannot be had: it denies everything (CS-13)."""
    return Directive(
        id=id_,
        version=None,
        active=True,
        privacy=True,
        patient=consent.Reference(None),
        dated=None,
        base=None,
        root=None,
        computable=False,
    )


# --- the question and its answer --------------------------------------------------------------


def panel_rows(facts: Facts, now: datetime) -> list[panel.Row]:
    """The panel as the routing rule sees it. A superseded row is one that has ended."""
    return [
        panel.Row(
            clinic=row.clinic,
            nurse=row.nurse,
            confirmed=row.confirmed_on is not None,
            start=row.starts,
            end=date.min if row.superseded is not None and row.superseded <= now else row.ends,
        )
        for row in facts.panel
    ]


def today(region: Region, now: datetime) -> date:
    return now.astimezone(days.zone(region.timezone)).date()


def routes(region: Region, facts: Facts, now: datetime) -> list[panel.Route]:
    return panel.routes(panel_rows(facts, now), today(region, now), clinics_of(region))


def present_row(facts: Facts, clinic: str) -> PanelRow | None:
    """The clinic's own present row of the patient: its phone, language, contact note."""
    rows = [r for r in facts.panel if r.clinic == clinic and r.superseded is None]
    return rows[-1] if rows else None


def standing_of(facts: Facts) -> Standing | None:
    row = facts.standing
    if row is None:
        return None
    return reading.standing(Explanation.model_validate_json(row.explanation), row.sequence)


def question(
    house: House,
    facts: Facts,
    standing: Standing,
    *,
    clinic: str,
    readers: Sequence[str],
    at: datetime,
) -> Request:
    """What is asked of the consent rules: each encounter that a card would tell of (CS-02), and
    of each what no more than its ceiling may open.
    """
    region = house.region()
    highest = ceilings_of(region, clinic).highest(explicit=bool(facts.consents))
    items = {item.id: item for news in facts.episodes for item in news.items}
    items |= {item.id: item for item in recount.items(standing, highest)}
    items = {name: _assessed(item, facts) for name, item in items.items()}
    return Request(
        at=at,
        patient=f"Patient/{facts.patient}",
        aliases=frozenset(f"Patient/{key}" for key in facts.keys),
        birth_date=birth_date(house, facts),
        recipient=f"Organization/{clinic}",
        readers=tuple(readers),
        items=tuple(items[name] for name in sorted(items)),
        circle=any(route.clinic == clinic for route in routes(region, facts, at)),
        directory=house.directory(),
        met=lambda released: recount.is_met(standing, released, at),
    )


def _assessed(item: Item, facts: Facts) -> Item:
    """With the labels a person gave its visit, where the hospital gave none (CS-36)."""
    visit = item.id if item.kind == "Encounter" else item.encounter
    found = facts.assessed.get(visit or "")
    if item.labels is not None or found is None:
        return item
    return replace(item, labels=consent.labelled(found, item.codes))


def tell(
    house: House,
    facts: Facts,
    clinic: str,
    readers: Sequence[str],
    at: datetime,
    *,
    standing: Standing | None = None,
) -> Told:
    """Decide for these readers of `clinic`, and compose what they may see."""
    standing = standing or standing_of(facts)
    policy = policy_of(house.region())
    if standing is None:
        return Told(facts, _nothing_known(facts, clinic, readers, at, policy), None, None)
    standing = recount.assessed(standing, facts.assessed)
    asked = question(house, facts, standing, clinic=clinic, readers=readers, at=at)
    return _decided(house, facts, standing, asked)


def _decided(house: House, facts: Facts, standing: Standing, asked: Request) -> Told:
    policy = policy_of(house.region())
    try:
        decision = consent.decide(directives(house, facts, policy), asked, policy)
    except Exception:  # noqa: BLE001 - whatever fails in it, nothing goes out and a person sees it
        decision = consent.on_hold(asked, policy, Reason.DECISION_ERROR)
    if not isinstance(decision, Permit):
        return Told(facts, decision, standing, None)
    recipient = asked.recipient.removeprefix("Organization/")
    view = cards.compose(standing, decision, ceilings_of(house.region(), recipient))
    return Told(facts, decision, standing, view)


def _nothing_known(
    facts: Facts, clinic: str, readers: Sequence[str], at: datetime, policy: Policy
) -> Withhold:
    asked = Request(
        at=at,
        patient=f"Patient/{facts.patient}",
        recipient=f"Organization/{clinic}",
        readers=tuple(readers),
        items=(),
        circle=False,
    )
    decision = consent.decide([], asked, policy)
    assert isinstance(decision, Withhold)
    return decision


def tell_inbox(
    house: House,
    facts: Facts,
    clinic: str,
    at: datetime,
    *,
    standing: Standing | None = None,
) -> Told:
    """For a clinic's EMR and whoever reads it."""
    region = house.region()
    readers = readers_of(region, clinic, today(region, at))
    return tell(house, facts, clinic, readers, at, standing=standing)


def tell_person(house: House, facts: Facts, clinic: str, person: str, at: datetime) -> Told:
    """For one person of the clinic, on a page."""
    return tell(house, facts, clinic, (f"Practitioner/{person}",), at)


def tell_hospital(house: House, facts: Facts, site: str, person: str, at: datetime) -> Told:
    """For a case manager of a hospital, on a page: of the visits to it, which it keeps itself;
    while the patient is there, of all (CS-04).
    """
    policy = policy_of(house.region())
    standing = standing_of(facts)
    readers = (f"Practitioner/{person}",)
    if standing is None:
        return Told(facts, _nothing_known(facts, site, readers, at, policy), None, None)
    standing = recount.assessed(standing, facts.assessed)
    asked = question(house, facts, standing, clinic=site, readers=readers, at=at)
    present = any(
        news.site == site and not (news.ended or news.void or news.joined_into)
        for news in facts.episodes
    )
    own = [item for item in asked.items if item.custodian == f"Organization/{site}"]
    asked = replace(
        asked,
        circle=True,
        items=asked.items if present else tuple(own),
        met=consent.any_released,
    )
    return _decided(house, facts, standing, asked)


def tell_anyone(
    house: House, facts: Facts, route: panel.Route, at: datetime, *, standing: Standing
) -> tuple[Told, bool]:
    """For the inbox, else for the first single reader who may: the assigned nurse before the
    others (CS-33). With whether it is the inbox.
    """
    region = house.region()
    inbox = tell_inbox(house, facts, route.clinic, at, standing=standing)
    if inbox.view is not None:
        return inbox, True
    readers = readers_of(region, route.clinic, today(region, at))
    nurse = None if route.nurse is None else f"Practitioner/{route.nurse}"
    for reader in sorted(readers, key=lambda r: (r != nurse, r)):
        told = tell(house, facts, route.clinic, (reader,), at, standing=standing)
        if told.view is not None:
            return told, False
    return inbox, True


def visits_at(told: Told, site: str) -> Mapping[UUID, Sequence[Unit]]:
    """The visits to a hospital that `told` shows, each with the units it is part of."""
    found: dict[UUID, list[Unit]] = {}
    for unit in told.view.units if told.view else ():
        for visit in unit.visits:
            if visit.site == site:
                found.setdefault(visit.key, []).append(unit)
    return found


def look_again_at(house: House, facts: Facts, told: Told, at: datetime) -> datetime | None:
    """When time alone may change what is told: Consents, or a recount (CS-51, CS-40)."""
    if told.standing is None:
        return None
    instants: list[datetime | None] = []
    if told.view is not None:
        instants.append(recount.changes_by_itself(told.standing, told.released, at))
    if facts.consents:
        policy = policy_of(house.region())
        clinic = told.decision.recipient.removeprefix("Organization/")
        asked = question(house, facts, told.standing, clinic=clinic, readers=(), at=at)
        instants.append(consent.decide_again_at(directives(house, facts, policy), asked, policy))
    return min((i for i in instants if i is not None and i > at), default=None)


def panel_changes_at(region: Region, facts: Facts, at: datetime) -> datetime | None:
    """When a panel row begins or has ended."""
    where = days.zone(region.timezone)
    instants = [
        instant
        for row in facts.panel
        if row.superseded is None
        for instant in (
            days.midnight(row.starts, where) if row.starts else None,
            days.after(row.ends, where) if row.ends else None,
        )
        if instant is not None and instant > at
    ]
    return min(instants, default=None)


def readers_change_at(region: Region, facts: Facts, clinic: str, at: datetime) -> datetime | None:
    """When somebody who reads for the clinic does so no more (CS-51, CS-81). Silence does not ask
    who reads, so only where there are Consents.
    """
    if not facts.consents:
        return None
    where = days.zone(region.timezone)
    instants = [
        days.after(person.active_until, where)
        for person in region.people
        if person.clinic == clinic and person.active_until is not None
    ]
    return min((instant for instant in instants if instant > at), default=None)


def kind_of(decision: Decision) -> str:
    match decision:
        case Permit():
            return "permit"
        case Withhold():
            return "withhold"
        case Hold():
            return "hold"


def facts_of(decision: Decision) -> list[Finding]:
    """What became of the visits themselves; whether there is a card hangs on these alone."""
    return [f for f in decision.findings if f.item.startswith(f"{KIND_OF_LEVEL[Level.FACT]}/")]


def reasons_of(decision: Decision) -> frozenset[str]:
    """Why a permit stands, or why there is none; how much more was shown is not said here."""
    found = facts_of(decision)
    match decision:
        case Permit():
            pass
        case Hold():
            found = [f for f in found if f.outcome is Outcome.HOLD]
        case Withhold():
            found = [f for f in found if f.outcome is not Outcome.RELEASE]
    return frozenset(str(r) for f in found for r in f.reasons)


def content(told: Told) -> Content | None:
    """What a card tells of a patient, in kinds and numbers, at which level and on what ground
    (CS-114); None: nothing may be told.
    """
    if told.view is None:
        return None
    return Content(
        items=(
            f"ed-visit:{told.view.count(Kind.ED)}",
            f"hospital-stay:{told.view.count(Kind.HOSPITAL)}",
        ),
        level=f"L{told.view.level}",
        basis=tuple(sorted(told.decision.basis)),
        policy=told.decision.policy,
    )
