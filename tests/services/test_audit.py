"""What is kept of who did, saw and was told what (E-1 to E-6, CS-110 to CS-112)."""

import os
from base64 import b64decode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from fhir.resources.R4B.auditevent import AuditEvent
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request

from services.plumbing import audit
from services.plumbing.audit import AuditRecord, Outcome, Shape, Trail, as_fhir, record
from services.plumbing.auth import Caller, Kind
from services.plumbing.db import Database
from services.plumbing.web import Rejection
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import shared_database

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
SERVER = "https://notify.example.ca"
PATIENT = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")
TASK = "Task/0b5d6c1e-6a0e-4f0b-9a51-2d6f7d3c9a10/_history/2"


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    async with shared_database(cluster, f"t{os.getpid()}_audit") as made:
        yield made


@pytest.fixture
async def notify(shared: FreshDatabase) -> AsyncIterator[Database]:
    made = Database(shared.url("notify"), "notify")
    yield made
    await made.close()


def trail(**changed: Any) -> Trail:
    said: dict[str, Any] = {
        "at": NOW,
        "agent": "clinic-a-emr",
        "agent_kind": "client",
        "tenant": "clinic-a",
        "token_id": "TEST-token",
        "network": "192.0.2.7",
        "request_id": "TEST-request-00000000001",
    }
    return Trail(**(said | changed))


def nurse() -> Trail:
    return trail(agent="nurse-a", agent_kind="person", roles=("clinic_cm",), token_id=None)


async def kept(db: Database, patient: UUID) -> list[AuditRecord]:
    async with db.work() as tx:
        found = await tx.execute(
            text("select * from audit where patient = :patient order by position"),
            {"patient": patient},
        )
        return [audit.stored(row) for row in found.all()]


# With its effect or not at all (E-6)


async def test_a_record_is_kept_as_it_was_made(notify: Database) -> None:
    patient = uuid4()
    made = [
        trail().read(TASK, patient, "vread"),
        nurse().decided(
            patient,
            "clinic-a",
            permitted=False,
            reasons=["restricted", "unknown-label"],
            consents=["Consent/TEST-1/_history/2", "Consent/TEST-2/_history/1"],
            policy="qc/implied",
            reader="nurse-a",
        ),
    ]
    async with notify.work() as tx:
        await record(tx, made)
    assert await kept(notify, patient) == made


async def test_a_record_is_undone_with_its_effect(notify: Database) -> None:
    patient = uuid4()

    async def fails_after_recording() -> None:
        async with notify.work() as tx:
            await record(tx, [trail().created("Consent/TEST-1/_history/1", patient)])
            await tx.execute(text("select 1 / 0"))

    with pytest.raises(DBAPIError):
        await fails_after_recording()
    assert await kept(notify, patient) == []


async def test_an_effect_is_undone_when_its_record_cannot_be_written(
    notify: Database, shared: FreshDatabase
) -> None:
    """CS-110: audit not writable, nothing is done."""
    owner = await shared.owner()
    await owner.execute("create table notify.effect (done boolean)")
    await owner.execute("grant all on notify.effect to passerelle_notify_worker")
    await owner.execute("revoke insert on notify.audit from passerelle_notify_worker")

    async def has_its_effect() -> None:
        async with notify.work() as tx:
            await tx.execute(text("insert into effect values (true)"))
            await record(tx, [trail().read(TASK, PATIENT)])

    try:
        with pytest.raises(Rejection) as raised:
            await has_its_effect()
        assert raised.value.status == 503
        assert await owner.fetchval("select count(*) from notify.effect") == 0
    finally:
        await owner.execute("grant insert on notify.audit to passerelle_notify_worker")
        await owner.execute("drop table notify.effect")
        await owner.close()


async def test_any_number_of_records_is_one_statement(notify: Database) -> None:
    """E-2: 50 cards are 50 records, batched."""
    statements: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "insert into audit" in statement:
            statements.append(statement)

    event.listen(notify.engine.sync_engine, "before_cursor_execute", count)
    patients = [uuid4() for _ in range(50)]
    async with notify.work() as tx:
        await record(tx, trail().searched("Task?status=requested", patients))
        await record(tx, [])
    assert len(statements) == 1
    for patient in patients:
        assert len(await kept(notify, patient)) == 1


