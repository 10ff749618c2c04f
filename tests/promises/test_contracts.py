"""The event contracts: what is published stays readable, and is described as it is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar
from uuid import UUID

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import AwareDatetime, Field

from schemas import generate
from schemas.compatibility import incompatible
from schemas.envelope import Envelope, Event, Part
from services.notify.__main__ import READS as NOTIFY
from services.plumbing.eventlog import Read
from services.screening.__main__ import READS as SCREENING

EVENTS = {event.type: event for event in generate.events()}
EXAMPLES = sorted(generate.EXAMPLES.glob("*.json"))


def example(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def names(path: Path) -> str:
    return path.name


# What is committed


@pytest.mark.parametrize("path", generate.files(), ids=names)
def test_what_is_generated_is_committed(path: Path) -> None:
    assert path.read_text() == generate.files()[path], "run python -m schemas.generate"


def test_nothing_else_lies_among_the_generated_schemas() -> None:
    assert set(generate.JSON.glob("*.json")) == set(generate.files()) - {generate.ASYNCAPI}


def test_no_published_version_is_broken() -> None:
    assert generate.broken() == []


def test_a_type_is_named_after_its_module_and_stated_by_the_service_its_module_names() -> None:
    for event in EVENTS.values():
        doc = sys.modules[event.__module__].__doc__ or ""
        assert doc.startswith(event.source + " →")
        assert event.__module__.rsplit("_", 1)[1] == event.type.rsplit(".", 1)[1]


# Golden examples


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_of_every_version_is_readable_for_ever(path: Path) -> None:
    written = example(path)
    read = EVENTS[written["type"]].model_validate(written["data"])
    assert lost(written["data"], json.loads(read.model_dump_json())) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_keeps_to_its_json_schema(path: Path) -> None:
    written = example(path)
    schema = generate.json_schema(EVENTS[written["type"]])
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
        written["data"]
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=names)
def test_an_example_is_a_cloud_event_about_the_patient_of_its_data(path: Path) -> None:
    written = example(path)
    read = EVENTS[written["type"]].model_validate(written["data"])
    envelope = Envelope.model_validate(
        {"subject": None} | written | {"data": json.dumps(written["data"])}
    )
    assert written["specversion"] == "1.0"
    assert envelope.subject == read.subject
    assert envelope.source == f"passerelle/{read.source}"


@pytest.mark.parametrize("kind", EVENTS)
def test_every_field_of_an_event_stands_in_an_example(kind: str) -> None:
    shown = {
        field
        for path in EXAMPLES
        if example(path)["type"] == kind
        for field in fields_of(example(path)["data"])
    }
    assert fields_in(generate.json_schema(EVENTS[kind])) - shown == set()


def lost(written: Any, read: Any, at: str = "data") -> list[str]:
    """Places where what was `written` is not what was `read`; what defaults add is no loss."""
    if isinstance(written, Mapping):
        return [
            place
            for key, value in written.items()
            for place in (lost(value, read[key], f"{at}.{key}") if key in read else [f"{at}.{key}"])
        ]
    if isinstance(written, list):
        pairs = enumerate(zip(written, read, strict=True))
        return [place for i, (w, r) in pairs for place in lost(w, r, f"{at}[{i}]")]
    return [] if written == read else [at]


def fields_in(schema: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Field names with the field they stand in, as ("clauses", "measure")."""

    def walk(node: Mapping[str, Any], inside: str, seen: frozenset[str]) -> Iterator[Any]:
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            if name not in seen:
                yield from walk(schema["$defs"][name], inside, seen | {name})
        for form in node.get("anyOf", ()):
            yield from walk(form, inside, seen)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), Mapping):
                yield from walk(node[key], inside, seen)
        for name, field in node.get("properties", {}).items():
            yield inside, name
            yield from walk(field, name, seen)

    return set(walk(schema, "", frozenset()))


def fields_of(data: Any, inside: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, list):
        for entry in data:
            yield from fields_of(entry, inside)
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield inside, name
            yield from fields_of(value, name)
            yield from fields_of(value, inside)  # the values of a map stand where the map stands


# What may change, and what may not


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Spot(Part):
    size: int = Field(ge=1)


class Before(Event):
    """A published version; the classes below are what somebody might make of it."""

    type: ClassVar[str] = "test.stated.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID
    colour: Colour
    at: AwareDatetime | None
    spots: tuple[Spot, ...]
    weight: int = Field(default=0, ge=0)


class WithAFurtherField(Before):
    """Its documentation may change, too."""

    note: str | None = None


class WithoutAField(Event):
    type: ClassVar[str] = "test.stated.v1"
    source: ClassVar[str] = "ingest"

    patient: UUID
    colour: Colour
    at: AwareDatetime | None
    spots: tuple[Spot, ...]


class WithAFieldRenamed(WithoutAField):
    mass: int = Field(default=0, ge=0)


class WithANewRequiredField(Before):
    note: str


class WithAFieldOnceRequired(Before):
    colour: Colour = Colour.RED


class WithAFieldNowRequired(Before):
    weight: int = Field(ge=0)


class WithANarrowedType(Before):
    at: AwareDatetime


class WithAWidenedType(Before):
    colour: Colour | None  # type: ignore[assignment]  # the change that is planted


class WithAnotherType(Before):
    weight: str = "0"  # type: ignore[assignment]  # the change that is planted


class WithAnotherLimit(Before):
    weight: int = Field(default=0, ge=1)


class WithAnotherPattern(Before):
    weight: int = Field(default=0, ge=0, le=9)


