"""The story of screening: encounters arrive, patients are counted again, flags may change.

Each handler holds the patients a batch can touch, keeps what it brought, and looks at them
again. What a rebuild states again comes after the news of the same batch, or it would no longer
be news. Nothing here commits or catches: the transaction is the reader's.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

import structlog

from schemas.count_correction_v1 import CountCorrection
from schemas.encounter_recorded_v1 import EncounterRecorded
from schemas.envelope import Event
from schemas.flag_changed_v1 import Cause as ToldCause
from schemas.flag_changed_v1 import FlagChanged
from schemas.flag_changed_v1 import Notice as ToldNotice
from schemas.patient_identified_v1 import PatientIdentified
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from schemas.restatement_ended_v1 import RestatementEnded
from schemas.site_heard_v1 import SiteHeard
from services.plumbing import telemetry
from services.plumbing.db import Database, Tx, is_passing, sqlstate
from services.plumbing.eventlog import Turn as LogTurn
from services.plumbing.eventlog import append
from services.plumbing.sealing import Seals
from services.screening import (
    episodes,
    flag,
    presence,
    reading,
    rebuilding,
    registry,
    store,
    telling,
    why,
)
from services.screening.episodes import Care
from services.screening.flag import Announced, Cause, Notice, Standing, State, Touch
from services.screening.ledger import History, Ledger, Link, Person, gather, survivor
from services.screening.policy import Policy
from services.screening.presence import Said, Saying
from services.screening.registry import Shade
from services.screening.store import Family, Kept, Row, Settled
from services.screening.telling import Announcement, KnownSite
from services.screening.why import Why
from services.screening.window import Window

log = structlog.get_logger()

SWEEP = 500
"""Patients a sweep takes at a time."""


@dataclass(frozen=True)
class Turn(LogTurn):
    """One batch, with what counting needs to know beside the facts."""

    policy: Policy
    """The live one, once the turn is `ruled`; before that, what counts if none was activated."""
    sites: Sequence[KnownSite]
    seals: Seals
    shadows: Mapping[int, Policy] = field(default_factory=dict)
    """Policies in shadow, by run (CT-51)."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What a turn brought of one patient."""

    touch: Touch
    received: datetime | None = None
    encounters: frozenset[UUID] = frozenset()


async def on_encounters_recorded(batch: Sequence[EncounterRecorded], turn: Turn) -> None:
    """Keep every version, the newest speaks; then look at the patients again."""
    family = await hold([e.patient for e in batch], turn, [e.encounter for e in batch])
    kept = await store.keep(turn.tx, rebuilding.news(batch), turn.now)
    owners = {owner for one in kept for owner in one.owners}
    if not owners <= family.keys:
        family = await hold(family.keys | owners, turn)
    await reconsider(family, brought(kept, family), turn)
    await rebuilding.encounters(turn.tx, rebuilding.again(batch), turn.now)


async def on_counts_corrected(batch: Sequence[CountCorrection], turn: Turn) -> None:
    """A person takes an encounter out of the count, or puts it back; it stays so (CT-17)."""
    family = await hold([e.patient for e in batch], turn, [e.encounter for e in batch])
    owners = await store.correct(turn.tx, batch, turn.now)
    news = {
        survivor(owners[e.encounter], family.into): Brought(Touch.MANUAL, e.recorded)
        for e in sorted(batch, key=lambda e: e.recorded)
        if e.encounter in owners
    }
    await reconsider(family, news, turn)


async def on_patients_identified(batch: Sequence[PatientIdentified], turn: Turn) -> None:
    """Keep birth date and death; what waited for a person to be known is counted now."""
    family = await hold([e.patient for e in batch], turn)
    first = rebuilding.news(batch)
    known = await store.identify(turn.tx, [opened(e, turn.seals) for e in first], turn.now)
    received = {e.patient: e.recorded for e in first}
    news = {survivor(k, family.into): Brought(Touch.PERSON, received[k]) for k in known}
    await reconsider(family, news, turn)
    again = rebuilding.again(batch)
    await rebuilding.persons(turn.tx, again, [opened(e, turn.seals) for e in again], turn.now)


async def on_patients_merged(batch: Sequence[PatientMerged], turn: Turn) -> None:
    """A link on top of the facts (CT-01): the survivor counts all, the retired key is closed."""
    await relink(batch, Touch.MERGED, turn)


async def on_patients_unmerged(batch: Sequence[PatientUnmerged], turn: Turn) -> None:
    """The link is undone; each key counts its own again."""
    await relink(batch, Touch.UNMERGED, turn)


