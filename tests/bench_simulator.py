"""How fast the simulator writes, and in how much memory (SIM-10): `make bench-simulator`.

Each line is one process of its own, whose processor time is taken: a machine that does other
things besides does not change it. `--profile` adds where the time goes.
"""

import cProfile
import multiprocessing
import pstats
import resource
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import NamedTuple

from services.simulator import files

RUNS = (
    ("demo", 2_000),
    ("region", 10_000),
    ("region", 40_000),
    ("wide", 20_000),
    ("dense", 2_000),
    ("dense", 8_000),
)


class Run(NamedTuple):
    encounters: int
    seconds: float
    peak: float
    """Megabytes, of the whole process."""


def run(profile: str, people: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="pb-") as folder:
        began = process_time()
        lines = files.write(Path(folder) / "out", profile=profile, seed=2018, people=people)
        seconds = process_time() - began
    encounters = sum(count for name, count in lines.items() if name.endswith("Encounter.ndjson"))
    return Run(encounters, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def where(profile: str, people: int) -> None:
    """Prints the functions that take most of the time."""
    with tempfile.TemporaryDirectory(prefix="pb-") as folder, cProfile.Profile() as watched:
        files.write(Path(folder) / "out", profile=profile, seed=2018, people=people)
    pstats.Stats(watched).strip_dirs().sort_stats("tottime").print_stats(25)


def main() -> None:
    print("| profile | people | encounters | encounters/s of processor time | peak memory |")
    print("|---|---|---|---|---|")
    afresh = multiprocessing.get_context("spawn")
    for profile, people in RUNS:
        with afresh.Pool(1) as pool:
            one = pool.apply(run, (profile, people))
        rate = one.encounters / one.seconds
        print(
            f"| {profile} | {people:,} | {one.encounters:,} | {rate:,.0f} | {one.peak:.0f} MB |",
            flush=True,
        )
    if "--profile" in sys.argv:
        where("wide", 10_000)


if __name__ == "__main__":
    main()
