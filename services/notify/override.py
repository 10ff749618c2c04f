"""Breaking the glass: one person, one patient, for a while, with a reason (CS-55).

Only a person opens it, never a delivery, a retry, a machine or silence: under purpose BTG a
Consent must permit it to this reader, or the hospital that holds the visit must have opened its
own by policy. Pure; `consent.decide` decides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.notify.consent import (
    Decision,
    Default,
    Directive,
    Permit,
    Policy,
    Request,
    any_released,
    decide,
)

PURPOSE: Final = "BTG"
ROLES: Final = ("physician", "hosp_cm")
FRESH: Final = timedelta(minutes=5)
"""How recently the person must have proved at the issuer who they are."""
SHORTEST: Final = 20
"""Characters of the reason in words."""
LONGEST: Final = 4000


class Ground(StrEnum):
    """Why it cannot wait (CS-72)."""

    LIFE = "risk-to-life"
    INTEGRITY = "risk-to-integrity"


class By(StrEnum):
    """What opened it."""

    CONSENT = "consent"
    POLICY = "policy"
    """Of the hospital that holds the visits."""


class Verdict(StrEnum):
    """What the privacy officer found."""

    JUSTIFIED = "justified"
    NOT_JUSTIFIED = "not-justified"
    INCIDENT = "incident"


class Notice(StrEnum):
    """Whether the patient is told; a person tells them, nothing here does."""

    NONE = "none"
    TO_DO = "to-do"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Entered:
    """The form as it came."""

    system: str = ""
    number: str = field(default="", repr=False)
    ground: str = ""
    cannot_ask: str = ""
    """`yes`: consent cannot be had in time."""
    why: str = field(default="", repr=False)


def faults(
    said: Entered, systems: Sequence[str], authenticated: datetime | None, now: datetime
) -> Mapping[str, str]:
    """Field → code of what is wrong; real time. Empty: it is complete."""
    found: dict[str, str] = {}
    if not is_fresh(authenticated, now):
        found["again"] = "again"
    if said.system not in systems:
        found["system"] = "system"
    if not said.number.strip():
        found["number"] = "number"
    if said.ground not in set(Ground):
        found["ground"] = "ground"
    if said.cannot_ask != "yes":
        found["cannot_ask"] = "cannot_ask"
    if len(" ".join(said.why.split())) < SHORTEST:
        found["why"] = "short"
    elif len(said.why) > LONGEST:
        found["why"] = "long"
    return found


def is_fresh(authenticated: datetime | None, now: datetime) -> bool:
    """Whether they signed in a moment ago; of whom the issuer does not say when, no."""
    return authenticated is not None and now - authenticated <= FRESH


@dataclass(frozen=True, slots=True)
class Judged:
    decision: Decision
    by: By | None
    """None: it does not open."""


def judge(
    on_file: Sequence[Directive], asked: Request, policy: Policy, overriding: frozenset[str]
) -> Judged:
    """Whether the glass opens for the one reader of `asked`, at `asked.at`.

    `overriding`: custodians whose policy opens what they hold. Silence opens nothing, whatever
    the region's default says.
    """
    breaking = replace(asked, purpose=PURPOSE, met=any_released)
    by_consent = decide(on_file, breaking, replace(policy, default=Default.OPT_IN))
    if isinstance(by_consent, Permit):
        return Judged(by_consent, By.CONSENT)
    theirs = tuple(item for item in asked.items if item.custodian in overriding)
    if not theirs:
        return Judged(by_consent, None)
    by_policy = decide(
        (),
        replace(breaking, items=theirs, circle=True),
        replace(policy, default=Default.IMPLIED),
    )
    return Judged(by_policy, By.POLICY if isinstance(by_policy, Permit) else None)


def is_open(ends: datetime | None, verdict: str | None, now: datetime) -> bool:
    """Until its time is over, or the privacy officer found it was not justified."""
    return ends is not None and now < ends and verdict in {None, Verdict.JUSTIFIED}
