"""Consents at the clinics' door: every interaction, what is refused, and what a person must settle
(CS-31, CS-36, CS-53, CS-56 to CS-58, CA-21). Real PostgreSQL, real HTTP.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from services.notify import capability, flow, store, worklist
from services.notify.consent import Reason
from services.notify.holding import Why
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_builders import NOW
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import (
    CSV,
    DENY_A,
    FHIR,
    PERMIT_A,
    flagged,
    hear,
    is_valid,
    tasks,
)
from tests.services.test_notify_flow import actor

STRANGE = {"extension": [{"url": "https://example.ca/only-if", "valueString": "TEST"}]}
ODD = {**PERMIT_A, "modifierExtension": STRANGE["extension"]}
"""Legal R4 that no rule can decide."""


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


def bad(patient: UUID, **more: Any) -> dict[str, Any]:
    """No valid R4; its patient can be read."""
    return consent(patient, DENY_A, status="SECRET", **more)


async def post(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await client.post("/fhir/Consent", json=body, headers=FHIR)


async def put(
    client: httpx.AsyncClient, id_: str, body: dict[str, Any], seen: str | None = None
) -> httpx.Response:
    guard = {} if seen is None else {"If-Match": seen}
    said = {**body, "id": id_}
    return await client.put(f"/fhir/Consent/{id_}", json=said, headers=FHIR | guard)


async def work(door: Doorway) -> list[Any]:
    """Open work items, oldest first."""
    async with door.db.work() as tx:
        return list(await store.items(tx, 100))


async def reasons(door: Doorway) -> list[str]:
    return sorted(item.reason for item in await work(door))


# --- every interaction ------------------------------------------------------------------------


async def test_a_change_needs_the_version_that_was_seen(door: Doorway) -> None:
    """CA-21: If-Match or meta.versionId; none 400, stale 412, a repeat 200 also if stale."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    first = await put(hospital, "TEST-c1", consent(p, PERMIT_A))
    assert (first.status_code, first.headers["ETag"]) == (201, 'W/"1"')
    bare = await put(hospital, "TEST-c1", consent(p, DENY_A))
    assert bare.status_code == 400
    assert "If-Match" in bare.text
    changed = await put(hospital, "TEST-c1", consent(p, DENY_A), first.headers["ETag"])
    assert (changed.status_code, changed.headers["ETag"]) == (200, 'W/"2"')
    stale = await put(hospital, "TEST-c1", consent(p, PERMIT_A), first.headers["ETag"])
    assert stale.status_code == 412
    assert "current version is 2" in stale.text
    assert (await put(hospital, "TEST-c1", consent(p, DENY_A), 'W/"1"')).status_code == 200
    by_body = consent(p, PERMIT_A, meta={"versionId": "2"})
    assert (await put(hospital, "TEST-c1", by_body)).json()["meta"]["versionId"] == "3"
    stale = await put(hospital, "TEST-c1", consent(p, DENY_A, meta={"versionId": "2"}))
    assert stale.status_code == 412


async def test_an_update_makes_what_is_not_there_whatever_version_it_had_elsewhere(
    door: Doorway,
) -> None:
    p = await flagged(door)
    hospital = door.client("hospital-a")
    made = await put(hospital, "TEST-c1", consent(p, PERMIT_A, meta={"versionId": "7"}))
    assert (made.status_code, made.json()["meta"]["versionId"]) == (201, "1")
    absent = await put(hospital, "TEST-c2", consent(p, PERMIT_A), 'W/"1"')
    assert absent.status_code == 412


async def test_two_who_make_the_same_consent_at_once_make_one(door: Doorway) -> None:
    p = await flagged(door)
    hospital = door.client("hospital-a")
    answers = await asyncio.gather(
        *(put(hospital, "TEST-c1", consent(p, PERMIT_A)) for _ in range(4))
    )
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 201]


