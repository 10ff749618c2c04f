"""How much of a visit goes out, where, and what is on record of it (CS-44, CS-45, CS-114)."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from schemas.encounter_recorded_v1 import Disposition
from schemas.flag_changed_v1 import Item
from services.notify.fhir import DISPOSITION, REASON, SUMMARY
from services.notify.web.desk import NotifyDesk
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import CSV, FHIR, PERMIT_A, hear, is_valid, tasks
from tests.services.test_notify_delivery import staged
from tests.web.house import house

CLASSES = "http://hl7.org/fhir/resource-types"


def classes(*names: str) -> dict[str, Any]:
    return {"class": [{"system": CLASSES, "code": name} for name in names]}


def visits(**more: Any) -> list[Item]:
    """Four, of which the newest is as `more` says; all assessed, with a reason and an end."""
    said = {
        "codes": build.diagnosis("J44.1"),
        "disposition": Disposition.HOME,
        "labels": (),
    }
    days = (1, 40, 120, 300)
    return [build.ed_visit(d, **{**said, **(more if d == 1 else {})}) for d in days]


def region(agreed: str | None = None, **more: Any) -> Any:
    """Hospital B is one whose name alone would tell."""
    made = build.region(**more).model_dump()
    made["sites"][1]["sensitive"] = True
    made["clinics"][0]["agreed_level"] = agreed
    return type(build.region()).model_validate(made)


Open = Callable[..., Doorway]


@pytest.fixture
async def opened(db: Callable[[str], Database]) -> AsyncIterator[Open]:
    doors: list[Doorway] = []

    def of(at: Any = None) -> Doorway:
        doors.append(Doorway(db("notify"), build.house(at or region()), resolved=("127.0.0.1",)))
        return doors[-1]

    yield of
    for door in doors:
        await door.close()


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


async def told(
    door: Doorway, provision: dict[str, Any] | None, items: list[Item] | None = None
) -> UUID:
    """A flagged patient of clinic A, with that Consent."""
    p = uuid4()
    await hear(door, build.identified(p))
    await door.client("clinic-a-emr").post("/panel?dry_run=false", content=panel(p), headers=CSV)
    if provision is not None:
        await permit(door, p, provision)
    await hear(door, build.flag(p, visits=visits() if items is None else items))
    return p


async def permit(door: Doorway, p: UUID, provision: dict[str, Any]) -> None:
    body, url = consent(p, provision, id=f"TEST-{p}"), f"/fhir/Consent/TEST-{p}"
    hospital = door.client("hospital-a")
    known = await hospital.get(url)
    guard = {"If-Match": known.headers["etag"]} if known.is_success else {}
    answer = await hospital.put(url, json=body, headers={**FHIR, **guard})
    assert answer.is_success, answer.text


async def shown(door: Doorway) -> list[dict[str, Any]]:
    """What the one Task says of each visit: reason, disposition, summary; newest first."""
    (task,) = await tasks(door.client("clinic-a-emr"))
    assert is_valid(task)
    found = []
    for said in task["input"]:
        if said["type"]["coding"][0]["code"] in {"counted", "excluded"}:
            reference = said["valueReference"]
            more = {e["url"]: e for e in reference.get("extension", [])}
            found.append(
                {
                    "place": reference["display"].partition(", ")[2],
                    "reason": [
                        c["code"]
                        for c in more.get(REASON, {})
                        .get("valueCodeableConcept", {})
                        .get("coding", [])
                    ],
                    "ended": more.get(DISPOSITION, {}).get("valueCode"),
                    "summary": SUMMARY in more,
                }
            )
    return found


FACT: dict[str, Any] = {"place": "Hôpital fictif A", "reason": [], "ended": None, "summary": False}
REASONED = {**FACT, "reason": ["J44.1"], "ended": "home"}
DOCUMENTED = {**REASONED, "summary": True}


@pytest.mark.parametrize(
    ("agreed", "provision", "of_each"),
    [
        (None, None, FACT),
        ("L3", None, FACT),
        (None, PERMIT_A, REASONED),
        ("L3", PERMIT_A, DOCUMENTED),
        ("L3", {**PERMIT_A, **classes("Encounter", "Condition")}, REASONED),
        ("L3", {**PERMIT_A, **classes("Encounter")}, FACT),
        ("L3", {**PERMIT_A, **classes("Encounter", "DocumentReference")}, FACT),
    ],
)
async def test_a_task_tells_of_a_visit_as_far_as_permit_and_ceiling_reach(
    opened: Open, agreed: str | None, provision: dict[str, Any] | None, of_each: dict[str, Any]
) -> None:
    """CS-45: no level without the ones below it."""
    door = opened(region(agreed))
    await told(door, provision)
    assert await shown(door) == [of_each] * 4


@pytest.mark.parametrize(
    ("setting", "provision", "of_each"),
    [
        ({"implied_level": "L2"}, None, REASONED),
        ({"explicit_level": "L1"}, PERMIT_A, FACT),
    ],
)
async def test_the_region_sets_how_far_silence_and_a_permit_reach(
    opened: Open,
    setting: dict[str, str],
    provision: dict[str, Any] | None,
    of_each: dict[str, Any],
) -> None:
    at = region()
    said = at.consent.model_copy(update=setting)
    door = opened(at.model_copy(update={"consent": said}))
    await told(door, provision)
    assert await shown(door) == [of_each] * 4


@pytest.mark.parametrize("labels", [None, build.label("SEX")])
async def test_a_visit_that_is_sensitive_or_not_assessed_stays_at_the_fact(
    opened: Open, labels: Any
) -> None:
    """CS-45; the others are shown as far as the permit reaches."""
    door = opened(region("L3"))
    await told(door, PERMIT_A, visits(labels=labels))
    assert await shown(door) == [FACT, DOCUMENTED, DOCUMENTED, DOCUMENTED]


async def test_a_diagnosis_makes_its_visit_sensitive_whatever_the_sender_said(opened: Open) -> None:
    """CS-59: labelled again at use."""
    door = opened()
    await told(door, PERMIT_A, visits(codes=build.diagnosis("F32.1")))
    assert await shown(door) == [FACT, REASONED, REASONED, REASONED]


async def test_a_permit_that_names_the_label_opens_the_visit(opened: Open) -> None:
    sex = [{"system": build.TERMS + "v3-ActCode", "code": "SEX"}]
    normal = [{"system": build.TERMS + "v3-Confidentiality", "code": "N"}]
    door = opened()
    await told(
        door, {**PERMIT_A, "securityLabel": [*sex, *normal]}, visits(labels=build.label("SEX"))
    )
    assert await shown(door) == [REASONED] * 4


@pytest.mark.parametrize(
    ("provision", "labels", "place"),
    [
        (None, (), "Un hôpital"),
        (PERMIT_A, (), "Hospital B"),
        (PERMIT_A, None, "Un hôpital"),
        (PERMIT_A, build.label("SEX"), "Un hôpital"),
    ],
)
async def test_a_hospital_whose_name_would_tell_is_named_by_explicit_permit_alone(
    opened: Open, provision: dict[str, Any] | None, labels: Any, place: str
) -> None:
    """CS-45."""
    door = opened()
    await told(door, provision, visits(site="hospital-b", labels=labels))
    newest, *others = await shown(door)
    assert newest["place"] == {"Hospital B": "Hôpital fictif B"}.get(place, place)
    assert {one["place"] for one in others} == {"Hôpital fictif A"}
    (task,) = await tasks(door.client("clinic-a-emr"))
    if place == "Un hôpital":
        assert "hospital-b" not in str(task)
        assert "fictif B" not in str(task)


async def test_a_push_tells_no_more_than_a_read_and_both_are_on_record(
    opened: Open, owner: asyncpg.Connection
) -> None:
    """CA-03, CS-114: items, level, basis and policy of each disclosure."""
    door = opened(region("L3"))
    async with staged(door) as scene:
        emr = door.client("clinic-a-emr")
        await scene.subscribe(emr, content="full-resource")
        p = await told(door, PERMIT_A)
        await scene.rounds()
        (bundle,) = scene.endpoint.events
        (task,) = await tasks(emr)
        assert bundle["entry"][1]["resource"] == task
        await emr.get(f"/fhir/Task/{task['id']}")
        await emr.get(f"/fhir/Patient/{p}")
        rows = await owner.fetch(
            "select shape, items, level, basis, policy from notify.audit"
            " where patient = $1 and shape in ('PrivacyDisclosure.Source', 'PatientRead',"
            " 'PatientQuery') order by position",
            p,
        )
    assert [(r["shape"], r["level"]) for r in rows] == [
        ("PrivacyDisclosure.Source", "L3"),
        ("PatientQuery", "L3"),
        ("PatientRead", "L3"),
        ("PatientRead", "L1"),  # the Patient alone has no reason of a visit
    ]
    for row in rows:
        assert row["items"] == ["ed-visit:4", "hospital-stay:0"]
        assert row["basis"] == [f"Consent/TEST-{p}/_history/1"]
        assert row["policy"] == "core/implied"


async def test_a_notification_that_names_the_task_alone_is_on_record_as_that(
    opened: Open, owner: asyncpg.Connection
) -> None:
    async with staged(opened()) as scene:
        await scene.subscribe(scene.door.client("clinic-a-emr"))
        p = await told(scene.door, PERMIT_A)
        await scene.rounds()
        assert b"J44" not in scene.endpoint.got[-1][1]
        row = await owner.fetchrow(
            "select items, level from notify.audit where patient = $1"
            " and shape = 'PrivacyDisclosure.Source'",
            p,
        )
    assert row is not None
    assert (row["items"], row["level"]) == (["reference:1"], "L1")


async def test_a_card_that_tells_more_or_less_is_a_new_version(opened: Open) -> None:
    """CA-15: a poller that saw the old one sees the new one."""
    door = opened()
    p = await told(door, None)
    (before,) = await tasks(door.client("clinic-a-emr"))
    await permit(door, p, PERMIT_A)
    (opened_up,) = await tasks(door.client("clinic-a-emr"))
    assert await shown(door) == [REASONED] * 4
    await permit(door, p, {**PERMIT_A, **classes("Encounter")})
    (closed,) = await tasks(door.client("clinic-a-emr"))
    assert await shown(door) == [FACT] * 4
    versions = [int(task["meta"]["versionId"]) for task in (before, opened_up, closed)]
    assert versions == [1, 2, 3]
    seen = [task["meta"]["lastUpdated"] for task in (before, opened_up, closed)]
    assert seen == sorted(set(seen))


async def test_an_old_version_says_no_more_than_may_be_told_now(opened: Open) -> None:
    """CA-32: old versions too."""
    door = opened()
    p = await told(door, PERMIT_A)
    emr = door.client("clinic-a-emr")
    (task,) = await tasks(emr)
    await permit(door, p, {**PERMIT_A, **classes("Encounter")})
    old = (await emr.get(f"/fhir/Task/{task['id']}/_history/1")).json()
    assert "J44" in str(task)
    assert "J44" not in str(old)


async def test_the_page_says_reason_disposition_and_summary_in_both_languages(
    db: Callable[[str], Database], tmp_path: Path, opened: Open, owner: asyncpg.Connection
) -> None:
    """N2; the level stands in the strip and on record."""
    people = region("L3")
    door = opened(people)
    p = await told(door, PERMIT_A, visits(site="hospital-b"))
    desk = NotifyDesk(db=door.db, house=door.house, now=lambda: door.now)
    async with (
        house(db, desk, tmp_path, people=people) as home,
        home.signed_in("nurse-a") as browser,
    ):
        (task,) = await tasks(door.client("clinic-a-emr"))
        listed = (await browser.get("/my-list")).text
        french = (await browser.get(f"/cards/{task['id']}")).text
        token = french.partition('name="csrf" value="')[2].partition('"')[0]
        await browser.post("/language", data={"language": "en", "back": "/", "csrf": token})
        english = (await browser.get(f"/cards/{task['id']}")).text
    assert "J44.1" not in listed
    assert french.count("Motif\N{NO-BREAK SPACE}: J44.1 (CIM-10-CA)") == 4
    assert french.count("Retour à domicile") == 4
    assert french.count("Résumé de congé disponible") == 4
    assert "Hôpital fictif B" in french
    assert english.count("Reason: J44.1 (ICD-10-CA)") == 4
    assert english.count("Went home") == 4
    rows = await owner.fetch(
        "select level from notify.audit where patient = $1 and shape = 'PatientRead'"
        " and agent = 'nurse-a' order by position",
        p,
    )
    assert [row["level"] for row in rows] == ["L1", "L3", "L3"]


async def test_the_page_of_a_nurse_at_the_fact_has_no_reason(
    db: Callable[[str], Database], tmp_path: Path, opened: Open
) -> None:
    people = region("L3")
    door = opened(people)
    await told(door, None, visits(site="hospital-b"))
    desk = NotifyDesk(db=door.db, house=door.house, now=lambda: door.now)
    async with (
        house(db, desk, tmp_path, people=people) as home,
        home.signed_in("nurse-a") as browser,
    ):
        (task,) = await tasks(door.client("clinic-a-emr"))
        page = (await browser.get(f"/cards/{task['id']}")).text
        listed = (await browser.get("/my-list")).text
    assert "J44.1" not in page
    assert "Retour à domicile" not in page
    assert "Résumé de congé disponible" not in page
    assert "Un hôpital" in page
    why = page.partition('id="why"')[2].partition("</section>")[0]
    row = listed.partition("<table")[2].partition("</table>")[0]
    assert "Un hôpital" in row
    assert "fictif B" not in why + row  # the freshness of each hospital is not about a patient
