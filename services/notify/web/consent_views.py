"""What the pages about Consents, holds and broken glass show, as plain values (as views.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from services.notify.holding import Why as Reason
from services.notify.override import Entered as Breaking
from services.notify.override import Ground, Notice, Verdict
from services.notify.paper import Entered
from services.notify.web.views import Person, Why


@dataclass(frozen=True, slots=True)
class Option:
    """What a form offers: the value it sends, and the name a person reads."""

    value: str
    name: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What forms offer this reader."""

    systems: Sequence[Option]
    """Kinds of number somebody is looked up by."""
    clinics: Sequence[Option] = ()
    groups: Sequence[Option] = ()
    people: Sequence[Option] = ()
    labels: Sequence[str] = ()
    """Sensitivity codes."""


@dataclass(frozen=True, slots=True)
class Sought:
    """Who is looked up: by number, or by the key of a page that knows them. Never in an address."""

    system: str = ""
    number: str = field(default="", repr=False)
    key: UUID | None = None
    replaces: str = ""
    """Id of the Consent that what is recorded now replaces."""
    version: int | None = None
    refused: UUID | None = None
    """The refused Consent that it says rightly."""
    item: UUID | None = None
    """The work item it is recorded for."""


class Place(StrEnum):
    """What the reader's place has to do with who was looked up."""

    OWN = "own"
    """Their own patient: shown by name."""
    UNKNOWN = "unknown"
    """No record here: what is recorded is kept, and applied when they are identified."""
    FOREIGN = "foreign"
    """Not on the clinic's confirmed panel: nothing is recorded here."""


@dataclass(frozen=True, slots=True)
class Line:
    """One rule of a Consent."""

    permits: bool
    whom: Sequence[str]
    """Names; none: everybody."""
    level: int | None
    labels: Sequence[str]
    """Sensitivity codes; of a restriction: of these alone."""
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Kept:
    """One version of a Consent."""

    id: str
    version: int
    status: str
    recorded: datetime
    by: str
    place: str
    readable: bool
    """Its reader may see what it says."""
    changeable: bool
    """Its reader may withdraw or replace it."""
    computable: bool = True
    disputed: bool = False
    lines: Sequence[Line] = ()
    whole: bool = True
    """The lines say all of it."""
    dated: datetime | None = None
    by_relative: bool = False
    risks: bool | None = None
    signed: bool = False
    source: str = field(default="", repr=False)
    text: str = field(default="", repr=False)
    """As it was sent, without what was attached, where the lines do not say all of it."""

    @property
    def name(self) -> str:
        return f"Consent/{self.id}/_history/{self.version}"

    @property
    def active(self) -> bool:
        return self.status == "active"


@dataclass(frozen=True, slots=True)
class Office:
    """H3: look somebody up, see what is recorded, record what they say."""

    offer: Offer
    today: date
    sought: Sought = Sought()
    place: Place | None = None
    """None: nobody was looked up."""
    person: Person | None = None
    kept: Sequence[Kept] = ()
    entered: Entered = field(default_factory=Entered)
    faults: Mapping[str, str] = field(default_factory=dict)
    """Field → code of what is wrong."""


@dataclass(frozen=True, slots=True)
class ConsentPage:
    """A Consent with its versions, newest first."""

    versions: Sequence[Kept]
    person: Person | None

    @property
    def kept(self) -> Kept:
        return self.versions[0]


# --- what is on hold --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """A work item."""

    id: UUID
    why: Reason
    opened: datetime
    patient: UUID | None
    person: Person | None = None
    sites: Sequence[str] = ()
    late: bool = False
    """Waits longer than its limit."""
    closed: datetime | None = None
    closed_by: str | None = None
    """None: another decision closed it."""
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Holds:
    items: Sequence[Held]
    more: bool = False


@dataclass(frozen=True, slots=True)
class RefusedPaper:
    """A Consent as it was refused."""

    id: UUID
    received: datetime
    place: str
    by: str
    issues: Sequence[tuple[str, str]]
    """Path and rule."""
    text: str = field(repr=False)
    """As it was sent, without what was attached; empty: it cannot be opened."""
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Visit:
    """A visit whose hospital did not say how sensitive it is."""

    encounter: UUID
    site: str
    start: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the two a disputed Consent may be of."""

    key: UUID
    person: Person | None


@dataclass(frozen=True, slots=True)
class Broken:
    """Who broke the glass, or tried to."""

    id: UUID
    person: str
    place: str
    at: datetime
    ground: Ground
    why: str = field(repr=False)
    opened: bool
    ends: datetime | None
    basis: Sequence[str]
    by_policy: bool
    notice: Notice
    reviewed: datetime | None = None
    reviewed_by: str | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class HoldPage:
    """A work item, and what may be done about it."""

    held: Held
    consents: Sequence[Kept] = ()
    refused: Sequence[RefusedPaper] = ()
    visits: Sequence[Visit] = ()
    candidates: Sequence[Candidate] = ()
    labels: Sequence[str] = ()
    broken: Broken | None = None
    entered: Mapping[str, str] = field(default_factory=dict, repr=False)
    faults: Mapping[str, str] = field(default_factory=dict)


# --- the glass --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Glass:
    """The form, and what is wrong with it."""

    offer: Offer
    fresh: bool
    """They signed in a moment ago."""
    minutes: int
    entered: Breaking = field(default_factory=Breaking)
    faults: Mapping[str, str] = field(default_factory=dict)
    shut: bool = False
    """It was complete, and nothing opens."""


@dataclass(frozen=True, slots=True)
class Behind:
    """One patient, read only, until `ends`."""

    person: Person
    why: Why
    ends: datetime
    ground: Ground
    by_policy: bool
