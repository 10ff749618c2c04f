"""The clinics' door over HTTP, on a real PostgreSQL, with real tokens (clinic-api.md)."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from fhir.resources.R4B import get_fhir_model_class

from schemas.flag_changed_v1 import Cause
from services.notify import capability, flow
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_builders import DAY, NOW
from tests.services.notify_door import Doorway, consent, panel

CSV = {"Content-Type": "text/csv; charset=utf-8"}
MERGE = {"Content-Type": "application/merge-patch+json"}
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
FHIR = {"Content-Type": "application/fhir+json"}
ROLE = {
    "coding": [
        {"system": build.TERMS + "v3-ParticipationType", "code": "IRCP"},
    ]
}
DENY_A = {
    "type": "deny",
    "actor": [{"role": ROLE, "reference": {"reference": "Organization/clinic-a"}}],
}
PERMIT_A = {**DENY_A, "type": "permit"}
HANDLERS: dict[str, Any] = {
    "flag.changed.v1": flow.on_flags_changed,
    "episode.changed.v1": flow.on_episodes_changed,
    "patient.identified.v1": flow.on_patients_identified,
}


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Doorway]:
    made = Doorway(db("notify"), build.house())
    yield made
    await made.close()


@pytest.fixture
async def opt_in(db: Callable[[str], Database]) -> AsyncIterator[Doorway]:
    made = Doorway(db("notify"), build.house(build.region("opt-in")))
    yield made
    await made.close()


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    yield connection
    await connection.close()


async def hear(door: Doorway, *events: Any) -> None:
    for event in events:
        async with door.db.work() as tx:
            await HANDLERS[event.type]([event], build.turn(tx, door.house, door.now))


async def flagged(door: Doorway, clinic: str = "clinic-a", nurse: str = "nurse-a") -> UUID:
    """A flagged patient of a clinic's confirmed panel."""
    p = uuid4()
    await hear(door, build.identified(p))
    emr = door.client(f"{clinic}-emr")
    answer = await emr.post("/panel?dry_run=false", content=panel(p, nurse=nurse), headers=CSV)
    assert answer.status_code == 200, answer.text
    await hear(door, build.flag(p))
    return p


