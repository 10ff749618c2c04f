"""FHIR search over resources as they will be shown: parameters, order, pages (CA-10 to CA-16).

Matching is on the composed resource, so a search can find no more than its reader may see.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Json = dict[str, Any]
USUAL, MOST = 50, 200
"""`_count` (CA-13)."""
CURSOR_LASTS: Final = timedelta(hours=24)
CURSOR: Final = "_cursor"
IGNORED: Final = frozenset({"_format", "_pretty", "_total", "_totalMethod"})
RESULT: Final = frozenset({"_count", "_sort", "_include", "_revinclude", CURSOR})
PREFIXES: Final = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
_DAY: Final = timedelta(days=1)


class BadSearchError(ValueError):
    """A parameter that cannot be used; the text names it and the allowed form, no value."""

    def __init__(self, parameter: str, text: str) -> None:
        super().__init__(text)
        self.parameter = parameter
        self.text = text


@dataclass(frozen=True, slots=True)
class Parameter:
    """A search parameter: its R4 type and what it looks at."""

    kind: str
    """token, reference, date or uri."""
    values: Callable[[Json], Sequence[Any]]
    system: str | None = None
    """Of a code that has no system of its own in the resource."""


def _codings(concept: Any) -> list[Json]:
    return list(concept.get("coding", [])) if isinstance(concept, Mapping) else []


def _of(name: str) -> Callable[[Json], Sequence[Any]]:
    return lambda resource: [resource[name]] if name in resource else []


def _concept(name: str) -> Callable[[Json], Sequence[Any]]:
    return lambda resource: _codings(resource.get(name))


def _reference(*path: str) -> Callable[[Json], Sequence[Any]]:
    def values(resource: Json) -> Sequence[Any]:
        nodes: list[Any] = [resource]
        for name in path:
            found = [n[name] for n in nodes if isinstance(n, Mapping) and name in n]
            nodes = [one for f in found for one in (f if isinstance(f, list) else [f])]
        return [n["reference"] for n in nodes if isinstance(n, Mapping) and "reference" in n]

    return values


def _identifiers(name: str) -> Callable[[Json], Sequence[Any]]:
    def values(resource: Json) -> Sequence[Any]:
        said = resource.get(name, [])
        several = said if isinstance(said, list) else [said]
        return [{"system": i.get("system"), "code": i.get("value")} for i in several]

    return values


def _updated(resource: Json) -> Sequence[Any]:
    meta = resource.get("meta", {})
    return [meta["lastUpdated"]] if "lastUpdated" in meta else []


def _id(resource: Json) -> Sequence[Any]:
    return [{"code": resource["id"]}]


def _start(resource: Json) -> Sequence[Any]:
    period = resource.get("period")
    return [period] if period else []


_COMMON: Final[Mapping[str, Parameter]] = {
    "_id": Parameter("token", _id),
    "_lastUpdated": Parameter("date", _updated),
}
PARAMETERS: Final[Mapping[str, Mapping[str, Parameter]]] = {
    "Task": {
        **_COMMON,
        "status": Parameter("token", _of("status"), "http://hl7.org/fhir/task-status"),
        "business-status": Parameter("token", _concept("businessStatus")),
        "code": Parameter("token", _concept("code")),
        "priority": Parameter("token", _of("priority"), "http://hl7.org/fhir/request-priority"),
        "owner": Parameter("reference", _reference("owner")),
        "patient": Parameter("reference", _reference("for")),
        "focus": Parameter("reference", _reference("focus")),
        "authored-on": Parameter("date", _of("authoredOn")),
        "modified": Parameter("date", _of("lastModified")),
        "group-identifier": Parameter("token", _identifiers("groupIdentifier")),
    },
    "Flag": {
        **_COMMON,
        "patient": Parameter("reference", _reference("subject")),
        "date": Parameter("date", _start),
    },
    "Communication": {
        **_COMMON,
        "patient": Parameter("reference", _reference("subject")),
        "sent": Parameter("date", _of("sent")),
        "status": Parameter("token", _of("status"), "http://hl7.org/fhir/event-status"),
    },
    "Provenance": {
        **_COMMON,
        "target": Parameter("reference", _reference("target")),
        "patient": Parameter("reference", _reference("target")),
        "recorded": Parameter("date", _of("recorded")),
    },
    "Subscription": {
        **_COMMON,
        "url": Parameter(
            "uri", lambda r: [r["channel"]["endpoint"]] if "endpoint" in r["channel"] else []
        ),
        "status": Parameter("token", _of("status"), "http://hl7.org/fhir/subscription-status"),
    },
    "Patient": {**_COMMON, "identifier": Parameter("token", _identifiers("identifier"))},
    "Consent": {
        **_COMMON,
        "patient": Parameter("reference", _reference("patient")),
        "status": Parameter("token", _of("status"), "http://hl7.org/fhir/consent-state-codes"),
    },
    "Organization": {**_COMMON, "identifier": Parameter("token", _identifiers("identifier"))},
    "PractitionerRole": {
        **_COMMON,
        "identifier": Parameter("token", _identifiers("identifier")),
        "organization": Parameter("reference", _reference("organization")),
        "active": Parameter("token", lambda r: [str(r["active"]).lower()] if "active" in r else []),
    },
}
DEFINITIONS: Final[Mapping[str, str]] = {
    "_id": "http://hl7.org/fhir/SearchParameter/Resource-id",
    "_lastUpdated": "http://hl7.org/fhir/SearchParameter/Resource-lastUpdated",
}
INCLUDES: Final[Mapping[str, Mapping[str, str]]] = {
    "Task": {"patient": "Patient", "focus": "Flag", "owner": "PractitionerRole"}
}
REVINCLUDES: Final[Mapping[str, Sequence[str]]] = {"Task": ("Provenance:target",)}
SORTS: Final[Mapping[str, Sequence[str]]] = {
    "Task": ("_lastUpdated", "authored-on", "priority"),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A search that can be answered."""

    type: str
    filters: tuple[tuple[str, str], ...] = field(repr=False)
    """AND-ed; each value a list of alternatives."""
    identifiers: tuple[str, ...] = field(default=(), repr=False)
    """`system|value` of the patient, from a body."""
    count: int = USUAL
    sort: tuple[tuple[str, bool], ...] = (("_lastUpdated", False),)
    """Parameter, and whether descending."""
    includes: tuple[str, ...] = ()
    revincludes: tuple[str, ...] = ()
    cursor: str | None = None

    def parameters(self) -> list[tuple[str, str]]:
        """What `link.self` says: what was used, and no identifier (CA-11)."""
        said = list(self.filters)
        said += [("_include", value) for value in self.includes]
        said += [("_revinclude", value) for value in self.revincludes]
        said.append(("_sort", ",".join(f"{'-' if down else ''}{name}" for name, down in self.sort)))
        said.append(("_count", str(self.count)))
        return said


