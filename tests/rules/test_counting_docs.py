"""Executes every table of docs/counting.md and of docs/fr/counting.md: one fixture per situation
(CR-xx), and W-1 to W-8; both pages hold the same tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
import yaml

from services.screening import presets
from services.screening.flag import Standing, stand
from services.screening.ledger import Coding, Person
from services.screening.policy import Measure, Policy, load
from tests.counting import french
from tests.counting.compare import answer, differing, expected
from tests.counting.table import instant_after, read, words
from tests.histories import (
    ICD,
    at,
    ledger,
    person,
    plain,
    policy,
    qc_default,
)

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"en": DOCS / "counting.md", "fr": DOCS / "fr" / "counting.md"}


@dataclass
class Case:
    """The encounters of one table, and what the tables after it say of them."""

    language: str
    title: str
    rule: Policy
    who: Person
    rows: list[dict[str, str]]
    instants: list[dict[str, str]] = field(default_factory=list)
    presets: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.language} {self.title}"

    def tables(self) -> tuple[object, ...]:
        """What it says, whatever the language."""
        return self.rule.sha256, self.who, self.rows, self.instants, self.presets


def lines(language: str) -> Iterator[str]:
    """The lines of a page, and one that ends its last section."""
    read_as = french.english if language == "fr" else str
    yield from map(read_as, [*PAGES[language].read_text().splitlines(), "# end"])


def cells(language: str, header: list[str], line: str) -> list[str]:
    """A row of a table in the words of the English page; without a header, of that one."""
    found = [cell.strip() for cell in line.strip("|").split("|")]
    if language == "en" or found[0].startswith("---"):
        return found
    if not header:
        return list(map(french.heading, found))
    return [french.cell(column, text) for column, text in zip(header, found, strict=True)]


def cases(language: str) -> Iterator[Case]:
    title, rule, who = "", qc_default(), person()
    case: Case | None = None
    header: list[str] = []
    times: dict[str, int] = {}
    for line in lines(language):
        if line.startswith("#"):
            title, who, rule = line.strip("# "), person(), qc_default()
        elif line.startswith("Policy: "):
            rule = policy(yaml.safe_dump(yaml.safe_load(line.partition(": ")[2].strip("` "))))
        elif line.startswith("Person: born "):
            who = person(birth_date=date.fromisoformat(line.rpartition(" ")[2]))
        elif line.startswith("Person: died "):
            who = person(death=at(line.removeprefix("Person: died ")))
        if not line.startswith("|"):
            header = []
            if line.startswith("#") and case:
                yield case
                case = None
            continue
        row = cells(language, header, line)
        if not header:
            header = row
            if header[0] == "e":
                if case:
                    yield case
                number = times[title] = times.get(title, 0) + 1
                name = f"{title} ({number})" if number > 1 else title
                case = Case(language, name, rule, who, [])
        elif not row[0].startswith("---") and case:
            kept = {"e": case.rows, "at": case.instants, "preset": case.presets}[header[0]]
            kept.append(dict(zip(header, row, strict=True)))


ENGLISH, FRENCH = list(cases("en")), list(cases("fr"))
CASES = [*ENGLISH, *FRENCH]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_table_of_the_page_says_what_is_counted_and_why(case: Case) -> None:
    rows = [row for row in case.rows if row["counts as"]]
    facts = [read(row) for row in case.rows]
    found = words(
        ledger(*facts, who=case.who), case.rule, instant_after(facts), [row["e"] for row in rows]
    )
    for row in rows:
        assert (row["e"], found[row["e"]]) == (row["e"], (row["counts as"], row["why"]))


@pytest.mark.parametrize("case", [c for c in CASES if c.instants], ids=str)
def test_a_table_of_the_page_says_how_many_and_which_state(case: Case) -> None:
    known = ledger(*map(read, case.rows), who=case.who)
    for row in case.instants:
        standing = stand(known, case.rule, at(row["at"]))
        assert {name: seen(standing, case.rule, name) for name in row if name != "at"} == {
            name: said for name, said in row.items() if name != "at"
        }


def seen(standing: Standing, rule: Policy, column: str) -> str:
    """What stands under the heading of a column of numbers."""
    clauses = [c.measure for c in (*rule.flag.clauses, *rule.watch.clauses)]
    match column:
        case "ED":
            return str(standing.ed_visits)
        case "stays":
            return str(standing.hospital_episodes)
        case "sites":
            return str(standing.counts[clauses.index(Measure.ED_SITES)])
        case "days":
            return str(standing.counts[clauses.index(Measure.HOSPITAL_DAYS)])
        case "before":
            return str(standing.earlier[0][0])
        case "state":
            return f"{standing.state}, held" if standing.held else str(standing.state)
        case _:
            raise KeyError(column)


@pytest.mark.parametrize("case", [c for c in CASES if c.presets], ids=str)
def test_a_table_of_the_page_says_whom_a_published_definition_flags(case: Case) -> None:
    known = ledger(*map(read, case.rows), who=case.who)
    for row in case.presets:
        rule = load(presets.text(row["preset"].strip("`")))
        said = (row["preset"], row["state"])
        assert (row["preset"], seen(stand(known, rule, at(row["at"])), rule, "state")) == said


def test_both_pages_hold_the_same_tables() -> None:
    assert [case.tables() for case in ENGLISH] == [case.tables() for case in FRENCH]
    assert [case.title.split()[0] for case in ENGLISH if case.title[:2] in {"CR", "CT", "W-"}] == [
        case.title.split()[0] for case in FRENCH if case.title[:2] in {"CR", "CT", "W-"}
    ]


@pytest.mark.parametrize(
    ("first", "same"), [("id", ("id", "code")), ("preset", ("preset",))], ids=["rules", "presets"]
)
def test_both_pages_list_the_same_situations_and_definitions(
    first: str, same: tuple[str, ...]
) -> None:
    english, translated = (listed(language, first) for language in PAGES)
    assert [[row[name] for name in same] for row in english] == [
        [row[name] for name in same] for row in translated
    ]
    assert english
    assert english != translated


def listed(language: str, first: str) -> list[dict[str, str]]:
    """The rows of the table of four columns or of three that no encounter stands before."""
    found: list[dict[str, str]] = []
    header: list[str] = []
    for line in lines(language):
        if not line.startswith("|"):
            header = []
            continue
        row = cells(language, header, line)
        if not header:
            header = row
        elif header[0] == first and header[-1] != "state" and not row[0].startswith("---"):
            found.append(dict(zip(header, row, strict=True)))
    return found


def test_every_preset_stands_in_the_list_of_definitions() -> None:
    assert {row["preset"].strip("`") for row in listed("en", "preset")} == set(presets.names())


@pytest.mark.parametrize("case", ENGLISH, ids=str)
def test_the_oracle_reads_the_page_as_we_do(case: Case) -> None:
    """ORC-03 on the CR fixtures."""
    facts = [read(row) for row in case.rows]
    instants = [at(row["at"]) for row in case.instants]
    instants.append(instant_after(facts))
    for now in instants:
        found = answer(ledger(*facts, who=case.who), case.rule, now)
        assert not differing(found, expected(facts, case.who, case.rule, now))


def test_the_page_has_a_table_for_every_situation_that_a_table_can_show() -> None:
    shown = {c.title.split()[0] for c in ENGLISH}
    by_hand = {32, 33, 34, 35, 36, 37, 38, 39, 43, 46, 48}  # messages, merges, routing: other tests
    assert {f"CR-{n:02d}" for n in range(1, 51) if n not in by_hand} <= shown


def test_every_encounter_of_the_page_is_read_by_its_columns() -> None:
    assert len(CASES) > 50
    assert all(plain(read(row))["classes"] for case in CASES for row in case.rows)
    assert Coding(ICD, "Z37.0") in [
        c for case in ENGLISH for row in case.rows for c in read(row).codes or ()
    ]
