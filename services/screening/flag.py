"""Below, watch or flagged; since when; is it news: counting.md section 5.

No earlier state is an input. A standing is found by walking the patient's own history, so
the same facts give the same answer in whatever order they came, and a flag that was never
true leaves no trace (CT-44).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from uuid import UUID

from services.screening import episodes, measures, why
from services.screening.ledger import (
    VOID,
    Disposition,
    History,
    Ledger,
    Link,
    gather,
    in_force,
    survivor,
)
from services.screening.measures import Counted
from services.screening.policy import Clause, Condition, Measure, Policy
from services.screening.why import Judged, Why


class State(StrEnum):
    BELOW = "below"
    WATCH = "watch"
    FLAGGED = "flagged"


class Notice(StrEnum):
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


@dataclass(frozen=True, slots=True)
class Next:
    """The next instant at which counts or state change without a new fact (CT-46)."""

    at: datetime
    ed_visits: int
    hospital_episodes: int
    counts: tuple[int, ...]
    """One per clause of the policy, as in Standing."""
    state: State
    held: bool


@dataclass(frozen=True, slots=True)
class Standing:
    state: State
    held: bool
    since: datetime | None
    """Of a flag, the instant at which it was first met; of a watch, at which it began."""
    ed_visits: int
    hospital_episodes: int
    counts: tuple[int, ...]
    """One per clause of the policy, those of `flag` first."""
    earlier: tuple[tuple[int, ...], ...]
    """Of each clause, its counts in the adjoining windows before, newest first; empty if the
    policy asks for one window only.
    """
    changed: datetime | None
    """Instant from which it has been like this; None: ever since."""
    by: Cause | None
    """What brought it about then, were every fact on time."""
    again: bool
    """The flag was met within the quiet time before this entry (CT-42)."""
    eligible: bool
    alive: bool
    age_unknown: bool
    """An age limit applies and no birth date is known: eligible, and said so (CR-47)."""
    next: Next | None
    stirs: datetime | None
    """Next instant at which the state is other than below, or other than it is."""
    flagged: tuple[tuple[datetime, datetime | None], ...]
    """When it was flagged, up to now; the last may be open."""
    judged: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class Life:
    """Between which instants a person can be flagged at all (CR-12, CR-28, CR-47)."""

    eligible_from: datetime | None
    eligible_until: datetime | None
    death: datetime | None
    age_unknown: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which nothing changes, up to the next one of its course."""

    at: datetime
    counts: tuple[int, int]
    """ED visits and hospital episodes in the policy's window."""
    clauses: tuple[int, ...]
    earlier: tuple[tuple[int, ...], ...]
    state: State
    held: bool
    since: datetime | None
    again: bool
    by: Cause


def life(ledger: Ledger, policy: Policy) -> Life:
    """Age counts at the instant looked at, not at the visit; birthdays begin at local midnight.

    A hospital that says a patient died, or was dead on arrival, has closed the matter (CR-12).
    """
    deaths = [ledger.death] if ledger.death else []
    for fact in ledger.facts:
        if fact.disposition is None or fact.status in VOID:
            continue
        if fact.disposition is Disposition.DIED:
            moment = fact.end or fact.start
            deaths.append(moment.latest if moment else fact.event_time)
        elif fact.disposition is Disposition.DEAD_ON_ARRIVAL and fact.start:
            deaths.append(fact.start.earliest)
    born, low, high = ledger.birth_date, policy.age_min, policy.age_max
    return Life(
        eligible_from=None if born is None or low is None else _birthday(born, low, policy),
        eligible_until=None if born is None or high is None else _birthday(born, high + 1, policy),
        death=min(deaths, default=None),
        age_unknown=born is None and (low is not None or high is not None),
    )


def _birthday(born: date, age: int, policy: Policy) -> datetime:
    """Whoever was born on 29 February is a year older on 1 March of other years."""
    year = born.year + age
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    day = date(year, 3, 1) if (born.month, born.day) == (2, 29) and not leap else None
    day = day or born.replace(year=year)
    return datetime.combine(day, time(), policy.zone).astimezone(UTC)


def stand(ledger: Ledger, policy: Policy, now: datetime) -> Standing:
    """Where a patient stands at `now`, found by walking their own history (CT-41).

    No earlier state goes in: the same facts give the same answer in any order.
    """
    limits = life(ledger, policy)
    judged = _judged(ledger, policy)
    return _seen(_walk(Counted.of(judged), limits, policy), limits, judged, policy, now)


def course(ledger: Ledger, policy: Policy) -> Sequence[Stretch]:
    """All stretches of a history, past and to come, oldest first; before the first: below."""
    return _walk(Counted.of(_judged(ledger, policy)), life(ledger, policy), policy)


