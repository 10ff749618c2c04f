"""What the pages show, as plain values.

Whoever makes one has decided consent for this reader at this instant (NW-02): a view holds only
what may be seen, at the level permitted, and a template looks nothing up. A view is made for one
answer and kept nowhere. `repr` shows no one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from services.notify.incident import Entered as IncidentEntered
from services.notify.incident import Risk


class Role(StrEnum):
    """Who a person is here; the codes are those of the region file (nurse-web.md section 3)."""

    CLINIC_CM = "clinic_cm"
    HOSP_CM = "hosp_cm"
    PHYSICIAN = "physician"
    LEAD_MD = "lead_md"
    CLINIC_MANAGER = "clinic_manager"
    COORDINATOR = "coordinator"
    MANAGER = "manager"
    OPS = "ops"
    PRIVACY = "privacy"


class Tier(StrEnum):
    """How soon (NW-12)."""

    NOW = "a"
    TODAY = "b"
    DIGEST = "c"


class Happening(StrEnum):
    """What the card is about."""

    ED_ARRIVAL = "ed_arrival"
    ED_DEPARTURE = "ed_departure"
    ADMITTED = "admitted"
    DISCHARGED = "discharged"
    DIED = "died"
    THRESHOLD = "threshold"
    WATCH = "watch"
    BELOW = "below"


class Progress(StrEnum):
    """Where the work on a card stands (NW-13)."""

    NEW = "new"
    SEEN = "seen"
    MINE = "mine"
    SLEEP = "sleep"
    CLOSED = "closed"


class Measure(StrEnum):
    ED = "ed"
    ED_SITES = "sites"
    HOSPITAL = "hosp"
    HOSPITAL_DAYS = "nights"


class Standing(StrEnum):
    BELOW = "below"
    WATCH = "watch"
    FLAGGED = "flagged"


class Ground(StrEnum):
    """On what the reader may see the card: what the person said, or the region's default."""

    GIVEN = "given"
    IMPLIED = "implied"


class Outcome(StrEnum):
    WITHHOLD = "withhold"
    HOLD = "hold"


class Channel(StrEnum):
    """How a recipient was told."""

    PAGE = "page"
    PULLED = "pulled"
    PUSHED = "pushed"


class Filter(StrEnum):
    """Which open cards the list shows (N1); the value is also the query's."""

    ALL = "all"
    MINE = "mine"
    UNASSIGNED = "unassigned"


class Order(StrEnum):
    """How the table of tier B is sorted; the value is also the query's."""

    LATEST = "latest"
    DUE = "due"
    PATIENT = "patient"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class Person:
    """A patient, as far as the permit and the clinic's own panel say who it is."""

    family: str = field(repr=False)
    given: str = field(repr=False)
    born: date | None = field(default=None, repr=False)
    age: int | None = field(default=None, repr=False)
    """Whole years."""
    gender: str | None = field(default=None, repr=False)
    """FHIR administrative gender."""
    card_ends: str | None = field(default=None, repr=False)
    """Last four characters of the health-card number."""
    speaks: str | None = None
    """Preferred language, if it is not the clinic's."""

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.family, self.given) if part)


@dataclass(frozen=True, slots=True)
class Crossing:
    """`count`th event of a kind in `days` days, where `at_least` were enough."""

    measure: Measure
    count: int
    at_least: int
    days: int = 365


@dataclass(frozen=True, slots=True)
class Site:
    """A hospital, and how fresh its data are (NW-30)."""

    name: str
    connected: bool = True
    data_from: datetime | None = None
    heard: datetime | None = None
    """When its newest message came in."""
    silent: bool = False
    """Longer without a message than its limit."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the region what is shown rests on."""

    sites: Sequence[Site] = ()

    @property
    def connected(self) -> int:
        return sum(site.connected for site in self.sites)

    @property
    def silent(self) -> Sequence[Site]:
        return [site for site in self.sites if site.silent]

    @property
    def heard(self) -> datetime | None:
        return max((site.heard for site in self.sites if site.heard), default=None)


