"""`passerelle keys`: which key holds how many rows, and all of them under the active one (CS-95).

A rotation: name a new key beside the old ones and make it active; `keys rotate` seals anew what
was sealed under others and makes tokens anew from the sealed values (HA-98); when `keys status`
shows no row of the old key any more, it may be taken out. Batch by batch, each its own
transaction: what was interrupted is begun again and finds done what is done.

Seals change while services run, for a ring opens with all its keys. Tokens are looked for under
the active key alone by ingest, so ingest is stopped while its tokens are made anew; hospitals
send again what it did not take.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
import typer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.plumbing import region, settings
from services.plumbing.db import Database, Tx, sqlstate
from services.plumbing.identifiers import ALIASES, canonical_system, normalise, own_system
from services.plumbing.sealing import (
    DATES,
    SealBrokenError,
    Seals,
    Tokens,
    UnknownKeyError,
)
from services.plumbing.settings import Keyring, Settings, SettingsError

T = TypeVar("T")
FIELD = "urn:passerelle:field:"
"""What ingest puts before a field's name for its digest; a test holds the two together."""
BATCH = 500
"""Rows of one transaction."""


class RekeyError(Exception):
    """Keys cannot be changed now; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Vault:
    """The keys of a service."""

    tokens: Tokens
    seals: Seals
    aliases: Mapping[str, str] = field(default_factory=lambda: dict(ALIASES))


@dataclass(frozen=True, slots=True)
class Held:
    """How many values of a table are under one key."""

    ring: str
    """`tokens`, `seals`, `dates`."""
    key: str
    table: str
    rows: int


@dataclass(slots=True)
class Tally:
    """What a rotation did."""

    sealed: int = 0
    tokens: int = 0
    broken: int = 0
    """Boxes that do not open, or whose key is not there: left as they are, for a person."""

    def __str__(self) -> str:
        return (
            f"{self.sealed} sealed anew, {self.tokens} tokens made anew, {self.broken} not opened"
        )


# How many there are

_DATES = ", ".join(f"'{name}'" for name in sorted(DATES))
_RING = f"case when f.key in ({_DATES}) then 'dates' else 'seals' end"


def _column(ring: str, column: str, table: str, where: str = "true") -> str:
    return f"select '{ring}', {column}, count(*) from {table} where {where} group by 2"  # noqa: S608 - constants below


def _map(table: str, column: str, key: str, ring: str = _RING) -> str:
    """Of a JSON object of boxes."""
    return (
        f"select {ring}, f.value->>{key}, count(*) from {table}, jsonb_each({column}) f"  # noqa: S608 - constants below
        f" where f.value->>{key} is not null group by 1, 2"
    )


_COUNTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "ingest": {
        "token": [_column("tokens", "key_id", "token")],
        "version": [_column("seals", "key_id", "version", "key_id is not null")],
        "refused": [_column("seals", "key_id", "refused", "body is not null")],
        "patient": [_map("patient", "fields", "'k'")],
        "patient_version": [_map("patient_version", "fields", "'k'")],
    },
    "screening": {},
    "notify": {
        "token": [_column("tokens", "key_id", "token", "key_id <> 'key'")],
        "panel": [
            _column("tokens", "key_id", "panel"),
            _map("panel", "boxes", "0"),
        ],
        "consent": [
            _column("tokens", "key_id", "consent", "key_id <> 'key'"),
            _column("seals", "body_key_id", "consent"),
        ],
        "refused_consent": [
            _column("tokens", "key_id", "refused_consent", "key_id <> 'key'"),
            _column("seals", "body_key_id", "refused_consent"),
            _column("seals", "why->>0", "refused_consent", "why is not null"),
        ],
        "override": [
            _column("seals", "why_key_id", "override"),
            _column("seals", "review->>0", "override", "review is not null"),
        ],
        "patient": [_map("patient", "demographics", "0")],
        "subscription": [
            _map("subscription", "headers || jsonb_build_object('', secret)", "0", "'seals'")
        ],
    },
}
_LOGGED = (
    "select count(*) from {table} where type = 'patient.identified.v1'"
    " and data like '%\"key_id\":\"' || :key || '\"%'"
)


async def held(db: Database, keys: Mapping[str, Sequence[str]] | None = None) -> list[Held]:
    """Rows per key, table by table; `keys` by ring, to look for in events not yet trimmed too."""
    found: list[Held] = []
    async with db.work() as tx:
        for table, queries in _COUNTS[db.service].items():
            for query in queries:
                rows = (await tx.execute(text(query))).all()
                found += [Held(ring, str(key), table, count) for ring, key, count in rows]
        for ring, ids in (keys or {}).items():
            for key in ids:
                for table in ("outbox", "dead_letter"):
                    count = await tx.scalar(text(_LOGGED.format(table=table)), {"key": key})
                    if count:
                        found.append(Held(ring, key, table, count))
    return sorted(found, key=lambda one: (one.ring, one.key, one.table))


# Sealing anew


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A table with boxes, and how one of its rows is sealed anew."""

    table: str
    key: str
    """Its key, of one column."""
    columns: tuple[str, ...]
    """Read, and written back if they changed."""
    anew: Callable[["_Work", Any], dict[str, Any] | None]


