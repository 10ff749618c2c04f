"""A hospital case manager corrects a count, on the pages, with screening behind them (CT-17)."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from playwright.async_api import Browser, expect
from sqlalchemy import text

from schemas.count_correction_v1 import CountCorrection
from schemas.episode_changed_v1 import EpisodeMoment
from schemas.flag_changed_v1 import Cause
from services.notify.card import Status, Why
from services.notify.web.desk import NotifyDesk
from services.plumbing.db import Database
from services.screening import flow as counting
from tests.histories import P, ed_visit, key
from tests.services import notify_builders as build
from tests.services.notify_builders import NOW
from tests.services.screening import Screening
from tests.services.test_notify_flow import Desk as Notify
from tests.services.test_notify_flow import actor
from tests.web.conftest import ARTIFACTS, listen
from tests.web.house import House, house
from tests.web.test_story import csrf, rows

PEOPLE = [
    {"id": "nurse-a", "name": "A", "roles": ["clinic_cm"], "clinic": "clinic-a"},
    {"id": "cm-a", "name": "C. M. fictive", "roles": ["hosp_cm"], "site": "hospital-a"},
    {"id": "cm-b", "name": "D. N.", "roles": ["hosp_cm"], "site": "hospital-b"},
    {"id": "privacy", "name": "P", "roles": ["privacy"]},
]
STARTS = (
    "2025-05-01 10:00-04",
    "2025-08-01 10:00-04",
    "2025-11-01 10:00-04",
    "2026-03-01 10:00-05",
)
LAST = key("v-4")
NOTE = "Inscrite à l'accueil, puis au triage."


@dataclass
class World:
    """screening, notify and its pages on one database; events pass when told to."""

    screening: Screening
    notify: Notify
    home: House
    heard: set[str] = field(default_factory=set)

    async def flagged(self, *sites: str) -> None:
        """P, of clinic A's panel, with four visits; the last was yesterday."""
        await self.screening.meet(P)
        await self.notify.hear(build.identified(P))
        await self.notify.upload(P)
        for n, (start, site) in enumerate(zip(STARTS, sites or ("hospital-a",) * 4, strict=True)):
            visit = ed_visit(f"v-{n + 1}", start, site=site, labels=(), codes=())
            await self.screening.take(visit, now=visit.recorded)
        await self.pass_on()

    async def corrections(self) -> list[CountCorrection]:
        async with self.notify.db.work() as tx:
            found = await tx.execute(
                text("select data from outbox where type = :type order by xid, position"),
                {"type": CountCorrection.type},
            )
            return [CountCorrection.model_validate_json(row.data) for row in found]

    async def pass_on(self) -> None:
        """What each has stated since, to the other."""
        for said in await self.corrections():
            async with self.screening.at(said.recorded) as turn:
                await counting.on_counts_corrected([said], turn)
        for event in await self.screening.flags():
            await self.notify.hear(event)

    async def form(self, browser: httpx.AsyncClient, visit: UUID = LAST) -> dict[str, str]:
        """The form of a visit, as it is sent back untouched."""
        page = await browser.get(f"/patients/{P}/visits/{visit}")
        assert page.status_code == 200, page.text
        version = re.search(r'name="version" value="(\d+)"', page.text)
        act = re.search(r'name="act"[^>]*value="(\w+)"|value="(\w+)"[^>]*name="act"', page.text)
        assert version is not None
        assert act is not None
        return {"csrf": csrf(page), "version": version[1], "act": act[1] or act[2]}

    async def send(
        self, browser: httpx.AsyncClient, visit: UUID = LAST, /, **more: str
    ) -> httpx.Response:
        form = await self.form(browser, visit) | {"note": NOTE} | more
        return await browser.post(f"/patients/{P}/visits/{visit}", data=form)

    async def exclude(self, browser: httpx.AsyncClient) -> None:
        done = await self.send(browser, reason="registered-twice")
        assert done.headers["location"] == f"/patients/{P}?corrected", done.text
        await self.pass_on()

    async def audit(self, *shapes: str) -> list[Any]:
        query = text("select * from audit where shape = any(:shapes) order by position")
        async with self.notify.db.work() as tx:
            return list(await tx.execute(query, {"shapes": list(shapes)}))


