"""ingest → screening, notify: a patient key exists, and what it can be matched by."""

from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Event, Part, Site


class Token(Part):
    """A keyed digest of an identifier: matches an equal one, tells nothing (CS-94)."""

    key_id: str
    digest: str
    """HMAC-SHA-256 over system and normalised value, base64url without padding."""


class Sealed(Part):
    """One demographic field under authenticated encryption (CS-94)."""

    key_id: str
    box: str
    """Nonce and ciphertext, base64url without padding."""


class PatientIdentified(Event):
    """Sent for every new patient key, also without demographics, and at each change of them."""

    type: ClassVar[str] = "patient.identified.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID
    version: int = Field(ge=1)
    tokens: tuple[Token, ...] = Field(repr=False)
    """Every identifier known of this patient, of all sites."""
    demographics: dict[str, Sealed] = Field(default_factory=dict, repr=False)
    """Field by field: `family`, `given`, `birthDate`, `gender`, `deceased` (an ISO instant),
    `healthCard` (system|value of the current health card), `recordNumbers` (JSON list of
    {site, system, value})."""
    attributed: tuple[str, ...] = ()
    """Clinics of the region file that a hospital recorded for this patient (CA-46)."""
    sites: tuple[Site, ...] = ()
    """Sites that know the patient."""
    recorded: AwareDatetime
    restated: UUID | None = None
    """The rebuild that states it again from ingest's store (counting.md section 9); None: news."""

    @property
    def subject(self) -> UUID:
        return self.patient
