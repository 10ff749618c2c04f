"""Who sees what of notify's tables, and that no withdrawal is overtaken (CS-42, CS-50, CS-91)."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.notify import flow, looking, store, tables
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent
from tests.services.test_notify_api import DENY_A, FHIR, PERMIT_A, flagged, hear

OURS = frozenset(tables.metadata.tables) | {
    "patient",
    "token",
    "reach",
    "standing",
    "episode",
    "panel_report",
    "consent",
    "clinic_clock",
    "unroutable",
    "due",
    "directory",
    "site",
    "refused_consent",
    "work_item",
    "assessment",
    "override",
    "draft",
}
NOT_A_CLINICS = frozenset({"site"})
"""When hospitals were heard from is on every page (NW-30), and about nobody."""

OF_A_CLINIC = ("card", "card_version", "flag", "panel", "panel_report", "clinic_clock")
"""No hospital's request sees a row of these."""


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Doorway]:
    made = Doorway(db("notify"), build.house())
    yield made
    await made.close()


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


async def test_every_table_has_forced_row_security(owner: asyncpg.Connection) -> None:
    """CS-91, CS-92."""
    rows = await owner.fetch(
        "select relname, relrowsecurity and relforcerowsecurity as forced,"
        " pg_get_userbyid(relowner) as owner from pg_class"
        " where relnamespace = 'notify'::regnamespace and relkind = 'r'"
    )
    forced = {row["relname"] for row in rows if row["forced"]}
    assert forced >= OURS
    assert {row["owner"] for row in rows} == {"passerelle_owner"}


@pytest.mark.parametrize("tenant", ["clinic-b", "hospital-z", "", "clinic-a' or '1'='1"])
async def test_a_request_of_another_tenant_sees_no_row_whatever_it_asks(
    door: Doorway, tenant: str
) -> None:
    """CS-92: the same statements, without the application's own check."""
    p = await flagged(door)
    emr = door.client("clinic-a-emr")
    assert (await emr.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)).is_success
    for table in sorted(OURS - NOT_A_CLINICS):
        async with door.db.request(tenant) as tx:
            try:
                seen = (await tx.execute(text(f"select count(*) from {table}"))).scalar_one()
            except DBAPIError:
                continue  # not granted at all
        assert seen == 0, table


async def test_a_hospital_reaches_whom_it_saw_and_nothing_of_a_clinic(door: Doorway) -> None:
    """CS-04, CT-17: who corrects a count sees the hospital's own patients, as consent allows."""
    await flagged(door)
    seen = {}
    for table in (*OF_A_CLINIC, "reach"):
        async with door.db.request("hospital-a") as tx:
            seen[table] = await tx.scalar(text(f"select count(*) from {table}"))
    assert seen == {**dict.fromkeys(OF_A_CLINIC, 0), "reach": 1}


async def test_a_clinics_own_request_does_see_its_rows(door: Doorway) -> None:
    """So that the test above could fail."""
    await flagged(door)
    for table in ("patient", "token", "reach", "standing", "panel", "card", "flag"):
        async with door.db.request("clinic-a") as tx:
            seen = (await tx.execute(text(f"select count(*) from {table}"))).scalar_one()
        assert seen > 0, table


async def test_a_request_cannot_write_for_another_tenant(door: Doorway) -> None:
    await flagged(door)
    async with door.db.request("clinic-b") as tx:
        changed = await tx.execute(text("update card set status = 'completed'"))
        assert changed.rowcount == 0
    for statement in (
        "insert into clinic_clock (clinic, last) values ('clinic-a', now())",
        "insert into panel_report (id, clinic, at, mode, dry_run, file, report)"
        " values (gen_random_uuid(), 'clinic-a', now(), 'delta', true, '', '{}')",
    ):
        with pytest.raises(DBAPIError):
            async with door.db.request("clinic-b") as tx:
                await tx.execute(text(statement))


async def test_refusals_are_the_privacy_officers_alone(door: Doorway) -> None:
    """CS-42: a clinic cannot tell that something was withheld from it."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    await hospital.post("/fhir/Consent", json=consent(p, DENY_A), headers=FHIR)
    async with door.db.request("clinic-a", "client") as tx:
        assert (await store.refusals(tx, None)) == []
        told = text("select count(*) from audit where shape like 'AuthZ-%'")
        assert (await tx.execute(told)).scalar_one() == 0
    async with door.db.request("", "privacy") as tx:
        (refusal,) = await store.refusals(tx, None)
    assert (refusal.outcome, refusal.reasons, refusal.patient) == ("withhold", ["restricted"], p)


async def test_sealed_demographics_and_consents_lie_sealed(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    """No name, card number or birth date is in any column of any table in clear."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    await hospital.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)
    named = await owner.fetch(
        "select relname from pg_class where relnamespace = 'notify'::regnamespace and relkind='r'"
    )
    for row in named:
        found = await owner.fetch(f"select t::text as said from notify.{row['relname']} t")
        for line in found:
            for canary in ("Fictif", build.number(p), "1950-02-03"):
                assert canary not in line["said"], row["relname"]


