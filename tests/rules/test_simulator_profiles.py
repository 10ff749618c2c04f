"""A region that cannot be is refused by name (SIM-09)."""

from pathlib import Path
from typing import Any

import pytest

from services.simulator import files
from services.simulator.profiles import PROFILES, SimulateError, profile


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"admitted": 1.2}, "admitted"),
        ({"duplicate": -0.1}, "duplicate"),
        ({"silence": 3}, "silence"),
        ({"panel_one": "most"}, "panel_one"),
        ({"people": -1}, "people"),
        ({"people": 10.5}, "people"),
        ({"kindness": 1}, "kindness"),
        ({"stay_rate": -1}, "stay_rate"),
        ({"start": "tomorrow"}, "start"),
        ({"sites": ()}, "sites"),
    ],
)
def test_an_impossible_parameter_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SimulateError, match=named):
        profile("demo", **change)


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(SimulateError, match="profile utopia: unknown"):
        profile("utopia")


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_possible(name: str) -> None:
    assert profile(name).name == name


def test_a_folder_with_files_is_refused_without_force(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SimulateError, match="not empty"):
        files.write(tmp_path, profile="demo", seed=1, people=10)
    files.write(tmp_path, profile="demo", seed=1, people=10, force=True)
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert (tmp_path / "truth.ndjson").exists()
