"""`passerelle doctor`: what is wrong with an installation, and what to do about it.

One line a finding, *ok*, *warn* or *fail*, each with its remedy. It looks as the service itself
would: with the service's settings, by its login, through its roles. Nothing is changed, and
neither a secret nor a value of a patient is shown: key ids, counts, ages and names of tables.
"""

import asyncio
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import asyncpg
import httpx
import orjson
from aiokafka.errors import KafkaError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from schemas.generate import events
from services.cli import house, rekeying
from services.plumbing import kafka, migrate, region, settings
from services.plumbing.auth import Authority, AuthorityAwayError
from services.plumbing.clock import Clock, real_now
from services.plumbing.db import Database, sqlstate
from services.plumbing.eventlog import LogError
from services.plumbing.settings import LOOPBACK, Service, Settings, SettingsError

Level = Literal["ok", "warn", "fail"]
KINDS: Mapping[Service, type[Settings]] = {
    "ingest": settings.IngestSettings,
    "screening": settings.ScreeningSettings,
    "notify": settings.NotifySettings,
}
OLDEST_SERVER = 15
"""PostgreSQL (architecture.md)."""
WITHOUT_ROW_SECURITY = {"place", "outbox_trimmed"}
"""Tables of a service's schema that hold nothing of a site, clinic or patient."""
SEEN_BY_ALL = {("notify", "site")}
"""Tables of which every request sees every row: when a hospital was last heard from (NW-30)."""
SKEW_WARNS, SKEW_FAILS = timedelta(seconds=5), timedelta(seconds=60)
"""Tokens are checked to within 60 s (NW-70)."""
CERTIFICATE_WARNS = timedelta(days=21)
LATE = timedelta(minutes=2)
CHECKPOINT_LATE = timedelta(hours=2)
PATIENCE = 10.0
"""Real seconds one check may take; a database that hangs is a finding too."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at one thing came to."""

    service: str
    check: str
    level: Level
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}[self.level]
        told = f"{mark} {self.service:10}{self.check:14}{self.said}"
        return f"{told}\n{'':29}→ {self.remedy}" if self.remedy else told


@dataclass(frozen=True, slots=True)
class Installed:
    """A service as it is installed: what the checks look at."""

    service: Service
    said: Settings
    db: Database

    def finds(self, check: str, level: Level, said: str, remedy: str = "") -> Finding:
        return Finding(self.service, check, level, said, remedy)


Check = Callable[[Installed], AsyncIterator[Finding]]


# One thing each


async def check_region(it: Installed) -> AsyncIterator[Finding]:
    """The region file, and what in it will not work."""
    assert it.said.region is not None
    try:
        here = region.load(it.said.region)
    except region.RegionError as error:
        yield it.finds("region", "fail", str(error), "Mend the file; the old one stays in force.")
        return
    told = f"{len(here.sites)} sites, {len(here.clinics)} clinics, {len(here.people)} people"
    yield it.finds("region", "ok", told)
    keyless = [one.id for one in here.clients if one.jwks is None and one.jwks_url is None]
    if keyless:
        remedy = "Give each jwks, jwks_file or jwks_url, if it is to get tokens here."
        yield it.finds("region", "warn", f"no public key: {', '.join(keyless)}", remedy)
    today = real_now().date()
    ended = [one.id for one in here.people if one.active_until and one.active_until < today]
    if ended:
        remedy = "They have no role any more: take them out at the next review (CS-82)."
        yield it.finds("region", "warn", f"roles have ended: {', '.join(ended)}", remedy)


async def check_database(it: Installed) -> AsyncIterator[Finding]:
    """The server, its clock, and who we are there."""
    before = real_now()
    async with it.db.work() as tx:
        row = (
            await tx.execute(
                text("select current_setting('server_version_num')::int as number, now() as now")
            )
        ).one()
    after = real_now()
    major = row.number // 10_000
    if major < OLDEST_SERVER:
        remedy = f"Use PostgreSQL {OLDEST_SERVER} or newer."
        yield it.finds("database", "fail", f"PostgreSQL {major}", remedy)
    else:
        yield it.finds("database", "ok", f"PostgreSQL {major}")
    yield _clock(it, "the database server", max(row.now - after, before - row.now))


