"""notify's door with an issuer of its own, so that tests come in by HTTP with real tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
from fastapi import FastAPI

from services.notify.api import Door, add_door
from services.notify.telling import House
from services.plumbing import audit
from services.plumbing.auth import Auth, Authority, guard
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from services.plumbing.web import make_app
from tests.services import notify_builders as build
from tests.services.authorities import ISSUER, ec_key, jwks, signed
from tests.services.notify_builders import NOW

SCOPES = " ".join([*build.CLINIC_SCOPES, "system/Encounter.cruds"])


def issuer() -> FastAPI:
    """What an issuer publishes."""
    app = FastAPI()

    @app.get("/.well-known/openid-configuration")
    async def discovery() -> dict[str, Any]:
        return {
            "issuer": ISSUER,
            "jwks_uri": f"{ISSUER}/jwks",
            "token_endpoint": f"{ISSUER}/token",
        }

    @app.get("/jwks")
    async def keys() -> dict[str, Any]:
        return jwks(ec_key("issuer"))

    return app


def token(client: str, scope: str = SCOPES) -> str:
    now = int(real_now().timestamp())
    claims = {
        "iss": ISSUER,
        "aud": "passerelle",
        "client_id": client,
        "sub": client,
        "scope": scope,
        "exp": now + 300,
        "jti": str(uuid4()),
    }
    return signed(claims, ec_key("issuer"), "ES384")


@dataclass
class Doorway:
    """The door, and clients that come to it."""

    db: Database
    house: House
    now: Any = NOW
    resolved: Sequence[str] = ("93.184.215.14",)
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=issuer()))
        authority = Authority(ISSUER, self.http)
        app = make_app("notify", self.db)
        auth = Auth(authority, "passerelle", self.house.region)
        guard(app, auth, audit.refusals(self.db, lambda: self.now))

        async def resolve(host: str, port: int) -> Sequence[str]:
            return self.resolved

        door = Door(
            db=self.db,
            house=self.house,
            now=lambda: self.now,
            cursor_key=b"k" * 32,
            gate=lambda _clinic: Egress(local=True),
            authority=authority,
            resolve=resolve,
        )
        add_door(app, door)
        self.app = app

    def client(self, name: str, scope: str = SCOPES) -> httpx.AsyncClient:
        made = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app),
            base_url=build.BASE.removesuffix("/fhir"),
            headers={"Authorization": f"Bearer {token(name, scope)}"},
        )
        self.clients.append(made)
        return made

    def stranger(self) -> httpx.AsyncClient:
        made = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app),
            base_url=build.BASE.removesuffix("/fhir"),
        )
        self.clients.append(made)
        return made

    async def close(self) -> None:
        for client in (*self.clients, self.http):
            await client.aclose()

    def passes(self, **span: float) -> None:
        self.now += timedelta(**span)


def consent(patient: UUID, provision: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A Consent as a hospital's consent office sends it."""
    return {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [{"system": build.TERMS + "consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"identifier": {"system": build.CARD, "value": build.number(patient)}},
        "dateTime": "2026-01-15T10:00:00-05:00",
        "policy": [{"uri": "https://example.ca/policies/sharing"}],
        **({} if provision is None else {"provision": provision}),
        **more,
    }


def panel(*patients: UUID, nurse: str = "nurse-a", family: str = "Fictif") -> str:
    rows = [f"{build.CARD},{build.number(p)},{family},1950-02-03,{nurse}" for p in patients]
    return "\n".join(["card_system,card_number,family,birth_date,nurse", *rows]) + "\n"
