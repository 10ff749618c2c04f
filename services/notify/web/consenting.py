"""The pages about Consents (H3), what is on hold, and broken glass: who may open which.

Somebody is looked up by POST, and no address ever says who (NW-03). A form that is refused keeps
what was entered and says beside each field what is wrong (NW-32).
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Final, Protocol, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, UploadFile

from services.notify.intake import LARGEST_ATTACHMENT
from services.notify.override import Entered as Breaking
from services.notify.override import Verdict
from services.notify.paper import Attachment, Entered, is_reason
from services.notify.web.consent_views import (
    Behind,
    ConsentPage,
    Glass,
    HoldPage,
    Holds,
    Office,
    Sought,
)
from services.notify.web.pages import (
    CONSENT_ROLES,
    GLASS_ROLES,
    HOLD_ROLES,
    Ask,
    Pages,
    Shown,
)
from services.notify.web.views import Role
from services.plumbing.auth import Caller
from services.plumbing.signin import role
from services.plumbing.web import Rejection

T = TypeVar("T")

LONGEST_ENTRY: Final = 4000
"""Characters of any field."""


class Recording(Protocol):
    """A Consent that was recorded."""

    @property
    def id(self) -> str: ...


class Desk(Protocol):
    """What these pages ask of notify; None: there is nothing of that for this reader (NW-04)."""

    async def office(self, ask: Ask, sought: Sought, entered: Entered | None) -> Shown[Office]: ...

    async def record(
        self, ask: Ask, sought: Sought, entered: Entered, *, nothing: bool
    ) -> Recording | Shown[Office]: ...

    async def consent(self, ask: Ask, id_: str) -> Shown[ConsentPage] | None: ...

    async def withdraw(
        self, ask: Ask, id_: str, version: int, item: UUID | None
    ) -> bool | None: ...

    async def holds(self, ask: Ask) -> Shown[Holds]: ...

    async def hold(self, ask: Ask, id_: UUID) -> Shown[HoldPage] | None: ...

    async def dismiss(self, ask: Ask, id_: UUID, refused: UUID, why: str) -> bool: ...

    async def assess(self, ask: Ask, id_: UUID, encounter: UUID, labels: Sequence[str]) -> bool: ...

    async def assign(
        self, ask: Ask, id_: UUID, consent: str, version: int, patient: UUID
    ) -> bool | None: ...

    async def glass(
        self, ask: Ask, authenticated: datetime | None, entered: Breaking | None
    ) -> Shown[Glass]: ...

    async def break_glass(
        self, ask: Ask, authenticated: datetime | None, entered: Breaking
    ) -> UUID | Shown[Glass]: ...

    async def behind(self, ask: Ask, id_: UUID) -> Shown[Behind] | None: ...

    async def review(self, ask: Ask, id_: UUID, verdict: Verdict, why: str) -> bool: ...

    async def told(self, ask: Ask, id_: UUID) -> bool: ...


ToConsents = Annotated[Caller, Depends(role(*CONSENT_ROLES))]
ToHolds = Annotated[Caller, Depends(role(*HOLD_ROLES))]
ToReviews = Annotated[Caller, Depends(role(Role.PRIVACY))]
ToGlass = Annotated[Caller, Depends(role(*GLASS_ROLES))]


class ConsentPages:
    """These pages, on one desk, with the frame of `pages`."""

    def __init__(self, pages: Pages, desk: Desk) -> None:
        self._pages = pages
        self._desk = desk

    def install(self, app: FastAPI) -> None:
        app.include_router(self.router())

    def router(self) -> APIRouter:
        """Every page by its path."""
        router = APIRouter(include_in_schema=False)
        for path, method, page in (
            ("/consents", "GET", self.office),
            ("/consents", "POST", self.look_up),
            ("/consents/record", "POST", self.record),
            ("/consents/{id_}", "GET", self.consent),
            ("/consents/{id_}/withdraw", "POST", self.withdraw),
            ("/holds", "GET", self.holds),
            ("/holds/{key}", "GET", self.hold),
            ("/holds/{key}/dismiss", "POST", self.dismiss),
            ("/holds/{key}/assess", "POST", self.assess),
            ("/holds/{key}/assign", "POST", self.assign),
            ("/holds/{key}/review", "POST", self.review),
            ("/holds/{key}/told", "POST", self.told),
            ("/break-glass", "GET", self.glass),
            ("/break-glass", "POST", self.break_glass),
            ("/break-glass/{key}", "GET", self.behind),
        ):
            router.add_api_route(path, page, methods=[method], response_model=None)
        return router

    # H3

    async def office(self, request: Request, who: ToConsents) -> Response:
        ask = self._pages.ask(request, who)
        return await self._of_office(request, await self._desk.office(ask, Sought(), None))

    async def look_up(self, request: Request, who: ToConsents) -> Response:
        """Whom the form names, and what is recorded of what they said."""
        sought = _sought(await request.form())
        shown = await self._desk.office(self._pages.ask(request, who), sought, None)
        return await self._of_office(request, shown)

    async def record(self, request: Request, who: ToConsents) -> Response:
        form = await request.form()
        ask, sought = self._pages.ask(request, who), _sought(form)
        entered, faults = await _entered(form)
        if faults:
            shown = await self._desk.office(ask, sought, entered)
            return await self._of_office(request, shown, faults)
        done = await self._desk.record(ask, sought, entered, nothing="nothing" in form)
        if isinstance(done, Shown):
            return await self._of_office(request, done)
        if sought.item is not None:
            return _see(f"/holds/{sought.item}?done")
        return _see(f"/consents/{done.id}?recorded")

    async def _of_office(
        self, request: Request, shown: Shown[Office], faults: Mapping[str, str] | None = None
    ) -> Response:
        wrong = {**shown.content.faults, **(faults or {})}
        return await self._pages.show(
            request,
            "consents.html",
            shown,
            {"office": shown.content, "faults": wrong},
            back="/consents",
            status=422 if wrong else 200,
        )

    async def consent(self, request: Request, id_: str, who: ToConsents) -> Response:
        return await self._of_consent(
            request, id_, who, recorded="recorded" in request.query_params
        )

    async def withdraw(self, request: Request, id_: str, who: ToConsents) -> Response:
        form = await request.form()
        version, item = _number(_text(form, "version")), _key_or_none(_text(form, "item"))
        if version is None:
            raise Rejection("value", "The form has no version.", status=422)
        done = await self._desk.withdraw(self._pages.ask(request, who), id_, version, item)
        if done is None:
            raise _not_found()
        if not done:
            return await self._of_consent(request, id_, who, stale=True)
        return _see(f"/consents/{id_}?recorded" if item is None else f"/holds/{item}?done")

    async def _of_consent(
        self,
        request: Request,
        id_: str,
        who: Caller,
        *,
        recorded: bool = False,
        stale: bool = False,
    ) -> Response:
        shown = await self._desk.consent(self._pages.ask(request, who), id_)
        if shown is None:
            raise _not_found()
        return await self._pages.show(
            request,
            "consent.html",
            shown,
            {"shown": shown.content, "recorded": recorded, "stale": stale},
            back=f"/consents/{shown.content.kept.id}",
            status=409 if stale else 200,
        )

    # Holds

    async def holds(self, request: Request, who: ToHolds) -> Response:
        shown = await self._desk.holds(self._pages.ask(request, who))
        return await self._pages.show(
            request, "holds.html", shown, {"holds": shown.content}, back="/holds"
        )

    async def hold(self, request: Request, key: str, who: ToHolds) -> Response:
        return await self._of_hold(request, key, who, done="done" in request.query_params)

    async def dismiss(self, request: Request, key: str, who: ToHolds) -> Response:
        """Set aside a refused Consent, with the reason in words."""
        form = await request.form()
        why, refused = _text(form, "why"), _key(_text(form, "refused"))
        if not is_reason(why):
            return await self._of_hold(request, key, who, {"why": "reason"}, {"why": why})
        ask = self._pages.ask(request, who)
        return self._after(key, await self._desk.dismiss(ask, _key(key), refused, why))

    async def assess(self, request: Request, key: str, who: ToHolds) -> Response:
        """How sensitive a visit is: one kind at least, or none of them, said so."""
        form = await request.form()
        encounter = _key(_text(form, "encounter"))
        labels, none = _texts(form, "labels"), _text(form, "none") == "yes"
        if bool(labels) == none:
            return await self._of_hold(request, key, who, {f"labels-{encounter}": "labels"})
        ask = self._pages.ask(request, who)
        return self._after(key, await self._desk.assess(ask, _key(key), encounter, labels))

    async def assign(self, request: Request, key: str, who: ToHolds) -> Response:
        """Of which of two people a Consent is."""
        form = await request.form()
        version, patient = _number(_text(form, "version")), _key_or_none(_text(form, "patient"))
        if version is None:
            raise Rejection("value", "The form has no version.", status=422)
        if patient is None:
            return await self._of_hold(request, key, who, {"patient": "patient"})
        ask, consent = self._pages.ask(request, who), _text(form, "consent")
        done = await self._desk.assign(ask, _key(key), consent, version, patient)
        return self._after(key, done is True)

    async def review(self, request: Request, key: str, who: ToReviews) -> Response:
        """What the privacy officer found of an override."""
        form = await request.form()
        verdict, why = _text(form, "verdict"), _text(form, "why")
        faults = {} if verdict in set(Verdict) else {"verdict": "verdict"}
        if not is_reason(why):
            faults["why"] = "reason"
        if faults:
            return await self._of_hold(request, key, who, faults, {"verdict": verdict, "why": why})
        ask = self._pages.ask(request, who)
        return self._after(key, await self._desk.review(ask, _key(key), Verdict(verdict), why))

    async def told(self, request: Request, key: str, who: ToReviews) -> Response:
        """The patient was told, by a person, that the glass was broken."""
        ask = self._pages.ask(request, who)
        return self._after(key, await self._desk.told(ask, _key(key)))

    def _after(self, key: str, done: bool) -> Response:
        if not done:
            raise _not_found()
        return _see(f"/holds/{_key(key)}?done")

    async def _of_hold(
        self,
        request: Request,
        key: str,
        who: Caller,
        faults: Mapping[str, str] | None = None,
        entered: Mapping[str, str] | None = None,
        *,
        done: bool = False,
    ) -> Response:
        shown = await self._desk.hold(self._pages.ask(request, who), _key(key))
        if shown is None:
            raise _not_found()
        return await self._pages.show(
            request,
            "hold.html",
            shown,
            {
                "shown": shown.content,
                "faults": faults or {},
                "entered": entered or {},
                "done": done,
            },
            back=f"/holds/{shown.content.held.id}",
            status=422 if faults else 200,
        )

    # The glass

    async def glass(self, request: Request, who: ToGlass) -> Response:
        ask = self._pages.ask(request, who)
        shown = await self._desk.glass(ask, request.state.session.authenticated, None)
        return await self._of_glass(request, shown)

    async def break_glass(self, request: Request, who: ToGlass) -> Response:
        form = await request.form()
        entered = Breaking(
            system=_text(form, "system"),
            number=_text(form, "number"),
            ground=_text(form, "ground"),
            cannot_ask=_text(form, "cannot_ask"),
            why=_text(form, "why"),
        )
        ask = self._pages.ask(request, who)
        done = await self._desk.break_glass(ask, request.state.session.authenticated, entered)
        if isinstance(done, UUID):
            return _see(f"/break-glass/{done}")
        return await self._of_glass(request, done)

    async def _of_glass(self, request: Request, shown: Shown[Glass]) -> Response:
        glass = shown.content
        return await self._pages.show(
            request,
            "glass.html",
            shown,
            {"glass": glass, "faults": glass.faults},
            back="/break-glass",
            status=422 if glass.faults else 403 if glass.shut else 200,
        )

    async def behind(self, request: Request, key: str, who: ToGlass) -> Response:
        shown = await self._desk.behind(self._pages.ask(request, who), _key(key))
        if shown is None:
            raise _not_found()
        return await self._pages.show(
            request, "behind.html", shown, {"shown": shown.content}, back="/break-glass"
        )


def _text(form: FormData, name: str) -> str:
    said = form.get(name)
    return said.strip()[: LONGEST_ENTRY + 1] if isinstance(said, str) else ""


def _texts(form: FormData, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in form.getlist(name) if isinstance(one, str)))


def _number(said: str) -> int | None:
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None


def _key(said: str) -> UUID:
    found = _key_or_none(said)
    if found is None:
        raise _not_found()
    return found


def _key_or_none(said: str) -> UUID | None:
    try:
        return UUID(said)
    except ValueError:
        return None


def _sought(form: FormData) -> Sought:
    return Sought(
        system=_text(form, "system"),
        number=_text(form, "number"),
        key=_key_or_none(_text(form, "key")),
        replaces=_text(form, "replaces"),
        version=_number(_text(form, "version")),
        refused=_key_or_none(_text(form, "refused")),
        item=_key_or_none(_text(form, "item")),
    )


async def _entered(form: FormData) -> tuple[Entered, dict[str, str]]:
    """The form, and what is wrong with the file in it."""
    attachment, faults = None, dict[str, str]()
    file = form.get("attachment")
    if isinstance(file, UploadFile) and file.filename:
        data = await file.read(LARGEST_ATTACHMENT + 1)
        if len(data) > LARGEST_ATTACHMENT:
            faults["attachment"] = "large"
        media = (file.content_type or "").partition(";")[0].strip().lower()
        attachment = Attachment(media, file.filename[:200], b64encode(data).decode())
    entered = Entered(
        effect=_text(form, "effect"),
        whom=_texts(form, "whom"),
        save=_texts(form, "save"),
        level=_text(form, "level") or "1",
        labels=_texts(form, "labels"),
        start=_text(form, "start"),
        end=_text(form, "end"),
        performer=_text(form, "performer"),
        relative=_text(form, "relative"),
        source=_text(form, "source"),
        reference=_text(form, "reference"),
        language=_text(form, "language"),
        risks=_text(form, "risks"),
        attachment=attachment,
    )
    return entered, faults


def _not_found() -> Rejection:
    return Rejection("not-found", "There is nothing at this address.", status=404)


def _see(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers={"Cache-Control": "no-store"})
