"""Who lives in the region: people who never existed, each from the seed and their number alone.

A person has a lasting tendency to need the emergency department and, now and then, a crisis
(simulator.md section 1); where and how often that shows is life.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.simulator.draws import Draws, number
from services.simulator.profiles import Profile

ZONE = ZoneInfo("America/Toronto")
HEALTH_CARD = "https://fhir.infoway-inforoute.ca/NamingSystem/ca-qc-patient-healthcare-id"

FAMILY = (
    "Canevas", "Ébauche", "Épreuve", "Essaim", "Exemplaire", "Fictif", "Gabarit", "Imaginaire",
    "Invention", "Maquette", "Modèle", "Patron", "Prototype", "Scénario", "Simili", "Témoin",
)  # fmt: skip
GIVEN_WOMEN = ("Alba", "Brise", "Clarté", "Dune", "Étoile", "Fougère", "Nacre", "Rosée")
GIVEN_MEN = ("Ambre", "Cèdre", "Galet", "Lichen", "Orme", "Silex", "Tilleul", "Zéphyr")

SHAPE = 0.60
"""Of the gamma that a lasting tendency follows."""
CRISIS_FACTOR = 15.0
CRISIS_DAYS = 60.0
YEAR = 365.25


class Segment(NamedTuple):
    """A part of the population and what is known of it."""

    mean: float
    """ED visits per person and year."""
    hazard: float
    """Crises per person and year, before the lasting tendency is looked at."""


GENERAL = Segment(0.335, 0.06)
COMPLEX = Segment(1.4, 0.18)
COMPLEX_SHARE = 0.08


class Tag(StrEnum):
    """What steers diagnoses, age and sex (assumed)."""

    MENTAL_HEALTH = "mental-health"
    LUNG_OR_HEART = "lung-or-heart"
    PAIN = "pain"
    FRAIL = "frail"


class Restriction(StrEnum):
    """What a person allows (simulator.md section 3)."""

    NONE = "none"
    CATEGORY = "category"
    NAMED = "named"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Membership:
    """A stay on a clinic's panel, whole days."""

    clinic: str
    nurse: str
    start: date
    end: date | None = None


@dataclass(frozen=True, slots=True)
class Person:
    number: int
    segment: Segment
    base: float
    """Lasting tendency, mean 1."""
    born: date
    female: bool
    family: str
    given: str
    language: str
    tags: frozenset[Tag]
    card: str | None
    """Health-card number; None: not insured here."""
    home: int
    """Index of the hospital the person usually goes to."""
    scripted: str | None = None
    """D-01 to D-15."""

    def age(self, on: date) -> int:
        return on.year - self.born.year - ((on.month, on.day) < (self.born.month, self.born.day))


@cache
def calm_rate(segment: Segment) -> float:
    """`r`: visits a year of a person of tendency 1 outside a crisis, so that the mean holds.

    E[base (1 + 14 p(base))] by the midpoint rule on a grid of the gamma's square root, where
    its density has no pole; p is the share of time spent in crisis.
    """
    steps, top = 20_000, 6.0
    weight = total = 0.0
    for step in range(steps):
        root = (step + 0.5) * top / steps
        base = root * root
        density = root ** (2 * SHAPE - 1) * math.exp(-SHAPE * base)
        weight += density
        total += density * base * (1 + (CRISIS_FACTOR - 1) * crisis_share(segment, base))
    return round(segment.mean * weight / total, 9)


def crisis_hazard(segment: Segment, base: float) -> float:
    """Crises a year of a person of tendency `base` who is in none."""
    mean_root = math.gamma(SHAPE + 0.5) / math.gamma(SHAPE) / math.sqrt(SHAPE)
    return segment.hazard * math.sqrt(base) / mean_root


def crisis_share(segment: Segment, base: float) -> float:
    """Share of time such a person spends in crisis."""
    on, off = crisis_hazard(segment, base), YEAR / CRISIS_DAYS
    return on / (on + off)


def person(profile: Profile, number_: int) -> Person:
    """The person of that number; the same whatever the size of the region (SIM-05)."""
    draws = Draws(profile.seed, number_, "person")
    segment = COMPLEX if draws.chance(COMPLEX_SHARE) else GENERAL
    base = draws.gamma(SHAPE)
    age = _age(draws, segment)
    female = draws.chance(0.62 if segment is COMPLEX else 0.505)
    tags = _tags(draws, segment, age)
    family = draws.one_of(FAMILY)
    given = draws.one_of(GIVEN_WOMEN if female else GIVEN_MEN)
    return Person(
        number=number_,
        segment=segment,
        base=base,
        born=profile.start - timedelta(days=int(age * YEAR) + draws.below(365)),
        female=female,
        family=family,
        given=given,
        language="fr" if draws.chance(0.8) else "en",
        tags=tags,
        card=None if draws.chance(0.01) else f"TEST{number_:08d}",
        home=_home(profile, number_),
    )


