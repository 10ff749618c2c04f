"""The register of incidents: the privacy officer's pages, and what they ask of notify (CS-122).

Every version is kept, its texts sealed. A form that is refused keeps what was entered and says
beside each field what is wrong (NW-32); one made on an older version is refused (NW-14).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import Row
from starlette.datastructures import FormData

from services.notify import incident, store, telling
from services.notify.incident import FIELDS, LONGEST, Entered, Faults, Incident, Risk
from services.notify.telling import House
from services.notify.web import showing
from services.notify.web.desk import names_for
from services.notify.web.pages import INCIDENT_ROLES, Ask, Pages, Shown
from services.notify.web.showing import Names
from services.notify.web.views import Coverage, IncidentLine, IncidentPage, IncidentVersion
from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.auth import Caller
from services.plumbing.db import Database, Tx
from services.plumbing.signin import role
from services.plumbing.web import Rejection

Officer = Annotated[Caller, Depends(role(*INCIDENT_ROLES))]


@dataclass(frozen=True, slots=True)
class Stale:
    """Somebody recorded a version meanwhile."""


class Registrar:
    """The register, on notify's own database, in the role of the privacy officer."""

    def __init__(self, *, db: Database, house: House, now: Callable[[], datetime]) -> None:
        self._db = db
        self._house = house
        self._now = now

    async def all(self, ask: Ask) -> Shown[Sequence[IncidentLine]]:
        """Each incident as it is now, the last opened first."""
        now = self._now()
        async with self._db.request("", role="privacy") as tx:
            lines = [
                IncidentLine(
                    id=row.id,
                    number=row.number,
                    opened=row.opened,
                    known=(said := self._opened(row)).known,
                    persons=said.persons,
                    risk=said.risk,
                    closed=row.closed,
                )
                for row in await store.incidents(tx)
            ]
            await audit.record(tx, Trail.of(ask.request, ask.who, now).searched("incidents", []))
            coverage = await self._coverage(tx, ask, now)
        return Shown(lines, now, coverage)

    async def one(self, ask: Ask, id_: UUID) -> Shown[IncidentPage] | None:
        """It, with who recorded which version."""
        now = self._now()
        async with self._db.request("", role="privacy") as tx:
            rows = await store.incident(tx, id_)
            if not rows:
                return None
            name = f"incident/{id_}/_history/{rows[0].version}"
            await audit.record(tx, [Trail.of(ask.request, ask.who, now).read(name, None)])
            coverage = await self._coverage(tx, ask, now)
            names = self._names(ask)
            page = IncidentPage(
                id=id_,
                number=rows[0].number,
                version=rows[0].version,
                entered=incident.entered(self._opened(rows[0])),
                versions=[
                    IncidentVersion(r.version, r.recorded, names.person(r.by), closed=r.closed)
                    for r in rows
                ],
            )
        return Shown(page, now, coverage)

    async def blank(self, ask: Ask) -> Shown[IncidentPage]:
        """A form for a new one."""
        now = self._now()
        async with self._db.request("", role="privacy") as tx:
            coverage = await self._coverage(tx, ask, now)
        return Shown(IncidentPage(), now, coverage)

    async def record(
        self, ask: Ask, id_: UUID | None, version: int, said: Entered
    ) -> UUID | Faults | Stale:
        """Keep what the form says as the version after `version`; or say what is wrong with it."""
        now = self._now()
        found, faults = incident.read(said, telling.today(self._house.region(), now))
        if found is None:
            return faults
        id_ = id_ or uuid4()
        key_id, box = self._house.seals.seal(id_, "incident", _written(found))
        async with self._db.request("", role="privacy") as tx:
            kept = await store.register_incident(
                tx,
                id=id_,
                version=version + 1,
                at=now,
                by=ask.who.id,
                closed=found.closed,
                key_id=key_id,
                box=box,
            )
            if not kept:
                return Stale()
            trail = Trail.of(ask.request, ask.who, now)
            name = f"incident/{id_}/_history/{version + 1}"
            made = trail.updated(name, None) if version else trail.created(name, None)
            await audit.record(tx, [made])
        return id_

    def _opened(self, row: Row[Any]) -> Incident:
        said = orjson.loads(self._house.seals.open(row.id, "incident", row.key_id, row.box))
        found, _ = incident.read(Entered(**said), row.recorded.date())
        if found is None:  # its own form would not let it in: somebody wrote past the door
            raise ValueError("a kept incident cannot be read")
        return found

    async def _coverage(self, tx: Tx, ask: Ask, now: datetime) -> Coverage:
        heard = await store.sites_heard(tx)
        return showing.coverage(self._house.region(), heard, self._names(ask), now)

    def _names(self, ask: Ask) -> Names:
        return names_for(self._house.region(), ask)


