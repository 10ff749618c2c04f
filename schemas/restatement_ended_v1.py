"""ingest → screening: all that ingest's store holds was stated again. No patient in it."""

from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Event


class RestatementEnded(Event):
    """How much was stated under this rebuild's id: a reader that has all of it is complete.

    It may be read before the last of it: a carrier keeps only the events of one patient in order.
    """

    type: ClassVar[str] = "restatement.ended.v1"
    source: ClassVar[str] = "ingest"

    restatement: UUID
    begun: AwareDatetime
    persons: int = Field(ge=0)
    """Versions of `patient.identified`."""
    links: int = Field(ge=0)
    """Versions of merges and unmerges."""
    encounters: int = Field(ge=0)
    """Versions of `encounter.recorded`."""
    recorded: AwareDatetime

    @property
    def subject(self) -> UUID | None:
        return None
