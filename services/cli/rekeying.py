"""`passerelle keys`: which key holds how many rows, and all of them under the active one (CS-95).

A rotation: name a new key beside the old ones and make it active; `keys rotate` seals anew what
was sealed under others and makes tokens anew from the sealed values (HA-98); when `keys status`
shows no row of the old key any more, it may be taken out. Batch by batch, each its own
transaction: what was interrupted is begun again and finds done what is done.

Services run meanwhile, each with both keys: what they look for they look for under every key of
the ring (HA-98). Of the two halves of a rotation, sealing needs no more than that. For tokens,
every process must first have the new key *beside* the active one, and only then may the first
make it active: a process that does not have a key that tokens were made with takes nothing in.
"""

import asyncio
from collections import defaultdict
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
import typer
from sqlalchemy import ARRAY, Integer, TextClause, Uuid, bindparam, text
from sqlalchemy.exc import DBAPIError

from services.plumbing import region, settings
from services.plumbing.clock import Clock
from services.plumbing.db import Database, Tx, sqlstate
from services.plumbing.eventlog import append
from services.plumbing.identifiers import ALIASES, canonical_system, normalise, own_system
from services.plumbing.sealing import (
    DATES,
    SealBrokenError,
    Seals,
    Tokens,
    UnknownKeyError,
    identifiers_of,
)
from services.plumbing.settings import Keyring, Settings, SettingsError

T = TypeVar("T")
FIELD = "urn:passerelle:field:"
"""What ingest puts before a field's name for its digest; a test holds the two together."""
BATCH = 500
"""Rows of one transaction."""
TRIES = 5
CROSSED = ("40001", "40P01", "23505")
"""Of a transaction that a running service's one crossed."""


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
            _map(
                "subscription",
                "headers || jsonb_strip_nulls(jsonb_build_object('', secret, ' ', former_secret))",
                "0",
                "'seals'",
            )
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
    secrets = {
        name: work.box(row.id, "webhook", *box)
        for name in ("secret", "former_secret")
        if (box := getattr(row, name)) is not None
    }
    changed: dict[str, Any] = {n: list(box) for n, box in secrets.items() if box is not None}
    if headers is not None:
        changed["headers"] = headers
    return changed or None


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
        _Sealed("subscription", "id", ("headers", "secret", "former_secret"), _subscription),
    ),
}


Page = Callable[[Tx, Sequence[Any], Tally], Awaitable[None]]


async def _each_page(
    db: Database,
    table: str,
    key: str,
    columns: Sequence[str],
    tally: Tally,
    do: Page,
    *,
    where: str = "true",
    hold: bool = True,
    said: Mapping[str, Any] | None = None,
) -> None:
    """`do` with rows in the order of their key, locked if `hold`, a transaction a page.

    A page that a running service crossed is done again.
    """
    names = [name.strip() for name in key.split(",")]
    listed = ", ".join([*names, *columns])
    after: tuple[Any, ...] | None = None
    while True:
        beyond = "true"
        if after is not None:
            beyond = f"({key}) > ({', '.join(f':k{n}' for n in range(len(names)))})"
        page = text(
            f"select {listed} from {table} where {where} and {beyond}"  # noqa: S608 - names from this file
            f" order by {key} limit {BATCH}{' for update' if hold else ''}"
        )
        params = {**(said or {}), **{f"k{n}": value for n, value in enumerate(after or ())}}
        rows = await _uncrossed(db, page, params, tally, do)
        if not rows:
            return
        after = tuple(getattr(rows[-1], name) for name in names)


async def _uncrossed(
    db: Database, page: TextClause, params: Mapping[str, Any], tally: Tally, do: Page
) -> Sequence[Any]:
    for tries in range(1, TRIES + 1):
        done = replace(tally)
        try:
            async with db.work() as tx:
                rows = (await tx.execute(page, params)).all()
                if rows:
                    await do(tx, rows, done)
        except DBAPIError as error:
            if sqlstate(error) not in CROSSED or tries == TRIES:
                raise
            continue
        tally.sealed, tally.tokens, tally.broken = done.sealed, done.tokens, done.broken
        return rows
    raise AssertionError("the last try returns or raises")


async def seal_anew(db: Database, vault: Vault, tally: Tally) -> None:
    """All boxes of a service under the active keys."""
    for place in _SEALED.get(db.service, ()):
        names = [name.strip() for name in place.key.split(",")]

        async def anew(
            tx: Tx,
            rows: Sequence[Any],
            done: Tally,
            place: _Sealed = place,
            names: Sequence[str] = names,
        ) -> None:
            work = _Work(vault, done)
            for row in rows:
                new = place.anew(work, row)
                if new is not None:
                    await _put(tx, place.table, {n: getattr(row, n) for n in names}, new)

        await _each_page(db, place.table, place.key, place.columns, tally, anew)


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
    """What is to be found under the active key, site by site."""

    vault: Vault
    by_site: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))

    def learn(self, site: str, said: Mapping[str, Any]) -> None:
        """In each way ingest compares one: as it is, and as HA-92 spells it."""
        value, system = said.get("value"), said.get("system")
        if not isinstance(value, str) or not isinstance(system, str | None):
            return
        known = self.by_site[site]
        known.add((system or own_system(site), value.strip()))
        canonical = canonical_system(system or own_system(site), self.vault.aliases)
        plain = normalise(canonical, value)
        if plain is not None:
            known.add((canonical, plain))

    async def move(self, tx: Tx, tally: Tally) -> None:
        """Site by site, in one order."""
        from services.ingest import store  # noqa: PLC0415 - a service's process loads only itself

        tokens = self.vault.tokens
        for site, known in sorted(self.by_site.items()):
            found = [tokens.renewed(*one) for one in sorted(known)]
            tally.tokens += await store.renew(tx, site, found, tokens.ring.active)


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


