"""What a person says on form H3, as a FHIR Consent; and a Consent, as a person reads it. Pure.

A permission goes to named clinics, people and categories, up to a level (CS-44, as `class`), save
what is kept back; a restriction keeps back from those named, or from everybody (CS-58, CS-71).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final

from schemas.envelope import CANON
from services.notify.consent import (
    ACT_CODE,
    ACT_REASON,
    CONSENT_ACTION,
    PARTICIPATION,
    RECIPIENT_ROLES,
    RESOURCE_TYPES,
    SENSITIVITY_ABOVE,
    TERMINOLOGY,
    Actor,
    Directive,
    Effect,
    Period,
    Rule,
)

Json = dict[str, Any]

RISKS: Final = f"{CANON}/StructureDefinition/risks-explained"
LEVELS: Final = ("Encounter", "Condition", "DocumentReference")
"""Of CS-44: the fact of a visit, its reason and disposition, its documents."""
MAJORITY: Final = 14
"""Years from which a person consents alone (CS-76, profile `qc`)."""
MEDIA: Final = frozenset({"application/pdf", "image/jpeg", "image/png"})
LONGEST_TEXT: Final = 200
"""Characters of a name or a reference to a paper."""
SHORTEST_REASON: Final = 20
"""Characters."""
LONGEST_REASON: Final = 4000


class Performer(StrEnum):
    """Who decided (CS-16)."""

    PATIENT = "patient"
    RELATIVE = "relative"
    """Parent or tutor."""


class Source(StrEnum):
    """What there is to prove it (CS-71)."""

    SIGNED = "signed"
    SAID = "said"
    """By word of mouth: it binds all the same (CS-58)."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """The signed paper itself."""

    media: str
    name: str = field(repr=False)
    data: str = field(repr=False)
    """Base64."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person wants, as the form has it."""

    effect: Effect
    whom: tuple[str, ...]
    """References of recipients. Empty, of a restriction: everybody."""
    save: tuple[str, ...] = ()
    """Of a permission: whom it does not reach."""
    level: int = 1
    """Permission: up to it. Restriction: from it on."""
    labels: tuple[str, ...] = ()
    """Sensitivities that are kept back; of a restriction, if any: only these."""
    start: date | None = None
    end: date | None = None
    performer: Performer = Performer.PATIENT
    relative: str = field(default="", repr=False)
    source: Source = Source.SAID
    reference: str = field(default="", repr=False)
    attachment: Attachment | None = None
    language: str = "fr"
    risks: bool = False
    """They were explained (CS-74)."""


NOTHING: Final = Wish(Effect.DENY, ())
"""Share nothing: one minimal deny (CS-58)."""


# --- what was entered -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choices:
    """What the form offers."""

    recipients: frozenset[str]
    today: date


@dataclass(frozen=True, slots=True)
class Entered:
    """The form as it came; kept for the page that says what is wrong with it."""

    effect: str = ""
    whom: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    level: str = "1"
    labels: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    performer: str = ""
    relative: str = field(default="", repr=False)
    source: str = ""
    reference: str = field(default="", repr=False)
    language: str = ""
    risks: str = ""
    attachment: Attachment | None = None


Faults = Mapping[str, str]
"""Field → code of what is wrong with it."""


def read(said: Entered, choices: Choices, born: date | None) -> tuple[Wish | None, Faults]:
    """The wish, or each field that is wrong. `born`: if the reader may know it."""
    faults: dict[str, str] = {}
    effect = Effect(said.effect) if said.effect in set(Effect) else None
    if effect is None:
        faults["effect"] = "effect"
    if effect is Effect.PERMIT and not said.whom:
        faults["whom"] = "whom"
    if not {*said.whom, *said.save} <= choices.recipients:
        faults["whom"] = "unknown"
    if said.level not in {"1", "2", "3"}:
        faults["level"] = "unknown"
    if not set(said.labels) <= set(SENSITIVITY_ABOVE):
        faults["labels"] = "unknown"
    start, end = _day(said.start, "start", faults), _day(said.end, "end", faults)
    if end is not None and end < max(start or choices.today, choices.today):
        faults["end"] = "past"
    _check_performer(said, effect, choices.today, born, faults)
    _check_source(said, faults)
    if said.language not in {"fr", "en"}:
        faults["language"] = "language"
    if said.risks not in {"yes", "no"}:
        faults["risks"] = "risks"
    if faults or effect is None:
        return None, faults
    permits = effect is Effect.PERMIT
    wish = Wish(
        effect=effect,
        whom=said.whom,
        save=said.save if permits else (),
        level=int(said.level),
        labels=said.labels,
        start=start,
        end=end,
        performer=Performer(said.performer),
        relative=said.relative if said.performer == Performer.RELATIVE else "",
        source=Source(said.source),
        reference=said.reference if said.source == Source.SIGNED else "",
        attachment=said.attachment if said.source == Source.SIGNED else None,
        language=said.language,
        risks=said.risks == "yes",
    )
    return wish, {}


