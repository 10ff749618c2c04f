"""Row-level security, table by table: nothing is open that nobody opened (CS-91, CS-92)."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.plumbing.db import Database, Tx, sqlstate
from services.plumbing.migrate import AUDITOR, PURGER
from services.plumbing.settings import SERVICES
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import shared_database

OPEN: dict[str, str] = {
    "plumbing.migration": "which files of SQL were run: no tenant, no patient",
    **{
        f"{service}.place": "how far a reader has read: no tenant, no patient"
        for service in SERVICES
    },
    **{
        f"{service}.outbox_trimmed": "how far the outbox was trimmed: no tenant, no patient"
        for service in SERVICES
    },
}
"""Tables without row security, and why."""

FOR_EVERYBODY: dict[str, str] = {
    "ingest.token_key": "ids of keys; no key, no token (CS-95)",
    "notify.site": "when a hospital was last heard from is on every page; no patient (NW-30)",
}
"""Tables a request sees whole, whatever its tenant."""

BY_PATIENT = {
    "notify.patient",
    "notify.token",
    "notify.standing",
    "notify.episode",
    "notify.assessment",
    "notify.work_item",
}
"""Seen by the clinics that reach the patient; they have no column of a tenant."""

OF_NOBODY = {"notify.incident"}
"""About no patient and no clinic: the privacy officer's alone (CS-122)."""

BY_ROLE = {*OF_NOBODY, "notify.decision", "notify.work_item", "notify.override"}
"""Seen by the privacy officer, a work item also by the hospital case manager of its sites; by no
clinic (CS-36, CS-42).
"""

DEFINERS: dict[str, str] = {
    "ingest.meet": "tells of patients only whose identifiers are presented",
    "ingest.settle": "writes what was decided of those",
    "ingest.renew_tokens": "moves a token to another key, for who knows its value alone",
    "ingest.open_key": "puts the id of a key on the list",
}
"""Functions with the owner's rights, and what keeps them narrow."""

TENANT_COLUMNS = ("site", "clinic", "tenant")
COMMANDS = {"a": "INSERT", "r": "SELECT", "w": "UPDATE", "d": "DELETE"}
STATEMENTS = 10_000


