"""`passerelle rebuild screening`, from the log and from ingest's store (counting.md 9, PT-03).

Hospitals speak to the real door, screening reads the log by its own reader; then screening's
database is lost, or wrong, and rebuilt.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from sqlalchemy import text

from schemas.count_correction_v1 import CountCorrection, Reason
from schemas.flag_changed_v1 import Notice
from schemas.restatement_ended_v1 import RestatementEnded
from services.ingest import restating
from services.ingest.tables import Restatement
from services.plumbing.clock import Clock
from services.plumbing.db import Database, Tx
from services.plumbing.eventlog import Carrier, PostgresCarrier, Reader, reread
from services.plumbing.kafka import KafkaCarrier, Link, Relay, create_topics
from services.plumbing.web import Rejection
from services.screening import api, flow, store
from services.screening.__main__ import READS
from services.screening.api import House, Then
from services.screening.telling import KnownSite
from tests.broker import Broker
from tests.conftest import FreshDatabase
from tests.histories import P, at, key, qc_default
from tests.histories import ed_visit as visited
from tests.services.ingest_door import IngestDoor, bundle, ed_visit, opened, patient
from tests.services.screening import SEALS, Screening, recorded

NOW = at("2026-11-24 12:00-05")
SITES = [
    KnownSite(site, connected=True, data_from=date(2024, 1, 1), zone=qc_default().zone)
    for site in ("hospital-a", "hospital-b")
]
THEN = ("2026-04-02 00:00-04", "2026-09-05 00:00-04", "2026-10-10 00:00-04", "2026-11-02 00:00-05")


@dataclass
class World:
    """ingest's door, screening's reader, the log between them."""

    door: IngestDoor
    screening: Screening
    owner: asyncpg.Connection
    carrier: Callable[[], Carrier]
    newest: UUID | None = None
    """The rebuild begun last."""

    def turn(self, tx: Tx, now: datetime) -> flow.Turn:
        return self.screening.turn(tx, now)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Screening reads, and sweeps, as long as this lasts."""
        clock, stop = Clock(self.door.clock_file), asyncio.Event()
        reader = Reader(self.screening.db, READS, self.turn, self.carrier(), clock)
        sweeping = flow.sweeping(
            self.screening.db, lambda tx: self.turn(tx, clock.now()), 0.05, stop
        )
        tasks = [asyncio.create_task(reader.run(stop)), asyncio.create_task(sweeping)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def comes_true(self, sql: str, *values: Any) -> None:
        async with asyncio.timeout(60):
            while not await self.owner.fetchval(f"select {sql}", *values):
                await asyncio.sleep(0.02)

    async def caught_up(self) -> None:
        """Screening knows every fact that ingest stated, and has counted whoever is due."""
        await self.comes_true(
            "(select count(*) from screening.fact_version)"
            " >= (select sum(fact_version) from ingest.resource)"
            " and (select count(*) from screening.person_version)"
            " >= (select sum(version) from ingest.patient)"
            " and (select count(*) from screening.link_version)"
            " >= (select count(*) from ingest.link)"
        )
        await self.counted()

    async def counted(self) -> None:
        await self.comes_true(
            "not exists (select from screening.patient where restated or due_at <= $1)", NOW
        )

    async def rebuilt(self) -> None:
        """The newest rebuild is complete, and everybody is counted anew."""
        await self.comes_true(
            "exists (select from screening.rebuild where id = $1 and completed is not null)",
            self.newest,
        )
        await self.counted()

    async def restate(self, most: int = 2) -> list[Restatement]:
        clock = Clock(self.door.clock_file)
        steps = restating.restate(self.door.house.db, clock.now, "TEST-ops", most)
        found = [one async for one in steps]
        self.newest = found[-1].id
        return found

    async def bodies(self, *, whole: bool = False) -> dict[str, bytes]:
        """What `GET /v1/patients/{key}/flag` says of everybody, now and as of then.

        Sequence and cause aside, unless `whole`.
        """
        house = House(self.screening.db, lambda: NOW, qc_default(), lambda: SITES, b"k" * 32)
        instants = [(NOW, NOW), *((at(one), NOW) for one in THEN), *((at(o), at(o)) for o in THEN)]
        found: dict[str, bytes] = {}
        for row in await self.owner.fetch("select key from ingest.patient order by key"):
            for as_of, known_at in instants:
                async with self.screening.db.request("*", "ops") as tx:
                    try:
                        body = await api.explained(
                            tx, row["key"], Then(as_of, known_at), qc_default(), house
                        )
                    except Rejection as unknown:
                        body = {"unknown": str(unknown)}
                kept = {k: v for k, v in body.items() if whole or k not in ("sequence", "cause")}
                found[f"{row['key']} {as_of} {known_at}"] = orjson.dumps(kept)
        return found

    async def announced(self) -> list[tuple[Any, ...]]:
        """Flags and episodes as told, by screening's own outbox."""
        rows = await self.owner.fetch(
            "select type, subject, data from screening.outbox order by xid, position"
        )
        return [tuple(row) for row in rows]

    async def lose_screening(self) -> None:
        """All of it, and the log is shorter than what it read."""
        tables = await self.owner.fetch(
            "select tablename from pg_tables where schemaname = 'screening'"
        )
        names = ", ".join(f"screening.{row['tablename']}" for row in tables)
        await self.owner.execute(f"truncate {names} cascade")
        await self.owner.execute("delete from ingest.outbox")


@pytest.fixture(params=["postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def bootstrap(request: pytest.FixtureRequest) -> str | None:
    """Of the brokers; None: PostgreSQL carries the log."""
    if request.param == "postgres":
        return None
    broker: Broker = request.getfixturevalue("broker")
    return broker.bootstrap


@pytest.fixture
async def world(
    bootstrap: str | None,
    database: FreshDatabase,
    db: Callable[[str], Database],
    tmp_path: Path,
) -> AsyncIterator[World]:
    owner = await database.owner()
    async with opened(db("ingest"), db("authority"), tmp_path) as door:
        screening = Screening(db("screening"))
        if bootstrap is None:
            yield World(door, screening, owner, lambda: PostgresCarrier(screening.db))
        else:
            link = Link(bootstrap, prefix=f"{database.name}.")
            kinds = [read.event.type for read in READS]
            await create_topics(link, kinds, partitions=3, replication=1)
            stop = asyncio.Event()
            relay = Relay(door.house.db, link, Clock(door.clock_file))
            relaying = asyncio.create_task(relay.run(stop))
            yield World(door, screening, owner, lambda: KafkaCarrier(link))
            stop.set()
            await relaying
    await owner.close()


def visit(number: str, start: str, who: str = "p1", **changes: Any) -> dict[str, Any]:
    period = {"start": f"{start}:00-04:00", "end": f"{start[:11]}23:30:00-04:00"}
    return ed_visit(
        number, **{"subject": {"reference": f"Patient/{who}"}, "period": period, **changes}
    )


async def lived(door: IngestDoor) -> None:
    """Three patients: one flagged, corrected and flagged again; one merged into another, and
    told apart; a visit that waited for its patient, one that was moved, one taken back.
    """

    async def put(instant: str, *resources: dict[str, Any]) -> None:
        door.at(at(instant))
        for resource in resources:
            answer = await door.put(resource)
            assert answer.status_code in (200, 201), answer.text

    other = {"card": "TEST00000002", "born": "1990-01-01"}
    await put("2026-04-01 12:00-04", patient("p1"), visit("1", "2026-04-01T08:00"))
    # It says something new, but nothing that counts: the fact stays as it was stated.
    await put("2026-04-09 12:00-04", visit("1", "2026-04-01T08:00", type=[{"text": "TEST"}]))
    await put("2026-06-01 12:00-04", visit("2", "2026-06-01T08:00", status="in-progress"))
    await put("2026-06-01 20:00-04", visit("2", "2026-06-01T08:00"))
    await put(
        "2026-07-01 12:00-04", visit("3", "2026-07-01T08:00"), visit("w", "2026-07-01T09:00", "p3")
    )
    await put("2026-09-01 12:00-04", visit("4", "2026-09-01T08:00"))
    await put("2026-09-02 12:00-04", visit("4", "2026-09-01T08:00", status="entered-in-error"))
    await put("2026-09-03 12:00-04", patient("p2", **other), visit("5", "2026-09-03T08:00", "p2"))
    await put("2026-09-04 12:00-04", patient("p3", card="TEST00000003", born="2000-02-29"))
    await put("2026-10-01 12:00-04", visit("6", "2026-10-01T08:00"))
    replaced = [{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]
    await put("2026-10-05 12:00-04", patient("p2", **other, active=False, link=replaced))
    await put("2026-10-20 12:00-04", patient("p2", **other, active=True))
    await put("2026-11-01 12:00-05", visit("5", "2026-09-03T08:00", "p3"))
    # Of two messages in one transaction one fact is stated.
    door.at(at("2026-11-02 12:00-05"))
    both = [visit("7", "2026-11-02T07:00", "p3", status=s) for s in ("in-progress", "finished")]
    entries = [("PUT", f"Encounter/{one['id']}", one) for one in both]
    answer = await door.ask("POST", "", bundle("batch", *entries))
    assert answer.status_code == 200, answer.text
    await put("2026-11-03 12:00-05", patient("p1", born="1981-02-03"))
    door.at(NOW)


async def test_a_lost_screening_is_rebuilt_from_ingest_to_the_letter(world: World) -> None:
    """PT-03: the log is gone; broken off twice in ingest and once in screening, also in a step."""
    await lived(world.door)
    async with world.reading():
        await world.caught_up()
    before = await world.bodies()
    assert any(b'"state":"flagged"' in body for body in before.values())
    await world.lose_screening()
    lost = await world.bodies()
    assert lost != before

    steps = restating.restate(world.door.house.db, Clock(world.door.clock_file).now, "TEST", 2)
    await anext(steps)
    await steps.aclose()  # between two steps
    with pytest.raises(PowerCutError):
        await broken_off(world)
    async with world.reading():
        await world.comes_true("exists (select from screening.restated)")
    stages = [one.stage for one in await world.restate()]
    assert stages[-1] == "ended"
    async with world.reading():
        await world.rebuilt()
    assert await world.bodies() == before


class PowerCutError(Exception):
    pass


async def broken_off(world: World) -> None:
    """In the middle of a step: what it had stated is not."""
    calls = iter(range(3))

    def now() -> datetime:
        if next(calls) == 1:
            raise PowerCutError
        return NOW

    async for _ in restating.restate(world.door.house.db, now, "TEST", 2):
        pass


async def test_a_rebuild_of_what_is_right_says_nothing(world: World) -> None:
    await lived(world.door)
    async with world.reading():
        await world.caught_up()
        bodies, told = await world.bodies(whole=True), await world.announced()
        rows = await world.owner.fetch("select * from screening.patient order by key")
        await world.restate()
        await world.rebuilt()
    assert await world.bodies(whole=True) == bodies
    assert await world.announced() == told
    assert await world.owner.fetch("select * from screening.patient order by key") == rows
    assert await world.owner.fetchval("select count(*) from screening.restated") == 0


async def test_what_was_wrong_is_put_right_quietly_and_in_sequence(world: World) -> None:
    """Facts changed, lost, and never heard of by ingest; a birth date; a merge that was none."""
    await lived(world.door)
    async with world.reading():
        await world.caught_up()
        right = await world.bodies()
        await world.owner.execute(SPOILT)
        await world.owner.execute(
            "update screening.patient set due_at = $1 where person_version is not null", NOW
        )
        await world.counted()
        assert await world.bodies() != right
        before = len(await world.announced())
        await world.restate()
        await world.rebuilt()
    assert await world.bodies() == right
    flags = await flags_since(world, before)
    assert flags
    assert {flag["notice"] for flag in flags} == {Notice.QUIET}
    for patient_key in {flag["patient"] for flag in flags}:
        sequences = await world.owner.fetch(
            "select sequence from screening.change where patient = $1 order by 1",
            UUID(patient_key),
        )
        assert [row["sequence"] for row in sequences] == list(range(1, len(sequences) + 1))


async def test_a_batch_with_news_and_the_same_stated_again_is_news(
    db: Callable[[str], Database],
) -> None:
    """A reader that lags has both in one batch: the alert is not lost to the rebuild."""
    screening = Screening(db("screening"))
    await screening.meet(P)
    days = ("2026-04-01", "2026-05-01", "2026-06-01", "2026-11-24")
    live = [
        recorded(visited(f"e-{day}", f"{day} 09:00-04", recorded=f"{day} 09:30-04")) for day in days
    ]
    again = [event.model_copy(update={"restated": key("TEST-rebuild")}) for event in live]
    async with screening.at(NOW) as turn:
        await flow.on_encounters_recorded([*again, *live], turn)
    (flag,) = await screening.flags()
    assert flag.notice is Notice.ALERT


async def test_who_is_found_to_be_flagged_by_a_rebuild_is_listed_and_nobody_alerted(
    db: Callable[[str], Database],
) -> None:
    """The visit was lost; on time it would have alerted. Counted once all has come, no sooner."""
    screening = Screening(db("screening"))
    await screening.meet(P)
    days = ("2026-04-01", "2026-05-01", "2026-06-01", "2026-11-24")
    live = [
        recorded(visited(f"e-{day}", f"{day} 09:00-04", recorded=f"{day} 09:30-04")) for day in days
    ]
    again = [event.model_copy(update={"restated": key("TEST-rebuild")}) for event in live]
    ended = RestatementEnded(
        restatement=key("TEST-rebuild"), begun=NOW, persons=0, links=0, encounters=4, recorded=NOW
    )
    async with screening.at(NOW) as turn:
        await flow.on_encounters_recorded(live[:3], turn)
        await flow.on_encounters_recorded(again[1:], turn)
        await flow.on_restatement_ended([ended], turn)
    await screening.sweep(NOW)
    (watch,) = await screening.flags()
    async with screening.at(NOW) as turn:
        await flow.on_encounters_recorded([again[0], again[0]], turn)
    await screening.sweep(NOW)
    flag = (await screening.flags())[-1]
    assert (watch.sequence, watch.explanation.state) == (1, "watch")
    assert (flag.sequence, flag.explanation.state) == (2, "flagged")
    assert (flag.explanation.notice, flag.notice) == (Notice.ALERT, Notice.QUIET)


async def test_ct_17_what_a_person_excluded_stays_so(db: Callable[[str], Database]) -> None:
    """Ingest does not know of it; also if the encounter itself had been lost."""
    screening = Screening(db("screening"))
    await screening.meet(P)
    visit = recorded(visited("e-1", "2026-11-01 09:00-05"))
    async with screening.at(NOW) as turn:
        await flow.on_encounters_recorded([visit], turn)
        said = CountCorrection(
            patient=P, encounter=visit.encounter, version=1, excluded=True, reason=Reason("other"),
            by="hospital-cm", recorded=NOW,
        )  # fmt: skip
        await flow.on_counts_corrected([said], turn)
        await turn.tx.execute(text("delete from fact"))
        await turn.tx.execute(text("delete from fact_version"))
        again = visit.model_copy(update={"restated": key("TEST-rebuild")})
        await flow.on_encounters_recorded([again], turn)
        (fact,) = await store.facts(turn.tx, [P])
    assert fact.excluded


SPOILT = """
update screening.fact_version set fact = replace(fact, '"EMER"', '"AMB"')
  where encounter in (select encounter from screening.fact where status = 'finished');
update screening.fact f set fact = v.fact from screening.fact_version v
  where (v.encounter, v.version) = (f.encounter, f.version);
delete from screening.fact where encounter = (
  select encounter from screening.fact order by start desc limit 1);
delete from screening.fact_version v where not exists (
  select from screening.fact f where f.encounter = v.encounter);
insert into screening.fact_version
  select '5f0c2a0e-0000-4c1e-9a35-3b1f0e2d9c11', 1, patient, site, recorded, learnt,
    replace(fact, encounter::text, '5f0c2a0e-0000-4c1e-9a35-3b1f0e2d9c11')
  from screening.fact_version where version = 1 order by recorded limit 1;
insert into screening.fact
  select encounter, version, patient, 'finished', recorded, recorded, fact
  from screening.fact_version where encounter = '5f0c2a0e-0000-4c1e-9a35-3b1f0e2d9c11';
update screening.person_version set birth_date = '2020-01-01';
update screening.patient set birth_date = '2020-01-01';
insert into screening.link_version
  select k[1], 7, k[2], true, '2026-01-01', '2026-01-01'
  from (select array_agg(key order by key) k from screening.patient) keys
  on conflict do nothing;
insert into screening.link select retired, version, surviving, active
  from screening.link_version where version = 7
  on conflict (retired) do update set version = 7, surviving = excluded.surviving, active = true;
"""


async def flags_since(world: World, before: int) -> list[dict[str, Any]]:
    said = (await world.announced())[before:]
    return [orjson.loads(data) for kind, _, data in said if kind == "flag.changed.v1"]


async def test_live_messages_go_on_meanwhile_and_their_alerts_too(world: World) -> None:
    await lived(world.door)
    async with world.reading():
        await world.caught_up()
        before = len(await world.announced())
        steps = restating.restate(world.door.house.db, Clock(world.door.clock_file).now, "TEST", 1)
        numbers = iter(range(100))
        async for one in steps:
            world.newest = one.id
            number = next(numbers)
            if number < 4:
                live = visit(f"live-{number}", f"2026-11-2{number}T08:00", "p2")
                answer = await world.door.put(live)
                assert answer.status_code == 201, answer.text
        await world.rebuilt()
        await world.caught_up()
    flags = await flags_since(world, before)
    assert [flag["notice"] for flag in flags].count(Notice.ALERT) == 1
    assert flags[-1]["explanation"]["state"] == "flagged"
    after = await world.bodies()
    await world.lose_screening()
    await world.restate()
    async with world.reading():
        await world.rebuilt()
    assert await world.bodies() == after


async def test_pt_03_the_log_read_again_changes_nothing_whenever_it_is_broken_off(
    world: World,
) -> None:
    await lived(world.door)
    async with world.reading():
        await world.caught_up()
    bodies, told = await world.bodies(whole=True), await world.announced()
    assert await reread(world.screening.db)
    async with world.reading():
        await world.comes_true("exists (select from screening.place)")
    async with world.reading():
        await world.caught_up()
    assert await world.bodies(whole=True) == bodies
    assert await world.announced() == told


async def test_pt_01_any_order_of_the_same_events_gives_the_same_bodies(
    database: FreshDatabase, db: Callable[[str], Database], tmp_path: Path
) -> None:
    """Also of those stated again, and of both together."""
    owner = await database.owner()
    async with opened(db("ingest"), db("authority"), tmp_path) as door:
        here = World(
            door, Screening(db("screening")), owner, lambda: PostgresCarrier(here.screening.db)
        )
        await lived(door)
        live = await stated(owner)
        await here.restate(500)
        both = await stated(owner)
        dice = random.Random(20261124)
        expected: dict[str, bytes] | None = None
        for n in range(8):
            events = [*(live if n % 2 == 0 else both)]
            dice.shuffle(events)
            await here.lose_screening()
            await hear(here, events, dice)
            await here.screening.sweep(NOW)
            found = await here.bodies()
            expected = expected or found
            assert found == expected
    await owner.close()


async def stated(owner: asyncpg.Connection) -> list[tuple[str, str]]:
    rows = await owner.fetch("select type, data from ingest.outbox order by xid, position")
    return [(row["type"], row["data"]) for row in rows]


async def hear(world: World, events: list[tuple[str, str]], dice: random.Random) -> None:
    """Events in the order given, in batches of any size."""
    reads = {read.event.type: read for read in READS}
    while events:
        size = dice.randint(1, 6)
        batch, events = events[:size], events[size:]
        async with world.screening.db.work() as tx:
            turn = world.turn(tx, NOW)
            for kind, read in reads.items():
                mine = [read.event.model_validate_json(data) for k, data in batch if k == kind]
                if mine:
                    await read.do(mine, turn)


async def test_every_fact_is_stated_again_as_it_was(
    database: FreshDatabase, db: Callable[[str], Database], tmp_path: Path
) -> None:
    """Every version, each with the time it was recorded; of persons the newest is whole."""
    owner = await database.owner()
    async with opened(db("ingest"), db("authority"), tmp_path) as door:
        await lived(door)
        before = [(kind, orjson.loads(data)) for kind, data in await stated(owner)]
        await owner.execute("delete from ingest.outbox")
        clock = Clock(door.clock_file)
        async for _ in restating.restate(door.house.db, clock.now, "TEST-ops", 2):
            pass
        again = [(kind, orjson.loads(data)) for kind, data in await stated(owner)]
    await owner.close()
    ended = again.pop()
    again = [(kind, said) for kind, said in again if kind != "site.heard.v1"]
    assert ended[0] == "restatement.ended.v1"
    ids = {said.pop("restated") for _, said in again}
    assert ids == {ended[1]["restatement"]}
    for _, said in before:
        said.pop("restated", None)
    for kind in ("encounter.recorded.v1", "patient.merged.v1", "patient.unmerged.v1"):
        was = sorted((s for k, s in before if k == kind), key=orjson.dumps)
        now = sorted((s for k, s in again if k == kind), key=orjson.dumps)
        assert now == was
    persons = {(s["patient"], s["version"]): s for k, s in before if k == "patient.identified.v1"}
    restated = {(s["patient"], s["version"]): s for k, s in again if k == "patient.identified.v1"}
    assert restated.keys() == persons.keys()
    newest = {who: max(v for k, v in persons if k == who) for who, _ in persons}
    for (who, version), said in restated.items():
        was = persons[who, version]
        assert said["recorded"] == was["recorded"]
        opened_again = SEALS.open(UUID(who), "birthDate", **box(said)) if box(said) else None
        assert opened_again == (
            SEALS.open(UUID(who), "birthDate", **box(was)) if box(was) else None
        )
        if version == newest[who]:
            assert {k: v for k, v in said.items() if k != "restated"} == was
    assert (ended[1]["persons"], ended[1]["links"]) == (len(persons), 2)
    assert ended[1]["encounters"] == sum(k == "encounter.recorded.v1" for k, _ in again)


def box(said: dict[str, Any]) -> dict[str, Any]:
    sealed = said["demographics"].get("birthDate")
    return {} if sealed is None else {"key_id": sealed["key_id"], "box": sealed["box"]}


async def test_one_rebuild_is_under_way_at_a_time(
    database: FreshDatabase, db: Callable[[str], Database], tmp_path: Path
) -> None:
    """Two commands at once state everything once between them."""
    owner = await database.owner()
    async with opened(db("ingest"), db("authority"), tmp_path) as door:
        await lived(door)
        await owner.execute("delete from ingest.outbox")

        async def all_steps() -> None:
            async for _ in restating.restate(door.house.db, lambda: NOW, "TEST-ops", 1):
                pass

        await asyncio.gather(all_steps(), all_steps())
        again = await stated(owner)
        assert len(again) == len(set(again))
        assert await owner.fetchval("select count(*) from ingest.restatement") == 1
    await owner.close()
