"""What of SMART is said before there is a token, and over what it is said (SM-01, SM-07 to 10)."""

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from services.plumbing import auth, egress
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from tests.services import notify_builders as build
from tests.services.ingest_door import BASE, IngestDoor, opened
from tests.services.notify_door import Doorway


@pytest.fixture
async def hospitals(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[IngestDoor]:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        yield made


@pytest.fixture
async def clinics(db: Callable[[str], Database]) -> AsyncIterator[httpx.AsyncClient]:
    door = Doorway(db("notify"), build.house())
    yield door.stranger()
    await door.close()


async def test_sm_07_to_10_configuration_and_metadata_are_open_to_all_origins(
    hospitals: IngestDoor, clinics: httpx.AsyncClient
) -> None:
    """At both doors. SM-08 fails by design: `authorization_code` is nothing for machines."""

    async def at_ingest(path: str) -> httpx.Response:
        return await hospitals.stage.http.get(f"{BASE}{path}")

    async def at_notify(path: str) -> httpx.Response:
        return await clinics.get(f"/fhir{path}")

    for get in (at_ingest, at_notify):
        smart = await get("/.well-known/smart-configuration")
        assert smart.status_code == 200
        assert smart.headers["content-type"] == "application/json"
        assert smart.headers["access-control-allow-origin"] == "*"
        said = smart.json()
        assert said["token_endpoint"].startswith("http")
        assert said["grant_types_supported"] == ["client_credentials"]
        assert said["token_endpoint_auth_methods_supported"] == ["private_key_jwt"]
        assert "client-confidential-asymmetric" in said["capabilities"]
        metadata = await get("/metadata")
        assert metadata.status_code == 200
        assert metadata.headers["access-control-allow-origin"] == "*"
        assert metadata.json()["resourceType"] == "CapabilityStatement"


async def test_sm_01_our_own_calls_demand_tls_1_2() -> None:
    """Of an authority and of a clinic's endpoint; and they verify the name."""
    async with auth.authority_client(Egress()) as one, egress.client() as other:
        guarded = one._transport
        assert isinstance(guarded, egress.GuardedTransport)
        for wire in (guarded._wire, other._transport):
            assert isinstance(wire, httpx.AsyncHTTPTransport)
            context = wire._pool._ssl_context
            assert context is not None
            assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
            assert context.verify_mode is ssl.CERT_REQUIRED
            assert context.check_hostname
