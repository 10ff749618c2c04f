"""The hospitals' door over HTTP on real PostgreSQL (hospital-api.md sections 2, 6 and 7)."""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from fhir.resources.R4B.capabilitystatement import CapabilityStatement

from services.ingest import gate, verbatim
from services.ingest.api import add_door
from services.plumbing import audit
from services.plumbing.auth import Auth, guard
from services.plumbing.db import Database
from services.plumbing.web import make_app
from tests.services.authorities import AUDIENCE
from tests.services.ingest_door import BASE, IngestDoor, ed_visit, opened, patient


@pytest.fixture
async def door(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[IngestDoor]:
    async with opened(db("ingest"), db("authority"), tmp_path) as made:
        yield made


async def test_a_put_encounter_is_kept_and_stated_once(door: IngestDoor) -> None:
    """HA-14, HA-11: the same again has no effect."""
    assert (await door.put(patient())).status_code == 201
    first = await door.put(ed_visit())
    assert first.status_code == 201
    assert first.headers["location"] == f"{BASE}/Encounter/e1/_history/1"
    assert first.headers["etag"] == 'W/"1"'
    assert first.headers["content-type"].startswith("application/fhir+json")
    assert first.json()["id"] == "e1"
    assert first.json()["meta"]["versionId"] == "1"
    again = await door.put(ed_visit())
    assert (again.status_code, again.headers["etag"]) == (200, 'W/"1"')
    [fact] = await door.facts()
    [person] = await door.events("patient.identified.v1")
    assert fact["patient"] == person["patient"]
    assert fact["version"] == 1
    assert fact["site"] == "hospital-a"
    assert [one["code"] for one in fact["classes"]] == ["EMER"]
    assert fact["start"]["earliest"] == "2026-05-03T00:00:00Z"


async def test_other_content_is_a_new_version_of_the_same_fact(door: IngestDoor) -> None:
    """HA-11, CT-15."""
    await door.put(patient())
    await door.put(ed_visit(status="in-progress", period={"start": "2026-05-02T20:00:00-04:00"}))
    answer = await door.put(ed_visit())
    assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"2"')
    one, two = await door.facts()
    assert one["encounter"] == two["encounter"]
    assert (one["version"], two["version"]) == (1, 2)
    assert (one["end"], two["status"]) == (None, "finished")


async def test_a_post_finds_its_encounter_by_the_visit_number(door: IngestDoor) -> None:
    """HA-11, HA-70: never a second encounter; the client's own id stays an alias."""
    await door.put(patient())
    made = await door.post(ed_visit())
    assert made.status_code == 201
    assert made.json()["id"] != "e1"
    assert (await door.post(ed_visit())).status_code == 200
    changed = await door.post(ed_visit(status="entered-in-error"))
    assert (changed.status_code, changed.headers["etag"]) == (200, 'W/"2"')
    by_alias = await door.put(ed_visit(status="cancelled"))
    assert (by_alias.status_code, by_alias.headers["etag"]) == (200, 'W/"3"')
    assert len({fact["encounter"] for fact in await door.facts()}) == 1
    assert (await door.ask("GET", "/Encounter/e1")).json()["status"] == "cancelled"


@pytest.mark.parametrize("form", ["post", "if-none-exist", "query", "put", "conditional-put"])
async def test_fifty_parallel_creates_make_one_encounter(door: IngestDoor, form: str) -> None:
    """HA-24: one encounter, one 201, one event."""
    await door.put(patient())
    condition = "identifier=https://hospital-a.example.ca/visit|TEST-1"

    async def create() -> int:
        match form:
            case "post":
                answer = await door.post(ed_visit())
            case "if-none-exist":
                answer = await door.post(ed_visit(), If_None_Exist=condition)
            case "query":
                answer = await door.ask("POST", f"/Encounter?{condition}", ed_visit())
            case "put":
                answer = await door.put(ed_visit())
            case _:
                answer = await door.ask("PUT", f"/Encounter?{condition}", ed_visit(id=...))
        return answer.status_code

    statuses = Counter(await asyncio.gather(*(create() for _ in range(50))))
    assert statuses == {201: 1, 200: 49}
    assert len(await door.facts()) == 1
    assert len(await door.rows("select key from resource where kind = 'Encounter'")) == 1
    assert len(await door.rows("select key from version where kind = 'Encounter'")) == 1


async def test_fifty_parallel_messages_of_one_new_patient_make_one_patient(
    door: IngestDoor,
) -> None:
    """HA-24, HA-93: the unique token decides."""
    subject = {"identifier": {"system": "https://hospital-a.example.ca/record", "value": "TEST-7"}}
    answers = await asyncio.gather(
        *(door.put(ed_visit(str(number), subject=subject)) for number in range(50))
    )
    assert {answer.status_code for answer in answers} == {201}
    facts = await door.facts()
    assert len({fact["encounter"] for fact in facts}) == 50
    assert len({fact["patient"] for fact in facts}) == 1


async def test_an_unused_condition_is_listed_when_its_body_differs(door: IngestDoor) -> None:
    """HA-12."""
    await door.put(patient())
    condition = "Encounter?identifier=https://hospital-a.example.ca/visit|TEST-1"
    assert (await door.post(ed_visit(), If_None_Exist=condition)).status_code == 201
    other = await door.post(ed_visit(status="cancelled"), If_None_Exist=condition)
    assert (other.status_code, other.headers["etag"]) == (200, 'W/"1"')
    assert other.json()["status"] == "finished"
    [aside] = await door.rows("select reason, status from refused")
    assert aside["reason"] == "ignored-by-condition"
    assert len(await door.facts()) == 1


async def test_a_condition_that_several_fulfil_is_412(door: IngestDoor) -> None:
    """HA-12, HA-15."""
    await door.put(patient())
    shared = {"system": "https://example.ca/account", "value": "TEST-acc"}
    for number in ("1", "2"):
        visit = ed_visit(number)
        visit["identifier"][0]["type"] = {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "VN"}]
        }
        visit["identifier"].append(shared)
        assert (await door.post(visit)).status_code == 201
    condition = "identifier=https://example.ca/account|TEST-acc"
    created = await door.post(ed_visit("3"), If_None_Exist=condition)
    updated = await door.ask("PUT", f"/Encounter?{condition}", ed_visit("3", id=...))
    assert (created.status_code, updated.status_code) == (412, 412)
    assert created.json()["issue"][0]["code"] == "multiple-matches"


