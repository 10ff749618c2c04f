"""Is it legal R4? Every error with its FHIRPath and its remedy, never the value (HA-66 to 68).

Driven by `TABLE`: one line an element, as the StructureDefinitions of FHIR 4.0.1 have it. Of
the types that it does not list (`Extension` values, contained resources other than those
listed) only the general shape is judged. Business rules are reading.py's.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

MAX_PROBLEMS = 100
MAX_CONTAINED = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing the sender must correct. `issue` is an IssueType code, `status` the HTTP status."""

    issue: str
    expression: str
    advice: str
    status: int = 400


@dataclass(frozen=True, slots=True)
class Element:
    """What the standard says of one property. `types` has several for a choice, one otherwise."""

    least: int
    many: bool
    kind: str
    codes: frozenset[str] | None = None
    targets: frozenset[str] | None = None


Shape = Mapping[str, Element]

_CODES = {
    "encounter-status": "planned arrived triaged in-progress onleave finished cancelled"
    " entered-in-error unknown",
    "encounter-location-status": "planned active reserved completed",
    "identifier-use": "usual official temp secondary old",
    "name-use": "usual official temp nickname anonymous old maiden",
    "administrative-gender": "male female other unknown",
    "contact-point-system": "phone fax email pager url sms other",
    "contact-point-use": "home work temp old mobile",
    "address-use": "home work temp old billing",
    "address-type": "postal physical both",
    "narrative-status": "generated extensions additional empty",
    "link-type": "replaced-by replaces refer seealso",
    "quantity-comparator": "< <= >= >",
}

