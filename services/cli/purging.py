"""`passerelle purge`: destroys what has been kept long enough, and proves it (CS-120, CS-121).

Each class of data has its term in the region file and one statement that destroys the oldest of it,
a batch a transaction, together with the audit record that proves it (class, range, count): killed
at any point it is run again. A patient under legal hold is left out, with all keys that are them.
The audit goes in whole segments, up to a checkpoint where a signed statement lets chains begin.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer
from joserfc.jwk import OKPKey
from pydantic import SecretStr
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.cli import auditing
from services.cli.auditing import DataDir
from services.plumbing import audit, chain
from services.plumbing.audit import Trail
from services.plumbing.chain import Checkpoint
from services.plumbing.clock import Clock, real_now
from services.plumbing.db import Tx, driver_url
from services.plumbing.migrate import PURGER
from services.plumbing.region import Region
from services.plumbing.settings import SERVICES, SettingsError

BATCH = 1_000
"""Rows of the leading table that one transaction destroys."""
OPEN_STAY = timedelta(days=180)
"""An encounter that never ended is over this long after its start (CR-29)."""

# Keys under legal hold, with all that are the same person: merged keys speak for each other.
_HELD = """
with recursive same (key) as (
  select patient from notify.legal_hold where lifted is null
  union
  select case when p.key = s.key then p.surviving else p.key end
  from same s join ingest.patient p on p.surviving is not null and s.key in (p.key, p.surviving)
) select key from same"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of data: how its oldest rows are found, and all that goes with them.

    `aged` selects `id` and `aged` (when its term began), takes :before, :held; `gone` deletes what
    belongs to the ids `(select id from gone)`, a part for each table.
    """

    name: str
    services: tuple[str, ...]
    """In whose audit the destruction is proved."""
    aged: str
    gone: tuple[str, ...]

    @property
    def count(self) -> str:
        return (
            f"select count(*) as n, min(aged) as first, max(aged) as last from ({self.aged}) found"  # noqa: S608 - constants
        )

    @property
    def destroy(self) -> str:
        parts = [
            f"gone as (select id, aged from ({self.aged}) found order by aged, id limit :most)",  # noqa: S608 - constants
            *(f"part{n} as ({part})" for n, part in enumerate(self.gone)),
        ]
        counted = "select count(*) as n, min(aged) as first, max(aged) as last from gone"
        return f"with {', '.join(parts)} {counted}"


CARDS = Kind(
    "cards",
    ("notify",),
    "select id, closed as aged from notify.card"
    " where closed <= :before and not (patient = any (:held))",
    (
        "delete from notify.notification where card in (select id from gone)",
        "delete from notify.card_version where card in (select id from gone)",
        "delete from notify.card where id in (select id from gone)",
    ),
)
STANDINGS = Kind(
    "standings",
    ("notify",),
    "select s.patient::text || '/' || s.sequence as id, s.counted as aged from notify.standing s"
    " where s.counted <= :before and not (s.patient = any (:held))"
    " and exists (select from notify.standing n"
    "   where n.patient = s.patient and n.sequence > s.sequence)"
    " and not exists (select from notify.card c join notify.card_version v on v.card = c.id"
    "   where c.patient = s.patient and v.sequence = s.sequence)",
    (
        "delete from notify.standing s using gone g"
        " where s.patient::text || '/' || s.sequence = g.id",
    ),
)
PANEL = Kind(
    "panel",
    ("notify",),
    "select p.id, p.superseded as aged from notify.panel p where p.superseded <= :before"
    " and not exists (select from notify.token t where t.key_id = p.key_id"
    "   and t.digest = p.digest and t.patient = any (:held))",
    ("delete from notify.panel where id in (select id from gone)",),
)
# A version has its last effect when the next one is recorded; the last one, if it is withdrawn.
CONSENTS = Kind(
    "consents",
    ("notify",),
    "select c.uid as id, coalesce(n.recorded, c.recorded) as aged from notify.consent c"
    " left join notify.consent n on n.id = c.id and n.version = c.version + 1"
    " where coalesce(n.recorded, c.recorded) <= :before"
    " and (n.uid is not null or c.status <> 'active')"
    " and not exists (select from notify.token t where t.key_id = c.key_id"
    "   and t.digest = c.digest and t.patient = any (:held))",
    ("delete from notify.consent where uid in (select id from gone)",),
)
REFUSED = Kind(
    "refused-consents",
    ("notify",),
    "select r.id, r.resolved as aged from notify.refused_consent r where r.resolved <= :before"
    " and not exists (select from notify.token t where t.key_id = r.key_id"
    "   and t.digest = r.digest and t.patient = any (:held))",
    ("delete from notify.refused_consent where id in (select id from gone)",),
)
WORK_ITEMS = Kind(
    "work-items",
    ("notify",),
    "select id, closed as aged from notify.work_item"
    " where closed <= :before and (patient is null or not (patient = any (:held)))",
    ("delete from notify.work_item where id in (select id from gone)",),
)
# One that nobody reviewed stays until somebody has.
OVERRIDES = Kind(
    "overrides",
    ("notify",),
    "select id, reviewed as aged from notify.override"
    " where reviewed <= :before and (patient is null or not (patient = any (:held)))",
    ("delete from notify.override where id in (select id from gone)",),
)
DECISIONS = Kind(
    "decisions",
    ("notify",),
    "select id, at as aged from notify.decision"
    " where at <= :before and not (patient = any (:held))",
    ("delete from notify.decision where id in (select id from gone)",),
)
INCIDENTS = Kind(
    "incidents",
    ("notify",),
    "select n.id, n.recorded as aged from notify.incident n"
    " where n.recorded <= :before and n.closed and not exists"
    "  (select from notify.incident m where m.id = n.id and m.version > n.version)",
    ("delete from notify.incident where id in (select id from gone)",),
)
# Of whoever is below, together with all their keys: nothing older than the reach of every policy
# can then change what is or will be said of them.
_QUIET = (
    "not exists (with recursive same (key) as (select {patient} union"
    " select case when p.key = s.key then p.merged_into else p.key end from same s"
    " join screening.patient p on p.merged_into is not null and s.key in (p.key, p.merged_into))"
    " select from same join screening.patient q using (key) where q.state <> 'below')"
)
FACTS = Kind(
    "facts",
    ("ingest", "screening"),
    "select f.encounter as id, f.over as aged from (select encounter, patient, coalesce("  # noqa: S608 - constants
    "   (fact::jsonb -> 'end' ->> 'latest')::timestamptz, start + cast(:open as interval),"
    "   first_recorded + cast(:open as interval)) as over"
    "  from screening.fact where first_recorded <= :before) f"
    " where f.over <= :before and not (f.patient = any (:held))"
    f" and {_QUIET.format(patient='f.patient')}",
    (
        "delete from screening.episode where episode in (select id from gone)",
        "delete from screening.correction where encounter in (select id from gone)",
        "delete from notify.correction where encounter in (select id from gone)",
        "delete from screening.fact_version where encounter in (select id from gone)",
        "delete from screening.fact where encounter in (select id from gone)",
        "delete from notify.episode where episode in (select id from gone)",
        "delete from notify.assessment where encounter in (select id from gone)",
        "delete from ingest.identifier where key in (select id from gone)",
        "delete from ingest.quality where key in (select id from gone)",
        "delete from ingest.version where key in (select id from gone)",
        "delete from ingest.resource where key in (select id from gone)",
        "delete from ingest.handle where key in (select id from gone)",
    ),
)
CHANGES = Kind(
    "changes",
    ("screening",),
    "select c.patient::text || '/' || c.sequence as id, c.counted as aged from screening.change c"
    " join screening.patient p on p.key = c.patient"
    " where c.counted <= :before and c.sequence < p.sequence and p.state = 'below'"
    " and not (c.patient = any (:held))",
    (
        "delete from screening.change c using gone g"
        " where c.patient::text || '/' || c.sequence = g.id",
    ),
)
# Who they are stays while anything refers to them (CS-120): all keys of one person go together.
PEOPLE = Kind(
    "people",
    SERVICES,
    "with recursive chain (key, root) as ("
    " select key, key from ingest.patient where surviving is null"
    " union all select p.key, c.root from ingest.patient p join chain c on p.surviving = c.key)"
    " select c.root as id, coalesce(max(r.updated), :before) as aged from chain c"
    " left join ingest.resource r on r.patient = c.key"
    " group by c.root having coalesce(max(r.updated), :before) <= :before"
    " and not bool_or(coalesce(r.kind = 'Encounter', false) or c.key = any (:held)"
    "  or exists (select from screening.fact_version f where f.patient = c.key)"
    "  or exists (select from screening.patient p where p.key = c.key and p.state <> 'below')"
    "  or exists (select from notify.card k where k.patient = c.key)"
    "  or exists (select from notify.token t join notify.consent o using (key_id, digest)"
    "     where t.patient = c.key)"
    "  or exists (select from notify.token t join notify.refused_consent o using (key_id, digest)"
    "     where t.patient = c.key)"
    "  or exists (select from notify.work_item w where w.patient = c.key)"
    "  or exists (select from notify.override o where o.patient = c.key)"
    "  or exists (select from notify.token t join notify.panel o using (key_id, digest)"
    "     where t.patient = c.key))",
    (
        "with recursive chain (key) as (select id from gone union"
        " select p.key from ingest.patient p join chain c on p.surviving = c.key)"
        " select key from chain",
        "delete from ingest.link where retired in (select key from part0)",
        "delete from ingest.token where patient in (select key from part0)",
        "delete from ingest.patient where key in (select key from part0)",
        "select key from ingest.resource where patient in (select key from part0)",
        "delete from ingest.identifier where key in (select key from part4)",
        "delete from ingest.quality where key in (select key from part4)",
        "delete from ingest.version where key in (select key from part4)",
        "delete from ingest.resource where key in (select key from part4)",
        "delete from ingest.handle where key in (select key from part4)",
        *(
            f"delete from {table} where {column} in (select key from part0)"  # noqa: S608 - constants
            for table, column in (
                ("ingest.patient_version", "key"),
                ("screening.restated", "key"),
                ("screening.patient", "key"),
                ("screening.person_version", "key"),
                ("screening.link_version", "retired"),
                ("screening.link", "retired"),
                ("screening.change", "patient"),
                ("screening.episode", "patient"),
                ("screening.shadow", "patient"),
                ("notify.patient", "key"),
                ("notify.token", "patient"),
                ("notify.reach", "patient"),
                ("notify.standing", "patient"),
                ("notify.episode", "patient"),
                ("notify.flag", "patient"),
                ("notify.outlook", "patient"),
                ("notify.unroutable", "patient"),
                ("notify.due", "patient"),
                ("notify.assessment", "patient"),
            )
        ),
    ),
)

_REACH = text(
    "select max((select max(days::int) from jsonb_path_query(said, '$.**.days ? (@ != null)') days)"
    " * (said #>> '{window,consecutive}')::int"
    " + (said ->> 'hold_days')::int + (said ->> 'quiet_reentry_days')::int)"
    " from (select canonical::jsonb as said from screening.policy) policy"
)
_BEFORE = text(
    "select number, statement from chain.checkpoint where service = :service and at <= :before"
    " and number > coalesce((select max(checkpoint) from chain.cut where service = :service), 0)"
    " order by number desc"
)
_CUTS = text(
    "select k.number, k.statement from chain.cut c join chain.checkpoint k"
    " on k.service = c.service and k.number = c.checkpoint"
    " where c.service = :service order by k.number desc limit 1"
)
_CUT = text(
    "insert into chain.cut (service, checkpoint, at, statement)"
    " values (:service, :checkpoint, :at, :statement)"
)


def _segment(service: str) -> str:
    """Of one service's audit: the records whose links stand up to `:ends` of `:tenants`."""
    return (
        f"{service}.audit a join chain.link l on l.service = '{service}' and l.record = a.position"
        " join unnest(cast(:tenants as text[]), cast(:ends as bigint[])) as e (tenant, upto)"
        " on e.tenant = l.tenant and l.position <= e.upto"
    )


