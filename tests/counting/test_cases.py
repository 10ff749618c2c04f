"""A fixture for each situation CR-01 to CR-50, by the rules and by the oracle; none is missing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.counting.cases import Case, cases, entries

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "counting.md"
FIXED = {"", "fixed"}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_situation_counts_as_its_case_says(case: Case) -> None:
    assert not list(case.wrong())


@pytest.mark.parametrize("case", cases(), ids=str)
def test_orc_03_the_oracle_counts_the_case_alike(case: Case) -> None:
    assert not list(case.disputed())


def test_every_situation_has_its_case_or_the_tests_that_show_it() -> None:
    assert [entry["id"] for entry in entries()] == [f"CR-{n:02d}" for n in range(1, 51)]
    for entry in entries():
        assert "facts" in entry or entry.get("shown_by"), entry["id"]
        for place in entry.get("shown_by", ()):
            file, _, name = place.partition("::")
            assert re.search(rf"def {name}\(", (ROOT / file).read_text()), place


def test_every_parameter_is_shown_at_its_default_and_flipped() -> None:
    elsewhere = {"ingest setting", "region settings"}
    for entry in entries():
        parameter = entry.get("parameter", "")
        assert (parameter in {"", *elsewhere}) is ("flipped" not in entry), entry["id"]
        if "flipped" in entry:
            changed = set(_paths(yaml.safe_load(entry["flipped"]["policy"])))
            named = parameter.split(", ")
            assert any(
                path == name or path.startswith(f"{name}.") for path in changed for name in named
            )


def _paths(changes: dict[str, Any], above: str = "") -> Iterator[str]:
    """The keys that a flipped policy sets."""
    for key, value in changes.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_every_situation_is_a_row_of_the_page_with_its_parameter_and_code() -> None:
    rows = {
        cells[0]: cells
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| CR-\d\d \|", line)
        for cells in [[cell.strip(" `") for cell in line.strip("|").split("|")]]
    }
    for entry in entries():
        assert entry["id"] in rows, entry["id"]
        _, _, _, code, parameter = rows[entry["id"]]
        said = (code.replace("`", ""), parameter.replace("`", ""))
        assert said == (entry.get("code", ""), entry.get("parameter", "")), entry["id"]


def test_every_property_of_the_chapter_is_a_test_that_bears_its_number() -> None:
    """PT-01 to PT-15."""
    found = set()
    for file in (ROOT / "tests").glob("*/test_*.py"):
        for name in re.findall(r"def (test_\w+)\(", file.read_text()):
            found |= set(re.findall(r"pt_(\d\d)", name))
    assert found == {f"{n:02d}" for n in range(1, 16)}
