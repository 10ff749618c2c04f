"""What clinics and patients have on paper: panels as CSV, wishes of patients as Consents."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from services.simulator import fhir
from services.simulator.cast import cast
from services.simulator.draws import Draws, code
from services.simulator.fhir import Json
from services.simulator.life import changed, life
from services.simulator.profiles import Profile
from services.simulator.region import (
    HEALTH_CARD,
    Flaw,
    Membership,
    Person,
    Restriction,
    Wish,
    clinic_name,
    memberships,
    people,
    wishes,
)

COLUMNS = (
    "card_system", "card_number", "local_number", "family", "given", "birth_date", "sex", "phone",
    "language", "contact_note", "nurse", "physician", "start", "end",
)  # fmt: skip
"""Of the panel upload (CA-40)."""

BAD_ROWS = tuple(
    (system, card, "", family, "Noé", born, "M", "", "fr", "", nurse, "", start, "")
    for system, card, family, born, nurse, start in (
        ("https://nowhere.example.ca", "TEST1", "Bancal", "1990-13-01", "nurse-a", ""),
        (HEALTH_CARD, "TEST0000", "Bancal", "1990-01-01", "nurse-a", ""),
        (HEALTH_CARD, "TEST99999999", "Bancal", "1990-01-01", "nobody", "2026-02-30"),
        (HEALTH_CARD, "TEST99999998", "", "", "nurse-a", ""),
    )
)
"""Of the deliberately bad file; with each, something else is wrong."""


class Panel(NamedTuple):
    clinic: str
    rows: int
    csv: str


def panels(profile: Profile) -> list[Panel]:
    """One file a clinic, a row for each person who is or was on its panel; a few are wrong."""
    rows: dict[str, list[tuple[str, ...]]] = {
        clinic_name(index): [] for index in range(profile.clinics)
    }
    for part in cast(profile):
        for clinic, row in claims(part.person, part.panels):
            rows[clinic].append(row)
    for person in people(profile):
        for clinic, row in claims(person, memberships(profile, person.number)):
            rows[clinic].append(row)
    return [Panel(clinic, len(own), text(own)) for clinic, own in rows.items()]


def claims(person: Person, on: Iterable[Membership]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The rows that clinics have of a person, with the clinic; none without a health card."""
    if person.card:
        for membership in on:
            yield membership.clinic, _row(person, person.card, membership)


def bad_panel() -> str:
    """A file in which no row is right."""
    return text(BAD_ROWS)


def consents(profile: Profile) -> Iterator[tuple[datetime, Json]]:
    """Every version of every restriction and when it was given, in that order."""
    found = [
        each
        for part in cast(profile)
        for each in restrictions(profile, part.person, part.wishes, part.panels)
    ]
    for person in people(profile):
        if said := wishes(profile, person.number):
            said = changed(profile, said, life(profile, person, profile.days))
            found += restrictions(profile, person, said, memberships(profile, person.number))
    yield from sorted(found, key=lambda each: (each[0], each[1]["id"]))


def restrictions(
    profile: Profile, person: Person, said: Iterable[Wish], on: Sequence[Membership]
) -> Iterator[tuple[datetime, Json]]:
    """What a person said, as Consents, oldest first; versions of one have one id."""
    if not person.card:
        return
    id_ = f"TEST-consent-{person.number:08d}"
    by_chance = Draws(profile.seed, person.number, "category")
    for version, wish in enumerate(said, start=1):
        provision: Json | None = None
        match wish.restriction:
            case Restriction.ALL:
                provision = fhir.deny()
            case Restriction.CATEGORY:
                group = "students" if by_chance.chance(0.5) else "physicians"
                provision = fhir.deny(f"Group/{group}")
            case Restriction.NAMED:
                provision = fhir.deny(f"Practitioner/{on[0].nurse if on else 'nurse-a'}")
            case Restriction.NONE:
                pass
        found = fhir.consent(id_, person.card, wish.said, provision, profile.sites[0])
        found["meta"] = {"versionId": str(version)}
        yield wish.said, found


def _row(person: Person, card: str, membership: Membership) -> tuple[str, ...]:
    physician = "physician" if membership.clinic == "clinic-a" else ""
    born, nurse = person.born.isoformat(), membership.nurse
    if membership.flaw is Flaw.BAD:
        # One of three things that a person at a keyboard gets wrong.
        fault = person.number % 3
        card = card[:7] if fault == 0 else card
        born = f"{born[:5]}13-01" if fault == 1 else born
        nurse = "nobody" if fault == 2 else nurse
    return (
        HEALTH_CARD,
        card,
        code("local", person.number)[:8].upper(),
        person.family,
        person.given,
        born,
        "F" if person.female else "M",
        f"555-01{person.number % 100:02d}",
        person.language,
        "",
        nurse,
        physician,
        membership.start.isoformat(),
        membership.end.isoformat() if membership.end else "",
    )


def text(rows: Iterable[tuple[str, ...]], *, heading: bool = True) -> str:
    """`rows` as CSV, in UTF-8 when written."""
    found = io.StringIO()
    writer = csv.writer(found, lineterminator="\n")
    if heading:
        writer.writerow(COLUMNS)
    writer.writerows(rows)
    return found.getvalue()