@pytest.mark.parametrize("query", ["subject=Patient/p1", "identifier=TEST-1", "a=b&identifier=x|y"])
async def test_other_criteria_never_create(door: IngestDoor, query: str) -> None:
    """HA-12, HA-13: never a silent create."""
    assert (await door.ask("POST", f"/Encounter?{query}", ed_visit())).status_code == 400
    assert (await door.post(ed_visit(), If_None_Exist=query)).status_code == 400
    assert await door.rows("select key from resource") == []


async def test_an_update_by_identifier_updates_its_match(door: IngestDoor) -> None:
    """HA-15."""
    await door.put(patient())
    path = "/Encounter?identifier=https://hospital-a.example.ca/visit|TEST-1"
    created = await door.ask("PUT", path, ed_visit(id=...))
    assert created.status_code == 201
    updated = await door.ask("PUT", path, ed_visit(id=..., status="cancelled"))
    assert (updated.status_code, updated.json()["id"]) == (200, created.json()["id"])
    wrong = await door.ask("PUT", path, ed_visit(id="other", status="unknown"))
    assert wrong.status_code == 400


async def test_the_id_of_body_and_url_must_agree(door: IngestDoor) -> None:
    """HA-14."""
    for body in (ed_visit(id="e2"), ed_visit(id=...)):
        answer = await door.ask("PUT", "/Encounter/e1", body)
        assert answer.status_code == 400
        assert answer.json()["issue"][0]["expression"] == ["Encounter.id"]


