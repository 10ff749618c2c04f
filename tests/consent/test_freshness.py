"""No disclosure on a form that is not in force any more, however things overlap (CS-50).

`make freshness` runs 10,000 schedules; here are some, and faults that they must find.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.notify import delivery, store, telling
from tests.conftest import FreshDatabase
from tests.consent.freshness import batch
from tests.consent.schedules import Form, Paper, State, Told, Wrote, faults, late

AT = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_disclosed_after_a_withdrawal_was_acknowledged(
    database: FreshDatabase, seed: int
) -> None:
    found = await batch(database, seed)
    assert found.faults == []
    assert found.told["sent"] > 0


def _cached(plant: pytest.MonkeyPatch) -> None:
    """The decision of the first look is used again."""
    kept: dict[Any, Any] = {}
    tell = telling.tell_inbox

    def cached(house: Any, facts: Any, clinic: str, at: datetime, **more: Any) -> Any:
        key = (facts.patient, clinic)
        return kept.setdefault(key, tell(house, facts, clinic, at, **more))

    plant.setattr(telling, "tell_inbox", cached)


def _without_lock(plant: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    plant.setattr(store, "hear_consents", nothing)


def _old_decision(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(delivery, "START_WITHIN", timedelta(hours=1))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_cached, _without_lock, _old_decision])
async def test_a_planted_fault_is_found(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    fault(monkeypatch)
    for seed in (3, 4, 6):  # by which of them it is met first, is chance
        found = await batch(database, seed)
        if any("disclosed:" in what for what in found.faults):
            return
    pytest.fail("not found")


def state(form: Form | None, *, implied: bool = False) -> State:
    return State({} if form is None else {"a": Paper(form, AT)}, AT, implied)


@pytest.mark.parametrize(
    ("begun", "disclosed", "wrong"),
    [
        (5, True, True),  # after the restriction was acknowledged
        (5, False, False),
        (3, True, False),  # while it was being handed in
        (3, False, False),
        (1, True, False),
        (1, False, True),  # before it, when the permit stood
    ],
)
def test_the_judge_knows_what_may_have_been_seen(
    begun: int, *, disclosed: bool, wrong: bool
) -> None:
    wrote = [Wrote(state(Form.PERMIT), 0, 0), Wrote(state(Form.RESTRICT), 3, 4)]
    told = Told("read", "inbox", begun, begun + 1, disclosed)
    assert bool(list(faults(wrote, [told]))) is wrong


def test_the_judge_counts_requests_that_began_within_their_second() -> None:
    wrote = [Wrote(state(Form.PERMIT), 0, 0), Wrote(state(Form.RESTRICT), 3, 4)]
    sent = Told("sent", "inbox", 2, 6, disclosed=True)
    assert list(faults(wrote, [sent])) == []
    assert late(wrote, [sent]) == 1
