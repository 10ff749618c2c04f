"""People sign in at the region's issuer and have a session here (NW-70 to NW-73).

OpenID Connect, authorization code with PKCE. The tokens stay on the server; the browser holds
one random number, of which the service keeps the digest. Who somebody is the issuer says; which
roles, clinic or site that person has, the region file. Limits run on real time.
"""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NoReturn
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Row, text

from services.plumbing import audit
from services.plumbing.auth import (
    SKEW,
    Authority,
    AuthorityAwayError,
    Caller,
    Kind,
    TokenError,
    check_claims,
    read_claims,
)
from services.plumbing.clock import real_now
from services.plumbing.db import Database, Tx
from services.plumbing.region import Person, Region
from services.plumbing.settings import LOOPBACK, Settings
from services.plumbing.telemetry import new_id
from services.plumbing.web import Rejection

SIGN_IN_LASTS = timedelta(minutes=10)
"""How long somebody may take at the issuer."""
SEEN_EVERY = timedelta(seconds=30)
"""How exactly the last use of a session is kept."""
ID_TOKEN_ALGORITHMS = ("RS256", "RS384", "ES256", "ES384")
SAFE = ("GET", "HEAD", "OPTIONS")


class Problem(StrEnum):
    """Why a sign-in or an act of a signed-in person was refused."""

    STATE = "state"
    CANCELLED = "cancelled"
    TOKEN = "token"  # noqa: S105 - a kind of problem
    NO_ROLE = "no-role"
    RETURN_PATH = "return-path"
    ISSUER_AWAY = "issuer-away"
    TOO_MANY = "too-many"
    FORGED = "forged"
    ROLE = "role"


WORDS: Mapping[Problem, Mapping[Literal["fr", "en"], str]] = {
    Problem.STATE: {
        "fr": "Cette connexion a expiré ou a déjà servi. Recommencez.",
        "en": "This sign-in has expired or was already used. Start again.",
    },
    Problem.CANCELLED: {
        "fr": "La connexion n'a pas été menée à terme.",
        "en": "The sign-in was not completed.",
    },
    Problem.TOKEN: {
        "fr": "La réponse du service de connexion n'a pas pu être vérifiée.",
        "en": "The answer of the sign-in service could not be verified.",
    },
    Problem.NO_ROLE: {
        "fr": "Votre compte n'a pas de rôle dans Passerelle.",
        "en": "Your account has no role in Passerelle.",
    },
    Problem.RETURN_PATH: {
        "fr": "L'adresse de retour n'appartient pas à ce service.",
        "en": "The address to return to is not of this service.",
    },
    Problem.ISSUER_AWAY: {
        "fr": "Le service de connexion ne répond pas. Réessayez dans un moment.",
        "en": "The sign-in service does not answer. Try again in a moment.",
    },
    Problem.TOO_MANY: {
        "fr": "Trop de connexions de cette adresse. Réessayez dans une minute.",
        "en": "Too many sign-ins from this address. Try again in a minute.",
    },
    Problem.FORGED: {
        "fr": "Cette demande ne vient pas d'une page de ce service. Rien n'a été changé.",
        "en": "This request does not come from a page of this service. Nothing was changed.",
    },
    Problem.ROLE: {
        "fr": "Cette page demande un autre rôle : {roles}.",
        "en": "This page needs another role: {roles}.",
    },
}

_STATUS: Mapping[Problem, tuple[int, str]] = {
    Problem.STATE: (400, "processing"),
    Problem.CANCELLED: (400, "processing"),
    Problem.TOKEN: (403, "login"),
    Problem.NO_ROLE: (403, "forbidden"),
    Problem.RETURN_PATH: (400, "value"),
    Problem.ISSUER_AWAY: (503, "transient"),
    Problem.TOO_MANY: (429, "throttled"),
    Problem.FORGED: (403, "forbidden"),
    Problem.ROLE: (403, "forbidden"),
}


@dataclass(eq=False)
class SignInProblem(Rejection):
    """A Rejection for a page: `words(language)` says it, `reference` finds it in the log."""

    problem: Problem = Problem.STATE
    roles: tuple[str, ...] = ()
    """Of `Problem.ROLE`: those that may; the page puts their names in place of the codes."""
    reference: str = field(default_factory=lambda: str(new_id())[:8])

    def words(self, language: Literal["fr", "en"]) -> str:
        return WORDS[self.problem][language].format(roles=", ".join(self.roles))


