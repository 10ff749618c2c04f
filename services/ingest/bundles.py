"""A Bundle → its entries as single requests, or what is wrong with it (HA-30 to 34, HA-40 to 46).

No model checks these rules, so they are here. Resources inside are judged like single ones.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from services.ingest import gate
from services.ingest.gate import Problem
from services.ingest.reading import Identifier
from services.ingest.verbatim import Tree

RECORDED = frozenset({"Encounter", "Patient"})
"""Types that are kept (HA-25)."""
CONTEXT = frozenset({"Condition", "Location", "Organization"})
"""Types read for what an Encounter needs of them."""
TOLERATED = frozenset(
    {"Practitioner", "PractitionerRole", "Coverage", "Provenance", "MessageHeader"}
)
METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})
NOTIFICATIONS = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Condition:
    """A match by one identifier, as `If-None-Exist` and conditional update have it."""

    identifier: Identifier


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of a batch or transaction, or one resource of a message."""

    number: int
    method: str
    kind: str
    logical_id: str | None = None
    query: str | None = field(default=None, repr=False)
    if_none_exist: str | None = field(default=None, repr=False)
    if_match: str | None = None
    if_none_match: str | None = None
    full_url: str | None = field(default=None, repr=False)
    resource: Tree | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)
    version: str | None = None
    """Of a vread."""

    @property
    def at(self) -> str:
        return f"Bundle.entry[{self.number}].resource"


@dataclass(frozen=True, slots=True)
class Message:
    """A notification Bundle, taken apart (HA-42)."""

    id: str
    timestamp: str
    header_id: str
    event: str
    """`admit`, `discharge` or `transfer`."""
    source: str | None
    """Name that the sender gives itself."""
    entries: Sequence[Entry]


def condition(query: str, kind: str) -> Condition | Problem:
    """`identifier=SYS|VAL`, with an optional `Type?` before it, URL-encoded (HA-12)."""
    criteria = parse_qsl(query.removeprefix(f"{kind}?"), keep_blank_values=True)
    if len(criteria) == 1 and criteria[0][0] == "identifier":
        system, bar, number = criteria[0][1].partition("|")
        if bar and system and number:
            return Condition(Identifier(system, number))
    advice = "Only identifier=SYSTEM|VALUE is a condition here."
    return Problem("value", kind, advice)


def general(bundle: Mapping[str, Any]) -> list[Problem]:
    """Shape and invariants of any Bundle (bdl-1 to bdl-8)."""
    found: list[Problem] = []
    if bundle.get("resourceType") != "Bundle":
        return [Problem("structure", "Bundle.resourceType", "A Bundle is expected here.")]
    found += [
        Problem("structure", f"Bundle.{name}", "FHIR 4.0.1 has no such one.")
        for name in sorted(bundle.keys() - _PROPERTIES)
    ]
    kind = bundle.get("type")
    if not isinstance(kind, str):
        return [*found, Problem("required", "Bundle.type", "Say batch, transaction or message.")]
    if kind not in _TYPES:
        known = ", ".join(sorted(_TYPES))
        return [*found, Problem("code-invalid", "Bundle.type", f"Send one of: {known}.")]
    if "total" in bundle and kind not in ("searchset", "history"):
        found.append(_invariant("Bundle.total", "bdl-1: total only in a searchset or history."))
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or ("entry" in bundle and not entries):
        found.append(Problem("structure", "Bundle.entry", "Send an array of entries, not empty."))
        return found
    if len(entries) > MAX_ENTRIES:
        advice = f"At most {MAX_ENTRIES} entries; there are {len(entries)}."
        return [*found, Problem("too-costly", "Bundle.entry", advice, 413)]
    urls: set[tuple[str, str]] = set()
    for number, entry in enumerate(entries):
        at = f"Bundle.entry[{number}]"
        if not isinstance(entry, dict):
            found.append(Problem("structure", at, "Send an object."))
            continue
        found += _entry(entry, at, kind)
        url = (str(entry.get("fullUrl")), _version(entry))
        if "fullUrl" in entry and url in urls and kind != "history":
            found.append(_invariant(f"{at}.fullUrl", "bdl-7: a fullUrl stands once."))
        urls.add(url)
    return found[: gate.MAX_PROBLEMS]


_PROPERTIES = frozenset(
    {"resourceType", "id", "meta", "implicitRules", "language", "identifier", "type"}
    | {"timestamp", "total", "link", "entry", "signature"}
    | {"_type", "_timestamp", "_implicitRules", "_language"}
)
_TYPES = frozenset(
    {"document", "message", "transaction", "transaction-response", "batch", "batch-response"}
    | {"history", "searchset", "collection"}
)
_ENTRY = frozenset(
    {"id", "extension", "modifierExtension", "link", "fullUrl", "resource", "search"}
    | {"request", "response"}
)