def _clock(it: Installed, whose: str, skew: timedelta) -> Finding:
    told = f"{whose} is {max(skew.total_seconds(), 0):.0f} s apart"
    if skew > SKEW_FAILS:
        return it.finds("clock", "fail", told, "Set both by NTP: tokens are refused, times lie.")
    if skew > SKEW_WARNS:
        return it.finds("clock", "warn", told, "Set both by NTP.")
    return it.finds("clock", "ok", told)


_ROLES = text(
    "select r.rolname, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolinherit,"
    " pg_has_role(r.rolname, c.relowner, 'MEMBER') as owns"
    " from pg_roles r, (select relowner from pg_class where oid = 'audit'::regclass) c"
    " where r.rolname = session_user or r.rolname like session_user || '\\_%'"
)


async def check_roles(it: Installed) -> AsyncIterator[Finding]:
    """CS-91: the login and its roles can do no more than they must."""
    async with it.db.work() as tx:
        rows = (await tx.execute(_ROLES)).all()
        login = await tx.scalar(text("select session_user::text"))
    wrong = []
    for row in rows:
        more = [
            word
            for word, is_so in (
                ("is a superuser", row.rolsuper),
                ("bypasses row security", row.rolbypassrls),
                ("may make roles", row.rolcreaterole),
                ("may make databases", row.rolcreatedb),
                ("owns the tables, or is a member of who does", row.owns),
                ("inherits its roles' rights", row.rolinherit and row.rolname == login),
            )
            if is_so
        ]
        wrong += [f"{row.rolname} {what}" for what in more]
    if wrong:
        remedy = "Use the login that `passerelle migrate` made, and take these rights from it."
        yield it.finds("roles", "fail", "; ".join(wrong), remedy)
    else:
        yield it.finds("roles", "ok", f"{login} owns nothing and bypasses nothing")


_OPEN_TABLES = text(
    "select c.relname from pg_class c where c.relnamespace = current_schema()::regnamespace"
    " and c.relkind in ('r', 'p') and not (c.relrowsecurity and c.relforcerowsecurity)"
    " and c.relname <> all (:spared) order by 1"
)
_LOOSE_VIEWS = text(
    "select c.relname from pg_class c where c.relnamespace = current_schema()::regnamespace"
    " and c.relkind = 'v'"
    " and not coalesce(c.reloptions @> array['security_invoker=true'], false) order by 1"
)
_LOOSE_FUNCTIONS = text(
    "select p.proname from pg_proc p where p.pronamespace = current_schema()::regnamespace"
    " and p.prosecdef and not exists"
    "  (select from unnest(p.proconfig) s where s like 'search_path=%') order by 1"
)
_TENANTS = text(
    "select c.table_name from information_schema.columns c"
    " where c.table_schema = current_schema() and c.column_name in ('site', 'clinic', 'tenant')"
    " and has_table_privilege(format('%I.%I', c.table_schema, c.table_name), 'SELECT')"
    " group by 1 order by 1"
)


