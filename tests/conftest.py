"""What every test may ask for: a real PostgreSQL, a freshly migrated database, keys."""

import asyncio
import base64
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings

from services.cli import postgres
from services.cli.house import make_owner
from services.plumbing.db import Database
from services.plumbing.migrate import migrate
from services.plumbing.settings import Keyring

pytest_plugins = ["tests.broker"]

settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.register_profile("nightly", deadline=None, max_examples=50_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The stories first: they are the longest, and the other process does the rest meanwhile."""
    items.sort(key=lambda item: "story" not in item.path.parts)


PASSWORD = "synthetic-password-of-the-tests"
TEMPLATE = "passerelle_template"
THROWAWAY = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
"""A cluster that outlives no crash of the machine; stories run on one that does."""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Cluster:
    """A running PostgreSQL with a migrated template database."""

    server: postgres.Postgres

    def url(self, user: str, database: str) -> str:
        return self.server.url(user, PASSWORD, database)

    async def run(self, sql: str, database: str = "postgres") -> None:
        """Run `sql` as the superuser, outside a transaction."""
        connection = await asyncpg.connect(
            self.server.url(postgres.SUPERUSER, self.server.password, database)
        )
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


@dataclass(frozen=True)
class FreshDatabase:
    """One test's own database, migrated and empty."""

    cluster: Cluster
    name: str

    def url(self, service: str) -> str:
        """Libpq URL of the login role of `service` (or `owner`)."""
        user = postgres.OWNER if service == "owner" else f"passerelle_{service}"
        return self.cluster.url(user, self.name)

    async def owner(self) -> asyncpg.Connection:
        """A connection as the superuser, which sees everything: for looking, not for doing."""
        server = self.cluster.server
        return await asyncpg.connect(server.url(postgres.SUPERUSER, server.password, self.name))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pt-") as folder:
        Path(folder).chmod(0o711)
        with postgres.running(Path(folder) / "pg", THROWAWAY) as server:
            made = Cluster(server)
            asyncio.run(_template(made))
            yield made


async def _template(cluster: Cluster) -> None:
    await make_owner(cluster.server, PASSWORD, TEMPLATE)
    roles = ("ingest", "screening", "notify", "authority")
    await migrate(cluster.url(postgres.OWNER, TEMPLATE), dict.fromkeys(roles, PASSWORD))


@pytest.fixture
async def database(cluster: Cluster) -> AsyncIterator[FreshDatabase]:
    """A database of this test's own, dropped after it."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    await cluster.run(f"create database {name} template {TEMPLATE} owner {postgres.OWNER}")
    yield FreshDatabase(cluster, name)
    await cluster.run(f"drop database {name} with (force)")


@pytest.fixture
async def db(database: FreshDatabase) -> AsyncIterator[Callable[[str], Database]]:
    """`db("ingest")`: that service's pool on this test's database; one a service."""
    made: dict[str, Database] = {}

    def of(service: str) -> Database:
        if service not in made:
            made[service] = Database(database.url(service), service)
        return made[service]

    yield of
    for one in made.values():
        await one.close()


def keyring(word: str) -> Keyring:
    """A fixed keyring for tests: `word` makes it another one."""
    key = base64.b64encode((word * 32).encode()[:32]).decode()
    return Keyring.model_validate({"active": f"{word[0]}1", "keys": {f"{word[0]}1": key}})
