"""Writes what others read of the events: JSON Schemas and the AsyncAPI document.

`python -m schemas.generate` writes `schemas/json/` and `schemas/asyncapi.yaml` from the event
modules. It refuses a change that would break a reader of a published version, and then writes
nothing.
"""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import schemas
from schemas.compatibility import incompatible
from schemas.envelope import CANON, Event

HERE = Path(__file__).parent
JSON = HERE / "json"
EXAMPLES = HERE / "examples"
ASYNCAPI = HERE / "asyncapi.yaml"

SERVICES = ("ingest", "screening", "notify")

HEADERS = {
    "ce_specversion": {"const": "1.0"},
    "ce_id": {"type": "string", "format": "uuid"},
    "ce_source": {"type": "string", "description": "The service that states it."},
    "ce_type": {"type": "string"},
    "ce_time": {"type": "string", "format": "date-time"},
    "ce_subject": {"type": "string", "format": "uuid", "description": "The patient key."},
    "ce_traceparent": {"type": "string"},
    "content-type": {"const": "application/json"},
}
"""CloudEvents 1.0, binary content mode of its Kafka protocol binding."""

OPTIONAL_HEADERS = {"ce_subject", "ce_traceparent"}


def events() -> Sequence[type[Event]]:
    """Every event type the modules of this package define, by its name on the log."""
    found = [
        member
        for module in pkgutil.iter_modules(schemas.__path__)
        if re.search(r"_v\d+$", module.name)
        for _, member in inspect.getmembers(
            importlib.import_module(f"schemas.{module.name}"), inspect.isclass
        )
        if issubclass(member, Event) and member.__module__ == f"schemas.{module.name}"
    ]
    return sorted(found, key=lambda event: event.type)


def json_schema(event: type[Event]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an event's data, as a reader may rely on it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{CANON.removesuffix('/fhir')}/schemas/{event.type}.json",
        "x-type": event.type,
        "x-source": event.source,
        "x-published": event.published,
        **event.model_json_schema(),
    }


def readers(event: type[Event]) -> Sequence[str]:
    """The services that read it, as the first line of its module says (`from → to, to: …`)."""
    before_colon = (inspect.getmodule(event).__doc__ or "").partition(":")[0]
    return [word for word in SERVICES if word in before_colon.partition("→")[2]]


def asyncapi(known: Sequence[type[Event]]) -> dict[str, Any]:
    """The AsyncAPI 3 document of the log as Kafka carries it, one topic a type."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Passerelle event log",
            "version": "1",
            "license": {"name": "Apache-2.0"},
            "description": (
                "What the services state to each other. No identifier travels in clear: "
                "a patient is a random key, identifiers are tokens, demographics are sealed. "
                "Drafts (x-published: false) may still change."
            ),
        },
        "defaultContentType": "application/json",
        "channels": {event.type: _channel(event) for event in known},
        "operations": dict(_operations(known)),
        "components": {
            "messages": {event.__name__: _message(event) for event in known},
            "schemas": {
                "CloudEvent": {
                    "type": "object",
                    "required": sorted(HEADERS.keys() - OPTIONAL_HEADERS),
                    "properties": HEADERS,
                }
            },
        },
    }


def _channel(event: type[Event]) -> dict[str, Any]:
    return {
        "address": event.type,
        "description": (inspect.getmodule(event).__doc__ or "").strip(),
        "messages": {event.__name__: {"$ref": f"#/components/messages/{event.__name__}"}},
        "x-published": event.published,
    }


def _message(event: type[Event]) -> dict[str, Any]:
    return {
        "name": event.type,
        "title": event.__name__,
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/CloudEvent"},
        "payload": {"$ref": f"./json/{event.type}.json"},
        "bindings": {
            "kafka": {
                "key": {
                    "type": "string",
                    "format": "uuid",
                    "description": "The patient key; none where the event is about no patient.",
                }
            }
        },
    }


def _operations(known: Sequence[type[Event]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for event in known:
        channel = {"$ref": f"#/channels/{event.type}"}
        yield f"{event.source}-states-{event.type}", {"action": "send", "channel": channel}
        for reader in readers(event):
            yield f"{reader}-reads-{event.type}", {"action": "receive", "channel": channel}


def files() -> Mapping[Path, str]:
    """Every generated file and its text."""
    known = events()
    written = {
        JSON / f"{event.type}.json": json.dumps(json_schema(event), indent=2) + "\n"
        for event in known
    }
    heading = "# Generated by `python -m schemas.generate`.\n"
    return written | {
        ASYNCAPI: heading + yaml.safe_dump(asyncapi(known), sort_keys=False, allow_unicode=True)
    }


def broken() -> list[str]:
    """What the modules no longer keep of the published versions in `schemas/json/`."""
    now = {event.type: json_schema(event) for event in events()}
    found: list[str] = []
    for path in sorted(JSON.glob("*.json")):
        old = json.loads(path.read_text())
        new = now.get(old["x-type"])
        if new is not None:
            found += [f"{old['x-type']}: {what}" for what in incompatible(old, new)]
        elif old["x-published"]:
            found.append(f"{old['x-type']}: its module is gone, and its events are for ever")
    return found


def main() -> int:
    """Write the files; exit 1, and write nothing, if a published version would break."""
    if problems := broken():
        sys.stderr.write("\n".join(problems))
        sys.stderr.write("\nNothing was written. A new version is a new module and a new type.\n")
        return 1
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for path in JSON.glob("*.json"):
        if path not in files():
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
