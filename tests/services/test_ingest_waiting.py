"""What is held, and what lets it go; what is refused, and its replay (hospital-api.md 9, 12)."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from schemas.patient_identified_v1 import PatientIdentified
from services.ingest import store, waiting
from services.plumbing.db import Database
from services.plumbing.sealing import open_all
from tests.services.ingest_door import (
    NOW,
    IngestDoor,
    bundle,
    ed_visit,
    notification,
    opened,
    patient,
    region,
)

RECORD = "https://hospital-a.example.ca/record"


@pytest.fixture
async def door(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[IngestDoor]:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        yield made


def klass(code: str) -> dict[str, Any]:
    return {"class": {"system": "https://example.ca/classes", "code": code}}


async def merge(door: IngestDoor, retired: str, survivor: str, **more: Any) -> None:
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{survivor}"}}]
    answer = await door.put(patient(retired, active=False, link=link, **more))
    assert answer.status_code == 200, answer.text


async def test_an_encounter_waits_for_its_patient(door: IngestDoor) -> None:
    """HA-72: told so, and let go by the Patient's coming."""
    answer = await door.put(ed_visit())
    assert answer.status_code == 201
    [tag] = answer.json()["meta"]["tag"]
    assert (tag["code"], tag["display"]) == ("held", "awaiting-patient")
    assert (await door.ask("GET", "/Encounter/e1")).json()["meta"]["tag"] == [tag]
    assert await door.facts() == []
    assert (await door.put(ed_visit())).json()["meta"]["tag"] == [tag]
    await door.put(patient())
    [fact] = await door.facts()
    assert fact["status"] == "finished"
    assert await door.held() == []
    assert "tag" not in (await door.ask("GET", "/Encounter/e1")).json()["meta"]


async def test_an_encounter_that_names_an_identifier_waits_for_nobody(door: IngestDoor) -> None:
    """HA-72, HA-33: and its patient is the one that comes later with that identifier."""
    subject = {"identifier": {"system": RECORD, "value": "TEST-MRN-p1"}}
    await door.put(ed_visit(subject=subject))
    await door.put(ed_visit("2", subject={"reference": f"Patient?identifier={RECORD}|TEST-MRN-p1"}))
    await door.put(patient())
    await door.put(ed_visit("3"))
    assert len({fact["patient"] for fact in await door.facts()}) == 1
    versions = [event["version"] for event in await door.events("patient.identified.v1")]
    assert versions == [1, 2]


async def test_an_unmapped_class_waits_for_the_code_map(door: IngestDoor) -> None:
    """HA-74, CT-03: an earlier version stands meanwhile."""
    await door.put(patient())
    await door.put(ed_visit(status="in-progress"))
    await door.put(ed_visit(**klass("URG")))
    assert await door.held() == ["unknown-class"]
    assert [fact["status"] for fact in await door.facts()] == ["in-progress"]
    door.regions[0] = region(codes={"classes": {"https://example.ca/classes|URG": "EMER"}})
    assert await waiting.release_mapped(door.house) == 1
    assert [fact["status"] for fact in await door.facts()] == ["in-progress", "finished"]
    assert await door.held() == []


async def test_a_start_ahead_is_stated_when_it_is_reached(door: IngestDoor) -> None:
    """HA-76."""
    await door.put(patient())
    start = NOW + timedelta(hours=2)
    await door.put(ed_visit(status="in-progress", period={"start": start.isoformat()}))
    door.at(start - timedelta(minutes=6))
    await waiting.release_due(door.house)
    assert await door.facts() == []
    door.at(start)
    await waiting.release_due(door.house)
    [fact] = await door.facts()
    assert fact["recorded"] == start.isoformat().replace("+00:00", "Z")
    assert await door.held() == []


async def test_a_later_message_gives_the_start(door: IngestDoor) -> None:
    """HA-75: the earlier one is let go."""
    await door.put(patient())
    await door.put(ed_visit(status="arrived", period=...))
    assert await door.held() == ["start-missing"]
    await door.put(ed_visit())
    assert await door.held() == []
    await door.put(ed_visit(period=..., status="cancelled"))
    assert [fact["status"] for fact in await door.facts()][-1] == "cancelled"


async def test_after_a_day_the_best_known_instant_stands_in(door: IngestDoor) -> None:
    """CR-30: else it stays held."""
    await door.put(patient())
    history = [{"status": "arrived", "period": {"start": "2026-05-10T08:00:00-04:00"}}]
    await door.put(ed_visit(period=..., statusHistory=history))
    await door.put(ed_visit("2", period={"start": "2026-05"}))
    door.at(NOW + timedelta(hours=24))
    await waiting.release_due(door.house)
    [fact] = await door.facts()
    assert fact["start_is_assumed"]
    assert fact["start"]["earliest"] == "2026-05-10T12:00:00Z"
    assert await door.held() == ["start-imprecise"]
    assert await waiting.release_due(door.house) == 0


