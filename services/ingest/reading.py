"""A resource → what it says, held, or a refusal (HA-05, HA-70 to 79).

Judged after legality, and apart from it: what comes here has passed gate.py. Whose patient a
subject is, and which encounter a number means, is for flow.py to look up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from services.ingest.folding import ClassSpell, Code, Message, Moment, Status
from services.ingest.gate import Problem
from services.ingest.verbatim import Tree

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
PATIENT_CLASS = "http://terminology.hl7.org/CodeSystem/v2-0004"
IDENTIFIER_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
DISCHARGE = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
ADMIT_SOURCE = "http://terminology.hl7.org/CodeSystem/admit-source"

_ACT_CLASSES = ("EMER", "IMP", "ACUTE", "NONAC", "OBSENC", "SS", "AMB", "HH", "VR", "FLD", "PRENC")
CLASSES: Mapping[str, str] = {
    **{f"{ACT_CODE}|{code}": code for code in _ACT_CLASSES},
    f"{PATIENT_CLASS}|E": "EMER",
    f"{PATIENT_CLASS}|I": "IMP",
    f"{PATIENT_CLASS}|O": "AMB",
    f"{PATIENT_CLASS}|P": "PRENC",
}
"""What needs no entry in a site's code map (CT-03)."""

DISPOSITIONS: Mapping[str, str] = {
    f"{DISCHARGE}|{code}": meaning
    for code, meaning in {
        "home": "home",
        "alt-home": "home",
        "other-hcf": "transferred",
        "psy": "transferred",
        "hosp": "nonacute-care",
        "long": "nonacute-care",
        "rehab": "nonacute-care",
        "snf": "nonacute-care",
        "aadvice": "left-against-advice",
        "exp": "died",
        "oth": "other",
    }.items()
}

ADMIT_SOURCES: Mapping[str, str] = {
    f"{ADMIT_SOURCE}|emd": "emergency",
    f"{ADMIT_SOURCE}|hosp-trans": "transfer",
}

AHEAD = timedelta(minutes=5)
"""How far ahead a start may be (HA-76)."""
PATIENCE = timedelta(hours=24)
"""How long an exact start is waited for (CR-30)."""


class Reason(StrEnum):
    """Why a message is held (section 9). A later message, a mapping or a person ends it."""

    AWAITING_PATIENT = "awaiting-patient"
    UNKNOWN_CLASS = "unknown-class"
    START_MISSING = "start-missing"
    START_IMPRECISE = "start-imprecise"
    FUTURE = "future"
    KEY_REUSED = "key-reused"
    IDENTITY_CONFLICT = "identity-conflict"
    TEMPORARY_IDENTITY = "temporary-identity"
    MERGE_CIRCLE = "merge-circle"


ADVICE: Mapping[Reason, str] = {
    Reason.AWAITING_PATIENT: "Kept until the Patient that it names has been sent.",
    Reason.UNKNOWN_CLASS: "Kept until this class is in the site's code map.",
    Reason.START_MISSING: "Kept until a start is sent.",
    Reason.START_IMPRECISE: "Kept until a start with its day is sent.",
    Reason.FUTURE: "Kept until its start is reached.",
    Reason.KEY_REUSED: "Kept for a person: this visit number was another encounter's.",
    Reason.IDENTITY_CONFLICT: "Kept for a person: its identifiers belong to different patients.",
    Reason.TEMPORARY_IDENTITY: "Kept until the temporary identity is merged into a lasting one.",
    Reason.MERGE_CIRCLE: "Kept for a person: this merge would go round in a circle.",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """Recorded, but not stated yet."""

    reason: Reason
    due: datetime | None = None
    """When time alone may end it."""
    detail: str = ""
    """A code, for the metric and the mapping; never a value."""


@dataclass(frozen=True, slots=True)
class Identifier:
    """As it was sent; plumbing normalises it before anything is compared (HA-92)."""

    system: str | None
    value: str = field(repr=False)
    types: tuple[str, ...] = ()
    """v2-0203 codes."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Whom or what a resource points to. At least one of the three is there."""

    literal: str | None = field(default=None, repr=False)
    """As sent: `urn:uuid:…`, an absolute URL."""
    logical_id: str | None = None
    identifiers: tuple[Identifier, ...] = ()


@dataclass(frozen=True, slots=True)
class SiteRules:
    """What must be known of a site to read what it sends; made from the region file."""

    site: str
    zone: ZoneInfo = ZoneInfo("America/Toronto")  # noqa: RUF009 - it is immutable
    visit_systems: frozenset[str] = frozenset()
    classes: Mapping[str, str] = field(default_factory=dict)
    dispositions: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)
    admit_sources: Mapping[str, str] = field(default_factory=dict)
    planned: frozenset[str] = frozenset()
    labels_assessed: bool = False
    sensitive_services: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sets_last_updated: bool = False
    temporary_identity: re.Pattern[str] | None = None
    temporary_types: frozenset[str] = frozenset()
    drop_types: frozenset[str] = frozenset()
    """Validated and not stored (HA-25)."""