def people(profile: Profile) -> Iterator[Person]:
    for each in range(1, profile.people + 1):
        yield person(profile, each)


def _age(draws: Draws, segment: Segment) -> float:
    if segment is COMPLEX:
        return min(max(56 + 21 * draws.normal(), 1.0), 98.0)
    low, high = ((0, 18), (18, 45), (45, 65), (65, 75), (75, 97))[
        draws.weighted((0.19, 0.35, 0.26, 0.11, 0.09))
    ]
    return draws.between(low, high)


def _tags(draws: Draws, segment: Segment, age: float) -> frozenset[Tag]:
    complex_ = segment is COMPLEX
    drawn = {
        Tag.MENTAL_HEALTH: draws.chance(0.73 if complex_ else 0.15),
        Tag.LUNG_OR_HEART: draws.chance(0.35 if complex_ else 0.08) and age >= 45,
        Tag.PAIN: draws.chance(0.4 if complex_ else 0.12) and age >= 18,
        Tag.FRAIL: draws.chance(0.6 if complex_ else 0.3) and age >= 75,
    }
    return frozenset(tag for tag, there in drawn.items() if there)


def _home(profile: Profile, number_: int) -> int:
    """By rendezvous: a hospital more takes its share of people and moves nobody else."""
    weight = [number(2**32, profile.seed, number_, "home", site) for site in profile.sites]
    return weight.index(max(weight))


def clinic_name(index: int) -> str:
    return f"clinic-{chr(97 + index) if index < 26 else index + 1}"


def nurse_name(index: int) -> str:
    return f"nurse-{chr(97 + index) if index < 26 else index + 1}"


def memberships(profile: Profile, number_: int) -> tuple[Membership, ...]:
    """The panels a person is on, from a year before the simulated time (assumed shares)."""
    draws = Draws(profile.seed, number_, "panel")
    joined = profile.start - timedelta(days=365 + draws.below(365))
    first, second = draws.below(profile.clinics), draws.below(profile.clinics)
    nurses = draws.below(profile.nurses), draws.below(profile.nurses)
    changes, day = draws.chance(profile.clinic_changed), draws.below(profile.days or 1)
    where = draws.unit()

    def on(clinic: int, nurse: int, start: date, end: date | None = None) -> Membership:
        here = range(clinic, profile.nurses, profile.clinics)
        keeper = here[nurse % len(here)] if here else clinic % profile.nurses
        return Membership(clinic_name(clinic), nurse_name(keeper), start, end)

    if where >= profile.panel_one + profile.panel_two:
        return ()
    if changes and profile.clinics > 1:
        moved = profile.start + timedelta(days=day)
        other = (first + 1) % profile.clinics
        return (
            on(first, nurses[0], joined, moved - timedelta(days=1)),
            on(other, nurses[1], moved),
        )
    found = [on(first, nurses[0], joined)]
    if where >= profile.panel_one and profile.clinics > 1:
        other = second if second != first else (first + 1) % profile.clinics
        found.append(on(other, nurses[1], joined))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person said of sharing, and when."""

    restriction: Restriction
    said: datetime


def wishes(profile: Profile, number_: int) -> tuple[Wish, ...]:
    """What a person said of sharing, oldest first; () for the most, who restrict nothing."""
    draws = Draws(profile.seed, number_, "consent")
    kinds = (Restriction.CATEGORY, Restriction.NAMED, Restriction.ALL)
    shares = (profile.deny_category, profile.deny_named, profile.deny_all)
    drawn = draws.weighted((*shares, max(1 - math.fsum(shares), 0.0)))
    first = _morning(profile.start - timedelta(days=30 + draws.below(300)), draws.below(28_800))
    found = [Wish(kinds[drawn], first)] if drawn < len(kinds) else []
    changed = draws.exponential() / profile.consent_changed_rate if _changes(profile) else math.inf
    second, kind = draws.below(28_800), draws.below(3)
    if changed < profile.days / YEAR:
        said = _morning(profile.start + timedelta(days=int(changed * YEAR)), second)
        found.append(Wish(Restriction.NONE if found else kinds[kind], said))
    return tuple(found)


def _changes(profile: Profile) -> bool:
    return profile.consent_changed_rate > 0


def _morning(day: date, second: int) -> datetime:
    """Some time in office hours of `day`, local."""
    return datetime.combine(day, time(9), ZONE) + timedelta(seconds=second)
