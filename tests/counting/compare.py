"""`make oracle`: the rules beside the independent oracle (PT-04, ORC-03, ORC-04).

    python -m tests.counting.compare [--histories 200000] [--people 2000] [--instants 50]
                                     [--jobs 2] [--seed 0] [--only NUMBER]

Random histories, and the simulated region's people at many instants each. What differs is cut
down to the smallest timeline that still does, and printed; exit code 1.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, Final

from services.screening import why
from services.screening.flag import Announced, Standing, State, notice, retracts, stand
from services.screening.ledger import Fact, History, Ledger, Person, gather, in_force
from services.screening.policy import Policy
from tests.counting.lives import Life, a_life, rule_of
from tests.histories import plain
from tests.oracle import Oracle, Plain, ask, learnt
from tests.oracle import notice as told_notice
from tests.oracle import retracts as takes_back

CHUNK: Final = 250
"""Histories that a process compares before it reports."""
PROGRESS: Final = 10_000


@cache
def _parsed(canonical: str) -> Plain:
    found: Plain = json.loads(canonical)
    return found


def plain_rule(rule: Policy) -> Plain:
    """The policy as the oracle takes it."""
    return _parsed(rule.canonical)


def answer(known: Ledger, rule: Policy, now: datetime) -> Plain:
    """A standing and its explanation in the oracle's words."""
    standing = stand(known, rule, now)
    coming = standing.next
    reasons = why.explain(known.facts, standing.judged, rule, now)
    return {
        "ed_visits": standing.ed_visits,
        "hospital_episodes": standing.hospital_episodes,
        "counts": (standing.counts, *_earlier(standing)),
        "state": str(standing.state),
        "held": standing.held,
        "since": standing.since,
        "next": coming
        and (
            coming.at,
            coming.ed_visits,
            coming.hospital_episodes,
            str(coming.state),
            coming.held,
        ),
        "items": {_name(item): _item(item) for item in reasons.items},
        "gaps": {
            _name(item): gaps[0]
            for item in reasons.items
            if (gaps := [n.gap for n in item.notes if n.code in ("LINKED", "REREGISTERED")])
        },
        "pathway": reasons.pathway,
        "entered_in_error": reasons.entered_in_error,
    }


def _earlier(standing: Standing) -> Iterator[tuple[int, ...]]:
    """The counts of each window before the newest, one per clause."""
    yield from zip(*standing.earlier, strict=True)


def _name(item: why.Item) -> tuple[str, tuple[str, ...]]:
    return str(item.kind), tuple(sorted(str(f.encounter) for f in item.facts))


def _item(item: why.Item) -> Plain:
    return {
        "reason": item.reason and (item.reason.rule, item.reason.code),
        "anchor": item.anchor,
        "end": item.end,
        "exact": item.exact,
        "sites": sorted(item.sites),
        "notes": frozenset((n.rule, n.code) for n in item.notes),
    }


def expected(facts: Sequence[Fact], who: Person, rule: Policy, now: datetime) -> Plain:
    person = {"birth_date": who.birth_date, "death": who.death}
    return Oracle([plain(f) for f in facts], person, plain_rule(rule)).answer(now)


def differing(found: Plain, wanted: Plain) -> list[str]:
    """What the rules answer and the oracle does not, a line each."""
    lines = [
        f"{name}: rules {found[name]}, oracle {wanted[name]}"
        for name in found
        if name not in ("items", "gaps") and found[name] != wanted[name]
    ]
    for name, gap in found["gaps"].items():
        if name in wanted["gaps"] and wanted["gaps"][name] != gap:
            lines.append(f"gap: rules {gap}, oracle {wanted['gaps'][name]}")
    for item in sorted({*found["items"], *wanted["items"]}):
        mine, other = found["items"].get(item), wanted["items"].get(item)
        if mine is None or other is None:
            lines.append(f"item {item}: rules {mine}, oracle {other}")
            continue
        lines += [
            f"item {item} {field}: rules {mine[field]}, oracle {other[field]}"
            for field in mine
            if not (field in ("notes", "end") and other["notes"] is None)
            and mine[field] != other[field]
        ]
    return lines


# Histories


def history_told(history: History) -> Plain:
    """A history as the oracle takes it."""
    return {
        "facts": [plain(f) for f in history.facts],
        "persons": [_fields(p) for p in history.persons],
        "links": [_fields(k) for k in history.links],
        "exclusions": [_exclusion(c) for c in history.corrections],
    }


def _fields(value: Any) -> Plain:
    return {name: getattr(value, name) for name in type(value).__dataclass_fields__}


def _exclusion(correction: Any) -> Plain:
    found = _fields(correction)
    return found | {"encounter": str(found["encounter"])}


def ledger_of(life: Life, known_at: datetime) -> Ledger | None:
    known = life.history.at(known_at)
    into = in_force(known.links)
    return gather([life.patient], into, known.facts, known.persons).get(life.patient)