def _refuse(problem: Problem, roles: tuple[str, ...] = ()) -> NoReturn:
    status, issue = _STATUS[problem]
    wait = {"Retry-After": "60"} if problem is Problem.TOO_MANY else {}
    raise SignInProblem(
        issue=issue,
        advice=WORDS[problem]["en"].format(roles=", ".join(roles)),
        status=status,
        headers=wait,
        problem=problem,
        roles=roles,
    ) from None


class SignInNeeded(Exception):  # noqa: N818 - an answer, not an error
    """There is no session; `install` answers it with the way to the issuer and back."""


@dataclass(frozen=True, slots=True)
class Session:
    """Of a signed-in person, as this request found it."""

    caller: Caller
    person: Person
    key: UUID
    """Names the session, and opens nothing."""
    csrf: str = field(repr=False)
    """For the hidden field `csrf` of each form and the header `X-CSRF-Token` of htmx."""
    idle_until: datetime
    """When it ends unless something is done, real time."""
    ends: datetime
    """When it ends whatever is done, real time."""
    authenticated: datetime | None = None
    """When they last proved at the issuer who they are, real time; None: it does not say."""


def local_path(path: str) -> str | None:
    """`path` if it leads to a page of this service and nowhere else (NW-72), else None."""
    parts = urlsplit(path)
    plain = path.isascii() and path.isprintable() and "\\" not in path and " " not in path
    if not plain or parts.scheme or parts.netloc or not path.startswith("/"):
        return None
    return None if path.startswith("//") else path