@dataclass(frozen=True, slots=True)
class EncounterRead:
    """What one Encounter says."""

    message: Message
    subject: Reference
    identifiers: tuple[Identifier, ...]
    visit: Identifier | None
    """The identifier that is the encounter's own number (HA-70)."""
    no_visit: Problem | None
    """Why there is none; it matters where no logical id decides."""
    part_of: Reference | None
    hold: Hold | None
    best_start: Moment | None
    """An exact instant to stand in for a start that does not come (CR-30)."""


@dataclass(frozen=True, slots=True)
class PatientRead:
    """What one Patient says."""

    event_time: datetime
    digest: str
    identifiers: tuple[Identifier, ...]
    temporary: bool
    active: bool
    replaced_by: Reference | None
    fields: Mapping[str, str | None] = field(repr=False)
    """Demographics; None = said not to be so."""
    caregivers: tuple[Identifier, ...] = ()
    """Identifiers of general practitioners and their organisations (CA-46)."""


@dataclass(eq=False)
class RefusedError(Exception):
    """The sender must correct it. All problems at once (HA-63)."""

    problems: Sequence[Problem]

    def __str__(self) -> str:
        return f"{len(self.problems)} problems"


# Dates


_STAMP = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(Z|[+-][0-9]{2}:[0-9]{2}))?)?)?"
)


def moment(text: str, zone: ZoneInfo) -> Moment:
    """The range of instants that a legal FHIR date, dateTime or instant may mean (HA-05).

    A date alone is that whole day in `zone`, a month or year likewise. Fractions beyond
    microseconds are cut; a leap second is the next second.
    """
    parts = _STAMP.fullmatch(text)
    assert parts is not None, "the gate lets only legal dates pass"
    year, month, day, hour, minute, second, fraction, offset = parts.groups()
    if hour is not None:
        at = datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:00{offset}")
        at += timedelta(seconds=int(second), microseconds=int((fraction or "0")[:6].ljust(6, "0")))
        instant = at.astimezone(UTC)
        return Moment(instant, instant)
    first = date(int(year), int(month or 1), int(day or 1))
    if day is not None:
        after, precision = first + timedelta(days=1), "day"
    elif month is not None:
        after, precision = (first + timedelta(days=31)).replace(day=1), "month"
    else:
        after, precision = date(first.year + 1, 1, 1), "year"
    last = _midnight(after, zone) - timedelta(microseconds=1)
    return Moment(_midnight(first, zone), last, precision)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def event_time(tree: Tree, rules: SiteRules, arrived: datetime) -> datetime:
    """When a resource sent by plain REST says that it happened (HA-82)."""
    said = tree.get("meta", {}).get("lastUpdated")
    if rules.sets_last_updated and isinstance(said, str):
        told = moment(said, rules.zone).earliest
        if told <= arrived:
            return told
    return arrived


# Encounter


