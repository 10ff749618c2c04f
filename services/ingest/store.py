"""All SQL of ingest. Each statement serves a whole batch; tables are in migrations/0001_ingest.sql.

What goes in and comes out are the values of tables.py; sealing is the caller's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import ARRAY, Boolean, DateTime, Integer, Text, Uuid, bindparam, text

from services.ingest.people import Link, Person
from services.ingest.tables import (
    Held,
    Kept,
    Oddity,
    Record,
    RefusedRow,
    Restatement,
    Seen,
    StatedEncounter,
    StatedLink,
    StatedPerson,
    Version,
    message_of,
    said,
)
from services.plumbing.db import Tx
from services.plumbing.sealing import Renewed

Name = tuple[str, str]
"""(kind, name): a name by which the site may mean a resource."""


_CLAIM = text(
    "select k.in_use, c.* from (select jsonb_object_agg(id, retired is not null) as in_use"
    "   from token_key) k"
    " left join claim(:site, :kinds, :names, :keys, :others) c on true"
).bindparams(
    bindparam("kinds", type_=ARRAY(Text)),
    bindparam("names", type_=ARRAY(Text)),
    bindparam("keys", type_=ARRAY(Uuid)),
    bindparam("others", type_=ARRAY(Uuid)),
)


async def claim(
    tx: Tx, site: str, names: Mapping[Name, UUID], others: Iterable[UUID] = ()
) -> tuple[dict[Name, UUID], dict[UUID, Record], dict[str, bool]]:
    """Which key each name has, the proposed one where it had none; held until the commit.

    Also the records of those keys, and of the keys `others`, that have come; and the ids of the
    token keys ever used here, with whether they are retired.
    """
    params = {
        "site": site,
        "kinds": [kind for kind, _ in names],
        "names": [name for _, name in names],
        "keys": list(names.values()),
        "others": list(others),
    }
    keys: dict[Name, UUID] = {}
    records: dict[UUID, Record] = {}
    in_use: dict[str, bool] = {}
    for row in await tx.execute(_CLAIM, params):
        in_use = row.in_use or {}
        if row.name is not None:
            keys[row.kind, row.name] = row.key
        if row.id is not None:
            records[row.key] = _record(row)
    return keys, records, in_use


_OPEN_KEY = text("select open_key(:id)")


async def open_key(tx: Tx, key_id: str) -> None:
    """Tokens are made under this key from the commit of `tx` on, where nobody has said so."""
    await tx.execute(_OPEN_KEY, {"id": key_id})


_RENEW = text("select renew(:site, :locks, :olds, :news, :active)").bindparams(
    bindparam("locks", type_=ARRAY(Text)),
    bindparam("olds", type_=ARRAY(Text)),
    bindparam("news", type_=ARRAY(Text)),
)


async def renew(tx: Tx, site: str, found: Collection[Renewed], active: str) -> int:
    """Whatever of the site goes by another key's digest goes by the active one's; before any
    other lock of `tx`. How many tokens were moved.
    """
    pairs = {old: one.new for one in found for old in one.olds}
    locks = sorted({one.lock for one in found})
    if not pairs:
        return 0
    params = {
        "site": site,
        "locks": locks,
        "olds": list(pairs),
        "news": list(pairs.values()),
        "active": active,
    }
    moved: int = (await tx.execute(_RENEW, params)).scalar_one()
    return moved


def _record(row: Any) -> Record:
    record = Record(
        row.key, row.kind, row.id, True, row.version, row.digest, row.deleted, row.updated,
        row.patient, row.temporary, row.told_at, row.fact_version, row.stated,
    )  # fmt: skip
    for message in row.messages or ():
        if message["said"] is not None:
            record.told.append(message_of(message["said"]))
        if message["hold"] is not None:
            record.held.append(Held(row.key, message["version"], message["hold"]))
            if message["version"] == row.version:
                record.hold = message["hold"]
    return record


_REPOINT = text(
    "update handle h set key = p.key from unnest(:kinds, :names, :keys) as p (kind, name, key)"
    " where h.site = :site and h.kind = p.kind and h.name = p.name"
    " and h.kind = any(:kinds) and h.name = any(:names)"
).bindparams(
    bindparam("kinds", type_=ARRAY(Text)),
    bindparam("names", type_=ARRAY(Text)),
    bindparam("keys", type_=ARRAY(Uuid)),
)


async def repoint(tx: Tx, site: str, names: Mapping[Name, UUID]) -> None:
    """Let each of the claimed `names` mean another resource."""
    if names:
        params = {
            "site": site,
            "kinds": [kind for kind, _ in names],
            "names": [name for _, name in names],
            "keys": list(names.values()),
        }
        await tx.execute(_REPOINT, params)


_MATCHING = text("select kind, digest, key from matching(:site, :digests)").bindparams(
    bindparam("digests", type_=ARRAY(Text))
)


async def matching(tx: Tx, site: str, digests: Sequence[str]) -> dict[Name, list[UUID]]:
    """The living resources of the site that have an identifier, by (kind, token)."""
    found: dict[Name, list[UUID]] = {}
    for row in await tx.execute(_MATCHING, {"site": site, "digests": list(digests)}):
        found.setdefault((row.kind, row.digest), []).append(row.key)
    return found


_MEET = text(
    "select found from meet(:site, :digests, :key_ids, :systems, :cards, :own)"
).bindparams(
    bindparam("digests", type_=ARRAY(Text)),
    bindparam("key_ids", type_=ARRAY(Text)),
    bindparam("systems", type_=ARRAY(Text)),
    bindparam("cards", type_=ARRAY(Boolean)),
    bindparam("own", type_=ARRAY(Uuid)),
)


async def meet(
    tx: Tx, site: str, tokens: Sequence[tuple[str, str, str, bool]], own: Sequence[UUID]
) -> list[dict[str, Any]]:
    """The patients that `tokens` (digest, key id, system, is card) lead to, and those of `own`
    that the site's records name. All are held until the commit.
    """
    params = {
        "site": site,
        "digests": [token[0] for token in tokens],
        "key_ids": [token[1] for token in tokens],
        "systems": [token[2] for token in tokens],
        "cards": [token[3] for token in tokens],
        "own": list(own),
    }
    return [row.found for row in await tx.execute(_MEET, params)]


_SETTLE = text("select settle(cast(:people as jsonb), cast(:links as jsonb))")


async def settle(tx: Tx, people: Sequence[Person], links: Sequence[Link], at: datetime) -> None:
    """Write patients that changed, and merges."""
    if not people:
        return
    rows = [
        {
            "key": person.key,
            "version": person.version,
            "fields": person.fields,
            "sites": person.sites,
            "attributed": person.attributed,
            "surviving": person.surviving,
            "link_version": person.link_version,
            "apart": person.apart,
            "digests": person.taken,
            "recorded": at,
        }
        for person in people
    ]
    made = [{name: getattr(link, name) for name in _LINK} | {"at": at} for link in links]
    await tx.execute(_SETTLE, {"people": _json(rows), "links": _json(made)})


_LINK = tuple(one.name for one in fields(Link))

_KEEP = text("select keep(:site, :client, cast(:records as jsonb), cast(:versions as jsonb))")


async def keep(
    tx: Tx,
    site: str,
    client: str,
    touched: Sequence[Record],
    versions: Sequence[Version],
    now: datetime,
) -> None:
    """Write the records that changed and the versions that came."""
    if not touched and not versions:
        return
    rows = [
        {
            "key": one.key,
            "kind": one.kind,
            "id": one.id,
            "version": one.version,
            "digest": one.digest,
            "deleted": one.deleted,
            "updated": one.updated,
            "patient": one.patient,
            "temporary": one.temporary,
            "told_at": one.told_at,
            "fact_version": one.fact_version,
            "stated": one.stated,
            "existed": one.exists,
            "identifiers": one.identifiers,
        }
        for one in touched
    ]
    facts = {one.key: one.fact_version for one in touched}
    new = [
        {
            "key": one.key,
            "version": one.version,
            "kind": one.kind,
            "key_id": one.box[0] if one.box else None,
            "body": one.box[1] if one.box else None,
            "context": one.context,
            "digest": one.digest,
            "arrived": one.arrived,
            "told_at": one.told_at,
            "door": one.door,
            "moves": one.moves,
            "said": None if one.said is None else said(one.said),
            "hold": one.hold,
            "due": one.due,
            "detail": one.detail,
            "waits_for": one.waits_for,
            **_settled(one, facts, now),
        }
        for one in versions
    ]
    params = {"site": site, "client": client, "records": _json(rows), "versions": _json(new)}
    await tx.execute(_KEEP, params)


def _settled(one: Version, facts: Mapping[UUID, int], now: datetime) -> dict[str, Any]:
    """Since when its fact says what it says, once it is not held any more."""
    if one.said is None:
        return {"fact": None, "settled": None}
    return {"fact": facts[one.key], "settled": now}


_RELEASE = text(
    "update version v set said = n.said, hold = n.hold, due = n.due, detail = n.detail,"
    "   waits_for = n.waits_for, fact = n.fact, settled = n.settled"
    " from jsonb_to_recordset(cast(:versions as jsonb)) as n (key uuid, version int, said jsonb,"
    "   hold text, due timestamptz, detail text, waits_for uuid, fact int, settled timestamptz)"
    " where v.key = n.key and v.version = n.version and v.key = any(:keys)"
).bindparams(bindparam("keys", type_=ARRAY(Uuid)))


async def release(
    tx: Tx, touched: Sequence[Record], versions: Sequence[Version], now: datetime
) -> None:
    """Write what became of versions that were held."""
    if versions:
        facts = {one.key: one.fact_version for one in touched}
        rows = [
            {
                "key": one.key,
                "version": one.version,
                "said": None if one.said is None else said(one.said),
                "hold": one.hold,
                "due": one.due,
                "detail": one.detail,
                "waits_for": one.waits_for,
                **_settled(one, facts, now),
            }
            for one in versions
        ]
        params = {"versions": _json(rows), "keys": [one.key for one in versions]}
        await tx.execute(_RELEASE, params)


_KEPT = (
    "select v.key, v.version, v.site, v.kind, r.id, v.key_id, v.body, v.context, v.arrived,"
    " v.told_at, v.door, v.client, v.moves, v.hold, v.due, r.patient, r.version as newest,"
    " r.deleted, v.admitted_by is not null as admitted"
    " from version v join resource r using (key)"
)
_WAITING = text("select key, version from waiting(:site, :woken, :started)").bindparams(
    bindparam("woken", type_=ARRAY(Uuid)), bindparam("started", type_=ARRAY(Uuid))
)
_THESE = text(
    f"{_KEPT} where v.key = any(:keys) and v.version = any(:versions) order by v.key, v.version"
).bindparams(bindparam("keys", type_=ARRAY(Uuid)), bindparam("versions", type_=ARRAY(Integer)))
_DUE = text(
    f"{_KEPT} where v.hold is not null and v.due <= :now order by v.due limit :most"
).bindparams(bindparam("now", type_=DateTime(timezone=True)))
_HELD = text(
    f"{_KEPT} where v.hold = :hold and (v.key, v.version) > (:key, :version)"
    " order by v.key, v.version limit :most"
).bindparams(bindparam("key", type_=Uuid))
_ONE_HELD = text(
    f"{_KEPT} where v.key = :key and v.version = :version and v.hold is not null"
).bindparams(bindparam("key", type_=Uuid))


async def waiting(tx: Tx, site: str, woken: Iterable[UUID], started: Iterable[UUID]) -> list[Kept]:
    """Held versions that wait for the records `woken`, or for a start of `started`."""
    params = {"site": site, "woken": list(woken), "started": list(started)}
    found = {(row.key, row.version) for row in await tx.execute(_WAITING, params)}
    if not found:
        return []
    these = {
        "keys": sorted({key for key, _ in found}),
        "versions": sorted({version for _, version in found}),
    }
    rows = [_kept(row) for row in await tx.execute(_THESE, these)]
    return [row for row in rows if (row.key, row.version) in found]


async def due(tx: Tx, now: datetime, most: int) -> list[Kept]:
    """Held versions that time alone may release, oldest first."""
    return [_kept(row) for row in await tx.execute(_DUE, {"now": now, "most": most})]


async def held(tx: Tx, hold: str, after: tuple[UUID, int], most: int) -> list[Kept]:
    """Versions held for one reason, in the order of their keys, after (key, version)."""
    params = {"hold": hold, "key": after[0], "version": after[1], "most": most}
    return [_kept(row) for row in await tx.execute(_HELD, params)]


async def one_held(tx: Tx, key: UUID, version: int) -> Kept | None:
    """A version that waits; None if it does not."""
    row = (await tx.execute(_ONE_HELD, {"key": key, "version": version})).one_or_none()
    return None if row is None else _kept(row)


_ADMIT = text(
    "update version set admitted_by = :by where key = :key and version = :version"
).bindparams(bindparam("key", type_=Uuid))
_DISCARD = text(
    "update version set hold = null, due = null, waits_for = null, discarded_by = :by,"
    "   discard_reason = :reason"
    " where key = :key and version = :version and hold is not null"
).bindparams(bindparam("key", type_=Uuid))


async def admit(tx: Tx, key: UUID, version: int, by: str) -> None:
    """Note that a person lets a held version pass."""
    await tx.execute(_ADMIT, {"key": key, "version": version, "by": by})


async def discard(tx: Tx, key: UUID, version: int, by: str, reason: str) -> bool:
    """A person sets a held version aside, with a reason; it stays on record (HA-81)."""
    params = {"key": key, "version": version, "by": by, "reason": reason}
    return (await tx.execute(_DISCARD, params)).rowcount == 1


def _kept(row: Any) -> Kept:
    return Kept(
        key=row.key,
        version=row.version,
        kind=row.kind,
        id=row.id,
        box=None if row.body is None else (row.key_id, row.body),
        context=None if row.context is None else (row.key_id, row.context),
        arrived=row.arrived,
        told_at=row.told_at,
        door=row.door,
        client=row.client,
        moves=row.moves,
        hold=row.hold,
        due=row.due,
        patient=row.patient,
        newest=row.newest,
        deleted=row.deleted,
        admitted=row.admitted,
        site=row.site,
    )


_READ = text(
    f"{_KEPT} where v.site = :site and v.kind = :kind and v.key = ("  # noqa: S608 - a constant
    "   select key from handle where site = :site and kind = :kind and name = 'id/' || :id)"
    "   and v.version = coalesce(cast(:version as int), r.version)"
)


async def read(tx: Tx, site: str, kind: str, id_: str, version: int | None) -> Kept | None:
    """A version of the site's resource, by default the newest."""
    params = {"site": site, "kind": kind, "id": id_, "version": version}
    row = (await tx.execute(_READ, params)).one_or_none()
    return None if row is None else _kept(row)


