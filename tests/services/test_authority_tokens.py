"""SMART Backend Services at the loopback authority: each check by itself (clinic-api.md, 9)."""

import asyncio
import base64
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from services.plumbing.auth import verify
from services.plumbing.db import Database
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import (
    AUDIENCE,
    ISSUER,
    DrivenClock,
    Stage,
    assertion,
    ec_key,
    jwks,
    region,
    rsa_key,
    shared_database,
    signed,
    staged,
)


@pytest.fixture(scope="module")
async def pool(cluster: Cluster) -> AsyncIterator[Database]:
    async with shared_database(cluster, f"t{os.getpid()}_authority_tokens") as shared:
        made = Database(shared.url("authority"), "authority")
        yield made
        await made.close()


@pytest.fixture
async def stage(pool: Database) -> AsyncIterator[Stage]:
    async with staged(pool) as made:
        yield made


def refused(answer: httpx.Response, error: str = "invalid_client") -> bool:
    return answer.status_code in (400, 401) and answer.json()["error"] == error


# SM-02 to SM-07


@pytest.mark.parametrize(
    "grant_type", ["", "password", "authorization_code_", "CLIENT_CREDENTIALS"]
)
async def test_sm_02_another_grant_type_is_refused(stage: Stage, grant_type: str) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock), grant_type=grant_type)
    assert answer.status_code == 400
    assert answer.json()["error"] == "unsupported_grant_type"


@pytest.mark.parametrize("kind", ["", "jwt-bearer", "urn:ietf:params:oauth:grant-type:jwt-bearer"])
async def test_sm_03_another_client_assertion_type_is_refused(stage: Stage, kind: str) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock), client_assertion_type=kind)
    assert refused(answer)


@pytest.mark.parametrize(("alg", "key"), [("RS384", rsa_key("rs")), ("ES384", ec_key("es"))])
async def test_sm_05_both_algorithms_of_smart_are_accepted(
    stage: Stage, alg: str, key: Any
) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock, key=key, alg=alg))
    assert answer.status_code == 200


async def test_sm_06_a_token_says_what_it_is_and_is_not_kept(stage: Stage) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock))
    said = answer.json()
    assert set(said) == {"access_token", "token_type", "expires_in", "scope"}
    assert said["token_type"] == "bearer"
    assert 0 < said["expires_in"] <= 300
    assert said["scope"] == "system/Encounter.cu"
    assert answer.headers["cache-control"] == "no-store"
    claims = verify(said["access_token"], [ec_key("authority")], ["ES384"])
    now = int(stage.clock().timestamp())
    assert claims["iss"] == ISSUER
    assert claims["aud"] == AUDIENCE
    assert claims["client_id"] == claims["sub"] == "hospital-a"
    assert claims["exp"] == now + 300


async def test_errors_are_not_kept_either_and_quote_nothing(stage: Stage) -> None:
    answer = await stage.ask_as_machine("TEST-canary", scope="TEST-canary")
    assert answer.headers["cache-control"] == "no-store"
    assert "TEST-canary" not in answer.text


async def test_the_published_key_has_no_private_part(stage: Stage) -> None:
    answer = await stage.http.get(f"{ISSUER}/jwks")
    (key,) = answer.json()["keys"]
    assert "d" not in key
    assert answer.headers["cache-control"] == "max-age=60"


# SM-20 to SM-29


async def test_sm_20_a_wrong_key_is_refused(stage: Stage) -> None:
    stranger = ec_key("stranger")
    forged = assertion(stage.clock, key=stranger, header={"kid": ec_key("es").kid})
    assert refused(await stage.ask_as_machine(forged))


@pytest.mark.parametrize("kid", [None, "TEST-unknown", 1])
async def test_sm_21_a_missing_or_unknown_kid_is_refused(stage: Stage, kid: Any) -> None:
    own = ec_key("es")
    nameless = type(own).import_key(own.as_dict(private=True))
    claims = json.loads(
        base64.urlsafe_b64decode(assertion(stage.clock).split(".")[1] + "==").decode()
    )
    header = {"alg": "ES384", "typ": "JWT"} | ({} if kid is None else {"kid": kid})
    forged = raw_jws(json.dumps(header), claims, nameless)
    assert refused(await stage.ask_as_machine(forged))