async def test_a_page_s_own_refresh_is_kept_once_a_session_and_version(notify: Database) -> None:
    """E-2"""
    patient, session, another = uuid4(), uuid4(), uuid4()
    for seen, version in ((session, 1), (session, 1), (session, 2), (another, 1), (session, 1)):
        async with notify.request("clinic-a") as tx:
            await record(tx, [nurse().refreshed(f"Task/TEST/_history/{version}", patient, seen)])
    assert len(await kept(notify, patient)) == 3
    async with notify.request("clinic-a") as tx:
        await record(tx, [nurse().read("Task/TEST/_history/1", patient)] * 2)
    assert len(await kept(notify, patient)) == 5  # a person's own looks are each kept


# Append-only, and each tenant for itself (CS-112, CS-91)


@pytest.mark.parametrize(
    "statement",
    [
        "update audit set outcome = 8",
        "update audit set recorded = now()",
        "delete from audit",
        "truncate audit",
        "alter table audit disable row level security",
        "drop table audit",
        "alter table audit owner to current_user",
    ],
)
@pytest.mark.parametrize("role", ["request", "worker"])
async def test_neither_role_changes_what_is_recorded(
    notify: Database, statement: str, role: str
) -> None:
    opened = notify.request("clinic-a") if role == "request" else notify.work()
    with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
        async with opened as tx:
            await tx.execute(text(statement))


@pytest.mark.parametrize("service", ["ingest", "screening", "notify"])
async def test_the_audit_of_every_service_is_append_only(
    shared: FreshDatabase, service: str
) -> None:
    owner = await shared.owner()
    try:
        for kind in ("request", "worker"):
            rights = await owner.fetch(
                "select privilege_type from information_schema.role_table_grants"
                " where table_schema = $1 and table_name = 'audit' and grantee = $2",
                service,
                f"passerelle_{service}_{kind}",
            )
            assert {row["privilege_type"] for row in rights} == {"SELECT", "INSERT"}
        forced = await owner.fetchval(
            "select relforcerowsecurity and relrowsecurity from pg_class"
            " where oid = ($1 || '.audit')::regclass",
            service,
        )
        assert forced
    finally:
        await owner.close()


async def test_a_request_records_only_for_its_own_tenant(notify: Database) -> None:
    async with notify.request("clinic-a") as tx:
        await record(tx, [trail().read(TASK, PATIENT)])
    with pytest.raises(Rejection):
        async with notify.request("clinic-b") as tx:
            await record(tx, [trail().read(TASK, PATIENT)])
    with pytest.raises(Rejection):
        async with notify.request("clinic-a") as tx:
            await record(tx, [trail(tenant=None).read(TASK, PATIENT)])
    async with notify.request("", "privacy") as tx:  # who belongs to no clinic and no site
        await record(tx, [trail(tenant=None).read(TASK, PATIENT)])


async def seen_by(db: Database, tenant: str, role: str, patient: UUID) -> set[str]:
    async with db.request(tenant, role) as tx:
        found = await tx.execute(
            text("select shape from audit where patient = :patient"), {"patient": patient}
        )
        return set(found.scalars())


async def test_a_decision_is_seen_by_the_privacy_officer_alone(notify: Database) -> None:
    """CS-42: to a clinic a refusal looks as if nothing had happened."""
    patient = uuid4()
    withheld = trail().decided(
        patient, "clinic-a", permitted=False, reasons=["no-consent"], consents=[], policy="opt-in"
    )
    async with notify.work() as tx:
        await record(tx, [withheld, trail().read(TASK, patient)])
    assert await seen_by(notify, "clinic-a", "client", patient) == {"PatientRead"}
    assert await seen_by(notify, "clinic-b", "client", patient) == set()
    assert await seen_by(notify, "", "privacy", patient) == {"PatientRead", "AuthZ-Role"}


