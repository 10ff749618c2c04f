"""What only a person can settle: why something is on hold, one reason at a time (CS-36).

A hold is never released by anybody. What resolves it is a recorded change (another version of a
Consent, a label, an identity) after which the decision comes out another way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from services.notify.consent import (
    Decision,
    Directive,
    Outcome,
    Reason,
    Sign,
    is_computable,
)


class Why(StrEnum):
    """Why a work item is there. The first eleven are the engine's reasons for a hold (CS-61)."""

    UNKNOWN_READERS = "unknown-readers"
    UNKNOWN_ACTOR = "unknown-actor"
    UNKNOWN_LABEL = "unknown-label"
    UNKNOWN_CODE = "unknown-code"
    UNKNOWN_DATE = "unknown-date"
    UNKNOWN_AUTHOR = "unknown-author"
    UNKNOWN_CONDITION = "unknown-condition"
    UNKNOWN_AGE = "unknown-age"
    NOT_COMPUTABLE = "not-computable"
    CONFLICT = "conflict"
    DECISION_ERROR = "decision-error"
    DISPUTED = "disputed"
    """Recorded while two keys were one person; of which of them it is, nobody says (CS-53)."""
    REFUSED = "refused"
    """A Consent that is no valid R4 (CS-57)."""
    OVERRIDE = "override"
    """Somebody broke the glass, or tried to (CS-55)."""


@dataclass(frozen=True, slots=True)
class Filed:
    """A Consent on file, and what is wrong with it beside what it says."""

    directive: Directive
    disputed: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """A decision about a clinic that would be told."""

    decision: Decision
    keeps_back: bool
    """What is in doubt keeps back more than an item: the card, or that it says *flagged*."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One work item that should be open; `basis` are the Consent versions it rests on."""

    why: Why
    basis: frozenset[str]


def wanted(judgements: Iterable[Judgement], on_file: Iterable[Filed]) -> list[Wanted]:
    """The work items one patient should have, by reason.

    A Consent that cannot be computed is
    somebody's to look at whether or not anything is on hold for it yet (CS-57); so is a conflict
    (CS-31), unless with one that cannot be computed: that one is put right first. What else an
    item of a permitted card lacks keeps that item back and opens nothing.
    """
    found: dict[Why, set[str]] = {}
    for filed in on_file:
        why = _wrong_with(filed)
        if why is not None:
            found.setdefault(why, set()).add(filed.directive.name)
    wrong = frozenset().union(*found.values())
    for judgement in judgements:
        for why, basis in _doubts(judgement):
            if why is not Why.CONFLICT or not basis & wrong:
                found.setdefault(why, set()).update(basis)
    return [Wanted(why, frozenset(found[why])) for why in sorted(found)]


def _wrong_with(filed: Filed) -> Why | None:
    directive = filed.directive
    if filed.refused:
        return Why.REFUSED
    if not (directive.active and directive.privacy):
        return None
    if filed.disputed:
        return Why.DISPUTED
    return None if is_computable(directive) else Why.NOT_COMPUTABLE


def _doubts(judgement: Judgement) -> Iterable[tuple[Why, frozenset[str]]]:
    decision = judgement.decision
    if Sign.CONFLICT_NEWER_PERMIT in decision.signs:
        yield Why.CONFLICT, _basis(decision, Reason.CONFLICT)
    if not judgement.keeps_back:
        return
    held = [f.reasons for f in decision.findings if f.outcome is Outcome.HOLD]
    for reason in frozenset().union(*held):
        if reason is not Reason.NOT_COMPUTABLE and reason is not Reason.CONFLICT:
            yield Why(reason), _basis(decision, reason)


def _basis(decision: Decision, reason: Reason) -> frozenset[str]:
    held = [f.basis for f in decision.findings if f.outcome is Outcome.HOLD and reason in f.reasons]
    return frozenset().union(*held)


@dataclass(frozen=True, slots=True)
class Open:
    """A work item that is there."""

    id: UUID
    patient: UUID | None
    about: UUID | None
    why: Why
    sites: frozenset[str]
    basis: frozenset[str]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a patient's work items."""

    opens: tuple[Wanted, ...]
    changes: tuple[tuple[UUID, Wanted], ...]
    closes: tuple[UUID, ...]


def settle(
    patient: UUID, should_be: Iterable[Wanted], there: Iterable[Open], sites: frozenset[str]
) -> Change:
    """From the items that are there to those that should be: one a patient and reason.

    An item of a key that was merged away is the surviving key's from now on, one about a Consent
    of nobody known the patient's who was identified.
    """
    known = {item.why: item for item in there if item.patient == patient and item.about is None}
    wish = {one.why: one for one in should_be}
    stale = [
        item.id
        for item in there
        if item.patient != patient or item.about is not None or item.why not in wish
    ]
    return Change(
        opens=tuple(one for why, one in wish.items() if why not in known),
        changes=tuple(
            (known[why].id, one)
            for why, one in wish.items()
            if why in known and (known[why].basis, known[why].sites) != (one.basis, sites)
        ),
        closes=tuple(stale),
    )
