"""W-1 to W-8 of counting.md through the real service: what it announces and what it answers."""

from collections.abc import Callable
from typing import Any

import pytest

from schemas.flag_changed_v1 import FlagChanged
from services.plumbing.db import Database
from services.screening import store
from tests.counting.worked import examples, facts_of, stood, wanted, who, word
from tests.histories import at
from tests.services.screening import Screening


@pytest.mark.parametrize("example", examples(), ids=lambda one: one["id"])
async def test_the_service_announces_a_worked_example_as_the_chapter_has_it(
    db: Callable[[str], Database], example: dict[str, Any]
) -> None:
    screening = Screening(db("screening"))
    await screening.meet(who("p"), who("q"))
    for step in example["steps"]:
        if facts := facts_of(step):
            await screening.take(*facts, now=step["now"])
        elif "merge" in step:
            retired, surviving = map(who, step["merge"])
            await screening.merge(retired, surviving, step["now"])
        elif "unmerge" in step:
            retired, surviving = map(who, step["unmerge"])
            await screening.unmerge(retired, surviving, step["now"])
        else:
            await screening.sweep(step["now"])
    for name in "pq":
        flags = await screening.flags(who(name))
        assert [row(event) for event in flags] == wanted(example, name)
        for sequence, since in example.get("since", {}).get(name, {}).items():
            assert flags[int(sequence) - 1].explanation.since == at(since)
    await answers(screening, example)


def row(event: FlagChanged) -> tuple[object, ...]:
    told = event.explanation
    state = f"{told.state}, held" if told.held else str(told.state)
    counted = [item.kind for item in told.items if item.counted]
    counts = (counted.count(told.items[0].kind.ED), counted.count(told.items[0].kind.HOSPITAL))
    return event.sequence, state, *counts, str(event.cause), str(event.notice), event.retracts


async def answers(screening: Screening, example: dict[str, Any]) -> None:
    """As of then, on what the database knows was known (CT-70)."""
    async with screening.db.work() as tx:
        keys = [who("p"), who("q")]
        histories = await store.histories(tx, keys)
    for as_of, known_at, name, ed, stays, state in example["answers"]:
        standing = stood(histories[who(name)], who(name), at(as_of), at(known_at))
        assert standing
        found = (standing.ed_visits, standing.hospital_episodes, word(standing))
        assert found == (int(ed), int(stays), state), as_of
