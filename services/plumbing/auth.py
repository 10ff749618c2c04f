"""Who calls, and what they may see (CS-90): authenticate, then role or scope, then tenant.

A caller is a machine with an access token (SMART Backend Services) or a person with a session
(signin.py). What the token says is who it is and what was granted to it; which sites or clinic
it belongs to is said by the region file alone, so that no token reaches past its tenant.
"""

import asyncio
import hashlib
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI, Request
from joserfc import jws
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, RSAKey, import_key
from joserfc.jwt import JWTClaimsRegistry
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.plumbing import egress
from services.plumbing.clock import real_now
from services.plumbing.egress import Egress, Resolve
from services.plumbing.limits import UNLIMITED, Limits
from services.plumbing.region import Region
from services.plumbing.settings import LOOPBACK, Settings
from services.plumbing.web import Rejection, outcome_response

ACCESS_ALGORITHMS = ("RS384", "ES384", "ES256")
"""Of access tokens. Named, for no library's default has them and `none` is some library's."""
LETTERS = "cruds"
"""Create, read, update, delete, search: the permissions of a SMART v2 scope, in this order."""
SKEW = timedelta(seconds=60)
LARGEST_DOCUMENT = 256 * 1024
UNSAID_LIFETIME = timedelta(seconds=60)
"""How long a document without Cache-Control is kept."""
LONGEST_LIFETIME = timedelta(hours=1)
SHORTEST_REFRESH = timedelta(seconds=5)
"""How soon an unknown key id may make us ask for the keys again."""


# Scopes (CA-70)


@dataclass(frozen=True, slots=True)
class Granted:
    """What one scope grants: `letters` of `cruds`, on one resource type or on all (`*`)."""

    type: str
    letters: frozenset[str]

    def covers(self, other: "Granted") -> bool:
        return self.type in ("*", other.type) and self.letters >= other.letters

    def __str__(self) -> str:
        letters = "".join(letter for letter in LETTERS if letter in self.letters)
        return f"system/{self.type}.{letters}"


_SCOPE = re.compile(r"system/(?P<type>\*|[A-Z][A-Za-z]*)\.(?P<what>[a-z]+|\*)", re.ASCII)
_IN_ORDER = re.compile("c?r?u?d?s?")
_VERSION_1 = {"read": "rs", "write": "cud", "*": "cruds"}


def read_scope(text: str) -> Granted | None:
    """`system/T.cruds` with the letters in order, or its SMART v1 form; None if it is neither.

    A scope with a query part grants nothing: we could not keep its promise (CA-70).
    """
    match = _SCOPE.fullmatch(text)
    if match is None:
        return None
    letters = _VERSION_1.get(match["what"], match["what"])
    if not _IN_ORDER.fullmatch(letters):
        return None
    return Granted(match["type"], frozenset(letters))


def read_scopes(texts: Iterable[str]) -> frozenset[Granted]:
    """Those of `texts` that grant something here; the others are ignored."""
    return frozenset(scope for text in texts if (scope := read_scope(text)) is not None)


# Callers


class Kind(StrEnum):
    CLIENT = "client"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client or person, as the region file knows them today."""

    id: str
    kind: Kind
    scopes: frozenset[Granted] = frozenset()
    """Granted to the token. Empty for a person."""
    allowed: frozenset[Granted] = frozenset()
    """Granted to the client by the region file today; a scope needs both."""
    roles: frozenset[str] = frozenset()
    """Of nurse-web.md section 3; a client has at most `ops`."""
    sites: frozenset[str] = frozenset()
    clinic: str | None = None
    name: str = field(default="", repr=False)
    """For display."""
    token_id: str | None = None
    """`jti` of the access token, for the audit."""

    def may(self, resource_type: str, letters: str) -> bool:
        """Whether the token and the region file both grant every letter on that type."""
        return _grant(self.scopes, resource_type, letters) and _grant(
            self.allowed, resource_type, letters
        )

    def has(self, *roles: str) -> bool:
        """Whether the caller has one of `roles`."""
        return not self.roles.isdisjoint(roles)

    @property
    def tenant(self) -> str | None:
        """The clinic, or the site if it is a single one; None if it is several or none.

        A client of several sites names one in each message (HA-79).
        """
        if self.clinic is not None:
            return self.clinic
        return next(iter(self.sites)) if len(self.sites) == 1 else None


def _grant(scopes: Iterable[Granted], resource_type: str, letters: str) -> bool:
    granted: set[str] = set()
    for scope in scopes:
        if scope.type in ("*", resource_type):
            granted |= scope.letters
    return granted.issuperset(letters)


# Signed tokens


class TokenError(Exception):
    """A token that is not accepted; the reason is for the caller, and quotes nothing of it."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expired = expired


