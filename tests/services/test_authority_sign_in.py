"""The loopback authority as an OpenID provider for personas, and as a process (NW-70, NW-71)."""

import asyncio
import base64
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl, urlsplit

import httpx
import orjson
import pytest

from services.cli import tokens
from services.cli.personas import ROLES
from services.plumbing.auth import verify
from services.plumbing.db import Database
from services.plumbing.region import RoleName
from services.plumbing.signin import challenge
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import (
    ISSUER,
    NOTIFY,
    SECRET,
    Stage,
    ec_key,
    shared_database,
    staged,
)

VERIFIER = "TEST-verifier-of-forty-three-characters-000"
BASIC = base64.b64encode(b"passerelle:" + SECRET.replace(":", "%3A").encode()).decode()


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    async with shared_database(cluster, f"t{os.getpid()}_authority_sign_in") as made:
        yield made


@pytest.fixture
async def stage(shared: FreshDatabase) -> AsyncIterator[Stage]:
    db = Database(shared.url("authority"), "authority")
    async with staged(db) as made:
        yield made
    await db.close()


def asked(**changed: str | None) -> dict[str, str]:
    """A sign-in as the services ask for it, unless `changed`; None leaves a parameter out."""
    said: dict[str, str | None] = {
        "response_type": "code",
        "client_id": "passerelle",
        "redirect_uri": f"{NOTIFY}/sign-in/return",
        "scope": "openid profile",
        "state": "TEST-state",
        "nonce": "TEST-nonce",
        "code_challenge": challenge(VERIFIER),
        "code_challenge_method": "S256",
    }
    return {name: value for name, value in (said | changed).items() if value is not None}


def said(answer: httpx.Response) -> dict[str, str]:
    """What the browser carries back to the service."""
    assert answer.status_code == 303, answer.text
    where = urlsplit(answer.headers["location"])
    assert f"{where.scheme}://{where.netloc}{where.path}" == f"{NOTIFY}/sign-in/return"
    return dict(parse_qsl(where.query))


async def code(stage: Stage, persona: str = "nurse-a", **changed: str | None) -> str:
    form = asked(**changed) | {"persona": persona}
    return said(await stage.http.post(f"{ISSUER}/authorize", data=form))["code"]


async def redeem(stage: Stage, code: str, **changed: str) -> httpx.Response:
    basic = changed.pop("basic", BASIC)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": f"{NOTIFY}/sign-in/return",
        "code_verifier": VERIFIER,
    }
    return await stage.ask(form | changed, Authorization=f"Basic {basic}")


# The page of personas


async def test_every_persona_is_one_click_marked_as_demonstration_in_both_languages(
    stage: Stage,
) -> None:
    """NW-71"""
    page = (await stage.http.get(f"{ISSUER}/authorize", params=asked())).text
    assert "Démonstration" in page
    assert '<p lang="en">Demonstration' in page
    for persona in ("nurse-a", "hospital-cm", "privacy"):
        assert f'<button name="persona" value="{persona}">' in page
    assert "visitor" not in page  # has no role
    assert "Gestionnaire de cas (centre hospitalier)" in page
    assert "Hospital case manager" in page


async def test_the_page_runs_no_script_and_repeats_nothing_as_markup(stage: Stage) -> None:
    answer = await stage.http.get(
        f"{ISSUER}/authorize", params=asked(state='"><script>alert(1)</script>')
    )
    assert "<script" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert f"form-action 'self' {NOTIFY}" in policy
    assert answer.headers["cache-control"] == "no-store"


def test_every_role_has_its_words_in_both_languages() -> None:
    assert set(ROLES) == set(get_args(RoleName))


async def test_a_click_brings_the_browser_back_with_code_state_and_issuer(stage: Stage) -> None:
    form = asked() | {"persona": "nurse-a"}
    back = said(await stage.http.post(f"{ISSUER}/authorize", data=form))
    assert set(back) == {"code", "state", "iss"}
    assert back["state"] == "TEST-state"
    assert back["iss"] == ISSUER


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "another"},
        {"client_id": None},
        {"redirect_uri": "https://elsewhere.example.org/sign-in/return"},
        {"redirect_uri": f"{NOTIFY}/sign-in/return/"},
        {"redirect_uri": f"{NOTIFY}/sign-in/return?x=1"},
        {"redirect_uri": f"{NOTIFY}/"},
        {"redirect_uri": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_to_an_address_that_is_not_registered_nothing_is_sent(
    stage: Stage, changed: dict[str, str | None], method: str
) -> None:
    wrong = asked(**changed)
    sent: dict[str, Any] = {"params": wrong} if method == "GET" else {"data": wrong}
    answer = await stage.http.request(method, f"{ISSUER}/authorize", **sent)
    assert answer.status_code == 400
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "profile"}, "invalid_scope"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"state": None}, "invalid_request"),
        ({"prompt": "none"}, "login_required"),
    ],
    ids=str,
)
async def test_other_errors_go_back_to_the_service(
    stage: Stage, changed: dict[str, str | None], error: str
) -> None:
    back = said(await stage.http.get(f"{ISSUER}/authorize", params=asked(**changed)))
    assert back["error"] == error
    assert "code" not in back


