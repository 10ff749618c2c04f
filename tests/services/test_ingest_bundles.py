"""Batches, transactions and messages on real PostgreSQL (hospital-api.md sections 3 and 4)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.plumbing.db import Database
from tests.services.ingest_door import (
    ACT_CODE,
    BASE,
    IngestDoor,
    bundle,
    ed_visit,
    notification,
    opened,
    patient,
)

LOCAL_CLASS: dict[str, Any] = {"class": {"system": "https://example.ca/classes", "code": "URG"}}
ICD = "http://hl7.org/fhir/sid/icd-10"


@pytest.fixture
async def door(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[IngestDoor]:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        yield made


def statuses(answer: Any) -> list[str]:
    return [entry["response"]["status"][:3] for entry in answer.json()["entry"]]


async def test_a_batch_answers_each_entry_by_itself(door: IngestDoor) -> None:
    """HA-30, HA-31: in their order, with outcome where one failed."""
    answer = await door.ask(
        "POST",
        "",
        bundle(
            "batch",
            ("GET", "Encounter/e1", None),
            ("PUT", "Encounter/e1", ed_visit()),
            ("PUT", "Encounter/e2", ed_visit("2", status="finsihed")),
            ("PUT", "Patient/p1", patient()),
            ("POST", "Observation", {"resourceType": "Observation"}),
            ("POST", "Practitioner", {"resourceType": "Practitioner"}),
            ("DELETE", "Encounter/none", None),
            ("GET", "Encounter?_id=e1", None),
            ("PATCH", "Encounter/e1", ed_visit()),
        ),
    )
    assert answer.status_code == 200
    assert answer.json()["type"] == "batch-response"
    assert statuses(answer) == ["200", "201", "400", "201", "404", "204", "404", "200", "405"]
    responses = [entry["response"] for entry in answer.json()["entry"]]
    assert responses[1]["location"] == f"{BASE}/Encounter/e1/_history/1"
    assert responses[1]["etag"] == 'W/"1"'
    assert responses[1]["lastModified"] == "2026-05-10T16:00:00.000000Z"
    assert responses[2]["outcome"]["issue"][0]["expression"] == ["Bundle.entry[2].resource.status"]
    assert answer.json()["entry"][0]["resource"]["id"] == "e1"
    assert answer.json()["entry"][7]["resource"]["total"] == 1
    assert len(await door.facts()) == 1
    assert [row["kind"] for row in await door.rows("select kind from refused")] == ["Encounter"]


async def test_two_messages_of_one_encounter_in_a_batch_are_two_versions(door: IngestDoor) -> None:
    """HA-84: folded together, stated once."""
    imp: dict[str, Any] = {"class": {"system": ACT_CODE, "code": "IMP"}}
    answer = await door.ask(
        "POST",
        "",
        bundle(
            "batch",
            ("PUT", "Patient/p1", patient()),
            ("PUT", "Encounter/e1", ed_visit(status="in-progress")),
            ("PUT", "Encounter/e1", ed_visit(**imp)),
        ),
    )
    assert statuses(answer) == ["201", "201", "200"]
    [fact] = await door.facts()
    assert [one["code"] for one in fact["classes"]] == ["EMER", "IMP"]
    assert len(await door.rows("select version from version where kind = 'Encounter'")) == 2


async def test_a_batch_of_a_hundred_is_stated_once_each(door: IngestDoor) -> None:
    entries = [
        ("PUT", f"Encounter/e{n}", ed_visit(str(n), subject={"reference": f"Patient/p{n % 10}"}))
        for n in range(90)
    ]
    people = [("PUT", f"Patient/p{n}", patient(f"p{n}", card=None)) for n in range(10)]
    answer = await door.ask("POST", "", bundle("batch", *entries, *people))
    assert set(statuses(answer)) == {"201"}
    again = await door.ask("POST", "", bundle("batch", *entries, *people))
    assert set(statuses(again)) == {"200"}
    assert len(await door.facts()) == 90
    assert len(await door.events("patient.identified.v1")) == 10


async def test_a_transaction_resolves_what_it_brings(door: IngestDoor) -> None:
    """HA-32: `urn:uuid:` references become ids; patients before encounters."""
    sent = bundle(
        "transaction",
        ("POST", "Encounter", ed_visit(id=...)),
        ("POST", "Patient", patient(id=...)),
    )
    sent["entry"][0]["resource"]["subject"] = {"reference": sent["entry"][1]["fullUrl"]}
    answer = await door.ask("POST", "", sent)
    assert statuses(answer) == ["201", "201"]
    locations = [entry["response"]["location"] for entry in answer.json()["entry"]]
    encounter = (await door.ask("GET", locations[0])).json()
    assert f"{BASE}/{encounter['subject']['reference']}/_history/1" == locations[1]
    again = await door.ask("POST", "", sent)
    assert statuses(again) == ["200", "200"]
    assert len(await door.facts()) == 1


@pytest.mark.parametrize(
    ("entries", "status", "expression"),
    [
        (
            [("PUT", "Encounter/e2", ed_visit("2", status="x"))],
            400,
            "Bundle.entry[1].resource.status",
        ),
        (
            [("PUT", "Encounter/e2", ed_visit("2", subject={"display": "x"}))],
            422,
            "Bundle.entry[1].resource.subject",
        ),
        ([("PUT", "Patient/p1", patient())], 400, "Bundle.entry[1].request.url"),
        (
            [("POST", "Observation", {"resourceType": "Observation"})],
            422,
            "Bundle.entry[1].resource",
        ),
        ([("DELETE", "Encounter/none", None)], 404, "Bundle.entry[1].resource"),
        (
            [("PUT", "Encounter/e2", ed_visit("2", subject={"reference": f"urn:uuid:{uuid4()}"}))],
            422,
            "Bundle.entry[1].resource.subject.reference",
        ),
        (
            [("PUT", "Encounter/e2", ed_visit("2", subject={
                "reference": "Patient?identifier=https://example.ca/none|TEST-1"}))],
            412,
            "Bundle.entry[1].resource.subject.reference",
        ),
    ],
)  # fmt: skip
async def test_a_transaction_is_all_or_nothing(
    door: IngestDoor,
    entries: list[tuple[str, str, dict[str, Any] | None]],
    status: int,
    expression: str,
) -> None:
    """HA-30, HA-32, HA-34: failure is one OperationOutcome, not a Bundle."""
    answer = await door.ask(
        "POST", "", bundle("transaction", ("PUT", "Patient/p1", patient()), *entries)
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert expression in {issue["expression"][0] for issue in answer.json()["issue"]}
    assert await door.rows("select key from resource") == []
    assert await door.events() == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"total": 1}, 422),
        ({"type": "searchset"}, 422),
        ({"type": "document"}, 422),
        ({"type": "batches"}, 400),
        ({"type": ...}, 400),
        ({"entry": []}, 400),
        ({"entry": [{"fullUrl": "urn:x"}]}, 422),
        ({"entry": [{"request": {"method": "GET", "url": "Encounter/1"}, "search": {}}]}, 422),
        ({"entry": [{"request": {"method": "GET", "url": "Encounter/1"}, "response": {}}]}, 422),
        ({"entry": [{"resource": {"resourceType": "Encounter"}}]}, 422),
        ({"entry": [{"request": {"method": "GET", "url": "E/1"}, "fullUrl": "a/_history/1"}]}, 422),
        ({"entry": [{"request": {"method": "GET", "url": "E/1"}, "fullUrl": "u:1"}] * 2}, 422),
        ({"entry": [{"request": {"method": "GET", "url": "Encounter/1"}}] * 1001}, 413),
        ({"entries": []}, 400),
        ({"entry": {}}, 400),
        ({"entry": [7]}, 400),
    ],
)
async def test_a_bundle_that_breaks_its_invariants_is_refused(
    door: IngestDoor, change: dict[str, Any], status: int
) -> None:
    """HA-34, HA-100."""
    sent = bundle("batch", ("PUT", "Patient/p1", patient())) | change
    answer = await door.ask("POST", "", {k: v for k, v in sent.items() if v is not ...})
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert await door.rows("select key from resource") == []


async def test_a_visit_by_three_messages_is_one_fact(door: IngestDoor) -> None:
    """HA-40 to 45: a transfer never ends it, the discharge does."""
    start = "2026-05-02T20:00:00-04:00"
    ongoing = ed_visit(status="in-progress", period={"start": start})
    moved = ed_visit(period={"start": start, "end": "2026-05-03T02:00:00-04:00"})
    for event, encounter, number in (
        ("admit", ongoing, 1),
        ("transfer", moved, 2),
        ("discharge", ed_visit(), 3),
    ):
        sent = notification(
            event, encounter, patient(), id_=f"b{number}", header=f"h{number}",
            at=f"2026-05-03T0{number}:00:00Z",
        )  # fmt: skip
        answer = await door.ask("POST", "/$process-message", sent)
        assert answer.status_code == 200, answer.text
        assert answer.json()["resourceType"] == "OperationOutcome"
    facts = await door.facts()
    assert [fact["status"] for fact in facts] == ["in-progress", "finished"]
    assert facts[0]["end"] is None
    assert facts[0]["event_time"] == "2026-05-03T01:00:00Z"
    assert len(await door.rows("select key from resource")) == 2


async def test_messages_in_any_order_fold_equally(door: IngestDoor) -> None:
    """PT-15, HA-82: the discharge came first."""
    late = notification(
        "admit", ed_visit(status="in-progress"), patient(), id_="b1", header="h1",
        at="2026-05-03T00:05:00Z",
    )  # fmt: skip
    early = notification(
        "discharge", ed_visit(), patient(), id_="b2", header="h2", at="2026-05-03T08:35:00Z"
    )
    for sent in (early, late):
        assert (await door.ask("POST", "/$process-message", sent)).status_code == 200
    assert {fact["status"] for fact in await door.facts()} == {"finished"}


async def test_the_same_message_twice_has_one_effect(door: IngestDoor) -> None:
    """HA-46, in parallel too: the stored answer again."""
    sent = notification("admit", ed_visit(), patient())
    answers = await asyncio.gather(
        *(door.ask("POST", "/$process-message", sent) for _ in range(20))
    )
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
    assert len(await door.facts()) == 1
    assert len(await door.rows("select version from version")) == 2


async def test_message_ids_are_never_used_for_something_else(door: IngestDoor) -> None:
    """HA-46: the table, row by row."""

    async def send(bundle_id: str, header: str, **changes: Any) -> tuple[int, str]:
        sent = notification("admit", ed_visit(**changes), patient(), id_=bundle_id, header=header)
        answer = await door.ask("POST", "/$process-message", sent)
        return answer.status_code, answer.json()["issue"][0]["code"]

    assert (await send("b1", "h1"))[0] == 200
    assert await send("b1", "h1", status="cancelled") == (409, "conflict")
    assert (await send("b2", "h1"))[0] == 200
    assert len(await door.facts()) == 1
    assert await send("b1", "h2") == (409, "duplicate")
    rows = await door.rows("select status from refused")
    assert [row["status"] for row in rows] == [409, 409]


def without(sent: dict[str, Any], *path: str | int) -> dict[str, Any]:
    at: Any = sent
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return sent


@pytest.mark.parametrize(
    "path",
    [
        ("id",),
        ("timestamp",),
        ("entry", 0),
        ("entry", 0, "resource", "id"),
        ("entry", 0, "resource", "eventCoding"),
        ("entry", 0, "resource", "source", "endpoint"),
        ("entry", 0, "resource", "focus"),
        ("entry", 1),
        ("entry", 2),
    ],
)
async def test_a_message_without_what_it_needs_is_400(
    door: IngestDoor, path: tuple[str | int, ...]
) -> None:
    """HA-42."""
    sent = without(notification("admit", ed_visit(), patient()), *path)
    answer = await door.ask("POST", "/$process-message", sent)
    assert answer.status_code == 400, answer.text
    assert await door.rows("select key from resource") == []


async def test_other_events_are_not_supported(door: IngestDoor) -> None:
    """HA-43, HA-40: kept for a person."""
    sent = notification("birth", ed_visit(), patient())
    answer = await door.ask("POST", "/$process-message", sent)
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (422, "not-supported")
    assert len(await door.rows("select id from refused")) == 1
    later = await door.ask("POST", "/$process-message?async=true", sent)
    assert later.status_code == 400


async def test_a_message_may_come_as_parameters(door: IngestDoor) -> None:
    """HA-40."""
    wrapped = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "async", "valueBoolean": False},
            {"name": "content", "resource": notification("admit", ed_visit(), patient())},
        ],
    }
    assert (await door.ask("POST", "/$process-message", wrapped)).status_code == 200
    assert len(await door.facts()) == 1


async def test_a_refused_message_has_no_effect_and_may_come_again_corrected(
    door: IngestDoor,
) -> None:
    bad = notification("admit", ed_visit(status="x"), patient())
    answer = await door.ask("POST", "/$process-message", bad)
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["expression"] == ["Bundle.entry[1].resource.status"]
    good = notification("admit", ed_visit(), patient())
    assert (await door.ask("POST", "/$process-message", good)).status_code == 200


async def test_conditions_of_a_message_give_the_codes(door: IngestDoor) -> None:
    """HA-25."""
    sent = notification("discharge", ed_visit(), patient())
    sent["entry"].append(
        {
            "fullUrl": f"urn:uuid:{uuid4()}",
            "resource": {
                "resourceType": "Condition",
                "subject": {"reference": "Patient/p1"},
                "code": {"coding": [{"system": ICD, "code": "F32"}]},
            },
        }
    )
    assert (await door.ask("POST", "/$process-message", sent)).status_code == 200
    [fact] = await door.facts()
    assert fact["codes"] == [{"system": ICD, "code": "F32"}]


async def test_the_same_content_by_message_and_by_put_is_one_encounter(door: IngestDoor) -> None:
    """HA-70."""
    sent = notification("admit", ed_visit(status="in-progress"), patient())
    assert (await door.ask("POST", "/$process-message", sent)).status_code == 200
    await door.put(patient())
    assert (await door.put(ed_visit())).status_code == 200
    facts = await door.facts()
    assert len({fact["encounter"] for fact in facts}) == 1
    assert len({fact["patient"] for fact in facts}) == 1


async def test_a_held_message_is_answered_with_a_warning(door: IngestDoor) -> None:
    """Section 9."""
    sent = notification("admit", ed_visit(**LOCAL_CLASS), patient())
    answer = await door.ask("POST", "/$process-message", sent)
    assert answer.status_code == 200
    [issue] = answer.json()["issue"]
    assert issue["severity"] == "warning"
    assert "unknown-class" in issue["details"]["text"]
    assert "URG" not in issue["details"]["text"]