Key = RSAKey | ECKey


def public_keys(document: Mapping[str, Any]) -> tuple[Key, ...]:
    """The RSA and EC signing keys of a JWKS; what else is in it is left out."""
    keys: list[Key] = []
    listed = document.get("keys")
    for jwk in listed if isinstance(listed, list) else []:
        if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
            continue
        try:
            key = import_key(jwk)
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, RSAKey | ECKey):
            keys.append(key)
    return tuple(keys)


def read_header(token: str) -> dict[str, Any]:
    """The protected header, unverified. TokenError if it is not one, or names a member twice."""
    return _segment(token, "header")


def read_claims(token: str) -> dict[str, Any]:
    """The claims, unverified: for finding out whose key should verify them."""
    return _segment(token, "payload")


def _segment(token: str, name: Literal["header", "payload"]) -> dict[str, Any]:
    try:
        coded = jws.extract_compact(token.encode("ascii")).segments[name]
        padded = coded + b"=" * (-len(coded) % 4)
        found = json.loads(urlsafe_b64decode(padded), object_pairs_hook=_each_once)
    except (JoseError, ValueError, TypeError, KeyError):
        raise TokenError("The token is not a signed JWT in compact form.") from None
    if not isinstance(found, dict):
        raise TokenError("The token is not a signed JWT in compact form.")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def verify(token: str, keys: Collection[Key], algorithms: Collection[str]) -> dict[str, Any]:
    """The claims of `token`, signed by the one of `keys` that its `kid` names.

    TokenError if the algorithm is not one of `algorithms`, the key is missing, unknown or
    ambiguous, or the signature is wrong. What the claims say is for the caller to check.
    """
    header = read_header(token)
    if header.get("alg") not in algorithms:
        raise TokenError(f"The token must be signed with {' or '.join(algorithms)}.")
    if "crit" in header or "b64" in header:
        raise TokenError("The token's header asks for an extension that is not supported.")
    kid = header.get("kid")
    named = [key for key in keys if isinstance(kid, str) and key.kid == kid]
    if len(named) != 1:
        raise TokenError("The token's `kid` must name exactly one published key.")
    registry = jws.JWSRegistry(algorithms=algorithms, strict_check_header=False)
    try:
        signed = jws.deserialize_compact(token, named[0], registry=registry)
        claims = json.loads(signed.payload, object_pairs_hook=_each_once)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise TokenError("The token's signature does not verify.") from None
    if not isinstance(claims, dict):
        raise TokenError("The token's claims are not a JSON object.")
    return claims


def check_claims(
    claims: dict[str, Any], *, issuer: str, audience: str, now: datetime, skew: timedelta = SKEW
) -> None:
    """`iss`, `aud` and `exp` are there and right; `nbf` and `iat`, where given, are not ahead."""
    registry = JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=int(skew.total_seconds()),
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": audience},
        exp={"essential": True},
    )
    try:
        registry.validate(claims)
    except ExpiredTokenError:
        raise TokenError("The token has expired.", expired=True) from None
    except (JoseError, ValueError, TypeError, OverflowError):
        raise TokenError("The token is not of this issuer, or not for this audience.") from None


# What an authority publishes


MOST_VERIFIED = 1024
"""Tokens whose signature is remembered to hold."""


class AuthorityAwayError(Exception):
    """The authority did not answer, or not with what it must publish."""


