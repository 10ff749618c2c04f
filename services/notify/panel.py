"""Whose patient is it: what a clinic's list says, when it may be believed, who gets the card.

A panel row is a claim. It opens nothing until a hospital's own data confirm it (CA-46). Rows
are end-dated, never deleted. Faults name row, column and reason, never the value (CA-40).
"""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Final

COLUMNS: Final = (
    "card_system",
    "card_number",
    "local_number",
    "family",
    "given",
    "birth_date",
    "sex",
    "phone",
    "language",
    "contact_note",
    "nurse",
    "physician",
    "start",
    "end",
)
NEEDED: Final = ("card_system", "card_number", "family", "birth_date")
SEXES: Final = frozenset({"", "female", "male", "other", "unknown", "f", "m", "x"})
LONGEST: Final = 512
"""Characters of a cell."""
MOST_ROWS: Final = 200_000
MOST_ENDED: Final = 0.2
"""A full list that ends a larger share of the panel needs to be confirmed (CA-40)."""
CHARSETS: Final[Mapping[str, str]] = {
    "utf-8": "utf-8-sig",
    "utf8": "utf-8-sig",
    "us-ascii": "utf-8-sig",
    "windows-1252": "cp1252",
    "cp1252": "cp1252",
    "iso-8859-1": "cp1252",  # what says so is windows-1252 in practice, as browsers know
}

Normal = Callable[[str, str], tuple[str, str] | None]
"""(system, value) as sent → (canonical system, normalised value); None if it cannot be one."""


class PanelError(ValueError):
    """The file as a whole cannot be read. The text says what to do, and quotes nothing."""


class Mode(StrEnum):
    DELTA = "delta"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row is bad. `row` counts the heading as 1."""

    row: int
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class Member:
    """One good row: a patient a clinic says is its own."""

    row: int
    card: tuple[str, str] = field(repr=False)
    """Canonical system, normalised value."""
    family: str = field(repr=False)
    birth_date: date = field(repr=False)
    given: str = field(default="", repr=False)
    local_number: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    phone: str = field(default="", repr=False)
    language: str = ""
    contact_note: str = field(default="", repr=False)
    nurse: str | None = None
    physician: str | None = None
    start: date | None = None
    end: date | None = None

    @property
    def private(self) -> dict[str, str]:
        """What is kept sealed."""
        return {
            "card": "|".join(self.card),
            "family": self.family,
            "given": self.given,
            "birthDate": self.birth_date.isoformat(),
            "localNumber": self.local_number,
            "sex": self.sex,
            "phone": self.phone,
            "contactNote": self.contact_note,
        }

    @property
    def text(self) -> str:
        """All of it, for a fingerprint that tells whether a row changed."""
        open_ = (self.language, self.nurse, self.physician, self.start, self.end)
        return "\x1f".join([*self.private.values(), *(str(v) for v in open_)])


@dataclass(frozen=True, slots=True)
class Reading:
    """A file as read."""

    members: tuple[Member, ...]
    faults: tuple[Fault, ...]
    duplicates: int
    """Rows left out because a later one is of the same card."""
    mentioned: frozenset[tuple[str, str]] = field(repr=False)
    """Cards of all rows, bad ones too: a bad row does not end its patient's membership."""


def decode(body: bytes, charset: str | None) -> str:
    """The text of an uploaded file: UTF-8, with or without BOM, or windows-1252 if said so."""
    encoding = CHARSETS.get((charset or "utf-8").strip().strip('"').lower())
    if encoding is None:
        raise PanelError("Send the file as UTF-8, or say charset=windows-1252.")
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        raise PanelError(
            "The file is not in the character set it was sent as. Save it as UTF-8, or say"
            " charset=windows-1252."
        ) from None


