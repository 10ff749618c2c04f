"""Standings as events and answers; no decision here but how much of the region was seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from schemas import flag_changed_v1 as told
from schemas.encounter_recorded_v1 import Disposition
from schemas.envelope import Coding
from schemas.episode_changed_v1 import EpisodeChanged, EpisodeMoment
from services.screening.flag import Cause, Notice, Standing, State
from services.screening.ledger import Coding as Code
from services.screening.ledger import Fact
from services.screening.policy import Clause, Measure, Policy
from services.screening.presence import Saying
from services.screening.why import Item, Note, Why
from services.screening.window import Window


@dataclass(frozen=True, slots=True)
class KnownSite:
    """A site of the region file, as far as coverage asks."""

    site: str
    connected: bool
    data_from: date | None
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Announcement:
    """What surrounds a standing in its explanation."""

    patient: UUID
    sequence: int
    as_of: datetime
    known_at: datetime
    cause: Cause | None = None
    notice: Notice | None = None
    episode: UUID | None = None


def coverage(
    sites: Sequence[KnownSite], heard: Mapping[str, datetime], after: datetime
) -> told.Coverage:
    """How much of the region counts rest on: complete only if every known site is connected,
    with data from before the window on; else a count is a lower bound (CT-61).
    """
    seen = [
        told.SiteCoverage(
            site=one.site,
            data_from=datetime.combine(one.data_from, time(), one.zone)
            if one.connected and one.data_from
            else None,
            last_event=heard.get(one.site),
        )
        for one in sites
    ]
    return told.Coverage(
        known_sites=len(seen),
        connected_sites=sum(one.connected for one in sites),
        complete=all(one.data_from is not None and one.data_from <= after for one in seen),
        sites=tuple(seen),
    )


def explanation(
    about: Announcement,
    standing: Standing,
    reasons: Why,
    covered: told.Coverage,
    policy: Policy,
) -> told.Explanation:
    """Everything there is to say of a standing (counting.md section 8), in the policy's zone."""
    zone = policy.zone
    window = Window.ending(about.as_of, policy.lookback)
    flagged = standing.state is State.FLAGGED
    return told.Explanation(
        patient=about.patient,
        sequence=about.sequence,
        as_of=about.as_of.astimezone(zone),
        known_at=about.known_at.astimezone(zone),
        policy=told.PolicyRef(name=policy.name, version=policy.version, sha256=policy.sha256),
        window_after=window.after.astimezone(zone),
        window_until=window.until.astimezone(zone),
        window_days=policy.window.days,
        consecutive=policy.consecutive,
        timezone=zone.key,
        state=told.State(standing.state),
        held=standing.held,
        since=_local(standing.since, zone),
        hold_until=_local(standing.since + policy.hold, zone)
        if flagged and standing.since
        else None,
        hold_days=policy.hold.days,
        notice=told.Notice(about.notice) if about.notice else None,
        cause=told.Cause(about.cause) if about.cause else None,
        episode=about.episode,
        pathway=reasons.pathway,
        clauses=_clauses(standing, policy),
        flag_when=str(policy.flag.mode),
        watch_when=str(policy.watch.mode),
        next_change=told.NextChange(
            at=standing.next.at.astimezone(zone),
            ed_visits=standing.next.ed_visits,
            hospital_episodes=standing.next.hospital_episodes,
            state=told.State(standing.next.state),
            held=standing.next.held,
            counts=standing.next.counts,
        )
        if standing.next
        else None,
        items=tuple(_item(item, zone) for item in reasons.items),
        outside_window=reasons.outside_window,
        entered_in_error=reasons.entered_in_error,
        coverage=covered,
        notes=tuple(_personal(standing)),
    )


def _personal(standing: Standing) -> list[told.Note]:
    """Why a person is not flagged whatever the counts (CR-28, CR-47)."""
    found = []
    if not standing.alive:
        found.append(told.Note(code="DEATH", rule="CR-28"))
    if not standing.eligible:
        found.append(told.Note(code="AGE", rule="CR-47"))
    if standing.age_unknown:
        found.append(told.Note(code="AGE_UNKNOWN", rule="CR-47"))
    return found