async def tasks(client: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    answer = await client.get(f"/fhir/Task{query}")
    assert answer.status_code == 200, answer.text
    bundle = answer.json()
    assert bundle["total"] == len(bundle.get("entry", [])) or "_count" in query
    return [entry["resource"] for entry in bundle.get("entry", [])]


def is_valid(resource: dict[str, Any]) -> bool:
    """Legal R4, by the models."""
    get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    return True


# --- what is there, and for whom --------------------------------------------------------------


async def test_the_right_clinic_finds_one_task_and_another_an_empty_bundle(door: Doorway) -> None:
    p = await flagged(door)
    (task,) = await tasks(door.client("clinic-a-emr"))
    assert is_valid(task)
    assert (task["status"], task["for"]) == ("requested", {"reference": f"Patient/{p}"})
    assert task["owner"] == {"reference": "PractitionerRole/nurse-a"}
    other = await door.client("clinic-b-emr").get("/fhir/Task")
    assert (other.status_code, other.json()["total"]) == (200, 0)
    assert "entry" not in other.json()


async def test_the_task_names_the_counted_visits_and_the_rule(door: Doorway) -> None:
    await flagged(door)
    emr = door.client("clinic-a-emr")
    (task,) = await tasks(emr)
    said = {i["type"]["coding"][0]["code"]: i for i in task["input"]}
    assert said["ed-visits"]["valueUnsignedInt"] == 4
    assert said["clause-met"]["valueCode"] == "ed"
    assert said["policy"]["valueString"] == "qc-default/1"
    assert sum(i["type"]["coding"][0]["code"] == "counted" for i in task["input"]) == 4
    answer = await emr.get(f"/fhir/Provenance?target=Task/{task['id']}")
    (entry,) = answer.json()["entry"]
    assert is_valid(entry["resource"])
    assert len(entry["resource"]["entity"]) == 4


async def test_everything_around_a_card_is_legal_r4_and_readable(door: Doorway) -> None:
    p = await flagged(door)
    emr = door.client("clinic-a-emr")
    (task,) = await tasks(emr)
    paths = [
        f"Task/{task['id']}",
        f"Task/{task['id']}/_history/1",
        task["focus"]["reference"],
        f"Patient/{p}",
        task["owner"]["reference"],
        "Organization/clinic-a",
        "Organization/hospital-a",
        f"Provenance/task-{task['id']}-1",
    ]
    for path in paths:
        answer = await emr.get(f"/fhir/{path}")
        assert answer.status_code == 200, (path, answer.text)
        assert answer.headers["content-type"].startswith("application/fhir+json")
        assert is_valid(answer.json())
    patient = (await emr.get(f"/fhir/Patient/{p}")).json()
    assert patient["identifier"] == [{"system": build.CARD, "value": build.number(p)}]
    assert patient["name"] == [{"family": "Fictif", "given": ["Zoé"]}]


async def test_foreign_withheld_and_unknown_are_the_same_404(door: Doorway) -> None:
    """CA-01, CS-42."""
    mine, foreign = await flagged(door), await flagged(door, "clinic-b", "nurse-b")
    emr, other = door.client("clinic-a-emr"), door.client("clinic-b-emr")
    (their_task,) = await tasks(other)
    hospital = door.client("hospital-a")
    withheld = await hospital.put(
        "/fhir/Consent/TEST-1", json=consent(mine, DENY_A, id="TEST-1"), headers=FHIR
    )
    assert withheld.status_code == 201, withheld.text
    assert await tasks(emr) == []
    answers = [
        await emr.get(f"/fhir/Task/{their_task['id']}"),
        await emr.get(f"/fhir/Task/{uuid4()}"),
        await emr.get("/fhir/Task/no-uuid"),
        await emr.get(f"/fhir/Patient/{mine}"),
        await emr.get(f"/fhir/Patient/{foreign}"),
        await emr.get(f"/fhir/Patient/{uuid4()}"),
    ]
    assert {a.status_code for a in answers} == {404}
    assert len({a.content for a in answers}) == 1
    assert len({tuple(sorted(a.headers)) for a in answers}) == 1


async def test_a_task_that_was_received_becomes_a_stub_and_one_that_was_not_is_gone(
    door: Doorway,
) -> None:
    """CA-32."""
    received, never = await flagged(door), None
    emr, hospital = door.client("clinic-a-emr"), door.client("hospital-a")
    (task,) = await tasks(emr)
    never = await flagged(door)
    for p in (received, never):
        id_ = f"TEST-{p}"
        answer = await hospital.put(
            f"/fhir/Consent/{id_}", json=consent(p, DENY_A, id=id_), headers=FHIR
        )
        assert answer.status_code == 201, answer.text
    (stub,) = await tasks(emr)
    assert set(stub) == {
        "resourceType",
        "id",
        "meta",
        "status",
        "statusReason",
        "intent",
        "code",
        "lastModified",
    }
    assert is_valid(stub)
    assert stub["id"] == task["id"]
    assert int(stub["meta"]["versionId"]) > int(task["meta"]["versionId"])
    assert stub["status"] == "cancelled"
    assert stub["statusReason"]["coding"][0]["code"] == "no-longer-applies"
    assert (await emr.get(f"/fhir/Task/{task['id']}")).json() == stub
    for path in (
        f"Task/{task['id']}/_history/1",
        task["focus"]["reference"],
        task["for"]["reference"],
        f"Provenance/task-{task['id']}-1",
    ):
        assert (await emr.get(f"/fhir/{path}")).status_code == 404, path
    assert (await emr.get(f"/fhir/Task?patient={received}")).json()["total"] == 0


async def test_a_consent_makes_the_task_and_its_withdrawal_leaves_the_stub(
    opt_in: Doorway,
) -> None:
    """Issue 2, Shows."""
    p = await flagged(opt_in)
    emr, hospital = opt_in.client("clinic-a-emr"), opt_in.client("hospital-a")
    assert await tasks(emr) == []
    given = await hospital.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)
    assert given.status_code == 201
    assert is_valid(given.json())
    (task,) = await tasks(emr)
    assert task["status"] == "requested"
    id_ = given.json()["id"]
    withdrawn = {**consent(p, PERMIT_A, status="inactive"), "id": id_}
    seen = {**FHIR, "If-Match": given.headers["ETag"]}
    answer = await hospital.put(f"/fhir/Consent/{id_}", json=withdrawn, headers=seen)
    assert (answer.status_code, answer.json()["meta"]["versionId"]) == (200, "2")
    (stub,) = await tasks(emr)
    assert "for" not in stub


