"""The audit as a chain: nobody changes a sealed record unseen (CS-112, CS-113)."""

import asyncio
import base64
import hashlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from joserfc.jwk import OKPKey
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.plumbing import chain
from services.plumbing.audit import AuditRecord, Content, Trail, record
from services.plumbing.chain import Sealer, Verdict
from services.plumbing.db import Database
from services.plumbing.settings import SettingsError
from tests.conftest import Cluster, FreshDatabase
from tests.services.authorities import DrivenClock, shared_database

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEY = chain.signing_key(SecretStr(base64.b64encode(b"T" * 32).decode()))
OTHER_KEY = chain.signing_key(SecretStr(base64.b64encode(b"U" * 32).decode()))
PUBLIC = chain.verifying_key(chain.public_part(KEY))
TENANTS = ("clinic-a", "clinic-b", "clinic-c")
ODD = 'quotes " and \\ back\\slashes, é, \u2028, \t tab, \n line, \\N, 🜁'


def told(number: int, tenant: str | None) -> AuditRecord:
    trail = Trail(
        at=NOW + timedelta(seconds=number),
        agent="nurse-a",
        agent_kind="person",
        tenant=tenant,
        roles=("clinic_cm",),
        request_id=f"TEST-request-{number:012}",
    )
    content = Content(("ed-visit:4",), "L1", ("Consent/TEST-1/_history/2",), "qc/implied")
    if number % 3 == 0:
        return trail.searched(f"Task?status=requested&page={number}&{ODD}", [])[0]
    return trail.read(f"Task/TEST-{number}/_history/1", UUID(int=number), content=content)


@dataclass(frozen=True)
class Kept:
    """A database whose notify has records in the chain, and a way to look at them."""

    database: FreshDatabase
    db: Database

    def sealer(self, **more: Any) -> Sealer:
        return Sealer(self.db, **more)

    async def add(self, *tenants: str | None, first: int = 1) -> None:
        async with self.db.work() as tx:
            await record(tx, [told(first + n, tenant) for n, tenant in enumerate(tenants)])

    async def verdict(self, *keys: OKPKey, **more: Any) -> Verdict:
        owner = await self.database.owner()
        try:
            async with owner.transaction(isolation="repeatable_read"):
                return await chain.verify(owner, keys or [PUBLIC], **more)
        finally:
            await owner.close()

    async def owner_does(self, sql: str) -> None:
        """As the superuser, who may do anything."""
        owner = await self.database.owner()
        try:
            await owner.execute(sql)
        finally:
            await owner.close()


@pytest.fixture
async def kept(database: FreshDatabase, db: Callable[[str], Database]) -> Kept:
    return Kept(database, db("notify"))


# Sealing


async def test_records_are_chained_per_tenant_without_gaps(kept: Kept) -> None:
    await kept.add("clinic-a", "clinic-b", None, "clinic-a")
    sealer = kept.sealer()
    assert await sealer.seal() == 4
    await kept.add("clinic-a", "clinic-b", first=5)
    assert await sealer.seal() == 2
    owner = await kept.database.owner()
    rows = await owner.fetch("select tenant, position from chain.link order by tenant, position")
    await owner.close()
    assert [tuple(row) for row in rows] == [
        ("", 1),
        ("clinic-a", 1),
        ("clinic-a", 2),
        ("clinic-a", 3),
        ("clinic-b", 1),
        ("clinic-b", 2),
    ]
    verdict = await kept.verdict()
    assert (verdict.records, verdict.chains, verdict.bad) == (6, 3, [])


async def test_a_link_is_sha_256_over_the_one_before_and_canonical_json(kept: Kept) -> None:
    """Recomputed here from the columns, by another JSON library: RFC 8785."""
    await kept.add("clinic-a", "clinic-a", "clinic-a")
    await kept.sealer().seal()
    owner = await kept.database.owner()
    rows = await owner.fetch("select * from notify.audit order by position")
    links = await owner.fetch("select hash from chain.link order by position")
    await owner.close()
    previous = hashlib.sha256(b"passerelle audit notify|clinic-a").digest()
    for row, link in zip(rows, links, strict=True):
        said = {name: in_json(value) for name, value in row.items() if value is not None}
        canonical = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
        previous = hashlib.sha256(previous + canonical).digest()
        assert previous == link["hash"]