def read_encounter(
    tree: Tree,
    rules: SiteRules,
    *,
    digest: str,
    told_at: datetime,
    now: datetime,
    moves: bool = False,
    conditions: Iterable[Tree] = (),
    backfill: bool = False,
) -> EncounterRead:
    """What the legal Encounter `tree` says. RefusedError if business rules refuse it (section 9).

    `told_at` is the event time, `moves` that it came as a transfer (HA-45). `conditions` are
    those that came with it.
    """
    problems: list[Problem] = []
    status = Status(tree["status"]) if "status" in tree else Status.UNKNOWN  # HA-78
    subject = _subject(tree)
    if subject is None:
        problems.append(
            _business("Encounter.subject", "Name the Patient by reference or identifier.")
        )
    code, class_hold = _class(tree.get("class"), rules)
    if not tree.get("class", {}).get("code") and not status.is_void:
        problems.append(_business("Encounter.class.code", "Send the code of the class."))
    if problems or subject is None:
        raise RefusedError(problems)
    period = tree.get("period", {})
    start = _moment(period.get("start"), rules)
    start_hold = _start_hold(start, status, told_at, now)
    end = _moment(period.get("end"), rules)
    stay = tree.get("hospitalization", {})
    source = _mapped(stay.get("admitSource"), rules.admit_sources, ADMIT_SOURCES)
    disposition = _mapped(stay.get("dischargeDisposition"), rules.dispositions, DISPOSITIONS)
    identifiers = tuple(_identifiers(tree))
    visit, no_visit = visit_of(identifiers, rules)
    contained = [one for one in tree.get("contained", ()) if one["resourceType"] == "Condition"]
    told = [*contained, *conditions]
    return EncounterRead(
        message=Message(
            event_time=told_at,
            status=status,
            digest=digest,
            source_version=_source_version(tree),
            moves=moves,
            code=code,
            class_history=tuple(_class_history(tree, rules)),
            triaged=any(
                spell.get("status") == "triaged" for spell in tree.get("statusHistory", ())
            ),
            start=None if start is None or start.precision in ("month", "year") else start,
            end=None if end is None or end.precision in ("month", "year") else end,
            disposition=disposition,
            service=_mapped(tree.get("serviceType"), rules.services, {}),
            from_emergency=None if source is None else source == "emergency",
            transfer_in=None if source is None else source == "transfer",
            transfer_out=None if disposition is None else disposition == "transferred",
            planned=_planned(tree, source, rules),
            codes=_codes(tree, told),
            labels=_labels(tree, told, rules),
            backfill=backfill,
        ),
        subject=subject,
        identifiers=identifiers,
        visit=visit,
        no_visit=no_visit,
        part_of=_reference(tree.get("partOf"), "Encounter"),
        hold=class_hold if class_hold and not status.is_void else start_hold,
        best_start=_best_start(tree, rules),
    )


def visit_of(
    identifiers: Sequence[Identifier], rules: SiteRules
) -> tuple[Identifier | None, Problem | None]:
    """The identifier that is the visit's number, or why that cannot be told (HA-70)."""
    for chosen in (
        [one for one in identifiers if "VN" in one.types],
        [one for one in identifiers if one.system in rules.visit_systems],
        [one for one in identifiers if one.system is not None],
    ):
        if len({(one.system, one.value) for one in chosen}) == 1:
            return chosen[0], None
        if chosen:
            advice = (
                "Several identifiers could be the visit number: give one the type VN, or name its"
                f" system in the setting visit_systems of site {rules.site}."
            )
            return None, _business("Encounter.identifier", advice)
    advice = "Send the visit number as an identifier with its system, or PUT to an id of your own."
    return None, _business("Encounter.identifier", advice)


def _business(expression: str, advice: str) -> Problem:
    return Problem("business-rule", expression, advice, 422)


def _class(coding: Tree | None, rules: SiteRules) -> tuple[str | None, Hold | None]:
    """Normalised class (CT-03), or that it must wait for a mapping (HA-74)."""
    code = (coding or {}).get("code")
    if coding is None or code is None:
        return None, None
    system = _https(coding.get("system"))
    for key in (f"{system}|{code}", code):
        if key in rules.classes:
            return rules.classes[key], None
    known = CLASSES.get(f"{system}|{code}")
    return known, None if known else Hold(Reason.UNKNOWN_CLASS, detail=code)


def _class_history(tree: Tree, rules: SiteRules) -> Iterator[ClassSpell]:
    for spell in tree.get("classHistory", ()):
        code, _ = _class(spell.get("class"), rules)
        if code is not None:
            period = spell.get("period", {})
            yield ClassSpell(
                code, _moment(period.get("start"), rules), _moment(period.get("end"), rules)
            )


