"""Below, watch or flagged; since when; is it news: CT-40 to CT-46, W-1, W-6 to W-8."""

from dataclasses import replace
from datetime import date, timedelta

import pytest

from services.screening import why
from services.screening.flag import (
    Announced,
    Cause,
    Notice,
    Standing,
    State,
    Touch,
    cause,
    face,
    is_news,
    notice,
    retracts,
    stand,
)
from services.screening.ledger import Fact, Ledger, Status, survivor
from tests.histories import (
    SECOND,
    P,
    Q,
    at,
    ed_visit,
    history,
    key,
    ledger,
    link,
    person,
    policy,
    qc_default,
)

RULE = qc_default()
W_1 = [
    ed_visit("e-1", "2025-11-24 10:00-05"),
    ed_visit("e-2", "2026-02-02 09:00-05"),
    ed_visit("e-3", "2026-05-05 09:00-04"),
    ed_visit("e-4", "2026-08-08 09:00-04"),
]


def announced(standing: Standing, sequence: int) -> Announced:
    return Announced(
        state=standing.state,
        face="something",
        held=standing.held,
        since=standing.since,
        entry=sequence,
        ed_visits=standing.ed_visits,
        hospital_episodes=standing.hospital_episodes,
    )


def shown(known: Ledger, now: str) -> str:
    standing = stand(known, RULE, at(now))
    return face(standing, why.explain(known.facts, standing.judged, RULE, at(now)), RULE)


def test_ct_41_flagged_since_the_instant_it_was_met_until_hold_and_count_have_ended() -> None:
    known = ledger(*W_1)
    held = stand(known, RULE, at("2026-11-24 10:00-05"))
    assert (held.state, held.held, held.since) == (
        State.FLAGGED,
        True,
        at("2026-08-08 09:00-04"),
    )
    assert held.by is Cause.DECAY
    ended = stand(known, RULE, at("2027-02-04 08:00-05"))
    assert (ended.state, ended.since, ended.by) == (State.BELOW, None, Cause.HOLD_END)


def test_ct_41_a_flag_that_is_still_met_when_the_hold_ends_goes_on() -> None:
    known = ledger(*W_1, ed_visit("e-5", "2026-08-09 09:00-04"))
    later = stand(known, RULE, at("2027-02-01 08:00-05"))
    assert (later.state, later.held) == (State.FLAGGED, False)
    after = stand(known, RULE, at("2027-02-04 08:00-05"))
    assert (after.state, after.held, after.ed_visits) == (State.WATCH, False, 3)


def test_ct_41_all_changes_of_one_instant_are_one() -> None:
    """The fifth arrives the second the first leaves: the count never is three."""
    known = ledger(*W_1, ed_visit("e-5", "2026-11-24 10:00-05"))
    standing = stand(known, RULE, at("2026-11-24 10:00-05"))
    assert (standing.ed_visits, standing.held, standing.since) == (
        4,
        False,
        at("2026-08-08 09:00-04"),
    )


def test_ct_46_the_next_change_with_its_new_values() -> None:
    coming = stand(ledger(*W_1), RULE, at("2026-08-08 09:00-04")).next
    assert coming
    assert (coming.at, coming.ed_visits, coming.state, coming.held) == (
        at("2026-11-24 10:00-05"),
        3,
        State.FLAGGED,
        True,
    )
    assert stand(ledger(), RULE, at("2026-08-08 09:00-04")).next is None


def test_ct_42_an_entry_soon_after_it_was_met_before_is_quiet() -> None:
    """W-8; and at exactly 180 days it is loud again."""
    days = ("2026-01-10", "2026-03-05", "2026-04-01", "2026-05-20")
    before = [ed_visit(f"e-{n}", f"{day} 10:00-05") for n, day in enumerate(days)]
    unmet = at("2027-01-10 10:00-05")
    for gap, loud in ((timedelta(days=40), False), (timedelta(days=180), True)):
        again = [ed_visit(f"n-{n}", unmet + gap - timedelta(days=n)) for n in range(4)]
        facts = [*before, *again]
        entry = unmet + gap
        standing = stand(ledger(*facts), policy("hold_days: 0"), entry)
        first = min(f.start.earliest for f in again if f.start)
        if standing.since is None or standing.since < first:
            pytest.fail("no entry")
        said = notice(history(*facts), P, standing, policy("hold_days: 0"))
        assert (said is Notice.ALERT) is (loud or standing.since - unmet >= timedelta(days=180))


def test_w_7_a_completing_fact_recorded_late_or_by_backfill_is_quiet() -> None:
    three = W_1[1:]
    for learnt, backfill, said in (
        (timedelta(hours=72), False, Notice.ALERT),
        (timedelta(hours=72, seconds=1), False, Notice.QUIET),
        (timedelta(hours=5), True, Notice.QUIET),
    ):
        when = at("2026-08-08 09:00-04") + learnt
        late = replace(W_1[0], recorded=when, first_recorded=when, backfill=backfill)
        facts = [*three, late]
        standing = stand(ledger(*facts), RULE, when)
        assert notice(history(*facts), P, standing, RULE) is said