def _day(said: str, name: str, faults: dict[str, str]) -> date | None:
    if not said:
        return None
    try:
        return date.fromisoformat(said)
    except ValueError:
        faults[name] = "date"
        return None


def _check_performer(
    said: Entered,
    effect: Effect | None,
    today: date,
    born: date | None,
    faults: dict[str, str],
) -> None:
    """Under 14 a parent or tutor, from 14 the person alone; a relative's restriction stands
    (CS-16, CS-71, CS-76).
    """
    if said.performer not in set(Performer):
        faults["performer"] = "performer"
        return
    relative = said.performer == Performer.RELATIVE
    if relative and not 0 < len(said.relative) <= LONGEST_TEXT:
        faults["relative"] = "relative"
    if born is None:
        return
    grown = is_fourteen(born, today)
    if relative and grown and effect is Effect.PERMIT:
        faults["performer"] = "alone"
    if not relative and not grown:
        faults["performer"] = "parent"


def is_fourteen(born: date, today: date) -> bool:
    """Whether the 14th birthday has come; of who was born on 29 February, on 1 March."""
    years = today.year - born.year - ((today.month, today.day) < (born.month, born.day))
    return years >= MAJORITY


def _check_source(said: Entered, faults: dict[str, str]) -> None:
    if said.source not in set(Source):
        faults["source"] = "source"
        return
    if len(said.reference) > LONGEST_TEXT:
        faults["reference"] = "long"
    if said.source == Source.SIGNED and not said.reference and said.attachment is None:
        faults["reference"] = "reference"
    if said.attachment is not None and said.attachment.media not in MEDIA:
        faults["attachment"] = "media"


def is_reason(said: str) -> bool:
    """Whether it says enough to be read by who reviews it."""
    return len(" ".join(said.split())) >= SHORTEST_REASON and len(said) <= LONGEST_REASON


# --- as FHIR ----------------------------------------------------------------------------------


