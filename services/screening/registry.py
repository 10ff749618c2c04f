"""All SQL of the policies: which are stored and in force, and who stands where in shadow.

A policy is never changed (CT-50). What stands of it, live, in shadow or merely stored, changes by
an activation, which has an instant and is kept (CT-51).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, Boolean, Integer, Text, Uuid, bindparam, text

from services.plumbing.db import Tx
from services.screening import policy as policies
from services.screening.flag import State
from services.screening.policy import Policy
from services.screening.tables import Instant

_UUIDS, _INTS, _TEXTS = ARRAY(Uuid), ARRAY(Integer), ARRAY(Text)
_BOOLS, _TIMES, _RUNS = ARRAY(Boolean), ARRAY(Instant), ARRAY(BigInteger)

SERVICE = "passerelle/screening"
"""Who activates the policy of the settings: nobody asked (audit.Trail.background)."""


class Status(StrEnum):
    STORED = "stored"
    SHADOW = "shadow"
    LIVE = "live"


class Mode(StrEnum):
    """What an activation makes of a policy."""

    LIVE = "live"
    SHADOW = "shadow"
    RETIRE = "retire"
    """Out of the shadow, or no more awaited."""


@lru_cache(maxsize=64)
def read(canonical: str) -> Policy:
    """A stored policy; read once, since it never changes."""
    return policies.load(canonical)


# Storing


class Kept(StrEnum):
    """What became of a policy that was to be stored."""

    NEW = "new"
    KNOWN = "known"
    TAKEN = "taken"
    """Its name and version are another's (CT-50)."""


_STORE = text(
    "insert into policy (name, version, sha256, canonical, stored)"
    " values (:name, :version, :sha256, :canonical, :now) on conflict do nothing"
)
_DIGEST = text("select sha256 from policy where name = :name and version = :version")


async def keep(tx: Tx, policy: Policy, now: datetime) -> Kept:
    said = {
        "name": policy.name,
        "version": policy.version,
        "sha256": policy.sha256,
        "canonical": policy.canonical,
        "now": now,
    }
    if (await tx.execute(_STORE, said)).rowcount == 1:
        return Kept.NEW
    known = (await tx.execute(_DIGEST, {"name": policy.name, "version": policy.version})).scalar()
    return Kept.KNOWN if known == policy.sha256 else Kept.TAKEN


async def adopt(tx: Tx, policy: Policy, now: datetime) -> bool:
    """Store the policy of the settings and make it live, unless it has been here before: then
    what was activated since stands. False: its name and version are another's (CT-50).
    """
    kept = await keep(tx, policy, now)
    if kept is Kept.TAKEN:
        return False
    if kept is Kept.NEW or (await in_force(tx)).live is None:
        run = await ask(tx, Asked(policy.name, policy.version, Mode.LIVE, now, now, SERVICE))
        await _begin_one(tx, run, now)
    return True


# What is in force


@dataclass(frozen=True, slots=True)
class InForce:
    live: Policy | None
    """None: none was ever activated."""
    shadows: Mapping[int, Policy] = field(default_factory=dict)
    """By run."""


IN_FORCE = text("select status, run, canonical from policy where status <> 'stored'")


async def in_force(tx: Tx) -> InForce:
    """As of this statement: to be asked once the patients are locked, so that no recount under
    a policy that has gone can come after the re-evaluation under the one that came.
    """
    live: Policy | None = None
    shadows: dict[int, Policy] = {}
    for row in await tx.execute(IN_FORCE):
        if row.status == Status.LIVE:
            live = read(row.canonical)
        else:
            shadows[row.run] = read(row.canonical)
    return InForce(live, shadows)


_THEN = text(
    "select p.canonical from activation a join policy p using (name, version)"
    " where a.mode = 'live' and a.begun <= :known_at order by a.begun desc, a.run desc limit 1"
)