def _version(entry: Tree) -> str:
    resource = entry.get("resource")
    meta = resource.get("meta") if isinstance(resource, dict) else None
    return str(meta.get("versionId")) if isinstance(meta, dict) else ""


def _entry(entry: Tree, at: str, kind: str) -> Iterator[Problem]:
    for name in entry.keys() - _ENTRY:
        yield Problem("structure", f"{at}.{name}", "FHIR 4.0.1 has no such one.")
    if "search" in entry and kind != "searchset":
        yield _invariant(f"{at}.search", "bdl-2: search only in a searchset.")
    if ("request" in entry) != (kind in ("batch", "transaction", "history")):
        yield _invariant(f"{at}.request", "bdl-3: request in batch, transaction and history.")
    if ("response" in entry) != (kind in ("batch-response", "transaction-response", "history")):
        yield _invariant(f"{at}.response", "bdl-4: response only in a response or history.")
    if not {"resource", "request", "response"} & entry.keys():
        yield _invariant(at, "bdl-5: an entry has a resource, request or response.")
    url = entry.get("fullUrl")
    if url is not None and (not isinstance(url, str) or not gate.URI.fullmatch(url)):
        yield Problem("value", f"{at}.fullUrl", "Send a URI, without spaces.")
    elif url is not None and "/_history/" in url:
        yield _invariant(f"{at}.fullUrl", "bdl-8: a fullUrl has no version.")
    if "resource" in entry and not isinstance(entry["resource"], dict):
        yield Problem("structure", f"{at}.resource", "Send a resource.")


def _invariant(expression: str, advice: str) -> Problem:
    return Problem("invariant", expression, advice, 422)


_URL = re.compile(
    r"/?(?P<kind>[A-Z][A-Za-z]+)"
    r"(?:/(?P<id>[A-Za-z0-9\-.]{1,64})(?:/_history/(?P<version>[A-Za-z0-9\-.]{1,64}))?)?"
    r"(?:\?(?P<query>.*))?"
)


def requests(
    bundle: Tree, texts: Sequence[str | None], base: str
) -> list[Entry | tuple[int, list[Problem]]]:
    """The entries of a batch or transaction that passed `general`, in their order (HA-31).

    An entry that is no request is its number and what is wrong with it.
    """
    found: list[Entry | tuple[int, list[Problem]]] = []
    for number, entry in enumerate(bundle.get("entry", [])):
        made = _request(number, entry, texts[number], base)
        found.append(made if isinstance(made, Entry) else (number, [made]))
    return found


def _request(number: int, entry: Tree, text: str | None, base: str) -> Entry | Problem:
    at = f"Bundle.entry[{number}]"
    request = entry["request"]
    if not isinstance(request, dict):
        return Problem("structure", f"{at}.request", "Send an object.")
    method, url = request.get("method"), request.get("url")
    if not isinstance(method, str) or not isinstance(url, str):
        return Problem("required", f"{at}.request", "Send method and url.")
    if method not in METHODS:
        known = method in ("HEAD", "PATCH")
        return Problem(
            "not-supported" if known else "code-invalid",
            f"{at}.request.method",
            "GET, POST, PUT and DELETE are offered.",
            405 if known else 400,
        )
    match = _URL.fullmatch(url.removeprefix(f"{base}/"))
    if match is None:
        return Problem("value", f"{at}.request.url", "Send Type, Type/id or Type?query.")
    resource = entry.get("resource")
    if method in ("POST", "PUT") and resource is None:
        return Problem("required", f"{at}.resource", f"{method} needs a resource.")
    if method == "POST" and match["id"] is not None:
        return Problem("value", f"{at}.request.url", "POST to the type alone.")
    strings = {name: request.get(name) for name in ("ifNoneExist", "ifMatch", "ifNoneMatch")}
    for name, value in strings.items():
        if value is not None and not isinstance(value, str):
            return Problem("structure", f"{at}.request.{name}", "Send a string.")
    return Entry(
        number,
        method,
        match["kind"],
        match["id"],
        match["query"],
        strings["ifNoneExist"],
        strings["ifMatch"],
        strings["ifNoneMatch"],
        entry.get("fullUrl"),
        resource,
        text,
        match["version"],
    )


def dangling(entries: Sequence[Entry]) -> list[Problem]:
    """Every `urn:` reference of a transaction resolves inside it (HA-34)."""
    urls = {entry.full_url for entry in entries}
    return [
        _invariant(path, "No entry of this Bundle has this fullUrl.")
        for entry in entries
        if entry.text is not None and '"urn:' in entry.text
        for path, reference in gate.references(entry.resource, entry.at)
        if reference.startswith("urn:") and reference not in urls
    ]


def twice(entries: Sequence[Entry]) -> list[Problem]:
    """The same resource stands once in a transaction (HA-32)."""
    seen: set[tuple[str, str]] = set()
    found: list[Problem] = []
    for entry in entries:
        if entry.method == "GET" or entry.logical_id is None:
            continue
        named = (entry.kind, entry.logical_id)
        if named in seen:
            advice = "The same resource stands twice in this transaction."
            found.append(Problem("invalid", f"Bundle.entry[{entry.number}].request.url", advice))
        seen.add(named)
    return found


