"""The states of notify: drawing in docs/states.md, enum and CHECK say the same."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from services.notify import holding, override, resolving
from services.notify.card import (
    CLINIC_MAY,
    WE_MAY,
    Dismissal,
    Status,
    Tier,
    What,
    Why,
)
from services.notify.panel import Confirmation, Mode, Unroutable
from services.notify.recount import State
from services.plumbing.db import Database
from tests.conftest import FreshDatabase

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def drawing(title: str) -> set[tuple[str, str]]:
    section = PAGE.read_text().partition(f"## {title}")[2].partition("\n## ")[0]
    return set(re.findall(r"^  (\S+) --> (\S+)$", section, re.MULTILINE))


def states(title: str) -> set[str]:
    return {state for step in drawing(title) for state in step} - {"[*]"}


@pytest.fixture
async def checks(database: FreshDatabase, db: Callable[[str], Database]) -> dict[str, set[str]]:
    """Column → the words its CHECK allows."""
    owner = await database.owner()
    rows = await owner.fetch(
        "select conname, pg_get_constraintdef(oid) as said from pg_constraint"
        " where contype = 'c' and connamespace = 'notify'::regnamespace"
    )
    await owner.close()
    return {
        row["conname"].removesuffix("_check"): set(re.findall(r"'([a-z-]+)'", row["said"]))
        for row in rows
    }


async def test_a_cards_states_are_drawn_named_and_checked_alike(
    checks: dict[str, set[str]],
) -> None:
    assert states("A card") == set(Status) == checks["card_status"]


async def test_the_other_words_of_the_tables_are_those_of_the_rules(
    checks: dict[str, set[str]],
) -> None:
    assert checks["card_what"] == set(What)
    assert checks["card_tier"] == set(Tier)
    assert checks["card_why"] == set(Why)
    assert checks["unroutable_reason"] == set(Unroutable)
    assert checks["panel_confirmed_by"] == set(Confirmation)
    assert checks["panel_report_mode"] == set(Mode)
    assert checks["standing_state"] == checks["flag_state"] == set(State)
    assert checks["work_item_reason"] == set(holding.Why)
    assert checks["refused_consent_resolution"] == {resolving.REPLACED, resolving.DISMISSED}
    assert checks["override_ground"] == set(override.Ground)
    assert checks["override_opened_by"] == set(override.By)
    assert checks["override_notice"] == set(override.Notice)
    assert checks["override_verdict"] == set(override.Verdict)
    assert states("A notification") == checks["notification_state"]
    assert states("A subscription") == checks["subscription_status"]


def test_the_drawing_has_exactly_the_steps_that_the_rules_allow() -> None:
    may = {
        (str(one), str(other))
        for table in (CLINIC_MAY, WE_MAY)
        for one, others in table.items()
        for other in others
        if one is not other
    }
    inner = {step for step in drawing("A card") if "[*]" not in step}
    assert inner == may


def test_reasons_to_dismiss_are_those_of_the_chapter() -> None:
    """CA-25."""
    assert set(Dismissal) == {
        "planned-care",
        "already-known",
        "wrong-clinic",
        "deceased",
        "declined",
        "not-complex",
        "duplicate",
        "other",
    }