def read(text: str, normal: Normal, nurses: Iterable[str]) -> Reading:
    """Rows of `text`, separated by comma or semicolon. `nurses` are those of the clinic."""
    if "\x00" in text:
        raise PanelError("The file is not text: it contains NUL bytes.")
    heading, _, _ = text.partition("\n")
    separator = ";" if heading.count(";") > heading.count(",") else ","
    rows = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        titles = [_title(cell) for cell in next(rows, [])]
        _check_titles(titles)
        return _rows(rows, titles, normal, frozenset(nurses))
    except csv.Error:
        raise PanelError(
            f"The file is not readable as CSV near line {rows.line_num}: check quotes."
        ) from None


def _title(cell: str) -> str:
    return re.sub(r"[\s-]+", "_", cell.strip().lower())


def _check_titles(titles: Sequence[str]) -> None:
    if missing := [name for name in NEEDED if name not in titles]:
        raise PanelError(f"Columns are missing: {', '.join(missing)}.")
    if len(set(titles)) != len(titles):
        raise PanelError("A column stands twice in the heading.")
    if sum(1 for title in titles if title not in COLUMNS):
        raise PanelError(f"Only these columns are known: {', '.join(COLUMNS)}.")


def _rows(
    rows: Iterable[Sequence[str]], titles: Sequence[str], normal: Normal, nurses: frozenset[str]
) -> Reading:
    members: dict[tuple[str, str], Member] = {}
    faults: list[Fault] = []
    mentioned: set[tuple[str, str]] = set()
    duplicates = 0
    for number, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if number > MOST_ROWS:
            raise PanelError(f"The file has more than {MOST_ROWS} rows. Send it in parts.")
        if len(row) != len(titles):
            faults.append(Fault(number, "row", f"has {len(row)} cells, not {len(titles)}"))
            continue
        cells = {title: cell.strip() for title, cell in zip(titles, row, strict=True)}
        card = normal(cells["card_system"], cells["card_number"])
        if card is not None:
            mentioned.add(card)
        bad = list(_faults(number, cells, card, nurses))
        if bad or card is None:
            faults.extend(bad)
            continue
        duplicates += card in members
        members[card] = _member(number, cells, card)
    return Reading(tuple(members.values()), tuple(faults), duplicates, frozenset(mentioned))


def _faults(
    number: int,
    cells: Mapping[str, str],
    card: tuple[str, str] | None,
    nurses: frozenset[str],
) -> Iterable[Fault]:
    for name in NEEDED:
        if not cells[name]:
            yield Fault(number, name, "is needed")
    for name, cell in cells.items():
        if len(cell) > LONGEST or not cell.replace("\n", " ").isprintable():
            yield Fault(number, name, f"must be printable, {LONGEST} characters at most")
    if card is None and cells["card_system"] and cells["card_number"]:
        yield Fault(number, "card_number", "is not of the form its system has")
    for name in ("birth_date", "start", "end"):
        if cells.get(name) and _date(cells[name]) is None:
            yield Fault(number, name, "must be a date as YYYY-MM-DD")
    begin, end = _date(cells.get("start", "")), _date(cells.get("end", ""))
    if begin is not None and end is not None and end < begin:
        yield Fault(number, "end", "is before start")
    if cells.get("sex", "").lower() not in SEXES:
        yield Fault(number, "sex", "must be female, male, other or unknown")
    if cells.get("nurse") and cells["nurse"] not in nurses:
        yield Fault(number, "nurse", "is nobody of this clinic in the region file")


