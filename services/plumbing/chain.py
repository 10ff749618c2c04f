"""The audit as a chain: who changes, removes, adds or moves a sealed record is found out (CS-112).

Application roles add records and nothing else. A sealer, in a role of its own, chains them per
service and tenant: each link is SHA-256 over the link before it and the record's canonical JSON
(RFC 8785). Where the chains stood is signed hourly with a key the database does not have, so that
even its superuser cannot make another past: not before the last checkpoint.
"""

import asyncio
import base64
import contextlib
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.plumbing import telemetry
from services.plumbing.audit import AuditRecord
from services.plumbing.clock import real_now
from services.plumbing.db import Database, Tx, sqlstate
from services.plumbing.eventlog import lock_number
from services.plumbing.process import Background
from services.plumbing.settings import SERVICES, SHORTEST_KEY, Settings, SettingsError

log = structlog.get_logger()

EVERY = 1.0
"""Real seconds between two looks; CS-112 allows five."""
MOST = 5_000
"""Records sealed in one transaction."""
GRACE = timedelta(seconds=60)
"""How long a record may be unsealed before `verify` calls it bad."""
CHECKPOINT_EVERY = timedelta(hours=1)
ALGORITHM = "Ed25519"
CUT = "passerelle-cut"

_COLUMNS = sorted({*AuditRecord.__slots__, "position", "id", "written"})
CANONICAL = (
    "(select json_strip_nulls(row_to_json(said))::text from (select "  # noqa: S608 - constants
    + ", ".join(f"a.{name}" for name in _COLUMNS)
    + ") said)"
)
"""A row `a` of an audit as RFC 8785 JSON: names in order, no space, nothing that is null; so that
a column may be added later. Needs the session's time zone to be UTC."""


def start_of(service: str, tenant: str) -> bytes:
    """What the first link of a chain follows: no chain can stand in for another."""
    return hashlib.sha256(f"passerelle audit {service}|{tenant}".encode()).digest()


def link(previous: bytes, canonical: bytes) -> bytes:
    """The hash of the link that follows `previous` and seals the record `canonical`."""
    return hashlib.sha256(previous + canonical).digest()


# Sealing

