"""Builders of what befalls a patient: one per noun, instants spelled out; and random lives
that favour the boundaries of the counting chapter (section 10).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from hypothesis import strategies as st

from services.screening import policy as policies
from services.screening.ledger import (
    Coding,
    Disposition,
    Fact,
    History,
    Ledger,
    Link,
    Moment,
    Person,
    Service,
    Status,
)
from services.screening.policy import Policy

DEFAULT = Path(policies.__file__).parent / "policies" / "qc-default.yaml"
ICD = "http://hl7.org/fhir/sid/icd-10"
ICD_CA = "https://fhir.infoway-inforoute.ca/CodeSystem/icd-10-ca"
P, Q = (uuid5(NAMESPACE_URL, name) for name in ("TEST-p", "TEST-q"))


@cache
def qc_default() -> Policy:
    return policies.load(DEFAULT.read_text())


def policy(changes: str = "") -> Policy:
    """The default policy with the keys that `changes` (YAML) sets."""
    return policies.load("name: TEST-policy\nversion: 1\n" + changes)


def parsed(rule: Policy) -> dict[str, Any]:
    """The policy as the oracle takes it."""
    plain: dict[str, Any] = json.loads(rule.canonical)
    return plain


def at(text: str) -> datetime:
    """`2026-11-24 10:00-05`: an instant with its offset."""
    return datetime.fromisoformat(text).astimezone(UTC)


def on(day: str, offset: str = "-04") -> Moment:
    """A date alone: that whole day, as its site's zone has it (HA-05)."""
    first = at(f"{day} 00:00{offset}")
    return Moment(first, first + timedelta(days=1, microseconds=-1))


def key(name: str) -> UUID:
    return uuid5(NAMESPACE_URL, name)


def encounter(
    name: str,
    start: str | datetime | Moment | None,
    end: str | datetime | Moment | None = None,
    classes: Sequence[str | tuple[str, str | datetime]] = ("EMER",),
    **other: Any,
) -> Fact:
    """One encounter, recorded when it happened unless `recorded` says otherwise.

    A class after the first comes with the instant from which it held.
    """
    begin, finish = _moment(start), _moment(end)
    when = begin.earliest if begin else at("2026-01-01 00:00-05")
    recorded = _instant(other.pop("recorded", finish.earliest if finish else when))
    first = _instant(other.pop("first_recorded", recorded))
    status = other.pop("status", "finished" if finish else "in-progress")
    return Fact(
        encounter=key(name),
        version=other.pop("version", 1),
        patient=other.pop("patient", P),
        site=other.pop("site", "site-a"),
        status=Status(status),
        classes=tuple((c, when) if isinstance(c, str) else (c[0], _instant(c[1])) for c in classes),
        start=begin,
        end=finish,
        event_time=_instant(other.pop("event_time", when)),
        recorded=recorded,
        first_recorded=first,
        triaged=other.pop("triaged", True),
        disposition=(d := other.pop("disposition", None)) and Disposition(d),
        service=(s := other.pop("service", None)) and Service(s),
        codes=_codes(other.pop("codes", None)),
        labels=_codes(other.pop("labels", None)),
        part_of=(p := other.pop("part_of", None)) and key(p),
        **other,
    )


def ed_visit(name: str, start: Any, end: Any = None, **other: Any) -> Fact:
    """An ED visit; four hours long unless it says otherwise."""
    begin = _moment(start)
    if end is None and begin is not None and begin.exact and other.get("status") is None:
        end = begin.earliest + timedelta(hours=4)
    return encounter(name, start, end, **other)


def stay(name: str, start: Any, end: Any = None, **other: Any) -> Fact:
    return encounter(name, start, end, classes=["IMP"], **other)


def _instant(value: str | datetime) -> datetime:
    return at(value) if isinstance(value, str) else value


def _moment(value: str | datetime | Moment | None) -> Moment | None:
    if value is None or isinstance(value, Moment):
        return value
    instant = _instant(value)
    return Moment(instant, instant)


def _codes(value: Sequence[str | tuple[str, str]] | None) -> tuple[Coding, ...] | None:
    if value is None:
        return None
    return tuple(Coding(ICD, c) if isinstance(c, str) else Coding(*c) for c in value)


