"""May this recipient be told, now? (CS-01 to CS-37)

Three-valued throughout: what a Consent says of an item and a reader is *yes*, *no* or
*unknown*. A deny applies unless "no"; a permit grants only on "yes" (CS-05). So whatever we
cannot read keeps an item back, and a second evaluation, with every unknown resolved towards
release, tells a Hold for a person to look at from a plain Withhold (CS-34).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import IntEnum, StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import Final
from zoneinfo import ZoneInfo

ENGINE: Final = "1"
"""Version of the algorithm, written into every decision."""

# --- codes (CS-59), versioned data ---------------------------------------------------------

CODES: Final = "1"
TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem/"
ACT_CODE: Final = TERMINOLOGY + "v3-ActCode"
ACT_REASON: Final = TERMINOLOGY + "v3-ActReason"
CONFIDENTIALITY: Final = TERMINOLOGY + "v3-Confidentiality"
CONSENT_ACTION: Final = TERMINOLOGY + "consentaction"
PARTICIPATION: Final = TERMINOLOGY + "v3-ParticipationType"
RESOURCE_TYPES: Final = "http://hl7.org/fhir/resource-types"
ROLE_SYSTEMS: Final = frozenset(
    TERMINOLOGY + name
    for name in (
        "v3-ParticipationType",
        "v3-ParticipationFunction",
        "v3-RoleClass",
        "v3-RoleCode",
        "contractsignertypecodes",
        "extra-security-role-type",
    )
)
SYSTEM_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "http://hl7.org/fhir/v3/ActCode": ACT_CODE,
        "http://hl7.org/fhir/v3/ActReason": ACT_REASON,
        "http://hl7.org/fhir/v3/Confidentiality": CONFIDENTIALITY,
        "http://hl7.org/fhir/v3/ParticipationType": PARTICIPATION,
        "http://hl7.org/fhir/consentaction": CONSENT_ACTION,
        "http://terminology.hl7.org/ValueSet/v3-InformationSensitivityPolicy": ACT_CODE,
        "http://hl7.org/fhir/ValueSet/v3-InformationSensitivityPolicy": ACT_CODE,
        "http://hl7.org/fhir/v3/vs/InformationSensitivityPolicy": ACT_CODE,
    }
)
"""STU3 system URLs and the sensitivity ValueSet URL, as they are met in R4 Consents (CS-24)."""

PURPOSE_ABOVE: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "TREAT": None,
        "CLINTRL": "TREAT",
        "COC": "TREAT",
        "POPHLTH": "TREAT",
        "ETREAT": "TREAT",
        "BTG": "ETREAT",
        "ERTREAT": "ETREAT",
        "HOPERAT": None,
        "CAREMGT": "HOPERAT",
        "HQUALIMP": "HOPERAT",
        "PATSFTY": "HOPERAT",
        "HRESCH": None,
        "CLINTRCH": "HRESCH",
        "BIORCH": "HRESCH",
        "PATRQT": None,
        "FAMRQT": "PATRQT",
        "PWATRNY": "PATRQT",
        "HPAYMT": None,
        "PUBHLTH": None,
        "HMARKT": None,
    }
)
SENSITIVITY_ABOVE: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "SPI": frozenset(),
        "MH": frozenset({"SPI"}),
        "PSY": frozenset({"SPI"}),
        "PSYTHPN": frozenset({"SPI"}),
        "BH": frozenset({"SPI"}),
        "SUD": frozenset({"SPI", "ETH"}),
        "ETH": frozenset(),
        "ETHUD": frozenset({"SUD", "ETH"}),
        "OPIOIDUD": frozenset({"SUD", "ETH"}),
        "HIV": frozenset(),
        "STD": frozenset(),
        "SEX": frozenset(),
        "SDV": frozenset(),
        "VIO": frozenset(),
        "GDIS": frozenset(),
        "SCA": frozenset(),
        "TBOO": frozenset(),
    }
)
"""Union of HL7's and IHE PCF's trees, so a code may have two parents."""
LEVELS: Final = ("U", "L", "M", "N", "R", "V")
NORMAL: Final = LEVELS.index("N")
RESTRICTED: Final = LEVELS.index("R")
ACTIONS: Final = frozenset({"access", "collect", "correct", "disclose", "use"})
FLOW: Final = frozenset({"access", "disclose"})
"""Two ends of one flow: a rule about either is about both."""
RECIPIENT_ROLES: Final = frozenset({"IRCP", "PRCP"})


# --- values ---------------------------------------------------------------------------------


class Reason(StrEnum):
    """Why an item has its outcome (CS-61)."""

    PERMITTED = "permitted"
    IMPLIED = "implied"
    RESTRICTED = "restricted"
    NOT_COVERED = "not-covered"
    NO_CONSENT = "no-consent"
    PERFORMER_NOT_ENTITLED = "performer-not-entitled"
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


FINAL_REASONS: Final = frozenset(
    {Reason.RESTRICTED, Reason.NOT_COVERED, Reason.NO_CONSENT, Reason.PERFORMER_NOT_ENTITLED}
)
"""Reasons a person need not look at; the other refusals are doubts."""


class Sign(StrEnum):
    """What a reader of the decision must know beside its outcome (CS-60, `flags`)."""

    NOT_COMPUTABLE = "NOT_COMPUTABLE"
    CONFLICT_NEWER_PERMIT = "CONFLICT_NEWER_PERMIT"
    PERFORMER_NOT_ENTITLED = "PERFORMER_NOT_ENTITLED"


class Effect(StrEnum):
    PERMIT = "permit"
    DENY = "deny"


class Outcome(StrEnum):
    RELEASE = "release"
    HOLD = "hold"
    WITHHOLD = "withhold"


class Found(StrEnum):
    """The consent finding alone, without the default (CS-60, `decision`)."""

    PERMIT = "permit"
    DENY = "deny"
    NO_CONSENT = "no-consent"


class Default(StrEnum):
    """What silence means (CS-32)."""

    IMPLIED = "implied"
    OPT_IN = "opt-in"


class Profile(StrEnum):
    CORE = "core"
    QC = "qc"


@dataclass(frozen=True, slots=True, order=True)
class Code:
    """A coding; None where the Consent gave only text, or left it out."""

    system: str | None
    code: str | None

    def __post_init__(self) -> None:
        system, code = self.system, self.code
        system = SYSTEM_ALIASES.get(system, system) if system is not None else None
        if system == CONFIDENTIALITY and code in {"PSY", "HIV", "ETH", "SDV"}:
            system = ACT_CODE  # deprecated there: they name a kind, not a level
        object.__setattr__(self, "system", system)


@dataclass(frozen=True, slots=True)
class Reference:
    """`literal` is `Type/id`, absolute or relative; `identifier` is `system|value`."""

    literal: str | None
    identifier: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Period:
    """Both ends belong to it; None is open. Partial dates were widened on reading (CS-14)."""

    start: datetime | None
    end: datetime | None

    def __contains__(self, at: datetime) -> bool:
        return (self.start is None or self.start <= at) and (self.end is None or at <= self.end)


@dataclass(frozen=True, slots=True)
class Actor:
    role: Code
    who: Reference


@dataclass(frozen=True, slots=True)
class Datum:
    """`provision.data`: `meaning` is instance, related, dependents or authoredby."""

    meaning: str | None
    what: Reference


@dataclass(frozen=True, slots=True)
class Rule:
    """One `provision`. `effect` is None only in a root that leaves it to `policyRule`."""

    effect: Effect | None
    period: Period | None = None
    actors: tuple[Actor, ...] = ()
    actions: tuple[Code, ...] = ()
    purposes: tuple[Code, ...] = ()
    labels: tuple[Code, ...] = ()
    classes: tuple[Code, ...] = ()
    codes: tuple[Code, ...] = ()
    data_period: Period | None = None
    data: tuple[Datum, ...] = ()
    children: tuple["Rule", ...] = ()

    @property
    def bare(self) -> bool:
        """Without any condition (a period is none): a container, not an exception (CS-21)."""
        return not (
            self.actors
            or self.actions
            or self.purposes
            or self.labels
            or self.classes
            or self.codes
            or self.data_period
            or self.data
        )

    def tree(self) -> Iterable["Rule"]:
        yield self
        for child in self.children:
            yield from child.tree()


class Base(StrEnum):
    """`policyRule` (v3-ActCode) as far as it is known (CS-20)."""

    OPTIN = "OPTIN"
    OPTINR = "OPTINR"
    OPTOUT = "OPTOUT"
    OPTOUTE = "OPTOUTE"
    EMRGONLY = "EMRGONLY"

    @property
    def effect(self) -> Effect:
        return Effect.PERMIT if self in {Base.OPTIN, Base.OPTINR} else Effect.DENY


@dataclass(frozen=True, slots=True)
class Directive:
    """One version of one Consent, read. What could not be read is `computable=False` (CS-13)."""

    id: str
    version: int | None
    """None: not readable as a number, so not computable, and no other version replaces it."""
    active: bool
    privacy: bool
    """Its scope is patient privacy (CS-11)."""
    patient: Reference
    dated: datetime | None
    """`dateTime`; None = the oldest (CS-31)."""
    base: Base | None
    root: Rule | None
    by_relatives_alone: bool = False
    """All performers are RelatedPerson (CS-16)."""
    computable: bool = True

    @property
    def name(self) -> str:
        return f"Consent/{self.id}/_history/{self.version if self.version is not None else 0}"


@dataclass(frozen=True, slots=True)
class Item:
    """What would be told: one resource. None = not known; an empty set = known and none."""

    id: str
    kind: str
    """FHIR resource type."""
    custodian: str | None = None
    author: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    labels: frozenset[Code] | None = field(default=None, repr=False)
    codes: frozenset[Code] | None = field(default=None, repr=False)
    encounter: str | None = None
    episode: str | None = None

    @property
    def reference(self) -> str:
        return self.id if "/" in self.id else f"{self.kind}/{self.id}"


@dataclass(frozen=True, slots=True)
class Directory:
    """Who belongs where. References are `Type/id`."""

    part_of: Mapping[str, str] = field(default_factory=dict)
    affiliation: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Person → Groups, CareTeams and running PractitionerRoles."""
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    bases: tuple[str, ...] = ()

    def resolve(self, reference: Reference) -> str | None:
        """`Type/id`, or None if it cannot be known whom it names."""
        literal = reference.literal
        if literal is None:
            return self.identifiers.get(reference.identifier or "")
        for base in self.bases:
            literal = literal.removeprefix(base.rstrip("/") + "/")
        parts = literal.split("/")
        if len(parts) == 4 and parts[2] == "_history":
            parts = parts[:2]
        return "/".join(parts) if len(parts) == 2 and all(parts) else None

    def upwards(self, organization: str) -> frozenset[str]:
        """An organisation and all it is part of."""
        above: set[str] = set()
        here: str | None = organization
        while here is not None and here not in above:
            above.add(here)
            here = self.part_of.get(here)
        return frozenset(above)

    def knows_group(self, group: str) -> bool:
        return any(group in groups for groups in self.groups.values())