def _judged(ledger: Ledger, policy: Policy) -> tuple[Judged, ...]:
    parts = [part for fact in ledger.facts for part in episodes.segments(fact, policy)]
    return tuple(why.judge(episodes.grouped(parts, policy), policy)) if parts else ()


def _clauses(policy: Policy) -> tuple[Clause, ...]:
    return policy.flag.clauses + policy.watch.clauses


def _is_eligible(limits: Life, at: datetime) -> bool:
    return (limits.eligible_from is None or at >= limits.eligible_from) and (
        limits.eligible_until is None or at < limits.eligible_until
    )


def _is_alive(limits: Life, at: datetime) -> bool:
    return limits.death is None or at < limits.death


@dataclass(slots=True)
class _Changes:
    """What happens at one instant: how each count moves, and whether something began."""

    deltas: list[int]
    begins: bool = False


Watched = tuple[Measure, timedelta, timedelta]
"""What is counted, over how long, and how long ago that ends."""


def _watched(policy: Policy) -> list[Watched]:
    """ED visits and episodes of the policy's window, then of each clause those of its windows,
    newest first.
    """
    return [
        (Measure.ED_VISITS, policy.window, timedelta()),
        (Measure.HOSPITAL_EPISODES, policy.window, timedelta()),
    ] + [
        (clause.measure, clause.length, ago * clause.length)
        for clause in _clauses(policy)
        for ago in range(policy.consecutive)
    ]


def _changes(
    counted: Counted, limits: Life, watched: Sequence[Watched], policy: Policy
) -> dict[datetime, _Changes]:
    """All instants at which anything can change of itself, and how each of `watched` moves."""
    found: dict[datetime, _Changes] = {}

    def at(instant: datetime) -> _Changes:
        if instant not in found:
            found[instant] = _Changes([0] * len(watched))
        return found[instant]

    for i, (measure, length, later) in enumerate(watched):
        for instant, by in measures.steps(measure, counted, length, policy.zone):
            at(instant + later).deltas[i] += by
    for group in (*counted.visits, *counted.stays):
        at(group.anchor).begins = True
    for limit in (limits.eligible_from, limits.eligible_until, limits.death):
        if limit is not None:
            at(limit)
    return found


def _walk(counted: Counted, limits: Life, policy: Policy) -> list[Stretch]:
    """All stretches of a history, past and future, oldest first (CT-41)."""
    watched = _watched(policy)
    each = list(dict.fromkeys(watched))  # many clauses count the same
    places = [each.index(one) for one in watched]
    changes = _changes(counted, limits, each, policy)
    windows = policy.consecutive
    first_of_watch = 2 + len(policy.flag.clauses) * windows

    moving = [0] * len(each)
    counts = [0] * len(watched)
    met = False
    since: datetime | None = None
    unmet_from: datetime | None = None
    again = False
    last: Stretch | None = None
    found: list[Stretch] = []

    def settle(at: datetime, by: Cause) -> None:
        """Where the patient stands from `at` on."""
        nonlocal met, since, unmet_from, again, last
        was, able = met, _is_eligible(limits, at) and _is_alive(limits, at)
        met = able and _holds(policy.flag, counts[2:first_of_watch], windows)
        if was and not met:
            unmet_from = at
        if since is not None and (not able or (not met and at >= since + policy.hold)):
            since = None
        if since is None and met:
            since = at
            again = unmet_from is not None and at - unmet_from < policy.quiet_reentry
        near = able and _holds(policy.watch, counts[first_of_watch:], windows)
        state = State.FLAGGED if since else State.WATCH if near else State.BELOW
        begun = since
        if state is State.WATCH:
            begun = last.since if last and last.state is State.WATCH else at
        stretch = Stretch(
            at=at,
            counts=(counts[0], counts[1]),
            clauses=tuple(counts[2::windows]),
            earlier=_earlier(counts, windows),
            state=state,
            held=since is not None and not met,
            since=begun,
            again=again and since is not None,
            by=by,
        )
        if last is None or _differ(last, stretch):
            found.append(stretch)
            last = stretch

    for at in sorted(changes):
        if since is not None and not met and since + policy.hold < at:
            settle(since + policy.hold, Cause.HOLD_END)
        change = changes[at]
        for i, delta in enumerate(change.deltas):
            moving[i] += delta
        counts = [moving[place] for place in places]
        settle(at, _cause_at(at, change, limits))
    if since is not None and not met:
        settle(since + policy.hold, Cause.HOLD_END)
    return found


def _holds(condition: Condition, counts: Sequence[int], windows: int) -> bool:
    """Whether it holds in each of the adjoining windows."""
    if windows == 1:
        return condition.holds(counts)
    return all(condition.holds(counts[ago::windows]) for ago in range(windows))


