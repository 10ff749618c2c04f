"""The app of each service: quiet errors in FHIR's words, health, metrics, time to answer.

No framework error body ever leaves (HA-60), and no received value is ever repeated (HA-63):
FastAPI's own 422 echoes its input (ST-02), so every error goes through `Rejection`.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.plumbing import telemetry
from services.plumbing.db import Database, is_passing, sqlstate
from services.plumbing.sealing import UnknownKeyError

log = structlog.get_logger()

FHIR_JSON = "application/fhir+json; charset=utf-8"
RETRY_AFTER = "5"
NOT_TEXT = ("22021", "22P05")
"""SQLSTATE: a null character, or half of one, in what was sent: no error of ours."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One issue of an OperationOutcome. `text` says rule and allowed form, never the value."""

    code: str
    text: str
    expression: str | None = None
    severity: str = "error"


@dataclass(eq=False)
class Rejection(Exception):  # noqa: N818 - the word of the domain
    """What was asked is refused, in words its sender can act on (style.md 5.7)."""

    issue: str = "invalid"
    advice: str = ""
    expression: str | None = None
    status: int = 400
    headers: Mapping[str, str] = field(default_factory=dict)
    issues: Sequence[Issue] = ()
    """All issues, where there are several; else made of the first three fields."""
    reference: str | None = None
    """Number under which the log has more, for whoever asks."""

    def __str__(self) -> str:
        return f"{self.status} {self.issue}"

    def all(self) -> Sequence[Issue]:
        return self.issues or (Issue(self.issue, self.advice, self.expression),)


def outcome(issues: Sequence[Issue]) -> dict[str, Any]:
    """An OperationOutcome (at most 100 issues, HA-63)."""
    return {
        "resourceType": "OperationOutcome",
        "issue": [
            {
                "severity": issue.severity,
                "code": issue.code,
                "details": {"text": issue.text},
                **({"expression": [issue.expression]} if issue.expression else {}),
            }
            for issue in issues[:100]
        ],
    }


def fhir_response(
    resource: Mapping[str, Any] | bytes | None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """`resource` as FHIR JSON; None has no body."""
    body = b"" if resource is None else resource if isinstance(resource, bytes) else dumps(resource)
    media = None if resource is None and status == HTTPStatus.NO_CONTENT else FHIR_JSON
    return Response(body, status, dict(headers or {}), media_type=media)


def dumps(resource: Mapping[str, Any]) -> bytes:
    return orjson.dumps(resource)


def outcome_response(rejection: Rejection) -> Response:
    """The answer that a rejection is."""
    return fhir_response(outcome(rejection.all()), rejection.status, rejection.headers)


_BY_STATUS = {
    401: ("login", "Send a bearer token."),
    404: ("not-found", "There is nothing at this address."),
    405: ("not-supported", "This interaction is not offered here."),
    406: ("not-supported", "FHIR JSON is what is served."),
    413: ("too-long", "The body is larger than allowed."),
    415: ("not-supported", "Send application/fhir+json."),
}

ErrorPage = Callable[[Request, Rejection], Awaitable[Response]]
"""Renders an error for a person, where the path is a page."""


def make_app(
    service: str,
    db: Database,
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    error_page: ErrorPage | None = None,
) -> FastAPI:
    """An app with /health/live, /health/ready and /metrics, and every error an OperationOutcome.

    `error_page`, if given, answers errors of paths outside /fhir and /v1 instead.
    """

    @asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        if lifespan is None:
            yield
        else:
            async with lifespan():
                yield

    app = FastAPI(
        title=f"Passerelle {service}",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=living,
        redirect_slashes=False,
        # The framework's own spans and logs hold query strings, exception texts and bodies.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )

    async def refuse(request: Request, rejection: Rejection) -> Response:
        path = request.url.path
        if error_page is not None and not path.startswith(("/fhir", "/v1", "/panel")):
            return await error_page(request, rejection)
        return outcome_response(rejection)

    async def on_rejection(request: Request, error: Exception) -> Response:
        assert isinstance(error, Rejection)
        return await refuse(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        issue, advice = _BY_STATUS.get(error.status_code, ("processing", "Not possible."))
        return await refuse(
            request, Rejection(issue, advice, status=error.status_code, headers=error.headers or {})
        )

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        issues = [
            Issue("value", f"The parameter {fault['loc'][-1]!s:.40} is not of its form.")
            if fault["loc"][0] in ("query", "header", "path")
            else Issue("invalid", "The body is not of its form.")
            for fault in error.errors()
        ]
        return await refuse(request, Rejection(status=400, issues=issues))

    async def on_error(request: Request, error: Exception) -> Response:
        return await refuse(request, unexpected(error))

    async def on_unknown_key(request: Request, error: Exception) -> Response:
        assert isinstance(error, UnknownKeyError)
        keys_missing(service, error)
        return await refuse(
            request,
            Rejection(
                "transient",
                "A key is missing here; nothing was changed. Try again later.",
                status=503,
                headers={"Retry-After": "60"},
            ),
        )

    app.add_exception_handler(Rejection, on_rejection)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(SQLAlchemyError, on_error)
    app.add_exception_handler(OSError, on_error)
    app.add_exception_handler(UnknownKeyError, on_unknown_key)

    app.state.refuse = refuse
    app.add_middleware(_Answer, service=service, on_error=on_error)

    @app.get("/health/live", include_in_schema=False)
    async def live() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/health/ready", include_in_schema=False)
    async def ready() -> Response:
        try:
            async with db.work() as tx:
                await tx.execute(text("select 1"))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("not_ready", error=type(error).__name__, sqlstate=sqlstate(error))
            return Response("the database is away\n", 503, media_type="text/plain")
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


class _Answer:
    """Headers every answer has, its time, and the last net under what nobody foresaw."""

    def __init__(
        self,
        app: ASGIApp,
        service: str,
        on_error: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._service = service
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        parent = Headers(scope=scope).get("traceparent")
        try:
            # Named by service and method alone: a path may hold what its sender put into it.
            with telemetry.following(parent, f"{self._service} {scope['method'][:10]}"):
                await self._app(scope, receive, send_on)
        except Exception as error:  # noqa: BLE001 - nothing of it may reach the client or the log
            response = await self._on_error(Request(scope), error)
            if not started:
                await response(scope, receive, send_on)
        telemetry.histogram("http_seconds", self._service).observe(time.perf_counter() - began)


def keys_missing(service: str, error: UnknownKeyError) -> None:
    """Held until an operator gives the key, and alarmed about (CS-95). Names key ids, no value."""
    telemetry.counter("unknown_keys_total", service).inc()
    log.error("key_unknown", why=str(error))


def unexpected(error: Exception) -> Rejection:
    """An error nobody foresaw, or a database that is away: logged by kind, told by number."""
    number = str(telemetry.new_id())
    if sqlstate(error) in NOT_TEXT:
        return Rejection("value", "Something sent holds a character that is none of a text.")
    if is_passing(error):
        log.warning("unavailable", number=number, error=type(error).__name__)
        return Rejection(
            "transient",
            "The service cannot keep anything right now; nothing was changed. Try again.",
            status=503,
            headers={"Retry-After": RETRY_AFTER},
        )
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    log.error(
        "failed",
        number=number,
        error=type(error).__name__,
        sqlstate=sqlstate(error),
        at=f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else None,
    )
    return Rejection(
        "exception",
        f"The service failed; its log has it as {number}.",
        status=500,
        reference=number,
    )
