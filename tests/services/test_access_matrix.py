"""Every endpoint by every kind of caller: who gets in, and who does not (CS-90, CS-93).

The endpoints are those the apps have; one that stands in no row of EXPECTED fails, and so does
a row whose endpoint is gone.
"""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import httpx
import orjson
import pytest
import yaml
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr

from schemas.flag_changed_v1 import Cause
from services.ingest import __main__ as ingest
from services.notify import __main__ as notify
from services.notify import flow, intake, store
from services.notify.intake import Capture
from services.notify.subscriptions import BACKPORT, TOPICS
from services.plumbing.audit import Trail
from services.plumbing.clock import drive, real_now
from services.plumbing.sealing import Seals
from services.plumbing.settings import IngestSettings, NotifySettings, ScreeningSettings
from services.plumbing.signin import csrf_token
from services.screening import __main__ as screening
from services.screening import flow as counted
from services.screening import registry
from services.simulator.flow import REGION_FILE
from tests.conftest import Cluster, FreshDatabase, keyring
from tests.services import notify_builders as build
from tests.services.authorities import ec_key, jwks, shared_database, signed
from tests.services.notify_door import consent
from tests.web.serving import served

pytestmark = pytest.mark.slow

# Who comes

PEOPLE = {
    "nurse-a": "clinic_cm",
    "nurse-b": "clinic_cm",
    "hospital-cm": "hosp_cm",
    "physician": "physician",
    "lead-physician": "lead_md",
    "clinic-manager": "clinic_manager",
    "coordinator": "coordinator",
    "manager": "manager",
    "ops": "ops",
    "privacy": "privacy",
    "student-a": "no role",
    "retired": "a role that has ended",
}
"""Persons of the region file, one of each role at least; by session."""
CLIENTS = ("hospital-a", "hospital-b", "clinic-a-emr", "clinic-b-emr", "ops-client", "reporting")
"""Machines with all that the region file grants them. What is asked for is hospital-a's or
clinic-a's."""
SHORT = tuple(f"{client}, short scope" for client in CLIENTS)
"""The same with a token for `system/Basic.r` alone."""
CLAIMING = tuple(f"{client}, claimed scope" for client in ("hospital-a", "clinic-a-emr"))
"""With a token that says `system/*.cruds`: the region file grants less."""
BAD = (
    "no token",
    "expired token",
    "another issuer",
    "another audience",
    "another key",
    "not a token",
    "basic credentials",
    "session only",
)
CALLERS = (
    *BAD,
    "unknown client",
    *CLIENTS,
    *SHORT,
    *CLAIMING,
    *PEOPLE,
    "no session",
    "old session",
)

# What becomes of it. "in": neither refused nor told that nothing is there.

IN, EMPTY, NOT_THERE, NO_TOKEN, REFUSED, SIGN_IN = "in", "empty", "404", "401", "403", "303"


@dataclass(frozen=True)
class Row:
    """One endpoint: how it is asked, and what becomes of each caller who is not named in `of`."""

    path: str
    of: Mapping[str, str]
    body: Any = None
    media: str = "application/fhir+json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def expected(self, caller: str) -> str:
        return self.of[caller]


def machines(path: str, *, hospitals: str, clinics: str, ops: str = REFUSED, **more: Any) -> Row:
    """A guarded path. `hospitals` and `clinics`: what the first and the second of each get."""
    own_site, other_site = hospitals.split()
    own_clinic, other_clinic = clinics.split()
    claimed = more.pop("claimed", None) or (own_site, own_clinic)
    short = more.pop("short", REFUSED)
    of = (
        dict.fromkeys(BAD, NO_TOKEN)
        | dict.fromkeys((*PEOPLE, "no session", "old session"), NO_TOKEN)
        | dict.fromkeys(SHORT, short)
        | {
            "unknown client": REFUSED,
            "hospital-a": own_site,
            "hospital-b": other_site,
            "clinic-a-emr": own_clinic,
            "clinic-b-emr": other_clinic,
            "ops-client": ops,
            "reporting": more.pop("reporting", REFUSED),
        }
        | dict(zip(CLAIMING, claimed, strict=True))
    )
    of |= more.pop("also", {})
    return Row(path, of, **more)


def page(path: str, *may: str, strangers: str = SIGN_IN, others: str = REFUSED, **more: Any) -> Row:
    """A page for people: `may` are ids, or `id=outcome`; who has no session is sent to sign in.

    A machine's token is nothing to a page. One who has no role, or none any more, gets nowhere.
    """
    of = dict.fromkeys(CALLERS, strangers) | dict.fromkeys(PEOPLE, others)
    of |= {one.partition("=")[0]: one.partition("=")[2] or IN for one in may}
    of |= {"session only": of["nurse-a"], "student-a": REFUSED, "retired": REFUSED}
    of |= more.pop("also", {})
    return Row(path, of, media="application/x-www-form-urlencoded", **more)


