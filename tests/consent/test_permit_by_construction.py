"""Nothing is told without a Permit, and only the decision makes one (CS-35; style.md 5.3)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
from services.notify.card import compose
from services.notify.consent import Decision, Hold, Permit, Policy, Request, Withhold, decide
from services.notify.recount import Standing, View

def tell(standing: Standing, asked: Request, policy: Policy) -> View | None:
    decision = decide([], asked, policy)
"""
WELL = """
    match decision:
        case Permit():
            return compose(standing, decision)
        case Withhold() | Hold():
            return None
"""
ILL = {
    "a refusal is composed": ("    return compose(standing, decision)\n", "arg-type"),
    "a decision is taken for a truth": (
        "    if decision:\n        return None\n    return None\n",
        "truthy-bool",
    ),
    "a Hold is forgotten": (
        "    match decision:\n"
        "        case Permit():\n            return compose(standing, decision)\n"
        "        case Withhold():\n            return None\n",
        "exhaustive-match",
    ),
}


def calls(source: str) -> list[str]:
    """Where `Permit(…)` is called: the function it stands in."""
    tree = ast.parse(source)
    return [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Permit"
    ]


def test_only_consent_makes_a_permit() -> None:
    found = {
        str(file.relative_to(ROOT)): made
        for file in sorted((ROOT / "services").rglob("*.py"))
        if (made := calls(file.read_text()))
    }
    assert found == {"services/notify/consent.py": ["_decide"]}


def checked(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "told.py"
    file.write_text(HEAD + body)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--cache-dir",
            str(folder / "cache"),
            str(file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_type_checker_refuses_to_tell_without_a_permit(tmp_path: Path) -> None:
    well = checked(WELL, tmp_path)
    assert well.returncode == 0, well.stdout
    for what, (body, code) in ILL.items():
        said = checked(body, tmp_path)
        assert said.returncode == 1, what
        assert f"[{code}]" in said.stdout, said.stdout