@dataclass(slots=True)
class _Work:
    vault: Vault
    tally: Tally

    def box(self, owner: UUID, name: str, key: str, box: str) -> tuple[str, str] | None:
        """The box under the active key; None if it is already, or cannot be opened."""
        seals = self.vault.seals
        if key == seals.active(name):
            return None
        try:
            made = seals.seal(owner, name, seals.open(owner, name, key, box))
        except (UnknownKeyError, SealBrokenError):
            self.tally.broken += 1
            return None
        self.tally.sealed += 1
        return made

    def boxes(
        self, owner: UUID, said: Mapping[str, Any], prefix: str = ""
    ) -> dict[str, Any] | None:
        """A map of name to [key id, box]; None if nothing changed."""
        new = {n: self.box(owner, f"{prefix}{n}", b[0], b[1]) for n, b in said.items()}
        changed = {name: list(box) for name, box in new.items() if box is not None}
        return {**said, **changed} if changed else None


def _version(work: _Work, row: Any) -> dict[str, Any] | None:
    if row.key_id is None or row.key_id == work.vault.seals.active("body"):
        return None
    body = work.box(row.key, "body", row.key_id, row.body) if row.body is not None else None
    context = work.box(row.key, "context", row.key_id, row.context) if row.context else None
    if (row.body is not None and body is None) or (row.context and context is None):
        return None
    key = body or context
    return None if key is None else {
        "key_id": key[0],
        "body": body and body[1],
        "context": context and context[1],
    }  # fmt: skip


def _refused(work: _Work, row: Any) -> dict[str, Any] | None:
    if row.body is None:
        return None
    new = work.box(UUID(row.digest[:32]), "body", row.key_id, row.body)
    return None if new is None else {"key_id": new[0], "body": new[1]}


def _fields(work: _Work, row: Any) -> dict[str, Any] | None:
    """Values of ingest's patients; their digests, made with the token key, go along."""
    changed: dict[str, Any] = {}
    for name, said in row.fields.items():
        if "k" not in said:
            continue
        new = work.box(row.key, name, said["k"], said["b"])
        key, box = new or (said["k"], said["b"])
        try:
            value = work.vault.seals.open(row.key, name, key, box)
        except (UnknownKeyError, SealBrokenError):
            continue
        digest = work.vault.tokens.token(f"{FIELD}{name}", value)[1]
        if new is not None or digest != said["d"]:
            changed[name] = {**said, "k": key, "b": box, "d": digest}
    return {"fields": {**row.fields, **changed}} if changed else None


def _demographics(work: _Work, row: Any) -> dict[str, Any] | None:
    new = work.boxes(row.key, row.demographics)
    return None if new is None else {"demographics": new}


def _panel(work: _Work, row: Any) -> dict[str, Any] | None:
    new = work.boxes(row.id, row.boxes)
    return None if new is None else {"boxes": new}


def _consent(work: _Work, row: Any) -> dict[str, Any] | None:
    new = work.box(row.uid, "consent", row.body_key_id, row.body)
    return None if new is None else {"body_key_id": new[0], "body": new[1]}


def _refused_consent(work: _Work, row: Any) -> dict[str, Any] | None:
    body = work.box(row.id, "consent", row.body_key_id, row.body)
    why = None if row.why is None else work.box(row.id, "why", *row.why)
    if body is None and why is None:
        return None
    key, box = body or (row.body_key_id, row.body)
    return {"body_key_id": key, "body": box, **({} if why is None else {"why": list(why)})}