_ENTER = text(
    "select pg_try_advisory_xact_lock(:lock) as alone, set_config('timezone', 'UTC', true),"
    " pg_snapshot_xmin(pg_current_snapshot())::text::bigint as oldest"
)
_WAITING = text(
    "select count(*) as waiting from audit a where a.position > :low and not exists"
    " (select from chain.link l where l.service = :service and l.record = a.position)"
)
_UNSEALED = text(
    "select a.position, coalesce(a.tenant, '') as tenant,"  # noqa: S608 - constants
    f" {CANONICAL} as canonical from audit a where a.position > :low and not exists"
    " (select from chain.link l where l.service = :service and l.record = a.position)"
    " order by a.position limit :most"
)
_MARK = text(
    "select coalesce(max(position), 0) as position,"
    " pg_snapshot_xmax(pg_current_snapshot())::text::bigint as newest from audit"
)
_HEADS = text(
    "select asked.tenant, l.position, l.hash"
    " from unnest(cast(:tenants as text[])) asked (tenant) cross join lateral"
    " (select position, hash from chain.link where service = :service and tenant = asked.tenant"
    " order by position desc limit 1) l"
)
_TENANTS = text(
    "with recursive known (tenant) as (select min(tenant) from chain.link where service = :service"
    " union all select (select min(l.tenant) from chain.link l where l.service = :service"
    " and l.tenant > known.tenant) from known where known.tenant is not null)"
    " select tenant from known where tenant is not null"
)
_ADD = text(
    "insert into chain.link (service, tenant, position, record, hash)"
    " select :service, * from unnest(cast(:tenants as text[]), cast(:positions as bigint[]),"
    " cast(:records as bigint[]), cast(:hashes as bytea[]))"
)
_NEWEST = text(
    "select number, at, statement from chain.checkpoint where service = :service"
    " order by number desc limit 1"
)
_CHECKPOINT = text(
    "insert into chain.checkpoint (service, number, at, statement)"
    " values (:service, :number, :at, :statement)"
)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A position below which nothing new can appear once all transactions of then are over."""

    position: int
    newest: int
    at: datetime


class Sealer:
    """Seals the audit of one service. Of several processes one does it at a time."""

    def __init__(
        self,
        db: Database,
        *,
        key: OKPKey | None = None,
        folder: Path | None = None,
        now: Callable[[], datetime] = real_now,
    ) -> None:
        self._db = db
        self._service = db.service
        self._key = key
        self._folder = folder
        self._now = now
        # All at or below is sealed. Positions are taken before commit, so one below the newest
        # may still appear: `low` follows only when nothing of then is open any more (ST-01).
        # It starts at nothing: each start looks at all once.
        self._low = 0
        self._mark: _Mark | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Seal until `stop`. What fails is logged and tried again: records wait, none is lost."""
        while not stop.is_set():
            full = False
            try:
                full = await self.seal() == MOST
                await self.checkpoint_if_due()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.error("sealer_waits", error=type(error).__name__, sqlstate=sqlstate(error))  # noqa: TRY400 - it may quote rows
            if not full:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), EVERY)

    async def seal(self) -> int:
        """Seal what is not yet, at most MOST records; how many. None if another one is at it."""
        async with self._db.seal() as tx:
            entered = (await tx.execute(_ENTER, {"lock": self._lock})).one()
            if not entered.alone:
                return 0
            asked = {"service": self._service, "low": self._low}
            waiting = await tx.scalar(_WAITING, asked) or 0
            telemetry.gauge("audit_unsealed", self._service).set(waiting)
            rows = (await tx.execute(_UNSEALED, {**asked, "most": MOST})).all() if waiting else []
            await self._chain(tx, [(r.position, r.tenant, r.canonical.encode()) for r in rows])
            if len(rows) < MOST:
                await self._raise_low(tx, entered.oldest)
        telemetry.gauge("audit_unsealed", self._service).set(waiting - len(rows))
        return len(rows)

    @property
    def _lock(self) -> int:
        return lock_number(f"passerelle sealer {self._service}")

    async def _chain(self, tx: Tx, rows: Sequence[tuple[int, str, bytes]]) -> None:
        if not rows:
            return
        tenants = sorted({tenant for _, tenant, _ in rows})
        heads = {tenant: (0, start_of(self._service, tenant)) for tenant in tenants}
        heads |= await self._heads(tx, tenants)
        links: list[tuple[str, int, int, bytes]] = []
        for record, tenant, canonical in rows:
            position, previous = heads[tenant]
            heads[tenant] = position + 1, link(previous, canonical)
            links.append((tenant, position + 1, record, heads[tenant][1]))
        tenant_of, positions, records, hashes = zip(*links, strict=True)
        await tx.execute(
            _ADD,
            {
                "service": self._service,
                "tenants": list(tenant_of),
                "positions": list(positions),
                "records": list(records),
                "hashes": list(hashes),
            },
        )

    async def _heads(self, tx: Tx, tenants: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        found = await tx.execute(_HEADS, {"service": self._service, "tenants": list(tenants)})
        return {row.tenant: (row.position, row.hash) for row in found}

    async def _raise_low(self, tx: Tx, oldest: int) -> None:
        """`oldest` is that of a snapshot taken before all unsealed records were looked for."""
        now, mark = self._now(), self._mark
        if mark is not None and (oldest < mark.newest or now < mark.at + GRACE):
            return
        if mark is not None:
            self._low = mark.position
        found = (await tx.execute(_MARK)).one()
        self._mark = _Mark(found.position, found.newest, now)

    async def checkpoint_if_due(self) -> bool:
        """Make a checkpoint if the last one is an hour old, and there is a key to sign it."""
        if self._key is None:
            return False
        async with self._db.seal() as tx:
            last = (await tx.execute(_NEWEST, {"service": self._service})).one_or_none()
        if last is not None and self._now() < last.at + CHECKPOINT_EVERY:
            return False
        return await self.checkpoint() is not None

    async def checkpoint(self) -> str | None:
        """State, sign and keep where all chains of the service stand now; the statement (JWS).

        None if there is nothing to state, or another process is at it.
        """
        if self._key is None:
            raise ValueError("a checkpoint needs a key")
        async with self._db.seal() as tx:
            if not (await tx.execute(_ENTER, {"lock": self._lock})).one().alone:
                return None
            last = (await tx.execute(_NEWEST, {"service": self._service})).one_or_none()
            tenants = (await tx.execute(_TENANTS, {"service": self._service})).scalars().all()
            heads = await self._heads(tx, tenants)
            if not heads:
                return None
            at = self._now()
            stated = Checkpoint(
                service=self._service,
                number=1 if last is None else last.number + 1,
                at=at.isoformat(),
                chains={tenant: (n, hash_.hex()) for tenant, (n, hash_) in heads.items()},
                previous=None if last is None else _digest(last.statement),
            )
            statement = stated.signed(self._key)
            await tx.execute(
                _CHECKPOINT,
                {
                    "service": self._service,
                    "number": stated.number,
                    "at": at,
                    "statement": statement,
                },
            )
            # Before the commit: a checkpoint that only the database has would be its own witness.
            if self._folder is not None:
                await asyncio.to_thread(_keep, self._folder, stated, statement)
        return statement


def _keep(folder: Path, stated: "Checkpoint", statement: str) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = stated.at.replace(":", "").replace("+0000", "Z")
    (folder / f"{stated.service}-{stated.number:08}-{stamp}.jws").write_text(statement)


def sealing(settings: Settings, db: Database) -> list[Background]:
    """The sealer of a service, for its background work. SettingsError if its key is unusable."""
    key = None if settings.checkpoint_key is None else signing_key(settings.checkpoint_key)
    if key is None:
        log.warning("no_checkpoints", advice="set PASSERELLE_CHECKPOINT_KEY")
    return [Sealer(db, key=key, folder=settings.checkpoint_folder).run]


# Checkpoints


def signing_key(secret: SecretStr) -> OKPKey:
    """The Ed25519 key of the setting `checkpoint_key`."""
    try:
        raw = base64.b64decode(secret.get_secret_value(), validate=True)
    except ValueError:
        raise SettingsError("PASSERELLE_CHECKPOINT_KEY: is not base64") from None
    if len(raw) < SHORTEST_KEY:
        raise SettingsError(f"PASSERELLE_CHECKPOINT_KEY: is shorter than {SHORTEST_KEY} bytes")
    seed = HKDF(SHA256(), 32, salt=None, info=b"passerelle audit checkpoint").derive(raw)
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return OKPKey.import_key(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def public_part(key: OKPKey) -> str:
    """What whoever verifies must know of the key, and may tell anybody."""
    return str(key.as_dict(private=False)["x"])


def verifying_key(public: str) -> OKPKey:
    """The key of which `public_part` is known. ValueError if it is none."""
    try:
        return OKPKey.import_key({"kty": "OKP", "crv": ALGORITHM, "x": public})
    except (JoseError, ValueError, TypeError):
        raise ValueError("this is not the public part of a checkpoint key") from None


def cut_statement(service: str, checkpoint: int, at: datetime, key: OKPKey) -> str:
    """Signs that the audit of `service` begins at `checkpoint` from now on (CS-121)."""
    said = {"service": service, "checkpoint": checkpoint, "at": at.isoformat()}
    header = {"alg": ALGORITHM, "typ": CUT}
    payload = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    return jws.serialize_compact(header, payload, key, algorithms=[ALGORITHM])


def _is_cut(statement: str, service: str, checkpoint: int, keys: Sequence[OKPKey]) -> bool:
    """Whether one of `keys` signed that. Without keys taken as said."""
    if keys and not any(_is_signed(statement, key) for key in keys):
        return False
    try:
        found = jws.extract_compact(statement.encode())
        said = orjson.loads(found.payload)
        about = (found.headers()["typ"], said["service"], said["checkpoint"])
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return False
    return about == (CUT, service, checkpoint)


def _digest(statement: str) -> str:
    return hashlib.sha256(statement.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where all chains of a service stood."""

    service: str
    number: int
    at: str
    chains: Mapping[str, tuple[int, str]]
    """By tenant: last position and its hash in hexadecimal."""
    previous: str | None
    """SHA-256 of the statement before it."""

    def signed(self, key: OKPKey) -> str:
        said = {name: getattr(self, name) for name in self.__slots__}
        payload = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
        header = {"alg": ALGORITHM, "typ": "passerelle-checkpoint"}
        return jws.serialize_compact(header, payload, key, algorithms=[ALGORITHM])

    @classmethod
    def read(cls, statement: str, keys: Sequence[OKPKey]) -> "Checkpoint":
        """ValueError if it is none, or none of `keys` signed it; without keys taken as said."""
        if keys and not any(_is_signed(statement, key) for key in keys):
            raise ValueError("not a signed checkpoint")
        try:
            payload: bytes = jws.extract_compact(statement.encode()).payload
            said = orjson.loads(payload)
            chains = {t: (int(n), str(hash_)) for t, (n, hash_) in said["chains"].items()}
            return cls(
                str(said["service"]),
                int(said["number"]),
                str(said["at"]),
                chains,
                said["previous"],
            )
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            raise ValueError("not a signed checkpoint") from None


def _is_signed(statement: str, key: OKPKey) -> bool:
    try:
        jws.deserialize_compact(statement, key, algorithms=[ALGORITHM])
    except JoseError:
        return False
    return True


# Verifying


@dataclass(frozen=True, slots=True)
class Bad:
    """The first place of a chain that is not as it was sealed."""

    service: str
    tenant: str | None
    position: int | None
    why: str

    def __str__(self) -> str:
        place = self.service if self.tenant is None else f"{self.service}/{self.tenant or '-'}"
        return f"{place}{'' if self.position is None else f' position {self.position}'}: {self.why}"


@dataclass(slots=True)
class Verdict:
    """What `verify` found. Sound if `bad` is empty."""

    records: int = 0
    chains: int = 0
    checkpoints: int = 0
    pending: int = 0
    """Records too young to be sealed."""
    bad: list[Bad] = field(default_factory=list)


_CUT = (
    "select checkpoint, statement from chain.cut where service = $1"
    " order by checkpoint desc limit 1"
)
_STATEMENTS = "select number, statement from chain.checkpoint where service = $1 order by number"
_STRAYS = (
    "select a.position, coalesce(a.tenant, '') as tenant, now() - a.written as age"
    " from {service}.audit a where not exists (select from chain.link l"
    " where l.service = '{service}' and l.record = a.position) order by a.position"
)
_LINKS = (
    "select l.tenant, l.position, encode(l.hash, 'hex'),"
    " case when a.position is not null and coalesce(a.tenant, '') = l.tenant then {canonical} end"
    " from chain.link l left join {service}.audit a on a.position = l.record"
    " where l.service = '{service}' order by l.tenant, l.position"
)


async def verify(
    connection: asyncpg.Connection,
    keys: Sequence[OKPKey],
    kept: Iterable[str] = (),
    services: Sequence[str] = SERVICES,
) -> Verdict:
    """Recompute every chain, and hold it to every checkpoint (CS-113).

    `connection` is in one transaction with one snapshot, in a role that sees all of the audit.
    One of `keys` signed each checkpoint; `kept` are statements from elsewhere than the database.
    """
    await connection.execute("set local timezone = 'UTC'; set local work_mem = '128MB'")
    verdict = Verdict()
    elsewhere = list(kept)
    for service in services:
        stated, checkpoints = await _stated(connection, service, keys, elsewhere, verdict)
        begins = await _beginning(connection, service, keys, checkpoints, verdict)
        await _walk(connection, service, stated, begins, verdict)
        await _strays(connection, service, verdict)
    return verdict


Stated = dict[str, dict[int, tuple[str, int]]]
"""By tenant and position: the hash a checkpoint states, and the checkpoint's number."""
Begins = Mapping[str, tuple[int, str]]
"""By tenant: the last position of the records that were destroyed in time, and its hash."""


async def _stated(
    connection: asyncpg.Connection,
    service: str,
    keys: Sequence[OKPKey],
    elsewhere: Sequence[str],
    verdict: Verdict,
) -> tuple[Stated, Mapping[int, Checkpoint]]:
    stated: Stated = defaultdict(dict)
    rows = await connection.fetch(_STATEMENTS, service)
    previous: str | None = None
    statements: list[Checkpoint] = []
    for expected, row in enumerate(rows, start=1):
        try:
            read = Checkpoint.read(row["statement"], keys)
        except ValueError as error:
            why = f"checkpoint {row['number']} is {error}"
            verdict.bad.append(Bad(service, None, None, why))
            break
        if (read.service, read.number, read.previous) != (service, expected, previous):
            why = f"checkpoint {row['number']} is not in its place, or one before it is missing"
            verdict.bad.append(Bad(service, None, None, why))
            break
        previous = _digest(row["statement"])
        statements.append(read)
    statements += _of(service, elsewhere, keys, verdict)
    for one in statements:
        for tenant, (position, hash_) in one.chains.items():
            known = stated[tenant].setdefault(position, (hash_, one.number))
            if known[0] != hash_:
                why = f"checkpoints {known[1]} and {one.number} state different pasts"
                verdict.bad.append(Bad(service, tenant, position, why))
    verdict.checkpoints += len(statements)
    return stated, {one.number: one for one in statements}


async def _beginning(
    connection: asyncpg.Connection,
    service: str,
    keys: Sequence[OKPKey],
    checkpoints: Mapping[int, Checkpoint],
    verdict: Verdict,
) -> Begins:
    """Where the chains begin: at a checkpoint, if the audit was cut there by who has the key."""
    cut = await connection.fetchrow(_CUT, service)
    if cut is None:
        return {}
    number, statement = cut["checkpoint"], cut["statement"]
    if number not in checkpoints or not _is_cut(statement, service, number, keys):
        why = f"the cut at checkpoint {number} is not signed"
        verdict.bad.append(Bad(service, None, None, why))
        return {}
    return checkpoints[number].chains


def _of(
    service: str, statements: Sequence[str], keys: Sequence[OKPKey], verdict: Verdict
) -> Iterator[Checkpoint]:
    for statement in statements:
        try:
            read = Checkpoint.read(statement, keys)
        except ValueError as error:
            if service == SERVICES[0]:  # its service cannot be told: said once
                verdict.bad.append(Bad("a kept checkpoint", None, None, f"is {error}"))
            continue
        if read.service == service:
            yield read


class _Walk:
    """Takes the links of a service, in order, and says where each chain first goes wrong."""

    def __init__(self, service: str, stated: Stated, begins: Begins, verdict: Verdict) -> None:
        self._service = service
        self._stated = stated
        self._begins = begins
        self._verdict = verdict
        self._tenant: str | None = None
        self._start = 0
        self._headed = False
        self._position = 0
        self._hash = b""
        self._broken = False
        self._left: dict[int, tuple[str, int]] = {}
        self._seen: set[str] = set()

    def take(self, line: bytes) -> None:
        """One line of COPY: tenant, position, hash, canonical record (or none)."""
        tenant, position, hash_, canonical = line.split(b"\t")
        if self._tenant is None or tenant != self._raw:
            self.end()
            self._begin(tenant)
        if int(position) <= self._start:  # of the last one that was destroyed its link is left
            if int(position) == self._start:
                self._headed = True
                if self._hash.hex().encode() != hash_:
                    self._bad(self._start, "the chain does not begin at the checkpoint of its cut")
            return
        self._verdict.records += 1
        if self._broken:
            return
        self._position += 1
        if int(position) != self._position:
            self._bad(self._position, "the record and its link are missing")
            return
        if canonical == b"\\N":
            self._bad(self._position, "the sealed record is missing, or is another tenant's")
            return
        if b"\\" in canonical:  # COPY doubles the backslash; JSON leaves nothing else to escape
            canonical = canonical.replace(b"\\\\", b"\\")
        self._hash = hashlib.sha256(self._hash + canonical).digest()
        if self._hash.hex().encode() != hash_:
            self._bad(self._position, "the record, or its place, is not as it was sealed")
            return
        stated = self._left.pop(self._position, None)
        if stated is not None and stated[0].encode() != hash_:
            self._bad(self._position, f"the chain is not the one of checkpoint {stated[1]}")

    def end(self) -> None:
        """No more of this chain."""
        if self._tenant is not None and self._start and not self._headed:
            self._bad(self._start, "the link at which the chain begins is missing")
        if self._tenant is not None and self._left and not self._broken:
            number = self._left[min(self._left)][1]
            self._bad(self._position + 1, f"the chain ends before its checkpoint {number}")
        self._tenant = None

    def finish(self) -> None:
        self.end()
        for tenant in sorted(self._stated.keys() - self._seen):
            why = "the whole chain is missing"
            self._verdict.bad.append(Bad(self._service, tenant, 1, why))

    def _begin(self, raw: bytes) -> None:
        self._raw = raw
        self._tenant = raw.decode()
        self._seen.add(self._tenant)
        self._hash = start_of(self._service, self._tenant)
        self._start, self._headed = 0, False
        if self._tenant in self._begins:
            self._start, hash_ = self._begins[self._tenant]
            self._hash = bytes.fromhex(hash_)
        self._position = self._start
        stated = self._stated.get(self._tenant, {})
        self._left = {at: said for at, said in stated.items() if at > self._start}
        self._broken = False
        self._verdict.chains += 1

    def _bad(self, position: int, why: str) -> None:
        self._broken = True
        self._verdict.bad.append(Bad(self._service, self._tenant, position, why))


async def _walk(
    connection: asyncpg.Connection,
    service: str,
    stated: Stated,
    begins: Begins,
    verdict: Verdict,
) -> None:
    walk = _Walk(service, stated, begins, verdict)
    rest = b""

    async def take(data: bytes) -> None:
        nonlocal rest
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            walk.take(line)

    query = _LINKS.format(service=service, canonical=CANONICAL)
    await connection.copy_from_query(query, output=take)
    walk.finish()


async def _strays(connection: asyncpg.Connection, service: str, verdict: Verdict) -> None:
    """Records without a link: too young, or put there behind the sealer's back."""
    for row in await connection.fetch(_STRAYS.format(service=service)):
        if row["age"] < GRACE:
            verdict.pending += 1
        else:
            why = f"record {row['position']} was never sealed"
            verdict.bad.append(Bad(service, row["tenant"], None, why))


@contextlib.asynccontextmanager
async def as_auditor(url: str, *, readonly: bool = True) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the auditor's role, in one transaction with one snapshot.

    `url` is of any login that may take that role: the owner of the tables, or one made for it.
    """
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=readonly):
            await connection.execute("set local role passerelle_auditor")
            yield connection
    finally:
        await connection.close()
