"""What holds of any life in the real service, on PostgreSQL: PT-03, PT-05, PT-10, PT-11."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.flag_changed_v1 import State
from services.plumbing.db import Database
from services.screening import store
from services.screening.ledger import Fact
from tests.counting.compare import answer, ledger_of
from tests.counting.lives import Life
from tests.histories import NAMES, SECOND, instants, lives, qc_default
from tests.services.screening import Screening

FEW = settings(
    deadline=None,
    max_examples=max(settings().max_examples // 6, 10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Each example is a score of transactions."""


@pytest.fixture
def screening(db: Callable[[str], Database]) -> Screening:
    return Screening(db("screening"))


def of(patient: UUID, facts: Iterable[Fact]) -> list[Fact]:
    """The same encounters, of a patient of their own."""
    return [
        replace(
            f,
            patient=patient,
            encounter=uuid5(patient, str(f.encounter)),
            part_of=f.part_of and uuid5(patient, str(f.part_of)),
        )
        for f in facts
    ]


async def ending(screening: Screening, patient: UUID) -> Any:
    """What was last said of a patient, keys aside; of who is below, nothing."""
    flags = await screening.flags(patient)
    if not flags or flags[-1].explanation.state is State.BELOW:
        return None
    told = flags[-1].explanation
    return (
        (told.state, told.held, told.since, told.clauses, told.next_change, told.pathway),
        sorted(
            (i.kind, i.anchor, i.sites, i.counted, str(i.reason), str(i.notes), len(i.encounters))
            for i in told.items
        ),
    )


@FEW
@given(st.data(), lives(most=6, names=NAMES))
async def test_pt_03_pt_05_one_by_one_split_or_replayed_is_a_full_recount(
    screening: Screening, data: st.DataObject, facts: list[Fact]
) -> None:
    now = data.draw(instants(facts))
    older = [replace(f, version=1, site="site-z") for f in facts if data.draw(st.booleans())]
    newer = [replace(f, version=2) for f in facts]
    versions: list[Fact] = [*older, *newer]
    mixed: Sequence[Fact] = data.draw(st.permutations([*versions, *newer]))
    whole, single = uuid4(), uuid4()
    await screening.meet(whole, single)
    if facts:
        await screening.take(*of(whole, newer), now=now)
    for fact in of(single, mixed):
        await screening.take(fact, now=now)
    assert await ending(screening, whole) == await ending(screening, single)


@FEW
@given(st.data(), lives(most=6, names=NAMES))
async def test_pt_10_pt_11_a_sweep_at_any_rhythm_ends_where_a_reader_is(
    screening: Screening, data: st.DataObject, facts: list[Fact]
) -> None:
    """And a reader is where a fresh system would be that was fed what was recorded by then."""
    now = data.draw(instants(facts))
    known = sorted((f for f in facts if f.recorded <= now), key=lambda f: f.recorded)
    pauses = st.sampled_from([SECOND, timedelta(days=9), timedelta(days=100)])
    ends = []
    for sweeps in (True, False):
        patient = uuid4()
        await screening.meet(patient)
        for fact, until in pairwise([*of(patient, known), None]):
            assert fact
            await screening.take(fact, now=fact.recorded)
            moment = fact.recorded
            while sweeps and (moment := moment + data.draw(pauses)) < (until or fact).recorded:
                await screening.sweep(moment)
        while await screening.sweep(now):
            pass
        ends.append(await ending(screening, patient))
        async with screening.db.work() as tx:
            kept = (await store.histories(tx, [patient]))[patient]
        read = ledger_of(Life(0, "", kept, patient, now, now), now)
        assert read
        standing = answer(read, qc_default(), now)
        said = ends[-1]
        assert (str(said[0][0]) if said else "below") == standing["state"]
        assert not said or said[0][2] == standing["since"]
    assert ends[0] == ends[1]