def _earlier(counts: Sequence[int], windows: int) -> tuple[tuple[int, ...], ...]:
    if windows == 1:
        return ()
    return tuple(tuple(counts[i + 1 : i + windows]) for i in range(2, len(counts), windows))


def _cause_at(at: datetime, change: _Changes, limits: Life) -> Cause:
    if at == limits.death:
        return Cause.DEATH
    if at in (limits.eligible_from, limits.eligible_until):
        return Cause.ELIGIBILITY
    return Cause.EVENT if change.begins else Cause.DECAY


def _differ(one: Stretch, other: Stretch) -> bool:
    return _told(one) != _told(other) or one.since != other.since


def _told(stretch: Stretch) -> tuple[object, ...]:
    """Counts and state: what `next_change` looks for (CT-46)."""
    return stretch.counts, stretch.clauses, stretch.earlier, stretch.state, stretch.held


def _seen(
    walked: Sequence[Stretch],
    limits: Life,
    judged: tuple[Judged, ...],
    policy: Policy,
    now: datetime,
) -> Standing:
    """What the walk looks like from `now`."""
    past = [s for s in walked if s.at <= now]
    coming = walked[len(past) :]
    nothing = [0] * (2 + len(_clauses(policy)) * policy.consecutive)
    here = (
        past[-1]
        if past
        else Stretch(
            at=now,
            counts=(0, 0),
            clauses=tuple(nothing[2 :: policy.consecutive]),
            earlier=_earlier(nothing, policy.consecutive),
            state=State.BELOW,
            held=False,
            since=None,
            again=False,
            by=Cause.DECAY,
        )
    )
    turn = next((s for s in coming if _told(s) != _told(here)), None)
    stirs = next(
        (s.at for s in coming if here.state is not State.BELOW or s.state is not State.BELOW), None
    )
    return Standing(
        state=here.state,
        held=here.held,
        since=here.since,
        ed_visits=here.counts[0],
        hospital_episodes=here.counts[1],
        counts=here.clauses,
        earlier=here.earlier,
        changed=here.at if past else None,
        by=here.by if past else None,
        again=here.again,
        eligible=_is_eligible(limits, now),
        alive=_is_alive(limits, now),
        age_unknown=limits.age_unknown,
        next=None
        if turn is None
        else Next(turn.at, *turn.counts, turn.clauses, turn.state, held=turn.held),
        stirs=stirs,
        flagged=_spans(past),
        judged=judged,
    )


def _spans(past: Sequence[Stretch]) -> tuple[tuple[datetime, datetime | None], ...]:
    """The times in which it was flagged; the last is open if it still is."""
    spans: list[tuple[datetime, datetime | None]] = []
    for s in past:
        is_open = bool(spans) and spans[-1][1] is None
        if s.state is State.FLAGGED and not is_open:
            spans.append((s.at, None))
        elif s.state is not State.FLAGGED and is_open:
            spans[-1] = (spans[-1][0], s.at)
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class Announced:
    """What was last said of a patient. `face` is empty if nothing ever was."""

    state: State = State.BELOW
    face: str = field(default="", repr=False)
    held: bool = False
    since: datetime | None = None
    entry: int = 0
    """Sequence of the change that announced the flag."""
    ed_visits: int = 0
    hospital_episodes: int = 0


def face(standing: Standing, reasons: Why, policy: Policy) -> str:
    """Everything by which two announcements can differ, as one comparable text (CT-43)."""
    said = (
        policy.sha256,
        standing.state,
        standing.held,
        standing.since,
        standing.ed_visits,
        standing.hospital_episodes,
        (standing.counts, standing.earlier) if standing.earlier else standing.counts,
        reasons.pathway,
        reasons.entered_in_error,
        [
            (
                i.kind,
                i.anchor,
                i.end,
                i.exact,
                i.reason and (i.reason.code, i.reason.rule),
                [(n.code, n.rule, n.gap) for n in i.notes],
                [
                    (
                        f.encounter.int,
                        f.site,
                        f.start,
                        f.end,
                        f.disposition,
                        f.codes and [(c.system, c.code) for c in f.codes],
                        f.labels is not None and [(c.system, c.code) for c in f.labels],
                    )
                    for f in i.facts
                ],
            )
            for i in reasons.items
        ],
    )
    return hashlib.sha256(repr(said).encode()).hexdigest()


def is_news(before: Announced, after: Standing, face_after: str) -> bool:
    """Whether notify is told (CT-43). Of a patient who was and stays below, nobody is."""
    if before.state is State.BELOW and after.state is State.BELOW:
        return False
    return before.face != face_after


def retracts(before: Announced, after: Standing) -> int | None:
    """The sequence of the announced flag that, on present facts, was never true (CT-44)."""
    if before.state is not State.FLAGGED or after.state is State.FLAGGED or before.since is None:
        return None
    for _, until in after.flagged:
        if until is None or until > before.since:
            return None
    return before.entry


