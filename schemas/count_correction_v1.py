"""notify → screening: a hospital case manager excludes one encounter, or undoes that (CT-17)."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Event


class Reason(StrEnum):
    """Why an encounter is excluded. What the person wrote about it stays with notify."""

    REGISTERED_TWICE = "registered-twice"
    WRONG_PERSON = "wrong-person"
    NOT_A_VISIT = "not-a-visit"
    OTHER = "other"


class CountCorrection(Event):
    """In force until undone, whatever the site sends; shown as `MANUAL`."""

    type: ClassVar[str] = "count.correction.v1"
    source: ClassVar[str] = "notify"

    patient: UUID
    encounter: UUID
    version: int = Field(ge=1)
    """Of the encounter's corrections; the highest speaks."""
    excluded: bool
    """False: undone."""
    reason: Reason | None = None
    """None: undone."""
    by: str
    """Person id."""
    recorded: AwareDatetime
    """When notify committed it (business clock)."""

    @property
    def subject(self) -> UUID:
        return self.patient
