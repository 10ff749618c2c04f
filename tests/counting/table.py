"""Rows of docs/counting.md and of cases.yaml: an encounter in words, and what it counts as."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from services.screening import why
from services.screening.episodes import Kind
from services.screening.flag import stand
from services.screening.ledger import Disposition, Fact, Ledger, Moment
from services.screening.policy import Policy
from tests.histories import ICD, ICD_CA, at, encounter, key, on

COLUMNS: Final = ("e", "site", "arrived", "left", "class", "said of it")
DISPOSITIONS: Final = set(Disposition)
NOTHING: Final = "\N{EN DASH}"
"""What stands under `counts as` if nothing is counted."""
MARKS: Final[Mapping[str, tuple[str, Any]]] = {
    "planned": ("planned", True),
    "untriaged": ("triaged", False),
    "transfer in": ("transfer_in", True),
    "transfer out": ("transfer_out", True),
    "from the ED": ("from_emergency", True),
    "start assumed": ("start_is_assumed", True),
    "ambiguous": ("time_is_ambiguous", True),
    "backfill": ("backfill", True),
    "excluded by hand": ("excluded", True),
}


def moment(text: str) -> datetime | Moment | None:
    if not text:
        return None
    return on(text) if len(text) == 10 else at(text)


def read(row: Mapping[str, str]) -> Fact:
    """The encounter that a row states, by its columns."""
    start, end = moment(row["arrived"]), moment(row["left"])
    classes = [
        (found[1], found[2]) if (found := re.fullmatch(r"(\w+) from (.+)", part)) else part
        for part in row["class"].split(", ")
    ]
    said: dict[str, Any] = {}
    for word in filter(None, row["said of it"].split(", ")):
        first, _, rest = word.partition(" ")
        if word in DISPOSITIONS:
            said["disposition"] = word
        elif word in {"cancelled", "entered-in-error", "onleave"}:
            said["status"] = word
        elif first in {"status", "service", "recorded"}:
            said[first] = rest
        elif first in {"code", "code-ca"}:
            said["codes"] = [(ICD if first == "code" else ICD_CA, rest)]
        elif first == "sent":
            said["event_time"] = rest
        elif first == "version":
            said["version"] = int(rest)
        elif first == "of":
            said["patient"] = key(f"TEST-{rest}")
        elif word.startswith("part of "):
            said["part_of"] = rest.removeprefix("of ")
        else:
            name, value = MARKS[word]
            said[name] = value
    if len(row["arrived"]) > 10:
        said.setdefault("recorded", at(row["arrived"]))
    return encounter(row["e"], start, end, classes=classes, site=row["site"], **said)


def instant_after(facts: Sequence[Fact]) -> datetime:
    """When a table without instants is looked at: twenty days after its last arrival."""
    starts = [f.start.latest for f in facts if f.start]
    return max(starts) + timedelta(days=20)


def words(known: Ledger, rule: Policy, now: datetime, names: Sequence[str]) -> dict[str, Any]:
    """Of each encounter what it counts as, and why: `("ED visit 1", "CR-08 LWBS")`."""
    items = why.explain(known.facts, stand(known, rule, now).judged, rule, now).items
    numbers: dict[int, str] = {}
    for kind, word in ((Kind.ED, "ED visit"), (Kind.HOSPITAL, "stay")):
        counted = sorted((i for i in items if i.counted and i.kind is kind), key=lambda i: i.anchor)
        numbers |= {id(item): f"{word} {n}" for n, item in enumerate(counted, start=1)}
    found = {}
    for name in names:
        mine = [i for i in items if any(f.encounter == key(name) for f in i.facts)]
        mine.sort(key=lambda i: i.kind)
        counts = " + ".join(numbers[id(i)] for i in mine if i.counted) or NOTHING
        codes = [i.reason for i in mine if i.reason] + [n for i in mine for n in i.notes]
        named = dict.fromkeys(" ".join(filter(None, (n.rule, n.code))) for n in codes)
        found[name] = (counts, ", ".join(named))
    return found