def to_all(path: str, outcome: str = IN, **more: Any) -> Row:
    return Row(path, dict.fromkeys(CALLERS, outcome), **more)


EXCLUDE = "act=exclude&version=0&reason=other&note=TEST-something-to-say"
ENCOUNTER = {
    "resourceType": "Encounter",
    "id": "TEST-1",
    "status": "finished",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "EMER"},
    "subject": {
        "identifier": {
            "system": "https://hospital-a.example.ca/record",
            "value": "TEST-0001",
        }
    },
    "period": {"start": "2026-03-01T08:00:00-05:00", "end": "2026-03-01T14:00:00-05:00"},
}
BATCH = {
    "resourceType": "Bundle",
    "type": "batch",
    "entry": [{"request": {"method": "GET", "url": "Encounter?identifier=x|TEST"}}],
}
SUBSCRIPTION = {
    "resourceType": "Subscription",
    "status": "requested",
    "reason": "TEST",
    "criteria": next(iter(TOPICS)),
    "channel": {
        "type": "rest-hook",
        "endpoint": "http://127.0.0.1:9/hook",
        "payload": "application/fhir+json",
        "_payload": {
            "extension": [{"url": f"{BACKPORT}backport-payload-content", "valueCode": "id-only"}]
        },
    },
}
PATIENT = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")
CHANGED = SUBSCRIPTION | {"id": "{subscription}", "reason": "TEST, changed"}
CONSENT = consent(PATIENT, {"type": "permit"}) | {"id": "{consent}"}
EVERYWHERE = {
    ("GET", "/health/live"): to_all("/health/live"),
    ("GET", "/health/ready"): to_all("/health/ready"),
    ("GET", "/metrics"): to_all("/metrics"),
}
OPEN_FHIR = {
    ("GET", "/fhir/metadata"): to_all("/fhir/metadata"),
    ("GET", "/fhir/.well-known/smart-configuration"): to_all(
        "/fhir/.well-known/smart-configuration"
    ),
}

# Which ids stand for what is there: {encounter}, {task} … are put in when it was made.

_HOSPITAL = {"hospitals": "in in", "clinics": "403 403"}
_OWN_READ = {"hospitals": "in 404", "clinics": "403 403"}

INGEST = {
    **EVERYWHERE,
    **OPEN_FHIR,
    ("POST", "/fhir"): machines("/fhir", **_HOSPITAL, body=BATCH),
    ("POST", "/fhir/"): machines("/fhir/", **_HOSPITAL, body=BATCH),
    ("POST", "/fhir/$process-message"): machines("/fhir/$process-message", **_HOSPITAL),
    ("POST", "/fhir/{kind}/$validate"): machines("/fhir/Encounter/$validate", **_HOSPITAL),
    ("POST", "/fhir/{kind}"): machines("/fhir/Encounter", **_HOSPITAL),
    ("PUT", "/fhir/{kind}"): machines("/fhir/Encounter?identifier=x|TEST", **_HOSPITAL),
    ("GET", "/fhir/{kind}"): machines(
        "/fhir/Encounter?_id=TEST-1", hospitals="in empty", clinics="403 403"
    ),
    ("PUT", "/fhir/{kind}/{id_}"): machines("/fhir/Encounter/TEST-2", **_HOSPITAL),
    ("GET", "/fhir/{kind}/{id_}"): machines("/fhir/Encounter/{encounter}", **_OWN_READ),
    ("DELETE", "/fhir/{kind}/{id_}"): machines(
        "/fhir/Encounter/TEST-absent", hospitals="404 404", clinics="403 403"
    ),
    ("GET", "/fhir/{kind}/{id_}/_history/{version}"): machines(
        "/fhir/Encounter/{encounter}/_history/1", **_OWN_READ
    ),
}
_REGION: dict[str, Any] = {
    "hospitals": "403 403",
    "clinics": "403 403",
    "ops": IN,
    "reporting": IN,
    # The role `ops` opens it, or the scope (counting.md section 9).
    "also": {"ops-client, short scope": IN},
}
_OPERATIONS: dict[str, Any] = {**_REGION, "reporting": REFUSED}
"""What a policy says is for the role `ops` alone to change."""
YAML = "application/yaml"
SCREENING = {
    **EVERYWHERE,
    ("GET", "/v1/flags"): machines("/v1/flags", **_REGION),
    ("GET", "/v1/patients/{key}/flag"): machines("/v1/patients/{patient}/flag", **_REGION),
    ("GET", "/v1/patients/{key}/changes"): machines("/v1/patients/{patient}/changes", **_REGION),
    ("GET", "/v1/policies"): machines("/v1/policies", **_REGION),
    ("GET", "/v1/policies/{name}/{version}"): machines("/v1/policies/qc-default/3", **_REGION),
    ("GET", "/v1/policies/{name}/{version}/diff"): machines(
        "/v1/policies/qc-default/3/diff?against=qc-default@3", **_REGION
    ),
    ("POST", "/v1/policies"): machines(
        "/v1/policies", **_OPERATIONS, body="name: TEST-matrix\nversion: 1", media=YAML
    ),
    ("POST", "/v1/policies/{name}/{version}/activate"): machines(
        "/v1/policies/qc-default/3/activate",
        **_OPERATIONS,
        body={"mode": "live", "at": "2999-01-01T00:00:00Z"},
        media="application/json",
    ),
    ("POST", "/v1/backtests"): machines(
        "/v1/backtests", **_REGION, body={"policy": "qc-default"}, media="application/json"
    ),
    ("GET", "/v1/backtests"): machines("/v1/backtests", **_REGION),
    ("GET", "/v1/backtests/{id_}"): machines("/v1/backtests/{backtest}", **_REGION),
}


