"""The loopback authority of `up` and `demo`: tokens for machines, sign-in for personas.

It stands where a region's own authority stands in production, and speaks the same protocols
over the same HTTP: SMART Backend Services 2.2 (clinic-api.md, section 9) and OpenID Connect
with code and PKCE. What it must not do elsewhere it does here, and says so: anybody who can
reach it signs in as anybody (NW-71). So it refuses to be reached from beyond this machine.
"""

import hashlib
import hmac
import secrets
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, Self
from urllib.parse import unquote, urlencode, urlsplit

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import ECKey
from pydantic import model_validator
from sqlalchemy import text
from starlette.middleware.trustedhost import TrustedHostMiddleware

from services.cli import personas, tokens
from services.cli.tokens import ASSERTION_TYPE, kept_key
from services.plumbing import telemetry
from services.plumbing.auth import (
    AuthorityAwayError,
    Key,
    Published,
    TokenError,
    authority_client,
    authority_gate,
    public_keys,
    read_claims,
    read_header,
    read_scope,
    read_scopes,
    verify,
)
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from services.plumbing.process import run, serve
from services.plumbing.region import Client, Person, Region, RegionError, RegionFile
from services.plumbing.settings import LOOPBACK, AuthoritySettings, SettingsError, read
from services.plumbing.signin import challenge
from services.plumbing.web import make_app

ASSERTION_ALGORITHMS = ("RS384", "ES384")
"""The two that SMART Backend Services names (SM-22)."""
TOKEN_LASTS = timedelta(seconds=300)
ASSERTION_AHEAD = timedelta(seconds=330)
"""How far ahead an assertion may expire: 300 s, and 30 s of a clock that runs fast (SM-25)."""
CODE_LASTS = timedelta(seconds=60)
SIGN_ON_LASTS = timedelta(hours=10)
LONGEST_FORM = 64 * 1024
SIGN_ON_COOKIE = "passerelle-authority"


class LoopbackSettings(AuthoritySettings):
    """Settings of the authority, which are refused if others could reach it."""

    @model_validator(mode="after")
    def _reached_from_here_only(self) -> Self:
        if self.host not in LOOPBACK:
            raise ValueError("the loopback authority lets in anybody: it listens on loopback only")
        return self


class OAuthError(Exception):
    """An error of the token endpoint: RFC 6749 code and a text that quotes nothing received."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The services, as one client of the sign-in: where the browser may be sent back to."""

    id: str
    secret: str
    redirect_uris: frozenset[str]
    after_sign_out: frozenset[str]

    @classmethod
    def of(cls, settings: LoopbackSettings) -> "RelyingParty":
        services = (settings.ingest_url, settings.screening_url, settings.notify_url)
        return cls(
            id=settings.oidc_client_id,
            secret=settings.oidc_client_secret.get_secret_value(),
            redirect_uris=frozenset(f"{url}/sign-in/return" for url in services),
            after_sign_out=frozenset(f"{url}/" for url in services),
        )


