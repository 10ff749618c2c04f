"""`make consent-proof`: the case table, the properties, the time, and the planted faults (CS-37).

    python -m tests.consent.proof [--examples 50000] [--mutant-examples 300] [--jobs 2]
                                  [--only table,time,faults,mutants,properties]
                                  [--every 1] [--report FILE]

Every part runs in processes of its own, so that a copy of the engine with a fault in it never
meets the engine itself. Exit code 0 only if every case is exact, nothing leaks, every property
holds, a decision takes at most 5 ms in 99 of 100, every fault is caught, and so are 95 of 100
mutants (`--every 8` looks at each eighth of them alone).
"""

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final, NoReturn

import hypothesis
import orjson
import pydantic

import schemas.episode_changed_v1
import schemas.flag_changed_v1
import services.notify
from tests.consent.faults import FAULTS, Fault
from tests.consent.mutants import Mutant, changed, mutants
from tests.consent.table import Case, cases, differences, leaks

PRELOADED: Final = (
    orjson,
    pydantic,
    schemas.episode_changed_v1,
    schemas.flag_changed_v1,
)
"""Imported before the processes part, so that each need not do it again."""
NOTIFY: Final = Path(services.notify.__file__ or "").parent
PARTS: Final = ("table", "time", "faults", "mutants", "properties")
KILLED: Final = 0.95
"""Of the mutants (CS-37)."""
PATIENCE: Final = 20
"""Seconds of processor time after which a mutant is one that never ends."""
LIMIT: Final = 0.005
"""Seconds in which 99 of 100 decisions are made: 5 Consents, 20 items, 2 readers."""
ROUNDS: Final = 2_000
PROPERTIES: Final = "tests.rules.test_consent_properties"
ENGINES: Final = frozenset({PROPERTIES, "tests.consent.worlds", "tests.consent.timing"})
"""Modules of the tests that hold on to the engine they were imported with."""