def clinics_read(
    type_: str,
    id_: str,
    *,
    hospitals: str = REFUSED,
    read: str = "in 404",
    search: str = "in empty",
) -> dict[tuple[str, str], Row]:
    """Read and search of a type, of which something of clinic-a's is there."""
    asked = f"{EMPTY} {EMPTY}" if hospitals == IN else f"{REFUSED} {REFUSED}"
    absent = asked.replace(EMPTY, NOT_THERE)
    return {
        ("GET", f"/fhir/{type_}/{{id_}}"): machines(
            f"/fhir/{type_}/{id_}", hospitals=absent, clinics=read
        ),
        ("GET", f"/fhir/{type_}"): machines(f"/fhir/{type_}", hospitals=asked, clinics=search),
        ("POST", f"/fhir/{type_}/_search"): machines(
            f"/fhir/{type_}/_search", hospitals=asked, clinics=search
        ),
    }


def clinics_write(path: str, second: str, **more: Any) -> Row:
    return machines(
        path, hospitals=more.pop("hospitals", "403 403"), clinics=f"in {second}", **more
    )


CONSENTING = ("nurse-a", "nurse-b", "hospital-cm", "privacy")
BREAKING = ("hospital-cm", "physician")
CARD_SYSTEM = "https://health-card.example.ca"
MERGE = "application/merge-patch+json"
GUARDED = {"If-Match": 'W/"99"'}
NOTIFY = {
    **EVERYWHERE,
    **OPEN_FHIR,
    **clinics_read("Task", "{task}"),
    **clinics_read("Flag", "{flag}"),
    **clinics_read("Patient", "{patient}"),
    **clinics_read("Provenance", "{provenance}"),
    # Of these clinic-a has none: its own is told what another is told.
    **clinics_read("Communication", "{nothing}", read="404 404", search="empty empty"),
    **clinics_read("Organization", "clinic-a", read="in in", search="in in"),
    **clinics_read("PractitionerRole", "nurse-a", search="in in"),
    **clinics_read("Consent", "{consent}", hospitals=IN),
    **clinics_read("Subscription", "{subscription}"),
    ("GET", "/fhir/Task/{id_}/_history/{version}"): clinics_write(
        "/fhir/Task/{task}/_history/1", "404"
    ),
    ("PATCH", "/fhir/Task/{id_}"): clinics_write(
        "/fhir/Task/{task}", "404", body={"status": "accepted"}, media=MERGE, headers=GUARDED
    ),
    ("PUT", "/fhir/Task/{id_}"): clinics_write(
        "/fhir/Task/{task}", "404", body={"resourceType": "Task"}, headers=GUARDED
    ),
    ("POST", "/fhir/Consent"): clinics_write("/fhir/Consent", IN, hospitals="in in"),
    ("PUT", "/fhir/Consent/{id_}"): clinics_write(
        "/fhir/Consent/{consent}", "404", hospitals="404 404", body=CONSENT, headers=GUARDED
    ),
    ("GET", "/fhir/Consent/{id_}/_history/{version}"): clinics_write(
        "/fhir/Consent/{consent}/_history/1", "404", hospitals="404 404"
    ),
    ("GET", "/fhir/Consent/{id_}/_history"): clinics_write(
        "/fhir/Consent/{consent}/_history", "404", hospitals="404 404"
    ),
    ("POST", "/fhir/Subscription"): clinics_write("/fhir/Subscription", IN),
    ("PUT", "/fhir/Subscription/{id_}"): clinics_write(
        "/fhir/Subscription/{subscription}", "404", body=CHANGED
    ),
    ("DELETE", "/fhir/Subscription/{id_}"): machines(
        "/fhir/Subscription/{nothing}", hospitals="403 403", clinics="404 404"
    ),
    ("GET", "/fhir/Subscription/{id_}/$status"): clinics_write(
        "/fhir/Subscription/{subscription}/$status", "404"
    ),
    ("POST", "/fhir/Subscription/{id_}/$status"): clinics_write(
        "/fhir/Subscription/{subscription}/$status", "404"
    ),
    ("POST", "/fhir/Subscription/{id_}/$rotate-secret"): clinics_write(
        "/fhir/Subscription/{subscription}/$rotate-secret", "404"
    ),
    ("GET", "/fhir/Subscription/$status"): clinics_write("/fhir/Subscription/$status", EMPTY),
    ("POST", "/fhir/Subscription/$status"): clinics_write("/fhir/Subscription/$status", EMPTY),
    ("POST", "/panel"): clinics_write("/panel", IN),
    ("GET", "/"): page(
        "/", "nurse-a", "nurse-b", "privacy", "hospital-cm", "physician", strangers=IN
    ),
    ("GET", "/my-list"): page("/my-list", "nurse-a", "nurse-b"),
    ("GET", "/cards/{key}"): page("/cards/{task}", "nurse-a", "nurse-b=404"),
    ("POST", "/cards/{key}/take"): page(
        "/cards/{task}/take", "nurse-a", "nurse-b=404", body="version=99"
    ),
    ("GET", "/patients"): page("/patients", "hospital-cm"),
    ("GET", "/patients/{key}"): page("/patients/{patient}", "hospital-cm"),
    ("GET", "/patients/{key}/visits/{visit}"): page(
        "/patients/{patient}/visits/{visit}", "hospital-cm"
    ),
    ("POST", "/patients/{key}/visits/{visit}"): page(
        "/patients/{patient}/visits/{visit}", "hospital-cm", body=EXCLUDE
    ),
    ("GET", "/register"): page("/register", "privacy"),
    ("POST", "/register"): page("/register", "privacy", body="patient={patient}"),
    ("GET", "/consents"): page("/consents", *CONSENTING),
    ("POST", "/consents"): page("/consents", *CONSENTING, body=f"system={CARD_SYSTEM}&number=TEST"),
    ("POST", "/consents/record"): page(
        "/consents/record", *CONSENTING, body=f"system={CARD_SYSTEM}&number=TEST"
    ),
    ("GET", "/consents/{id_}"): page(
        "/consents/{consent}", "nurse-a", "nurse-b=404", "hospital-cm=404", "privacy"
    ),
    ("POST", "/consents/{id_}/withdraw"): page(
        "/consents/{consent}/withdraw",
        "nurse-a",
        "nurse-b=404",
        "hospital-cm=404",
        "privacy",
        body="version=99",
    ),
    ("GET", "/holds"): page("/holds", "hospital-cm", "privacy"),
    ("GET", "/holds/{key}"): page("/holds/{hold}", "hospital-cm", "privacy"),
    ("POST", "/holds/{key}/dismiss"): page(
        "/holds/{hold}/dismiss", "hospital-cm", "privacy", body="refused={nothing}&why=short"
    ),
    ("POST", "/holds/{key}/assess"): page(
        "/holds/{hold}/assess", "hospital-cm", "privacy", body="encounter={nothing}"
    ),
    ("POST", "/holds/{key}/assign"): page(
        "/holds/{hold}/assign", "hospital-cm", "privacy", body="version=1"
    ),
    ("POST", "/holds/{key}/review"): page("/holds/{hold}/review", "privacy", body="why=short"),
    ("POST", "/holds/{key}/told"): page("/holds/{hold}/told", "privacy=404"),
    ("GET", "/break-glass"): page("/break-glass", *BREAKING),
    ("POST", "/break-glass"): page("/break-glass", *BREAKING, body="number=TEST"),
    ("GET", "/break-glass/{key}"): page(
        "/break-glass/{nothing}", *(f"{who}=404" for who in BREAKING)
    ),
    ("POST", "/register/report"): page(
        "/register/report", "privacy=404", body="patient={nothing}&in=fr"
    ),
    ("GET", "/incidents"): page("/incidents", "privacy"),
    ("POST", "/incidents"): page("/incidents", "privacy", body="began=soon"),
    ("GET", "/incidents/new"): page("/incidents/new", "privacy"),
    ("GET", "/incidents/{key}"): page("/incidents/{nothing}", "privacy=404"),
    ("POST", "/incidents/{key}"): page("/incidents/{nothing}", "privacy=404", body="version=1"),
    ("POST", "/language"): page("/language", *PEOPLE, strangers=IN),
    ("POST", "/session"): page("/session", *PEOPLE),
    ("GET", "/static/{name}"): to_all("/static/passerelle.css"),
    ("GET", "/sign-in"): to_all("/sign-in"),
    ("GET", "/sign-in/return"): to_all("/sign-in/return"),
    # "session only" is nurse-a's, and has ended it before she does.
    ("POST", "/sign-out"): page("/sign-out", *PEOPLE, also={"nurse-a": SIGN_IN}),
}
EXPECTED: dict[str, dict[tuple[str, str], Row]] = {
    "ingest": INGEST,
    "screening": SCREENING,
    "notify": NOTIFY,
}


