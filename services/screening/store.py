"""All SQL of screening. Set-based: one statement for a batch, whatever its size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Boolean,
    Date,
    Integer,
    Text,
    TextClause,
    Uuid,
    any_,
    bindparam,
    select,
    text,
)

from schemas.count_correction_v1 import CountCorrection
from schemas.encounter_recorded_v1 import EncounterRecorded
from schemas.flag_changed_v1 import FlagChanged
from schemas.restatement_ended_v1 import RestatementEnded
from services.plumbing.db import Tx
from services.plumbing.eventlog import lock_number
from services.screening import reading
from services.screening.flag import Announced, Notice, State
from services.screening.ledger import VOID, Correction, Fact, History, Link, Person, Status
from services.screening.policy import Policy
from services.screening.presence import Said
from services.screening.tables import (
    Instant,
    change,
    correction,
    episode,
    fact,
    fact_version,
    patient,
    person_version,
)

_UUIDS, _INTS, _TEXTS = ARRAY(Uuid), ARRAY(Integer), ARRAY(Text)
_BOOLS, _TIMES, _DATES = ARRAY(Boolean), ARRAY(Instant), ARRAY(Date)


@dataclass(frozen=True, slots=True)
class Family:
    """Some keys with all they are linked to, and the links in force among them."""

    keys: frozenset[UUID]
    into: Mapping[UUID, UUID]


@dataclass(frozen=True, slots=True)
class Row:
    """A patient row: the person, and what was last said."""

    key: UUID
    person: Person | None
    announced: Announced
    notice: Notice | None
    sites: tuple[str, ...]
    policy: str | None
    sequence: int
    merged_into: UUID | None
    ever: bool
    episode_sequence: int
    due_at: datetime | None
    restated: bool = False
    """To be counted again because of a rebuild."""

    def is_as(self, settled: "Settled", policy: Policy) -> bool:
        """Whether writing it would change nothing."""
        return (
            self.policy == policy.sha256
            and not (settled.is_news or self.restated)
            and (self.announced, self.notice, self.merged_into, self.ever)
            == (settled.announced, settled.notice, settled.merged_into, settled.ever)
            and (self.episode_sequence, self.due_at) == (settled.episode_sequence, settled.due_at)
        )


# Finding and locking

KIN = text(  # served by the primary keys of fact and link, and link_surviving
    """
    with recursive kin(key) as (
      (select unnest(:keys) union select patient from fact where encounter = any(:encounters))
      union
      select other.key from kin cross join lateral (
        select surviving from link where retired = kin.key and active
        union all
        select retired from link where surviving = kin.key and active
      ) other(key)
    )
    select kin.key, link.surviving
    from kin left join link on link.retired = kin.key and link.active
    """
).bindparams(bindparam("keys", type_=_UUIDS), bindparam("encounters", type_=_UUIDS))

_LOCK = text(
    "select key, due_at, case when merged_into is null then policy end as policy from patient"
    " where key = any(:keys) order by key for update"
).bindparams(bindparam("keys", type_=_UUIDS))

_ENTER = text("insert into patient (key) select unnest(:keys) on conflict do nothing").bindparams(
    bindparam("keys", type_=_UUIDS)
)

DUE = text(  # served by patient_due
    "select key from patient where due_at <= :now order by due_at limit :most"
    " for update skip locked"
)
_OLDEST_DUE = text("select min(due_at) from patient where due_at is not null")


async def family(tx: Tx, keys: Collection[UUID], encounters: Collection[UUID] = ()) -> Family:
    """`keys` and the owners of `encounters`, with everybody they are merged with."""
    rows = (await tx.execute(KIN, {"keys": list(keys), "encounters": list(encounters)})).all()
    return Family(
        keys=frozenset(row.key for row in rows),
        into={row.key: row.surviving for row in rows if row.surviving is not None},
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A patient whose row is locked."""

    key: UUID
    due_at: datetime | None
    policy: str | None
    """Under which it was last counted; None: never, or retired."""

    def is_late(self, now: datetime, policy: Policy) -> bool:
        """Whether it reads differently by now, without a fact."""
        if self.due_at is not None and self.due_at <= now:
            return True
        return self.policy not in (None, policy.sha256)


async def hold(
    tx: Tx, keys: Collection[UUID], encounters: Collection[UUID]
) -> tuple[Family, list[Held]]:
    """Lock all that a batch can touch, in key order, until the transaction ends.

    Returns the family, and what was locked of it. If a link or correction that was
    committed while this waited has brought in others, the locks are let go and taken anew with
    theirs: taken in two steps they would be out of order, and two batches could wait for ever.
    """
    found = await family(tx, keys, encounters)
    while True:
        savepoint = await tx.begin_nested()
        locked = await _lock(tx, found.keys)
        settled = await family(tx, keys, encounters)
        if settled.keys <= found.keys:
            await savepoint.commit()
            return settled, locked
        await savepoint.rollback()
        found = settled


async def _lock(tx: Tx, keys: Collection[UUID]) -> list[Held]:
    """Lock the rows of `keys`, made where they are missing."""
    wanted = {"keys": sorted(keys)}
    locked = (await tx.execute(_LOCK, wanted)).all()
    if len(locked) < len(keys):
        await tx.execute(_ENTER, wanted)
        locked = (await tx.execute(_LOCK, wanted)).all()
    return [Held(row.key, row.due_at, row.policy) for row in locked]


async def due(tx: Tx, now: datetime, most: int) -> list[UUID]:
    """Lock the patients that are due, oldest first, leaving those somebody else holds."""
    rows = await tx.execute(DUE, {"now": now, "most": most})
    return [row.key for row in rows]


async def oldest_due(tx: Tx) -> datetime | None:
    found: datetime | None = (await tx.execute(_OLDEST_DUE)).scalar_one()
    return found


# Keeping