def in_json(value: Any) -> Any:
    """As PostgreSQL writes it: microseconds without closing zeros."""
    if isinstance(value, datetime):
        whole, _, fraction = value.strftime("%Y-%m-%dT%H:%M:%S.%f").partition(".")
        fraction = fraction.rstrip("0")
        return f"{whole}{'.' if fraction else ''}{fraction}+00:00"
    return str(value) if isinstance(value, UUID) else value


async def test_every_column_of_a_record_is_sealed(kept: Kept) -> None:
    owner = await kept.database.owner()
    columns = await owner.fetch(
        "select column_name as name from information_schema.columns"
        " where table_schema = 'notify' and table_name = 'audit'"
    )
    await owner.close()
    assert {row["name"] for row in columns} == set(chain._COLUMNS)


async def test_a_record_that_commits_late_is_sealed_all_the_same(kept: Kept) -> None:
    """Its place in the table was taken before others that are sealed already (ST-01)."""
    clock = DrivenClock(NOW)
    sealer = kept.sealer(now=clock)
    opened = kept.db.work()
    tx = await opened.__aenter__()
    await record(tx, [told(1, "clinic-a")])
    await kept.add("clinic-a", first=2)
    for _ in range(4):
        await sealer.seal()
        clock.passes(minutes=5)
    assert (await kept.verdict()).records == 1
    await opened.__aexit__(None, None, None)
    assert await sealer.seal() == 1
    for _ in range(4):
        clock.passes(minutes=5)
        await sealer.seal()
    verdict = await kept.verdict()
    assert (verdict.records, verdict.bad) == (2, [])
    assert sealer._low == 2


async def test_two_processes_seal_one_chain(kept: Kept) -> None:
    sealers = [kept.sealer(), kept.sealer()]
    for round_ in range(10):
        await kept.add(*["clinic-a"] * 5, first=round_ * 5)
        await asyncio.gather(*(sealer.seal() for sealer in sealers))
    await sealers[0].seal()
    verdict = await kept.verdict()
    assert (verdict.records, verdict.bad) == (50, [])


async def test_a_record_is_sealed_within_five_seconds_and_counted_until_then(kept: Kept) -> None:
    from services.plumbing import telemetry

    gauge = telemetry.gauge("audit_unsealed", "notify")
    stop = asyncio.Event()
    await kept.add("clinic-a", "clinic-b")
    assert (await kept.verdict()).pending == 2
    running = asyncio.create_task(kept.sealer(key=KEY).run(stop))
    async with asyncio.timeout(5):
        while (await kept.verdict()).pending:
            await asyncio.sleep(0.05)
    await kept.add("clinic-a", first=3)
    async with asyncio.timeout(5):
        while (await kept.verdict()).pending:
            await asyncio.sleep(0.05)
    stop.set()
    await running
    assert gauge._value.get() == 0
    assert (await kept.verdict()).checkpoints == 1


async def test_what_cannot_be_sealed_is_counted(kept: Kept) -> None:
    from services.plumbing import telemetry

    await kept.add("clinic-a", "clinic-b")
    await kept.owner_does("revoke insert on chain.link from passerelle_notify_sealer")
    with pytest.raises(DBAPIError):
        await kept.sealer().seal()
    assert telemetry.gauge("audit_unsealed", "notify")._value.get() == 2


@pytest.mark.parametrize(
    "statement",
    [
        "update chain.link set hash = hash",
        "delete from chain.link",
        "truncate chain.link",
        "update chain.checkpoint set at = now()",
        "delete from chain.checkpoint",
        "update audit set outcome = 8",
        "delete from audit",
        "insert into audit (recorded, shape, outcome, agent, agent_kind)"
        " values (now(), 'Read', 0, 'x', 'client')",
        "select from outbox",
        "select from card",
    ],
)
async def test_the_sealer_only_adds_to_the_chain(kept: Kept, statement: str) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        async with kept.db.seal() as tx:
            await tx.execute(text(statement))


async def test_a_sealer_adds_to_the_chain_of_its_own_service_alone(kept: Kept) -> None:
    await kept.add("clinic-a")
    await kept.sealer().seal()
    with pytest.raises(DBAPIError, match="row-level security"):
        async with kept.db.seal() as tx:
            await tx.execute(
                text(
                    "insert into chain.link (service, tenant, position, record, hash)"
                    " values ('ingest', '', 1, 1, sha256('x'))"
                )
            )