async def test_a_false_flag_says_why_its_task_was_taken_back(door: Doorway) -> None:
    p = await flagged(door)
    emr = door.client("clinic-a-emr")
    await tasks(emr)
    await hear(door, build.flag(p, 2, build.four_visits()[1:], cause=Cause.VOID, retracts=1))
    (task,) = await tasks(emr)
    assert (task["status"], task["statusReason"]["coding"][0]["code"]) == (
        "cancelled",
        "visit-cancelled",
    )
    assert is_valid(task)
    flag = (await emr.get(f"/fhir/Flag?patient={p}")).json()
    assert flag["entry"][0]["resource"]["status"] == "inactive" or flag["total"] == 1


# --- who may ----------------------------------------------------------------------------------


async def test_no_token_is_401_and_too_little_scope_403(door: Doorway) -> None:
    for path in ("Task", "Task/x", "Consent", "Subscription", "Nothing"):
        assert (await door.stranger().get(f"/fhir/{path}")).status_code == 401
    assert (await door.stranger().post("/panel")).status_code == 401
    poor = door.client("poor")
    assert (await poor.get("/fhir/Task")).status_code == 200
    for method, path in (
        ("GET", "/fhir/Task/x"),
        ("PATCH", "/fhir/Task/x"),
        ("GET", "/fhir/Flag"),
        ("POST", "/fhir/Consent"),
        ("POST", "/panel"),
        ("POST", "/fhir/Subscription"),
    ):
        answer = await poor.request(method, path)
        assert answer.status_code == 403, (method, path)
        assert answer.json()["resourceType"] == "OperationOutcome"
    hospital = door.client("hospital-a")
    assert (await hospital.get("/fhir/Task")).status_code == 403


async def test_other_verbs_are_405(door: Doorway) -> None:
    """CA-04."""
    emr = door.client("clinic-a-emr")
    for method, path in (
        ("POST", "/fhir/Task"),
        ("DELETE", "/fhir/Task/x"),
        ("PUT", "/fhir/Flag/x"),
        ("POST", "/fhir/Provenance"),
        ("DELETE", "/fhir/Consent/x"),
    ):
        answer = await emr.request(method, path)
        assert answer.status_code == 405, (method, path)
        assert answer.json()["resourceType"] == "OperationOutcome"


async def test_a_clinic_reads_only_the_consents_it_captured(door: Doorway) -> None:
    """CS-56."""
    p = await flagged(door)
    hospital, emr = door.client("hospital-a"), door.client("clinic-a-emr")
    theirs = await hospital.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)
    own = await emr.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)
    assert (theirs.status_code, own.status_code) == (201, 201)
    id_ = theirs.json()["id"]
    for reader in (emr, door.client("hospital-b")):
        assert (await reader.get(f"/fhir/Consent/{id_}")).status_code == 404
        assert (await reader.get(f"/fhir/Consent/{id_}/_history/1")).status_code == 404
    assert (await hospital.get(f"/fhir/Consent/{id_}")).status_code == 200
    assert (await hospital.get(f"/fhir/Consent/{id_}/_history/1")).status_code == 200
    found = (await emr.post("/fhir/Consent/_search")).json()
    assert [e["resource"]["id"] for e in found["entry"]] == [own.json()["id"]]
    changed = {**consent(p, DENY_A), "id": id_}
    answer = await emr.put(f"/fhir/Consent/{id_}", json=changed, headers=FHIR)
    assert answer.status_code == 404


async def test_a_clinic_captures_consents_of_its_own_patients_only(door: Doorway) -> None:
    p = await flagged(door, "clinic-b", "nurse-b")
    emr = door.client("clinic-a-emr")
    answer = await emr.post("/fhir/Consent", json=consent(p, PERMIT_A), headers=FHIR)
    assert answer.status_code == 403


async def test_a_consent_that_is_no_r4_is_refused_by_path_and_rule_without_its_values(
    door: Doorway,
) -> None:
    """CS-57."""
    bad = {**consent(uuid4(), PERMIT_A), "status": "SECRET", "shoe": "SECRET"}
    answer = await door.client("hospital-a").post("/fhir/Consent", json=bad, headers=FHIR)
    assert answer.status_code == 422
    assert "SECRET" not in answer.text
    assert "TEST0" not in answer.text