def message(bundle: Tree, texts: Sequence[str | None]) -> Message | list[Problem]:
    """A Da Vinci notification that passed `general`, taken apart (HA-42 to 44)."""
    found: list[Problem] = []
    if bundle.get("type") != "message":
        return [Problem("value", "Bundle.type", "Send a Bundle of type message.")]
    for name, kind in (("id", "id"), ("timestamp", "instant")):
        value = bundle.get(name)
        form = gate.PRIMITIVES[kind]
        if value is None:
            found.append(Problem("required", f"Bundle.{name}", "A message needs it."))
        elif not isinstance(value, str) or not (form.form and form.form.fullmatch(value)):
            found.append(Problem("value", f"Bundle.{name}", form.advice))
    entries = [
        Entry(
            number,
            "POST",
            str(entry["resource"].get("resourceType")),
            full_url=entry.get("fullUrl"),
            resource=entry["resource"],
            text=texts[number],
        )
        for number, entry in enumerate(bundle.get("entry", []))
        if "resource" in entry
    ]
    headers = [entry for entry in entries if entry.kind == "MessageHeader"]
    if len(headers) != 1 or headers[0].number != 0:
        advice = "bdl-12: a message starts with its one MessageHeader."
        return [*found, Problem("invariant", "Bundle.entry[0].resource", advice)]
    header = headers[0].resource or {}
    found += _header(header)
    if found:
        return found
    return _taken_apart(bundle, header, entries)


def _header(header: Tree) -> Iterator[Problem]:
    at = "Bundle.entry[0].resource"
    id_ = header.get("id")
    form = gate.PRIMITIVES["id"].form
    if not isinstance(id_, str) or form is None or not form.fullmatch(id_):
        yield Problem("required", f"{at}.id", "A MessageHeader needs its id.")
    source = header.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("endpoint"), str):
        yield Problem("required", f"{at}.source.endpoint", "A MessageHeader needs it.")
    if "response" in header:
        yield Problem("value", f"{at}.response", "A notification answers nothing: leave it out.")
    focus = header.get("focus")
    if not isinstance(focus, list) or not all(
        isinstance(one, dict) and isinstance(one.get("reference"), str) for one in focus
    ):
        yield Problem("required", f"{at}.focus", "Refer to the Encounter that this is about.")
    event = header.get("eventCoding")
    if not isinstance(event, dict):
        if not isinstance(header.get("eventUri"), str):
            yield Problem("required", f"{at}.eventCoding", "Say which event this is.")
        else:
            advice = "Send eventCoding, one of the Da Vinci notification events."
            yield Problem("not-supported", f"{at}.eventUri", advice, 422)
    elif event.get("system") != NOTIFICATIONS or event.get("code") not in _EVENTS:
        advice = f"Send one of {', '.join(_EVENTS)} of {NOTIFICATIONS}."
        yield Problem("not-supported", f"{at}.eventCoding", advice, 422)


_EVENTS = {
    "notification-admit": "admit",
    "notification-discharge": "discharge",
    "notification-transfer": "transfer",
}


def _taken_apart(bundle: Tree, header: Tree, entries: Sequence[Entry]) -> Message | list[Problem]:
    at = "Bundle.entry[0].resource.focus"
    named = named_in(entries)
    focus = [named.get(one["reference"]) for one in header["focus"]]
    if not focus or any(one is None for one in focus):
        return [Problem("value", at, "Each focus must be an entry of this Bundle.")]
    encounters = [one for one in focus if one is not None and one.kind == "Encounter"]
    if len(encounters) != 1:
        return [Problem("value", at, "One focus must be the Encounter, and only one.")]
    subject = (encounters[0].resource or {}).get("subject")
    literal = subject.get("reference") if isinstance(subject, dict) else None
    whose = named.get(literal) if isinstance(literal, str) else None
    if whose is None or whose.kind != "Patient":
        expression = f"{encounters[0].at}.subject"
        return [Problem("value", expression, "The Encounter's Patient must be in the Bundle.")]
    kept = [entry for entry in entries if entry.kind not in RECORDED]
    source = header["source"].get("name")
    return Message(
        bundle["id"],
        bundle["timestamp"],
        header["id"],
        _EVENTS[header["eventCoding"]["code"]],
        source if isinstance(source, str) else None,
        [whose, encounters[0], *kept],
    )


def named_in(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The entries of a message by each way another may refer to them."""
    named: dict[str, Entry] = {}
    for entry in entries:
        id_ = (entry.resource or {}).get("id")
        if isinstance(id_, str):
            named.setdefault(f"{entry.kind}/{id_}", entry)
    for entry in entries:
        if entry.full_url is not None:
            named[entry.full_url] = entry
    return named
