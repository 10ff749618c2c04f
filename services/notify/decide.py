"""One JSON document → one decision (`passerelle consent-decide`, CS-60 to CS-62).

The function that decides is the one `notify` uses. No database, network, clock or settings; and
no error repeats a value of the document.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, tzinfo
from typing import Annotated, Any, BinaryIO, Final, Literal, NoReturn
from zoneinfo import ZoneInfo

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from services.notify import consent, reading
from services.notify.consent import Code, Decision, Hold, Permit

LIMIT: Final = 8 * 1024 * 1024
"""Bytes of one document."""
DECIDED: Final = 0
INTERNAL: Final = 1
UNUSABLE: Final = 2
_NO_OFFSET: Final = re.compile(r"\d{4}-\d{2}-\d{2}T[0-9:.]+")
_AT: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})")
_OUTCOME: Final = {Permit: "permit", consent.Withhold: "withhold", Hold: "hold"}


class UnusableError(Exception):
    """The document cannot be decided on. `path` names a place of the contract, never a value."""

    def __init__(self, code: str, path: str, message: str) -> None:
        super().__init__(f"{code} at {path}")
        self.code = code
        self.path = path
        self.message = message


# --- the contract (CS-60) ---------------------------------------------------------------------


def _at(text: str) -> str:
    if not _AT.fullmatch(text):
        _wrong_instant(text)
    _parsed(datetime.fromisoformat, text)
    return text


def _moment(text: str) -> str:
    """A FHIR date or dateTime; seconds may be left out."""
    if _NO_OFFSET.fullmatch(text):
        _wrong_instant(text)
    _parsed(lambda t: _span(t, UTC), text)
    return text


def _span(text: str, zone: tzinfo) -> tuple[datetime, datetime]:
    """First and last instant that `text` may mean."""
    if _AT.fullmatch(text):
        exact = datetime.fromisoformat(text)
        return exact, exact
    return reading.instants(text, zone)


def _wrong_instant(text: str) -> NoReturn:
    code = "no-offset" if _NO_OFFSET.fullmatch(text) else "invalid-value"
    raise PydanticCustomError(code, "an instant has an offset, such as 2026-03-02T14:00:00-05:00")


def _day(text: str) -> str:
    _parsed(date.fromisoformat, text)
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise PydanticCustomError("invalid-value", "a time zone of the IANA database") from None
    return name


def _parsed(parse: Any, text: str) -> None:
    try:
        parse(text)
    except (ValueError, OverflowError):
        raise PydanticCustomError("invalid-value", "a date, or an instant with an offset") from None


Text = Annotated[str, Field(min_length=1)]
Day = Annotated[str, AfterValidator(_day)]
Moment = Annotated[str, AfterValidator(_moment)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Coding(_Part):
    system: str | None = None
    code: str | None = None


class _Item(_Part):
    id: Text
    resource_type: Text = Field(alias="resourceType")
    encounter_class: str | None = Field(default=None, alias="encounterClass")
    date: Moment | None = None
    end: Moment | None = None
    labels: list[_Coding] | None = None
    codes: list[_Coding] | None = None
    custodian: Text | None = None
    author: Text | None = None
    encounter: Text | None = None
    episode: Text | None = None


class _Recipient(_Part):
    organization: Text
    practitioners: list[Text] | None = None


class _Derived(_Part):
    kind: Literal["frequent-user-flag"]
    ed_threshold: Annotated[int, Field(ge=1)]
    hosp_threshold: Annotated[int, Field(ge=1)]


class _Asked(_Part):
    at: Annotated[str, AfterValidator(_at)]
    patient: Text
    patient_aliases: list[Text] | None = None
    patient_birth_date: Day | None = None
    custodian: Text | None = None
    recipient: _Recipient
    purpose: Text
    action: Text | None = None
    circle_of_care: bool | None = None
    items: list[_Item]
    derived: _Derived | None = None


class _Directory(_Part):
    part_of: dict[str, str] | None = Field(default=None, alias="partOf")
    affiliation: dict[str, list[str]] | None = None
    groups: dict[str, list[str]] | None = None
    identifiers: dict[str, str] | None = None
    bases: list[Text] | None = None


class _Policy(_Part):
    default: Literal["implied", "opt-in"]
    profile: Literal["core", "qc"] | None = None
    optin_purposes: list[Text] | None = None
    time_zone: Annotated[str, AfterValidator(_zone)] | None = None


class _Document(_Part):
    consents: list[Any]
    request: _Asked
    directory: _Directory | None = None
    policy: _Policy


_MAPS: Final = frozenset({"partOf", "affiliation", "groups", "identifiers"})
"""Their keys are values: no path goes into them."""


def read(document: bytes) -> _Document:
    """The document as the contract has it. UnusableError."""
    if len(document) > LIMIT:
        raise UnusableError("too-large", "$", "At most 8 MiB.")
    try:
        found = _Document.model_validate(_without_nulls(_json(document)))
    except ValidationError as error:
        raise _unusable(error.errors(include_url=False, include_input=False)[0]) from None
    known: set[str] = set()
    for number, item in enumerate(found.request.items):
        if item.id in known:
            path = f"request.items[{number}].id"
            raise UnusableError("duplicate-item", path, "Each item has an id of its own.")
        known.add(item.id)
    return found


def _json(document: bytes) -> Any:
    try:
        found = orjson.loads(document)
        json.loads(document, object_pairs_hook=_once)
    except UnusableError:
        raise
    except (ValueError, RecursionError):
        raise UnusableError("not-json", "$", "One JSON document, in UTF-8.") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> None:
    """A field that stands twice is read differently by different readers."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise UnusableError("duplicate-field", "$", "A field stands twice in one object.")


