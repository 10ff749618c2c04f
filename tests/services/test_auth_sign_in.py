"""People sign in, stay for a while, act, and leave (NW-70 to NW-73, NW-97)."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text

from services.plumbing import audit, signin
from services.plumbing.auth import Caller
from services.plumbing.db import Database
from services.plumbing.settings import Settings
from services.plumbing.signin import Problem, Session, SignIn, SignInProblem
from services.plumbing.web import make_app
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import (
    ISSUER,
    NOTIFY,
    SECRET,
    Stage,
    ec_key,
    jwks,
    region,
    rsa_key,
    shared_database,
    signed,
    staged,
)

COOKIE = "passerelle-notify"


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    async with shared_database(cluster, f"t{os.getpid()}_auth_sign_in") as made:
        yield made


def settings(**changed: Any) -> Settings:
    said = {"oidc_client_secret": SECRET, "issuer": ISSUER, "notify_url": NOTIFY}
    return Settings(**(said | {"sign_ins_per_minute": 1000} | changed))


@dataclass
class Pages:
    """A service with pages and the authority of `up`, with a browser before them."""

    stage: Stage
    db: Database
    acts: list[str] = field(default_factory=list)
    """What was done by whom: the effects of unsafe requests."""

    def __post_init__(self) -> None:
        self.browser = self.another_browser()

    def another_browser(self) -> httpx.AsyncClient:
        transport = self.stage.http._transport
        return httpx.AsyncClient(transport=transport, base_url=NOTIFY, follow_redirects=False)

    def serve(self, **changed: Any) -> None:
        """Serve the pages, with these settings."""
        public_url = changed.pop("public_url", NOTIFY)

        async def error_page(_request: Request, rejection: Any) -> JSONResponse:
            problem = rejection.problem if isinstance(rejection, SignInProblem) else None
            words = rejection.words("fr") if isinstance(rejection, SignInProblem) else ""
            return JSONResponse({"problem": problem, "words": words}, rejection.status)

        app = make_app("notify", self.db, error_page=error_page)
        sign_in = SignIn(
            service="notify",
            public_url=public_url,
            db=self.db,
            region=lambda: self.stage.region[0],
            authority=self.stage.authority(),
            settings=settings(**changed),
            now=self.stage.clock,
        )
        signin.install(app, sign_in)

        @app.get("/")
        @app.get("/list")
        async def page(session: Annotated[Session, Depends(signin.session_of)]) -> dict[str, Any]:
            return {
                "who": session.caller.id,
                "roles": sorted(session.caller.roles),
                "clinic": session.caller.clinic,
                "sites": sorted(session.caller.sites),
                "csrf": session.csrf,
                "idle_until": session.idle_until.isoformat(),
                "ends": session.ends.isoformat(),
            }

        @app.post("/take")
        async def take(who: Annotated[Caller, Depends(signin.person)]) -> dict[str, str]:
            self.acts.append(who.id)
            return {"who": who.id}

        @app.get("/privacy")
        async def privacy(who: Annotated[Caller, Depends(signin.role("privacy"))]) -> str:
            return who.id

        self.stage.hosts[public_url] = app

    async def begin(self, to: str = "/list") -> dict[str, str]:
        """Go to the issuer: what the browser is sent there with."""
        answer = await self.browser.get("/sign-in", params={"to": to})
        assert answer.status_code == 303, answer.text
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def click(self, asked: dict[str, str], persona: str = "nurse-a") -> str:
        """Click a persona on the authority's page: the address it sends the browser back to."""
        form = asked | {"persona": persona}
        answer = await self.browser.post(f"{ISSUER}/authorize", data=form)
        assert answer.status_code == 303, answer.text
        location: str = answer.headers["location"]
        return location

    async def sign_in(self, persona: str = "nurse-a", to: str = "/list") -> httpx.Response:
        return await self.browser.get(await self.click(await self.begin(to), persona))

    async def seen(self, **headers: str) -> httpx.Response:
        return await self.browser.get("/list", headers=headers)

    async def csrf(self) -> str:
        csrf: str = (await self.seen()).json()["csrf"]
        return csrf

    async def records(self) -> list[audit.AuditRecord]:
        async with self.db.work() as tx:
            rows = (await tx.exec_driver_sql("select * from audit order by position")).all()
        return [audit.stored(row) for row in rows]