def read(
    type_: str, pairs: Sequence[tuple[str, str]], *, strict: bool, in_url: frozenset[str]
) -> Query:
    """The search that `pairs` ask for. `in_url`: names that stood in the address.

    BadSearchError for a bad value always, for an unknown parameter only if `strict` (CA-12).
    """
    known = PARAMETERS[type_]
    filters: list[tuple[str, str]] = []
    identifiers: list[str] = []
    result: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in IGNORED:
            continue
        if name in RESULT:
            result.setdefault(name, []).append(value)
        elif _asks_identifier(type_, name):
            if name in in_url:
                raise BadSearchError(
                    name, "A patient's identifier goes into the body of POST _search, not here."
                )
            identifiers.append(value)
        elif (base := _base_name(name, known)) is not None:
            _check(base, value, known[base])
            filters.append((base, value))
        elif strict:
            raise BadSearchError(name[:40], "This parameter is not known here.")
    return Query(
        type=type_,
        filters=tuple(filters),
        identifiers=tuple(identifiers),
        count=_count(result.get("_count", [])),
        sort=_sort(type_, result.get("_sort", [])),
        includes=_includes(type_, result.get("_include", []), strict=strict),
        revincludes=_revincludes(type_, result.get("_revinclude", []), strict=strict),
        cursor=next(iter(result.get(CURSOR, ())), None),
    )