async def test_the_same_consent_twice_is_one_version(door: Doorway) -> None:
    p = await flagged(door)
    hospital = door.client("hospital-a")
    sent = consent(p, PERMIT_A, id="TEST-c9")
    first = await hospital.put("/fhir/Consent/TEST-c9", json=sent, headers=FHIR)
    again = await hospital.put("/fhir/Consent/TEST-c9", json=sent, headers=FHIR)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["meta"]["versionId"] == "1"
    stale = await hospital.put(
        "/fhir/Consent/TEST-c9",
        json={**sent, "status": "inactive"},
        headers={**FHIR, "If-Match": 'W/"7"'},
    )
    assert stale.status_code == 412


# --- search and paging ------------------------------------------------------------------------


async def test_search_parameters_find_and_do_not_find(door: Doorway) -> None:
    p = await flagged(door)
    await flagged(door)
    emr = door.client("clinic-a-emr")
    (task,) = await tasks(emr, f"?patient={p}")
    updated = task["meta"]["lastUpdated"]
    group = task["groupIdentifier"]
    for query, count in (
        (f"_id={task['id']}", 1),
        (f"_id={task['id']},{uuid4()}", 1),
        ("status=requested", 2),
        ("status=accepted,requested", 2),
        ("status=http://hl7.org/fhir/task-status|requested", 2),
        ("status=accepted", 0),
        ("priority=routine", 2),
        ("code=threshold-reached", 2),
        ("business-status=not-started", 2),
        ("owner=PractitionerRole/nurse-a", 2),
        ("owner=nurse-a", 2),
        (f"owner={build.BASE}/PractitionerRole/nurse-a", 2),
        ("owner=PractitionerRole/nurse-d", 0),
        (f"patient=Patient/{p}", 1),
        (f"patient:Patient={p}", 1),
        (f"focus={task['focus']['reference']}", 1),
        (f"group-identifier={group['system']}|{group['value']}", 1),
        (f"_lastUpdated=ge{updated}", 2),
        (f"_lastUpdated=eq{updated}", 1),
        (f"_lastUpdated=lt{updated}", 0),
        ("_lastUpdated=ge2026-03-02", 2),
        ("_lastUpdated=sa2026-03-02", 0),
        ("_lastUpdated=2026-03", 2),
        ("authored-on=eb2026-03-02", 0),
        ("modified=le2027", 2),
        (f"patient={p}&status=accepted", 0),
        ("_count=0", 0),
        ("unknown=x", 2),
    ):
        answer = await emr.get(f"/fhir/Task?{query}")
        assert answer.status_code == 200, (query, answer.text)
        assert len(answer.json().get("entry", [])) == count, query
    assert (await emr.get("/fhir/Task?_count=0")).json()["total"] == 2


@pytest.mark.parametrize(
    "query",
    [
        "_lastUpdated=yesterday",
        "_lastUpdated=ge2026-13",
        "_count=many",
        "_sort=shoe",
        "status:not=requested",
        "status=",
        "_cursor=tampered",
        "identifier=x|y",
        "patient:identifier=x|y",
        "patient.identifier=x|y",
    ],
)
async def test_a_bad_value_is_always_400(door: Doorway, query: str) -> None:
    """CA-11, CA-12."""
    answer = await door.client("clinic-a-emr").get(f"/fhir/Task?{query}")
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"


async def test_an_unknown_parameter_is_400_only_if_asked_to_be_strict(door: Doorway) -> None:
    emr = door.client("clinic-a-emr")
    lenient = await emr.get("/fhir/Task?shoe=42")
    assert "shoe" not in lenient.json()["link"][0]["url"]
    strict = await emr.get("/fhir/Task?shoe=42", headers={"Prefer": "handling=strict"})
    assert strict.status_code == 400


