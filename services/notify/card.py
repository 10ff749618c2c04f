"""One card per clinic, patient and episode: when it opens, comes back, and is taken back.

A card is work state: who has it, how far it is, why it was taken back. What it says of the
patient is composed anew at each attempt and view, from a Permit (`compose`), and never stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from uuid import UUID

from services.notify import recount
from services.notify.consent import CEILINGS, Ceilings, Code, Item, Permit
from services.notify.recount import Standing, State, View

NEWS_MAX_AGE: Final = timedelta(hours=72)
"""A moment older than this is listed, not announced (CA-43, NW-22)."""
SNOOZE_LIMIT: Final = timedelta(days=14)
UNDO_WITHIN: Final = timedelta(minutes=30)
DUE_AFTER: Final = timedelta(days=7)
"""The clock is "day n of 7" (nurse-web.md R8)."""


class Status(StrEnum):
    """FHIR Task status; docs/states.md draws them, the table's CHECK holds them."""

    REQUESTED = "requested"
    RECEIVED = "received"
    ACCEPTED = "accepted"
    IN_PROGRESS = "in-progress"
    ON_HOLD = "on-hold"
    COMPLETED = "completed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"


CLOSED: Final = frozenset({Status.COMPLETED, Status.REJECTED})
TAKEN_BACK: Final = frozenset({Status.CANCELLED, Status.ENTERED_IN_ERROR})
UNACCEPTED: Final = frozenset({Status.REQUESTED, Status.RECEIVED})

CLINIC_MAY: Final[Mapping[Status, tuple[Status, ...]]] = MappingProxyType(
    {
        Status.REQUESTED: (
            Status.RECEIVED,
            Status.ACCEPTED,
            Status.IN_PROGRESS,
            Status.ON_HOLD,
            Status.COMPLETED,
            Status.REJECTED,
        ),
        Status.RECEIVED: (
            Status.ACCEPTED,
            Status.IN_PROGRESS,
            Status.ON_HOLD,
            Status.COMPLETED,
            Status.REJECTED,
        ),
        Status.ACCEPTED: (
            Status.IN_PROGRESS,
            Status.ON_HOLD,
            Status.COMPLETED,
            Status.REJECTED,
        ),
        Status.IN_PROGRESS: (
            Status.ACCEPTED,
            Status.IN_PROGRESS,
            Status.ON_HOLD,
            Status.COMPLETED,
            Status.REJECTED,
        ),
        Status.ON_HOLD: (
            Status.ACCEPTED,
            Status.IN_PROGRESS,
            Status.ON_HOLD,
            Status.COMPLETED,
            Status.REJECTED,
        ),
        Status.COMPLETED: (Status.ACCEPTED,),
        Status.REJECTED: (Status.ACCEPTED,),
        Status.CANCELLED: (),
        Status.ENTERED_IN_ERROR: (),
    }
)
"""Clinic API, section 4. From completed and rejected only within UNDO_WITHIN."""