async def ingest_tokens_anew(db: Database, vault: Vault, tally: Tally, now: datetime) -> None:
    """From the bodies and fields that ingest keeps sealed; then notify is told of the new ones."""
    from services.ingest.people import People, Person  # noqa: PLC0415

    async def from_bodies(tx: Tx, rows: Sequence[Any], done: Tally) -> None:
        anew = _Anew(vault)
        for row in rows:
            for name in ("body", "context"):
                for one in _opened(vault, row.key, name, row.key_id, getattr(row, name), done):
                    anew.learn(row.site, one)
        await anew.move(tx, done)

    async def from_fields(tx: Tx, rows: Sequence[Any], done: Tally) -> None:
        anew = _Anew(vault)
        for row in rows:
            boxes = {n: (f["k"], f["b"]) for n, f in row.fields.items() if "k" in f}
            anew.by_site[""] |= set(identifiers_of(vault.seals, row.key, boxes))
        await anew.move(tx, done)

    async def told(tx: Tx, rows: Sequence[Any], done: Tally) -> None:  # noqa: ARG001 - a Page
        people = People("", now, vault.tokens, vault.seals, vault.aliases, {})
        found = await tx.execute(_TOKENS_OF, {"keys": [row.key for row in rows]})
        tokens = {row.patient: row.tokens for row in found}
        for row in rows:
            people.by_key[row.key] = Person(
                row.key,
                row.version,
                row.fields,
                row.sites,
                row.attributed,
                tokens={one["digest"]: one for one in tokens.get(row.key, ())},
                is_news=True,
            )
        people.changed()
        await append(tx, people.events(), now)
        versions = [people.by_key[row.key].version for row in rows]
        active = vault.tokens.ring.active
        params = {"keys": [row.key for row in rows], "versions": versions, "active": active}
        await tx.execute(_RETOLD, params)

    columns = ("site", "key_id", "body", "context")
    # Not locked: renewing comes first in ingest's transactions too, before any row's lock.
    await _each_page(db, "version", "key, version", columns, tally, from_bodies, hold=False)
    await _each_page(db, "patient", "key", ("fields",), tally, from_fields, hold=False)
    await _each_page(
        db,
        "patient",
        "key",
        ("version", "fields", "sites", "attributed"),
        tally,
        told,
        where="retold is distinct from :active",
        said={"active": vault.tokens.ring.active},
    )


_TOKENS_OF = text(
    "select patient, jsonb_agg(jsonb_build_object('digest', digest, 'key_id', key_id)) as tokens"
    " from token where patient = any(:keys) group by patient"
).bindparams(bindparam("keys", type_=ARRAY(Uuid)))
_RETOLD = text(
    "update patient p set version = n.version, retold = :active"
    " from unnest(:keys, :versions) n (key, version) where p.key = n.key"
).bindparams(bindparam("keys", type_=ARRAY(Uuid)), bindparam("versions", type_=ARRAY(Integer)))


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


async def notify_tokens_anew(db: Database, vault: Vault, tally: Tally) -> None:
    """Beside the old ones first, then panels and Consents, then without the old ones: whoever
    reads in between matches by one or the other.
    """
    from services.notify.store import also_known  # noqa: PLC0415 - a service's process loads only itself

    ring = vault.tokens.ring

    async def beside(tx: Tx, rows: Sequence[Any], done: Tally) -> None:
        for row in rows:
            boxes = {n: (b[0], b[1]) for n, b in row.demographics.items()}
            for one in identifiers_of(vault.seals, row.key, boxes):
                tokens = vault.tokens.all(*one)
                first = vault.tokens.token(*one)
                every = [first, *(other for other in tokens if other != first)]
                done.tokens += await also_known(tx, every)

    async def of_panel(tx: Tx, rows: Sequence[Any], done: Tally) -> None:
        for row in rows:
            if row.key_id != ring.active and "card" in row.boxes:
                card = _field(vault, row.id, "card", row.boxes["card"], done)
                done.tokens += await _renamed(tx, vault, "panel", "id", row.id, row, card)

    async def of_consents(
        tx: Tx, rows: Sequence[Any], done: Tally, table: str = "consent", key: str = "uid"
    ) -> None:
        for row in rows:
            if row.key_id not in (ring.active, "key", None):
                id_, box = getattr(row, key), (row.body_key_id, row.body)
                said = orjson.loads(_field(vault, id_, "consent", box, done) or "{}")
                card = _subject(said, vault.aliases)
                done.tokens += await _renamed(tx, vault, table, key, id_, row, card)

    async def of_refused(tx: Tx, rows: Sequence[Any], done: Tally) -> None:
        await of_consents(tx, rows, done, "refused_consent", "id")

    await _each_page(db, "patient", "key", ("demographics",), tally, beside)
    await _each_page(db, "panel", "id", ("key_id", "digest", "boxes"), tally, of_panel)
    columns = ("key_id", "digest", "body_key_id", "body")
    await _each_page(db, "consent", "uid", columns, tally, of_consents)
    await _each_page(db, "refused_consent", "id", columns, tally, of_refused)
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