async def on_sites_heard(batch: Sequence[SiteHeard], turn: Turn) -> None:
    """For coverage."""
    await store.hear(turn.tx, [(e.site, e.last_event, e.heard) for e in batch])


async def on_restatement_ended(batch: Sequence[RestatementEnded], turn: Turn) -> None:
    """A rebuild is complete once all of it has come; then everybody is counted again."""
    await rebuilding.ended(turn.tx, batch, turn.now)


async def relink(
    batch: Sequence[PatientMerged | PatientUnmerged], touch: Touch, turn: Turn
) -> None:
    """Who is one person has changed: both sides are counted again."""
    before = await hold({key for e in batch for key in (e.surviving, e.retired)}, turn)
    links = [linked(e) for e in rebuilding.news(batch)]
    newer = set(await store.link(turn.tx, links, turn.now))
    family = await hold(before.keys, turn)
    touched = {
        key: Brought(touch, link.recorded)
        for link in links
        if link.retired in newer
        for key in (survivor(link.retired, before.into), link.surviving, link.retired)
    }
    news = {survivor(key, family.into): told for key, told in touched.items()}
    await reconsider(family, touched | news, turn)
    again = rebuilding.again(batch)
    await rebuilding.links(turn.tx, again, [linked(e) for e in again], turn.now)


async def hold(keys: Collection[UUID], turn: Turn, encounters: Collection[UUID] = ()) -> Family:
    """Lock who can be touched. What time alone or another policy has changed is settled before
    anything is kept, so that a change has the cause that brought it about (CT-43).
    """
    family, held = await store.hold(turn.tx, keys, encounters)
    turn = await ruled(turn)
    late = [one.key for one in held if one.is_late(turn.now, turn.policy)]
    await reconsider(family, dict.fromkeys(late, Brought(Touch.TIME)), turn)
    return family


async def ruled(turn: Turn) -> Turn:
    """The turn under the policies in force: to be asked once the patients are locked."""
    found = await registry.in_force(turn.tx)
    return replace(turn, policy=found.live or turn.policy, shadows=found.shadows)


async def sweep(turn: Turn) -> int:
    """Look again at some of those whose time has come (CT-45); how many."""
    due = await store.due(turn.tx, turn.now, SWEEP)
    if not due:
        return 0
    family = await store.family(turn.tx, due)
    await reconsider(family, dict.fromkeys(due, Brought(Touch.TIME)), turn)
    return len(due)


async def sweep_shadows(turn: Turn) -> int:
    """The same for those who may stand otherwise under a policy in shadow; how many."""
    turn = await ruled(turn)
    due = await registry.shadow_due(turn.tx, turn.shadows, turn.now, SWEEP)
    if due:
        await reshade(due, turn)
    return len(due)


async def begin(turn: Turn) -> int:
    """What was asked of policies for an instant that has come takes effect (CT-51)."""
    return await registry.begin(turn.tx, turn.now)


async def reevaluate(turn: Turn) -> int:
    """Look at the next of all patients under an activation that has begun; how many (CT-51).

    How far it has come is kept with it, so that what ended in the middle goes on there.
    """
    work = await registry.unfinished(turn.tx, turn.now)
    if work is None:
        return 0
    keys = await registry.following(turn.tx, work.place, SWEEP)
    turn = await ruled(turn)
    if work.run in turn.shadows:
        await reshade(keys, turn)
    else:
        family = await store.family(turn.tx, keys)
        await reconsider(family, dict.fromkeys(keys, Brought(Touch.TIME)), turn)
    done = turn.now if len(keys) < SWEEP else None
    await registry.advance(turn.tx, work.run, keys[-1] if keys else None, done)
    return len(keys)


async def forget(turn: Turn) -> int:
    """What was computed for a policy that is in shadow no more goes; how much."""
    return await registry.forget(turn.tx, turn.now, 10 * SWEEP)


async def reshade(keys: Collection[UUID], turn: Turn) -> None:
    """Settle where patients stand in shadow, and nothing else."""
    family = await store.family(turn.tx, keys)
    rows = await store.rows(turn.tx, family.keys)
    ledgers = gather(
        list(keys),
        family.into,
        await store.facts(turn.tx, family.keys),
        [row.person for row in rows.values() if row.person],
    )
    await shade(ledgers, (), turn)