_NAMED = text(
    "select name, key from handle where site = :site and kind = :kind and name = any(:names)"
).bindparams(bindparam("names", type_=ARRAY(Text)))


async def named(tx: Tx, site: str, kind: str, ids: Iterable[str]) -> set[UUID]:
    """Keys of the site's resources that have one of these logical ids."""
    params = {"site": site, "kind": kind, "names": [f"id/{one}" for one in ids]}
    return {row.key for row in await tx.execute(_NAMED, params)}


_RANGE = "r.site = :site and r.kind = :kind and not r.deleted and r.updated between :since and :to"
_AMONG = "and (cast(:among as uuid[]) is null or r.key = any(:among))"
_SEARCH = text(
    f"{_KEPT} where {_RANGE} {_AMONG} and v.version = r.version and r.key > :after"
    " order by r.key limit :most"
).bindparams(
    bindparam("among", type_=ARRAY(Uuid)),
    bindparam("after", type_=Uuid),
    bindparam("since", type_=DateTime(timezone=True)),
    bindparam("to", type_=DateTime(timezone=True)),
)
_COUNT = text(f"select count(*) from resource r where {_RANGE} {_AMONG}").bindparams(  # noqa: S608
    bindparam("among", type_=ARRAY(Uuid)),
    bindparam("since", type_=DateTime(timezone=True)),
    bindparam("to", type_=DateTime(timezone=True)),
)
FIRST = UUID(int=0)