async def test_a_patients_identifier_finds_only_in_a_body_and_stays_out_of_links(
    door: Doorway,
) -> None:
    """CA-11."""
    p = await flagged(door)
    await flagged(door)
    emr = door.client("clinic-a-emr")
    form = {"patient:identifier": f"{build.CARD}|{build.number(p)}"}
    answer = await emr.post("/fhir/Task/_search", data=form)
    assert answer.json()["total"] == 1
    assert build.number(p) not in answer.json()["link"][0]["url"]
    assert str(p) in answer.json()["link"][0]["url"]
    nobody = await emr.post("/fhir/Task/_search", data={"patient:identifier": "x|TEST9"})
    assert nobody.json()["total"] == 0
    found = await emr.post(
        "/fhir/Patient/_search", data={"identifier": f"{build.CARD}|{build.number(p)}"}
    )
    assert [e["resource"]["id"] for e in found.json()["entry"]] == [str(p)]


async def test_pages_neither_skip_nor_double(door: Doorway) -> None:
    """CA-14."""
    people = {await flagged(door) for _ in range(5)}
    emr = door.client("clinic-a-emr")
    seen: list[str] = []
    url: str | None = "/fhir/Task?_count=2&_sort=-_lastUpdated"
    while url is not None:
        bundle = (await emr.get(url)).json()
        assert bundle["total"] == 5
        seen += [e["resource"]["for"]["reference"] for e in bundle["entry"]]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next")
    assert len(seen) == 5
    assert {s.removeprefix("Patient/") for s in seen} == {str(p) for p in people}


async def test_a_page_link_is_of_its_search_its_clinic_and_its_day(door: Doorway) -> None:
    for _ in range(2):
        await flagged(door)
    emr, other = door.client("clinic-a-emr"), door.client("clinic-b-emr")
    bundle = (await emr.get("/fhir/Task?_count=1")).json()
    (following,) = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
    assert following.startswith(build.BASE)
    assert (await emr.get(following)).status_code == 200
    assert (await other.get(following)).status_code == 400
    assert (await emr.get(following.replace("_count=1", "_count=2"))).status_code == 400
    assert (await emr.get(following[:-4] + "AAAA")).status_code == 400


async def test_a_poller_sees_every_change_once(door: Doorway) -> None:
    """CA-15, also when the business clock goes back."""
    emr = door.client("clinic-a-emr")
    last, seen = "2000-01-01T00:00:00.000Z", set()
    for back in (0, 3, -1):
        door.now = NOW - back * DAY
        await flagged(door)
        fresh = await tasks(emr, f"?_lastUpdated=ge{last}&_sort=_lastUpdated")
        new = [t for t in fresh if (t["id"], t["meta"]["versionId"]) not in seen]
        assert len(new) == 1
        seen |= {(t["id"], t["meta"]["versionId"]) for t in fresh}
        last = fresh[-1]["meta"]["lastUpdated"]


async def test_includes_are_decided_and_need_their_own_scope(door: Doorway) -> None:
    """CA-16."""
    await flagged(door)
    query = (
        "/fhir/Task?_include=Task:patient&_include=Task:focus&_include=Task:owner"
        "&_revinclude=Provenance:target"
    )
    full = (await door.client("clinic-a-emr").get(query)).json()
    assert [(e["search"]["mode"], e["resource"]["resourceType"]) for e in full["entry"]] == [
        ("match", "Task"),
        ("include", "Flag"),
        ("include", "Patient"),
        ("include", "PractitionerRole"),
        ("include", "Provenance"),
    ]
    assert full["total"] == 1
    assert is_valid(full)
    less = (await door.client("clinic-a-emr", "system/Task.rs").get(query)).json()
    assert len(less["entry"]) == 1


async def test_words_follow_the_readers_language(door: Doorway) -> None:
    await flagged(door)
    emr = door.client("clinic-a-emr")
    texts = set()
    for language in ("fr", "en"):
        (task,) = (await emr.get("/fhir/Task", headers={"Accept-Language": language})).json()[
            "entry"
        ]
        texts.add(task["resource"]["code"]["coding"][0]["display"])
    assert texts == {"Usage fréquent de l'hôpital : à revoir", "Frequent use of hospital: review"}


# --- acknowledgement (CA-20 to CA-26) ---------------------------------------------------------


async def one(door: Doorway) -> tuple[httpx.AsyncClient, str, dict[str, Any]]:
    await flagged(door)
    emr = door.client("clinic-a-emr")
    (task,) = await tasks(emr)
    return emr, f"/fhir/Task/{task['id']}", task


