"""The pages about Consents (H3), holds and emergency access, on notify itself.

What is asked of the engine is tested elsewhere; here, what a person can do with it, what each act
records, and what nobody can do (CS-16, CS-36, CS-53, CS-55 to CS-58, CS-74).
"""

import base64
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import orjson
import pytest
from playwright.async_api import Browser

from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from services.notify import flow, intake, store
from services.notify.intake import Capture
from services.notify.web.desk import NotifyDesk
from services.notify.web.office import ConsentOffice
from services.plumbing import region as regions
from services.plumbing.audit import Trail
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_builders import CARD
from tests.services.notify_door import consent
from tests.services.test_notify_flow import DENY_CLINIC_A, PERMIT_CLINIC_A, actor
from tests.services.test_notify_flow import Desk as Notify
from tests.web.conftest import ARTIFACTS, listen
from tests.web.house import House, house
from tests.web.test_look import AXE, RUN_AXE, TAGS, WIDER

PEOPLE = [
    {"id": "nurse-a", "name": "Camille Essai, inf.", "roles": ["clinic_cm"], "clinic": "clinic-a"},
    {"id": "nurse-d", "name": "Dominique Fictif", "roles": ["clinic_cm"], "clinic": "clinic-a"},
    {"id": "nurse-b", "name": "B", "roles": ["clinic_cm"], "clinic": "clinic-b", "language": "en"},
    {"id": "hospital-cm", "name": "Sacha Test", "roles": ["hosp_cm"], "site": "hospital-a"},
    {"id": "hospital-cm-b", "name": "Alex Test", "roles": ["hosp_cm"], "site": "hospital-b"},
    {"id": "physician", "name": "Dre Fictive", "roles": ["physician"], "clinic": "clinic-a"},
    {"id": "privacy", "name": "P. Vie-Privée", "roles": ["privacy"]},
    {"id": "ops", "name": "O", "roles": ["ops"]},
]


def region(*, overriding: bool = False, notice: bool = False, default: str = "implied") -> Any:
    said = build.region(default).model_dump(mode="json", exclude_unset=True)
    sites = [one | {"override": overriding} for one in said["sites"]]
    return regions.Region.model_validate(
        said
        | {
            "people": PEOPLE,
            "sites": sites,
            "cards": {CARD: {"fr": "Carte fictive", "en": "Fictitious card"}},
            "consent": said["consent"] | {"tell_of_override": notice},
        }
    )


@dataclass
class World:
    """notify, and its pages."""

    notify: Notify
    home: House

    async def flagged(self, patient: UUID | None = None, **more: Any) -> UUID:
        """A patient of clinic A's confirmed panel, with four emergency visits at hospital A."""
        patient = patient or uuid4()
        await self.notify.hear(build.identified(patient, **more))
        await self.notify.upload(patient)
        await self.notify.hear(build.flag(patient))
        return patient

    async def work(self) -> list[Any]:
        async with self.notify.db.work() as tx:
            return list(await store.items(tx, 100))

    async def open_cards(self) -> int:
        return sum(card.is_open for card in await self.notify.cards())


Making = Callable[..., Any]


