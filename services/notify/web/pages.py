"""The pages: who may open which, what each asks of the desk, and what it answers.

A page shows what its desk decided for this reader at this instant, and nothing else (NW-02).
GET changes nothing but the audit record and the *seen* mark (NW-05). Everything works without
JavaScript (NW-61); a refresh by htmx is answered with parts of the same templates.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Generic, Protocol, TypeVar
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.exc import SQLAlchemyError

from services.notify.correction import LONGEST_NOTE, Reason, Wish
from services.notify.web.rendering import Link, Page, Reader, assets, new_nonce, render
from services.notify.web.views import (
    CardPage,
    Conflict,
    Coverage,
    Entered,
    Filter,
    MyList,
    Order,
    PatientPage,
    Patients,
    Register,
    Report,
    Role,
)
from services.notify.web.words import Language, Words, choose, in_language
from services.plumbing.auth import Caller
from services.plumbing.clock import real_now
from services.plumbing.region import Region
from services.plumbing.signin import (
    Problem,
    Session,
    SignIn,
    SignInNeeded,
    SignInProblem,
    local_path,
    role,
    session_of,
)
from services.plumbing.web import Rejection

T = TypeVar("T")

LIST_ROLES = (Role.CLINIC_CM,)
HOSPITAL_ROLES = (Role.HOSP_CM,)
REGISTER_ROLES = (Role.PRIVACY,)
CONSENT_ROLES = (Role.CLINIC_CM, Role.HOSP_CM, Role.PRIVACY)
HOLD_ROLES = (Role.HOSP_CM, Role.PRIVACY)
GLASS_ROLES = (Role.PHYSICIAN, Role.HOSP_CM)
INCIDENT_ROLES = (Role.PRIVACY,)
WAYS: Sequence[tuple[Link, tuple[Role, ...]]] = (
    (Link("nav.my_list", "/my-list"), LIST_ROLES),
    (Link("nav.patients", "/patients"), HOSPITAL_ROLES),
    (Link("nav.register", "/register"), REGISTER_ROLES),
    (Link("nav.consents", "/consents"), CONSENT_ROLES),
    (Link("nav.holds", "/holds"), HOLD_ROLES),
    (Link("nav.glass", "/break-glass"), GLASS_ROLES),
    (Link("nav.incidents", "/incidents"), INCIDENT_ROLES),
)
"""The navigation, and who has which entry."""

LANGUAGE_COOKIE = "passerelle-language"


@dataclass(frozen=True, slots=True)
class Ask:
    """Who looks, and how."""

    who: Caller
    language: Language
    session: UUID
    """Names it in the audit, and opens nothing."""
    request: Request
    """For the audit trail alone."""
    background: bool = False
    """A refresh the page does by itself: decided anew, recorded once a session and version."""
    prefetch: bool = False
    """The browser looks ahead; nobody has seen anything (NW-05)."""


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """What the desk answers: the content, and how fresh and complete it is (NW-30)."""

    content: T
    as_of: datetime
    coverage: Coverage


class Desk(Protocol):
    """What the pages ask of notify. Each call decides consent for `ask.who`, writes the audit
    record and, where it changes something, the change, in one transaction.

    None: there is no such card for this reader, whatever the reason (NW-04).
    """

    async def my_list(self, ask: Ask, chosen: Filter, order: Order) -> Shown[MyList]: ...

    async def card(self, ask: Ask, key: UUID) -> Shown[CardPage] | None: ...

    async def take(self, ask: Ask, key: UUID, version: int) -> bool | Conflict | None:
        """True: taken on. Conflict: the card is no longer what `version` was (NW-14)."""

    async def patients(self, ask: Ask) -> Shown[Patients]: ...

    async def patient(self, ask: Ask, key: UUID) -> Shown[PatientPage] | None: ...

    async def correct(
        self, ask: Ask, key: UUID, encounter: UUID, wish: Wish, version: int
    ) -> bool | None:
        """True: kept. False: the visit is no longer as `version` was (NW-14)."""

    async def register(
        self, ask: Ask, patient: UUID | None, person: str | None = None
    ) -> Shown[Register]: ...

    async def report(
        self, ask: Ask, patient: UUID, language: Language, *, for_patient: bool
    ) -> Shown[Report] | None: ...


class Pages:
    """The pages of notify, on one desk."""

    def __init__(
        self,
        *,
        desk: Desk,
        sign_in: SignIn,
        region: Callable[[], Region],
        issuer: str,
        fallback_phone: str = "",
        demo: bool = False,
        secure: bool = True,
    ) -> None:
        self._desk = desk
        self._sign_in = sign_in
        self._region = region
        self._issuer = issuer
        self._phone = fallback_phone
        self._demo = demo
        self._secure = secure

    def install(self, app: FastAPI) -> None:
        """Add the pages to `app`, where `signin.install` has already been."""
        app.include_router(self.router())

    def router(self) -> APIRouter:
        """Every page by its path."""
        router = APIRouter(include_in_schema=False)
        for path, method, page in (
            ("/", "GET", self.home),
            ("/my-list", "GET", self.my_list),
            ("/cards/{key}", "GET", self.card),
            ("/cards/{key}/take", "POST", self.take),
            ("/patients", "GET", self.patients),
            ("/patients/{key}", "GET", self.patient),
            ("/patients/{key}/visits/{visit}", "GET", self.visit),
            ("/patients/{key}/visits/{visit}", "POST", self.correct),
            ("/register", "GET", self.register),
            ("/register", "POST", self.register_of),
            ("/register/report", "POST", self.report),
            ("/language", "POST", self.language),
            ("/session", "POST", self.stay),
            ("/static/{name}", "GET", self.static),
        ):
            router.add_api_route(path, page, methods=[method], response_model=None)
        return router

    # N1, N2

    async def my_list(
        self, request: Request, who: Annotated[Caller, Depends(role(*LIST_ROLES))]
    ) -> Response:
        """N1. A refresh (NW-31) gets the list only if it differs from the one it shows."""
        chosen = _one_of(Filter, request.query_params.get("show"), Filter.ALL)
        order = _one_of(Order, request.query_params.get("sort"), Order.LATEST)
        seen = await self._desk.my_list(self._ask(request, who), chosen, order)
        return await self._refreshed(
            request, seen, "list.html", seen.content, {"list": seen.content}
        )

    async def card(
        self, request: Request, key: str, who: Annotated[Caller, Depends(role(*LIST_ROLES))]
    ) -> Response:
        seen = await self._desk.card(self._ask(request, who), _key(key))
        if seen is None:
            raise _not_found()
        return await self._refreshed(
            request,
            seen,
            "card.html",
            _of_card(seen.content),
            {
                "shown": seen.content,
                "taken": "taken" in request.query_params and not seen.content.card.takeable,
            },
        )

    async def take(
        self, request: Request, key: str, who: Annotated[Caller, Depends(role(*LIST_ROLES))]
    ) -> Response:
        """Take a card on; the form says which version of it the person had in front of them."""
        form = await request.form()
        version = form.get("version")
        if not isinstance(version, str) or not version.isdecimal():
            raise Rejection("value", "The form has no version.", status=422)
        done = await self._desk.take(self._ask(request, who), _key(key), int(version))
        match done:
            case None:
                raise _not_found()
            case Conflict():
                return self._render(
                    "conflict.html",
                    await self._page(request, back=f"/cards/{key}"),
                    {"conflict": done},
                    status=409,
                )
            case _:
                return _see(f"/cards/{key}?taken")

    # H1, H2

    async def patients(
        self, request: Request, who: Annotated[Caller, Depends(role(*HOSPITAL_ROLES))]
    ) -> Response:
        seen = await self._desk.patients(self._ask(request, who))
        return self._shown("patients.html", await self._page(request), seen, {})

    async def patient(
        self, request: Request, key: str, who: Annotated[Caller, Depends(role(*HOSPITAL_ROLES))]
    ) -> Response:
        seen = await self._desk.patient(self._ask(request, who), _key(key))
        if seen is None:
            raise _not_found()
        done = {"corrected": "corrected" in request.query_params}
        return self._shown("patient.html", await self._page(request), seen, done)

    async def visit(
        self,
        request: Request,
        key: str,
        visit: str,
        who: Annotated[Caller, Depends(role(*HOSPITAL_ROLES))],
    ) -> Response:
        return await self._visit(request, who, _key(key), _key(visit), Entered())

    async def correct(
        self,
        request: Request,
        key: str,
        visit: str,
        who: Annotated[Caller, Depends(role(*HOSPITAL_ROLES))],
    ) -> Response:
        """Take a visit out of the count, or put it back (CT-17); what lacks is asked for again."""
        form = await request.form()
        said = {name: value for name, value in form.items() if isinstance(value, str)}
        version, act = said.get("version", ""), said.get("act")
        if not version.isdecimal() or act not in {"exclude", "undo"}:
            raise Rejection("value", "The form is not whole.", status=422)
        reason = said.get("reason", "")
        wish = Wish(
            excluded=act == "exclude",
            reason=Reason(reason) if reason in set(Reason) else None,
            note=said.get("note", ""),
        )
        entered = Entered(reason, wish.note[:LONGEST_NOTE], wish.lacks)
        if entered.lacks:
            return await self._visit(request, who, _key(key), _key(visit), entered, status=422)
        ask = self._ask(request, who)
        done = await self._desk.correct(ask, _key(key), _key(visit), wish, int(version))
        if done is None:
            raise _not_found()
        if not done:
            late = replace(entered, overtaken=True)
            return await self._visit(request, who, _key(key), _key(visit), late, status=409)
        return _see(f"/patients/{_key(key)}?corrected")

    async def _visit(
        self,
        request: Request,
        who: Caller,
        key: UUID,
        visit: UUID,
        entered: Entered,
        *,
        status: int = 200,
    ) -> Response:
        seen = await self._desk.patient(self._ask(request, who), key)
        found = None if seen is None else seen.content.visit(visit)
        if seen is None or found is None:
            raise _not_found()
        page = await self._page(request, back=f"/patients/{key}/visits/{visit}")
        more = {"visit": found, "entered": entered, "reasons": tuple(Reason)}
        return self._shown("visit.html", page, seen, more, status=status)

    def _shown(
        self,
        template: str,
        page: Page,
        seen: Shown[T],
        more: Mapping[str, object],
        *,
        status: int = 200,
    ) -> Response:
        content = {"shown": seen.content, "as_of": seen.as_of, "coverage": seen.coverage, **more}
        return self._render(template, page, content, status=status)

    async def _refreshed(
        self,
        request: Request,
        seen: Shown[T],
        template: str,
        said: object,
        content: Mapping[str, object],
    ) -> Response:
        """The page, or for its own refresh what has changed on it; `said` is all it tells.

        The part that changes is a template of its own: `_list.html` of `list.html`.
        """
        digest = hashlib.sha256(repr((said, seen.coverage.silent)).encode()).hexdigest()[:16]
        refresh = request.headers.get("hx-request") == "true"
        return self._render(
            "_changes.html" if refresh else template,
            await self._page(request),
            {
                **content,
                "as_of": seen.as_of,
                "coverage": seen.coverage,
                "part": f"_{template}",
                "digest": digest,
                "changed": request.headers.get("x-shown") != digest,
            },
        )

    # O5

    async def register(
        self, request: Request, who: Annotated[Caller, Depends(role(*REGISTER_ROLES))]
    ) -> Response:
        return await self._register(request, who)

    async def register_of(
        self, request: Request, who: Annotated[Caller, Depends(role(*REGISTER_ROLES))]
    ) -> Response:
        """Entries of one patient, or to one person; a POST: no address says whose (NW-03)."""
        form = await request.form()
        entered, person = form.get("patient"), form.get("person")
        entered = entered.strip() if isinstance(entered, str) else ""
        if not isinstance(person, str) or self._region().person(person) is None:
            person = None
        try:
            patient = UUID(entered) if entered or person is None else None
        except ValueError:
            return await self._register(request, who, entered=entered, wrong=True)
        return await self._register(request, who, patient, person, entered=entered)

    async def report(
        self, request: Request, who: Annotated[Caller, Depends(role(*REGISTER_ROLES))]
    ) -> Response:
        """What a patient is handed, in their language; or the officer's copy, with refusals."""
        form = await request.form()
        key, chosen = form.get("patient"), form.get("in")
        if not isinstance(key, str) or chosen not in set(Language):
            raise Rejection("value", "The form is not whole.", status=422)
        ask = self._ask(request, who)
        for_patient = form.get("copy") != "officer"
        seen = await self._desk.report(
            ask, _key(key), Language(str(chosen)), for_patient=for_patient
        )
        if seen is None:
            raise _not_found()
        page = await self._page(request, back="/register")
        return self._shown("report.html", page, seen, {})

    async def _register(
        self,
        request: Request,
        who: Caller,
        patient: UUID | None = None,
        person: str | None = None,
        *,
        entered: str = "",
        wrong: bool = False,
    ) -> Response:
        seen = await self._desk.register(self._ask(request, who), patient, person)
        return self._render(
            "register.html",
            await self._page(request, back="/register"),
            {
                "register": seen.content,
                "as_of": seen.as_of,
                "coverage": seen.coverage,
                "entered": entered[:100],
                "wrong": wrong,
            },
            status=422 if wrong else 200,
        )

    # In, out, and which language

    async def home(self, request: Request) -> Response:
        """The first page of the person's role, or the way in."""
        session = await self._session(request)
        if session is None:
            return self._render("sign_in.html", await self._page(request), {})
        for link, roles in WAYS:
            if session.caller.has(*roles):
                return _see(link.path)
        raise SignInProblem(
            issue="forbidden",
            advice="This role has no page here.",
            status=403,
            problem=Problem.ROLE,
            roles=tuple(dict.fromkeys(one.value for _, roles in WAYS for one in roles)),
        )

    async def language(self, request: Request) -> Response:
        """Change the language and stay on the page (NW-40)."""
        if await self._session(request) is None:
            if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
                raise _forged()
        else:
            await session_of(request)
        form = await request.form()
        chosen, back = form.get("language"), form.get("back")
        if chosen not in set(Language):
            raise Rejection("value", "The language is fr or en.", status=422)
        response = _see(local_path(back) or "/" if isinstance(back, str) else "/")
        response.set_cookie(
            LANGUAGE_COOKIE, str(chosen), secure=self._secure, httponly=True, samesite="lax"
        )
        return response

    async def stay(
        self, request: Request, _session: Annotated[Session, Depends(session_of)]
    ) -> Response:
        """Any use extends a session; this one does nothing else (NW-72)."""
        back = (await request.form()).get("back")
        return _see(local_path(back) or "/" if isinstance(back, str) else "/")

    async def static(self, name: str) -> Response:
        """A file of ours; its address changes with its content, so it may be kept for ever."""
        asset = assets().get(name)
        if asset is None:
            raise _not_found()
        return Response(
            asset.body,
            media_type=asset.media,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )

    # Errors

    async def error(self, request: Request, rejection: Rejection) -> Response:
        """An error in the person's words; never what they sent, never what went wrong inside."""
        away = rejection.status >= 500
        unknown = away or rejection.status == HTTPStatus.TOO_MANY_REQUESTS  # no query for a flood
        page = await self._page(request, known=None if unknown else await self._quietly(request))
        title, lines, both = self._explain(page, rejection)
        response = self._render(
            "error.html",
            page,
            {
                "title": title,
                "lines": lines,
                "both": both,
                "again": away,
                "number": rejection.reference,
            },
            status=rejection.status,
        )
        response.headers.update(rejection.headers)
        return response

    def _explain(
        self, page: Page, rejection: Rejection
    ) -> tuple[str, Sequence[str], Sequence[str] | None]:
        """Title, lines, and where both languages are due, the lines in the other one (NW-06)."""
        say, other = page.words.say, page.other.say
        if isinstance(rejection, SignInProblem):
            return self._explain_sign_in(page, rejection)
        match rejection.status:
            case 503:
                phone = self._phone
                lines, both = [say("error.503.text")], [other("error.503.text")]
                if phone:
                    lines.append(say("error.503.phone", phone=phone))
                    both.append(other("error.503.phone", phone=phone))
                return "error.503.title", lines, both
            case 404 | 405:
                return "error.404.title", [say("error.404.text")], None
            case 403:
                return "error.403.title", [say("error.403.text")], None
            case 429:
                return "error.429.title", [say("error.429.text")], None
            case status if status >= 500:
                return "error.500.title", [say("error.500.text")], [other("error.500.text")]
            case _:
                return "error.422.title", [say("error.422.text")], None

    def _explain_sign_in(
        self, page: Page, rejection: SignInProblem
    ) -> tuple[str, Sequence[str], Sequence[str] | None]:
        say = page.words.say
        match rejection.problem:
            case Problem.ROLE:
                roles = ", ".join(say(f"role.{one}") for one in rejection.roles)
                return (
                    "error.403.title",
                    [
                        say("error.403.text"),
                        say("error.403.ask", n=len(rejection.roles), role=roles),
                    ],
                    None,
                )
            case Problem.FORGED:
                return "error.403.title", [say("error.403.form")], None
            case Problem.ISSUER_AWAY:
                return (
                    "error.503.title",
                    [say("error.503.issuer")],
                    [page.other.say("error.503.issuer")],
                )
            case _:
                return "error.signin.title", [rejection.words(page.words.language.value)], None

    # For pages that stand beside these

    def ask(self, request: Request, who: Caller) -> Ask:
        """Who looks, and how."""
        return self._ask(request, who)

    async def show(
        self,
        request: Request,
        template: str,
        seen: Shown[T],
        content: Mapping[str, object],
        *,
        back: str,
        status: int = 200,
    ) -> Response:
        """`template` with what every page has around it; `back`: where a new sign-in returns."""
        around = {"as_of": seen.as_of, "coverage": seen.coverage}
        page = await self._page(request, back=back)
        return self._render(template, page, {**content, **around}, status=status)

    # Around every page

    def _render(
        self, template: str, page: Page, content: Mapping[str, object], *, status: int = 200
    ) -> Response:
        response = render(template, page, content, status=status, issuer=self._issuer)
        if self._secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        return response

    def _ask(self, request: Request, who: Caller) -> Ask:
        return Ask(
            who=who,
            language=self._words(request, request.state.session).language,
            session=request.state.session.key,
            request=request,
            background="x-background" in request.headers,
            prefetch="prefetch" in request.headers.get("sec-purpose", ""),
        )

    async def _session(self, request: Request) -> Session | None:
        """The session, where a page is also for those who have none."""
        held: Session | None = getattr(request.state, "session", None)
        if held is None:
            held = await self._sign_in.session(request)
            request.state.session = held
        return held

    async def _quietly(self, request: Request) -> Session | None:
        """The session for the head of an error page, if it can be had."""
        try:
            return await self._session(request)
        except (SQLAlchemyError, OSError, TimeoutError, Rejection, SignInNeeded):
            return None

    def _words(self, request: Request, session: Session | None) -> Words:
        language = choose(
            request.cookies.get(LANGUAGE_COOKIE),
            session.person.language if session else None,
            accept=request.headers.get("accept-language", ""),
        )
        return Words(language, ZoneInfo(self._region().timezone))

    async def _page(
        self, request: Request, *, back: str | None = None, known: Session | None = None
    ) -> Page:
        session = known or getattr(request.state, "session", None)
        words = self._words(request, session)
        return Page(
            words=words,
            path=request.url.path,
            back=back or _here(request),
            nonce=new_nonce(),
            reader=self._reader(session, words.language) if session else None,
            csrf=session.csrf if session else None,
            nav=[link for link, roles in WAYS if session and session.caller.has(*roles)],
            ends_in=max(0, int((session.idle_until - real_now()).total_seconds()))
            if session
            else None,
            demo=self._demo,
        )

    def _reader(self, session: Session, language: Language) -> Reader:
        person, region = session.person, self._region()
        home = region.clinic(person.clinic) if person.clinic else None
        site = region.site(person.site) if person.site else None
        place = home or site
        first = next(one for one in Role if one.value in session.caller.roles)
        return Reader(person.name, first, in_language(place.name, language) if place else "")


