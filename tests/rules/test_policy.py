"""A counting rule as data: CT-50."""

import pytest

from services.screening.policy import Measure, PolicyRefused, load
from tests.histories import DEFAULT, parsed, policy, qc_default

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
        (STEM + "window:\n  consecutive: 3", "window.consecutive", 4),
        (STEM + "flag:\n  any:\n  - {measure: ed_visits, at_least: 0}", "flag.any[0].at_least", 5),
        (STEM + "flag:\n  any:\n  - {measure: ed_sites, at_least: 3}", "flag.any[0].measure", 5),
        (STEM + "flag:\n  any:\n  - {measure: ed_visits}", "flag.any[0].at_least", 5),
        (STEM + "flag: {most: []}", "flag", 3),
        (STEM + "flag: {any: []}", "flag.any", 3),
        (
            STEM + "watch:\n  all:\n  - {measure: ed_visits, at_least: 2, days: 366}",
            "watch.all[0].days",
            5,
        ),
        (STEM + "classes:\n  ed: [EMER, IMP]", "classes.ed[1]", 4),
        (STEM + "classes:\n  ed: []", "classes", 3),
        (STEM + "classes:\n  hospital: [IMP, ACUTE, XYZ]", "classes.hospital[2]", 4),
        (STEM + "ed:\n  count:\n    walked_in: true", "ed.count.walked_in", 5),
        (STEM + "ed:\n  count:\n    lwbs: maybe", "ed.count.lwbs", 5),
        (STEM + "person: {age_min: 40, age_max: 30}", "person.age_max", 3),
        (STEM + "timezone: America/Nowhere", "timezone", 3),
        (STEM + "codes:\n  series: Z51", "codes.series", 4),
        (STEM + "source: 2026-02-30\nsource: again", "source", 4),
        (STEM + "window: 365", "window", 3),
        (STEM + "flag: [", "", 3),
        ("- a list", "", 1),
        ("", "name", 1),
    ],
)
def test_a_policy_that_says_what_we_cannot_do_is_refused_with_its_place(
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
