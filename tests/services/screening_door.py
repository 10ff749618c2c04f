"""Screening's app behind its Doorkeeper, as the tests of its door call it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx

from services.plumbing import audit
from services.plumbing.auth import Auth, guard
from services.plumbing.db import Database
from services.plumbing.web import make_app
from services.screening.api import House, add_door
from services.screening.rulebook import add_policies
from tests.histories import P, at, qc_default
from tests.services.authorities import AUDIENCE, Stage, ec_key, rsa_key, staged
from tests.services.screening import SITES, Screening

DOOR = "http://127.0.0.1:8002"
NOW = at("2027-03-02 12:00-05")
KEYS = {"ops-client": "ops", "clinic-a-emr": "emr", "hospital-a": "rs"}


@dataclass
class Door:
    """Screening's app behind its Doorkeeper, and the authority it trusts."""

    screening: Screening
    stage: Stage
    now: list[datetime]

    async def headers(self, who: str) -> dict[str, str]:
        is_hospital = who == "hospital-a"
        token = await self.stage.token(
            key=rsa_key("rs") if is_hospital else ec_key(KEYS[who]),
            alg="RS384" if is_hospital else "ES384",
            iss=who,
            sub=who,
            scope="system/Encounter.cu" if is_hospital else "system/Flag.rs",
        )
        return {"Authorization": f"Bearer {token}"}

    async def get(self, path: str, who: str = "ops-client", **params: str) -> httpx.Response:
        headers = await self.headers(who)
        return await self.stage.http.get(f"{DOOR}{path}", params=params or None, headers=headers)

    async def post(
        self, path: str, body: Any = None, who: str = "ops-client", media: str | None = None
    ) -> httpx.Response:
        """`body` is text as it is, or what JSON is made of."""
        headers = await self.headers(who)
        if isinstance(body, str):
            headers["Content-Type"] = media or "application/yaml"
            return await self.stage.http.post(f"{DOOR}{path}", content=body, headers=headers)
        return await self.stage.http.post(f"{DOOR}{path}", json=body, headers=headers)

    async def flag(self, patient: UUID = P, **params: str) -> dict[str, Any]:
        answer = await self.get(f"/v1/patients/{patient}/flag", **params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@asynccontextmanager
async def opened(db: Callable[[str], Database]) -> AsyncIterator[Door]:
    screening = Screening(db("screening"))
    now = [NOW]
    async with staged(db("authority")) as stage:
        app = make_app("screening", screening.db)
        auth = Auth(stage.authority(), AUDIENCE, lambda: stage.region[0], stage.clock)
        guard(app, auth, audit.refusals(screening.db, lambda: now[0]))
        house = House(screening.db, lambda: now[0], qc_default(), lambda: SITES, b"k" * 32)
        add_door(app, house)
        add_policies(app, house)
        stage.hosts[DOOR] = app
        yield Door(screening, stage, now)
