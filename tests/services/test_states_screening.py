"""The states of a flag: the drawing in docs/states.md, the enum and the CHECK say the same."""

import re
from collections.abc import Callable
from enum import StrEnum
from itertools import product
from pathlib import Path

from schemas import flag_changed_v1
from services.plumbing.db import Database
from services.screening import registry
from services.screening.flag import Cause, Notice, State, stand
from services.screening.ledger import Fact, Ledger
from services.screening.policy import Policy, load
from services.screening.registry import Asked, Mode, Status
from tests.conftest import FreshDatabase
from tests.histories import at, ed_visit, ledger, policy

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def drawing(of: str = "A patient's flag") -> set[tuple[str, str]]:
    section = PAGE.read_text().partition(f"## {of}")[2].partition("\n## ")[0]
    return set(re.findall(r"^  (\S+) --> (\S+)$", section, re.MULTILINE))


def words(kind: type[StrEnum]) -> set[str]:
    return {str(word) for word in kind}


async def test_drawing_enum_and_check_name_the_same_states(
    database: FreshDatabase, db: Callable[[str], Database]
) -> None:
    owner = await database.owner()
    checks = await owner.fetch(
        "select conrelid::regclass::text as at, pg_get_constraintdef(oid) as said"
        " from pg_constraint where contype = 'c' and conname like '%state_check'"
        " and connamespace = 'screening'::regnamespace"
    )
    await owner.close()
    drawn = {state for step in drawing() for state in step} - {"[*]"}
    assert drawn == words(State) == words(flag_changed_v1.State)
    found = {row["at"]: set(re.findall(r"'(\w+)'", row["said"])) for row in checks}
    assert found["screening.patient"] == found["screening.change"] == drawn
    assert found["screening.shadow"] == drawn
    trials = {state for step in drawing("A back-test") for state in step} - {"[*]"}
    assert found["screening.backtest"] == trials


def test_the_words_of_the_rules_are_the_words_of_the_event() -> None:
    assert words(Cause) == words(flag_changed_v1.Cause)
    assert words(Notice) == words(flag_changed_v1.Notice)


def test_each_step_of_the_drawing_is_taken_by_some_history_and_no_other() -> None:
    taken: set[tuple[str, str]] = set()

    def live(known: Ledger, rule: Policy) -> None:
        instant = at("2025-01-01 00:00-05")
        state = "[*]"
        while True:
            standing = stand(known, rule, instant)
            if standing.state != state:
                taken.add((state, str(standing.state)))
                state = str(standing.state)
            if standing.next is None:
                return
            instant = standing.next.at

    def visits(*days: str) -> list[Fact]:
        return [ed_visit(f"e-{n}", f"{day} 10:00-05") for n, day in enumerate(days)]

    slow = visits("2025-02-01", "2025-04-01", "2025-06-01", "2025-08-01")
    live(ledger(*slow), policy())
    live(ledger(*slow), policy("hold_days: 0"))
    live(ledger(*slow), policy("hold_days: 700"))
    live(ledger(*slow), policy("watch: null"))
    assert taken == drawing()


async def test_each_step_of_a_policy_is_taken_by_some_activations_and_no_other(
    database: FreshDatabase, db: Callable[[str], Database]
) -> None:
    """CT-51."""
    owner = await database.owner()
    check = await owner.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'policy_status_check'"
    )
    await owner.close()
    assert set(re.findall(r"'(\w+)'", check)) == words(Status)
    now, taken = at("2026-01-01 00:00-05"), {("[*]", "stored")}
    one, other = policy(), policy("hold_days: 1")
    other = load(other.canonical.replace("TEST-policy", "TEST-other"))
    async with db("screening").work() as tx:
        for rule in (one, other):
            assert await registry.keep(tx, rule, now) is registry.Kept.NEW
        asked = [(rule, mode) for rule in (one, other) for mode in Mode]
        for rule, mode in [step for pair in product(asked, asked) for step in pair]:
            before = {s.policy.name: str(s.status) for s in await registry.everything(tx)}
            await registry.activate(tx, Asked(rule.name, rule.version, mode, now, now, "TEST"))
            after = {s.policy.name: str(s.status) for s in await registry.everything(tx)}
            taken |= {(before[n], after[n]) for n in after if before[n] != after[n]}
    assert taken == drawing("A policy")