@pytest.fixture
async def pages(shared: FreshDatabase) -> AsyncIterator[Pages]:
    keys = Database(shared.url("authority"), "authority")
    db = Database(shared.url("notify"), "notify")
    async with staged(keys) as stage:
        made = Pages(stage, db)
        made.serve()
        yield made
        await made.browser.aclose()
    await keys.close()
    await db.close()


def problem(answer: httpx.Response, status: int, problem: Problem) -> bool:
    return answer.status_code == status and answer.json()["problem"] == problem


# The way in


async def test_a_person_signs_in_and_returns_to_where_they_were(pages: Pages) -> None:
    lost = await pages.browser.get("/list?only=mine")
    assert lost.status_code == 303
    assert lost.headers["location"] == "/sign-in?to=%2Flist%3Fonly%3Dmine"
    to_issuer = await pages.browser.get(lost.headers["location"])
    page = await pages.browser.get(to_issuer.headers["location"])
    assert page.status_code == 200
    assert "nurse-a" in page.text
    asked = dict(parse_qsl(urlsplit(to_issuer.headers["location"]).query))
    back = await pages.browser.get(await pages.click(asked))
    assert back.status_code == 303
    assert back.headers["location"] == "/list?only=mine"
    said = (await pages.seen()).json()
    assert said["who"] == "nurse-a"
    assert said["roles"] == ["clinic_cm"]
    assert said["clinic"] == "clinic-a"


async def test_what_is_asked_of_the_issuer_has_pkce_state_and_nonce(pages: Pages) -> None:
    """NW-70"""
    asked = await pages.begin()
    assert asked["response_type"] == "code"
    assert asked["redirect_uri"] == f"{NOTIFY}/sign-in/return"
    assert asked["code_challenge_method"] == "S256"
    assert len(asked["code_challenge"]) == 43
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    assert asked["state"] != (await pages.begin())["state"]


async def test_the_session_cookie_is_random_hidden_and_kept_as_a_digest(pages: Pages) -> None:
    """NW-72"""
    first = await pages.sign_in()
    cookies = first.headers.get_list("set-cookie")
    (cookie,) = [one for one in cookies if one.startswith(f"{COOKIE}=")]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie  # plain http on loopback only
    assert "Max-Age" not in cookie
    secret = pages.browser.cookies[COOKIE]
    assert len(secret) == 43  # 256 bits
    async with pages.db.work() as tx:
        ids = (await tx.execute(text("select id from session"))).scalars().all()
    assert hashlib.sha256(secret.encode()).digest() in ids


async def test_beyond_loopback_the_cookie_is_bound_to_its_host(pages: Pages) -> None:
    pages.serve(public_url="https://notify.example.ca")
    answer = await pages.browser.get("https://notify.example.ca/sign-in")
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-passerelle-notify-sign-in=")
    assert "Secure" in cookie
    assert "Domain" not in cookie


async def test_a_new_sign_in_has_a_new_cookie_and_ends_the_old_session(pages: Pages) -> None:
    await pages.sign_in()
    old = pages.browser.cookies[COOKIE]
    await pages.sign_in("hospital-cm")
    assert pages.browser.cookies[COOKIE] != old
    stale = pages.another_browser()
    assert (await stale.get("/list", headers={"cookie": f"{COOKIE}={old}"})).status_code == 303


async def test_a_cookie_that_nobody_was_given_opens_nothing(pages: Pages) -> None:
    """Session fixation."""
    stranger = pages.another_browser()
    answer = await stranger.get("/list", headers={"cookie": f"{COOKIE}=TEST-chosen-by-somebody"})
    assert answer.status_code == 303