async def check_row_security(it: Installed) -> AsyncIterator[Finding]:
    """CS-91: closed for all, and a transaction without a tenant sees nothing."""
    wrong = []
    async with it.db.work() as tx:
        spared = {"spared": sorted(WITHOUT_ROW_SECURITY)}
        wrong += [
            f"table {row.relname} has no forced row security"
            for row in await tx.execute(_OPEN_TABLES, spared)
        ]
        wrong += [f"view {r.relname} sees as its owner" for r in await tx.execute(_LOOSE_VIEWS)]
        wrong += [
            f"function {row.proname} does not pin its search_path"
            for row in await tx.execute(_LOOSE_FUNCTIONS)
        ]
    async with it.db.request("") as tx:
        rows = await tx.execute(_TENANTS)
        names = [r.table_name for r in rows if (it.service, r.table_name) not in SEEN_BY_ALL]
        for name in names:
            shown = await tx.scalar(text(f"select exists (select from {name})"))  # noqa: S608 - of the catalogue
            if shown:
                wrong.append(f"table {name} shows rows without a tenant")
    if wrong:
        remedy = "Stop the service and run `passerelle migrate`; who changed the database?"
        yield it.finds("row security", "fail", "; ".join(wrong), remedy)
    else:
        yield it.finds("row security", "ok", f"forced; {len(names)} tables of tenants are closed")


async def check_migrations(it: Installed) -> AsyncIterator[Finding]:
    """Whether the database is of this version."""
    wanted = {(one.schema, one.name): one.sha256 for one in migrate.steps()}
    async with it.db.work() as tx:
        rows = await tx.execute(text("select schema, name, sha256 from plumbing.migration"))
        done = {(row.schema, row.name): row.sha256 for row in rows}
    missing = sorted("/".join(key) for key in wanted.keys() - done.keys())
    changed = sorted(
        "/".join(key) for key in wanted.keys() & done.keys() if wanted[key] != done[key]
    )
    newer = sorted("/".join(key) for key in done.keys() - wanted.keys())
    if missing:
        remedy = "Run `passerelle migrate`."
        yield it.finds("migrations", "fail", f"not run: {', '.join(missing)}", remedy)
    if changed:
        remedy = "This database was made by another program: see CONTRIBUTING.md."
        yield it.finds("migrations", "fail", f"changed since: {', '.join(changed)}", remedy)
    if newer:
        remedy = "A newer version was here: start that one, or restore the older database."
        yield it.finds("migrations", "warn", f"unknown here: {', '.join(newer)}", remedy)
    if not missing and not changed and not newer:
        yield it.finds("migrations", "ok", f"{len(wanted)} files, all run")


async def check_keys(it: Installed) -> AsyncIterator[Finding]:
    """CS-95: rows per key; which keys are missing, and which may go."""
    rings = rekeying.rings(it.said)
    found = await rekeying.held(it.db, {name: list(ring.keys) for name, ring in rings.items()})
    rows: dict[tuple[str, str], int] = {}
    for one in found:
        rows[one.ring, one.key] = rows.get((one.ring, one.key), 0) + one.rows
    for (ring, key), count in sorted(rows.items()):
        told = f"{ring} {key}: {count} rows"
        if ring not in rings or key not in rings[ring].keys:
            remedy = "Put the key back into the ring: these rows do not open, and wait."
            yield it.finds("keys", "fail", f"{told}, and no such key", remedy)
        elif key != rings[ring].active:
            remedy = f"`passerelle keys rotate {it.service}`; then `keys retire`."
            yield it.finds("keys", "warn", f"{told} under an old key", remedy)
        else:
            yield it.finds("keys", "ok", told)
    for name, keys in sorted(rings.items()):
        for key in sorted(keys.keys):
            if key != keys.active and (name, key) not in rows:
                remedy = f"`passerelle keys retire {it.service} {key}`; then take it out."
                yield it.finds("keys", "ok", f"{name} {key}: holds nothing here", remedy)


_WRITER = text(
    "select extract(epoch from now() - min(xact_start)) from pg_stat_activity"
    " where backend_xid is not null and pid <> pg_backend_pid()"
)
_OUTBOX = text(
    "select count(*) as n, extract(epoch from now() - min(time)) as age"
    " from (select time from outbox order by xid, position limit 100000) o"
)