@pytest.fixture
async def made(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[Making]:
    """Makes a world on a region, as long as the test lasts."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(people: regions.Region) -> World:
            notify = Notify(db("notify"), build.house(people))

            def now() -> Any:
                return notify.now

            desk = NotifyDesk(db=db("notify"), house=notify.house, now=now)
            office = ConsentOffice(db=db("notify"), house=notify.house, now=now)
            home = await stack.enter_async_context(
                house(db, desk, tmp_path, people=people, office=office)
            )
            return World(notify, home)

        yield make


@pytest.fixture
async def world(made: Making) -> World:
    found: World = await made(region())
    return found


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


def csrf(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def plain(page: httpx.Response) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.text.partition("<main")[2]).split())


async def send(
    browser: httpx.AsyncClient, path: str, form: Mapping[str, Any], at: str = "/consents"
) -> httpx.Response:
    token = csrf(await browser.get(at))
    return await browser.post(path, data={"csrf": token, **form})


def number_of(patient: UUID) -> dict[str, str]:
    return {"system": CARD, "number": build.number(patient)}


RESTRICT = {
    "effect": "deny",
    "level": "1",
    "performer": "patient",
    "source": "said",
    "language": "fr",
    "risks": "yes",
}


async def latest(owner: asyncpg.Connection, id_: str) -> dict[str, Any]:
    """What is kept of a Consent, opened."""
    (row,) = await owner.fetch("select * from notify.consent where id = $1 and latest", id_)
    text = build.SEALS.open(row["uid"], "consent", row["body_key_id"], row["body"])
    return {**orjson.loads(text), "tenant": row["tenant"], "by": row["captured_by"]}


def id_in(answer: httpx.Response) -> str:
    assert answer.status_code == 303, plain(answer)
    return answer.headers["location"].partition("?")[0].rpartition("/")[2]


# H3


async def test_a_restriction_for_one_clinic_is_in_force_when_the_page_says_so(
    world: World, owner: asyncpg.Connection
) -> None:
    """US-H2: obtained once, effective at once; no number is in any address (NW-03)."""
    patient = await world.flagged()
    assert await world.open_cards() == 1
    async with world.home.signed_in("hospital-cm") as browser:
        found = await send(browser, "/consents", number_of(patient))
        assert found.status_code == 200
        assert "Fictif, Zoé" in found.text
        assert found.url.path == "/consents"
        assert not found.url.query
        form = {**number_of(patient), **RESTRICT, "whom": ["Organization/clinic-a"]}
        done = await send(browser, "/consents/record", form)
        id_ = id_in(done)
        page = await browser.get(done.headers["location"])
    assert "Inscrit. C'est en vigueur." in page.text.replace("&#39;", "'")
    assert "Restreint Clinique fictive A" in plain(page)
    assert await world.open_cards() == 0
    kept = await latest(owner, id_)
    assert kept["provision"] == {"type": "deny", "actor": [actor("Organization/clinic-a")]}
    assert (kept["tenant"], kept["by"]) == ("hospital-a", "hospital-cm")
    assert kept["organization"] == [{"reference": "Organization/hospital-a"}]
    assert kept["extension"][0]["valueBoolean"] is True
    assert kept["performer"][0]["type"] == "Patient"
    rows = await owner.fetch(
        "select interaction from notify.audit where agent = 'hospital-cm' and patient = $1", patient
    )
    assert {row["interaction"] for row in rows} >= {"search-type", "create", "read"}


async def test_a_permission_has_its_level_its_exceptions_and_its_period(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-44, CS-58: what is ticked is what the Consent says."""
    patient = await world.flagged()
    async with world.home.signed_in("hospital-cm") as browser:
        form = {
            **number_of(patient),
            **RESTRICT,
            "effect": "permit",
            "whom": ["Organization/clinic-a", "Practitioner/physician"],
            "save": ["Group/students", "Practitioner/nurse-d"],
            "level": "2",
            "labels": ["SDV", "HIV"],
            "start": "2026-03-01",
            "end": "2026-12-31",
            "source": "signed",
            "reference": "TEST-paper-7",
            "risks": "no",
        }
        done = await send(browser, "/consents/record", form)
        page = await browser.get(done.headers["location"])
    kept = await latest(owner, id_in(done))
    root = kept["provision"]
    assert [c["code"] for c in root["class"]] == ["Encounter", "Condition"]
    assert root["period"] == {"start": "2026-03-01", "end": "2026-12-31"}
    assert [a["reference"]["reference"] for a in root["actor"]] == form["whom"]
    saved, labels = root["provision"]
    assert [a["reference"]["reference"] for a in saved["actor"]] == form["save"]
    assert [c["code"] for c in labels["securityLabel"]] == ["SDV", "HIV"]
    assert kept["sourceReference"]["display"] == "TEST-paper-7"
    assert kept["verification"] == [{"verified": True}]
    assert "Permet Clinique fictive A, Dre Fictive" in plain(page)
    assert "Restreint students, Dominique Fictif" in plain(page)
    (card,) = [c for c in await world.notify.cards() if c.is_open]
    assert card.owner == "nurse-a"
    assert not card.inbox  # not everybody who reads the inbox may


async def test_share_nothing_is_one_button_and_one_minimal_deny(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-58."""
    patient = await world.flagged()
    async with world.home.signed_in("hospital-cm") as browser:
        done = await send(browser, "/consents/record", {**number_of(patient), "nothing": "1"})
    assert (await latest(owner, id_in(done)))["provision"] == {"type": "deny"}
    assert await world.open_cards() == 0


async def test_withdrawing_is_a_new_version_and_a_stale_form_changes_nothing(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-58, NW-14."""
    patient = await world.flagged()
    async with world.home.signed_in("hospital-cm") as browser:
        done = await send(browser, "/consents/record", {**number_of(patient), "nothing": "1"})
        at = f"/consents/{id_in(done)}"
        stale = await send(browser, f"{at}/withdraw", {"version": "7"}, at)
        assert stale.status_code == 409
        assert await world.open_cards() == 0
        gone = await send(browser, f"{at}/withdraw", {"version": "1"}, at)
        page = await browser.get(gone.headers["location"])
    assert await world.open_cards() == 1
    rows = await owner.fetch("select version, status from notify.consent order by version")
    assert [(r["version"], r["status"]) for r in rows] == [(1, "active"), (2, "inactive")]
    assert "Retiré" in page.text
    assert 'id="withdraw"' not in page.text


async def test_a_form_that_is_wrong_says_so_beside_each_field_and_keeps_what_was_entered(
    world: World, owner: asyncpg.Connection
) -> None:
    """NW-32."""
    patient = await world.flagged()
    async with world.home.signed_in("hospital-cm") as browser:
        form = {
            **number_of(patient),
            "effect": "permit",
            "level": "3",
            "labels": ["SDV"],
            "end": "2020-01-01",
            "start": "soon",
            "performer": "relative",
            "source": "signed",
        }
        answer = await send(browser, "/consents/record", form)
    assert answer.status_code == 422
    for field in ("whom", "end", "start", "relative", "reference", "language", "risks"):
        assert f'href="#{field}"' in answer.text, field
        assert f'id="{field}-error"' in answer.text, field
        assert f'id="{field}"' in answer.text, field
    for kept in (
        'value="permit" checked',
        'value="3" checked',
        'value="SDV" checked',
        'value="2020-01-01"',
        'value="relative" checked',
        'value="signed" checked',
        f'value="{build.number(patient)}"',
    ):
        assert kept in answer.text, kept
    assert await owner.fetchval("select count(*) from notify.consent") == 0


@pytest.mark.parametrize(
    ("born", "effect", "performer", "field"),
    [
        ("2010-02-03", "permit", "relative", "performer"),
        ("2010-02-03", "deny", "relative", None),
        ("2015-02-03", "permit", "patient", "performer"),
        ("2015-02-03", "deny", "patient", "performer"),
        ("2015-02-03", "permit", "relative", None),
    ],
)
async def test_from_14_the_person_permits_alone_and_before_that_a_parent_decides(
    world: World, born: str, effect: str, performer: str, field: str | None
) -> None:
    """CS-16, CS-76; a relative's restriction stands."""
    patient = uuid4()
    await world.notify.hear(build.identified(patient, birth_date=born))
    form = {
        **number_of(patient),
        **RESTRICT,
        "effect": effect,
        "performer": performer,
        "relative": "Parent Fictif" if performer == "relative" else "",
        "whom": ["Organization/clinic-a"],
    }
    async with world.home.signed_in("hospital-cm") as browser:
        answer = await send(browser, "/consents/record", form)
    assert answer.status_code == (303 if field is None else 422), plain(answer)
    assert field is None or f'id="{field}-error"' in answer.text


async def test_a_copy_of_the_paper_is_kept_sealed_and_one_too_large_is_refused(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-57, CS-71."""
    patient = await world.flagged()
    form = {**number_of(patient), **RESTRICT, "source": "signed"}
    async with world.home.signed_in("hospital-cm") as browser:
        token = csrf(await browser.get("/consents"))

        async def upload(size: int, media: str) -> httpx.Response:
            file = {"attachment": ("TEST.pdf", b"%PDF" + b"S" * (size - 4), media)}
            data = {"csrf": token, **form}
            return await browser.post("/consents/record", data=data, files=file)

        assert (await upload(512 * 1024 + 1, "application/pdf")).status_code == 422
        assert (await upload(100, "text/html")).status_code == 422
        done = await upload(512 * 1024, "application/pdf")
    kept = await latest(owner, id_in(done))
    assert kept["sourceAttachment"]["contentType"] == "application/pdf"
    assert b"%PDF" not in str(await owner.fetch("select body from notify.consent")).encode()


async def test_a_clinic_records_for_its_own_panel_and_reads_only_what_it_captured(
    world: World,
) -> None:
    """CS-56."""
    patient, foreign = await world.flagged(), uuid4()
    await world.notify.hear(build.identified(foreign))
    await world.notify.consent(patient, PERMIT_CLINIC_A, id_="TEST-theirs")
    async with world.home.signed_in("nurse-a") as browser:
        found = await send(browser, "/consents", number_of(patient))
        assert "Fictif, Zoé" in found.text
        assert "TEST-theirs" not in found.text
        assert (await browser.get("/consents/TEST-theirs")).status_code == 404
        own = await send(browser, "/consents/record", {**number_of(patient), "nothing": "1"})
        assert (await browser.get(own.headers["location"])).status_code == 200
        elsewhere = await send(browser, "/consents", number_of(foreign))
        assert "Pas sur la liste confirmée" in elsewhere.text
        assert "Fictif" not in elsewhere.text.partition("<main")[2].partition("carte")[2]
        refused = await send(browser, "/consents/record", {**number_of(foreign), "nothing": "1"})
        assert refused.status_code == 422
    async with world.home.signed_in("nurse-b") as browser:
        assert (await browser.get(own.headers["location"])).status_code == 404


async def test_a_hospital_sees_no_name_of_whom_it_never_saw_and_may_still_record(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-57: kept by token, applied when they are identified."""
    patient = await world.flagged()  # known to hospital A alone
    async with world.home.signed_in("hospital-cm-b") as browser:
        found = await send(browser, "/consents", number_of(patient))
        assert "Aucun dossier ici sous ce numéro" in found.text
        assert "Fictif, Zoé" not in found.text
        unknown = await send(browser, "/consents", number_of(uuid4()))
        strip = re.compile(r"nonce=\"[^\"]+\"|TEST\d{8}|'nonce-[^']+'")
        assert strip.sub("", found.text) == strip.sub("", unknown.text)
        done = await send(browser, "/consents/record", {**number_of(patient), "nothing": "1"})
    assert (await latest(owner, id_in(done)))["tenant"] == "hospital-b"
    assert await world.open_cards() == 0


async def test_who_has_no_such_role_gets_a_403_and_a_machine_the_way_to_sign_in(
    world: World,
) -> None:
    pages = ("/consents", "/holds", "/break-glass")
    may = {
        "nurse-a": (200, 403, 403),
        "hospital-cm": (200, 200, 200),
        "privacy": (200, 200, 403),
        "physician": (403, 403, 200),
        "ops": (403, 403, 403),
    }
    for person, expected in may.items():
        async with world.home.signed_in(person) as browser:
            got = tuple([(await browser.get(path)).status_code for path in pages])
        assert got == expected, person
    async with world.home.browser() as browser:
        for path in pages:
            answer = await browser.get(path, headers={"Authorization": "Bearer TEST"})
            assert answer.status_code == 303


# Holds (CS-36)

ODD = {**PERMIT_CLINIC_A, "modifierExtension": [{"url": "https://example.ca/x", "valueCode": "x"}]}


async def the_hold(world: World, browser: httpx.AsyncClient) -> tuple[Any, httpx.Response]:
    (item,) = await world.work()
    return item, await browser.get(f"/holds/{item.id}")


async def test_holds_are_listed_oldest_first_to_the_officer_and_the_custodians_case_manager(
    world: World,
) -> None:
    first, second = await world.flagged(), await world.flagged()
    await world.notify.consent(second, ODD, id_="TEST-2")
    world.notify.now += timedelta(hours=25)
    await world.notify.consent(first, ODD, id_="TEST-1")
    items = await world.work()
    for person, count in (("privacy", 2), ("hospital-cm", 2), ("hospital-cm-b", 0)):
        async with world.home.signed_in(person) as browser:
            page = await browser.get("/holds")
            listed = re.findall(r'href="/holds/([0-9a-f-]{36})"', page.text)
            status = (await browser.get(f"/holds/{items[0].id}")).status_code
        assert listed == [str(item.id) for item in items][:count], person
        assert status == (200 if count else 404), person
    assert page.text.count("Attend depuis trop longtemps") == 0
    async with world.home.signed_in("privacy") as browser:
        assert (await browser.get("/holds")).text.count("Attend depuis trop longtemps") == 1


async def test_what_is_not_computable_is_replaced_by_what_the_person_meant(
    world: World, owner: asyncpg.Connection
) -> None:
    """No button releases: the same Consent gets another version."""
    patient = await world.flagged()
    await world.notify.consent(patient, ODD)
    assert await world.open_cards() == 0
    async with world.home.signed_in("hospital-cm") as browser:
        item, page = await the_hold(world, browser)
        assert "dit une chose qu'aucune règle ne peut trancher" in plain(page).replace("&#39;", "'")
        hidden = {
            "key": str(patient),
            "replaces": "TEST-c1",
            "version": "1",
            "item": str(item.id),
        }
        asked = await send(browser, "/consents", hidden)
        assert "Remplacer un consentement" in asked.text
        form = {**hidden, **RESTRICT, "effect": "permit", "whom": ["Organization/clinic-a"]}
        done = await send(browser, "/consents/record", form)
        assert done.headers["location"] == f"/holds/{item.id}?done"
        after = await browser.get(done.headers["location"])
    assert "l'attente est close" in plain(after).replace("&#39;", "'")
    assert await world.work() == []
    assert await world.open_cards() == 1
    versions = await owner.fetch("select version from notify.consent where id = 'TEST-c1'")
    assert len(versions) == 2


async def test_a_refused_consent_is_read_and_set_aside_with_a_reason(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-57: its hold ends with a recorded dismissal, of 20 characters at least."""
    patient = await world.flagged()
    bad = consent(patient, DENY_CLINIC_A, status="SENT-WRONG")
    trail = Trail(world.notify.now, "hospital-a", "client", tenant="hospital-a")
    capture = Capture(bad, "hospital-a", "hospital-a", "TEST-c1")
    notify = world.notify
    with pytest.raises(intake.InvalidConsent):
        await intake.take_consent(notify.db, notify.house, capture, trail, notify.now)
    assert await world.open_cards() == 0
    async with world.home.signed_in("hospital-cm") as browser:
        item, page = await the_hold(world, browser)
        assert "Consent.status" in page.text
        assert "SENT-WRONG" in page.text
        refused = re.search(r'name="refused" value="([^"]+)"', page.text)
        assert refused is not None
        at, form = f"/holds/{item.id}", {"refused": refused[1]}
        short = await send(browser, f"{at}/dismiss", {**form, "why": "Trop court"}, at)
        assert short.status_code == 422
        assert "Trop court" in short.text
        why = "Doublon d'un consentement retiré, vérifié au dossier papier."
        done = await send(browser, f"{at}/dismiss", {**form, "why": why}, at)
        after = await browser.get(done.headers["location"])
    assert "par Sacha Test" in plain(after)
    assert await world.open_cards() == 1
    (row,) = await owner.fetch("select * from notify.refused_consent")
    assert (row["resolution"], row["resolved_by"]) == ("dismissed", "hospital-cm")
    assert "Doublon" not in str(row)
    (closed,) = await owner.fetch("select * from notify.work_item")
    assert (closed["closed_by"], closed["outcome"]) == ("hospital-cm", "dismissed")


async def test_visits_that_were_not_assessed_are_labelled_by_a_person(world: World) -> None:
    patient = await world.flagged()
    sdv = {"system": build.TERMS + "v3-ActCode", "code": "SDV"}
    await world.notify.consent(patient, {"type": "deny", "securityLabel": [sdv]})
    visits = [build.ed_visit(n, labels=None) for n in (1, 40)] + build.four_visits()[2:]
    await world.notify.hear(build.flag(patient, 2, visits))
    assert await world.open_cards() == 0
    async with world.home.signed_in("hospital-cm") as browser:
        item, page = await the_hold(world, browser)
        at = f"/holds/{item.id}"
        asked = re.findall(r'name="encounter" value="([^"]+)"', page.text)
        assert len(asked) == 2
        empty = await send(browser, f"{at}/assess", {"encounter": asked[0]}, at)
        assert empty.status_code == 422
        for encounter in asked:
            form = {"encounter": encounter, "none": "yes"}
            assert (await send(browser, f"{at}/assess", form, at)).status_code == 303
    assert await world.work() == []
    assert await world.open_cards() == 1


async def test_a_visit_that_a_person_finds_sensitive_stays_back(world: World) -> None:
    patient = await world.flagged()
    sdv = {"system": build.TERMS + "v3-ActCode", "code": "SDV"}
    await world.notify.consent(patient, {"type": "deny", "securityLabel": [sdv]})
    visits = [build.ed_visit(1, labels=None), *build.four_visits()[1:]]
    await world.notify.hear(build.flag(patient, 2, visits))
    async with world.home.signed_in("privacy") as browser:
        item, page = await the_hold(world, browser)
        (encounter,) = re.findall(r'name="encounter" value="([^"]+)"', page.text)
        form = {"encounter": encounter, "labels": ["SDV"]}
        await send(browser, f"/holds/{item.id}/assess", form, f"/holds/{item.id}")
    assert await world.work() == []
    assert await world.open_cards() == 0


async def test_the_old_restriction_of_a_conflict_is_withdrawn_and_nothing_else_ends_it(
    world: World,
) -> None:
    """CS-31."""
    patient = await world.flagged()
    await world.notify.consent(patient, DENY_CLINIC_A, id_="TEST-old", dateTime="2025-03-01")
    await world.notify.consent(patient, PERMIT_CLINIC_A, id_="TEST-new", dateTime="2026-02-01")
    async with world.home.signed_in("hospital-cm") as browser:
        item, page = await the_hold(world, browser)
        assert item.reason == "conflict"
        assert "/consents/TEST-old/withdraw" in page.text
        form = {"version": "1", "item": str(item.id)}
        done = await send(browser, "/consents/TEST-old/withdraw", form, f"/holds/{item.id}")
        after = await browser.get(done.headers["location"])
    assert "par Sacha Test" in plain(after)
    assert await world.open_cards() == 1


async def test_whose_a_consent_is_after_an_unmerge_a_person_says(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-53."""
    one, other = await world.flagged(), await world.flagged()
    async with world.notify.db.work() as tx:
        event = PatientMerged(surviving=one, retired=other, version=1, recorded=world.notify.now)
        await flow.on_patients_merged([event], world.notify.turn(tx))
    world.notify.now += timedelta(hours=1)
    await world.notify.consent(one, DENY_CLINIC_A)
    async with world.notify.db.work() as tx:
        undone = PatientUnmerged(surviving=one, retired=other, version=2, recorded=world.notify.now)
        await flow.on_patients_unmerged([undone], world.notify.turn(tx))
    items = await world.work()
    assert {item.reason for item in items} == {"disputed"}
    assert await world.open_cards() == 0
    async with world.home.signed_in("privacy") as browser:
        at = f"/holds/{items[0].id}"
        page = await browser.get(at)
        assert str(one) in page.text
        assert str(other) in page.text
        form = {"consent": "TEST-c1", "version": "1"}
        nobody = await send(browser, f"{at}/assign", {**form, "patient": str(uuid4())}, at)
        assert nobody.status_code == 404
        done = await send(browser, f"{at}/assign", {**form, "patient": str(other)}, at)
        assert done.status_code == 303
    assert await world.work() == []
    (card,) = [c for c in await world.notify.cards() if c.is_open]
    assert card.patient == one
    kept = await latest(owner, "TEST-c1")
    assert kept["patient"] == {"reference": f"Patient/{other}"}


# Emergency access (CS-55)

BTG = {"system": build.TERMS + "v3-ActReason", "code": "BTG"}
PERMIT_BTG = {"type": "permit", "purpose": [BTG], "actor": [actor("Practitioner/physician")]}
COMPLETE = {
    "ground": "risk-to-life",
    "cannot_ask": "yes",
    "why": "Inconsciente à l'urgence, aucun proche joignable.",
}


async def break_glass(browser: httpx.AsyncClient, patient: UUID, **changed: str) -> httpx.Response:
    form = {**number_of(patient), **COMPLETE, **changed}
    return await send(browser, "/break-glass", form, "/break-glass")


async def test_a_consent_that_permits_it_opens_one_patient_to_one_person_for_an_hour(
    world: World, owner: asyncpg.Connection
) -> None:
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    async with world.home.signed_in("physician") as browser:
        done = await break_glass(browser, patient)
        assert done.status_code == 303, plain(done)
        at = done.headers["location"]
        assert build.number(patient) not in at
        assert str(patient) not in at
        page = await browser.get(at)
        assert page.status_code == 200
        assert "Fictif, Zoé" in page.text
        assert page.text.count("Hôpital fictif A") >= 4
        assert "<form" not in page.text.partition("<main")[2].partition("</main>")[0]
        world.notify.now += timedelta(minutes=61)
        assert (await browser.get(at)).status_code == 404
        world.notify.now -= timedelta(minutes=61)
    async with world.home.signed_in("hospital-cm") as browser:
        assert (await browser.get(at)).status_code == 404
    (item,) = await world.work()
    assert (item.reason, item.patient, item.sites) == ("override", patient, [])
    rows = await owner.fetch(
        "select shape, purpose, reasons, reader from notify.audit"
        " where agent = 'physician' and purpose = 'BTG' and patient is not null order by position"
    )
    shapes = [row["shape"] for row in rows]
    assert shapes.count("AuthZ-Consent") >= 2  # the override itself, and each view of it
    assert shapes.count("PatientRead") >= 2
    assert all("risk-to-life" in row["reasons"] for row in rows)
    (kept,) = await owner.fetch("select * from notify.override")
    assert "Inconsciente" not in str(kept)
    assert (kept["opened_by"], kept["basis"]) == ("consent", ["Consent/TEST-c1/_history/1"])


async def test_what_opened_it_is_asked_again_at_each_view(world: World) -> None:
    """CS-50: a withdrawal ends it at once."""
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    async with world.home.signed_in("physician") as browser:
        at = (await break_glass(browser, patient)).headers["location"]
        assert (await browser.get(at)).status_code == 200
        await world.notify.consent(patient, PERMIT_BTG, status="inactive")
        assert (await browser.get(at)).status_code == 404


async def test_an_opening_is_its_persons_alone_though_another_may_open_one_too(
    world: World,
) -> None:
    patient = await world.flagged()
    await world.notify.consent(patient, {"type": "permit", "purpose": [BTG]})
    async with (
        world.home.signed_in("physician") as doctor,
        world.home.signed_in("hospital-cm") as manager,
    ):
        at = (await break_glass(doctor, patient)).headers["location"]
        assert (await manager.get(at)).status_code == 404
        own = await break_glass(manager, patient)
        assert (await manager.get(own.headers["location"])).status_code == 200


async def test_silence_opens_nothing_and_an_unknown_number_looks_the_same(
    world: World, owner: asyncpg.Connection
) -> None:
    """CS-55: never by default; CS-42. Both are recorded, and reviewed."""
    patient = await world.flagged()  # implied consent, in the circle of care: still nothing
    pages = []
    async with world.home.signed_in("physician") as browser:
        for one in (patient, uuid4()):
            answer = await break_glass(browser, one)
            assert answer.status_code == 403
            pages.append(re.sub(r"nonce=\"[^\"]+\"|TEST\d{8}", "", answer.text))
    assert pages[0] == pages[1]
    assert "Rien ne s" in pages[0]
    assert len(await world.work()) == 2
    assert await owner.fetchval("select count(*) from notify.override where ends is null") == 2


@pytest.mark.parametrize("on", [True, False])
async def test_a_hospitals_own_policy_opens_what_it_holds_and_is_off_unless_it_says_so(
    made: Making, owner: asyncpg.Connection, *, on: bool
) -> None:
    world: World = await made(region(overriding=on, notice=True))
    patient = await world.flagged()
    await world.notify.consent(patient, {"type": "deny"})
    async with world.home.signed_in("physician") as browser:
        answer = await break_glass(browser, patient)
        if not on:
            assert answer.status_code == 403
            return
        page = await browser.get(answer.headers["location"])
        assert page.status_code == 200
        assert "Ouvert par la politique de l&#39;hôpital" in page.text
    policies = await owner.fetch(
        "select policy from notify.audit where agent = 'physician' and purpose = 'BTG'"
        " and patient is not null"
    )
    assert {row["policy"] for row in policies} == {"override"}
    assert await owner.fetchval("select notice from notify.override") == "to-do"


async def test_an_incomplete_form_opens_nothing_and_keeps_what_was_entered(
    world: World, owner: asyncpg.Connection
) -> None:
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    async with world.home.signed_in("physician") as browser:
        for field, value in (
            ("ground", "because"),
            ("cannot_ask", ""),
            ("why", "Trop court."),
            ("why", " " * 40),
            ("number", " "),
            ("system", "https://elsewhere.example.org"),
        ):
            answer = await break_glass(browser, patient, **{field: value})
            assert answer.status_code == 422, (field, value)
            assert f'href="#{field}"' in answer.text, field
            if field != "number":
                assert f'value="{build.number(patient)}"' in answer.text
    assert await owner.fetchval("select count(*) from notify.override") == 0


async def test_who_signed_in_too_long_ago_signs_in_again_and_finds_what_they_wrote(
    world: World, owner: asyncpg.Connection
) -> None:
    """At the issuer, by OIDC: prompt=login, max_age=0; the ID token's auth_time is what counts."""
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    async with world.home.signed_in("physician") as browser:
        await age_session(owner, minutes=6)
        assert 'id="sign-in-again"' in (await browser.get("/break-glass")).text
        token = csrf(await browser.get("/consents", follow_redirects=True))
        form = {"csrf": token, **number_of(patient), **COMPLETE}
        answer = await browser.post("/break-glass", data=form)
        assert answer.status_code == 422
        assert 'id="again-error"' in answer.text
        assert await owner.fetchval("select count(*) from notify.override") == 0
        assert "Inconsciente" not in str(await owner.fetch("select * from notify.draft"))
        to_issuer = await browser.get("/sign-in", params={"to": "/break-glass", "again": "1"})
        asked = httpx.URL(to_issuer.headers["location"]).params
        assert (asked["prompt"], asked["max_age"]) == ("login", "0")
        shown = await browser.get(to_issuer.headers["location"])
        assert shown.status_code == 200  # signed on there or not, the persona is asked for
        back = await browser.post(
            f"{world.home.issuer}/authorize", data={**dict(asked), "persona": "physician"}
        )
        page = await browser.get(back.headers["location"], follow_redirects=True)
        assert "Inconsciente à l&#39;urgence" in page.text
        assert f'value="{build.number(patient)}"' in page.text
        assert (await break_glass(browser, patient)).status_code == 303
    assert await owner.fetchval("select count(*) from notify.draft") == 0


async def age_session(owner: asyncpg.Connection, minutes: int) -> None:
    """As if everybody had signed in that long ago: the ID token kept with each session says so."""
    for row in await owner.fetch("select id, id_token from notify.session"):
        head, body, signature = row["id_token"].split(".")
        claims = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        claims["auth_time"] = int(real_now().timestamp()) - minutes * 60
        said = base64.urlsafe_b64encode(orjson.dumps(claims)).rstrip(b"=").decode()
        await owner.execute(
            "update notify.session set id_token = $1 where id = $2",
            f"{head}.{said}.{signature}",
            row["id"],
        )


async def test_the_officer_reviews_each_and_one_that_was_not_justified_is_over(
    made: Making,
) -> None:
    world: World = await made(region(notice=True))
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    async with (
        world.home.signed_in("physician") as doctor,
        world.home.signed_in("privacy") as officer,
    ):
        at = (await break_glass(doctor, patient)).headers["location"]
        (item,) = await world.work()
        hold = f"/holds/{item.id}"
        page = await officer.get(hold)
        assert "Inconsciente à l&#39;urgence" in page.text
        assert "Dre Fictive" in page.text
        wrong = await send(officer, f"{hold}/review", {"why": "court"}, hold)
        assert wrong.status_code == 422
        form = {"verdict": "not-justified", "why": "La personne était consciente et joignable."}
        assert (await send(officer, f"{hold}/review", form, hold)).status_code == 303
        assert (await doctor.get(at)).status_code == 404
        assert len(await world.work()) == 1  # the person is still to be told
        assert (await send(officer, f"{hold}/told", {}, hold)).status_code == 303
        assert await world.work() == []
    async with world.home.signed_in("hospital-cm") as browser:
        assert (await browser.get(hold)).status_code == 404  # the officer's alone


async def test_a_permit_for_emergencies_alone_makes_no_card_and_no_page(made: Making) -> None:
    """CS-55: never by push, retry or default; the purpose is the server's."""
    world: World = await made(region(default="opt-in"))
    patient = await world.flagged()
    await world.notify.consent(patient, PERMIT_BTG)
    assert await world.notify.cards() == []
    told = await world.notify.told(patient)
    assert told.view is None
    async with world.home.signed_in("nurse-a") as browser:
        assert "Fictif" not in (await browser.get("/my-list?purpose=BTG")).text


# Seen


@pytest.mark.browser
@pytest.mark.parametrize("language", ["fr", "en"])
async def test_each_page_fits_and_passes_axe(  # noqa: PLR0915 - one walk past every page
    made: Making, browser: Browser, complaints: list[str], language: str
) -> None:
    """NW-50, NW-90: in Chromium, at two widths, after a real sign-in."""
    world: World = await made(region(overriding=True, notice=True))
    patient = await world.flagged()
    await world.notify.consent(patient, ODD, id_="TEST-odd")
    sdv = {"system": build.TERMS + "v3-ActCode", "code": "SDV"}
    second = await world.flagged()
    await world.notify.consent(second, {"type": "deny", "securityLabel": [sdv]}, id_="TEST-sdv")
    visits = [build.ed_visit(n, labels=None) for n in (1, 40)] + build.four_visits()[2:]
    await world.notify.hear(build.flag(second, 2, visits))
    ARTIFACTS.mkdir(exist_ok=True)
    context = await browser.new_context(locale=f"{language}-CA")
    page = await context.new_page()
    listen(page, complaints, but=["the server responded with a status of"])

    async def look(name: str) -> None:
        await page.evaluate(AXE)
        for width in (1280, 320):
            await page.set_viewport_size({"width": width, "height": 900})
            picture = ARTIFACTS / f"{name}-{language}-{width}.png"
            await page.screenshot(path=picture, full_page=True)
            assert await page.evaluate(WIDER) == [], (name, width)
            assert await page.evaluate(RUN_AXE, TAGS) == [], (name, width)
        await page.set_viewport_size({"width": 1280, "height": 900})

    async def sign_in(person: str) -> None:
        await page.goto(world.home.url)
        await page.click("#sign-in")
        await page.click(f'button[name="persona"][value="{person}"]')
        if await page.get_attribute("html", "lang") != language:
            await page.click(f"#language-{language}")

    await sign_in("hospital-cm")
    await page.goto(f"{world.home.url}/consents")
    await page.fill("#number", build.number(patient))
    await page.click("#find")
    await look("consents")
    await page.check("#effect-permit")
    await page.click("#save")
    await look("consents-422")
    await page.click("#nothing")
    await look("consent")
    await page.goto(f"{world.home.url}/holds")
    await look("holds")
    for number, item in enumerate(await world.work()):
        await page.goto(f"{world.home.url}/holds/{item.id}")
        await look(f"hold-{number}")
    await page.goto(f"{world.home.url}/break-glass")
    await page.click("#open")
    await look("glass-422")
    await page.fill("#number", build.number(second))
    await page.check("#ground-risk-to-life")
    await page.check("#cannot_ask")
    await page.fill("#why", "Inconsciente à l'urgence, aucun proche joignable.")
    await page.click("#open")
    await look("behind")
    await page.click("#sign-out")
    await sign_in("privacy")
    item = next(item for item in await world.work() if item.reason == "override")
    await page.goto(f"{world.home.url}/holds/{item.id}")
    await look("review")
    assert complaints == []
    await context.close()
