"""notify → later consumers: what became of an alert."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime

from schemas.envelope import Event


class Fate(StrEnum):
    PERMITTED = "permitted"
    WITHHELD = "withheld"
    ON_HOLD = "on-hold"
    DELIVERED = "delivered"
    ACKNOWLEDGED = "acknowledged"
    RETRACTED = "retracted"


class AlertDecided(Event):
    type: ClassVar[str] = "alert.decided.v1"
    source: ClassVar[str] = "notify"
    published: ClassVar[bool] = False

    patient: UUID
    clinic: str
    card: UUID | None
    fate: Fate
    reasons: tuple[str, ...] = ()
    at: AwareDatetime

    @property
    def subject(self) -> UUID:
        return self.patient