def resource(
    wish: Wish, patient: Json, organization: str | None, policy: str, at: datetime
) -> Json:
    """A valid R4 Consent. `patient`: a Reference; `policy`: the name of the one in force."""
    found: Json = {
        "resourceType": "Consent",
        "language": f"{wish.language}-CA",
        "extension": [{"url": RISKS, "valueBoolean": wish.risks}],
        "status": "active",
        "scope": {"coding": [{"system": f"{TERMINOLOGY}consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": patient,
        "dateTime": at.isoformat(timespec="seconds"),
        "performer": [_performer(wish, patient)],
        "policy": [{"uri": f"{CANON}/policy/{policy}"}],
        "verification": [{"verified": wish.source is Source.SIGNED}],
        "provision": _permission(wish) if wish.effect is Effect.PERMIT else _restriction(wish),
    }
    if organization is not None:
        found["organization"] = [{"reference": f"Organization/{organization}"}]
    if wish.attachment is not None:
        found["sourceAttachment"] = {
            "contentType": wish.attachment.media,
            "data": wish.attachment.data,
            "title": wish.attachment.name,
        }
    elif wish.reference:
        found["sourceReference"] = {"type": "DocumentReference", "display": wish.reference}
    return found


def withdrawn(said: Mapping[str, Any]) -> Json:
    """The next version of a Consent that is taken back (CS-58)."""
    return {**said, "status": "inactive"}


def _performer(wish: Wish, patient: Json) -> Json:
    if wish.performer is Performer.RELATIVE:
        return {"type": "RelatedPerson", "display": wish.relative}
    return {"type": "Patient", **patient}


def _permission(wish: Wish) -> Json:
    """Up to the level; below it, what it does not reach or tell."""
    denies: list[Json] = []
    if wish.save:
        denies.append({"type": "deny", "actor": _actors(wish.save)})
    if wish.labels:
        denies.append({"type": "deny", "securityLabel": _labels(wish.labels)})
    return {
        "type": "permit",
        **_period(wish),
        "actor": _actors(wish.whom),
        "action": [{"coding": [{"system": CONSENT_ACTION, "code": "disclose"}]}],
        "purpose": [{"system": ACT_REASON, "code": "TREAT"}],
        "class": _classes(LEVELS[: wish.level]),
        **({"provision": denies} if denies else {}),
    }


def _restriction(wish: Wish) -> Json:
    """From everybody and of everything, unless it says from whom and of what."""
    found: Json = {"type": "deny", **_period(wish)}
    if wish.whom:
        found["actor"] = _actors(wish.whom)
    if wish.level > 1:
        found["class"] = _classes(LEVELS[wish.level - 1 :])
    if wish.labels:
        found["securityLabel"] = _labels(wish.labels)
    return found


def _period(wish: Wish) -> Json:
    bounds = {
        name: day.isoformat()
        for name, day in (("start", wish.start), ("end", wish.end))
        if day is not None
    }
    return {"period": bounds} if bounds else {}


def _actors(whom: Sequence[str]) -> list[Json]:
    role = {"coding": [{"system": PARTICIPATION, "code": "IRCP"}]}
    return [{"role": role, "reference": {"reference": one}} for one in whom]


def _classes(names: Sequence[str]) -> list[Json]:
    return [{"system": RESOURCE_TYPES, "code": name} for name in names]


def _labels(codes: Sequence[str]) -> list[Json]:
    return [{"system": ACT_CODE, "code": code} for code in codes]


# --- as a person reads it ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One rule of a Consent, without what is nested in it."""

    effect: Effect
    whom: tuple[str, ...]
    """References; empty: everybody."""
    level: int | None
    """Of a permit the highest it reaches, of a deny the lowest; None: no class is named."""
    labels: tuple[str, ...]
    period: Period | None
    more: bool
    """It says more than this line can."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a Consent says."""

    lines: tuple[Line, ...]
    """Its rule and those directly in it, as far as they can be read."""
    whole: bool
    """Nothing is left out."""
    dated: datetime | None
    by_relative: bool
    risks: bool | None
    """They were explained; None: it does not say."""
    signed: bool
    source: str = field(repr=False)
    """Title or reference of the paper."""


def summary(directive: Directive, said: Mapping[str, Any]) -> Summary:
    root = directive.root
    rules = [] if root is None else [root, *root.children]
    lines = tuple(_line(rule, directive) for rule in rules)
    deeper = any(child.children for child in (root.children if root else ()))
    return Summary(
        lines=lines,
        whole=bool(lines) and not deeper and not any(line.more for line in lines),
        dated=directive.dated,
        by_relative=directive.by_relatives_alone,
        risks=_risks(said),
        signed=_is_signed(said),
        source=_source(said),
    )


def _line(rule: Rule, directive: Directive) -> Line:
    effect = rule.effect
    if effect is None:
        effect = directive.base.effect if directive.base else Effect.DENY
    classes = [LEVELS.index(c.code) + 1 for c in rule.classes if c.code in LEVELS]
    labels = tuple(c.code for c in rule.labels if c.code in SENSITIVITY_ABOVE)
    whom = tuple(a.who.literal or "" for a in rule.actors if _is_recipient(a))
    permits = effect is Effect.PERMIT
    return Line(
        effect=effect,
        whom=whom,
        level=None if not classes else max(classes) if permits else min(classes),
        labels=tuple(code for code in labels if code is not None),
        period=rule.period,
        more=bool(
            rule.effect is None
            or rule.codes
            or rule.data
            or rule.data_period
            or len(classes) < len(rule.classes)
            or len(labels) < len(rule.labels)
            or len(whom) < len(rule.actors)
            or not all(whom)
        ),
    )


def _is_recipient(actor: Actor) -> bool:
    return actor.role.system == PARTICIPATION and actor.role.code in RECIPIENT_ROLES


def _risks(said: Mapping[str, Any]) -> bool | None:
    extensions = said.get("extension")
    for one in extensions if isinstance(extensions, list) else ():
        if isinstance(one, Mapping) and one.get("url") == RISKS:
            value = one.get("valueBoolean")
            return value if isinstance(value, bool) else None
    return None


def _is_signed(said: Mapping[str, Any]) -> bool:
    several = said.get("verification")
    return any(
        isinstance(one, Mapping) and one.get("verified") is True
        for one in (several if isinstance(several, list) else ())
    )


def _source(said: Mapping[str, Any]) -> str:
    attached, named = said.get("sourceAttachment"), said.get("sourceReference")
    for one, names in ((attached, ("title", "url")), (named, ("display", "reference"))):
        if isinstance(one, Mapping):
            found = [one[name] for name in names if isinstance(one.get(name), str)]
            if found:
                return str(found[0])
    return ""