async def test_two_sites_may_both_have_encounter_1(door: IngestDoor) -> None:
    """HA-23, CS-93: and neither sees the other's."""
    subject = {"identifier": {"system": "https://example.ca/x", "value": "TEST-1"}}
    for who in ("hospital-a", "hospital-b"):
        assert (await door.put(ed_visit(subject=subject), who=who)).status_code == 201
    await door.put(ed_visit(subject=subject, status="cancelled"), who="hospital-b")
    assert (await door.ask("GET", "/Encounter/e1")).json()["status"] == "finished"
    await door.put(ed_visit("2", subject=subject), who="hospital-b")
    assert (await door.ask("GET", "/Encounter/e2")).status_code == 404
    found = await door.ask("GET", "/Encounter?_id=e1,e2")
    assert found.json()["total"] == 1


async def test_what_is_read_is_what_was_sent(door: IngestDoor) -> None:
    """HA-04, HA-16: number forms, spaces and unknown zones of time included."""
    await door.put(patient())
    sent = orjson.dumps(ed_visit())[:-1] + b', "length" : {"value": 8.50, "unit":"h"}}'
    assert (await door.ask("PUT", "/Encounter/e1", sent)).status_code == 201
    read = await door.ask("GET", "/Encounter/e1")
    assert '"length" : {"value": 8.50, "unit":"h"}' in read.text
    assert '"start":"2026-05-02T20:00:00-04:00"' in read.text
    for sent_tag in ('W/"1"', '"1"', "1"):
        unchanged = await door.ask("GET", "/Encounter/e1", If_None_Match=sent_tag)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert (await door.ask("GET", "/Encounter/none")).status_code == 404
    assert (await door.ask("GET", "/Encounter/e1/_history/2")).status_code == 404
    assert (await door.ask("GET", "/Encounter/e1/_history/x")).status_code == 404


async def test_earlier_versions_stay_readable(door: IngestDoor) -> None:
    """HA-16."""
    await door.put(patient())
    await door.put(ed_visit(status="in-progress"))
    await door.put(ed_visit())
    first = await door.ask("GET", "/Encounter/e1/_history/1")
    assert first.json()["status"] == "in-progress"
    assert first.json()["meta"]["versionId"] == "1"


async def test_a_deleted_encounter_is_void_and_can_come_back(door: IngestDoor) -> None:
    """HA-17."""
    await door.put(patient())
    await door.put(ed_visit())
    for _ in range(2):
        gone = await door.ask("DELETE", "/Encounter/e1")
        assert (gone.status_code, gone.content) == (204, b"")
    assert (await door.ask("GET", "/Encounter/e1")).status_code == 410
    assert (await door.ask("GET", "/Encounter/e1/_history/1")).status_code == 200
    assert (await door.ask("GET", "/Encounter?_id=e1")).json()["total"] == 0
    door.at(door.house.clock.now().replace(hour=17))
    assert (await door.put(ed_visit())).status_code == 201
    facts = await door.facts()
    assert [fact["status"] for fact in facts] == ["finished", "entered-in-error", "finished"]
    assert (await door.ask("DELETE", "/Patient/p1")).status_code == 405
    assert (await door.ask("DELETE", "/Encounter/none")).status_code == 404


async def test_a_stale_if_match_is_412(door: IngestDoor) -> None:
    """HA-20."""
    await door.put(patient())
    await door.put(ed_visit())
    stale = await door.put(ed_visit(status="cancelled"), If_Match='W/"2"')
    assert stale.status_code == 412
    fresh = await door.put(ed_visit(status="cancelled"), If_Match='W/"1"')
    assert fresh.status_code == 200


async def test_prefer_decides_the_body(door: IngestDoor) -> None:
    """HA-21."""
    minimal = await door.put(patient(), Prefer="return=minimal")
    assert (minimal.status_code, minimal.content) == (201, b"")
    told = await door.put(ed_visit(), Prefer="return=OperationOutcome")
    assert told.json()["resourceType"] == "OperationOutcome"
    assert told.headers["etag"] == 'W/"1"'


