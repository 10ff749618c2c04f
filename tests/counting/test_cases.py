"""A fixture for each situation CR-01 to CR-50, by the rules and by the oracle; none is missing."""

import re
from pathlib import Path

import pytest

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
        for path in filter(None, parameter.split(", ")):
            assert path in elsewhere or _named(path, str(entry["flipped"]["policy"])), path


def _named(path: str, changes: str) -> bool:
    """Whether the flipped policy sets the first part of the path, or a switch beside it."""
    return path.split(".", maxsplit=1)[0] + ":" in changes or len(path.split(".")) > 1


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
