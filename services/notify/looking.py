"""What one clinic's system may see now, as FHIR: read by the door and by each delivery.

Everything is composed for this reader at this instant from one decision a patient. A card that
may not be told any more is a stub if the clinic ever had it, else it is not there (CA-32).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas.flag_changed_v1 import Explanation
from services.notify import card as cards
from services.notify import fhir, reading, recount, store, telling
from services.notify.card import Card
from services.notify.fhir import Json, Voice, Whom
from services.notify.recount import State, View
from services.notify.store import Facts, FlagRow
from services.notify.telling import House, Told
from services.plumbing.audit import Content
from services.plumbing.db import Tx

SOFTWARE = "passerelle notify"
Teller = Callable[[Facts], Told]
"""Decides for the reader."""


@dataclass(frozen=True, slots=True)
class Found:
    """A resource that may be shown, and what its audit record needs."""

    resource: Json = field(repr=False)
    patient: UUID | None
    version: int = 1
    card: UUID | None = None
    """A card shown with its content: the clinic has it from now on."""
    content: Content | None = None
    """What it tells, in kinds and numbers (CS-114); None: a stub, or nothing of a patient."""
    sought: Json | None = field(default=None, repr=False)
    """What a search looks at, where that is more than is shown."""

    @property
    def reference(self) -> str:
        return f"{self.resource['resourceType']}/{self.resource['id']}"

    @property
    def entity(self) -> str:
        return f"{self.reference}/_history/{self.version}"


@dataclass(frozen=True, slots=True)
class Sight:
    """All that a clinic's reader may see of some patients."""

    house: House
    voice: Voice
    clinic: str
    now: datetime
    cards: Sequence[Card]
    flags: Sequence[FlagRow]
    told: dict[UUID, Told]
    """By patient key, retired ones too."""

    # --- Task

    def task(self, card: Card) -> Found | None:
        """The card, its stub, or nothing."""
        told = self.told.get(card.patient)
        if told is None:
            return None
        if cards.is_stub(card) or not told.shows(card) or told.view is None:
            if not card.shown:
                return None
            return Found(fhir.stub(card, self.voice), card.patient, card.version)
        flag = self._flag_of(card.patient)
        body = fhir.task(
            told.trimmed(card),
            told.view,
            flag.id if flag else None,
            self.voice,
            named=told.names(card),
        )
        return Found(body, card.patient, card.version, card.id, self.content(card.patient))

    def content(self, patient: UUID) -> Content | None:
        """What a card tells of a patient; None: nothing may be told."""
        told = self.told.get(patient)
        return None if told is None else telling.content(told)

    def fact(self, patient: UUID) -> Content | None:
        """As `content`, of what tells no more than that the visits were, whatever the permit."""
        found = self.content(patient)
        return None if found is None else replace(found, level="L1")

    def tasks(self) -> list[Found]:
        return [found for card in self.cards if (found := self.task(card)) is not None]

    def _is_shown(self, card: Card) -> bool:
        found = self.task(card)
        return found is not None and found.card is not None

    # --- Flag, Patient, Provenance

    def _flag_of(self, patient: UUID) -> FlagRow | None:
        for row in self.flags:
            if row.patient == patient and self._flag_view(row) is not None:
                return row
        return None

    def _flag_view(self, row: FlagRow) -> View | None:
        """What the reader sees of the state: whole, or recounted and not below (CS-40)."""
        told = self.told.get(row.patient)
        if told is None or told.view is None:
            return None
        whole = told.view.whole or told.view.state is not State.BELOW
        return told.view if whole else None

    def flags_seen(self) -> list[Found]:
        found = []
        for row in self.flags:
            view = self._flag_view(row)
            if view is not None:
                body = fhir.flag(row, view, self.voice)
                content = self.fact(row.patient)
                found.append(Found(body, row.patient, row.version, content=content))
        return found

    def patients(self) -> list[Found]:
        """Of whom a card or Flag may be seen."""
        seen = {card.patient for card in self.cards if self._is_shown(card)}
        seen |= {row.patient for row in self.flags if self._flag_view(row) is not None}
        return [self._patient(key) for key in sorted(seen)]

    def _patient(self, key: UUID) -> Found:
        facts = self.told[key].facts
        row = telling.present_row(facts, self.clinic)
        boxes = row.boxes if row else {}

        def sent(name: str) -> str | None:
            return telling.demographic(self.house, facts, name)

        def own(name: str) -> str | None:
            return None if row is None else telling.opened(self.house, row.id, boxes, name)

        whom = Whom(
            key=key,
            health_card=sent("healthCard"),
            family=sent("family"),
            given=sent("given"),
            birth_date=sent("birthDate"),
            gender=sent("gender"),
            phone=own("phone"),
            language=row.language if row and row.language else None,
            contact_note=own("contactNote"),
        )
        return Found(fhir.patient(whom, 1, None), key, content=self.fact(key))

    def provenances(self) -> list[Found]:
        """Why, of the present version of each card and Flag that may be seen."""
        found = []
        for card in self.cards:
            told = self.told.get(card.patient)
            if told is not None and told.view is not None and self._is_shown(card):
                found.append(self._provenance(card, told.view))
        for row in self.flags:
            view = self._flag_view(row)
            if view is not None:
                found.append(self._provenance(row, view))
        return found

    def _provenance(self, target: Card | FlagRow, view: View) -> Found:
        body = fhir.provenance(target, view, SOFTWARE, self.voice, target.updated)
        return Found(body, target.patient, content=self.fact(target.patient))

    # --- Communication

    def communications(self, rows: Iterable[Any]) -> list[Found]:
        """Deliveries of cards that may still be seen, or whose stub may."""
        by_id = {card.id: card for card in self.cards}
        found = []
        for row in rows:
            card = by_id.get(row.card)
            if row.card is not None and (card is None or self.task(card) is None):
                continue
            body = fhir.communication(row, focus=row.card is not None)
            found.append(Found(body, row.patient, row.attempts))
        return found

    # --- what it was

    def version(self, card: Card, state: Any, then: store.StandingRow | None) -> Found | None:
        """The card as it was at a version; only while its present content may be told."""
        now = self.task(card)
        if now is None or now.card is None:
            return None
        told = self.told[card.patient]
        standing = None if then is None else _standing(then)
        view = told.view
        if standing is not None:
            seen = told.released | _gone(standing, told)
            details = recount.NOTHING_MORE if view is None else view.details
            view = recount.see(standing, seen, self.now, details)
        if view is None:
            return None
        was = store.card_from_state(state)
        flag = self._flag_of(card.patient)
        body = fhir.task(
            told.trimmed(was),
            view,
            flag.id if flag else None,
            self.voice,
            named=told.names(was),
        )
        return Found(body, card.patient, was.version, card.id, self.content(card.patient))


