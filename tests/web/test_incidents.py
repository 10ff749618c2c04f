"""The register of incidents, and the account of one patient, as the privacy officer has them."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from playwright.async_api import Browser
from sqlalchemy import text

from services.notify.telling import House
from services.notify.web.desk import NotifyDesk
from services.notify.web.incidents import Registrar
from services.notify.web.pages import LANGUAGE_COOKIE
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.test_notify_flow import DENY_CLINIC_A
from tests.services.test_notify_flow import Desk as Notify
from tests.web import house as homes
from tests.web.conftest import ARTIFACTS, listen
from tests.web.test_look import AXE, RUN_AXE, TAGS, WIDER
from tests.web.test_story import World, csrf

NOW = datetime(2026, 11, 24, 15, tzinfo=UTC)
SECRET = "TEST words that stand in no row in clear"
OPENED = {
    "information": SECRET,
    "circumstances": "An endpoint was named by mistake.",
    "began": "2026-11-20",
    "known": "2026-11-23",
    "risk": "undecided",
}
CLOSED = {
    "risk": "serious",
    "elements": "Sensitive; read under professional secrecy.",
    "told_commission": "2026-11-24",
    "told_persons": "2026-11-24",
    "measures": "Endpoints are confirmed by two people.",
    "closed": "1",
}


@dataclass
class Office:
    """The privacy officer's pages, on a register of their own."""

    db: Database
    home: homes.House

    async def rows(self) -> list[Any]:
        async with self.db.request("", role="privacy") as tx:
            return list(await tx.execute(text("select * from incident order by number, version")))


