"""Builders for tests of tokens and sign-in: a driven clock, a region, keys, an authority."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import httpx
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from services.cli import postgres
from services.cli.authority import LoopbackAuthority, RelyingParty, make_authority
from services.plumbing.auth import Authority
from services.plumbing.db import Database
from services.plumbing.region import Region
from tests.conftest import TEMPLATE, Cluster, FreshDatabase

ISSUER = "http://127.0.0.1:8000"
NOTIFY = "http://127.0.0.1:8003"
AUDIENCE = "passerelle"
SECRET = "synthetic secret: of the tests"
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
_numbers = itertools.count(1)


@dataclass
class DrivenClock:
    """Real time, as a test says it is."""

    instant: datetime = NOW

    def __call__(self) -> datetime:
        return self.instant

    def passes(self, **span: float) -> None:
        self.instant += timedelta(**span)


@cache
def rsa_key(name: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": f"TEST-{name}"})


@cache
def ec_key(name: str, curve: str = "P-384") -> ECKey:
    return ECKey.generate_key(curve, {"kid": f"TEST-{name}"})


def jwks(*keys: RSAKey | ECKey) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def region(**changed: Any) -> Region:
    """Two hospitals, two clinics, one client of each kind, four people."""
    names = {"fr": "Organisme fictif", "en": "Fictitious organization"}
    said: dict[str, Any] = {
        "name": names,
        "sites": [{"id": "hospital-a", "name": names}, {"id": "hospital-b", "name": names}],
        "clinics": [{"id": "clinic-a", "name": names}, {"id": "clinic-b", "name": names}],
        "people": [
            {"id": "nurse-a", "name": "Infirmière fictive A", "roles": ["clinic_cm"]}
            | {"clinic": "clinic-a"},
            {"id": "hospital-cm", "name": "Gestionnaire fictive", "roles": ["hosp_cm"]}
            | {"site": "hospital-a", "language": "en"},
            {"id": "privacy", "name": "Responsable fictive", "roles": ["privacy", "ops"]},
            {"id": "visitor", "name": "Visiteuse fictive"},
        ],
        "clients": [
            {"id": "hospital-a", "sites": ["hospital-a"], "jwks": jwks(rsa_key("rs"), ec_key("es"))}
            | {"scopes": ["system/Encounter.cruds", "system/Patient.cruds"]},
            {"id": "hospitals", "sites": ["hospital-a", "hospital-b"], "jwks": jwks(ec_key("two"))}
            | {"scopes": ["system/Encounter.cu"]},
            {"id": "clinic-a-emr", "clinic": "clinic-a", "jwks": jwks(ec_key("emr"))}
            | {"scopes": ["system/Task.rus", "system/Flag.rs"]},
            {"id": "ops-client", "roles": ["ops"], "jwks": jwks(ec_key("ops"))}
            | {"scopes": ["system/*.rs"]},
            {"id": "elsewhere", "clinic": "clinic-b", "jwks_url": "http://127.0.0.1:9999/jwks"}
            | {"scopes": ["system/Task.rs"]},
        ],
    }
    return Region.model_validate(said | changed)


def signed(claims: dict[str, Any], key: Any, alg: str, header: dict[str, Any] | None = None) -> str:
    """A JWT with exactly this header, besides `alg`, `typ` and `kid`; None leaves one out."""
    full = {"alg": alg, "typ": "JWT", "kid": key.kid} | (header or {})
    kept = {name: value for name, value in full.items() if value is not None}
    return jwt.encode(kept, dict(claims), key, algorithms=[alg], default_type=None)


def assertion(
    clock: DrivenClock,
    *,
    key: Any = None,
    alg: str = "ES384",
    header: dict[str, Any] | None = None,
    **changed: Any,
) -> str:
    """hospital-a's assertion, good unless `changed`; a claim changed to None is left out."""
    claims = {
        "iss": "hospital-a",
        "sub": "hospital-a",
        "aud": f"{ISSUER}/token",
        "exp": int(clock().timestamp()) + 240,
        "jti": f"TEST-{next(_numbers)}",
    } | changed
    kept = {name: value for name, value in claims.items() if value is not None}
    return signed(kept, key or ec_key("es"), alg, header)


@dataclass
class Stage:
    """An authority, and HTTP to it and to whatever else is `put` behind a host and port."""

    app: FastAPI
    clock: DrivenClock
    region: list[Region]
    hosts: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """URLs asked for, in order."""

    def __post_init__(self) -> None:
        self.hosts[ISSUER] = self.app
        self.http = httpx.AsyncClient(transport=_ByHost(self), follow_redirects=False)

    def authority(self) -> Authority:
        return Authority(ISSUER, self.http, now=self.clock)

    async def ask(self, form: dict[str, str], **headers: str) -> httpx.Response:
        """A request to the token endpoint."""
        return await self.http.post(f"{ISSUER}/token", data=form, headers=headers)

    async def ask_as_machine(self, assertion: str, **changed: str) -> httpx.Response:
        form = {
            "grant_type": "client_credentials",
            "scope": "system/Encounter.cu",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": assertion,
        }
        return await self.ask({k: v for k, v in (form | changed).items() if v})

    async def token(self, **changed: Any) -> str:
        scope = changed.pop("scope", "system/Encounter.cu")
        answer = await self.ask_as_machine(assertion(self.clock, **changed), scope=scope)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token


class _ByHost(httpx.AsyncBaseTransport):
    """Carries a request to the app that stands behind its host and port; else nobody answers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._stage.asked.append(str(request.url))
        app = self._stage.hosts.get(f"{request.url.scheme}://{request.url.netloc.decode()}")
        if app is None:
            raise httpx.ConnectError("nobody listens", request=request)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return await transport.handle_async_request(request)


@asynccontextmanager
async def shared_database(cluster: Cluster, name: str) -> AsyncIterator[FreshDatabase]:
    """One migrated database for all tests of a module, where what they leave cannot meet."""
    await cluster.run(f"create database {name} template {TEMPLATE} owner {postgres.OWNER}")
    yield FreshDatabase(cluster, name)
    await cluster.run(f"drop database {name} with (force)")


@asynccontextmanager
async def staged(db: Database, clock: DrivenClock | None = None) -> AsyncIterator[Stage]:
    """A loopback authority on `db`, which is its own schema's."""
    clock = clock or DrivenClock()
    regions = [region()]
    relying = RelyingParty(
        id="passerelle",
        secret=SECRET,
        redirect_uris=frozenset({f"{NOTIFY}/sign-in/return"}),
        after_sign_out=frozenset({f"{NOTIFY}/"}),
    )
    made: list[Stage] = []
    carrier = httpx.AsyncClient(transport=_Late(made))
    authority = LoopbackAuthority(
        issuer=ISSUER,
        audience=AUDIENCE,
        key=ec_key("authority"),
        db=db,
        region=lambda: regions[0],
        relying=relying,
        http=carrier,
        now=clock,
    )
    stage = Stage(make_authority(authority, db), clock, regions)
    made.append(stage)
    yield stage
    await stage.http.aclose()
    await carrier.aclose()


class _Late(httpx.AsyncBaseTransport):
    """The stage's own transport, for the authority that is built before it."""

    def __init__(self, made: list[Stage]) -> None:
        self._made = made

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await _ByHost(self._made[0]).handle_async_request(request)
