"""The cases of cases.yaml: one a situation of counting.md section 7, each parameter both ways."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from services.screening.flag import stand
from services.screening.ledger import Fact, Ledger, Person
from services.screening.policy import Policy
from tests.counting.compare import answer, differing, expected
from tests.counting.table import COLUMNS, instant_after, read, words
from tests.histories import at, ledger, person, policy, qc_default

FILE = Path(__file__).parent / "cases.yaml"


@dataclass(frozen=True)
class Case:
    """One situation under one policy."""

    id: str
    rule: Policy
    who: Person
    facts: tuple[Fact, ...]
    counts: Mapping[str, tuple[str, frozenset[str]]]
    """Of an encounter: what it counts as, and the rules and codes that say why."""
    at: tuple[tuple[str, int, int, str], ...]
    """Instant, ED visits, hospital episodes, state."""

    def __str__(self) -> str:
        return self.id

    @property
    def known(self) -> Ledger:
        return ledger(*self.facts, who=self.who)

    def wrong(self) -> Iterator[str]:
        """What the rules say otherwise than the case."""
        starts = instant_after(self.facts)
        found = words(self.known, self.rule, starts, [*self.counts])
        for name, wanted in self.counts.items():
            counted, why = found[name]
            if (counted, _parts(why)) != wanted:
                yield f"{self.id}: {name}: {found[name]} for {wanted}"
        for instant, ed, stays, state in self.at:
            standing = stand(self.known, self.rule, at(instant))
            said = (standing.ed_visits, standing.hospital_episodes, str(standing.state))
            if said != (ed, stays, state):
                yield f"{self.id}: {instant}: {said} for {(ed, stays, state)}"

    def disputed(self) -> Iterator[str]:
        """What the oracle says otherwise than the rules (ORC-03)."""
        for now in [instant_after(self.facts), *(at(row[0]) for row in self.at)]:
            found = answer(self.known, self.rule, now)
            yield from differing(found, expected(self.facts, self.who, self.rule, now))


def _parts(why: str) -> frozenset[str]:
    return frozenset(filter(None, why.split(", ")))


@cache
def entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.load(FILE.read_text(), Loader=yaml.BaseLoader)
    return found


@cache
def cases() -> list[Case]:
    """Each entry with facts: by default, and flipped where it has a parameter of the policy."""
    found = []
    for entry in entries():
        if "facts" not in entry:
            continue
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in entry["facts"]]
        born = entry.get("born")
        who = person(
            date.fromisoformat(born) if born else date(1970, 5, 17),
            at(entry["died"]) if "died" in entry else None,
        )
        facts = tuple(map(read, rows))

        def case(name: str, rule: Policy, expect: Any, instants: Any) -> Case:
            return Case(
                id=name,
                rule=rule,
                who=who,  # noqa: B023 - made at once
                facts=facts,  # noqa: B023
                counts={e: (counted, _parts(why)) for e, (counted, why) in expect.items()},
                at=tuple((t, int(ed), int(stays), state) for t, ed, stays, state in instants),
            )

        found.append(case(entry["id"], qc_default(), entry.get("default", {}), entry.get("at", [])))
        for word in ("flipped", "also"):
            if other := entry.get(word):
                rule, expect = policy(other["policy"]), other.get("expect", {})
                found.append(case(f"{entry['id']}, {word}", rule, expect, other.get("at", [])))
    return found