def _override(work: _Work, row: Any) -> dict[str, Any] | None:
    why = work.box(row.id, "why", row.why_key_id, row.why)
    review = None if row.review is None else work.box(row.id, "review", *row.review)
    if why is None and review is None:
        return None
    key, box = why or (row.why_key_id, row.why)
    said: dict[str, Any] = {"why_key_id": key, "why": box}
    return said if review is None else said | {"review": list(review)}


def _subscription(work: _Work, row: Any) -> dict[str, Any] | None:
    headers = work.boxes(row.id, row.headers, "header ")
    secret = work.box(row.id, "webhook", *row.secret)
    if headers is None and secret is None:
        return None
    return {"headers": headers or row.headers, "secret": list(secret or row.secret)}


_SEALED: Mapping[str, Sequence[_Sealed]] = {
    "ingest": (
        _Sealed("version", "key, version", ("key_id", "body", "context"), _version),
        _Sealed("refused", "id", ("digest", "key_id", "body"), _refused),
        _Sealed("patient", "key", ("fields",), _fields),
        _Sealed("patient_version", "key, version", ("fields",), _fields),
    ),
    "notify": (
        _Sealed("patient", "key", ("demographics",), _demographics),
        _Sealed("panel", "id", ("boxes",), _panel),
        _Sealed("consent", "uid", ("body_key_id", "body"), _consent),
        _Sealed("refused_consent", "id", ("body_key_id", "body", "why"), _refused_consent),
        _Sealed("override", "id", ("why_key_id", "why", "review"), _override),
        _Sealed("subscription", "id", ("headers", "secret"), _subscription),
    ),
}


async def _pages(
    db: Database, table: str, key: str, columns: Sequence[str]
) -> AsyncGenerator[tuple[Tx, Sequence[Any]], None]:
    """Rows in the order of their key, locked, a transaction a page: yields (tx, rows)."""
    names = [name.strip() for name in key.split(",")]
    listed = ", ".join([*names, *columns])
    after: tuple[Any, ...] | None = None
    while True:
        where = ""
        if after is not None:
            where = f" where ({key}) > ({', '.join(f':k{n}' for n in range(len(names)))})"
        page = text(f"select {listed} from {table}{where} order by {key} limit {BATCH} for update")  # noqa: S608 - names from this file
        said = {f"k{n}": value for n, value in enumerate(after or ())}
        async with db.work() as tx:
            rows = (await tx.execute(page, said)).all()
            if not rows:
                return
            yield tx, rows
        after = tuple(getattr(rows[-1], name) for name in names)


async def seal_anew(db: Database, vault: Vault, tally: Tally) -> None:
    """All boxes of a service under the active keys."""
    work = _Work(vault, tally)
    for place in _SEALED.get(db.service, ()):
        names = [name.strip() for name in place.key.split(",")]
        async with aclosing(_pages(db, place.table, place.key, place.columns)) as pages:
            async for tx, rows in pages:
                for row in rows:
                    new = place.anew(work, row)
                    if new is not None:
                        await _put(tx, place.table, {n: getattr(row, n) for n in names}, new)


