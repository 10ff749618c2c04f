"""Executes every table of docs/counting.md: one fixture per situation (CR-xx), and W-1 to W-8."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from services.screening import why
from services.screening.episodes import Kind
from services.screening.flag import stand
from services.screening.ledger import Coding, Disposition, Fact, Moment, Person
from services.screening.policy import Policy
from tests.histories import (
    ICD,
    ICD_CA,
    at,
    encounter,
    key,
    ledger,
    on,
    person,
    plain,
    policy,
    qc_default,
)

PAGE = Path(__file__).parents[2] / "docs" / "counting.md"
DISPOSITIONS = set(Disposition)


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


def moment(text: str) -> datetime | Moment | None:
    if not text:
        return None
    return on(text) if len(text) == 10 else at(text)


def read(row: dict[str, str]) -> Fact:
    start, end = moment(row["arrived"]), moment(row["left"])
    classes = [
        (found[1], found[2]) if (found := re.fullmatch(r"(\w+) from (.+)", part)) else part
        for part in row["class"].split(", ")
    ]
    said: dict[str, object] = {}
    for word in filter(None, row["said of it"].split(", ")):
        first, _, rest = word.partition(" ")
        if word in DISPOSITIONS:
            said["disposition"] = word
        elif word in {"cancelled", "entered-in-error", "onleave"}:
            said["status"] = word
        elif first == "status":
            said["status"] = rest
        elif first == "service":
            said["service"] = rest
        elif first in {"code", "code-ca"}:
            said["codes"] = [(ICD if first == "code" else ICD_CA, rest)]
        elif first == "recorded":
            said["recorded"] = rest
        elif first == "sent":
            said["event_time"] = rest
        elif word.startswith("part of "):
            said["part_of"] = rest.removeprefix("of ")
        else:
            name, value = {
                "planned": ("planned", True),
                "untriaged": ("triaged", False),
                "transfer in": ("transfer_in", True),
                "transfer out": ("transfer_out", True),
                "from the ED": ("from_emergency", True),
                "start assumed": ("start_is_assumed", True),
                "ambiguous": ("time_is_ambiguous", True),
                "backfill": ("backfill", True),
            }[word]
            said[name] = value
    said.setdefault("recorded", at(row["arrived"]) if len(row["arrived"]) > 10 else None)
    if said["recorded"] is None:
        del said["recorded"]
    return encounter(row["e"], start, end, classes=classes, site=row["site"], **said)


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_table_of_the_page_says_what_is_counted_and_why(case: Case) -> None:
    rows = [row for row in case.rows if row["counts as"]]
    facts = [read(row) for row in case.rows]
    known = ledger(*facts, who=case.who)
    now = max(f.start.latest for f in facts if f.start) + timedelta(days=20)
    standing = stand(known, case.rule, now)
    items = why.explain(known.facts, standing.judged, case.rule, now).items
    numbers: dict[int, str] = {}
    for kind, word in ((Kind.ED, "ED visit"), (Kind.HOSPITAL, "stay")):
        counted = sorted((i for i in items if i.counted and i.kind is kind), key=lambda i: i.anchor)
        numbers |= {id(item): f"{word} {n}" for n, item in enumerate(counted, start=1)}
    for row in rows:
        mine = [i for i in items if any(f.encounter == key(row["e"]) for f in i.facts)]
        mine.sort(key=lambda i: i.kind)
        counts = " + ".join(numbers[id(i)] for i in mine if i.counted) or "\N{EN DASH}"
        codes = [i.reason for i in mine if i.reason] + [n for i in mine for n in i.notes]
        named = dict.fromkeys(" ".join(filter(None, (n.rule, n.code))) for n in codes)
        reasons = ", ".join(named)
        assert (row["e"], counts, reasons) == (row["e"], row["counts as"], row["why"])


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
    from tests.rules.test_counting_properties import answer, expected

    facts = [read(row) for row in case.rows]
    instants = [at(row["at"]) for row in case.instants]
    instants.append(max(f.start.latest for f in facts if f.start) + timedelta(days=20))
    for now in instants:
        assert answer(ledger(*facts, who=case.who), case.rule, now) == expected(
            facts, case.who, case.rule, now
        )


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
