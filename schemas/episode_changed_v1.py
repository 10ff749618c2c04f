"""screening → notify: a moment in a care episode of a watched or flagged patient."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Coding, Event, Site


class EpisodeMoment(StrEnum):
    ARRIVED = "arrived"
    LEFT = "left"
    ADMITTED = "admitted"
    DISCHARGED = "discharged"
    DIED = "died"
    CORRECTED = "corrected"


class EpisodeChanged(Event):
    """Carries the episode's whole present state, so that the newest sequence suffices (CT-27)."""

    type: ClassVar[str] = "episode.changed.v1"
    source: ClassVar[str] = "screening"

    patient: UUID
    episode: UUID
    """Encounter key of the episode's first recorded encounter (CT-26)."""
    sequence: int = Field(ge=1)
    """Per patient."""
    moment: EpisodeMoment
    at: AwareDatetime
    """When the moment happened."""
    site: Site
    in_ed: bool = False
    in_hospital: bool = False
    ended: bool = False
    void: bool = False
    """The whole episode was taken back."""
    joined_into: UUID | None = None
    """Corrected: this episode is part of an older one."""
    encounters: tuple[UUID, ...]
    labels: tuple[Coding, ...] | None = Field(default=None, repr=False)
    """Of all its encounters; None if any is not assessed."""
    received: AwareDatetime
    counted: AwareDatetime

    @property
    def subject(self) -> UUID:
        return self.patient
