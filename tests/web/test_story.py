"""The pages on notify itself, in PostgreSQL: what its flow made is what its nurse sees.

What the flow decides is tested in tests/services/test_notify_flow.py; here, that the page says
that and nothing more, at this instant, to this reader, and that it is on record.
"""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from playwright.async_api import Browser, expect
from sqlalchemy import text

from schemas.flag_changed_v1 import Cause, Note, Notice
from schemas.site_heard_v1 import SiteHeard
from services.notify import flow, store
from services.notify.card import Ask, Status, What
from services.notify.web.desk import NotifyDesk
from services.plumbing.audit import Trail
from services.plumbing.db import Database
from services.simulator.flow import REGION_FILE
from tests.services import notify_builders as build
from tests.services.notify_builders import DAY, NOW
from tests.services.test_notify_flow import DENY_CLINIC_A, PERMIT_CLINIC_A, actor
from tests.services.test_notify_flow import Desk as Notify
from tests.web.conftest import ARTIFACTS, listen
from tests.web.house import House, house

SDV = {"system": build.TERMS + "v3-ActCode", "code": "SDV"}
DENY_NURSE_D = {"type": "deny", "actor": [actor("Practitioner/nurse-d")]}


@dataclass
class World:
    """notify, and its pages."""

    notify: Notify
    home: House

    async def flagged(self, **more: Any) -> UUID:
        """A patient of clinic A's confirmed panel, with four emergency visits."""
        patient = uuid4()
        await self.notify.hear(build.identified(patient))
        await self.notify.upload(patient)
        await self.notify.hear(build.flag(patient, **more))
        return patient

    async def audit(self, shape: str) -> list[Any]:
        query = text("select * from audit where shape = :shape order by position")
        async with self.notify.db.work() as tx:
            return list(await tx.execute(query, {"shape": shape}))


