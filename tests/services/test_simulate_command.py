"""`passerelle simulate`: what it writes, and what it will not (SIM-09)."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app

FILES = {
    "consents.ndjson",
    "enrolled.ndjson",
    "hospital-a/Encounter.ndjson",
    "hospital-a/Patient.ndjson",
    "hospital-b/Encounter.ndjson",
    "hospital-b/Patient.ndjson",
    "panels/bad.csv",
    "panels/clinic-a.csv",
    "panels/clinic-b.csv",
    "panels/clinic-c.csv",
    "truth.ndjson",
}


def simulate(*arguments: object) -> tuple[int, str]:
    """Exit code and all that was said."""
    result = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    return result.exit_code, result.output


def test_it_writes_the_files_and_says_how_many_lines_each_has(tmp_path: Path) -> None:
    code, said = simulate("--out", tmp_path / "out", "--people", 60, "--set", "admitted=1.0")
    assert code == 0, said
    found = {str(f.relative_to(tmp_path / "out")) for f in tmp_path.rglob("*") if f.is_file()}
    assert found == FILES
    told = {line.split()[1]: line.split()[0] for line in said.splitlines()}
    assert set(told) == {str(tmp_path / "out" / name) for name in FILES}
    truth = (tmp_path / "out" / "truth.ndjson").read_text().splitlines()
    assert told[str(tmp_path / "out" / "truth.ndjson")] == str(len(truth))


def test_start_and_days_are_arguments(tmp_path: Path) -> None:
    """SIM-07"""
    code, _ = simulate("--out", tmp_path, "--people", 200, "--start", "2031-05-01", "--days", 40)
    assert code == 0
    truth = (tmp_path / "truth.ndjson").read_text().splitlines()
    drawn = [line for line in truth if '"person":9' not in line]
    assert drawn
    assert all('"start":"2031-05' in line or '"start":"2031-06' in line for line in drawn)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "admitted=1.2"], "parameter admitted: outside 0 to 1"),
        (["--set", "admitted=most"], "parameter admitted: not a number"),
        (["--set", "admitted"], "parameter admitted: say NAME=VALUE"),
        (["--set", "kindness=1"], "parameter kindness: unknown"),
        (["--set", "people=few"], "parameter people: not a whole number"),
        (["--set", "start=soon"], "parameter start: not a date"),
        (["--set", "cast=perhaps"], "parameter cast: not true or false"),
        (["--set", "shape=0"], "shape"),
        (["--effect", "-0.1"], "parameter effect: outside 0 to 1"),
        (["--effect", "nan"], "parameter effect: outside 0 to 1"),
        (["--people", "0"], "people"),
        (["--profile", "utopia"], "profile utopia: unknown"),
        (["--workers", "0"], "parameter workers"),
        (["--start", "soon"], "--start"),
    ],
)
def test_what_cannot_be_ends_with_2_and_its_name(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    """SIM-09"""
    code, said = simulate("--out", tmp_path / "out", *arguments)
    assert (code, named in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_needs_force(tmp_path: Path) -> None:
    """SIM-09"""
    (tmp_path / "mine.txt").write_text("kept")
    code, said = simulate("--out", tmp_path, "--people", 10)
    assert code == 2
    assert "not empty; --force overwrites" in said
    code, _ = simulate("--out", tmp_path, "--people", 10, "--force")
    assert code == 0
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("arguments", [[], ["--send", "--out", "x"]])
def test_it_is_said_what_is_to_be_done(arguments: list[str]) -> None:
    code, said = simulate(*arguments)
    assert code == 2
    assert "--out" in said
    assert "--send" in said


def test_sending_needs_a_house_that_runs() -> None:
    code, said = simulate("--send", "--port", 64000)
    assert code == 1
    assert "No passerelle is running" in said


def test_the_help_names_every_option_and_file() -> None:
    result = CliRunner().invoke(app, ["simulate", "--help"], terminal_width=100)
    assert result.exit_code == 0
    for word in ("--out", "--send", "--profile", "--seed", "--people", "--start", "--days",
                 "--clean", "--effect", "--set", "--workers", "--force", "--misbehave",
                 "truth.ndjson", "bad.csv", "Exit code 2"):  # fmt: skip
        assert word in result.output, word