async def search(
    tx: Tx,
    site: str,
    kind: str,
    *,
    among: Iterable[UUID] | None,
    updated: tuple[datetime, datetime],
    after: UUID,
    count: int,
) -> tuple[list[Kept], int]:
    """Newest versions of living resources, in the order of their keys after `after`, and how many
    there are in all. `among`: only these keys; `updated`: only in this range, ends included.
    """
    params = {
        "site": site,
        "kind": kind,
        "among": None if among is None else list(among),
        "since": updated[0],
        "to": updated[1],
    }
    rows = await tx.execute(_SEARCH, params | {"after": after, "most": count})
    found = [_kept(row) for row in rows]
    if after == FIRST and len(found) < count:
        return found, len(found)
    return found, int((await tx.execute(_COUNT, params)).scalar_one())


_MESSAGE = text(
    "insert into message (site, bundle, header, digest, status, answer, at)"
    " values (:site, :bundle, :header, :digest, 0, '', :at) on conflict do nothing"
)
_MESSAGE_SEEN = text(
    "select header, digest, status, answer from message where site = :site and bundle = :bundle"
)
_MESSAGE_ANSWER = text(
    "update message set status = :status, answer = :answer where site = :site and bundle = :bundle"
)


async def meet_message(tx: Tx, site: str, bundle: str, new: Seen, at: datetime) -> Seen | None:
    """Note that a message Bundle is being taken in; if it was before, what was said then.

    Waits for one who takes in the same at this moment.
    """
    key = {"site": site, "bundle": bundle}
    made = await tx.execute(_MESSAGE, key | {"header": new.header, "digest": new.digest, "at": at})
    if made.rowcount == 1:
        return None
    row = (await tx.execute(_MESSAGE_SEEN, key)).one()
    return Seen(row.header, row.digest, row.status, row.answer)


