"""One encounter taken out of the count by a person, or put back (CT-17). Pure.

It is a statement about a count, not about the encounter: what the hospital sent stays as it is,
and whatever it sends later changes nothing. Screening is told that and why, as a code; what the
person wrote may name somebody, and stays here.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

SHORTEST_NOTE: Final = 10
"""Characters: enough to be asked about, too many for a full stop."""
LONGEST_NOTE: Final = 4000
"""NW-32."""


class Reason(StrEnum):
    """Why an encounter is not to count."""

    REGISTERED_TWICE = "registered-twice"
    WRONG_PERSON = "wrong-person"
    NOT_A_VISIT = "not-a-visit"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Correction:
    """One version of what persons say of an encounter; the highest speaks."""

    encounter: UUID
    version: int
    patient: UUID
    site: str
    excluded: bool
    """False: put back."""
    reason: Reason | None
    """None: put back."""
    note: str = field(repr=False)
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for: to take it out with a reason, or to put it back."""

    excluded: bool
    reason: Reason | None
    note: str = field(repr=False)

    @property
    def lacks(self) -> frozenset[str]:
        """The fields that are not filled in as they must be: `reason`, `note`."""
        wanting = set()
        if self.excluded and self.reason is None:
            wanting.add("reason")
        if not SHORTEST_NOTE <= len(self.note.strip()) <= LONGEST_NOTE:
            wanting.add("note")
        return frozenset(wanting)


@dataclass(frozen=True, slots=True)
class Subject:
    """The encounter a wish is about, as its reader sees it."""

    encounter: UUID
    patient: UUID
    site: str


def corrected(
    about: Subject, known: Correction | None, wish: Wish, by: str, now: datetime
) -> Correction | None:
    """The next version; None if it is as wished already."""
    if wish.excluded is (known is not None and known.excluded):
        return None
    return Correction(
        encounter=about.encounter,
        version=1 if known is None else known.version + 1,
        patient=about.patient,
        site=about.site,
        excluded=wish.excluded,
        reason=wish.reason if wish.excluded else None,
        note=wish.note.strip(),
        by=by,
        at=now,
    )