E_ = TypeVar("E_", Filter, Order)


def _one_of(kind: type[E_], said: str | None, otherwise: E_) -> E_:
    """The named filter or order; a name that is not one is as good as none."""
    try:
        return kind(said) if said is not None else otherwise
    except ValueError:
        return otherwise


def _key(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _not_found() from None


def _not_found() -> Rejection:
    return Rejection("not-found", "There is nothing at this address.", status=404)


def _here(request: Request) -> str:
    """The page's own address, to return to; of its query only what names a filter (NW-03)."""
    path = request.url.path
    if request.method != "GET" or path.startswith("/sign-in"):
        return "/"
    kept = {
        name: value
        for name, known in (("show", set(Filter)), ("sort", set(Order)))
        if (value := request.query_params.get(name)) in known
    }
    return local_path(f"{path}?{urlencode(kept)}" if kept else path) or "/"


def _forged() -> SignInProblem:
    return SignInProblem(issue="forbidden", status=403, problem=Problem.FORGED)


def _see(path: str) -> Response:
    return RedirectResponse(path, status_code=303, headers={"Cache-Control": "no-store"})


def _of_card(content: CardPage) -> object:
    """What a card tells, save the window that moves with every look."""
    why = content.why
    return content.card, content.history, why and (why.standing, why.clauses, why.items, why.held)