async def answer_message(tx: Tx, site: str, bundle: str, status: int, answer: str) -> None:
    """Keep the answer, to be given again (HA-46)."""
    params = {"site": site, "bundle": bundle, "status": status, "answer": answer}
    await tx.execute(_MESSAGE_ANSWER, params)


_REFUSE = text(
    "insert into refused as f (site, digest, reason, kind, door, client, request, status, outcome,"
    "   key_id, body, arrived, told_at, last_seen, purge_at)"
    " select :site, n.digest, n.reason, n.kind, :door, :client, n.request, n.status, n.outcome,"
    "   n.key_id, n.body, :now, n.told_at, :now, :purge_at"
    " from jsonb_to_recordset(cast(:rows as jsonb)) as n (digest text, reason text, kind text,"
    "   request jsonb, status int, outcome jsonb, key_id text, body text, told_at timestamptz)"
    " on conflict (site, digest, reason) do update set times = f.times + 1, last_seen = :now,"
    "   outcome = excluded.outcome, status = excluded.status,"
    "   state = case f.state when 'replayed' then 'waiting' else f.state end"
)


async def refuse(
    tx: Tx,
    site: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    door: str,
    client: str,
    now: datetime,
    purge_at: datetime,
) -> None:
    """Keep what had no effect, for a person (HA-80); the same body is counted, not copied."""
    if rows:
        unique = {(row["digest"], row["reason"]): row for row in rows}
        params = {
            "site": site,
            "door": door,
            "client": client,
            "now": now,
            "purge_at": purge_at,
            "rows": _json([unique[key] for key in sorted(unique)]),
        }
        await tx.execute(_REFUSE, params)