@pytest.fixture(scope="module")
async def shared(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    async with shared_database(cluster, f"t{os.getpid()}_rows") as made:
        yield made


@pytest.fixture
async def owner(shared: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    made = await shared.owner()
    yield made
    await made.close()


# The catalogue

_TABLES = """
select n.nspname || '.' || c.relname as name, c.relrowsecurity as enabled,
  c.relforcerowsecurity as forced, pg_get_userbyid(c.relowner) as owner, c.oid
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'f', 'm') and n.nspname not in ('pg_catalog', 'information_schema')
  and n.nspname not like 'pg\\_%'
order by 1
"""
_GRANTS = """
select distinct coalesce(r.rolname, 'public') as role, a.privilege_type as command
from pg_class c, aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
where c.oid = $1 and a.grantee <> c.relowner
  and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
"""
_POLICIES = """
select coalesce(r.rolname, 'public') as role, p.polcmd::text as command,
  pg_get_expr(p.polqual, p.polrelid) as using, pg_get_expr(p.polwithcheck, p.polrelid) as checked
from pg_policy p, unnest(p.polroles) as for_role left join pg_roles r on r.oid = for_role
where p.polrelid = $1
"""


async def complaints(owner: asyncpg.Connection) -> list[str]:
    """What is not as CS-91 wants it, a line each; no table of any schema is left out."""
    said: list[str] = []
    tables = await owner.fetch(_TABLES)
    said += [f"{name} is an exception and does not exist" for name in OPEN.keys() - names(tables)]
    for table in tables:
        name, grants = table["name"], await owner.fetch(_GRANTS, table["oid"])
        if table["owner"] != "passerelle_owner":
            said.append(f"{name} belongs to {table['owner']}")
        if any(grant["role"] == "public" for grant in grants):
            said.append(f"{name} is granted to public")
        if name in OPEN:
            said += [f"{name} has row security, and is an exception"] if table["enabled"] else []
            said += [
                f"{name} is an exception, and granted to {grant['role']}"
                for grant in grants
                if grant["role"].endswith("_request")
            ]
            continue
        if not (table["enabled"] and table["forced"]):
            said.append(f"{name} has no row security, or not for its owner")
        policies = await owner.fetch(_POLICIES, table["oid"])
        for grant in grants:
            applying = [p for p in policies if applies(p, grant["role"], grant["command"])]
            if not applying:
                said.append(f"{name}: {grant['role']} has no policy to {grant['command']}")
            for policy in applying:
                whole = policy["using"] == "true" or (
                    grant["command"] == "INSERT" and policy["checked"] == "true"
                )
                free = name in FOR_EVERYBODY or name.endswith(".outbox")
                if whole and grant["role"].endswith("_request") and not free:
                    said.append(f"{name}: {grant['role']} may {grant['command']} all of it")
    return said


def names(tables: Sequence[asyncpg.Record]) -> set[str]:
    return {table["name"] for table in tables}


def applies(policy: asyncpg.Record, role: str, command: str) -> bool:
    of_all = policy["command"] == "*"
    return policy["role"] == role and (of_all or COMMANDS[policy["command"]] == command)


async def test_every_table_of_every_schema_is_closed_or_an_exception_with_a_reason(
    owner: asyncpg.Connection,
) -> None:
    assert await complaints(owner) == []


PLANTS = {
    "a table without row security": ("create table notify.planted (clinic text)", "notify.planted"),
    "row security that spares the owner": (
        "create table notify.planted (clinic text); alter table notify.planted enable row level"
        " security",
        "notify.planted",
    ),
    "a grant without a policy": (
        "create table ingest.planted (site text); alter table ingest.planted enable row level"
        " security; alter table ingest.planted force row level security;"
        " grant select on ingest.planted to passerelle_ingest_request",
        "ingest.planted: passerelle_ingest_request has no policy to SELECT",
    ),
    "a policy for every row": (
        "create policy planted on notify.card for select to passerelle_notify_request using (true)",
        "notify.card: passerelle_notify_request may SELECT all of it",
    ),
    "a table in a schema of its own": (
        "create schema planted; create table planted.one (x int)",
        "planted.one",
    ),
    "row security switched off": (
        "alter table notify.card disable row level security",
        "notify.card has no row security",
    ),
    "a grant to everybody": (
        "grant select on notify.card to public",
        "notify.card is granted to public",
    ),
    "an exception opened to requests": (
        "grant select on notify.place to passerelle_notify_request",
        "notify.place is an exception, and granted to passerelle_notify_request",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
async def test_what_is_planted_is_found(owner: asyncpg.Connection, plant: str) -> None:
    sql, complaint = PLANTS[plant]
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("set local role passerelle_owner")
    await owner.execute(sql)
    found = await complaints(owner)
    await transaction.rollback()
    assert any(line.startswith(complaint) for line in found), found


async def test_no_role_of_the_application_is_above_row_security(owner: asyncpg.Connection) -> None:
    """CS-91: not owner, superuser, BYPASSRLS, nor a member of who is."""
    roles = await owner.fetch(
        "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolinherit,"
        " pg_has_role(oid, 'passerelle_owner', 'member') as owns"
        " from pg_roles where rolname like 'passerelle\\_%' and rolname <> 'passerelle_owner'"
    )
    assert {r["rolname"] for r in roles} >= {
        f"passerelle_{service}{kind}"
        for service in SERVICES
        for kind in ("", "_request", "_worker", "_sealer")
    } | {AUDITOR, PURGER}
    for role in roles:
        raised = (role["rolsuper"], role["rolbypassrls"], role["rolcreaterole"], role["owns"])
        assert not any(raised), role["rolname"]
        login = role["rolname"].count("_") == 1 and role["rolname"] not in (AUDITOR, PURGER)
        assert not (login and role["rolinherit"]), f"{role['rolname']} inherits its roles"


async def test_views_ask_as_the_caller_and_definers_are_listed(owner: asyncpg.Connection) -> None:
    views = await owner.fetch(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'v' and n.nspname not in ('pg_catalog', 'information_schema')"
        " and not coalesce(c.reloptions::text like '%security_invoker=true%', false)"
    )
    assert views == []
    definers = await owner.fetch(
        "select n.nspname || '.' || p.proname as name, p.proconfig::text as config,"
        " coalesce(p.proacl::text, '=X/') as acl"
        " from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.prosecdef"
    )
    assert {row["name"] for row in definers} == set(DEFINERS)
    for row in definers:
        assert "search_path=" in (row["config"] or ""), row["name"]
        assert "{=X/" not in row["acl"], f"{row['name']} may be run by everybody"
        assert ",=X/" not in row["acl"], f"{row['name']} may be run by everybody"


# Ten thousand statements


@dataclass(frozen=True)
class Table:
    service: str
    name: str
    column: str | None
    """Of the tenant; None: by patient."""
    commands: frozenset[str]
    columns: tuple[tuple[str, str], ...]
    """Name and type of those that are written."""
    always: bool
    """An identity that is always generated is among them."""

    @property
    def whose(self) -> str:
        key = "key" if self.name == "patient" else "patient"
        return self.column or key


TENANTS = {
    "ingest": ("hospital-a", "hospital-b", "hospital-c"),
    "screening": ("hospital-a", "hospital-b", "hospital-c"),
    "notify": ("clinic-a", "clinic-b", "clinic-c"),
}
ROWS = 6
_SPACE = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")


def patient_of(tenant: str, number: int) -> UUID:
    return uuid5(_SPACE, f"{tenant}/{number}")


async def readable(owner: asyncpg.Connection) -> list[Table]:
    """Every table some request may select from, with what it may do there."""
    found: list[Table] = []
    for table in await owner.fetch(_TABLES):
        service, _, name = table["name"].partition(".")
        role = f"passerelle_{service}_request"
        grants = {
            row["command"]
            for row in await owner.fetch(_GRANTS, table["oid"])
            if row["role"] == role
        }
        if "SELECT" not in grants:
            continue
        columns = await owner.fetch(
            "select attname as name, format_type(atttypid, null) as type,"
            " attidentity <> '' as always from pg_attribute"
            " where attrelid = $1 and attnum > 0 and not attisdropped and attgenerated = ''",
            table["oid"],
        )
        tenant = [row["name"] for row in columns if row["name"] in TENANT_COLUMNS]
        found.append(
            Table(
                service,
                name,
                tenant[0] if tenant else None,
                frozenset(grants),
                tuple((row["name"], row["type"]) for row in columns if not row["always"]),
                any(row["always"] for row in columns),
            )
        )
    return found


def value(table: Table, column: str, kind: str, tenant: str, number: int) -> Any:
    """Something of that type; patients, and what leads to them, are the tenant's own."""
    patient = patient_of(tenant, number)
    if column == table.column:
        return tenant
    if column in ("patient", "disputed_with") or (column, table.name) == ("key", "patient"):
        return str(patient)
    if column == "digest" and table.service == "notify":
        return f"digest-{patient}"
    if column == "key_id":
        return "k1"
    if kind.endswith("[]"):
        return []
    simple: dict[str, Any] = {
        "text": f"TEST-{tenant}-{number}",
        "uuid": str(uuid5(_SPACE, f"{table.service}.{table.name}.{column}.{tenant}.{number}")),
        "boolean": False,
        "jsonb": {},
        "json": {},
        "timestamp with time zone": datetime(2026, 3, 2, 12, tzinfo=UTC).isoformat(),
        "date": "2026-03-02",
        "bytea": f"\\x{uuid5(_SPACE, f'{table.name}.{tenant}.{number}').hex}",
    }
    return simple.get(kind, number)


async def fill(owner: asyncpg.Connection, tables: Sequence[Table]) -> None:
    """ROWS rows of each tenant in each table. Checks and references are not what is looked at."""
    import orjson

    constraints = await owner.fetch(
        "select conrelid::regclass::text as name, conname from pg_constraint c"
        " join pg_namespace n on n.oid = c.connamespace"
        " where contype in ('c', 'f') and nspname in ('ingest', 'screening', 'notify')"
        " order by contype desc"
    )
    for row in constraints:
        await owner.execute(f'alter table {row["name"]} drop constraint "{row["conname"]}"')
    for table in tables:
        for tenant in TENANTS[table.service]:
            rows = [
                {name: value(table, name, kind, tenant, number) for name, kind in table.columns}
                for number in range(ROWS)
            ]
            listed = ", ".join(f'"{name}"' for name, _ in table.columns)
            await owner.execute(
                f'insert into {table.service}."{table.name}" ({listed}) select {listed} from'
                f' jsonb_populate_recordset(null::{table.service}."{table.name}", $1::jsonb)'
                " on conflict do nothing",
                orjson.dumps(rows).decode(),
            )


def attempts(table: Table, own: str, other: str, draw: random.Random) -> tuple[str, dict[str, str]]:
    """One statement that must show, change, remove and add nothing of `other`'s."""
    whose, name = table.whose, f'"{table.name}"'
    theirs = str(patient_of(other, draw.randrange(ROWS))) if table.column is None else other
    said = {"own": own, "other": theirs}
    cast = "cast(:other as uuid)" if table.column is None else ":other"
    ways = [
        f"select {whose} from {name}",
        f"select {whose} from {name} order by random() limit 3",
        f"select {whose} from {name} where {whose} = {cast}",
        f"select {whose} from {name} where {whose} <> {cast} or {whose} = {cast}",
        f"select a.{whose} from {name} a join {name} b on a.{whose} <> b.{whose}",
        f"select {whose} from (select * from {name} offset 0) x where not {whose} is null",
        f"with x as materialized (select * from {name}) select {whose} from x",
        f"select max({whose}::text) from {name} group by {whose}",
        f"select {whose} from {name} tablesample system (100)",
        f"select {whose} from {name} where exists (select from audit where tenant = :other)",
    ]
    if "UPDATE" in table.commands and table.column is not None:
        ways += [
            f"update {name} set {whose} = {whose} returning {whose}",
            f"update {name} set {whose} = :own where {whose} = :other returning {whose}",
            f"update {name} a set {whose} = a.{whose} from {name} b returning b.{whose}",
            f"update {name} set {whose} = :other returning 'given away'",
        ]
    if "DELETE" in table.commands and table.column is not None:
        ways.append(f"delete from {name} where {whose} = :other returning {whose}")
    if "INSERT" in table.commands and table.column is not None:
        listed = ", ".join(f'"{column}"' for column, _ in table.columns)
        values = ", ".join(
            ":other" if column == table.column else f'"{column}"' for column, _ in table.columns
        )
        ways.append(
            f"insert into {name} ({listed}) select {values} from {name} limit 1 returning 'planted'"
        )
    return draw.choice(ways), said


async def one_by_one(
    db: Database, tables: Sequence[Table], own: str, number: int, seed: int
) -> tuple[int, list[str]]:
    """`number` statements in one transaction of `own`'s; how many, and what was foreign."""
    draw = random.Random(seed)
    patients = {str(patient_of(own, n)) for n in range(ROWS)}
    foreign: list[str] = []
    async with db.request(own) as tx:
        for _ in range(number):
            table = draw.choice(tables)
            other = draw.choice([tenant for tenant in TENANTS[db.service] if tenant != own])
            statement, said = attempts(table, own, other, draw)
            mine = patients if table.column is None else {own}
            foreign += [
                f"{own}: {statement} → {row}"
                for row in await _rows(tx, statement, said)
                if row is not None and str(row) not in mine
            ]
    return number, foreign


async def _rows(tx: Tx, statement: str, said: dict[str, str]) -> list[Any]:
    """What it returned; nothing, if row security would not have it. It is undone."""
    used = {name: v for name, v in said.items() if f":{name}" in statement}
    attempt = await tx.begin_nested()
    try:
        return list((await tx.execute(text(statement), used)).scalars())
    except DBAPIError as error:
        if sqlstate(error) != "42501":  # insufficient privilege is what is hoped for
            raise
        return []
    finally:
        await attempt.rollback()


@pytest.mark.slow
async def test_no_statement_of_a_tenant_reaches_a_row_of_another(
    shared: FreshDatabase, owner: asyncpg.Connection
) -> None:
    """CS-92: at least 10,000 through the pools, several at a time, as the request roles."""
    tables = await readable(owner)
    await fill(owner, tables)
    done, foreign = 0, []
    for service, share in (("ingest", 0.4), ("notify", 0.6)):
        own_tables = [
            table
            for table in tables
            if table.service == service
            and f"{service}.{table.name}" not in FOR_EVERYBODY.keys() | OF_NOBODY
        ]
        for table in own_tables:
            assert table.column or f"{service}.{table.name}" in BY_PATIENT, table.name
        db = Database(shared.url(service), service)
        rounds = int(STATEMENTS * share) // 25 + 1
        gate = asyncio.Semaphore(8)

        async def turn(
            seed: int, db: Database = db, of: Sequence[Table] = own_tables
        ) -> tuple[int, list[str]]:
            async with gate:  # noqa: B023 - awaited before the next service
                tenants = TENANTS[db.service]
                return await one_by_one(db, of, tenants[seed % len(tenants)], 25, seed)

        for number, found in await asyncio.gather(*(turn(seed) for seed in range(rounds))):
            done += number
            foreign += found
        await db.close()
    assert done >= STATEMENTS
    assert foreign == []


async def test_a_policy_too_wide_would_be_seen(
    shared: FreshDatabase, owner: asyncpg.Connection
) -> None:
    tables = [table for table in await readable(owner) if table.name == "card"]
    await fill(owner, tables)
    await owner.execute(
        "create policy planted on notify.card for select to passerelle_notify_request using (true)"
    )
    db = Database(shared.url("notify"), "notify")
    _, foreign = await one_by_one(db, tables, "clinic-a", 50, 7)
    await db.close()
    await owner.execute("drop policy planted on notify.card")
    assert foreign


async def test_each_tenant_sees_rows_of_its_own_in_every_table(
    shared: FreshDatabase, owner: asyncpg.Connection
) -> None:
    """Or the test above would pass on empty tables."""
    tables = await readable(owner)
    await fill(owner, tables)
    for service in ("ingest", "notify"):
        db = Database(shared.url(service), service)
        for table in tables:
            if table.service != service or f"{service}.{table.name}" in FOR_EVERYBODY:
                continue
            if f"{service}.{table.name}" in BY_ROLE:
                continue
            async with db.request(TENANTS[service][0]) as tx:
                seen = await tx.scalar(text(f'select count(*) from "{table.name}"'))
            assert seen, f"{service}.{table.name}"
            async with db.request("") as tx:
                seen = await tx.scalar(text(f'select count(*) from "{table.name}"'))
            assert seen == 0, f"{service}.{table.name} without a tenant"
        await db.close()


async def test_what_is_of_nobody_is_the_privacy_officer_s(
    shared: FreshDatabase, owner: asyncpg.Connection
) -> None:
    tables = [t for t in await readable(owner) if f"{t.service}.{t.name}" in OF_NOBODY]
    await fill(owner, tables)
    db = Database(shared.url("notify"), "notify")
    for table in tables:
        for tenant in ("", "clinic-a"):
            for role in ("client", "clinic_cm", "hosp_cm", "ops", "privacy"):
                async with db.request(tenant, role) as tx:
                    seen = await tx.scalar(text(f'select count(*) from "{table.name}"'))
                assert bool(seen) is (role == "privacy"), f"{table.name} to {role}"
    await db.close()


async def test_screening_shows_nothing_to_who_is_neither_operations_nor_privacy(
    shared: FreshDatabase, owner: asyncpg.Connection
) -> None:
    """CS-01: no clinical role is answered from there."""
    tables = [table for table in await readable(owner) if table.service == "screening"]
    await fill(owner, tables)
    db = Database(shared.url("screening"), "screening")
    for table in tables:
        for role in ("client", "clinic_cm", "hosp_cm", ""):
            async with db.request("clinic-z", role) as tx:
                seen = await tx.scalar(text(f'select count(*) from "{table.name}"'))
            assert seen == 0, f"{table.name} to {role}"
    await db.close()