def _destroy_segment(service: str) -> str:
    """The oldest of them; the link at which a chain begins from then on stays."""
    return (
        "with gone as (select a.position as record, a.recorded as aged, l.tenant, l.position,"  # noqa: S608 - constants
        f" l.position = e.upto as head from {_segment(service)} order by a.position limit :most),"
        f" part0 as (delete from {service}.audit where position in (select record from gone)),"
        f" part1 as (delete from chain.link l using gone g where l.service = '{service}'"
        "  and l.tenant = g.tenant and l.position = g.position and not g.head)"
        " select count(*) as n, min(aged) as first, max(aged) as last from gone"
    )


@dataclass(frozen=True, slots=True)
class Destroyed:
    """Of one class: how many, and from when to when their terms began."""

    kind: str
    count: int
    first: datetime | None
    last: datetime | None

    def __str__(self) -> str:
        if self.first is None or self.last is None:
            return f"{self.kind}: nothing"
        return f"{self.kind}: {self.count}, {self.first:%Y-%m-%d} to {self.last:%Y-%m-%d}"

    def and_(self, other: "Destroyed") -> "Destroyed":
        firsts = [one for one in (self.first, other.first) if one is not None]
        lasts = [one for one in (self.last, other.last) if one is not None]
        return Destroyed(
            self.kind, self.count + other.count, min(firsts, default=None), max(lasts, default=None)
        )


