"""Executes every table of docs/counting.md: one fixture per situation (CR-xx), and W-1 to W-8."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from services.screening.flag import stand
from services.screening.ledger import Coding, Person
from services.screening.policy import Policy
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

PAGE = Path(__file__).parents[2] / "docs" / "counting.md"


@dataclass
class Case:
    """The encounters of one table, and what the tables after it say of them."""

    title: str
    rule: Policy
    who: Person
    rows: list[dict[str, str]]
    instants: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.title


def cases() -> Iterator[Case]:
    title, rule, who = "", qc_default(), person()
    case: Case | None = None
    header: list[str] = []
    times: dict[str, int] = {}
    for line in [*PAGE.read_text().splitlines(), "# end"]:
        if line.startswith("#"):
            title, who, rule = line.strip("# "), person(), qc_default()
        elif line.startswith("Policy: "):
            rule = policy(line.partition(": ")[2].strip("` "))
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
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
            if header[0] == "e":
                if case:
                    yield case
                number = times[title] = times.get(title, 0) + 1
                case = Case(f"{title} ({number})" if number > 1 else title, rule, who, [])
        elif not cells[0].startswith("---") and case:
            row = dict(zip(header, cells, strict=True))
            (case.rows if header[0] == "e" else case.instants).append(row)


CASES = list(cases())


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
        state = f"{standing.state}, held" if standing.held else str(standing.state)
        found = (row["at"], str(standing.ed_visits), str(standing.hospital_episodes), state)
        assert found == tuple(row.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_oracle_reads_the_page_as_we_do(case: Case) -> None:
    """ORC-03 on the CR fixtures."""
    facts = [read(row) for row in case.rows]
    instants = [at(row["at"]) for row in case.instants]
    instants.append(instant_after(facts))
    for now in instants:
        found = answer(ledger(*facts, who=case.who), case.rule, now)
        assert not differing(found, expected(facts, case.who, case.rule, now))


def test_the_page_has_a_table_for_every_situation_that_a_table_can_show() -> None:
    shown = {c.title.split()[0] for c in CASES}
    by_hand = {32, 33, 34, 35, 36, 37, 38, 39, 43, 46, 48}  # messages, merges, routing: other tests
    assert {f"CR-{n:02d}" for n in range(1, 51) if n not in by_hand} <= shown


def test_every_encounter_of_the_page_is_read_by_its_columns() -> None:
    assert len(CASES) > 50
    assert all(plain(read(row))["classes"] for case in CASES for row in case.rows)
    assert Coding(ICD, "Z37.0") in [
        c for case in CASES for row in case.rows for c in read(row).codes or ()
    ]