TABLE_TEXT = """
Element
  id 0..1 string
  extension 0..* Extension
BackboneElement < Element
  modifierExtension 0..* Extension
Resource
  resourceType 1..1 string
  id 0..1 id
  meta 0..1 Meta
  implicitRules 0..1 uri
  language 0..1 code
DomainResource < Resource
  text 0..1 Narrative
  contained 0..* Resource*
  extension 0..* Extension
  modifierExtension 0..* Extension
Extension < Element
  url 1..1 uri
  value[x] 0..1 *
Narrative < Element
  status 1..1 code =narrative-status
  div 1..1 xhtml
Meta < Element
  versionId 0..1 id
  lastUpdated 0..1 instant
  source 0..1 uri
  profile 0..* uri
  security 0..* Coding
  tag 0..* Coding
Coding < Element
  system 0..1 uri
  version 0..1 string
  code 0..1 code
  display 0..1 string
  userSelected 0..1 boolean
CodeableConcept < Element
  coding 0..* Coding
  text 0..1 string
Identifier < Element
  use 0..1 code =identifier-use
  type 0..1 CodeableConcept
  system 0..1 uri
  value 0..1 string
  period 0..1 Period
  assigner 0..1 Reference Organization
Reference < Element
  reference 0..1 string
  type 0..1 uri
  identifier 0..1 Identifier
  display 0..1 string
Period < Element
  start 0..1 dateTime
  end 0..1 dateTime
Quantity < Element
  value 0..1 decimal
  comparator 0..1 code =quantity-comparator
  unit 0..1 string
  system 0..1 uri
  code 0..1 code
Duration < Quantity
HumanName < Element
  use 0..1 code =name-use
  text 0..1 string
  family 0..1 string
  given 0..* string
  prefix 0..* string
  suffix 0..* string
  period 0..1 Period
ContactPoint < Element
  system 0..1 code =contact-point-system
  value 0..1 string
  use 0..1 code =contact-point-use
  rank 0..1 positiveInt
  period 0..1 Period
Address < Element
  use 0..1 code =address-use
  type 0..1 code =address-type
  text 0..1 string
  line 0..* string
  city 0..1 string
  district 0..1 string
  state 0..1 string
  postalCode 0..1 string
  country 0..1 string
  period 0..1 Period
Attachment < Element
  contentType 0..1 code
  language 0..1 code
  data 0..1 base64Binary
  url 0..1 uri
  size 0..1 unsignedInt
  hash 0..1 base64Binary
  title 0..1 string
  creation 0..1 dateTime
Encounter < DomainResource
  identifier 0..* Identifier
  status 1..1 code =encounter-status
  statusHistory 0..* Encounter.statusHistory
  class 1..1 Coding
  classHistory 0..* Encounter.classHistory
  type 0..* CodeableConcept
  serviceType 0..1 CodeableConcept
  priority 0..1 CodeableConcept
  subject 0..1 Reference Patient|Group
  episodeOfCare 0..* Reference EpisodeOfCare
  basedOn 0..* Reference ServiceRequest
  participant 0..* Encounter.participant
  appointment 0..* Reference Appointment
  period 0..1 Period
  length 0..1 Duration
  reasonCode 0..* CodeableConcept
  reasonReference 0..* Reference Condition|Procedure|Observation|ImmunizationRecommendation
  diagnosis 0..* Encounter.diagnosis
  account 0..* Reference Account
  hospitalization 0..1 Encounter.hospitalization
  location 0..* Encounter.location
  serviceProvider 0..1 Reference Organization
  partOf 0..1 Reference Encounter
Encounter.statusHistory < BackboneElement
  status 1..1 code =encounter-status
  period 1..1 Period
Encounter.classHistory < BackboneElement
  class 1..1 Coding
  period 1..1 Period
Encounter.participant < BackboneElement
  type 0..* CodeableConcept
  period 0..1 Period
  individual 0..1 Reference Practitioner|PractitionerRole|RelatedPerson
Encounter.diagnosis < BackboneElement
  condition 1..1 Reference Condition|Procedure
  use 0..1 CodeableConcept
  rank 0..1 positiveInt
Encounter.hospitalization < BackboneElement
  preAdmissionIdentifier 0..1 Identifier
  origin 0..1 Reference Location|Organization
  admitSource 0..1 CodeableConcept
  reAdmission 0..1 CodeableConcept
  dietPreference 0..* CodeableConcept
  specialCourtesy 0..* CodeableConcept
  specialArrangement 0..* CodeableConcept
  destination 0..1 Reference Location|Organization
  dischargeDisposition 0..1 CodeableConcept
Encounter.location < BackboneElement
  location 1..1 Reference Location
  status 0..1 code =encounter-location-status
  physicalType 0..1 CodeableConcept
  period 0..1 Period
Age < Quantity
Range < Element
  low 0..1 Quantity
  high 0..1 Quantity
Annotation < Element
  authorReference 0..1 Reference
  authorString 0..1 string
  time 0..1 dateTime
  text 1..1 string
Condition < DomainResource
  identifier 0..* Identifier
  clinicalStatus 0..1 CodeableConcept
  verificationStatus 0..1 CodeableConcept
  category 0..* CodeableConcept
  severity 0..1 CodeableConcept
  code 0..1 CodeableConcept
  bodySite 0..* CodeableConcept
  subject 1..1 Reference Patient|Group
  encounter 0..1 Reference Encounter
  onset[x] 0..1 dateTime|Age|Period|Range|string
  abatement[x] 0..1 dateTime|Age|Period|Range|string
  recordedDate 0..1 dateTime
  recorder 0..1 Reference Practitioner|PractitionerRole|Patient|RelatedPerson
  asserter 0..1 Reference Practitioner|PractitionerRole|Patient|RelatedPerson
  stage 0..* Condition.stage
  evidence 0..* Condition.evidence
  note 0..* Annotation
Condition.stage < BackboneElement
  summary 0..1 CodeableConcept
  assessment 0..* Reference ClinicalImpression|DiagnosticReport|Observation
  type 0..1 CodeableConcept
Condition.evidence < BackboneElement
  code 0..* CodeableConcept
  detail 0..* Reference
Patient < DomainResource
  identifier 0..* Identifier
  active 0..1 boolean
  name 0..* HumanName
  telecom 0..* ContactPoint
  gender 0..1 code =administrative-gender
  birthDate 0..1 date
  deceased[x] 0..1 boolean|dateTime
  address 0..* Address
  maritalStatus 0..1 CodeableConcept
  multipleBirth[x] 0..1 boolean|integer
  photo 0..* Attachment
  contact 0..* Patient.contact
  communication 0..* Patient.communication
  generalPractitioner 0..* Reference Organization|Practitioner|PractitionerRole
  managingOrganization 0..1 Reference Organization
  link 0..* Patient.link
Patient.contact < BackboneElement
  relationship 0..* CodeableConcept
  name 0..1 HumanName
  telecom 0..* ContactPoint
  address 0..1 Address
  gender 0..1 code =administrative-gender
  organization 0..1 Reference Organization
  period 0..1 Period
Patient.communication < BackboneElement
  language 1..1 CodeableConcept
  preferred 0..1 boolean
Patient.link < BackboneElement
  other 1..1 Reference Patient|RelatedPerson
  type 1..1 code =link-type
"""
"""`name least..most type [=required value set | reference targets]`, under `Type [< Base]`.

`*` as a type is any, judged by shape alone; `Resource*` is a resource of any type.
"""