async def _put(tx: Tx, table: str, key: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    sets = ", ".join(
        f"{n} = cast(:{n} as jsonb)" if isinstance(v, dict | list) else f"{n} = :{n}"
        for n, v in new.items()
    )
    where = " and ".join(f"{name} = :key_of_{name}" for name in key)
    values = {
        n: orjson.dumps(v).decode() if isinstance(v, dict | list) else v for n, v in new.items()
    }
    said = {**values, **{f"key_of_{name}": value for name, value in key.items()}}
    await tx.execute(text(f"update {table} set {sets} where {where}"), said)  # noqa: S608 - names from this file


# Tokens anew


@dataclass(slots=True)
class _Anew:
    """Old digests, and what they become under the active key."""

    vault: Vault
    known: dict[str, str] = field(default_factory=dict)
    systems: set[tuple[str, str]] = field(default_factory=set)

    def learn(self, system: str, value: str) -> None:
        if (system, value) in self.systems:
            return
        self.systems.add((system, value))
        tokens = self.vault.tokens
        active, digest = tokens.token(system, value)
        for key, old in tokens.all(system, value):
            if key != active:
                self.known[old] = digest

    def learn_identifier(self, said: Mapping[str, Any], site: str) -> None:
        """In each way ingest compares one: as it is, and as HA-92 spells it."""
        value, system = said.get("value"), said.get("system")
        if not isinstance(value, str) or not isinstance(system, str | None):
            return
        self.learn(system or own_system(site), value.strip())
        canonical = canonical_system(system or own_system(site), self.vault.aliases)
        plain = normalise(canonical, value)
        if plain is not None:
            self.learn(canonical, plain)

    def forget(self) -> None:
        self.known.clear()
        self.systems.clear()


def identifiers_in(said: Any) -> Iterator[Mapping[str, Any]]:
    """Whatever has a `value` that is text, anywhere in a resource."""
    if isinstance(said, dict):
        if isinstance(said.get("value"), str):
            yield said
        for one in said.values():
            yield from identifiers_in(one)
    elif isinstance(said, list):
        for one in said:
            yield from identifiers_in(one)


_MOVE = {
    "token": "update token t set digest = n.new, key_id = :active"
    " from unnest(cast(:old as text[]), cast(:new as text[])) n (old, new)"
    " where t.digest = n.old and not exists (select from token x where x.digest = n.new)",
    "identifier": "update identifier t set digest = n.new"
    " from unnest(cast(:old as text[]), cast(:new as text[])) n (old, new) where t.digest = n.old",
    "handle": "update handle t set name = 'no/' || n.new"
    " from unnest(cast(:old as text[]), cast(:new as text[])) n (old, new)"
    " where t.name = 'no/' || n.old and not exists (select from handle x"
    " where x.site = t.site and x.kind = t.kind and x.name = 'no/' || n.new)",
}


async def ingest_tokens_anew(db: Database, vault: Vault, tally: Tally) -> None:
    """From the bodies and fields ingest keeps sealed. RekeyError if an ingest is running."""
    async with db.work() as tx:
        others = await tx.scalar(
            text(
                "select count(*) from pg_stat_activity"
                " where usename = session_user and pid <> pg_backend_pid()"
            )
        )
    if others:
        raise RekeyError("Stop ingest first: it looks for tokens under the active key alone.")
    anew = _Anew(vault)
    columns = ("site", "key_id", "body", "context")
    async with aclosing(_pages(db, "version", "key, version", columns)) as pages:
        async for tx, rows in pages:
            for row in rows:
                for name in ("body", "context"):
                    for one in _opened(vault, row.key, name, row.key_id, getattr(row, name), tally):
                        anew.learn_identifier(one, row.site)
            await _move(tx, anew, tally)
    async with aclosing(_pages(db, "patient", "key", ("fields",))) as pages:
        async for tx, rows in pages:
            for row in rows:
                boxes = {n: (f["k"], f["b"]) for n, f in row.fields.items() if "k" in f}
                for system, value in _of_patient(vault, row.key, boxes):
                    anew.learn(system, value)
            await _move(tx, anew, tally)


def _opened(
    vault: Vault, owner: UUID, name: str, key: str | None, box: str | None, tally: Tally
) -> Iterator[Mapping[str, Any]]:
    if key is None or box is None:
        return
    try:
        said = orjson.loads(vault.seals.open(owner, name, key, box))
    except (UnknownKeyError, SealBrokenError):
        tally.broken += 1
        return
    for one in said if isinstance(said, list) else [said]:
        yield from identifiers_in(orjson.loads(one) if isinstance(one, str) else one)


def _of_patient(
    vault: Vault, owner: UUID, boxes: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str]]:
    """System and value of a patient's identifiers, among the fields kept sealed."""
    found: list[tuple[str, str]] = []
    try:
        if "healthCard" in boxes:
            card = vault.seals.open(owner, "healthCard", *boxes["healthCard"])
            system, _, value = card.rpartition("|")
            found.append((system, value))
        if "recordNumbers" in boxes:
            said = orjson.loads(vault.seals.open(owner, "recordNumbers", *boxes["recordNumbers"]))
            found += [(one["system"], one["value"]) for one in said]
    except (UnknownKeyError, SealBrokenError):
        return found
    return found


async def _move(tx: Tx, anew: _Anew, tally: Tally) -> None:
    if anew.known:
        said = {"old": list(anew.known), "new": list(anew.known.values())}
        for table, move in _MOVE.items():
            more = {"active": anew.vault.tokens.ring.active} if table == "token" else {}
            tally.tokens += (await tx.execute(text(move), {**said, **more})).rowcount
    anew.forget()