@dataclass(frozen=True, slots=True)
class Purge:
    """One run: for whom, by which terms, as of when."""

    engine: AsyncEngine
    region: Region
    by: str
    now: datetime
    """Business time."""
    real: datetime
    """Real time: that of checkpoints."""
    key: OKPKey | None
    """Signs a cut of the audit."""
    batch: int = BATCH

    def terms(self) -> list[tuple[Kind, datetime]]:
        """Each class whose term is set, with the instant before which it is over."""
        kept = self.region.retention
        terms = [
            (CARDS, kept.cards),
            (STANDINGS, kept.cards),
            (PANEL, kept.cards),
            (CONSENTS, kept.consents),
            (REFUSED, kept.consents),
            (WORK_ITEMS, kept.consents),
            (OVERRIDES, kept.audit),
            (DECISIONS, kept.audit),
            (INCIDENTS, kept.audit),
        ]
        if kept.facts is not None:
            terms += [(FACTS, kept.facts), (CHANGES, kept.facts), (PEOPLE, kept.facts)]
        return [(kind, self.now - timedelta(days=days)) for kind, days in terms]

    @asynccontextmanager
    async def work(self) -> AsyncIterator[Tx]:
        """A transaction of the purger's role."""
        async with self.engine.begin() as tx:
            await tx.execute(text(f"set local role {PURGER}"))
            yield tx

    async def check(self) -> None:
        """SettingsError if a term is shorter than what a policy looks back (CS-120)."""
        facts = self.region.retention.facts
        if facts is None:
            return
        async with self.work() as tx:
            reach = await tx.scalar(_REACH)
        if reach is not None and facts < reach:
            raise SettingsError(
                f"retention.facts: {facts} days is less than the {reach} that a policy looks back,"
                " hold and quiet re-entry included."
            )

    async def due(self) -> list[Destroyed]:
        """What a run would destroy, a line a class; nothing is changed."""
        await self.check()
        found = []
        async with self.work() as tx:
            held = await _held(tx)
            for kind, before in self.terms():
                row = (await tx.execute(text(kind.count), self._asked(before, held))).one()
                found.append(_destroyed(kind.name, row))
            for service in SERVICES:
                cut = await self._next_cut(tx, service, held)
                found.append(await _before(tx, service, cut))
        return found

    async def apply(self) -> list[Destroyed]:
        """Destroy it; what was destroyed, a line a class."""
        await self.check()
        done = []
        for kind, before in self.terms():
            statement = text(kind.destroy)

            async def batch(
                tx: Tx, held: Sequence[UUID], sql: Any = statement, before: datetime = before
            ) -> Row[Any]:
                return (await tx.execute(sql, self._asked(before, held))).one()

            done.append(await self._until_nothing(kind.name, kind.services, batch))
        return [*done, *[await self._audit(service) for service in SERVICES]]

    def _asked(self, before: datetime, held: Sequence[UUID]) -> dict[str, Any]:
        return {"before": before, "held": list(held), "most": self.batch, "open": OPEN_STAY}

    async def _until_nothing(
        self,
        name: str,
        services: Sequence[str],
        batch: Callable[[Tx, Sequence[UUID]], Any],
    ) -> Destroyed:
        """Batch after batch, each with its proof in the same transaction."""
        total = Destroyed(name, 0, None, None)
        while True:
            async with self.work() as tx:
                one = _destroyed(name, await batch(tx, await _held(tx)))
                if not one.count:
                    return total
                for service in services:
                    await self._prove(tx, service, one)
            total = total.and_(one)

    async def _prove(self, tx: Tx, service: str, one: Destroyed) -> None:
        assert one.first is not None
        assert one.last is not None
        await tx.execute(text(f"set local search_path = {service}"))
        trail = Trail(at=self.now, agent=self.by, agent_kind="person", roles=("privacy",))
        said = f"from={one.first.isoformat()}&to={one.last.isoformat()}&count={one.count}"
        record = replace(trail.deleted(f"retention/{one.kind}", None), query=said)
        await audit.record(tx, [record])

    async def _audit(self, service: str) -> Destroyed:
        """Cut the audit of `service`, and destroy what is before the cut (a killed run's too)."""
        name = f"audit of {service}"
        async with self.work() as tx:
            cut = await self._next_cut(tx, service, await _held(tx))
            if cut is not None:
                if self.key is None:
                    raise SettingsError(
                        "PASSERELLE_CHECKPOINT_KEY: is not set, and a cut of the audit is signed"
                    )
                signed = chain.cut_statement(service, cut.number, self.real, self.key)
                await tx.execute(
                    _CUT,
                    {
                        "service": service,
                        "checkpoint": cut.number,
                        "at": self.real,
                        "statement": signed,
                    },
                )
            else:
                cut = await _last_cut(tx, service)
        if cut is None:
            return Destroyed(name, 0, None, None)
        statement, ends = text(_destroy_segment(service)), _ends(cut)

        async def batch(tx: Tx, _held: Sequence[UUID]) -> Row[Any]:
            return (await tx.execute(statement, {**ends, "most": self.batch})).one()

        return await self._until_nothing(name, (service,), batch)

    async def _next_cut(self, tx: Tx, service: str, held: Sequence[UUID]) -> Checkpoint | None:
        """The newest checkpoint up to which all is old enough and nobody's is held."""
        before = self.real - timedelta(days=self.region.retention.audit)
        held_there = (
            f"select exists (select from {_segment(service)} where a.patient = any (:held))"  # noqa: S608 - constants
        )
        sql = text(held_there)
        for row in await tx.execute(_BEFORE, {"service": service, "before": before}):
            found = Checkpoint.read(row.statement, [])
            if not held or not await tx.scalar(sql, {**_ends(found), "held": list(held)}):
                return found
        return None