# The scene


@dataclass
class Scene:
    """The three apps as they run, an issuer, and something there to be asked for."""

    apps: dict[str, FastAPI]
    database: FreshDatabase
    issuer: str
    ids: dict[str, str]

    def token(self, client: str, scope: str, **changed: Any) -> str:
        now = int(real_now().timestamp())
        key = changed.pop("key", ec_key("issuer"))
        claims = {
            "iss": self.issuer,
            "aud": "passerelle",
            "client_id": client,
            "sub": client,
            "scope": scope,
            "exp": now + 300,
            "jti": str(uuid4()),
        }
        return signed(claims | changed, key, "ES384")

    def credentials(self, caller: str) -> dict[str, str]:
        """The headers this caller sends."""
        now = int(real_now().timestamp())
        client, _, kind = caller.partition(", ")
        every = " ".join(SCOPES.get(client, ("system/*.cruds",)))
        bearer: str | None = None
        match caller:
            case "expired token":
                bearer = self.token("hospital-a", every, exp=now - 1)
            case "another issuer":
                bearer = self.token("hospital-a", every, iss="https://elsewhere.example.org")
            case "another audience":
                bearer = self.token("hospital-a", every, aud="something-else")
            case "another key":
                bearer = self.token("hospital-a", every, key=ec_key("nobody's"))
            case "not a token":
                bearer = "TEST.not.token"
            case "basic credentials":
                return {"Authorization": "Basic VEVTVDpURVNU"}
            case "session only":
                return person_headers("nurse-a")
            case "no token" | "no session":
                return {}
            case "old session":
                return person_headers("old")
            case _ if caller in PEOPLE:
                return person_headers(caller)
            case _ if kind == "short scope":
                bearer = self.token(client, "system/Basic.r")
            case _ if kind == "claimed scope":
                bearer = self.token(client, "system/*.cruds")
            case _:
                bearer = self.token(client, every)
        return {"Authorization": f"Bearer {bearer}"}


