"""A flood is answered 429, before anything is verified, read or recorded (HA-101, CS-100)."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from services.notify import __main__ as notify
from services.plumbing.db import Database
from services.plumbing.limits import Buckets, Limits, Rate
from services.plumbing.settings import NotifySettings
from tests.conftest import FreshDatabase, keyring
from tests.services.ingest_door import BASE, IngestDoor, bundle, ed_visit, opened
from tests.services.test_access_matrix import region_file

HOST = BASE.removesuffix("/fhir")
LOWEST = 0.001
"""A second: what is taken out of a bucket does not come back while a test lasts."""


@contextmanager
def limited(app: FastAPI, clients: float | None, addresses: float | None) -> Iterator[None]:
    """`app`'s Doorkeeper with these bursts."""
    (keeper,) = [
        one for one in app.user_middleware if getattr(one.cls, "__name__", "") == "Doorkeeper"
    ]
    app.middleware_stack = None
    before = keeper.kwargs["limits"]
    keeper.kwargs["limits"] = Limits(
        "ingest",
        Buckets(Rate(LOWEST, clients)) if clients else None,
        Buckets(Rate(LOWEST, addresses)) if addresses else None,
    )
    yield
    keeper.kwargs["limits"] = before


@pytest.fixture
async def door(db: Callable[[str], Database], tmp_path: Path) -> Any:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        yield made


def app_of(door: IngestDoor) -> FastAPI:
    app: FastAPI = door.stage.hosts[HOST]
    return app


def is_throttled(answer: httpx.Response) -> bool:
    if answer.status_code != 429:
        return False
    said = answer.json()
    assert said["resourceType"] == "OperationOutcome"
    assert said["issue"][0]["code"] == "throttled"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["cache-control"] == "no-store"
    return True


async def test_a_client_has_its_burst_and_no_more_and_another_is_not_held_up(
    door: IngestDoor,
) -> None:
    with limited(app_of(door), 5, None):
        for number in range(5):
            answer = await door.put(ed_visit(str(number)))
            assert answer.status_code == 201, answer.text
        before = await door.rows("select count(*) as n from audit")
        assert is_throttled(await door.put(ed_visit("9")))
        assert await door.rows("select count(*) as n from audit") == before
        assert (await door.put(ed_visit("9"), who="hospital-b")).status_code != 429


async def test_each_entry_of_a_bundle_costs_one(door: IngestDoor) -> None:
    """HA-101; and what is refused for it changes nothing."""
    entries = [("PUT", f"Encounter/e{n}", ed_visit(str(n))) for n in range(4)]
    with limited(app_of(door), 9, None):
        assert (await door.ask("POST", "", bundle("batch", *entries))).status_code == 200
        assert (await door.ask("POST", "", bundle("batch", *entries))).status_code == 200
        known = await door.rows("select count(*) as n from version")
        more = [("PUT", f"Encounter/f{n}", ed_visit(f"f{n}")) for n in range(4)]
        assert is_throttled(await door.ask("POST", "", bundle("batch", *more)))
        assert await door.rows("select count(*) as n from version") == known


async def test_tokens_that_do_not_verify_are_soon_not_looked_at(door: IngestDoor) -> None:
    """A flood of them writes a bounded number of records, and holds up no health check."""
    with limited(app_of(door), None, 6):
        headers = {"Authorization": "Bearer made.up.token"}
        url = f"{HOST}/fhir/Encounter/e1"
        answers = [await door.stage.http.get(url, headers=headers) for _ in range(20)]
        assert [one.status_code for one in answers] == [401] * 6 + [429] * 14
        assert all(is_throttled(one) for one in answers[6:])
        records = await door.rows("select count(*) as n from audit where outcome <> 0")
        assert records[0]["n"] == 6
        for path in ("/health/live", "/health/ready", "/metrics"):
            answer = await door.stage.http.get(f"{HOST}{path}")
            assert answer.status_code == 200
        assert 'passerelle_limited_total{by="ingest address"}' in answer.text


async def test_no_body_is_read_of_what_is_too_much(door: IngestDoor) -> None:
    sent = 0

    async def body() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 1000

    with limited(app_of(door), None, 0.5):
        transport = httpx.ASGITransport(app=app_of(door))
        async with httpx.AsyncClient(transport=transport, base_url=HOST) as one:
            assert (await one.get("/fhir/metadata")).status_code == 200
            assert is_throttled(await one.post("/fhir/Encounter", content=body()))


async def test_a_page_says_it_in_the_reader_s_words(
    database: FreshDatabase, tmp_path: Path
) -> None:
    """What the operator sets is what holds, in the service's own wiring."""
    built = notify.build(
        NotifySettings(
            region=region_file(tmp_path),
            database_url=SecretStr(database.url("notify")),
            token_keys=keyring("tokens"),
            seal_keys=keyring("seals"),
            date_keys=keyring("dates"),
            cursor_key=SecretStr(base64.b64encode(b"cursor key of the tests, 32 bytes").decode()),
            oidc_client_secret=SecretStr("synthetic-secret-of-the-tests"),
            local=True,
            address_per_second=LOWEST,
            address_burst=2,
        )
    )
    transport = httpx.ASGITransport(app=built.app)
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8003", headers={"Accept-Language": "fr"}
        ) as browser:
            for _ in range(2):
                await browser.get("/cards")
            answer = await browser.get("/cards")
    finally:
        await built.courier.http.aclose()
        await built.authority.http.aclose()
        await built.db.close()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