def _standing(row: store.StandingRow) -> recount.Standing:
    return reading.standing(Explanation.model_validate_json(row.explanation), row.sequence)


def _gone(standing: recount.Standing, told: Told) -> frozenset[str]:
    """Visits that were taken back since: nothing forbids them, they are only not there."""
    if told.view is None or not told.view.whole or told.standing is None:
        return frozenset()
    now = {item.id for item in recount.items(told.standing)}
    return frozenset(item.id for item in recount.items(standing)) - now


async def look(
    tx: Tx,
    house: House,
    clinic: str,
    now: datetime,
    *,
    language: fhir.Language = "fr",
    patients: Iterable[UUID] | None = None,
) -> Sight:
    """What `clinic`'s inbox may see of `patients`, or of all it has to do with.

    No Consent of theirs changes until `tx` ends (CS-50).
    """
    keys = await store.patients_of_clinic(tx, clinic) if patients is None else list(patients)
    family = await store.families(tx, keys)
    await store.hear_consents(tx, family)
    facts = await store.facts(tx, family)
    everyone = [key for own in facts.values() for key in own.keys]
    told = {
        key: tell
        for one in facts.values()
        for tell in [telling.tell_inbox(house, one, clinic, now)]
        for key in one.keys
    }
    return Sight(
        house=house,
        voice=Voice(house.region(), house.base, language),
        clinic=clinic,
        now=now,
        cards=await store.cards_here(tx, clinic, everyone),
        flags=await store.flags_here(tx, clinic, everyone),
        told=told,
    )
