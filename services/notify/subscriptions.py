"""Subscriptions of the R5 Backport (STU 1.1, R4 form): what is accepted, what is sent (section 7).

Refused with 422, never trimmed: whatever we could not keep to (CA-52).
"""

import base64
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

from schemas.envelope import CANON
from services.notify.fhir import instant, meta

Json = dict[str, Any]
BACKPORT: Final = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
TOPICS: Final[Mapping[str, str]] = {
    f"{CANON}/SubscriptionTopic/card": "card",
    f"{CANON}/SubscriptionTopic/flag": "flag",
}
FILTERS: Final = frozenset({"owner", "priority", "code"})
MIMES: Final = frozenset({"application/fhir+json", "application/json"})
CONTENTS: Final = ("empty", "id-only", "full-resource")
MASK: Final = "********"
MOST: Final = 10
"""Subscriptions of a client."""
NOTIFICATION: Final = f"{BACKPORT}backport-subscription-notification-r4"
STATUS: Final = f"{BACKPORT}backport-subscription-status-r4"
PROFILE: Final = f"{BACKPORT}backport-subscription"
_HEADER: Final = re.compile(r"(?P<name>[A-Za-z0-9-]{1,64}):\s*(?P<value>[\x20-\x7e]{1,4096})")
_RESERVED: Final = frozenset(
    {
        "content-type",
        "content-length",
        "host",
        "transfer-encoding",
        "connection",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
)
_CROSS_VERSION: Final = re.compile(r"http://hl7\.org/fhir/\d+\.\d+/")


class NotOfferedError(Exception):
    """The Subscription asks for what is not offered; which element, and what is."""

    def __init__(self, element: str, text: str, code: str = "not-supported") -> None:
        super().__init__(text)
        self.element = element
        self.text = text
        self.code = code


@dataclass(frozen=True, slots=True)
class Wish:
    """A Subscription that can be kept to."""

    off: bool
    topic: str
    filters: Mapping[str, Sequence[str]]
    reason: str
    endpoint: str
    mime: str
    content: str
    headers: Mapping[str, str | None] = field(repr=False)
    """None: the value that is kept (its mask was sent back)."""
    heartbeat: int | None
    timeout: int
    max_count: int
    ends: datetime | None
    contact: Sequence[Mapping[str, Any]] = field(repr=False)


def read(resource: Any, allowed: Sequence[str], now: datetime) -> Wish:
    """`allowed`: content levels agreed with the clinic (CA-53). NotOfferedError."""
    if not isinstance(resource, Mapping) or resource.get("resourceType") != "Subscription":
        raise NotOfferedError("Subscription", "Send a Subscription.", "structure")
    _check_extensions(resource)
    channel = resource.get("channel")
    if not isinstance(channel, Mapping):
        raise NotOfferedError("Subscription.channel", "A channel is needed.", "required")
    if channel.get("type") != "rest-hook" or "_type" in channel:
        raise NotOfferedError("Subscription.channel.type", "Only rest-hook is offered.")
    topic, filters = _criteria(resource)
    heartbeat = _number(channel, "backport-heartbeat-period", 10, 86400)
    return Wish(
        off=resource.get("status") == "off",
        topic=topic,
        filters=filters,
        reason=str(resource.get("reason") or "")[:1000],
        endpoint=str(channel.get("endpoint") or ""),
        mime=_mime(channel),
        content=_content(channel, allowed),
        headers=_headers(channel),
        heartbeat=heartbeat,
        timeout=_number(channel, "backport-timeout", 1, 60) or 10,
        max_count=_number(channel, "backport-max-count", 1, 100) or 20,
        ends=_end(resource, now),
        contact=[c for c in resource.get("contact", []) if isinstance(c, Mapping)],
    )


def _check_extensions(node: Any) -> None:
    if isinstance(node, Mapping):
        url = node.get("url")
        if isinstance(url, str) and _CROSS_VERSION.match(url):
            raise NotOfferedError("Subscription.extension", "Extensions of other versions: no.")
        for value in node.values():
            _check_extensions(value)
    elif isinstance(node, list):
        for value in node:
            _check_extensions(value)


def _criteria(resource: Mapping[str, Any]) -> tuple[str, dict[str, list[str]]]:
    topic = TOPICS.get(str(resource.get("criteria", "")))
    if topic is None:
        names = " or ".join(TOPICS)
        raise NotOfferedError("Subscription.criteria", f"The topic must be {names}.")
    filters: dict[str, list[str]] = {}
    for extension in _extensions(resource.get("_criteria")):
        if extension.get("url") != f"{BACKPORT}backport-filter-criteria":
            continue
        for name, value in _filter(str(extension.get("valueString", "")), topic):
            filters.setdefault(name, []).extend(value.split(","))
    return topic, filters


def _filter(text: str, topic: str) -> list[tuple[str, str]]:
    kind, mark, query = text.partition("?")
    if topic != "card" or kind != "Task" or not mark:
        raise NotOfferedError("Subscription.criteria", "Filters: Task?owner|priority|code=…")
    found = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        plain = name.removeprefix("Task.")
        if plain not in FILTERS or not value:
            raise NotOfferedError("Subscription.criteria", "Filters: Task?owner|priority|code=…")
        codes = [one.rpartition("|")[2] if plain != "owner" else one for one in value.split(",")]
        found.append((plain, ",".join(codes)))
    return found


def _extensions(node: Any) -> list[Mapping[str, Any]]:
    said = node.get("extension", []) if isinstance(node, Mapping) else []
    return [e for e in said if isinstance(e, Mapping)] if isinstance(said, list) else []


def _number(channel: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    for extension in _extensions(channel):
        if extension.get("url") != f"{BACKPORT}{name}":
            continue
        value = extension.get("valueUnsignedInt", extension.get("valuePositiveInt"))
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise NotOfferedError(
                "Subscription.channel.extension", f"{name}: {least} to {most}.", "value"
            )
        return value
    return None


def _mime(channel: Mapping[str, Any]) -> str:
    said = str(channel.get("payload", ""))
    mime, _, parameters = said.partition(";")
    version = re.search(r"fhirVersion\s*=\s*\"?([\d.]+)", parameters, re.IGNORECASE)
    if mime.strip() not in MIMES or (version and not version[1].startswith("4.0")):
        raise NotOfferedError(
            "Subscription.channel.payload", "application/fhir+json of FHIR 4.0 is what is sent."
        )
    return said


def _content(channel: Mapping[str, Any], allowed: Sequence[str]) -> str:
    said = [
        e.get("valueCode")
        for e in _extensions(channel.get("_payload"))
        if e.get("url") == f"{BACKPORT}backport-payload-content"
    ]
    if len(said) != 1 or said[0] not in CONTENTS:
        raise NotOfferedError(
            "Subscription.channel.payload", "backport-payload-content is needed.", "required"
        )
    if said[0] not in allowed:
        names = ", ".join(allowed)
        raise NotOfferedError("Subscription.channel.payload", f"Agreed with this clinic: {names}.")
    return str(said[0])


def _headers(channel: Mapping[str, Any]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for line in channel.get("header", []):
        read_line = _HEADER.fullmatch(line) if isinstance(line, str) else None
        if read_line is None or read_line["name"].lower() in _RESERVED:
            raise NotOfferedError("Subscription.channel.header", "`Name: value`, not one of ours.")
        value = read_line["value"].strip()
        found[read_line["name"]] = None if value == MASK else value
    return found


def _end(resource: Mapping[str, Any], now: datetime) -> datetime | None:
    said = resource.get("end")
    if said is None:
        return None
    try:
        ends = datetime.fromisoformat(said)
    except (TypeError, ValueError):
        ends = None
    if ends is None or ends.tzinfo is None:
        raise NotOfferedError("Subscription.end", "An instant with offset is needed.", "value")
    if ends <= now:
        raise NotOfferedError("Subscription.end", "It must lie in the future.", "value")
    return ends.astimezone(UTC)


BOTH_SIGN: Final = timedelta(hours=24)
"""How long the secret before the newest signs along (CA-66)."""


def new_secret() -> str:
    """A Standard Webhooks secret: `whsec_` and base64 of 32 bytes (CA-66)."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


# --- as FHIR ----------------------------------------------------------------------------------


def resource(row: Any, headers: Mapping[str, str]) -> Json:
    """A Subscription as its owner reads it. `headers`: as they may be shown (CA-54)."""
    topic = next(url for url, name in TOPICS.items() if name == row.topic)
    criteria: Json = {}
    if row.filters:
        criteria["extension"] = [
            {
                "url": f"{BACKPORT}backport-filter-criteria",
                "valueString": "Task?"
                + "&".join(f"{n}={','.join(v)}" for n, v in sorted(row.filters.items())),
            }
        ]
    extensions = [
        {"url": f"{BACKPORT}{name}", kind: value}
        for name, kind, value in (
            ("backport-heartbeat-period", "valueUnsignedInt", row.heartbeat),
            ("backport-timeout", "valueUnsignedInt", row.timeout),
            ("backport-max-count", "valuePositiveInt", row.max_count),
        )
        if value is not None
    ]
    found: Json = {
        "resourceType": "Subscription",
        "id": str(row.id),
        "meta": {**meta(row.version, row.updated), "profile": [PROFILE]},
        "status": row.status,
        "reason": row.reason or "Passerelle cards",
        "criteria": topic,
        "channel": {
            "extension": extensions,
            "type": "rest-hook",
            "endpoint": row.endpoint,
            "payload": row.mime,
            "_payload": {
                "extension": [
                    {"url": f"{BACKPORT}backport-payload-content", "valueCode": row.content}
                ]
            },
        },
    }
    if criteria:
        found["_criteria"] = criteria
    if headers:
        found["channel"]["header"] = [f"{name}: {value}" for name, value in headers.items()]
    if row.ends is not None:
        found["end"] = instant(row.ends)
    if row.error:
        found["error"] = row.error
    if row.contact:
        found["contact"] = list(row.contact)
    return found


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One numbered event in a notification."""

    number: int
    at: datetime
    focus: str | None
    """`Task/id`; None: no permit any more, the number goes out alone (CA-56)."""
    resource: Json | None = field(default=None, repr=False)


_STATUS_IN: Final[Mapping[str, str]] = {
    "handshake": "requested",
    "event-notification": "active",
    "heartbeat": "active",
}
"""What a notification says, whatever the subscription has become meanwhile."""


def status(row: Any, kind: str, base: str, events: Sequence[Occurrence] = ()) -> Json:
    """The Parameters that lead a notification, and answer `$status`."""
    topic = next(url for url, name in TOPICS.items() if name == row.topic)
    parameters: list[Json] = [
        {
            "name": "subscription",
            "valueReference": {"reference": f"{base}/Subscription/{row.id}"},
        }
    ]
    if row.content != "empty" or kind == "query-status":
        parameters.append({"name": "topic", "valueCanonical": topic})
    parameters += [
        {"name": "status", "valueCode": _STATUS_IN.get(kind, row.status)},
        {"name": "type", "valueCode": kind},
        {
            "name": "events-since-subscription-start",
            "valueString": str(max((e.number for e in events), default=row.counter)),
        },
    ]
    for event in events:
        part: list[Json] = [
            {"name": "event-number", "valueString": str(event.number)},
            {"name": "timestamp", "valueInstant": instant(event.at)},
        ]
        if event.focus is not None and row.content != "empty":
            part.append({"name": "focus", "valueReference": {"reference": f"{base}/{event.focus}"}})
        parameters.append({"name": "notification-event", "part": part})
    if row.error and kind == "query-status":
        parameters.append({"name": "error", "valueCodeableConcept": {"text": row.error}})
    return {
        "resourceType": "Parameters",
        "id": str(row.id),
        "meta": {"profile": [STATUS]},
        "parameter": parameters,
    }


def notification(
    row: Any,
    kind: str,
    base: str,
    *,
    id_: UUID,
    at: datetime,
    events: Sequence[Occurrence] = (),
) -> Json:
    """A notification Bundle (N01 to N28). The same event makes the same bytes (CA-61)."""
    said = status(row, kind, base, events)
    entries: list[Json] = [
        {
            "fullUrl": f"urn:uuid:{id_}",
            "resource": {**said, "id": str(id_)},
            "request": {"method": "GET", "url": f"{base}/Subscription/{row.id}/$status"},
            "response": {"status": "200"},
        }
    ]
    for event in events:
        if event.focus is None or row.content == "empty":
            continue
        entry: Json = {
            "fullUrl": f"{base}/{event.focus}",
            "request": {"method": "POST", "url": event.focus.partition("/")[0]},
            "response": {"status": "201"},
        }
        if row.content == "full-resource" and event.resource is not None:
            entry["resource"] = event.resource
        entries.append(entry)
    return {
        "resourceType": "Bundle",
        "id": str(id_),
        "meta": {"profile": [NOTIFICATION]},
        "type": "history",
        "timestamp": instant(at),
        "entry": entries,
    }
