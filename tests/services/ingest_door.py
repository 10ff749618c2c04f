"""Builders for tests of the hospitals' door: a real one on PostgreSQL, its clock, its callers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
from sqlalchemy import text

from services.ingest.api import add_door
from services.ingest.flow import Heard, House, Keys
from services.plumbing import audit
from services.plumbing.auth import Auth, guard
from services.plumbing.clock import Clock, drive
from services.plumbing.db import Database
from services.plumbing.region import Region
from services.plumbing.sealing import Seals, Tokens
from services.plumbing.web import make_app
from tests.conftest import keyring
from tests.services.authorities import AUDIENCE, ISSUER, Stage, ec_key, signed, staged
from tests.services.authorities import NOW as TOKEN_NOW

NOW = datetime(2026, 5, 10, 16, 0, tzinfo=UTC)
BASE = "http://ingest.example.ca/fhir"
CARD = "https://fhir.infoway-inforoute.ca/NamingSystem/ca-qc-patient-healthcare-id"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
NOTIFICATION = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
ALL = "system/Encounter.cruds system/Patient.cruds"


def region(**of_site_a: Any) -> Region:
    """Two hospitals, one client each, and one client of both."""
    names = {"fr": "Hôpital fictif", "en": "Fictitious hospital"}
    client = {"scopes": ["system/Encounter.cruds", "system/Patient.cruds"]}
    return Region.model_validate(
        {
            "name": names,
            "sites": [
                {"id": "hospital-a", "name": names, "temporary_identity": "TEST-?TMP.*"}
                | of_site_a,
                {"id": "hospital-b", "name": names, "source_sets_last_updated": True},
            ],
            "clinics": [
                {"id": "clinic-a", "name": names, "identifiers": ["https://example.ca/lic|TEST-9"]}
            ],
            "clients": [
                {"id": "hospital-a", "sites": ["hospital-a"]} | client,
                {"id": "hospital-b", "sites": ["hospital-b"]} | client,
                {"id": "hospitals", "sites": ["hospital-a", "hospital-b"]} | client,
                {"id": "clinic-a-emr", "clinic": "clinic-a"} | client,
            ],
        }
    )


@dataclass
class IngestDoor:
    """The door, and what can be seen behind it."""

    house: House
    stage: Stage
    clock_file: Path
    regions: list[Region]
    numbers: dict[str, int] = field(default_factory=dict)

    def at(self, now: datetime) -> None:
        """Business time stands at `now`."""
        drive(self.clock_file, now, 0)

    def token(self, client: str, scope: str = ALL) -> str:
        now = int(TOKEN_NOW.timestamp())
        claims = {
            "iss": ISSUER, "sub": client, "client_id": client, "aud": AUDIENCE,
            "iat": now, "exp": now + 300, "jti": f"TEST-{uuid4()}", "scope": scope,
        }  # fmt: skip
        return signed(claims, ec_key("authority"), "ES384", {"typ": "at+jwt"})

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        who: str | None = "hospital-a",
        scope: str = ALL,
        **headers: str,
    ) -> httpx.Response:
        """A request; `body` is dumped unless it is bytes. Header names with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if who is not None:
            sent["Authorization"] = f"Bearer {self.token(who, scope)}"
        if body is not None:
            sent.setdefault("Content-Type", "application/fhir+json")
        raw = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        url = path if path.startswith("http") else f"{BASE}{path}"
        return await self.stage.http.request(method, url, content=raw, headers=sent)

    async def put(self, resource: dict[str, Any], **more: Any) -> httpx.Response:
        path = f"/{resource['resourceType']}/{resource['id']}"
        return await self.ask("PUT", path, resource, **more)

    async def post(self, resource: dict[str, Any], **more: Any) -> httpx.Response:
        return await self.ask("POST", f"/{resource['resourceType']}", resource, **more)

    async def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What was stated, oldest first."""
        rows = await self.rows("select type, data from outbox order by position")
        return [
            orjson.loads(row["data"]) | {"type": row["type"]}
            for row in rows
            if kind is None or row["type"] == kind
        ]

    async def facts(self) -> list[dict[str, Any]]:
        return await self.events("encounter.recorded.v1")

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        async with self.house.db.work() as tx:
            return [dict(row._mapping) for row in await tx.execute(text(sql))]

    async def held(self) -> list[str]:
        rows = await self.rows("select hold from version where hold is not null order by hold")
        return [row["hold"] for row in rows]


@asynccontextmanager
async def opened(
    db: Database, authority_db: Database, folder: Path, **of_site_a: Any
) -> AsyncIterator[IngestDoor]:
    """The door of two hospitals, at NOW."""
    clock_file = folder / "clock.json"
    drive(clock_file, NOW, 0)
    regions = [region(**of_site_a)]
    async with staged(authority_db) as stage:
        stage.region[0] = regions[0]
        authority = stage.authority()
        house = House(
            db=db,
            clock=Clock(clock_file),
            region=lambda: regions[0],
            keys=Keys(Tokens(keyring("tokens")), Seals(keyring("dates"), keyring("seals"))),
            heard=Heard(),
            base=BASE,
            authority=authority,
        )
        app = make_app("ingest", db)
        guard(
            app,
            Auth(authority, AUDIENCE, lambda: regions[0], stage.clock),
            audit.refusals(db, house.clock.now),
        )
        add_door(app, house)
        stage.hosts[BASE.removesuffix("/fhir")] = app
        yield IngestDoor(house, stage, clock_file, regions)


def ed_visit(number: str = "1", **changes: Any) -> dict[str, Any]:
    """An Encounter of Patient/p1 in emergency; a change of `...` leaves a property out."""
    made: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": f"e{number}",
        "identifier": [
            {"system": "https://hospital-a.example.ca/visit", "value": f"TEST-{number}"}
        ],
        "status": "finished",
        "class": {"system": ACT_CODE, "code": "EMER"},
        "subject": {"reference": "Patient/p1"},
        "period": {"start": "2026-05-02T20:00:00-04:00", "end": "2026-05-03T04:30:00-04:00"},
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def patient(
    id_: str = "p1", *, card: str | None = "TEST00000001", born: str = "1980-02-03", **changes: Any
) -> dict[str, Any]:
    """A Patient with a record number, and a health card unless `card` is None."""
    system = "https://hospital-a.example.ca/record"
    identifiers = [{"system": system, "value": f"TEST-MRN-{id_}"}]
    if card is not None:
        identifiers.append({"system": CARD, "value": card})
    made: dict[str, Any] = {
        "resourceType": "Patient",
        "id": id_,
        "identifier": identifiers,
        "name": [{"family": "TESTFAMILY", "given": ["TESTGIVEN"]}],
        "birthDate": born,
        "gender": "female",
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def bundle(
    kind: str, *entries: tuple[str, str, dict[str, Any] | None], **more: Any
) -> dict[str, Any]:
    """A batch or transaction of (method, url, resource)."""
    return {
        "resourceType": "Bundle",
        "type": kind,
        "entry": [
            {
                **({"fullUrl": f"urn:uuid:{uuid4()}"} if resource else {}),
                **({"resource": resource} if resource else {}),
                "request": {"method": method, "url": url},
            }
            for method, url, resource in entries
        ],
        **more,
    }


def notification(
    event: str,
    encounter: dict[str, Any],
    who: dict[str, Any],
    *,
    id_: str = "TEST-bundle-1",
    header: str = "TEST-header-1",
    at: str = "2026-05-03T00:05:00Z",
) -> dict[str, Any]:
    """A Da Vinci notification Bundle."""
    about, whom = f"urn:uuid:{uuid4()}", f"urn:uuid:{uuid4()}"
    entries = [
        (f"urn:uuid:{uuid4()}", {
            "resourceType": "MessageHeader",
            "id": header,
            "eventCoding": {"system": NOTIFICATION, "code": f"notification-{event}"},
            "source": {"name": "engine", "endpoint": "https://hospital-a.example.ca/engine"},
            "focus": [{"reference": about}],
        }),
        (about, encounter | {"subject": {"reference": whom}}),
        (whom, who),
    ]  # fmt: skip
    return {
        "resourceType": "Bundle",
        "id": id_,
        "type": "message",
        "timestamp": at,
        "entry": [{"fullUrl": url, "resource": resource} for url, resource in entries],
    }