SCOPES: dict[str, tuple[str, ...]] = {}


def secret_of(person: str) -> str:
    return f"TEST-secret-of-{person}"


def person_headers(person: str) -> dict[str, str]:
    """What the browser of somebody who is signed in sends with a form of ours."""
    return {
        "Cookie": f"passerelle-notify={secret_of(person)}",
        "X-CSRF-Token": csrf_token(secret_of(person)),
        "Sec-Fetch-Site": "same-origin",
    }


def publishing(issuer: Callable[[], str]) -> FastAPI:
    app = FastAPI()

    @app.get("/.well-known/openid-configuration")
    async def discovery() -> dict[str, Any]:
        return {
            "issuer": issuer(),
            "jwks_uri": f"{issuer()}/jwks",
            "token_endpoint": f"{issuer()}/token",
            "authorization_endpoint": f"{issuer()}/authorize",
            "end_session_endpoint": f"{issuer()}/end",
        }

    @app.get("/jwks")
    async def keys() -> dict[str, Any]:
        return jwks(ec_key("issuer"))

    return app


def region_file(folder: Path) -> Path:
    """The demo's region, with a machine for reports and a person whose roles have ended."""
    said = yaml.safe_load(REGION_FILE.read_text())
    said["clients"].append({"id": "reporting", "scopes": ["system/Flag.rs"], "roles": []})
    said["people"].append(
        {"id": "retired", "name": "Retraitée fictive", "roles": ["clinic_cm"], "clinic": "clinic-a"}
        | {"active_until": "2020-01-01"}
    )
    for client in said["clients"]:
        SCOPES[client["id"]] = tuple(client["scopes"])
    file = folder / "region.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


async def sign_in(shared: FreshDatabase) -> None:
    """A session of each person, and one that was over long ago."""
    owner = await shared.owner()
    every = [role for role in PEOPLE.values() if "role" not in role]
    for person in (*PEOPLE, "old"):
        await owner.execute(
            "insert into notify.session (id, person, asserted, id_token, begun, seen)"
            " values ($1, $2, $3, 'TEST', now() - $4 * interval '1 hour',"
            " now() - $4 * interval '1 hour') on conflict do nothing",
            hashlib.sha256(secret_of(person).encode()).digest(),
            "nurse-a" if person == "old" else person,
            every,
            11 if person == "old" else 0,
        )
    await owner.close()