_TOLD = {
    Measure.ED_VISITS: (told.Measure.ED_VISITS, told.Tally.UNITS),
    Measure.ED_SITES: (told.Measure.ED_VISITS, told.Tally.SITES),
    Measure.HOSPITAL_EPISODES: (told.Measure.HOSPITAL_EPISODES, told.Tally.UNITS),
    Measure.HOSPITAL_DAYS: (told.Measure.HOSPITAL_EPISODES, told.Tally.DAYS),
}
"""A measure as the event has it: of which units, and what of them."""


def _clauses(standing: Standing, policy: Policy) -> tuple[told.Clause, ...]:
    leading: list[tuple[Clause, told.State]] = [
        (clause, state)
        for condition, state in (
            (policy.flag, told.State.FLAGGED),
            (policy.watch, told.State.WATCH),
        )
        for clause in condition.clauses
    ]
    earlier = standing.earlier or ((),) * len(leading)
    return tuple(
        told.Clause(
            measure=_TOLD[clause.measure][0],
            count=count,
            at_least=clause.at_least,
            met=count >= clause.at_least,
            state=state,
            days=clause.length.days,
            tally=_TOLD[clause.measure][1],
            earlier=before,
        )
        for (clause, state), count, before in zip(leading, standing.counts, earlier, strict=True)
    )


def _item(item: Item, zone: ZoneInfo) -> told.Item:
    return told.Item(
        kind=told.Kind(item.kind),
        anchor=item.anchor.astimezone(zone),
        end=_local(item.end, zone),
        precision="instant" if item.exact else "day",
        sites=item.sites,
        encounters=tuple(_counted(fact, zone) for fact in item.facts),
        counted=item.counted,
        reason=_note(item.reason) if item.reason else None,
        notes=tuple(map(_note, item.notes)),
    )


def _counted(fact: Fact, zone: ZoneInfo) -> told.Counted:
    assert fact.start is not None
    return told.Counted(
        key=fact.encounter,
        site=fact.site,
        start=fact.start.earliest.astimezone(zone),
        end=fact.end.earliest.astimezone(zone) if fact.end else None,
        labels=_codings(fact.labels),
        codes=_codings(fact.codes),
        disposition=Disposition(fact.disposition) if fact.disposition else None,
    )


def _codings(codes: Sequence[Code] | None) -> tuple[Coding, ...] | None:
    return None if codes is None else tuple(Coding(system=c.system, code=c.code) for c in codes)


def _note(note: Note) -> told.Note:
    return told.Note(
        code=note.code,
        rule=note.rule,
        gap=None if note.gap is None else _duration(note.gap),
    )


def _duration(gap: timedelta) -> str:
    """ISO 8601, as `PT3H10M`."""
    minutes, seconds = divmod(int(gap.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n}{unit}" for n, unit in ((hours, "H"), (minutes, "M"), (seconds, "S")) if n]
    return "PT" + ("".join(parts) or "0S")


def _local(instant: datetime | None, zone: ZoneInfo) -> datetime | None:
    return None if instant is None else instant.astimezone(zone)


def episode_changed(
    patient: UUID, sequence: int, saying: Saying, counted: datetime
) -> EpisodeChanged:
    face = saying.face
    return EpisodeChanged(
        patient=patient,
        episode=saying.episode,
        sequence=sequence,
        moment=EpisodeMoment(saying.moment),
        at=saying.at,
        site=face.site,
        in_ed=face.in_ed,
        in_hospital=face.in_hospital,
        ended=face.ended,
        void=face.void,
        joined_into=face.joined_into,
        encounters=face.encounters,
        labels=_codings(face.labels),
        received=saying.received,
        counted=counted,
    )


def answer(explained: told.Explanation) -> dict[str, Any]:
    """An explanation as screening's API gives it: the window as one object (section 8), and the
    measures as a policy names them.
    """
    body = explained.model_dump(mode="json")
    names = {told_as: measure for measure, told_as in _TOLD.items()}
    for clause, said in zip(body["clauses"], explained.clauses, strict=True):
        clause["measure"] = names[said.measure, said.tally]
        del clause["tally"]
    body["window"] = {"after": body.pop("window_after"), "until": body.pop("window_until")}
    return body