async def test_sm_21_a_kid_that_two_keys_have_is_refused(stage: Stage) -> None:
    double = jwks(ec_key("es"), ec_key("es"))
    client = {"id": "hospital-a", "sites": ["hospital-a"], "scopes": ["system/Encounter.cu"]}
    stage.region[0] = region(clients=[client | {"jwks": double}])
    assert refused(await stage.ask_as_machine(assertion(stage.clock)))


async def test_sm_21_a_header_that_says_kid_twice_is_refused(stage: Stage) -> None:
    key = ec_key("es")
    claims = {
        "iss": "hospital-a",
        "sub": "hospital-a",
        "aud": f"{ISSUER}/token",
        "exp": int(stage.clock().timestamp()) + 60,
        "jti": "TEST-twice",
    }
    header = f'{{"alg":"ES384","typ":"JWT","kid":"TEST-other","kid":"{key.kid}"}}'
    assert refused(await stage.ask_as_machine(raw_jws(header, claims, key)))
    once = f'{{"alg":"ES384","typ":"JWT","kid":"{key.kid}"}}'
    assert (await stage.ask_as_machine(raw_jws(once, claims, key))).status_code == 200


def raw_jws(header: str, claims: dict[str, Any], key: Any) -> str:
    """Signed over a header that no library would write."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384

    def coded(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    signing_input = f"{coded(header.encode())}.{coded(json.dumps(claims).encode())}"
    der = key.private_key.sign(signing_input.encode(), ECDSA(SHA384()))
    r, s = decode_dss_signature(der)
    return f"{signing_input}.{coded(r.to_bytes(48, 'big') + s.to_bytes(48, 'big'))}"


async def test_sm_22_no_signature_is_refused(stage: Stage) -> None:
    _, claims, _ = assertion(stage.clock).split(".")
    header = json.dumps({"alg": "none", "typ": "JWT", "kid": ec_key("es").kid}).encode()
    unsigned = f"{base64.urlsafe_b64encode(header).rstrip(b'=').decode()}.{claims}."
    assert refused(await stage.ask_as_machine(unsigned))


async def test_sm_22_the_public_key_as_a_shared_secret_is_refused(stage: Stage) -> None:
    public = rsa_key("rs").as_pem(private=False)
    _, claims, _ = assertion(stage.clock).split(".")
    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": rsa_key("rs").kid}).encode()
    signing_input = f"{base64.urlsafe_b64encode(header).rstrip(b'=').decode()}.{claims}"
    mac = hmac.digest(public, signing_input.encode(), "sha256")
    forged = f"{signing_input}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert refused(await stage.ask_as_machine(forged))


@pytest.mark.parametrize("alg", ["RS256", "RS512", "PS384"])
async def test_sm_22_another_algorithm_is_refused(stage: Stage, alg: str) -> None:
    assert refused(await stage.ask_as_machine(assertion(stage.clock, key=rsa_key("rs"), alg=alg)))


@pytest.mark.parametrize("typ", [None, "at+jwt", "jwt", "JOSE"])
async def test_sm_23_another_typ_is_refused(stage: Stage, typ: str | None) -> None:
    assert refused(await stage.ask_as_machine(assertion(stage.clock, header={"typ": typ})))


@pytest.mark.parametrize(
    "aud",
    [
        None,
        ISSUER,
        f"{ISSUER}/token/",
        "https://authority.example.org/token",
        [f"{ISSUER}/token", "https://authority.example.org/token"],
        [],
    ],
)
async def test_sm_24_another_audience_is_refused(stage: Stage, aud: Any) -> None:
    assert refused(await stage.ask_as_machine(assertion(stage.clock, aud=aud)))


@pytest.mark.parametrize(
    "ahead",
    [-60, 0, 331, 3600, None, "soon", True, 10**400],
    ids=lambda ahead: str(ahead)[:9],
)
async def test_sm_25_an_expiry_past_or_too_far_ahead_is_refused(stage: Stage, ahead: Any) -> None:
    now = int(stage.clock().timestamp())
    exp = now + ahead if type(ahead) is int else ahead
    assert refused(await stage.ask_as_machine(assertion(stage.clock, exp=exp)))


@pytest.mark.parametrize("ahead", [1, 300, 330])
async def test_sm_25_an_expiry_within_the_limit_is_accepted(stage: Stage, ahead: int) -> None:
    exp = int(stage.clock().timestamp()) + ahead
    assert (await stage.ask_as_machine(assertion(stage.clock, exp=exp))).status_code == 200


@pytest.mark.parametrize(
    "changed",
    [{"sub": "hospitals"}, {"sub": None}, {"iss": "nobody", "sub": "nobody"}, {"iss": None}],
)
async def test_sm_26_a_client_unknown_or_two_clients_are_refused(
    stage: Stage, changed: dict[str, Any]
) -> None:
    assert refused(await stage.ask_as_machine(assertion(stage.clock, **changed)))


async def test_sm_26_a_client_cannot_sign_for_another(stage: Stage) -> None:
    forged = assertion(stage.clock, key=ec_key("es"), iss="hospitals", sub="hospitals")
    assert refused(await stage.ask_as_machine(forged))


@pytest.mark.parametrize("jti", [None, "", 7, "x" * 257, "a\0b"])
async def test_sm_27_a_missing_jti_is_refused(stage: Stage, jti: Any) -> None:
    assert refused(await stage.ask_as_machine(assertion(stage.clock, jti=jti)))


async def test_sm_27_a_replayed_assertion_is_refused(stage: Stage) -> None:
    once = assertion(stage.clock)
    assert (await stage.ask_as_machine(once)).status_code == 200
    assert refused(await stage.ask_as_machine(once))


async def test_sm_27_two_clients_may_use_the_same_jti(stage: Stage) -> None:
    assert (await stage.ask_as_machine(assertion(stage.clock, jti="TEST-same"))).status_code == 200
    other = assertion(
        stage.clock, key=ec_key("two"), iss="hospitals", sub="hospitals", jti="TEST-same"
    )
    assert (await stage.ask_as_machine(other)).status_code == 200


async def test_sm_27_of_twenty_at_once_one_is_accepted(stage: Stage) -> None:
    once = assertion(stage.clock)
    answers = await asyncio.gather(*(stage.ask_as_machine(once) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19


async def test_sm_27_a_jti_is_remembered_across_restarts(
    db: Callable[[str], Database], database: FreshDatabase
) -> None:
    clock = DrivenClock()
    once = assertion(clock)
    async with staged(db("authority"), clock) as first:
        assert (await first.ask_as_machine(once)).status_code == 200
    restarted = Database(database.url("authority"), "authority")
    async with staged(restarted, clock) as second:
        assert refused(await second.ask_as_machine(once))
    await restarted.close()


ANOTHER_PROCESS = """
import asyncio, json, sys
from datetime import datetime
from services.plumbing.db import Database
from tests.services.authorities import DrivenClock, region, staged