@dataclass(frozen=True, slots=True)
class Policy:
    default: Default
    profile: Profile = Profile.QC
    optin_purposes: frozenset[str] = frozenset({"TREAT"})
    zone: tzinfo = field(default_factory=lambda: ZoneInfo("America/Toronto"))

    @property
    def name(self) -> str:
        return f"{self.profile}/{self.default}"


def any_released(visible: frozenset[str]) -> bool:
    return bool(visible)


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt or view, at its own instant, for one recipient (CS-02)."""

    at: datetime
    patient: str
    recipient: str
    """`Organization/id`."""
    readers: tuple[str, ...]
    """`Practitioner/id` of each person who can read it; empty = not known who reads."""
    items: tuple[Item, ...]
    circle: bool
    """Circle of care (CS-04)."""
    aliases: frozenset[str] = frozenset()
    birth_date: date | None = field(default=None, repr=False)
    purpose: str = "COC"
    action: str = "disclose"
    directory: Directory = field(default_factory=Directory, repr=False)
    met: Callable[[frozenset[str]], bool] = field(default=any_released, repr=False)
    """Whether the card's condition is met by these items alone (CS-35, CS-40)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one item."""

    item: str
    outcome: Outcome
    reasons: frozenset[Reason]
    basis: frozenset[str]
    explicit: bool
    """Released by a Consent, not by the default."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Common part of both refusals: never told to the recipient, kept for the privacy officer."""

    at: datetime
    recipient: str
    readers: tuple[str, ...]
    found: Found
    findings: tuple[Finding, ...]
    signs: frozenset[Sign]
    basis: frozenset[str]
    policy: str
    reasons: frozenset[Reason]