# Shapes


def test_a_search_is_one_record_a_patient_and_one_if_it_found_none() -> None:
    """E-2"""
    other = uuid4()
    found = trail().searched("Task?status=requested", [PATIENT, other, PATIENT])
    assert {one.patient for one in found} == {PATIENT, other}
    assert [one.shape for one in found] == [Shape.PATIENT_QUERY] * 2
    (none,) = trail().searched("Task?status=requested", [])
    assert (none.shape, none.patient) == (Shape.QUERY, None)


def test_a_default_decision_rests_on_no_consent() -> None:
    """CS-111"""
    by_default = trail().decided(
        PATIENT, "clinic-a", permitted=True, reasons=["implied"], consents=[], policy="qc/implied"
    )
    assert by_default.shape is Shape.DECISION_BY_DEFAULT
    assert by_default.outcome is Outcome.SUCCESS


def test_withheld_and_on_hold_are_the_same_outcome() -> None:
    for reason in ("restricted", "unknown-label"):
        decision = trail().decided(
            PATIENT,
            "clinic-a",
            permitted=False,
            reasons=[reason],
            consents=["Consent/TEST-1"],
            policy="qc/implied",
        )
        assert decision.outcome is Outcome.SERIOUS_FAILURE


def request(headers: dict[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw, "client": ("192.0.2.7", 5000), "method": "GET"})


def test_a_trail_knows_who_asked_from_where() -> None:
    who = Caller(
        id="hospitals",
        kind=Kind.CLIENT,
        sites=frozenset({"hospital-a", "hospital-b"}),
        token_id="TEST-token",
    )
    made = Trail.of(request({}), who, NOW, tenant="hospital-b")
    assert (made.agent, made.tenant, made.network) == ("hospitals", "hospital-b", "192.0.2.7")
    assert Trail.of(request({}), who, NOW).tenant is None


@pytest.mark.parametrize(
    ("sent", "kept_as"),
    [
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "7c9e6679-7425-40de-944b-e07fc1f90ae7"),
        ("TEST12345678", None),  # as long as a card number
        ("a" * 65, None),
        ("7c9e6679 7425 40de 944b e07fc1f90ae7", None),
        ("", None),
    ],
)
def test_a_request_id_is_kept_if_it_cannot_be_a_card_number(sent: str, kept_as: str | None) -> None:
    assert audit.request_id(request({"x-request-id": sent})) == kept_as


DISCLOSED = trail().disclosed(TASK, PATIENT, "clinic-a")
DECIDED = trail().decided(
    PATIENT,
    "clinic-a",
    permitted=False,
    reasons=["restricted"],
    consents=["Consent/TEST-1/_history/2"],
    policy="qc/implied",
    reader="nurse-a",
)
EVERY_SHAPE = [
    trail().created("Encounter/TEST-1/_history/1", PATIENT),
    trail().created("Subscription/TEST-1", None),
    trail().updated(TASK, PATIENT, "patch"),
    trail().updated("Subscription/TEST-1", None),
    trail().deleted("Encounter/TEST-1", PATIENT),
    trail().deleted("Subscription/TEST-1", None),
    trail().read(TASK, PATIENT),
    trail().read("Organization/clinic-a", None),
    nurse().read(TASK, PATIENT),
    nurse().updated(TASK, PATIENT),
    *trail().searched("Task?status=requested", [PATIENT]),
    *trail().searched("Task?status=requested", []),
    DISCLOSED,
    DECIDED,
    trail().decided(
        PATIENT, "clinic-a", permitted=True, reasons=["implied"], consents=[], policy="qc/implied"
    ),
    trail().refused(401),
    trail().refused(403),
    nurse().signed_in(),
    nurse().signed_out(),
    nurse().exported("panel-report"),
    trail().configured("Subscription/TEST-1"),
    Trail.background("notify", NOW, "clinic-a").disclosed(TASK, PATIENT, "clinic-a"),
]