async def _held(tx: Tx) -> list[UUID]:
    return list((await tx.execute(text(_HELD))).scalars())


async def _last_cut(tx: Tx, service: str) -> Checkpoint | None:
    row = (await tx.execute(_CUTS, {"service": service})).one_or_none()
    return None if row is None else Checkpoint.read(row.statement, [])


async def _before(tx: Tx, service: str, cut: Checkpoint | None) -> Destroyed:
    """The records that stand before `cut`, or are left of an earlier one."""
    name = f"audit of {service}"
    cut = cut or await _last_cut(tx, service)
    if cut is None:
        return Destroyed(name, 0, None, None)
    told = "count(*) as n, min(a.recorded) as first, max(a.recorded) as last"
    sql = f"select {told} from {_segment(service)}"  # noqa: S608 - constants
    return _destroyed(name, (await tx.execute(text(sql), _ends(cut))).one())


def _ends(cut: Checkpoint) -> dict[str, Any]:
    return {"tenants": list(cut.chains), "ends": [position for position, _ in cut.chains.values()]}


def _destroyed(kind: str, row: Row[Any]) -> Destroyed:
    return Destroyed(kind, row.n, row.first, row.last)


# Commands

By = Annotated[str, typer.Option(help="Who does it: a person of the region file.")]
legal_holds = typer.Typer(
    help="Patients whose data nobody may destroy, whatever their age.", no_args_is_help=True
)


