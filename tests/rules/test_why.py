"""What an explanation says beside the counts: CT-25, CT-60, notes and their gaps, pathway."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from services.screening import why
from services.screening.flag import stand
from services.screening.ledger import Coding, Fact
from services.screening.why import Note, Why
from tests.histories import at, ed_visit, encounter, key, ledger, policy, qc_default, stay

RULE = qc_default()


def explained(*facts: Fact, now: str = "2026-11-24 14:30-05", rule: str = "") -> Why:
    used = policy(rule) if rule else RULE
    known = ledger(*facts)
    return why.explain(known.facts, stand(known, used, at(now)).judged, used, at(now))


def test_the_gap_of_a_transfer_is_said_and_that_of_an_overlap_is_not() -> None:
    """Section 8: PT3H10M."""
    beds = [
        stay("a", "2026-06-01 10:00-04", "2026-06-03 12:00-04"),
        stay("b", "2026-06-03 15:10-04", "2026-06-09 09:00-04", site="site-b"),
        stay("c", "2026-06-08 09:00-04", "2026-06-10 09:00-04", site="site-c"),
    ]
    in_time = at("2026-06-01 10:00-04")
    (item,) = explained(*(replace(bed, first_recorded=in_time) for bed in beds)).items
    assert item.notes == (
        Note("LINKED", "CR-17", timedelta(hours=3, minutes=10)),
        Note("LINKED", "CR-17", None),
    )
    assert item.sites == ("site-a", "site-b", "site-c")
    assert (item.anchor, item.end) == (at("2026-06-01 10:00-04"), at("2026-06-10 09:00-04"))


def test_ct_25_an_exclusion_removes_a_group_only_if_every_member_has_one() -> None:
    a = ed_visit("a", "2026-06-01 10:00-04", "2026-06-01 11:00-04", planned=True)
    b = ed_visit("b", "2026-06-01 12:00-04", "2026-06-01 13:00-04")
    (kept,) = explained(a, b).items
    assert (kept.counted, [n.code for n in kept.notes]) == (True, ["REREGISTERED", "PLANNED"])
    nothing = (
        replace(b, triaged=False, end=replace(b.start, latest=b.start.latest)) if b.start else b
    )
    (gone,) = explained(a, nothing).items
    assert (gone.counted, gone.reason) == (False, Note("PLANNED", "CR-07"))


def test_ct_17_what_a_person_took_out_does_not_count_whatever_the_policy() -> None:
    visit = ed_visit("a", "2026-06-01 10:00-04", excluded=True, planned=True)
    bed = stay("b", "2026-07-01 10:00-04", "2026-07-04 10:00-04", excluded=True)
    every = "ed: {count: {planned: true}}\nhospital: {count: {day_surgery: true, series: true}}"
    for rule in ("", every):
        items = explained(visit, bed, rule=rule).items
        assert [(i.counted, i.reason) for i in items] == [(False, Note("MANUAL", "CT-17"))] * 2


def test_ct_17_one_encounter_taken_out_of_a_linked_group_leaves_a_note() -> None:
    """CT-25: the other member still counts."""
    beds = [
        stay("a", "2026-06-01 10:00-04", "2026-06-03 12:00-04"),
        stay("b", "2026-06-03 15:10-04", "2026-06-09 09:00-04", excluded=True),
    ]
    (item,) = explained(*beds).items
    assert item.counted
    assert {"LINKED", "MANUAL"} <= {n.code for n in item.notes}


def test_ct_17_an_encounter_that_was_admitted_is_taken_out_as_visit_and_as_stay() -> None:
    both = encounter(
        "a",
        "2026-05-02 20:00-04",
        "2026-05-08 09:00-04",
        classes=["EMER", ("IMP", "2026-05-03 04:30-04")],
        excluded=True,
    )
    assert [i.counted for i in explained(both).items] == [False, False]


def test_an_open_visit_is_open_then_not_closed_then_stale() -> None:
    """CT-23, CR-29."""
    visit = encounter("a", "2026-06-01 09:00-04")
    for now, code in (
        ("2026-06-01 09:00-04", "OPEN"),
        ("2026-06-05 08:59:59-04", "OPEN"),
        ("2026-06-05 09:00-04", "NOT_CLOSED"),
        ("2026-06-15 08:59:59-04", "NOT_CLOSED"),
        ("2026-06-15 09:00-04", "STALE_OPEN"),
    ):
        (item,) = explained(visit, now=now).items
        assert [note.code for note in item.notes] == [code]
        assert item.end is None


def test_ct_45_an_open_visit_reads_differently_next_at_each_of_its_turns() -> None:
    visit = encounter("a", "2026-06-01 09:00-04")
    turns = [
        "2026-06-01 09:00-04",
        "2026-06-05 09:00-04",
        "2026-06-15 09:00-04",
        "2027-06-01 09:00-04",
    ]
    for now, then in pairwise(["2026-05-31 09:00-04", *turns]):
        assert explained(visit, now=now).restless == at(then)
    assert explained(visit, now=turns[-1]).restless is None


def test_cr_26_palliative_care_in_the_window_changes_the_words() -> None:
    bed = stay("a", "2026-06-01 09:00-04", "2026-06-20 09:00-04", codes=["Z51.5"])
    assert explained(bed).pathway == "palliative"
    assert explained(bed, now="2027-06-01 09:00-04").pathway is None
    excluded = explained(bed, rule="hospital: {count: {palliative: false}}")
    assert excluded.items[0].reason == Note("PALLIATIVE", "CR-26")


def test_what_left_the_window_and_what_was_in_error_are_only_numbered() -> None:
    old = ed_visit("a", "2025-11-24 14:30-05")
    wrong = ed_visit("b", "2026-06-01 09:00-04", status="entered-in-error")
    here = ed_visit("c", "2026-06-02 09:00-04")
    found = explained(old, wrong, here)
    assert (found.outside_window, found.entered_in_error) == (1, 1)
    assert [item.facts[0].encounter for item in found.items] == [key("c")]


def test_codes_of_other_systems_are_not_read_as_icd_10() -> None:
    bed = stay("a", "2026-06-01 09:00-04", "2026-06-03 09:00-04")
    icd, other = (
        replace(bed, codes=(Coding(system, "Z37.0"),))
        for system in ("urn:oid:2.16.840.1.113883.6.90", "http://snomed.info/sct")
    )
    assert [explained(one).items[0].counted for one in (icd, other)] == [False, True]


def test_cr_48_a_sensitive_encounter_counts_and_passes_its_labels_on() -> None:
    label = ("http://terminology.hl7.org/CodeSystem/v3-ActCode", "MH")
    visit = ed_visit("a", "2026-06-01 09:00-04", labels=[label])
    (item,) = explained(visit).items
    assert item.counted
    assert [c.code for c in item.facts[0].labels or ()] == ["MH"]
