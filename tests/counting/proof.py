"""`make mutate-counting`: faults planted in the rules of counting, and what catches each (ORC-05).

    python -m tests.counting.proof [--histories 3000] [--examples 300] [--jobs 2]
                                   [--only WORDS] [--report docs/counting-proof.md]

A fault is a changed text in a copy of one module; the tree is never touched. Each gets a
process of its own and meets, until one sees it: the cases of each situation, the worked
examples, random histories beside the oracle, the properties. Exit code 1 if one is seen by none.
"""

import argparse
import importlib
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import hypothesis
import orjson
import pydantic
import yaml

import services.screening
from tests.counting.faults import FAULTS, Fault

PRELOADED: Final = (orjson, pydantic, yaml)
"""Imported before the processes part, so that each need not do it again."""
SCREENING: Final = Path(services.screening.__file__ or "").parent
PROPERTIES: Final = "tests.rules.test_counting_properties"
RULES: Final = ("services.screening.", "tests.histories", "tests.counting.", PROPERTIES)
TITLE: Final = (
    "# Faults planted in the rules of counting, and what caught them\n\n"
    "Printed by `make mutate-counting`. Each line is one change of the rules' source, planted alone"
    " in a copy. `CR-…` is a case of `tests/counting/cases.yaml` (*flipped*: with its parameter"
    " changed), `W-…` a worked example, *history* the first random history on which rules and"
    " oracle disagree, `pt-…` a property.\n"
)


def plant(fault: Fault) -> None:
    """Let `services.screening` have a copy of one module with `fault` in it."""
    name = f"services.screening.{fault.module}"
    source = (SCREENING / f"{fault.module}.py").read_text()
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: its text stands {source.count(fault.old)} times")
    forget()
    copy = types.ModuleType(name)
    copy.__file__ = f"<{fault.module} with a fault>"
    sys.modules[name] = copy
    setattr(services.screening, fault.module, copy)
    exec(compile(source.replace(fault.old, fault.new), name, "exec"), copy.__dict__)


def forget() -> None:
    """Let every module be imported anew that holds on to the rules it was imported with."""
    for known in [n for n in sys.modules if n.startswith(RULES)]:
        del sys.modules[known]
        vars(services.screening).pop(known.removeprefix("services.screening."), None)


NOTHING: Final = -1
"""The number of no fault: then nothing may be seen."""


def caught(number: int, histories: int, examples: int) -> tuple[int, str]:
    """What caught it: a case, an example, a history, a property; or nothing (empty)."""
    if number != NOTHING:
        plant(FAULTS[number])
    return number, next(_witnesses(histories, examples), "")


def _witnesses(histories: int, examples: int) -> Iterator[str]:
    """All that sees a difference, the quickest to look first. An error is a difference too."""
    try:
        yield from _by_example()
        compare = importlib.import_module("tests.counting.compare")
        lives = importlib.import_module("tests.counting.lives")
        for n in range(histories):
            if compare.differences(lives.a_life(n)):
                yield f"history {n}"
        yield from _broken(examples)
    except Exception as error:  # noqa: BLE001 - what does not even run is seen
        yield type(error).__name__


def _by_example() -> Iterator[str]:
    cases = importlib.import_module("tests.counting.cases")
    for case in cases.cases():
        if next(case.wrong(), None) or next(case.disputed(), None):
            yield case.id
    worked = importlib.import_module("tests.counting.worked")
    for example in worked.examples():
        if next(worked.wrong(example), None):
            yield example["id"]
    for example in worked.entries():
        if next(worked.misjudged(example), None):
            yield example["id"]


def property_names() -> list[str]:
    source = (Path(__file__).parents[1] / "rules" / "test_counting_properties.py").read_text()
    return [
        line.split("(")[0].removeprefix("def ")
        for line in source.splitlines()
        if line.startswith("def test_")
    ]


def _broken(examples: int) -> Iterator[str]:
    """The properties that do not hold, by name."""
    profile = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        verbosity=hypothesis.Verbosity.quiet,
    )
    hypothesis.settings.register_profile("proof", profile)
    hypothesis.settings.load_profile("proof")  # before the properties, which take it over
    properties: Any = importlib.import_module(PROPERTIES)
    for name in property_names():
        try:
            getattr(properties, name)()
        except Exception:  # noqa: BLE001 - whatever breaks it, breaks it
            yield "-".join(name.removeprefix("test_").split("_")[:2])


def mutate(
    numbers: list[int], histories: int, examples: int, jobs: int
) -> Iterator[tuple[Fault, str]]:
    """Each fault with what caught it, in the order of the list; each in a fresh process."""
    context = multiprocessing.get_context("fork")
    found: dict[int, str] = {}
    waiting = list(numbers)
    running: dict[Future[tuple[int, str]], ProcessPoolExecutor] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            pool = ProcessPoolExecutor(1, mp_context=context)
            running[pool.submit(caught, waiting.pop(0), histories, examples)] = pool
        done = next(as_completed(running))
        running.pop(done).shutdown()
        number, witness = done.result()
        found[number] = witness
    for number in numbers:
        yield FAULTS[number], found[number]


def caught_alone(histories: int, examples: int) -> str:
    """What is seen without any fault."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(caught, NOTHING, histories, examples).result()[1]


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--histories", type=int, default=3000)
    asked.add_argument("--examples", type=int, default=300)
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--only", default="")
    asked.add_argument("--report", type=Path)
    said = asked.parse_args()
    numbers = [n for n, f in enumerate(FAULTS) if said.only in f"{f.rule} {f.module} {f.name}"]
    begun = time.perf_counter()
    if seen := caught_alone(said.histories, said.examples):
        print(f"Without any fault there is a difference: {seen}")
        return 2
    rows = list(mutate(numbers, said.histories, said.examples, said.jobs))
    alive = sum(not witness for _, witness in rows)
    lines = [
        f"{len(rows) - alive} of {len(rows)} faults caught.",
        "",
        "| rule | fault | module | caught by |",
        "| --- | --- | --- | --- |",
        *(f"| {f.rule} | {f.name} | {f.module} | {seen or 'NOTHING'} |" for f, seen in rows),
    ]
    print("\n".join(lines))
    print(f"\n{time.perf_counter() - begun:.0f} s on {said.jobs} processes")
    if said.report:
        said.report.write_text(TITLE + "\n" + "\n".join(lines) + "\n")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
