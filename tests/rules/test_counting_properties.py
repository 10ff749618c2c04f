"""What holds of counting for any life: counting.md section 10, and the oracle (ORC-03)."""

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.screening import why
from services.screening.episodes import Kind
from services.screening.flag import Notice, Standing, State, face, notice, stand
from services.screening.ledger import Fact, History, Ledger, Person, Status, gather, in_force
from services.screening.policy import Policy
from tests.counting.compare import answer, differing, expected
from tests.histories import (
    SECOND,
    SEVERAL,
    VARIANT,
    P,
    Q,
    history,
    instants,
    key,
    ledger,
    link,
    lives,
    people,
    person,
    policy,
    qc_default,
    shifted,
)

MANY = settings(deadline=None, max_examples=3 * settings().max_examples)
"""The oracle is asked more often than the rest; how often, the profile says (tests/conftest.py)."""
POLICIES = [qc_default(), policy(VARIANT), policy(SEVERAL)]


def said(known: Ledger, rule: Policy, now: datetime) -> Any:
    """Everything an explanation is made of."""
    standing = stand(known, rule, now)
    reasons = why.explain(known.facts, standing.judged, rule, now)
    return face(standing, reasons, rule), seen(standing), standing.next, standing.flagged


def seen(standing: Standing) -> Any:
    return (
        standing.ed_visits,
        standing.hospital_episodes,
        standing.counts,
        standing.earlier,
        standing.state,
        standing.held,
    )


@MANY
@given(st.data(), lives(), people, st.sampled_from(POLICIES))
def test_pt_04_the_independent_oracle_says_the_same(
    data: st.DataObject, facts: list[Fact], who: Person, rule: Policy
) -> None:
    now = data.draw(instants(facts))
    found = answer(ledger(*facts, who=who), rule, now)
    assert not differing(found, expected(facts, who, rule, now))


@given(st.data(), lives(most=6), st.sampled_from(POLICIES))
def test_pt_01_pt_02_pt_03_order_duplicates_and_old_versions_change_nothing(
    data: st.DataObject, facts: list[Fact], rule: Policy
) -> None:
    now = data.draw(instants(facts))
    older = [
        replace(f, version=1, site="site-z", status=Status.ARRIVED)
        for f in facts
        if data.draw(st.booleans())
    ]
    newer = [replace(f, version=2) for f in facts]
    clean = history(*newer, *older).at(now + timedelta(days=9999))
    sent = data.draw(st.permutations([*newer, *older, *newer]))
    messy = history(*sent).at(now + timedelta(days=9999))
    assert said(_of(clean, P), rule, now) == said(_of(messy, P), rule, now)


def _of(known: History, patient: Any) -> Ledger:
    return gather([patient], in_force(known.links), known.facts, known.persons)[patient]


@given(st.data(), lives(most=6))
def test_pt_06_the_order_of_merges_is_irrelevant_and_unmerge_restores(
    data: st.DataObject, facts: list[Fact]
) -> None:
    now = data.draw(instants(facts))
    rule = qc_default()
    keys = [P, Q, key("TEST-r")]
    owned = [replace(f, patient=data.draw(st.sampled_from(keys))) for f in facts]
    who = [person(key=k) for k in keys]
    merges = [link(Q, P, "2026-01-01 00:00-05"), link(keys[2], Q, "2026-01-02 00:00-05")]
    whole = said(_of(history(*owned, who=who, links=merges), P), rule, now)
    assert whole == said(_of(history(*owned, who=who, links=merges[::-1]), P), rule, now)
    assert whole == said(ledger(*owned), rule, now)
    undone = [*merges, link(Q, P, "2026-01-03 00:00-05", version=2, active=False)]
    alone = [f for f in owned if f.patient == P]
    assert said(_of(history(*owned, who=who, links=undone), P), rule, now) == said(
        ledger(*alone), rule, now
    )
    rest = [f for f in owned if f.patient != P]
    assert said(_of(history(*owned, who=who, links=undone), Q), rule, now) == said(
        ledger(*rest), rule, now
    )


@given(st.data(), lives(most=6), st.sampled_from(POLICIES))
def test_pt_07_void_then_restored_is_as_if_nothing_had_happened(
    data: st.DataObject, facts: list[Fact], rule: Policy
) -> None:
    now = data.draw(instants(facts))
    later = now + timedelta(days=9999)
    before = said(_of(history(*facts).at(later), P), rule, now)
    voided = [replace(f, version=2, status=Status.ENTERED_IN_ERROR) for f in facts]
    empty = stand(_of(history(*facts, *voided).at(later), P), rule, now)
    assert (empty.ed_visits, empty.hospital_episodes, empty.state) == (0, 0, State.BELOW)
    restored = [replace(f, version=3) for f in facts]
    assert said(_of(history(*facts, *voided, *restored).at(later), P), rule, now) == before