def table(text: str) -> Mapping[str, Shape]:
    """The shapes of every type in `text` (form of `TABLE_TEXT`), choices spelt out."""
    found: dict[str, dict[str, Element]] = {}
    here: dict[str, Element] = {}
    for line in filter(None, text.splitlines()):
        words = line.split()
        if not line.startswith(" "):
            here = found[words[0]] = dict(found[words[2]]) if len(words) > 1 else {}
            continue
        name, bounds, kinds, *rest = words
        for kind in kinds.split("|"):
            choice = name.endswith("[x]") and kind != "*"
            here[name.replace("[x]", kind[:1].upper() + kind[1:]) if choice else name] = Element(
                least=int(bounds[0]),
                many=bounds.endswith("*"),
                kind=kind,
                codes=frozenset(_CODES[rest[0][1:]].split())
                if rest and rest[0][0] == "="
                else None,
                targets=frozenset(rest[0].split("|")) if rest and rest[0][0] != "=" else None,
            )
    return found


TABLE: Mapping[str, Shape] = table(TABLE_TEXT)

_DAY = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE = rf"{_DAY}(?:-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12][0-9]|3[01]))?)?"
_FULL = rf"{_DAY}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"
_ZONE = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_ZONELESS = re.compile(rf"{_FULL}T[0-9:.]+")


@dataclass(frozen=True, slots=True)
class Lexical:
    """The form of a primitive: its JSON type, its pattern, and how to say it."""

    json: type
    form: re.Pattern[str] | None
    advice: str


def _lexical(pattern: str | None, advice: str, json: type = str) -> Lexical:
    return Lexical(json, re.compile(pattern) if pattern else None, advice)


URI = re.compile(r"\S+")

PRIMITIVES: Mapping[str, Lexical] = {
    "boolean": _lexical(None, "Send true or false, without quotes.", bool),
    "integer": _lexical(None, "Send a whole number, without quotes or decimal point.", int),
    "unsignedInt": _lexical(None, "Send a whole number from 0 to 2147483647.", int),
    "positiveInt": _lexical(None, "Send a whole number from 1 to 2147483647.", int),
    "decimal": _lexical(None, "Send a number, without quotes.", float),
    "string": _lexical(
        r"[^\x00-\x08\x0b\x0c\x0e-\x1f]+", "Send text without control characters, not empty."
    ),
    "xhtml": _lexical(r"\s*<div[\s\S]*</div>\s*", "Send one XHTML div."),
    "uri": _lexical(r"\S+", "Send a URI, without spaces."),
    "code": _lexical(r"[^\s]+(?:[ ][^\s]+)*", "Send a code without leading or trailing space."),
    "id": _lexical(r"[A-Za-z0-9\-.]{1,64}", "Send 1 to 64 of A-Z, a-z, 0-9, hyphen and point."),
    "base64Binary": _lexical(r"(?:\s*[0-9a-zA-Z+/=]){4,}\s*", "Send base64."),
    "date": _lexical(_DATE, "Send YYYY, YYYY-MM or YYYY-MM-DD, a day that exists."),
    "dateTime": _lexical(
        rf"{_DATE}|{_FULL}T{_TIME}{_ZONE}",
        "Send YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss with an offset such as -05:00,"
        " a day that exists.",
    ),
    "instant": _lexical(
        rf"{_FULL}T{_TIME}{_ZONE}", "Send YYYY-MM-DDThh:mm:ss with an offset such as -05:00."
    ),
}