async def test_search_by_identifier_id_and_time(door: IngestDoor) -> None:
    """HA-18."""
    await door.put(patient())
    for number in range(5):
        await door.put(ed_visit(str(number)))
    system = "https://hospital-a.example.ca/visit"
    one = (await door.ask("GET", f"/Encounter?identifier={system}|TEST-3")).json()
    assert (one["type"], one["total"]) == ("searchset", 1)
    assert one["entry"][0]["resource"]["id"] == "e3"
    assert "TEST-3" not in str(one["link"])
    seen: list[str] = []
    page = (await door.ask("GET", "/Encounter?_count=2")).json()
    while True:
        assert page["total"] == 5
        seen += [entry["resource"]["id"] for entry in page.get("entry", [])]
        more = [link["url"] for link in page["link"] if link["relation"] == "next"]
        if not more:
            break
        page = (await door.ask("GET", more[0])).json()
    assert sorted(seen) == [f"e{number}" for number in range(5)]
    for query, total in (
        ("_lastUpdated=ge2026-05-10", 5),
        ("_lastUpdated=lt2026-05-10", 0),
        ("_lastUpdated=2026-05-10T16:00:00Z", 5),
        ("_lastUpdated=gt2026-05-10T16:00:00Z", 0),
        ("_id=e1,e4&_lastUpdated=2026", 2),
        ("identifier=https://example.ca/none|x", 0),
    ):
        assert (await door.ask("GET", f"/Encounter?{query}")).json()["total"] == total, query
    assert (await door.ask("GET", "/Encounter?patient=p1")).status_code == 400


async def test_all_that_is_wrong_is_told_without_a_value(door: IngestDoor) -> None:
    """HA-63; kept sealed for a person, repeats counted (HA-80)."""
    body = ed_visit(status="TESTSECRET", period={"start": "2026-05-02T20:00:00"})
    for _ in range(2):
        answer = await door.put(body)
        assert answer.status_code == 400
        assert answer.headers["content-type"].startswith("application/fhir+json")
    places = {issue["expression"][0] for issue in answer.json()["issue"]}
    assert places == {"Encounter.status", "Encounter.period.start"}
    assert "TESTSECRET" not in answer.text
    assert "-05:00" in answer.text
    [kept] = await door.rows("select times, status, body from refused")
    assert (kept["times"], kept["status"]) == (2, 400)
    assert "TESTSECRET" not in kept["body"]
    assert await door.events() == []


async def test_a_business_rule_is_422(door: IngestDoor) -> None:
    """HA-70, HA-71."""
    await door.put(patient())
    nobody = await door.put(ed_visit(subject={"display": "TESTFAMILY"}))
    assert nobody.status_code == 422
    unnumbered = await door.post(ed_visit(identifier=...))
    assert unnumbered.status_code == 422
    assert unnumbered.json()["issue"][0]["expression"] == ["Encounter.identifier"]
    assert (await door.post(patient(identifier=...))).status_code == 422


async def test_every_error_under_fhir_is_an_operation_outcome(door: IngestDoor) -> None:
    """HA-60."""
    asked: list[tuple[str, str, Any, dict[str, Any], int]] = [
        ("GET", "/Encounter/e1", None, {"who": None}, 401),
        ("GET", "/Nothing/at/all/here", None, {"who": None}, 401),
        ("PUT", "/Encounter/e1", ed_visit(), {"who": "clinic-a-emr"}, 403),
        ("PUT", "/Encounter/e1", ed_visit(), {"scope": "system/Encounter.r"}, 403),
        ("GET", "/Observation/1", None, {}, 404),
        ("GET", "/Nothing/at/all/here", None, {}, 404),
        ("PATCH", "/Encounter/e1", ed_visit(), {}, 405),
        ("DELETE", "/Encounter", None, {}, 405),
        ("GET", "/Encounter/e1", None, {"Accept": "application/fhir+xml"}, 406),
        ("PUT", "/Encounter/e1", ed_visit(), {"Content_Type": "application/fhir+xml"}, 415),
        ("PUT", "/Encounter/e1", b"{", {}, 400),
        ("PUT", "/Encounter/e1", b"x" * (1024 * 1024 + 1), {}, 413),
        ("PUT", "/Encounter/e1", b"xx", {"Content_Encoding": "gzip"}, 400),
        ("PUT", "/Encounter/e_1", ed_visit(id="e_1"), {}, 400),
    ]
    for method, path, body, more, status in asked:
        answer = await door.ask(method, path, body, **more)
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.headers["content-type"].startswith("application/fhir+json")
        assert answer.json()["resourceType"] == "OperationOutcome"
        if status in (401, 403):
            assert "audit" not in answer.text
    assert await door.rows("select key from resource") == []