class Published:
    """A JSON document of an authority, kept no longer than its Cache-Control allows (SM-31)."""

    def __init__(
        self,
        url: str,
        http: httpx.AsyncClient,
        *,
        now: Callable[[], datetime] = real_now,
    ) -> None:
        if not may_be_fetched(url):
            raise ValueError("an authority's URL must be https (http on loopback), without user")
        self.url = url
        self._http = http
        self._now = now
        self._document: Mapping[str, Any] = {}
        self._read_at: datetime | None = None
        self._until: datetime | None = None
        self._reading = asyncio.Lock()

    async def read(self, *, again: bool = False) -> Mapping[str, Any]:
        """The document; with `again`, asked for anew unless that was done a moment ago.

        AuthorityAwayError if it is needed and does not come.
        """
        async with self._reading:
            now = self._now()
            fresh = self._until is not None and now < self._until
            recent = self._read_at is not None and now < self._read_at + SHORTEST_REFRESH
            if not fresh or (again and not recent):
                self._document, lifetime = await self._fetch()
                self._read_at, self._until = now, now + lifetime
            return self._document

    async def _fetch(self) -> tuple[Mapping[str, Any], timedelta]:
        try:
            async with self._http.stream("GET", self.url, follow_redirects=False) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > LARGEST_DOCUMENT:
                        raise AuthorityAwayError("a document of the authority is too long")
            document = json.loads(bytes(body)) if response.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise AuthorityAwayError("the authority does not answer") from None
        if not isinstance(document, dict):
            raise AuthorityAwayError("the authority does not publish what it must")
        return document, lifetime(response.headers.get("cache-control"))


def may_be_fetched(url: str) -> bool:
    """https, or http on loopback; no user in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if "@" in parts.netloc or not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


def lifetime(cache_control: str | None) -> timedelta:
    """How long a response may be kept (SM-31); never more than an hour."""
    if cache_control is None:
        return UNSAID_LIFETIME
    said = [part.strip().lower() for part in cache_control.split(",")]
    if "no-store" in said or "no-cache" in said:
        return timedelta()
    for part in said:
        name, _, value = part.partition("=")
        if name == "max-age":
            seconds = value.strip('"')
            return (
                min(timedelta(seconds=int(seconds)), LONGEST_LIFETIME)
                if (seconds.isascii() and seconds.isdigit() and len(seconds) < 10)
                else timedelta()
            )
    return UNSAID_LIFETIME


def authority_gate(settings: Settings) -> Egress:
    """What is called for the authority's sake: public addresses, and `authority_networks`.

    Ports other than 443 only where the operator names one. Under `up` and `demo` also loopback,
    where the issuer is.
    """
    named = (urlsplit(url) for url in (settings.issuer, settings.jwks_url) if url is not None)
    return Egress(
        local=settings.local,
        ports=frozenset(f"{one.hostname}:{one.port}" for one in named if one.port is not None),
        networks=settings.authority_networks,
    )


def authority_client(gate: Egress, lookup: Resolve = egress.resolve) -> httpx.AsyncClient:
    """The HTTP client for what authorities publish: no proxy, no redirect, 5 s (CS-97)."""
    transport = egress.GuardedTransport(gate, lookup)
    return httpx.AsyncClient(transport=transport, follow_redirects=False, timeout=5)


class Authority:
    """An issuer of tokens: its metadata (OIDC discovery) and its signing keys, over HTTP.

    `jwks_url` is for an issuer that does not say in its metadata where its keys are.
    """

    def __init__(
        self,
        issuer: str,
        http: httpx.AsyncClient,
        *,
        jwks_url: str | None = None,
        now: Callable[[], datetime] = real_now,
    ) -> None:
        self.issuer = issuer
        self.http = http
        self._jwks_url = jwks_url
        self._now = now
        self._metadata = Published(f"{issuer}/.well-known/openid-configuration", http, now=now)
        self._jwks: Published | None = None
        self._verified: dict[bytes, dict[str, Any]] = {}
        self._verified_by: Mapping[str, Any] = {}

    @classmethod
    def of(cls, settings: Settings) -> "Authority":
        """The operator's, called as `authority_gate` allows."""
        http = authority_client(authority_gate(settings))
        return cls(settings.issuer, http, jwks_url=settings.jwks_url)

    async def metadata(self) -> Mapping[str, Any]:
        """Its discovery document. AuthorityAwayError also if it is another issuer's."""
        metadata = await self._metadata.read()
        if metadata.get("issuer") != self.issuer:
            raise AuthorityAwayError("the discovery document names another issuer")
        return metadata

    async def endpoint(self, name: str) -> str:
        """The URL the metadata gives under `name`."""
        url = (await self.metadata()).get(name)
        if not isinstance(url, str) or not may_be_fetched(url):
            raise AuthorityAwayError(f"the discovery document has no usable {name}")
        return url

    async def verify(self, token: str, algorithms: Collection[str]) -> dict[str, Any]:
        """The claims of a token this issuer signed. An unknown key is asked for once more.

        A signature that held is not computed again while the same keys are published; what the
        claims say is for the caller to check, each time.
        """
        url = self._jwks_url or await self.endpoint("jwks_uri")
        if self._jwks is None or self._jwks.url != url:
            self._jwks = Published(url, self.http, now=self._now)
        published = await self._jwks.read()
        if published is not self._verified_by or len(self._verified) >= MOST_VERIFIED:
            self._verified, self._verified_by = {}, published
        digest = hashlib.sha256(f"{sorted(algorithms)} {token}".encode()).digest()
        if digest in self._verified:
            return self._verified[digest]
        kid = read_header(token).get("kid")
        keys = public_keys(published)
        if all(key.kid != kid for key in keys):
            keys = public_keys(await self._jwks.read(again=True))
        claims = self._verified[digest] = verify(token, keys, algorithms)
        return claims


