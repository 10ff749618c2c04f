"""FHIR in at one end, a card out at the other: three processes, on each carrier."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.cli.house import House
from services.plumbing.clock import real_now
from services.simulator.flow import REGION_FILE
from tests.story.conftest import CANARY, a_house
from tests.story.feed import (
    CARD_SYSTEM,
    Caller,
    Person,
    all_tasks,
    encounter,
    eventually,
    patient,
    people,
    upload_panel,
)

SITE = "hospital-a"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
PARTICIPATION = f"{TERMINOLOGY}/v3-ParticipationType"
pytestmark = pytest.mark.slow


@asynccontextmanager
async def callers(house: House) -> AsyncIterator[tuple[Caller, Caller, Caller]]:
    """The hospital at ingest, clinic A's and clinic B's EMR at notify."""
    made = (
        Caller(f"{house.url('ingest')}/fhir", SITE, house.token),
        Caller(house.url("notify"), "clinic-a-emr", house.token),
        Caller(house.url("notify"), "clinic-b-emr", house.token),
    )
    try:
        yield made
    finally:
        for one in made:
            await one.close()


async def put(hospital: Caller, resource: dict[str, Any]) -> None:
    await hospital.until_accepted("PUT", f"/{resource['resourceType']}/{resource['id']}", resource)


async def visits(hospital: Caller, one: Person) -> None:
    """All four visits, the last of which crosses the threshold."""
    for index in range(len(one.visits)):
        await put(hospital, encounter(one, index, SITE))


async def tasks(clinic: Caller, count: int, seconds: float = 20) -> list[dict[str, Any]]:
    """The clinic's Tasks, once there are `count`."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        nonlocal found
        with suppress(httpx.TransportError):  # notify may have been killed, and is started again
            found = await all_tasks(clinic)
        return len(found) == count

    assert await eventually(there, seconds), [task["status"] for task in found]
    return found


def somebody(number: int) -> Person:
    one = people([4], real_now() - timedelta(hours=1), ("clinic-a",), seed=number)[0]
    return Person(number, "clinic-a", one.visits)


