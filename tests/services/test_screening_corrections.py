"""A person takes an encounter out of the count, or puts it back (CT-17), on real PostgreSQL."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import pytest

from schemas.count_correction_v1 import CountCorrection, Reason
from schemas.flag_changed_v1 import Cause, FlagChanged, Notice, State
from services.plumbing.db import Database
from services.screening import flow, store
from services.screening.flag import stand
from services.screening.ledger import gather, in_force
from tests.histories import P, Q, at, ed_visit, key, qc_default
from tests.services.screening import Screening

EXCLUDED = "2026-08-09 10:00-04"
VISITS = [
    ed_visit("e-1", "2026-02-02 09:00-05"),
    ed_visit("e-2", "2026-05-05 09:00-04"),
    ed_visit("e-3", "2026-06-05 09:00-04"),
    ed_visit("e-4", "2026-08-08 09:00-04"),
]


@pytest.fixture
async def screening(db: Callable[[str], Database]) -> Screening:
    """P has four visits, and is flagged by the last of them."""
    made = Screening(db("screening"))
    await made.meet(P, Q)
    for visit in VISITS:
        await made.take(visit, now=visit.recorded)
    return made


def correction(
    name: str = "e-4", when: str = EXCLUDED, version: int = 1, **other: object
) -> CountCorrection:
    excluded = other.pop("excluded", True)
    said: dict[str, object] = {
        "patient": P,
        "encounter": key(name),
        "version": version,
        "excluded": excluded,
        "reason": Reason.REGISTERED_TWICE if excluded else None,
        "by": "hospital-cm",
        "recorded": at(when),
    }
    return CountCorrection.model_validate(said | other)


async def correct(screening: Screening, *said: CountCorrection) -> None:
    async with screening.at(max(one.recorded for one in said)) as turn:
        await flow.on_counts_corrected(said, turn)


def state(event: FlagChanged) -> tuple[State, int, Cause, Notice, int | None]:
    told = event.explanation
    return told.state, told.clauses[0].count, event.cause, event.notice, event.retracts


def manual(event: FlagChanged) -> list[UUID]:
    """Encounters that are not counted because a person said so."""
    return [
        one.key
        for item in event.explanation.items
        if item.reason and (item.reason.code, item.reason.rule) == ("MANUAL", "CT-17")
        for one in item.encounters
    ]


async def known(screening: Screening, as_of: str, known_at: str) -> tuple[str, int]:
    """State and visits of P `as_of`, on what was known at `known_at` (CT-70)."""
    async with screening.at(known_at) as turn:
        history = (await store.histories(turn.tx, [P]))[P].at(at(known_at))
    ledger = gather([P], in_force(history.links), history.facts, history.persons)[P]
    standing = stand(ledger, qc_default(), at(as_of))
    return standing.state, standing.ed_visits


async def test_ct_17_an_excluded_visit_does_not_count_and_the_flag_it_made_is_taken_back(
    screening: Screening,
) -> None:
    await correct(screening, correction())
    flags = await screening.flags()
    assert state(flags[-1]) == (State.WATCH, 3, Cause.CORRECTION, Notice.QUIET, flags[-2].sequence)
    assert manual(flags[-1]) == [key("e-4")]


async def test_ct_17_it_holds_whatever_the_site_sends(screening: Screening) -> None:
    await correct(screening, correction())
    newer = replace(VISITS[3], version=2, disposition=None, recorded=at("2026-08-10 10:00-04"))
    await screening.take(replace(newer, site="site-b"), now="2026-08-10 10:00-04")
    last = (await screening.flags())[-1]
    assert (last.explanation.state, manual(last)) == (State.WATCH, [key("e-4")])
    assert last.explanation.items[0].sites == ("site-b",)


async def test_ct_17_undone_it_counts_again_and_is_an_alert_while_it_is_news(
    screening: Screening,
) -> None:
    await correct(screening, correction())
    await correct(screening, correction(when="2026-08-09 11:00-04", version=2, excluded=False))
    last = (await screening.flags())[-1]
    assert state(last) == (State.FLAGGED, 4, Cause.CORRECTION, Notice.ALERT, None)
    assert manual(last) == []


async def test_ct_17_undone_after_72_hours_it_is_quiet(screening: Screening) -> None:
    """CT-42."""
    await correct(screening, correction())
    await correct(screening, correction(when="2026-08-12 11:00-04", version=2, excluded=False))
    last = (await screening.flags())[-1]
    assert state(last) == (State.FLAGGED, 4, Cause.CORRECTION, Notice.QUIET, None)


async def test_ct_17_the_newest_version_speaks_in_whatever_order_they_come(
    screening: Screening,
) -> None:
    first = correction()
    undone = correction(when="2026-08-09 11:00-04", version=2, excluded=False)
    again = correction(when="2026-08-09 12:00-04", version=3)
    await correct(screening, again)
    told = len(await screening.flags())
    await correct(screening, undone, first, again)
    flags = await screening.flags()
    assert (len(flags), manual(flags[-1])) == (told, [key("e-4")])


async def test_ct_17_a_correction_that_overtakes_its_encounter_waits_for_it(
    screening: Screening,
) -> None:
    """As after a rebuild: the log has no order between services."""
    await correct(screening, correction("e-5", "2026-08-20 10:00-04"))
    await screening.take(ed_visit("e-5", "2026-08-19 09:00-04"), now="2026-08-20 11:00-04")
    last = (await screening.flags())[-1]
    assert (last.explanation.clauses[0].count, manual(last)) == (4, [key("e-5")])


async def test_ct_17_it_goes_with_the_encounter_through_merge_and_unmerge(
    screening: Screening,
) -> None:
    await screening.take(ed_visit("e-5", "2026-08-09 09:00-04", patient=Q), now=EXCLUDED)
    await screening.merge(Q, P, now="2026-08-10 10:00-04")
    await correct(screening, correction("e-5", "2026-08-11 10:00-04"))
    merged = (await screening.flags())[-1]
    assert (merged.explanation.clauses[0].count, manual(merged)) == (4, [key("e-5")])
    await screening.unmerge(Q, P, now="2026-08-12 10:00-04")
    assert (await screening.flags())[-1].explanation.clauses[0].count == 4
    others = [
        ed_visit(f"q-{n}", f"2026-08-1{n} 09:00-04", patient=Q, recorded="2026-08-20 10:00-04")
        for n in (3, 4, 5)
    ]
    await screening.take(*others, now="2026-08-20 10:00-04")
    theirs = (await screening.flags(Q))[-1]
    assert (theirs.explanation.clauses[0].count, manual(theirs)) == (3, [key("e-5")])


async def test_ct_70_what_was_known_before_it_and_after_it_was_undone(
    screening: Screening,
) -> None:
    """PT-11: as a fresh system that was fed what was recorded by then."""
    await correct(screening, correction())
    await correct(screening, correction(when="2026-08-12 11:00-04", version=2, excluded=False))
    as_of = "2026-08-09 09:00-04"
    assert await known(screening, as_of, "2026-08-09 09:30-04") == ("flagged", 4)
    assert await known(screening, as_of, "2026-08-10 09:30-04") == ("watch", 3)
    assert await known(screening, as_of, "2026-08-12 12:00-04") == ("flagged", 4)


async def test_ct_17_who_falls_below_by_it_is_told_once(screening: Screening) -> None:
    when = datetime.fromisoformat(EXCLUDED)
    await correct(screening, *(correction(f"e-{n}", when.isoformat()) for n in (3, 4)))
    flags = await screening.flags()
    assert state(flags[-1])[:3] == (State.BELOW, 2, Cause.CORRECTION)
    await correct(screening, correction("e-2", "2026-08-10 10:00-04"))
    assert len(await screening.flags()) == len(flags)
