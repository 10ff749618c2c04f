"""ingest → screening, notify: two patient keys are one person, or are not after all."""

from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Event


class PatientMerged(Event):
    """`retired` is a link to `surviving` from now on; readers resolve chains (CT-01)."""

    type: ClassVar[str] = "patient.merged.v1"
    source: ClassVar[str] = "ingest"

    surviving: UUID
    retired: UUID
    version: int = Field(ge=1)
    """Counts merges and unmerges of the retired key; the highest speaks."""
    recorded: AwareDatetime
    restated: UUID | None = None
    """The rebuild that states it again from ingest's store (counting.md section 9); None: news."""

    @property
    def subject(self) -> UUID:
        return self.surviving


class PatientUnmerged(Event):
    """The link is undone; each encounter returns to the key it was sent with."""

    type: ClassVar[str] = "patient.unmerged.v1"
    source: ClassVar[str] = "ingest"

    surviving: UUID
    retired: UUID
    version: int = Field(ge=1)
    recorded: AwareDatetime
    restated: UUID | None = None
    """The rebuild that states it again from ingest's store (counting.md section 9); None: news."""

    @property
    def subject(self) -> UUID:
        return self.surviving