_REFUSED = text(
    "select id, site, digest, reason, kind, door, client, request, status, outcome, key_id, body,"
    " arrived, times, state from refused"
    " where (cast(:site as text) is null or site = :site)"
    "   and (cast(:ids as uuid[]) is null or id = any(:ids)) and state = any(:states)"
    " order by arrived, id limit :most"
).bindparams(bindparam("ids", type_=ARRAY(Uuid)), bindparam("states", type_=ARRAY(Text)))
_REFUSED_SETTLED = text(
    "update refused set state = :state, settled = :now, settled_by = :by, result = :result"
    " where id = :id"
).bindparams(bindparam("id", type_=Uuid))
_PURGE = text(
    "update refused set body = null where body is not null and purge_at <= :now returning id"
)


async def refused(
    tx: Tx,
    *,
    site: str | None = None,
    ids: Sequence[UUID] | None = None,
    states: Sequence[str] = ("waiting",),
    most: int = 1000,
) -> list[RefusedRow]:
    """The refused queue, oldest first."""
    params = {
        "site": site,
        "ids": None if ids is None else list(ids),
        "states": list(states),
        "most": most,
    }
    return [RefusedRow(**row._mapping) for row in await tx.execute(_REFUSED, params)]  # noqa: SLF001


async def refused_settled(
    tx: Tx, id_: UUID, *, state: str, by: str, result: str, now: datetime
) -> None:
    """What became of a refused body, and who decided so (HA-81)."""
    params = {"id": id_, "state": state, "by": by, "result": result, "now": now}
    await tx.execute(_REFUSED_SETTLED, params)