@pytest.fixture
async def world(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[World]:
    people = build.region(people=PEOPLE, groups=[])
    notify = Notify(db("notify"), build.house(people))
    desk = NotifyDesk(db=db("notify"), house=notify.house, now=lambda: notify.now)
    async with house(db, desk, tmp_path, people=people) as home:
        yield World(Screening(db("screening")), notify, home)


def plain(page: httpx.Response) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.text).split())


async def test_us_h4_an_excluded_visit_no_longer_counts_and_both_sides_see_it(
    world: World,
) -> None:
    await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("cm-a") as hospital:
        assert "Fictif, Zoé" in (await hospital.get("/patients")).text
        before = rows(await hospital.get(f"/patients/{P}"))
        assert ["Non compté" in row for row in before] == [False] * 4
        await world.exclude(hospital)
        after = rows(await hospital.get(f"/patients/{P}?corrected"))
    assert "Non compté Retirée par l&#39;hôpital CT-17" in after[0]
    assert f"Inscrite deux fois {NOTE.replace(chr(39), '&#39;')} C. M. fictive" in after[0]
    assert ["Non compté" in row for row in after] == [True, False, False, False]
    taken_back = await world.notify.card()
    assert (taken_back.status, taken_back.why) == (Status.CANCELLED, Why.COUNT_CORRECTED)
    async with world.home.signed_in("nurse-a") as nurse:
        page = await nurse.get(f"/cards/{card.id}")
    assert "Retirée par l&#39;hôpital CT-17" in plain(page)
    assert NOTE not in page.text


async def test_ct_17_undone_the_visit_counts_again(world: World) -> None:
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        await world.exclude(hospital)
        done = await world.send(hospital, note="La visite a bien eu lieu.")
        assert done.status_code == 303
        await world.pass_on()
        shown = rows(await hospital.get(f"/patients/{P}"))
    assert ["Non compté" in row for row in shown] == [False] * 4
    assert "Remise dans le décompte" in shown[0]
    said = await world.corrections()
    assert [(one.version, one.excluded, one.by) for one in said] == [
        (1, True, "cm-a"),
        (2, False, "cm-a"),
    ]
    last = (await world.screening.flags())[-1]
    assert (last.explanation.state, last.cause) == ("flagged", Cause.CORRECTION)


async def test_until_it_is_counted_the_page_says_that_the_count_is_older(world: World) -> None:
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        await world.send(hospital, reason="other")
        waiting = plain(await hospital.get(f"/patients/{P}?corrected"))
        await world.pass_on()
        done = plain(await hospital.get(f"/patients/{P}"))
    assert "La correction est inscrite." in waiting
    assert "Le décompte montré date d'avant." in waiting.replace("&#39;", "'")
    assert "date d'avant" not in done.replace("&#39;", "'")


async def test_it_is_on_record_with_who_and_when_and_without_what_was_written(
    world: World,
) -> None:
    """CS-110: in the transaction of its effect."""
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        await world.exclude(hospital)
        await world.send(hospital, note="La visite a bien eu lieu.")
    made = await world.audit("PatientCreate", "PatientUpdate")
    assert [(row.agent, row.tenant, row.patient, row.entities) for row in made] == [
        ("cm-a", "hospital-a", P, [f"Encounter/{LAST}/correction/_history/{n}"]) for n in (1, 2)
    ]
    async with world.notify.db.work() as tx:
        told = (await tx.execute(text("select data from outbox"))).scalars().all()
        every = (await tx.execute(text("select to_jsonb(audit)::text from audit"))).scalars().all()
    assert not [row for row in (*told, *every) if "accueil" in row or "a bien eu lieu" in row]


async def test_nw_32_what_lacks_is_asked_for_again_and_nothing_is_kept(world: World) -> None:
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        answer = await world.send(hospital, note="trop", reason="elsewhere")
        assert answer.status_code == 422
        assert 'href="#reason"' in answer.text
        assert 'href="#note"' in answer.text
        assert ">trop</textarea>" in answer.text
        for form in ({"act": "both"}, {"version": "x"}, {"version": ""}):
            assert (await world.send(hospital, reason="other", **form)).status_code == 422
    assert await world.corrections() == []


async def test_nw_14_of_two_who_correct_the_second_is_told_and_keeps_what_they_wrote(
    world: World,
) -> None:
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        seen = await world.form(hospital)
        await world.exclude(hospital)
        answer = await hospital.post(
            f"/patients/{P}/visits/{LAST}",
            data=seen | {"reason": "other", "note": "Une autre raison."},
        )
    assert answer.status_code == 409
    assert "C. M. fictive" in answer.text
    assert "Une autre raison." in answer.text
    assert len(await world.corrections()) == 1


