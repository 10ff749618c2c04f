"""The door of back-tests: what if another policy were live (CT-71)? For operations and privacy.

Same callers as the rest of screening's door. What is asked for is answered 202 and run in the
background; its result is aggregates only, whoever asks (backtest.py).
"""

from datetime import date, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, FastAPI, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.db import Tx
from services.plumbing.telemetry import new_id
from services.plumbing.web import Rejection
from services.screening import api, backtesting, policy, presets, store
from services.screening.api import REGION, Allowed, House
from services.screening.policy import Policy, PolicyRefused
from services.screening.store import Trial

LIVE = "live"
DAYS = 365
"""Of the period, if none is asked for: the last ones that have ended."""
MOST_DAYS = 3 * 366
LONGEST = 100_000
"""Characters of a policy sent as text."""

Id = Annotated[UUID, Path()]


class WhatIf(BaseModel):
    """What is asked. A policy is `name@version`, a preset's name, `live`, or a YAML text."""

    model_config = ConfigDict(extra="forbid")

    policy: str = Field(min_length=1, max_length=LONGEST)
    against: str | None = Field(default=None, min_length=1, max_length=LONGEST)
    first: date | None = Field(default=None, alias="from")
    last: date | None = Field(default=None, alias="to")


def add_backtests(app: FastAPI, house: House) -> None:
    """`/v1/backtests` on `app`."""
    router = APIRouter(prefix="/v1")

    @router.post("/backtests")
    async def ask(request: Request, who: Allowed, said: WhatIf) -> Response:
        now = house.now()
        async with house.db.request(REGION, api.role(who)) as tx:
            rule = await _policy(tx, said.policy, "policy", now, house)
            other = (
                None
                if said.against is None
                else await _policy(tx, said.against, "against", now, house)
            )
            first, last = _period(said, rule, now)
            trial = Trial(
                id=new_id(),
                asked_by=who.id,
                policy=rule.canonical,
                against=None if other is None else other.canonical,
                first=first,
                last=last,
                state="waiting",
                created=now,
            )
            if not await store.ask_trial(tx, trial, backtesting.MOST):
                raise Rejection(
                    "throttled",
                    f"{backtesting.MOST} back-tests wait already. Ask again when one has ended.",
                    status=429,
                    headers={"Retry-After": "60"},
                )
            trail = Trail.of(request, who, now, tenant=REGION)
            await audit.record(tx, [trail.created(f"backtests/{trial.id}", None)])
        return Response(
            orjson.dumps(_shown(trial)),
            HTTPStatus.ACCEPTED,
            {"Location": f"/v1/backtests/{trial.id}"},
            media_type="application/json",
        )

    @router.get("/backtests")
    async def listed(request: Request, who: Allowed) -> Response:
        async with house.db.request(REGION, api.role(who)) as tx:
            found = await store.trials(tx)
            trail = Trail.of(request, who, house.now(), tenant=REGION)
            await audit.record(tx, trail.searched("backtests", []))
        body = {"backtests": [_shown(one) for one in found]}
        return Response(orjson.dumps(body), media_type="application/json")

    @router.get("/backtests/{id_}")
    async def one(request: Request, who: Allowed, id_: Id) -> Response:
        async with house.db.request(REGION, api.role(who)) as tx:
            found = await store.trial(tx, id_)
            if found is None:
                raise Rejection("not-found", "No back-test is kept by this id.", status=404)
            trail = Trail.of(request, who, house.now(), tenant=REGION)
            await audit.record(tx, [trail.read(f"backtests/{id_}", None)])
        head = orjson.dumps(_shown(found))
        if found.result is not None:
            head = head[:-1] + b',"result":' + found.result.encode() + b"}"
        return Response(head, media_type="application/json")

    app.include_router(router)


async def _policy(tx: Tx, said: str, name: str, now: datetime, house: House) -> Policy:
    """The policy that `said` means: a text, a stored one, a preset, the live one."""
    if "\n" in said:
        try:
            return policy.load(said)
        except PolicyRefused as refused:
            raise Rejection("value", f"{refused}.", name, status=422) from None
    if said == LIVE:
        return await api.rule(tx, None, now, house)
    if "@" in said:
        return await api.rule(tx, said, now, house)
    if said not in presets.names():
        raise Rejection(
            "not-found",
            "No such policy: name@version, a preset, live, or a policy file's text.",
            name,
            status=404,
        )
    return policy.load(presets.text(said))


def _period(said: WhatIf, rule: Policy, now: datetime) -> tuple[date, date]:
    """First and last day, in the policy's zone; only days that have ended can be counted."""
    today = now.astimezone(rule.zone).date()
    last = said.last or today - timedelta(1)
    first = said.first or last - timedelta(DAYS - 1)
    if last >= today:
        raise Rejection("value", "to must be a day that has ended.", "to", status=422)
    if first > last:
        raise Rejection("value", "from must not be after to.", "from", status=422)
    if (last - first).days >= MOST_DAYS:
        advice = f"At most {MOST_DAYS} days are counted at a time."
        raise Rejection("value", advice, "from", status=422)
    return first, last


def _shown(trial: Trial) -> dict[str, Any]:
    return {
        "id": str(trial.id),
        "state": trial.state,
        "percent": trial.percent,
        "policy": _name(trial.policy),
        "against": trial.against and _name(trial.against),
        "from": trial.first,
        "to": trial.last,
        "asked_by": trial.asked_by,
        "created": trial.created,
        "known_at": trial.known_at,
        "finished": trial.finished,
        "error": trial.error,
    }


def _name(canonical: str) -> str:
    said = orjson.loads(canonical)
    return f"{said['name']}@{said['version']}"