def _written(found: Incident) -> str:
    said = incident.entered(found)
    return orjson.dumps({name: getattr(said, name) for name in FIELDS}).decode()


class IncidentPages:
    """These pages, with the frame of `pages`."""

    def __init__(self, pages: Pages, registrar: Registrar) -> None:
        self._pages = pages
        self._registrar = registrar

    def install(self, app: FastAPI) -> None:
        app.include_router(self.router())

    def router(self) -> APIRouter:
        """Every page by its path."""
        router = APIRouter(include_in_schema=False)
        for path, method, page in (
            ("/incidents", "GET", self.all),
            ("/incidents", "POST", self.open),
            ("/incidents/new", "GET", self.blank),
            ("/incidents/{key}", "GET", self.one),
            ("/incidents/{key}", "POST", self.change),
        ):
            router.add_api_route(path, page, methods=[method], response_model=None)
        return router

    async def all(self, request: Request, who: Officer) -> Response:
        shown = await self._registrar.all(self._pages.ask(request, who))
        return await self._pages.show(
            request, "incidents.html", shown, {"incidents": shown.content}, back="/incidents"
        )

    async def blank(self, request: Request, who: Officer) -> Response:
        shown = await self._registrar.blank(self._pages.ask(request, who))
        return await self._form(request, shown, shown.content.entered, {})

    async def open(self, request: Request, who: Officer) -> Response:
        return await self._record(request, who, None, await request.form())

    async def one(self, request: Request, key: str, who: Officer) -> Response:
        shown = await self._found(request, key, who)
        return await self._form(request, shown, shown.content.entered, {})

    async def change(self, request: Request, key: str, who: Officer) -> Response:
        return await self._record(request, who, key, await request.form())

    async def _record(
        self, request: Request, who: Caller, key: str | None, form: FormData
    ) -> Response:
        ask, said = self._pages.ask(request, who), _entered(form)
        version = form.get("version", "0")
        if not isinstance(version, str) or not version.isdecimal() or len(version) > 6:
            raise Rejection("value", "The form has no version.", status=422)
        shown = (
            await self._registrar.blank(ask)
            if key is None
            else await self._found(request, key, who)
        )
        done = await self._registrar.record(ask, shown.content.id, int(version), said)
        match done:
            case UUID():
                return RedirectResponse(
                    f"/incidents/{done}?recorded", 303, headers={"Cache-Control": "no-store"}
                )
            case Stale():
                return await self._form(request, shown, said, {"version": "overtaken"}, status=409)
            case _:
                return await self._form(request, shown, said, done, status=422)

    async def _found(self, request: Request, key: str, who: Caller) -> Shown[IncidentPage]:
        try:
            shown = await self._registrar.one(self._pages.ask(request, who), UUID(key))
        except ValueError:
            shown = None
        if shown is None:
            raise Rejection("not-found", "There is nothing at this address.", status=404)
        return shown

    async def _form(
        self,
        request: Request,
        shown: Shown[IncidentPage],
        said: Entered,
        faults: Faults,
        *,
        status: int = 200,
    ) -> Response:
        return await self._pages.show(
            request,
            "incident.html",
            shown,
            {
                "shown": shown.content,
                "entered": said,
                "faults": faults,
                "risks": tuple(Risk),
                "recorded": "recorded" in request.query_params,
            },
            back="/incidents",
            status=status,
        )


def _entered(form: FormData) -> Entered:
    said = {name: value for name in FIELDS if isinstance(value := form.get(name, ""), str)}
    return Entered(**{name: value.strip()[: LONGEST + 1] for name, value in said.items()})
