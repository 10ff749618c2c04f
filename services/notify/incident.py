"""An incident in the register: its eight fields, and what the form must say (CS-122). Pure.

The fields are those of section 15 of Quebec's regulation r. 1. Nobody is named in one: whom it
reached is asked of the audit (`passerelle audit affected`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Final

LONGEST: Final = 4000
"""Characters of any text."""
MOST: Final = 100_000_000
"""Persons."""


class Risk(StrEnum):
    """Whether it brings a risk of serious injury: then there are notices (CS-80)."""

    UNDECIDED = "undecided"
    SERIOUS = "serious"
    NOT_SERIOUS = "not-serious"


@dataclass(frozen=True, slots=True)
class Incident:
    """What is known of it. Texts are sealed where they are kept."""

    information: str = field(repr=False)
    """Which information, or why that is not known."""
    circumstances: str = field(repr=False)
    began: date
    ended: date | None
    """When it happened; None: on one day, or it is not known until when."""
    known: date
    """When the organisation learnt of it."""
    persons: int | None
    """How many it concerns; None: not known yet."""
    risk: Risk
    elements: str = field(repr=False)
    """Of the risk assessment: how sensitive, what use is feared, how likely harm is."""
    told_commission: date | None
    told_persons: date | None
    told_public: date | None
    public_reason: str = field(repr=False)
    """Why the public was told, instead of persons or besides."""
    measures: str = field(repr=False)
    """Taken, so that harm is less or it does not happen again."""
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Entered:
    """The form as it came; kept for the page that says what is wrong with it."""

    information: str = field(default="", repr=False)
    circumstances: str = field(default="", repr=False)
    began: str = ""
    ended: str = ""
    known: str = ""
    persons: str = ""
    risk: str = Risk.UNDECIDED.value
    elements: str = field(default="", repr=False)
    told_commission: str = ""
    told_persons: str = ""
    told_public: str = ""
    public_reason: str = field(default="", repr=False)
    measures: str = field(default="", repr=False)
    closed: str = ""


FIELDS: Final = tuple(Entered.__slots__)
DAYS: Final = ("began", "ended", "known", "told_commission", "told_persons", "told_public")
TEXTS: Final = ("information", "circumstances", "elements", "public_reason", "measures")
Faults = Mapping[str, str]
"""Field → code of what is wrong with it."""


def read(said: Entered, today: date) -> tuple[Incident | None, Faults]:
    """The incident, or each field that is wrong.

    It is opened with what is known; closed only when the risk is decided, measures are written, and
    a serious one was told to the Commission, and to the persons or the public (CS-80).
    """
    faults: dict[str, str] = {}
    days = {name: _day(name, getattr(said, name), today, faults) for name in DAYS}
    for name in ("information", "circumstances"):
        if not getattr(said, name).strip():
            faults[name] = "missing"
    for name in TEXTS:
        if len(getattr(said, name)) > LONGEST:
            faults[name] = "long"
    for name in ("began", "known"):
        if days[name] is None:
            faults.setdefault(name, "missing")
    began, ended, known = days["began"], days["ended"], days["known"]
    if began and known and known < began:
        faults.setdefault("known", "order")
    if began and ended and ended < began:
        faults.setdefault("ended", "order")
    persons = _number(said.persons.strip(), faults)
    risk = Risk(said.risk) if said.risk in set(Risk) else None
    if risk is None:
        faults["risk"] = "missing"
    if days["told_public"] and not said.public_reason.strip():
        faults["public_reason"] = "missing"
    if said.closed:
        faults |= {
            name: code for name, code in _open(said, days, risk).items() if name not in faults
        }
    if faults or began is None or known is None or risk is None:
        return None, faults
    return (
        Incident(
            **{name: getattr(said, name).strip() for name in TEXTS},
            began=began,
            ended=ended,
            known=known,
            persons=persons,
            risk=risk,
            told_commission=days["told_commission"],
            told_persons=days["told_persons"],
            told_public=days["told_public"],
            closed=bool(said.closed),
        ),
        {},
    )


def _open(said: Entered, days: Mapping[str, date | None], risk: Risk | None) -> dict[str, str]:
    """What keeps it from being closed."""
    missing = {}
    if risk is Risk.UNDECIDED:
        missing["risk"] = "undecided"
    for name in ("elements", "measures"):
        if not getattr(said, name).strip():
            missing[name] = "missing"
    if risk is Risk.SERIOUS:
        if days["told_commission"] is None:
            missing["told_commission"] = "untold"
        if days["told_persons"] is None and days["told_public"] is None:
            missing["told_persons"] = "untold"
    return missing


def entered(incident: Incident) -> Entered:
    """The form that says `incident`."""
    texts = {name: getattr(incident, name) for name in TEXTS}
    days = {name: at.isoformat() if (at := getattr(incident, name)) else "" for name in DAYS}
    return Entered(
        **texts,
        **days,
        persons="" if incident.persons is None else str(incident.persons),
        risk=incident.risk.value,
        closed="1" if incident.closed else "",
    )


def _day(name: str, said: str, today: date, faults: dict[str, str]) -> date | None:
    if not said.strip():
        return None
    try:
        found = date.fromisoformat(said.strip())
    except ValueError:
        faults[name] = "date"
        return None
    if found > today:
        faults[name] = "future"
        return None
    return found


def _number(said: str, faults: dict[str, str]) -> int | None:
    if not said:
        return None
    if not (said.isascii() and said.isdecimal()) or int(said) > MOST:
        faults["persons"] = "count"
        return None
    return int(said)