async def test_the_history_has_every_version_and_is_its_captors_alone(door: Doorway) -> None:
    """CS-56."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    first = await put(hospital, "TEST-c1", consent(p, PERMIT_A))
    await put(hospital, "TEST-c1", consent(p, DENY_A), first.headers["ETag"])
    answer = await hospital.get("/fhir/Consent/TEST-c1/_history")
    found = answer.json()
    assert is_valid(found)
    assert (found["type"], found["total"]) == ("history", 2)
    assert [e["resource"]["meta"]["versionId"] for e in found["entry"]] == ["2", "1"]
    assert [e["resource"]["provision"]["type"] for e in found["entry"]] == ["deny", "permit"]
    assert [e["response"]["status"] for e in found["entry"]] == ["200", "201"]
    for client in ("hospital-b", "clinic-a-emr"):
        for path in ("TEST-c1/_history", "none/_history"):
            answer = await door.client(client).get(f"/fhir/Consent/{path}")
            assert answer.status_code == 404, (client, path)


async def test_a_consent_is_found_by_patient_and_by_identifier_in_a_body_only(
    door: Doorway,
) -> None:
    """CA-11: no link carries the identifier. Also of a patient nobody knows yet."""
    p, other, unknown = await flagged(door), await flagged(door), uuid4()
    hospital = door.client("hospital-a")
    for about in (p, other, unknown):
        assert (await put(hospital, f"TEST-{about}", consent(about, PERMIT_A))).is_success
    for about in (p, unknown):
        form = {"patient:identifier": f"{build.CARD}|{build.number(about)}"}
        answer = await hospital.post("/fhir/Consent/_search", data=form)
        found = answer.json()
        assert [e["resource"]["id"] for e in found["entry"]] == [f"TEST-{about}"], answer.text
        assert "identifier" not in found["link"][0]["url"]
        assert build.number(about) not in found["link"][0]["url"]
    query = f"/fhir/Consent?patient:identifier={build.CARD}|{build.number(p)}"
    assert (await hospital.get(query)).status_code == 400
    emr = door.client("clinic-a-emr")
    own = await post(emr, consent(p, PERMIT_A))
    for query, count in (
        (f"patient={p}", 1),
        (f"patient=Patient/{other}", 0),
        ("status=active", 1),
        ("status=inactive", 0),
        (f"_id={own.json()['id']}", 1),
    ):
        assert (await emr.get(f"/fhir/Consent?{query}")).json()["total"] == count, query


async def test_the_statement_says_what_the_door_does(door: Doorway) -> None:
    """CA-83."""
    said = capability.capability(build.BASE, None)
    (offer,) = [r for r in said["rest"][0]["resource"] if r["type"] == "Consent"]
    assert {i["code"] for i in offer["interaction"]} == {
        "read", "vread", "history-instance", "update", "create", "search-type",
    }  # fmt: skip
    assert (offer["updateCreate"], offer["versioning"]) == (True, "versioned-update")


async def test_who_left_the_panel_may_still_withdraw_and_no_longer_permit(door: Doorway) -> None:
    """CS-56: for its own panel; what a clinic captured it may always take back."""
    p, rest = await flagged(door), [uuid4() for _ in range(9)]
    emr = door.client("clinic-a-emr")
    kept = await post(emr, consent(p, PERMIT_A))
    gone = panel(*rest)
    await emr.post("/panel?dry_run=false", content=panel(p, *rest), headers=CSV)
    await emr.post("/panel?mode=full&dry_run=false", content=gone, headers=CSV)
    id_ = kept.json()["id"]
    more = await put(emr, id_, consent(p, PERMIT_A, dateTime="2026-02-01"), kept.headers["ETag"])
    assert more.status_code == 403
    back = await put(emr, id_, consent(p, PERMIT_A, status="inactive"), kept.headers["ETag"])
    assert back.status_code == 200


async def test_every_write_and_read_is_on_record(door: Doorway, owner: asyncpg.Connection) -> None:
    """CS-110."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    kept = await put(hospital, "TEST-c1", consent(p, PERMIT_A))
    await put(hospital, "TEST-c1", consent(p, DENY_A), kept.headers["ETag"])
    await put(hospital, "TEST-c1", bad(p), 'W/"2"')
    for path in ("TEST-c1", "TEST-c1/_history/1", "TEST-c1/_history"):
        await hospital.get(f"/fhir/Consent/{path}")
    rows = await owner.fetch(
        "select interaction, entities[1] as entity, tenant from notify.audit"
        " where agent = 'hospital-a' and shape not like 'AuthZ-%' order by position"
    )
    assert [(r["interaction"], r["entity"].partition("/")[2]) for r in rows if r["entity"]] == [
        ("create", "TEST-c1/_history/1"),
        ("update", "TEST-c1/_history/2"),
        ("create", next(r["entity"] for r in rows if "refused" in (r["entity"] or ""))[8:]),
        ("read", "TEST-c1/_history/2"),
        ("vread", "TEST-c1/_history/1"),
        ("history-instance", "TEST-c1/_history"),
    ]
    assert {r["tenant"] for r in rows} == {"hospital-a"}