async def purge(tx: Tx, now: datetime) -> int:
    """Forget refused bodies that are too old; their records stay (HA-80)."""
    return len((await tx.execute(_PURGE, {"now": now})).all())


_FOR_A_PERSON = text(
    "select hold as kind, count(*) as number from version where hold is not null group by hold"
    " union all select reason, count(*) from refused where state = 'waiting' group by reason"
)


async def waiting_for_a_person(tx: Tx) -> dict[str, int]:
    """How much is held or refused, by reason."""
    return {row.kind: row.number for row in await tx.execute(_FOR_A_PERSON)}


_QUALITY = text(
    "insert into quality (site, key, version, code, expression, at)"
    " select :site, n.key, n.version, n.code, n.expression, :at"
    " from jsonb_to_recordset(cast(:rows as jsonb))"
    "   as n (key uuid, version int, code text, expression text)"
    " on conflict do nothing"
)


async def note(tx: Tx, site: str, oddities: Sequence[Oddity], at: datetime) -> None:
    if oddities:
        rows = [{name: getattr(one, name) for name in _ODDITY} for one in oddities]
        await tx.execute(_QUALITY, {"site": site, "rows": _json(rows), "at": at})


_ODDITY = tuple(one.name for one in fields(Oddity))

_HEARD = text(
    "insert into heard as h (site, last_event, at) values (:site, :last_event, :at)"
    " on conflict (site) do update set at = excluded.at,"
    "   last_event = greatest(h.last_event, excluded.last_event)"
    " where h.at <= excluded.at - interval '1 minute' or h.at > excluded.at"
    " returning last_event"
)


async def heard(tx: Tx, site: str, last_event: datetime, at: datetime) -> datetime | None:
    """Event time of the site's newest message, if it is to be told now: once a minute."""
    params = {"site": site, "last_event": last_event, "at": at}
    row = (await tx.execute(_HEARD, params)).one_or_none()
    return None if row is None else row.last_event


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps(rows, default=str).decode()


# Stating again (counting.md section 9)

_UNDER_WAY = text("select * from restatement where stage <> 'ended' for update")
_BEGIN = text(
    "insert into restatement (id, asked_by, begun) values (:id, :by, :now) on conflict do nothing"
).bindparams(bindparam("id", type_=Uuid))
_MOVE = text(
    "update restatement set stage = :stage, after = :after, persons = persons + :persons,"
    "   links = links + :links, encounters = encounters + :encounters, ended = :ended"
    " where id = :id returning *"
).bindparams(
    bindparam("id", type_=Uuid),
    bindparam("after", type_=Uuid),
    bindparam("ended", type_=DateTime(timezone=True)),
)