@pytest.mark.parametrize("made", EVERY_SHAPE, ids=lambda made: f"{made.shape}-{made.agent_kind}")
def test_every_record_is_a_fhir_audit_event(made: AuditRecord) -> None:
    said = as_fhir(uuid4(), made, SERVER)
    AuditEvent.model_validate(said)
    assert said["type"]["code"]
    assert len(said["agent"]) >= 2
    assert all("network" in agent for agent in said["agent"][:1])


def test_every_shape_is_shown_above() -> None:
    assert {made.shape for made in EVERY_SHAPE} == set(Shape)


def codes(said: dict[str, Any]) -> list[str]:
    return [agent["type"]["coding"][0]["code"] for agent in said["agent"]]


@pytest.mark.parametrize(
    ("made", "profile", "subtype", "action", "agents"),
    [
        (EVERY_SHAPE[0], "PatientCreate", "create", "C", ["110153", "110152"]),
        (EVERY_SHAPE[2], "PatientUpdate", "patch", "U", ["110153", "110152"]),
        (EVERY_SHAPE[4], "PatientDelete", "delete", "D", ["110153", "110152"]),
        (EVERY_SHAPE[6], "PatientRead", "read", "R", ["110152", "110153"]),
        (EVERY_SHAPE[8], "PatientRead", "read", "R", ["110152", "110153", "IRCP"]),
        (EVERY_SHAPE[9], "PatientUpdate", "update", "U", ["110153", "110152", "AUT"]),
        (EVERY_SHAPE[10], "PatientQuery", "search-type", "E", ["110153", "110152"]),
        (EVERY_SHAPE[11], "Query", "search-type", "E", ["110153", "110152"]),
        (DISCLOSED, "PrivacyDisclosure.Source", "disclose", "R", ["110153", "110152"]),
        (DECIDED, "AuthZconsent", "AuthZ-Consent", "E", ["110150", "IRCP", "PROV", "authserver"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_balp_s_profiles_are_kept(
    made: AuditRecord, profile: str, subtype: str, action: str, agents: list[str]
) -> None:
    """The patterns of IHE BALP 1.1: in a read the caller is the destination."""
    said = as_fhir(uuid4(), made, SERVER)
    assert said["meta"]["profile"] == [f"{audit.BALP}{profile}"]
    assert said["subtype"][0]["code"] == subtype
    assert said["action"] == action
    assert codes(said) == agents


def test_a_disclosure_names_its_source_as_observer() -> None:
    """BALP val-audit-source, and CS-111: purpose COC."""
    said = as_fhir(uuid4(), DISCLOSED, SERVER)
    assert said["agent"][0]["who"] == said["source"]["observer"]
    assert said["agent"][1]["who"] == {"reference": "Organization/clinic-a"}
    assert said["purposeOfEvent"][0]["coding"][0]["code"] == "COC"
    kinds = [entity["type"]["code"] for entity in said["entity"]]
    assert kinds == ["1", "XrequestId", "2"]


def test_a_consent_decision_has_patient_and_consents_and_nothing_else() -> None:
    """BALP closes the entities of AuthZconsent."""
    said = as_fhir(uuid4(), DECIDED, SERVER)
    assert said["type"]["code"] == "110113"
    assert said["outcome"] == "8"
    assert said["outcomeDesc"] == "restricted"
    assert [entity["what"]["reference"].split("/")[0] for entity in said["entity"]] == [
        "Patient",
        "Consent",
    ]
    assert said["agent"][-1]["who"] == said["source"]["observer"]


def test_a_query_is_encoded() -> None:
    (made,) = trail().searched("Task?status=requested", [PATIENT])
    said = as_fhir(uuid4(), made, SERVER)
    (query,) = [entity["query"] for entity in said["entity"] if "query" in entity]
    assert b64decode(query) == b"Task?status=requested"


def test_no_record_has_a_description_or_a_name_of_a_person() -> None:
    """E-5"""
    for made in EVERY_SHAPE:
        said = as_fhir(uuid4(), made, SERVER)
        assert all("description" not in entity for entity in said.get("entity", ()))
        assert all("name" not in agent for agent in said["agent"])
