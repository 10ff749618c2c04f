"""What the door answers: resources as they are served, outcomes, entries of response Bundles."""

from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Request, Response

from schemas.envelope import CANON
from services.ingest import verbatim
from services.ingest.flow import Item
from services.ingest.gate import Problem
from services.ingest.reading import ADVICE, Hold, Reason
from services.ingest.tables import Kept
from services.plumbing import telemetry
from services.plumbing.web import Issue, Rejection, fhir_response, outcome

HELD_SYSTEM = f"{CANON}/CodeSystem/ingest"


def stamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def json_text(value: str) -> str:
    return orjson.dumps(value).decode()


def served(text: str, id_: str, version: int, updated: datetime, hold: Reason | None) -> str:
    tag = None
    if hold is not None:
        tag = orjson.dumps({"system": HELD_SYSTEM, "code": "held", "display": hold.value}).decode()
    return verbatim.served(text, logical_id=id_, version=version, updated=stamp(updated), tags=tag)


def read_answer(request: Request, kept: Kept, text: str) -> Response:
    etag = f'W/"{kept.version}"'
    headers = {"ETag": etag, "Last-Modified": format_datetime(kept.arrived, usegmt=True)}
    wanted = [one.strip() for one in request.headers.get("if-none-match", "").split(",")]
    if {etag, f'"{kept.version}"', str(kept.version)} & set(wanted):
        return Response(b"", 304, headers)
    return fhir_response(text.encode(), 200, headers)


def issue_of(problem: Problem) -> Issue:
    return Issue(problem.issue, problem.advice, problem.expression or None)


def rejection(problems: Sequence[Problem]) -> Rejection:
    """All of them; the status is that of the gravest by the order of HA-63."""
    status = min((one.status for one in problems), key=_ORDER.index)
    headers = {}
    if status == HTTPStatus.FORBIDDEN:
        headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'
    return Rejection(status=status, issues=[issue_of(one) for one in problems], headers=headers)


_ORDER = (401, 403, 404, 405, 413, 400, 422, 409, 412)


def conflict(issue: str, advice: str) -> Rejection:
    return Rejection(issue, advice, "Bundle.id", 409)


def result_of(item: Item) -> Issue:
    if item.hold is not None:
        return waits(item.hold, item.kind)
    return ACCEPTED


def waits(hold: Hold, kind: str) -> Issue:
    return Issue("incomplete", f"{hold.reason}: {ADVICE[hold.reason]}", kind, "warning")


ACCEPTED = Issue("informational", "Recorded.", severity="information")
VALID = Issue("informational", "Nothing is wrong with it.", severity="information")


def entry_answer(
    status: int,
    *,
    location: str | None = None,
    etag: str | None = None,
    modified: str | None = None,
    told: Sequence[Issue] = (),
    resource: str | None = None,
) -> str:
    response: dict[str, Any] = {"status": f"{status} {HTTPStatus(status).phrase}"}
    if location is not None:
        response["location"] = location
    if etag is not None:
        response["etag"] = etag
    if modified is not None:
        response["lastModified"] = modified
    if told:
        response["outcome"] = outcome(told)
    said = orjson.dumps(response).decode()
    return f'{{"resource":{resource},"response":{said}}}' if resource else f'{{"response":{said}}}'


def bundle_response(kind: str, answers: Sequence[str]) -> Response:
    head = f'{{"resourceType":"Bundle","id":"{telemetry.new_id()}","type":"{kind}"'
    entries = f',"entry":[{",".join(answers)}]' if answers else ""
    return fhir_response(f"{head}{entries}}}".encode())