def consent(one: Person, effect: str, version: int | None = None) -> dict[str, Any]:
    """The patient permits, or denies, that clinic A is told."""
    return {
        "resourceType": "Consent",
        "id": f"c-{one.number}",
        **({"meta": {"versionId": str(version)}} if version else {}),
        "status": "active",
        "scope": {"coding": [{"system": f"{TERMINOLOGY}/consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"identifier": {"system": CARD_SYSTEM, "value": one.card}},
        "dateTime": (real_now() - timedelta(minutes=5)).isoformat(),
        "policy": [{"uri": "https://example.ca/policies/sharing"}],
        "provision": {
            "type": effect,
            "actor": [
                {
                    "role": {
                        "coding": [
                            {"system": f"{TERMINOLOGY}/v3-ParticipationType", "code": "IRCP"}
                        ]
                    },
                    "reference": {"reference": "Organization/clinic-a"},
                }
            ],
        },
    }


async def test_a_fourth_visit_becomes_one_card_of_one_clinic(carried: dict[str, str]) -> None:
    one = somebody(7)
    async with a_house(extra=carried) as house, callers(house) as (hospital, emr, foreign):
        await upload_panel(emr, [one], "nurse-a")
        await put(hospital, patient(one, SITE))
        await visits(hospital, one)
        [task] = await tasks(emr, 1)
        assert task["status"] == "requested"
        assert await all_tasks(foreign) == []

        async def taken_on() -> bool:
            [now] = await all_tasks(emr)
            answer = await emr.send(
                "PATCH",
                f"/fhir/Task/{task['id']}",
                {"status": "accepted"},
                {
                    "Content-Type": "application/merge-patch+json",
                    "If-Match": f'W/"{now["meta"]["versionId"]}"',
                },
            )
            # Flag and departure come as two events, in either order: the second is a new version.
            assert answer.status_code in (200, 412), answer.text
            return answer.is_success

        assert await eventually(taken_on, 20)
        await visits(hospital, one)  # the same again
        [after] = await tasks(emr, 1)
        assert (after["id"], after["status"]) == (task["id"], "accepted")
        assert after["meta"]["versionId"] in ("2", "3")
        if carried:
            await no_canary_on(carried)


async def no_canary_on(carried: dict[str, str]) -> None:
    """Kafka's keys are patient keys, and no value on it tells who (promise 5)."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        bootstrap_servers=carried["PASSERELLE_KAFKA_BOOTSTRAP"], auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        prefix = carried["PASSERELLE_KAFKA_PREFIX"]
        consumer.subscribe(pattern=f"^{re.escape(prefix)}.*")
        seen = 0
        for _ in range(20):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                for record in batch:
                    seen += 1
                    headers = b" ".join(value for _, value in record.headers)
                    assert not CANARY.search(record.value + headers)
                    assert record.key is None or re.fullmatch(rb"[0-9a-f-]{36}", record.key)
            if seen >= 6:
                break
        assert seen >= 6
    finally:
        await consumer.stop()


@pytest.fixture
def opt_in(tmp_path: Path) -> Path:
    """The demo's region, where silence is a no."""
    file = tmp_path / "region.yaml"
    said = REGION_FILE.read_text().replace("default: implied", "default: opt-in")
    assert "opt-in" in said
    file.write_text(said)
    return file


async def decisions(house: House, outcome: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(
        house.server.url("postgres", house.server.password, "passerelle")
    )
    try:
        return await connection.fetch(
            "select reasons from notify.decision where outcome = $1", outcome
        )
    finally:
        await connection.close()


async def test_under_opt_in_a_consent_makes_the_card_and_its_withdrawal_takes_it(
    opt_in: Path,
) -> None:
    told, untold = somebody(8), somebody(9)
    async with a_house(opt_in) as house, callers(house) as (hospital, emr, _):
        await upload_panel(emr, [told, untold], "nurse-a")
        for one in (told, untold):
            await put(hospital, patient(one, SITE))
            await visits(hospital, one)

        async def withheld() -> bool:
            return len(await decisions(house, "withhold")) == 2

        assert await eventually(withheld, 20)
        assert {tuple(row["reasons"]) for row in await decisions(house, "withhold")} == {
            ("no-consent",)
        }
        assert await all_tasks(emr) == []

        office = Caller(house.url("notify"), SITE, house.token)
        sent = await office.send("PUT", f"/fhir/Consent/c-{told.number}", consent(told, "permit"))
        assert sent.status_code == 201, sent.text
        [task] = await tasks(emr, 1)

        sent = await office.send(
            "PUT", f"/fhir/Consent/c-{told.number}", consent(told, "deny", version=1)
        )
        assert sent.status_code == 200, sent.text
        stub = (await emr.send("GET", f"/fhir/Task/{task['id']}")).json()
        assert set(stub) == {
            "resourceType", "id", "meta", "status", "statusReason", "intent", "code",
            "lastModified",
        }  # fmt: skip
        gone = await emr.send("GET", f"/fhir/{task['for']['reference']}")
        assert gone.status_code == 404
        found = await all_tasks(emr)  # the one this clinic never received stays unknown
        assert [one["id"] for one in found] in ([], [task["id"]])
        await office.close()


# Values only: an answer may name JSON properties, which are its sender's own words (HA-63).
BAD_BODIES = [
    b"{not json TEST00000042",
    b'{"resourceType": "Encounter", "id": "e", "id": "TEST00000042"}',
    b'{"resourceType": "Encounter", "status": "TEST00000042"}',
    b'{"resourceType": "Patient", "birthDate": "1957-03-14T25:00", "name": "Testfamily"}',
    b'{"resourceType": "Encounter", "status": "finished", "unknown": 1,'
    b' "class": {"code": "EMER"}, "period": {"start": "1957-03-14T00:00:00"}}',
    b'{"resourceType": "Encounter", "status": "finished", "class": {"code": "TEST-9"},'
    b' "subject": {"display": "Testfamily Camille"}, "period": {"start": "1957-03-14"}}',
    b'{"resourceType": "Bundle", "type": "TEST-00", "entry": [{"resource": {"x": "TEST-1"}}]}',
    b'{"resourceType": "Consent", "status": "active", "patient": {"display": "Testfamily"}}',
    b"\xff\xfe TEST00000042",
    b"[" * 5000,
]


async def test_no_error_body_and_no_metric_repeats_what_was_sent() -> None:
    async with a_house() as house, callers(house) as (hospital, emr, _):
        answers = []
        for body in BAD_BODIES:
            for method, path in (
                ("POST", "/Encounter"),
                ("PUT", "/Encounter/TEST00000042"),
                ("POST", "/Patient"),
                ("POST", ""),
                ("POST", "/$process-message"),
            ):
                answers.append(await hospital.send(method, path, body))
            for method, path in (
                ("POST", "/fhir/Consent"),
                ("PATCH", "/fhir/Task/TEST00000042"),
                ("POST", "/fhir/Subscription"),
                ("POST", "/panel?dry_run=false"),
                ("POST", "/fhir/Task/_search"),
            ):
                answers.append(await emr.send(method, path, body))
        at_ingest = ("/Encounter/TEST00000042", "/Encounter?identifier=x|TEST00000042", "/TEST-1")
        answers += [await hospital.send("GET", path) for path in at_ingest]
        at_notify = (
            "/fhir/Task?patient=TEST00000042",
            "/fhir/Task?identifier=TEST00000042",
            "/fhir/Task?_cursor=TEST00000042",
            "/fhir/Patient/TEST00000042",
            "/fhir/TEST00000042",
            "/cards/TEST00000042",
        )
        answers += [await emr.send("GET", path) for path in at_notify]
        for answer in answers:
            assert answer.status_code < 500, (answer.request.url.path, answer.text[:300])
            assert not CANARY.search(answer.content), (answer.request.url, answer.text[:300])
        for part in ("ingest", "screening", "notify"):
            metrics = await emr.http.get(f"{house.url(part)}/metrics")
            assert metrics.is_success
            assert not CANARY.search(metrics.content)