_PATIENT = re.compile(r"(?:.*/)?(?:Patient/)?[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _asks_identifier(type_: str, name: str) -> bool:
    if name in {"patient:identifier", "patient.identifier", "subject:identifier"}:
        return True
    return name == "identifier" and type_ in {"Task", "Flag", "Patient", "Consent"}


def _base_name(name: str, known: Mapping[str, Parameter]) -> str | None:
    base, colon, modifier = name.partition(":")
    if base not in known:
        return None
    if colon and not (known[base].kind == "reference" and modifier[:1].isupper()):
        raise BadSearchError(base, "This modifier is not offered.")
    return base


def _check(name: str, value: str, parameter: Parameter) -> None:
    if not value:
        raise BadSearchError(name, "A value is needed.")
    if parameter.kind == "date":
        for one in value.split(","):
            _range(name, _prefixed(one)[1])
    if name == "patient" and not all(_PATIENT.fullmatch(one) for one in value.split(",")):
        # Anything else may be a card number, and would stand in `link.self`.
        raise BadSearchError(name, "A Patient of this server is needed; its id is a UUID.")


def _count(said: Sequence[str]) -> int:
    if not said:
        return USUAL
    if not re.fullmatch(r"\d{1,9}", said[-1]):
        raise BadSearchError("_count", "A whole number is needed.")
    return min(int(said[-1]), MOST)


def _sort(type_: str, said: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    found = []
    for one in ",".join(said).split(",") if said else []:
        name = one.removeprefix("-")
        if name not in SORTS.get(type_, ("_lastUpdated",)):
            names = ", ".join(SORTS.get(type_, ("_lastUpdated",)))
            raise BadSearchError("_sort", f"Can be sorted by {names}, each also with `-`.")
        found.append((name, one.startswith("-")))
    return tuple(found) or (("_lastUpdated", False),)


def _includes(type_: str, said: Sequence[str], *, strict: bool) -> tuple[str, ...]:
    known = INCLUDES.get(type_, {})
    found = []
    for one in said:
        parts = one.split(":")
        if len(parts) >= 2 and parts[0] == type_ and parts[1] in known:
            found.append(":".join(parts[:2]))
        elif strict:
            raise BadSearchError("_include", "This cannot be included.")
    return tuple(found)


def _revincludes(type_: str, said: Sequence[str], *, strict: bool) -> tuple[str, ...]:
    found = [one for one in said if one in REVINCLUDES.get(type_, ())]
    if strict and len(found) != len(said):
        raise BadSearchError("_revinclude", "This cannot be included.")
    return tuple(found)


# --- matching ---------------------------------------------------------------------------------


def matches(query: Query, resource: Json, base: str) -> bool:
    """Whether a resource satisfies every filter."""
    return all(
        any(
            _matches(PARAMETERS[query.type][name], name, one, resource, base)
            for one in value.split(",")
        )
        for name, value in query.filters
    )


def _matches(parameter: Parameter, name: str, value: str, resource: Json, base: str) -> bool:
    values = parameter.values(resource)
    match parameter.kind:
        case "token":
            return any(_is_token(value, v, parameter.system) for v in values)
        case "reference":
            return any(_is_reference(value, v, base) for v in values)
        case "uri":
            return value in values
        case _:
            prefix, wanted = _prefixed(value)
            low, high = _range(name, wanted)
            spans = [_span(v) for v in values]
            if prefix == "ne":
                return all(not _compare("eq", span, (low, high)) for span in spans)
            return any(_compare(prefix, span, (low, high)) for span in spans)


def _is_token(wanted: str, value: Any, system: str | None) -> bool:
    found = value if isinstance(value, Mapping) else {"system": system, "code": value}
    if "|" not in wanted:
        return bool(found.get("code") == wanted)
    its_system, _, code = wanted.partition("|")
    if its_system and found.get("system") != its_system:
        return False
    if not its_system and found.get("system") not in {None, system}:
        return False
    return not code or found.get("code") == code


def _is_reference(wanted: str, value: str, base: str) -> bool:
    local = wanted.removeprefix(f"{base}/")
    plain = value.partition("/_history/")[0]
    if local in {value, plain}:
        return True
    return "/" not in local and plain.rpartition("/")[2] == local


def _prefixed(value: str) -> tuple[str, str]:
    if value[:2] in PREFIXES:
        return value[:2], value[2:]
    return "eq", value


_DATE: Final = re.compile(
    r"(?P<y>\d{4})(?:-(?P<m>\d{2})(?:-(?P<d>\d{2})"
    r"(?:T(?P<h>\d{2}):(?P<n>\d{2})(?::(?P<s>\d{2})(?:\.(?P<f>\d{1,9}))?)?(?P<z>Z|[+-]\d{2}:\d{2})?)?)?)?"
)


def _range(name: str, text: str) -> tuple[datetime, datetime]:
    """[first, after) of what a date may mean; UTC where it has no zone."""
    found = _DATE.fullmatch(text.replace(" ", "+"))
    try:
        if found is None:
            raise ValueError  # noqa: TRY301 - one place says what is wrong
        return _bounds(found.groupdict())
    except (ValueError, OverflowError):
        raise BadSearchError(
            name, "A date is needed, such as 2026-03-02 or 2026-03-02T19:05:10.998Z."
        ) from None


def _bounds(said: Mapping[str, str | None]) -> tuple[datetime, datetime]:
    year, month, day = int(said["y"] or 0), said["m"], said["d"]
    if month is None:
        return datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    first = datetime(year, int(month), int(day or 1), tzinfo=UTC)
    if day is None:
        following = (first + 32 * _DAY).replace(day=1)
        return first, following
    if said["h"] is None:
        return first, first + _DAY
    zone = (said["z"] or "Z").replace("Z", "+00:00")
    fraction = (said["f"] or "")[:6].ljust(6, "0")
    text = (
        f"{first.date().isoformat()}T{said['h']}:{said['n']}:{said['s'] or '00'}.{fraction}{zone}"
    )
    low = datetime.fromisoformat(text).astimezone(UTC)
    if said["s"] is None:
        return low, low + timedelta(minutes=1)
    if said["f"] is None:
        return low, low + timedelta(seconds=1)
    return low, low + timedelta(microseconds=10 ** max(6 - len(said["f"]), 0))


def _span(value: Any) -> tuple[datetime, datetime]:
    """[first, after) of a date, or of a Period that may be open."""
    if isinstance(value, Mapping):
        start = _range("date", value["start"])[0] if "start" in value else datetime.min
        end = _range("date", value["end"])[1] if "end" in value else datetime.max
        return start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
    return _range("date", value)


def _compare(
    prefix: str, its: tuple[datetime, datetime], wanted: tuple[datetime, datetime]
) -> bool:
    """R4 search, prefixes: on ranges."""
    match prefix:
        case "eq":
            return wanted[0] <= its[0] and its[1] <= wanted[1]
        case "gt":
            return its[1] > wanted[1]
        case "lt":
            return its[0] < wanted[0]
        case "ge":
            return its[1] > wanted[0]
        case "le":
            return its[0] < wanted[1]
        case "sa":
            return its[0] >= wanted[1]
        case "eb":
            return its[1] <= wanted[0]
        case _:
            return its[0] < wanted[1] + _DAY and its[1] > wanted[0] - _DAY


# --- order and pages --------------------------------------------------------------------------


def sort_key(query: Query, resource: Json) -> tuple[Any, ...]:
    """Ends with the id, so that no two are equal."""
    keys: list[Any] = []
    for name, down in query.sort:
        value: Any
        if name == "priority":
            value = ["stat", "asap", "urgent", "routine"].index(resource.get("priority", "routine"))
        else:
            said = PARAMETERS[query.type][name].values(resource)
            value = _span(said[0])[0].timestamp() if said else 0.0
        keys.append(-value if down else value)
    return (*keys, resource["id"])


@dataclass(frozen=True, slots=True)
class Page:
    resources: tuple[Json, ...] = field(repr=False)
    total: int
    next: tuple[Any, ...] | None
    """Where the next page begins after; None: there is none."""


def page(query: Query, found: Sequence[Json], after: Sequence[Any] | None) -> Page:
    """Those of `found` that come after `after`, in order (CA-14)."""
    ordered = sorted(found, key=lambda r: sort_key(query, r))
    rest = ordered if after is None else [r for r in ordered if sort_key(query, r) > tuple(after)]
    shown = rest[: query.count]
    more = len(rest) > len(shown) and bool(shown)
    return Page(tuple(shown), len(ordered), sort_key(query, shown[-1]) if more else None)


def _about(query: Query, clinic: str) -> str:
    said = json.dumps([clinic, query.type, query.parameters()])
    return hashlib.sha256(said.encode()).hexdigest()


def seal_cursor(query: Query, clinic: str, after: Sequence[Any], key: bytes, now: datetime) -> str:
    """A place in this search, good for this clinic for a day."""
    body = json.dumps([_about(query, clinic), list(after), now.timestamp()]).encode()
    mac = hmac.new(key, body, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac + body).decode().rstrip("=")


def open_cursor(query: Query, clinic: str, key: bytes, now: datetime) -> Sequence[Any] | None:
    """The place `query.cursor` says. BadSearchError: tampered, foreign or old (CA-14)."""
    if query.cursor is None:
        return None
    bad = BadSearchError(CURSOR, "This page link is not valid any more. Search again.")
    try:
        raw = base64.urlsafe_b64decode(query.cursor + "=" * (-len(query.cursor) % 4))
        mac, body = raw[:32], raw[32:]
        if not hmac.compare_digest(mac, hmac.new(key, body, hashlib.sha256).digest()):
            raise bad
        about, after, made = json.loads(body)
    except ValueError:
        raise bad from None
    if about != _about(query, clinic) or now.timestamp() - made > CURSOR_LASTS.total_seconds():
        raise bad
    return list(after)
