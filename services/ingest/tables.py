"""Rows as values: what the tables of migrations/0001_ingest.sql hold, as flow and store pass it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from services.ingest.folding import ClassSpell, Code, Message, Moment, Status


@dataclass(slots=True)
class Held:
    """A version that waits."""

    key: UUID
    version: int
    hold: str


@dataclass(slots=True)
class Record:
    """One resource as it stands in this batch."""

    key: UUID
    kind: str
    id: str
    exists: bool = False
    version: int = 0
    digest: str = ""
    deleted: bool = False
    updated: datetime | None = None
    patient: UUID | None = None
    temporary: bool = False
    told_at: datetime | None = None
    fact_version: int = 0
    stated: str | None = None
    told: list[Message] = field(default_factory=list)
    """What its accepted messages say."""
    held: list[Held] = field(default_factory=list)
    hold: str | None = None
    """Of its newest version."""
    identifiers: list[str] | None = None
    """Tokens of its newest version, if this batch brings one."""
    touched: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """A message to be kept."""

    key: UUID
    version: int
    kind: str
    box: tuple[str, str] | None = field(repr=False)
    context: str | None = field(repr=False)
    digest: str
    arrived: datetime
    told_at: datetime
    door: str
    moves: bool
    said: Message | None
    hold: str | None
    due: datetime | None
    detail: str
    waits_for: UUID | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A version as it was kept."""

    key: UUID
    version: int
    kind: str
    id: str
    box: tuple[str, str] | None = field(repr=False)
    context: tuple[str, str] | None = field(repr=False)
    arrived: datetime
    told_at: datetime
    door: str
    client: str
    moves: bool
    hold: str | None
    due: datetime | None
    patient: UUID | None
    newest: int
    deleted: bool
    admitted: bool = False
    site: str = ""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A body that had no effect."""

    id: UUID
    site: str
    digest: str
    reason: str
    kind: str
    door: str
    client: str
    request: Mapping[str, Any]
    status: int
    outcome: Mapping[str, Any]
    key_id: str
    body: str | None = field(repr=False)
    arrived: datetime
    times: int
    state: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A message Bundle as it was taken in, and what was answered."""

    header: str
    digest: str
    status: int = 0
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Restatement:
    """How far stating everything again has come."""

    id: UUID
    asked_by: str
    begun: datetime
    stage: str
    after: UUID
    """Key of the last one stated in this stage."""
    persons: int
    links: int
    encounters: int
    ended: datetime | None


@dataclass(frozen=True, slots=True)
class StatedPerson:
    """A version of a patient as it was stated; all of it if it is the newest."""

    key: UUID
    version: int
    recorded: datetime
    is_newest: bool
    fields: Mapping[str, Any] = field(repr=False)
    sites: Sequence[str]
    attributed: Sequence[str]
    tokens: Sequence[Mapping[str, str]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StatedLink:
    """A merge or unmerge as it was stated."""

    retired: UUID
    version: int
    surviving: UUID
    merged: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class StatedEncounter:
    """An encounter that was stated, and what made its facts."""

    key: UUID
    site: str
    fact_version: int
    messages: list[tuple[int, datetime, Message]]
    """Number of the newest fact once it was taken in, when that was, what it says."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something that is odd and stops nothing."""

    key: UUID
    version: int
    code: str
    expression: str


def said(message: Message) -> dict[str, Any]:
    """`message` as it is kept: only what it says."""
    found: dict[str, Any] = {}
    for name, default in _DEFAULTS:
        value = getattr(message, name)
        if value != default:
            found[name] = value
    return found


_DEFAULTS = tuple((one.name, one.default) for one in fields(Message))


def message_of(row: Mapping[str, Any]) -> Message:
    """The message that `said` kept."""
    found = dict(row)
    found["event_time"] = datetime.fromisoformat(found["event_time"])
    found["status"] = Status(found["status"])
    for name in ("start", "end"):
        if name in found:
            found[name] = _moment(found[name])
    for name in ("codes", "labels"):
        if name in found:
            found[name] = tuple(Code(**one) for one in found[name])
    for name in ("patient", "part_of"):
        if name in found:
            found[name] = UUID(found[name])
    if "class_history" in found:
        found["class_history"] = tuple(
            ClassSpell(
                one["code"],
                _moment(one["start"]) if one["start"] else None,
                _moment(one["end"]) if one["end"] else None,
            )
            for one in found["class_history"]
        )
    return Message(**found)


def _moment(row: Mapping[str, Any]) -> Moment:
    return Moment(
        datetime.fromisoformat(row["earliest"]),
        datetime.fromisoformat(row["latest"]),
        row["precision"],
    )