async def live_at(tx: Tx, known_at: datetime) -> Policy | None:
    """The policy that was live then."""
    found = (await tx.execute(_THEN, {"known_at": known_at})).scalar_one_or_none()
    return None if found is None else read(found)


# Reading


@dataclass(frozen=True, slots=True)
class Stored:
    """A policy as the registry has it."""

    policy: Policy
    status: Status
    run: int | None
    stored: datetime


@dataclass(frozen=True, slots=True)
class Activation:
    """What was asked of a policy, and whether it came to pass."""

    name: str
    version: int
    mode: Mode
    at: datetime
    asked: datetime
    agent: str
    begun: datetime | None
    withdrawn: datetime | None
    evaluated: datetime | None


_POLICIES = text("select status, run, stored, canonical from policy order by name, version")
_POLICY = text(
    "select status, run, stored, canonical from policy where name = :name and version = :version"
)
_ACTIVATIONS = text(
    "select name, version, mode, at, asked, agent, begun, withdrawn, evaluated from activation"
    " where cast(:name as text) is null or (name = :name and version = :version) order by run"
).bindparams(bindparam("name", type_=Text), bindparam("version", type_=Integer))


async def everything(tx: Tx) -> list[Stored]:
    """All policies, by name and version."""
    return [
        Stored(read(row.canonical), Status(row.status), row.run, row.stored)
        for row in await tx.execute(_POLICIES)
    ]


async def named(tx: Tx, name: str, version: int) -> Stored | None:
    row = (await tx.execute(_POLICY, {"name": name, "version": version})).one_or_none()
    if row is None:
        return None
    return Stored(read(row.canonical), Status(row.status), row.run, row.stored)


async def activations(
    tx: Tx, name: str | None = None, version: int | None = None
) -> list[Activation]:
    """Of one policy or of all, in the order in which they were asked for."""
    rows = await tx.execute(_ACTIVATIONS, {"name": name, "version": version})
    return [
        Activation(
            row.name,
            row.version,
            Mode(row.mode),
            row.at,
            row.asked,
            row.agent,
            row.begun,
            row.withdrawn,
            row.evaluated,
        )
        for row in rows
    ]


# Activating


@dataclass(frozen=True, slots=True)
class Asked:
    """That a policy be live or in shadow from `at` on, or be retired."""

    name: str
    version: int
    mode: Mode
    at: datetime
    asked: datetime
    agent: str


_WITHDRAW = text(
    "update activation set withdrawn = :asked where name = :name and version = :version"
    " and begun is null and withdrawn is null"
)
_ASK = text(
    "insert into activation (name, version, mode, at, asked, agent)"
    " values (:name, :version, :mode, :at, :asked, :agent) returning run"
)


async def ask(tx: Tx, asked: Asked) -> int:
    """Note what is asked of a policy, instead of what it still awaits; the run."""
    said = {
        "name": asked.name,
        "version": asked.version,
        "mode": asked.mode,
        "at": asked.at,
        "asked": asked.asked,
        "agent": asked.agent,
    }
    await tx.execute(_WITHDRAW, said)
    run: int = (await tx.execute(_ASK, said)).scalar_one()
    return run


WAITING = text(  # served by activation_waiting
    "select run from activation where at <= :now and begun is null and withdrawn is null"
    " order by at, run for update skip locked"
)


async def begin(tx: Tx, now: datetime) -> int:
    """Let what was asked for an instant that has come take effect, in its order; how many."""
    waiting = [row.run for row in await tx.execute(WAITING, {"now": now})]
    for run in waiting:
        await _begin_one(tx, run, now)
    return len(waiting)


_SERIAL = text("select pg_advisory_xact_lock(hashtextextended('screening policy', 0))")
_ASKED = text(
    "select a.name, a.version, a.mode, p.status from activation a"
    " join policy p using (name, version) where a.run = :run"
)
_NO_MORE = text("update policy set status = 'stored', run = null where status = 'live'")
_STANDS = text(
    "update policy set status = :status, run = :run where name = :name and version = :version"
)
_BEGUN = text(
    "update activation set begun = :now,"
    " evaluated = case when mode = 'retire' then cast(:now as timestamptz) end where run = :run"
)
_VOID = text("update activation set withdrawn = :now where run = :run")