@dataclass(frozen=True, slots=True)
class Withhold(Refusal):
    """They may not be told."""


@dataclass(frozen=True, slots=True)
class Hold(Refusal):
    """Whether they may be told is for a person to say; until then nothing goes out (CS-36)."""


@dataclass(frozen=True, slots=True)
class Permit:
    """That `recipient` may be told of `released` at `at`. Only `decide` makes one; nothing
    stores one, none is used twice.
    """

    at: datetime
    recipient: str
    readers: tuple[str, ...]
    found: Found
    findings: tuple[Finding, ...]
    signs: frozenset[Sign]
    basis: frozenset[str]
    policy: str
    released: frozenset[str]
    """Item ids; nothing else may be shown, counted or hinted at."""

    @property
    def whole(self) -> bool:
        """Nothing is kept back."""
        return len(self.released) == len(self.findings)

    @property
    def obligations(self) -> frozenset[str]:
        return frozenset({"NORDSCLCD"} if self.whole else {"NORDSCLCD", "REDACT"})


Decision = Permit | Withhold | Hold


# --- three values ---------------------------------------------------------------------------


class Answer(IntEnum):
    NO = 0
    UNKNOWN = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Test:
    """An answer, and if it is *unknown*, what is missing."""

    answer: Answer
    why: frozenset[Reason] = frozenset()


YES: Final = Test(Answer.YES)
NO: Final = Test(Answer.NO)


def unknown(reason: Reason) -> Test:
    return Test(Answer.UNKNOWN, frozenset({reason}))


def _truth(answer: bool) -> Test:
    return YES if answer else NO


def _settled(tests: Sequence[Test], answer: Answer) -> Test:
    if answer is not Answer.UNKNOWN:
        return Test(answer)
    return Test(answer, frozenset().union(*(t.why for t in tests)))


def every(tests: Sequence[Test]) -> Test:
    """AND; of nothing: yes."""
    return _settled(tests, min((t.answer for t in tests), default=Answer.YES))


def some(tests: Sequence[Test]) -> Test:
    """OR; of nothing: no."""
    return _settled(tests, max((t.answer for t in tests), default=Answer.NO))