def person(
    birth_date: date | None = date(1970, 5, 17), death: datetime | None = None, **other: Any
) -> Person:
    recorded = other.pop("recorded", at("2020-01-01 00:00-05"))
    return Person(
        key=other.pop("key", P),
        version=other.pop("version", 1),
        recorded=recorded,
        birth_date=birth_date,
        death=death,
    )


def link(retired: UUID, surviving: UUID, recorded: str, version: int = 1, **other: Any) -> Link:
    return Link(retired, surviving, version, other.get("active", True), at(recorded))


def ledger(*facts: Fact, who: Person | None = None) -> Ledger:
    who = who or person()
    return Ledger(
        tuple(sorted(facts, key=lambda f: f.encounter)), birth_date=who.birth_date, death=who.death
    )


def history(
    *facts: Fact, who: Sequence[Person] | None = None, links: Sequence[Link] = ()
) -> History:
    who = [person()] if who is None else who
    return History(facts=list(facts), persons=list(who), links=list(links))


def plain(fact: Fact) -> dict[str, Any]:
    """The encounter as the oracle takes it."""
    found = {name: getattr(fact, name) for name in Fact.__slots__}
    return found | {
        "encounter": str(fact.encounter),
        "part_of": str(fact.part_of) if fact.part_of else None,
        "start": (fact.start.earliest, fact.start.latest) if fact.start else None,
        "end": (fact.end.earliest, fact.end.latest) if fact.end else None,
        "codes": fact.codes and [(c.system, c.code) for c in fact.codes],
        "classes": list(fact.classes),
        "manual": fact.excluded,
    }


# Random lives


SECOND = timedelta(seconds=1)
STEPS = [
    timedelta(0),
    timedelta(minutes=10),
    timedelta(hours=2),
    timedelta(hours=7),
    timedelta(hours=12),
    timedelta(hours=96),
    timedelta(days=30),
    timedelta(days=45),
    timedelta(days=90),
    timedelta(days=180),
    timedelta(days=365),
]
BASES = [
    at("2024-02-29 08:00-05"),
    at("2026-10-31 23:40-04"),
    at("2026-03-07 23:30-05"),
    at("2025-06-15 12:00-04"),
]
LENGTHS = [
    timedelta(minutes=10) - SECOND,
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=5),
    timedelta(days=2),
    timedelta(days=9),
    None,
    None,
]
HISTORIES = [
    ("EMER",),
    ("EMER",),
    ("EMER",),
    ("IMP",),
    ("ACUTE",),
    ("EMER", "IMP"),
    ("EMER", "OBSENC"),
    ("EMER", "IMP", "EMER"),
    ("IMP", "NONAC", "IMP"),
    ("AMB",),
    ("SS",),
    ("SS", "IMP"),
    ("AMB", "EMER"),
]
NAMES = [f"TEST-e{i}" for i in range(12)]

steps = st.builds(
    lambda step, nudge: step + nudge * SECOND,
    st.sampled_from(STEPS),
    st.sampled_from([-1, 0, 0, 1]),
) | st.integers(0, 60).map(lambda days: timedelta(days=days, hours=3))
_rare = st.integers(0, 7).map(lambda n: n == 0)


@st.composite
def lives(draw: st.DrawFn, most: int = 8, names: Sequence[str] = NAMES) -> list[Fact]:
    """Encounters of one patient, each close to a boundary of the one before."""
    found: list[Fact] = []
    moment = draw(st.sampled_from(BASES))
    for name in names[: draw(st.integers(0, most))]:
        start = moment + draw(steps)
        fact = draw(encounters(name, start))
        found.append(fact)
        follows_end = draw(st.booleans())
        moment = (
            fact.end.latest + timedelta(microseconds=1) * (not fact.end.exact)
            if (fact.end and follows_end)
            else start
        )
    return found