async def smart_configuration(authority: Authority, scopes: Iterable[str]) -> dict[str, Any]:
    """What a door answers at `.well-known/smart-configuration` (HA-10, SM-07).

    To be sent as application/json, without token, with `Access-Control-Allow-Origin: *`
    (SM-09). AuthorityAwayError while the authority has not been read yet.
    """
    return {
        "issuer": authority.issuer,
        "jwks_uri": await authority.endpoint("jwks_uri"),
        "token_endpoint": await authority.endpoint("token_endpoint"),
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": sorted(scopes),
        "code_challenge_methods_supported": ["S256"],
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
    }


# Machines: bearer tokens (SM-30)


@dataclass(frozen=True, slots=True)
class Auth:
    """Tells who sent a request, by the access token it bears. One a service."""

    authority: Authority
    audience: str
    region: Callable[[], Region]
    """The region file as it is now: a changed file speaks at the next request."""
    now: Callable[[], datetime] = real_now

    async def caller(self, authorization: str | None) -> Caller:
        """The client whose token this `Authorization` header bears.

        Rejection 401 without a valid token, 403 for a client the region file does not know,
        503 if the authority's keys cannot be had.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            _refuse("login", f"Send `Authorization: Bearer` with a token of {self._issuer}.")
        try:
            claims = await self.authority.verify(token.strip(), ACCESS_ALGORITHMS)
            check_claims(
                claims,
                issuer=self._issuer,
                audience=self.audience,
                now=self.now(),
                skew=timedelta(),
            )
        except TokenError as error:
            issue = "expired" if error.expired else "login"
            _refuse(issue, error.reason, error="invalid_token")
        except AuthorityAwayError:
            raise Rejection(
                status=503,
                issue="transient",
                advice="The keys of the token's issuer cannot be read now. Try again.",
                headers={"Retry-After": "5"},
            ) from None
        return self._known(claims)

    @property
    def _issuer(self) -> str:
        return self.authority.issuer

    def _known(self, claims: Mapping[str, Any]) -> Caller:
        client_id = claims.get("client_id") or claims.get("azp") or claims.get("sub")
        entry = self.region().client(client_id) if isinstance(client_id, str) else None
        if entry is None or not isinstance(client_id, str):
            raise Rejection(
                status=403,
                issue="forbidden",
                advice="The token is valid, but its client is not in the region file.",
            )
        scope = claims.get("scope", "")
        said = scope.split() if isinstance(scope, str) else []
        token_id = claims.get("jti")
        return Caller(
            id=client_id,
            kind=Kind.CLIENT,
            scopes=read_scopes(said),
            allowed=read_scopes(entry.scopes),
            roles=frozenset(entry.roles),
            sites=frozenset(entry.sites),
            clinic=entry.clinic,
            token_id=token_id if isinstance(token_id, str) else None,
        )


def _refuse(issue: str, advice: str, *, error: str | None = None) -> NoReturn:
    challenge = f'Bearer error="{error}"' if error else "Bearer"
    raise Rejection(
        status=401, issue=issue, advice=advice, headers={"WWW-Authenticate": challenge}
    ) from None


def require(resource_type: str, letters: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency: the caller, if it may do all of `letters` to that type (HA-99, CA-70).

    Rejection 401, or 403 with `insufficient_scope`.
    """

    async def granted(request: Request) -> Caller:
        return demand(await caller(request), resource_type, letters)

    return granted