async def shade(ledgers: Mapping[UUID, Ledger], retired: Collection[UUID], turn: Turn) -> None:
    """Where patients stand under each policy in shadow: stored, and never said (CT-51)."""
    if not turn.shadows:
        return
    shades = [
        shaded(run, key, flag.stand(ledger, rule, turn.now), rule, turn.now)
        for run, rule in turn.shadows.items()
        for key, ledger in ledgers.items()
    ]
    await registry.shade(turn.tx, shades, retired, turn.now)


def shaded(run: int, key: UUID, standing: Standing, rule: Policy, now: datetime) -> Shade:
    """As the list shows it; due when a count changes, also of somebody who stays below."""
    window = Window.ending(now, rule.window)
    counted = [j.group for j in standing.judged if j.reason is None and j.group.anchor in window]
    return Shade(
        run=run,
        patient=key,
        state=standing.state,
        held=standing.held,
        since=standing.since,
        ed_visits=standing.ed_visits,
        hospital_episodes=standing.hospital_episodes,
        sites=tuple(sorted({m.fact.site for group in counted for m in group.members})),
        due_at=standing.next.at if standing.next else None,
    )


async def reconsider(family: Family, news: Mapping[UUID, Brought], turn: Turn) -> None:
    """Settle where patients stand at `turn.now`, and say so where it changed.

    Also called by the sweep (CT-45): a visit leaves the window without an event.
    """
    if not news:
        return
    turn = await ruled(turn)
    keys = [key for key in family.keys if {key, survivor(key, family.into)} & news.keys()]
    rows = await store.rows(turn.tx, keys)
    ledgers = gather(
        list(news),
        family.into,
        await store.facts(turn.tx, keys),
        [row.person for row in rows.values() if row.person],
    )
    said = by_survivor(
        await store.episodes(turn.tx, [key for key in keys if rows[key].ever]), family
    )
    looks = [
        look(rows[key], ledger, news[key], turn, has_spoken=key in said)
        for key, ledger in ledgers.items()
    ]
    entered = [one.row.key for one in looks if one.entered]
    histories = await store.histories(turn.tx, entered)
    heard = await store.heard(turn.tx) if any(one.is_news for one in looks) else {}
    told = [
        tell(one, histories.get(one.row.key), said.get(one.row.key, {}), heard, turn)
        for one in looks
    ]
    told += [
        close(rows[key], survivor(key, family.into), news[key], turn)
        for key in news
        if survivor(key, family.into) != key
    ]
    await settle(told, rows, turn)
    await shade(ledgers, [key for key in news if survivor(key, family.into) != key], turn)


