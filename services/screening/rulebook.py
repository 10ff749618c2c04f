"""The door of the policies: stored, compared, activated. Counting.md sections 6 and 9.

Reading is for whoever may read flags. What a policy says decides who is on the list, so writing
is for the role `ops` alone, a person's or a client's, and each write is in the audit.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.auth import Caller, require_role
from services.plumbing.db import Tx
from services.plumbing.web import Rejection
from services.screening import policy, registry
from services.screening.api import REGION, Allowed, House, instant, role, stored
from services.screening.policy import LAST_VERSION, Policy, PolicyRefused
from services.screening.registry import Activation, Asked, Kept, Mode, Status, Stored

MOST_BYTES = 64 * 1024
"""Of a policy; all the presets together are smaller."""

Ops = Annotated[Caller, Depends(require_role("ops"))]
Name = Annotated[str, Path()]
Version = Annotated[int, Path(ge=1, le=LAST_VERSION)]


class Against(BaseModel):
    """The other of two policies, `name@version`."""

    model_config = ConfigDict(extra="forbid")

    against: str


class Wish(BaseModel):
    """What is to become of a policy, and from when; without an instant: at once (CT-51)."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    mode: Mode = Mode.LIVE
    at: str | None = None


def add_policies(app: FastAPI, house: House) -> None:
    """The registry of policies on `app`."""
    router = APIRouter(prefix="/v1/policies")

    @router.post("")
    async def store(request: Request, who: Ops) -> Response:
        rule = _read(await _text(request))
        async with house.db.request(REGION, role(who)) as tx:
            kept = await registry.keep(tx, rule, house.now())
            if kept is Kept.TAKEN:
                raise Rejection(
                    "conflict",
                    f"{rule.label} is stored with another meaning. Give this one a new version.",
                    "version",
                    status=409,
                )
            if kept is Kept.NEW:
                await audit.record(tx, [_trail(request, who).configured(_entity(rule))])
            body = await _one(tx, await stored(tx, rule.label))
        place = {"Location": f"/v1/policies/{rule.name}/{rule.version}"}
        return _json(body, 201 if kept is Kept.NEW else 200, place)

    @router.get("")
    async def list_(who: Allowed) -> Response:
        async with house.db.request(REGION, role(who)) as tx:
            found, asked = await registry.everything(tx), await registry.activations(tx)
        return _json({"policies": [_summary(one, asked) for one in found]})

    @router.get("/{name}/{version}")
    async def show(who: Allowed, name: Name, version: Version) -> Response:
        async with house.db.request(REGION, role(who)) as tx:
            return _json(await _one(tx, await stored(tx, f"{name}@{version}")))

    @router.get("/{name}/{version}/diff")
    async def diff(
        who: Allowed, name: Name, version: Version, query: Annotated[Against, Query()]
    ) -> Response:
        async with house.db.request(REGION, role(who)) as tx:
            after = (await stored(tx, f"{name}@{version}")).policy
            before = (await stored(tx, query.against)).policy
        found = policy.differences(before, after)
        return _json(
            {
                "before": before.label,
                "after": after.label,
                "differences": [
                    {"path": one.path, "before": one.before, "after": one.after} for one in found
                ],
            }
        )

    @router.post("/{name}/{version}/activate")
    async def activate(
        request: Request, who: Ops, name: Name, version: Version, wish: Wish | None = None
    ) -> Response:
        wish, now = wish or Wish(), house.now()
        at = instant("at", wish.at) or now
        if at < now:
            raise Rejection("value", "at must be now or later.", "at", status=422)
        async with house.db.request(REGION, role(who)) as tx:
            found = await stored(tx, f"{name}@{version}")
            if found.status is Status.LIVE and wish.mode is not Mode.LIVE and at <= now:
                raise Rejection(
                    "conflict",
                    "One policy is always live. Activate another, and this one is not any more.",
                    "mode",
                    status=409,
                )
            await registry.activate(tx, Asked(name, version, wish.mode, at, now, who.id))
            entity = f"{_entity(found.policy)}/{wish.mode}"
            await audit.record(tx, [_trail(request, who).configured(entity)])
            body = await _one(tx, await stored(tx, f"{name}@{version}"))
        return _json(body, 202)

    def _trail(request: Request, who: Caller) -> Trail:
        return Trail.of(request, who, house.now(), tenant=REGION)

    app.include_router(router)


def _entity(rule: Policy) -> str:
    return f"policies/{rule.name}/{rule.version}"


async def _text(request: Request) -> str:
    """The body, YAML or JSON. Tabs may stand between what JSON says, and nowhere in YAML."""
    pieces: list[bytes] = []
    async for piece in request.stream():
        pieces.append(piece)
        if sum(map(len, pieces)) > MOST_BYTES:
            raise Rejection("too-long", f"A policy has at most {MOST_BYTES} bytes.", status=413)
    try:
        text = b"".join(pieces).decode()
    except UnicodeDecodeError:
        raise Rejection("invalid", "A policy is UTF-8 text.", status=422) from None
    is_json = "json" in request.headers.get("content-type", "")
    return text.replace("\t", " ") if is_json else text


def _read(text: str) -> Policy:
    """The policy. 422 says path and line (CT-50)."""
    try:
        return policy.load(text)
    except PolicyRefused as refused:
        raise Rejection("value", f"{refused}", refused.path or None, status=422) from None


async def _one(tx: Tx, found: Stored) -> dict[str, Any]:
    rule = found.policy
    asked = await registry.activations(tx, rule.name, rule.version)
    return _summary(found, asked) | {
        "policy": orjson.loads(rule.canonical),
        "activations": [_activation(one) for one in asked],
    }


def _summary(found: Stored, asked: Sequence[Activation]) -> dict[str, Any]:
    rule = found.policy
    mine = [one for one in asked if (one.name, one.version) == (rule.name, rule.version)]
    begun = [one for one in mine if one.begun is not None and found.run is not None]
    last = max(begun, key=lambda one: (one.begun or one.at, one.at), default=None)
    waiting = [one for one in mine if one.begun is None and one.withdrawn is None]
    return {
        "name": rule.name,
        "version": rule.version,
        "sha256": rule.sha256,
        "title": rule.title,
        "source": rule.source,
        "status": found.status,
        "stored": found.stored,
        "since": last and last.begun,
        "evaluated": last and last.evaluated,
        "waiting": [{"mode": one.mode, "at": one.at} for one in waiting],
    }


def _activation(one: Activation) -> dict[str, Any]:
    return {
        "mode": one.mode,
        "at": one.at,
        "asked": one.asked,
        "agent": one.agent,
        "begun": one.begun,
        "withdrawn": one.withdrawn,
        "evaluated": one.evaluated,
    }


def _json(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
