"""The published definitions: each loads, names its source, and flags whom it says (section 6)."""

from collections.abc import Sequence
from datetime import date

import pytest

from services.screening import presets
from services.screening.flag import State, stand
from services.screening.ledger import Fact, Person
from services.screening.policy import Policy, load
from tests.histories import at, ed_visit, ledger, person, qc_default, stay

NOW = at("2026-12-01 00:00-05")
QUARTERS = ("01-10", "04-10", "07-10", "10-10")


def preset(name: str) -> Policy:
    return load(presets.text(name))


def visits(*days: str, **more: object) -> list[Fact]:
    return [ed_visit(f"v-{day}", f"{day} 10:00-05", **more) for day in days]


def years(days: Sequence[str], first: int) -> list[str]:
    return [f"{year}-{day}" for year in range(first, 2027) for day in days]


def stays(length: int, *days: str, **more: object) -> list[Fact]:
    return [
        stay(
            f"s-{day}", f"{day} 10:00-05", f"{day[:8]}{int(day[8:]) + length:02d} 09:00-05", **more
        )
        for day in days
    ]


def at_three_hospitals() -> list[Fact]:
    days = ("2026-09-01", "2026-09-20", "2026-10-10")
    return [f for n, day in enumerate(days) for f in visits(day, site=f"site-{n}")]


def moved_twice() -> list[Fact]:
    """Two visits, each of which went on at another hospital's ED."""
    return [
        fact
        for day in ("2026-09-01", "2026-10-10")
        for fact in (
            ed_visit(f"a-{day}", f"{day} 08:00-05", f"{day} 10:00-05", transfer_out=True),
            ed_visit(f"b-{day}", f"{day} 11:00-05", site="site-b"),
        )
    ]


ADULT, CHILD = person(), person(birth_date=date(2014, 5, 1))
FOUR = {
    "qc-default",
    "poster-literal",
    "qc-cohort",
    "conect6-entry",
    "cihi-on",
    "cihi-bc",
    "on-counting",
}
LIVES: dict[str, tuple[list[Fact], Person, set[str]]] = {
    "four visits in a year": (visits(*years(QUARTERS, 2026)), ADULT, FOUR),
    "four a year, for three years": (
        visits(*years(QUARTERS, 2024)),
        ADULT,
        FOUR | {"qc-persistent", "qc-chronic"},
    ),
    "four a year, for two years": (visits(*years(QUARTERS, 2025)), ADULT, FOUR),
    "three a year, for three years": (
        visits(*years(("02-10", "06-10", "10-10"), 2024)),
        ADULT,
        {"conect6-entry", "cihi-bc", "qc-chronic"},
    ),
    "five visits in a year": (
        visits(*years((*QUARTERS, "11-10"), 2026)),
        ADULT,
        FOUR | {"cihi-ab", "five-in-12", "virginia"},
    ),
    "four visits, one of them left unseen": (
        [*visits(*years(QUARTERS[1:], 2026)), *visits("2026-01-10", disposition="lwbs")],
        ADULT,
        FOUR - {"on-counting"},
    ),
    "three visits in 40 days, at three hospitals": (
        at_three_hospitals(),
        ADULT,
        {"conect6-entry", "cihi-bc", "virginia", "three-in-60"},
    ),
    "three stays of two days": (
        stays(2, "2026-02-01", "2026-05-01", "2026-09-01"),
        ADULT,
        {"qc-default", "poster-literal", "on-counting"},
    ),
    "three stays of ten days: thirty, and not more": (
        stays(10, "2026-02-01", "2026-05-01", "2026-09-01"),
        ADULT,
        {"qc-default", "poster-literal", "on-counting"},
    ),
    "three stays of eleven days": (
        stays(11, "2026-02-01", "2026-05-01", "2026-09-01"),
        ADULT,
        {"qc-default", "poster-literal", "on-counting", "cihi-high-users"},
    ),
    "two stays of twenty days": (stays(20, "2026-02-01", "2026-05-01"), ADULT, set()),
    "four planned visits": (
        visits(*years(QUARTERS, 2026), planned=True),
        ADULT,
        {"poster-literal"},
    ),
    "four visits of a child": (visits(*years(QUARTERS, 2026)), CHILD, {"poster-literal"}),
    "two visits, each moved to another hospital": (moved_twice(), ADULT, {"poster-literal"}),
    "three stays for dialysis": (
        stays(1, "2026-02-01", "2026-05-01", "2026-09-01", service="dialysis"),
        ADULT,
        {"poster-literal"},
    ),
}


@pytest.mark.parametrize("title", LIVES)
def test_a_preset_flags_whom_its_source_calls_a_frequent_user(title: str) -> None:
    facts, who, expected = LIVES[title]
    known = ledger(*facts, who=who)
    flagged = {
        name for name in presets.names() if stand(known, preset(name), NOW).state is State.FLAGGED
    }
    assert flagged == expected


def test_every_preset_of_the_table_is_there_under_its_name_with_title_and_source() -> None:
    assert presets.names() == [
        "qc-default",
        "cihi-ab",
        "cihi-bc",
        "cihi-high-users",
        "cihi-on",
        "conect6-entry",
        "five-in-12",
        "on-counting",
        "poster-literal",
        "qc-chronic",
        "qc-cohort",
        "qc-persistent",
        "three-in-60",
        "virginia",
    ]
    for name in presets.names():
        rule = preset(name)
        assert rule.name == name
        assert set(rule.title) == {"fr", "en"}
        assert rule.source != "not stated"


def test_only_the_default_watches() -> None:
    watching = [name for name in presets.names() if preset(name).watch.clauses]
    assert watching == ["qc-default"]


def test_a_preset_is_flagged_by_somebody_and_spared_by_somebody() -> None:
    for name in presets.names():
        assert len({name in expected for _, _, expected in LIVES.values()}) == 2


def test_the_poster_word_for_word_counts_everything_each_by_itself() -> None:
    literal = preset("poster-literal")
    counts = [
        getattr(part, name)
        for part in (literal.ed, literal.hospital)
        for name in part.__slots__
        if isinstance(getattr(part, name), bool)
    ]
    assert all(counts)
    assert len(counts) == 14
    assert (literal.age_min, literal.age_max) == (None, None)
    assert literal.hospital_classes == {"IMP", "ACUTE", "NONAC", "OBSENC", "SS"}
    assert literal.flag == qc_default().flag


def test_there_is_no_preset_of_another_name() -> None:
    for name in ("qc", "../policy", ""):
        with pytest.raises(KeyError):
            presets.text(name)