async def test_sign_in_and_out_are_on_record(pages: Pages) -> None:
    before = len(await pages.records())
    await pages.sign_in()
    csrf = await pages.csrf()
    await pages.browser.post("/sign-out", data={"csrf": csrf}, headers={"origin": NOTIFY})
    kinds = [(one.shape, one.agent) for one in (await pages.records())[before:]]
    assert kinds == [("SignIn", "nurse-a"), ("SignOut", "nurse-a")]


async def test_an_other_name_of_this_host_is_sent_to_its_own(pages: Pages) -> None:
    pages.stage.hosts["http://localhost:8003"] = pages.stage.hosts[NOTIFY]
    answer = await pages.browser.get("http://localhost:8003/sign-in?to=/list")
    assert answer.headers["location"] == f"{NOTIFY}/sign-in?to=%2Flist"


async def test_htmx_is_sent_to_sign_in_by_its_own_header(pages: Pages) -> None:
    headers = {"hx-request": "true", "hx-current-url": f"{NOTIFY}/cards?only=mine"}
    answer = await pages.browser.get("/list", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/sign-in?to=%2Fcards%3Fonly%3Dmine"


# NW-97: what is refused on the way in


@pytest.mark.parametrize(
    "to",
    [
        "https://elsewhere.example.org/",
        "//elsewhere.example.org",
        "/\\elsewhere.example.org",
        "javascript:alert(1)",
    ],
)
async def test_nw_97_a_foreign_return_path_is_refused(pages: Pages, to: str) -> None:
    answer = await pages.browser.get("/sign-in", params={"to": to})
    assert problem(answer, 400, Problem.RETURN_PATH)
    assert "set-cookie" not in answer.headers


async def test_nw_97_a_replayed_code_is_refused(pages: Pages) -> None:
    """The same answer twice: the first opened a session, the second opens none."""
    back = await pages.click(await pages.begin())
    assert (await pages.browser.get(back)).status_code == 303
    assert problem(await pages.browser.get(back), 400, Problem.STATE)


async def test_nw_97_a_code_redeemed_before_is_refused_under_a_new_state(pages: Pages) -> None:
    used = query(await pages.click(await pages.begin()))
    await pages.browser.get("/sign-in/return", params=used)
    pages.browser.cookies.delete(COOKIE)
    fresh = await pages.begin()
    answer = await pages.browser.get("/sign-in/return", params=used | {"state": fresh["state"]})
    assert problem(answer, 403, Problem.TOKEN)
    assert COOKIE not in pages.browser.cookies


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


@pytest.mark.parametrize("state", ["", "TEST-wrong"])
async def test_nw_97_a_wrong_state_is_refused(pages: Pages, state: str) -> None:
    back = query(await pages.click(await pages.begin()))
    answer = await pages.browser.get("/sign-in/return", params=back | {"state": state})
    assert problem(answer, 400, Problem.STATE)


async def test_nw_97_an_answer_carried_to_another_browser_is_refused(pages: Pages) -> None:
    """Nobody is signed in as somebody else by a link."""
    back = await pages.click(await pages.begin())
    victim = pages.another_browser()
    assert problem(await victim.get(back), 400, Problem.STATE)
    await victim.get("/sign-in")  # even one that has a sign-in of its own under way
    again = await pages.click(await pages.begin())
    assert problem(await victim.get(again), 400, Problem.STATE)


async def test_nw_97_an_answer_that_came_too_late_is_refused(pages: Pages) -> None:
    back = await pages.click(await pages.begin())
    pages.stage.clock.passes(minutes=10)
    assert problem(await pages.browser.get(back), 400, Problem.STATE)


async def test_nw_97_an_answer_of_another_issuer_is_refused(pages: Pages) -> None:
    back = query(await pages.click(await pages.begin()))
    mixed = back | {"iss": "https://other.example.org"}
    assert problem(await pages.browser.get("/sign-in/return", params=mixed), 400, Problem.STATE)


async def test_nw_97_a_cancelled_sign_in_has_its_page(pages: Pages) -> None:
    state = (await pages.begin())["state"]
    params = {"error": "access_denied", "state": state}
    answer = await pages.browser.get("/sign-in/return", params=params)
    assert problem(answer, 400, Problem.CANCELLED)


def forger(id_token: Callable[[], str | None], *keys: Any) -> FastAPI:
    """An issuer that answers every code with `id_token`."""
    app = FastAPI()

    @app.get("/.well-known/openid-configuration")
    async def configuration() -> dict[str, str]:
        return {
            "issuer": ISSUER,
            "jwks_uri": f"{ISSUER}/jwks",
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
        }

    @app.get("/jwks")
    async def published() -> dict[str, Any]:
        return jwks(*keys)

    @app.post("/token")
    async def token() -> dict[str, Any]:
        made = id_token()
        return {"access_token": "TEST", "token_type": "Bearer"} | (
            {} if made is None else {"id_token": made}
        )

    return app


async def returns_with(pages: Pages, *keys: Any, **changed: Any) -> httpx.Response:
    """The sign-in of an ID token that is good unless `changed`; None leaves a claim out."""
    now = int(pages.stage.clock().timestamp())
    key = changed.pop("key", ec_key("authority"))
    alg = changed.pop("alg", "ES384")
    header = changed.pop("header", None)
    asked: dict[str, str] = {}

    def id_token() -> str:
        claims = {
            "iss": ISSUER,
            "sub": "nurse-a",
            "aud": "passerelle",
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            "roles": ["clinic_cm"],
        } | changed
        kept = {name: value for name, value in claims.items() if value is not None}
        return signed(kept, key, alg, header)

    pages.stage.hosts[ISSUER] = forger(id_token, *(keys or (ec_key("authority"),)))
    asked |= await pages.begin()
    params = {"code": "TEST-code", "state": asked["state"]}
    return await pages.browser.get("/sign-in/return", params=params)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aud": ["passerelle"]},
        {"aud": ["passerelle", "other"], "azp": "passerelle"},
        {"iat": 1_772_452_800 + 60},
        {"exp": 1_772_452_800 - 59},
    ],
    ids=str,
)
async def test_a_good_id_token_is_accepted_within_a_minute_of_skew(
    pages: Pages, changed: dict[str, Any]
) -> None:
    """NW-70"""
    assert int(pages.stage.clock().timestamp()) == 1_772_452_800
    assert (await returns_with(pages, **changed)).status_code == 303


