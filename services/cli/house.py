"""Builds the whole house on this machine, for `up`, `demo` and the tests."""

import asyncpg

from services.cli import postgres


async def make_owner(server: postgres.Postgres, password: str, database: str) -> None:
    """The owner role and its database, if they are missing. The owner is no superuser."""
    connection = await asyncpg.connect(server.superuser_url)
    try:
        secret = await connection.fetchval("select quote_literal($1::text)", password)
        known = await connection.fetchval(
            "select true from pg_roles where rolname = $1", postgres.OWNER
        )
        verb = "alter" if known else "create"
        await connection.execute(
            f"{verb} role {postgres.OWNER} login createrole nosuperuser password {secret}"
        )
        there = await connection.fetchval(
            "select true from pg_database where datname = $1", database
        )
        if not there:
            await connection.execute(f"create database {database} owner {postgres.OWNER}")
            await connection.execute(f"revoke all on database {database} from public")
    finally:
        await connection.close()
    connection = await asyncpg.connect(server.url(postgres.SUPERUSER, server.password, database))
    try:
        await connection.execute(f"grant create on database {database} to {postgres.OWNER}")
    finally:
        await connection.close()
