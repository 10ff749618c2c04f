"""The database as a service sees it: transactions in one of its two roles.

A service logs in as `passerelle_<service>`, which may do nothing by itself. Each transaction
takes a role for as long as it lasts: `…_worker` sees every row of the service; `…_request` sees
only rows of the tenant the transaction was opened for, by row-level security (CS-91); `…_sealer`
adds to the chain of the audit. None owns a table.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

Tx = AsyncConnection
"""A connection inside one transaction, which its opener commits or rolls back."""

CHANNEL = "passerelle_log"
APPENDED = "passerelle_appended"
RING_EVERY = 0.005
"""Real seconds."""
_ENTER = text(
    "select set_config('role', :role, true), set_config('passerelle.tenant', :tenant, true),"
    " set_config('passerelle.role', :as_role, true)"
)


def driver_url(url: str) -> str:
    """`url` with the driver named; libpq's `postgresql://` and `postgres://` are accepted."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise ValueError("the database URL must begin with postgresql://")
    return f"postgresql+asyncpg://{rest}"


def libpq_url(url: URL) -> str:
    """`url` of an engine as asyncpg itself takes it, password and all: never to be logged."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


class Database:
    """The pool of one service. `url` is that of its login role."""

    def __init__(self, url: str, service: str, *, pool: int = 10) -> None:
        self.service = service
        self.engine: AsyncEngine = create_async_engine(
            driver_url(url),
            hide_parameters=True,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=2,  # then 503 (HA-101)
            pool_pre_ping=False,
            connect_args={"server_settings": {"jit": "off", "application_name": service}},
        )
        self._ringing: asyncio.Task[None] | None = None
        self._rung = False
        self._bell: asyncpg.Connection[asyncpg.Record] | None = None

    def work(self) -> AbstractAsyncContextManager[Tx]:
        """One transaction that sees all rows of the service."""
        return self._transaction("worker", "", "")

    def request(self, tenant: str, role: str = "client") -> AbstractAsyncContextManager[Tx]:
        """One transaction that sees only rows of `tenant`, a site or clinic of the region file.

        `role` is what the caller is (`client`, `privacy`, …), for policies that ask.
        """
        return self._transaction("request", tenant, role)

    def seal(self) -> AbstractAsyncContextManager[Tx]:
        """One transaction that reads the audit and adds to its chain, and nothing else (CS-112)."""
        return self._transaction("sealer", "", "")

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Tx]:
        """One transaction that reads all rows of the service as they were when it began.

        It writes nothing and so has no number: however long it lasts, it locks nobody out and
        holds no reader of the log back (ST-01).
        """
        async with self.engine.connect() as connection:
            tx = await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            async with tx.begin():
                role = f"passerelle_{self.service}_worker"
                await tx.execute(_ENTER, {"role": role, "tenant": "", "as_role": ""})
                yield tx

    @asynccontextmanager
    async def _transaction(self, kind: str, tenant: str, as_role: str) -> AsyncIterator[Tx]:
        async with self.engine.begin() as tx:
            tx.info.pop(APPENDED, None)
            role = f"passerelle_{self.service}_{kind}"
            await tx.execute(_ENTER, {"role": role, "tenant": tenant, "as_role": as_role})
            yield tx
            appended = tx.info.pop(APPENDED, False)
        if appended:
            self._ring()

    def _ring(self) -> None:
        """Wake the readers, after the commit: inside it, notifying would serialise commits.

        A bell that is not rung costs a reader one polling interval, nothing else.
        """
        self._rung = True
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring_until_quiet())

    async def _ring_until_quiet(self) -> None:
        """One bell for all that was committed within RING_EVERY; another for what came since."""
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            while self._rung:
                await asyncio.sleep(RING_EVERY)
                self._rung = False
                if self._bell is None or self._bell.is_closed():
                    self._bell = await asyncpg.connect(libpq_url(self.engine.url))
                await self._bell.execute("select pg_notify($1, $2)", CHANNEL, self.service)

    async def close(self) -> None:
        if self._ringing is not None:
            await asyncio.gather(self._ringing, return_exceptions=True)
        if self._bell is not None:
            await self._bell.close()
        await self.engine.dispose()


_PASSING = (
    "08",  # connection
    "40",  # serialization, deadlock
    "53",  # out of connections, memory, disk
    "55P03",  # lock not available
    "57P",  # shutdown, crash recovery
    "25006",  # read-only: a standby
)


def sqlstate(error: BaseException) -> str | None:
    """SQLSTATE of a database error; all of it that may be logged (ST-05)."""
    seen: BaseException | None = error
    while seen is not None:
        state = getattr(seen, "sqlstate", None)
        if isinstance(state, str):
            return state
        seen = getattr(seen, "orig", None) or seen.__cause__
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later without anybody changing it."""
    if isinstance(error, OSError | TimeoutError | InterfaceError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state is not None:
        return state.startswith(_PASSING)
    return type(error).__name__ in {"ConnectionDoesNotExistError", "TimeoutError"}