@pytest.mark.parametrize(
    "changed",
    [
        {"nonce": "TEST-wrong"},
        {"nonce": None},
        {"nonce": ["TEST"]},
        {"aud": "another-client"},
        {"aud": None},
        {"aud": ["passerelle", "other"]},
        {"aud": ["passerelle", "other"], "azp": "other"},
        {"azp": "other"},
        {"iss": "https://other.example.org"},
        {"iss": None},
        {"exp": 1_772_452_800 - 60},
        {"exp": None},
        {"iat": 1_772_452_800 + 61},
        {"iat": None},
        {"key": ec_key("stranger"), "header": {"kid": "TEST-authority"}},
        {"key": ec_key("stranger")},
    ],
    ids=lambda changed: ",".join(f"{name}={value}"[:30] for name, value in changed.items()),
)
async def test_nw_97_a_wrong_id_token_opens_no_session(
    pages: Pages, changed: dict[str, Any]
) -> None:
    before = len(await pages.records())
    answer = await returns_with(pages, **changed)
    assert problem(answer, 403, Problem.TOKEN)
    assert COOKIE not in pages.browser.cookies
    (record,) = (await pages.records())[before:]
    assert (record.shape, record.outcome, record.patient) == ("Refused", 4, None)


async def test_nw_97_an_id_token_signed_with_the_client_secret_is_refused(pages: Pages) -> None:
    from joserfc.jwk import OctKey

    shared_secret = OctKey.import_key(SECRET * 3, {"kid": "TEST-authority"})
    answer = await returns_with(pages, key=shared_secret, alg="HS256")
    assert problem(answer, 403, Problem.TOKEN)