async def test_no_read_discloses_after_a_withdrawal_was_acknowledged(door: Doorway) -> None:
    """CS-50: random interleavings of reads, permits and withdrawals of several patients."""
    chance = random.Random(20260302)
    people = [await flagged(door) for _ in range(3)]
    hospital, emr = door.client("hospital-a"), door.client("clinic-a-emr")
    permitted = dict.fromkeys(people, True)
    changing = {p: asyncio.Lock() for p in people}
    wrong: list[str] = []

    async def change(p: UUID) -> None:
        async with changing[p]:
            deny = chance.random() < 0.5
            if deny:
                answer = await put(hospital, p, DENY_A)
                permitted[p] = False
            else:
                permitted[p] = True
                answer = await put(hospital, p, PERMIT_A)
            assert answer.is_success, answer.text

    async def read() -> None:
        closed = {p for p in people if not permitted[p] and not changing[p].locked()}
        answer = await emr.get("/fhir/Task")
        still = {p for p in closed if not permitted[p] and not changing[p].locked()}
        for entry in answer.json().get("entry", []):
            about = entry["resource"].get("for", {}).get("reference", "")
            if about and UUID(about.removeprefix("Patient/")) in still:
                wrong.append(about)

    for _ in range(25):
        steps = [change(chance.choice(people)) for _ in range(2)] + [read() for _ in range(2)]
        chance.shuffle(steps)
        await asyncio.gather(*steps)
    assert wrong == []


async def put(hospital: Any, p: UUID, provision: dict[str, Any]) -> Any:
    id_ = f"TEST-{p}"
    body = consent(p, provision, id=id_)
    known = await hospital.get(f"/fhir/Consent/{id_}")
    guard = {"If-Match": known.headers["ETag"]} if known.is_success else {}
    return await hospital.put(f"/fhir/Consent/{id_}", json=body, headers=FHIR | guard)


async def test_a_consent_waits_for_who_is_deciding_and_a_decision_for_who_is_changing(
    door: Doorway,
) -> None:
    p = await flagged(door)
    hospital = door.client("hospital-a")
    async with door.db.request("clinic-a") as tx:
        sight = await looking.look(tx, door.house, "clinic-a", door.now)
        assert len(sight.tasks()) == 1
        writing = asyncio.create_task(put(hospital, p, DENY_A))
        done, _ = await asyncio.wait([writing], timeout=0.5)
        assert not done  # it is acknowledged only after this answer is committed
    assert (await writing).status_code == 201


async def test_what_is_late_because_the_calendar_moved_is_not_shown_meanwhile(
    door: Doorway,
) -> None:
    """CS-51: between the end of a period and the sweep, each read decides for itself."""
    p = await flagged(door)
    hospital, emr = door.client("hospital-a"), door.client("clinic-a-emr")
    deny_later = {**DENY_A, "period": {"start": "2026-03-10"}}
    assert (await put(hospital, p, deny_later)).status_code == 201
    (task,) = (await emr.get("/fhir/Task")).json()["entry"]
    assert "for" in task["resource"]
    door.now = door.now + timedelta(days=9)
    (stub,) = (await emr.get("/fhir/Task")).json()["entry"]
    assert "for" not in stub["resource"]
    async with door.db.work() as tx:
        assert await flow.sweep(build.turn(tx, door.house, door.now)) == 1
    (later,) = (await emr.get("/fhir/Task")).json()["entry"]
    assert int(later["resource"]["meta"]["versionId"]) > int(task["resource"]["meta"]["versionId"])


async def test_an_unknown_patient_and_a_withheld_one_look_the_same_to_a_search(
    door: Doorway,
) -> None:
    p = await flagged(door)
    await put(door.client("hospital-a"), p, DENY_A)
    emr = door.client("clinic-a-emr")
    withheld = await emr.get(f"/fhir/Task?patient={p}")
    unknown = await emr.get(f"/fhir/Task?patient={uuid4()}")

    def without_links(answer: Any) -> Any:
        return {name: value for name, value in answer.json().items() if name != "link"}

    assert without_links(withheld) == without_links(unknown)
    await hear(door, build.flag(p, 2, [*build.four_visits(), build.ed_visit(3)]))
    assert (await emr.get("/fhir/Flag")).json()["total"] == 0


async def test_columns_named_in_tables_are_those_of_the_database(
    owner: asyncpg.Connection,
) -> None:
    """tables.py is written by hand; so are the migrations."""
    for table in tables.metadata.tables.values():
        rows = await owner.fetch(
            "select attname from pg_attribute where attrelid = $1::regclass and attnum > 0"
            " and not attisdropped",
            f"notify.{table.name}",
        )
        assert {row["attname"] for row in rows} == set(table.c.keys()), table.name