async def test_a_page_elsewhere_cannot_click(stage: Stage) -> None:
    answer = await stage.http.post(
        f"{ISSUER}/authorize",
        data=asked() | {"persona": "nurse-a"},
        headers={"sec-fetch-site": "cross-site"},
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["authority.example.org", "127.0.0.1.example.org", "192.0.2.7"])
async def test_it_answers_to_names_of_loopback_alone(stage: Stage, host: str) -> None:
    """No page elsewhere reaches it by renaming this machine."""
    answer = await stage.http.get(f"{ISSUER}/authorize", params=asked(), headers={"host": host})
    assert answer.status_code == 400


async def test_who_asks_to_choose_again_may(stage: Stage) -> None:
    await code(stage)
    straight = await stage.http.get(f"{ISSUER}/authorize", params=asked())
    assert straight.status_code == 303
    again = await stage.http.get(f"{ISSUER}/authorize", params=asked(prompt="login"))
    assert again.status_code == 200


async def test_sign_on_ends_after_ten_hours(stage: Stage) -> None:
    await code(stage)
    stage.clock.passes(hours=10)
    assert (await stage.http.get(f"{ISSUER}/authorize", params=asked())).status_code == 200


async def test_end_session_goes_back_only_to_a_registered_address(stage: Stage) -> None:
    for back, status in ((f"{NOTIFY}/", 303), ("https://elsewhere.example.org/", 200)):
        params = {"post_logout_redirect_uri": back}
        answer = await stage.http.get(f"{ISSUER}/end-session", params=params)
        assert answer.status_code == status


# Codes and ID tokens


async def test_a_code_is_redeemed_for_an_id_token_that_says_who_and_which_roles(
    stage: Stage,
) -> None:
    answer = await redeem(stage, await code(stage, "hospital-cm"))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    claims = verify(answer.json()["id_token"], [ec_key("authority")], ["ES384"])
    now = int(stage.clock().timestamp())
    assert claims == {
        "iss": ISSUER,
        "sub": "hospital-cm",
        "aud": "passerelle",
        "iat": now,
        "exp": now + 300,
        "auth_time": now,
        "nonce": "TEST-nonce",
        "name": "Gestionnaire fictive",
        "locale": "en-CA",
        "roles": ["hosp_cm"],
        "organization": "hospital-a",
    }


async def test_userinfo_says_the_same_to_its_own_token_alone(stage: Stage) -> None:
    answer = (await redeem(stage, await code(stage))).json()
    bearer = {"Authorization": f"Bearer {answer['access_token']}"}
    told = (await stage.http.get(f"{ISSUER}/userinfo", headers=bearer)).json()
    assert (told["sub"], told["roles"]) == ("nurse-a", ["clinic_cm"])
    for wrong in (answer["id_token"], await stage.token(), "TEST"):
        headers = {"Authorization": f"Bearer {wrong}"}
        assert (await stage.http.get(f"{ISSUER}/userinfo", headers=headers)).status_code == 401
    stage.clock.passes(seconds=300)
    assert (await stage.http.get(f"{ISSUER}/userinfo", headers=bearer)).status_code == 401