class SignIn:
    """The relying party of one service, and the sessions of its people."""

    def __init__(
        self,
        *,
        service: str,
        public_url: str,
        db: Database,
        region: Callable[[], Region],
        authority: Authority,
        settings: Settings,
        now: Callable[[], datetime] = real_now,
    ) -> None:
        self._public = public_url
        self._db = db
        self._region = region
        self._authority = authority
        self._settings = settings
        self._now = now
        self._idle = timedelta(minutes=settings.session_idle_minutes)
        self._absolute = timedelta(hours=settings.session_absolute_hours)
        self._secure = urlsplit(public_url).scheme == "https"
        prefix = "__Host-" if self._secure else ""
        self._cookie = f"{prefix}passerelle-{service}"
        self._browser_cookie = f"{self._cookie}-sign-in"
        self._pace = _Pace(settings.sign_ins_per_minute)

    @property
    def _return_url(self) -> str:
        return f"{self._public}/sign-in/return"

    # To the issuer and back

    async def begin(self, request: Request) -> Response:
        """Send the browser to the issuer; it comes back to the local path `to`.

        `again`: the person must prove anew who they are, whoever is signed on there.
        """
        to = local_path(request.query_params.get("to", "/"))
        if to is None:
            _refuse(Problem.RETURN_PATH)
        public = urlsplit(self._public)
        if public.hostname in LOOPBACK and request.url.netloc != public.netloc:
            # Its other name was typed; cookies are by host, and the way back names this one.
            again = "&again" if "again" in request.query_params else ""
            return _see(f"{self._public}/sign-in?to={quote(to, safe='')}{again}")
        now = self._now()
        if not self._pace.allows(_address(request), now):
            _refuse(Problem.TOO_MANY)
        try:
            endpoint = await self._authority.endpoint("authorization_endpoint")
        except AuthorityAwayError:
            _refuse(Problem.ISSUER_AWAY)
        state, browser, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(4))
        async with self._db.work() as tx:
            await tx.execute(_FORGET_SIGN_INS, {"before": now - SIGN_IN_LASTS})
            await tx.execute(
                _BEGIN,
                {
                    "state": _digest(state),
                    "browser": _digest(browser),
                    "nonce": nonce,
                    "verifier": verifier,
                    "return_to": to,
                    "begun": now,
                },
            )
        asked = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._return_url,
            "scope": "openid profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        if "again" in request.query_params:
            asked |= {"prompt": "login", "max_age": "0"}
        response = _see(f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}")
        self._set(response, self._browser_cookie, browser, SIGN_IN_LASTS)
        return response

    async def finish(self, request: Request) -> Response:
        """Back from the issuer: redeem the code, check the ID token, open a session."""
        begun = await self._redeem_state(request)
        answer = request.query_params
        issuer = answer.get("iss")
        if issuer is not None and issuer != self._authority.issuer:
            await self._failed(request, Problem.STATE)
        code = answer.get("code")
        if code is None:
            await self._failed(request, Problem.CANCELLED)
        try:
            id_token = await self._redeem_code(code, begun.verifier)
            claims = await self._check(id_token, begun.nonce)
        except AuthorityAwayError:
            _refuse(Problem.ISSUER_AWAY)
        except TokenError:
            await self._failed(request, Problem.TOKEN)
        person, asserted = self._recognise(claims)
        if person is None or not self._roles(person, asserted):
            await self._failed(request, Problem.NO_ROLE)
        secret, now = secrets.token_urlsafe(32), self._now()
        async with self._db.work() as tx:
            await self._forget(tx, request, now)
            await tx.execute(
                _OPEN,
                {
                    "id": _digest(secret),
                    "person": person.id,
                    "asserted": None if asserted is None else sorted(asserted),
                    "id_token": id_token,
                    "now": now,
                },
            )
            trail = audit.Trail.of(request, self._caller(person, asserted), now)
            await audit.record(tx, [trail.signed_in()])
        response = _see(begun.return_to)
        self._set(response, self._cookie, secret)
        self._unset(response, self._browser_cookie)
        return response

    async def _redeem_state(self, request: Request) -> Row[Any]:
        """The sign-in that this browser began, which is then over, whatever becomes of it."""
        state = request.query_params.get("state", "")
        browser = request.cookies.get(self._browser_cookie, "")
        async with self._db.work() as tx:
            begun = (await tx.execute(_TAKE, {"state": _digest(state)})).one_or_none()
        if (
            begun is None
            or begun.begun <= self._now() - SIGN_IN_LASTS
            or not hmac.compare_digest(begun.browser, _digest(browser))
        ):
            await self._failed(request, Problem.STATE)
        return begun

    async def _redeem_code(self, code: str, verifier: str) -> str:
        """The ID token for `code`. TokenError if the issuer refuses it."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._return_url,
            "code_verifier": verifier,
            "client_id": self._settings.oidc_client_id,
        }
        secret = self._settings.oidc_client_secret
        basic = (
            httpx.BasicAuth(
                quote(self._settings.oidc_client_id, safe=""),
                quote(secret.get_secret_value(), safe=""),
            )
            if secret is not None
            else httpx.USE_CLIENT_DEFAULT
        )
        endpoint = await self._authority.endpoint("token_endpoint")
        try:
            response = await self._authority.http.post(endpoint, data=form, auth=basic)
        except httpx.HTTPError:
            raise AuthorityAwayError("the token endpoint does not answer") from None
        if response.status_code >= 500:
            raise AuthorityAwayError("the token endpoint failed")
        try:
            id_token = response.json()["id_token"] if response.status_code == 200 else None
        except (ValueError, KeyError, TypeError):
            id_token = None
        if not isinstance(id_token, str):
            raise TokenError("The issuer gave no ID token.")
        return id_token

    async def _check(self, id_token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token that is for us, fresh, and of this very sign-in (NW-70)."""
        claims = await self._authority.verify(id_token, ID_TOKEN_ALGORITHMS)
        client_id = self._settings.oidc_client_id
        check_claims(
            claims,
            issuer=self._authority.issuer,
            audience=client_id,
            now=self._now(),
            skew=SKEW,
        )
        audience = claims["aud"]
        several = isinstance(audience, list) and len(audience) > 1
        if claims.get("azp", None if several else client_id) != client_id:
            raise TokenError("The ID token was made for another party.")
        if "iat" not in claims:
            raise TokenError("The ID token does not say when it was made.")
        said = claims.get("nonce")
        if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
            raise TokenError("The ID token is of another sign-in.")
        return claims

    def _recognise(self, claims: Mapping[str, Any]) -> tuple[Person | None, frozenset[str] | None]:
        """The person of the region file, and the roles the issuer asserts (None: it asserts none).

        Where the issuer names an organisation, it must be that person's own.
        """
        settings = self._settings
        who = _claim(claims, settings.oidc_person_claim)
        person = self._region().person(who) if isinstance(who, str) else None
        if person is not None and settings.oidc_organization_claim:
            named = _claim(claims, settings.oidc_organization_claim)
            if named is None or named not in (person.clinic, person.site):
                person = None
        if not settings.oidc_roles_claim:
            return person, None
        roles = _claim(claims, settings.oidc_roles_claim)
        listed = [roles] if isinstance(roles, str) else roles if isinstance(roles, list) else []
        return person, frozenset(role for role in listed if isinstance(role, str))

    def _roles(self, person: Person, asserted: frozenset[str] | None) -> frozenset[str]:
        """Roles in force: of the region file, until their last day, and asserted (CS-81)."""
        if person.active_until is not None:
            today = self._now().astimezone(ZoneInfo(self._region().timezone)).date()
            if today > person.active_until:
                return frozenset()
        roles: frozenset[str] = frozenset(person.roles)
        return roles if asserted is None else roles & asserted

    def _caller(self, person: Person, asserted: frozenset[str] | None) -> Caller:
        return Caller(
            id=person.id,
            kind=Kind.PERSON,
            roles=self._roles(person, asserted),
            sites=frozenset() if person.site is None else frozenset({person.site}),
            clinic=person.clinic,
            name=person.name,
        )

    async def _failed(self, request: Request, problem: Problem) -> NoReturn:
        """Refuse a sign-in, on record (CS-110)."""
        await audit.refusals(self._db, self._now)(request, 401, None)
        _refuse(problem)

    # Sessions

    async def session(self, request: Request) -> Session | None:
        """The session of this browser, if there is one and neither limit has passed.

        Every use extends it, save a background refresh (`X-Background`).
        """
        secret = request.cookies.get(self._cookie)
        if secret is None:
            return None
        now = self._now()
        async with self._db.work() as tx:
            row = (await tx.execute(_FIND, {"id": _digest(secret)})).one_or_none()
            if row is None or now >= row.seen + self._idle or now >= row.begun + self._absolute:
                return None
            seen = row.seen
            if "x-background" not in request.headers and now >= seen + SEEN_EVERY:
                await tx.execute(_SEE, {"id": _digest(secret), "now": now})
                seen = now
        person = self._region().person(row.person)
        asserted = None if row.asserted is None else frozenset(row.asserted)
        if person is None or not self._roles(person, asserted):
            _refuse(Problem.NO_ROLE)
        ends = row.begun + self._absolute
        return Session(
            caller=self._caller(person, asserted),
            person=person,
            key=UUID(bytes=_digest(secret)[:16]),
            csrf=csrf_token(secret),
            idle_until=min(seen + self._idle, ends),
            ends=ends,
            authenticated=authenticated(row.id_token),
        )

    async def check_act(self, request: Request, session: Session) -> None:
        """That an unsafe request comes from a page of this session (NW-73), else 403.

        Under `Referrer-Policy: no-referrer` (NW-03) a browser sends `Origin: null` with its own
        forms; then, and only then, Sec-Fetch-Site alone vouches for them.
        """
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin", "null")
        if site not in (None, "same-origin") or (site is None and origin == "null"):
            _refuse(Problem.FORGED)
        if origin not in ("null", self._public):
            _refuse(Problem.FORGED)
        token = request.headers.get("x-csrf-token")
        if token is None:
            field_ = (await request.form()).get("csrf")
            token = field_ if isinstance(field_, str) else ""
        if not hmac.compare_digest(token.encode(), session.csrf.encode()):
            _refuse(Problem.FORGED)

    async def end(self, request: Request) -> Response:
        """Sign out here, and send the browser to the issuer to sign out there."""
        who = await person(request)
        now = self._now()
        async with self._db.work() as tx:
            id_token = await self._forget(tx, request, now)
            trail = audit.Trail.of(request, who, now)
            await audit.record(tx, [trail.signed_out()])
        try:
            endpoint = await self._authority.endpoint("end_session_endpoint")
        except AuthorityAwayError:
            response = _see("/")
        else:
            asked = {
                "client_id": self._settings.oidc_client_id,
                "post_logout_redirect_uri": f"{self._public}/",
                **({"id_token_hint": id_token} if id_token is not None else {}),
            }
            response = _see(f"{endpoint}?{urlencode(asked)}")
        self._unset(response, self._cookie)
        return response

    async def _forget(self, tx: Tx, request: Request, now: datetime) -> str | None:
        """End the browser's session, if it has one, and those past a limit; its ID token."""
        limits = {"idle": now - self._idle, "absolute": now - self._absolute}
        await tx.execute(_FORGET_SESSIONS, limits)
        secret = request.cookies.get(self._cookie, "")
        ended = (await tx.execute(_CLOSE, {"id": _digest(secret)})).scalar_one_or_none()
        return ended if isinstance(ended, str) else None

    def _set(
        self, response: Response, name: str, value: str, lasts: timedelta | None = None
    ) -> None:
        response.set_cookie(
            name,
            value,
            max_age=None if lasts is None else int(lasts.total_seconds()),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def _unset(self, response: Response, name: str) -> None:
        response.delete_cookie(name, path="/", secure=self._secure, httponly=True, samesite="lax")


def challenge(verifier: str) -> str:
    """PKCE S256."""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def authenticated(id_token: str) -> datetime | None:
    """`auth_time` of an ID token that was verified when the session began."""
    try:
        said = read_claims(id_token).get("auth_time")
    except TokenError:
        return None
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    try:
        return datetime.fromtimestamp(said, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def csrf_token(secret: str) -> str:
    """Of a session: derived from what only its browser holds, and does not give it away."""
    return urlsafe_b64encode(hashlib.sha256(b"csrf " + secret.encode()).digest()).decode()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """The claim at a dotted path, as `realm_access.roles`; one whose own name has dots first."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _see(url: str) -> Response:
    return RedirectResponse(url, status_code=303, headers={"Cache-Control": "no-store"})


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


class _Pace:
    """At most so many sign-ins a minute from one address (CS-100), counted in this process."""

    def __init__(self, per_minute: int) -> None:
        self._most = per_minute
        self._begun: dict[str, deque[datetime]] = {}

    def allows(self, address: str, now: datetime) -> bool:
        past = now - timedelta(minutes=1)
        self._begun = {a: times for a, times in self._begun.items() if times[-1] > past}
        times = self._begun.setdefault(address, deque(maxlen=self._most))
        if len(times) == self._most and times[0] > past:
            return False
        times.append(now)
        return True


_BEGIN = text(
    "insert into sign_in (state, browser, nonce, verifier, return_to, begun)"
    " values (:state, :browser, :nonce, :verifier, :return_to, :begun)"
)
_FORGET_SIGN_INS = text("delete from sign_in where begun <= :before")
_TAKE = text(
    "delete from sign_in where state = :state returning browser, nonce, verifier, return_to, begun"
)
_OPEN = text(
    "insert into session (id, person, asserted, id_token, begun, seen)"
    " values (:id, :person, :asserted, :id_token, :now, :now)"
)
_FIND = text("select person, asserted, id_token, begun, seen from session where id = :id")
_SEE = text("update session set seen = :now where id = :id and seen < :now")
_CLOSE = text("delete from session where id = :id returning id_token")
_FORGET_SESSIONS = text("delete from session where seen <= :idle or begun <= :absolute")


# For pages


def install(app: FastAPI, sign_in: SignIn) -> None:
    """Give `app` the ways in and out, and the dependencies below their SignIn."""
    app.state.sign_in = sign_in
    router = APIRouter()
    router.add_api_route("/sign-in", sign_in.begin, methods=["GET"])
    router.add_api_route("/sign-in/return", sign_in.finish, methods=["GET"])
    router.add_api_route("/sign-out", sign_in.end, methods=["POST"])
    app.include_router(router)
    app.add_exception_handler(SignInNeeded, _to_sign_in)


async def _to_sign_in(request: Request, _needed: Exception) -> Response:
    """To the issuer and back to where the person was; htmx is told by its own header."""
    if request.headers.get("hx-request") == "true":
        at = urlsplit(request.headers.get("hx-current-url", ""))
        back = local_path(f"{at.path}?{at.query}" if at.query else at.path) or "/"
        way = f"/sign-in?to={quote(back, safe='')}"
        return Response(status_code=401, headers={"HX-Redirect": way, "Cache-Control": "no-store"})
    query = f"?{request.url.query}" if request.url.query else ""
    here = f"{request.url.path}{query}" if request.method == "GET" else "/"
    return _see(f"/sign-in?to={quote(local_path(here) or '/', safe='')}")


async def session_of(request: Request) -> Session:
    """A FastAPI dependency: the session; without one, the person is sent to sign in."""
    held: Session | None = getattr(request.state, "session", None)
    if held is None:
        sign_in: SignIn = request.app.state.sign_in
        held = await sign_in.session(request)
        if held is None:
            raise SignInNeeded
        request.state.session = held
    if request.method not in SAFE:
        sign_in = request.app.state.sign_in
        await sign_in.check_act(request, held)
    return held


async def person(request: Request) -> Caller:
    """A FastAPI dependency: who is signed in. Unsafe methods are checked for forgery (NW-73)."""
    return (await session_of(request)).caller


def role(*roles: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency: the person signed in, who has one of `roles`, else 403 (NW-04)."""

    async def granted(request: Request) -> Caller:
        found = await person(request)
        if not found.has(*roles):
            _refuse(Problem.ROLE, roles)
        return found

    return granted