class WithAnotherDefault(Before):
    weight: int = Field(default=70, ge=0)


class FewerColours(StrEnum):
    RED = "red"


class WithANarrowedEnum(Before):
    colour: FewerColours  # type: ignore[assignment]  # the change that is planted


class MoreColours(StrEnum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class WithAWidenedEnum(Before):
    colour: MoreColours  # type: ignore[assignment]  # the change that is planted


class NamelessSpot(Part):
    breadth: int = Field(ge=1)


class WithAPartChanged(Before):
    spots: tuple[NamelessSpot, ...]  # type: ignore[assignment]  # the change that is planted


class WithAPartLimited(Before):
    spots: Annotated[tuple[Spot, ...], Field(max_length=2)]


class MadeADraft(Before):
    published: ClassVar[bool] = False


PLANTED = {
    WithoutAField: "data.weight: removed or renamed",
    WithAFieldRenamed: "data.weight: removed or renamed",
    WithANewRequiredField: "data.note: required now",
    WithAFieldOnceRequired: "data.colour: may be missing now",
    WithAFieldNowRequired: "data.weight: required now",
    WithANarrowedType: "data.at: narrowed, no longer null",
    WithAWidenedType: "data.colour: widened to null",
    WithAnotherType: "data.weight: narrowed, no longer integer",
    WithAnotherLimit: "data.weight: minimum changed",
    WithAnotherPattern: "data.weight: maximum changed",
    WithAnotherDefault: "data.weight: default changed",
    WithANarrowedEnum: "data.colour: narrowed, no longer 'green'",
    WithAWidenedEnum: "data.colour: widened to 'blue'",
    WithAPartChanged: "data.spots[].size: removed or renamed",
    WithAPartLimited: "data.spots: maxItems changed",
    MadeADraft: "data: was published",
}


@pytest.mark.parametrize(
    ("after", "found"), PLANTED.items(), ids=[event.__name__ for event in PLANTED]
)
def test_an_incompatible_change_of_a_published_version_is_found(
    after: type[Event], found: str
) -> None:
    changed = incompatible(generate.json_schema(Before), generate.json_schema(after))
    assert any(what.startswith(found) for what in changed), changed


def test_a_further_field_with_a_default_may_be_added() -> None:
    changed = incompatible(generate.json_schema(Before), generate.json_schema(WithAFurtherField))
    assert changed == []


@pytest.mark.parametrize("after", PLANTED, ids=lambda event: event.__name__)
def test_a_draft_may_change_in_any_way(after: type[Event]) -> None:
    assert incompatible(generate.json_schema(MadeADraft), generate.json_schema(after)) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the schemas, to break."""
    shutil.copytree(
        generate.HERE, tmp_path / "schemas", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def regenerate(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "schemas.generate"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_generator_refuses_to_write_over_a_published_version(tree: Path) -> None:
    module = tree / "schemas/encounter_recorded_v1.py"
    module.write_text(module.read_text().replace("    triaged: bool = False\n", ""))
    before = (tree / "schemas/json/encounter.recorded.v1.json").read_text()
    ended = regenerate(tree)
    assert ended.returncode == 1
    assert "encounter.recorded.v1: data.triaged: removed or renamed" in ended.stderr
    assert (tree / "schemas/json/encounter.recorded.v1.json").read_text() == before


def test_the_module_of_a_published_version_may_not_go(tree: Path) -> None:
    (tree / "schemas/site_heard_v1.py").unlink()
    ended = regenerate(tree)
    assert ended.returncode == 1
    assert "site.heard.v1: its module is gone" in ended.stderr


def test_a_further_field_is_written_by_the_generator(tree: Path) -> None:
    module = tree / "schemas/site_heard_v1.py"
    module.write_text(
        module.read_text().replace("    site: Site\n", "    site: Site\n    late: bool = False\n")
    )
    assert regenerate(tree).returncode == 0
    written = json.loads((tree / "schemas/json/site.heard.v1.json").read_text())
    assert written["properties"]["late"]["default"] is False


# The AsyncAPI document


ASYNCAPI: dict[str, Any] = yaml.safe_load(generate.ASYNCAPI.read_text())


def test_every_event_is_a_channel_that_its_service_sends_to() -> None:
    assert ASYNCAPI["asyncapi"].startswith("3.")
    assert set(ASYNCAPI["channels"]) == set(EVENTS)
    for kind, event in EVENTS.items():
        assert ASYNCAPI["operations"][f"{event.source}-states-{kind}"]["action"] == "send"


def test_every_reference_of_the_document_leads_somewhere() -> None:
    for reference in references(ASYNCAPI):
        place, _, pointer = reference.partition("#")
        node: Any = json.loads((generate.HERE / place).read_text()) if place else ASYNCAPI
        for step in filter(None, pointer.split("/")):
            node = node[step]


def test_the_headers_described_are_the_attributes_of_the_envelope() -> None:
    described = set(ASYNCAPI["components"]["schemas"]["CloudEvent"]["properties"])
    carried = {f"ce_{name}" for name in Envelope.model_fields if name != "data"}
    assert described == carried | {"ce_specversion", "content-type"}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)


# The wiring


@pytest.mark.parametrize(("service", "reads"), [("screening", SCREENING), ("notify", NOTIFY)])
def test_a_service_reads_what_its_contracts_say_and_nothing_else(
    service: str, reads: list[Read[Any]]
) -> None:
    promised = {e for e in EVENTS.values() if e.published and service in generate.readers(e)}
    assert {read.event for read in reads} == promised