_RANGES = {
    "integer": (-(2**31), 2**31 - 1),
    "unsignedInt": (0, 2**31 - 1),
    "positiveInt": (1, 2**31 - 1),
}

NO_ZONE = "No offset: add an offset such as -05:00; without it one hour a year happens twice."

_SUSPECT = re.compile(r'\bnull\b|\{\s*\}|\[\s*\]|:\s*""|\[\s*""|,\s*""|\\u00[01]')
"""What a text must contain for `_general` to find anything in it."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_REFERENCE = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/.+)?")


def check(
    tree: Mapping[str, Any],
    text: str,
    expected: str,
    *,
    at: str | None = None,
    shapes: Mapping[str, Shape] = TABLE,
) -> list[Problem]:
    """All that makes `tree`, read from `text`, illegal as an `expected`; at most 100 problems.

    `at` is the FHIRPath of the resource, by default its type. A type that `shapes` does not
    have is judged by its general shape only.
    """
    here = expected if at is None else at
    kind = tree.get("resourceType")
    if kind is None:
        return [Problem("structure", f"{here}.resourceType", "Name the resourceType.")]
    if kind != expected:
        return [
            Problem("structure", f"{here}.resourceType", f"A resource {expected} is expected here.")
        ]
    judge = _Judge(shapes)
    if _SUSPECT.search(text):
        _general(tree, here, judge.found)
    if expected in shapes:
        judge.complex(tree, expected, here)
    if "contained" in tree or '"#' in text:
        _contained(tree, here, judge.found)
    return list(dict.fromkeys(judge.found))[:MAX_PROBLEMS]


def _general(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    """Null, empty object, array or text, and control characters, at any depth (HA-65, HA-66)."""
    if not node:
        found.append(Problem("structure", here, "An object is never empty; leave it out."))
    for name, value in node.items():
        path = f"{here}.{name}"
        if not isinstance(value, list):
            _general_value(value, path, found)
            continue
        if not value:
            found.append(Problem("structure", path, "An array is never empty; leave it out."))
        twin = node.get(name[1:] if name.startswith("_") else f"_{name}")
        for index, one in enumerate(value):
            if one is None and isinstance(twin, list) and index < len(twin) and twin[index]:
                continue  # a placeholder beside a primitive extension
            _general_value(one, f"{path}[{index}]", found)


def _general_value(value: object, path: str, found: list[Problem]) -> None:
    if value is None:
        found.append(Problem("structure", path, "null is not a value; leave it out."))
    elif value == "":
        found.append(Problem("value", path, "Text is never empty; leave it out."))
    elif isinstance(value, str):
        if _CONTROL.search(value):
            found.append(Problem("value", path, "Send text without control characters."))
    elif isinstance(value, dict):
        _general(value, path, found)
    elif isinstance(value, list):
        found.append(Problem("structure", path, "An array stands directly in no array."))


class _Judge:
    """Walks a resource along its shapes, and notes what it finds."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self.found: list[Problem] = []

    def note(self, issue: str, path: str, advice: str, status: int = 400) -> None:
        self.found.append(Problem(issue, path, advice, status))

    def complex(self, node: object, kind: str, here: str) -> None:
        """`node` as a value of the complex type `kind`."""
        if not isinstance(node, dict):
            self.note("structure", here, f"Send an object ({kind}).")
            return
        shape = self.shapes[kind]
        for name, value in node.items():
            element = shape.get(name)
            if element is not None:
                if value is not None:  # null itself is _general's
                    self.element(value, element, f"{here}.{name}", f"_{name}" in node)
            elif name.startswith("_") and (twin := shape.get(name[1:])) is not None:
                self.extensions_of(value, twin, f"{here}.{name}")
            elif not (kind == "Extension" and name.lstrip("_").startswith("value")):
                self.note("structure", f"{here}.{name}", f"FHIR 4.0.1 has no such one in {kind}.")
        for name in _NEEDED.get(kind, ()) if self.shapes is TABLE else _needed(shape):
            if name not in node and f"_{name}" not in node:
                self.note("required", f"{here}.{name}", f"{kind} needs it.")
        invariant = _INVARIANTS.get(kind)
        if invariant is not None:
            invariant(node, here, self.found)

    def element(self, value: object, element: Element, path: str, has_twin: bool) -> None:
        if not element.many:
            self.one(value, element, path)
            return
        if not isinstance(value, list):
            self.note("structure", path, "Send an array, also for one value.")
            return
        for index, one in enumerate(value):
            if one is not None:
                self.one(one, element, f"{path}[{index}]")
            elif element.kind not in PRIMITIVES or not has_twin:
                self.note("structure", f"{path}[{index}]", "null is not a value.")

    def one(self, value: object, element: Element, path: str) -> None:
        kind = element.kind
        if kind in PRIMITIVES:
            self.primitive(value, element, path)
        elif kind == "Resource*":
            inner = value.get("resourceType") if isinstance(value, dict) else None
            if not isinstance(inner, str):
                self.note("structure", path, "Send a resource with its resourceType.")
            elif inner in self.shapes:
                self.complex(value, inner, path)
        elif kind != "*":
            self.complex(value, kind, path)
            if element.targets is not None and isinstance(value, dict):
                _target(value.get("reference"), element.targets, path, self.found)

    def primitive(self, value: object, element: Element, path: str) -> None:
        kind = element.kind
        lexical = PRIMITIVES[kind]
        json = type(value)
        if json is not lexical.json and not (kind == "decimal" and json is int):
            self.note("structure", path, lexical.advice)
        elif isinstance(value, str):
            if element.codes is not None:
                if value not in element.codes:
                    known = ", ".join(sorted(element.codes))
                    self.note("code-invalid", path, f"Send one of: {known}.")
            elif lexical.form is not None and not lexical.form.fullmatch(value):
                zoneless = kind in ("dateTime", "instant") and _ZONELESS.fullmatch(value)
                self.note("value", path, NO_ZONE if zoneless else lexical.advice)
            elif kind in ("date", "dateTime", "instant") and not _exists(value):
                self.note("value", path, lexical.advice)
        elif kind in _RANGES and isinstance(value, int):
            low, high = _RANGES[kind]
            if not low <= value <= high:
                self.note("value", path, lexical.advice)

    def extensions_of(self, value: object, twin: Element, path: str) -> None:
        """`_name`: id and extensions of the primitive `name`."""
        if twin.kind not in PRIMITIVES:
            self.note("structure", path, "Only a primitive has such a twin.")
        elif not twin.many:
            self.complex(value, "Element", path)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                if one is not None:
                    self.complex(one, "Element", f"{path}[{index}]")
        else:
            self.note("structure", path, "Send an array, as of the primitive itself.")