async def test_a_region_s_issuer_may_sign_with_rs256(pages: Pages) -> None:
    answer = await returns_with(pages, rsa_key("issuer"), key=rsa_key("issuer"), alg="RS256")
    assert answer.status_code == 303


async def test_the_issuer_away_is_503_and_sessions_go_on(pages: Pages) -> None:
    """NW-70"""
    await pages.sign_in()
    back = await pages.click(await pages.begin())
    other = pages.another_browser()
    del pages.stage.hosts[ISSUER]
    assert problem(await pages.browser.get(back), 503, Problem.ISSUER_AWAY)
    assert (await pages.seen()).json()["who"] == "nurse-a"
    pages.stage.clock.passes(minutes=6)
    assert problem(await other.get("/sign-in"), 503, Problem.ISSUER_AWAY)
    assert (await pages.seen()).json()["who"] == "nurse-a"


async def test_too_many_sign_ins_from_one_address_are_429(pages: Pages) -> None:
    """CS-100"""
    pages.serve(sign_ins_per_minute=10)
    answers = [await pages.browser.get("/sign-in") for _ in range(11)]
    assert [answer.status_code for answer in answers] == [303] * 10 + [429]
    pages.stage.clock.passes(seconds=60)
    assert (await pages.browser.get("/sign-in")).status_code == 303


# Who somebody is


@pytest.mark.parametrize(
    ("persona", "roles"),
    [("visitor", []), ("TEST-unknown", ["clinic_cm"])],
)
async def test_without_a_known_role_there_is_no_way_in(
    pages: Pages, persona: str, roles: list[str]
) -> None:
    """NW-70: 403 with a reference number."""
    answer = await returns_with(pages, sub=persona, roles=roles)
    assert problem(answer, 403, Problem.NO_ROLE)
    assert COOKIE not in pages.browser.cookies


async def test_a_role_counts_if_issuer_and_region_file_both_give_it(pages: Pages) -> None:
    await returns_with(pages, sub="privacy", roles=["ops", "clinic_cm", "manager"])
    assert (await pages.seen()).json()["roles"] == ["ops"]


@pytest.mark.parametrize("nothing", [None, ""])
async def test_an_issuer_that_asserts_no_roles_leaves_them_to_the_region_file(
    pages: Pages, nothing: str | None
) -> None:
    pages.serve(oidc_roles_claim=nothing)
    await returns_with(pages, sub="privacy", roles=None)
    assert (await pages.seen()).json()["roles"] == ["ops", "privacy"]


async def test_names_of_claims_are_settings(pages: Pages) -> None:
    pages.serve(
        oidc_roles_claim="realm_access.roles",
        oidc_person_claim="https://example.ca/employee",
        oidc_organization_claim="org",
    )
    claims = {
        "sub": "f3c1",
        "roles": None,
        "realm_access": {"roles": ["clinic_cm"]},
        "https://example.ca/employee": "nurse-a",
    }
    assert (await returns_with(pages, **claims, org="clinic-a")).status_code == 303
    assert problem(await returns_with(pages, **claims, org="clinic-b"), 403, Problem.NO_ROLE)
    assert problem(await returns_with(pages, **claims), 403, Problem.NO_ROLE)


async def test_a_role_ends_with_its_last_day(pages: Pages) -> None:
    """CS-81: lapsed = not a reader, also in a session that is open."""
    await pages.sign_in()
    person = {"id": "nurse-a", "name": "Infirmière fictive", "roles": ["clinic_cm"]}
    last = {"active_until": pages.stage.clock().date().isoformat()}
    pages.stage.region[0] = region(people=[person | {"clinic": "clinic-a"} | last])
    assert (await pages.seen()).status_code == 200
    pages.stage.clock.passes(minutes=29)
    await pages.seen()
    pages.stage.region[0] = region(people=[person | {"active_until": "2026-03-01"}])
    assert problem(await pages.seen(), 403, Problem.NO_ROLE)


