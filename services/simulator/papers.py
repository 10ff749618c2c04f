"""What clinics and patients have on paper: panels as CSV, wishes of patients as Consents."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.simulator import fhir
from services.simulator.cast import cast
from services.simulator.draws import Draws, code
from services.simulator.fhir import Json
from services.simulator.life import instant
from services.simulator.profiles import Profile
from services.simulator.region import (
    HEALTH_CARD,
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


@dataclass(frozen=True, slots=True)
class Panel:
    clinic: str
    rows: int
    csv: str


def panels(profile: Profile) -> list[Panel]:
    """One file a clinic, every row of a person who is or was on its panel."""
    lines: dict[str, list[tuple[str, ...]]] = {}
    for part in cast(profile):
        for membership in part.panels:
            lines.setdefault(membership.clinic, []).append(_row(part.person, membership))
    for person in people(profile):
        if person.card:
            for membership in memberships(profile, person.number):
                lines.setdefault(membership.clinic, []).append(_row(person, membership))
    clinics = [clinic_name(index) for index in range(profile.clinics)]
    return [
        Panel(clinic, len(lines[clinic]), _csv(lines[clinic]))
        for clinic in clinics
        if clinic in lines
    ]


def bad_panel() -> str:
    """A file in which no row is right."""
    return _csv(BAD_ROWS)


def consents(profile: Profile) -> Iterator[tuple[datetime, Json]]:
    """Every version of every restriction and when it was given, in that order."""
    horizon = instant(profile, profile.days, 0)
    found = [
        each
        for part in cast(profile)
        for each in _consents(profile, part.person, part.wishes, part.panels)
    ]
    for person in people(profile):
        said = [wish for wish in wishes(profile, person.number) if wish.said < horizon]
        if said:
            found += _consents(profile, person, said, memberships(profile, person.number))
    yield from sorted(found, key=lambda each: (each[0], each[1]["id"]))


def _consents(
    profile: Profile, person: Person, said: Iterable[Wish], on: Sequence[Membership]
) -> Iterator[tuple[datetime, Json]]:
    if not person.card:
        return
    id_ = f"TEST-consent-{person.number:08d}"
    by_chance = Draws(profile.seed, person.number, "category")
    for wish in said:
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
        yield wish.said, fhir.consent(id_, person.card, wish.said, provision, profile.sites[0])


def _row(person: Person, membership: Membership) -> tuple[str, ...]:
    physician = "physician" if membership.clinic == "clinic-a" else ""
    return (
        HEALTH_CARD,
        person.card or "",
        code("local", person.number)[:8].upper(),
        person.family,
        person.given,
        person.born.isoformat(),
        "F" if person.female else "M",
        f"555-01{person.number % 100:02d}",
        person.language,
        "",
        membership.nurse,
        physician,
        membership.start.isoformat(),
        membership.end.isoformat() if membership.end else "",
    )


def _csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