@pytest.fixture
async def world(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[World]:
    people = build.region()
    notify = Notify(db("notify"), build.house(people))
    desk = NotifyDesk(db=db("notify"), house=notify.house, now=lambda: notify.now)
    async with house(db, desk, tmp_path, people=people) as home:
        yield World(notify, home)


def csrf(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def rows(page: httpx.Response) -> list[str]:
    """The text of each row of the first table's body."""
    body = page.text.partition('<tbody role="rowgroup">')[2].partition("</tbody>")[0]
    plain = [re.sub(r"<[^>]+>", " ", row) for row in body.split("</tr>")[:-1]]
    return [" ".join(row.split()) for row in plain]


async def take(browser: httpx.AsyncClient, card: UUID) -> httpx.Response:
    page = await browser.get(f"/cards/{card}")
    version = re.search(r'name="version" value="(\d+)"', page.text)
    assert version is not None, page.text
    form = {"csrf": csrf(page), "version": version[1]}
    return await browser.post(f"/cards/{card}/take", data=form)


async def test_a_nurse_sees_her_patient_and_why_and_no_other_clinic_does(world: World) -> None:
    """US-N2: the figures are the flag's."""
    await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        listed = await browser.get("/my-list")
        assert rows(listed) == [
            "Fictif, Zoé 76 ans · Femme · NAM se terminant par "
            f"{build.number(card.patient)[-4:]} "
            "Seuil atteint Hôpital fictif A, 1er mars 2026, 14 h 05 "
            "4e visite à l&#39;urgence en 12 mois (seuil : 4) D&#39;ici le 9 mars 2026 "
            "Vous Nouveau Prendre en charge"
        ]
        page = await browser.get(f"/cards/{card.id}")
    assert len(rows(page)) == 4
    assert all("Hôpital fictif A Visite à l&#39;urgence 3 h 00 Compté" in row for row in rows(page))
    assert "4e visite à l&#39;urgence en 12 mois (seuil : 4)" in page.text
    assert "Règle de comptage\N{NO-BREAK SPACE}: qc-default, version 1" in page.text
    async with world.home.signed_in("nurse-b") as browser:
        assert "Aucun avis à traiter" in (await browser.get("/my-list")).text
        assert (await browser.get(f"/cards/{card.id}")).status_code == 404


async def test_what_did_not_count_is_shown_with_its_reason(world: World) -> None:
    planned = build.ed_visit(60, counted=False, reason=Note(code="PLANNED", rule="CR-07"))
    await world.flagged(visits=[*build.four_visits(), planned])
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        page = await browser.get(f"/cards/{card.id}")
    (shown,) = [row for row in rows(page) if "Non compté" in row]
    assert "Visite prévue CR-07" in shown


async def test_opening_a_card_marks_it_seen_once_and_looking_ahead_does_not(world: World) -> None:
    """NW-05."""
    await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        await browser.get(f"/cards/{card.id}", headers={"Sec-Purpose": "prefetch"})
        assert (await world.notify.card()).status is Status.REQUESTED
        for _ in range(2):
            await browser.get(f"/cards/{card.id}")
    seen = await world.notify.card()
    assert (seen.status, seen.version, seen.seen) == (Status.RECEIVED, card.version + 1, NOW)


async def test_taking_on_makes_the_card_hers(world: World) -> None:
    await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("nurse-d") as browser:
        done = await take(browser, card.id)
        assert done.status_code == 303
        page = await browser.get(done.headers["location"])
    taken = await world.notify.card()
    assert (taken.status, taken.owner) == (Status.ACCEPTED, "nurse-d")
    assert "Vous avez pris cet avis en charge." in page.text
    assert "En cours · par D" in " ".join(re.sub(r"<[^>]+>", " ", page.text).split())


async def test_of_two_nurses_the_second_is_told_who_has_it_and_may_take_over(
    world: World,
) -> None:
    """NW-14, NW-93."""
    await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as a, world.home.signed_in("nurse-d") as d:
        page = await d.get(f"/cards/{card.id}")
        stale = {"csrf": csrf(page), "version": str((await world.notify.card()).version)}
        assert (await take(a, card.id)).status_code == 303
        told = await d.post(f"/cards/{card.id}/take", data=stale)
        assert told.status_code == 409
        assert "Responsable\N{NO-BREAK SPACE}: A" in told.text
        assert "Modifié par A, 2 mars 2026, 14 h 05" in told.text
        assert (await world.notify.card()).owner == "nurse-a"
        version = re.search(r'name="version" value="(\d+)"', told.text)
        assert version is not None
        again = await d.post(
            f"/cards/{card.id}/take", data={"csrf": csrf(told), "version": version[1]}
        )
        assert again.status_code == 303
    assert (await world.notify.card()).owner == "nurse-d"


async def test_a_withdrawal_takes_the_card_off_every_page_at_once(world: World) -> None:
    """NW-02, CS-43, CS-50; the register says so to the privacy officer alone."""
    patient = await world.flagged()
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        assert "Fictif" in (await browser.get("/my-list")).text
        await world.notify.consent(patient, DENY_CLINIC_A)
        page = await browser.get("/my-list")
        assert "Fictif" not in page.text
        assert "Aucun avis à traiter" in page.text
        gone = await browser.get(f"/cards/{card.id}")
        none = await browser.get(f"/cards/{uuid4()}")
    assert gone.status_code == none.status_code == 404
    strip = re.compile(r'nonce="[^"]+"|name="back" value="[^"]+"')
    assert strip.sub("", gone.text) == strip.sub("", none.text)
    async with world.home.signed_in("privacy") as browser:
        register = await browser.get("/register")
    assert "Restriction demandée par la personne" in register.text
    assert "Consent/TEST-c1/_history/1" in register.text
    assert "Fictif, Zoé" in register.text
    assert "Page consultée" in register.text


async def test_consent_is_asked_at_the_view_even_if_the_card_still_stands(world: World) -> None:
    """NW-02: decided for this reader. One nurse is refused by name; her colleague is not."""
    patient = await world.flagged()
    await world.notify.consent(patient, {"type": "permit", "provision": [DENY_NURSE_D]})
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as a, world.home.signed_in("nurse-d") as d:
        assert (await a.get(f"/cards/{card.id}")).status_code == 200
        assert (await d.get(f"/cards/{card.id}")).status_code == 404
        assert "Fictif" not in (await d.get("/my-list")).text
        form = {"csrf": csrf(await d.get("/my-list")), "version": str(card.version + 1)}
        assert (await d.post(f"/cards/{card.id}/take", data=form)).status_code == 404
    assert (await world.notify.card()).owner == "nurse-a"


async def test_a_visit_hidden_from_one_nurse_is_nowhere_on_her_pages(world: World) -> None:
    """CS-40, CS-42: neither its card, nor its row, nor its count."""
    patient, hidden = uuid4(), uuid4()
    await world.notify.hear(build.identified(patient))
    await world.notify.upload(patient)
    secret = build.ed_visit(0.5, hidden, labels=build.label("SDV"), site="hospital-b")
    await world.notify.hear(build.flag(patient))
    await world.notify.hear(build.flag(patient, 2, [secret, *build.four_visits()]))
    await world.notify.hear(
        build.episode(patient, hidden, site="hospital-b", labels=build.label("SDV"))
    )
    deny = {"type": "deny", "actor": [actor("Practitioner/nurse-d")], "securityLabel": [SDV]}
    await world.notify.consent(patient, {"type": "permit", "provision": [deny]})
    cards = {card.what: card for card in await world.notify.cards()}
    threshold, departure = cards[What.THRESHOLD], cards[What.LEFT_ED]
    async with world.home.signed_in("nurse-a") as a, world.home.signed_in("nurse-d") as d:
        assert len(rows(await a.get("/my-list"))) == 2
        assert len(rows(await a.get(f"/cards/{threshold.id}"))) == 5
        assert (await a.get(f"/cards/{departure.id}")).status_code == 200
        listed, page = await d.get("/my-list"), await d.get(f"/cards/{threshold.id}")
        assert len(rows(listed)) == 1
        assert len(rows(page)) == 4
        assert "4e visite" in page.text
        assert "5e visite" not in listed.text + page.text
        assert (await d.get(f"/cards/{departure.id}")).status_code == 404
        assert "Hôpital fictif B" not in page.text.partition('id="why"')[2]


async def test_a_consent_is_said_to_be_the_ground(world: World) -> None:
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_CLINIC_A)
    card = await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        page = await browser.get(f"/cards/{card.id}")
    assert "Consentement obtenu" in page.text
    async with world.home.signed_in("privacy") as browser:
        told = (await browser.get("/register")).text.partition('id="disclosures"')[2]
    assert "Consent/TEST-c1/_history/1" in told


async def test_every_view_is_on_record_and_a_refresh_once_a_session_and_version(
    world: World,
) -> None:
    """CS-110, E-1, E-2."""
    patient = await world.flagged()
    await world.notify.card()
    async with world.home.signed_in("nurse-a") as browser:
        await browser.get("/my-list")
        for _ in range(3):
            await browser.get("/my-list", headers={"HX-Request": "true", "X-Background": "1"})
    reads = await world.audit("PatientRead")
    assert [(row.agent, row.patient) for row in reads] == [("nurse-a", patient)] * 2
    assert {(tuple(row.items), row.level, tuple(row.basis)) for row in reads} == {
        (("ed-visit:4", "hospital-stay:0"), "L1", ())
    }
    decisions = [row for row in await world.audit("AuthZ-Role") if row.reader == "nurse-a"]
    assert [row.outcome for row in decisions] == [0, 0]


async def test_the_register_is_on_record_too_and_finds_one_patient(world: World) -> None:
    """CS-114."""
    patient, other = await world.flagged(), await world.flagged()
    for one in (patient, other):
        await world.notify.consent(one, DENY_CLINIC_A, id_=f"TEST-{one}")
    async with world.home.signed_in("privacy") as browser:
        page = await browser.get("/register")
        assert str(patient) in page.text
        assert str(other) in page.text
        found = await browser.post("/register", data={"csrf": csrf(page), "patient": str(patient)})
    assert str(other) not in found.text
    assert "Une seule personne est affichée." in found.text
    queries = await world.audit("PatientQuery")
    assert {row.patient for row in queries if row.agent == "privacy"} == {patient, other}


async def test_a_card_taken_back_says_why_for_a_week(world: World) -> None:
    """NW-11, CA-31: news for the digest, nothing to do any more."""
    patient = await world.flagged()
    card = await world.notify.card()
    gone = build.flag(
        patient, 2, build.four_visits()[:2], cause=Cause.VOID, notice=Notice.QUIET, retracts=1
    )
    await world.notify.hear(gone)
    async with world.home.signed_in("nurse-a") as browser:
        listed = await browser.get("/my-list")
        assert "1 changement au résumé" in listed.text
        assert "Visite annulée" in listed.text
        assert "0 maintenant · 0 aujourd&#39;hui" in listed.text
        page = await browser.get(f"/cards/{card.id}")
        assert "Visite annulée" in page.text
        assert 'id="take-' not in listed.text + page.text
        world.notify.now = NOW + 8 * DAY
        assert "Visite annulée" not in (await browser.get("/my-list")).text


async def test_filters_and_counts_are_of_what_this_nurse_may_see(world: World) -> None:
    for _ in range(3):
        await world.flagged()
    first, second, _ = await world.notify.cards()
    async with world.home.signed_in("nurse-d") as d:
        await take(d, first.id)
        mine = await d.get("/my-list?show=mine")
        assert len(rows(mine)) == 1
        assert [int(n) for n in re.findall(r'class="p-num">\((\d+)\)', mine.text)] == [3, 1, 0]
        async with world.notify.db.work() as tx:
            act = flow.Act(
                clinic="clinic-a",
                card=second.id,
                ask=Ask(status=Status.ON_HOLD, snooze_until=NOW + DAY),
                by="nurse-a",
                person="nurse-a",
            )
            async with store.acting(tx, "clinic-a"):
                trail = Trail(NOW, "nurse-a", "person", tenant="clinic-a")
                await flow.acknowledge(act, world.notify.turn(tx), trail)
        listed = await d.get("/my-list?sort=owner")
    assert "2 aujourd&#39;hui · 1 en veille" in listed.text
    assert len(rows(listed)) == 2


async def test_a_departure_counts_the_days_and_then_says_late(world: World) -> None:
    """R8: day n of 7 since departure."""
    patient, key = uuid4(), uuid4()
    await world.notify.hear(build.identified(patient))
    await world.notify.upload(patient)
    visits = [build.ed_visit(0.1, key), *build.four_visits()]
    await world.notify.hear(build.flag(patient, visits=visits, episode=key))
    await world.notify.hear(build.episode(patient, key))
    async with world.home.signed_in("nurse-a") as browser:
        for days, said in ((0, "Jour 1 de 7"), (6.5, "Jour 7 de 7"), (8.5, "En retard de 2 jours")):
            world.notify.now = NOW + timedelta(days=days)
            assert said in (await browser.get("/my-list")).text, days


async def test_a_hospital_that_is_silent_too_long_is_said_in_red(world: World) -> None:
    async with world.notify.db.work() as tx:
        heard = [
            SiteHeard(site="hospital-a", last_event=NOW, heard=NOW),
            SiteHeard(site="hospital-b", last_event=NOW - DAY, heard=NOW - DAY),
        ]
        await flow.on_sites_heard(heard, world.notify.turn(tx))
    async with world.home.signed_in("nurse-a") as browser:
        page = await browser.get("/my-list")
    assert "Aucune donnée de Hôpital fictif B depuis le 1er mars 2026, 14 h 05." in page.text
    assert "Aucune donnée de Hôpital fictif A" not in page.text
    assert "Aucun avis à traiter. Dernier message reçu à 14 h 05." in page.text


@pytest.mark.browser
async def test_the_whole_way_in_a_browser(
    world: World, browser: Browser, complaints: list[str]
) -> None:
    """From the door to a card taken on, in French; then in English; nothing to complain of."""
    await world.flagged()
    card = await world.notify.card()
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, locale="fr-CA")
    page = await context.new_page()
    listen(page, complaints)
    await page.goto(world.home.url)
    await page.click("#sign-in")
    await page.click('button[name="persona"][value="nurse-a"]')
    await page.click(f"#card-{card.id}")
    await page.click(f"#take-{card.id}")
    await expect(page.locator(".govuk-notification-banner__title")).to_contain_text("C'est fait")
    ARTIFACTS.mkdir(exist_ok=True)
    await page.screenshot(path=ARTIFACTS / "story-card-fr-1280.png", full_page=True)
    await page.click("#language-en")
    await expect(page.locator("#why")).to_have_text("Why this person is listed")
    await page.goto(f"{world.home.url}/my-list")
    await page.screenshot(path=ARTIFACTS / "story-list-en-1280.png", full_page=True)
    assert (await world.notify.card()).status is Status.ACCEPTED
    assert complaints == []
    await context.close()


def test_the_demo_has_every_persona_the_pages_are_for() -> None:
    """NW-71."""
    from services.plumbing import region

    people = {person.id for person in region.load(REGION_FILE).people}
    assert {
        "nurse-a",
        "nurse-b",
        "hospital-cm",
        "physician",
        "lead-physician",
        "clinic-manager",
        "coordinator",
        "manager",
        "ops",
        "privacy",
    } <= people