@st.composite
def encounters(draw: st.DrawFn, name: str, start: datetime) -> Fact:
    length = draw(st.sampled_from(LENGTHS))
    shape = draw(st.sampled_from(HISTORIES))
    whole_day = draw(_rare)
    parts = (length or timedelta(hours=8)) / len(shape)
    local = start.astimezone(qc_default().zone)
    day = local.replace(hour=0, minute=0, second=0, fold=0).astimezone(UTC)
    begin = Moment(day, day + timedelta(days=1, microseconds=-1)) if whole_day else start
    odd = draw(st.integers(0, 14))
    status = "finished" if length else draw(st.sampled_from(["arrived", "in-progress", "unknown"]))
    if odd == 0:
        status = draw(st.sampled_from(["cancelled", "entered-in-error", "planned"]))
    recorded = start + draw(st.sampled_from([timedelta(0), timedelta(hours=72), timedelta(days=9)]))
    return encounter(
        name,
        begin,
        start + length if length else None,
        classes=[(c, start + i * parts) for i, c in enumerate(shape)],
        site=draw(st.sampled_from(["site-a", "site-a", "site-b"])),
        status=status,
        triaged=draw(st.booleans()),
        disposition=draw(
            st.sampled_from(
                [None, None, None, "home", "lwbs", "admitted", "transferred", "redirected", "died"]
                if odd == 1
                else [None, None, "home", "lwbs", "transferred"]
            )
        ),
        service="dialysis" if odd == 2 else "palliative" if odd == 3 else None,
        codes=["Z37.0"] if odd == 4 else ["O80"] if odd == 5 else None,
        planned=odd in (6, 7),
        transfer_in=draw(_rare),
        transfer_out=draw(_rare),
        part_of=draw(st.sampled_from(NAMES)) if odd == 8 else None,
        from_emergency=draw(_rare),
        event_time=start - timedelta(minutes=5) - SECOND * draw(st.sampled_from([0, 1])),
        recorded=recorded,
    )


people = st.builds(
    lambda born, dies: person(birth_date=born, death=dies),
    st.sampled_from([None, date(1970, 5, 17), date(2008, 2, 29), date(2007, 11, 1)]),
    st.sampled_from([None, None, None, at("2026-08-01 12:00-04")]),
)

VARIANT = """
window: {days: 180}
flag:
  all:
    - {measure: ed_visits, at_least: 2}
    - {measure: hospital_episodes, at_least: 1, days: 90}
watch:
  any:
    - {measure: ed_visits, at_least: 2}
    - {measure: hospital_episodes, at_least: 2, days: 30}
hold_days: 30
quiet_reentry_days: 60
person: {age_min: 19, age_max: 54}
classes:
  hospital: [IMP, ACUTE, SS, OBSENC]
  not_counted: [NONAC, AMB, HH, VR, FLD, PRENC]
ed:
  link: {below_hours: 3, coded_up_to_hours: 24}
  reregistration_minutes: 45
  count:
    admitted: false
    planned: true
    lwbs: false
    redirected: false
    pregnancy: false
    during_stay: true
hospital: {count: {day_surgery: true, obstetric: true, elective: false, palliative: false}}
"""

SEVERAL = """
window: {days: 90, consecutive: 2}
flag:
  any:
    - {measure: ed_sites, at_least: 2, days: 120}
    - {measure: hospital_days, at_least: 6}
    - {measure: ed_visits, at_least: 2, days: 45}
watch:
  all:
    - {measure: ed_visits, at_least: 1}
hold_days: 20
quiet_reentry_days: 40
alert_max_age_hours: 24
person: {age_min: null, age_max: null}
"""
"""Several windows, sites and days."""


@st.composite
def instants(draw: st.DrawFn, facts: Sequence[Fact]) -> datetime:
    """An instant at which something may be about to change."""
    starts = [f.start.earliest for f in facts if f.start] or BASES
    return (
        draw(st.sampled_from(starts))
        + draw(st.sampled_from([*STEPS, timedelta(days=300)]))
        + draw(st.sampled_from([-1, 0, 1])) * SECOND
    )


def shifted(fact: Fact, by: timedelta) -> Fact:
    """The same encounter at another time."""

    def moved(moment: Moment | None) -> Moment | None:
        return moment and Moment(moment.earliest + by, moment.latest + by)

    return replace(
        fact,
        start=moved(fact.start),
        end=moved(fact.end),
        classes=tuple((c, since + by) for c, since in fact.classes),
        event_time=fact.event_time + by,
        recorded=fact.recorded + by,
        first_recorded=fact.first_recorded + by,
    )
