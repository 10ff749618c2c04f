"""Where a patient is, and what is said of a care episode: CT-23, CT-26, CT-27.

notify makes one card of an episode. It is told when the patient arrives, is admitted, leaves;
and when something it was told turns out otherwise.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.screening.episodes import Care, Group, Kind, Segment
from services.screening.ledger import Coding, Disposition, Fact
from services.screening.policy import Measure, Policy


class Moment(StrEnum):
    ARRIVED = "arrived"
    LEFT = "left"
    ADMITTED = "admitted"
    DISCHARGED = "discharged"
    DIED = "died"
    CORRECTED = "corrected"


@dataclass(frozen=True, slots=True)
class Happened:
    """A moment of an episode, and what it is known from."""

    at: datetime
    fact: Fact
    recorded: datetime


@dataclass(frozen=True, slots=True)
class Face:
    """All that is said of an episode, its moments aside."""

    in_ed: bool = False
    in_hospital: bool = False
    ended: bool = False
    void: bool = False
    joined_into: UUID | None = None
    site: str = ""
    """Where the patient is, or was last."""
    encounters: tuple[UUID, ...] = ()
    labels: tuple[Coding, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Presence:
    episode: UUID
    face: Face
    moments: Mapping[Moment, Happened]


@dataclass(frozen=True, slots=True)
class Said:
    """What notify was last told of an episode: the moments it heard of, and the face."""

    moments: Mapping[Moment, datetime]
    face: Face


@dataclass(frozen=True, slots=True)
class Saying:
    """One `episode.changed` to be sent."""

    episode: UUID
    moment: Moment
    at: datetime
    received: datetime
    face: Face
    said: Said
    """What notify has been told once this is."""


def look(care: Care, now: datetime) -> Presence:
    """What there is to say of an episode at `now`."""
    visits = [m for g in care.groups if g.kind is Kind.ED for m in g.members]
    stays = [m for g in care.groups if g.kind is Kind.HOSPITAL for m in g.members]
    everything = [m for g in care.groups for m in g.members]
    in_hospital = any(_is_there(m, now) for m in stays)
    in_ed = not in_hospital and any(_is_there(m, now) for m in visits)
    facts = care.facts
    latest = max(everything, key=lambda m: (m.start.earliest, m.end.latest, m.fact.encounter))
    moments: dict[Moment, Happened] = {}
    if visits:
        first = min(visits, key=_start)
        moments[Moment.ARRIVED] = Happened(
            first.start.earliest, first.fact, first.fact.first_recorded
        )
    if stays:
        first = min(stays, key=_start)
        moments[Moment.ADMITTED] = Happened(first.start.earliest, first.fact, first.fact.recorded)
    final = stays or visits
    if not any(m.is_open for m in final):
        last = max(final, key=lambda m: (m.end.latest, m.fact.encounter))
        name = Moment.DISCHARGED if stays else Moment.LEFT
        moments[name] = Happened(last.end.latest, last.fact, last.fact.recorded)
    for fact in facts:
        if fact.disposition in (Disposition.DIED, Disposition.DEAD_ON_ARRIVAL):
            end = fact.end or fact.start
            at = end.latest if end else fact.event_time
            moments[Moment.DIED] = Happened(at, fact, fact.recorded)
    labels = [fact.labels for fact in facts]
    known = [some for some in labels if some is not None]
    return Presence(
        episode=care.key,
        face=Face(
            in_ed=in_ed,
            in_hospital=in_hospital,
            ended=not in_ed and not in_hospital,
            site=latest.fact.site,
            encounters=tuple(f.encounter for f in facts),
            labels=tuple(dict.fromkeys(c for some in known for c in some))
            if len(known) == len(labels)
            else None,
        ),
        moments=moments,
    )


def _start(segment: Segment) -> tuple[datetime, UUID]:
    return segment.start.earliest, segment.fact.encounter


def _is_there(segment: Segment, now: datetime) -> bool:
    """Without an end, until the assumed one (CT-23)."""
    return segment.start.earliest <= now < segment.end.latest


def is_open(care: Care, now: datetime) -> bool:
    return any(_is_there(m, now) for g in care.groups for m in g.members)


def crossing(
    cares: Collection[Care], since: datetime | None, policy: Policy, now: datetime
) -> UUID | None:
    """The care episode of the event that began at `since`, while it is news.

    That is while it is open, and after that for as long as its moments are told (CT-27): a
    hospital may send a visit only when it has ended, and flag and departure are one card (NW-10).
    Where days in hospital count, a midnight of a stay is its event as much as its admission.
    """
    if since is None:
        return None
    news = [c for c in cares if is_open(c, now) or _end(c) > now - policy.alert_max_age]
    for care in news:
        if any(group.anchor == since for group in care.groups):
            return care.key
    if any(clause.measure is Measure.HOSPITAL_DAYS for clause in policy.flag.clauses):
        for care in news:
            if any(_lasts(group, since) for group in care.groups):
                return care.key
    return None


def _lasts(group: Group, instant: datetime) -> bool:
    """Whether a stay had begun, and goes on."""
    return (
        group.kind is Kind.HOSPITAL
        and group.anchor < instant
        and (group.is_open or instant <= group.end.latest)
    )


def _end(care: Care) -> datetime:
    return max(member.end.latest for group in care.groups for member in group.members)


def may_speak(
    facts: Collection[Fact], touched: Collection[UUID], policy: Policy, now: datetime
) -> bool:
    """Whether an episode of which nothing was said yet can be news, or one be going on: a cheap
    look, which errs towards yes. A life of which all is long over has nothing to say.
    """
    recent = now - policy.alert_max_age
    return any(
        fact.end is None
        or max(fact.end.latest, _latest(fact)) >= recent
        or (not fact.backfill and fact.encounter in touched)
        for fact in facts
    )


def _latest(fact: Fact) -> datetime:
    """Nothing that a fact tells of is later, its end aside."""
    starts = [since for _, since in fact.classes]
    if fact.start is not None:
        starts.append(fact.start.latest)
    return max(fact.event_time, *starts)


def sayings(
    before: Mapping[UUID, Said],
    after: Collection[Presence],
    touched: Collection[UUID],
    policy: Policy,
    now: datetime,
) -> list[Saying]:
    """What notify is to be told, in the order of what happened (CT-27).

    `touched` are the encounters that this turn brought. A moment that is late is not news,
    nor is one of another day for a patient who only now is watched; but what was said before
    is put right, however late.
    """
    told: list[Saying] = []
    present = {p.episode: p for p in after}
    for episode, said in before.items():
        if episode not in present and not said.face.void and said.face.joined_into is None:
            told.append(_gone(episode, said, after, now))
    for presence in after:
        said = before.get(presence.episode, Said({}, Face()))
        news = {
            name: moment
            for name, moment in presence.moments.items()
            if name not in said.moments and _is_fresh(moment, touched, policy, now)
        }
        kept = {
            name: presence.moments[name].at for name in said.moments if name in presence.moments
        }
        wrong = kept != said.moments
        for name, moment in sorted(news.items(), key=lambda item: item[1].at):
            kept = kept | {name: moment.at}
            told.append(
                Saying(
                    presence.episode,
                    name,
                    moment.at,
                    moment.fact.recorded,
                    presence.face,
                    Said(kept, presence.face),
                )
            )
        if said.moments and (wrong or (not news and said.face != presence.face)):
            newest = max(moment.fact.recorded for moment in presence.moments.values())
            told.append(
                Saying(
                    presence.episode,
                    Moment.CORRECTED,
                    now,
                    newest,
                    presence.face,
                    Said(kept, presence.face),
                )
            )
    return told


def _is_fresh(moment: Happened, touched: Collection[UUID], policy: Policy, now: datetime) -> bool:
    if moment.fact.backfill or moment.recorded - moment.at > policy.alert_max_age:
        return False
    return moment.fact.encounter in touched or now - moment.at <= policy.alert_max_age


def _gone(episode: UUID, said: Said, after: Collection[Presence], now: datetime) -> Saying:
    """An episode that is part of an older one now, or was taken back."""
    joined = next(
        (p.episode for p in after if set(p.face.encounters) & set(said.face.encounters)), None
    )
    face = Face(
        void=joined is None,
        joined_into=joined,
        ended=True,
        site=said.face.site,
        encounters=said.face.encounters,
        labels=said.face.labels,
    )
    return Saying(episode, Moment.CORRECTED, now, now, face, Said(said.moments, face))