def _without_nulls(document: Any) -> Any:
    """Absent = null; the Consents stay as they are."""
    if not isinstance(document, dict):
        return document
    return {k: v if k == "consents" else _bare(v) for k, v in document.items() if v is not None}


def _bare(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _bare(v) for k, v in node.items() if v is not None}
    return [_bare(v) for v in node] if isinstance(node, list) else node


def _unusable(fault: ErrorDetails) -> UnusableError:
    """Texts from the kind of fault alone: what pydantic says may quote the document (ST-03)."""
    kind = fault["type"]
    if kind == "extra_forbidden":
        message = "A field here is not in the contract."
        return UnusableError("unknown-field", _path(fault["loc"][:-1]), message)
    path = _path(fault["loc"])
    if kind == "missing":
        return UnusableError("missing-field", path, "This field is needed.")
    if kind == "no-offset":
        return UnusableError("no-offset", path, "Add the UTC offset, such as -05:00.")
    return UnusableError("invalid-value", path, "Not of the type, or not a value, of the contract.")


def _path(places: Sequence[int | str]) -> str:
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
            continue
        path += f".{place}" if path else place
        if place in _MAPS:
            break
    return path or "$"


# --- the contract → the rules -----------------------------------------------------------------


def _directory(said: _Directory) -> consent.Directory:
    own = consent.Directory(bases=tuple(said.bases or ()))
    return consent.Directory(
        part_of={
            _reference(own, "Organization", part): _reference(own, "Organization", whole)
            for part, whole in (said.part_of or {}).items()
        },
        affiliation={
            _reference(own, "Practitioner", person): frozenset(
                _reference(own, "Organization", o) for o in organizations
            )
            for person, organizations in (said.affiliation or {}).items()
        },
        groups={
            _reference(own, "Practitioner", person): frozenset(
                _reference(own, "Group", g) for g in groups
            )
            for person, groups in (said.groups or {}).items()
        },
        identifiers={
            token: own.local(reference) or reference
            for token, reference in (said.identifiers or {}).items()
        },
        bases=own.bases,
    )


def _reference(directory: consent.Directory, kind: str, text: str) -> str:
    """`Type/id`; a bare id is one of `kind`."""
    named = text if "/" in text or ":" in text else f"{kind}/{text}"
    return directory.local(named) or named


def _codes(said: list[_Coding] | None) -> frozenset[Code] | None:
    return None if said is None else frozenset(Code(c.system, c.code) for c in said)


def _item(
    said: _Item, directory: consent.Directory, custodian: str | None, zone: tzinfo
) -> consent.Item:
    def named(kind: str, text: str | None) -> str | None:
        return None if text is None else _reference(directory, kind, text)

    begun = None if said.date is None else _span(said.date, zone)
    ended = None if said.end is None else _span(said.end, zone)
    if ended is None and begun is not None:
        ended = begun  # a day without an hour lasts the day (CS-14)
    return consent.Item(
        id=said.id,
        kind=said.resource_type,
        custodian=named("Organization", said.custodian or custodian),
        author=named("Practitioner", said.author),
        start=begun[0] if begun else None,
        end=ended[1] if ended else None,
        labels=_codes(said.labels),
        codes=_codes(said.codes),
        encounter=named("Encounter", said.encounter),
        episode=named("EpisodeOfCare", said.episode),
    )


def _directive(resource: Any, patient: str, zone: tzinfo) -> consent.Directive:
    """One Consent. What is none at all, or does not say whose it is, may be this patient's."""
    own = consent.Reference(patient)
    if not isinstance(resource, Mapping):
        unreadable = reading.unreadable("")
        return replace(unreadable, patient=own)
    found = reading.directive(resource, zone)
    if resource.get("resourceType") != "Consent":
        found = replace(found, active=True, privacy=True)
        nobody = found.patient.literal is None and found.patient.identifier is None
        return replace(found, patient=own) if nobody else found
    if resource.get("patient") is not None and not isinstance(resource["patient"], Mapping):
        return replace(found, patient=own, computable=False)
    return found