WE_MAY: Final[Mapping[Status, tuple[Status, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(
            (Status.REQUESTED, Status.RECEIVED, Status.ACCEPTED, Status.IN_PROGRESS),
            (Status.CANCELLED, Status.ENTERED_IN_ERROR),
        ),
        **dict.fromkeys(
            (Status.ON_HOLD, Status.COMPLETED, Status.REJECTED),
            (Status.REQUESTED, Status.CANCELLED, Status.ENTERED_IN_ERROR),
        ),
        Status.CANCELLED: (),
        Status.ENTERED_IN_ERROR: (),
    }
)


class Tier(StrEnum):
    """How soon it is shown (NW-12): at once, the same day, in the digest."""

    NOW = "a"
    TODAY = "b"
    DIGEST = "c"


class What(StrEnum):
    """What a card is about (`card-kind`)."""

    THRESHOLD = "threshold-reached"
    LEFT_ED = "left-ed"
    DISCHARGED = "discharged"


class Moment(StrEnum):
    """The last event of the card's episode (`card-input` last-event)."""

    ARRIVED = "arrived-ed"
    LEFT = "left-ed"
    ADMITTED = "admitted"
    DISCHARGED = "discharged"
    DIED = "died"
    CORRECTED = "corrected"


RESURFACING: Final = frozenset({Moment.ADMITTED, Moment.LEFT, Moment.DISCHARGED, Moment.DIED})
"""What brings a card back, unseen, to the top of its tier (NW-11)."""
OPENING: Final[Mapping[Moment, What]] = MappingProxyType(
    {Moment.LEFT: What.LEFT_ED, Moment.DISCHARGED: What.DISCHARGED}
)
"""Moments of a flagged patient that are worth a card by themselves (NW-12, tier B)."""


class Why(StrEnum):
    """Why a card was taken back (CA-30), as `statusReason`."""

    COUNT_CORRECTED = "count-corrected"
    VISIT_CANCELLED = "visit-cancelled"
    MERGED = "merged"
    CONSENT_WITHDRAWN = "consent-withdrawn"
    DECEASED = "deceased"
    PANEL_CHANGED = "panel-changed"
    WRONG_PERSON = "wrong-person"
    NO_LONGER_APPLIES = "no-longer-applies"


STUBBED: Final = frozenset(
    {Why.CONSENT_WITHDRAWN, Why.WRONG_PERSON, Why.PANEL_CHANGED, Why.NO_LONGER_APPLIES}
)
"""After these nothing of the patient may stand on the card any more: it is a stub (CA-32)."""


class Dismissal(StrEnum):
    """Why a nurse closed a card unused (CA-25, NW-16)."""

    PLANNED_CARE = "planned-care"
    ALREADY_KNOWN = "already-known"
    WRONG_CLINIC = "wrong-clinic"
    DECEASED = "deceased"
    DECLINED = "declined"
    NOT_COMPLEX = "not-complex"
    DUPLICATE = "duplicate"
    OTHER = "other"


STAYS_CLOSED: Final = frozenset(
    {
        Dismissal.PLANNED_CARE,
        Dismissal.WRONG_CLINIC,
        Dismissal.DECEASED,
        Dismissal.DECLINED,
        Dismissal.DUPLICATE,
    }
)
"""Closed as one of these, a card does not come back (NW-11)."""


class Cause(StrEnum):
    """Why a standing changed, in screening's words (CT-43)."""

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


RETRACTS: Final[Mapping[Cause, Why]] = MappingProxyType(
    {
        Cause.VOID: Why.VISIT_CANCELLED,
        Cause.CORRECTION: Why.COUNT_CORRECTED,
        Cause.MERGE: Why.MERGED,
        Cause.UNMERGE: Why.WRONG_PERSON,
        Cause.DEATH: Why.DECEASED,
    }
)
NEVER_RETRACTS: Final = frozenset({Cause.DECAY, Cause.HOLD_END, Cause.POLICY})


@dataclass(frozen=True, slots=True)
class Note:
    """A remark on a card. `by` is None for ours; ours are codes with numbers, theirs are text."""

    at: datetime
    text: str = field(repr=False)
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """The work a nurse has with one episode of one patient."""

    id: UUID
    clinic: str
    patient: UUID
    key: str
    """`episode:<key>`, or `flag:<sequence>` for a threshold crossed without one (NW-10)."""
    spell: int
    """Flag sequence at which the patient's present flagged time began."""
    what: What
    tier: Tier
    status: Status
    version: int
    opened: datetime
    updated: datetime
    surfaced: datetime
    """When it last came, or came back, to the top."""
    owner: str | None = None
    """A person of the region file; None: the clinic's pool."""
    due: datetime | None = None
    moment: Moment | None = None
    moment_at: datetime | None = None
    site: str | None = None
    applied: int = 0
    """Sequence of the newest episode change that is in it."""
    seen: datetime | None = None
    closed: datetime | None = None
    snoozed_until: datetime | None = None
    until_discharge: bool = False
    dismissal: Dismissal | None = None
    dismissal_text: str | None = field(default=None, repr=False)
    why: Why | None = None
    by_own_consent: bool = False
    """This clinic captured the Consent that took it back: it may be told so (CS-43)."""
    surviving: UUID | None = None
    """Merged: the surviving patient's card at this clinic."""
    notes: tuple[Note, ...] = field(default=(), repr=False)
    outputs: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    before: Mapping[str, str | None] | None = None
    """Owner, status and due before it was closed, for undo (NW-14)."""
    shown: bool = False
    """It once reached the clinic's EMR: delivered, read or found."""
    inbox: bool = True
    """The shared inbox may see it; else only single readers may (CS-33). Decided again anyway."""

    @property
    def is_open(self) -> bool:
        return self.status not in CLOSED and self.status not in TAKEN_BACK


def episode_key(episode: UUID | None, spell: int) -> str:
    return f"flag:{spell}" if episode is None else f"episode:{episode}"


@dataclass(frozen=True, slots=True)
class EpisodeNews:
    """The newest state of one care episode (`episode.changed`)."""

    episode: UUID
    sequence: int
    moment: Moment
    at: datetime
    site: str
    in_hospital: bool
    ended: bool
    void: bool
    encounters: tuple[UUID, ...]
    joined_into: UUID | None = None
    labels: frozenset[Code] | None = field(default=None, repr=False)
    """Of all its encounters; None if any is not assessed."""

    @property
    def items(self) -> tuple[Item, ...]:
        """What a moment of it tells: that each of its encounters was (CS-44)."""
        return tuple(
            Item(
                id=f"Encounter/{key}",
                kind="Encounter",
                custodian=f"Organization/{self.site}",
                labels=self.labels,
                encounter=f"Encounter/{key}",
            )
            for key in self.encounters
        )

    def visible_to(self, released: frozenset[str]) -> bool:
        return all(f"Encounter/{key}" in released for key in self.encounters)


def compose(standing: Standing, permit: Permit, ceilings: Ceilings = CEILINGS) -> View:
    """What a card of `standing` says to the holder of `permit`: counted from what it releases,
    and of each visit no more than its level (CS-45).
    """
    details = recount.details(standing, permit.findings, ceilings)
    return recount.see(standing, permit.released, permit.at, details)


def opens(news: EpisodeNews, view: View, now: datetime) -> What | None:
    """Whether a moment of a flagged patient's episode opens a card, and of what (NW-12)."""
    if view.state is not State.FLAGGED or news.void or news.joined_into is not None:
        return None
    if now - news.at > NEWS_MAX_AGE:
        return None
    if news.moment is Moment.LEFT and news.in_hospital:
        return None  # left the ED by admission: the discharge will open it
    return OPENING.get(news.moment)


def brought_up_to(card: Card, news: EpisodeNews, now: datetime) -> Card:
    """`card` after a later moment of its episode; the same card if it is not later (NW-11)."""
    if news.sequence <= card.applied or card.status in TAKEN_BACK:
        return card
    known = replace(
        card, applied=news.sequence, moment=news.moment, moment_at=news.at, site=news.site
    )
    by_admission = news.moment is Moment.LEFT and news.in_hospital
    announced = news.moment in RESURFACING and now - news.at <= NEWS_MAX_AGE
    if not announced or by_admission or card.moment is news.moment:
        return known
    if card.status is Status.REQUESTED and card.seen is None and news.at <= card.opened:
        return known  # it happened before the card came; nobody has looked at it yet
    if card.status in CLOSED and card.dismissal in STAYS_CLOSED:
        return known
    what = OPENING.get(news.moment, card.what) if card.what is not What.THRESHOLD else card.what
    back = replace(known, surfaced=now, seen=None, what=what)
    if card.status in CLOSED or card.status is Status.ON_HOLD:
        return replace(
            back,
            status=Status.REQUESTED,
            closed=None,
            snoozed_until=None,
            until_discharge=False,
            dismissal=None,
            dismissal_text=None,
        )
    return back


def awakened(card: Card, now: datetime) -> Card:
    """`card` if its snooze is over (NW-15), else the same."""
    if card.status is Status.ON_HOLD and card.snoozed_until and card.snoozed_until <= now:
        return replace(
            card,
            status=Status.REQUESTED,
            surfaced=now,
            seen=None,
            snoozed_until=None,
            until_discharge=False,
        )
    return card


def reason_to_take_back(cause: Cause, *, retracts: bool, merged: bool) -> Why | None:
    """Of a standing that is no longer flagged: why its cards fall, or None if they stay.

    DECAY, HOLD_END and POLICY never cancel a card (CA-30), nor does a fall of a flag that was
    true while it stood.
    """
    if cause in NEVER_RETRACTS:
        return None
    if merged:
        return Why.MERGED
    if cause in {Cause.DEATH, Cause.UNMERGE} or retracts:
        return RETRACTS.get(cause, Why.NO_LONGER_APPLIES)
    return None


def taken_back(card: Card, why: Why, now: datetime) -> Card:
    """`card` retracted, or kept with a note if it was accepted or is closed (CA-31, CA-32)."""
    if card.status in TAKEN_BACK:
        return card
    if why is Why.WRONG_PERSON:
        return replace(card, status=Status.ENTERED_IN_ERROR, why=why, closed=now)
    if why in STUBBED or why is Why.MERGED or card.status in UNACCEPTED:
        return replace(card, status=Status.CANCELLED, why=why, closed=now)
    return card


def noted(card: Card, text: str, now: datetime) -> Card:
    """`card` with a note of ours, once."""
    if any(note.by is None and note.text == text for note in card.notes):
        return card
    return replace(card, notes=(*card.notes, Note(now, text)))


def correction_note(before: Mapping[str, int], after: Mapping[str, int]) -> str | None:
    """Of the first kind that fell: `count corrected from 4 to 3` (CA-31)."""
    for kind in sorted(before):
        if after.get(kind, 0) < before[kind]:
            return f"count corrected from {before[kind]} to {after.get(kind, 0)}"
    return None


def is_stub(card: Card) -> bool:
    """Whether nothing but its state may be shown of it any more (CA-32)."""
    return card.status in TAKEN_BACK and (card.why in STUBBED or card.why is None)


def shown_reason(card: Card) -> Why | None:
    """What the recipient reads: a withdrawal only where this clinic captured it (CS-43)."""
    if card.why is Why.CONSENT_WITHDRAWN and not card.by_own_consent:
        return Why.NO_LONGER_APPLIES
    return card.why


# --- what a clinic may do with a card (clinic-api.md section 4) ---------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody at the clinic wants of a card; what is None or empty stays as it is."""

    status: Status | None = None
    owner: str | None = None
    """A person of the clinic."""
    to_pool: bool = False
    """Back to the clinic's pool: no owner."""
    dismissal: Dismissal | None = None
    dismissal_text: str | None = field(default=None, repr=False)
    snooze_until: datetime | None = None
    until_discharge: bool = False
    notes: tuple[str, ...] = field(default=(), repr=False)
    outputs: tuple[Mapping[str, object], ...] = field(default=(), repr=False)


class NotAllowedError(Exception):
    """The card stays as it is. `element` is the Task's; the text says what would be allowed."""

    def __init__(self, element: str, text: str, code: str = "business-rule") -> None:
        super().__init__(text)
        self.element = element
        self.text = text
        self.code = code


NOT_STATED: Final[Mapping[str, object]] = MappingProxyType({"outcome": "not-stated"})
"""The outcome of a card that was completed without saying one; it is measured (CA-25)."""


def allowed(card: Card, now: datetime) -> tuple[Status, ...]:
    """What a clinic may set from here, now."""
    if card.status in CLOSED and (card.closed is None or now - card.closed > UNDO_WITHIN):
        return ()
    return CLINIC_MAY[card.status]


def acknowledged(card: Card, ask: Ask, now: datetime, by: str) -> Card:
    """`card` as the clinic wants it; the same object if that is how it is already (CA-21).

    NotAllowedError: nothing of it is applied.
    """
    if card.status in TAKEN_BACK:
        raise NotAllowedError("Task.status", "This card was taken back: nothing can be changed.")
    after = _moved(card, ask, now)
    if ask.to_pool and card.owner is not None:
        after = replace(after, owner=None)
    elif ask.owner is not None and ask.owner != card.owner:
        after = replace(after, owner=ask.owner)
    if ask.notes:
        said = tuple(Note(now, text, by) for text in ask.notes)
        after = replace(after, notes=(*after.notes, *said))
    return after


def _moved(card: Card, ask: Ask, now: datetime) -> Card:
    snoozes = ask.snooze_until is not None or ask.until_discharge
    to = ask.status or (card.status if snoozes or ask.dismissal is not None else None)
    if snoozes and to is not Status.ON_HOLD:
        raise NotAllowedError("Task.extension", "snooze-until goes with status on-hold.")
    if ask.dismissal is not None and to is not Status.REJECTED:
        raise NotAllowedError("Task.statusReason", "A reason goes with status rejected.")
    if to is None or (to is card.status and not _says_more(card, ask)):
        if ask.outputs:
            return replace(card, outputs=(*card.outputs, *ask.outputs))
        return card
    if to not in allowed(card, now) and to is not card.status:
        names = ", ".join(allowed(card, now)) or "nothing"
        raise NotAllowedError("Task.status", f"From {card.status} the clinic may set: {names}.")
    if to is Status.ACCEPTED and card.status in CLOSED:
        return _undone(card)
    after = replace(
        card,
        status=to,
        seen=card.seen or now,  # a skipped step has the same time (CA-23)
        closed=now if to in CLOSED else None,
        snoozed_until=None,
        until_discharge=False,
        dismissal=None,
        dismissal_text=None,
    )
    if to in CLOSED:
        due = None if card.due is None else card.due.isoformat()
        after = replace(after, before={"status": str(card.status), "owner": card.owner, "due": due})
    if to is Status.REJECTED:
        return _dismissed(after, ask)
    if to is Status.ON_HOLD:
        return _snoozed(after, ask, now)
    if to is Status.COMPLETED:
        said = ask.outputs or (() if card.outputs else (NOT_STATED,))
        return replace(after, outputs=(*card.outputs, *said))
    return after if not ask.outputs else replace(after, outputs=(*card.outputs, *ask.outputs))


def _says_more(card: Card, ask: Ask) -> bool:
    """Whether the same status is set with something new about it."""
    if card.status is Status.ON_HOLD:
        later = ask.snooze_until is not None and ask.snooze_until != card.snoozed_until
        return later or (ask.until_discharge and not card.until_discharge)
    if card.status is Status.REJECTED:
        return ask.dismissal is not None and ask.dismissal is not card.dismissal
    return False


def _undone(card: Card) -> Card:
    """Undo restores owner and due (NW-14)."""
    before = card.before or {}
    due = before.get("due")
    return replace(
        card,
        status=Status.ACCEPTED,
        closed=None,
        dismissal=None,
        dismissal_text=None,
        owner=before.get("owner") or card.owner,
        due=card.due if due is None else datetime.fromisoformat(due),
        before=None,
    )


def _dismissed(card: Card, ask: Ask) -> Card:
    if ask.dismissal is None:
        names = ", ".join(Dismissal)
        raise NotAllowedError("Task.statusReason", f"Say why, as one of: {names}.", "required")
    text = (ask.dismissal_text or "").strip()
    if ask.dismissal is Dismissal.OTHER and len(text) < 3:
        raise NotAllowedError(
            "Task.statusReason.text", "With `other`, say why in 3 characters or more.", "required"
        )
    return replace(card, dismissal=ask.dismissal, dismissal_text=text or None)


def _snoozed(card: Card, ask: Ask, now: datetime) -> Card:
    limit = now + SNOOZE_LIMIT
    until = ask.snooze_until or limit
    if until > limit:
        raise NotAllowedError("Task.extension", "A card sleeps 14 days at most.")
    if until <= now:
        raise NotAllowedError("Task.extension", "A card sleeps until a time to come.", "value")
    return replace(card, snoozed_until=until, until_discharge=ask.until_discharge)


# --- what becomes of a patient's cards at one clinic ------------------------------------------


class Event(StrEnum):
    """What a clinic's system is told of a card (CA-50)."""

    OPENED = "opened"
    RESURFACED = "re-surfaced"
    CHANGED = "changed"
    RETRACTED = "retracted"


@dataclass(frozen=True, slots=True)
class Situation:
    """All that settles one patient's cards at one clinic, at one instant."""

    clinic: str
    patient: UUID
    now: datetime
    routed: bool
    """A confirmed panel row is in force."""
    owner: str | None
    view: View | None
    """Of the first who may be told; None: nobody may."""
    released: frozenset[str]
    on_hold: bool
    by_own_consent: bool
    """The clinic itself captured the Consent that refuses."""
    inbox: bool
    standing: Standing
    cause: Cause
    retracts: bool
    merged: bool
    spell: int
    quiet: bool
    """The present flagged time began quietly (CT-42)."""
    newly_told: bool
    """By a Consent, a panel row or the calendar it may be told now, and could not before."""
    episodes: Sequence[EpisodeNews]
    said_otherwise: bool
    """What a card says of the standing differs from what it said when last settled."""
    counts_before: Mapping[str, int]
    reads_otherwise: bool
    """What may be told of the same standing is more, or less, or of another level."""
    due: Callable[[datetime], datetime]


def settle(s: Situation, cards: Sequence[Card], new_id: Callable[[], UUID]) -> dict[UUID, Card]:
    """The cards that are new or changed. `cards`: all the clinic has of this patient, of
    retired keys too. Nothing here has a version yet.
    """
    found = {c.id: c for c in cards}
    for card in cards:
        if card.patient != s.patient:
            found[card.id] = taken_back(card, Why.MERGED, s.now)
        elif s.view is None or not s.routed:
            found[card.id] = _refused(card, s)
    if s.view is not None and s.routed:
        own = [c for c in cards if c.patient == s.patient]
        found |= {c.id: c for c in _settle_told(s, s.view, own, new_id)}
    before = {c.id: c for c in cards}
    return {id_: c for id_, c in found.items() if before.get(id_) is not c}


def _refused(card: Card, s: Situation) -> Card:
    if card.status in TAKEN_BACK:
        return card
    if not s.routed:
        why = Why.PANEL_CHANGED
    else:
        why = Why.NO_LONGER_APPLIES if s.on_hold else Why.CONSENT_WITHDRAWN
    return replace(taken_back(card, why, s.now), by_own_consent=s.by_own_consent)


def _settle_told(
    s: Situation, view: View, own: Sequence[Card], new_id: Callable[[], UUID]
) -> list[Card]:
    flagged = view.state is State.FLAGGED
    cards = [awakened(card, s.now) for card in own]
    if not flagged and not view.whole:
        return [taken_back(card, Why.NO_LONGER_APPLIES, s.now) for card in cards]
    cards = [_after_change(card, s, view) for card in cards]
    for news in s.episodes:
        cards = _after_news(cards, news, s, view, new_id)
    if flagged and _crossed(s, cards):
        cards = _with_threshold(cards, s, new_id)
    return [replace(c, inbox=s.inbox) if c.inbox != s.inbox and c.is_open else c for c in cards]


def _after_change(card: Card, s: Situation, view: View) -> Card:
    """The standing changed: is the card still true, and what must be said on it?"""
    if card.status in TAKEN_BACK:
        return card
    if not s.said_otherwise:
        return replace(card) if s.reads_otherwise else card
    counts = {str(kind): view.count(kind) for kind in recount.Kind}
    corrected = s.cause in {Cause.CORRECTION, Cause.VOID, Cause.MERGE, Cause.UNMERGE}
    text = correction_note(s.counts_before, counts) if corrected else None
    if view.state is not State.FLAGGED:
        why = reason_to_take_back(s.cause, retracts=s.retracts, merged=s.merged)
        if why is not None:
            after = taken_back(card, why, s.now)
            if after.status in TAKEN_BACK:
                return after
            return noted(card, text or str(why), s.now)
        return noted(card, f"no longer flagged: {s.cause}", s.now)
    if text is not None:
        return noted(card, text, s.now)
    return replace(card)  # as it was, in a new version: what it says has changed


def _after_news(
    cards: Sequence[Card],
    news: EpisodeNews,
    s: Situation,
    view: View,
    new_id: Callable[[], UUID],
) -> list[Card]:
    key = f"episode:{news.episode}"
    alive = [c for c in cards if c.key == key and c.status not in TAKEN_BACK]
    others = [c for c in cards if c not in alive]
    if news.joined_into is not None:
        return others + [_joined(c, news.joined_into, others, s.now) for c in alive]
    if news.void:
        return others + [
            c if c.what is What.THRESHOLD else taken_back(c, Why.VISIT_CANCELLED, s.now)
            for c in alive
        ]
    if alive:
        return others + [brought_up_to(c, news, s.now) for c in alive]
    what = opens(news, view, s.now)
    taken = any(c.key == key and c.applied >= news.sequence for c in cards)
    if what is None or not news.visible_to(s.released) or (taken and not s.newly_told):
        return list(cards)
    return [*cards, _opened(s, key, what, new_id, news)]


def _joined(card: Card, into: UUID, others: Sequence[Card], now: datetime) -> Card:
    """Its episode is part of an older one: the card goes with it, unless that has one (CT-26)."""
    key = f"episode:{into}"
    if any(c.key == key and c.status not in TAKEN_BACK for c in others):
        return taken_back(card, Why.NO_LONGER_APPLIES, now)
    return replace(card, key=key)


def _crossed(s: Situation, cards: Sequence[Card]) -> bool:
    """Whether a threshold card is due: once in a flagged time, quiet entries excepted; and when
    it may first be told (CA-43).
    """
    of_spell = [c for c in cards if c.spell == s.spell and c.what is What.THRESHOLD]
    if any(c.status not in TAKEN_BACK for c in of_spell):
        return False
    if s.newly_told:
        return True
    return not s.quiet and not of_spell


def _with_threshold(cards: Sequence[Card], s: Situation, new_id: Callable[[], UUID]) -> list[Card]:
    """A threshold crossed during an episode joins that episode's card (NW-10)."""
    key = episode_key(s.standing.episode, s.spell)
    news = next((n for n in s.episodes if f"episode:{n.episode}" == key), None)
    for card in cards:
        if card.key == key and card.status not in TAKEN_BACK:
            joined = replace(card, what=What.THRESHOLD, spell=s.spell, surfaced=s.now, seen=None)
            return [joined if c is card else c for c in cards]
    visible = news if news is not None and news.visible_to(s.released) else None
    return [*cards, _opened(s, key, What.THRESHOLD, new_id, visible)]


def _opened(
    s: Situation, key: str, what: What, new_id: Callable[[], UUID], news: EpisodeNews | None
) -> Card:
    return Card(
        id=new_id(),
        clinic=s.clinic,
        patient=s.patient,
        key=key,
        spell=s.spell,
        what=what,
        tier=Tier.TODAY,
        status=Status.REQUESTED,
        version=0,
        opened=s.now,
        updated=s.now,
        surfaced=s.now,
        owner=s.owner,
        due=s.due(s.now),
        moment=None if news is None else news.moment,
        moment_at=None if news is None else news.at,
        site=None if news is None else news.site,
        applied=0 if news is None else news.sequence,
        inbox=s.inbox,
    )


def event_of(before: Card | None, after: Card) -> Event:
    """What the clinic is told of a change."""
    if before is None:
        return Event.OPENED
    if after.status in TAKEN_BACK:
        return Event.RETRACTED
    return Event.RESURFACED if after.surfaced != before.surfaced else Event.CHANGED


def in_order(cards: Sequence[Card]) -> list[Card]:
    """As a nurse reads them: tier, then the last to come to the top, then by id."""
    return sorted(cards, key=lambda c: (c.tier, -c.surfaced.timestamp(), str(c.id)))