def _start_hold(
    start: Moment | None, status: Status, told_at: datetime, now: datetime
) -> Hold | None:
    """HA-75, HA-76. A plan may lie ahead and be vague; what is void needs no start."""
    if status is Status.PLANNED or status.is_void:
        return None
    if start is None:
        return Hold(Reason.START_MISSING, due=told_at + PATIENCE)
    if start.precision in ("month", "year"):
        return Hold(Reason.START_IMPRECISE, due=told_at + PATIENCE)
    if start.earliest > now + AHEAD:
        return Hold(Reason.FUTURE, due=start.earliest - AHEAD)
    return None


def _best_start(tree: Tree, rules: SiteRules) -> Moment | None:
    """The earliest exact instant that the resource gives for anything in it (CR-30)."""
    spells = (
        spell.get("period", {}).get("start")
        for name in ("statusHistory", "classHistory", "location")
        for spell in tree.get(name, ())
    )
    moments = [moment(said, rules.zone) for said in spells if isinstance(said, str)]
    return min((one for one in moments if one.precision == "instant"), default=None)


def _planned(tree: Tree, source: str | None, rules: SiteRules) -> bool | None:
    """By appointment or elective (CR-07, CR-19), as the site codes it; None = not said."""
    if tree.get("appointment") or source == "elective":
        return True
    coded = [*tree.get("type", ()), *([tree["priority"]] if "priority" in tree else ())]
    if any(key in rules.planned for concept in coded for key in _keys(concept)):
        return True
    return False if coded or source is not None else None


def _codes(tree: Tree, conditions: Sequence[Tree]) -> tuple[Code, ...] | None:
    """Diagnosis codes; None if nothing was said of them."""
    concepts = [one.get("code") for one in conditions if _holds(one)]
    concepts += tree.get("reasonCode", ())
    found = dict.fromkeys(
        Code(coding["system"], coding["code"])
        for concept in concepts
        if concept is not None
        for coding in concept.get("coding", ())
        if "system" in coding and "code" in coding
    )
    return tuple(found) if found or conditions else None


def _holds(condition: Tree) -> bool:
    """Whether a Condition is stated, not taken back."""
    stands = _keys(condition.get("verificationStatus"))
    return not any(key in ("refuted", "entered-in-error") for key in stands)


def _labels(tree: Tree, conditions: Sequence[Tree], rules: SiteRules) -> tuple[Code, ...] | None:
    """Security labels; None = not assessed."""
    found: dict[Code, None] = {}
    for resource in (tree, *conditions):
        for coding in resource.get("meta", {}).get("security", ()):
            if "system" in coding and "code" in coding:
                found[Code(coding["system"], coding["code"])] = None
    for key in _keys(tree.get("serviceType")):
        for label in rules.sensitive_services.get(key, ()):
            found[Code(ACT_CODE, label)] = None
    return tuple(found) if found or rules.labels_assessed else None


def _mapped(
    concept: Tree | None, of_site: Mapping[str, str], standard: Mapping[str, str]
) -> str | None:
    for key in _keys(concept):
        if key in of_site:
            return of_site[key]
    return next((standard[key] for key in _keys(concept) if key in standard), None)


def _keys(concept: Tree | None) -> Iterator[str]:
    """`system|code` and bare code of each coding: how a code map names them."""
    for coding in (concept or {}).get("coding", ()):
        if "code" in coding:
            if "system" in coding:
                yield f"{_https(coding['system'])}|{coding['code']}"
            yield coding["code"]


def _https(system: str | None) -> str | None:
    """HL7's own systems in their one spelling (HA-91)."""
    if system is None:
        return None
    if system.startswith(("https://terminology.hl7.org/", "https://hl7.org/fhir/")):
        system = f"http{system[5:]}"
    old = system.removeprefix("http://hl7.org/fhir/v3/")
    return f"http://terminology.hl7.org/CodeSystem/v3-{old}" if old != system else system