async def test_a_recycled_number_waits_for_a_person(door: IngestDoor) -> None:
    """HA-70b."""
    await door.put(patient())
    await door.put(patient("p2", card=None))
    await door.put(ed_visit())
    other = await door.put(ed_visit(subject={"reference": "Patient/p2"}))
    assert other.json()["meta"]["tag"][0]["display"] == "key-reused"
    assert len(await door.facts()) == 1
    [row] = await door.rows("select key, version from version where hold is not null")
    assert await waiting.admit(door.house, row["key"], row["version"], "case-manager")
    before, after = await door.facts()
    assert before["encounter"] == after["encounter"]
    assert before["patient"] != after["patient"]


async def test_a_card_matches_across_sites_and_a_record_number_does_not(door: IngestDoor) -> None:
    """HA-93."""
    await door.put(patient())
    elsewhere = patient()
    elsewhere["identifier"][0] = {"value": "TEST-MRN-p1"}
    await door.put(elsewhere, who="hospital-b")
    stranger = patient("p2", card=None)
    stranger["identifier"] = [{"value": "TEST-MRN-p1"}]
    await door.put(stranger)
    keys = [event["patient"] for event in await door.events("patient.identified.v1")]
    assert len(set(keys)) == 2
    assert keys[0] == keys[1]
    [both] = [one for one in await door.events("patient.identified.v1") if len(one["sites"]) == 2]
    assert both["sites"] == ["hospital-a", "hospital-b"]
    assert len(both["tokens"]) == 3


async def test_the_same_card_with_another_birth_date_is_held(door: IngestDoor) -> None:
    """HA-94: and so are its encounters."""
    await door.put(patient())
    other = await door.put(patient("p2", born="1990-01-01"))
    assert other.json()["meta"]["tag"][0]["display"] == "identity-conflict"
    await door.put(ed_visit(subject={"reference": "Patient/p2"}))
    assert await door.held() == ["identity-conflict", "identity-conflict"]
    assert await door.facts() == []
    corrected = await door.put(patient("p2", born="1980-02-03"))
    assert corrected.status_code == 200
    assert len(await door.facts()) == 1
    assert "identity-conflict" not in (await door.held())[1:]


async def test_a_birth_date_may_be_corrected_by_the_record_that_gave_it(door: IngestDoor) -> None:
    await door.put(patient())
    assert "tag" not in (await door.put(patient(born="1981-02-03"))).json()["meta"]
    one, two = await door.events("patient.identified.v1")
    assert one["patient"] == two["patient"]


async def test_two_patients_are_merged_on_evidence(door: IngestDoor) -> None:
    """HA-94: birth dates agree, no other card."""
    await door.put(patient("p1"))
    await door.put(patient("p2", card=None))
    both = patient("p2")
    await door.put(both)
    [merged] = await door.events("patient.merged.v1")
    keys = [event["patient"] for event in await door.events("patient.identified.v1")]
    assert {merged["surviving"], merged["retired"]} == set(keys)
    [link] = await door.rows("select cause, merged from link")
    assert link == {"cause": "evidence", "merged": True}
    await door.put(ed_visit(subject={"reference": "Patient/p2"}))
    assert (await door.facts())[0]["patient"] == merged["retired"]


async def test_a_merge_and_its_undoing(door: IngestDoor) -> None:
    """HA-97: each message keeps its own key, so unmerge loses nothing."""
    await door.put(patient("p1"))
    await door.put(patient("p2", card=None))
    await door.put(ed_visit(subject={"reference": "Patient/p2"}))
    await merge(door, "p2", "p1", card=None)
    await door.put(ed_visit("2", subject={"reference": "Patient/p2"}))
    await door.put(patient("p2", card=None))
    [merged] = await door.events("patient.merged.v1")
    [unmerged] = await door.events("patient.unmerged.v1")
    assert (merged["version"], unmerged["version"]) == (1, 2)
    assert merged["retired"] == unmerged["retired"]
    assert {fact["patient"] for fact in await door.facts()} == {merged["retired"]}


async def test_an_update_of_a_merged_record_does_not_part_it_again(door: IngestDoor) -> None:
    """HA-97: only the record that said so takes it back."""
    await door.put(patient("p1"))
    await door.put(patient("p2", card=None))
    await merge(door, "p2", "p1", card=None)
    await door.put(patient("p1", gender="male"))
    assert await door.events("patient.unmerged.v1") == []
    assert [row["code"] for row in await door.rows("select code from quality")] == [
        "gender-differs"
    ]


