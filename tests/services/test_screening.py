"""The flow of screening on real PostgreSQL: W-1, W-5 to W-8, and what is announced when."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from schemas.episode_changed_v1 import EpisodeChanged, EpisodeMoment
from schemas.flag_changed_v1 import Cause, FlagChanged, Kind, Notice, State
from services.plumbing.db import Database
from services.screening import flow, registry
from services.screening.ledger import Fact, Status
from tests.histories import P, Q, at, ed_visit, encounter, key, policy, stay
from tests.services.screening import Screening, identified, recorded


@pytest.fixture
def screening(db: Callable[[str], Database]) -> Screening:
    return Screening(db("screening"))


def said(event: FlagChanged) -> tuple[State, bool, Cause, Notice, int | None]:
    told = event.explanation
    return told.state, told.held, event.cause, event.notice, event.retracts


def four_visits(**other: object) -> list[Fact]:
    """W-1."""
    return [
        ed_visit("e-1", "2025-11-24 10:00-05", **other),
        ed_visit("e-2", "2026-02-02 09:00-05", **other),
        ed_visit("e-3", "2026-05-05 09:00-04", **other),
        ed_visit("e-4", "2026-08-08 09:00-04", **other),
    ]


async def test_w_1_the_fourth_visit_flags_and_decay_and_hold_end_take_it_back(
    screening: Screening,
) -> None:
    await screening.meet(P)
    for visit in four_visits():
        assert visit.end
        await screening.take(visit, now=visit.end.earliest)
    for now in ("2026-11-24 09:59:59-05", "2026-11-24 10:00-05", "2027-02-04 08:00-05"):
        await screening.sweep(now)
    flags = await screening.flags()
    assert [said(event) for event in flags if event.cause is not Cause.DECAY] == [
        (State.WATCH, False, Cause.EVENT, Notice.QUIET, None),
        (State.FLAGGED, False, Cause.EVENT, Notice.ALERT, None),
        (State.BELOW, False, Cause.HOLD_END, Notice.QUIET, None),
    ]
    assert [said(event) for event in flags if event.cause is Cause.DECAY] == [
        (State.FLAGGED, True, Cause.DECAY, Notice.QUIET, None),
    ]
    alert = flags[1].explanation
    assert alert.since == at("2026-08-08 09:00-04")
    assert alert.hold_until == at("2027-02-04 08:00-05")
    assert [(c.measure, c.count, c.met, c.state) for c in alert.clauses] == [
        ("ed_visits", 4, True, State.FLAGGED),
        ("hospital_episodes", 0, False, State.FLAGGED),
        ("ed_visits", 4, True, State.WATCH),
    ]
    assert [i.encounters[0].key for i in alert.items] == [key(f"e-{n}") for n in (4, 3, 2, 1)]
    assert alert.next_change
    assert (alert.next_change.at, alert.next_change.ed_visits, alert.next_change.held) == (
        at("2026-11-24 10:00-05"),
        3,
        True,
    )
    assert [event.sequence for event in flags] == [1, 2, 3, 4]


async def test_w_1_a_visit_entered_in_error_retracts_the_flag_it_made(
    screening: Screening,
) -> None:
    """CT-44, CR-33: the hold does not protect a flag that was never true."""
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    wrong = replace(
        visits[3], version=2, status=Status.ENTERED_IN_ERROR, recorded=at("2026-08-20 10:00-04")
    )
    await screening.take(wrong, now="2026-08-20 10:00-04")
    flags = await screening.flags()
    assert [said(event) for event in flags] == [
        (State.FLAGGED, False, Cause.EVENT, Notice.ALERT, None),
        (State.WATCH, False, Cause.VOID, Notice.QUIET, 1),
    ]
    assert flags[1].explanation.entered_in_error == 1
    assert len(flags[1].explanation.items) == 3


async def test_ct_12_a_voided_visit_that_is_restored_flags_again(screening: Screening) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    for version, status in ((2, Status.CANCELLED), (3, Status.FINISHED)):
        now = at("2026-08-09 10:00-04") + timedelta(hours=version)
        again = replace(visits[3], version=version, status=status, recorded=now)
        await screening.take(again, now=now)
    assert [said(event) for event in await screening.flags()] == [
        (State.FLAGGED, False, Cause.EVENT, Notice.ALERT, None),
        (State.WATCH, False, Cause.VOID, Notice.QUIET, 1),
        (State.FLAGGED, False, Cause.EVENT, Notice.ALERT, None),
    ]


@pytest.mark.parametrize("order", [1, -1])
async def test_w_5_a_class_change_is_one_visit_and_one_stay_in_either_order(
    screening: Screening, order: int
) -> None:
    await screening.meet(P)
    rule = policy("flag: {all: [{measure: ed_visits, at_least: 1}]}")
    screening.policy = rule
    arrived = encounter("e-1", "2026-05-02 20:00-04", recorded="2026-05-02 20:05-04")
    whole = encounter(
        "e-1",
        "2026-05-02 20:00-04",
        "2026-05-08 11:00-04",
        classes=["EMER", ("IMP", "2026-05-03 04:30-04")],
        version=2,
    )
    for fact in [arrived, whole][::order]:
        await screening.take(fact, now="2026-05-08 12:00-04")
    only_imp = replace(whole, version=3, recorded=at("2026-05-09 09:00-04"))
    await screening.take(only_imp, now="2026-05-09 09:00-04")
    told = (await screening.flags())[-1].explanation
    assert [(i.kind, i.counted) for i in told.items] == [(Kind.HOSPITAL, True), (Kind.ED, True)]
    assert {e.episode for e in await screening.moments()} == {key("e-1")}
    await screening.take(
        replace(whole, version=4, status=Status.CANCELLED, recorded=at("2026-05-10 09:00-04")),
        now="2026-05-10 09:00-04",
    )
    last = (await screening.flags())[-1].explanation
    assert [(i.counted, i.reason and i.reason.code) for i in last.items] == [
        (False, "CANCELLED"),
        (False, "CANCELLED"),
    ]


def p_and_q() -> list[Fact]:
    """W-6."""
    return [
        ed_visit("p-1", "2026-02-01 10:00-05"),
        ed_visit("p-2", "2026-03-01 10:00-05"),
        ed_visit("p-3", "2026-04-01 10:00-04"),
        ed_visit("q-1", "2026-09-01 10:00-04", patient=Q),
    ]


async def test_w_6_a_merge_that_crosses_the_threshold_is_one_alert_and_unmerge_retracts(
    screening: Screening,
) -> None:
    """CR-34."""
    await screening.meet(P, Q)
    await screening.take(*p_and_q(), now="2026-09-01 14:00-04")
    await screening.merge(Q, P, "2026-09-10 09:00-04")
    await screening.unmerge(Q, P, "2026-09-12 09:00-04")
    flags = await screening.flags(P)
    assert [said(event) for event in flags] == [
        (State.WATCH, False, Cause.EVENT, Notice.QUIET, None),
        (State.FLAGGED, False, Cause.MERGE, Notice.ALERT, None),
        (State.WATCH, False, Cause.UNMERGE, Notice.QUIET, 2),
    ]
    assert flags[1].explanation.since == at("2026-09-01 10:00-04")
    assert await screening.flags(Q) == []


async def test_cr_34_merging_a_key_that_is_flagged_already_is_quiet_and_closes_the_other(
    screening: Screening,
) -> None:
    await screening.meet(P, Q)
    visits = [replace(visit, patient=Q) for visit in four_visits()]
    mine = ed_visit("p-1", "2026-08-01 10:00-04")
    await screening.take(*visits, mine, now="2026-08-08 13:00-04")
    await screening.merge(Q, P, "2026-08-09 09:00-04")
    (closing,) = (await screening.flags(Q))[1:]
    assert said(closing) == (State.BELOW, False, Cause.MERGE, Notice.QUIET, None)
    assert closing.merged_into == P
    (survivors,) = await screening.flags(P)
    assert said(survivors) == (State.FLAGGED, False, Cause.MERGE, Notice.QUIET, None)
    await screening.unmerge(Q, P, "2026-08-10 09:00-04")
    assert said((await screening.flags(P))[-1]) == (
        State.BELOW,
        False,
        Cause.UNMERGE,
        Notice.QUIET,
        1,
    )
    again = (await screening.flags(Q))[-1]
    assert (again.explanation.state, again.cause) == (State.FLAGGED, Cause.UNMERGE)


async def test_pt_06_chains_of_merges_in_any_order_count_alike(screening: Screening) -> None:
    r = key("TEST-r")
    await screening.meet(P, Q, r)
    visits = four_visits()
    owned = [replace(v, patient=k) for v, k in zip(visits, [r, Q, P, r], strict=True)]
    await screening.take(*owned, now="2026-08-08 13:00-04")
    await screening.merge(r, Q, "2026-08-09 09:00-04")
    await screening.merge(Q, P, "2026-08-09 10:00-04")
    assert (await screening.flags(P))[-1].explanation.state is State.FLAGGED
    late = ed_visit("e-5", "2026-08-10 09:00-04", patient=r)
    await screening.take(late, now="2026-08-10 13:00-04")
    told = (await screening.flags(P))[-1].explanation
    assert len(told.items) == 5
    assert await screening.flags(r) == []


async def test_ct_01_a_key_linked_to_another_survivor_leaves_the_first(
    screening: Screening,
) -> None:
    r = key("TEST-r")
    await screening.meet(P, Q, r)
    await screening.take(*p_and_q(), now="2026-09-01 14:00-04")
    await screening.merge(Q, P, "2026-09-02 09:00-04")
    await screening.merge(Q, r, "2026-09-03 09:00-04", version=2)
    assert said((await screening.flags(P))[-1]) == (
        State.WATCH,
        False,
        Cause.MERGE,
        Notice.QUIET,
        2,
    )
    await screening.merge(r, P, "2026-09-04 09:00-04")
    assert (await screening.flags(P))[-1].explanation.state is State.FLAGGED


async def test_w_7_a_late_file_flags_quietly_and_an_old_flag_is_never_sent(
    screening: Screening,
) -> None:
    """CR-31."""
    await screening.meet(P, Q)
    for n, day in enumerate(("2026-04-20", "2026-06-11", "2026-08-02")):
        visit = ed_visit(f"e-{n}", f"{day} 10:00-04")
        await screening.take(visit, now=f"{day} 14:00-04")
    now = "2026-09-10 12:00-04"
    late = ed_visit("e-9", "2026-03-15 10:00-04", recorded=now, backfill=True)
    old = [
        ed_visit(f"q-{n}", f"2025-0{n}-01 10:00-04", patient=Q, recorded=now, backfill=True)
        for n in (2, 3, 4, 5)
    ]
    await screening.take(late, *old, now=now)
    flagged = (await screening.flags(P))[-1]
    assert said(flagged) == (State.FLAGGED, False, Cause.BACKFILL, Notice.QUIET, None)
    assert flagged.explanation.since == at("2026-08-02 10:00-04")
    assert flagged.explanation.hold_until == at("2027-01-29 09:00-05")
    assert await screening.flags(Q) == []
    await screening.sweep("2027-03-15 09:59:59-04")
    await screening.sweep("2027-03-15 10:00-04")
    last = (await screening.flags(P))[-1].explanation
    assert (last.state, last.held, last.clauses[0].count) == (State.WATCH, False, 3)


async def test_cr_31_learnt_in_72_hours_is_an_alert_and_a_second_later_is_not(
    screening: Screening,
) -> None:
    await screening.meet(P, Q)
    visits = four_visits()
    begun = at("2026-08-08 09:00-04")
    for patient, late in ((P, timedelta(0)), (Q, timedelta(seconds=1))):
        mine = [
            replace(v, patient=patient, encounter=key(f"{patient}{n}"))
            for n, v in enumerate(visits)
        ]
        learnt = begun + timedelta(hours=72) + late
        mine[3] = replace(mine[3], recorded=learnt, first_recorded=learnt)
        await screening.take(*mine, now=learnt)
    assert (await screening.flags(P))[-1].notice is Notice.ALERT
    assert (await screening.flags(Q))[-1].notice is Notice.QUIET


async def test_w_8_flagged_again_soon_after_is_quiet(screening: Screening) -> None:
    await screening.meet(P)
    days = ("2026-01-10", "2026-03-05", "2026-04-01", "2026-05-20", "2027-02-20")
    offsets = ("-05", "-05", "-04", "-04", "-05")
    for n, (day, offset) in enumerate(zip(days, offsets, strict=True)):
        await screening.sweep(f"{day} 00:00{offset}")
        visit = ed_visit(f"e-{n}", f"{day} 10:00{offset}")
        await screening.take(visit, now=f"{day} 14:00{offset}")
    entries = [said(e)[0:4:3] for e in await screening.flags() if e.cause is Cause.EVENT]
    assert entries == [
        (State.WATCH, Notice.QUIET),
        (State.FLAGGED, Notice.ALERT),
        (State.FLAGGED, Notice.QUIET),
    ]


async def test_cr_32_the_same_again_and_what_is_older_have_no_effect(screening: Screening) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    before = await screening.flags(), await screening.moments()
    older = [replace(v, version=0, status=Status.CANCELLED) for v in visits]
    async with screening.at("2026-08-08 14:00-04") as turn:
        again = [recorded(v) for v in visits] * 2
        await flow.on_encounters_recorded(again, turn)
        stale = [recorded(replace(v, version=1)).model_copy(update={"version": 1}) for v in older]
        await flow.on_encounters_recorded(stale, turn)
    assert (await screening.flags(), await screening.moments()) == before


def a_year(word: str) -> list[Fact]:
    """Forty encounters of four patients, in two versions each; the same for every `word`."""
    chance = random.Random(2018)
    facts = []
    for n in range(40):
        start = at("2025-09-01 00:00-04") + timedelta(hours=chance.randrange(24 * 330))
        fact = encounter(
            f"{word}-{n}",
            start,
            start + timedelta(hours=chance.choice([1, 5, 60])),
            classes=[chance.choice(["EMER", "EMER", "IMP"])],
            site=chance.choice(["site-a", "site-b"]),
            patient=key(f"{word}-{n % 4}"),
        )
        facts += [fact, replace(fact, version=2, planned=n % 9 == 0)]
    return facts


async def ending(screening: Screening, patient: UUID) -> object:
    """What was last said of a patient, keys aside."""
    flags = await screening.flags(patient)
    if not flags:
        return None
    told = flags[-1].explanation
    return (
        (told.state, told.held, told.since, told.notice, told.clauses, told.next_change),
        [
            (i.kind, i.anchor, i.end, i.sites, i.counted, i.reason, i.notes, len(i.encounters))
            for i in told.items
        ],
    )


async def test_pt_03_pt_05_one_by_one_shuffled_or_in_one_batch_ends_alike(
    screening: Screening,
) -> None:
    """Incremental, in any order, in any split, is a full recount (PT-01 to PT-03, PT-05)."""
    chance = random.Random(7)
    now = at("2026-08-08 13:00-04")
    endings = []
    for word in ("one", "shuffled", "whole", "split"):
        facts = a_year(word)
        mixed = chance.sample(facts, len(facts))
        batches = {
            "one": [[f] for f in facts],
            "shuffled": [[f] for f in mixed],
            "whole": [mixed],
            "split": [mixed[:30], facts, mixed[20:50]],
        }[word]
        patients = [key(f"{word}-{n}") for n in range(4)]
        await screening.meet(*patients)
        for batch in batches:
            await screening.take(*batch, now=now)
        endings.append([await ending(screening, p) for p in patients])
    assert endings[0] == endings[1] == endings[2] == endings[3]
    assert any(endings[0])


async def test_an_encounter_corrected_onto_another_patient_lowers_the_first(
    screening: Screening,
) -> None:
    """CT-01: both are recounted."""
    await screening.meet(P, Q)
    visits = four_visits()
    others = [replace(v, patient=Q, encounter=key(f"q-{v.encounter}")) for v in visits[:3]]
    await screening.take(*visits, *others, now="2026-08-08 13:00-04")
    moved = replace(visits[3], version=2, patient=Q, recorded=at("2026-08-09 09:00-04"))
    await screening.take(moved, now="2026-08-09 09:00-04")
    assert said((await screening.flags(P))[-1]) == (
        State.WATCH,
        False,
        Cause.CORRECTION,
        Notice.QUIET,
        1,
    )
    theirs = (await screening.flags(Q))[-1]
    assert (theirs.explanation.state, theirs.notice) == (State.FLAGGED, Notice.ALERT)
    (gone,) = [e for e in await screening.moments(P) if e.moment is EpisodeMoment.CORRECTED]
    assert gone.void


async def test_cr_33_a_correction_that_lowers_the_count_retracts(screening: Screening) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    planned = replace(visits[1], version=2, planned=True, recorded=at("2026-08-09 09:00-04"))
    await screening.take(planned, now="2026-08-09 09:00-04")
    last = (await screening.flags())[-1]
    assert said(last) == (State.WATCH, False, Cause.CORRECTION, Notice.QUIET, 1)
    reasons = [i.reason.code for i in last.explanation.items if i.reason]
    assert reasons == ["PLANNED"]


async def test_cr_28_death_closes_once(screening: Screening) -> None:
    await screening.meet(P)
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    died = "2026-08-20T03:00:00-04:00"
    async with screening.at("2026-08-20 09:00-04") as turn:
        news = [identified(P, version=2, deceased=died, when="2026-08-20 09:00-04")]
        await flow.on_patients_identified(news, turn)
        await flow.on_patients_identified(news, turn)
    await screening.sweep("2027-09-01 00:00-04")
    closing = (await screening.flags())[1:]
    assert [said(event) for event in closing] == [
        (State.BELOW, False, Cause.DEATH, Notice.QUIET, None)
    ]
    assert closing[0].explanation.notes[0].code == "DEATH"


async def test_cr_47_a_patient_is_flagged_on_the_birthday_without_an_event(
    screening: Screening,
) -> None:
    await screening.meet(P, birth_date="2008-09-01")
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    assert await screening.sweep("2026-08-31 23:59:59-04") == 0
    assert await screening.flags() == []
    assert await screening.sweep("2026-09-01 00:00-04") == 1
    (flag,) = await screening.flags()
    assert said(flag) == (State.FLAGGED, False, Cause.ELIGIBILITY, Notice.ALERT, None)


async def test_encounters_wait_for_their_person(screening: Screening) -> None:
    """Section 1: a fact whose person fact has not arrived is evaluated when it does."""
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    assert await screening.flags() == []
    await screening.meet(P, now="2026-08-08 13:00:01-04", when="2026-08-08 13:00-04")
    (flag,) = await screening.flags()
    assert (flag.explanation.state, flag.notice) == (State.FLAGGED, Notice.ALERT)


async def test_cr_36_a_changed_health_card_changes_nothing(screening: Screening) -> None:
    await screening.meet(P)
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    async with screening.at("2026-08-09 13:00-04") as turn:
        await flow.on_patients_identified([identified(P, version=2)], turn)
    assert len(await screening.flags()) == 1


async def test_ct_43_a_label_learnt_later_is_announced(screening: Screening) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    labelled = encounter(
        "e-2",
        "2026-02-02 09:00-05",
        "2026-02-02 13:00-05",
        version=2,
        labels=[("http://terminology.hl7.org/CodeSystem/v3-ActCode", "MH")],
        recorded="2026-08-09 13:00-04",
    )
    await screening.take(labelled, now="2026-08-09 13:00-04")
    first, last = await screening.flags()
    assert said(last) == (State.FLAGGED, False, Cause.EVENT, Notice.QUIET, None)
    assert [i.encounters[0].labels for i in first.explanation.items] == [None] * 4
    labels = [i.encounters[0].labels for i in last.explanation.items]
    assert [[c.code for c in some] for some in labels if some] == [["MH"]]


async def test_ct_27_moments_of_an_episode_from_the_fact_that_makes_it_watched(
    screening: Screening,
) -> None:
    """Arrived, admitted, discharged: one episode, each once, with who it concerns and where."""
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits[:2], now="2026-02-02 14:00-05")
    assert await screening.moments() == []
    arrived = encounter("e-9", "2026-05-05 09:00-04", version=1, recorded="2026-05-05 09:01-04")
    await screening.take(arrived, now="2026-05-05 09:01-04")
    admitted = replace(
        arrived,
        version=2,
        classes=(*arrived.classes, ("IMP", at("2026-05-05 15:00-04"))),
        recorded=at("2026-05-05 15:01-04"),
    )
    await screening.take(admitted, now="2026-05-05 15:01-04")
    left = encounter(
        "e-9",
        "2026-05-05 09:00-04",
        "2026-05-09 10:00-04",
        classes=["EMER", ("IMP", "2026-05-05 15:00-04")],
        version=3,
        recorded="2026-05-09 10:01-04",
    )
    await screening.take(left, now="2026-05-09 10:01-04")
    told = await screening.moments()
    assert [(e.moment, e.at, e.in_ed, e.in_hospital, e.ended) for e in told] == [
        (EpisodeMoment.ARRIVED, at("2026-05-05 09:00-04"), True, False, False),
        (EpisodeMoment.ADMITTED, at("2026-05-05 15:00-04"), False, True, False),
        (EpisodeMoment.DISCHARGED, at("2026-05-09 10:00-04"), False, False, True),
    ]
    assert [e.sequence for e in told] == [1, 2, 3]
    assert {e.episode for e in told} == {key("e-9")}
    (first, *_) = await screening.flags()
    assert first.explanation.episode == key("e-9")


async def test_ct_27_a_late_moment_is_not_sent_unless_it_corrects_one_that_was(
    screening: Screening,
) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits, now="2026-08-08 13:00-04")
    before = await screening.moments()
    late = ed_visit("e-8", "2026-08-01 09:00-04", recorded="2026-08-09 09:00-04")
    await screening.take(late, now="2026-08-09 09:00-04")
    assert await screening.moments() == before
    moved = encounter(
        "e-4",
        "2026-08-08 08:00-04",
        "2026-08-08 13:00-04",
        version=2,
        recorded="2026-09-30 09:00-04",
    )
    await screening.take(moved, now="2026-09-30 09:00-04")
    (corrected,) = (await screening.moments())[len(before) :]
    assert (corrected.moment, corrected.episode) == (EpisodeMoment.CORRECTED, key("e-4"))


async def test_ct_23_who_was_never_discharged_is_present_until_the_assumed_end(
    screening: Screening,
) -> None:
    await screening.meet(P)
    visits = four_visits()
    await screening.take(*visits[:3], now="2026-05-05 14:00-04")
    open_visit = encounter("e-9", "2026-08-08 09:00-04")
    await screening.take(open_visit, now="2026-08-08 09:01-04")
    assert (await screening.moments())[-1].in_ed
    await screening.sweep("2026-08-12 08:59:59-04")
    assert (await screening.moments())[-1].in_ed
    await screening.sweep("2026-08-12 09:00-04")
    last = (await screening.moments())[-1]
    assert (last.moment, last.in_ed, last.ended) == (EpisodeMoment.CORRECTED, False, True)
    notes = (await screening.flags())[-1].explanation.items[0].notes
    assert [note.code for note in notes] == ["NOT_CLOSED"]


async def test_ct_26_two_episodes_that_join_are_one_and_the_other_says_so(
    screening: Screening,
) -> None:
    await screening.meet(P)
    await screening.take(*four_visits()[:3], now="2026-05-05 14:00-04")
    first = ed_visit("e-5", "2026-06-01 09:00-04")
    bed = stay("s-1", "2026-06-02 09:00-04", "2026-06-02 20:00-04")
    await screening.take(first, bed, now="2026-06-02 20:00-04")
    longer = encounter(
        "e-5",
        "2026-06-01 09:00-04",
        "2026-06-02 08:00-04",
        version=2,
        recorded="2026-06-02 21:00-04",
    )
    await screening.take(longer, now="2026-06-02 21:00-04")
    told = [e for e in await screening.moments() if e.joined_into]
    assert [(e.moment, e.episode, e.joined_into) for e in told] == [
        (EpisodeMoment.CORRECTED, key("s-1"), key("e-5"))
    ]
    last = [e for e in await screening.moments() if e.episode == key("e-5")][-1]
    assert set(last.encounters) == {key("e-5"), key("s-1")}


async def test_what_was_due_is_settled_before_an_event_so_each_has_its_cause(
    screening: Screening,
) -> None:
    await screening.meet(P)
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    late = ed_visit("e-9", "2026-12-01 09:00-05")
    await screening.take(late, now="2026-12-01 13:00-05")
    assert [(e.cause, e.explanation.held) for e in await screening.flags()] == [
        (Cause.EVENT, False),
        (Cause.DECAY, True),
        (Cause.EVENT, False),
    ]


async def test_ct_45_ct_81_a_sweep_takes_only_who_is_due_and_skips_who_is_held(
    screening: Screening,
) -> None:
    await screening.meet(P, Q)
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    mine = [replace(v, patient=Q, encounter=key(f"q-{n}")) for n, v in enumerate(four_visits())]
    await screening.take(*mine, now="2026-08-08 13:00-04")
    assert await screening.sweep("2026-08-09 00:00-04") == 0
    async with screening.db.work() as holder:
        await holder.execute(text("select 1 from patient where key = :key for update"), {"key": P})
        assert await screening.sweep("2026-11-24 10:00-05") == 1
    assert await screening.sweep("2026-11-24 10:00-05") == 1
    assert await screening.sweep("2026-11-24 10:00-05") == 0
    assert (await screening.flags(P))[-1].explanation.held
    assert (await screening.flags(Q))[-1].explanation.held


async def test_pt_10_a_sweep_at_any_rhythm_ends_where_a_single_one_does(
    screening: Screening,
) -> None:
    await screening.meet(P, Q)
    mine = [replace(v, patient=Q, encounter=key(f"q-{n}")) for n, v in enumerate(four_visits())]
    await screening.take(*four_visits(), *mine, now="2026-08-08 13:00-04")
    now = at("2026-08-08 13:00-04")
    for days in (3, 20, 50, 60, 30, 16):
        now += timedelta(days=days)
        async with screening.db.work() as tx:
            await tx.execute(text("select 1 from patient where key = :k for update"), {"k": Q})
            await screening.sweep(now)
    await screening.sweep(now)
    assert await ending(screening, P) == await ending(screening, Q)
    assert len(await screening.flags(P)) > len(await screening.flags(Q))


async def test_ct_51_a_new_policy_re_evaluates_everyone_and_is_quiet(
    screening: Screening,
) -> None:
    await screening.meet(P)
    async with screening.at("2026-05-01 00:00-04") as turn:
        assert await registry.adopt(turn.tx, screening.policy, turn.now)
    await screening.take(*four_visits()[:3], now="2026-05-05 14:00-04")
    screening.policy = policy("flag: {any: [{measure: ed_visits, at_least: 3}]}")
    async with screening.at("2026-05-06 00:00-04") as turn:
        assert await registry.adopt(turn.tx, screening.policy, turn.now)
        assert await registry.adopt(turn.tx, screening.policy, turn.now)
        assert not await registry.adopt(turn.tx, policy("hold_days: 1"), turn.now)
    assert await screening.reevaluate("2026-05-06 00:00-04") == 1
    assert said((await screening.flags())[-1]) == (
        State.FLAGGED,
        False,
        Cause.POLICY,
        Notice.QUIET,
        None,
    )


async def test_two_at_once_wait_for_each_other_and_lose_nothing(screening: Screening) -> None:
    await screening.meet(P, Q)
    visits = four_visits()
    await asyncio.gather(
        *(screening.take(v, now="2026-08-08 13:00-04") for v in visits[:2]),
        screening.merge(Q, P, "2026-08-08 13:00-04"),
        *(screening.take(replace(v, patient=Q), now="2026-08-08 13:00-04") for v in visits[2:]),
    )
    last = (await screening.flags(P))[-1].explanation
    assert (last.state, len(last.items)) == (State.FLAGGED, 4)
    sequences = [e.sequence for e in await screening.flags(P)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_a_correction_that_overtakes_the_first_version_lowers_the_other_patient(
    screening: Screening,
) -> None:
    """Two readers at once: one brings the encounter for P, one its correction to Q."""
    await screening.meet(P, Q)
    visits = four_visits()
    await screening.take(*visits[:3], now="2026-08-08 12:00-04")
    moved = replace(visits[3], version=2, patient=Q, recorded=at("2026-08-08 13:30-04"))
    async with screening.at("2026-08-08 13:30-04") as first:
        await flow.on_encounters_recorded([recorded(visits[3])], first)
        second = asyncio.create_task(screening.take(moved, now="2026-08-08 13:30-04"))
        await blocked(screening)
    await second
    last = (await screening.flags(P))[-1]
    assert (last.explanation.state, last.retracts) == (State.WATCH, 2)


async def blocked(screening: Screening) -> None:
    """Until some transaction waits for another."""
    for _ in range(200):
        async with screening.db.work() as tx:
            waiting = await tx.execute(text("select 1 from pg_locks where not granted limit 1"))
            if waiting.first():
                return
        await asyncio.sleep(0.02)
    raise AssertionError("nobody waits")


async def test_no_event_of_a_patient_who_stays_below(screening: Screening) -> None:
    """CT-43."""
    await screening.meet(P)
    await screening.take(*four_visits()[:2], now="2026-02-02 14:00-05")
    assert await screening.said(FlagChanged.type) == []
    assert await screening.said(EpisodeChanged.type) == []


async def test_ct_61_coverage_is_partial_while_a_known_site_is_not_connected(
    screening: Screening,
) -> None:
    """CR-39."""
    await screening.meet(P)
    await screening.take(*four_visits(), now="2026-08-08 13:00-04")
    (flag,) = await screening.flags()
    covered = flag.explanation.coverage
    assert (covered.known_sites, covered.connected_sites, covered.complete) == (3, 2, False)
    assert [site.data_from is None for site in covered.sites] == [False, False, True]
