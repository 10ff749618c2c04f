"""Consents, requests and policies at random, small enough to collide often (CS-37).

Made from a seed in plain Python: to draw such trees from strategies takes twenty times as long,
and 50,000 examples of each property are wanted. `size` bounds everything, so a failing example
shrinks to few Consents with few rules; the seed makes it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Final, TypeVar

from hypothesis import strategies as st

from services.notify.consent import (
    ACT_CODE,
    ACT_REASON,
    CONFIDENTIALITY,
    CONSENT_ACTION,
    PARTICIPATION,
    RESOURCE_TYPES,
    Actor,
    Base,
    Code,
    Datum,
    Default,
    Directive,
    Directory,
    Effect,
    Item,
    Period,
    Policy,
    Profile,
    Reference,
    Request,
    Rule,
)

T = TypeVar("T")
NOW: Final = datetime(2026, 3, 2, tzinfo=UTC)
ME: Final = "Patient/TEST-p1"
NORTH: Final = "Organization/north"
STAFF: Final = ("Practitioner/n1", "Practitioner/n2", "Practitioner/n3")
DIRECTORY: Final = Directory(
    part_of={NORTH: "Organization/network", "Organization/h1": "Organization/centre"},
    affiliation={
        **dict.fromkeys(STAFF, frozenset({NORTH})),
        "Practitioner/s1": frozenset({"Organization/south"}),
    },
    groups={
        "Practitioner/n1": frozenset({"Group/g1", "PractitionerRole/r1"}),
        "Practitioner/n2": frozenset({"Group/g2"}),
    },
    identifiers={"licence|1": "Practitioner/n1"},
)
WHO: Final = (
    *(Reference(NORTH),) * 3,
    Reference("Organization/network"),
    Reference("Organization/south"),
    Reference("Organization/h1"),
    Reference("Organization/centre"),
    Reference("Practitioner/n1"),
    Reference("Practitioner/n2"),
    Reference("Practitioner/s1"),
    Reference("Group/g1"),
    Reference("Group/nobody-knows"),
    Reference("PractitionerRole/r1"),
    Reference(None, "licence|1"),
    Reference(None, "licence|0"),
    Reference("https://elsewhere.example.org/fhir/Organization/north"),
)
ROLES: Final = ("IRCP", "IRCP", "IRCP", "PRCP", "CST", "AUT", "WIT", "XYZ")
LABELS: Final = (
    *(Code(ACT_CODE, code) for code in ("SPI", "SUD", "ETH", "MH", "HIV")),
    *(Code(CONFIDENTIALITY, code) for code in ("L", "N", "R", "V")),
    Code("https://example.ca/local", "x"),
)
CODES: Final = (Code("icd", "F32"), Code("icd", "J44"), Code("local", "1"))
PURPOSES: Final = (
    *(Code(ACT_REASON, code) for code in ("TREAT", "COC", "COC", "ETREAT", "HRESCH")),
    Code(None, None),
)
ACTIONS: Final = tuple(Code(CONSENT_ACTION, c) for c in ("access", "disclose", "use", "wink"))
CLASSES: Final = tuple(
    Code(RESOURCE_TYPES, c) for c in ("Encounter", "Encounter", "Condition", "Encountr")
)
DATA: Final = (
    Datum("instance", Reference("Encounter/v0")),
    Datum("related", Reference("Encounter/v1")),
    Datum("dependents", Reference("EpisodeOfCare/e1")),
    Datum("authoredby", Reference("Organization/h1")),
    Datum("authoredby", Reference("Practitioner/n1")),
    Datum("similar", Reference("Encounter/v0")),
)


def rarely(chance: Random, of: Sequence[T], often: float = 0.2, most: int = 2) -> tuple[T, ...]:
    """Mostly nothing."""
    if chance.random() >= often:
        return ()
    return tuple(chance.choice(of) for _ in range(chance.randint(1, most)))


def instant(chance: Random) -> datetime | None:
    return None if chance.random() < 0.3 else NOW + timedelta(days=chance.randint(-20, 20))


def period(chance: Random, often: float) -> Period | None:
    if chance.random() >= often:
        return None
    start, end = instant(chance), instant(chance)
    if start is not None and end is not None and end < start:
        start, end = end, start
    return Period(start, end)


def rule(chance: Random, effects: Sequence[Effect], depth: int) -> Rule:
    roles = [Code(PARTICIPATION, role) for role in ROLES]
    below = chance.randint(0, 2) if depth > 0 else 0
    return Rule(
        effect=chance.choice(effects),
        period=period(chance, 0.15),
        actors=tuple(Actor(chance.choice(roles), who) for who in rarely(chance, WHO, 0.4)),
        actions=rarely(chance, ACTIONS, 0.1),
        purposes=rarely(chance, PURPOSES),
        labels=rarely(chance, LABELS),
        classes=rarely(chance, CLASSES),
        codes=rarely(chance, CODES, 0.15),
        data_period=period(chance, 0.1),
        data=rarely(chance, DATA, 0.1, 1),
        children=tuple(rule(chance, effects, depth - 1) for _ in range(below)),
    )


BOTH: Final = (Effect.PERMIT, Effect.DENY)
ANY_BASE: Final = (None, None, *Base)


def directive(
    chance: Random,
    size: int,
    effects: Sequence[Effect] = BOTH,
    bases: Sequence[Base | None] = ANY_BASE,
) -> Directive:
    base = chance.choice(bases)
    root = None if chance.random() < 0.1 else rule(chance, effects, min(size, 2))
    if root is not None and base is not None and effects is BOTH and chance.random() < 0.4:
        root = replace(root, effect=None)
        if chance.random() < 0.5:
            root = Rule(None, period=root.period, children=root.children)
    return Directive(
        id=chance.choice("abcdef"),
        version=chance.choice([1, 1, 1, 1, 2, None]),
        active=chance.random() < 0.9,
        privacy=chance.random() < 0.95,
        patient=Reference(ME if chance.random() < 0.95 else "Patient/TEST-p2"),
        dated=instant(chance),
        base=base,
        root=root,
        by_relatives_alone=chance.random() < 0.15,
        computable=chance.random() < 0.95,
    )


def item(chance: Random, number: int) -> Item:
    start = instant(chance)
    lasts = chance.random() < 0.4
    return Item(
        id=f"v{number}",
        kind=chance.choice(["Encounter", "Encounter", "Condition"]),
        custodian=chance.choice([None, "Organization/h1", "Organization/h2"]),
        author=chance.choice(
            [None, "Organization/h1", "Practitioner/n1", "PractitionerRole/r1", "Group/g1"]
        ),
        start=start,
        end=start + timedelta(days=chance.randint(0, 9)) if start and lasts else None,
        labels=None if chance.random() < 0.2 else frozenset(rarely(chance, LABELS, 0.6)),
        codes=None if chance.random() < 0.2 else frozenset(rarely(chance, CODES, 0.7)),
        encounter=chance.choice([None, "Encounter/v1"]),
        episode=chance.choice([None, "EpisodeOfCare/e1"]),
    )


@dataclass(frozen=True)
class World:
    """A question, what is on file, and what may be added to it."""

    on_file: tuple[Directive, ...]
    asked: Request
    policy: Policy
    further: Directive
    """Of any kind, under an id of its own."""
    denial: Directive
    grant: Directive
    reader: str
    """Another one of the clinic's staff."""
    chance: Random