class LoopbackAuthority:
    """Issues tokens of `issuer`, for clients and people of the region file."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        key: ECKey,
        db: Database,
        region: Callable[[], Region],
        relying: RelyingParty,
        http: httpx.AsyncClient,
        now: Callable[[], datetime] = real_now,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._key = key
        self._db = db
        self._region = region
        self._relying = relying
        self._http = http
        self._now = now
        self._published: dict[str, Published] = {}

    # What it publishes

    async def configuration(self) -> Response:
        document = {
            "issuer": self._issuer,
            "jwks_uri": f"{self._issuer}/jwks",
            "token_endpoint": self._token_url,
            "authorization_endpoint": f"{self._issuer}/authorize",
            "userinfo_endpoint": f"{self._issuer}/userinfo",
            "end_session_endpoint": f"{self._issuer}/end-session",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES384"],
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_basic"],
            "token_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "scopes_supported": ["openid", "profile"],
            "claims_supported": ["sub", "name", "locale", "roles", "organization"],
        }
        return JSONResponse(document, headers={"Cache-Control": "max-age=300"})

    async def jwks(self) -> Response:
        public = self._key.as_dict(private=False, use="sig", alg="ES384")
        return JSONResponse({"keys": [public]}, headers={"Cache-Control": "max-age=60"})

    @property
    def _token_url(self) -> str:
        return f"{self._issuer}/token"

    # Tokens

    async def token(self, request: Request) -> Response:
        """The token endpoint, for machines and for the relying party."""
        try:
            answer = await self._answer(request, await read_form(request))
        except OAuthError as error:
            said = {"error": error.error, "error_description": error.description}
            return JSONResponse(said, error.status, headers=_NEVER_KEPT)
        return JSONResponse(answer, headers=_NEVER_KEPT)

    async def _answer(self, request: Request, form: Mapping[str, str]) -> dict[str, Any]:
        match form.get("grant_type"):
            case "client_credentials":
                return await self._to_machine(form)
            case "authorization_code":
                return await self._to_relying_party(request, form)
            case _:
                raise OAuthError(
                    "unsupported_grant_type",
                    "`grant_type` must be client_credentials or authorization_code.",
                )

    async def _to_machine(self, form: Mapping[str, str]) -> dict[str, Any]:
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise OAuthError("invalid_client", f"`client_assertion_type` must be {ASSERTION_TYPE}.")
        client = await self._assert(form.get("client_assertion", ""))
        granted = grant(form.get("scope", ""), client.scopes)
        now = self._now()
        claims = {
            "iss": self._issuer,
            "sub": client.id,
            "client_id": client.id,
            "aud": self._audience,
            "iat": _seconds(now),
            "exp": _seconds(now + TOKEN_LASTS),
            "jti": secrets.token_urlsafe(16),
            "scope": granted,
        }
        return {
            "access_token": self._sign(claims, "at+jwt"),
            "token_type": "bearer",
            "expires_in": int(TOKEN_LASTS.total_seconds()),
            "scope": granted,
        }

    async def _assert(self, assertion: str) -> Client:
        """The client whose assertion this is, used for the first time (SM-20 to SM-28, SM-32)."""
        try:
            header = read_header(assertion)
            if header.get("typ") != "JWT":
                _not_authenticated("The assertion's `typ` must be JWT.")
            client = self._claimed(assertion)
            if "jku" in header and (client.jwks_url is None or header["jku"] != client.jwks_url):
                _not_authenticated("The assertion's `jku` is not the registered one.")
            keys = await self._keys_of(client, header.get("kid"))
            claims = verify(assertion, keys, ASSERTION_ALGORITHMS)
        except TokenError as error:
            _not_authenticated(error.reason)
        if claims.get("iss") != client.id or claims.get("sub") != client.id:
            _not_authenticated("`iss` and `sub` must both be the client's id.")
        audience = claims.get("aud")
        if audience not in (self._token_url, [self._token_url]):
            _not_authenticated(f"`aud` must be {self._token_url}.")
        now = self._now()
        expires = _instant(claims.get("exp"))
        if expires is None or expires <= now or expires > now + ASSERTION_AHEAD:
            _not_authenticated("`exp` must be ahead, and by at most 300 seconds.")
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= 256 or "\0" in jti:
            _not_authenticated("`jti` must be a string of 1 to 256 characters.")
        async with self._db.work() as tx:
            await tx.execute(_FORGET_ASSERTIONS, {"now": now})
            used = await tx.execute(
                _USE_ASSERTION, {"client": client.id, "jti": jti, "expires": expires}
            )
        if used.rowcount != 1:
            _not_authenticated("This assertion was used before; sign a new one with a new `jti`.")
        return client

    def _claimed(self, assertion: str) -> Client:
        """The client an assertion says it is of; believed only once its signature verifies."""
        said = read_claims(assertion).get("iss")
        client = self._region().client(said) if isinstance(said, str) else None
        if client is None:
            _not_authenticated("The client is not registered.")
        return client

    async def _keys_of(self, client: Client, kid: object) -> Sequence[Key]:
        """Registered inline, or published by the client at its registered URL.

        A key that is not among those we have is asked for once more: the client has a new one.
        """
        if client.jwks is not None:
            return public_keys(client.jwks)
        if client.jwks_url is None:
            _not_authenticated("The client has no registered key.")
        published = self._published.get(client.jwks_url)
        try:
            if published is None:
                published = Published(client.jwks_url, self._http, now=self._now)
                self._published[client.jwks_url] = published
            keys = public_keys(await published.read())
            if all(key.kid != kid for key in keys):
                keys = public_keys(await published.read(again=True))
        except (AuthorityAwayError, ValueError):
            _not_authenticated("The client's registered keys cannot be read.")
        return keys

    async def _to_relying_party(self, request: Request, form: Mapping[str, str]) -> dict[str, Any]:
        relying = self._relying
        told = basic_credentials(request.headers.get("authorization", ""))
        expected = f"{relying.id}:{relying.secret}"
        if told is None or not hmac.compare_digest(told.encode(), expected.encode()):
            raise OAuthError("invalid_client", "Authenticate with client_secret_basic.", 401)
        async with self._db.work() as tx:
            found = await tx.execute(_REDEEM_CODE, {"digest": _digest(form.get("code", ""))})
            code = found.one_or_none()
        now = self._now()
        if (
            code is None
            or code.expires <= now
            or code.client != relying.id
            or code.redirect_uri != form.get("redirect_uri")
            or not hmac.compare_digest(code.challenge, challenge(form.get("code_verifier", "")))
        ):
            raise OAuthError("invalid_grant", "The code is unknown, used, old, or not yours.")
        person = self._region().person(code.person)
        if person is None:
            raise OAuthError("invalid_grant", "The person is no longer registered.")
        claims = {
            "iss": self._issuer,
            "sub": person.id,
            "iat": _seconds(now),
            "exp": _seconds(now + TOKEN_LASTS),
        }
        nonce = {} if code.nonce is None else {"nonce": code.nonce}
        return {
            "access_token": self._sign({**claims, "aud": f"{self._issuer}/userinfo"}, "at+jwt"),
            "token_type": "Bearer",
            "expires_in": int(TOKEN_LASTS.total_seconds()),
            "scope": "openid profile",
            "id_token": self._sign(
                {
                    **claims,
                    **about(person),
                    **nonce,
                    "aud": relying.id,
                    "auth_time": _seconds(code.signed_in),
                },
                "JWT",
            ),
        }

    async def userinfo(self, request: Request) -> Response:
        """What the ID token says of the person, for who holds the access token beside it."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            claims = verify(token, [self._key], ["ES384"]) if scheme.lower() == "bearer" else {}
        except TokenError:
            claims = {}
        expires = _instant(claims.get("exp"))
        person = self._region().person(str(claims.get("sub")))
        if (
            claims.get("aud") != f"{self._issuer}/userinfo"
            or expires is None
            or expires <= self._now()
            or person is None
        ):
            challenged = {"WWW-Authenticate": 'Bearer error="invalid_token"', **_NEVER_KEPT}
            return JSONResponse({"error": "invalid_token"}, 401, headers=challenged)
        return JSONResponse({"sub": person.id, **about(person)}, headers=_NEVER_KEPT)

    def _sign(self, claims: dict[str, Any], kind: str) -> str:
        header = {"alg": "ES384", "typ": kind, "kid": self._key.kid}
        return jwt.encode(header, claims, self._key, algorithms=["ES384"])

    # Sign-in of personas

    async def authorize(self, request: Request) -> Response:
        """The authorization endpoint: the page of personas, or straight back if signed on."""
        asked = dict(request.query_params)
        refusal = self._refusal(asked)
        if refusal is not None:
            return refusal
        now = self._now()
        prompt = asked.get("prompt", "")
        if prompt not in ("login", "select_account"):
            async with self._db.work() as tx:
                cookie = request.cookies.get(SIGN_ON_COOKIE, "")
                found = await tx.execute(_SIGNED_ON, {"digest": _digest(cookie), "now": now})
                signed_on = found.one_or_none()
            if (
                signed_on is not None
                and self._region().person(signed_on.person) is not None
                and _is_recent(signed_on.signed_in, asked.get("max_age", ""), now)
            ):
                return await self._back_with_code(asked, signed_on.person, signed_on.signed_in)
        if prompt == "none":
            return self._back(asked, {"error": "login_required"})
        return self._page(asked)

    async def choose(self, request: Request) -> Response:
        """A persona was clicked."""
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return self._plain(personas.NOT_FROM_HERE, 403)
        try:
            asked = await read_form(request)
        except OAuthError as error:
            return self._plain((("en", error.description),), 400)
        refusal = self._refusal(asked)
        if refusal is not None:
            return refusal
        person = self._region().person(asked.get("persona", ""))
        if person is None:
            return self._page(asked)
        now = self._now()
        secret = secrets.token_urlsafe(32)
        async with self._db.work() as tx:
            await tx.execute(_FORGET_SIGN_ONS, {"now": now})
            await tx.execute(
                _SIGN_ON,
                {
                    "digest": _digest(secret),
                    "person": person.id,
                    "signed_in": now,
                    "expires": now + SIGN_ON_LASTS,
                },
            )
        response = await self._back_with_code(asked, person.id, now)
        response.set_cookie(SIGN_ON_COOKIE, secret, path="/", httponly=True, samesite="lax")
        return response

    async def end_session(self, request: Request) -> Response:
        """Sign off here; back to the relying party if it named a registered address."""
        async with self._db.work() as tx:
            cookie = request.cookies.get(SIGN_ON_COOKIE, "")
            await tx.execute(_SIGN_OFF, {"digest": _digest(cookie)})
        back = request.query_params.get("post_logout_redirect_uri")
        response: Response
        if back in self._relying.after_sign_out and back is not None:
            response = RedirectResponse(back, 303, headers=_NEVER_KEPT)
        else:
            response = self._plain(personas.SIGNED_OUT, 200)
        response.delete_cookie(SIGN_ON_COOKIE, path="/", httponly=True, samesite="lax")
        return response

    def _refusal(self, asked: Mapping[str, str]) -> Response | None:
        """What is wrong with an authorization request. Only to a registered address it is sent."""
        known = asked.get("client_id") == self._relying.id
        if not known or asked.get("redirect_uri") not in self._relying.redirect_uris:
            return self._plain(personas.UNKNOWN_PARTY, 400)
        if asked.get("response_type") != "code":
            return self._back(asked, {"error": "unsupported_response_type"})
        if "openid" not in asked.get("scope", "").split():
            return self._back(asked, {"error": "invalid_scope"})
        pkce = asked.get("code_challenge_method") == "S256" and asked.get("code_challenge")
        if not pkce or not asked.get("state"):
            return self._back(asked, {"error": "invalid_request"})
        return None

    async def _back_with_code(
        self, asked: Mapping[str, str], person: str, signed_in: datetime
    ) -> Response:
        code, now = secrets.token_urlsafe(32), self._now()
        async with self._db.work() as tx:
            await tx.execute(_FORGET_CODES, {"now": now})
            await tx.execute(
                _GIVE_CODE,
                {
                    "digest": _digest(code),
                    "client": asked["client_id"],
                    "redirect_uri": asked["redirect_uri"],
                    "challenge": asked["code_challenge"],
                    "nonce": asked.get("nonce"),
                    "person": person,
                    "signed_in": signed_in,
                    "expires": now + CODE_LASTS,
                },
            )
        return self._back(asked, {"code": code})

    def _back(self, asked: Mapping[str, str], said: Mapping[str, str]) -> Response:
        state = {"state": asked["state"]} if "state" in asked else {}
        query = urlencode({**said, **state, "iss": self._issuer})
        return RedirectResponse(f"{asked['redirect_uri']}?{query}", 303, headers=_NEVER_KEPT)

    def _page(self, asked: Mapping[str, str]) -> Response:
        kept = {name: asked[name] for name in _ASKED if name in asked}
        nonce = secrets.token_urlsafe(16)
        return self._html(personas.personas(self._region(), kept, nonce), nonce, 200)

    def _plain(self, words: personas.Words, status: int) -> Response:
        nonce = secrets.token_urlsafe(16)
        return self._html(personas.plain(words, nonce), nonce, status)

    def _html(self, page: str, nonce: str, status: int) -> Response:
        origins = {_origin(uri) for uri in self._relying.redirect_uris}
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none';"
            f" frame-ancestors 'none'; form-action 'self' {' '.join(sorted(origins))}"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(page, status, headers | _NEVER_KEPT)


