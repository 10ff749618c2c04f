"""Screening's door: counting.md section 9, CT-70, and who gets through it (CS-01)."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import text

from services.plumbing.db import Database
from services.screening import registry
from services.screening.ledger import Status
from tests.histories import P, Q, at, ed_visit, key, policy, qc_default
from tests.services.screening import Screening
from tests.services.screening_door import DOOR, Door, opened


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Door]:
    async with opened(db) as found:
        yield found


async def w_1(screening: Screening) -> None:
    await screening.meet(P)
    for n, (start, offset) in enumerate(
        [("2025-11-24 10", "-05"), ("2026-02-02 09", "-05"), ("2026-05-05 09", "-04")]
    ):
        visit = ed_visit(f"e-{n}", f"{start}:00{offset}", recorded=f"{start}:30{offset}")
        await screening.take(visit, now=f"{start}:30{offset}")
    last = ed_visit("e-4", "2026-08-08 09:00-04", recorded="2026-08-08 13:00-04")
    await screening.take(last, now="2026-08-08 13:00-04")
    wrong = replace(
        last, version=2, status=Status.ENTERED_IN_ERROR, recorded=at("2026-08-20 10:00-04")
    )
    await screening.take(wrong, now="2026-08-20 10:00-04")


async def test_ct_70_what_was_known_then_and_what_is_known_now(door: Door) -> None:
    await w_1(door.screening)
    then = "2026-08-10T09:00:00-04:00"
    known_then = await door.flag(as_of=then, known_at=then)
    assert (known_then["state"], known_then["notice"]) == ("flagged", "alert")
    assert (known_then["sequence"], known_then["cause"]) == (2, "EVENT")
    assert known_then["window"]["until"] == then
    known_now = await door.flag(as_of=then)
    assert (known_now["state"], known_now["entered_in_error"]) == ("watch", 1)
    now = await door.flag()
    assert (now["state"], now["as_of"], now["sequence"]) == (
        "below",
        "2027-03-02T12:00:00-05:00",
        3,
    )
    assert [i["encounters"][0]["key"] for i in now["items"]] == [str(key("e-2"))]


async def test_pt_11_known_at_is_what_a_fresh_system_would_say(door: Door) -> None:
    await w_1(door.screening)
    for instant in ("2026-02-02T09:29:00-05:00", "2026-08-08T13:00:00-04:00"):
        told = await door.flag(as_of=instant, known_at=instant)
        visits = [i for i in told["items"] if i["counted"]]
        assert len(visits) == sum(
            datetime.fromisoformat(instant) >= learnt
            for learnt in (
                at("2025-11-24 10:30-05"),
                at("2026-02-02 09:30-05"),
                at("2026-05-05 09:30-04"),
                at("2026-08-08 13:00-04"),
            )
        )


async def test_w_7_as_of_answers_flagged_for_a_flag_that_was_never_sent(door: Door) -> None:
    await door.screening.meet(Q)
    learnt = "2026-09-10 12:00-04"
    old = [
        ed_visit(f"q-{n}", f"2025-0{n}-01 10:00-04", patient=Q, recorded=learnt, backfill=True)
        for n in (2, 3, 4, 5)
    ]
    await door.screening.take(*old, now=learnt)
    told = await door.flag(Q, as_of="2025-06-01T00:00:00-04:00")
    assert (told["state"], told["notice"], told["sequence"]) == ("flagged", "quiet", 0)
    assert (await door.flag(Q))["state"] == "below"
    nothing = await door.flag(
        Q, as_of="2025-06-01T00:00:00-04:00", known_at="2025-06-01T00:00:00-04:00"
    )
    assert (nothing["state"], nothing["items"]) == ("below", [])


async def test_a_retired_key_answers_with_its_survivor_and_names_it(door: Door) -> None:
    """Section 9, W-6."""
    await door.screening.meet(P, Q)
    await door.screening.take(
        ed_visit("p-1", "2026-09-01 10:00-04"),
        ed_visit("q-1", "2026-09-05 10:00-04", patient=Q),
        now="2026-09-05 14:00-04",
    )
    await door.screening.merge(Q, P, "2026-09-10 09:00-04")
    told = await door.flag(Q)
    assert (told["patient"], told["retired"], len(told["items"])) == (str(P), str(Q), 2)
    before = await door.flag(Q, known_at="2026-09-09T00:00:00-04:00")
    assert (before["patient"], len(before["items"])) == (str(Q), 1)


async def test_changes_are_given_back_as_they_were_sent(door: Door) -> None:
    await w_1(door.screening)
    answer = await door.get(f"/v1/patients/{P}/changes")
    sent = await door.screening.flags()
    assert answer.json()["changes"] == [event.model_dump(mode="json") for event in sent]
    assert [c["retracts"] for c in answer.json()["changes"]] == [None, None, 2]


async def test_the_list_is_newest_change_first_and_pages_without_gaps(door: Door) -> None:
    keys = [key(f"TEST-{n}") for n in range(7)]
    await door.screening.meet(*keys)
    for n, patient in enumerate(keys):
        visits = [
            ed_visit(f"{n}-{m}", f"2026-0{m}-01 10:00-04", patient=patient, site=f"site-{n % 2}")
            for m in (4, 5, 6)
        ]
        await door.screening.take(*visits, now=f"2026-06-01 14:0{n // 2}-04")
    path, seen = "/v1/flags?_count=3", []
    while path:
        page = (await door.get(path)).json()
        seen += page["flags"]
        path = page.get("next")
    assert {line["patient"] for line in seen} == {str(k) for k in keys}
    assert len(seen) == len(keys)
    changed = [line["changed"] for line in seen]
    assert changed == sorted(changed, reverse=True)
    odd = (await door.get("/v1/flags", site="site-1")).json()["flags"]
    assert len(odd) == 3
    recent = await door.get("/v1/flags", changed_since="2026-06-01T14:02:00-04:00")
    assert len(recent.json()["flags"]) == 3
    assert (await door.get("/v1/flags", state="flagged")).json() == {"flags": []}


async def test_the_list_as_it_was_announced_then(door: Door) -> None:
    await w_1(door.screening)
    then = (await door.get("/v1/flags", as_of="2026-08-10T00:00:00-04:00")).json()["flags"]
    assert [(line["patient"], line["state"], line["ed_visits"]) for line in then] == [
        (str(P), "flagged", 4)
    ]
    before = await door.get("/v1/flags", as_of="2026-05-05T09:00:00-04:00")
    assert before.json() == {"flags": []}


async def test_the_policy_asked_for_or_the_one_live_then(door: Door) -> None:
    await w_1(door.screening)
    async with door.screening.at("2025-01-01 00:00-05") as turn:
        assert await registry.adopt(turn.tx, qc_default(), turn.now)
    eager = policy("flag: {any: [{measure: ed_visits, at_least: 1}]}")
    async with door.screening.at("2027-01-01 00:00-05") as turn:
        assert await registry.adopt(turn.tx, eager, turn.now)
    then = "2026-08-25T09:00:00-04:00"
    assert (await door.flag(as_of=then, known_at=then))["policy"]["name"] == "qc-default"
    live = await door.flag(as_of=then)
    assert (live["policy"]["name"], live["state"]) == ("TEST-policy", "flagged")
    named = await door.flag(as_of=then, policy="qc-default@3")
    assert (named["policy"]["sha256"], named["state"]) == (qc_default().sha256, "watch")
    for unknown in ("qc-default@4", "qc-default", "@"):
        answer = await door.get(f"/v1/patients/{P}/flag", policy=unknown)
        assert answer.status_code == 404


REFUSED = {
    f"/v1/patients/{P}/flag?as_of=2027-03-02T12:00:01-05:00": 422,
    f"/v1/patients/{P}/flag?known_at=2028-03-02T12:00:00Z": 422,
    f"/v1/patients/{P}/flag?as_of=2026-03-02T12:00:00": 422,
    f"/v1/patients/{P}/flag?as_of=yesterday": 422,
    f"/v1/patients/{P}/flag?as_of=2026-03-02T12:00:00Z&known_at=2026-03-01T12:00:00Z": 422,
    f"/v1/patients/{Q}/flag": 404,
    f"/v1/patients/{Q}/changes": 404,
    f"/v1/patients/{P}/flag?known_at=2019-03-02T12:00:00Z": 404,
    "/v1/patients/not-a-key/flag": 400,
    "/v1/flags?state=ill": 422,
    "/v1/flags?cursor=AAAA": 422,
    "/v1/flags?cursor=%C3%A9": 422,
    "/v1/flags?_count=0": 400,
    "/v1/flags?unknown=1": 400,
    "/v1/flags?as_of=2030-01-01T00:00:00Z": 422,
}


async def test_what_cannot_be_answered_is_refused_in_words(door: Door) -> None:
    await door.screening.meet(P)
    answers = {path: await door.get(path) for path in REFUSED}
    assert {path: answer.status_code for path, answer in answers.items()} == REFUSED
    kinds = {answer.json()["resourceType"] for answer in answers.values()}
    assert kinds == {"OperationOutcome"}


async def test_cs_01_no_clinic_or_hospital_reads_counts_whatever_its_scopes(door: Door) -> None:
    """A clinic's EMR has `system/Flag.rs` for its own Flags in notify."""
    await door.screening.meet(P)
    for who in ("clinic-a-emr", "hospital-a"):
        for path in ("/v1/flags", f"/v1/patients/{P}/flag", f"/v1/patients/{P}/changes"):
            assert (await door.get(path, who)).status_code == 403


