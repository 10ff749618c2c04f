"""Random histories of a patient, from a number: what was sent, in which versions, when learnt.

Made to be many (`make oracle`): plain random numbers, so that a history takes well under a
millisecond, and the number alone makes it again. They favour the boundaries of counting.md
section 10: 2, 7, 12 h, 365 d, each ± 1 s, nights of clock changes, 29 February.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from services.screening.ledger import (
    Correction,
    Disposition,
    Fact,
    History,
    Link,
    Moment,
    Person,
    Status,
)
from services.screening.policy import Policy
from tests.histories import (
    BASES,
    HISTORIES,
    ICD_CA,
    LENGTHS,
    NAMES,
    SECOND,
    STEPS,
    VARIANT,
    P,
    Q,
    at,
    encounter,
    key,
    person,
    policy,
    qc_default,
)

KEYS = (P, Q, key("TEST-r"))
EARLY = at("2020-01-01 00:00-05")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LATENESS = [timedelta(0), HOUR, 72 * HOUR, 72 * HOUR + SECOND, 9 * DAY, 200 * DAY]
BORN = [date(1970, 5, 17), date(1970, 5, 17), None, date(2008, 2, 29), date(2007, 11, 1)]
DISPOSITIONS = ["home", "lwbs", "left-against-advice", "admitted", "transferred", "redirected"]
SERVICES = [
    "obstetrics",
    "newborn",
    "dialysis",
    "series",
    "palliative",
    "mental-health",
    "day-surgery",
    "organ-donation",
]
CODES: list[str | tuple[str, str]] = [
    "Z37.0",
    "O80",
    "Z38.0",
    "P95",
    "Z51.1",
    "Z51.5",
    "Z49.0",
    "F32.1",
    (ICD_CA, "O42.021"),
    (ICD_CA, "O42.023"),
    ("http://snomed.info/sct", "Z37.0"),
]


@dataclass(frozen=True)
class Life:
    """What befell one patient, and what is asked about them."""

    number: int
    rule: str
    """The policy, as YAML; empty: the default."""
    history: History
    patient: UUID
    as_of: datetime
    known_at: datetime

    def __str__(self) -> str:
        """The timeline, for a reader who looks for the cause."""
        lines = [f"history {self.number}, as of {self.as_of}, known at {self.known_at}"]
        lines += [f"policy: {self.rule.strip() or 'qc-default'}"]
        for fact in self.history.facts:
            lines.append("  " + " ".join(f"{k}={v}" for k, v in said(fact).items()))
        lines += [f"  {p}" for p in self.history.persons] + [f"  {k}" for k in self.history.links]
        lines += [f"  {c}" for c in self.history.corrections]
        return "\n".join(lines)


def said(fact: Fact) -> dict[str, object]:
    """What a fact says beside what every fact says."""
    plain: dict[str, object] = {
        "e": NAMED.get(fact.encounter, fact.encounter),
        "v": fact.version,
        "of": KEYS.index(fact.patient) if fact.patient in KEYS else fact.patient,
        "site": fact.site,
        "status": str(fact.status),
        "classes": [f"{c}@{since:%Y-%m-%dT%H:%M:%S}" for c, since in fact.classes],
        "start": _text(fact.start),
        "end": _text(fact.end),
        "sent": fact.event_time,
        "recorded": fact.recorded,
    }
    others: dict[str, object] = {
        "triaged": fact.triaged,
        "disposition": fact.disposition,
        "service": fact.service,
        "part_of": fact.part_of and NAMED.get(fact.part_of, fact.part_of),
        "transfer_in": fact.transfer_in,
        "transfer_out": fact.transfer_out,
        "planned": fact.planned,
        "codes": fact.codes,
        "ambiguous": fact.time_is_ambiguous,
        "assumed": fact.start_is_assumed,
        "backfill": fact.backfill,
    }
    return plain | {name: value for name, value in others.items() if value}


NAMED = {key(name): name for name in NAMES}


def _text(moment: Moment | None) -> str:
    if moment is None:
        return "-"
    return f"{moment.earliest:%Y-%m-%dT%H:%M:%S}" + ("" if moment.exact else "(day)")


# Policies


@cache
def rule_of(text: str) -> Policy:
    return policy(text) if text else qc_default()


RULES = ["", "", "", VARIANT]


def a_rule(chance: random.Random) -> str:
    """The default, a second one, or one of a thousand of the full language."""
    if chance.random() < 0.7:
        return chance.choice(RULES)
    return _any_rule(chance.randrange(1000))


MEASURES = [*["ed_visits"] * 9, *["hospital_episodes"] * 6, *["ed_sites"] * 4, "hospital_days"]
DAYS = [365, 365, 180, 90, 60, 30, 7]


@cache
def _any_rule(number: int) -> str:
    """A policy of the full language (section 6)."""
    chance = random.Random(number)
    days = chance.choice(DAYS)
    windows = chance.choice([1, 1, 1, 1, 2, 3])

    def clauses(most: int) -> str:
        found = [_clause(chance) for _ in range(chance.randint(1, most))]
        return f"{{{chance.choice(['any', 'all'])}: [{', '.join(found)}]}}"

    def switch(*names: str) -> str:
        shown = [n for n in names if chance.random() < 0.4]
        return ", ".join(f"{n}: {chance.choice(['true', 'false'])}" for n in shown)

    def link() -> str:
        below, up_to = chance.choice([0, 2, 7]), chance.choice([0, 7, 12, 24])
        return f"{{below_hours: {below}, coded_up_to_hours: {up_to}}}"

    low = chance.choice(["null", "0", "18", "55"])
    high = "56" if chance.random() < 0.2 else "null"
    placed: dict[str, list[str]] = {"ed": ["EMER"], "hospital": ["IMP", "ACUTE"], "not_counted": []}
    for code in ("NONAC", "OBSENC", "SS", "AMB", "HH", "VR", "FLD", "PRENC"):
        where = chance.choice(["not_counted"] * 6 + ["ed", "hospital"])
        placed[where].append(code)
    visits = switch("admitted", "planned", "lwbs", "redirected", "pregnancy", "during_stay")
    stays = switch(
        "elective",
        "day_surgery",
        "obstetric",
        "series",
        "dialysis",
        "mental_health",
        "palliative",
        "reverted_same_day",
    )
    return f"""