async def _begin_one(tx: Tx, run: int, now: datetime) -> None:
    """One policy is live: the one before becomes a stored one. Out of that place there is no
    way but another's coming, so what would leave it empty has no effect.
    """
    await tx.execute(_SERIAL)
    asked = (await tx.execute(_ASKED, {"run": run})).one()
    if asked.status == Status.LIVE and asked.mode != Mode.LIVE:
        await tx.execute(_VOID, {"run": run, "now": now})
        return
    if asked.mode == Mode.LIVE:
        await tx.execute(_NO_MORE)
    stands = Status.STORED if asked.mode == Mode.RETIRE else Status(asked.mode)
    said = {"name": asked.name, "version": asked.version}
    kept = None if stands is Status.STORED else run
    await tx.execute(_STANDS, said | {"status": stands, "run": kept})
    await tx.execute(_BEGUN, {"run": run, "now": now})


async def activate(tx: Tx, asked: Asked) -> None:
    """Ask, and begin at once what is asked for now."""
    run = await ask(tx, asked)
    if asked.at <= asked.asked:
        await _begin_one(tx, run, asked.asked)


# Looking at everybody again


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An activation under which not everybody has been looked at yet."""

    run: int
    place: UUID | None


UNFINISHED = text(  # served by activation_unfinished
    "select a.run, a.place, p.run is not distinct from a.run as stands from activation a"
    " join policy p using (name, version) where a.begun is not null and a.evaluated is null"
    " order by a.run limit 1 for update of a skip locked"
)
FOLLOWING = text(  # served by the primary key of patient
    "select key from patient where (cast(:place as uuid) is null or key > :place)"
    " and person_version is not null and merged_into is null"
    " order by key limit :most for update"
).bindparams(bindparam("place", type_=Uuid))
_ADVANCE = text(
    "update activation set evaluated = :evaluated,"
    " place = case when cast(:evaluated as timestamptz) is null then :place end where run = :run"
).bindparams(bindparam("place", type_=Uuid), bindparam("evaluated", type_=Instant))


async def unfinished(tx: Tx, now: datetime) -> Unfinished | None:
    """The oldest that is not done, for this transaction alone. One that has been superseded
    meanwhile is done with.
    """
    while row := (await tx.execute(UNFINISHED)).one_or_none():
        if row.stands:
            return Unfinished(row.run, row.place)
        await tx.execute(_ADVANCE, {"run": row.run, "place": None, "evaluated": now})
    return None


async def following(tx: Tx, place: UUID | None, most: int) -> list[UUID]:
    """Lock the patients after `place`, in key order as every batch does. Nobody is skipped:
    who is in another's hands is waited for, and then seen with what that one brought.
    """
    rows = await tx.execute(FOLLOWING, {"place": place, "most": most})
    return [row.key for row in rows]


async def advance(tx: Tx, run: int, place: UUID | None, evaluated: datetime | None) -> None:
    await tx.execute(_ADVANCE, {"run": run, "place": place, "evaluated": evaluated})


# In shadow


@dataclass(frozen=True, slots=True)
class Shade:
    """Where a patient stands under a policy in shadow."""

    run: int
    patient: UUID
    state: State
    held: bool
    since: datetime | None
    ed_visits: int
    hospital_episodes: int
    sites: tuple[str, ...]
    due_at: datetime | None


_SHADE = text(
    """
    insert into shadow as known (run, patient, state, held, since, ed_visits, hospital_episodes,
      sites, changed_at, due_at)
    select r, p, s, h, b, ed, ho, string_to_array(si, ' '), :now, du
    from unnest(:runs, :patients, :states, :held, :since, :ed, :hospital, :sites, :due)
      as t(r, p, s, h, b, ed, ho, si, du)
    order by r, p
    on conflict (run, patient) do update set
      state = excluded.state, held = excluded.held, since = excluded.since,
      ed_visits = excluded.ed_visits, hospital_episodes = excluded.hospital_episodes,
      sites = excluded.sites, due_at = excluded.due_at,
      changed_at = case when (known.state, known.held, known.since, known.ed_visits,
        known.hospital_episodes) is distinct from (excluded.state, excluded.held, excluded.since,
        excluded.ed_visits, excluded.hospital_episodes)
        then excluded.changed_at else known.changed_at end
    where (known.state, known.held, known.since, known.ed_visits, known.hospital_episodes,
      known.sites, known.due_at) is distinct from (excluded.state, excluded.held, excluded.since,
      excluded.ed_visits, excluded.hospital_episodes, excluded.sites, excluded.due_at)
    """
).bindparams(
    bindparam("runs", type_=_RUNS),
    bindparam("patients", type_=_UUIDS),
    bindparam("states", type_=_TEXTS),
    bindparam("held", type_=_BOOLS),
    bindparam("since", type_=_TIMES),
    bindparam("ed", type_=_INTS),
    bindparam("hospital", type_=_INTS),
    bindparam("sites", type_=_TEXTS),
    bindparam("due", type_=_TIMES),
)
_GONE = text("delete from shadow where patient = any(:patients)").bindparams(
    bindparam("patients", type_=_UUIDS)
)
SHADOW_DUE = text(  # served by shadow_due and the primary key of patient
    """
    select key from patient where key in (
      select due.patient from unnest(:runs) as asked(run) cross join lateral (
        select patient from shadow where run = asked.run and due_at <= :now
        order by due_at limit :most
      ) due)
    order by key for update skip locked
    """
).bindparams(bindparam("runs", type_=_RUNS))
_OVER = text(
    "select a.run from activation a join policy p using (name, version) where a.mode = 'shadow'"
    " and a.begun is not null and a.cleared is null and p.run is distinct from a.run"
    " order by a.run limit 1 for update of a skip locked"
)
_FORGET = text(
    "delete from shadow where run = :run and patient in"
    " (select patient from shadow where run = :run limit :most)"
)
_CLEARED = text("update activation set cleared = :now where run = :run")


async def shade(tx: Tx, shades: Sequence[Shade], gone: Collection[UUID], now: datetime) -> None:
    """Write where patients stand in shadow; `gone` are keys that were retired."""
    if gone:
        await tx.execute(_GONE, {"patients": list(gone)})
    if not shades:
        return
    await tx.execute(
        _SHADE,
        {
            "runs": [one.run for one in shades],
            "patients": [one.patient for one in shades],
            "states": [one.state for one in shades],
            "held": [one.held for one in shades],
            "since": [one.since for one in shades],
            "ed": [one.ed_visits for one in shades],
            "hospital": [one.hospital_episodes for one in shades],
            "sites": [" ".join(one.sites) for one in shades],
            "due": [one.due_at for one in shades],
            "now": now,
        },
    )


async def shadow_due(tx: Tx, runs: Collection[int], now: datetime, most: int) -> list[UUID]:
    """Lock patients who may stand otherwise in shadow by time alone, those free at present."""
    if not runs:
        return []
    rows = await tx.execute(SHADOW_DUE, {"now": now, "runs": list(runs), "most": most})
    return [row.key for row in rows]


async def forget(tx: Tx, now: datetime, most: int) -> int:
    """Remove some of what was computed for a policy that is in shadow no more; how many."""
    run = (await tx.execute(_OVER)).scalar_one_or_none()
    if run is None:
        return 0
    gone = (await tx.execute(_FORGET, {"run": run, "most": most})).rowcount
    if gone < most:
        await tx.execute(_CLEARED, {"run": run, "now": now})
    return gone