async def test_without_a_token_there_is_no_answer(door: Door) -> None:
    for path in ("/v1/flags", f"/v1/patients/{P}/flag", "/v1/nothing"):
        assert (await door.stage.http.get(f"{DOOR}{path}")).status_code == 401


async def test_cs_110_each_read_is_in_the_audit_with_its_patient(door: Door) -> None:
    await w_1(door.screening)
    await door.flag()
    await door.get(f"/v1/patients/{P}/changes")
    await door.get("/v1/flags", state="watch,below")
    async with door.screening.db.work() as tx:
        rows = (await tx.execute(text("select shape, agent, patient, tenant from audit"))).all()
    assert [(row.shape, row.agent, row.patient, row.tenant) for row in rows] == [
        ("PatientRead", "ops-client", P, "*"),
        ("PatientRead", "ops-client", P, "*"),
        ("PatientQuery", "ops-client", P, "*"),
    ]


async def test_cs_91_a_request_without_the_role_sees_no_row(door: Door) -> None:
    await w_1(door.screening)
    tables = ("fact", "fact_version", "patient", "change", "episode", "person_version", "policy")
    for role in ("client", "clinic_cm", ""):
        async with door.screening.db.request("site-a", role) as tx:
            for table in tables:
                found = await tx.execute(text(f"select count(*) from {table}"))
                assert found.scalar_one() == 0
