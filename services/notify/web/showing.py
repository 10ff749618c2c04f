"""From what one reader was told to what the page shows of it. Pure.

Everything here comes out of a `Told`, which consent has already been through: what is hidden
from the reader is not in it, and nothing is fetched to complete it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from schemas.flag_changed_v1 import Explanation
from services.notify import card as cards
from services.notify import recount, telling
from services.notify.card import Moment, Status, What
from services.notify.consent import Level
from services.notify.correction import Correction
from services.notify.recount import Kind, State, Tally, Unit, View
from services.notify.telling import Told
from services.notify.web.views import (
    Card,
    Channel,
    Clause,
    Coverage,
    Crossing,
    Exclusion,
    Ground,
    Happening,
    Item,
    Measure,
    Person,
    Progress,
    Remark,
    Site,
    Standing,
    Tier,
    Visit,
    Why,
)
from services.notify.web.words import Language, in_language
from services.plumbing import region as regions

WEEK: Final = timedelta(days=7)
MEASURES: Final[Mapping[tuple[Kind, Tally], Measure]] = {
    (Kind.ED, Tally.UNITS): Measure.ED,
    (Kind.ED, Tally.SITES): Measure.ED_SITES,
    (Kind.HOSPITAL, Tally.UNITS): Measure.HOSPITAL,
    (Kind.HOSPITAL, Tally.DAYS): Measure.HOSPITAL_DAYS,
}
HAPPENINGS: Final[Mapping[What, Happening]] = {
    What.THRESHOLD: Happening.THRESHOLD,
    What.LEFT_ED: Happening.ED_DEPARTURE,
    What.DISCHARGED: Happening.DISCHARGED,
}
LATEST: Final[Mapping[Moment, Happening]] = {
    Moment.ARRIVED: Happening.ED_ARRIVAL,
    Moment.ADMITTED: Happening.ADMITTED,
    Moment.DIED: Happening.DIED,
}
PROGRESS: Final[Mapping[Status, Progress]] = {
    Status.REQUESTED: Progress.NEW,
    Status.RECEIVED: Progress.SEEN,
    Status.ACCEPTED: Progress.MINE,
    Status.IN_PROGRESS: Progress.MINE,
    Status.ON_HOLD: Progress.SLEEP,
    Status.COMPLETED: Progress.CLOSED,
    Status.REJECTED: Progress.CLOSED,
    Status.CANCELLED: Progress.CLOSED,
    Status.ENTERED_IN_ERROR: Progress.CLOSED,
}
DEPARTURES: Final = frozenset({Moment.LEFT, Moment.DISCHARGED})
CORRECTED: Final = re.compile(r"count corrected from (\d+) to (\d+)")
"""A note of ours (card.py, CA-31)."""
FACT: Final = 1
"""Of a record that does not say at which level it told."""
CODE_NAMES: Final[Mapping[str, Mapping[Language, str]]] = {
    "http://hl7.org/fhir/sid/icd-10-ca": {
        Language.FRENCH: "CIM-10-CA",
        Language.ENGLISH: "ICD-10-CA",
    },
    "http://hl7.org/fhir/sid/icd-10": {Language.FRENCH: "CIM-10", Language.ENGLISH: "ICD-10"},
}
"""How each language calls a system of reasons; another one's codes stand alone."""


@dataclass(frozen=True, slots=True)
class Names:
    """How the reader's language calls places and people."""

    region: regions.Region
    language: Language
    anonymous: str
    """For a hospital whose name itself would tell (CS-45)."""
    reader: str
    """Person id."""
    zone: ZoneInfo
    own: str
    """Language of the reader's clinic."""
    tongue: Callable[[str], str] = field(repr=False)
    """A language's name by its code."""

    def site(self, id_: str, *, named: bool) -> str:
        """`named`: also if its name alone would tell."""
        found = self.region.site(id_)
        if found is None or (found.sensitive and not named):
            return self.anonymous
        return in_language(found.name, self.language)

    def clinic(self, id_: str) -> str:
        """A recipient's name: a clinic, or a hospital whose case manager was told."""
        found = self.region.clinic(id_) or self.region.site(id_)
        if found is None:
            return id_
        return in_language(found.name, self.language)

    def person(self, id_: str | None) -> str | None:
        found = None if id_ is None else self.region.person(id_)
        return found.name if found else id_


def coverage(
    region: regions.Region, heard: Mapping[str, datetime], names: Names, now: datetime
) -> Coverage:
    """Every hospital of the region; a connected one that is silent too long says so (NW-30)."""
    return Coverage(
        tuple(
            Site(
                name=names.site(site.id, named=True),
                connected=site.connected,
                heard=heard.get(site.id),
                silent=site.connected and _is_silent(site, heard.get(site.id), now),
            )
            for site in region.sites
        )
    )