async def begin_restatement(tx: Tx, id_: UUID, by: str, now: datetime) -> None:
    """Begin to state everything again, unless that is under way."""
    await tx.execute(_BEGIN, {"id": id_, "by": by, "now": now})


async def restatement(tx: Tx) -> Restatement | None:
    """The one under way, held until the commit."""
    row = (await tx.execute(_UNDER_WAY)).one_or_none()
    return None if row is None else Restatement(**row._mapping)  # noqa: SLF001


async def restated(
    tx: Tx,
    id_: UUID,
    stage: str,
    after: UUID,
    more: Mapping[str, int],
    ended: datetime | None = None,
) -> Restatement:
    """Note how far it has come; `more`: events that it has stated, by stage."""
    params = {
        "id": id_,
        "stage": stage,
        "after": after,
        **{name: more.get(name, 0) for name in ("persons", "links", "encounters")},
        "ended": ended,
    }
    row = (await tx.execute(_MOVE, params)).one()
    return Restatement(**row._mapping)  # noqa: SLF001


_ALL_HEARD = text("select site, last_event, at from heard order by site")


async def all_heard(tx: Tx) -> list[tuple[str, datetime, datetime]]:
    """Each site, event time of its newest message, when that was told."""
    return [(row.site, row.last_event, row.at) for row in await tx.execute(_ALL_HEARD)]


_STATED_PERSONS = text(
    """
    with page as (
      select key, version, fields, sites, attributed from patient
      where key > :after and version > 0 order by key limit :most
    )
    select v.key, v.version, v.recorded, v.version = p.version as is_newest,
      case when v.version = p.version then p.fields else v.fields end as fields,
      p.sites, p.attributed,
      coalesce((
        select jsonb_agg(jsonb_build_object('key_id', t.key_id, 'digest', t.digest)
                         order by t.digest)
        from token t where t.patient = p.key and v.version = p.version), '[]') as tokens
    from page p join patient_version v on v.key = p.key order by v.key, v.version
    """
).bindparams(bindparam("after", type_=Uuid))
_STATED_LINKS = text(
    """
    with page as (
      select distinct retired from link where retired > :after order by retired limit :most
    )
    select l.retired, l.version, l.surviving, l.merged, l.at
    from page join link l using (retired) order by l.retired, l.version
    """
).bindparams(bindparam("after", type_=Uuid))
_STATED_ENCOUNTERS = text(
    """
    with page as (
      select key, site, fact_version from resource
      where kind = 'Encounter' and fact_version > 0 and key > :after order by key limit :most
    )
    select p.key, p.site, p.fact_version, v.said, v.fact, v.settled
    from page p join version v on v.key = p.key
    where v.said is not null order by p.key, v.version
    """
).bindparams(bindparam("after", type_=Uuid))


async def stated_persons(tx: Tx, after: UUID, most: int) -> list[StatedPerson]:
    """Every version of the next `most` patients in the order of their keys."""
    rows = await tx.execute(_STATED_PERSONS, {"after": after, "most": most})
    return [StatedPerson(**row._mapping) for row in rows]  # noqa: SLF001


async def stated_links(tx: Tx, after: UUID, most: int) -> list[StatedLink]:
    """Every merge and unmerge of the next `most` retired keys."""
    rows = await tx.execute(_STATED_LINKS, {"after": after, "most": most})
    return [StatedLink(**row._mapping) for row in rows]  # noqa: SLF001


async def stated_encounters(tx: Tx, after: UUID, most: int) -> list[StatedEncounter]:
    """The next `most` encounters that were ever stated, with all that their messages say."""
    found: dict[UUID, StatedEncounter] = {}
    for row in await tx.execute(_STATED_ENCOUNTERS, {"after": after, "most": most}):
        one = found.setdefault(row.key, StatedEncounter(row.key, row.site, row.fact_version, []))
        one.messages.append((row.fact, row.settled, message_of(row.said)))
    return list(found.values())