async def main(url, once, now, jwks):
    db = Database(url, "authority")
    async with staged(db, DrivenClock(datetime.fromisoformat(now))) as stage:
        client = {"id": "hospital-a", "sites": ["hospital-a"], "jwks": json.loads(jwks)}
        stage.region[0] = region(clients=[client | {"scopes": ["system/Encounter.cu"]}])
        print((await stage.ask_as_machine(once)).status_code)
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_sm_27_of_two_processes_one_accepts_an_assertion(database: FreshDatabase) -> None:
    clock = DrivenClock()
    arguments = [
        database.url("authority"),
        assertion(clock),
        clock().isoformat(),
        json.dumps(jwks(ec_key("es"))),
    ]
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", ANOTHER_PROCESS, *arguments, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    said = [(await process.communicate())[0] for process in processes]
    assert sorted(said) == [b"200\n", b"401\n"]


async def test_sm_28_a_jku_that_is_not_registered_is_refused(stage: Stage) -> None:
    foreign = assertion(stage.clock, header={"jku": "https://keys.example.org/jwks"})
    assert refused(await stage.ask_as_machine(foreign))


def publishes(*keys: Any, cache_control: str = "max-age=60") -> FastAPI:
    app = FastAPI()

    @app.get("/jwks")
    async def answer() -> Response:
        return Response(
            json.dumps(jwks(*keys)),
            media_type="application/json",
            headers={"Cache-Control": cache_control},
        )

    return app


async def test_sm_28_the_registered_jku_is_read_and_accepted(stage: Stage) -> None:
    key = ec_key("published")
    stage.hosts["http://127.0.0.1:9999"] = publishes(key)
    named = assertion(
        stage.clock,
        key=key,
        iss="elsewhere",
        sub="elsewhere",
        header={"jku": "http://127.0.0.1:9999/jwks"},
    )
    answer = await stage.ask_as_machine(named, scope="system/Task.rs")
    assert answer.status_code == 200
    assert "http://127.0.0.1:9999/jwks" in stage.asked