@pytest.mark.parametrize("kind", ["request", "worker"])
async def test_other_roles_do_not_even_see_the_chain(kept: Kept, kind: str) -> None:
    opened = kept.db.work() if kind == "worker" else kept.db.request("clinic-a")
    with pytest.raises(DBAPIError, match="permission denied"):
        async with opened as tx:
            await tx.execute(text("select from chain.link"))


# Checkpoints


async def test_a_checkpoint_is_made_each_hour_and_kept_elsewhere_too(
    kept: Kept, tmp_path: Path
) -> None:
    clock = DrivenClock(NOW)
    sealer = kept.sealer(key=KEY, folder=tmp_path / "kept", now=clock)
    assert not await sealer.checkpoint_if_due()  # nothing to state
    await kept.add("clinic-a")
    await sealer.seal()
    assert await sealer.checkpoint_if_due()
    clock.passes(minutes=59)
    assert not await sealer.checkpoint_if_due()
    clock.passes(minutes=1)
    assert await sealer.checkpoint_if_due()
    files = sorted((tmp_path / "kept").iterdir())
    assert [file.name for file in files] == [
        "notify-00000001-2026-03-02T120000Z.jws",
        "notify-00000002-2026-03-02T130000Z.jws",
    ]
    verdict = await kept.verdict(kept=[file.read_text() for file in files])
    assert (verdict.checkpoints, verdict.bad) == (4, [])