async def test_a_gzip_body_is_measured_after_unpacking(door: IngestDoor) -> None:
    """HA-61, HA-100."""
    fine = await door.ask(
        "PUT", "/Patient/p1", gzip.compress(orjson.dumps(patient())), Content_Encoding="gzip"
    )
    assert fine.status_code == 201
    bomb = gzip.compress(b" " * 30_000_000)
    assert len(bomb) < 100_000
    answer = await door.ask("PUT", "/Patient/p1", bomb, Content_Encoding="gzip")
    assert answer.status_code == 413
    assert "1048576" in answer.text


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/fhir+json", 200),
        ("application/fhir+json; fhirVersion=4.0", 200),
        ("application/fhir+json; fhirVersion=5.0", 406),
        ("application/fhir+xml, application/fhir+json", 200),
        ("*/*", 200),
        ("application/json", 200),
        ("text/html", 406),
    ],
)
async def test_json_is_served_to_all_who_take_it(
    door: IngestDoor, accept: str, status: int
) -> None:
    """HA-62: without token at /metadata (HA-10)."""
    answer = await door.ask("GET", "/metadata", who=None, Accept=accept)
    assert answer.status_code == status
    forced = await door.ask("GET", "/metadata?_format=json", who=None, Accept=accept)
    assert forced.status_code == 200


async def test_metadata_is_strict_r4_and_needs_no_token(door: IngestDoor) -> None:
    """HA-10, section 13: fhirVersion exactly 4.0.1, and the token URL for fhirclient."""
    answer = await door.ask("GET", "/metadata", who=None)
    CapabilityStatement.model_validate(answer.json())
    piece = verbatim.read(answer.content)
    assert gate.check(piece.tree, piece.text, "CapabilityStatement") == []
    assert answer.json()["fhirVersion"] == "4.0.1"
    assert answer.json()["rest"][0]["security"]["extension"][0]["extension"][0]["url"] == "token"
    smart = await door.ask("GET", "/.well-known/smart-configuration", who=None)
    assert smart.json()["token_endpoint"].endswith("/token")


async def test_each_accepted_write_and_read_is_audited(door: IngestDoor) -> None:
    """HA-102, E-1, E-5: by keys, never by identifiers."""
    await door.put(patient())
    await door.put(ed_visit())
    await door.put(ed_visit(status="cancelled"))
    await door.ask("GET", "/Encounter/e1")
    await door.ask("GET", "/Encounter?identifier=https://hospital-a.example.ca/visit|TEST-1")
    rows = await door.rows(
        "select shape, tenant, patient, query, entities from audit order by position"
    )
    assert [row["shape"] for row in rows] == [
        "PatientCreate", "PatientCreate", "PatientUpdate", "PatientRead", "PatientQuery",
    ]  # fmt: skip
    assert len({row["patient"] for row in rows}) == 1
    assert "TEST" not in str(rows)


async def test_a_client_of_two_sites_names_one(door: IngestDoor) -> None:
    """HA-79."""
    subject = {"identifier": {"system": "https://example.ca/x", "value": "TEST-1"}}

    def of(site: str) -> dict[str, Any]:
        return ed_visit(subject=subject, serviceProvider={"reference": f"Organization/{site}"})

    unnamed = await door.put(ed_visit(subject=subject), who="hospitals")
    assert unnamed.status_code == 422
    assert (await door.put(of("hospital-b"), who="hospitals")).status_code == 201
    assert (await door.put(of("hospital-b"), who="hospital-a")).status_code == 403
    [row] = await door.rows("select site from resource where kind = 'Encounter'")
    assert row["site"] == "hospital-b"