async def test_a_person_taken_out_of_the_region_file_is_out_at_once(pages: Pages) -> None:
    await pages.sign_in()
    pages.stage.region[0] = region(people=[])
    assert problem(await pages.seen(), 403, Problem.NO_ROLE)


async def test_a_page_of_another_role_is_403_naming_the_role(pages: Pages) -> None:
    """NW-04"""
    await pages.sign_in()
    answer = await pages.browser.get("/privacy")
    assert problem(answer, 403, Problem.ROLE)
    assert "privacy" in answer.json()["words"]


# How long it lasts (NW-72)


async def test_a_session_ends_after_thirty_idle_minutes(pages: Pages) -> None:
    await pages.sign_in()
    pages.stage.clock.passes(minutes=29, seconds=59)
    assert (await pages.seen()).status_code == 200  # and this use extends it
    pages.stage.clock.passes(minutes=29, seconds=59)
    assert (await pages.seen()).status_code == 200
    pages.stage.clock.passes(minutes=30)
    assert (await pages.seen()).status_code == 303


async def test_a_session_ends_after_ten_hours_of_work(pages: Pages) -> None:
    await pages.sign_in()
    for _ in range(29):
        pages.stage.clock.passes(minutes=20)
        assert (await pages.seen()).status_code == 200
    pages.stage.clock.passes(minutes=19, seconds=59)
    assert (await pages.seen()).status_code == 200
    pages.stage.clock.passes(seconds=1)
    assert (await pages.seen()).status_code == 303


async def test_a_background_refresh_extends_nothing(pages: Pages) -> None:
    await pages.sign_in()
    for _ in range(29):
        pages.stage.clock.passes(minutes=1)
        answer = await pages.seen(**{"X-Background": "1"})
        assert answer.status_code == 200
    pages.stage.clock.passes(minutes=1)
    assert (await pages.seen(**{"X-Background": "1"})).status_code == 303


async def test_a_page_is_told_when_its_session_ends(pages: Pages) -> None:
    """For the warning two minutes before."""
    await pages.sign_in()
    begun = pages.stage.clock()
    pages.stage.clock.passes(minutes=10)
    said = (await pages.seen()).json()
    assert said["idle_until"] == begun.replace(minute=40).isoformat()
    assert said["ends"] == begun.replace(hour=22).isoformat()


async def test_sessions_past_a_limit_are_removed_at_the_next_sign_in(pages: Pages) -> None:
    await pages.sign_in()
    pages.stage.clock.passes(hours=11)
    pages.browser = pages.another_browser()
    await pages.sign_in()
    async with pages.db.work() as tx:
        count = await tx.execute(text("select count(*) from session"))
        assert count.scalar_one() == 1