def _is_silent(site: regions.Site, heard: datetime | None, now: datetime) -> bool:
    return heard is None or now - heard > timedelta(hours=site.silent_after_hours)


def age(born: date, on: date) -> int:
    """Whole years; somebody born on 29 February is a year older from 1 March."""
    return on.year - born.year - ((on.month, on.day) < (born.month, born.day))


def person(fields: Mapping[str, str | None], names: Names, now: datetime) -> Person:
    """`fields` as a hospital sent them, `language` of the clinic's own panel; absent is unknown."""
    born = _date(fields.get("birthDate"))
    _, _, card = (fields.get("healthCard") or "").rpartition("|")
    speaks = (fields.get("language") or "").partition("-")[0].lower()
    return Person(
        family=fields.get("family") or "",
        given=fields.get("given") or "",
        born=born,
        age=None if born is None else age(born, now.astimezone(names.zone).date()),
        gender=fields.get("gender"),
        card_ends=card[-4:] or None,
        speaks=names.tongue(speaks) if speaks and speaks != names.own else None,
    )


def _date(said: str | None) -> date | None:
    try:
        return date.fromisoformat(said) if said else None
    except ValueError:
        return None


def card(work: cards.Card, told: Told, who: Person, names: Names, now: datetime) -> Card:
    """`work` as its reader sees it; only what `told` shows may come here."""
    assert told.view is not None
    departed = work.moment_at if work.moment in DEPARTURES else None
    elapsed = None if departed is None else now - departed
    late = work.is_open and elapsed is not None and elapsed >= WEEK
    mine = work.owner == names.reader
    taken = mine and PROGRESS[work.status] is Progress.MINE
    why = cards.shown_reason(work)
    site, named, at = _where_and_when(work, told, told.view)
    return Card(
        key=work.id,
        version=work.version,
        tier=Tier(work.tier.value),
        happening=_happening(work),
        at=at,
        person=who,
        progress=PROGRESS[work.status],
        site=names.site(site, named=named) if site else None,
        crossing=None if told.view.pathway else crossing(told.view),
        ground=Ground.GIVEN if told.by_consent else Ground.IMPLIED,
        level=int(told.view.level),
        day=None if elapsed is None or late else elapsed // timedelta(days=1) + 1,
        late_days=(elapsed - WEEK) // timedelta(days=1) + 1 if late and elapsed else 0,
        due=work.due,
        owner=names.person(work.owner),
        mine=mine,
        takeable=work.is_open and not taken,
        retracted=None if why is None else str(why),
    )


def _where_and_when(work: cards.Card, told: Told, view: View) -> tuple[str | None, bool, datetime]:
    """Of the episode's last moment; a card without one is about the newest counted visit. With
    whether the place may be named if it is a sensitive one.
    """
    if work.moment_at is not None:
        return work.site, told.names(work), work.moment_at
    counted = [unit for unit in view.units if unit.counted]
    if not counted:
        return None, False, work.opened
    newest = max(counted, key=lambda unit: unit.anchor)
    return newest.sites[0], _named(newest, newest.sites[0]), newest.anchor


def _named(unit: Unit, site: str) -> bool:
    """Whether each of its visits there may say where it was (CS-45)."""
    there = [visit for visit in unit.visits if visit.site == site]
    return bool(there) and all(visit.named for visit in there)


def _happening(work: cards.Card) -> Happening:
    """What the episode has come to, of a card that is still work; else what opened it."""
    latest = LATEST.get(work.moment) if work.moment and work.is_open else None
    return latest or HAPPENINGS[work.what]


def crossing(view: View) -> Crossing | None:
    """The clause that is met; while only the hold stands, none is."""
    met = view.met
    if met is None:
        return None
    return Crossing(MEASURES[met.kind, met.tally], met.count, met.at_least, met.days)


def why(told: Told, names: Names) -> Why | None:
    view = told.view
    if view is None:
        return None
    policy, _, version = view.policy.rpartition("/")
    then = _next(told, view)
    return Why(
        standing=Standing(view.state.value),
        clauses=[
            Clause(
                measure=MEASURES[clause.kind, clause.tally],
                count=clause.count,
                at_least=clause.at_least,
                met=clause.met,
                days=clause.days,
                will_be=None if then is None else _other(then.counts[i], clause.count),
                earlier=clause.earlier,
            )
            for i, clause in enumerate(view.clauses)
            if clause.leads_to is State.FLAGGED
        ],
        items=[_item(unit, names) for unit in view.units],
        policy=policy,
        policy_version=int(version) if version.isdecimal() else 0,
        after=view.after,
        until=view.until,
        held=view.held,
        since=view.since,
        hold_until=view.hold_until,
        changes_at=view.next_change,
        changes_to=None if then is None else then.state,
        crossing=crossing(view),
        complete=view.complete,
        palliative=view.pathway is not None,
    )


