"""notify → screening: a hospital case manager excludes one encounter, or undoes that (CT-17)."""

from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Event


class CountCorrection(Event):
    """In force until undone, whatever the site sends; shown as `MANUAL`."""

    type: ClassVar[str] = "count.correction.v1"
    source: ClassVar[str] = "notify"
    published: ClassVar[bool] = False

    patient: UUID
    encounter: UUID
    version: int = Field(ge=1)
    excluded: bool
    reason: str = Field(repr=False)
    by: str
    recorded: AwareDatetime

    @property
    def subject(self) -> UUID:
        return self.patient