def demand(caller: Caller, resource_type: str, letters: str) -> Caller:
    """`caller`, if it may; for what is checked inside a handler, as the entries of a Bundle."""
    if caller.may(resource_type, letters):
        return caller
    scope = str(Granted(resource_type, frozenset(letters)))
    raise Rejection(
        status=403,
        issue="forbidden",
        advice=f"This needs the scope {scope}.",
        headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
    )


def require_role(*roles: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency for endpoints without a resource type: one of `roles`, else 403."""

    async def granted(request: Request) -> Caller:
        found = await caller(request)
        if found.has(*roles):
            return found
        raise Rejection(
            status=403, issue="forbidden", advice=f"This needs the role {' or '.join(roles)}."
        )

    return granted


async def caller(request: Request) -> Caller:
    """A FastAPI dependency: the client the Doorkeeper let in.

    Raises KeyError where no Doorkeeper stands before the path: a fault of the wiring, which
    must not look like an open door.
    """
    found: Caller = request.scope["state"]["caller"]
    return found


Refused = Callable[[Request, int, Caller | None], Awaitable[None]]
"""Told of each refusal before it is answered: the request, 401 or 403, and who it was."""


def spend(request: Request, entries: int) -> None:
    """Charge the caller for a Bundle of so many entries, of which one is paid. Rejection 429."""
    limits: Limits = request.scope["state"]["limits"]
    limits.more(request.scope["state"]["caller"].id, entries - 1)


class Doorkeeper:
    """ASGI middleware: nothing below `guarded` is routed, nor its body read, unauthenticated.

    FastAPI reads a body before it runs dependencies, and answers 404 and 405 before both;
    HA-63 wants 401 first. So the token is looked at here. Each 401 and 403 is handed to
    `refused` and answered only after that (E-4, E-6). Limits come before both: a flood of tokens
    that do not verify is neither verified nor recorded one by one. Put before an app by `guard`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        auth: Auth,
        refused: Refused,
        limits: Limits,
        guarded: Collection[str],
        public: Collection[str],
    ) -> None:
        self._app = app
        self._auth = auth
        self._limits = limits
        self._refused = refused
        self._guarded = tuple(guarded)
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLIMITED:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        address = "" if request.client is None else request.client.host
        try:
            self._limits.of_address(address)
        except Rejection as rejection:
            response = await request.app.state.refuse(request, rejection)
            await response(scope, receive, send)
            return
        if not self._guards(scope["path"]):
            await self._app(scope, receive, send)
            return
        known: Caller | None = None
        replaced = False

        async def told(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] in (401, 403):
                try:
                    await self._refused(request, message["status"], known)
                except Rejection as rejection:
                    replaced = True
                    await outcome_response(rejection)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            known = await self._auth.caller(request.headers.get("authorization"))
            self._limits.of_client(known.id, address)
        except Rejection as rejection:
            await outcome_response(rejection)(scope, receive, told)
            return
        scope.setdefault("state", {}).update(caller=known, limits=self._limits)
        await self._app(scope, receive, told)

    def _guards(self, path: str) -> bool:
        if path in self._public:
            return False
        return any(path == root or path.startswith(f"{root}/") for root in self._guarded)


def guard(
    app: FastAPI,
    auth: Auth,
    refused: Refused,
    limits: Limits | None = None,
    guarded: Collection[str] = ("/fhir", "/v1", "/panel"),
    public: Collection[str] = ("/fhir/metadata", "/fhir/.well-known/smart-configuration"),
) -> None:
    """Put a Doorkeeper before every path of `app` below `guarded`, save `public` (HA-10).

    It is the innermost middleware, so that what fails in it is answered by the app's own
    error handling.
    """
    app.user_middleware.append(
        Middleware(
            Doorkeeper,
            auth=auth,
            refused=refused,
            limits=limits or Limits(),
            guarded=guarded,
            public=public,
        )
    )