def test_w_7_what_is_learnt_after_the_entry_does_not_make_it_late() -> None:
    discharge = replace(W_1[3], version=2, recorded=at("2026-09-30 09:00-04"))
    facts = [*W_1, discharge]
    standing = stand(ledger(*W_1[:3], discharge), RULE, at("2026-10-01 09:00-04"))
    assert notice(history(*facts), P, standing, RULE) is Notice.ALERT


def test_w_6_a_merge_is_loud_however_old_the_crossing_unless_a_key_was_flagged() -> None:
    mine = [replace(v, patient=Q) if v is W_1[0] else v for v in W_1]
    who = [person(), person(key=Q)]
    merged = link(Q, P, "2026-10-10 09:00-04")
    standing = stand(ledger(*W_1), RULE, at("2026-10-10 09:00-04"))
    assert notice(history(*mine, who=who, links=[merged]), P, standing, RULE) is Notice.ALERT
    theirs = [replace(v, patient=Q) for v in W_1]
    flagged = history(*theirs, who=who, links=[merged])
    assert notice(flagged, P, standing, RULE) is Notice.QUIET


def test_ct_43_of_a_patient_who_was_and_stays_below_nobody_is_told() -> None:
    known = ledger(W_1[0])
    now = "2026-08-08 09:00-04"
    standing = stand(known, RULE, at(now))
    assert not is_news(Announced(), standing, shown(known, now))


@pytest.mark.parametrize(
    "changed",
    [
        replace(W_1[1], labels=()),
        replace(W_1[1], codes=()),
        replace(W_1[1], site="site-b"),
        replace(W_1[1], planned=True),
        replace(W_1[1], time_is_ambiguous=True),
        replace(W_1[1], end=None, status=Status.IN_PROGRESS),
    ],
)
def test_ct_43_any_item_label_code_or_reason_that_changes_is_news(changed: Fact) -> None:
    now = "2026-08-08 09:00-04"
    before = shown(ledger(*W_1), now)
    assert before == shown(ledger(*W_1[::-1]), now)
    assert before != shown(ledger(W_1[0], changed, *W_1[2:]), now)


def test_ct_44_a_flag_that_was_never_true_is_retracted_and_one_that_was_is_not() -> None:
    was = announced(stand(ledger(*W_1), RULE, at("2026-08-08 09:00-04")), 7)
    without = stand(ledger(*W_1[:3]), RULE, at("2026-08-20 09:00-04"))
    assert retracts(was, without) == 7
    ended = stand(ledger(*W_1), RULE, at("2027-02-04 08:00-05"))
    assert retracts(was, ended) is None
    still = stand(ledger(*W_1), RULE, at("2026-08-20 09:00-04"))
    assert retracts(was, still) is None


def test_cr_28_death_is_no_retraction() -> None:
    was = announced(stand(ledger(*W_1), RULE, at("2026-08-08 09:00-04")), 7)
    dead = ledger(*W_1, who=person(death=at("2026-08-10 09:00-04")))
    after = stand(dead, RULE, at("2026-08-10 09:00-04"))
    assert (after.state, retracts(was, after)) == (State.BELOW, None)
    assert cause(Touch.FACT, was, after) is Cause.DEATH


@pytest.mark.parametrize(
    ("touch", "after", "why"),
    [
        (Touch.FACT, W_1, Cause.EVENT),
        (Touch.BACKFILL, W_1, Cause.BACKFILL),
        (Touch.FACT, W_1[:2], Cause.CORRECTION),
        (Touch.BACKFILL, W_1[:2], Cause.CORRECTION),
        (Touch.VOIDED, W_1[:2], Cause.VOID),
        (Touch.MOVED, W_1[:2], Cause.CORRECTION),
        (Touch.MERGED, W_1, Cause.MERGE),
        (Touch.UNMERGED, W_1[:2], Cause.UNMERGE),
        (Touch.POLICY, W_1, Cause.POLICY),
        (Touch.PERSON, W_1, Cause.ELIGIBILITY),
    ],
)
def test_ct_43_each_change_has_its_cause(touch: Touch, after: list[Fact], why: Cause) -> None:
    now = at("2026-08-08 09:00-04")
    was = announced(stand(ledger(*W_1[:3]), RULE, now), 1)
    assert cause(touch, was, stand(ledger(*after), RULE, now)) is why


def test_cr_47_limits_of_age_begin_and_end_at_local_midnight_of_a_birthday() -> None:
    rule = policy("person: {age_min: 18, age_max: 18}")
    for born, begins, ends in (
        (date(2008, 9, 1), "2026-09-01 00:00-04", "2027-09-01 00:00-04"),
        (date(2008, 2, 29), "2026-03-01 00:00-05", "2027-03-01 00:00-05"),
    ):
        known = ledger(who=person(birth_date=born))
        for instant, eligible in (
            (at(begins) - SECOND, False),
            (at(begins), True),
            (at(ends) - SECOND, True),
            (at(ends), False),
        ):
            assert stand(known, rule, instant).eligible is eligible
    unknown = stand(ledger(who=person(birth_date=None)), rule, at("2026-09-01 00:00-04"))
    assert (unknown.eligible, unknown.age_unknown) == (True, True)


def test_ct_01_a_circle_of_links_has_a_survivor_all_the_same() -> None:
    a, b, c = sorted(key(name) for name in "abc")
    into = {a: b, b: a, c: b}
    assert {survivor(k, into) for k in (a, b, c)} == {a}
    assert survivor(key("d"), into) == key("d")