# Acting (NW-73)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": NOTIFY},
        {"origin": NOTIFY, "sec-fetch-site": "same-origin"},
        {"origin": "null", "sec-fetch-site": "same-origin"},  # NW-03's referrer policy
        {"sec-fetch-site": "same-origin"},
    ],
    ids=str,
)
async def test_an_act_from_our_own_page_is_done(pages: Pages, headers: dict[str, str]) -> None:
    await pages.sign_in()
    csrf = await pages.csrf()
    by_form = await pages.browser.post("/take", data={"csrf": csrf}, headers=headers)
    assert by_form.status_code == 200
    by_htmx = await pages.browser.post("/take", headers=headers | {"x-csrf-token": csrf})
    assert by_htmx.status_code == 200
    assert pages.acts == ["nurse-a", "nurse-a"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "null"},
        {"origin": "https://elsewhere.example.org"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": f"{NOTIFY}.example.org"},
        {"origin": NOTIFY, "sec-fetch-site": "cross-site"},
        {"origin": NOTIFY, "sec-fetch-site": "same-site"},
        {"origin": "https://elsewhere.example.org", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
    ids=str,
)
async def test_an_act_from_elsewhere_is_403_without_effect(
    pages: Pages, headers: dict[str, str]
) -> None:
    await pages.sign_in()
    csrf = await pages.csrf()
    answer = await pages.browser.post("/take", data={"csrf": csrf}, headers=headers)
    assert problem(answer, 403, Problem.FORGED)
    assert pages.acts == []


async def test_an_act_needs_the_token_of_its_own_session(pages: Pages) -> None:
    await pages.sign_in()
    own = await pages.csrf()
    other = pages.browser
    pages.browser = pages.another_browser()
    await pages.sign_in("hospital-cm")
    foreign = await pages.csrf()
    assert own != foreign
    headers = {"origin": NOTIFY, "sec-fetch-site": "same-origin"}
    for forged in ({}, {"csrf": ""}, {"csrf": foreign}, {"csrf": own[:-1]}, {"csrf": "é"}):
        answer = await other.post("/take", data=forged, headers=headers)
        assert problem(answer, 403, Problem.FORGED), forged
    assert pages.acts == []
    assert (await other.post("/take", data={"csrf": own}, headers=headers)).status_code == 200


async def test_an_act_without_a_session_is_sent_to_sign_in(pages: Pages) -> None:
    answer = await pages.browser.post("/take", headers={"origin": NOTIFY})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?to=%2F"
    assert pages.acts == []


# The way out


async def test_sign_out_ends_it_here_and_at_the_issuer(pages: Pages) -> None:
    await pages.sign_in()
    kept = pages.browser.cookies[COOKIE]
    csrf = await pages.csrf()
    answer = await pages.browser.post("/sign-out", data={"csrf": csrf}, headers={"origin": NOTIFY})
    assert answer.status_code == 303
    way = urlsplit(answer.headers["location"])
    assert f"{way.scheme}://{way.netloc}{way.path}" == f"{ISSUER}/end-session"
    assert parse_qs(way.query)["post_logout_redirect_uri"] == [f"{NOTIFY}/"]
    stale = pages.another_browser()
    assert (await stale.get("/list", headers={"cookie": f"{COOKIE}={kept}"})).status_code == 303
    back = await pages.browser.get(answer.headers["location"])
    assert back.headers["location"] == f"{NOTIFY}/"
    asked = urlencode(await pages.begin())
    page = await pages.browser.get(f"{ISSUER}/authorize?{asked}")
    assert page.status_code == 200  # the personas again: nobody is signed on at the issuer


async def test_sign_on_at_the_issuer_opens_the_next_session_without_a_click(pages: Pages) -> None:
    """NW-72: sign-on at the issuer joins the services' sessions."""
    await pages.sign_in()
    pages.browser.cookies.delete(COOKIE)
    asked = urlencode(await pages.begin())
    straight = await pages.browser.get(f"{ISSUER}/authorize?{asked}")
    assert straight.status_code == 303
    await pages.browser.get(straight.headers["location"])
    assert (await pages.seen()).json()["who"] == "nurse-a"


async def test_sign_out_without_its_token_changes_nothing(pages: Pages) -> None:
    await pages.sign_in()
    answer = await pages.browser.post("/sign-out", headers={"origin": NOTIFY})
    assert problem(answer, 403, Problem.FORGED)
    assert (await pages.seen()).json()["who"] == "nurse-a"


async def test_a_request_may_not_read_sessions(shared: FreshDatabase) -> None:
    """CS-91: they are the worker's alone."""
    db = Database(shared.url("notify"), "notify")
    try:
        for table in ("session", "sign_in"):
            with pytest.raises(Exception, match="permission denied"):
                async with db.request("clinic-a") as tx:
                    await tx.execute(text(f"select * from {table}"))
    finally:
        await db.close()