async def made(
    built: notify.Built,
    counting: screening.Built,
    http: dict[str, httpx.AsyncClient],
    scene: Scene,
) -> dict[str, str]:
    """An encounter of hospital-a's; a card, a Consent and a Subscription of clinic-a's."""
    site = scene.credentials("hospital-a")
    answer = await http["ingest"].put("/fhir/Encounter/TEST-1", json=ENCOUNTER, headers=site)
    assert answer.status_code == 201, answer.text
    patient = PATIENT

    async def hear(handler: Any, event: Any) -> None:
        async with built.db.work() as tx:
            turn = flow.Turn(tx=tx, now=built.clock.now(), house=built.house)
            await handler([event], turn)

    await hear(flow.on_patients_identified, build.identified(patient))
    emr = scene.credentials("clinic-a-emr")
    csv = {"Content-Type": "text/csv", **emr}
    row = f"{build.CARD},{build.number(patient)},Fictif,1950-02-03,nurse-a"
    said = f"card_system,card_number,family,birth_date,nurse\n{row}\n"
    answer = await http["notify"].post("/panel?dry_run=false", content=said, headers=csv)
    assert answer.status_code == 200, answer.text
    told = build.flag(patient, cause=Cause.EVENT)
    await hear(flow.on_flags_changed, told)
    visit = str(told.explanation.items[0].encounters[0].key)
    ids = {"patient": str(patient), "encounter": "TEST-1", "visit": visit}
    for type_ in ("Task", "Flag", "Provenance"):
        answer = await http["notify"].get(f"/fhir/{type_}", headers=emr)
        assert answer.status_code == 200, answer.text
        ids[type_.lower()] = answer.json()["entry"][0]["resource"]["id"]
    said_consent = consent(patient, {"type": "permit"})
    answer = await http["notify"].post("/fhir/Consent", json=said_consent, headers=emr)
    assert answer.status_code == 201, answer.text
    ids["consent"] = answer.json()["id"]
    odd = {"type": "permit", "modifierExtension": [{"url": "x", "valueCode": "x"}]}
    held = consent(uuid5(patient, "held"), odd)
    await hear(flow.on_patients_identified, build.identified(uuid5(patient, "held")))
    async with built.db.work() as tx:
        now = built.clock.now()
        recording = flow.Turn(tx=tx, now=now, house=built.house)
        trail = Trail(now, "privacy", "person")
        await intake.capture_consent(Capture(held, "", "privacy"), recording, trail)
        (item,) = await store.items(tx, 10)
    ids["hold"] = str(item.id)
    answer = await http["notify"].post("/fhir/Subscription", json=SUBSCRIPTION, headers=emr)
    assert answer.status_code == 201, answer.text
    ids["subscription"] = answer.json()["id"]
    answer = await http["screening"].post(
        "/v1/backtests", json={"policy": "qc-default"}, headers=scene.credentials("ops-client")
    )
    assert answer.status_code == 202, answer.text
    ids["backtest"] = answer.json()["id"]
    ids["nothing"] = str(uuid4())
    async with counting.db.work() as tx:
        turn = counted.Turn(tx, counting.clock.now(), counting.policy, (), Seals(keyring("dates")))
        await counted.on_patients_identified([build.identified(patient)], turn)
        assert await registry.adopt(tx, counting.policy, turn.now)
    return ids


@pytest.fixture(scope="module")
async def scene(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Scene, dict[str, httpx.AsyncClient]]]:
    folder = tmp_path_factory.mktemp("matrix")
    address: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(shared_database(cluster, f"t{os.getpid()}_matrix"))
        issuer = await stack.enter_async_context(served(publishing(lambda: address[0])))
        address.append(issuer)
        drive(folder / "clock.json", build.NOW, 1.0)
        common: dict[str, Any] = {
            "region": region_file(folder),
            "issuer": issuer,
            "local": True,
            "clock": folder / "clock.json",
            "sign_ins_per_minute": 1000,
            "token_keys": keyring("tokens"),
            "seal_keys": keyring("seals"),
            "date_keys": keyring("dates"),
            "cursor_key": SecretStr("Q1VSU09S" * 6),
            "oidc_client_secret": SecretStr("synthetic-secret-of-the-tests"),
        }
        url = {name: SecretStr(shared.url(name)) for name in EXPECTED}
        built_ingest = ingest.build(IngestSettings(**common, database_url=url["ingest"]))
        built_screening = screening.build(
            ScreeningSettings(**common, database_url=url["screening"])
        )
        built_notify = notify.build(NotifySettings(**common, database_url=url["notify"]))
        for one in (built_ingest.house, built_screening, built_notify):
            stack.push_async_callback(one.db.close)
            stack.push_async_callback(one.authority.http.aclose)
        stack.push_async_callback(built_notify.courier.http.aclose)
        apps = {
            "ingest": built_ingest.app,
            "screening": built_screening.app,
            "notify": built_notify.app,
        }
        here = Scene(apps, shared, issuer, {})
        http: dict[str, httpx.AsyncClient] = {}
        for port, (name, app) in enumerate(apps.items(), start=8001):
            http[name] = await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
                    base_url=f"http://127.0.0.1:{port}",
                )
            )
        here.ids.update(await made(built_notify, built_screening, http, here))
        yield here, http


