"""Which identifiers are one patient (HA-90 to 97): exact matches, never likeness.

A patient is a random key. Identifiers and birth dates come here as tokens: equal or not is all
that can be asked of them. A merge is a link from one key to another; both keys live on, so that
undoing it loses nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Token:
    """An identifier of one message."""

    digest: str
    system: str
    """Canonical; of a health card, the only kind that matches across sites (HA-93)."""
    is_card: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What is on file of a patient key."""

    key: UUID
    birth: str | None = None
    """Token of the birth date."""
    birth_from: UUID | None = None
    """The record that gave it; that record may correct it."""
    cards: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Digests of health cards by system."""
    apart: frozenset[UUID] = frozenset()
    """Keys that a person or hospital said are not this patient: never merged again by itself."""


@dataclass(frozen=True, slots=True)
class Same:
    """One patient on file, or two that are linked already."""

    key: UUID


@dataclass(frozen=True, slots=True)
class New:
    """Nobody on file."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Two patients who are one on the evidence of HA-94; recorded and reversible."""

    key: UUID
    surviving: UUID
    retired: UUID


@dataclass(frozen=True, slots=True)
class Conflict:
    """For a person to decide. `why` names no value."""

    why: str


Verdict = Same | New | Merge | Conflict


def match(
    tokens: Sequence[Token],
    owners: Mapping[str, UUID],
    known: Mapping[UUID, Known],
    links: Mapping[UUID, UUID],
    *,
    record: UUID | None = None,
    own: UUID | None = None,
    birth: str | None = None,
) -> Verdict:
    """Whose message this is.

    `owners` are the patients of those tokens that belong to somebody, `links` the merges in force
    (retired → surviving). `record` is the hospital's own record the message is about, `own` the
    key that it has had so far, `birth` the token of the birth date that it gives.
    """
    found = [owners[token.digest] for token in tokens if token.digest in owners]
    if own is not None:
        found.insert(0, own)
    if not found:
        return New()
    # A record number says more of who is meant here than a card, which families share and lose.
    numbers = [owners[t.digest] for t in tokens if not t.is_card and t.digest in owners]
    key = own or (numbers or found)[0]
    people = list(dict.fromkeys(survivor(one, links) for one in found))
    cards = {t.digest for t in tokens if t.is_card and t.digest in owners}
    for one in dict.fromkeys(found):
        on_file = known[one]
        has_card = any(owners[digest] == one for digest in cards)
        corrects = record is not None and on_file.birth_from == record
        if has_card and birth and on_file.birth not in (None, birth) and not corrects:
            return Conflict("same health card, another birth date")
    if len(people) == 1:
        return Same(key)
    if len(people) > 2:
        return Conflict("identifiers of more than two patients")
    return _two(tokens, known, people, key, birth)


def _two(
    tokens: Sequence[Token],
    known: Mapping[UUID, Known],
    people: Sequence[UUID],
    key: UUID,
    birth: str | None,
) -> Verdict:
    """HA-94."""
    one, other = (known[person] for person in people)
    births = {one.birth, other.birth} | ({birth} if birth else set())
    if one.birth is None or other.birth is None or len(births) != 1:
        return Conflict("identifiers of two patients, birth dates not known to agree")
    if other.key in one.apart or one.key in other.apart:
        return Conflict("identifiers of two patients who were told apart before")
    for system in {*one.cards, *other.cards}:
        presented = {t.digest for t in tokens if t.is_card and t.system == system}
        if len(one.cards.get(system, set()) | other.cards.get(system, set()) | presented) > 1:
            return Conflict("identifiers of two patients with different health cards")
    # The one with the card survives: it is the one that other hospitals know.
    first, second = sorted((one, other), key=lambda k: (not k.cards, k.key.int))
    return Merge(key, surviving=first.key, retired=second.key)


def survivor(key: UUID, links: Mapping[UUID, UUID]) -> UUID:
    """Who `key` is now: chains of merges resolve to the last (CT-01)."""
    seen = {key}
    while (link := links.get(key)) is not None and link not in seen:
        seen.add(link)
        key = link
    return key


def may_link(retired: UUID, surviving: UUID, links: Mapping[UUID, UUID]) -> bool:
    """False for a merge with itself or in a circle; those wait for a person (HA-97)."""
    return survivor(surviving, {k: v for k, v in links.items() if k != retired}) != retired