@dataclass(frozen=True, slots=True)
class Look:
    """A patient as seen now, beside what was last said."""

    row: Row
    brought: Brought
    standing: Standing
    reasons: Why
    face: str
    cares: Sequence[Care]

    @property
    def is_news(self) -> bool:
        return flag.is_news(self.row.announced, self.standing, self.face)

    @property
    def entered(self) -> bool:
        """Flagged, and not since the instant that was announced."""
        before = self.row.announced
        return self.standing.state is State.FLAGGED and (
            before.state is not State.FLAGGED or before.since != self.standing.since
        )

    @property
    def is_watched(self) -> bool:
        """Is, or ever was, watch or flagged (CT-27)."""
        return self.row.ever or self.standing.state is not State.BELOW


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be written and said of one patient."""

    settled: Settled
    changed: FlagChanged | None = None
    sayings: Sequence[Saying] = ()


def look(row: Row, ledger: Ledger, news: Brought, turn: Turn, *, has_spoken: bool) -> Look:
    """`has_spoken`: something was said of an episode of this patient before."""
    standing = flag.stand(ledger, turn.policy, turn.now)
    watched = row.ever or standing.state is not State.BELOW
    if not watched:
        return Look(row, news, standing, NOTHING, "", ())
    groups = [judged.group for judged in standing.judged]
    reasons = why.explain(ledger.facts, standing.judged, turn.policy, turn.now)
    if news.touch is Touch.TIME and row.policy not in (None, turn.policy.sha256):
        news = replace(news, touch=Touch.POLICY)
    elif news.touch is Touch.TIME and row.restated:
        news = replace(news, touch=Touch.RESTATED)
    speaks = has_spoken or presence.may_speak(ledger.facts, news.encounters, turn.policy, turn.now)
    return Look(
        row=row,
        brought=news,
        standing=standing,
        reasons=reasons,
        face=flag.face(standing, reasons, turn.policy),
        cares=episodes.care(groups, turn.policy) if speaks else (),
    )


NOTHING = Why((), 0, 0, None, None)


def tell(
    seen: Look,
    history: History | None,
    said: Mapping[UUID, Said],
    heard: Mapping[str, datetime],
    turn: Turn,
) -> Told:
    """What follows from a look: the row as it is to be, and what notify hears."""
    row, standing = seen.row, seen.standing
    notice = row.notice if standing.state is State.FLAGGED else None
    if history is not None:
        by_policy = seen.brought.touch is Touch.POLICY
        notice = Notice.QUIET if by_policy else flag.notice(history, row.key, standing, turn.policy)
    sayings = (
        presence.sayings(
            said,
            [presence.look(care, turn.now) for care in seen.cares],
            seen.brought.encounters,
            turn.policy,
            turn.now,
        )
        if seen.is_watched
        else []
    )
    turns = [standing.stirs, seen.reasons.restless]
    settled = Settled(
        key=row.key,
        announced=row.announced,
        notice=notice,
        sites=row.sites,
        sequence=row.sequence,
        ever=seen.is_watched,
        episode_sequence=row.episode_sequence + len(sayings),
        due_at=min((t for t in turns if t is not None), default=None),
    )
    if not seen.is_news:
        return Told(settled, sayings=sayings)
    changed = changed_flag(seen, notice, heard, turn)
    before = row.announced
    settled = replace(
        settled,
        announced=Announced(
            state=standing.state,
            face=seen.face,
            held=standing.held,
            since=standing.since,
            entry=before.entry if before.state is State.FLAGGED else changed.sequence,
            ed_visits=standing.ed_visits,
            hospital_episodes=standing.hospital_episodes,
        ),
        sites=tuple(sorted({site for item in seen.reasons.items for site in item.sites})),
        sequence=changed.sequence,
        is_news=True,
    )
    return Told(settled, changed, sayings)


_AS_IT_HAPPENED = (Cause.EVENT, Cause.BACKFILL, Cause.DECAY, Cause.HOLD_END, Cause.ELIGIBILITY)


def changed_flag(
    seen: Look, notice: Notice | None, heard: Mapping[str, datetime], turn: Turn
) -> FlagChanged:
    """The announcement of a change. Only an entry can be more than quiet (CT-42)."""
    row, standing, news = seen.row, seen.standing, seen.brought
    cause = flag.cause(news.touch, row.announced, standing)
    is_entry = seen.entered and row.announced.state is not State.FLAGGED
    quiet = cause is Cause.POLICY or news.touch is Touch.RESTATED
    loud = is_entry and notice is Notice.ALERT and not quiet
    sequence = row.sequence + 1
    return FlagChanged(
        patient=row.key,
        sequence=sequence,
        explanation=telling.explanation(
            Announcement(
                row.key,
                sequence,
                as_of=turn.now,
                known_at=turn.now,
                cause=cause,
                notice=notice,
                episode=presence.crossing(seen.cares, standing.since, turn.policy, turn.now),
            ),
            standing,
            seen.reasons,
            telling.coverage(turn.sites, heard, turn.now - turn.policy.lookback),
            turn.policy,
        ),
        cause=ToldCause(cause),
        notice=ToldNotice.ALERT if loud else ToldNotice.QUIET,
        retracts=flag.retracts(row.announced, standing),
        received=news.received,
        counted=turn.now,
        changed=standing.changed
        if cause in _AS_IT_HAPPENED and standing.changed
        else news.received or turn.now,
    )


def close(row: Row, into: UUID, news: Brought, turn: Turn) -> Told:
    """A retired key: if notify knows a flag of it, one last word; then its survivor speaks."""
    settled = Settled(
        key=row.key,
        announced=row.announced,
        sequence=row.sequence,
        merged_into=into,
        ever=row.ever,
        episode_sequence=row.episode_sequence,
    )
    if row.announced.state is State.BELOW:
        return Told(settled)
    standing = flag.stand(Ledger(), turn.policy, turn.now)
    sequence = row.sequence + 1
    changed = FlagChanged(
        patient=row.key,
        sequence=sequence,
        explanation=telling.explanation(
            Announcement(row.key, sequence, turn.now, turn.now, Cause.MERGE),
            standing,
            NOTHING,
            telling.coverage(turn.sites, {}, turn.now - turn.policy.lookback),
            turn.policy,
        ),
        cause=ToldCause.MERGE,
        notice=ToldNotice.QUIET,
        merged_into=into,
        received=news.received,
        counted=turn.now,
        changed=news.received or turn.now,
    )
    return Told(replace(settled, announced=Announced(), sequence=sequence, is_news=True), changed)


async def settle(told: Sequence[Told], rows: Mapping[UUID, Row], turn: Turn) -> None:
    """Write it, and say it."""
    settled = {one.settled.key: one.settled for one in told}
    await store.put(
        turn.tx,
        [one for one in settled.values() if not rows[one.key].is_as(one, turn.policy)],
        turn.policy,
        turn.now,
    )
    changes = [one.changed for one in told if one.changed]
    await store.record(turn.tx, changes, settled, turn.now)
    await store.say(
        turn.tx,
        {(one.settled.key, saying.episode): saying.said for one in told for saying in one.sayings},
    )
    news: list[Event] = [*changes]
    for one in told:
        first = one.settled.episode_sequence - len(one.sayings) + 1
        news += [
            telling.episode_changed(one.settled.key, sequence, saying, turn.now)
            for sequence, saying in enumerate(one.sayings, start=first)
        ]
    await append(turn.tx, news, turn.now)
    for change in changes:
        telemetry.counter("screening_flags_total", f"{change.explanation.state}").inc()


def by_survivor(
    said: Mapping[UUID, Mapping[UUID, Said]], family: Family
) -> dict[UUID, dict[UUID, Said]]:
    """What was said of the episodes of each patient, also under keys since retired; what was
    said under the surviving key itself is newer.
    """
    found: dict[UUID, dict[UUID, Said]] = {}
    for key in sorted(said, key=lambda key: key not in family.into):
        found.setdefault(survivor(key, family.into), {}).update(said[key])
    return found


def brought(kept: Sequence[Kept], family: Family) -> dict[UUID, Brought]:
    """What a batch of encounters brought each patient; nothing, if all of it was known."""
    found: dict[UUID, list[tuple[Touch, Kept]]] = {}
    for one in kept:
        mine = survivor(one.event.patient, family.into)
        concerned = {survivor(owner, family.into) for owner in one.owners} | {mine}
        touch = Touch.BACKFILL if one.event.backfill else Touch.FACT
        if one.is_voided:
            touch = Touch.VOIDED
        if len(concerned) > 1:
            touch = Touch.MOVED
        for key in concerned:
            found.setdefault(key, []).append((touch, one))
    weight = [Touch.BACKFILL, Touch.FACT, Touch.MOVED, Touch.VOIDED]
    return {
        key: Brought(
            touch=max((touch for touch, _ in these), key=weight.index),
            received=max(one.event.recorded for _, one in these),
            encounters=frozenset(one.event.encounter for _, one in these),
        )
        for key, these in found.items()
    }


def linked(event: PatientMerged | PatientUnmerged) -> Link:
    merged = isinstance(event, PatientMerged)
    return Link(event.retired, event.surviving, event.version, merged, event.recorded)


def opened(event: PatientIdentified, seals: Seals) -> Person:
    """Birth date and death, unsealed: all that screening may open (CS-94)."""
    boxes = event.demographics
    dates = {
        name: seals.open(event.patient, name, boxes[name].key_id, boxes[name].box)
        for name in ("birthDate", "deceased")
        if name in boxes
    }
    return Person(
        key=event.patient,
        version=event.version,
        recorded=event.recorded,
        birth_date=reading.birth_date(dates["birthDate"]) if "birthDate" in dates else None,
        death=reading.death(dates["deceased"]) if "deceased" in dates else None,
    )


SWEEPING = (begin, sweep, sweep_shadows, reevaluate, forget)
"""What is done again and again without an event, each in a transaction of its own."""


async def sweeping(
    db: Database,
    turn: Callable[[Tx], Turn],
    every: float,
    stop: asyncio.Event,
) -> None:
    """Sweep every `every` real seconds until told to stop; trouble that passes is waited out."""
    while not stop.is_set():
        is_busy = False
        try:
            async with db.work() as tx:
                now = turn(tx)
                oldest = await store.oldest_due(tx)
                late = (now.now - oldest).total_seconds() if oldest else 0.0
                telemetry.gauge("screening_due_seconds", "screening").set(max(late, 0.0))
            for step in SWEEPING:
                async with db.work() as tx:
                    is_busy |= await step(turn(tx)) >= SWEEP
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("sweep_waits", error=type(error).__name__, sqlstate=sqlstate(error))
        if not is_busy:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every)
