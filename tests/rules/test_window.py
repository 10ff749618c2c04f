"""The rolling window: CT-30, CR-40, CR-41, W-2."""

from datetime import datetime, timedelta

import pytest

from services.screening.window import Window
from tests.histories import SECOND, at

YEAR = timedelta(days=365)


def test_a_visit_counts_for_365_days_and_not_a_second_more() -> None:
    arrived = at("2025-11-24 10:00-05")
    assert arrived not in Window.ending(arrived - SECOND, YEAR)
    assert arrived in Window.ending(arrived, YEAR)
    assert arrived in Window.ending(arrived + YEAR - SECOND, YEAR)
    assert arrived not in Window.ending(arrived + YEAR, YEAR)


@pytest.mark.parametrize(
    ("arrived", "leaves"),
    [
        ("2023-03-01 08:00-05", "2024-02-29 08:00-05"),
        ("2024-02-29 08:00-05", "2025-02-28 08:00-05"),
        ("2024-03-01 08:00-05", "2025-03-01 08:00-05"),
        ("2026-03-10 09:00-04", "2027-03-10 08:00-05"),
        ("2026-03-10 00:00-04", "2027-03-09 23:00-05"),
    ],
)
def test_w_2_w_3_leap_days_and_clock_changes_do_not_move_it(arrived: str, leaves: str) -> None:
    def holds(now: datetime) -> bool:
        return at(arrived) in Window.ending(now, YEAR)

    assert holds(at(leaves) - SECOND)
    assert not holds(at(leaves))


def test_no_instant_sees_both_ends() -> None:
    now = at("2026-08-08 09:00-04")
    assert Window.ending(now, YEAR).count([now, now - YEAR]) == 1
