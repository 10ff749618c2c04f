"""Which encounters are one event in a life: CT-20 to CT-26, CR-04, CR-05, CR-17, W-3, W-4."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from services.screening.episodes import Kind, care, grouped, segments
from services.screening.ledger import Disposition, Fact
from tests.histories import SECOND, at, ed_visit, encounter, key, on, policy, qc_default, stay

HOUR = timedelta(hours=1)


def groups(*facts: Fact, rule: str = "") -> list[tuple[Kind, set[UUID]]]:
    used = policy(rule) if rule else qc_default()
    parts = [part for fact in facts for part in segments(fact, used)]
    return [(g.kind, {m.fact.encounter for m in g.members}) for g in grouped(parts, used)]


def cares(*facts: Fact) -> list[tuple[UUID, set[UUID]]]:
    rule = qc_default()
    parts = [part for fact in facts for part in segments(fact, rule)]
    return [(c.key, {f.encounter for f in c.facts}) for c in care(grouped(parts, rule), rule)]


def names(*found: str) -> set[UUID]:
    return {key(name) for name in found}


def two_stays(gap: timedelta, **second: object) -> Sequence[Fact]:
    left = at("2026-06-03 12:00-04")
    return (
        stay("a", "2026-06-01 10:00-04", left),
        stay("b", left + gap, left + gap + 24 * HOUR, site="site-b", **second),
    )


@pytest.mark.parametrize(
    ("gap", "coded", "linked"),
    [
        (-HOUR, False, True),
        (7 * HOUR - SECOND, False, True),
        (7 * HOUR, False, False),
        (7 * HOUR, True, True),
        (12 * HOUR, True, True),
        (12 * HOUR + SECOND, True, False),
    ],
)
def test_ct_22_stays_link_under_7_hours_or_coded_up_to_12(
    gap: timedelta, coded: bool, linked: bool
) -> None:
    assert (len(groups(*two_stays(gap, transfer_in=coded))) == 1) is linked


def test_ct_22_a_transfer_out_of_the_earlier_side_is_as_good_as_one_into_the_later() -> None:
    a, b = two_stays(9 * HOUR)
    assert len(groups(a, b)) == 2
    assert len(groups(replace(a, transfer_out=True), b)) == 1
    assert len(groups(a, replace(b, transfer_out=True))) == 2
    assert len(groups(replace(a, transfer_in=True), b)) == 2
    assert len(groups(replace(a, disposition=Disposition.TRANSFERRED), b)) == 1
    assert len(groups(replace(a, disposition=Disposition.HOME), b)) == 2


def test_ct_22_a_transfer_belongs_to_the_part_of_the_encounter_at_its_side() -> None:
    """Transferred from the bed is not transferred from the ED, nor the other way round."""
    admitted = at("2026-06-01 12:00-04")
    both = encounter(
        "a",
        admitted - 4 * HOUR,
        admitted + 4 * HOUR,
        classes=["EMER", ("IMP", admitted)],
        transfer_out=True,
        transfer_in=True,
    )
    next_visit = ed_visit("b", admitted + 5 * HOUR, site="site-b")
    assert len(groups(both, next_visit)) == 3
    before = stay("c", admitted - 40 * HOUR, admitted - 9 * HOUR, site="site-b")
    assert len(groups(both, before)) == 3
    next_bed = stay("d", admitted + 13 * HOUR, admitted + 40 * HOUR, site="site-b")
    assert len(groups(both, next_bed)) == 2


def test_ct_21_links_close_over_all_sites_whatever_the_order() -> None:
    left = at("2026-06-03 12:00-04")
    chain = [
        stay(name, left + n * 30 * HOUR, left + n * 30 * HOUR + 24 * HOUR, site=f"site-{name}")
        for n, name in enumerate("abcde")
    ]
    assert groups(*chain) == groups(*chain[::-1]) == [(Kind.HOSPITAL, names(*"abcde"))]


def test_ct_21_part_of_links_whatever_lies_between() -> None:
    a = ed_visit("a", "2026-06-01 10:00-04")
    b = ed_visit("b", "2026-06-20 10:00-04", part_of="a", site="site-b")
    assert groups(a, b) == [(Kind.ED, names("a", "b"))]


def test_ct_21_part_of_something_of_another_kind_or_void_links_nothing() -> None:
    a = stay("a", "2026-06-01 10:00-04", "2026-06-05 10:00-04")
    b = ed_visit("b", "2026-06-20 10:00-04", part_of="a")
    assert len(groups(a, b)) == 2
    void = ed_visit("a", "2026-06-01 10:00-04", status="cancelled")
    assert len(groups(void, b)) == 1


@pytest.mark.parametrize(
    ("left", "arrived", "visits"),
    [
        ("2026-11-01 00:40-04", "2026-11-01 02:05-05", 2),
        ("2026-03-08 01:30-05", "2026-03-08 04:15-04", 1),
    ],
)
def test_w_3_elapsed_time_counts_on_the_nights_the_clock_changes(
    left: str, arrived: str, visits: int
) -> None:
    a = ed_visit("a", at(left) - 3 * HOUR, at(left))
    b = ed_visit("b", arrived)
    assert len(groups(a, b)) == visits


def test_ct_23_an_open_visit_is_grouped_as_if_it_ended_after_96_hours() -> None:
    start = at("2026-06-01 10:00-04")
    a = encounter("a", start)
    inside = ed_visit("b", start + 98 * HOUR)
    outside = ed_visit("b", start + 98 * HOUR + SECOND)
    assert len(groups(a, inside)) == 1
    assert len(groups(a, outside)) == 2


def test_ct_24_without_exact_times_only_a_coded_transfer_on_the_same_or_next_date() -> None:
    a = encounter("a", on("2026-06-01"), on("2026-06-03"), classes=["IMP"])
    same, following, third = (
        encounter("b", on(day), on("2026-06-09"), classes=["IMP"], site="site-b")
        for day in ("2026-06-03", "2026-06-04", "2026-06-05")
    )
    assert len(groups(a, same)) == 2
    out = replace(a, transfer_out=True)
    assert [len(groups(out, b)) for b in (same, following, third)] == [1, 1, 2]


def test_ct_24_the_date_is_the_sites_also_where_a_clock_change_shortens_it() -> None:
    a = stay("a", "2026-03-05 10:00-05", "2026-03-07 23:59-05", transfer_out=True)
    sunday = on("2026-03-08", "-05")
    b = encounter("b", replace(sunday, latest=sunday.latest - HOUR), None, ["IMP"], site="site-b")
    assert len(groups(a, b)) == 1


def test_cr_04_visits_at_two_sites_never_link_without_a_code_not_even_overlapping() -> None:
    a = ed_visit("a", "2026-06-01 10:00-04", "2026-06-01 14:00-04")
    b = ed_visit("b", "2026-06-01 13:00-04", site="site-b")
    assert len(groups(a, b)) == 2
    assert len(groups(a, replace(b, transfer_in=True))) == 1
    assert len(groups(a, b, rule="ed: {link: {below_hours: 1}}")) == 1


def test_ct_20_a_class_change_after_the_end_of_its_encounter_is_at_the_end() -> None:
    late = encounter(
        "a",
        "2026-06-01 10:00-04",
        "2026-06-01 15:00-04",
        classes=["EMER", ("IMP", "2026-06-15 09:00-04")],
    )
    visit, bed = segments(late, qc_default())
    assert visit.end == bed.start == bed.end == late.end


def test_ct_26_the_key_is_that_of_the_first_recorded_encounter() -> None:
    visit = ed_visit("a", "2026-06-01 10:00-04", "2026-06-01 15:00-04")
    bed = stay("b", "2026-06-01 15:00-04", "2026-06-04 10:00-04")
    late = replace(visit, first_recorded=at("2026-06-08 10:00-04"))
    assert cares(visit, bed) == [(key("a"), names("a", "b"))]
    assert cares(late, bed) == [(key("b"), names("a", "b"))]


def test_ct_26_a_visit_and_the_episode_within_7_hours_are_one_care_episode() -> None:
    left = at("2026-06-01 15:00-04")
    visit = ed_visit("a", left - 5 * HOUR, left)
    soon = stay("b", left + 7 * HOUR - SECOND, left + 90 * HOUR)
    later = stay("b", left + 7 * HOUR, left + 90 * HOUR)
    after = ed_visit("c", left + 91 * HOUR)
    assert len(cares(visit, soon)) == 1
    assert len(cares(visit, later)) == 2
    assert len(cares(soon, after)) == 2