def _date(text: str) -> date | None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _member(number: int, cells: Mapping[str, str], card: tuple[str, str]) -> Member:
    born = _date(cells["birth_date"])
    assert born is not None
    return Member(
        row=number,
        card=card,
        family=cells["family"],
        birth_date=born,
        given=cells.get("given", ""),
        local_number=cells.get("local_number", ""),
        sex=cells.get("sex", "").lower(),
        phone=cells.get("phone", ""),
        language=cells.get("language", ""),
        contact_note=cells.get("contact_note", ""),
        nurse=cells.get("nurse") or None,
        physician=cells.get("physician") or None,
        start=_date(cells.get("start", "")),
        end=_date(cells.get("end", "")),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file would do to a panel. Keys stand for cards."""

    added: frozenset[str]
    changed: frozenset[str]
    ended: frozenset[str]
    unchanged: frozenset[str]
    size: int
    """Members in force before."""

    @property
    def ends_many(self) -> bool:
        return self.size > 0 and len(self.ended) > MOST_ENDED * self.size


def plan(
    known: Mapping[str, str], sent: Mapping[str, str], mentioned: frozenset[str], mode: Mode
) -> Plan:
    """`known` and `sent`: card key → fingerprint, of the members in force and of the good rows."""
    added = frozenset(sent) - frozenset(known)
    unchanged = frozenset(key for key in sent if known.get(key) == sent[key])
    changed = frozenset(sent) - added - unchanged
    absent = frozenset(known) - mentioned if mode is Mode.FULL else frozenset()
    return Plan(added, changed, absent, unchanged, len(known))


# --- when a claim may be believed (CA-46) -----------------------------------------------------


class Confirmation(StrEnum):
    """What made a claim a member: a hospital's data agree, or a hospital named the clinic."""

    DEMOGRAPHICS = "demographics"
    ATTRIBUTED = "attributed"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Identity:
    """Card number, birth date and family name; None = not known."""

    card: str | None = field(repr=False)
    """`system|value`, normalised."""
    family: str | None = field(repr=False)
    birth_date: str | None = field(repr=False)


def confirms(claim: Identity, sent: Identity) -> bool:
    """Whether all three agree with what a hospital sent; what is not known agrees with nothing."""
    if None in {claim.card, claim.family, claim.birth_date}:
        return False
    if claim.card != sent.card or claim.birth_date != sent.birth_date:
        return False
    return bool(_plain(claim.family)) and _plain(claim.family) == _plain(sent.family)


def _plain(name: str | None) -> str:
    """Letters alone, without case or accents."""
    parts = unicodedata.normalize("NFKD", name or "")
    return "".join(c for c in parts if c.isalpha()).casefold()


# --- who gets the card (CA-43) ----------------------------------------------------------------


class Unroutable(StrEnum):
    """Why nobody can be given a patient's card."""

    NO_PANEL = "no-panel"
    ENDED = "ended"
    UNCONFIRMED = "unconfirmed"
    CLINIC_UNKNOWN = "clinic-unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a panel, matched to a patient."""

    clinic: str
    nurse: str | None
    confirmed: bool
    start: date | None = None
    end: date | None = None

    def in_force(self, on: date) -> bool:
        return (self.start is None or self.start <= on) and (self.end is None or on <= self.end)


@dataclass(frozen=True, slots=True)
class Route:
    """A clinic that gets a card, and the first who may be given it; then the clinic's pool."""

    clinic: str
    nurse: str | None


def routes(rows: Sequence[Row], on: date, clinics: frozenset[str]) -> list[Route]:
    """One a clinic: each gets a card of its own (CA-44). Of several rows the one with a nurse."""
    best: dict[str, Route] = {}
    for row in rows:
        if row.confirmed and row.in_force(on) and row.clinic in clinics:
            known = best.get(row.clinic)
            if known is None or known.nurse is None:
                best[row.clinic] = Route(row.clinic, row.nurse)
    return [best[clinic] for clinic in sorted(best)]


def unroutable(rows: Sequence[Row], on: date, clinics: frozenset[str]) -> Unroutable:
    """Why `routes` found none."""
    if not rows:
        return Unroutable.NO_PANEL
    current = [row for row in rows if row.in_force(on)]
    if not current:
        return Unroutable.ENDED
    if not any(row.clinic in clinics for row in current):
        return Unroutable.CLINIC_UNKNOWN
    return Unroutable.UNCONFIRMED
