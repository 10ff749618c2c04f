"""What a service's door makes of an access token (SM-30, SM-31, HA-63, E-4)."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from services.plumbing import audit
from services.plumbing.auth import (
    Auth,
    Caller,
    caller,
    demand,
    guard,
    require,
    require_role,
    smart_configuration,
)
from services.plumbing.db import Database
from services.plumbing.web import make_app
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import (
    AUDIENCE,
    ISSUER,
    NOW,
    Stage,
    ec_key,
    jwks,
    region,
    rsa_key,
    shared_database,
    signed,
    staged,
)

DOOR = "http://door.example.ca"


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    async with shared_database(cluster, f"t{os.getpid()}_auth_bearer") as made:
        yield made


@dataclass
class Door:
    """A service with a few endpoints, behind a Doorkeeper, and the authority it trusts."""

    stage: Stage
    db: Database
    auth: Auth

    async def get(self, path: str, token: str | None = None, **more: Any) -> httpx.Response:
        return await self.ask("GET", path, token, **more)

    async def ask(
        self, method: str, path: str, token: str | None = None, **more: Any
    ) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.stage.http.request(method, DOOR + path, headers=headers, **more)

    async def refusals(self) -> list[audit.AuditRecord]:
        async with self.db.work() as tx:
            rows = (await tx.exec_driver_sql("select * from audit order by position")).all()
        return [audit.stored(row) for row in rows]

    def token(self, **changed: Any) -> str:
        """A token as the authority would make it, unless `changed`; None leaves a claim out."""
        now = int(self.stage.clock().timestamp())
        key = changed.pop("key", ec_key("authority"))
        alg = changed.pop("alg", "ES384")
        header = changed.pop("header", {"typ": "at+jwt"})
        claims = {
            "iss": ISSUER,
            "sub": "clinic-a-emr",
            "client_id": "clinic-a-emr",
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 300,
            "jti": "TEST-token",
            "scope": "system/Task.rs",
        } | changed
        kept = {name: value for name, value in claims.items() if value is not None}
        return signed(kept, key, alg, header)


@pytest.fixture
async def door(shared: FreshDatabase) -> AsyncIterator[Door]:
    async with opened(shared) as made:
        yield made


@asynccontextmanager
async def opened(shared: FreshDatabase) -> AsyncIterator[Door]:
    keys = Database(shared.url("authority"), "authority")
    db = Database(shared.url("notify"), "notify")
    async with staged(keys) as stage:
        auth = Auth(stage.authority(), AUDIENCE, lambda: stage.region[0], stage.clock)
        app = make_app("notify", db)
        guard(app, auth, audit.refusals(db, stage.clock))
        routes(app)
        stage.hosts[DOOR] = app
        yield Door(stage, db, auth)
    await keys.close()
    await db.close()


def routes(app: FastAPI) -> None:
    """Endpoints as a service has them; each says who came."""

    @app.get("/fhir/metadata")
    async def metadata() -> dict[str, str]:
        return {"resourceType": "CapabilityStatement"}

    @app.get("/fhir/Task")
    async def search(who: Annotated[Caller, Depends(require("Task", "s"))]) -> dict[str, Any]:
        return {"id": who.id, "clinic": who.clinic, "tenant": who.tenant, "token": who.token_id}

    @app.post("/fhir/Task")
    async def create(
        request: Request, who: Annotated[Caller, Depends(require("Task", "c"))]
    ) -> dict[str, Any]:
        return {"read": len(await request.body()), "id": who.id}

    @app.post("/fhir")
    async def batch(who: Annotated[Caller, Depends(caller)]) -> dict[str, str]:
        demand(who, "Task", "r")
        demand(who, "Patient", "c")
        return {}

    @app.get("/v1/flags")
    async def flags(who: Annotated[Caller, Depends(require_role("ops"))]) -> dict[str, str]:
        return {"id": who.id}


async def test_a_good_token_lets_its_client_in_as_the_region_file_knows_it(door: Door) -> None:
    answer = await door.get("/fhir/Task", door.token(clinic="clinic-b", tenant="clinic-b"))
    assert answer.json() == {
        "id": "clinic-a-emr",
        "clinic": "clinic-a",
        "tenant": "clinic-a",
        "token": "TEST-token",
    }


async def test_a_token_got_from_the_authority_is_good(door: Door) -> None:
    token = await door.stage.token(
        key=ec_key("emr"), iss="clinic-a-emr", sub="clinic-a-emr", scope="system/Task.rs"
    )
    assert (await door.get("/fhir/Task", token)).status_code == 200


async def test_metadata_needs_no_token(door: Door) -> None:
    assert (await door.get("/fhir/metadata")).status_code == 200
    assert (await door.get("/health/live")).status_code == 200


# SM-30: 401


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/fhir/Task", "GET"),
        ("/fhir/Nothing", "GET"),
        ("/fhir/Task", "DELETE"),
        ("/fhir", "POST"),
        ("/fhir/metadata/", "GET"),
        ("/fhir/../v1/flags", "GET"),
        ("/v1/flags", "GET"),
        ("/panel", "POST"),
    ],
)
async def test_without_a_token_every_guarded_path_is_401(
    door: Door, path: str, method: str
) -> None:
    """HA-63: before 404 and 405."""
    answer = await door.ask(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"].startswith("application/fhir+json")
    assert answer.json()["issue"][0]["code"] == "login"


async def test_no_body_is_read_before_authentication(door: Door) -> None:
    """HA-63"""

    async def carried(headers: dict[str, str]) -> int:
        """How the app behaves under ASGI: status, with a body that notices being asked for."""
        app = door.stage.hosts[DOOR]
        asked, statuses = 0, []

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/fhir/Task",
            "raw_path": b"/fhir/Task",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("192.0.2.7", 50000),
            "server": ("door.example.ca", 80),
            "state": {},
        }
        await app(scope, receive, send)
        assert len(statuses) == 1
        return asked if statuses[0] == 401 else -statuses[0]

    assert await carried({"authorization": "Bearer TEST"}) == 0
    assert await carried({}) == 0


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Basic dGVzdDp0ZXN0", "Bearer a b", "Bearer e30.e30.AA", "Token x"],
)
async def test_what_is_no_bearer_token_is_401(door: Door, authorization: str) -> None:
    headers = {"Authorization": authorization}
    answer = await door.stage.http.get(f"{DOOR}/fhir/Task", headers=headers)
    assert answer.status_code == 401


async def test_an_expired_token_is_401_and_says_so(door: Door) -> None:
    token = door.token()
    door.stage.clock.passes(seconds=299)
    assert (await door.get("/fhir/Task", token)).status_code == 200
    door.stage.clock.passes(seconds=1)
    answer = await door.get("/fhir/Task", token)
    assert answer.status_code == 401
    assert answer.json()["issue"][0]["code"] == "expired"
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://other.example.org"},
        {"iss": f"{ISSUER}/"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": ["another-service"]},
        {"aud": None},
        {"exp": None},
        {"exp": "2030-01-01"},
        {"exp": True},
        {"exp": float("nan")},
        {"nbf": int(NOW.timestamp()) + 60},
    ],
    ids=lambda changed: str(changed)[:40],
)
async def test_a_token_of_another_issuer_audience_or_time_is_401(
    door: Door, changed: dict[str, Any]
) -> None:
    answer = await door.get("/fhir/Task", door.token(**changed))
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_a_token_with_one_of_several_audiences_ours_is_good(door: Door) -> None:
    token = door.token(aud=["another-service", AUDIENCE])
    assert (await door.get("/fhir/Task", token)).status_code == 200


async def test_a_token_signed_by_another_key_of_the_same_name_is_401(door: Door) -> None:
    stranger = ec_key("stranger")
    token = door.token(key=stranger, header={"kid": ec_key("authority").kid})
    assert (await door.get("/fhir/Task", token)).status_code == 401


async def test_a_client_s_own_assertion_is_no_token(door: Door) -> None:
    token = door.token(key=ec_key("emr"), iss="clinic-a-emr")
    assert (await door.get("/fhir/Task", token)).status_code == 401


@pytest.mark.parametrize("alg", ["RS256", "PS384", "RS512"])
async def test_algorithms_that_are_not_named_are_401(door: Door, alg: str) -> None:
    """The issuer publishes the key; what is wrong is the algorithm alone."""
    door.stage.hosts[ISSUER] = issuer(rsa_key("issuer"))
    token = door.token(key=rsa_key("issuer"), alg=alg)
    assert (await door.get("/fhir/Task", token)).status_code == 401
    good = door.token(key=rsa_key("issuer"), alg="RS384")
    assert (await door.get("/fhir/Task", good)).status_code == 200


# SM-30: 403


async def test_a_scope_too_short_is_403_and_named(door: Door) -> None:
    answer = await door.ask("POST", "/fhir/Task", door.token(), content=b"{}")
    assert answer.status_code == 403
    assert answer.headers["www-authenticate"] == (
        'Bearer error="insufficient_scope", scope="system/Task.c"'
    )
    assert answer.json()["issue"][0]["code"] == "forbidden"


async def test_a_scope_that_the_region_file_took_away_is_403(door: Door) -> None:
    token = door.token()
    assert (await door.get("/fhir/Task", token)).status_code == 200
    less = {"id": "clinic-a-emr", "clinic": "clinic-a", "scopes": ["system/Flag.rs"]}
    door.stage.region[0] = region(clients=[less])
    assert (await door.get("/fhir/Task", token)).status_code == 403


async def test_a_client_that_left_the_region_file_is_403(door: Door) -> None:
    door.stage.region[0] = region(clients=[])
    assert (await door.get("/fhir/Task", door.token())).status_code == 403


async def test_each_inner_demand_is_checked(door: Door) -> None:
    answer = await door.ask("POST", "/fhir", door.token())
    assert answer.status_code == 403
    assert 'scope="system/Patient.c"' in answer.headers["www-authenticate"]


async def test_a_role_endpoint_is_for_that_role(door: Door) -> None:
    assert (await door.get("/v1/flags", door.token())).status_code == 403
    ops = door.token(client_id="ops-client", sub="ops-client", roles=["privacy"])
    assert (await door.get("/v1/flags", ops)).json() == {"id": "ops-client"}


# SM-31: what the authority publishes


def issuer(*keys: Any, cache_control: str = "max-age=60", named: str = ISSUER) -> FastAPI:
    """An issuer that publishes exactly these keys."""
    from fastapi.responses import JSONResponse

    app = FastAPI()

    @app.get("/.well-known/openid-configuration")
    async def configuration() -> JSONResponse:
        said = {"issuer": named, "jwks_uri": f"{ISSUER}/jwks"}
        return JSONResponse(said, headers={"Cache-Control": "max-age=3600"})

    @app.get("/jwks")
    async def published() -> JSONResponse:
        return JSONResponse(jwks(*keys), headers={"Cache-Control": cache_control})

    return app


def times_asked(door: Door) -> int:
    return door.stage.asked.count(f"{ISSUER}/jwks")


async def test_keys_are_asked_for_again_when_their_time_is_over(door: Door) -> None:
    for _ in range(3):
        await door.get("/fhir/Task", door.token())
    assert times_asked(door) == 1
    door.stage.clock.passes(seconds=59)
    await door.get("/fhir/Task", door.token())
    assert times_asked(door) == 1
    door.stage.clock.passes(seconds=1)
    await door.get("/fhir/Task", door.token())
    assert times_asked(door) == 2


async def test_keys_that_may_not_be_kept_are_not(door: Door) -> None:
    door.stage.hosts[ISSUER] = issuer(ec_key("authority"), cache_control="no-store")
    for _ in range(3):
        assert (await door.get("/fhir/Task", door.token())).status_code == 200
    assert times_asked(door) == 3


async def test_a_withdrawn_key_is_refused_once_its_time_is_over(door: Door) -> None:
    assert (await door.get("/fhir/Task", door.token())).status_code == 200
    door.stage.hosts[ISSUER] = issuer(ec_key("next"))
    door.stage.clock.passes(seconds=61)
    assert (await door.get("/fhir/Task", door.token())).status_code == 401
    next_ = door.token(key=ec_key("next"))
    assert (await door.get("/fhir/Task", next_)).status_code == 200


async def test_a_new_key_is_asked_for_at_once_but_not_at_every_unknown_name(door: Door) -> None:
    await door.get("/fhir/Task", door.token())
    door.stage.hosts[ISSUER] = issuer(ec_key("authority"), ec_key("next"))
    door.stage.clock.passes(seconds=6)
    assert (await door.get("/fhir/Task", door.token(key=ec_key("next")))).status_code == 200
    assert times_asked(door) == 2
    for number in range(20):
        unknown = door.token(header={"kid": f"TEST-{number}"})
        assert (await door.get("/fhir/Task", unknown)).status_code == 401
    assert times_asked(door) == 2


async def test_while_the_authority_is_away_the_answer_is_503(door: Door) -> None:
    """Neither in nor out: the sender tries again, and nothing was decided."""
    kept = door.stage.hosts.pop(ISSUER)
    answer = await door.get("/fhir/Task", door.token())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    door.stage.hosts[ISSUER] = kept
    assert (await door.get("/fhir/Task", door.token())).status_code == 200


async def test_discovery_of_another_issuer_is_not_believed(door: Door) -> None:
    key = ec_key("authority")
    door.stage.hosts[ISSUER] = issuer(key, named="https://other.example.org")
    assert (await door.get("/fhir/Task", door.token())).status_code == 503
    door.stage.clock.passes(hours=1)
    door.stage.hosts[ISSUER] = issuer(key)
    assert (await door.get("/fhir/Task", door.token())).status_code == 200


async def test_smart_configuration_names_the_token_endpoint(door: Door) -> None:
    said = await smart_configuration(door.auth.authority, ["system/Task.rs"])
    assert said["token_endpoint"] == f"{ISSUER}/token"
    assert said["token_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]


# E-4


async def test_every_refusal_is_on_record_without_a_patient(door: Door) -> None:
    before = len(await door.refusals())
    await door.get("/fhir/Task?patient:identifier=TEST-canary")
    await door.ask("POST", "/fhir/Task", door.token(), content=b"TEST-canary")
    nobody, client = (await door.refusals())[before:]
    assert (nobody.agent, nobody.agent_kind, nobody.outcome) == ("unknown", "unknown", 4)
    assert (client.agent, client.agent_kind, client.outcome) == ("clinic-a-emr", "client", 8)
    assert client.tenant == "clinic-a"
    assert client.token_id == "TEST-token"
    assert {nobody.reasons, client.reasons} == {("401",), ("403",)}
    assert nobody.patient is client.patient is None
    assert "TEST-canary" not in f"{nobody}{client}"


async def test_a_refusal_that_cannot_be_recorded_is_not_answered_as_one(
    door: Door, shared: FreshDatabase
) -> None:
    """CS-110: audit not writable, so 503."""
    owner = await shared.owner()
    await owner.execute("revoke insert on notify.audit from passerelle_notify_worker")
    try:
        answer = await door.get("/fhir/Task")
    finally:
        await owner.execute("grant insert on notify.audit to passerelle_notify_worker")
        await owner.close()
    assert answer.status_code == 503