def differences(life: Life) -> list[str]:
    """Where rules and oracle disagree about a life: standing, explanation, announcement."""
    rule, told = rule_of(life.rule), history_told(life.history)
    ledger = ledger_of(life, life.known_at)
    oracle = ask(told, life.patient, plain_rule(rule), life.known_at)
    if ledger is None or oracle is None:
        alike = ledger is None and oracle is None
        return [] if alike else [f"known: rules {ledger}, oracle {oracle}"]
    lines = differing(answer(ledger, rule, life.as_of), oracle.answer(life.as_of))
    now = stand(ledger, rule, life.known_at)
    if now.state is State.FLAGGED:
        said = str(notice(life.history.until(life.known_at), life.patient, now, rule))
        wanted = told_notice(told, life.patient, plain_rule(rule), life.known_at)
        if said != wanted:
            lines.append(f"notice: rules {said}, oracle {wanted}")
    for instant in [t for t in learnt(told) if t < life.known_at][-3:]:
        lines += _retraction(life, instant, now, oracle)
    return lines


def _retraction(life: Life, then: datetime, now: Standing, present: Oracle) -> Iterator[str]:
    """Of a flag that stood at `then`, by what was known at `then` (CT-44)."""
    rule, before = rule_of(life.rule), ledger_of(life, then)
    if before is None or not before.facts:
        return
    was = stand(before, rule, then)
    if was.state is not State.FLAGGED or was.since is None:
        return
    announced = replace(Announced(), state=was.state, held=was.held, since=was.since, entry=7)
    said = retracts(announced, now) == 7
    wanted = takes_back(was.since, present, life.known_at)
    if said is not wanted:
        yield f"retracts what began {was.since}: rules {said}, oracle {wanted}"


def smallest(life: Life, differs: Callable[[Life], bool]) -> Life:
    """`life` without everything that does not matter to the difference."""
    shrinking = True
    while shrinking:
        shrinking = False
        for smaller in _smaller(life):
            if differs(smaller):
                life, shrinking = smaller, True
                break
    return life


def _smaller(life: Life) -> Iterator[Life]:
    history = life.history
    if life.rule:
        yield replace(life, rule="")
    for field in ("facts", "links", "persons", "corrections"):
        values = list(getattr(history, field, ()))
        for n in range(len(values)):
            if field != "persons" or len(values) > 1:
                rest: Any = [*values[:n], *values[n + 1 :]]
                yield replace(life, history=replace(history, **{field: rest}))
    if life.known_at > life.as_of:
        yield replace(life, known_at=life.as_of)
    for n, fact in enumerate(history.facts):
        for plainer in _plainer(fact):
            rest = [*history.facts[:n], plainer, *history.facts[n + 1 :]]
            yield replace(life, history=replace(history, facts=rest))


PLAIN: Final[dict[str, Any]] = {
    "disposition": None,
    "service": None,
    "codes": None,
    "part_of": None,
    "planned": False,
    "transfer_in": False,
    "transfer_out": False,
    "from_emergency": False,
    "time_is_ambiguous": False,
    "start_is_assumed": False,
    "backfill": False,
    "triaged": True,
    "site": "site-a",
}
"""What a fact says that says nothing."""


def _plainer(fact: Fact) -> Iterator[Fact]:
    for field, default in PLAIN.items():
        if getattr(fact, field) != default:
            yield replace(fact, **{field: default})
    if len(fact.classes) > 1:
        yield replace(fact, classes=fact.classes[:1])


# The command


def compare_histories(numbers: range) -> tuple[int, list[int]]:
    """How many were compared, and which disagree."""
    return len(numbers), [n for n in numbers if differences(a_life(n))]


def report(number: int) -> str:
    found = smallest(a_life(number), lambda life: bool(differences(life)))
    return "\n".join([str(found), *differences(found)])


def spread(jobs: int, work: Callable[..., Any], parts: Sequence[Any]) -> Iterator[Any]:
    """Results as they come, until the reader stops."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = [pool.submit(work, part) for part in parts]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--histories", type=int, default=200_000)
    asked.add_argument("--people", type=int, default=0)
    asked.add_argument("--instants", type=int, default=50)
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", type=int)
    said = asked.parse_args()
    if said.only is not None:
        print(report(said.only))
        return int(bool(differences(a_life(said.only))))
    good = compared("histories", said.jobs, compare_histories, _chunks(said), report)
    if said.people:
        from tests.counting import region

        people = min(said.people, len(region.lanes()))
        numbers = [range(n, min(n + 20, people)) for n in range(0, people, 20)]
        work = region.Comparison(said.instants)
        good &= compared("people", said.jobs, work, numbers, work.report)
    return 0 if good else 1


def _chunks(said: argparse.Namespace) -> list[range]:
    last = said.seed + said.histories
    return [range(n, min(n + CHUNK, last)) for n in range(said.seed, last, CHUNK)]


def compared(
    what: str,
    jobs: int,
    work: Callable[[range], tuple[int, list[int]]],
    parts: list[range],
    explain: Callable[[int], str],
) -> bool:
    """Compare all; print how many, how many disagree, how long. Stops at the first part that
    disagrees.
    """
    begun, done, wrong = time.perf_counter(), 0, []
    for count, differ in spread(jobs, work, parts):
        done, told = done + count, done
        wrong += differ
        if done // PROGRESS > told // PROGRESS:
            print(f"  {done:,} {what}", file=sys.stderr, flush=True)
        if wrong:
            break
    if wrong:
        print(min((explain(n) for n in wrong), key=len))
    seconds = time.perf_counter() - begun
    print(f"{done:,} {what} · {len(wrong)} disagreements · {seconds:.0f} s on {jobs} processes")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