def fresh(found: Directive) -> Directive:
    """Under an id of its own, so that it replaces no other version."""
    return replace(found, id="further", version=1)


def world(seed: int, size: int) -> World:
    chance = Random(seed)
    readers = chance.sample(STAFF, chance.choice([0, 1, 1, 2]))
    asked = Request(
        at=NOW,
        patient=ME,
        recipient=NORTH,
        readers=tuple(readers),
        items=tuple(item(chance, n) for n in range(chance.randint(1, size))),
        circle=chance.random() < 0.8,
        birth_date=chance.choice([None, date(2020, 1, 1), date(1990, 1, 1)]),
        purpose=chance.choice(["COC", "COC", "COC", "COC", "ERTREAT", "HRESCH"]),
        directory=DIRECTORY,
    )
    return World(
        on_file=tuple(directive(chance, size) for _ in range(chance.randint(0, size))),
        asked=asked,
        policy=Policy(
            chance.choice(list(Default)), chance.choice([Profile.QC, Profile.QC, Profile.CORE])
        ),
        further=fresh(directive(chance, size)),
        denial=fresh(directive(chance, size, [Effect.DENY], [None, Base.OPTOUT])),
        grant=fresh(directive(chance, size, [Effect.PERMIT], [None, Base.OPTIN])),
        reader=chance.choice(STAFF),
        chance=chance,
    )


WORLDS: Final[st.SearchStrategy[World]] = st.builds(
    world, st.integers(0, 2**53 - 1), st.integers(1, 4)
)