_NEVER_KEPT = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_ASKED = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
)


def grant(asked: str, allowed: Sequence[str]) -> str:
    """The scopes asked for, if every one of them is within `allowed` (SM-29, CA-70)."""
    texts = asked.split()
    scopes = [read_scope(one) for one in texts]
    within = read_scopes(allowed)
    if not scopes:
        raise OAuthError("invalid_scope", "Ask for a `scope`, such as system/Task.rs.")
    if any(one is None or not any(have.covers(one) for have in within) for one in scopes):
        raise OAuthError(
            "invalid_scope",
            "A scope is not of the form system/T.cruds (letters in order), or is not granted to"
            f" this client. Granted: {' '.join(allowed)}.",
        )
    return " ".join(texts)


def about(person: Person) -> dict[str, Any]:
    """The claims of a person."""
    organization = person.clinic or person.site
    return {
        "name": person.name,
        "locale": f"{person.language}-CA",
        "roles": list(person.roles),
        **({"organization": organization} if organization else {}),
    }


async def read_form(request: Request) -> dict[str, str]:
    """A urlencoded body with each parameter once, at most 64 KiB."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/x-www-form-urlencoded":
        raise OAuthError("invalid_request", "Send application/x-www-form-urlencoded.")
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > LONGEST_FORM:
        raise OAuthError("invalid_request", "Send a Content-Length of at most 65536.")
    form = await request.form()
    pairs = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise OAuthError("invalid_request", "A parameter is there twice.")
    return found


def basic_credentials(authorization: str) -> str | None:
    """`id:secret` of HTTP Basic, each part form-decoded as RFC 6749 section 2.3.1 has it."""
    scheme, _, coded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, secret = b64decode(coded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return f"{unquote(user)}:{unquote(secret)}"


def _not_authenticated(why: str) -> NoReturn:
    raise OAuthError("invalid_client", why, 401) from None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _is_recent(signed_in: datetime, max_age: str, now: datetime) -> bool:
    """Whether a sign-on is young enough for who asks for `max_age` seconds at most."""
    seconds = max_age.isascii() and max_age.isdigit() and len(max_age) < 10
    return not seconds or now - signed_in < timedelta(seconds=int(max_age))


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())


def _instant(value: object) -> datetime | None:
    """The instant of a NumericDate; None if it is none, or beyond all calendars."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


