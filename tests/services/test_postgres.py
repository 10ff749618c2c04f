"""The embedded server: private, patient with a killed owner, and never opening a folder (ADR 4)."""

import asyncio
import os
import pwd
import signal
import stat
from pathlib import Path

import asyncpg
import pytest

from services.cli import postgres
from tests.conftest import Cluster


async def test_without_the_password_nobody_gets_in(cluster: Cluster) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(cluster.server.url(postgres.SUPERUSER, "wrong", "postgres"))


def test_the_socket_lies_in_a_folder_only_the_server_enters(cluster: Cluster) -> None:
    mode = cluster.server.sockets.stat().st_mode
    assert stat.S_IMODE(mode) == 0o700
    assert len(str(cluster.server.sockets)) < postgres.LONGEST_SOCKET


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does it run as another user")
def test_as_root_a_closed_parent_is_refused_and_stays_closed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o700)
    with pytest.raises(postgres.PostgresError, match="closed to other users"):
        postgres.start(home / "data")
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does it run as another user")
def test_as_root_it_runs_as_its_own_system_user(cluster: Cluster) -> None:
    owner = Path(f"/proc/{cluster.server.pid}").stat().st_uid
    assert owner == pwd.getpwnam(postgres.SYSTEM_USER).pw_uid


def test_data_outlives_a_killed_server_and_an_orphan_is_taken_over(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = Path("/tmp") / f"pg-{os.getpid()}"
    try:
        first = postgres.start(folder)
        asyncio.run(_write(first))
        with pytest.raises(postgres.PostgresError, match="already runs"):
            postgres.start(folder)
        os.kill(first.pid, signal.SIGKILL)
        os.waitpid(first.pid, 0)
        postgres.stop_orphan(folder)
        with postgres.running(folder) as second:
            assert asyncio.run(_read(second)) == 1
    finally:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


async def _write(server: postgres.Postgres) -> None:
    connection = await asyncpg.connect(server.superuser_url)
    await connection.execute("create table kept (n int); insert into kept values (1)")
    await connection.close()


async def _read(server: postgres.Postgres) -> int:
    connection = await asyncpg.connect(server.superuser_url)
    found = await connection.fetchval("select count(*) from kept")
    await connection.close()
    return int(found)