async def check_carrier(it: Installed) -> AsyncIterator[Finding]:
    """The event log: is it carried, and does anything hold it back?"""
    if it.said.kafka_bootstrap is not None:
        try:
            link = kafka.Link.of(it.said)
            wanted = [link.topic(event.type) for event in events() if event.published]
            known = await asyncio.wait_for(kafka.topics(link), PATIENCE)
        except (LogError, KafkaError, OSError, TimeoutError) as error:
            told = f"Kafka does not answer ({type(error).__name__})"
            remedy = "Nothing is lost, nothing is carried: see docs/operations.md, *is away*."
            yield it.finds("carrier", "fail", told, remedy)
        else:
            missing = sorted(set(wanted) - known)
            if missing:
                remedy = "Run `passerelle topics`."
                yield it.finds("carrier", "fail", f"no topic {', '.join(missing)}", remedy)
            else:
                yield it.finds("carrier", "ok", f"Kafka, {len(wanted)} topics")
            async with it.db.work() as tx:
                row = (await tx.execute(_OUTBOX)).one()
            age = timedelta(seconds=float(row.age or 0))
            if row.n and age > LATE and it.said.clock is None:
                remedy = "Look for carrier_waits or carrier_stopped in the service's log."
                told = f"{row.n} events wait to be carried, the oldest for {_span(age)}"
                yield it.finds("carrier", "warn", told, remedy)
    else:
        yield it.finds("carrier", "ok", "PostgreSQL")
    async with it.db.work() as tx:
        oldest = timedelta(seconds=float(await tx.scalar(_WRITER) or 0))
    if oldest > LATE:
        remedy = "End it (pg_stat_activity): no later event is read before it has ended."
        yield it.finds("carrier", "warn", f"a transaction has written for {_span(oldest)}", remedy)


_OLDEST_STANDING = text("select min(due_at) from patient where due_at is not null")
_OLDEST_NOTICE = text("select min(due) from notification where state = 'pending'")
_DEAD = text("select count(*) from dead_letter where state = 'waiting'")


async def check_waiting(it: Installed) -> AsyncIterator[Finding]:
    """What a person must look at, and what is late."""
    async with it.db.work() as tx:
        dead = await tx.scalar(_DEAD) or 0
        refused = due = 0
        oldest: datetime | None = None
        if it.service == "ingest":
            refused = await tx.scalar(text("select count(*) from refused where state = 'waiting'"))
            due = await tx.scalar(text("select count(*) from version where hold is not null"))
        elif it.service == "screening":
            oldest = await tx.scalar(
                text("select min(due_at) from patient where due_at is not null")
            )
        else:
            oldest = await tx.scalar(_OLDEST_NOTICE)
    remedy = f"`passerelle replay {it.service}` lists them."
    if dead:
        yield it.finds("dead letters", "warn", f"{dead} events wait for a person", remedy)
    else:
        yield it.finds("dead letters", "ok", "none")
    if refused:
        told = f"{refused} refused bodies wait for a person"
        yield it.finds("refused", "warn", told, remedy)
    if due:
        yield it.finds("held", "ok", f"{due} messages wait for what they lack")
    late = Clock(it.said.clock).now() - oldest if oldest is not None else timedelta()
    if late > LATE:
        remedy = "Is the service running? Look at its log."
        yield it.finds("due", "warn", f"the oldest is {_span(late)} late", remedy)
    elif it.service != "ingest":
        yield it.finds("due", "ok", "nothing is late")


_UNSEALED = text(
    "select count(*) from (select a.position from audit a"
    "  where a.written < now() - interval '1 minute' order by a.position desc limit 100000) a"
    " where not exists (select from chain.link l"
    "  where l.service = :service and l.record = a.position)"
)
_CHECKPOINT = text("select max(at) from chain.checkpoint where service = :service")


