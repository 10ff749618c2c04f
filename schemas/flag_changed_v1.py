"""screening → notify: where a patient stands, and everything needed to say why."""

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, Field

from schemas.encounter_recorded_v1 import Disposition
from schemas.envelope import Coding, Event, Part, Site


class State(StrEnum):
    BELOW = "below"
    WATCH = "watch"
    FLAGGED = "flagged"


class Notice(StrEnum):
    """Whether the change is worth a card by itself (CT-42)."""

    ALERT = "alert"
    QUIET = "quiet"


class Cause(StrEnum):
    EVENT = "EVENT"
    BACKFILL = "BACKFILL"
    CORRECTION = "CORRECTION"
    VOID = "VOID"
    MERGE = "MERGE"
    UNMERGE = "UNMERGE"
    DEATH = "DEATH"
    ELIGIBILITY = "ELIGIBILITY"
    DECAY = "DECAY"
    HOLD_END = "HOLD_END"
    POLICY = "POLICY"


class Measure(StrEnum):
    ED_VISITS = "ed_visits"
    HOSPITAL_EPISODES = "hospital_episodes"


class Tally(StrEnum):
    """What of the units of its measure a clause counts (CT-31)."""

    UNITS = "units"
    SITES = "sites"
    """The different sites of the ED visits."""
    DAYS = "days"
    """The local midnights inside the episodes, at least one each."""


class Kind(StrEnum):
    ED = "ed"
    HOSPITAL = "hospital"


class Clause(Part):
    """One condition of the policy and how it stands."""

    measure: Measure
    count: int
    at_least: int
    met: bool
    state: State = State.FLAGGED
    """The state this clause leads to: `flagged`, or `watch`."""
    days: int
    """Length of the clause's window, days of 24 h."""
    tally: Tally = Tally.UNITS
    earlier: tuple[int, ...] = ()
    """Counts in the windows that adjoin it before, newest first, if the policy asks for several
    (`consecutive`). `count` and `met` are of the newest.
    """


class Note(Part):
    """A rule that applied: its spec id if it has one, its code, and where known the gap."""

    code: str
    rule: str | None = None
    gap: str | None = None
    """ISO 8601 duration."""


class Counted(Part):
    """One encounter inside an item. None = not assessed or unknown."""

    key: UUID
    site: Site
    start: AwareDatetime
    end: AwareDatetime | None
    labels: tuple[Coding, ...] | None = Field(default=None, repr=False)
    codes: tuple[Coding, ...] | None = Field(default=None, repr=False)
    disposition: Disposition | None = None


class Item(Part):
    """An ED visit or a hospital episode that was considered, counted or not (CT-60)."""

    kind: Kind
    anchor: AwareDatetime
    end: AwareDatetime | None
    precision: str = "instant"
    sites: tuple[Site, ...]
    encounters: tuple[Counted, ...]
    counted: bool
    reason: Note | None = None
    """Why not counted."""
    notes: tuple[Note, ...] = ()


class NextChange(Part):
    """The first instant at which counts or state change without a new event (CT-46)."""

    at: AwareDatetime
    ed_visits: int
    hospital_episodes: int
    state: State
    held: bool
    counts: tuple[int, ...] = ()
    """Of each clause, in their order; empty: not stated."""


class SiteCoverage(Part):
    site: Site
    data_from: AwareDatetime | None
    """None: not connected."""
    last_event: AwareDatetime | None = None


class Coverage(Part):
    """How much of the region the counts rest on (CT-61)."""

    known_sites: int
    connected_sites: int
    complete: bool
    sites: tuple[SiteCoverage, ...]


class PolicyRef(Part):
    name: str
    version: int
    sha256: str


class Explanation(Part):
    """A patient's standing at an instant, item by item (counting.md section 8)."""

    patient: UUID
    sequence: int
    """Of the last announced change; 0 if there was none."""
    as_of: AwareDatetime
    known_at: AwareDatetime
    policy: PolicyRef
    window_after: AwareDatetime
    """The items are of all that a clause can look back to: the longest window, and of those
    `consecutive`.
    """
    window_until: AwareDatetime
    window_days: int | None = None
    """Days of 24 h in which visits and episodes are counted where no clause says otherwise."""
    consecutive: int = 1
    """In how many adjoining windows the clauses must be met (CT-31)."""
    timezone: str | None = None
    """The policy's: whose midnights make a hospital day."""
    state: State
    held: bool
    since: AwareDatetime | None
    """Instant at which the present state's condition was first met; None if below."""
    hold_until: AwareDatetime | None = None
    hold_days: int = 0
    notice: Notice | None = None
    cause: Cause | None = None
    episode: UUID | None = None
    """Key of the open care episode of the crossing event (CT-26)."""
    pathway: str | None = None
    """`palliative`: no frequent-user wording (CR-26)."""
    clauses: tuple[Clause, ...]
    flag_when: str = "any"
    """`any` or `all` of the clauses that lead to `flagged`."""
    watch_when: str = "any"
    """The same of those that lead to `watch`."""
    next_change: NextChange | None = None
    items: tuple[Item, ...]
    """Newest first, then by key."""
    outside_window: int = 0
    entered_in_error: int = 0
    coverage: Coverage
    notes: tuple[Note, ...] = ()
    """Of the person, whatever the counts: `DEATH`, `AGE`, `AGE_UNKNOWN` (CR-28, CR-47)."""


class FlagChanged(Event):
    """Sent when anything an explanation says changes, of a patient who is or was until now
    watch or flagged (CT-43).
    """

    type: ClassVar[str] = "flag.changed.v1"
    source: ClassVar[str] = "screening"

    patient: UUID
    sequence: int = Field(ge=1)
    """Per patient; what is older than the newest known is ignored."""
    explanation: Explanation
    cause: Cause
    notice: Notice
    retracts: int | None = None
    """Sequence of the announced flag that, on present facts, was never true (CT-44)."""
    merged_into: UUID | None = None
    """This key is retired; the survivor has a standing of its own."""
    received: AwareDatetime | None = None
    """When ingest committed the fact that caused it; None if no fact did."""
    counted: AwareDatetime
    """When screening decided."""
    changed: AwareDatetime
    """Business instant from which the new standing holds."""

    @property
    def subject(self) -> UUID:
        return self.patient