# --- one rule against one item and one reader (CS-24) -----------------------------------------


@dataclass(frozen=True, slots=True)
class _Case:
    asked: Request
    policy: Policy
    item: Item
    reader: str | None
    """None: not known who reads."""
    hopeful: bool
    """The second evaluation of CS-34: every unknown resolved towards release."""

    def stands(self, deny: Test) -> bool:
        if self.hopeful:
            return deny.answer is Answer.YES
        return deny.answer is not Answer.NO

    def grants(self, permit: Test) -> bool:
        if self.hopeful:
            return permit.answer is not Answer.NO
        return permit.answer is Answer.YES


def purposes_above(purpose: str) -> frozenset[str]:
    """The purpose itself and its ancestors."""
    above = {purpose}
    here = PURPOSE_ABOVE.get(purpose)
    while here is not None:
        above.add(here)
        here = PURPOSE_ABOVE.get(here)
    return frozenset(above)


def _sensitivities_above(code: str) -> frozenset[str]:
    above = {code}
    for parent in SENSITIVITY_ABOVE[code]:
        above |= _sensitivities_above(parent)
    return frozenset(above)


def _period(rule: Rule, case: _Case) -> Test:
    return YES if rule.period is None else _truth(case.asked.at in rule.period)


def _purpose(code: Code, case: _Case) -> Test:
    if code.system != ACT_REASON or code.code is None:
        return unknown(Reason.UNKNOWN_CONDITION)
    if code.code in purposes_above(case.asked.purpose):
        return YES
    known = code.code in PURPOSE_ABOVE and case.asked.purpose in PURPOSE_ABOVE
    return NO if known else unknown(Reason.UNKNOWN_CONDITION)


def _action(code: Code, case: _Case) -> Test:
    if code.system != CONSENT_ACTION or code.code not in ACTIONS:
        return unknown(Reason.UNKNOWN_CONDITION)
    asked = case.asked.action
    return _truth(code.code == asked or (code.code in FLOW and asked in FLOW))


def _recipient(who: Reference, case: _Case) -> Test:
    directory = case.asked.directory
    named = directory.resolve(who)
    if named is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    kind = named.split("/", 1)[0]
    if kind == "Organization":
        return _truth(named in directory.upwards(case.asked.recipient))
    if kind in {"Group", "CareTeam", "PractitionerRole"}:
        if not directory.knows_group(named):
            return unknown(Reason.UNKNOWN_ACTOR)
        if case.reader is None:
            return unknown(Reason.UNKNOWN_READERS)
        return _truth(named in directory.groups.get(case.reader, frozenset()))
    if case.reader is None:
        at_home = case.asked.recipient in directory.affiliation.get(named, frozenset())
        return unknown(Reason.UNKNOWN_READERS) if at_home else NO
    return _truth(named == case.reader)


def _held_by(who: Reference, holder: str | None, case: _Case, missing: Reason) -> Test:
    named = case.asked.directory.resolve(who)
    if named is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    if holder is None:
        return unknown(missing)
    return _truth(named in case.asked.directory.upwards(holder))


def _actor(actor: Actor, case: _Case) -> Test:
    role = actor.role
    if role.system not in ROLE_SYSTEMS or role.code is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    if role.system == PARTICIPATION and role.code in RECIPIENT_ROLES:
        return _recipient(actor.who, case)
    if role.system == PARTICIPATION and role.code == "CST":
        return _held_by(actor.who, case.item.custodian, case, Reason.UNKNOWN_ACTOR)
    if role.system == PARTICIPATION and role.code == "AUT":
        return _held_by(actor.who, case.item.author, case, Reason.UNKNOWN_AUTHOR)
    match = _recipient(actor.who, case)
    return NO if match.answer is Answer.NO else unknown(Reason.UNKNOWN_ACTOR)


def _is_author(actor: Actor) -> bool:
    return actor.role == Code(PARTICIPATION, "AUT")


def _sensitive(code: Code) -> bool:
    return code.system == ACT_CODE and code.code in SENSITIVITY_ABOVE


def _level(code: Code) -> int | None:
    if code.system == CONFIDENTIALITY and code.code in LEVELS:
        return LEVELS.index(code.code)
    return None


def confidentiality(labels: frozenset[Code]) -> int:
    """Index into LEVELS: the label's, else N; at least R with any sensitivity label (CS-24)."""
    levels = [level for code in labels if (level := _level(code)) is not None]
    stated = max(levels, default=NORMAL)
    sensitive = any(_level(code) is None for code in labels)
    return max(stated, RESTRICTED) if sensitive else stated


def _labels(rule: Rule, case: _Case) -> Test:
    labels = case.item.labels
    if labels is None:
        return unknown(Reason.UNKNOWN_LABEL)
    deny = rule.effect is Effect.DENY
    held = confidentiality(labels)
    tests = []
    for code in rule.labels:
        level = _level(code)
        if level is not None:
            tests.append(_truth(held >= level if deny else held <= level))
        elif not _sensitive(code):
            tests.append(unknown(Reason.UNKNOWN_CONDITION))
    named = frozenset(code.code for code in rule.labels if _sensitive(code) and code.code)
    if named:
        tests.append(_sensitivity_denied(labels, named) if deny else _sensitivity(labels, named))
    return some(tests)