@dataclass(frozen=True, slots=True)
class Card:
    """One card in the list, for one reader."""

    key: UUID
    version: int
    """Goes into the form: a decision on an older state is refused (NW-14)."""
    tier: Tier
    happening: Happening
    at: datetime
    """When it happened."""
    person: Person
    progress: Progress
    site: str | None = None
    crossing: Crossing | None = None
    ground: Ground = Ground.IMPLIED
    level: int = 1
    """1 to 3 (CS-44)."""
    day: int | None = None
    """Day n of 7 since departure; None while nobody has departed."""
    due: datetime | None = None
    late_days: int = 0
    owner: str | None = None
    """None: the clinic's group."""
    mine: bool = False
    """The reader is its owner, whether or not they have taken it on."""
    takeable: bool = False
    """It is open, and the reader does not have it in hand already."""
    retracted: str | None = None
    """Why it was taken back (CA-30)."""


@dataclass(frozen=True, slots=True)
class MyList:
    """N1. `cards` are those of `chosen`; `counts` are of every filter."""

    cards: Sequence[Card]
    counts: dict[Filter, int]
    due_now: int = 0
    """Open cards of tier A under any filter; so too the next."""
    due_today: int = 0
    snoozed: int = 0
    chosen: Filter = Filter.ALL
    order: Order = Order.LATEST

    def tier(self, tier: Tier) -> Sequence[Card]:
        return [card for card in self.cards if card.tier is tier]


@dataclass(frozen=True, slots=True)
class Item:
    """An ED visit or hospital stay that was looked at, counted or not (CT-60)."""

    kind: Measure
    start: datetime
    end: datetime | None
    sites: Sequence[str]
    counted: bool
    day_only: bool = False
    """The hospital sent a date without a time."""
    reason: str | None = None
    """Code of why not counted."""
    rule: str | None = None
    """Its spec id."""
    notes: Sequence[str] = ()
    """Codes of rules that applied all the same."""
    encounters: int = 1
    causes: Sequence[str] = field(default=(), repr=False)
    """Why they came, as codes; from L2 on."""
    ended: Sequence[str] = field(default=(), repr=False)
    """Codes of how each encounter ended; from L2 on."""
    summaries: Sequence[UUID] = ()
    """Of encounters whose discharge summary may be asked for: our key; at L3."""


@dataclass(frozen=True, slots=True)
class Clause:
    measure: Measure
    count: int
    at_least: int
    met: bool
    days: int
    will_be: int | None = None
    """What the count becomes at the next change, if that changes it."""
    earlier: Sequence[int] = ()
    """The same count in the adjoining periods before, newest first, if the rule asks for them."""


@dataclass(frozen=True, slots=True)
class Why:
    """Why a person is listed, as the reader may know it (CS-40)."""

    standing: Standing
    clauses: Sequence[Clause]
    items: Sequence[Item]
    policy: str
    policy_version: int
    after: datetime
    until: datetime
    held: bool = False
    since: datetime | None = None
    hold_until: datetime | None = None
    changes_at: datetime | None = None
    changes_to: Standing | None = None
    crossing: Crossing | None = None
    complete: bool = True
    """False: the counts are a lower bound, and shown so (CT-61)."""
    palliative: bool = False
    """No frequent-user wording (CR-26)."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done with a card."""

    at: datetime
    progress: Progress
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that stands on a card. With none of the fields: the person is below again."""

    at: datetime
    text: str = field(default="", repr=False)
    by: str | None = None
    """Who wrote the text."""
    before: int | None = None
    after: int | None = None
    """A count that was corrected, from and to (CA-31)."""
    code: str | None = None
    """Of a reason to take a card back, where the card stays."""


@dataclass(frozen=True, slots=True)
class CardPage:
    """N2, as far as this issue goes: the card, and why."""

    card: Card
    why: Why | None
    history: Sequence[Step] = ()
    remarks: Sequence[Remark] = ()


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What a person last said of a visit: that it is not to count, or after all (CT-17)."""

    version: int
    """Goes into the form: on an older one nothing is done (NW-14)."""
    excluded: bool
    at: datetime
    by: str | None
    reason: str | None
    note: str = field(repr=False)
    waits: bool = False
    """What is shown was counted before it."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A visit to the reader's own hospital, as each thing it counts as or might."""

    key: UUID
    start: datetime
    items: Sequence[Item]
    exclusion: Exclusion | None = None

    @property
    def excluded(self) -> bool:
        return self.exclusion is not None and self.exclusion.excluded