async def notify_tokens_anew(db: Database, vault: Vault, tally: Tally) -> None:
    """Beside the old ones first, then panels and Consents, then without the old ones: whoever
    reads in between matches by one or the other.
    """
    ring = vault.tokens.ring
    async with aclosing(_pages(db, "patient", "key", ("demographics",))) as pages:
        async for tx, rows in pages:
            for row in rows:
                boxes = {n: (b[0], b[1]) for n, b in row.demographics.items()}
                for system, value in _of_patient(vault, row.key, boxes):
                    tally.tokens += await _beside(tx, vault, system, value)
    async with aclosing(_pages(db, "panel", "id", ("key_id", "digest", "boxes"))) as pages:
        async for tx, rows in pages:
            for row in rows:
                if row.key_id != ring.active and "card" in row.boxes:
                    card = _field(vault, row.id, "card", row.boxes["card"], tally)
                    tally.tokens += await _renamed(tx, vault, "panel", "id", row.id, row, card)
    for table, key in (("consent", "uid"), ("refused_consent", "id")):
        columns = ("key_id", "digest", "body_key_id", "body")
        async with aclosing(_pages(db, table, key, columns)) as pages:
            async for tx, rows in pages:
                for row in rows:
                    if row.key_id not in (ring.active, "key", None):
                        id_, box = getattr(row, key), (row.body_key_id, row.body)
                        said = orjson.loads(_field(vault, id_, "consent", box, tally) or "{}")
                        card = _subject(said, vault.aliases)
                        tally.tokens += await _renamed(tx, vault, table, key, id_, row, card)
    async with db.work() as tx:
        await tx.execute(
            text(
                "delete from token t where t.key_id not in (:active, 'key') and exists"
                " (select from token n where n.patient = t.patient and n.key_id = :active)"
                " and not exists (select from panel p"
                "  where p.key_id = t.key_id and p.digest = t.digest)"
                " and not exists (select from consent c"
                "  where c.key_id = t.key_id and c.digest = t.digest)"
                " and not exists (select from refused_consent r"
                "  where r.key_id = t.key_id and r.digest = t.digest)"
            ),
            {"active": ring.active},
        )


def _field(vault: Vault, owner: UUID, name: str, box: Sequence[str], tally: Tally) -> str | None:
    try:
        return vault.seals.open(owner, name, box[0], box[1])
    except (UnknownKeyError, SealBrokenError):
        tally.broken += 1
        return None


def _subject(said: Mapping[str, Any], aliases: Mapping[str, str]) -> str | None:
    patient = said.get("patient")
    identifier = patient.get("identifier") if isinstance(patient, dict) else None
    if not isinstance(identifier, dict):
        return None
    system = canonical_system(str(identifier.get("system", "")), aliases)
    value = normalise(system, str(identifier.get("value", "")))
    return None if value is None else f"{system}|{value}"


async def _beside(tx: Tx, vault: Vault, system: str, value: str) -> int:
    active, digest = vault.tokens.token(system, value)
    olds = [(k, d) for k, d in vault.tokens.all(system, value) if k != active]
    if not olds:
        return 0
    added = await tx.execute(
        text(
            "insert into token (key_id, digest, patient)"
            " select :active, :digest, t.patient from token t"
            " join unnest(cast(:keys as text[]), cast(:olds as text[])) o (key_id, digest)"
            " on t.key_id = o.key_id and t.digest = o.digest on conflict do nothing"
        ),
        {
            "active": active,
            "digest": digest,
            "keys": [k for k, _ in olds],
            "olds": [d for _, d in olds],
        },
    )
    return added.rowcount


async def _renamed(
    tx: Tx, vault: Vault, table: str, key: str, id_: UUID, row: Any, card: str | None
) -> int:
    """Give a row the active key's token, if what is sealed in it is what its token was made of."""
    if card is None:
        return 0
    system, _, value = card.rpartition("|")
    if (row.key_id, row.digest) not in vault.tokens.all(system, value):
        return 0
    active, digest = vault.tokens.token(system, value)
    await _put(tx, table, {key: id_}, {"key_id": active, "digest": digest})
    return 1


