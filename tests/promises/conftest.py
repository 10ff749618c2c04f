"""A log on each carrier, in a database of the test's own."""

from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from services.plumbing.db import Database
from services.plumbing.kafka import Link, create_topics
from tests.broker import Broker
from tests.conftest import FreshDatabase
from tests.promises.log import KINDS, TABLES, KafkaLog, Log


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await database.owner()
    await connection.execute(TABLES)
    yield connection
    await connection.close()


@pytest.fixture
def postgres_log(owner: asyncpg.Connection, db: Callable[[str], Database]) -> Log:
    return Log(db("ingest"), db("screening"), owner)


@pytest.fixture
async def kafka_log(
    broker: Broker,
    database: FreshDatabase,
    owner: asyncpg.Connection,
    db: Callable[[str], Database],
) -> KafkaLog:
    """With topics of its own, of one partition."""
    link = Link(broker.bootstrap, prefix=f"{database.name}.")
    await create_topics(link, KINDS, partitions=1, replication=1)
    return KafkaLog(db("ingest"), db("screening"), owner, link)
