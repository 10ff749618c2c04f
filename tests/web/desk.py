"""A desk with a drawer of cards: where they come from is not what these tests are about.

tests/web/test_story.py opens the same pages on notify itself.
"""

from dataclasses import replace
from uuid import UUID

from services.notify.correction import Wish
from services.notify.web.pages import Ask, Shown
from services.notify.web.views import (
    Card,
    CardPage,
    Conflict,
    Coverage,
    Filter,
    MyList,
    Order,
    PatientPage,
    Patients,
    Progress,
    Register,
    Report,
    Step,
    Tier,
)
from services.notify.web.words import Language
from tests.web import builders


class Drawer:
    """Cards by clinic. What is asked of it is kept in `asked`."""

    def __init__(self, cards: dict[str, list[Card]]) -> None:
        self.fill(cards)

    def fill(self, cards: dict[str, list[Card]]) -> None:
        """As it is before anybody asked."""
        self.cards = cards
        self.coverage: Coverage = builders.coverage()
        self.asked: list[Ask] = []
        self.searched: list[UUID | None] = []
        self.wishes: list[Wish] = []
        self.away: Exception | None = None

    def _open(self, ask: Ask) -> None:
        self.asked.append(ask)
        if self.away is not None:
            raise self.away

    def find(self, clinic: str | None, key: UUID) -> Card | None:
        return next((one for one in self.cards.get(clinic or "", []) if one.key == key), None)

    async def my_list(self, ask: Ask, chosen: Filter, order: Order) -> Shown[MyList]:
        self._open(ask)
        own = self.cards.get(ask.who.clinic or "", [])
        kept = {
            Filter.ALL: own,
            Filter.MINE: [one for one in own if one.mine],
            Filter.UNASSIGNED: [one for one in own if one.owner is None],
        }
        by_name = order is Order.PATIENT
        shown = sorted(kept[chosen], key=lambda one: one.person.name) if by_name else kept[chosen]
        content = MyList(
            cards=shown,
            counts={one: len(cards) for one, cards in kept.items()},
            due_now=sum(one.tier is Tier.NOW for one in own),
            due_today=sum(one.tier is Tier.TODAY for one in own),
            chosen=chosen,
            order=order,
        )
        return Shown(content, builders.NOW, self.coverage)

    async def card(self, ask: Ask, key: UUID) -> Shown[CardPage] | None:
        self._open(ask)
        found = self.find(ask.who.clinic, key)
        if found is None:
            return None
        return Shown(builders.card_page(found), builders.NOW, self.coverage)

    async def take(self, ask: Ask, key: UUID, version: int) -> bool | Conflict | None:
        self._open(ask)
        found = self.find(ask.who.clinic, key)
        if found is None:
            return None
        if found.version != version:
            return Conflict(found, Step(builders.NOW, found.progress, found.owner))
        own = self.cards[ask.who.clinic or ""]
        own[own.index(found)] = replace(
            found,
            version=version + 1,
            progress=Progress.MINE,
            owner=ask.who.name,
            mine=True,
            takeable=False,
        )
        return True

    async def patients(self, ask: Ask) -> Shown[Patients]:
        self._open(ask)
        return Shown(builders.patients(), builders.NOW, self.coverage)

    async def patient(self, ask: Ask, key: UUID) -> Shown[PatientPage] | None:
        self._open(ask)
        if key != builders.key(1):
            return None
        return Shown(builders.patient_page(), builders.NOW, self.coverage)

    async def correct(
        self, ask: Ask, key: UUID, encounter: UUID, wish: Wish, version: int
    ) -> bool | None:
        self._open(ask)
        found = builders.patient_page().visit(encounter) if key == builders.key(1) else None
        if found is None:
            return None
        self.wishes.append(wish)
        return version == (found.exclusion.version if found.exclusion else 0)

    async def register(
        self, ask: Ask, patient: UUID | None, person: str | None = None
    ) -> Shown[Register]:
        self._open(ask)
        self.searched.append(patient)
        content = replace(builders.register(), patient=patient, person=person)
        return Shown(content, builders.NOW, self.coverage)

    async def report(
        self, ask: Ask, patient: UUID, language: Language, *, for_patient: bool
    ) -> Shown[Report] | None:
        self._open(ask)
        if patient != builders.key(11):
            return None
        return Shown(builders.report(language, for_patient), builders.NOW, self.coverage)
