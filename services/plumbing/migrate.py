"""Brings a database to the shape this version needs: roles, schemas, numbered SQL, forward only.

Run by the owner of the tables. Each file is one transaction and is run once; a file that
changed after it was run stops everything, because the database no longer is what it says.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

import asyncpg

from services.plumbing.eventlog import lock_number
from services.plumbing.settings import SERVICES

SHARED = ("log.sql", "audit.sql", "session.sql", "purge.sql")
"""Tables that plumbing keeps in each service's schema; run before the service's own files."""
AUDITOR = "passerelle_auditor"
"""Reads the audit of every service and its chain; nobody's login, taken by who may."""
PURGER = "passerelle_purger"
"""Deletes what has been kept long enough, in every service; nobody's login, taken by who may."""


class MigrationError(Exception):
    """The database cannot be brought to this version; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One file of SQL for one schema."""

    schema: str
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def steps() -> list[Step]:
    """All files of this version, in the order they are run."""
    found: list[Step] = []
    for service in SERVICES:
        shared = resources.files("services") / "plumbing" / "sql"
        found += [
            Step(
                service,
                f"plumbing/{name}",
                (shared / name).read_text().replace("{service}", service),
            )
            for name in SHARED
            if (shared / name).is_file()
        ]
        found += _numbered(service, resources.files("services") / service / "migrations")
    chain = (resources.files("services") / "plumbing" / "sql" / "chain.sql").read_text()
    found.append(Step("chain", "plumbing/chain.sql", chain))
    found += _numbered("chain", resources.files("services") / "plumbing" / "sql" / "chain")
    found += _numbered(
        "authority", resources.files("services") / "cli" / "migrations" / "authority"
    )
    return found


def _numbered(schema: str, folder: Traversable) -> list[Step]:
    if not folder.is_dir():
        return []
    files = sorted(
        (file for file in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", file.name)),
        key=lambda file: file.name,
    )
    return [Step(schema, file.name, file.read_text()) for file in files]


async def migrate(owner_url: str, passwords: dict[str, str]) -> list[str]:
    """Run what is missing; the names of what was run. One at a time, others wait.

    `passwords` are given to the login roles `passerelle_<service>`; a role that has a password
    already and is not named keeps it.
    """
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute("select pg_advisory_lock($1)", lock_number("passerelle migrate"))
        await _roles(owner, passwords)
        await owner.execute("create schema if not exists plumbing")
        await owner.execute(
            "create table if not exists plumbing.migration (schema text not null,"
            " name text not null, sha256 text not null, run timestamptz not null default now(),"
            " primary key (schema, name))"
        )
        for service in SERVICES:  # so that `doctor` can tell which version it looks at
            await owner.execute(
                f"grant usage on schema plumbing to passerelle_{service}_worker;"
                f" grant select on plumbing.migration to passerelle_{service}_worker"
            )
        done = {
            (row["schema"], row["name"]): row["sha256"]
            for row in await owner.fetch("select schema, name, sha256 from plumbing.migration")
        }
        return [await _run(owner, step) for step in steps() if not _is_done(step, done)]
    finally:
        await owner.close()


def _is_done(step: Step, done: dict[tuple[str, str], str]) -> bool:
    was = done.get((step.schema, step.name))
    if was is not None and was != step.sha256:
        raise MigrationError(
            f"{step.schema}/{step.name} was changed after it had been run on this database."
            " Write a new file instead; for a database without value, make a new one."
        )
    return was is not None


async def _run(owner: asyncpg.Connection, step: Step) -> str:
    async with owner.transaction():
        await owner.execute(f'set local search_path = "{step.schema}"')
        try:
            await owner.execute(step.sql)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{step.schema}/{step.name}: {error}") from None
        await owner.execute(
            "insert into plumbing.migration (schema, name, sha256) values ($1, $2, $3)",
            step.schema,
            step.name,
            step.sha256,
        )
    return f"{step.schema}/{step.name}"


async def _roles(owner: asyncpg.Connection, passwords: dict[str, str]) -> None:
    database = await owner.fetchval("select quote_ident(current_database())")
    have = {row["rolname"] for row in await owner.fetch("select rolname from pg_roles")}
    for schema in (*SERVICES, "authority"):
        login = f"passerelle_{schema}"
        if login not in have:
            await owner.execute(f"create role {login} login noinherit")
        for kind in ("request", "worker", *(("sealer",) if schema in SERVICES else ())):
            if f"{login}_{kind}" not in have:
                await owner.execute(f"create role {login}_{kind} nologin")
                await owner.execute(f"grant {login}_{kind} to {login} with inherit false, set true")
        await owner.execute(f"grant connect on database {database} to {login}")
        await owner.execute(f"create schema if not exists {schema}")
        await owner.execute(f"alter role {login} set search_path = {schema}")
        await owner.execute(f"grant usage on schema {schema} to {login}_request, {login}_worker")
        if schema in passwords:
            secret = await owner.fetchval("select quote_literal($1::text)", passwords[schema])
            await owner.execute(f"alter role {login} password {secret}")
    for producer in SERVICES:
        for reader in SERVICES:
            await owner.execute(f"grant usage on schema {producer} to passerelle_{reader}_worker")
    for role in (AUDITOR, PURGER):
        if role not in have:
            await owner.execute(f"create role {role} nologin")
            await owner.execute(f"grant {role} to current_user with inherit false, set true")
    await owner.execute("create schema if not exists chain")
    for service in SERVICES:
        who = f"passerelle_{service}_sealer, {AUDITOR}, {PURGER}"
        await owner.execute(f"grant usage on schema chain, {service} to {who}")