async def test_a_checkpoint_that_cannot_be_kept_elsewhere_is_not_made(
    kept: Kept, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    await kept.add("clinic-a")
    sealer = kept.sealer(key=KEY, folder=tmp_path / "file")
    await sealer.seal()
    with pytest.raises(OSError, match="exists"):
        await sealer.checkpoint()
    assert (await kept.verdict()).checkpoints == 0


async def test_a_checkpoint_another_key_signed_is_found(kept: Kept) -> None:
    await kept.add("clinic-a")
    sealer = kept.sealer(key=OTHER_KEY)
    await sealer.seal()
    await sealer.checkpoint()
    (bad,) = (await kept.verdict()).bad
    assert str(bad) == "notify: checkpoint 1 is not a signed checkpoint"


async def test_checkpoints_of_an_earlier_key_are_verified_by_its_public_part(kept: Kept) -> None:
    await kept.add("clinic-a")
    for key in (OTHER_KEY, KEY):
        sealer = kept.sealer(key=key)
        await sealer.seal()
        await sealer.checkpoint()
    earlier = chain.verifying_key(chain.public_part(OTHER_KEY))
    assert (await kept.verdict(PUBLIC, earlier)).bad == []
    assert len((await kept.verdict(PUBLIC)).bad) == 1


async def test_a_checkpoint_that_was_taken_away_is_found(kept: Kept) -> None:
    await kept.add("clinic-a")
    sealer = kept.sealer(key=KEY)
    await sealer.seal()
    for _ in range(3):
        await sealer.checkpoint()
    await kept.owner_does("delete from chain.checkpoint where number = 2")
    (bad,) = (await kept.verdict()).bad
    assert "checkpoint 3 is not in its place" in str(bad)


async def test_a_whole_past_made_anew_is_found_by_the_checkpoint(
    kept: Kept, tmp_path: Path
) -> None:
    """By somebody who owns the database and knows how links are made, but has no signing key."""
    await kept.add(*["clinic-a"] * 20)
    sealer = kept.sealer(key=KEY, folder=tmp_path)
    await sealer.seal()
    await sealer.checkpoint()
    await kept.owner_does(
        "update notify.audit set agent = 'somebody-else' where position = 7; delete from chain.link"
    )
    assert await kept.sealer().seal() == 20
    (bad,) = (await kept.verdict()).bad
    assert (bad.tenant, bad.position) == ("clinic-a", 20)
    assert "not the one of checkpoint 1" in bad.why
    await kept.owner_does("delete from chain.checkpoint")
    statements = [file.read_text() for file in tmp_path.iterdir()]
    (bad,) = (await kept.verdict(kept=statements)).bad
    assert (bad.tenant, bad.position) == ("clinic-a", 20)


async def test_a_tail_cut_off_is_found_by_the_checkpoint(kept: Kept) -> None:
    await kept.add(*["clinic-a"] * 5, *["clinic-b"] * 3)
    sealer = kept.sealer(key=KEY)
    await sealer.seal()
    await sealer.checkpoint()
    await kept.owner_does(
        "delete from chain.link where tenant = 'clinic-a' and position > 3 or tenant = 'clinic-b';"
        " delete from notify.audit where tenant = 'clinic-b'"
        " or position not in (select record from chain.link)"
    )
    found = {(bad.tenant, bad.position) for bad in (await kept.verdict()).bad}
    assert found == {("clinic-a", 4), ("clinic-b", 1)}


@pytest.mark.parametrize("secret", ["not base64", base64.b64encode(b"short").decode()])
def test_a_key_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(SettingsError, match="PASSERELLE_CHECKPOINT_KEY"):
        chain.signing_key(SecretStr(secret))


# A thousand times over (CS-113)

SEALED = 600
TAMPERINGS = 1_000


@pytest.fixture(scope="module")
async def sealed(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """The superuser, before three chains of 200 records under a checkpoint."""
    async with shared_database(cluster, f"t{os.getpid()}_chain") as made:
        db = Database(made.url("notify"), "notify")
        everything = Kept(made, db)
        order = random.Random(3)
        await everything.add(*(order.choice(TENANTS) for _ in range(SEALED)))
        sealer = everything.sealer(key=KEY)
        await sealer.seal()
        await sealer.checkpoint()
        await db.close()
        owner = await made.owner()
        yield owner
        await owner.close()


Place = tuple[str, int]
Tampering = Callable[[asyncpg.Connection, random.Random, Sequence[Place]], Awaitable[set[Place]]]
"""Does something to sealed records; the places where it may first show."""


async def change(owner: asyncpg.Connection, draw: random.Random, places: Sequence[Place]) -> Any:
    """Any one column of one record."""
    tenant, position = place = draw.choice(places)
    column, value = draw.choice(
        [
            ("agent", "agent || 'x'"),
            ("agent_kind", "'service'"),
            ("recorded", "recorded + interval '1 microsecond'"),
            ("written", "written - interval '1 second'"),
            ("network", "'192.0.2.9'"),
            ("request_id", "null"),
            ("roles", "array_append(roles, 'privacy')"),
            ("id", "gen_random_uuid()"),
            ("tenant", "'clinic-z'"),
            ("purpose", "'HMARKT'"),
            ("items", "array_append(items, 'ed-visit:1')"),
            ("level", "'L3'"),
            ("basis", "array_append(basis, 'Consent/TEST-9/_history/1')"),
            ("reader", "'nurse-b'"),
            ("recipient", "'clinic-b'"),
            ("outcome", "4"),
            ("reasons", "'{restricted}'"),
            ("token_id", "'TEST'"),
            ("policy", "'opt-in'"),
            ("entities", "array_append(entities, 'Task/TEST-0')"),
            ("once", "gen_random_uuid()"),
            ("query", "coalesce(query, '') || '&x'"),
            ("interaction", "'vread'"),
        ]
    )
    await owner.execute(
        f"update notify.audit set {column} = {value} where position ="
        " (select record from chain.link where tenant = $1 and position = $2)",
        tenant,
        position,
    )
    return {place}


async def change_link(owner: asyncpg.Connection, draw: random.Random, places: Any) -> Any:
    tenant, position = place = draw.choice(places)
    await owner.execute(
        "update chain.link set hash = sha256(hash) where tenant = $1 and position = $2",
        tenant,
        position,
    )
    return {place}


async def delete(owner: asyncpg.Connection, draw: random.Random, places: Any) -> Any:
    tenant, position = place = draw.choice(places)
    await owner.execute(
        "delete from notify.audit where position ="
        " (select record from chain.link where tenant = $1 and position = $2)",
        tenant,
        position,
    )
    return {place}


async def delete_with_link(owner: asyncpg.Connection, draw: random.Random, places: Any) -> Any:
    """Record and link; sometimes the later ones move up, so that no gap shows."""
    place = draw.choice(places)
    await delete(owner, draw, [place])
    await owner.execute("delete from chain.link where tenant = $1 and position = $2", *place)
    if draw.random() < 0.5:
        await move(owner, place[0], place[1] + 1, by=-1)
    return {place}


async def move(owner: asyncpg.Connection, tenant: str, first: int, *, by: int) -> None:
    """The links of a tenant from `first` on, one place up or down."""
    where = f"where tenant = '{tenant}' and position >= {first}"
    await owner.execute(
        f"create temp table moved on commit drop as select * from chain.link {where};"
        f" delete from chain.link {where};"
        f" insert into chain.link select service, tenant, position + {by}, record, hash, sealed"
        " from moved"
    )


async def insert(owner: asyncpg.Connection, draw: random.Random, places: Any) -> Any:
    """A forged record with a link of its own in the middle, its hash well made or not."""
    tenant, position = draw.choice(places)
    added = await owner.fetchval(
        "insert into notify.audit (recorded, shape, outcome, agent, agent_kind, tenant, written)"
        " values (now(), 'Read', 0, 'forger', 'client', $1, now() - interval '1 day')"
        " returning position",
        tenant,
    )
    before = await owner.fetchval(
        "select hash from chain.link where tenant = $1 and position = $2", tenant, position - 1
    ) or chain.start_of("notify", tenant)
    await owner.execute("set local timezone = 'UTC'")
    canonical = await owner.fetchval(
        f"select {chain.CANONICAL} from notify.audit a where position = $1", added
    )
    hash_ = chain.link(before, canonical.encode()) if draw.random() < 0.5 else draw.randbytes(32)
    await move(owner, tenant, position, by=1)
    await owner.execute(
        "insert into chain.link (service, tenant, position, record, hash)"
        " values ('notify', $1, $2, $3, $4)",
        tenant,
        position,
        added,
        hash_,
    )
    return {(tenant, position), (tenant, position + 1)}


async def insert_unsealed(owner: asyncpg.Connection, draw: random.Random, _places: Any) -> Any:
    tenant = draw.choice(TENANTS)
    await owner.execute(
        "insert into notify.audit (recorded, shape, outcome, agent, agent_kind, tenant, written)"
        " values (now(), 'Read', 0, 'forger', 'client', $1, now() - interval '61 seconds')",
        tenant,
    )
    return {(tenant, None)}


async def swap(owner: asyncpg.Connection, draw: random.Random, places: Any) -> Any:
    """Two records change places; or two links do, with their records."""
    one, two = draw.sample(list(places), 2)
    select = "select * from chain.link where tenant = $1 and position = $2"
    links = [(await owner.fetch(select, *place))[0] for place in (one, two)]
    records = [row["record"] for row in links]
    if draw.random() < 0.5:
        await owner.execute(
            "alter table notify.audit alter position drop identity;"
            f" update notify.audit set position = -1 where position = {records[0]};"
            f" update notify.audit set position = {records[0]} where position = {records[1]};"
            f" update notify.audit set position = {records[1]} where position = -1"
        )
    else:
        await owner.execute("delete from chain.link where record = any ($1)", records)
        for row, place in zip(links, (two, one), strict=True):
            await owner.execute(
                "insert into chain.link (service, tenant, position, record, hash)"
                " values ('notify', $1, $2, $3, $4)",
                *place,
                row["record"],
                row["hash"],
            )
    if one[0] != two[0]:
        return {one, two}
    return {(one[0], min(one[1], two[1]))}


WAYS: Sequence[Tampering] = (
    change,
    change,
    change_link,
    delete,
    delete_with_link,
    insert,
    insert_unsealed,
    swap,
)


@pytest.mark.slow
async def test_every_tampering_with_sealed_records_is_found_and_located(
    sealed: asyncpg.Connection,
) -> None:
    """CS-113: each done by the superuser, looked at, and undone."""
    links = await sealed.fetch("select tenant, position from chain.link")
    places = [(row["tenant"], row["position"]) for row in links]
    draw = random.Random(113)
    for number in range(TAMPERINGS):
        way = WAYS[number % len(WAYS)]
        transaction = sealed.transaction()
        await transaction.start()
        expected = await way(sealed, draw, places)
        verdict = await chain.verify(sealed, [PUBLIC], services=["notify"])
        await transaction.rollback()
        found = {(bad.tenant, bad.position) for bad in verdict.bad}
        assert found & expected, f"{way.__name__} {number}: {verdict.bad} not {expected}"
        assert {tenant for tenant, _ in found} <= {tenant for tenant, _ in expected} | {"clinic-z"}
    transaction = sealed.transaction()
    await transaction.start()
    assert (await chain.verify(sealed, [PUBLIC])).bad == []
    await transaction.rollback()
