"""ingest → screening: what is known of one encounter, all its messages folded into one fact."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.envelope import Coding, Event, Moment, Part, Site


class EncounterClass(StrEnum):
    """Normalised class (CT-03): v3-ActCode."""

    EMER = "EMER"
    IMP = "IMP"
    ACUTE = "ACUTE"
    NONAC = "NONAC"
    OBSENC = "OBSENC"
    SS = "SS"
    AMB = "AMB"
    HH = "HH"
    VR = "VR"
    FLD = "FLD"
    PRENC = "PRENC"


class Status(StrEnum):
    """FHIR R4 EncounterStatus; the order of CT-11 is folding's."""

    UNKNOWN = "unknown"
    PLANNED = "planned"
    ARRIVED = "arrived"
    TRIAGED = "triaged"
    IN_PROGRESS = "in-progress"
    ONLEAVE = "onleave"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"


class Disposition(StrEnum):
    """How it ended, as the site's code map says; None in the fact = unknown or not yet."""

    HOME = "home"
    ADMITTED = "admitted"
    TRANSFERRED = "transferred"
    LEFT_WITHOUT_BEING_SEEN = "lwbs"
    LEFT_AGAINST_ADVICE = "left-against-advice"
    REDIRECTED = "redirected"
    DIED = "died"
    DEAD_ON_ARRIVAL = "dead-on-arrival"
    NONACUTE_CARE = "nonacute-care"
    OTHER = "other"


class Service(StrEnum):
    """What kind of care, where counting needs it (CR-20 to CR-27); the site's code map decides."""

    OBSTETRICS = "obstetrics"
    NEWBORN = "newborn"
    DIALYSIS = "dialysis"
    SERIES = "series"
    PALLIATIVE = "palliative"
    MENTAL_HEALTH = "mental-health"
    DAY_SURGERY = "day-surgery"
    ORGAN_DONATION = "organ-donation"
    OTHER = "other"


class ClassSince(Part):
    """From `since` on the encounter had this class, until the next entry (CT-14)."""

    code: EncounterClass
    since: AwareDatetime


class EncounterRecorded(Event):
    """One version of one encounter. The highest version speaks; the others are history."""

    type: ClassVar[str] = "encounter.recorded.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID
    encounter: UUID
    version: int = Field(ge=1)
    site: Site
    status: Status
    classes: tuple[ClassSince, ...]
    """Class history in time order, never shortened; empty only for a void fact without class."""
    triaged: bool = False
    start: Moment | None = None
    """None only if void or planned."""
    end: Moment | None = None
    disposition: Disposition | None = None
    service: Service | None = None
    part_of: UUID | None = None
    """Encounter key of the encounter this one is part of."""
    from_emergency: bool = False
    """Admit source is the emergency department (`emd`)."""
    transfer_in: bool = False
    transfer_out: bool = False
    planned: bool = False
    """Return by appointment or elective admission, as the site codes it (CR-07, CR-19)."""
    codes: tuple[Coding, ...] | None = Field(default=None, repr=False)
    """Diagnosis codes; None = not known, () = known and none."""
    labels: tuple[Coding, ...] | None = Field(default=None, repr=False)
    """Security labels; None = not assessed, () = assessed and none."""
    time_is_ambiguous: bool = False
    """A local time that the clock change makes double or impossible was resolved (CR-42)."""
    start_is_assumed: bool = False
    """No exact start came within the site's limit; the best known instant stands in (CR-30)."""
    event_time: AwareDatetime
    """When the message says it happened (HA-82)."""
    recorded: AwareDatetime
    """When ingest committed this version (business clock)."""
    backfill: bool = False
    restated: UUID | None = None
    """The rebuild that states it again from ingest's store (counting.md section 9); None: news."""

    @property
    def subject(self) -> UUID:
        return self.patient