async def test_a_merge_patch_accepts_and_a_repeat_changes_nothing(door: Doorway) -> None:
    emr, url, _ = await one(door)
    match = {**MERGE, "If-Match": 'W/"1"'}
    first = await emr.patch(url, json={"status": "accepted"}, headers=match)
    assert (first.status_code, first.json()["status"]) == (200, "accepted")
    assert first.json()["businessStatus"]["coding"][0]["code"] == "in-progress"
    assert first.headers["etag"] == 'W/"2"'
    again = await emr.patch(url, json={"status": "accepted"}, headers=match)
    assert (again.status_code, again.json()["meta"]["versionId"]) == (200, "2")
    stale = await emr.patch(url, json={"status": "in-progress"}, headers=match)
    assert stale.status_code == 412
    assert "version is 2" in stale.text
    assert "accepted" in stale.text


async def test_each_form_of_patch_and_put_acknowledges(door: Doorway) -> None:
    emr, url, _ = await one(door)
    steps = [{"op": "test", "path": "/status", "value": "requested"}]
    steps += [{"op": "replace", "path": "/status", "value": "received"}]
    assert (await emr.patch(url, json=steps, headers=JSON_PATCH)).status_code == 200
    assert (await emr.patch(url, json=steps, headers=JSON_PATCH)).status_code == 200
    plain = {"status": "accepted", "meta": {"versionId": "2"}}
    answer = await emr.patch(url, json=plain, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    whole = {**answer.json(), "status": "in-progress"}
    answer = await emr.put(url, json=whole, headers=FHIR)
    assert (answer.status_code, answer.json()["status"]) == (200, "in-progress")
    english = (await emr.get(url, headers={"Accept-Language": "en"})).json()
    answer = await emr.put(url, json=english, headers=FHIR)  # displays in another language
    assert (answer.status_code, answer.json()["meta"]["versionId"]) == (200, "4")
    history = (await emr.get(f"{url}/_history/2")).json()
    assert history["status"] == "received"


async def test_a_change_without_a_guard_is_400_saying_how(door: Doorway) -> None:
    emr, url, _ = await one(door)
    answer = await emr.patch(url, json={"status": "accepted"}, headers=MERGE)
    assert answer.status_code == 400
    assert "If-Match" in answer.text


async def test_fhirpath_patch_is_415(door: Doorway) -> None:
    emr, url, _ = await one(door)
    answer = await emr.patch(url, json={"resourceType": "Parameters"}, headers=FHIR)
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("patch", "elements"),
    [
        ({"priority": "stat", "status": "accepted"}, ["Task.priority"]),
        ({"for": None, "intent": "plan"}, ["Task.for", "Task.intent"]),
        ({"status": "draft"}, ["Task.status"]),
        ({"status": "cancelled"}, ["Task.status"]),
        ({"status": "rejected"}, ["Task.statusReason"]),
        ({"owner": {"reference": "PractitionerRole/nurse-b"}}, ["Task.owner"]),
        ({"status": "completed", "businessStatus": {"coding": [{"code": "not-started"}]}}, None),
        ({"input": []}, ["Task.input"]),
        ({"status": "on-hold", "extension": [{"url": "x"}]}, ["Task.extension"]),
        ({"note": "text"}, ["Task.note"]),
    ],
)
async def test_what_may_not_be_changed_is_named_and_nothing_is_applied(
    door: Doorway, patch: dict[str, Any], elements: list[str] | None
) -> None:
    """CA-22, CA-23, CA-25."""
    emr, url, _ = await one(door)
    answer = await emr.patch(url, json=patch, headers={**MERGE, "If-Match": 'W/"1"'})
    assert answer.status_code == 422, answer.text
    named = [issue["expression"][0] for issue in answer.json()["issue"]]
    assert named == (elements or ["Task.businessStatus"])
    assert (await emr.get(url)).json()["meta"]["versionId"] == "1"