@dataclass(frozen=True, slots=True)
class _Next:
    """What the next change makes of it."""

    state: Standing
    counts: Sequence[int]
    """Of each clause."""


def _next(told: Told, view: View) -> _Next | None:
    """As screening announced it; where something is hidden, by simple counting (CS-40)."""
    row, standing = told.facts.standing, told.standing
    if view.next_change is None or row is None or standing is None:
        return None
    if not view.whole:
        then = recount.see(standing, told.released, view.next_change)
        return _Next(Standing(then.state.value), [clause.count for clause in then.clauses])
    said = Explanation.model_validate_json(row.explanation).next_change
    if said is None:
        return None
    units = {Kind.ED: said.ed_visits, Kind.HOSPITAL: said.hospital_episodes}
    counts = said.counts or [units[clause.kind] for clause in view.clauses]
    return _Next(Standing(said.state.value), counts)


def _other(then: int, now: int) -> int | None:
    return None if then == now else then


def _item(unit: Unit, names: Names, *, own: bool = False) -> Item:
    """`own`: for the hospital's own people, who know which one it is."""
    places = dict.fromkeys(names.site(s, named=own or _named(unit, s)) for s in unit.sites)
    return Item(
        kind=MEASURES[unit.kind, Tally.UNITS],
        start=unit.anchor,
        end=unit.end,
        sites=list(places),
        counted=unit.counted,
        day_only=unit.precision == "day",
        reason=unit.reason,
        rule=unit.rule,
        notes=unit.notes,
        encounters=len(unit.visits),
        causes=list(dict.fromkeys(c for v in unit.visits for c in _causes(v, names))),
        ended=[v.disposition for v in unit.visits if v.disposition is not None],
        summaries=[v.key for v in unit.visits if v.level is Level.DOCUMENT and v.end is not None],
    )


def _causes(visit: recount.Visit, names: Names) -> list[str]:
    """Its reasons as the hospital coded them; none below L2, where they are not in `visit`."""
    found = []
    for code in sorted(visit.codes or (), key=str):
        system = CODE_NAMES.get(code.system or "", {}).get(names.language)
        found.append(f"{code.code} ({system})" if system else code.code or "")
    return found


def visits(told: Told, site: str, said: Mapping[UUID, Correction], names: Names) -> Sequence[Visit]:
    """The visits to a hospital, newest first, for its own case manager; `said` by encounter."""
    counted = datetime.min.replace(tzinfo=UTC) if told.standing is None else told.standing.as_of
    found = []
    for key, units in telling.visits_at(told, site).items():
        visit = next(v for unit in units for v in unit.visits if v.key == key)
        items = [
            replace(_item(unit, names, own=True), start=visit.start, end=visit.end)
            for unit in units
        ]
        found.append(Visit(key, visit.start, items, _exclusion(said.get(key), counted, names)))
    return sorted(found, key=lambda one: (one.start, one.key), reverse=True)


def _exclusion(said: Correction | None, counted: datetime, names: Names) -> Exclusion | None:
    if said is None:
        return None
    return Exclusion(
        version=said.version,
        excluded=said.excluded,
        at=said.at,
        by=names.person(said.by),
        reason=said.reason,
        note=said.note,
        waits=counted < said.at,
    )


def remarks(work: cards.Card, names: Names) -> Sequence[Remark]:
    """What stands on a card, oldest first: a person's as it was written, ours as codes."""
    return [
        Remark(note.at, text=note.text, by=names.person(note.by))
        if note.by is not None
        else _ours(note)
        for note in work.notes
    ]


def _ours(note: cards.Note) -> Remark:
    fell = CORRECTED.fullmatch(note.text)
    if fell:
        return Remark(note.at, before=int(fell[1]), after=int(fell[2]))
    known = {str(one) for one in cards.Why}
    return Remark(note.at, code=note.text if note.text in known else None)


def channel(shape: str, kind: str) -> Channel:
    """How a record of the audit says somebody was told."""
    if shape == "PrivacyDisclosure.Source":
        return Channel.PUSHED
    return Channel.PAGE if kind == "person" else Channel.PULLED
