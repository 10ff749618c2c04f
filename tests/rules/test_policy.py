"""A counting rule as data: CT-50."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest

from services.screening import why
from services.screening.flag import stand
from services.screening.ledger import Fact, Person
from services.screening.policy import Measure, Policy, PolicyRefused, load
from tests.histories import (
    DEFAULT,
    at,
    ed_visit,
    encounter,
    ledger,
    parsed,
    person,
    policy,
    qc_default,
    stay,
)

STEM = "name: TEST-policy\nversion: 1\n"


def test_the_default_policy_is_four_visits_or_three_stays_in_365_days() -> None:
    rule = qc_default()
    assert [(c.measure, c.at_least, c.length.days) for c in rule.flag.clauses] == [
        (Measure.ED_VISITS, 4, 365),
        (Measure.HOSPITAL_EPISODES, 3, 365),
    ]
    assert [(c.measure, c.at_least) for c in rule.watch.clauses] == [(Measure.ED_VISITS, 3)]
    assert rule.hold.days == rule.quiet_reentry.days == 180


def test_omitted_keys_take_the_defaults_of_the_full_form() -> None:
    """CT-50: a file of two lines is the default by another name."""
    own = {"name", "version", "title", "source"}
    short, full = parsed(policy()), parsed(qc_default())
    assert {k: v for k, v in short.items() if k not in own} == {
        k: v for k, v in full.items() if k not in own
    }


def test_the_digest_is_of_the_meaning_not_of_the_layout() -> None:
    text = DEFAULT.read_text()
    assert load(text.replace("  # where CONECT-6 was validated", "")).sha256 == load(text).sha256
    assert load(text.replace("hold_days: 180", "hold_days: 181")).sha256 != load(text).sha256


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("version: 1", "name", 1),
        ("name: x", "version", 1),
        (STEM + "holddays: 3", "holddays", 3),
        (STEM + "hold_days: -1", "hold_days", 3),
        (STEM + "hold_days: true", "hold_days", 3),
        (STEM + "hold_days: 1.5", "hold_days", 3),
        (STEM + "window:\n  days: 0", "window.days", 4),
        (STEM + "window:\n  consecutive: 0", "window.consecutive", 4),
        (STEM + "window:\n  days: 365\n  consecutive: 101", "window.consecutive", 5),
        (STEM + "window: {days: 36526}", "window.days", 3),
        (STEM + f"hold_days: {'9' * 5000}", "hold_days", 3),
        (STEM + "flag:\n  any:\n  - {measure: ed_visits, at_least: 0}", "flag.any[0].at_least", 5),
        (STEM + "flag:\n  any:\n  - {measure: visits, at_least: 3}", "flag.any[0].measure", 5),
        (STEM + "flag:\n  any:\n  - {measure: ed_visits, most: 3}", "flag.any[0].most", 5),
        (STEM + "flag:\n  any:\n  - {measure: ed_visits}", "flag.any[0].at_least", 5),
        (STEM + "flag: {most: []}", "flag", 3),
        (STEM + "flag: {any: []}", "flag.any", 3),
        (
            STEM + "window: {consecutive: 2}\n"
            "watch:\n  all:\n  - {measure: ed_visits, at_least: 2, days: 18263}",
            "watch.all[0].days",
            6,
        ),
        (STEM + "classes:\n  ed: [EMER, IMP]", "classes.ed[1]", 4),
        (STEM + "classes:\n  ed: []", "classes", 3),
        (STEM + "classes:\n  hospital: [IMP, ACUTE, XYZ]", "classes.hospital[2]", 4),
        (STEM + "ed:\n  count:\n    walked_in: true", "ed.count.walked_in", 5),
        (STEM + "ed:\n  count:\n    lwbs: maybe", "ed.count.lwbs", 5),
        (STEM + "person: {age_min: 40, age_max: 30}", "person.age_max", 3),
        (STEM + "timezone: America/Nowhere", "timezone", 3),
        (STEM + "codes:\n  series: Z51", "codes.series", 4),
        (STEM + "codes:\n  series: [Z51, '.']", "codes.series[1]", 4),
        (STEM + 'title: {fr: "deux\\nlignes"}', "title.fr", 3),
        ("name: a b\nversion: 1", "name", 1),
        (f"name: {'n' * 65}\nversion: 1", "name", 1),
        ("name: x\nversion: 2147483648", "version", 2),
        (STEM + "flag: &again {any: []}\nwatch: *again", "watch", 3),
        (STEM + "title: &endless {fr: *endless}", "title.fr", 3),
        (STEM + "person: {age_max: 151}", "person.age_max", 3),
        ("[" * 5000, "", 1),
        ("name: \x07", "", 1),
        (STEM + "source: 2026-02-30\nsource: again", "source", 4),
        (STEM + "window: 365", "window", 3),
        (STEM + "flag: [", "", 3),
        ("- a list", "", 1),
        ("", "name", 1),
    ],
)
def test_a_policy_that_means_nothing_is_refused_with_its_place(
    text: str, path: str, line: int
) -> None:
    with pytest.raises(PolicyRefused) as refused:
        load(text)
    assert (refused.value.path, refused.value.line) == (path, line)
    assert f"line {line}" in str(refused.value)


def test_no_watch_clause_is_a_policy_without_watch() -> None:
    rule = policy("watch: null")
    assert rule.watch.clauses == ()
    assert not rule.watch.holds([])


def test_all_clauses_or_any() -> None:
    both = "{measure: ed_visits, at_least: 4}, {measure: hospital_episodes, at_least: 3}"
    assert policy(f"flag: {{any: [{both}]}}").flag.holds([4, 0])
    assert not policy(f"flag: {{all: [{both}]}}").flag.holds([4, 0])
    assert policy(f"flag: {{all: [{both}]}}").flag.holds([4, 3])


def test_what_a_policy_looks_back_to_is_its_longest_window_as_often_as_it_asks() -> None:
    assert qc_default().lookback == timedelta(days=365)
    far = "{measure: ed_visits, at_least: 2, days: 400}"
    assert policy(f"watch: {{any: [{far}]}}").lookback == timedelta(days=400)
    assert policy(f"watch: {{any: [{far}]}}\nwindow: {{consecutive: 3}}").lookback == timedelta(
        days=1200
    )


def test_json_is_read_as_yaml_is() -> None:
    assert load(qc_default().canonical).sha256 == qc_default().sha256


# Every key of section 6 has an effect (CT-50)


@dataclass(frozen=True)
class Effect:
    """Two policies that differ in one key, and a life of which they think differently."""

    one: str
    other: str
    facts: Sequence[Fact] = ()
    now: str = "2026-12-01 00:00-05"
    who: Person = field(default_factory=person)


def visit(start: str = "2026-06-01 09:00-04", **more: Any) -> list[Fact]:
    return [ed_visit("e", start, **more)]


def bed(*, end: str | None = "2026-06-03 09:00-04", **more: Any) -> list[Fact]:
    return [stay("s", "2026-06-01 09:00-04", end, **more)]


def pair(make: Callable[..., Fact], gap: str, **more: Any) -> list[Fact]:
    """Two encounters at two hospitals, the second `gap` after the first has ended at 10:00."""
    first = make("a", "2026-06-01 08:00-04", "2026-06-01 10:00-04", **more)
    return [first, make("b", f"2026-06-01 {gap}-04", "2026-06-01 23:00-04", site="site-b")]


FOUR = [ed_visit(f"v-{n}", f"2026-0{n}-01 09:00-04") for n in (5, 6, 7, 8)]
BACK = encounter(
    "b",
    "2026-06-01 08:00-04",
    "2026-06-01 22:00-04",
    classes=["EMER", ("IMP", "2026-06-01 12:00-04"), ("EMER", "2026-06-01 15:00-04")],
)
SEEN_TWICE = [ed_visit("a", "2026-06-01 08:00-04", "2026-06-01 09:00-04"), *visit()]


def ed(key: str, value: object) -> str:
    return f"ed: {{{key}: {json.dumps(value)}}}"


def bedded(key: str, value: object) -> str:
    return f"hospital: {{{key}: {json.dumps(value)}}}"


def coded(key: str, prefix: str) -> str:
    return f"codes: {{{key}: [{prefix}]}}"


NO_NONACUTE = "OBSENC, SS, AMB, HH, VR, FLD, PRENC"
EFFECTS: dict[str, Effect] = {
    "timezone": Effect(
        "",
        "timezone: America/Vancouver",
        FOUR,
        "2026-09-01 00:30-04",
        person(birth_date=date(2008, 9, 1)),
    ),
    "window.days": Effect("", "window: {days: 90}", visit()),
    "window.consecutive": Effect("", "window: {consecutive: 2}", FOUR),
    "flag": Effect("", "flag: {any: [{measure: ed_visits, at_least: 5}]}", FOUR),
    "watch": Effect("", "watch: null", FOUR[1:]),
    "hold_days": Effect("hold_days: 10", "hold_days: 400", FOUR, "2027-06-01 00:00-04"),
    "quiet_reentry_days": Effect(
        "hold_days: 0\nquiet_reentry_days: 10",
        "hold_days: 0\nquiet_reentry_days: 90",
        [*FOUR, ed_visit("v-9", "2027-05-20 09:00-04")],
        "2027-05-20 09:00-04",
    ),
    "alert_max_age_hours": Effect(
        "", "alert_max_age_hours: 400", visit(recorded="2026-06-09 09:00-04")
    ),
    "person.age_min": Effect("", "person: {age_min: 70}", FOUR),
    "person.age_max": Effect("", "person: {age_max: 50}", FOUR),
    "classes.ed": Effect(
        "",
        f"classes: {{ed: [EMER, AMB], not_counted: [NONAC, {NO_NONACUTE.replace('AMB, ', '')}]}}",
        [encounter("e", "2026-06-01 09:00-04", "2026-06-01 10:00-04", classes=["AMB"])],
    ),
    "classes.hospital": Effect(
        "",
        f"classes: {{hospital: [IMP, ACUTE, NONAC], not_counted: [{NO_NONACUTE}]}}",
        [encounter("e", "2026-06-01 09:00-04", "2026-06-02 10:00-04", classes=["NONAC"])],
    ),
    "classes.not_counted": Effect(
        "",
        f"classes: {{hospital: [IMP], not_counted: [ACUTE, NONAC, {NO_NONACUTE}]}}",
        [encounter("e", "2026-06-01 09:00-04", "2026-06-02 10:00-04", classes=["ACUTE"])],
    ),
    "ed.link.below_hours": Effect("", "ed: {link: {below_hours: 3}}", pair(ed_visit, "12:00")),
    "ed.link.coded_up_to_hours": Effect(
        "", "ed: {link: {coded_up_to_hours: 0}}", pair(ed_visit, "09:00", transfer_out=True)
    ),
    "ed.reregistration_minutes": Effect("", ed("reregistration_minutes", 0), SEEN_TWICE),
    "ed.min_minutes_if_untriaged": Effect(
        "",
        ed("min_minutes_if_untriaged", 0),
        visit(end="2026-06-01 09:05-04", triaged=False),
    ),
    "ed.assumed_end_hours": Effect(
        "",
        ed("assumed_end_hours", 24),
        [encounter("a", "2026-06-01 08:00-04"), *visit("2026-06-03 09:00-04")],
    ),
    "ed.stale_open_days": Effect(
        "",
        ed("stale_open_days", 40),
        [encounter("a", "2026-06-01 08:00-04")],
        "2026-06-20 00:00-04",
    ),
    "ed.excluded_sites": Effect("", ed("excluded_sites", ["site-a"]), visit()),
    "ed.count.admitted": Effect(
        "", ed("count", {"admitted": False}), visit(disposition="admitted")
    ),
    "ed.count.planned": Effect("", ed("count", {"planned": True}), visit(planned=True)),
    "ed.count.lwbs": Effect("", ed("count", {"lwbs": False}), visit(disposition="lwbs")),
    "ed.count.redirected": Effect(
        "", ed("count", {"redirected": False}), visit(disposition="redirected")
    ),
    "ed.count.pregnancy": Effect("", ed("count", {"pregnancy": False}), visit(codes=["O26.8"])),
    "ed.count.during_stay": Effect(
        "",
        ed("count", {"during_stay": True}),
        [*bed(), *visit("2026-06-02 09:00-04", site="site-b")],
    ),
    "hospital.link.below_hours": Effect(
        "", bedded("link", {"below_hours": 1}), pair(stay, "12:00")
    ),
    "hospital.link.coded_up_to_hours": Effect(
        "",
        bedded("link", {"coded_up_to_hours": 8}),
        pair(stay, "19:00", transfer_out=True),
    ),
    "hospital.assumed_end_days": Effect(
        "",
        bedded("assumed_end_days", 5),
        [*bed(end=None), stay("t", "2026-06-20 09:00-04", "2026-06-22 09:00-04")],
    ),
    "hospital.stale_open_days": Effect("", bedded("stale_open_days", 300), bed(end=None)),
    "hospital.count.elective": Effect("", bedded("count", {"elective": False}), bed(planned=True)),
    "hospital.count.day_surgery": Effect(
        "", bedded("count", {"day_surgery": True}), bed(service="day-surgery")
    ),
    "hospital.count.obstetric": Effect(
        "", bedded("count", {"obstetric": True}), bed(service="obstetrics")
    ),
    "hospital.count.series": Effect("", bedded("count", {"series": True}), bed(codes=["Z51.1"])),
    "hospital.count.dialysis": Effect("", bedded("count", {"dialysis": True}), bed(codes=["Z49"])),
    "hospital.count.mental_health": Effect(
        "", bedded("count", {"mental_health": False}), bed(codes=["F32"])
    ),
    "hospital.count.palliative": Effect(
        "", bedded("count", {"palliative": False}), bed(service="palliative")
    ),
    "hospital.count.reverted_same_day": Effect(
        "", bedded("count", {"reverted_same_day": True}), [BACK]
    ),
    "codes.pregnancy": Effect(
        ed("count", {"pregnancy": False}),
        ed("count", {"pregnancy": False}) + "\n" + coded("pregnancy", "Z33"),
        visit(codes=["Z33"]),
    ),
    "codes.obstetric": Effect("", coded("obstetric", "Z39"), bed(codes=["Z39.0"])),
    "codes.newborn": Effect("", coded("newborn", "P07"), bed(codes=["P07"])),
    "codes.series": Effect("", coded("series", "Z51.2"), bed(codes=["Z51.2"])),
    "codes.dialysis": Effect("", coded("dialysis", "Z99.2"), bed(codes=["Z99.2"])),
    "codes.mental_health": Effect(
        bedded("count", {"mental_health": False}),
        bedded("count", {"mental_health": False}) + "\n" + coded("mental_health", "R45"),
        bed(codes=["R45.8"]),
    ),
    "codes.palliative": Effect("", coded("palliative", "Z66"), bed(codes=["Z66"])),
}
NAMING = {"name", "version", "title", "source"}
"""What tells one policy from another, and counts nothing."""


def leaves(form: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in form.items():
        if isinstance(value, dict) and key not in {"flag", "watch", "title"}:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def thought(rule: Policy, effect: Effect) -> object:
    """All that counting makes of a life."""
    known, now = ledger(*effect.facts, who=effect.who), at(effect.now)
    standing = stand(known, rule, now)
    reasons = why.explain(known.facts, standing.judged, rule, now)
    return (
        standing.state,
        standing.held,
        standing.since,
        standing.again,
        standing.eligible,
        standing.counts,
        standing.earlier,
        reasons.pathway,
        [(i.kind, i.reason, i.notes, [f.encounter for f in i.facts]) for i in reasons.items],
    )


@pytest.mark.parametrize("path", EFFECTS)
def test_ct_50_every_key_has_an_effect(path: str) -> None:
    effect = EFFECTS[path]
    assert thought(policy(effect.one), effect) != thought(policy(effect.other), effect)


def test_ct_50_no_key_of_the_language_is_left_out() -> None:
    assert set(leaves(parsed(qc_default()))) == EFFECTS.keys() | NAMING