def _request(
    said: _Asked, directory: consent.Directory, zone: tzinfo, counts: "_Counts"
) -> consent.Request:
    def named(kind: str, text: str) -> str:
        return _reference(directory, kind, text)

    born = said.patient_birth_date
    return consent.Request(
        at=datetime.fromisoformat(said.at),
        patient=named("Patient", said.patient),
        aliases=frozenset(named("Patient", alias) for alias in said.patient_aliases or ()),
        birth_date=None if born is None else date.fromisoformat(born),
        recipient=named("Organization", said.recipient.organization),
        readers=tuple(named("Practitioner", p) for p in said.recipient.practitioners or ()),
        purpose=said.purpose,
        action=said.action or "disclose",
        circle=said.circle_of_care or False,
        items=tuple(_item(item, directory, said.custodian, zone) for item in said.items),
        directory=directory,
        met=counts.met,
    )


class _Counts:
    """The condition of a derived alert, counted from what is released alone (CS-40)."""

    def __init__(self, said: _Asked) -> None:
        visits = [item for item in said.items if item.resource_type == "Encounter"]
        self._derived = said.derived
        self._ed = frozenset(i.id for i in visits if i.encounter_class == "EMER")
        self._hosp = frozenset(i.id for i in visits if i.encounter_class == "IMP")

    def met(self, released: frozenset[str]) -> bool:
        derived = self._derived
        if derived is None:
            return bool(released)
        ed, hosp = len(self._ed & released), len(self._hosp & released)
        return ed >= derived.ed_threshold or hosp >= derived.hosp_threshold

    def alert(self, decision: Decision) -> dict[str, object] | None:
        if self._derived is None:
            return None
        if not isinstance(decision, Permit):
            return {"send": False}
        ed, hosp = len(self._ed & decision.released), len(self._hosp & decision.released)
        return {"send": True, "ed_count": ed, "hosp_count": hosp}


# --- the answer -------------------------------------------------------------------------------


def decided(document: _Document) -> dict[str, object]:
    """The answer to a document of the contract."""
    policy = consent.Policy(
        default=consent.Default(document.policy.default),
        profile=consent.Profile(document.policy.profile or "core"),
        optin_purposes=frozenset(
            ["TREAT"] if document.policy.optin_purposes is None else document.policy.optin_purposes
        ),
        zone=ZoneInfo(document.policy.time_zone or "America/Toronto"),
    )
    directory = _directory(document.directory or _Directory())
    counts = _Counts(document.request)
    asked = _request(document.request, directory, policy.zone, counts)
    on_file = [_directive(resource, asked.patient, policy.zone) for resource in document.consents]
    decision = consent.decide(on_file, asked, policy)
    findings = decision.findings
    released = [f.item for f in findings if f.outcome is consent.Outcome.RELEASE]
    alert = counts.alert(decision)
    return {
        "outcome": _OUTCOME[type(decision)],
        "decision": decision.found,
        "release": released,
        "redact": [f.item for f in findings if f.outcome is not consent.Outcome.RELEASE],
        "items": [
            {
                "id": finding.item,
                "outcome": finding.outcome,
                "reasons": sorted(finding.reasons),
                "basis": sorted(finding.basis),
            }
            for finding in findings
        ],
        "flags": sorted(decision.signs),
        **({} if alert is None else {"alert": alert}),
        "obligations": sorted(decision.obligations),
        "basis": sorted(decision.basis),
        "engine": consent.ENGINE,
        "codes": consent.CODES,
    }


def answer(document: bytes) -> tuple[int, bytes]:
    """Exit code and answer: decided, unusable, or an error of ours, each one JSON object."""
    try:
        return DECIDED, orjson.dumps(decided(read(document)))
    except UnusableError as error:
        return UNUSABLE, _error(error.code, error.path, error.message)
    except Exception:  # noqa: BLE001 - its text may quote the document
        return INTERNAL, _error("internal", "$", "An error of ours; nothing was decided.")


def _error(code: str, path: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "path": path, "message": message}})


def answers(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """For each line of `source` its answer, in order."""
    while line := source.readline(LIMIT + 2):
        rest = line
        while len(rest) == LIMIT + 2 and not rest.endswith(b"\n"):
            rest = source.readline(LIMIT + 2)
        yield answer(line.removesuffix(b"\n").removesuffix(b"\r"))


def run(source: BinaryIO, sink: BinaryIO, *, lines: bool) -> int:
    """Answer `source` on `sink`. Exit code: the worst, an error of ours before an unusable one."""
    found = answers(source) if lines else iter([answer(source.read(LIMIT + 1))])
    codes = set()
    for code, text in found:
        codes.add(code)
        sink.write(text + b"\n")
        sink.flush()
    return next((code for code in (INTERNAL, UNUSABLE) if code in codes), DECIDED)