def _sensitivity_denied(labels: frozenset[Code], named: frozenset[str]) -> Test:
    """A deny: any label of the item is one of these or under one; an ancestor may be."""
    tests = []
    for code in labels:
        if _level(code) is not None:
            continue
        if code.code is None or not _sensitive(code):
            tests.append(unknown(Reason.UNKNOWN_LABEL))
        elif _sensitivities_above(code.code) & named:
            tests.append(YES)
        elif any(code.code in _sensitivities_above(n) for n in named):
            tests.append(unknown(Reason.UNKNOWN_LABEL))
    return some(tests)


def _sensitivity(labels: frozenset[Code], named: frozenset[str]) -> Test:
    """A permit: the item has sensitivity labels, and every one is one of these or under one."""
    tests = []
    for code in labels:
        if _level(code) is not None:
            continue
        if code.code is None or not _sensitive(code):
            tests.append(unknown(Reason.UNKNOWN_LABEL))
        else:
            tests.append(_truth(bool(_sensitivities_above(code.code) & named)))
    return every(tests) if tests else NO


def _class(code: Code, case: _Case) -> Test:
    if code.system != RESOURCE_TYPES or code.code is None:
        return unknown(Reason.UNKNOWN_CONDITION)
    return _truth(code.code == case.item.kind)


def _code(code: Code, case: _Case) -> Test:
    codes = case.item.codes
    if code.system is None or code.code is None:
        return unknown(Reason.UNKNOWN_CONDITION)
    if codes is None:
        return unknown(Reason.UNKNOWN_CODE)
    if code in codes:
        return YES
    if codes and all(c.system != code.system for c in codes):
        return unknown(Reason.UNKNOWN_CODE)
    return NO


def _data_period(rule: Rule, case: _Case) -> Test:
    period, item = rule.data_period, case.item
    if period is None:
        return YES
    if item.start is None:
        return unknown(Reason.UNKNOWN_DATE)
    end = max(item.end or item.start, item.start)
    if rule.effect is Effect.DENY:
        begun = period.end is None or item.start <= period.end
        return _truth(begun and (period.start is None or end >= period.start))
    return _truth(item.start in period and end in period)


def _datum(datum: Datum, case: _Case) -> Test:
    item = case.item
    if datum.meaning == "authoredby":
        return _held_by(datum.what, item.author, case, Reason.UNKNOWN_AUTHOR)
    named = case.asked.directory.resolve(datum.what)
    if named is None or datum.meaning not in {"instance", "related", "dependents"}:
        return unknown(Reason.UNKNOWN_CONDITION)
    if named == item.reference:
        return YES
    return _truth(datum.meaning != "instance" and named in {item.encounter, item.episode})


def _actors(rule: Rule, case: _Case) -> Test:
    return some([_actor(a, case) for a in rule.actors]) if rule.actors else YES


def _rest_of_request(rule: Rule, case: _Case) -> Test:
    """Period, purpose and action: the request part without its actors."""
    tests = [_period(rule, case)]
    if rule.purposes:
        tests.append(some([_purpose(c, case) for c in rule.purposes]))
    if rule.actions:
        tests.append(some([_action(c, case) for c in rule.actions]))
    return every(tests)


def _request_part(rule: Rule, case: _Case) -> Test:
    rest = _rest_of_request(rule, case)
    if any(_is_author(a) for a in rule.actors):
        return rest
    return every([rest, _actors(rule, case)])


def _item_part(rule: Rule, case: _Case) -> Test:
    tests = [_data_period(rule, case)]
    if rule.labels:
        tests.append(_labels(rule, case))
    if rule.classes:
        tests.append(some([_class(c, case) for c in rule.classes]))
    if rule.codes:
        tests.append(some([_code(c, case) for c in rule.codes]))
    if rule.data:
        tests.append(some([_datum(d, case) for d in rule.data]))
    if any(_is_author(a) for a in rule.actors):
        tests.append(_actors(rule, case))
    return every(tests)


# --- one Consent against one item and one reader (CS-20 to CS-25) -----------------------------


class _Say(StrEnum):
    PERMIT = "permit"
    DENY = "deny"
    IMPLICIT_DENY = "implicit-deny"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class _Voice:
    say: _Say
    why: frozenset[Reason] = frozenset()
    """What was unknown on the way, or why a grant was not heard."""


_SILENT: Final = _Voice(_Say.SILENT)


def _joined(voices: Iterable[_Voice]) -> frozenset[Reason]:
    return frozenset().union(*(v.why for v in voices))


