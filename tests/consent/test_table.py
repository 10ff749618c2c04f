"""Each case of the table, through the function behind `passerelle consent-decide` (CS-60)."""

import json
import re

import pytest

from services.notify import decide
from tests.consent.table import Case, cases, differences, leaks

ILLUSTRATIONS = 11
"""Outcomes in the table of section 4, one case each."""


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_case_is_decided_exactly_and_leaks_nothing(case: Case) -> None:
    code, text = decide.answer(json.dumps(case.document).encode())
    answer = json.loads(text)
    assert differences(case, code, answer) == [], case.why
    assert leaks(case, answer) == []


def test_the_table_is_whole() -> None:
    """Each rule of sections 2 to 4 has its cases, each case its reasoning."""
    table = cases()
    assert len(table) >= 150
    assert len({case.id for case in table}) == len(table)
    assert all(len(case.why) > 10 and case.why.endswith(".") for case in table)
    covered = {name for case in table for name in case.covers}
    assert all(re.fullmatch(r"CS-\d+", name) for name in covered)
    needed = {5, 10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33, 34, 35, 40, 59}
    assert {f"CS-{n:02}" for n in needed} <= covered
    assert sum(case.id.startswith("S4-") for case in table) >= ILLUSTRATIONS
