"""W-1 to W-8 of counting.md, by the rules and by the oracle."""

from typing import Any

import pytest

from tests.counting.worked import entries, examples, misjudged, wrong


@pytest.mark.parametrize("example", examples(), ids=lambda one: one["id"])
def test_a_worked_example_is_as_the_chapter_has_it(example: dict[str, Any]) -> None:
    assert not list(wrong(example))


@pytest.mark.parametrize("example", entries(), ids=lambda one: one["id"])
def test_ct_42_an_entry_is_announced_aloud_or_quietly(example: dict[str, Any]) -> None:
    assert not list(misjudged(example))


def test_all_eight_are_here() -> None:
    assert {one["id"].partition(",")[0] for one in examples()} == {f"W-{n}" for n in range(1, 9)}
