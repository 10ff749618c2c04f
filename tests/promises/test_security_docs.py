"""docs/security.md names a test, or a reason, for everything that is demanded (CS-97, CS-101)."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "security.md"
ASVS = ROOT / "docs" / "asvs.md"
TESTS = ROOT / "tests"

SMART = {f"SM-{n:02}" for n in (*range(1, 11), *range(20, 33))}
"""Every check of clinic-api.md, section 9."""


SECTIONS = {
    f"{chapter}.{section}"
    for chapter, sections in enumerate((5, 4, 7, 4, 4, 8, 6, 4, 2, 7, 7, 3, 4, 3, 4, 5, 1), start=1)
    for section in range(1, sections + 1)
}
"""Of ASVS 5.0; the last chapter (WebRTC) stands in one row."""


def rows(pattern: str, file: Path = DOCS) -> Iterator[list[str]]:
    """Cells of the table rows that begin with an id like `pattern`."""
    for line in file.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(pattern, cells[0]):
            yield cells


def there_are() -> set[str]:
    """Names of test files and of test functions."""
    found: set[str] = set()
    for file in TESTS.rglob("*.py"):
        found.add(file.stem)
        found |= set(re.findall(r"def (test_\w+)", file.read_text()))
    return found


def cited(text: str) -> set[str]:
    return set(re.findall(r"\btest_\w+", text))


def test_every_smart_check_has_a_row_and_each_row_a_test() -> None:
    named = {cells[0]: cells for cells in rows(r"SM-\d\d")}
    assert set(named) == SMART
    assert [id_ for id_, cells in named.items() if not cited(cells[2])] == []


def test_every_section_of_asvs_has_a_test_or_a_reason() -> None:
    named = {cells[0]: cells[2] for cells in rows(r"\d+\.\d+", ASVS)}
    assert set(named) == SECTIONS
    words = re.compile(r"\btest_|\*reason\*|\*operator\*|docs/|`make |specification|this page")
    assert [section for section, why in named.items() if not words.search(why)] == []


@pytest.mark.parametrize("file", [DOCS, ASVS], ids=lambda file: file.stem)
def test_every_test_that_is_cited_is_there(file: Path) -> None:
    known = there_are()
    text = file.read_text()
    missing = {
        name
        for name in cited(text)
        if name not in known and not (f"{name}…" in text and any(k.startswith(name) for k in known))
    }
    assert missing == set()


@pytest.mark.parametrize("plant", ["test_that_is_not_there", "test_rows_nowhere"])
def test_a_test_that_is_gone_would_be_missed(plant: str) -> None:
    assert plant not in there_are()