async def check_audit(it: Installed) -> AsyncIterator[Finding]:
    """CS-112: everything is in the chain, and where it stands is signed."""
    async with it.db.seal() as tx:
        unsealed = await tx.scalar(_UNSEALED, {"service": it.service}) or 0
        signed = await tx.scalar(_CHECKPOINT, {"service": it.service})
    if unsealed:
        told = f"{unsealed} records older than a minute are not in the chain"
        yield it.finds("audit", "fail", told, "The sealer is stuck: look at the service's log.")
    else:
        yield it.finds("audit", "ok", "all in the chain")
    if it.said.checkpoint_key is None:
        remedy = "Set PASSERELLE_CHECKPOINT_KEY, and a folder that others administer."
        yield it.finds("checkpoints", "warn", "none are made", remedy)
    elif signed is not None and real_now() - signed > CHECKPOINT_LATE:
        told = f"the last is {_span(real_now() - signed)} old"
        yield it.finds("checkpoints", "warn", told, "Is the service running?")
    else:
        yield it.finds(
            "checkpoints", "ok", "signed" if signed else "the first is due within an hour"
        )
    if it.said.checkpoint_key is not None and it.said.checkpoint_folder is None:
        remedy = "Set PASSERELLE_CHECKPOINT_FOLDER to storage that others administer."
        yield it.finds("checkpoints", "warn", "kept in the database alone", remedy)


async def check_authority(it: Installed) -> AsyncIterator[Finding]:
    """Whose tokens count: does it answer, with what it must publish, at the same time as we?"""
    authority = Authority.of(it.said)
    async with authority.http:
        try:
            await authority.endpoint("token_endpoint")
            answer = await authority.http.get(
                f"{authority.issuer}/.well-known/openid-configuration"
            )
        except (AuthorityAwayError, httpx.HTTPError) as error:
            remedy = (
                "Is PASSERELLE_ISSUER right, and reachable from here? If its address is private,"
                " name its range in PASSERELLE_AUTHORITY_NETWORKS."
            )
            yield it.finds("authority", "fail", f"{authority.issuer}: {error}", remedy)
            return
    yield it.finds("authority", "ok", authority.issuer)
    if "date" in answer.headers:
        theirs = parsedate_to_datetime(answer.headers["date"])
        yield _clock(it, "the authority", abs(real_now() - theirs) - timedelta(seconds=1))


async def check_urls(it: Installed) -> AsyncIterator[Finding]:
    """What others call us by: https, with a certificate that lasts."""
    public = {
        "ingest": it.said.ingest_url,
        "screening": it.said.screening_url,
        "notify": it.said.notify_url,
    }[it.service]
    for name, url in (("PASSERELLE_ISSUER", it.said.issuer), ("its own address", public)):
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "https":
            if host in LOOPBACK:
                said = f"{name}: loopback"
                # Screening's own door is for operations, by design not beyond the machine.
                if it.said.local or it.service == "screening":
                    yield it.finds("urls", "ok", said)
                else:
                    yield it.finds("urls", "warn", said, "Set the address that others call.")
            else:
                yield it.finds("urls", "fail", f"{name} is not https", "TLS 1.2 or better (SM-01).")
            continue
        try:
            ends = await asyncio.wait_for(
                asyncio.to_thread(_certificate_ends, host, parts.port or 443), PATIENCE
            )
        except (OSError, TimeoutError) as error:
            remedy = "Not reachable from here, or not trusted here; look from outside."
            yield it.finds("urls", "warn", f"{name}: {type(error).__name__}", remedy)
            continue
        left = ends - real_now()
        told = f"{name}: the certificate lasts {left.days} days"
        level: Level = "warn" if left < CERTIFICATE_WARNS else "ok"
        yield it.finds("urls", level, told, "Renew it." if level == "warn" else "")


def _certificate_ends(host: str, port: int) -> datetime:
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        said = wrapped.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(said["notAfter"])), UTC)


async def check_retention(it: Installed) -> AsyncIterator[Finding]:
    """CS-120: facts are kept until the site sets a period."""
    assert it.said.region is not None
    kept = region.load(it.said.region).retention
    if kept.facts is None:
        remedy = "Set retention.facts in the region file, with the privacy officer (CS-120)."
        yield it.finds("retention", "warn", "no period is set: facts are kept for ever", remedy)
    else:
        yield it.finds("retention", "ok", f"facts are kept for {kept.facts} days")


