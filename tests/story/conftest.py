"""A whole house for a story: its own data directory and ports, on either carrier."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.cli import house
from services.cli.house import House, Plan
from services.simulator.flow import REGION_FILE
from tests.broker import Broker

ARTIFACTS = Path(__file__).parents[2] / "build" / "story-logs"


def four_ports() -> int:
    """The first of four free ports in a row; another process of tests looks elsewhere."""
    for step in range(1200):
        base = 18000 + (os.getpid() + step) % 1200 * 10
        sockets = [socket.socket() for _ in range(4)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        else:
            return base
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


CANARY = re.compile(rb"TEST[-0-9]|Testfamily|Exemple|Camille|\b19\d\d-\d\d-\d\d\b")
"""Seeded identifiers, names and birth dates: no log of any process may hold one (promise 5)."""


def leaks(logs: Sequence[Path]) -> list[str]:
    """`file:line` of every canary in `logs`."""
    return [
        f"{log.name}:{number}"
        for log in logs
        for number, line in enumerate(log.read_bytes().splitlines(), start=1)
        if CANARY.search(line)
    ]


@asynccontextmanager
async def a_house(
    region: Path = REGION_FILE, extra: Mapping[str, str] | None = None, clock: Path | None = None
) -> AsyncIterator[House]:
    """A running house on an empty data directory. Its logs, kept under build/, hold no canary."""
    with tempfile.TemporaryDirectory(prefix="ph-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "d"
        Path(folder).chmod(0o711)
        plan = Plan(data=data, region=region, port=four_ports(), extra=extra or {}, clock=clock)
        try:
            async with house.running(plan) as built:
                yield built
        finally:
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            logs = [*data.glob("*.log"), *data.glob("postgres/*.log")]
            for log in logs:
                shutil.copy(log, ARTIFACTS / f"{Path(folder).name}-{log.name}")
            assert leaks(logs) == []


@pytest.fixture(params=["postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def carried(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables that choose a carrier: each story runs on both. Kafka's topics are made."""
    if request.param == "postgres":
        return {}
    broker: Broker = request.getfixturevalue("broker")
    variables = {
        "PASSERELLE_KAFKA_BOOTSTRAP": broker.bootstrap,
        "PASSERELLE_KAFKA_PREFIX": f"s{secrets.token_hex(4)}.",
    }
    made = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "topics"],
        env={**os.environ, **variables},  # noqa: TID251 - a child of the tests
        capture_output=True,
        text=True,
        check=True,
    )
    assert "encounter.recorded.v1: made" in made.stdout
    return variables