def _walk(rule: Rule, case: _Case, *, sure: bool, root: bool) -> _Voice:
    """CS-25. `sure`: every deny above certainly matches (4)."""
    request, item = _request_part(rule, case), _item_part(rule, case)
    if request.answer is Answer.NO:
        return _survivors(rule, case)
    both = every([request, item])
    below = sure and (rule.effect is Effect.PERMIT or case.grants(both))
    voices = [_walk(child, case, sure=below, root=False) for child in rule.children]
    voice = _own_voice(rule, voices, item, both, case, sure=sure, root=root)
    if rule.effect is Effect.PERMIT and voice.say is _Say.PERMIT and not case.grants(request):
        return _Voice(_Say.SILENT, request.why | voice.why)
    return voice


def _own_voice(
    rule: Rule,
    voices: Sequence[_Voice],
    item: Test,
    both: Test,
    case: _Case,
    *,
    sure: bool,
    root: bool,
) -> _Voice:
    if denies := [v for v in voices if v.say is _Say.DENY]:
        return _Voice(_Say.DENY, _joined(denies))
    if permits := [v for v in voices if v.say is _Say.PERMIT]:
        return _Voice(_Say.PERMIT, _joined(permits))
    doubts = _joined(voices)
    if rule.effect is Effect.DENY:
        return _Voice(_Say.DENY, both.why) if case.stands(both) else _Voice(_Say.SILENT, doubts)
    if case.grants(item):
        return _Voice(_Say.PERMIT if sure else _Say.SILENT, doubts)
    return _Voice(_Say.IMPLICIT_DENY if root else _Say.SILENT, item.why | doubts)


def _survivors(rule: Rule, case: _Case) -> _Voice:
    """CS-25 (1): a restriction naming this reader survives under a permit for another."""
    if not rule.actors or _rest_of_request(rule, case).answer is Answer.NO:
        return _SILENT
    rest = _rest_of_request(rule, case)
    found = [
        _Voice(_Say.DENY, test.why)
        for child in rule.children
        if child.effect is Effect.DENY and child.actors
        for test in [every([rest, _request_part(child, case), _item_part(child, case)])]
        if case.stands(test)
    ]
    return _Voice(_Say.DENY, _joined(found)) if found else _SILENT


def _rules_say(directive: Directive, case: _Case) -> _Voice:
    """CS-20 to CS-22."""
    base = directive.base
    reached = bool(purposes_above(case.asked.purpose) & case.policy.optin_purposes)
    root = directive.root
    if root is None:
        if base is None or (base.effect is Effect.PERMIT and not reached):
            return _SILENT
        emergency = "ETREAT" in purposes_above(case.asked.purpose)
        if base.effect is Effect.PERMIT or (base is Base.EMRGONLY and emergency):
            return _Voice(_Say.PERMIT)
        return _Voice(_Say.DENY)
    if _period(root, case).answer is Answer.NO:
        return _SILENT
    effect = root.effect or _left_to(base, root)
    voice = _walk(_with_effect(root, effect), case, sure=True, root=True)
    if voice.say is _Say.PERMIT and root.effect is None and root.bare and not reached:
        # The effect is the base's own, and a base permit reaches no further than this (CS-20).
        return _SILENT
    if voice.say in {_Say.PERMIT, _Say.DENY}:
        return voice
    if base is not None and base.effect is Effect.DENY:
        return _Voice(_Say.DENY, voice.why)
    if voice.say is _Say.IMPLICIT_DENY:
        return voice
    if base is not None and effect is Effect.DENY and reached:
        return _Voice(_Say.PERMIT, voice.why)
    return voice


def _left_to(base: Base | None, root: Rule) -> Effect:
    """CS-21, both R4 encodings: an exception to the base, or a container for exceptions."""
    if base is None:
        return Effect.DENY  # not computable, and judged so before (CS-13)
    if root.bare:
        return base.effect
    return Effect.DENY if base.effect is Effect.PERMIT else Effect.PERMIT


def _with_effect(root: Rule, effect: Effect) -> Rule:
    if root.effect is effect:
        return root
    return Rule(
        effect,
        root.period,
        root.actors,
        root.actions,
        root.purposes,
        root.labels,
        root.classes,
        root.codes,
        root.data_period,
        root.data,
        root.children,
    )


def _consent_says(directive: Directive, case: _Case) -> _Voice:
    """One Consent, with what limits its grants as a whole (CS-13, CS-15, CS-16)."""
    if not is_computable(directive):
        say = _Say.PERMIT if case.hopeful else _Say.DENY
        return _Voice(say, frozenset({Reason.NOT_COMPUTABLE}))
    voice = _rules_say(directive, case)
    if voice.say is not _Say.PERMIT:
        return voice
    if directive.dated is not None and directive.dated > case.asked.at:
        return _Voice(_Say.SILENT, voice.why)
    if _relatives_matter(directive, case.policy):
        grown = _is_fourteen(case.asked, case.policy)
        if grown is None and not case.hopeful:
            return _Voice(_Say.SILENT, frozenset({Reason.UNKNOWN_AGE}))
        if grown:
            return _Voice(_Say.SILENT, frozenset({Reason.PERFORMER_NOT_ENTITLED}))
    return voice