def endpoints(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route; HEAD goes with GET."""
    return set(_below(app.routes, ""))


def _below(routes: Sequence[Any], prefix: str) -> Iterator[tuple[str, str]]:
    for route in routes:
        router = getattr(route, "original_router", None)  # an included router, as FastAPI keeps it
        if router is not None:
            yield from _below(router.routes, prefix + route.include_context.prefix)
            continue
        methods = getattr(route, "methods", None)
        assert methods, f"{route} is no endpoint with methods: a mount hides what is beneath it"
        for method in methods - {"HEAD"}:
            yield method, prefix + route.path


def outcome(answer: httpx.Response) -> str:
    """What became of it, as EXPECTED says it."""
    status = answer.status_code
    if status == 303 and not answer.headers["location"].startswith("/sign-in"):
        return IN
    if status in (401, 403, 404, 303) or status >= 500:
        return str(status)
    if (
        answer.headers.get("content-type", "").startswith("application/fhir+json")
        and answer.content
    ):
        said = orjson.loads(answer.content)
        if said.get("type") == "searchset" and not said.get("entry"):
            return EMPTY
        if said.get("type") == "batch-response":
            inner = said["entry"][0]["response"]["status"][:3]
            return inner if inner in (NO_TOKEN, REFUSED, NOT_THERE) else IN
    return IN


Scenes = tuple[Scene, dict[str, httpx.AsyncClient]]


@pytest.mark.parametrize("service", EXPECTED)
async def test_every_endpoint_has_a_row_and_every_row_an_endpoint(
    scene: Scenes, service: str
) -> None:
    assert endpoints(scene[0].apps[service]) == set(EXPECTED[service])


def test_an_endpoint_nobody_thought_of_is_found() -> None:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/fhir/Planted/{id_}", lambda id_: None, methods=["GET", "PATCH"])
    inner = APIRouter(prefix="/inner")
    inner.add_api_route("/planted", lambda: None, methods=["DELETE"])
    app.include_router(inner, prefix="/outer")
    assert endpoints(app) == {
        ("GET", "/fhir/Planted/{id_}"),
        ("PATCH", "/fhir/Planted/{id_}"),
        ("DELETE", "/outer/inner/planted"),
    }


def test_every_row_says_what_becomes_of_every_caller() -> None:
    for rows in EXPECTED.values():
        for endpoint, row in rows.items():
            assert set(row.of) == set(CALLERS), endpoint


def cells() -> list[Any]:
    return [
        pytest.param(service, endpoint, id=f"{service} {' '.join(endpoint)}")
        for service, rows in EXPECTED.items()
        for endpoint in rows
    ]


@pytest.mark.parametrize(("service", "endpoint"), cells())
async def test_each_caller_gets_what_the_table_says(
    scene: Scenes, service: str, endpoint: tuple[str, str]
) -> None:
    """CS-93: expected against actual, cell by cell."""
    here, http = scene
    row = EXPECTED[service][endpoint]
    path = row.path.format(**here.ids)
    said = row.body if isinstance(row.body, str) else orjson.dumps(row.body or "").decode()
    for name, id_ in here.ids.items():
        said = said.replace(f"{{{name}}}", id_)
    content = said.encode() if row.body is not None else b""
    actual: dict[str, str] = {}
    await sign_in(here.database)
    for caller in CALLERS:
        http[service].cookies.clear()
        headers = {
            "Content-Type": row.media,
            **row.headers,
            **here.credentials(caller),
        }
        answer = await http[service].request(endpoint[0], path, content=content, headers=headers)
        actual[caller] = outcome(answer)
    wrong = {
        caller: f"{actual[caller]}, not {row.expected(caller)}"
        for caller in CALLERS
        if actual[caller] != row.expected(caller)
    }
    assert not wrong, "\n".join(f"{caller}: {how}" for caller, how in wrong.items())


async def test_nobody_deletes_what_is_another_s(scene: Scenes) -> None:
    """The rows of DELETE above ask for what is not there, so that it stays for the others."""
    here, http = scene
    subscription = f"/fhir/Subscription/{here.ids['subscription']}"
    other, own = here.credentials("clinic-b-emr"), here.credentials("clinic-a-emr")
    assert (await http["notify"].delete(subscription, headers=other)).status_code == 404
    assert (await http["notify"].get(subscription, headers=own)).status_code == 200
    encounter = f"/fhir/Encounter/{here.ids['encounter']}"
    other, own = here.credentials("hospital-b"), here.credentials("hospital-a")
    assert (await http["ingest"].delete(encounter, headers=other)).status_code == 404
    assert (await http["ingest"].get(encounter, headers=own)).status_code == 200


ELSEWHERE = [
    "/fhir/Task?_id={task}",
    "/fhir/Task?_id={task},{nothing}",
    "/fhir/Task?patient={patient}",
    "/fhir/Task?patient=Patient/{patient}",
    "/fhir/Task?_id={task}&_include=Task:patient",
    "/fhir/Task?_revinclude=Provenance:target",
    "/fhir/Task?patient.identifier=x|TEST",
    "/fhir/Task?_has:Provenance:target:_id={provenance}",
    "/fhir/Task?_total=accurate",
    "/fhir/Task?_summary=count",
    "/fhir/Task?_count=1000",
    "/fhir/Task?owner=PractitionerRole/nurse-a",
    "/fhir/Task/{task}/_history",
    "/fhir/Task/{task}/_history/1",
    "/fhir/Task/{task}%00",
    "/fhir/Task/{task}%2F..",
    "/fhir/Task/../Task/{task}",
    "/fhir/Task//{task}",
    "/fhir/Patient/{patient}",
    "/fhir/Patient/{patient}/$everything",
    "/fhir/Patient?_id={patient}",
    "/fhir/Patient?identifier=https://health-card.example.ca|TEST",
    "/fhir/Flag/{flag}",
    "/fhir/Flag?patient={patient}",
    "/fhir/Provenance?target=Task/{task}",
    "/fhir/Provenance/{provenance}",
    "/fhir/Consent/{consent}",
    "/fhir/Consent?patient={patient}",
    "/fhir/Subscription/{subscription}",
    "/fhir/Subscription/{subscription}/$status",
    "/fhir/Subscription/$status?id={subscription}",
    "/fhir/Subscription/{subscription}/$events",
    "/fhir/AuditEvent",
    "/fhir/AuditEvent?patient={patient}",
    "/fhir/Encounter/TEST-1",
    "/fhir/?_type=Task",
    "/fhir/Task?_tenant=clinic-a",
    "/fhir/Task?clinic=clinic-a",
    "/fhir/Task?_cursor=TEST",
]


@pytest.mark.parametrize("path", ELSEWHERE)
async def test_no_way_of_asking_shows_another_clinic_s_patient(scene: Scenes, path: str) -> None:
    """CS-93: lists, includes, chains, history, odd characters, extra parameters."""
    here, http = scene
    other = here.credentials("clinic-b-emr")
    answer = await http["notify"].get(path.format(**here.ids), headers=other)
    assert answer.status_code < 500
    said = answer.text
    if answer.headers.get("content-type", "").startswith("application/fhir+json"):
        body = orjson.loads(answer.content)
        body["link"] = []  # a search says back what was asked
        said = orjson.dumps(body).decode()
    for name in ("task", "patient", "flag", "provenance", "consent", "subscription"):
        assert here.ids[name] not in said, name


@pytest.mark.parametrize(
    "path", ["Task/{}", "Patient/{}", "Flag/{}", "Provenance/{}", "Consent/{}", "Subscription/{}"]
)
async def test_what_is_another_s_looks_like_what_is_not_there(scene: Scenes, path: str) -> None:
    """Status, body and headers alike (CS-42)."""
    here, http = scene
    other = here.credentials("clinic-b-emr")
    id_ = here.ids[path.partition("/")[0].lower()]
    theirs = await http["notify"].get(f"/fhir/{path.format(id_)}", headers=other)
    absent = await http["notify"].get(f"/fhir/{path.format(uuid4())}", headers=other)
    assert (theirs.status_code, theirs.content) == (404, absent.content)
    assert theirs.headers.items() == absent.headers.items()


@pytest.mark.parametrize("type_", ["AuditEvent", "Provenance", "Organization", "PractitionerRole"])
@pytest.mark.parametrize("service", ["ingest", "notify"])
async def test_what_speaks_for_us_is_not_written_by_a_client(
    scene: Scenes, service: str, type_: str
) -> None:
    """CS-93"""
    here, http = scene
    for caller in CLIENTS:
        headers = here.credentials(f"{caller}, claimed scope")
        body = {"resourceType": type_, "id": "TEST-1"}
        for method, path in (("POST", f"/fhir/{type_}"), ("PUT", f"/fhir/{type_}/TEST-1")):
            answer = await http[service].request(method, path, json=body, headers=headers)
            assert answer.status_code in (403, 404, 405, 422), (caller, method)