async def test_rejecting_needs_a_reason_and_may_be_undone_for_half_an_hour(door: Doorway) -> None:
    emr, url, _ = await one(door)
    reason = {"coding": [{"code": "already-known"}]}
    done = await emr.patch(
        url,
        json={"status": "rejected", "statusReason": reason},
        headers={**MERGE, "If-Match": 'W/"1"'},
    )
    assert (done.status_code, done.json()["status"]) == (200, "rejected")
    door.passes(minutes=29)
    undone = await emr.patch(
        url,
        json={"status": "accepted", "statusReason": None},
        headers={**MERGE, "If-Match": 'W/"2"'},
    )
    assert (undone.status_code, undone.json()["status"]) == (200, "accepted")
    assert "statusReason" not in undone.json()
    again = await emr.patch(
        url, json={"status": "completed"}, headers={**MERGE, "If-Match": 'W/"3"'}
    )
    assert again.json()["output"][0]["valueCode"] == "not-stated"
    door.passes(minutes=31)
    late = await emr.patch(url, json={"status": "accepted"}, headers={**MERGE, "If-Match": 'W/"4"'})
    assert late.status_code == 422


async def test_a_snooze_has_a_limit_and_wakes(door: Doorway) -> None:
    """CA-25."""
    from services.notify.fhir import SNOOZE

    emr, url, _ = await one(door)

    def until(instant: str) -> dict[str, Any]:
        return {"status": "on-hold", "extension": [{"url": SNOOZE, "valueDateTime": instant}]}

    match = {**MERGE, "If-Match": 'W/"1"'}
    late = await emr.patch(url, json=until("2026-03-16T19:05:11Z"), headers=match)
    assert late.status_code == 422
    kept = await emr.patch(url, json=until("2026-03-05T08:00:00-05:00"), headers=match)
    assert (kept.status_code, kept.json()["status"]) == (200, "on-hold")
    assert kept.json()["extension"][0]["valueDateTime"] == "2026-03-05T13:00:00Z"


async def test_a_note_and_an_owner_are_kept(door: Doorway) -> None:
    emr, url, _ = await one(door)
    patch = {"owner": {"reference": "PractitionerRole/nurse-d"}, "note": [{"text": "Appelé."}]}
    answer = await emr.patch(url, json=patch, headers={**MERGE, "If-Match": 'W/"1"'})
    assert answer.status_code == 200, answer.text
    assert answer.json()["owner"] == {"reference": "PractitionerRole/nurse-d"}
    (note,) = answer.json()["note"]
    assert (note["text"], note["authorString"]) == ("Appelé.", "clinic-a-emr")
    rewritten = {"note": [{"text": "Other."}]}
    refused = await emr.patch(url, json=rewritten, headers={**MERGE, "If-Match": 'W/"2"'})
    assert refused.status_code == 422


async def test_another_clinics_card_cannot_be_acknowledged(door: Doorway) -> None:
    _, url, _ = await one(door)
    other = door.client("clinic-b-emr")
    answer = await other.patch(
        url, json={"status": "accepted"}, headers={**MERGE, "If-Match": 'W/"1"'}
    )
    assert answer.status_code == 404


# --- panel ------------------------------------------------------------------------------------