def is_computable(directive: Directive) -> bool:
    """CS-13, judged on the whole Consent before its period."""
    if not directive.computable or directive.version is None:
        return False
    root = directive.root
    if root is None:
        return directive.base is not None
    if root.effect is None and directive.base is None:
        return False
    return all(rule.effect is not None for child in root.children for rule in child.tree())


def _relatives_matter(directive: Directive, policy: Policy) -> bool:
    return policy.profile is Profile.QC and directive.by_relatives_alone


def _fourteenth_birthday(born: date) -> date:
    try:
        return born.replace(year=born.year + 14)
    except ValueError:  # 29 February
        return date(born.year + 14, 3, 1)


def _is_fourteen(asked: Request, policy: Policy) -> bool | None:
    if asked.birth_date is None:
        return None
    return asked.at.astimezone(policy.zone).date() >= _fourteenth_birthday(asked.birth_date)


# --- all Consents, one item (CS-30 to CS-34) --------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Heard:
    """What all Consents together say of one item to one reader."""

    say: _Say
    released: bool
    explicit: bool
    reasons: frozenset[Reason]
    basis: frozenset[str]
    conflict: bool = False


MOMENT: Final = timedelta(microseconds=1)
_OLDEST: Final = datetime.min.replace(tzinfo=UTC)


def _hear(speaking: Sequence[Directive], case: _Case) -> _Heard:
    voices = [(d, _consent_says(d, case)) for d in speaking]
    by = {say: [(d, v) for d, v in voices if v.say is say] for say in _Say}
    denies, permits, implicit = by[_Say.DENY], by[_Say.PERMIT], by[_Say.IMPLICIT_DENY]
    if denies:
        newest = max(d.dated or _OLDEST for d, _ in denies)
        newer = [(d, v) for d, v in permits if (d.dated or _OLDEST) > newest]
        if newer and case.hopeful:
            return _Heard(_Say.PERMIT, True, True, frozenset(), _names(newer))
        return _Heard(
            _Say.DENY,
            released=False,
            explicit=False,
            reasons=_why(denies, Reason.RESTRICTED) | ({Reason.CONFLICT} if newer else set()),
            basis=_names(denies + newer),
            conflict=bool(newer),
        )
    if permits:
        return _Heard(_Say.PERMIT, True, True, frozenset({Reason.PERMITTED}), _names(permits))
    if implicit:
        why = _why(implicit, Reason.NOT_COVERED)
        return _Heard(_Say.IMPLICIT_DENY, False, False, why, _names(implicit))
    doubts = frozenset().union(*(v.why for _, v in by[_Say.SILENT]))
    under_treatment = "TREAT" in purposes_above(case.asked.purpose)
    if case.policy.default is Default.IMPLIED and under_treatment and case.asked.circle:
        return _Heard(_Say.SILENT, True, False, frozenset({Reason.IMPLIED}), frozenset())
    doubted = [(d, v) for d, v in by[_Say.SILENT] if v.why]
    return _Heard(_Say.SILENT, False, False, doubts | {Reason.NO_CONSENT}, _names(doubted))


def _names(voices: Sequence[tuple[Directive, _Voice]]) -> frozenset[str]:
    return frozenset(d.name for d, _ in voices)


def _why(voices: Sequence[tuple[Directive, _Voice]], plain: Reason) -> frozenset[Reason]:
    """The doubts of those that doubt, `plain` for those that do not."""
    return frozenset().union(*(v.why or {plain} for _, v in voices))


def _look(
    speaking: Sequence[Directive], asked: Request, policy: Policy, item: Item
) -> tuple[Finding, tuple[_Heard, ...]]:
    """CS-33, CS-34: released if released for each reader; else would it be, were all known?"""
    readers: Sequence[str | None] = sorted(set(asked.readers)) or [None]
    sober = tuple(
        _hear(speaking, _Case(asked, policy, item, reader, hopeful=False)) for reader in readers
    )
    basis = frozenset().union(*(h.basis for h in sober))
    if all(h.released for h in sober):
        explicit = all(h.explicit for h in sober)
        reasons = frozenset().union(*(h.reasons for h in sober))
        return Finding(item.id, Outcome.RELEASE, reasons, basis, explicit), sober
    hopeful = [
        _hear(speaking, _Case(asked, policy, item, reader, hopeful=True)) for reader in readers
    ]
    refusing = [h for h in sober if not h.released]
    reasons = frozenset().union(*(h.reasons for h in refusing))
    if all(h.released for h in hopeful):
        doubts = reasons - FINAL_REASONS
        return Finding(item.id, Outcome.HOLD, doubts or reasons, basis, explicit=False), sober
    certain = frozenset().union(
        *(h.reasons for h, hope in zip(sober, hopeful, strict=True) if not hope.released)
    )
    final = (certain & FINAL_REASONS) or (reasons & FINAL_REASONS)
    if not final:
        final = frozenset().union(*(h.reasons for h in hopeful if not h.released)) & FINAL_REASONS
    return Finding(item.id, Outcome.WITHHOLD, final or reasons, basis, explicit=False), sober


