"""Each page in each state, rendered from builders: to look at, and to measure."""

from collections.abc import Callable, Mapping
from zoneinfo import ZoneInfo

from fastapi import FastAPI, HTTPException, Response

from services.notify.correction import Reason
from services.notify.web.rendering import Link, Page, Reader, assets, new_nonce, render
from services.notify.web.views import Entered, Role, Why
from services.notify.web.words import Language, Words
from tests.web import builders

NURSE = Reader("Camille Essai", Role.CLINIC_CM, "Clinique fictive des Érables")
OFFICER = Reader("Dominique Exemple", Role.PRIVACY)
MANAGER = Reader("Claude Fictif", Role.HOSP_CM, "Hôpital fictif A")
PATIENTS = Link("nav.patients", "/patients")
LIST = Link("nav.my_list", "/my-list")
REGISTER = Link("nav.register", "/register")

Picture = Callable[[Language], Response]


def page(language: Language, path: str, reader: Reader | None, *nav: Link) -> Page:
    return Page(
        words=Words(language, ZoneInfo("America/Toronto")),
        path=path,
        back=path,
        nonce=new_nonce(),
        reader=reader,
        csrf="token" if reader else None,
        nav=nav,
        ends_in=1800 if reader else None,
        demo=True,
    )


def _list(name: str) -> Picture:
    def picture(language: Language) -> Response:
        shown = builders.busy_list() if name == "busy" else builders.my_list(snoozed=0)
        return render(
            "list.html",
            page(language, "/my-list", NURSE, LIST),
            {
                "list": shown,
                "coverage": builders.coverage(silent=name == "busy"),
                "as_of": builders.NOW,
                "digest": "0",
            },
        )

    return picture


def _card(why: Why) -> Picture:
    def picture(language: Language) -> Response:
        return render(
            "card.html",
            page(language, f"/cards/{builders.key(1)}", NURSE, LIST),
            {
                "shown": builders.card_page(explained=why),
                "coverage": builders.coverage(),
                "as_of": builders.NOW,
                "digest": "0",
                "taken": True,
            },
        )

    return picture


def _conflict(language: Language) -> Response:
    around = page(language, f"/cards/{builders.key(1)}", NURSE, LIST)
    return render("conflict.html", around, {"conflict": builders.conflict()}, status=409)


def _register(*, wrong: bool, empty: bool = False) -> Picture:
    def picture(language: Language) -> Response:
        return render(
            "register.html",
            page(language, "/register", OFFICER, REGISTER),
            {
                "register": builders.register(empty=empty),
                "coverage": builders.coverage(),
                "as_of": builders.NOW,
                "entered": "5f0c2a0e" if wrong else "",
                "wrong": wrong,
            },
            status=422 if wrong else 200,
        )

    return picture


def _of_hospital(template: str, path: str, **more: object) -> Picture:
    def picture(language: Language) -> Response:
        wrong = isinstance(entered := more.get("entered"), Entered) and entered.lacks
        return render(
            template,
            page(language, path, MANAGER, PATIENTS),
            {
                "shown": builders.patient_page(),
                "coverage": builders.coverage(),
                "as_of": builders.NOW,
                "reasons": tuple(Reason),
                **more,
            },
            status=422 if wrong else 200,
        )

    return picture


def _visit(n: int, entered: Entered) -> Picture:
    visit = builders.patient_page().visits[n]
    path = f"/patients/{builders.key(1)}/visits/{visit.key}"
    return _of_hospital("visit.html", path, visit=visit, entered=entered)


def _sign_in(language: Language) -> Response:
    return render("sign_in.html", page(language, "/", None), {})


def _error(status: int, title: str, text: str, *, both: bool = False) -> Picture:
    def picture(language: Language) -> Response:
        around = page(language, "/my-list", None if both else NURSE, *([] if both else [LIST]))
        return render(
            "error.html",
            around,
            {
                "title": title,
                "lines": [around.words.say(text)],
                "both": [around.other.say(text)] if both else None,
                "again": both,
                "number": "8c1f02ab",
            },
            status=status,
        )

    return picture


PICTURES: Mapping[str, Picture] = {
    "list": _list("busy"),
    "list-empty": _list("empty"),
    "card": _card(builders.why()),
    "card-otherwise": _card(builders.why_otherwise()),
    "conflict-409": _conflict,
    "register": _register(wrong=False),
    "register-empty": _register(wrong=False, empty=True),
    "register-422": _register(wrong=True),
    "patients": _of_hospital("patients.html", "/patients", shown=builders.patients()),
    "patients-empty": _of_hospital(
        "patients.html", "/patients", shown=builders.patients(empty=True)
    ),
    "patient": _of_hospital("patient.html", f"/patients/{builders.key(1)}", corrected=True),
    "visit-exclude": _visit(0, Entered()),
    "visit-422": _visit(0, Entered(note="?", lacks=frozenset({"reason", "note"}))),
    "visit-undo": _visit(1, Entered()),
    "visit-409": _visit(1, Entered(note="Le dossier est à son nom.", overtaken=True)),
    "sign-in": _sign_in,
    "error-403": _error(403, "error.403.title", "error.403.text"),
    "error-404": _error(404, "error.404.title", "error.404.text"),
    "error-500": _error(500, "error.500.title", "error.500.text", both=True),
    "error-503": _error(503, "error.503.title", "error.503.text", both=True),
}


def gallery() -> FastAPI:
    app = FastAPI()

    @app.get("/gallery/{language}/{name}")
    async def picture(language: Language, name: str) -> Response:
        return PICTURES[name](language)

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        asset = assets().get(name)
        if asset is None:
            raise HTTPException(404)
        return Response(asset.body, media_type=asset.media)

    return app
