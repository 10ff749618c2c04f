"""Who lives in the region: people who never existed, each from the seed and their number alone.

A person has a lasting tendency to need the emergency department and, now and then, a crisis
(simulator.md section 1); where and how often that shows is life.py.
"""

import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.simulator.draws import Draws, running
from services.simulator.profiles import Profile

ZONE = ZoneInfo("America/Toronto")
HEALTH_CARD = "https://fhir.infoway-inforoute.ca/NamingSystem/ca-qc-patient-healthcare-id"

FAMILY = (
    "Canevas", "Ébauche", "Épreuve", "Essaim", "Exemplaire", "Fictif", "Gabarit", "Imaginaire",
    "Invention", "Maquette", "Modèle", "Patron", "Prototype", "Scénario", "Simili", "Témoin",
)  # fmt: skip
GIVEN_WOMEN = ("Alba", "Brise", "Clarté", "Dune", "Étoile", "Fougère", "Nacre", "Rosée")
GIVEN_MEN = ("Ambre", "Cèdre", "Galet", "Lichen", "Orme", "Silex", "Tilleul", "Zéphyr")

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


class Flaw(StrEnum):
    """What is wrong with a row of a panel."""

    STALE = "stale"
    """The person left long ago."""
    BAD = "bad"
    """It cannot be read."""


class Membership(NamedTuple):
    """A stay on a clinic's panel, whole days."""

    clinic: str
    nurse: str
    start: date
    end: date | None = None
    flaw: Flaw | None = None


class Person(NamedTuple):
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
def calm_rate(segment: Segment, shape: float) -> float:
    """`r`: visits a year of a person of tendency 1 outside a crisis, so that the mean holds.

    E[base (1 + 14 p(base))] by the midpoint rule on a grid of the gamma's square root, where
    its density has no pole; p is the share of time spent in crisis.
    """
    steps, top = 20_000, 6.0
    weight = total = 0.0
    for step in range(steps):
        root = (step + 0.5) * top / steps
        base = root * root
        density = math.exp((2 * shape - 1) * math.log(root) - shape * base)
        weight += density
        total += density * base * (1 + (CRISIS_FACTOR - 1) * crisis_share(segment, base, shape))
    return round(segment.mean * weight / total, 9)


@cache
def _mean_root(shape: float) -> float:
    """E[sqrt(base)]."""
    return math.exp(math.lgamma(shape + 0.5) - math.lgamma(shape)) / math.sqrt(shape)


def crisis_hazard(segment: Segment, base: float, shape: float) -> float:
    """Crises a year of a person of tendency `base` who is in none."""
    return segment.hazard * math.sqrt(base) / _mean_root(shape)


def crisis_share(segment: Segment, base: float, shape: float) -> float:
    """Share of time such a person spends in crisis."""
    on, off = crisis_hazard(segment, base, shape), YEAR / CRISIS_DAYS
    return on / (on + off)


_AGES = ((0, 18), (18, 45), (45, 65), (65, 75), (75, 97))
_AGE_SHARES = running((0.19, 0.35, 0.26, 0.11, 0.09))


def person(profile: Profile, number: int) -> Person:
    """The person of that number; the same whatever the size of the region (SIM-05).

    The usual hospital is drawn last, by rendezvous: one hospital more draws once more, takes
    its share of people and moves nobody else.
    """
    draws = Draws(profile.seed, number, "person")
    segment = COMPLEX if draws.unit() < COMPLEX_SHARE else GENERAL
    base = draws.gamma(profile.shape)
    age = _age(draws, segment)
    female = draws.unit() < (0.62 if segment is COMPLEX else 0.505)
    tags = _tags(draws, segment, age)
    family = draws.one_of(FAMILY)
    given = draws.one_of(GIVEN_WOMEN if female else GIVEN_MEN)
    born = profile.start - timedelta(days=int(age * YEAR) + draws.below(365))
    language = "fr" if draws.unit() < 0.8 else "en"
    card = None if draws.unit() < 0.01 else f"TEST{number:08d}"
    weight = [draws.unit() for _ in profile.hospitals]
    home = weight.index(max(weight))
    return Person(number, segment, base, born, female, family, given, language, tags, card, home)


def people(profile: Profile) -> Iterator[Person]:
    for each in range(1, profile.people + 1):
        yield person(profile, each)


def _age(draws: Draws, segment: Segment) -> float:
    if segment is COMPLEX:
        return min(max(56 + 21 * draws.normal(), 1.0), 98.0)
    low, high = _AGES[draws.weighted(_AGE_SHARES)]
    return draws.between(low, high)