# --- the decision -----------------------------------------------------------------------------


def speaking(on_file: Iterable[Directive], asked: Request) -> list[Directive]:
    """CS-10 to CS-12: the latest version of each, if active, about privacy, of this patient."""
    own = {asked.patient} | asked.aliases
    latest: list[Directive] = []
    by_id = sorted(on_file, key=lambda d: d.id)
    for _, versions in groupby(by_id, key=lambda d: d.id):
        several = list(versions)
        latest.extend(d for d in several if d.version is None)
        readable = [d for d in several if d.version is not None]
        if readable:
            newest = max(d.version or 0 for d in readable)
            latest.extend(d for d in readable if d.version == newest)
    return [
        d for d in latest if d.active and d.privacy and asked.directory.resolve(d.patient) in own
    ]


def decide(on_file: Sequence[Directive], asked: Request, policy: Policy) -> Decision:
    """Total: what we cannot compute is a Hold for a person to look at, never a guess (CS-35)."""
    rules = speaking(on_file, asked)
    looked = [_look(rules, asked, policy, item) for item in asked.items]
    findings = tuple(sorted((finding for finding, _ in looked), key=lambda f: f.item))
    released = frozenset(f.item for f in findings if f.outcome is Outcome.RELEASE)
    doubtful = frozenset(f.item for f in findings if f.outcome is Outcome.HOLD)
    found = _found([heard for _, heard in looked])
    signs = _signs(rules, asked, policy, [heard for _, heard in looked])
    basis = frozenset().union(*(f.basis for f in findings))
    if released and asked.met(released):
        return Permit(
            at=asked.at,
            recipient=asked.recipient,
            readers=asked.readers,
            found=found,
            findings=findings,
            signs=signs,
            basis=basis,
            policy=policy.name,
            released=released,
        )
    refused = [f for f in findings if f.outcome is not Outcome.RELEASE]
    on_hold = bool(doubtful) and asked.met(released | doubtful)
    if on_hold:
        refused = [f for f in refused if f.outcome is Outcome.HOLD]
    refusal = Hold if on_hold else Withhold
    return refusal(
        at=asked.at,
        recipient=asked.recipient,
        readers=asked.readers,
        found=found,
        findings=findings,
        signs=signs,
        basis=basis,
        policy=policy.name,
        reasons=frozenset().union(*(f.reasons for f in refused)),
    )


def on_hold(asked: Request, policy: Policy, reason: Reason) -> Hold:
    """A Hold without a look at the items: the decision itself failed (CS-01), or a Consent that
    may be this patient's could not be read at all.
    """
    return Hold(
        at=asked.at,
        recipient=asked.recipient,
        readers=asked.readers,
        found=Found.NO_CONSENT,
        findings=(),
        signs=frozenset(),
        basis=frozenset(),
        policy=policy.name,
        reasons=frozenset({reason}),
    )


def _found(heard: Sequence[tuple[_Heard, ...]]) -> Found:
    if any(all(h.say is _Say.PERMIT for h in readers) for readers in heard):
        return Found.PERMIT
    silenced = {_Say.DENY, _Say.IMPLICIT_DENY}
    if heard and all(any(h.say in silenced for h in readers) for readers in heard):
        return Found.DENY
    return Found.NO_CONSENT


def _signs(
    rules: Sequence[Directive],
    asked: Request,
    policy: Policy,
    heard: Sequence[tuple[_Heard, ...]],
) -> frozenset[Sign]:
    signs = set()
    if any(not is_computable(d) for d in rules):
        signs.add(Sign.NOT_COMPUTABLE)
    if any(h.conflict for readers in heard for h in readers):
        signs.add(Sign.CONFLICT_NEWER_PERMIT)
    if any(_relatives_matter(d, policy) for d in rules) and _is_fourteen(asked, policy):
        signs.add(Sign.PERFORMER_NOT_ENTITLED)
    return frozenset(signs)


def decide_again_at(
    on_file: Sequence[Directive], asked: Request, policy: Policy
) -> datetime | None:
    """The first instant after `asked.at` at which the calendar alone may change the answer:
    a period begins or ends, a Consent comes into force, the 14th birthday (CS-51).
    """
    instants: set[datetime] = set()
    for directive in speaking(on_file, asked):
        if directive.dated is not None:
            instants.add(directive.dated)
        for rule in directive.root.tree() if directive.root is not None else ():
            if rule.period is not None:
                instants |= {rule.period.start} if rule.period.start is not None else set()
                instants |= {rule.period.end + MOMENT} if rule.period.end is not None else set()
        if _relatives_matter(directive, policy) and asked.birth_date is not None:
            day = _fourteenth_birthday(asked.birth_date)
            midnight = datetime(day.year, day.month, day.day, tzinfo=policy.zone)
            instants.add(midnight.astimezone(UTC))
    return min((i for i in instants if i > asked.at), default=None)