async def test_merges_in_a_circle_are_held(door: IngestDoor) -> None:
    """HA-97."""
    await door.put(patient("p1"))
    await door.put(patient("p2", card=None))
    await merge(door, "p2", "p1", card=None)
    await merge(door, "p1", "p2")
    await merge(door, "p1", "p1")
    assert set(await door.held()) == {"merge-circle"}
    assert len(await door.events("patient.merged.v1")) == 1


async def test_a_merge_into_a_patient_not_yet_sent_waits(door: IngestDoor) -> None:
    await door.put(patient("p2", card=None))
    await merge(door, "p2", "p1", card=None)
    assert await door.held() == ["awaiting-patient"]
    await door.put(patient("p1"))
    assert await door.held() == []
    assert len(await door.events("patient.merged.v1")) == 1


async def test_a_temporary_identity_is_let_go_by_a_merge(door: IngestDoor) -> None:
    """HA-96, CR-35."""
    temporary = patient("tmp", card=None, identifier=[{"system": RECORD, "value": "TEST-TMP-1"}])
    await door.put(temporary)
    await door.put(ed_visit(subject={"reference": "Patient/tmp"}))
    assert await door.held() == ["temporary-identity"]
    await door.put(patient("p1"))
    link = [{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]
    await door.put(temporary | {"active": False, "link": link})
    [fact] = await door.facts()
    [merged] = await door.events("patient.merged.v1")
    assert fact["patient"] == merged["retired"]
    assert await door.held() == []


async def test_a_record_known_by_messages_is_the_one_that_is_put_and_merged(
    door: IngestDoor,
) -> None:
    """HA-96, HA-97: a hospital that sends visits by message and its patients by PUT."""
    for number, id_ in enumerate(("TEST-TMP-7", "TEST-MRN-7")):
        who = patient(id_, card=None, identifier=[{"system": RECORD, "value": id_}])
        sent = notification(
            "admit", ed_visit(str(number)), who, id_=f"b{number}", header=f"h{number}"
        )
        assert (await door.ask("POST", "/$process-message", sent)).status_code == 200
    assert await door.held() == ["temporary-identity"]
    retired = patient(
        "TEST-TMP-7", card=None, active=False,
        identifier=[{"system": RECORD, "value": "TEST-TMP-7"}],
        link=[{"type": "replaced-by", "other": {"reference": "Patient/TEST-MRN-7"}}],
    )  # fmt: skip
    assert (await door.put(retired)).status_code == 200
    assert await door.held() == []
    assert len(await door.events("patient.merged.v1")) == 1
    assert len(await door.facts()) == 2
    assert len(await door.rows("select key from resource where kind = 'Patient'")) == 2
    who = patient("TEST-TMP-7", card=None, identifier=retired["identifier"])
    later = notification(
        "discharge", ed_visit("0", status="finished", serviceType={"text": "TEST"}), who,
        id_="b9", header="h9", at="2026-05-03T09:00:00Z",
    )  # fmt: skip
    assert (await door.ask("POST", "/$process-message", later)).status_code == 200
    assert await door.held() == []
    assert await door.events("patient.unmerged.v1") == []


async def test_two_records_of_one_hospital_stay_two_records(door: IngestDoor) -> None:
    """A PUT's own id decides (HA-70), also where a number or card is shared."""
    await door.put(patient("p1"))
    shared = patient("p2")
    shared["identifier"][0]["value"] = "TEST-MRN-p1"
    assert (await door.put(shared)).status_code == 201
    rows = await door.rows("select id, patient from resource order by id")
    assert [row["id"] for row in rows] == ["p1", "p2"]
    assert rows[0]["patient"] == rows[1]["patient"]


async def test_a_card_that_is_not_one_is_not_matched(door: IngestDoor) -> None:
    """HA-92: kept, and listed."""
    await door.put(patient("p1", card="TEST-1"))
    await door.put(patient("p2", card="TEST 1"))
    assert len({one["patient"] for one in await door.events("patient.identified.v1")}) == 2
    codes = [row["code"] for row in await door.rows("select code from quality")]
    assert codes == ["identifier-unusable"] * 2


async def test_what_identifies_a_patient_travels_sealed(door: IngestDoor) -> None:
    """Promise 5, CS-94: tokens and boxes only; notify can open them."""
    await door.put(
        patient(
            deceasedDateTime="2026-05-09T10:00:00Z",
            generalPractitioner=[
                {"identifier": {"system": "https://example.ca/lic", "value": "TEST-9"}}
            ],
        )
    )
    [said] = await door.events("patient.identified.v1")
    assert "TEST" not in str(said)
    assert "1980" not in str(said)
    event = PatientIdentified.model_validate(said)
    boxes = {name: (sealed.key_id, sealed.box) for name, sealed in event.demographics.items()}
    shown = open_all(door.house.keys.seals, event.patient, boxes)
    assert shown["family"] == "TESTFAMILY"
    assert shown["birthDate"] == "1980-02-03"
    assert shown["healthCard"].endswith("|TEST00000001")
    assert shown["deceased"] == "2026-05-09T10:00:00+00:00"
    assert "TESTMRNP1" in shown["recordNumbers"]
    assert event.attributed == ("clinic-a",)


async def test_older_demographics_replace_no_newer_ones(door: IngestDoor) -> None:
    """HA-82: hospital-b's own times count."""

    def at(hour: int, family: str) -> dict[str, Any]:
        stamp = f"2026-05-10T{hour:02}:00:00Z"
        return patient(meta={"lastUpdated": stamp}, name=[{"family": family}])

    await door.put(at(12, "TESTNEWER"), who="hospital-b")
    await door.put(at(11, "TESTOLDER"), who="hospital-b")
    [said] = await door.events("patient.identified.v1")
    box = said["demographics"]["family"]
    opened_box = door.house.keys.seals.open(
        PatientIdentified.model_validate(said).patient, "family", box["key_id"], box["box"]
    )
    assert opened_box == "TESTNEWER"


async def test_a_refused_body_is_replayed_under_its_own_time(door: IngestDoor) -> None:
    """HA-81: under today's rules; idempotent."""
    await door.put(patient())
    two = [
        {"system": "https://example.ca/visit", "value": "TEST-1"},
        {"system": "https://example.ca/account", "value": "TEST-2"},
    ]
    assert (await door.post(ed_visit(identifier=two))).status_code == 422
    [still] = await waiting.replay(door.house, "ops-client")
    assert still.result == "business-rule"
    door.regions[0] = region(visit_systems=["https://example.ca/visit"])
    door.at(NOW + timedelta(days=3))
    [done] = await waiting.replay(door.house, "ops-client", ids=[still.id])
    assert done.result == "accepted"
    [fact] = await door.facts()
    assert fact["event_time"] == NOW.isoformat().replace("+00:00", "Z")
    assert await waiting.replay(door.house, "ops-client") == []
    [row] = await door.rows("select state, settled_by, result from refused")
    assert row == {"state": "replayed", "settled_by": "ops-client", "result": "accepted"}


async def test_a_refused_transaction_is_replayed_whole(door: IngestDoor) -> None:
    """HA-81."""
    sent = bundle(
        "transaction",
        ("PUT", "Patient/p1", patient()),
        ("POST", "Encounter", ed_visit(identifier=[{"value": "TEST-1"}])),
    )
    assert (await door.ask("POST", "", sent)).status_code == 422
    [still] = await waiting.replay(door.house, "ops-client")
    assert still.result == "business-rule"
    assert await door.rows("select key from resource") == []


async def test_a_refused_body_is_forgotten_after_thirty_days_and_its_record_stays(
    door: IngestDoor,
) -> None:
    """HA-80."""
    await door.put(ed_visit(status="x"))
    door.at(NOW + timedelta(days=30))
    async with door.house.db.work() as tx:
        assert await store.purge(tx, door.house.clock.now()) == 1
    [row] = await door.rows("select body, status, times from refused")
    assert row == {"body": None, "status": 400, "times": 1}


async def test_no_request_sees_another_site_or_any_patient_table(door: IngestDoor) -> None:
    """CS-91: beneath the application's check, by row-level security."""
    await door.put(patient())
    await door.put(ed_visit())
    await door.put(ed_visit(status="x"))
    tables = ("handle", "resource", "version", "identifier", "refused", "heard")
    for table in tables:
        async with door.house.db.request("hospital-a") as tx:
            own = await tx.execute(text(f"select count(*) from {table}"))
            assert own.scalar_one() > 0, table
        async with door.house.db.request("hospital-b") as tx:
            foreign = await tx.execute(text(f"select count(*) from {table}"))
            assert foreign.scalar_one() == 0, table
    for table in ("patient", "token", "link"):
        with pytest.raises(DBAPIError, match="permission denied"):
            async with door.house.db.request("hospital-a") as tx:
                await tx.execute(text(f"select * from {table}"))
    with pytest.raises(DBAPIError):
        async with door.house.db.request("hospital-b") as tx:
            await tx.execute(text("select * from meet('hospital-a', '{}', '{}', '{}', '{}', '{}')"))


async def test_a_patient_key_is_of_no_use_to_another_site(door: IngestDoor) -> None:
    """CS-91: meet tells of presented tokens and own records only."""
    await door.put(patient())
    [row] = await door.rows("select patient from resource")
    call = text("select found from meet(:site, '{}', '{}', '{}', '{}', array[cast(:key as uuid)])")
    for site, seen in (("hospital-a", 1), ("hospital-b", 0)):
        async with door.house.db.request(site) as tx:
            found = (await tx.execute(call, {"site": site, "key": row["patient"]})).all()
            assert len(found) == seen