@given(st.data(), lives(most=6), st.integers(-400 * 86400, 400 * 86400))
def test_pt_08_a_life_shifted_with_the_clock_counts_alike(
    data: st.DataObject, facts: list[Fact], seconds: int
) -> None:
    """Where no rule looks at local dates: exact times, nothing taken back before midnight."""
    exact = [f for f in facts if f.start and f.start.exact and len(f.classes) < 3]
    now, by = data.draw(instants(exact)), timedelta(seconds=seconds)
    rule, who = qc_default(), person(birth_date=None)
    here = stand(ledger(*exact, who=who), rule, now)
    there = stand(ledger(*(shifted(f, by) for f in exact), who=who), rule, now + by)
    assert (here.state, here.held, here.counts, here.by, here.again) == (
        there.state,
        there.held,
        there.counts,
        there.by,
        there.again,
    )
    assert [j.reason for j in here.judged] == [j.reason for j in there.judged]
    assert (here.since and here.since + by) == there.since
    assert (here.next and here.next.at + by) == (there.next and there.next.at)


@given(st.data(), lives(), people, st.sampled_from(POLICIES))
def test_pt_09_nothing_changes_before_next_change_and_something_does_at_it(
    data: st.DataObject, facts: list[Fact], who: Person, rule: Policy
) -> None:
    now = data.draw(instants(facts))
    known = ledger(*facts, who=who)
    here = stand(known, rule, now)
    if here.next is None:
        assert seen(stand(known, rule, now + timedelta(days=4000))) == seen(here)
        return
    there = stand(known, rule, here.next.at)
    assert seen(stand(known, rule, here.next.at - timedelta(microseconds=1))) == seen(here)
    assert seen(there) != seen(here)
    assert (here.next.ed_visits, here.next.hospital_episodes) == (
        there.ed_visits,
        there.hospital_episodes,
    )
    assert (here.next.state, here.next.held) == (there.state, there.held)


@given(st.data(), lives(), people)
def test_ct_45_nothing_published_changes_before_it_is_due(
    data: st.DataObject, facts: list[Fact], who: Person
) -> None:
    """PT-10 in the small: a row is due no later than the instant at which it reads differently."""
    now = data.draw(instants(facts))
    known, rule = ledger(*facts, who=who), qc_default()
    standing = stand(known, rule, now)
    reasons = why.explain(known.facts, standing.judged, rule, now)
    shown = face(standing, reasons, rule)
    due = min((t for t in (standing.stirs, reasons.restless) if t), default=None)
    assert due is None or due > now
    later = now + data.draw(st.sampled_from([SECOND, timedelta(days=1), timedelta(days=200)]))
    moment = later if due is None else min(later, due - timedelta(microseconds=1))
    assert said(known, rule, moment)[0] == shown


@given(st.data(), lives(most=6))
def test_pt_11_what_was_known_then_is_what_a_fresh_system_would_say(
    data: st.DataObject, facts: list[Fact]
) -> None:
    rule = qc_default()
    then = data.draw(instants(facts))
    late = [replace(f, version=2, recorded=then + SECOND, planned=True) for f in facts]
    everything = history(*facts, *late).at(then)
    fresh = history(*[f for f in facts if f.recorded <= then])
    assert said(_of(everything, P), rule, then) == said(_of(fresh, P), rule, then)


@given(lives(most=12), st.sampled_from([qc_default(), policy("hold_days: 0")]))
def test_pt_12_at_most_one_alert_in_any_180_days(facts: list[Fact], rule: Policy) -> None:
    known = ledger(*facts)
    instant = min((f.start.earliest for f in facts if f.start), default=None)
    alerts: list[datetime] = []
    while instant is not None:
        standing = stand(known, rule, instant)
        loud = notice(history(*facts), P, standing, rule) is Notice.ALERT
        if loud and standing.since and standing.since not in alerts:
            alerts.append(standing.since)
        instant = standing.next.at if standing.next else None
    assert all(b - a >= rule.quiet_reentry for a, b in pairwise(alerts))


@given(st.data(), lives(), people, st.sampled_from(POLICIES))
def test_pt_13_counted_items_equal_the_counts_and_each_fact_is_in_one_item_per_kind(
    data: st.DataObject, facts: list[Fact], who: Person, rule: Policy
) -> None:
    """CT-60."""
    now = data.draw(instants(facts))
    known = ledger(*facts, who=who)
    standing = stand(known, rule, now)
    items = why.explain(known.facts, standing.judged, rule, now).items
    counted = [i.kind for i in items if i.counted and i.anchor > now - rule.window]
    assert counted.count(Kind.ED) == standing.ed_visits
    assert counted.count(Kind.HOSPITAL) == standing.hospital_episodes
    places = [(f.encounter, i.kind) for i in items for f in i.facts]
    assert len(places) == len(set(places))
    assert all(i.counted is (i.reason is None) for i in items)
    order = [(-i.anchor.timestamp(), min(f.encounter for f in i.facts)) for i in items]
    assert order == sorted(order)
    shown = {f.encounter for i in items for f in i.facts}
    for fact in facts:
        if fact.start and now - rule.lookback < fact.start.earliest <= now:
            in_error = fact.status is Status.ENTERED_IN_ERROR
            assert in_error or fact.encounter in shown or _began_earlier(fact, known, rule, now)


def _began_earlier(fact: Fact, known: Ledger, rule: Policy, now: datetime) -> bool:
    """Its visit or episode has an anchor outside the window, or none of its parts is inside."""
    return any(
        m.fact.encounter == fact.encounter and not (now - rule.lookback < j.group.anchor <= now)
        for j in stand(known, rule, now).judged
        for m in j.group.members
    )