@dataclass(frozen=True, slots=True)
class Followed:
    """A patient of the reader's hospital whose visits are counted."""

    key: UUID
    person: Person
    standing: Standing
    visits: int
    """Visits to this hospital that the reader may see."""
    excluded: int
    """How many of them a person took out of the count."""
    latest: datetime


@dataclass(frozen=True, slots=True)
class Patients:
    """H1, as far as this issue goes: those of whom there is news first."""

    people: Sequence[Followed]
    more: bool = False


@dataclass(frozen=True, slots=True)
class PatientPage:
    """H2, as far as this issue goes: the visits to the reader's hospital, and which count."""

    key: UUID
    person: Person
    standing: Standing
    counted_at: datetime
    policy: str
    policy_version: int
    visits: Sequence[Visit]

    def visit(self, key: UUID) -> Visit | None:
        return next((one for one in self.visits if one.key == key), None)


@dataclass(frozen=True, slots=True)
class Entered:
    """What a person put into a form, given back to them (NW-32)."""

    reason: str = ""
    note: str = field(default="", repr=False)
    lacks: frozenset[str] = frozenset()
    """Fields that are not filled in as they must be."""
    overtaken: bool = False
    """Somebody else was faster; nothing was done (NW-14)."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The card is not as the form thought (NW-14)."""

    card: Card
    changed: Step | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One of several to choose from."""

    value: str
    name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody was not told (O5)."""

    at: datetime
    patient: UUID
    recipient: str
    outcome: Outcome
    reasons: Sequence[str]
    person: Person | None = None
    basis: Sequence[str] = ()
    """The Consent versions that spoke; none: the region's default did."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """Somebody was told (O5)."""

    at: datetime
    patient: UUID
    recipient: str
    channel: Channel
    person: Person | None = None
    by: str | None = None
    """Who read it, where a person did."""
    level: int = 1
    basis: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Register:
    """O5; the newest of each first."""

    refusals: Sequence[Refusal]
    disclosures: Sequence[Disclosure]
    people: Sequence[Option] = ()
    """Whom it can be searched by."""
    patient: UUID | None = None
    """Only those of this patient, who was searched for."""
    person: str | None = None
    """Only those to this person of the region, who was searched for."""
    more: bool = False

    @property
    def sought(self) -> bool:
        return self.patient is not None or self.person is not None


@dataclass(frozen=True, slots=True)
class Report:
    """Who was told what about one patient, to be printed and handed over (CS-114)."""

    text: str = field(repr=False)
    language: str
    for_patient: bool


@dataclass(frozen=True, slots=True)
class IncidentLine:
    """An incident in the register, as it is now."""

    id: UUID
    number: int
    opened: datetime
    known: date
    """When the organisation learnt of it."""
    persons: int | None
    risk: Risk
    closed: bool


@dataclass(frozen=True, slots=True)
class IncidentVersion:
    """Who recorded what was known then."""

    version: int
    at: datetime
    by: str | None
    closed: bool


@dataclass(frozen=True, slots=True)
class IncidentPage:
    """One incident, as a form; without an id it is a new one."""

    id: UUID | None = None
    number: int | None = None
    version: int = 0
    entered: IncidentEntered = field(default_factory=IncidentEntered)
    versions: Sequence[IncidentVersion] = ()