window: {{days: {days}, consecutive: {windows}}}
flag: {clauses(3)}
watch: {clauses(2) if chance.random() < 0.7 else "null"}
hold_days: {chance.choice([0, 1, 30, 180, 365])}
quiet_reentry_days: {chance.choice([0, 30, 180])}
alert_max_age_hours: {chance.choice([0, 1, 72])}
timezone: {chance.choice(["America/Toronto", "America/Toronto", "America/St_Johns"])}
person: {{age_min: {low}, age_max: {high}}}
classes: {{{", ".join(f"{k}: [{', '.join(v)}]" for k, v in placed.items())}}}
ed:
  link: {link()}
  reregistration_minutes: {chance.choice([0, 45, 120, 420])}
  min_minutes_if_untriaged: {chance.choice([0, 10, 300])}
  assumed_end_hours: {chance.choice([1, 96])}
  stale_open_days: {chance.choice([1, 14, 90])}
  excluded_sites: [{chance.choice(["", "", "site-b"])}]
  count: {{{visits}}}
hospital:
  link: {link()}
  assumed_end_days: {chance.choice([1, 30])}
  stale_open_days: {chance.choice([30, 180])}
  count: {{{stays}}}
"""


def _clause(chance: random.Random) -> str:
    measure = chance.choice(MEASURES)
    least = chance.choice([1, 5, 12, 31]) if measure == "hospital_days" else chance.randint(1, 4)
    own = f", days: {chance.choice(DAYS)}" if chance.random() < 0.3 else ""
    return f"{{measure: {measure}, at_least: {least}{own}}}"


# Histories


def a_life(number: int) -> Life:
    """The history that `number` makes, always the same."""
    chance = random.Random(number)
    keys = KEYS if chance.random() < 0.4 else KEYS[:1]
    often = chance.random() < 0.6
    latest = _encounters(chance, keys, often=often)
    facts = [version for fact in latest for version in _versions(chance, fact, keys)]
    starts = [f.start.earliest for f in facts if f.start] or BASES
    links = _links(chance, starts) if len(keys) > 1 else []
    corrections = _corrections(chance, latest)
    persons = [one for k in keys for one in _persons(chance, k, starts, 0.15 * len(keys))]
    near = starts if chance.random() < 0.5 else sorted(starts)[-2:]
    as_of = chance.choice(near) + chance.choice([*STEPS, 300 * DAY]) + _nudge(chance)
    learnt = [t for t in History(facts, [], links, corrections).instants() if t >= as_of]
    known_at = as_of
    if learnt and chance.random() < 0.6:
        known_at = chance.choice(learnt) if chance.random() < 0.3 else max(learnt)
    sent = [*facts, *(f for f in facts if chance.random() < 0.2)]
    chance.shuffle(sent)
    return Life(
        number=number,
        rule=a_rule(chance),
        history=History(sent, persons, links, corrections),
        patient=chance.choice(keys) if chance.random() < 0.2 else P,
        as_of=as_of,
        known_at=known_at,
    )


def _nudge(chance: random.Random) -> timedelta:
    return chance.choice([-1, 0, 0, 1]) * SECOND


def _step(chance: random.Random, *, often: bool) -> timedelta:
    if chance.random() < 0.6:
        return timedelta(days=chance.randint(0, 30 if often else 60), hours=3)
    return chance.choice(STEPS[:8] if often else STEPS) + _nudge(chance)


def _encounters(chance: random.Random, keys: Sequence[UUID], *, often: bool) -> list[Fact]:
    """Each close to a boundary of the one before; `often`: of somebody who comes often."""
    found: list[Fact] = []
    moment = chance.choice(BASES)
    for name in NAMES[: chance.randint(4, 12) if often else chance.randint(0, 7)]:
        start = moment + _step(chance, often=often)
        ordinary = often and chance.random() < 0.7
        fact = _encounter(chance, name, start, chance.choice(keys), ordinary=ordinary)
        found.append(fact)
        moment = start
        if fact.end and chance.random() < 0.5:
            moment = fact.end.latest + timedelta(microseconds=1) * (not fact.end.exact)
    return found


def _encounter(
    chance: random.Random, name: str, start: datetime, patient: UUID, *, ordinary: bool
) -> Fact:
    """One encounter; an ordinary one has nothing odd about it."""
    if ordinary:
        return encounter(
            name,
            start,
            start + chance.choice([HOUR, 4 * HOUR, 20 * HOUR]),
            chance.choice([["EMER"], ["EMER"], ["EMER"], ["IMP"]]),
            recorded=start + chance.choice(LATENESS[:4]),
            patient=patient,
        )
    length = chance.choice(LENGTHS)
    end = start + length if length else None
    shape = chance.choice(HISTORIES)
    parts = (length or 8 * HOUR) / len(shape)
    classes = [(code, start + i * parts) for i, code in enumerate(shape)]
    said: dict[str, Any] = {"triaged": chance.random() < 0.7}
    if chance.random() < 0.05:
        classes[-1] = (classes[-1][0], start + 20 * DAY)
    if chance.random() < 0.3:
        said["disposition"] = chance.choice(DISPOSITIONS)
    if chance.random() < 0.02:
        said["disposition"] = chance.choice(["died", "dead-on-arrival"])
    if chance.random() < 0.1:
        said["service"] = chance.choice(SERVICES)
    if chance.random() < 0.15:
        said["codes"] = [chance.choice(CODES)]
    if chance.random() < 0.1:
        said["part_of"] = chance.choice(NAMES)
    for mark, rate in (
        ("planned", 0.1),
        ("transfer_in", 0.12),
        ("transfer_out", 0.12),
        ("from_emergency", 0.1),
        ("time_is_ambiguous", 0.05),
        ("start_is_assumed", 0.05),
        ("backfill", 0.1),
    ):
        said[mark] = chance.random() < rate
    status = "finished" if length else chance.choice(["arrived", "in-progress", "unknown"])
    if chance.random() < 0.06:
        status = chance.choice(["cancelled", "entered-in-error", "planned", "onleave"])
    begin: datetime | Moment | None = _day(start) if chance.random() < 0.08 else start
    ended: datetime | Moment | None = end
    if end and chance.random() < 0.05:
        ended = _day(end)
    if chance.random() < 0.02:
        begin = None
    return encounter(
        name,
        begin,
        ended,
        classes,
        site=chance.choice(["site-a", "site-a", "site-b", "site-c"]),
        status=status,
        event_time=start - chance.choice([timedelta(0), 5 * HOUR / 60, 5 * HOUR / 60 + SECOND]),
        recorded=start + chance.choice(LATENESS),
        patient=patient,
        **said,
    )


def _day(instant: datetime) -> Moment:
    local = instant.astimezone(qc_default().zone)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    following = (day.replace(tzinfo=None) + DAY).replace(tzinfo=day.tzinfo)
    return Moment(day.astimezone(UTC), following.astimezone(UTC) - timedelta(microseconds=1))


def _versions(chance: random.Random, fact: Fact, keys: Sequence[UUID]) -> list[Fact]:
    """The fact alone, or what was said before it was right: corrections, voids, other patients."""
    found = [fact]
    while chance.random() < 0.35 and len(found) < 4:
        wrong = _wrong(chance, fact, keys)
        found.insert(0, replace(wrong, recorded=fact.recorded))
    learnt, versions = fact.recorded, []
    for n, version in enumerate(found, start=1):
        versions.append(replace(version, version=n, recorded=learnt))
        learnt += chance.choice([*LATENESS[1:], 30 * DAY])
    return versions


def _wrong(chance: random.Random, fact: Fact, keys: Sequence[UUID]) -> Fact:
    match chance.randint(0, 7):
        case 0:
            return replace(fact, status=Status.ARRIVED, end=None, classes=fact.classes[:1])
        case 1:
            return replace(fact, patient=chance.choice(keys))
        case 2:
            return replace(fact, status=Status.ENTERED_IN_ERROR)
        case 3:
            return replace(fact, status=Status.CANCELLED)
        case 4:
            return replace(fact, planned=not fact.planned)
        case 5:
            return replace(fact, site="site-c", codes=None, disposition=Disposition.HOME)
        case 6:
            by = chance.choice([-DAY, -HOUR, HOUR, DAY])
            moved = fact.start and Moment(fact.start.earliest + by, fact.start.latest + by)
            return replace(fact, start=moved)
        case _:
            return replace(fact, backfill=not fact.backfill)


def _persons(
    chance: random.Random, of: UUID, starts: Sequence[datetime], changed: float
) -> list[Person]:
    """Who is behind a key; a second version, with probability `changed`, corrects or has died."""
    born = chance.choice(BORN)
    recorded = EARLY if chance.random() < 0.9 else chance.choice(starts) + DAY
    found = [person(born, key=of, recorded=recorded)]
    if chance.random() < changed:
        died = chance.choice(starts) + chance.choice([*STEPS])
        found.append(
            person(
                chance.choice(BORN),
                died if chance.random() < 0.7 else None,
                key=of,
                version=2,
                recorded=max(recorded, died) + HOUR,
            )
        )
    return found


def _links(chance: random.Random, starts: Sequence[datetime]) -> list[Link]:
    """Q into P, R into Q or P; undone, and made again."""
    found = []
    for retired, surviving in ((Q, P), (KEYS[2], chance.choice([P, Q]))):
        learnt = chance.choice(starts) + chance.choice([*STEPS[:6], 9 * DAY, 400 * DAY]) + HOUR / 3
        for version in range(1, chance.choice([0, 1, 1, 1, 2, 2, 3]) + 1):
            found.append(Link(retired, surviving, version, version % 2 == 1, learnt))
            learnt += chance.choice([HOUR, 2 * DAY, 100 * DAY])
    chance.shuffle(found)
    return found


def _corrections(chance: random.Random, facts: Sequence[Fact]) -> list[Correction]:
    """A person takes an encounter out of the count, puts it back, takes it out again (CT-17)."""
    found = []
    for fact in facts:
        learnt = fact.recorded + chance.choice([-HOUR, HOUR / 2, 9 * DAY])
        for version in range(1, chance.choice([0] * 12 + [1, 1, 2, 3]) + 1):
            found.append(Correction(fact.encounter, version, version % 2 == 1, learnt))
            learnt += chance.choice([HOUR / 2, 30 * DAY])
    chance.shuffle(found)
    return found