async def test_sm_31_a_client_s_new_key_is_asked_for_and_its_old_one_forgotten(
    stage: Stage,
) -> None:
    """Keys are kept as long as their Cache-Control says; an unknown one is asked for once."""
    where = "http://127.0.0.1:9999"
    old, new = ec_key("published"), ec_key("published next")

    async def ask(key: Any) -> int:
        signed_by = assertion(stage.clock, key=key, iss="elsewhere", sub="elsewhere")
        return (await stage.ask_as_machine(signed_by, scope="system/Task.rs")).status_code

    stage.hosts[where] = publishes(old, cache_control="max-age=300")
    assert [await ask(old) for _ in range(3)] == [200] * 3
    assert stage.asked.count(f"{where}/jwks") == 1
    stage.hosts[where] = publishes(new, cache_control="max-age=300")
    stage.clock.passes(seconds=6)
    assert await ask(new) == 200
    assert stage.asked.count(f"{where}/jwks") == 2
    assert await ask(old) == 401
    stage.clock.passes(seconds=299)
    assert stage.asked.count(f"{where}/jwks") == 2
    stage.clock.passes(seconds=2)
    assert await ask(new) == 200
    assert stage.asked.count(f"{where}/jwks") == 3


async def test_sm_31_keys_that_may_not_be_kept_are_asked_for_each_time(stage: Stage) -> None:
    key = ec_key("published")
    stage.hosts["http://127.0.0.1:9999"] = publishes(key, cache_control="no-store")
    for _ in range(3):
        named = assertion(stage.clock, key=key, iss="elsewhere", sub="elsewhere")
        answer = await stage.ask_as_machine(named, scope="system/Task.rs")
        assert answer.status_code == 200
    assert stage.asked.count("http://127.0.0.1:9999/jwks") == 3


async def test_a_client_whose_keys_cannot_be_read_is_refused(stage: Stage) -> None:
    named = assertion(stage.clock, key=ec_key("published"), iss="elsewhere", sub="elsewhere")
    assert refused(await stage.ask_as_machine(named, scope="system/Task.rs"))


@pytest.mark.parametrize(
    "scope",
    [
        "",
        " ",
        "system/Task.rs",
        "system/Encounter.dus",
        "system/Encounter.cu system/Task.r",
        "system/*.cruds",
        "system/*.r",
        "system/Encounter.rs?status=finished",
        "user/Encounter.cu",
        "openid",
    ],
)
async def test_sm_29_a_scope_missing_or_beyond_the_grant_is_refused(
    stage: Stage, scope: str
) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock), scope=scope)
    assert refused(answer, "invalid_scope")


@pytest.mark.parametrize("scope", ["system/Encounter.c", "system/Patient.*", "system/Patient.read"])
async def test_sm_29_a_scope_within_the_grant_is_given_as_asked(stage: Stage, scope: str) -> None:
    answer = await stage.ask_as_machine(assertion(stage.clock), scope=scope)
    assert answer.json()["scope"] == scope


async def test_sm_32_neither_iat_nor_nbf_is_demanded(stage: Stage) -> None:
    claims = json.loads(
        base64.urlsafe_b64decode(assertion(stage.clock).split(".")[1] + "==").decode()
    )
    assert not {"iat", "nbf"} & set(claims)
    assert (await stage.ask_as_machine(signed(claims, ec_key("es"), "ES384"))).status_code == 200


@pytest.mark.parametrize(
    "junk",
    ["", ".", "..", "a.b.c", "é.é.é", "e30.e30.", "W10.W10.AA", "AAAA.AAAA.AAAA", "x" * 200_000],
)
async def test_what_is_no_jwt_is_refused_and_breaks_nothing(stage: Stage, junk: str) -> None:
    assert (await stage.ask_as_machine(junk)).status_code in (400, 401)


async def test_a_parameter_given_twice_is_refused(stage: Stage) -> None:
    answer = await stage.http.post(
        f"{ISSUER}/token",
        content="grant_type=client_credentials&scope=system/Encounter.c&scope=system/Encounter.u",
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert refused(answer, "invalid_request")