_KEEP_VERSIONS = text(
    """
    insert into fact_version (encounter, version, patient, site, recorded, learnt, fact)
    select e, v, p, s, r, :now, f
    from unnest(:encounters, :versions, :patients, :sites, :recorded, :facts) as t(e, v, p, s, r, f)
    on conflict do nothing
    """
).bindparams(
    bindparam("encounters", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("patients", type_=_UUIDS),
    bindparam("sites", type_=_TEXTS),
    bindparam("recorded", type_=_TIMES),
    bindparam("facts", type_=_TEXTS),
)
_KEEP_NEWEST = text(
    """
    insert into fact as known (encounter, version, patient, status, start, first_recorded, fact,
      excluded)
    select e, v, p, s, b, r, f, coalesce(
      (select excluded from correction where encounter = e order by version desc limit 1), false)
    from unnest(:encounters, :versions, :patients, :statuses, :starts, :first, :facts)
      as t(e, v, p, s, b, r, f)
    order by e
    on conflict (encounter) do update set
      version = greatest(known.version, excluded.version),
      first_recorded = least(known.first_recorded, excluded.first_recorded),
      patient = case when excluded.version > known.version
                then excluded.patient else known.patient end,
      status = case when excluded.version > known.version
               then excluded.status else known.status end,
      start = case when excluded.version > known.version
              then excluded.start else known.start end,
      fact = case when excluded.version > known.version then excluded.fact else known.fact end
    where excluded.version > known.version or excluded.first_recorded < known.first_recorded
    returning encounter, xmax <> 0 as was_there
    """
).bindparams(
    bindparam("encounters", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("patients", type_=_UUIDS),
    bindparam("statuses", type_=_TEXTS),
    bindparam("starts", type_=_TIMES),
    bindparam("first", type_=_TIMES),
    bindparam("facts", type_=_TEXTS),
)
_OWNERS = text(
    "select encounter, patient from fact_version where encounter = any(:encounters)"
).bindparams(bindparam("encounters", type_=_UUIDS))
_KNOWN = text(
    "select encounter, version, patient, status from fact where encounter = any(:encounters)"
).bindparams(bindparam("encounters", type_=_UUIDS))


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that speaks from now on, and what spoke before."""

    event: EncounterRecorded
    owners: frozenset[UUID]
    """Keys it was known under before."""
    void_before: bool

    @property
    def is_voided(self) -> bool:
        return Status(self.event.status) in VOID and not self.void_before


async def keep(tx: Tx, batch: Sequence[EncounterRecorded], now: datetime) -> list[Kept]:
    """Keep every version; of each encounter the newest speaks. Returns what is new."""
    newest: dict[UUID, EncounterRecorded] = {}
    first: dict[UUID, datetime] = {}
    for event in batch:
        known = newest.get(event.encounter)
        if known is None or event.version > known.version:
            newest[event.encounter] = event
        heard = first.get(event.encounter, event.recorded)
        first[event.encounter] = min(heard, event.recorded)
    rows = await tx.execute(_KNOWN, {"encounters": list(newest)})
    before = {row.encounter: row for row in rows}
    as_kept = {id(event): reading.kept(event) for event in batch}
    await tx.execute(
        _KEEP_VERSIONS,
        {
            "encounters": [event.encounter for event in batch],
            "versions": [event.version for event in batch],
            "patients": [event.patient for event in batch],
            "sites": [event.site for event in batch],
            "recorded": [event.recorded for event in batch],
            "facts": [as_kept[id(event)] for event in batch],
            "now": now,
        },
    )
    written = await tx.execute(
        _KEEP_NEWEST,
        {
            "encounters": list(newest),
            "versions": [event.version for event in newest.values()],
            "patients": [event.patient for event in newest.values()],
            "statuses": [event.status for event in newest.values()],
            "starts": [event.start and event.start.earliest for event in newest.values()],
            "first": [first[key] for key in newest],
            "facts": [as_kept[id(event)] for event in newest.values()],
        },
    )
    owners = {key: {row.patient} for key, row in before.items()}
    # Another batch may have brought the encounter's first version, under another patient, while
    # this one waited for it: only then is it there although it was not known.
    if late := [row.encounter for row in written if row.was_there and row.encounter not in before]:
        for row in await tx.execute(_OWNERS, {"encounters": late}):
            owners.setdefault(row.encounter, set()).add(row.patient)
    return [
        Kept(
            event=event,
            owners=frozenset(owners.get(key, ())),
            void_before=key in before and Status(before[key].status) in VOID,
        )
        for key, event in newest.items()
        if key not in before or event.version > before[key].version
    ]


_CORRECT = text(
    """
    with said as (
      select * from unnest(:encounters, :versions, :patients, :excluded, :reasons, :by, :recorded)
        as t(e, v, p, x, w, b, r)
    ), kept as (
      insert into correction (encounter, version, patient, excluded, reason, by, recorded, learnt)
      select e, v, p, x, w, b, r, :now from said on conflict do nothing
    ), newest as (
      select distinct on (e) * from said order by e, v desc
    )
    update fact set excluded = x from newest
    where fact.encounter = e and fact.excluded <> x and not exists (
      select from correction c where c.encounter = e and c.version > v)
    returning fact.encounter, fact.patient
    """
).bindparams(
    bindparam("encounters", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("patients", type_=_UUIDS),
    bindparam("excluded", type_=_BOOLS),
    bindparam("reasons", type_=_TEXTS),
    bindparam("by", type_=_TEXTS),
    bindparam("recorded", type_=_TIMES),
)


async def correct(tx: Tx, batch: Sequence[CountCorrection], now: datetime) -> dict[UUID, UUID]:
    """Keep every version; of each encounter the newest speaks, also of one not yet heard of.

    Returns the encounters that count otherwise from now on, with whose they are.
    """
    rows = await tx.execute(
        _CORRECT,
        {
            "encounters": [event.encounter for event in batch],
            "versions": [event.version for event in batch],
            "patients": [event.patient for event in batch],
            "excluded": [event.excluded for event in batch],
            "reasons": [event.reason for event in batch],
            "by": [event.by for event in batch],
            "recorded": [event.recorded for event in batch],
            "now": now,
        },
    )
    return {row.encounter: row.patient for row in rows}


_IDENTIFY = text(
    """
    with said as (
      select * from unnest(:keys, :versions, :births, :deaths, :recorded) as t(k, v, b, d, r)
    ), kept as (
      insert into person_version (key, version, birth_date, death, recorded, learnt)
      select k, v, b, d, r, :now from said on conflict do nothing
    ), newest as (
      select distinct on (k) * from said order by k, v desc
    )
    update patient set person_version = v, birth_date = b, death = d, identified = r
    from newest where key = k and (person_version is null or v > person_version)
    returning key
    """
).bindparams(
    bindparam("keys", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("births", type_=_DATES),
    bindparam("deaths", type_=_TIMES),
    bindparam("recorded", type_=_TIMES),
)


async def identify(tx: Tx, persons: Sequence[Person], now: datetime) -> list[UUID]:
    """Keep every version of who is behind a key; the keys of which a newer one is known now."""
    rows = await tx.execute(
        _IDENTIFY,
        {
            "keys": [person.key for person in persons],
            "versions": [person.version for person in persons],
            "births": [person.birth_date for person in persons],
            "deaths": [person.death for person in persons],
            "recorded": [person.recorded for person in persons],
            "now": now,
        },
    )
    return [row.key for row in rows]


_LINK = text(
    """
    with said as (
      select * from unnest(:retired, :versions, :surviving, :active, :recorded)
        as t(q, v, p, a, r)
    ), kept as (
      insert into link_version (retired, version, surviving, active, recorded, learnt)
      select q, v, p, a, r, :now from said on conflict do nothing
    ), newest as (
      select distinct on (q) * from said order by q, v desc
    )
    insert into link as known (retired, version, surviving, active)
    select q, v, p, a from newest order by q
    on conflict (retired) do update set
      version = excluded.version, surviving = excluded.surviving, active = excluded.active
    where excluded.version > known.version
    returning retired
    """
).bindparams(
    bindparam("retired", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("surviving", type_=_UUIDS),
    bindparam("active", type_=_BOOLS),
    bindparam("recorded", type_=_TIMES),
)


async def link(tx: Tx, links: Sequence[Link], now: datetime) -> list[UUID]:
    """Keep every version of each link; the retired keys of which a newer one is known now."""
    rows = await tx.execute(
        _LINK,
        {
            "retired": [one.retired for one in links],
            "versions": [one.version for one in links],
            "surviving": [one.surviving for one in links],
            "active": [one.active for one in links],
            "recorded": [one.recorded for one in links],
            "now": now,
        },
    )
    return [row.retired for row in rows]


# Reading what is counted

LEDGER = (  # served by fact_patient_start
    select(fact.c.patient, fact.c.first_recorded, fact.c.excluded, fact.c.fact)
    .where(fact.c.patient == any_(bindparam("patients", type_=_UUIDS)))
    .order_by(fact.c.patient, fact.c.start, fact.c.encounter)
)
STANDINGS = (  # served by the primary key of patient
    select(patient).where(patient.c.key == any_(bindparam("patients", type_=_UUIDS)))
)


async def facts(tx: Tx, patients: Collection[UUID]) -> list[Fact]:
    """The newest version of every encounter of these keys."""
    rows = await tx.execute(LEDGER, {"patients": list(patients)})
    return [reading.fact(row.fact, row.first_recorded, excluded=row.excluded) for row in rows]


async def rows(tx: Tx, patients: Collection[UUID]) -> dict[UUID, Row]:
    found = await tx.execute(STANDINGS, {"patients": list(patients)})
    return {
        row.key: Row(
            key=row.key,
            person=None
            if row.person_version is None
            else Person(row.key, row.person_version, row.identified, row.birth_date, row.death),
            announced=Announced(
                state=State(row.state),
                face=row.face,
                held=row.held,
                since=row.since,
                entry=row.entry,
                ed_visits=row.ed_visits,
                hospital_episodes=row.hospital_episodes,
            ),
            notice=Notice(row.notice) if row.notice else None,
            sites=tuple(row.sites),
            policy=row.policy,
            sequence=row.sequence,
            merged_into=row.merged_into,
            ever=row.ever,
            episode_sequence=row.episode_sequence,
            due_at=row.due_at,
            restated=row.restated,
        )
        for row in found
    }


VERSIONS = (  # served by fact_version_patient and the primary key
    select(fact_version.c.fact, fact_version.c.recorded)
    .where(
        fact_version.c.encounter.in_(
            select(fact_version.c.encounter).where(
                fact_version.c.patient == any_(bindparam("patients", type_=_UUIDS))
            )
        )
    )
    .order_by(fact_version.c.encounter, fact_version.c.version)
)
_CORRECTIONS = select(correction).where(  # served by the primary key of correction
    correction.c.encounter == any_(bindparam("encounters", type_=_UUIDS))
)
_PERSONS = select(person_version).where(
    person_version.c.key == any_(bindparam("patients", type_=_UUIDS))
)
LINKS = text(  # served by the primary key and link_version_surviving
    """
    with recursive kin(root, key) as (
      select key, key from unnest(:keys) as asked(key)
      union
      select kin.root, other.key from kin cross join lateral (
        select surviving from link_version where retired = kin.key
        union all
        select retired from link_version where surviving = kin.key
      ) other(key)
    )
    select kin.root, kin.key, l.retired, l.version, l.surviving, l.active, l.recorded
    from kin left join link_version l on l.retired = kin.key
    """
).bindparams(bindparam("keys", type_=_UUIDS))


async def histories(tx: Tx, patients: Collection[UUID]) -> dict[UUID, History]:
    """Of each key every version ever known, also of all keys it ever was linked to."""
    if not patients:
        return {}
    linked = (await tx.execute(LINKS, {"keys": list(patients)})).all()
    roots: dict[UUID, set[UUID]] = {}
    found = {key: History([], [], []) for key in patients}
    for row in linked:
        roots.setdefault(row.key, set()).add(row.root)
        if row.retired is not None:
            found[row.root].links.append(
                Link(row.retired, row.surviving, row.version, row.active, row.recorded)
            )
    for row in await tx.execute(_PERSONS, {"patients": list(roots)}):
        person = Person(row.key, row.version, row.recorded, row.birth_date, row.death)
        for root in roots[row.key]:
            found[root].persons.append(person)
    concerned: dict[UUID, set[UUID]] = {}
    facts = [
        reading.fact(row.fact, row.recorded)
        for row in await tx.execute(VERSIONS, {"patients": list(roots)})
    ]
    for one in facts:
        concerned.setdefault(one.encounter, set()).update(roots.get(one.patient, ()))
    for one in facts:
        for root in concerned[one.encounter]:
            found[root].facts.append(one)
    for row in await tx.execute(_CORRECTIONS, {"encounters": list(concerned)}):
        said = Correction(row.encounter, row.version, row.excluded, row.recorded)
        for root in concerned[row.encounter]:
            found[root].corrections.append(said)
    return found


_EPISODES = select(episode).where(episode.c.patient == any_(bindparam("patients", type_=_UUIDS)))


async def episodes(tx: Tx, patients: Collection[UUID]) -> dict[UUID, dict[UUID, Said]]:
    """What was last said of the care episodes of each key."""
    found: dict[UUID, dict[UUID, Said]] = {}
    if patients:
        for row in await tx.execute(_EPISODES, {"patients": list(patients)}):
            found.setdefault(row.patient, {})[row.episode] = reading.said(row.said)
    return found


# Writing what was found


@dataclass(frozen=True, slots=True)
class Settled:
    """A patient row as it is to be."""

    key: UUID
    announced: Announced
    notice: Notice | None = None
    sites: tuple[str, ...] = ()
    sequence: int = 0
    merged_into: UUID | None = None
    ever: bool = False
    episode_sequence: int = 0
    due_at: datetime | None = None
    is_news: bool = field(default=False)


_PUT = text(
    """
    update patient set state = s, held = h, since = b, ed_visits = ed, hospital_episodes = ho,
      sites = string_to_array(si, ' '), notice = n, face = f, policy = :policy,
      sequence = q, entry = en, merged_into = m, ever = ev, episode_sequence = es, due_at = du,
      restated = false, changed_at = case when ne then :now else changed_at end
    from unnest(:keys, :states, :held, :since, :ed, :hospital, :sites, :notices, :faces,
                :sequences, :entries, :merged, :ever, :episodes, :due, :news)
      as t(k, s, h, b, ed, ho, si, n, f, q, en, m, ev, es, du, ne)
    where key = k
    """
).bindparams(
    bindparam("keys", type_=_UUIDS),
    bindparam("states", type_=_TEXTS),
    bindparam("held", type_=_BOOLS),
    bindparam("since", type_=_TIMES),
    bindparam("ed", type_=_INTS),
    bindparam("hospital", type_=_INTS),
    bindparam("sites", type_=_TEXTS),
    bindparam("notices", type_=_TEXTS),
    bindparam("faces", type_=_TEXTS),
    bindparam("sequences", type_=_INTS),
    bindparam("entries", type_=_INTS),
    bindparam("merged", type_=_UUIDS),
    bindparam("ever", type_=_BOOLS),
    bindparam("episodes", type_=_INTS),
    bindparam("due", type_=_TIMES),
    bindparam("news", type_=_BOOLS),
)


async def put(tx: Tx, settled: Sequence[Settled], policy: Policy, now: datetime) -> None:
    """The rows of `settled`, as they are to be."""
    if not settled:
        return
    said = [one.announced for one in settled]
    await tx.execute(
        _PUT,
        {
            "policy": policy.sha256,
            "now": now,
            "keys": [one.key for one in settled],
            "states": [one.state for one in said],
            "held": [one.held for one in said],
            "since": [one.since for one in said],
            "ed": [one.ed_visits for one in said],
            "hospital": [one.hospital_episodes for one in said],
            "sites": [" ".join(one.sites) for one in settled],
            "notices": [one.notice for one in settled],
            "faces": [one.face for one in said],
            "sequences": [one.sequence for one in settled],
            "entries": [one.entry for one in said],
            "merged": [one.merged_into for one in settled],
            "ever": [one.ever for one in settled],
            "episodes": [one.episode_sequence for one in settled],
            "due": [one.due_at for one in settled],
            "news": [one.is_news for one in settled],
        },
    )


_CHANGES = text(
    """
    insert into change (patient, sequence, state, cause, notice, held, since, ed_visits,
      hospital_episodes, sites, counted, event)
    select p, q, s, c, n, h, b, ed, ho, string_to_array(si, ' '), :now, e
    from unnest(:patients, :sequences, :states, :causes, :notices, :held, :since, :ed, :hospital,
                :sites, :events) as t(p, q, s, c, n, h, b, ed, ho, si, e)
    """
).bindparams(
    bindparam("patients", type_=_UUIDS),
    bindparam("sequences", type_=_INTS),
    bindparam("states", type_=_TEXTS),
    bindparam("causes", type_=_TEXTS),
    bindparam("notices", type_=_TEXTS),
    bindparam("held", type_=_BOOLS),
    bindparam("since", type_=_TIMES),
    bindparam("ed", type_=_INTS),
    bindparam("hospital", type_=_INTS),
    bindparam("sites", type_=_TEXTS),
    bindparam("events", type_=_TEXTS),
)


async def record(
    tx: Tx, events: Sequence[FlagChanged], settled: Mapping[UUID, Settled], now: datetime
) -> None:
    """Each announced change, with its explanation as it is now, for ever."""
    if not events:
        return
    as_is = [settled[event.patient] for event in events]
    await tx.execute(
        _CHANGES,
        {
            "patients": [event.patient for event in events],
            "sequences": [event.sequence for event in events],
            "states": [event.explanation.state for event in events],
            "causes": [event.cause for event in events],
            "notices": [event.notice for event in events],
            "held": [one.announced.held for one in as_is],
            "since": [one.announced.since for one in as_is],
            "ed": [one.announced.ed_visits for one in as_is],
            "hospital": [one.announced.hospital_episodes for one in as_is],
            "sites": [" ".join(one.sites) for one in as_is],
            "events": [event.text for event in events],
            "now": now,
        },
    )


_SAY = text(
    """
    insert into episode (patient, episode, said)
    select p, e, s from unnest(:patients, :episodes, :said) as t(p, e, s)
    on conflict (patient, episode) do update set said = excluded.said
    """
).bindparams(
    bindparam("patients", type_=_UUIDS),
    bindparam("episodes", type_=_UUIDS),
    bindparam("said", type_=_TEXTS),
)


async def say(tx: Tx, told: Mapping[tuple[UUID, UUID], Said]) -> None:
    """What notify has been told, by patient and episode."""
    if not told:
        return
    await tx.execute(
        _SAY,
        {
            "patients": [who for who, _ in told],
            "episodes": [which for _, which in told],
            "said": [reading.said_json(said) for said in told.values()],
        },
    )


# Sites

_HEAR = text(
    """
    insert into site as known (site, last_event, heard)
    select s, max(l), max(h) from unnest(:sites, :events, :heard) as t(s, l, h)
    group by s order by s
    on conflict (site) do update set
      last_event = greatest(known.last_event, excluded.last_event),
      heard = greatest(known.heard, excluded.heard)
    """
).bindparams(
    bindparam("sites", type_=_TEXTS),
    bindparam("events", type_=_TIMES),
    bindparam("heard", type_=_TIMES),
)


async def hear(tx: Tx, heard: Sequence[tuple[str, datetime, datetime]]) -> None:
    """Site, event time of its newest message, when it was received."""
    await tx.execute(
        _HEAR,
        {
            "sites": [site for site, _, _ in heard],
            "events": [event for _, event, _ in heard],
            "heard": [when for _, _, when in heard],
        },
    )


_HEARD = text("select site, last_event from site")


async def heard(tx: Tx) -> dict[str, datetime]:
    """Event time of the newest message of each site."""
    return {row.site: row.last_event for row in await tx.execute(_HEARD)}


# Questions (counting.md section 9)


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the live list."""

    patient: UUID
    state: str
    held: bool
    since: datetime | None
    ed_visits: int
    hospital_episodes: int
    sites: list[str]
    sequence: int | None
    """Of the newest announced change; None in shadow, where nothing is."""
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """What of the list is wanted. `before`: the last line of the page before."""

    states: Sequence[State]
    site: str | None = None
    changed_since: datetime | None = None
    before: tuple[datetime, UUID] | None = None
    most: int = 100


_WANTED = """
    where state = any(:states)
      and (cast(:site as text) is null or :site = any(sites))
      and (cast(:since_change as timestamptz) is null or changed_at >= :since_change)
      and (cast(:before as timestamptz) is null or (changed_at, key) < (:before, :before_key))
    order by changed_at desc, key desc
    limit :most
"""
_LISTED = "key, state, held, since, ed_visits, hospital_episodes, sites, sequence, changed_at"
_OF_LIST = (
    bindparam("states", type_=_TEXTS),
    bindparam("site", type_=Text),
    bindparam("since_change", type_=Instant),
    bindparam("before", type_=Instant),
    bindparam("before_key", type_=Uuid),
)
FLAGS = text(  # served by patient_changed
    f"select {_LISTED} from patient {_WANTED.replace('where', 'where sequence > 0 and', 1)}"  # noqa: S608 - of constants
).bindparams(*_OF_LIST)
FLAGS_THEN = text(
    f"""
    select {_LISTED} from (
      select distinct on (patient) patient as key, state, held, since, ed_visits,
        hospital_episodes, sites, sequence, counted as changed_at
      from change where counted <= :as_of order by patient, sequence desc
    ) last {_WANTED}
    """  # noqa: S608 - of constants
).bindparams(*_OF_LIST)


FLAGS_SHADOW = text(  # served by shadow_changed
    f"""
    select {_LISTED} from (
      select patient as key, state, held, since, ed_visits, hospital_episodes, sites,
        cast(null as int) as sequence, changed_at
      from shadow where run = :run
    ) there {_WANTED}
    """  # noqa: S608 - of constants
).bindparams(*_OF_LIST)


async def flags(tx: Tx, asked: Asked, as_of: datetime | None) -> list[Listed]:
    """The list, newest change first: as it stands, or as it was announced by `as_of`."""
    if as_of is None:
        return await _flags(tx, FLAGS, asked)
    return await _flags(tx, FLAGS_THEN, asked, as_of=as_of)


async def shadow_flags(tx: Tx, run: int, asked: Asked) -> list[Listed]:
    """The list as it would be under a policy in shadow."""
    return await _flags(tx, FLAGS_SHADOW, asked, run=run)


async def _flags(tx: Tx, query: TextClause, asked: Asked, **more: object) -> list[Listed]:
    before = asked.before or (None, None)
    wanted = {
        "states": asked.states,
        "site": asked.site,
        "since_change": asked.changed_since,
        "before": before[0],
        "before_key": before[1],
        "most": asked.most,
    }
    found = await tx.execute(query, wanted | more)
    return [
        Listed(
            patient=row.key,
            state=row.state,
            held=row.held,
            since=row.since,
            ed_visits=row.ed_visits,
            hospital_episodes=row.hospital_episodes,
            sites=row.sites,
            sequence=row.sequence,
            changed_at=row.changed_at,
        )
        for row in found
    ]


CHANGES = (  # served by the primary key of change
    select(change.c.sequence, change.c.cause, change.c.notice, change.c.counted, change.c.event)
    .where(change.c.patient == bindparam("patient", type_=Uuid))
    .order_by(change.c.sequence)
)


@dataclass(frozen=True, slots=True)
class Change:
    sequence: int
    cause: str
    notice: str
    counted: datetime
    event: str = field(repr=False)


async def changes(tx: Tx, key: UUID) -> list[Change]:
    """All that was announced of a patient, oldest first."""
    found = await tx.execute(CHANGES, {"patient": key})
    return [Change(row.sequence, row.cause, row.notice, row.counted, row.event) for row in found]


# Rebuilding from ingest's store (counting.md section 9)

_KEEP_AGAIN = text(
    """
    insert into fact_version as known (encounter, version, patient, site, recorded, learnt, fact)
    select e, v, p, s, r, :now, f
    from unnest(:encounters, :versions, :patients, :sites, :recorded, :facts) as t(e, v, p, s, r, f)
    order by e, v
    on conflict (encounter, version) do update set patient = excluded.patient,
      site = excluded.site, recorded = excluded.recorded, fact = excluded.fact
    where (known.patient, known.site, known.recorded, known.fact)
      is distinct from (excluded.patient, excluded.site, excluded.recorded, excluded.fact)
    """
).bindparams(
    bindparam("encounters", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("patients", type_=_UUIDS),
    bindparam("sites", type_=_TEXTS),
    bindparam("recorded", type_=_TIMES),
    bindparam("facts", type_=_TEXTS),
)
_NEWEST_FACTS = text(
    """
    insert into fact as known (encounter, version, patient, status, start, first_recorded, fact,
      excluded)
    select distinct on (v.encounter) v.encounter, v.version, v.patient, v.fact::jsonb->>'status',
      cast(v.fact::jsonb->'start'->>'earliest' as timestamptz), f.first, v.fact, coalesce(
        (select excluded from correction c where c.encounter = v.encounter
         order by version desc limit 1), false)
    from fact_version v join (
      select encounter, min(recorded) as first from fact_version
      where encounter = any(:encounters) group by encounter
    ) f using (encounter)
    where v.encounter = any(:encounters)
    order by v.encounter, v.version desc
    on conflict (encounter) do update set version = excluded.version, patient = excluded.patient,
      status = excluded.status, start = excluded.start,
      first_recorded = excluded.first_recorded, fact = excluded.fact
    where (known.version, known.patient, known.first_recorded, known.fact)
      is distinct from (excluded.version, excluded.patient, excluded.first_recorded, excluded.fact)
    """
).bindparams(bindparam("encounters", type_=_UUIDS))


async def keep_again(tx: Tx, batch: Sequence[EncounterRecorded], now: datetime) -> None:
    """Each of these versions is as it is stated now; of each encounter the newest speaks."""
    versions = {(event.encounter, event.version): event for event in batch}
    await tx.execute(
        _KEEP_AGAIN,
        {
            "encounters": [encounter for encounter, _ in versions],
            "versions": [version for _, version in versions],
            "patients": [event.patient for event in versions.values()],
            "sites": [event.site for event in versions.values()],
            "recorded": [event.recorded for event in versions.values()],
            "facts": [reading.kept(event) for event in versions.values()],
            "now": now,
        },
    )
    await tx.execute(
        _NEWEST_FACTS, {"encounters": sorted({encounter for encounter, _ in versions})}
    )


_IDENTIFY_AGAIN = text(
    """
    insert into person_version as known (key, version, birth_date, death, recorded, learnt)
    select k, v, b, d, r, :now
    from unnest(:keys, :versions, :births, :deaths, :recorded) as t(k, v, b, d, r)
    order by k, v
    on conflict (key, version) do update set birth_date = excluded.birth_date,
      death = excluded.death, recorded = excluded.recorded
    """
).bindparams(
    bindparam("keys", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("births", type_=_DATES),
    bindparam("deaths", type_=_TIMES),
    bindparam("recorded", type_=_TIMES),
)
_NEWEST_PERSONS = text(
    """
    update patient p set person_version = n.version, birth_date = n.birth_date, death = n.death,
      identified = n.recorded
    from (select distinct on (key) * from person_version where key = any(:keys)
          order by key, version desc) n
    where p.key = n.key
    """
).bindparams(bindparam("keys", type_=_UUIDS))


async def identify_again(tx: Tx, persons: Sequence[Person], now: datetime) -> None:
    """Each of these versions is as it is stated now; of each person the newest speaks."""
    versions = {(person.key, person.version): person for person in persons}
    await tx.execute(
        _IDENTIFY_AGAIN,
        {
            "keys": [key for key, _ in versions],
            "versions": [version for _, version in versions],
            "births": [person.birth_date for person in versions.values()],
            "deaths": [person.death for person in versions.values()],
            "recorded": [person.recorded for person in versions.values()],
            "now": now,
        },
    )
    await tx.execute(_NEWEST_PERSONS, {"keys": sorted({key for key, _ in versions})})


_LINK_AGAIN = text(
    """
    insert into link_version as known (retired, version, surviving, active, recorded, learnt)
    select q, v, p, a, r, :now
    from unnest(:retired, :versions, :surviving, :active, :recorded) as t(q, v, p, a, r)
    order by q, v
    on conflict (retired, version) do update set surviving = excluded.surviving,
      active = excluded.active, recorded = excluded.recorded
    """
).bindparams(
    bindparam("retired", type_=_UUIDS),
    bindparam("versions", type_=_INTS),
    bindparam("surviving", type_=_UUIDS),
    bindparam("active", type_=_BOOLS),
    bindparam("recorded", type_=_TIMES),
)
_NEWEST_LINKS = text(
    """
    insert into link (retired, version, surviving, active)
    select distinct on (retired) retired, version, surviving, active from link_version
    where retired = any(:retired) order by retired, version desc
    on conflict (retired) do update set version = excluded.version,
      surviving = excluded.surviving, active = excluded.active
    """
).bindparams(bindparam("retired", type_=_UUIDS))


async def link_again(tx: Tx, links: Sequence[Link], now: datetime) -> None:
    """Each of these versions is as it is stated now; of each link the newest speaks."""
    versions = {(link.retired, link.version): link for link in links}
    await tx.execute(
        _LINK_AGAIN,
        {
            "retired": [retired for retired, _ in versions],
            "versions": [version for _, version in versions],
            "surviving": [link.surviving for link in versions.values()],
            "active": [link.active for link in versions.values()],
            "recorded": [link.recorded for link in versions.values()],
            "now": now,
        },
    )
    await tx.execute(_NEWEST_LINKS, {"retired": sorted({retired for retired, _ in versions})})


_HEAR_REBUILD = text(
    "insert into rebuild (id, heard) values (:id, :now) on conflict do nothing"
).bindparams(bindparam("id", type_=Uuid))
_CAME_AGAIN = {
    kind: text(
        f"""
        with new as (
          insert into restated (rebuild, kind, key, version)
          select :id, :kind, k, v from unnest(:keys, :versions) as t(k, v)
          where exists (select from rebuild where id = :id and completed is null)
          order by k, v
          on conflict do nothing returning key
        )
        update rebuild set {kind} = {kind} + (select count(*) from new) where id = :id
        """  # noqa: S608 - of constants
    ).bindparams(
        bindparam("id", type_=Uuid),
        bindparam("kind", type_=Text),
        bindparam("keys", type_=_UUIDS),
        bindparam("versions", type_=_INTS),
    )
    for kind in ("persons", "links", "encounters")
}
_REBUILD_ENDED = text(
    "update rebuild set begun = :begun, persons_due = :persons, links_due = :links,"
    " encounters_due = :encounters where id = :id"
).bindparams(bindparam("id", type_=Uuid))
_REBUILD_IS_WHOLE = text(
    "select begun from rebuild where id = :id and completed is null"
    " and (persons, links, encounters) = (persons_due, links_due, encounters_due) for update"
).bindparams(bindparam("id", type_=Uuid))


async def came_again(
    tx: Tx, rebuild: UUID, kind: str, versions: Collection[tuple[UUID, int]], now: datetime
) -> None:
    """Note that these versions were stated again, each once."""
    await tx.execute(_HEAR_REBUILD, {"id": rebuild, "now": now})
    said = {
        "id": rebuild,
        "kind": kind,
        "keys": [key for key, _ in versions],
        "versions": [version for _, version in versions],
    }
    await tx.execute(_CAME_AGAIN[kind], said)


async def rebuild_ended(tx: Tx, event: RestatementEnded, now: datetime) -> None:
    """How many versions are to come in all."""
    await tx.execute(_HEAR_REBUILD, {"id": event.restatement, "now": now})
    due = {"persons": event.persons, "links": event.links, "encounters": event.encounters}
    await tx.execute(_REBUILD_ENDED, {"id": event.restatement, "begun": event.begun} | due)


async def rebuild_is_whole(tx: Tx, rebuild: UUID) -> datetime | None:
    """When it was begun, if all of it has come and that was not yet noted."""
    found: datetime | None = (
        await tx.execute(_REBUILD_IS_WHOLE, {"id": rebuild})
    ).scalar_one_or_none()
    return found


_LOCK_ALL = text("select count(*) from (select key from patient order by key for update) everybody")


def _drop(kind: str, table: str, key: str, beyond: str) -> TextClause:
    """Versions that were not stated again, between those that were; `beyond`: and which others."""
    return text(
        f"""
        with came as (
          select key, min(version) as first, max(version) as last from restated
          where rebuild = :id and kind = '{kind}' group by key
        )
        delete from {table} v
        using {table} w left join came on came.key = w.{key}
        where v.{key} = w.{key} and v.version = w.version
          and not exists (select from restated r where r.rebuild = :id and r.kind = '{kind}'
                          and r.key = v.{key} and r.version = v.version)
          and (v.version between came.first and came.last or {beyond})
        returning v.{key} as key
        """  # noqa: S608 - of constants
    ).bindparams(bindparam("id", type_=Uuid), bindparam("before", type_=Instant))


_BEYOND = "v.recorded < :before and v.version > coalesce(came.last, 0)"
_DROP_FACTS = _drop("encounters", "fact_version", "encounter", _BEYOND)
_DROP_LINKS = _drop("links", "link_version", "retired", _BEYOND)
_DROP_PERSONS = _drop("persons", "person_version", "key", f"came.last is not null and {_BEYOND}")
_NO_FACTS = text(
    "delete from fact f where encounter = any(:encounters)"
    " and not exists (select from fact_version v where v.encounter = f.encounter)"
).bindparams(bindparam("encounters", type_=_UUIDS))
_NO_LINKS = text(
    "delete from link k where retired = any(:retired)"
    " and not exists (select from link_version v where v.retired = k.retired)"
).bindparams(bindparam("retired", type_=_UUIDS))


async def drop_unknown(tx: Tx, rebuild: UUID, before: datetime) -> int:
    """Lock everybody, and drop the versions that ingest does not have; how many.

    Of what it stated: those between, and those beyond that were recorded `before`. Of an encounter
    or link of which it stated nothing: all recorded `before`. Older ones than the first it can
    state again are kept, and so is whoever it does not know: they have nothing that counts.
    """
    await tx.execute(_LOCK_ALL)
    said = {"id": rebuild, "before": before}
    encounters = [row.key for row in await tx.execute(_DROP_FACTS, said)]
    retired = [row.key for row in await tx.execute(_DROP_LINKS, said)]
    persons = [row.key for row in await tx.execute(_DROP_PERSONS, said)]
    await tx.execute(_NO_FACTS, {"encounters": sorted(set(encounters))})
    await tx.execute(_NEWEST_FACTS, {"encounters": sorted(set(encounters))})
    await tx.execute(_NO_LINKS, {"retired": sorted(set(retired))})
    await tx.execute(_NEWEST_LINKS, {"retired": sorted(set(retired))})
    await tx.execute(_NEWEST_PERSONS, {"keys": sorted(set(persons))})
    return len(encounters) + len(retired) + len(persons)


_COUNT_ALL_AGAIN = text(
    "update patient set restated = true, due_at = :now where person_version is not null"
)
_FORGET_RESTATED = text("delete from restated where rebuild = :id").bindparams(
    bindparam("id", type_=Uuid)
)
_REBUILD_COMPLETE = text("update rebuild set completed = :now where id = :id").bindparams(
    bindparam("id", type_=Uuid)
)


async def count_all_again(tx: Tx, rebuild: UUID, now: datetime) -> int:
    """Everybody is due, quietly; the rebuild is complete. How many keys."""
    found = (await tx.execute(_COUNT_ALL_AGAIN, {"now": now})).rowcount
    await tx.execute(_FORGET_RESTATED, {"id": rebuild})
    await tx.execute(_REBUILD_COMPLETE, {"id": rebuild, "now": now})
    return found


# Back-tests (CT-71)

_BACKTESTS_LOCK = lock_number("screening backtests")
_KEYS = text(  # served by the primary key of patient
    "select key from patient where key > :after order by key limit :most"
).bindparams(bindparam("after", type_=Uuid))
_PATIENTS = text("select count(*) from patient")


async def patients(tx: Tx) -> int:
    """How many patient keys there are, retired ones included."""
    found: int = (await tx.execute(_PATIENTS)).scalar_one()
    return found


async def keys_after(tx: Tx, after: UUID, most: int) -> list[UUID]:
    """Patient keys in their order, retired ones included."""
    return [row.key for row in await tx.execute(_KEYS, {"after": after, "most": most})]


@dataclass(frozen=True, slots=True)
class Trial:
    """A back-test as it was asked for, and what became of it."""

    id: UUID
    asked_by: str
    policy: str
    """The canonical form; of `against` too, if there is one."""
    against: str | None
    first: date
    last: date
    state: str
    created: datetime
    finished: datetime | None = None
    attempts: int = 0
    percent: int = 0
    known_at: datetime | None = None
    result: str | None = None
    error: str | None = None


_TRIAL = (
    "id, asked_by, policy, against, first, last, state, created, finished, attempts, percent,"
    " known_at, error"
)
_ASK_TRIAL = text(
    "insert into backtest (id, asked_by, policy, against, first, last, created)"
    " select :id, :by, :policy, :against, :first, :last, :now"
    " where (select count(*) from backtest where state in ('waiting', 'running')) < :most"
).bindparams(bindparam("id", type_=Uuid), bindparam("against", type_=Text))
_ONE_TRIAL = text(f"select {_TRIAL}, result from backtest where id = :id").bindparams(  # noqa: S608
    bindparam("id", type_=Uuid)
)
_TRIALS = text(f"select {_TRIAL} from backtest order by created desc, id")  # noqa: S608 - constants
_TRIAL_WAITS = text("select exists (select from backtest where state in ('waiting', 'running'))")
_ALONE = text("select pg_try_advisory_xact_lock(:lock)")
_TAKE_TRIAL = text(
    f"""
    update backtest set state = 'running', attempts = attempts + 1, percent = 0, known_at = :now
    where id = (select id from backtest where state in ('waiting', 'running')
                order by state = 'waiting', created, id limit 1)
    returning {_TRIAL}
    """  # noqa: S608 - constants
)
_TRIAL_PROGRESS = text("update backtest set percent = :percent where id = :id").bindparams(
    bindparam("id", type_=Uuid)
)
_PUT_BACK = text(
    "update backtest set state = 'waiting', attempts = attempts - 1, percent = 0 where id = :id"
).bindparams(bindparam("id", type_=Uuid))
_END_TRIAL = text(
    "update backtest set state = :state, percent = 100, result = :result, error = :error,"
    " finished = :now where id = :id"
).bindparams(
    bindparam("id", type_=Uuid), bindparam("result", type_=Text), bindparam("error", type_=Text)
)
_FORGET_TRIALS = text(
    "delete from backtest where id in (select id from backtest where state in ('done', 'failed')"
    " order by finished desc, id offset :kept)"
)


async def ask_trial(tx: Tx, trial: Trial, most: int) -> bool:
    """Have a back-test wait for its turn; False if `most` wait or run already."""
    asked = {
        "id": trial.id,
        "by": trial.asked_by,
        "policy": trial.policy,
        "against": trial.against,
        "first": trial.first,
        "last": trial.last,
        "now": trial.created,
        "most": most,
    }
    return (await tx.execute(_ASK_TRIAL, asked)).rowcount == 1


async def trial(tx: Tx, id_: UUID) -> Trial | None:
    row = (await tx.execute(_ONE_TRIAL, {"id": id_})).one_or_none()
    return None if row is None else Trial(**row._mapping)  # noqa: SLF001


async def trials(tx: Tx) -> list[Trial]:
    """Those that are kept, newest first, without their results."""
    return [Trial(**row._mapping) for row in await tx.execute(_TRIALS)]  # noqa: SLF001


async def trial_waits(tx: Tx) -> bool:
    found: bool = (await tx.execute(_TRIAL_WAITS)).scalar_one()
    return found


async def alone(tx: Tx) -> bool:
    """Whether nobody else runs back-tests while `tx` lasts. Dead processes hold nothing."""
    found: bool = (await tx.execute(_ALONE, {"lock": _BACKTESTS_LOCK})).scalar_one()
    return found


async def take_trial(tx: Tx, now: datetime) -> Trial | None:
    """The next one to run, for whoever is `alone`: one that was broken off goes first."""
    row = (await tx.execute(_TAKE_TRIAL, {"now": now})).one_or_none()
    return None if row is None else Trial(**row._mapping)  # noqa: SLF001


async def trial_at(tx: Tx, id_: UUID, percent: int) -> None:
    await tx.execute(_TRIAL_PROGRESS, {"id": id_, "percent": percent})


async def put_back_trial(tx: Tx, id_: UUID) -> None:
    """As if it had not been taken."""
    await tx.execute(_PUT_BACK, {"id": id_})


async def end_trial(
    tx: Tx, id_: UUID, now: datetime, kept: int, *, result: str | None, error: str | None
) -> None:
    """Keep what came of it; beyond the newest `kept` results the older ones are forgotten."""
    ended = {
        "id": id_,
        "now": now,
        "state": "failed" if result is None else "done",
        "result": result,
        "error": error,
    }
    await tx.execute(_END_TRIAL, ended)
    await tx.execute(_FORGET_TRIALS, {"kept": kept})