async def test_a_panel_upload_is_a_dry_run_unless_asked_and_shows_no_value(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    """CA-40."""
    emr = door.client("clinic-a-emr")
    text = panel(uuid4()) + f"{build.CARD},SECRET,Secret,not-a-date,nobody\n"
    answer = await emr.post("/panel", content=text.encode(), headers=CSV)
    report = answer.json()
    assert (report["added"], report["bad"], report["applied"]) == (1, 1, False)
    assert {row["column"] for row in report["rows"]} == {"birth_date", "nurse"}
    assert "SECRET" not in answer.text.upper().replace("SECRET_", "")
    assert await owner.fetchval("select count(*) from notify.panel") == 0
    applied = await emr.post("/panel?dry_run=false", content=text.encode(), headers=CSV)
    assert applied.json()["applied"]
    again = await emr.post("/panel?dry_run=false", content=text.encode(), headers=CSV)
    assert (again.json()["added"], again.json()["unchanged"]) == (0, 1)


async def test_a_full_list_that_ends_many_needs_the_report_of_the_same_file(
    door: Doorway,
) -> None:
    emr = door.client("clinic-a-emr")
    people = [uuid4() for _ in range(5)]
    await emr.post("/panel?dry_run=false", content=panel(*people), headers=CSV)
    shorter = panel(*people[:3])
    url = "/panel?mode=full&dry_run=false"
    assert (await emr.post(url, content=shorter, headers=CSV)).status_code == 409
    dry = (await emr.post("/panel?mode=full", content=shorter, headers=CSV)).json()
    assert dry["needs_confirmation"]
    other = panel(*people[:2])
    confirmed = f"{url}&confirm={dry['report']}"
    assert (await emr.post(confirmed, content=other, headers=CSV)).status_code == 409
    done = await emr.post(confirmed, content=shorter, headers=CSV)
    assert (done.status_code, done.json()["ended"]) == (200, 2)


@pytest.mark.parametrize(
    ("content", "headers", "query", "status"),
    [
        (b"x", {"Content-Type": "application/json"}, "", 415),
        (b"x", CSV, "", 422),
        ("é".encode("latin-1"), CSV, "", 422),
        (b"x", CSV, "?mode=some", 400),
        (b"x", CSV, "?dry_run=perhaps", 400),
        (b"x", CSV, "?confirm=x", 400),
    ],
)
async def test_a_file_that_cannot_be_read_is_refused(
    door: Doorway, content: bytes, headers: dict[str, str], query: str, status: int
) -> None:
    emr = door.client("clinic-a-emr")
    answer = await emr.post(f"/panel{query}", content=content, headers=headers)
    assert answer.status_code == status


# --- audit ------------------------------------------------------------------------------------


async def test_each_read_and_each_patient_found_is_recorded_without_identifiers(
    door: Doorway, owner: asyncpg.Connection
) -> None:
    """E-1, E-2."""
    people = [await flagged(door) for _ in range(2)]
    emr = door.client("clinic-a-emr")
    await owner.execute("delete from notify.audit")
    form = {"patient:identifier": f"{build.CARD}|{build.number(people[0])}"}
    await emr.post("/fhir/Task/_search", data=form)
    await emr.get("/fhir/Task")
    await emr.get("/fhir/Task?status=completed")
    await emr.get(f"/fhir/Patient/{people[1]}")
    rows = await owner.fetch(
        "select shape, agent, patient, query from notify.audit order by position"
    )
    assert [r["shape"] for r in rows] == ["PatientQuery"] * 3 + ["Query", "PatientRead"]
    assert {r["agent"] for r in rows} == {"clinic-a-emr"}
    told = " ".join(str(r["query"]) for r in rows)
    assert build.number(people[0]) not in told


# --- what it says of itself -------------------------------------------------------------------


async def test_the_capability_statement_is_what_the_routes_do(door: Doorway) -> None:
    """CA-83."""
    said = (await door.stranger().get("/fhir/metadata")).json()
    assert is_valid(said)
    routes = {
        (method, route.path)
        for included in door.app.routes
        for route in getattr(getattr(included, "original_router", None), "routes", [])
        for method in route.methods
    }
    verbs = {
        "read": ("GET", "/fhir/{0}/{{id_}}"),
        "vread": ("GET", "/fhir/{0}/{{id_}}/_history/{{version}}"),
        "update": ("PUT", "/fhir/{0}/{{id_}}"),
        "patch": ("PATCH", "/fhir/{0}/{{id_}}"),
        "create": ("POST", "/fhir/{0}"),
        "delete": ("DELETE", "/fhir/{0}/{{id_}}"),
        "search-type": ("GET", "/fhir/{0}"),
    }
    for resource in said["rest"][0]["resource"]:
        declared = {i["code"] for i in resource["interaction"]}
        for code, (method, path) in verbs.items():
            is_routed = (method, path.format(resource["type"])) in routes
            assert is_routed is (code in declared), (resource["type"], code)
    assert {r["type"] for r in said["rest"][0]["resource"]} == set(capability.OFFERED)


async def test_smart_configuration_needs_no_token(door: Doorway) -> None:
    answer = await door.stranger().get("/fhir/.well-known/smart-configuration")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_only_fhir_json_is_served(door: Doorway) -> None:
    emr = door.client("clinic-a-emr")
    for accept in ("application/fhir+xml", "text/html"):
        assert (await emr.get("/fhir/Task", headers={"Accept": accept})).status_code == 406
    r5 = "application/fhir+json; fhirVersion=5.0"
    assert (await emr.get("/fhir/Task", headers={"Accept": r5})).status_code == 406
    assert (await emr.get("/fhir/Task?_format=json")).status_code == 200