def _needed(shape: Shape) -> tuple[str, ...]:
    return tuple(name for name, element in shape.items() if element.least)


_NEEDED: Mapping[str, tuple[str, ...]] = {kind: _needed(shape) for kind, shape in TABLE.items()}


def _exists(value: str) -> bool:
    if len(value) < 10 or value[8:10] < "29":
        return True
    try:
        date.fromisoformat(value[:10])
    except ValueError:
        return False
    return True


def _target(reference: object, targets: frozenset[str], path: str, found: list[Problem]) -> None:
    if not isinstance(reference, str) or (named := _REFERENCE.fullmatch(reference)) is None:
        return
    if "?" not in reference and named[1] not in targets:
        found.append(
            Problem("value", f"{path}.reference", f"Refer to {' or '.join(sorted(targets))}.")
        )


def _period(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    start, end = node.get("start"), node.get("end")
    if isinstance(start, str) and isinstance(end, str) and _certainly_after(start, end):
        found.append(Problem("invariant", here, "per-1: start is not after end.", 422))


def _certainly_after(start: str, end: str) -> bool:
    """Whether `start` is later than `end` whatever their precision leaves open."""
    one, other = _numbers(start), _numbers(end)
    return one is not None and other is not None and one > other


_STAMP = re.compile(rf"({_FULL})T([0-9]{{2}}):([0-9]{{2}}):([0-9]{{2}})(?:\.([0-9]+))?({_ZONE})")


def _numbers(value: str) -> tuple[object, ...] | None:
    """Something to compare two values of equal precision by; None if there is no such thing."""
    if (stamp := _STAMP.fullmatch(value)) is not None:
        if not _exists(value):
            return None
        zone = stamp[6]
        offset = 0 if zone == "Z" else int(zone[1:3]) * 60 + int(zone[4:6])
        minutes = date.fromisoformat(stamp[1]).toordinal() * 1440
        minutes += int(stamp[2]) * 60 + int(stamp[3]) + (offset if zone[0] == "-" else -offset)
        return ("instant", minutes * 60 + int(stamp[4]), (stamp[5] or "").rstrip("0"))
    if re.fullmatch(_DATE, value):
        return (f"date{len(value)}", value)
    return None


def _extension(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    values = {name.lstrip("_") for name in node if name.lstrip("_").startswith("value")}
    if len(values) > 1:
        found.append(Problem("structure", here, "Send one value[x]."))
    elif bool(values) == ("extension" in node):
        found.append(
            Problem("invariant", here, "ext-1: either a value or extensions, not both.", 422)
        )


def _element_children(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    """ele-1: more than an id. An empty object is `_general`'s."""
    if node and set(node) == {"id"}:
        found.append(Problem("invariant", here, "ele-1: an element has a value or children.", 422))


def _patient(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    for choice in ("deceased", "multipleBirth"):
        given = {name.lstrip("_") for name in node if name.lstrip("_").startswith(choice)}
        if len(given) > 1:
            found.append(Problem("structure", f"{here}.{choice}", "Send one of the choices."))


def _contact(node: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    if not {"name", "telecom", "address", "organization"} & set(node):
        found.append(
            Problem("invariant", here, "pat-1: a contact has a name, telecom, address or"
                    " organization.", 422)
        )  # fmt: skip


_Invariant = Callable[[Mapping[str, Any], str, list[Problem]], None]
_INVARIANTS: Mapping[str, _Invariant] = {
    "Period": _period,
    "Extension": _extension,
    "Element": _element_children,
    "Patient": _patient,
    "Patient.contact": _contact,
}


def _contained(tree: Mapping[str, Any], here: str, found: list[Problem]) -> None:
    """Of contained resources: how many, none within (dom-2), and every `#id` leads to one."""
    contained = tree.get("contained")
    inner = (
        [one for one in contained if isinstance(one, dict)] if isinstance(contained, list) else []
    )
    if len(inner) > MAX_CONTAINED:
        advice = f"At most {MAX_CONTAINED} contained resources; there are {len(inner)}."
        found.append(Problem("too-costly", f"{here}.contained", advice, 413))
    for index, one in enumerate(inner):
        path = f"{here}.contained[{index}]"
        if "contained" in one:
            advice = "dom-2: a contained resource contains none."
            found.append(Problem("invariant", path, advice, 422))
        meta = one.get("meta")
        if isinstance(meta, dict) and {"versionId", "lastUpdated"} & set(meta):
            advice = "dom-4: no versionId or lastUpdated in a contained resource."
            found.append(Problem("invariant", f"{path}.meta", advice, 422))
    ids = {f"#{one['id']}" for one in inner if isinstance(one.get("id"), str)}
    found += [
        Problem("invariant", path, "ref-1: no contained resource has this id.", 422)
        for path, reference in references(tree, here)
        if reference.startswith("#") and reference != "#" and reference not in ids
    ]


def references(node: object, here: str) -> Iterator[tuple[str, str]]:
    """Every `reference` in `node`, with its path."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "reference" and isinstance(value, str):
                yield f"{here}.reference", value
            elif isinstance(value, (dict, list)):
                yield from references(value, f"{here}.{name}")
    elif isinstance(node, list):
        for index, one in enumerate(node):
            yield from references(one, f"{here}[{index}]")