async def rotate(db: Database, vault: Vault) -> Tally:
    """Everything of the service under its active keys. RekeyError if it cannot be done now."""
    tally = Tally()
    if db.service == "ingest" and len(vault.tokens.ring.keys) > 1:
        await ingest_tokens_anew(db, vault, tally)
    if db.service == "notify" and len(vault.tokens.ring.keys) > 1:
        await notify_tokens_anew(db, vault, tally)
    await seal_anew(db, vault, tally)
    return tally


# The commands

commands = typer.Typer(
    help="Which key holds how many rows; all of them under the active one.", no_args_is_help=True
)
Service = Annotated[str, typer.Argument(help="ingest or notify.")]


@asynccontextmanager
async def _opening(service: str) -> AsyncGenerator[tuple[Database, Vault], None]:
    """The database and the keys of `service`, as its own variables say."""
    said = settings.read(Settings)
    if service not in _SEALED:
        raise SettingsError(f"{service}: ingest and notify keep what keys protect")
    needed = (said.database_url, said.region, said.token_keys, said.seal_keys, said.date_keys)
    url, region_file, tokens, seals, dates = needed
    if url is None or region_file is None or tokens is None or seals is None or dates is None:
        raise SettingsError(
            f"PASSERELLE_DATABASE_URL, _REGION, _TOKEN_KEYS, _SEAL_KEYS and _DATE_KEYS of"
            f" {service} are needed."
        )
    aliases = region.load(region_file).aliases
    db = Database(url.get_secret_value(), service, pool=2)
    try:
        yield db, Vault(Tokens(tokens), Seals(dates, seals), aliases)
    finally:
        await db.close()


def _rings(said: Settings) -> dict[str, Keyring]:
    rings = {"tokens": said.token_keys, "seals": said.seal_keys, "dates": said.date_keys}
    return {name: ring for name, ring in rings.items() if ring is not None}


async def status(service: str) -> list[Held]:
    """Rows of `service` per key, also in events that the log still holds."""
    named = {name: list(ring.keys) for name, ring in _rings(settings.read(Settings)).items()}
    async with _opening(service) as (db, _):
        return await held(db, named)


def words(found: Sequence[Held], rings: Mapping[str, Keyring]) -> list[str]:
    """A line for each table and key; a key that holds rows and is not there is said so."""
    lines = []
    for one in found:
        ring = rings.get(one.ring)
        there = ring is not None and one.key in ring.keys
        active = ring is not None and one.key == ring.active
        mark = "active" if active else "old" if there else "MISSING: its rows do not open"
        lines.append(f"{one.ring:7}{one.key:12}{one.table:14}{one.rows:>10}  {mark}")
    return lines or ["No key holds anything."]


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; what an operator can mend is said in one line, exit code 2."""
    try:
        return asyncio.run(work)
    except (SettingsError, region.RegionError, RekeyError) as error:
        why = str(error)
    except (DBAPIError, OSError) as error:
        why = f"The database refused or is away ({sqlstate(error)})."
    typer.echo(why, err=True)
    raise typer.Exit(2)


@commands.command("status")
def status_(service: Service) -> None:
    """Print the rows under each key. Exit code 1: rows are under a key that is not there."""
    found = _run(status(service))
    rings = _rings(settings.read(Settings))
    for line in words(found, rings):
        typer.echo(line)
    missing = [one for one in found if one.ring not in rings or one.key not in rings[one.ring].keys]
    raise typer.Exit(1 if missing else 0)


@commands.command("rotate")
def rotate_(service: Service) -> None:
    """Bring everything of a service under its active keys. May be run again at any time.

    Tokens of ingest need ingest to be stopped meanwhile.
    """

    async def work() -> Tally:
        async with _opening(service) as (db, vault):
            return await rotate(db, vault)

    tally = _run(work())
    typer.echo(str(tally))
    raise typer.Exit(1 if tally.broken else 0)


@commands.command("retire")
def retire_(service: Service, key: Annotated[str, typer.Argument(help="A key id.")]) -> None:
    """Say whether a key may be taken out. Exit code 1: it is active, or holds rows still."""
    found = [one for one in _run(status(service)) if one.key == key]
    rings = _rings(settings.read(Settings))
    for line in words(found, rings) if found else []:
        typer.echo(line)
    active = [name for name, ring in rings.items() if ring.active == key]
    if found or active:
        typer.echo(f"{key} is in use: it cannot be retired.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{key} holds nothing of {service}.")