async def test_creating_and_updating_need_their_own_letters(door: IngestDoor) -> None:
    """HA-99."""
    await door.put(patient())
    only_c, only_u = "system/Encounter.c", "system/Encounter.u"
    assert (await door.put(ed_visit(), scope=only_u)).status_code == 403
    assert (await door.post(ed_visit(), scope=only_c)).status_code == 201
    assert (await door.post(ed_visit(), scope=only_c)).status_code == 200
    changed = ed_visit(status="cancelled")
    assert (await door.post(changed, scope=only_c)).status_code == 403
    assert (await door.post(changed, scope="system/Encounter.cu")).status_code == 200
    assert (await door.ask("GET", "/Encounter/e1", scope=only_c)).status_code == 403


async def test_a_site_is_heard_at_most_once_a_minute(door: IngestDoor) -> None:
    await door.put(patient())
    await door.put(ed_visit())
    door.at(door.house.clock.now().replace(minute=1))
    await door.put(ed_visit("2"))
    assert len(await door.events("site.heard.v1")) == 2


async def test_validate_stores_nothing(door: IngestDoor) -> None:
    """HA-19."""
    fine = await door.ask("POST", "/Encounter/$validate", ed_visit())
    assert (fine.status_code, fine.json()["issue"][0]["severity"]) == (200, "information")
    bad = await door.ask("POST", "/Encounter/$validate", ed_visit(status="x"))
    assert (bad.status_code, bad.json()["issue"][0]["severity"]) == (200, "error")
    local: dict[str, Any] = {"system": "https://example.ca/classes", "code": "URG"}
    wrapped = {
        "resourceType": "Parameters",
        "parameter": [{"name": "resource", "resource": ed_visit() | {"class": local}}],
    }
    held = await door.ask("POST", "/Encounter/$validate", wrapped)
    assert held.json()["issue"][0]["severity"] == "warning"
    assert await door.rows("select key from resource") == []


async def test_without_a_database_nothing_is_promised(door: IngestDoor) -> None:
    """Section 7: 503 with Retry-After, and nothing half-written."""
    await door.put(patient())
    token = door.token("hospital-a")
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing", "ingest")
    away = make_app("ingest", nowhere)
    door.stage.hosts["http://away.example.ca"] = away
    authority = door.stage.authority()
    auth = Auth(authority, AUDIENCE, lambda: door.regions[0], door.stage.clock)
    guard(away, auth, audit.refusals(nowhere, door.house.clock.now))
    add_door(away, replace(door.house, db=nowhere))
    for method, path, body in (
        ("PUT", "/Encounter/e1", ed_visit()),
        ("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [
            {"resource": ed_visit(), "request": {"method": "PUT", "url": "Encounter/e1"}}]}),
        ("GET", "/Encounter/e1", None),
    ):  # fmt: skip
        answer = await door.stage.http.request(
            method,
            f"http://away.example.ca/fhir{path}",
            content=None if body is None else orjson.dumps(body),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/fhir+json"},
        )
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["issue"][0]["code"] == "transient"
    await nowhere.close()
    assert await door.facts() == []


async def test_transactions_that_cross_are_run_again(door: IngestDoor) -> None:
    """Each of many writers of the same few patients and visits is answered 2xx, none lost."""

    async def write(number: int) -> set[int]:
        who, visit = f"p{number % 3}", str(number % 4)
        subject = {"reference": f"Patient/{who}"}
        reason = [{"text": f"TEST {number}"}]
        one = await door.put(patient(who, card=None, gender=["male", "female"][number % 2]))
        two = await door.put(ed_visit(visit, subject=subject, reasonCode=reason))
        return {one.status_code, two.status_code}

    answers = await asyncio.gather(*(write(number) for number in range(24)))
    assert set().union(*answers) <= {200, 201}
    versions = await door.rows("select version from version where kind = 'Encounter'")
    assert len(versions) == 24
    assert len(await door.events("patient.identified.v1")) >= 3