def _source_version(tree: Tree) -> int:
    said = tree.get("meta", {}).get("versionId", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 18 else 0


def _moment(said: str | None, rules: SiteRules) -> Moment | None:
    return None if said is None else moment(said, rules.zone)


# Patient


def read_patient(tree: Tree, rules: SiteRules, *, digest: str, told_at: datetime) -> PatientRead:
    """What the legal Patient `tree` says."""
    identifiers = tuple(_identifiers(tree))
    fields: dict[str, str | None] = {}
    names = tree.get("name", ())
    name = next((one for one in names if one.get("use") in ("official", "usual")), None) or next(
        (one for one in names if one.get("use") not in ("old", "maiden", "temp", "anonymous")), None
    )
    if name is not None:
        if "family" in name:
            fields["family"] = name["family"]
        if given := [one for one in name.get("given", ()) if one]:
            fields["given"] = " ".join(given)
    if len(tree.get("birthDate", "")) == len("YYYY-MM-DD"):
        fields["birthDate"] = tree["birthDate"]
    if "gender" in tree:
        fields["gender"] = tree["gender"]
    if "deceasedDateTime" in tree:
        fields["deceased"] = moment(tree["deceasedDateTime"], rules.zone).earliest.isoformat()
    elif "deceasedBoolean" in tree:
        fields["deceased"] = told_at.isoformat() if tree["deceasedBoolean"] else None
    replaced_by = next(
        (link["other"] for link in tree.get("link", ()) if link.get("type") == "replaced-by"), None
    )
    return PatientRead(
        event_time=told_at,
        digest=digest,
        identifiers=identifiers,
        temporary=any(is_temporary(one, rules) for one in identifiers),
        active=tree.get("active", True),
        replaced_by=_reference(replaced_by, "Patient"),
        fields=fields,
        caregivers=tuple(_caregivers(tree)),
    )


def is_temporary(identifier: Identifier, rules: SiteRules) -> bool:
    """HA-96: by the site's pattern or by type."""
    pattern = rules.temporary_identity
    return not rules.temporary_types.isdisjoint(identifier.types) or (
        pattern is not None and pattern.fullmatch(identifier.value) is not None
    )


def _caregivers(tree: Tree) -> Iterator[Identifier]:
    """Identifiers of practitioner references, of contained ones also those of the resource."""
    contained = {f"#{one.get('id')}": one for one in tree.get("contained", ())}
    for reference in tree.get("generalPractitioner", ()):
        found = _reference(reference, None)
        if found is not None:
            yield from found.identifiers
        if inner := contained.get(reference.get("reference")):
            yield from _identifiers(inner)


# Shared


def _identifiers(tree: Tree) -> Iterator[Identifier]:
    for said in tree.get("identifier", ()):
        found = _identifier(said)
        if found is not None and said.get("use") != "old":
            yield found


def _identifier(said: Tree | None) -> Identifier | None:
    if said is None or not isinstance(said.get("value"), str):
        return None
    codings = said.get("type", {}).get("coding", ())
    types = tuple(
        coding["code"]
        for coding in codings
        if "code" in coding and _https(coding.get("system", IDENTIFIER_TYPE)) == IDENTIFIER_TYPE
    )
    return Identifier(said.get("system"), said["value"], types)


_LITERAL = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")
_CONDITIONAL = re.compile(r"([A-Z][A-Za-z]+)\?identifier=([^|&]*)\|([^&]+)")


def _reference(said: Tree | None, kind: str | None) -> Reference | None:
    """Whom `said` names, if it names a `kind` (None: anything) in a way that can be followed."""
    if said is None:
        return None
    identifier = _identifier(said.get("identifier"))
    logical = () if identifier is None else (identifier,)
    literal = said.get("reference")
    if said.get("type", kind) != kind and kind is not None:
        return None
    if not isinstance(literal, str):
        return Reference(identifiers=logical) if logical else None
    if (conditional := _CONDITIONAL.fullmatch(literal)) is not None:
        if kind is not None and conditional[1] != kind:
            return None
        return Reference(identifiers=(Identifier(conditional[2] or None, conditional[3]),))  # HA-33
    if (named := _LITERAL.fullmatch(literal)) is not None:
        if kind is not None and named[1] != kind:
            return None
        return Reference(literal, named[2], logical)
    return Reference(literal, None, logical)


def _subject(tree: Tree) -> Reference | None:
    """The Patient meant, of a contained one its identifiers (HA-71)."""
    subject = _reference(tree.get("subject"), "Patient")
    if subject is None or subject.literal is None or not subject.literal.startswith("#"):
        return subject
    for inner in tree.get("contained", ()):
        if f"#{inner.get('id')}" == subject.literal and inner["resourceType"] == "Patient":
            found = tuple(_identifiers(inner))
            return Reference(identifiers=found) if found else None
    return None