async def rotate(db: Database, vault: Vault, now: datetime) -> Tally:
    """Everything of the service under its active keys, while it runs; again after a stop."""
    tally = Tally()
    await seal_anew(db, vault, tally)  # first, so that what is told of is under the new ones
    if db.service == "ingest" and vault.tokens.rotating:
        await ingest_tokens_anew(db, vault, tally, now)
    if db.service == "notify" and vault.tokens.rotating:
        await notify_tokens_anew(db, vault, tally)
    return tally


async def retire(db: Database, key: str) -> bool:
    """Have no process of `db` make tokens under `key` any more; False if some are kept under it.

    Who is at it meanwhile has finished first; who comes later is refused (RetiredKeyError).
    """
    async with db.work() as tx:
        await tx.execute(text("lock table token_key in access exclusive mode"))
        if await tx.scalar(text("select exists (select from token where key_id = :k)"), {"k": key}):
            return False
        await tx.execute(
            text("update token_key set retired = now() where id = :k and retired is null"),
            {"k": key},
        )
        return True


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


def rings(said: Settings) -> dict[str, Keyring]:
    """The rings a process has, by what they protect."""
    named = {"tokens": said.token_keys, "seals": said.seal_keys, "dates": said.date_keys}
    return {name: ring for name, ring in named.items() if ring is not None}


async def status(service: str) -> list[Held]:
    """Rows of `service` per key, also in events that the log still holds."""
    named = {name: list(ring.keys) for name, ring in rings(settings.read(Settings)).items()}
    async with _opening(service) as (db, _):
        return await held(db, named)


def words(found: Sequence[Held], there: Mapping[str, Keyring]) -> list[str]:
    """A line for each table and key; a key that holds rows and is not there is said so."""
    lines = []
    for one in found:
        ring = there.get(one.ring)
        known = ring is not None and one.key in ring.keys
        active = ring is not None and one.key == ring.active
        mark = "active" if active else "old" if known else "MISSING: its rows do not open"
        lines.append(f"{one.ring:7}{one.key:12}{one.table:14}{one.rows:>10}  {mark}")
    return lines or ["No key holds anything."]


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; what an operator can mend is said in one line, exit code 2."""
    try:
        return asyncio.run(work)
    except (SettingsError, region.RegionError) as error:
        why = str(error)
    except (DBAPIError, OSError) as error:
        why = f"The database refused or is away ({sqlstate(error)})."
    typer.echo(why, err=True)
    raise typer.Exit(2)


@commands.command("status")
def status_(service: Service) -> None:
    """Print the rows under each key. Exit code 1: rows are under a key that is not there."""
    found = _run(status(service))
    there = rings(settings.read(Settings))
    for line in words(found, there):
        typer.echo(line)
    missing = [one for one in found if one.ring not in there or one.key not in there[one.ring].keys]
    raise typer.Exit(1 if missing else 0)


@commands.command("rotate")
def rotate_(service: Service) -> None:
    """Bring everything of a service under its active keys, while it runs.

    Stopped at any moment, it goes on where it was when it is run again.
    """

    async def work() -> Tally:
        async with _opening(service) as (db, vault):
            clock = Clock(settings.read(Settings).clock)
            return await rotate(db, vault, clock.now())

    tally = _run(work())
    typer.echo(str(tally))
    raise typer.Exit(1 if tally.broken else 0)


@commands.command("retire")
def retire_(service: Service, key: Annotated[str, typer.Argument(help="A key id.")]) -> None:
    """Take a key out of use, if nothing is kept under it. Exit code 1: it is active, or in use.

    A retired token key is never used again: a process that makes it active takes nothing in.
    """
    found = [one for one in _run(status(service)) if one.key == key]
    there = rings(settings.read(Settings))
    for line in words(found, there) if found else []:
        typer.echo(line)
    active = [name for name, ring in there.items() if ring.active == key]

    async def work() -> bool:
        async with _opening(service) as (db, _):
            return await retire(db, key) if service == "ingest" else True

    if found or active or not _run(work()):
        typer.echo(f"{key} is in use: it cannot be retired.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{key} holds nothing of {service}: take it out of the keyring.")
