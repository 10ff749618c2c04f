"""Each import rule is shown to fail on a planted violation (architecture.md, the house)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PLANTED = {
    "a service imports another": (
        "services/screening/flow.py",
        "import services.notify.store",
        "No service imports another",
    ),
    "plumbing imports a service": (
        "services/plumbing/clock.py",
        "import services.ingest.store",
        "No service imports another",
    ),
    "a new plumbing-like package": (
        "services/utils/__init__.py",
        "",
        "No service imports another",
    ),
    "a contract imports a service": (
        "schemas/envelope.py",
        "import services.plumbing.clock",
        "Contracts know no service",
    ),
    "plumbing knows an event": (
        "services/plumbing/eventlog.py",
        "import schemas.flag_changed_v1",
        "Plumbing knows the envelope",
    ),
    "a rule reads the clock": (
        "services/screening/window.py",
        "import services.plumbing.clock",
        "The rules are pure",
    ),
    "a rule uses a framework": (
        "services/notify/consent.py",
        "import pydantic",
        "The rules are pure",
    ),
    "a rule imports its store": (
        "services/ingest/folding.py",
        "import services.ingest.store",
        "Inside a service imports go down",
    ),
    "a new file without a place": (
        "services/screening/misc.py",
        "",
        "Inside a service imports go down",
    ),
    "the simulator looks inside": (
        "services/simulator/hospital.py",
        "import services.plumbing.db",
        "The simulator knows the public doors only",
    ),
    "the oracle looks at the rules": (
        "tests/oracle.py",
        "import services.screening.window",
        "The oracle is independent",
    ),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlinter.cli as cli, sys; sys.exit(cli.lint_imports(no_cache=True))",
        ],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("services", "schemas", "tests"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc", "artifacts")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_tree_as_it_is_keeps_every_rule(copy: Path) -> None:
    said = lint(copy)
    assert said.returncode == 0, said.stdout[-2000:]


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_found(copy: Path, what: str) -> None:
    file, line, contract = PLANTED[what]
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n{line}\n")
    said = lint(copy)
    assert said.returncode != 0
    broken = [row for row in said.stdout.splitlines() if row.endswith("BROKEN")]
    assert any(row.startswith(contract) for row in broken) or contract in said.stderr, said.stdout