async def check_files(it: Installed) -> AsyncIterator[Finding]:
    """Files with secrets are closed to others."""
    files = [path for path in settings.SECRETS.glob("passerelle_*") if path.is_file()]
    if it.said.region is not None and it.said.local:
        files += [it.said.region.parent / "secrets.json"]
        files += sorted((it.said.region.parent / "clients").glob("*.private.json"))
    shared = [
        path.name
        for path in files
        if path.exists() and path.stat().st_mode & (stat.S_IWOTH | stat.S_IROTH)
    ]
    if shared:
        told = f"readable for everybody: {', '.join(shared)}"
        yield it.finds("files", "fail", told, "chmod o-rwx; then make those secrets anew.")
    elif files:
        yield it.finds("files", "ok", f"{len(files)} files of secrets are closed")


CHECKS: Sequence[Check] = (
    check_region,
    check_files,
    check_urls,
    check_authority,
    check_database,
    check_roles,
    check_migrations,
    check_row_security,
    check_keys,
    check_carrier,
    check_waiting,
    check_audit,
    check_retention,
)


# All of them


async def examine(service: Service) -> list[Finding]:
    """All findings of one service, by the variables of this process."""
    try:
        said = settings.read(KINDS[service])
    except SettingsError as error:
        return [
            Finding(service, "settings", "fail", line, "See docs/operations.md, *Settings*.")
            for line in str(error).splitlines()
        ]
    found = [Finding(service, "settings", "ok", "complete; each key is sound and has one purpose")]
    assert said.database_url is not None
    db = Database(said.database_url.get_secret_value(), service, pool=2)
    try:
        for check in CHECKS:
            found += await _looked(check, Installed(service, said, db))
    finally:
        await db.close()
    return found


async def _looked(check: Check, it: Installed) -> list[Finding]:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    found: list[Finding] = []
    try:
        async with asyncio.timeout(PATIENCE):
            found += [one async for one in check(it)]
    except region.RegionError:
        pass  # said already, where the file was looked at
    except (SQLAlchemyError, asyncpg.PostgresError, OSError, TimeoutError) as error:
        why = sqlstate(error) or type(error).__name__
        remedy = "Is the database up, and of this version? `passerelle migrate`, then again."
        found.append(it.finds(name, "fail", f"could not be looked at ({why})", remedy))
    return found


async def of_house(data: Path | None) -> list[Finding]:
    """All findings of the running `up` or `demo`: each service looked at with its own settings."""
    found: list[Finding] = []
    for service, environment in house.environments(data).items():
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "services.cli.main", "doctor", service, "--json"],
            env=environment,
            capture_output=True,
            check=False,
        )
        try:
            found += [Finding(**one) for one in orjson.loads(done.stdout)["findings"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            told = f"could not be looked at (exit code {done.returncode})"
            found.append(Finding(service, "doctor", "fail", told, "Run it as who runs the house."))
    return found


async def run(service: str | None, data: Path | None) -> list[Finding]:
    """Findings of one service by this process's variables; of a running house without a name."""
    if service is None:
        return await of_house(data)
    for known in settings.SERVICES:
        if known == service:
            return await examine(known)
    raise SettingsError(f"{service}: ingest, screening or notify")


def exit_code(found: Sequence[Finding]) -> int:
    """1 if anything fails."""
    return int(any(one.level == "fail" for one in found))


def as_json(found: Sequence[Finding]) -> str:
    counts: dict[str, Any] = {
        level: sum(one.level == level for one in found) for level in get_args(Level)
    }
    said = {"at": real_now().isoformat(), **counts, "findings": [asdict(one) for one in found]}
    return orjson.dumps(said, option=orjson.OPT_INDENT_2).decode()


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {word}"
    return f"{seconds} s"