# --- attachments ------------------------------------------------------------------------------


def attached(size: int) -> dict[str, Any]:
    data = base64.b64encode(b"S" * size).decode()
    return {"contentType": "application/pdf", "title": "TEST", "data": data}


async def test_an_attachment_is_kept_sealed_and_never_sent_to_a_clinic(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    """CS-57."""
    p = await flagged(door)
    emr, hospital = door.client("clinic-a-emr"), door.client("hospital-a")
    sent = consent(p, PERMIT_A, sourceAttachment=attached(3000))
    own, theirs = await post(emr, sent), await post(hospital, sent)
    id_ = own.json()["id"]
    for path in (id_, f"{id_}/_history/1", f"{id_}/_history", ""):
        answer = await emr.get(f"/fhir/Consent/{path}".rstrip("/"))
        assert answer.status_code == 200
        assert "U1NT" not in answer.text, path
        assert "application/pdf" in answer.text, path
    read = (await hospital.get(f"/fhir/Consent/{theirs.json()['id']}")).json()
    assert read["sourceAttachment"]["data"] == sent["sourceAttachment"]["data"]
    assert "U1NT" not in str(await owner.fetch("select * from notify.consent"))
    written = own.json() | {"status": "inactive"}  # what it read, written back
    assert "data" not in written["sourceAttachment"]
    assert (await put(emr, id_, written)).status_code == 200
    (body,) = await owner.fetch("select * from notify.consent where id = $1 and version = 2", id_)
    text = build.SEALS.open(body["uid"], "consent", body["body_key_id"], body["body"])
    assert "U1NT" in text


async def test_an_attachment_has_512_kib_at_most(door: Doorway) -> None:
    p = await flagged(door)
    hospital = door.client("hospital-a")
    fits = await post(hospital, consent(p, PERMIT_A, sourceAttachment=attached(512 * 1024)))
    assert fits.status_code == 201
    more = await post(hospital, consent(p, PERMIT_A, sourceAttachment=attached(512 * 1024 + 3)))
    assert more.status_code == 413
    assert more.json()["issue"][0]["expression"] == ["Consent.sourceAttachment.data"]


# --- what cannot be decided -------------------------------------------------------------------


async def test_what_is_valid_and_not_computable_is_kept_and_holds_with_one_work_item(
    door: Doorway,
) -> None:
    """CS-57, CS-36: 201 with a warning; nothing goes out; a person has it."""
    p = await flagged(door)
    emr, hospital = door.client("clinic-a-emr"), door.client("hospital-a")
    assert len(await tasks(emr)) == 1
    kept = await put(hospital, "TEST-c1", consent(p, ODD))
    assert kept.status_code == 201
    assert "Warning" in kept.headers
    (stub,) = await tasks(emr)
    assert "for" not in stub
    (item,) = await work(door)
    assert (item.reason, item.patient, item.sites) == ("not-computable", p, ["hospital-a"])
    assert item.basis == ["Consent/TEST-c1/_history/1"]
    await hear(door, build.flag(p, 2, [*build.four_visits(), build.ed_visit(3)]))
    assert len(await work(door)) == 1
    righted = await put(hospital, "TEST-c1", consent(p, PERMIT_A), kept.headers["ETag"])
    assert righted.status_code == 200
    assert await work(door) == []
    assert len([t for t in await tasks(emr) if "for" in t]) == 1


async def test_an_invalid_consent_is_refused_kept_sealed_and_holds_until_it_is_right(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    """CS-57: the restriction that could not be read is not overlooked."""
    p = await flagged(door)
    emr, hospital = door.client("clinic-a-emr"), door.client("hospital-a")
    answer = await put(hospital, "TEST-c1", bad(p))
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["expression"] == ["Consent.status"]
    assert "SECRET" not in answer.text
    assert await tasks(emr) == []
    (item,) = await work(door)
    assert (item.reason, item.patient, item.about) == ("refused", p, None)
    (row,) = await owner.fetch("select * from notify.refused_consent")
    assert (row["tenant"], row["consent"], row["holds"]) == ("hospital-a", "TEST-c1", True)
    assert "SECRET" not in str(row)
    assert "SECRET" in build.SEALS.open(row["id"], "consent", row["body_key_id"], row["body"])
    assert (await put(hospital, "TEST-c1", bad(p))).status_code == 422  # sent again: once
    assert await owner.fetchval("select count(*) from notify.refused_consent") == 1
    other = await put(hospital, "TEST-c2", consent(p, PERMIT_A))  # says nothing of the refused
    assert other.status_code == 201
    assert await reasons(door) == ["refused"]
    right = await put(hospital, "TEST-c1", consent(p, PERMIT_A))
    assert right.status_code == 201
    (row,) = await owner.fetch("select * from notify.refused_consent")
    assert (row["resolution"], row["resolved_by"]) == ("replaced", "hospital-a")
    assert row["successor"] == "Consent/TEST-c1/_history/1"
    assert await work(door) == []
    assert [t for t in await tasks(emr) if "for" in t] != []


async def test_what_is_refused_grants_nothing_though_a_rule_could_be_read_in_it(
    door: Doorway,
) -> None:
    p = await flagged(door)
    said = consent(p, PERMIT_A, verification=[{"verified": "SECRET"}])
    assert (await post(door.client("hospital-a"), said)).status_code == 422
    assert await tasks(door.client("clinic-a-emr")) == []
    assert await reasons(door) == ["refused"]


async def test_a_site_that_rejects_keeps_the_refused_consent_and_holds_nothing(
    db: Callable[[str], Database],
) -> None:
    """PASSERELLE_CONSENT_INVALID=reject."""
    door = Doorway(db("notify"), replace(build.house(), invalid_holds=False))
    p = await flagged(door)
    answer = await post(door.client("hospital-a"), bad(p))
    assert answer.status_code == 422
    (task,) = await tasks(door.client("clinic-a-emr"))
    assert "for" in task
    (item,) = await work(door)
    assert (item.reason, item.patient) == ("refused", None)
    await door.close()


async def test_an_invalid_consent_of_nobody_known_waits_and_holds_once_they_are_identified(
    door: Doorway,
) -> None:
    """CS-57: kept by token, applied when identified."""
    p = uuid4()
    emr, hospital = door.client("clinic-a-emr"), door.client("hospital-a")
    assert (await post(hospital, bad(p))).status_code == 422
    (item,) = await work(door)
    assert (item.patient, item.reason, item.sites) == (None, "refused", ["hospital-a"])
    await emr.post("/panel?dry_run=false", content=panel(p), headers=CSV)
    await hear(door, build.flag(p))
    await hear(door, build.identified(p))
    assert await tasks(emr) == []
    (item,) = await work(door)
    assert (item.patient, item.reason) == (p, "refused")


async def test_a_consent_of_nobody_at_all_is_in_the_queue_without_a_patient(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    nobody = consent(uuid4(), DENY_A) | {"patient": {"display": "SECRET"}}
    answer = await post(door.client("hospital-a"), nobody)
    assert (answer.status_code, answer.json()["issue"][0]["expression"]) == (
        422,
        ["Consent.patient"],
    )
    (row,) = await owner.fetch("select * from notify.refused_consent")
    assert (row["key_id"], row["holds"]) == (None, False)
    (item,) = await work(door)
    assert (item.about, item.patient) == (row["id"], None)


async def test_a_clinic_holds_nobodys_cards_but_its_own_patients(door: Doorway) -> None:
    p = await flagged(door)
    foreign = door.client("clinic-b-emr")
    assert (await post(foreign, bad(p))).status_code == 422
    (task,) = await tasks(door.client("clinic-a-emr"))
    assert "for" in task
    (item,) = await work(door)
    assert (item.patient, item.sites) == (None, [])  # the privacy officer's to look at


async def test_a_consent_kept_by_token_speaks_when_its_patient_is_identified(
    door: Doorway,
) -> None:
    p = uuid4()
    assert (await post(door.client("hospital-a"), consent(p, ODD))).status_code == 201
    assert await work(door) == []  # of nobody, so nothing is on hold
    await hear(door, build.identified(p))
    assert await reasons(door) == ["not-computable"]


# --- what is on hold (CS-36) ------------------------------------------------------------------


async def test_each_reason_of_a_hold_is_one_item_and_a_change_of_labels_closes_it(
    door: Doorway,
) -> None:
    p = await flagged(door)
    sdv = {"system": build.TERMS + "v3-ActCode", "code": "SDV"}
    unlabelled = [build.ed_visit(n, labels=None) for n in (1, 40, 120, 300)]
    await put(
        door.client("hospital-a"), "TEST-c1", consent(p, {"type": "deny", "securityLabel": [sdv]})
    )
    assert await work(door) == []
    await hear(door, build.flag(p, 2, unlabelled))
    assert await reasons(door) == ["unknown-label"]
    await hear(door, build.flag(p, 3))
    assert await work(door) == []


async def test_a_newer_permit_against_an_older_restriction_is_a_conflict_for_a_person(
    door: Doorway,
) -> None:
    """CS-31: until the old restriction is withdrawn."""
    p = await flagged(door)
    hospital = door.client("hospital-a")
    old = await put(hospital, "TEST-old", consent(p, DENY_A, dateTime="2025-03-01"))
    await put(hospital, "TEST-new", consent(p, PERMIT_A, dateTime="2026-02-01"))
    (item,) = await work(door)
    assert item.reason == "conflict"
    assert set(item.basis) >= {"Consent/TEST-old/_history/1"}
    withdrawn = consent(p, DENY_A, dateTime="2025-03-01", status="inactive")
    assert (await put(hospital, "TEST-old", withdrawn, old.headers["ETag"])).status_code == 200
    assert await work(door) == []
    assert [t for t in await tasks(door.client("clinic-a-emr")) if "for" in t] != []


async def test_a_period_that_ends_closes_the_item_by_the_calendar(door: Doorway) -> None:
    """CS-51."""
    p = await flagged(door)
    end = (NOW + timedelta(days=3)).date().isoformat()
    unclear = {"type": "deny", "period": {"end": end}, "actor": [actor("Group/nobody")]}
    await put(door.client("hospital-a"), "TEST-c1", consent(p, unclear))
    assert await reasons(door) == ["unknown-actor"]
    door.passes(days=5)
    async with door.db.work() as tx:
        assert await flow.sweep(build.turn(tx, door.house, door.now)) == 1
    assert await work(door) == []


async def test_a_directory_that_learns_a_group_closes_the_item(
    door: Doorway, db: Callable[[str], Database]
) -> None:
    p = await flagged(door)
    unclear = {"type": "deny", "actor": [actor("Group/newcomers")]}
    await put(door.client("hospital-a"), "TEST-c1", consent(p, unclear))
    assert await reasons(door) == ["unknown-actor"]
    groups = [{"id": "newcomers", "members": ["nurse-b"]}]
    learned = build.house(build.region(groups=groups))
    for house in (door.house, learned):
        async with door.db.work() as tx:
            await flow.sweep(build.turn(tx, house, door.now))
    assert await work(door) == []


async def test_what_waits_too_long_is_said_once_in_the_log_and_stays_in_the_metric(
    door: Doorway,
) -> None:
    """CS-36: after 24 hours; no patient, no value."""
    p = await flagged(door)
    await put(door.client("hospital-a"), "TEST-c1", consent(p, ODD))
    longest = timedelta(hours=24)

    async def look(at: timedelta) -> Sequence[Any]:
        with capture_logs() as logs:
            async with door.db.work() as tx:
                await worklist.watch(tx, NOW + at, longest)
        return logs

    def metric(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"passerelle_{name}", {"by": "not-computable"})

    assert await look(longest - timedelta(minutes=1)) == []
    assert (metric("waiting_for_a_person"), metric("waiting_too_long")) == (1, 0)
    (line,) = await look(longest)
    assert (line["event"], line["reason"]) == ("work_item_overdue", "not-computable")
    assert str(p) not in str(line)
    assert await look(2 * longest) == []
    assert metric("waiting_too_long") == 1
    await put(door.client("hospital-a"), "TEST-c1", consent(p, PERMIT_A), 'W/"1"')
    await look(3 * longest)
    assert (metric("waiting_for_a_person"), metric("waiting_too_long")) == (0, 0)


async def test_a_work_item_is_seen_by_privacy_and_by_the_case_manager_of_its_hospital(
    door: Doorway,
) -> None:
    p = await flagged(door)
    await put(door.client("hospital-a"), "TEST-c1", consent(p, ODD))
    for tenant, role, seen in (
        ("", "privacy", 1),
        ("hospital-a", "hosp_cm", 1),
        ("hospital-b", "hosp_cm", 0),
        ("clinic-a", "clinic_cm", 0),
        ("clinic-a", "client", 0),
        ("hospital-a", "client", 0),
    ):
        async with door.db.request(tenant, role) as tx:
            assert len(await store.items(tx, 10)) == seen, (tenant, role)


# --- merge and unmerge (CS-53) ----------------------------------------------------------------


async def merged(door: Doorway, one: UUID, other: UUID) -> None:
    async with door.db.work() as tx:
        event = PatientMerged(surviving=one, retired=other, version=1, recorded=door.now)
        await flow.on_patients_merged([event], build.turn(tx, door.house, door.now))


async def unmerged(door: Doorway, one: UUID, other: UUID) -> None:
    async with door.db.work() as tx:
        event = PatientUnmerged(surviving=one, retired=other, version=2, recorded=door.now)
        await flow.on_patients_unmerged([event], build.turn(tx, door.house, door.now))


async def test_consents_recorded_while_two_were_one_deny_for_both_and_grant_for_neither(
    db: Callable[[str], Database],
) -> None:
    """Under opt-in, so that nothing but a Consent could grant."""
    door = Doorway(db("notify"), build.house(build.region("opt-in")))
    p, q = await flagged(door), await flagged(door)
    hospital, emr = door.client("hospital-a"), door.client("clinic-a-emr")
    before = await put(hospital, "TEST-before", consent(q, PERMIT_A))
    assert before.status_code == 201
    await merged(door, p, q)
    door.passes(days=1)
    assert (await put(hospital, "TEST-since", consent(p, PERMIT_A))).status_code == 201
    door.passes(days=1)
    await unmerged(door, p, q)
    items = await work(door)
    assert [(i.reason, i.patient) for i in sorted(items, key=lambda i: str(i.patient))] == sorted(
        [("disputed", p), ("disputed", q)], key=lambda pair: str(pair[1])
    )
    assert {tuple(i.basis) for i in items} == {("Consent/TEST-since/_history/1",)}
    assert [t for t in await tasks(emr) if "for" in t] == []
    await door.close()


async def test_the_consents_of_both_keys_speak_while_they_are_one(door: Doorway) -> None:
    p, q = await flagged(door), await flagged(door)
    emr = door.client("clinic-a-emr")
    await put(door.client("hospital-a"), "TEST-q", consent(q, DENY_A))
    assert len([t for t in await tasks(emr) if "for" in t]) == 1
    await merged(door, p, q)
    assert [t for t in await tasks(emr) if "for" in t] == []


def test_every_reason_of_a_hold_has_its_work_item() -> None:
    """And the engine's reasons are spelled alike."""
    plain = {"permitted", "implied", "restricted", "not-covered", "no-consent"}
    holds = {str(r) for r in Reason} - plain - {"performer-not-entitled"}
    assert holds <= {str(w) for w in Why}
    assert {str(w) for w in Why} - holds == {"disputed", "refused", "override"}