def _tags(draws: Draws, segment: Segment, age: float) -> frozenset[Tag]:
    mental, lung, pain, frail = draws.unit(), draws.unit(), draws.unit(), draws.unit()
    complex_ = segment is COMPLEX
    found = []
    if mental < (0.73 if complex_ else 0.15):
        found.append(Tag.MENTAL_HEALTH)
    if lung < (0.35 if complex_ else 0.08) and age >= 45:
        found.append(Tag.LUNG_OR_HEART)
    if pain < (0.4 if complex_ else 0.12) and age >= 18:
        found.append(Tag.PAIN)
    if frail < (0.6 if complex_ else 0.3) and age >= 75:
        found.append(Tag.FRAIL)
    return frozenset(found)


@cache
def clinic_name(index: int) -> str:
    return f"clinic-{chr(97 + index) if index < 26 else index + 1}"


@cache
def nurse_name(index: int) -> str:
    return f"nurse-{chr(97 + index) if index < 26 else index + 1}"


def memberships(profile: Profile, number: int) -> tuple[Membership, ...]:
    """The panels a person is on, from a year before the simulated time (assumed shares)."""
    draws = Draws(profile.seed, number, "panel")
    where, joined, first = draws.unit(), draws.unit(), draws.below(profile.clinics)
    nurse, changed, flawed = draws.unit(), draws.exponential(), draws.unit()
    since = profile.start - timedelta(days=365 + int(joined * 365))
    if where >= profile.panel_one + profile.panel_two:
        if flawed >= profile.noise.panel_stale:
            return ()
        left = profile.start - timedelta(days=30 + int(changed * 100) % 300)
        return (_on(profile, first, nurse, since, left, Flaw.STALE),)
    flaw = Flaw.BAD if flawed < profile.noise.panel_bad else None
    if profile.clinics == 1:
        return (_on(profile, first, nurse, since, flaw=flaw),)
    other, second = (first + 1 + draws.below(profile.clinics - 1)) % profile.clinics, draws.unit()
    if where >= profile.panel_one:
        return (
            _on(profile, first, nurse, since, flaw=flaw),
            _on(profile, other, second, since),
        )
    if 0 < profile.clinic_changed < 1:
        day = int(changed / -math.log(1 - profile.clinic_changed) * 365)
        if day < profile.days:
            moved = profile.start + timedelta(days=day)
            return (
                _on(profile, first, nurse, since, moved - timedelta(days=1), flaw),
                _on(profile, other, second, moved),
            )
    return (_on(profile, first, nurse, since, flaw=flaw),)


def _on(
    profile: Profile,
    clinic: int,
    nurse: float,
    start: date,
    end: date | None = None,
    flaw: Flaw | None = None,
) -> Membership:
    """On the panel of a clinic, with one of its own nurses if it has any."""
    here = range(clinic, profile.nurses, profile.clinics)
    keeper = here[int(nurse * len(here))] if here else clinic % profile.nurses
    return Membership(clinic_name(clinic), nurse_name(keeper), start, end, flaw)


class Wish(NamedTuple):
    """What a person said of sharing, and when."""

    restriction: Restriction
    said: datetime


_RESTRICTIONS = (Restriction.CATEGORY, Restriction.NAMED, Restriction.ALL)


def wishes(profile: Profile, number: int) -> tuple[Wish, ...]:
    """What a person said of sharing, oldest first; () for the most, who restrict nothing."""
    draws = Draws(profile.seed, number, "consent")
    kind, wait = draws.unit(), draws.exponential()
    drawn, below = None, 0.0
    for restriction, share in zip(
        _RESTRICTIONS,
        (profile.deny_category, profile.deny_named, profile.deny_all),
        strict=True,
    ):
        below += share
        if drawn is None and kind < below:
            drawn = restriction
    changes = wait < profile.consent_changed_rate * profile.days / YEAR
    if drawn is None and not changes:
        return ()
    day, second = 30 + draws.below(300), draws.below(28_800)
    other, later = draws.one_of(_RESTRICTIONS), draws.below(28_800)
    found = []
    if drawn is not None:
        found.append(Wish(drawn, _morning(profile.start - timedelta(days=day), second)))
    if changes:
        on = profile.start + timedelta(days=int(wait / profile.consent_changed_rate * YEAR))
        found.append(Wish(Restriction.NONE if found else other, _morning(on, later)))
    return tuple(found)


def _morning(day: date, second: int) -> datetime:
    """Some time in office hours of `day`, local."""
    return datetime.combine(day, time(9), ZONE) + timedelta(seconds=second)