_USE_ASSERTION = text(
    "insert into assertion (client, jti, expires) values (:client, :jti, :expires)"
    " on conflict do nothing"
)
_FORGET_ASSERTIONS = text("delete from assertion where expires <= :now")
_GIVE_CODE = text(
    "insert into code"
    " (digest, client, redirect_uri, challenge, nonce, person, signed_in, expires) values"
    " (:digest, :client, :redirect_uri, :challenge, :nonce, :person, :signed_in, :expires)"
)
_REDEEM_CODE = text(
    "delete from code where digest = :digest"
    " returning client, redirect_uri, challenge, nonce, person, signed_in, expires"
)
_FORGET_CODES = text("delete from code where expires <= :now")
_SIGN_ON = text(
    "insert into sign_on (digest, person, signed_in, expires)"
    " values (:digest, :person, :signed_in, :expires)"
)
_SIGNED_ON = text("select person, signed_in from sign_on where digest = :digest and expires > :now")
_SIGN_OFF = text("delete from sign_on where digest = :digest")
_FORGET_SIGN_ONS = text("delete from sign_on where expires <= :now")


# Running it


def make_authority(authority: LoopbackAuthority, db: Database) -> FastAPI:
    """The app. It answers to the names of loopback alone, so that no page elsewhere reaches it."""
    app = make_app("authority", db)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    at = "/.well-known/openid-configuration"
    app.add_api_route(at, authority.configuration, methods=["GET"])
    app.add_api_route("/jwks", authority.jwks, methods=["GET"])
    app.add_api_route("/token", authority.token, methods=["POST"])
    app.add_api_route("/userinfo", authority.userinfo, methods=["GET"])
    app.add_api_route("/authorize", authority.authorize, methods=["GET"])
    app.add_api_route("/authorize", authority.choose, methods=["POST"])
    app.add_api_route("/end-session", authority.end_session, methods=["GET"])

    @app.get("/favicon.ico")
    async def no_icon() -> Response:
        return Response(status_code=204)

    return app


def main() -> int:
    """Serve until told to stop; 2 if the settings are not usable, 1 if it failed."""
    try:
        settings = read(LoopbackSettings)
        region = RegionFile(settings.region)
        key = kept_key(settings.signing_key_file)
    except (SettingsError, RegionError, tokens.TokenError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    telemetry.set_up("authority", settings.log_level, settings.otlp_endpoint)
    return run(_serve(settings, region, key))


async def _serve(settings: LoopbackSettings, region: RegionFile, key: ECKey) -> int:
    db = Database(settings.database_url.get_secret_value(), "authority")
    async with authority_client(authority_gate(settings)) as http:
        authority = LoopbackAuthority(
            issuer=settings.issuer,
            audience=settings.audience,
            key=key,
            db=db,
            region=region.current,
            relying=RelyingParty.of(settings),
            http=http,
        )
        try:
            app = make_authority(authority, db)
            return await serve(app, settings.host, settings.port or 8000, local=settings.local)
        finally:
            await db.close()