async def test_a_code_is_redeemed_once(stage: Stage) -> None:
    once = await code(stage)
    answers = await asyncio.gather(*(redeem(stage, once) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9


async def test_a_code_lasts_a_minute(stage: Stage) -> None:
    old = await code(stage)
    stage.clock.passes(seconds=60)
    assert (await redeem(stage, old)).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "changed",
    [
        {"code_verifier": ""},
        {"code_verifier": VERIFIER + "0"},
        {"code_verifier": challenge(VERIFIER)},
        {"redirect_uri": "https://elsewhere.example.org/"},
        {"redirect_uri": ""},
        {"code": "TEST-unknown"},
    ],
    ids=str,
)
async def test_a_code_needs_its_own_verifier_and_address(
    stage: Stage, changed: dict[str, str]
) -> None:
    good = await code(stage)
    answer = await redeem(stage, **({"code": good} | changed))
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_grant"


@pytest.mark.parametrize("basic", ["", "!!!", "cGFzc2VyZWxsZTo=", "cGFzc2VyZWxsZTp3cm9uZw=="])
async def test_only_the_services_redeem_a_code(stage: Stage, basic: str) -> None:
    answer = await redeem(stage, await code(stage), basic=basic)
    assert answer.status_code == 401
    assert answer.json()["error"] == "invalid_client"


# Keys


def test_a_kept_key_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "authority" / "key.json"
    made = tokens.kept_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tokens.kept_key(file).kid == made.kid
    assert [one.name for one in file.parent.iterdir()] == ["key.json"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    tokens.kept_key(file)
    file.chmod(0o644)
    with pytest.raises(tokens.TokenError, match="chmod 600"):
        tokens.kept_key(file)


@pytest.mark.parametrize("content", ["", "{}", "not a key", '{"kty":"EC"}'])
def test_a_file_that_is_no_key_is_refused_unquoted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key.json"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(tokens.TokenError, match="is not a key"):
        tokens.kept_key(file)


def test_a_public_key_signs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_bytes(orjson.dumps(ec_key("es").as_dict(private=False)))
    file.chmod(0o600)
    with pytest.raises(tokens.TokenError, match="not a private key"):
        tokens.kept_key(file)


def test_a_client_s_published_keys_have_no_private_part(tmp_path: Path) -> None:
    tokens.make_keys(tmp_path, "hospital-a")
    (key,) = orjson.loads((tmp_path / "clients" / "hospital-a.jwks.json").read_bytes())["keys"]
    assert "d" not in key
    assert key["kid"] == tokens.kept_key(tokens.private_key_file(tmp_path, "hospital-a")).kid


# As a process


REGION = """
name: {fr: Région fictive, en: Fictitious region}
sites: [{id: hospital-a, name: {fr: Hôpital fictif, en: Fictitious hospital}}]
clinics: []
clients:
  - {id: hospital-a, sites: [hospital-a], scopes: [system/Encounter.cruds]}
"""


def environment(data: Path, database: FreshDatabase, port: int, **changed: str) -> dict[str, str]:
    return {
        "PASSERELLE_LOCAL": "true",
        "PASSERELLE_HOST": "127.0.0.1",
        "PASSERELLE_PORT": str(port),
        "PASSERELLE_ISSUER": f"http://127.0.0.1:{port}",
        "PASSERELLE_DATABASE_URL": database.url("authority"),
        "PASSERELLE_REGION": str(data / "region.yaml"),
        "PASSERELLE_SIGNING_KEY_FILE": str(data / "authority.private.json"),
        "PASSERELLE_OIDC_CLIENT_SECRET": SECRET,
    } | changed


RUN = "import sys; from services.cli import authority; sys.exit(authority.main())"


async def test_a_token_is_got_over_real_http_with_the_key_of_the_data_directory(
    shared: FreshDatabase, tmp_path: Path
) -> None:
    """`passerelle token --as hospital-a`"""
    (tmp_path / "region.yaml").write_text(REGION)
    tokens.make_keys(tmp_path, "hospital-a")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    issuer = f"http://127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, env=environment(tmp_path, shared, port)
    )
    try:
        await until_ready(issuer)
        token = await tokens.access_token(tmp_path, issuer, "hospital-a")
        key = tokens.kept_key(tmp_path / "authority.private.json")
        claims = verify(token, [key], ["ES384"])
        assert (claims["sub"], claims["scope"]) == ("hospital-a", "system/Encounter.cruds")
        with pytest.raises(tokens.TokenError, match="invalid_scope"):
            await tokens.access_token(tmp_path, issuer, "hospital-a", "system/Task.rs")
        with pytest.raises(tokens.TokenError, match="not a client"):
            await tokens.access_token(tmp_path, issuer, "hospital-z")
    finally:
        process.terminate()
        await process.wait()
    with pytest.raises(tokens.TokenError, match="Is it running"):
        await tokens.access_token(tmp_path, issuer, "hospital-a")


async def until_ready(issuer: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        async with asyncio.timeout(60):
            while True:
                try:
                    if (await http.get(f"{issuer}/health/ready")).status_code == 200:
                        return
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("local", ["true", "false"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "authority.example.org"])
async def test_it_refuses_to_be_reached_from_beyond_this_machine(
    shared: FreshDatabase, tmp_path: Path, host: str, local: str
) -> None:
    (tmp_path / "region.yaml").write_text(REGION)
    changed = {"PASSERELLE_HOST": host, "PASSERELLE_LOCAL": local}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        RUN,
        env=environment(tmp_path, shared, 0, **changed),
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaint = await process.communicate()
    assert process.returncode == 2
    assert b"loopback only" in complaint
    assert SECRET.encode() not in complaint