class Touch(StrEnum):
    """What brought a patient to be looked at again."""

    FACT = "fact"
    BACKFILL = "backfill"
    MOVED = "moved"
    """An encounter was taken from, or given to, another patient."""
    VOIDED = "voided"
    MANUAL = "manual"
    """A person took an encounter out of the count, or put it back (CT-17)."""
    MERGED = "merged"
    UNMERGED = "unmerged"
    PERSON = "person"
    TIME = "time"
    POLICY = "policy"
    RESTATED = "restated"
    """A rebuild found the record to be otherwise: never announced aloud."""


_PLAIN = {
    Touch.VOIDED: Cause.VOID,
    Touch.MOVED: Cause.CORRECTION,
    Touch.MANUAL: Cause.CORRECTION,
    Touch.MERGED: Cause.MERGE,
    Touch.UNMERGED: Cause.UNMERGE,
    Touch.POLICY: Cause.POLICY,
}


def cause(touch: Touch, before: Announced, after: Standing) -> Cause:
    """Why it changed, for whoever is told (CT-43).

    Time passes in every turn, so what is due is settled before a fact is looked at; then a fact
    that lowers a count has corrected something.
    """
    if not after.alive and before.state is not State.BELOW:
        return Cause.DEATH
    if touch in _PLAIN:
        return _PLAIN[touch]
    if touch is Touch.PERSON:
        return Cause.ELIGIBILITY
    if touch is Touch.TIME:
        return after.by if after.by in _OF_TIME else Cause.DECAY
    if _level(before.state) > _level(after.state) or (
        before.ed_visits + before.hospital_episodes > after.ed_visits + after.hospital_episodes
    ):
        return Cause.CORRECTION
    late = touch in (Touch.BACKFILL, Touch.RESTATED)
    return Cause.BACKFILL if late else Cause.EVENT


_OF_TIME = (Cause.ELIGIBILITY, Cause.HOLD_END)


def _level(state: State) -> int:
    return [State.BELOW, State.WATCH, State.FLAGGED].index(state)


def notice(history: History, key: UUID, standing: Standing, policy: Policy) -> Notice:
    """How the entry into the present flag is to be announced (CT-42).

    `history` holds every version and link that is known; what completed the entry is what was
    recorded when the flag was first known to begin at `since`, as it has been ever since. So a
    late correction that moves the beginning of a flag is late news of it.
    """
    if standing.since is None or standing.state is not State.FLAGGED or standing.again:
        return Notice.QUIET
    instants = history.instants()
    if not history.links and not _known_in_time(history, key, standing, instants, policy):
        return Notice.QUIET
    completed: datetime | None = None
    for instant in reversed(instants):
        known = _as_known(history, key, instant, standing.since, policy)
        if known is None or known.state is not State.FLAGGED or known.since != standing.since:
            break
        completed = instant
    if completed is None:
        return Notice.QUIET
    if merges := [k for k in history.links if k.recorded == completed and k.active]:
        was_flagged = any(_flagged_before(history, merged, policy) for merged in merges)
        return Notice.QUIET if was_flagged else Notice.ALERT
    if completed - standing.since > policy.alert_max_age:
        return Notice.QUIET
    if any(f.recorded == completed and f.backfill for f in history.facts):
        return Notice.QUIET
    return Notice.ALERT


def _known_in_time(
    history: History,
    key: UUID,
    standing: Standing,
    instants: Sequence[datetime],
    policy: Policy,
) -> bool:
    """Whether the flag could be known while it was news. If not, what completed it came later,
    and there is no need to go through all that was ever learnt to find which it was.
    """
    assert standing.since is not None
    early = bisect_right(instants, standing.since + policy.alert_max_age)
    if not early:
        return False
    known = _as_known(history, key, instants[early - 1], standing.since, policy)
    return known is not None and known.state is State.FLAGGED and known.since == standing.since


def _as_known(
    history: History, key: UUID, known_at: datetime, at: datetime, policy: Policy
) -> Standing | None:
    """Where `key` stood `at`, as known at `known_at`; None if it was retired or nobody."""
    known = history.at(known_at)
    ledger = gather([key], in_force(known.links), known.facts, known.persons).get(key)
    return None if ledger is None else stand(ledger, policy, at)


def _flagged_before(history: History, merged: Link, policy: Policy) -> bool:
    """Whether one of the two keys was flagged just before they became one (CR-34); a third that
    was with them once says nothing.
    """
    before = merged.recorded - timedelta(microseconds=1)
    into = in_force(history.at(before).links)
    keys = {survivor(merged.retired, into), survivor(merged.surviving, into)}
    return any(
        standing is not None and standing.state is State.FLAGGED
        for key in keys
        for standing in [_as_known(history, key, before, merged.recorded, policy)]
    )