class Lines:
    """What is printed, and kept for the report."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, text: str = "") -> None:
        self.said.append(text)
        print(text, flush=True)


# --- in a process of its own ------------------------------------------------------------------


def plant(fault: Fault) -> None:
    """Let `services.notify` have a copy of one module with `fault` in it."""
    name = f"services.notify.{fault.module}"
    source = (NOTIFY / f"{fault.module}.py").read_text()
    if source.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: its text stands {source.count(fault.old)} times")
    copy = types.ModuleType(name)
    copy.__file__ = f"<{fault.module} with a fault>"
    sys.modules[name] = copy
    setattr(services.notify, fault.module, copy)
    exec(compile(source.replace(fault.old, fault.new), name, "exec"), copy.__dict__)


class NeverEndsError(BaseException):
    """Not to be taken for an error of the decision, which is a Hold."""


def grow(mutant: Mutant) -> None:
    """Let `services.notify` have a copy of the engine with `mutant` in it."""
    stale = [n for n in sys.modules if n.startswith("services.notify.") or n in ENGINES]
    for name in stale:
        del sys.modules[name]
        vars(services.notify).pop(name.removeprefix("services.notify."), None)
    name = "services.notify.consent"
    tree = changed((NOTIFY / "consent.py").read_text(), mutant)
    copy = types.ModuleType(name)
    sys.modules[name] = copy
    setattr(services.notify, "consent", copy)  # noqa: B010 - mypy knows no module that is set
    exec(compile(tree, name, "exec"), copy.__dict__)


def killer(mutant: Mutant, examples: int) -> str:
    """What kills it: a case, a property, itself; or nothing (empty)."""
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        grow(mutant)
        for case, _, _ in wrong_cases():
            return case.id
        for name in property_names():
            if run_property(name, examples, quiet=True)[3]:
                return name.removeprefix("test_").split("_")[0]
    except NeverEndsError:
        return "it never ends"
    except Exception as error:  # noqa: BLE001 - what cannot be imported is dead
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def run_mutants(numbers: list[int], examples: int) -> list[tuple[int, str]]:
    """Several in one process, one after the other."""

    def stop(_number: int, _frame: object) -> NoReturn:
        raise NeverEndsError

    signal.signal(signal.SIGPROF, stop)
    grown = mutants((NOTIFY / "consent.py").read_text())
    return [(number, killer(grown[number], examples)) for number in numbers]


def wrong_cases() -> Iterator[tuple[Case, list[str], list[str]]]:
    """Cases that are not exact: what differs, what leaks."""
    decide = importlib.import_module("services.notify.decide")
    for case in cases():
        code, text = decide.answer(json.dumps(case.document).encode())
        answer = json.loads(text)
        if found := differences(case, code, answer):
            yield case, found, leaks(case, answer) if code == 0 else []


def run_table() -> tuple[list[str], list[str]]:
    """What is not exact, and what leaks, each by case."""
    wrong = list(wrong_cases())
    return [f"{c.id} {why}" for c, found, _ in wrong for why in found], [
        f"{c.id} {what}" for c, _, leaked in wrong for what in leaked
    ]


def property_names() -> list[str]:
    source = (Path(__file__).parents[1] / "rules" / "test_consent_properties.py").read_text()
    return [
        line.split("(")[0].removeprefix("def ")
        for line in source.splitlines()
        if line.startswith("def test_")
    ]


def run_property(name: str, examples: int, *, quiet: bool = False) -> tuple[str, int, float, str]:
    """Name, examples that were run, seconds, and what broke it (empty: it holds)."""
    counted = 0
    profile = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=quiet,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        verbosity=hypothesis.Verbosity.quiet,
    )
    hypothesis.settings.register_profile("proof", profile)
    hypothesis.settings.load_profile("proof")  # before the properties, which take it over
    held: Any = getattr(importlib.import_module(PROPERTIES), name)
    inner = held.hypothesis.inner_test

    def counting(*args: Any, **kwargs: Any) -> None:
        nonlocal counted
        inner(*args, **kwargs)
        counted += 1

    held.hypothesis.inner_test = counting
    begun = time.perf_counter()
    try:
        held()
    except Exception as error:  # noqa: BLE001 - whatever breaks it, breaks it
        return name, counted, time.perf_counter() - begun, f"{type(error).__name__}"
    return name, counted, time.perf_counter() - begun, ""


def run_fault(number: int, examples: int) -> tuple[int, str]:
    """What caught it: a case, a property, or nothing (empty)."""
    plant(FAULTS[number])
    for case, _, _ in wrong_cases():
        return number, case.id
    for name in property_names():
        if run_property(name, examples, quiet=True)[3]:
            return number, name.removeprefix("test_").split("_")[0]
    return number, ""


def run_time(_: int) -> tuple[float, float]:
    """Seconds of processor time a decision takes: half of them less, 99 of 100 less."""
    timing = importlib.import_module("tests.consent.timing")
    taken: list[float] = timing.decisions(ROUNDS)
    return taken[len(taken) // 2], taken[len(taken) * 99 // 100]


# --- the proof --------------------------------------------------------------------------------


def in_processes(
    jobs: int, work: Callable[..., Any], arguments: list[tuple[Any, ...]]
) -> Iterator[Any]:
    """Results as they come; each in a fresh process."""
    context = multiprocessing.get_context("fork")
    waiting = list(arguments)
    running: dict[Future[Any], ProcessPoolExecutor] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            pool = ProcessPoolExecutor(1, mp_context=context)
            running[pool.submit(work, *waiting.pop(0))] = pool
        done = next(as_completed(running))
        running.pop(done).shutdown()
        yield done.result()


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--examples", type=int, default=50_000)
    asked.add_argument("--mutant-examples", type=int, default=300)
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--only", default=",".join(PARTS))
    asked.add_argument("--every", type=int, default=1)
    asked.add_argument("--report", type=Path)
    said = asked.parse_args()
    parts, lines = said.only.split(","), Lines()
    good = True
    if "table" in parts:
        good &= prove_table(said.jobs, lines)
    if "time" in parts:
        good &= prove_time(lines)
    if "faults" in parts:
        good &= prove_faults(said.jobs, said.mutant_examples, lines)
    if "mutants" in parts:
        good &= prove_mutants(said.jobs, said.mutant_examples, said.every, lines)
    if "properties" in parts:
        good &= prove_properties(said.jobs, said.examples, lines)
    lines(f"{'PROVEN' if good else 'NOT PROVEN'}: {', '.join(parts)}")
    if said.report:
        said.report.write_text("\n".join(lines.said) + "\n")
    return 0 if good else 1


def prove_table(jobs: int, lines: Lines) -> bool:
    ((wrong, leaked),) = in_processes(jobs, run_table, [()])
    lines(f"Table: {len(cases())} cases, {len(wrong)} differences, {len(leaked)} leaks.")
    for line in [*wrong, *leaked]:
        lines(f"  {line}")
    lines()
    return not wrong and not leaked


def prove_time(lines: Lines) -> bool:
    ((half, most),) = in_processes(1, run_time, [(0,)])
    lines(
        f"Time of a decision over 5 Consents, 20 items, 2 readers ({ROUNDS} decisions, processor"
        f" time): p50 {half * 1000:.1f} ms, p99 {most * 1000:.1f} ms; at most"
        f" {LIMIT * 1000:.0f} ms wanted."
    )
    lines()
    return bool(most <= LIMIT)


def prove_faults(jobs: int, examples: int, lines: Lines) -> bool:
    arguments = [(number, examples) for number in range(len(FAULTS))]
    caught = dict(in_processes(jobs, run_fault, arguments))
    lines(f"Faults: {sum(map(bool, caught.values()))} of {len(FAULTS)} caught.")
    lines()
    lines("| rule | fault | caught by |")
    lines("| --- | --- | --- |")
    for number, fault in enumerate(FAULTS):
        lines(f"| {fault.rule} | {fault.name} | {caught[number] or 'NOTHING'} |")
    lines()
    return all(caught.values())


def prove_mutants(jobs: int, examples: int, every: int, lines: Lines) -> bool:
    grown = mutants((NOTIFY / "consent.py").read_text())
    numbers = list(range(0, len(grown), every))
    share = [numbers[n : n + 16] for n in range(0, len(numbers), 16)]
    caught: dict[int, str] = {}
    for some in in_processes(jobs, run_mutants, [(part, examples) for part in share]):
        caught.update(some)
    alive = [number for number in numbers if not caught[number]]
    killed = 1 - len(alive) / len(numbers)
    lines(f"Mutants: {len(numbers) - len(alive)} of {len(numbers)} killed ({killed:.1%}).")
    for number in alive:
        mutant = grown[number]
        lines(f"  alive, line {mutant.line}: {mutant.now[:70]} -> {mutant.then[:70]}")
    lines()
    return killed >= KILLED


def prove_properties(jobs: int, examples: int, lines: Lines) -> bool:
    lines("| property | examples | holds | seconds |")
    lines("| --- | ---: | --- | ---: |")
    good = True
    found = in_processes(jobs, run_property, [(name, examples) for name in property_names()])
    for name, counted, seconds, broken in found:
        sentence = name.removeprefix("test_").replace("_", " ")
        lines(f"| {sentence} | {counted:,} | {broken or 'yes'} | {seconds:.0f} |")
        good &= not broken and counted >= examples * 0.9
    lines()
    return good


if __name__ == "__main__":
    sys.exit(main())