async def test_nw_73_a_forged_form_does_nothing(world: World) -> None:
    await world.flagged()
    async with world.home.signed_in("cm-a") as hospital:
        form = {"act": "exclude", "version": "0", "reason": "other", "note": NOTE}
        answer = await hospital.post(f"/patients/{P}/visits/{LAST}", data=form)
    assert answer.status_code == 403
    assert await world.corrections() == []


async def test_another_hospital_sees_neither_the_visit_nor_the_patient(world: World) -> None:
    """NW-04: no different from nobody."""
    await world.flagged()
    async with world.home.signed_in("cm-a") as own:
        form = await world.form(own)
    async with world.home.signed_in("cm-b") as other:
        assert rows(await other.get("/patients")) == []
        for path in (f"/patients/{P}", f"/patients/{P}/visits/{LAST}", f"/patients/{key('x')}"):
            assert (await other.get(path)).status_code == 404
        form["csrf"] = csrf(await other.get("/patients"))
        told = form | {"reason": "other", "note": NOTE}
        answer = await other.post(f"/patients/{P}/visits/{LAST}", data=told)
    assert answer.status_code == 404
    assert await world.corrections() == []


async def test_cs_40_who_sees_a_part_below_the_threshold_sees_nothing_until_they_are_there(
    world: World,
) -> None:
    """CS-04: two visits here and two elsewhere; in this ED, its case manager is in the circle."""
    await world.flagged("hospital-a", "hospital-b", "hospital-a", "hospital-b")
    async with world.home.signed_in("cm-b") as hospital:
        assert rows(await hospital.get("/patients")) == []
        assert (await hospital.get(f"/patients/{P}")).status_code == 404
        arrived = build.episode(
            P, LAST, EpisodeMoment.ARRIVED, site="hospital-b", in_ed=True, at=NOW
        )
        await world.notify.hear(arrived)
        assert len(rows(await hospital.get("/patients"))) == 1
        shown = rows(await hospital.get(f"/patients/{P}"))
        assert len(shown) == 2
        own = [key("v-2"), key("v-4")]
        assert [str(one) in (await hospital.get(f"/patients/{P}")).text for one in own] == [
            True
        ] * 2
        elsewhere = await hospital.get(f"/patients/{P}/visits/{key('v-1')}")
    assert elsewhere.status_code == 404


async def test_a_restriction_that_names_the_hospital_hides_the_patient(world: World) -> None:
    """CS-02: hospital readers are recipients too."""
    await world.flagged()
    await world.notify.consent(P, {"type": "deny", "actor": [actor("Organization/hospital-a")]})
    async with world.home.signed_in("cm-a") as hospital:
        assert rows(await hospital.get("/patients")) == []
        assert (await hospital.get(f"/patients/{P}")).status_code == 404
    refused = [row for row in await world.audit("AuthZ-Consent") if row.reader == "cm-a"]
    assert refused
    assert {(row.outcome, row.recipient) for row in refused} == {(8, "hospital-a")}


@pytest.mark.browser
async def test_a_case_manager_corrects_a_count_by_keyboard(
    world: World, browser: Browser, complaints: list[str]
) -> None:
    """NW-91, NW-92: and without JavaScript."""
    await world.flagged()
    ARTIFACTS.mkdir(exist_ok=True)
    context = await browser.new_context(java_script_enabled=False, locale="en-CA")
    page = await context.new_page()
    listen(page, complaints)
    await page.goto(f"{world.home.url}/sign-in?to=/patients")
    await page.get_by_role("button", name="cm-a").click()
    await page.get_by_role("link", name="Fictif, Zoé").click()
    await page.get_by_role("link", name=re.compile("^(Retirer|Exclude)")).first.press("Enter")
    await page.screenshot(path=ARTIFACTS / "correction-form.png", full_page=True)
    await page.locator("#correct").press("Enter")
    await expect(page.get_by_role("alert")).to_be_visible()
    await page.locator("#reason").press("Space")
    await page.locator("#note").fill(NOTE)
    await page.locator("#correct").press("Enter")
    await page.wait_for_url("**?corrected")
    await world.pass_on()
    await page.reload()
    await expect(page.get_by_text("CT-17")).to_be_visible()
    await page.screenshot(path=ARTIFACTS / "correction-done.png", full_page=True)
    await context.close()
    assert [one for one in complaints if "422" not in one] == []
