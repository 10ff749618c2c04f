"""The golden files W-1 to W-8 (worked.yaml), by the rules and by the oracle.

tests/services/test_screening_worked.py runs them through the real service.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml

from services.screening.flag import Announced, Standing, State, notice, retracts, stand
from services.screening.ledger import Fact, History, Link, gather, in_force
from tests.counting.compare import answer, differing, history_told, plain_rule
from tests.counting.table import COLUMNS, read
from tests.histories import at, key, person, qc_default
from tests.oracle import ask
from tests.oracle import notice as told_notice

FILE = Path(__file__).parent / "worked.yaml"
Row = tuple[int, str, int, int, str, str, int | None]
"""Sequence, state, ED visits, stays, cause, notice, what it retracts."""


@cache
def _read() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.load(FILE.read_text(), Loader=yaml.BaseLoader)
    return found


def examples() -> list[dict[str, Any]]:
    """W-1 to W-8."""
    return [one for one in _read() if "said" in one]


def entries() -> list[dict[str, Any]]:
    """Entries that are announced aloud, or quietly (CT-42)."""
    return [one for one in _read() if "notices" in one]


def misjudged(example: dict[str, Any]) -> Iterator[str]:
    """What rules or oracle announce otherwise than the golden file."""
    history, rule = history_of(example), qc_default()
    for known_at, name, how in example["notices"]:
        now = at(known_at)
        standing = stood(history, who(name), now, now)
        said = standing and str(notice(history.until(now), who(name), standing, rule))
        oracle = told_notice(history_told(history), who(name), plain_rule(rule), now)
        if not said == oracle == how:
            yield f"{known_at}: rules {said}, oracle {oracle}, for {how}"


def facts_of(step: dict[str, Any]) -> list[Fact]:
    """What is learnt in a step, all at once."""
    now = at(step["now"])
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in step.get("take", ())]
    return [replace(read(row), recorded=now, first_recorded=now) for row in rows]


def who(name: str) -> UUID:
    return key(f"TEST-{name}")


def wanted(example: dict[str, Any], name: str) -> list[Row]:
    """What is announced of a patient."""
    return [
        (int(n), state, int(ed), int(stays), cause, how, int(gone) if gone else None)
        for n, state, ed, stays, cause, how, gone in example["said"].get(name, ())
    ]


def history_of(example: dict[str, Any]) -> History:
    """Everything that the steps tell."""
    persons = [person(key=who(name)) for name in "pq"]
    facts = [fact for step in example["steps"] for fact in facts_of(step)]
    links = []
    for step in example["steps"]:
        for version, word in ((1, "merge"), (2, "unmerge")):
            if word in step:
                retired, surviving = map(who, step[word])
                links.append(Link(retired, surviving, version, version == 1, at(step["now"])))
    return History(facts=facts, persons=persons, links=links)


def stood(history: History, patient: UUID, as_of: datetime, known_at: datetime) -> Standing | None:
    """Where a patient stood; None: the key is retired."""
    known = history.at(known_at)
    into = in_force(known.links)
    ledger = gather([patient], into, known.facts, known.persons).get(patient)
    return None if ledger is None else stand(ledger, qc_default(), as_of)


def word(standing: Standing) -> str:
    return f"{standing.state}, held" if standing.held else str(standing.state)


def wrong(example: dict[str, Any]) -> Iterator[str]:
    """What rules or oracle say otherwise than the golden file; causes are the service's."""
    history, rule = history_of(example), qc_default()
    told = history_told(history)
    for as_of, known_at, name, ed, stays, state in example["answers"]:
        then, learnt = at(as_of), at(known_at)
        standing = stood(history, who(name), then, learnt)
        oracle = ask(told, who(name), plain_rule(rule), learnt)
        if standing is None or oracle is None:
            yield f"{as_of}: nobody"
            continue
        found = (standing.ed_visits, standing.hospital_episodes, word(standing))
        if found != (int(ed), int(stays), state):
            yield f"{as_of}: {found} for {(ed, stays, state)}"
        known = history.at(learnt)
        into = in_force(known.links)
        ledger = gather([who(name)], into, known.facts, known.persons)[who(name)]
        yield from differing(answer(ledger, rule, then), oracle.answer(then))
    for name in "pq":
        said = list(announced(example, name))
        golden = [row[:4] + row[5:] for row in wanted(example, name)]
        if said != golden:
            yield f"{name}: {said} for {golden}"


def announced(
    example: dict[str, Any], name: str
) -> Iterator[tuple[int, str, int, int, str, int | None]]:
    """What the rules announce of a patient, step by step: all of a row but its cause."""
    history, rule = history_of(example), qc_default()
    told = history_told(history)
    was, sequence, entry = Announced(), 0, 0
    last: object = None
    for step in example["steps"]:
        now = at(step["now"])
        standing = stood(history, who(name), now, now)
        if standing is None:
            continue
        shown = (word(standing), standing.ed_visits, standing.hospital_episodes)
        quiet = was.state is State.BELOW and standing.state is State.BELOW
        if quiet or shown == last:
            continue
        sequence, last = sequence + 1, shown
        enters = standing.state is State.FLAGGED and was.state is not State.FLAGGED
        how = str(notice(history.until(now), who(name), standing, rule)) if enters else "quiet"
        if enters and how != told_notice(told, who(name), plain_rule(rule), now):
            how = f"{how}, not by the oracle"
        entry = sequence if enters else entry
        yield sequence, *shown, how, retracts(was, standing)
        was = replace(
            was, state=standing.state, held=standing.held, since=standing.since, entry=entry
        )