@pytest.fixture
async def office(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[Office]:
    told: House = build.house()
    desk = NotifyDesk(db=db("notify"), house=told, now=lambda: NOW)
    registrar = Registrar(db=db("notify"), house=told, now=lambda: NOW)
    async with homes.house(db, desk, tmp_path, registrar=registrar) as home:
        yield Office(db("notify"), home)


async def record(
    browser: httpx.AsyncClient, at: str = "/incidents", version: str = "0", **said: str
) -> httpx.Response:
    page = await browser.get("/incidents/new")
    form = {"csrf": csrf(page), "version": version, **OPENED, **said}
    answer = await browser.post(at, data=form)
    if answer.status_code == httpx.codes.SEE_OTHER:
        return await browser.get(answer.headers["location"])
    return answer


async def test_an_incident_is_opened_completed_and_closed_and_every_version_is_kept(
    office: Office,
) -> None:
    """CS-122."""
    async with office.home.signed_in("privacy") as browser:
        opened = await record(browser)
        assert (opened.status_code, opened.url.path.count("/")) == (200, 2)
        at = opened.url.path
        assert "Incident no 1" in opened.text
        assert SECRET in opened.text
        closed = await record(browser, at, "1", persons="12", **CLOSED)
        assert closed.status_code == 200
        listed = await browser.get("/incidents")
        assert "Clos" in listed.text
        assert ">12<" in listed.text
        second = await record(browser)
        assert "Incident no 2" in second.text
    rows = await office.rows()
    assert [(r.number, r.version, r.closed) for r in rows] == [
        (1, 1, False),
        (1, 2, True),
        (2, 1, False),
    ]
    assert {r.by for r in rows} == {"privacy"}


async def test_what_was_written_is_sealed_and_each_act_is_on_record(
    office: Office, database: FreshDatabase
) -> None:
    async with office.home.signed_in("privacy") as browser:
        at = (await record(browser)).url.path
        await record(browser, at, "1", measures="More.")
    owner = await database.owner()
    try:
        dump = str(await owner.fetch("select * from notify.incident"))
        acts = await owner.fetch(
            "select shape, entities from notify.audit where entities::text like '%incident/%'"
            " and shape in ('Create', 'Update') order by position"
        )
    finally:
        await owner.close()
    assert SECRET not in dump
    name = f"incident/{at.rpartition('/')[2]}/_history"
    assert [(act["shape"], act["entities"]) for act in acts] == [
        ("Create", [f"{name}/1"]),
        ("Update", [f"{name}/2"]),
    ]


async def test_a_form_that_is_wrong_keeps_what_was_entered(office: Office) -> None:
    async with office.home.signed_in("privacy") as browser:
        answer = await record(browser, known="2026-11-19", **({**CLOSED, "told_commission": ""}))
    assert answer.status_code == 422
    assert "Cette date précède celle de l&#39;incident." in answer.text
    assert "Un risque sérieux exige cet avis avant de clore." in answer.text
    assert SECRET in answer.text
    assert await office.rows() == []


async def test_a_version_somebody_was_faster_with_is_not_overwritten(office: Office) -> None:
    """NW-14."""
    async with office.home.signed_in("privacy") as browser:
        at = (await record(browser)).url.path
        await record(browser, at, "1", measures="First.")
        late = await record(browser, at, "1", measures="Second.")
    assert late.status_code == 409
    assert "Quelqu&#39;un d&#39;autre a inscrit une version" in late.text
    assert "Second." in late.text
    assert [row.version for row in await office.rows()] == [1, 2]


@pytest.mark.parametrize("path", [f"/incidents/{UUID(int=9)}", "/incidents/TEST"])
async def test_what_is_not_there_is_not_found(office: Office, path: str) -> None:
    async with office.home.signed_in("privacy") as browser:
        assert (await browser.get(path)).status_code == 404


# The account of one patient (CS-114)


@pytest.fixture
async def world(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[World]:
    notify = Notify(db("notify"), build.house())
    desk = NotifyDesk(db=db("notify"), house=notify.house, now=lambda: notify.now)
    async with homes.house(db, desk, tmp_path) as home:
        yield World(notify, home)


async def account(browser: httpx.AsyncClient, patient: UUID, **said: str) -> httpx.Response:
    page = await browser.get("/register")
    form = {"csrf": csrf(page), "patient": str(patient), "in": "fr", "copy": "patient", **said}
    return await browser.post("/register/report", data=form)


def printed(page: httpx.Response) -> str:
    found = re.search(r"<pre[^>]*>(.*?)</pre>", page.text, re.DOTALL)
    assert found is not None
    return found[1]


async def test_a_patient_is_handed_who_was_told_in_either_language(world: World) -> None:
    patient = await world.flagged()
    await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        await browser.get("/my-list")
    async with world.home.signed_in("privacy") as browser:
        french = printed(await account(browser, patient))
        english = printed(await account(browser, patient, **{"in": "en"}))
    assert french.startswith("Qui a été informé")
    assert "Dossier consulté" in french
    assert english.startswith("Who was told")
    assert "The record was looked at" in english
    exports = await world.audit("Export")
    assert [(row.agent, row.patient) for row in exports] == [("privacy", patient)] * 2


async def test_refusals_are_in_the_officer_s_copy_alone(world: World) -> None:
    patient = await world.flagged()
    await world.notify.consent(patient, DENY_CLINIC_A, id_="TEST-c1")
    async with world.home.signed_in("nurse-a") as browser:
        await browser.get("/my-list")
    async with world.home.signed_in("privacy") as browser:
        handed = printed(await account(browser, patient))
        filed = await account(browser, patient, copy="officer")
    assert "Non communiqué" not in handed
    assert "Non communiqué" in printed(filed)
    assert "elle n&#39;est pas remise à la personne" in filed.text


async def test_the_register_is_searched_by_person_too(world: World) -> None:
    """US-O3: who saw what, by patient and by user."""
    one, other = await world.flagged(), await world.flagged()
    await world.notify.cards()
    async with world.home.signed_in("nurse-a") as browser:
        await browser.get("/my-list")
    async with world.home.signed_in("privacy") as browser:
        token = csrf(await browser.get("/register"))
        seen = await browser.post("/register", data={"csrf": token, "person": "nurse-a"})
        none = await browser.post("/register", data={"csrf": token, "person": "nurse-d"})
        both = await browser.post(
            "/register", data={"csrf": token, "person": "nurse-a", "patient": str(one)}
        )
    assert all(str(key) in seen.text for key in (one, other))
    assert not any(str(key) in none.text for key in (one, other))
    assert str(one) in both.text
    assert str(other) not in both.text


# As they look


@pytest.mark.browser
@pytest.mark.parametrize("language", ["fr", "en"])
async def test_the_pages_look_and_are_accessible(
    office: Office, browser: Browser, language: str
) -> None:
    async with office.home.signed_in("privacy") as client:
        at = (await record(client, persons="12")).url.path
        await record(client)
    context = await browser.new_context()
    page = await context.new_page()
    complaints: list[str] = []
    listen(page, complaints)
    await page.goto(office.home.url)
    await page.click("#sign-in")
    await page.click('button[name="persona"][value="privacy"]')
    await page.wait_for_url(f"{office.home.url}/register")
    cookie = {"name": LANGUAGE_COOKIE, "value": language, "url": office.home.url}
    await context.add_cookies([cookie])  # type: ignore[list-item]  # a plain dict will do
    ARTIFACTS.mkdir(exist_ok=True)
    for name, path in (("list", "/incidents"), ("one", at), ("new", "/incidents/new")):
        await page.goto(office.home.url + path)
        await page.evaluate(AXE)
        for width in (1280, 320):
            await page.set_viewport_size({"width": width, "height": 900})
            picture = ARTIFACTS / f"incident-{name}-{language}-{width}.png"
            await page.screenshot(path=picture, full_page=True)
            assert await page.evaluate(WIDER) == [], (name, width)
            assert await page.evaluate(RUN_AXE, TAGS) == [], (name, width)
    assert complaints == []
    await context.close()