@asynccontextmanager
async def _purge(by: str, data_dir: Path | None) -> AsyncIterator[Purge]:
    said, known = auditing.asked_by(by, data_dir)
    secret = said.checkpoint_key
    if secret is None and not auditing.is_elsewhere(said):
        kept = auditing.secrets_of(auditing.data_of(data_dir))
        secret = SecretStr(str(kept["checkpoint_key"]))
    engine = create_async_engine(
        driver_url(auditing.database_of(said, data_dir)), hide_parameters=True
    )
    try:
        yield Purge(
            engine=engine,
            region=known,
            by=by,
            now=Clock(said.clock).now(),
            real=real_now(),
            key=None if secret is None else chain.signing_key(secret),
        )
    finally:
        await engine.dispose()


async def _purged(by: str, data_dir: Path | None, *, apply: bool) -> list[Destroyed]:
    async with _purge(by, data_dir) as purge:
        return await (purge.apply() if apply else purge.due())


def purge_(
    by: By,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is over.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Destroy it.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Destroy what has been kept longer than the region file's `retention` says.

    Each batch is proved by an audit record; killed, it is run again. Facts are kept for ever
    unless `retention.facts` is set. `passerelle audit verify` still answers: whole.
    """
    if dry_run == apply:
        typer.echo("Say one of --dry-run and --apply.", err=True)
        raise typer.Exit(2)
    for line in auditing.run(_purged(by, data_dir, apply=apply), PURGER):
        typer.echo(str(line))


_PLACE = text(
    "insert into notify.legal_hold (id, patient, placed, placed_by, matter)"
    " values (:id, :patient, :now, :by, :matter)"
    " on conflict (patient) where lifted is null do nothing returning id"
)
_LIFT = text(
    "update notify.legal_hold set lifted = :now, lifted_by = :by"
    " where patient = :patient and lifted is null returning id"
)
_HOLDS = text(
    "select patient, placed, placed_by, matter from notify.legal_hold where lifted is null"
    " order by placed, patient"
)


async def place(purge: Purge, patient: UUID, matter: str) -> bool:
    """Put `patient` under legal hold; False if it was."""
    return await _hold(purge, _PLACE, patient, id=uuid4(), matter=matter)


async def lift(purge: Purge, patient: UUID) -> bool:
    """End the legal hold of `patient`; False if there was none."""
    return await _hold(purge, _LIFT, patient)


async def _hold(purge: Purge, sql: Any, patient: UUID, **more: Any) -> bool:
    async with purge.work() as tx:
        asked = {"patient": patient, "now": purge.now, "by": purge.by, **more}
        done = (await tx.execute(sql, asked)).scalar() is not None
        if done:
            await tx.execute(text("set local search_path = notify"))
            trail = Trail(at=purge.now, agent=purge.by, agent_kind="person", roles=("privacy",))
            word = "placed" if more else "lifted"
            await audit.record(
                tx, [replace(trail.configured(f"legal-hold/{word}"), patient=patient)]
            )
    return done


async def held(purge: Purge) -> list[str]:
    """A line for each legal hold in force."""
    async with purge.work() as tx:
        rows = await tx.execute(_HOLDS)
        return [f"{r.patient}  {r.placed:%Y-%m-%d}  {r.placed_by}  {r.matter}" for r in rows]


@legal_holds.command("place")
def place_(
    patient: UUID,
    by: By,
    matter: Annotated[str, typer.Option(help="File number of the matter; nothing of the patient.")],
    data_dir: DataDir = None,
) -> None:
    """Keep everything of PATIENT (a patient key) until the hold is lifted."""

    async def work() -> bool:
        async with _purge(by, data_dir) as purge:
            return await place(purge, patient, matter)

    typer.echo("Placed." if auditing.run(work(), PURGER) else "Was under legal hold already.")


@legal_holds.command("lift")
def lift_(patient: UUID, by: By, data_dir: DataDir = None) -> None:
    """End the hold; what is over its term goes with the next purge."""

    async def work() -> bool:
        async with _purge(by, data_dir) as purge:
            return await lift(purge, patient)

    typer.echo("Lifted." if auditing.run(work(), PURGER) else "Was under no legal hold.")


@legal_holds.command("list")
def list_(by: By, data_dir: DataDir = None) -> None:
    """Patient keys under legal hold: since when, by whom, for which matter."""

    async def work() -> list[str]:
        async with _purge(by, data_dir) as purge:
            return await held(purge)

    for line in auditing.run(work(), PURGER):
        typer.echo(line)
