"""Notifications to a clinic's endpoint: real HTTP, real PostgreSQL (clinic-api.md 7 and 8)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import orjson
import pytest
from fhir.resources.R4B.bundle import Bundle
from standardwebhooks.webhooks import Webhook

from schemas.envelope import CANON
from services.notify.delivery import (
    RETRY_FOR,
    Answer,
    Courier,
    Failure,
    Tried,
    after,
    classify,
    retry_after,
    wait,
)
from services.plumbing import egress
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import CSV, DENY_A, FHIR, MERGE, PERMIT_A, hear

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"


@dataclass
class Endpoint:
    """A clinic's endpoint: keeps what it got and answers as it is told."""

    statuses: list[int] = field(default_factory=list)
    """Of the next answers; then 200."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hang: bool = False
    headers: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.partition(": ") for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value for name, _, value in lines}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.got.append((headers, body))
        if self.hang:
            await asyncio.sleep(30)
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(
            f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n{self.headers}"
            "connection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()

    @property
    def bundles(self) -> list[dict[str, Any]]:
        return [orjson.loads(body) for _, body in self.got]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [b for b in self.bundles if kind(b) == "event-notification"]


def parameters(bundle: dict[str, Any]) -> dict[str, Any]:
    return {p["name"]: p for p in bundle["entry"][0]["resource"]["parameter"]}


def kind(bundle: dict[str, Any]) -> str:
    return str(parameters(bundle)["type"]["valueCode"])


def event(bundle: dict[str, Any]) -> dict[str, Any]:
    return {p["name"]: p for p in parameters(bundle)["notification-event"]["part"]}


@dataclass
class Scene:
    """A door, an endpoint and a courier whose real time a test drives."""

    door: Doorway
    endpoint: Endpoint
    url: str
    courier: Courier
    ahead: timedelta = timedelta()
    """How far the courier's real time is ahead of the machine's."""

    def passes(self, **span: float) -> None:
        self.ahead += timedelta(**span)

    async def rounds(self) -> None:
        """Until nothing is due any more."""
        while await self.courier.round():
            pass

    async def subscribe(self, client: httpx.AsyncClient, **more: Any) -> httpx.Response:
        answer = await client.post(
            "/fhir/Subscription", json=subscription(self.url, **more), headers=FHIR
        )
        await self.rounds()
        return answer


def subscription(url: str, **more: Any) -> dict[str, Any]:
    content = more.pop("content", "id-only")
    channel = {
        "type": "rest-hook",
        "endpoint": url,
        "payload": "application/fhir+json",
        "_payload": {
            "extension": [{"url": f"{BACKPORT}backport-payload-content", "valueCode": content}]
        },
        "header": ["Authorization: Bearer TEST-secret"],
        **more.pop("channel", {}),
    }
    found = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "test",
        "criteria": f"{CANON}/SubscriptionTopic/card",
        "channel": channel,
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
async def scene(db: Callable[[str], Database]) -> AsyncIterator[Scene]:
    async with staged(Doorway(db("notify"), build.house(), resolved=("127.0.0.1",))) as made:
        yield made


@pytest.fixture
async def opt_in(db: Callable[[str], Database]) -> AsyncIterator[Scene]:
    house = build.house(build.region("opt-in"))
    async with staged(Doorway(db("notify"), house, resolved=("127.0.0.1",))) as made:
        yield made


@contextlib.asynccontextmanager
async def staged(door: Doorway) -> AsyncIterator[Scene]:
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    http = egress.client()
    made: Scene

    def real() -> datetime:
        return real_now() + made.ahead

    courier = Courier(
        db=door.db,
        house=door.house,
        now=lambda: door.now,
        gate=lambda _clinic: Egress(local=True),
        http=http,
        real=real,
        chance=lambda: 1.0,
    )
    made = Scene(door, endpoint, f"http://127.0.0.1:{port}/hook", courier)
    yield made
    server.close()
    await http.aclose()
    await door.close()


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


async def on_panel(scene: Scene) -> UUID:
    p = uuid4()
    await hear(scene.door, build.identified(p))
    emr = scene.door.client("clinic-a-emr")
    await emr.post("/panel?dry_run=false", content=panel(p), headers=CSV)
    return p


async def flagged(scene: Scene) -> UUID:
    p = await on_panel(scene)
    await hear(scene.door, build.flag(p))
    return p


# --- subscribing ------------------------------------------------------------------------------


async def test_a_subscription_is_requested_shakes_hands_and_is_active(scene: Scene) -> None:
    """CA-54, CA-55."""
    emr = scene.door.client("clinic-a-emr")
    made = await scene.subscribe(emr)
    assert (made.status_code, made.json()["status"]) == (201, "requested")
    assert made.json()["channel"]["header"] == ["Authorization: Bearer TEST-secret"]
    (handshake,) = scene.endpoint.bundles
    assert kind(handshake) == "handshake"
    assert parameters(handshake)["status"]["valueCode"] == "requested"
    assert "notification-event" not in parameters(handshake)
    headers, _ = scene.endpoint.got[0]
    assert headers["authorization"] == "Bearer TEST-secret"
    assert headers["content-type"] == "application/fhir+json"
    again = await emr.get(f"/fhir/Subscription/{made.json()['id']}")
    assert again.json()["status"] == "active"
    assert again.json()["channel"]["header"] == ["Authorization: ********"]
    other = scene.door.client("clinic-a-other")
    assert (await other.get(f"/fhir/Subscription/{made.json()['id']}")).status_code == 404


async def test_a_failed_handshake_is_an_error_until_the_client_asks_again(scene: Scene) -> None:
    scene.endpoint.statuses = [500]
    emr = scene.door.client("clinic-a-emr")
    made = (await scene.subscribe(emr)).json()
    found = (await emr.get(f"/fhir/Subscription/{made['id']}")).json()
    assert found["status"] == "error"
    again = {**found, "status": "active"}
    await emr.put(f"/fhir/Subscription/{made['id']}", json=again, headers=FHIR)
    await scene.rounds()
    assert (await emr.get(f"/fhir/Subscription/{made['id']}")).json()["status"] == "active"
    headers, _ = scene.endpoint.got[-1]
    assert headers["authorization"] == "Bearer TEST-secret"  # the mask kept the value


@pytest.mark.parametrize(
    "more",
    [
        {"criteria": f"{CANON}/SubscriptionTopic/other"},
        {"criteria": "Encounter?"},
        {"channel": {"type": "websocket"}},
        {"channel": {"type": "email"}},
        {"channel": {"payload": "application/fhir+xml"}},
        {"channel": {"payload": "application/fhir+json; fhirVersion=5.0"}},
        {"channel": {"_payload": None}},
        {"content": "some"},
        {"channel": {"endpoint": "http://example.org/hook"}},
        {"channel": {"endpoint": "https://user@example.org/hook"}},
        {"channel": {"endpoint": "https://example.org:8443/hook"}},
        {"channel": {"header": ["webhook-signature: x"]}},
        {"channel": {"header": ["no colon"]}},
        {
            "channel": {
                "extension": [{"url": f"{BACKPORT}backport-timeout", "valueUnsignedInt": 61}]
            }
        },
        {
            "channel": {
                "extension": [{"url": f"{BACKPORT}backport-max-count", "valuePositiveInt": 0}]
            }
        },
        {
            "channel": {
                "extension": [
                    {"url": f"{BACKPORT}backport-heartbeat-period", "valueUnsignedInt": 9}
                ]
            }
        },
        {"end": "2020-01-01T00:00:00Z"},
        {"extension": [{"url": "http://hl7.org/fhir/5.0/StructureDefinition/x"}]},
        {
            "_criteria": {
                "extension": [
                    {
                        "url": f"{BACKPORT}backport-filter-criteria",
                        "valueString": "Task?patient=Patient/1",
                    }
                ]
            }
        },
    ],
)
async def test_what_could_not_be_kept_is_refused_with_422(
    scene: Scene, more: dict[str, Any]
) -> None:
    """CA-52."""
    answer = await scene.subscribe(scene.door.client("clinic-a-emr"), **more)
    assert answer.status_code == 422, answer.text
    assert scene.endpoint.got == []


async def test_full_content_is_by_agreement_and_eleven_are_too_many(scene: Scene) -> None:
    """CA-52, CA-53."""
    other = scene.door.client("clinic-b-emr")
    assert (await scene.subscribe(other, content="full-resource")).status_code == 422
    emr = scene.door.client("clinic-a-emr")
    made = [(await scene.subscribe(emr, content="full-resource")).status_code for _ in range(11)]
    assert made == [201] * 10 + [422]


async def test_it_can_be_switched_off_and_deleted(scene: Scene) -> None:
    emr = scene.door.client("clinic-a-emr")
    made = (await scene.subscribe(emr)).json()
    url = f"/fhir/Subscription/{made['id']}"
    off = await emr.put(url, json={**made, "status": "off"}, headers=FHIR)
    assert off.json()["status"] == "off"
    await flagged(scene)
    await scene.rounds()
    assert scene.endpoint.events == []
    assert (await emr.delete(url)).status_code == 204
    assert (await emr.get(url)).status_code == 404
    found = (await emr.get("/fhir/Subscription")).json()
    assert found["total"] == 0


# --- events -----------------------------------------------------------------------------------


async def test_a_new_card_is_one_signed_event_that_names_the_task_and_no_more(
    scene: Scene,
) -> None:
    """CA-53, CA-56, CA-66, N01 to N25."""
    emr = scene.door.client("clinic-a-emr")
    made = await scene.subscribe(emr)
    secret = made.headers["passerelle-webhook-secret"]
    await flagged(scene)
    await scene.rounds()
    (bundle,) = scene.endpoint.events
    Bundle.model_validate(bundle)
    assert (bundle["type"], len(bundle["entry"])) == ("history", 2)
    said = event(bundle)
    assert said["event-number"]["valueString"] == "1"
    assert parameters(bundle)["events-since-subscription-start"]["valueString"] == "1"
    assert parameters(bundle)["status"]["valueCode"] == "active"
    assert bundle["entry"][0]["request"]["url"].endswith(f"{made.json()['id']}/$status")
    focus = said["focus"]["valueReference"]["reference"]
    assert bundle["entry"][1]["fullUrl"] == focus
    assert "resource" not in bundle["entry"][1]
    assert (await emr.get(focus)).status_code == 200
    headers, body = scene.endpoint.got[-1]
    assert Webhook(secret).verify(body, headers) == bundle
    assert b"Fictif" not in body
    assert b"TEST0" not in body


async def test_empty_content_names_nothing(scene: Scene) -> None:
    await scene.subscribe(scene.door.client("clinic-a-emr"), content="empty")
    await flagged(scene)
    await scene.rounds()
    (bundle,) = scene.endpoint.events
    assert len(bundle["entry"]) == 1
    assert "focus" not in event(bundle)
    assert "topic" not in parameters(bundle)


async def test_full_content_is_the_task_as_it_would_be_read(scene: Scene) -> None:
    emr = scene.door.client("clinic-a-emr")
    await scene.subscribe(emr, content="full-resource")
    await flagged(scene)
    await scene.rounds()
    (bundle,) = scene.endpoint.events
    resource = bundle["entry"][1]["resource"]
    assert (await emr.get(f"/fhir/Task/{resource['id']}")).json() == resource


async def test_filters_choose(scene: Scene) -> None:
    """CA-50."""

    def wants(text: str) -> dict[str, Any]:
        url = f"{BACKPORT}backport-filter-criteria"
        return {"_criteria": {"extension": [{"url": url, "valueString": text}]}}

    emr = scene.door.client("clinic-a-emr")
    await scene.subscribe(emr, **wants("Task?owner=PractitionerRole/nurse-d"))
    await scene.subscribe(emr, **wants("Task?Task.owner=PractitionerRole/nurse-a&priority=routine"))
    await flagged(scene)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1


async def test_a_withheld_card_is_no_event_and_gets_no_number(opt_in: Scene) -> None:
    """CA-56."""
    emr, hospital = opt_in.door.client("clinic-a-emr"), opt_in.door.client("hospital-a")
    made = (await opt_in.subscribe(emr)).json()
    await flagged(opt_in)
    told = await flagged(opt_in)
    await hospital.post("/fhir/Consent", json=consent(told, PERMIT_A), headers=FHIR)
    await opt_in.rounds()
    (bundle,) = opt_in.endpoint.events
    assert event(bundle)["event-number"]["valueString"] == "1"
    status = (await emr.get(f"/fhir/Subscription/{made['id']}/$status")).json()
    said = {p["name"]: p for p in status["entry"][0]["resource"]["parameter"]}
    assert said["events-since-subscription-start"]["valueString"] == "1"
    assert said["type"]["valueCode"] == "query-status"


async def test_a_permit_that_is_gone_sends_the_number_without_its_focus(scene: Scene) -> None:
    """CA-56, CS-50: decided again at the attempt."""
    emr, hospital = scene.door.client("clinic-a-emr"), scene.door.client("hospital-a")
    await scene.subscribe(emr)
    p = await flagged(scene)
    await hospital.post("/fhir/Consent", json=consent(p, DENY_A), headers=FHIR)
    await scene.rounds()
    (bundle,) = scene.endpoint.events  # never received: no retraction either
    assert event(bundle)["event-number"]["valueString"] == "1"
    assert "focus" not in event(bundle)
    assert len(bundle["entry"]) == 1


async def test_a_delivered_card_that_is_withdrawn_is_retracted_by_an_event(scene: Scene) -> None:
    emr, hospital = scene.door.client("clinic-a-emr"), scene.door.client("hospital-a")
    await scene.subscribe(emr)
    p = await flagged(scene)
    await scene.rounds()
    await hospital.post("/fhir/Consent", json=consent(p, DENY_A), headers=FHIR)
    await scene.rounds()
    first, second = scene.endpoint.events
    assert event(first)["focus"] == event(second)["focus"]
    focus = event(second)["focus"]["valueReference"]["reference"]
    assert (await emr.get(focus)).json()["status"] == "cancelled"


async def test_a_clients_own_change_is_not_sent_back_but_goes_to_others(scene: Scene) -> None:
    """CA-26."""
    emr, other = scene.door.client("clinic-a-emr"), scene.door.client("clinic-a-other")
    await scene.subscribe(emr)
    await scene.subscribe(other)
    await flagged(scene)
    await scene.rounds()
    before = len(scene.endpoint.events)
    task = (await emr.get("/fhir/Task")).json()["entry"][0]["resource"]
    await emr.patch(
        f"/fhir/Task/{task['id']}",
        json={"status": "accepted"},
        headers={**MERGE, "If-Match": 'W/"1"'},
    )
    await scene.rounds()
    assert len(scene.endpoint.events) == before + 1


async def test_a_heartbeat_comes_after_silence_if_it_was_asked_for(scene: Scene) -> None:
    """CA-57, N14; it counts for nothing (CA-56)."""
    every_minute = {"url": f"{BACKPORT}backport-heartbeat-period", "valueUnsignedInt": 60}
    emr = scene.door.client("clinic-a-emr")
    await scene.subscribe(emr, channel={"extension": [every_minute]})
    await scene.subscribe(emr)
    scene.passes(seconds=50)
    await scene.rounds()
    await flagged(scene)
    await scene.rounds()
    scene.passes(seconds=50)
    await scene.rounds()
    assert "heartbeat" not in [kind(b) for b in scene.endpoint.bundles]
    scene.passes(seconds=11)
    await scene.rounds()
    await scene.rounds()
    (beat,) = [b for b in scene.endpoint.bundles if kind(b) == "heartbeat"]
    assert parameters(beat)["events-since-subscription-start"]["valueString"] == "1"
    assert (len(beat["entry"]), "notification-event" in parameters(beat)) == (1, False)


# --- failing and coming back ------------------------------------------------------------------


async def test_a_failure_is_retried_with_the_same_number_id_and_bytes(scene: Scene) -> None:
    """CA-61."""
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    scene.endpoint.statuses = [503, 500]
    await flagged(scene)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1
    scene.passes(seconds=4)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1
    scene.passes(seconds=2)
    await scene.rounds()
    scene.passes(seconds=11)
    await scene.rounds()
    sent = [(h["webhook-id"], body) for h, body in scene.endpoint.got[1:]]
    assert len(sent) == 3
    assert len(set(sent)) == 1


async def test_retry_after_is_obeyed_for_the_whole_destination(scene: Scene) -> None:
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    scene.endpoint.statuses = [429]
    scene.endpoint.headers = "retry-after: 600\r\n"
    await flagged(scene)
    await scene.rounds()
    await flagged(scene)
    scene.passes(seconds=599)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1
    scene.passes(seconds=2)
    await scene.rounds()
    assert len(scene.endpoint.events) == 3


async def test_an_event_the_destination_will_not_have_is_a_dead_letter_and_others_go_on(
    scene: Scene, owner: asyncpg.Connection
) -> None:
    """CA-61, CA-64."""
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    scene.endpoint.statuses = [422, 422, 422]
    await flagged(scene)
    for _ in range(4):
        await scene.rounds()
        scene.passes(minutes=2)
    assert await owner.fetchval("select count(*) from notify.notification where state='dead'") == 1
    await flagged(scene)
    await scene.rounds()
    assert len(scene.endpoint.events) == 4
    assert await owner.fetchval("select status from notify.subscription") == "active"


async def test_an_endpoint_that_is_gone_stops_it_and_reactivation_sends_the_backlog(
    scene: Scene,
) -> None:
    """CA-61, CA-64."""
    emr = scene.door.client("clinic-a-emr")
    made = (await scene.subscribe(emr)).json()
    scene.endpoint.statuses = [410]
    await flagged(scene)
    await scene.rounds()
    url = f"/fhir/Subscription/{made['id']}"
    found = (await emr.get(url)).json()
    assert (found["status"], found["error"]) == ("error", "HTTP 410")
    await flagged(scene)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1
    await emr.put(url, json={**found, "status": "requested"}, headers=FHIR)
    await scene.rounds()
    numbers = [event(b)["event-number"]["valueString"] for b in scene.endpoint.events]
    assert sorted(numbers) == ["1", "1", "2"]  # of two patients: in either order


async def test_order_is_kept_per_patient_and_a_stuck_event_holds_only_its_patient(
    scene: Scene,
) -> None:
    """CA-63."""
    emr, hospital = scene.door.client("clinic-a-emr"), scene.door.client("hospital-a")
    await scene.subscribe(emr)
    stuck = await flagged(scene)
    await tasks_of(emr)
    scene.endpoint.statuses = [422]
    await scene.rounds()
    await hospital.post("/fhir/Consent", json=consent(stuck, DENY_A), headers=FHIR)
    await flagged(scene)
    await scene.rounds()
    numbers = [event(b)["event-number"]["valueString"] for b in scene.endpoint.events]
    assert numbers == ["1", "3"]
    scene.passes(seconds=6)
    await scene.rounds()
    numbers = [event(b)["event-number"]["valueString"] for b in scene.endpoint.events]
    assert numbers == ["1", "3", "1", "2"]


async def tasks_of(emr: httpx.AsyncClient) -> None:
    assert (await emr.get("/fhir/Task")).status_code == 200


async def test_two_couriers_send_each_event_once(scene: Scene) -> None:
    """CS-133: a lease, and a fence for who lost it."""
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    for _ in range(4):
        await flagged(scene)
    await asyncio.gather(*(scene.courier.round() for _ in range(3)))
    await scene.rounds()
    numbers = [event(b)["event-number"]["valueString"] for b in scene.endpoint.events]
    assert sorted(numbers) == ["1", "2", "3", "4"]


async def test_a_courier_that_died_is_taken_over_after_its_lease(scene: Scene) -> None:
    """CA-68: a resend, never a loss."""
    await scene.subscribe(scene.door.client("clinic-a-emr"))
    await flagged(scene)
    attempts, _ = await scene.courier._prepare()
    assert len(attempts) == 1  # and then it is killed
    await scene.rounds()
    assert scene.endpoint.events == []
    scene.passes(seconds=91)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1
    await scene.courier._settle(attempts[0], Answer(status=500, failure=Failure.TRANSIENT))
    scene.passes(hours=1)
    await scene.rounds()
    assert len(scene.endpoint.events) == 1


async def test_deliveries_are_communications_and_disclosures(
    scene: Scene, owner: asyncpg.Connection
) -> None:
    """E-3."""
    emr = scene.door.client("clinic-a-emr")
    await scene.subscribe(emr)
    p = await flagged(scene)
    await scene.rounds()
    found = (await emr.get("/fhir/Communication?status=completed")).json()
    (entry,) = found["entry"]
    headers, _ = scene.endpoint.got[-1]
    assert entry["resource"]["identifier"][0]["value"] == headers["webhook-id"]
    assert entry["resource"]["about"][0]["reference"].startswith("Task/")
    row = await owner.fetchrow(
        "select * from notify.audit where shape = 'PrivacyDisclosure.Source'"
    )
    assert row is not None
    assert (row["recipient"], str(row["patient"])) == ("clinic-a", str(p))


async def test_a_host_that_turns_private_is_not_called(scene: Scene) -> None:
    """CA-67: checked at each attempt too."""
    emr = scene.door.client("clinic-a-emr")
    scene.door.resolved = ("93.184.215.14",)
    url = "https://clinic.example.org/hook"
    made = await emr.post("/fhir/Subscription", json=subscription(url), headers=FHIR)
    assert made.status_code == 201, made.text

    async def rebound(host: str, port: int) -> Sequence[str]:
        return ("93.184.215.14", "10.0.0.1")

    courier = Courier(
        db=scene.door.db,
        house=scene.door.house,
        now=lambda: scene.door.now,
        gate=lambda _clinic: Egress(),
        http=scene.courier.http,
        resolve=rebound,
    )
    await courier.round()
    found = (await emr.get(f"/fhir/Subscription/{made.json()['id']}")).json()
    assert found["status"] == "error"
    assert "10.0.0.1" not in str(found)
    assert scene.endpoint.got == []


# --- what an outcome means --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (200, None),
        (204, None),
        (299, None),
        (301, Failure.NOT_THERE),
        (404, Failure.NOT_THERE),
        (400, Failure.EVENT),
        (422, Failure.EVENT),
        (401, Failure.CREDENTIALS),
        (403, Failure.CREDENTIALS),
        (408, Failure.TRANSIENT),
        (410, Failure.GONE),
        (429, Failure.TRANSIENT),
        (500, Failure.TRANSIENT),
        (599, Failure.TRANSIENT),
    ],
)
def test_each_status_has_its_class(status: int, failure: Failure | None) -> None:
    """CA-61."""
    assert classify(status) is failure


def test_waits_double_from_5_seconds_to_an_hour_and_span_76_hours_in_enough_tries() -> None:
    assert [wait(n, 1.0).total_seconds() for n in (1, 2, 3)] == [5, 10, 20]
    assert wait(40, 1.0) == timedelta(hours=1)
    assert wait(3, 0.0) == timedelta()
    spent, tries = timedelta(), 0
    while spent < RETRY_FOR:
        tries += 1
        spent += wait(tries, 1.0)
    assert tries >= 10


NOW = datetime(2026, 3, 2, tzinfo=UTC)


@dataclass
class Destination:
    status: str = "active"
    error: str | None = None
    failing_since: datetime | None = None
    failures: int = 0
    alarmed: bool = False


def test_one_word_when_a_destination_goes_down_and_one_when_it_is_back() -> None:
    """CA-65."""
    to, words = Destination(), []
    for attempt in range(1, 7):
        found = after(
            Answer(500, Failure.TRANSIENT),
            Tried("event", attempt, NOW),
            to,
            NOW + timedelta(seconds=attempt),
            1.0,
        )
        words.append(found.alarm)
        to = Destination(
            found.status, found.error, found.failing_since, found.failures, found.alarmed
        )
    found = after(Answer(200), Tried("event", 7, NOW), to, NOW, 1.0)
    assert [*words, found.alarm] == [None, None, "down", None, None, None, "back"]


def test_after_76_hours_it_is_an_error_and_nothing_is_lost() -> None:
    """CA-62."""
    answer = Answer(500, Failure.TRANSIENT)
    tried = Tried("event", 80, NOW)
    late = after(answer, tried, Destination(), NOW + RETRY_FOR, 1.0)
    assert (late.state, late.status) == ("pending", "error")
    early = after(
        answer,
        tried,
        Destination(),
        NOW + RETRY_FOR - timedelta(seconds=1),
        1.0,
    )
    assert (early.state, early.status) == ("pending", "active")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, None),
        ("120", timedelta(seconds=120)),
        ("999999", timedelta(hours=1)),
        ("Mon, 02 Mar 2026 00:10:00 GMT", timedelta(minutes=10)),
        ("Mon, 02 Mar 2020 00:10:00 GMT", timedelta()),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str | None, expected: timedelta | None) -> None:
    assert retry_after(said, NOW) == expected
