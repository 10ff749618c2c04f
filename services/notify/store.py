"""All SQL of notify. Patients are locked in key order, then cards, then clinic clocks."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import ARRAY, DateTime, Integer, Row, Text, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import insert

from schemas.episode_changed_v1 import EpisodeChanged
from schemas.flag_changed_v1 import FlagChanged
from schemas.patient_identified_v1 import PatientIdentified
from schemas.site_heard_v1 import SiteHeard
from services.notify import tables
from services.notify.card import (
    Card,
    Cause,
    Dismissal,
    EpisodeNews,
    Moment,
    Note,
    Status,
    Tier,
    What,
    Why,
)
from services.notify.consent import Code
from services.notify.correction import Correction, Reason
from services.plumbing.db import Tx

KEY = "key"
"""Key id of the token that is a patient key itself, so that a Consent may name a patient by it."""

_uuids = ARRAY(Uuid)
_texts = ARRAY(Text)
_instants = ARRAY(DateTime(timezone=True))

Box = tuple[str, str]
"""(key id, box), sealed."""


# --- what the store hands out -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PatientRow:
    key: UUID
    demographics: Mapping[str, Box] = field(repr=False)
    attributed: tuple[str, ...]
    known: bool
    """patient.identified has come."""


@dataclass(frozen=True, slots=True)
class StandingRow:
    patient: UUID
    sequence: int
    explanation: str = field(repr=False)
    state: str
    cause: Cause
    retracts: int | None
    merged_into: UUID | None
    spell: int
    quiet: bool
    received: datetime | None


@dataclass(frozen=True, slots=True)
class PanelRow:
    id: UUID
    patient: UUID
    clinic: str
    boxes: Mapping[str, Box] = field(repr=False)
    language: str
    nurse: str | None
    starts: date | None
    ends: date | None
    superseded: datetime | None
    confirmed_on: datetime | None


@dataclass(frozen=True, slots=True)
class ConsentRow:
    uid: UUID
    id: str
    version: int
    tenant: str
    status: str
    body: Box = field(repr=False)
    recorded: datetime
    disputed: bool
    refused: bool = False
    """No valid R4, so never in force; it holds until a person has looked at it (CS-57)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of one patient, across all its keys."""

    patient: UUID
    """The surviving key."""
    keys: tuple[UUID, ...]
    rows: tuple[PatientRow, ...]
    standing: StandingRow | None
    episodes: tuple[EpisodeNews, ...]
    panel: tuple[PanelRow, ...]
    """Of all clinics; a request sees its own clinic's."""
    consents: tuple[ConsentRow, ...]
    assessed: Mapping[str, frozenset[Code]] = field(default_factory=dict, repr=False)
    """`Encounter/id` → labels a person gave it because its hospital gave none (CS-36)."""


@dataclass(frozen=True, slots=True)
class Outlook:
    outcome: str
    reasons: frozenset[str]
    basis: frozenset[str]
    sequence: int
    reads: str
    """Digest of what a card said; empty: nothing, or not known."""


@dataclass(frozen=True, slots=True)
class FlagRow:
    id: UUID
    clinic: str
    patient: UUID
    version: int
    state: str
    status: str
    since: datetime | None
    updated: datetime


@asynccontextmanager
async def acting(tx: Tx, tenant: str) -> AsyncIterator[None]:
    """Inside, `tx` may do only what a request of `tenant` may (CS-91); afterwards, as before."""
    before = (await tx.execute(_WHO)).one()
    await tx.execute(_BECOME, {"role": "passerelle_notify_request", "tenant": tenant})
    yield
    await tx.execute(_BECOME, {"role": before.role, "tenant": before.tenant})


_WHO = text(
    "select current_user::text as role, current_setting('passerelle.tenant', true) as tenant"
)
_BECOME = text(
    "select set_config('role', :role, true), set_config('passerelle.tenant', :tenant, true)"
)


# --- patients, keys, tokens -------------------------------------------------------------------

_ADD_PATIENTS = text(
    "insert into patient (key) select unnest(:keys) on conflict do nothing"
).bindparams(bindparam("keys", type_=_uuids))
_ADD_KEYS = text(
    "insert into token (key_id, digest, patient)"
    " select :key_id, k::text, k from unnest(:keys) k on conflict do nothing"
).bindparams(bindparam("keys", type_=_uuids))
_LOCK = text("select key from patient where key = any(:keys) order by key for update").bindparams(
    bindparam("keys", type_=_uuids)
)
# Served by patient_pkey and patient_merged_into. Every key of the persons behind `keys`.
_FAMILY = text(
    "with recursive up as ("
    "  select key as start, key, merged_into from patient where key = any(:keys)"
    "  union select up.start, p.key, p.merged_into from patient p join up on p.key = up.merged_into"
    "), root as (select start, key from up where merged_into is null), down as ("
    "  select key as root, key from root"
    "  union select down.root, p.key from patient p join down on p.merged_into = down.key"
    ") select root, key from down order by root, key"
).bindparams(bindparam("keys", type_=_uuids))


async def lock(tx: Tx, patients: Iterable[UUID]) -> dict[UUID, tuple[UUID, ...]]:
    """Hold the persons behind `patients` until the commit: surviving key → all their keys."""
    wanted = sorted(set(patients))
    if not wanted:
        return {}
    await tx.execute(_ADD_PATIENTS, {"keys": wanted})
    await tx.execute(_ADD_KEYS, {"key_id": KEY, "keys": wanted})
    family = await families(tx, wanted)
    everyone = sorted({key for keys in family.values() for key in keys} | set(wanted))
    await tx.execute(_LOCK, {"keys": everyone})
    return await families(tx, wanted)


async def families(tx: Tx, patients: Iterable[UUID]) -> dict[UUID, tuple[UUID, ...]]:
    """Surviving key → all keys of that person, for the persons behind `patients`."""
    found: dict[UUID, list[UUID]] = defaultdict(list)
    for row in await tx.execute(_FAMILY, {"keys": sorted(set(patients))}):
        found[row.root].append(row.key)
    return {root: tuple(keys) for root, keys in found.items()}


_IDENTIFIED = text(
    "update patient p set version = n.version, demographics = n.demographics,"
    "  attributed = n.attributed, sites = n.sites"
    " from jsonb_to_recordset(cast(:rows as jsonb))"
    "  as n (key uuid, version int, demographics jsonb, attributed text[], sites text[])"
    " where p.key = n.key and p.version < n.version returning p.key"
)
_ADD_TOKENS = text(
    "insert into token (key_id, digest, patient)"
    " select * from unnest(:key_ids, :digests, :patients) on conflict do nothing"
).bindparams(
    bindparam("key_ids", type_=_texts),
    bindparam("digests", type_=_texts),
    bindparam("patients", type_=_uuids),
)


Token = tuple[str, str]
"""(key id, digest)."""


async def keep_identified(
    tx: Tx, events: Sequence[PatientIdentified], tokens: Mapping[UUID, Iterable[Token]]
) -> None:
    """What is newest of each patient: tokens, sealed demographics, clinics recorded for them.

    Tokens are added only: a patient loses none, and while a key changes panels and Consents may
    still go by those of the old one (CS-95); a rotation takes these out at its end.
    """
    newest: dict[UUID, PatientIdentified] = {}
    for event in events:
        if event.patient not in newest or newest[event.patient].version < event.version:
            newest[event.patient] = event
    rows = [
        {
            "key": str(e.patient),
            "version": e.version,
            "demographics": {n: [s.key_id, s.box] for n, s in e.demographics.items()},
            "attributed": list(e.attributed),
            "sites": list(e.sites),
        }
        for e in newest.values()
    ]
    taken = await tx.execute(_IDENTIFIED, {"rows": orjson.dumps(rows).decode()})
    keys = [row.key for row in taken]
    told = [(*token, key) for key in keys for token in tokens[key]]
    await tx.execute(
        _ADD_TOKENS,
        {
            "key_ids": [one[0] for one in told],
            "digests": [one[1] for one in told],
            "patients": [one[2] for one in told],
        },
    )


_ALSO_KNOWN = text(
    "insert into token (key_id, digest, patient)"
    " select n.key_id, n.digest, t.patient from token t"
    " join unnest(:olds, :old_digests) o (key_id, digest)"
    "  on t.key_id = o.key_id and t.digest = o.digest"
    " cross join unnest(:key_ids, :digests) n (key_id, digest) on conflict do nothing"
).bindparams(
    bindparam("olds", type_=_texts),
    bindparam("old_digests", type_=_texts),
    bindparam("key_ids", type_=_texts),
    bindparam("digests", type_=_texts),
)


async def also_known(tx: Tx, tokens: Sequence[Token]) -> int:
    """Whoever has one of `tokens`, all of one identifier, has the first of them too (HA-98)."""
    if len(tokens) < 2:
        return 0
    first, others = tokens[:1], tokens[1:]
    added = await tx.execute(
        _ALSO_KNOWN,
        {
            "olds": [key_id for key_id, _ in others],
            "old_digests": [digest for _, digest in others],
            "key_ids": [key_id for key_id, _ in first],
            "digests": [digest for _, digest in first],
        },
    )
    return added.rowcount


_MERGE = text(
    "update patient set merged_into = :into, merge_version = :version,"
    " merged_at = case when cast(:into as uuid) is null then merged_at else :at end"
    " where key = :retired and merge_version < :version returning key"
)
_MERGED_AT = text("select merged_at from patient where key = :key")


async def merge(tx: Tx, retired: UUID, into: UUID | None, version: int, at: datetime) -> bool:
    """Link `retired` to a surviving key, or undo that; False if it is older than what is known."""
    row = await tx.execute(_MERGE, {"retired": retired, "into": into, "version": version, "at": at})
    return row.first() is not None


async def merged_at(tx: Tx, key: UUID) -> datetime | None:
    return (await tx.execute(_MERGED_AT, {"key": key})).scalar_one_or_none()


_DISPUTE = text(
    "update consent c set disputed_with = t2.other from ("
    "  select t.key_id, t.digest, case when t.patient = :a then cast(:b as uuid)"
    "   else cast(:a as uuid) end as other"
    "  from token t where t.patient in (:a, :b)) t2"
    " where c.latest and c.key_id = t2.key_id and c.digest = t2.digest and c.recorded > :since"
)


async def dispute(tx: Tx, a: UUID, b: UUID, since: datetime) -> None:
    """CS-53: Consents of either key recorded since their merge speak against both."""
    await tx.execute(_DISPUTE, {"a": a, "b": b, "since": since})


# --- standings and episodes -------------------------------------------------------------------

_STANDING = (
    "select distinct on (patient) patient, sequence, explanation, state, cause, retracts,"
    " merged_into, spell, quiet, received from standing where patient = any(:keys)"
)
_NEWEST_STANDINGS = text(f"{_STANDING} order by patient, sequence desc").bindparams(
    bindparam("keys", type_=_uuids)
)
_STANDINGS_AT = text(
    "select s.patient, s.sequence, s.explanation, s.state, s.cause, s.retracts, s.merged_into,"
    " s.spell, s.quiet, s.received from standing s"
    " join unnest(:keys, :sequences) as n (patient, sequence)"
    "  on n.patient = s.patient and n.sequence = s.sequence"
).bindparams(bindparam("keys", type_=_uuids), bindparam("sequences", type_=ARRAY(Integer)))
_ADD_STANDINGS = text(
    "insert into standing (patient, sequence, explanation, state, cause, retracts, merged_into,"
    "  spell, quiet, received, counted, arrived)"
    " select patient, sequence, explanation, state, cause, retracts, merged_into, spell, quiet,"
    "  received, counted, :now from jsonb_to_recordset(cast(:rows as jsonb)) as n ("
    "  patient uuid, sequence int, explanation text, state text, cause text, retracts int,"
    "  merged_into uuid, spell int, quiet boolean, received timestamptz, counted timestamptz)"
    " on conflict do nothing"
)


def _standing_row(row: Row[Any]) -> StandingRow:
    return StandingRow(
        patient=row.patient,
        sequence=row.sequence,
        explanation=row.explanation,
        state=row.state,
        cause=Cause(row.cause),
        retracts=row.retracts,
        merged_into=row.merged_into,
        spell=row.spell,
        quiet=row.quiet,
        received=row.received,
    )


async def newest_standings(tx: Tx, keys: Iterable[UUID]) -> dict[UUID, StandingRow]:
    rows = await tx.execute(_NEWEST_STANDINGS, {"keys": list(keys)})
    return {row.patient: _standing_row(row) for row in rows}


async def standings_at(
    tx: Tx, wanted: Iterable[tuple[UUID, int]]
) -> dict[tuple[UUID, int], StandingRow]:
    """Standings as they were at given sequences, where they are kept."""
    pairs = sorted(set(wanted))
    rows = await tx.execute(
        _STANDINGS_AT, {"keys": [p for p, _ in pairs], "sequences": [s for _, s in pairs]}
    )
    return {(row.patient, row.sequence): _standing_row(row) for row in rows}


async def keep_standings(
    tx: Tx, rows: Sequence[tuple[FlagChanged, int, bool]], now: datetime
) -> None:
    """Each event with its spell and whether that began quietly."""
    said = [
        {
            "patient": str(e.patient),
            "sequence": e.sequence,
            "explanation": e.explanation.model_dump_json(),
            "state": e.explanation.state,
            "cause": e.cause,
            "retracts": e.retracts,
            "merged_into": e.merged_into,
            "spell": spell,
            "quiet": quiet,
            "received": e.received,
            "counted": e.counted,
        }
        for e, spell, quiet in rows
    ]
    await tx.execute(_ADD_STANDINGS, {"rows": orjson.dumps(said).decode(), "now": now})


_KEEP_EPISODES = text(
    "insert into episode (patient, episode, sequence, moment, at, site, in_hospital, ended, void,"
    "  joined_into, encounters, labels)"
    " select * from jsonb_to_recordset(cast(:rows as jsonb)) as n (patient uuid, episode uuid,"
    "  sequence int, moment text, at timestamptz, site text, in_hospital boolean, ended boolean,"
    "  void boolean, joined_into uuid, encounters uuid[], labels jsonb)"
    " on conflict (patient, episode) do update set sequence = excluded.sequence,"
    "  moment = excluded.moment, at = excluded.at, site = excluded.site,"
    "  in_hospital = excluded.in_hospital, ended = excluded.ended, void = excluded.void,"
    "  joined_into = excluded.joined_into, encounters = excluded.encounters,"
    "  labels = excluded.labels"
    " where episode.sequence < excluded.sequence"
)


async def keep_episodes(tx: Tx, events: Sequence[tuple[EpisodeChanged, EpisodeNews]]) -> None:
    """The newest state of each episode."""
    newest: dict[tuple[UUID, UUID], dict[str, Any]] = {}
    for event, news in sorted(events, key=lambda pair: pair[0].sequence):
        newest[event.patient, news.episode] = {
            "patient": event.patient,
            "episode": news.episode,
            "sequence": news.sequence,
            "moment": news.moment,
            "at": news.at,
            "site": news.site,
            "in_hospital": news.in_hospital,
            "ended": news.ended,
            "void": news.void,
            "joined_into": news.joined_into,
            "encounters": list(news.encounters),
            "labels": None
            if news.labels is None
            else [[c.system, c.code] for c in sorted(news.labels)],
        }
    await tx.execute(_KEEP_EPISODES, {"rows": orjson.dumps(list(newest.values())).decode()})


# --- everything of a patient ------------------------------------------------------------------

_PATIENTS = text(
    "select key, version, demographics, attributed from patient where key = any(:keys)"
).bindparams(bindparam("keys", type_=_uuids))
_EPISODES = text(
    "select * from episode where patient = any(:keys) order by patient, sequence"
).bindparams(bindparam("keys", type_=_uuids))
# Served by token_patient and panel_token.
_PANEL_OF = text(
    "select t.patient, p.id, p.clinic, p.boxes, p.language, p.nurse, p.starts, p.ends,"
    "  p.superseded, p.confirmed_on"
    " from token t join panel p on p.key_id = t.key_id and p.digest = t.digest"
    " where t.patient = any(:keys) order by p.clinic, p.recorded, p.id"
).bindparams(bindparam("keys", type_=_uuids))
# Served by token_patient and consent_token; disputed ones by consent_disputed, refused ones by
# refused_consent_token.
_CONSENTS_OF = text(
    "select t.patient, c.uid, c.id, c.version, c.tenant, c.status, c.body_key_id, c.body,"
    "  c.recorded, c.disputed_with is not null as disputed, false as refused"
    " from token t join consent c on c.key_id = t.key_id and c.digest = t.digest"
    " where t.patient = any(:keys) and c.latest"
    " union select c.disputed_with, c.uid, c.id, c.version, c.tenant, c.status, c.body_key_id,"
    "  c.body, c.recorded, true, false from consent c"
    " where c.disputed_with = any(:keys) and c.latest"
    " union select t.patient, r.id, 'refused-' || r.id, 0, r.tenant, 'active', r.body_key_id,"
    "  r.body, r.received, false, true"
    " from token t join refused_consent r on r.key_id = t.key_id and r.digest = t.digest"
    " where t.patient = any(:keys) and r.resolved is null and r.holds"
).bindparams(bindparam("keys", type_=_uuids))

_ASSESSED_OF = text(
    "select distinct on (encounter) patient, encounter, labels from assessment"
    " where patient = any(:keys) order by encounter, position desc"
).bindparams(bindparam("keys", type_=_uuids))


def _boxes(said: Mapping[str, Sequence[str]]) -> dict[str, Box]:
    return {name: (box[0], box[1]) for name, box in said.items()}


async def facts(tx: Tx, patients: Iterable[UUID]) -> dict[UUID, Facts]:
    """Of each person behind `patients`, by surviving key. Seven statements, however many."""
    family = await families(tx, patients)
    root_of = {key: root for root, keys in family.items() for key in keys}
    keys = {"keys": sorted(root_of)}
    rows: dict[UUID, list[PatientRow]] = defaultdict(list)
    for row in await tx.execute(_PATIENTS, keys):
        rows[root_of[row.key]].append(
            PatientRow(row.key, _boxes(row.demographics), tuple(row.attributed), row.version > 0)
        )
    standings = await newest_standings(tx, family)
    episodes: dict[UUID, list[EpisodeNews]] = defaultdict(list)
    for row in sorted(
        await tx.execute(_EPISODES, keys), key=lambda r: r.patient != root_of[r.patient]
    ):
        known = episodes[root_of[row.patient]]
        if all(news.episode != row.episode for news in known):  # the surviving key's speaks
            known.append(_episode(row))
    panel: dict[UUID, dict[UUID, PanelRow]] = defaultdict(dict)
    for row in await tx.execute(_PANEL_OF, keys):
        panel[root_of[row.patient]][row.id] = PanelRow(
            id=row.id,
            patient=row.patient,
            clinic=row.clinic,
            boxes=_boxes(row.boxes),
            language=row.language,
            nurse=row.nurse,
            starts=row.starts,
            ends=row.ends,
            superseded=row.superseded,
            confirmed_on=row.confirmed_on,
        )
    consents: dict[UUID, dict[UUID, ConsentRow]] = defaultdict(dict)
    for row in await tx.execute(_CONSENTS_OF, keys):
        consents[root_of[row.patient]][row.uid] = ConsentRow(
            uid=row.uid,
            id=row.id,
            version=row.version,
            tenant=row.tenant,
            status=row.status,
            body=(row.body_key_id, row.body),
            recorded=row.recorded,
            disputed=row.disputed,
            refused=row.refused,
        )
    assessed: dict[UUID, dict[str, frozenset[Code]]] = defaultdict(dict)
    for row in await tx.execute(_ASSESSED_OF, keys):
        labels = frozenset(Code(system, code) for system, code in row.labels)
        assessed[root_of[row.patient]][f"Encounter/{row.encounter}"] = labels
    return {
        root: Facts(
            patient=root,
            keys=own,
            rows=tuple(rows[root]),
            standing=standings.get(root),
            episodes=tuple(episodes[root]),
            panel=tuple(panel[root].values()),
            consents=tuple(consents[root].values()),
            assessed=assessed[root],
        )
        for root, own in family.items()
    }


def _episode(row: Row[Any]) -> EpisodeNews:
    return EpisodeNews(
        episode=row.episode,
        sequence=row.sequence,
        moment=Moment(row.moment),
        at=row.at,
        site=row.site,
        in_hospital=row.in_hospital,
        ended=row.ended,
        void=row.void,
        encounters=tuple(row.encounters),
        joined_into=row.joined_into,
        labels=None
        if row.labels is None
        else frozenset(Code(system, code) for system, code in row.labels),
    )


# Shared by who decides and sends, alone by who changes a Consent (CS-50). 256 locks stand for
# all patients, so that a search of thousands does not fill the server's lock table.
_LISTEN_TO = text(
    "select pg_advisory_xact_lock_shared(20260302, bucket) from ("
    " select distinct hashtext(k::text) & 255 as bucket from unnest(:keys) k order by 1) b"
).bindparams(bindparam("keys", type_=_uuids))
_SPEAK_FOR = text(
    "select pg_advisory_xact_lock(20260302, bucket) from ("
    " select distinct hashtext(k::text) & 255 as bucket from unnest(:keys) k order by 1) b"
).bindparams(bindparam("keys", type_=_uuids))


# Who adds a token and who adds a claim by it wait for each other: neither sees what the other
# has not committed yet, and the claim would stay unmatched. Taken before any row is locked.
_HOLD_TOKENS = text(
    "select pg_advisory_xact_lock(20260303, bucket) from ("
    " select distinct hashtext(d) & 255 as bucket from unnest(:digests) d order by 1) b"
).bindparams(bindparam("digests", type_=_texts))


async def hold_tokens(tx: Tx, digests: Iterable[str]) -> None:
    """Nobody else matches by these tokens until `tx` ends."""
    await tx.execute(_HOLD_TOKENS, {"digests": sorted(set(digests))})


async def hear_consents(tx: Tx, patients: Iterable[UUID]) -> None:
    """No Consent of these patients changes until `tx` ends."""
    await tx.execute(_LISTEN_TO, {"keys": sorted(set(patients))})


async def change_consents(tx: Tx, patients: Iterable[UUID]) -> None:
    """Whoever decides on these patients has finished, and others wait until `tx` ends."""
    await tx.execute(_SPEAK_FOR, {"keys": sorted(set(patients))})


# --- cards, flags, what was decided -----------------------------------------------------------

_CARDS = text("select * from card where patient = any(:keys) order by id for update").bindparams(
    bindparam("keys", type_=_uuids)
)
_CARDS_OF_CLINIC = text("select * from card where clinic = :clinic")
_CARD = text("select * from card where clinic = :clinic and id = :id")
_PATIENTS_OF_CLINIC = text(
    "select patient from card where clinic = :clinic union"
    " select patient from flag where clinic = :clinic"
)
_FLAG = text("select patient from flag where clinic = :clinic and id = :id")
_CARDS_HERE = text("select * from card where clinic = :clinic and patient = any(:keys)").bindparams(
    bindparam("keys", type_=_uuids)
)
_FLAGS_HERE = text("select * from flag where clinic = :clinic and patient = any(:keys)").bindparams(
    bindparam("keys", type_=_uuids)
)
_CARD_FOR_UPDATE = text("select * from card where clinic = :clinic and id = :id for update")
_CARD_BY_ID = text("select * from card where id = :id")


def card_of(row: Row[Any]) -> Card:
    said = dict(row._mapping)  # noqa: SLF001 - the documented way to a row's names
    said["what"] = What(said["what"])
    said["tier"] = Tier(said["tier"])
    said["status"] = Status(said["status"])
    said["moment"] = Moment(said["moment"]) if said["moment"] else None
    said["dismissal"] = Dismissal(said["dismissal"]) if said["dismissal"] else None
    said["why"] = Why(said["why"]) if said["why"] else None
    said["notes"] = tuple(_note(n) for n in said["notes"])
    said["outputs"] = tuple(said["outputs"])
    return Card(**said)


def _note(said: Mapping[str, Any]) -> Note:
    return Note(datetime.fromisoformat(said["at"]), said["text"], said["by"])


def row_of(card: Card) -> dict[str, Any]:
    said = {f.name: getattr(card, f.name) for f in fields(card)}
    said["notes"] = [{"at": n.at.isoformat(), "text": n.text, "by": n.by} for n in card.notes]
    said["outputs"] = [dict(o) for o in card.outputs]
    said["before"] = None if card.before is None else dict(card.before)
    return said


def state_of(card: Card) -> dict[str, Any]:
    """The card as JSON, for its history."""
    # asyncpg's UUIDs are a class of its own, which orjson does not know.
    return dict(orjson.loads(orjson.dumps(row_of(card), default=str)))


_WHEN = ("opened", "updated", "surfaced", "due", "moment_at", "seen", "closed", "snoozed_until")
_WHOSE = ("id", "patient", "surviving")


def card_from_state(state: Mapping[str, Any]) -> Card:
    """What `state_of` wrote."""
    said = dict(state)
    for name in _WHEN:
        said[name] = datetime.fromisoformat(said[name]) if said[name] else None
    for name in _WHOSE:
        said[name] = UUID(said[name]) if said[name] else None
    said["what"], said["tier"], said["status"] = (
        What(said["what"]),
        Tier(said["tier"]),
        Status(said["status"]),
    )
    said["moment"] = Moment(said["moment"]) if said["moment"] else None
    said["dismissal"] = Dismissal(said["dismissal"]) if said["dismissal"] else None
    said["why"] = Why(said["why"]) if said["why"] else None
    said["notes"] = tuple(_note(n) for n in said["notes"])
    said["outputs"] = tuple(said["outputs"])
    return Card(**said)


async def cards_of(tx: Tx, patients: Iterable[UUID]) -> list[Card]:
    """All cards of these keys, held until the commit."""
    return [card_of(row) for row in await tx.execute(_CARDS, {"keys": sorted(set(patients))})]


async def cards_of_clinic(tx: Tx, clinic: str) -> list[Card]:
    return [card_of(row) for row in await tx.execute(_CARDS_OF_CLINIC, {"clinic": clinic})]


async def card(tx: Tx, clinic: str, id_: UUID, *, hold: bool = False) -> Card | None:
    query = _CARD_FOR_UPDATE if hold else _CARD
    row = (await tx.execute(query, {"clinic": clinic, "id": id_})).first()
    return None if row is None else card_of(row)


async def patients_of_clinic(tx: Tx, clinic: str) -> list[UUID]:
    """Patient keys the clinic has a card or Flag of."""
    return [row.patient for row in await tx.execute(_PATIENTS_OF_CLINIC, {"clinic": clinic})]


async def patient_of(tx: Tx, clinic: str, type_: str, id_: UUID) -> UUID | None:
    """Whom that card (`Task`) or `Flag` of the clinic is about."""
    query = _CARD if type_ == "Task" else _FLAG
    row = (await tx.execute(query, {"clinic": clinic, "id": id_})).first()
    return None if row is None else row.patient


async def cards_here(tx: Tx, clinic: str, keys: Iterable[UUID]) -> list[Card]:
    """The clinic's cards of these patient keys."""
    rows = await tx.execute(_CARDS_HERE, {"clinic": clinic, "keys": list(keys)})
    return [card_of(row) for row in rows]


async def flags_here(tx: Tx, clinic: str, keys: Iterable[UUID]) -> list[FlagRow]:
    rows = await tx.execute(_FLAGS_HERE, {"clinic": clinic, "keys": list(keys)})
    return [FlagRow(**row._mapping) for row in rows]  # noqa: SLF001


_STAMP = text(
    "insert into clinic_clock (clinic, last)"
    " select c, date_trunc('milliseconds', cast(:now as timestamptz))"
    "  from unnest(:clinics) c order by c"
    " on conflict (clinic) do update"
    "  set last = greatest(excluded.last, clinic_clock.last + interval '1 millisecond')"
    " returning clinic, last"
).bindparams(bindparam("clinics", type_=_texts))


async def stamp(tx: Tx, clinics: Iterable[str], now: datetime) -> dict[str, datetime]:
    """A time for each clinic's changes, later than any that was committed before (CA-15)."""
    rows = await tx.execute(_STAMP, {"clinics": sorted(set(clinics)), "now": now})
    return {row.clinic: row.last for row in rows}


async def put_cards(
    tx: Tx, cards: Sequence[Card], sequences: Mapping[UUID, int], by: str | None
) -> None:
    """Write cards as they now are, and a line of history each. `sequences` by patient."""
    if not cards:
        return
    statement = insert(tables.card)
    keep = {
        c.name: c for c in statement.excluded if c.name not in {"id", "clinic", "opened", "shown"}
    }
    await tx.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_=keep),
        [row_of(card) for card in cards],
    )
    await _put_history(tx, cards, sequences, by)


CLINIC_CHANGES = (
    "status",
    "version",
    "updated",
    "surfaced",
    "owner",
    "due",
    "seen",
    "closed",
    "snoozed_until",
    "until_discharge",
    "dismissal",
    "dismissal_text",
    "notes",
    "outputs",
    "before",
)
"""Columns of a card that a clinic's own act may change."""
_CHANGE_CARD = (
    tables.card.update()
    .where(tables.card.c.id == bindparam("its"))
    .values(
        {
            name: bindparam(name)
            for name in [
                "status",
                "version",
                "updated",
                "surfaced",
                "owner",
                "due",
                "seen",
                "closed",
                "snoozed_until",
                "until_discharge",
                "dismissal",
                "dismissal_text",
                "notes",
                "outputs",
                "before",
            ]
        }
    )
)


async def change_card(tx: Tx, card: Card, sequence: int, by: str | None) -> None:
    """What a clinic may change of a card; under its own request role."""
    row = row_of(card)
    await tx.execute(_CHANGE_CARD, {**{n: row[n] for n in CLINIC_CHANGES}, "its": card.id})
    await _put_history(tx, [card], {card.patient: sequence}, by)


async def _put_history(
    tx: Tx, cards: Sequence[Card], sequences: Mapping[UUID, int], by: str | None
) -> None:
    await tx.execute(
        insert(tables.card_version),
        [
            {
                "card": card.id,
                "version": card.version,
                "clinic": card.clinic,
                "at": card.updated,
                "by": by,
                "status": card.status,
                "state": state_of(card),
                "sequence": sequences.get(card.patient, 0),
            }
            for card in cards
        ],
    )


_SHOWN = text("update card set shown = true where id = any(:ids) and not shown").bindparams(
    bindparam("ids", type_=_uuids)
)
_HISTORY = text(
    "select version, at, by, status, state, sequence from card_version"
    " where card = :card order by version"
)


async def mark_shown(tx: Tx, ids: Iterable[UUID]) -> None:
    """The clinic's EMR has these cards now."""
    await tx.execute(_SHOWN, {"ids": list(ids)})


async def history(tx: Tx, card_id: UUID) -> Sequence[Row[Any]]:
    return (await tx.execute(_HISTORY, {"card": card_id})).all()


_FLAGS = text("select * from flag where patient = any(:keys) for update").bindparams(
    bindparam("keys", type_=_uuids)
)
_OUTLOOKS = text(
    "select clinic, patient, outcome, reasons, basis, sequence, reads from outlook"
    " where patient = any(:keys)"
).bindparams(bindparam("keys", type_=_uuids))


async def flags_of(tx: Tx, patients: Iterable[UUID]) -> list[FlagRow]:
    rows = await tx.execute(_FLAGS, {"keys": sorted(set(patients))})
    return [FlagRow(**row._mapping) for row in rows]  # noqa: SLF001


async def put_flags(tx: Tx, flags: Sequence[FlagRow]) -> None:
    if not flags:
        return
    statement = insert(tables.flag)
    keep = {c.name: c for c in statement.excluded if c.name not in {"id", "clinic", "patient"}}
    await tx.execute(
        statement.on_conflict_do_update(index_elements=["clinic", "patient"], set_=keep),
        [{f.name: getattr(flag, f.name) for f in fields(flag)} for flag in flags],
    )


async def outlooks(tx: Tx, patients: Iterable[UUID]) -> dict[tuple[str, UUID], Outlook]:
    rows = await tx.execute(_OUTLOOKS, {"keys": sorted(set(patients))})
    return {
        (row.clinic, row.patient): Outlook(
            row.outcome, frozenset(row.reasons), frozenset(row.basis), row.sequence, row.reads
        )
        for row in rows
    }


async def put_outlooks(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    statement = insert(tables.outlook)
    keep = {c.name: c for c in statement.excluded if c.name not in {"clinic", "patient"}}
    await tx.execute(
        statement.on_conflict_do_update(index_elements=["clinic", "patient"], set_=keep),
        list(rows),
    )


async def put_decisions(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await tx.execute(insert(tables.decision), list(rows))


_REFUSALS = text(
    "select id, at, clinic, patient, card, attempt, outcome, reasons, basis, signs, readers, policy"
    " from decision where outcome <> 'permit'"
    "  and (cast(:patient as uuid) is null or patient = :patient)"
    "  and (cast(:person as text) is null or :person = any(readers))"
    " order by at desc, id limit :most"
)


async def refusals(
    tx: Tx, patient: UUID | None, person: str | None = None, most: int = 100
) -> Sequence[Row[Any]]:
    """Newest first. Rows come only in a transaction of role `privacy`, or of the worker.

    `patient`, `person`: only of whom, only to whom.
    """
    asked = {"patient": patient, "person": person, "most": most}
    return (await tx.execute(_REFUSALS, asked)).all()


# Newest first by audit_pkey; of one patient by audit_patient. What the officer reads is not told.
_DISCLOSURES = text(
    "select recorded, shape, agent, agent_kind, tenant, recipient, reader, patient, level, basis"
    " from audit where shape in ('PatientRead', 'PatientQuery', 'PrivacyDisclosure.Source')"
    "  and outcome = 0 and tenant is not null and not 'privacy' = any(roles)"
    "  and (cast(:patient as uuid) is null or patient = :patient)"
    "  and (cast(:person as text) is null or agent = :person or reader = :person)"
    " order by position desc limit :most"
)
_AUDITED = text("select * from audit where patient = any(:patients)").bindparams(
    bindparam("patients", type_=_uuids)
)


async def disclosures(
    tx: Tx, patient: UUID | None, person: str | None = None, most: int = 100
) -> Sequence[Row[Any]]:
    """Who was told of whom, newest first; in a transaction of role `privacy`, or of the worker.

    `patient`, `person`: only of whom, only to whom; a person reads a page, or has an inbox.
    """
    asked = {"patient": patient, "person": person, "most": most}
    return (await tx.execute(_DISCLOSURES, asked)).all()


async def audited(tx: Tx, patients: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Every audit record of this service about these keys; role `privacy`, or the worker."""
    return (await tx.execute(_AUDITED, {"patients": sorted(patients)})).all()


# --- corrections of counts (CT-17) --------------------------------------------------------------

_CORRECTIONS = text(  # served by correction_pkey
    "select distinct on (encounter) * from correction where encounter = any(:encounters)"
    " order by encounter, version desc"
).bindparams(bindparam("encounters", type_=_uuids))
_ADD_CORRECTION = text(
    "insert into correction (encounter, version, patient, site, excluded, reason, note, by, at)"
    " values (:encounter, :version, :patient, :site, :excluded, :reason, :note, :by, :at)"
    " on conflict do nothing"
)
# Served by reach_pkey, standing_pkey and correction_patient.
_FOLLOWED = text(
    "select r.patient, s.arrived from reach r cross join lateral ("
    "  select state, arrived, merged_into from standing where patient = r.patient"
    "  order by sequence desc limit 1) s"
    " where r.clinic = :site and s.merged_into is null and (s.state <> 'below' or exists ("
    "  select from correction c where c.patient = r.patient and c.site = :site))"
    " order by s.arrived desc, r.patient limit :most"
)


async def corrections(tx: Tx, encounters: Iterable[UUID]) -> dict[UUID, Correction]:
    """By encounter: what persons last said of it."""
    return {
        row.encounter: Correction(
            encounter=row.encounter,
            version=row.version,
            patient=row.patient,
            site=row.site,
            excluded=row.excluded,
            reason=Reason(row.reason) if row.reason else None,
            note=row.note,
            by=row.by,
            at=row.at,
        )
        for row in await tx.execute(_CORRECTIONS, {"encounters": list(encounters)})
    }


async def add_correction(tx: Tx, said: Correction) -> bool:
    """Keep a further version; False if somebody else was faster with it."""
    values = {one.name: getattr(said, one.name) for one in fields(Correction)}
    return (await tx.execute(_ADD_CORRECTION, values)).rowcount == 1


async def followed(tx: Tx, site: str, most: int) -> list[UUID]:
    """Patients of a hospital who are watched or flagged, or of whom it corrected a count; those
    of whom there is news first.
    """
    rows = await tx.execute(_FOLLOWED, {"site": site, "most": most})
    return [row.patient for row in rows]


# --- routing, due, sites ----------------------------------------------------------------------

_REACH = text(
    "insert into reach (clinic, patient) select * from unnest(:clinics, :patients)"
    " on conflict do nothing"
).bindparams(bindparam("clinics", type_=_texts), bindparam("patients", type_=_uuids))
_ROUTED = text("delete from unroutable where patient = any(:keys)").bindparams(
    bindparam("keys", type_=_uuids)
)
_UNROUTABLE = text(
    "insert into unroutable (patient, reason, since)"
    " select patient, reason, :now from unnest(:patients, :reasons) as n (patient, reason)"
    " on conflict (patient) do update set reason = excluded.reason"
).bindparams(bindparam("patients", type_=_uuids), bindparam("reasons", type_=_texts))
_SET_DUE = text(
    "insert into due (patient, at) select * from unnest(:patients, :instants)"
    " on conflict (patient) do update set at = excluded.at"
).bindparams(bindparam("patients", type_=_uuids), bindparam("instants", type_=_instants))
_CLEAR_DUE = text("delete from due where patient = any(:keys)").bindparams(
    bindparam("keys", type_=_uuids)
)
_DUE = text(
    "select patient from due where at <= :now order by at limit :most for update skip locked"
)


async def let_reach(tx: Tx, pairs: Iterable[tuple[str, UUID]]) -> None:
    """Requests of these clinics and hospitals may read of these patient keys, as far as consent
    goes.
    """
    wanted = sorted(set(pairs))
    if wanted:
        await tx.execute(
            _REACH, {"clinics": [c for c, _ in wanted], "patients": [p for _, p in wanted]}
        )


async def put_unroutable(
    tx: Tx, routed: Iterable[UUID], not_routed: Mapping[UUID, str], now: datetime
) -> None:
    await tx.execute(_ROUTED, {"keys": list(routed)})
    await tx.execute(
        _UNROUTABLE,
        {"patients": list(not_routed), "reasons": list(not_routed.values()), "now": now},
    )


async def put_due(tx: Tx, when: Mapping[UUID, datetime | None]) -> None:
    await tx.execute(_CLEAR_DUE, {"keys": list(when)})
    timed = {patient: at for patient, at in when.items() if at is not None}
    await tx.execute(_SET_DUE, {"patients": list(timed), "instants": list(timed.values())})


async def due_patients(tx: Tx, now: datetime, most: int) -> list[UUID]:
    """Who is due, held until the commit; what another worker holds is left to it."""
    return [row.patient for row in await tx.execute(_DUE, {"now": now, "most": most})]


_DIRECTORY = text("select digest from directory")
_NEW_DIRECTORY = text(
    "insert into directory (digest, since) values (:digest, :now)"
    " on conflict (one) do update set digest = excluded.digest, since = excluded.since"
)
_ALL_DUE = text(
    "insert into due (patient, at)"
    " select patient, cast(:now as timestamptz) from outlook"
    " union select patient, cast(:now as timestamptz) from unroutable"
    " on conflict (patient) do update set at = least(due.at, excluded.at)"
)


async def note_directory(tx: Tx, digest: str, now: datetime) -> None:
    """If it is another directory than before, everybody is due at once (CS-51)."""
    known = (await tx.execute(_DIRECTORY)).scalar_one_or_none()
    if known == digest:
        return
    await tx.execute(_NEW_DIRECTORY, {"digest": digest, "now": now})
    if known is not None:
        await tx.execute(_ALL_DUE, {"now": now})


_HEARD = text(
    "insert into site (site, last_event, heard)"
    " select site, max(last_event), max(heard)"
    "  from unnest(:sites, :events, :heard) as n (site, last_event, heard) group by site"
    " on conflict (site) do update set"
    "  last_event = greatest(site.last_event, excluded.last_event),"
    "  heard = greatest(site.heard, excluded.heard)"
).bindparams(
    bindparam("sites", type_=_texts),
    bindparam("events", type_=_instants),
    bindparam("heard", type_=_instants),
)
_SITES = text("select site, last_event, heard from site")


async def keep_heard(tx: Tx, events: Sequence[SiteHeard]) -> None:
    await tx.execute(
        _HEARD,
        {
            "sites": [e.site for e in events],
            "events": [e.last_event for e in events],
            "heard": [e.heard for e in events],
        },
    )


async def sites_heard(tx: Tx) -> dict[str, datetime]:
    return {row.site: row.heard for row in await tx.execute(_SITES)}


# --- panels -----------------------------------------------------------------------------------

_PRESENT = text(
    "select id, key_id, digest, fingerprint from panel"
    " where clinic = :clinic and superseded is null"
)
_SUPERSEDE = text(
    "update panel set superseded = :now, ends = coalesce(least(ends, :today), :today)"
    " where id = any(:ids)"
).bindparams(bindparam("ids", type_=_uuids))
_UNCONFIRMED = text(
    "select p.id, p.clinic, p.boxes, t.patient from panel p"
    " join token t on t.key_id = p.key_id and t.digest = p.digest"
    " where p.superseded is null and p.confirmed_on is null and t.patient = any(:keys)"
).bindparams(bindparam("keys", type_=_uuids))
_CONFIRM = text(
    "update panel p set confirmed_on = :now, confirmed_by = n.by"
    " from unnest(:ids, :bys) as n (id, by) where p.id = n.id and p.confirmed_on is null"
).bindparams(bindparam("ids", type_=_uuids), bindparam("bys", type_=_texts))
_CLAIMED = text(
    "select distinct p.clinic, t.patient from panel p"
    " join token t on t.key_id = p.key_id and t.digest = p.digest"
    " where t.patient = any(:keys)"
).bindparams(bindparam("keys", type_=_uuids))
_MATCHED = text(
    "select distinct t.patient from token t"
    " join unnest(:key_ids, :digests) as n (key_id, digest)"
    "  on n.key_id = t.key_id and n.digest = t.digest order by 1"
).bindparams(bindparam("key_ids", type_=_texts), bindparam("digests", type_=_texts))


@dataclass(frozen=True, slots=True)
class Present:
    """A row of a panel that is not superseded."""

    id: UUID
    key_id: str
    digest: str
    fingerprint: str


async def present_panel(tx: Tx, clinic: str) -> list[Present]:
    return [Present(**row._mapping) for row in await tx.execute(_PRESENT, {"clinic": clinic})]  # noqa: SLF001


async def supersede(tx: Tx, ids: Sequence[UUID], now: datetime, today: date) -> None:
    if ids:
        await tx.execute(_SUPERSEDE, {"ids": list(ids), "now": now, "today": today})


async def add_panel(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await tx.execute(insert(tables.panel), list(rows))


async def matched(tx: Tx, tokens: Iterable[tuple[str, str]]) -> list[UUID]:
    """Patient keys that have any of these tokens."""
    pairs = sorted(set(tokens))
    rows = await tx.execute(
        _MATCHED, {"key_ids": [k for k, _ in pairs], "digests": [d for _, d in pairs]}
    )
    return [row.patient for row in rows]


async def unconfirmed(tx: Tx, keys: Iterable[UUID]) -> Sequence[Row[Any]]:
    return (await tx.execute(_UNCONFIRMED, {"keys": list(keys)})).all()


async def confirm(tx: Tx, found: Mapping[UUID, str], now: datetime) -> None:
    if found:
        await tx.execute(_CONFIRM, {"ids": list(found), "bys": list(found.values()), "now": now})


async def claims(tx: Tx, keys: Iterable[UUID]) -> list[tuple[str, UUID]]:
    """(clinic, key) of every panel row, also past ones, that names these patients."""
    rows = await tx.execute(_CLAIMED, {"keys": list(keys)})
    return [(row.clinic, row.patient) for row in rows]


_CONFIRMED = text(
    "select count(confirmed_on) as confirmed, count(*) - count(confirmed_on) as unconfirmed"
    " from panel where clinic = :clinic and superseded is null"
)


async def count_confirmed(tx: Tx, clinic: str) -> Row[Any]:
    """How many present rows a hospital's data bear out, and how many not yet."""
    return (await tx.execute(_CONFIRMED, {"clinic": clinic})).one()


_ADD_REPORT = text(
    "insert into panel_report (id, clinic, at, mode, dry_run, file, report)"
    " values (:id, :clinic, :at, :mode, :dry_run, :file, cast(:report as jsonb))"
)
_REPORTED = text(
    "select exists (select from panel_report where id = :id and clinic = :clinic"
    " and file = :file and mode = :mode)"
)


async def add_report(tx: Tx, **row: Any) -> None:
    await tx.execute(_ADD_REPORT, {**row, "report": orjson.dumps(row["report"]).decode()})


async def is_reported(tx: Tx, **row: Any) -> bool:
    """Whether that report was made of the same file, mode and clinic."""
    return bool((await tx.execute(_REPORTED, row)).scalar_one())


# --- consents ---------------------------------------------------------------------------------

_CONSENT = text("select * from consent where id = :id and latest for update")
_CONSENT_VERSION = text("select * from consent where id = :id and version = :version")
_CONSENT_LATEST = text("select * from consent where id = :id and latest")
_CONSENT_HISTORY = text("select * from consent where id = :id order by version desc")
# Who makes a Consent of an id waits for who makes another of the same.
_HOLD_CONSENT = text("select pg_advisory_xact_lock(20260304, hashtext(:id))")
_OWN_CONSENTS = text("select * from consent where tenant = :tenant and latest order by id")
_NOT_LATEST = text("update consent set latest = false where id = :id and latest")
_ADD_CONSENT = text(
    "insert into consent (uid, id, version, latest, tenant, captured_by, key_id, digest, status,"
    " computable, body_key_id, body, recorded)"
    " values (:uid, :id, :version, true, :tenant, :captured_by, :key_id, :digest, :status,"
    " :computable, :body_key_id, :body, :recorded)"
)


async def consent(
    tx: Tx, id_: str, version: int | None = None, *, hold: bool = False
) -> Row[Any] | None:
    """A Consent's newest version, or that one; whoever captured it."""
    if version is not None:
        found = await tx.execute(_CONSENT_VERSION, {"id": id_, "version": version})
    else:
        found = await tx.execute(_CONSENT if hold else _CONSENT_LATEST, {"id": id_})
    return found.first()


async def hold_consent(tx: Tx, id_: str) -> None:
    """Nobody else makes or changes the Consent of this id until `tx` ends. Taken first of all."""
    await tx.execute(_HOLD_CONSENT, {"id": id_})


async def consent_history(tx: Tx, id_: str) -> Sequence[Row[Any]]:
    """Every version of a Consent, newest first; whoever captured it."""
    return (await tx.execute(_CONSENT_HISTORY, {"id": id_})).all()


async def consents_captured_by(tx: Tx, tenant: str) -> Sequence[Row[Any]]:
    return (await tx.execute(_OWN_CONSENTS, {"tenant": tenant})).all()


_CONSENTS_BY_TOKENS = text(
    "select distinct c.* from consent c join unnest(:key_ids, :digests) as n (key_id, digest)"
    "  on n.key_id = c.key_id and n.digest = c.digest"
    " where c.latest and (cast(:tenant as text) is null or c.tenant = :tenant)"
    " order by c.recorded desc, c.id"
).bindparams(bindparam("key_ids", type_=_texts), bindparam("digests", type_=_texts))


async def consents_about(
    tx: Tx, tokens: Iterable[tuple[str, str]], tenant: str | None
) -> Sequence[Row[Any]]:
    """Consents about whom any of these tokens names, newest first; None: whoever captured them."""
    pairs = sorted(set(tokens))
    said = {"key_ids": [k for k, _ in pairs], "digests": [d for _, d in pairs], "tenant": tenant}
    return (await tx.execute(_CONSENTS_BY_TOKENS, said)).all()


_TOKENS_OF = text(
    "select distinct key_id, digest from token where patient = any(:keys)"
).bindparams(bindparam("keys", type_=_uuids))


async def tokens_of(tx: Tx, keys: Iterable[UUID]) -> list[tuple[str, str]]:
    """Every token of these patient keys, the keys themselves among them."""
    rows = await tx.execute(_TOKENS_OF, {"keys": sorted(set(keys))})
    return [(row.key_id, row.digest) for row in rows]


async def add_consent(tx: Tx, **row: Any) -> None:
    """A new version, which is the latest from now on."""
    await tx.execute(_NOT_LATEST, {"id": row["id"]})
    await tx.execute(_ADD_CONSENT, row)


# --- refused Consents -------------------------------------------------------------------------

_ADD_REFUSED = text(
    "insert into refused_consent (id, tenant, captured_by, consent, key_id, digest, fingerprint,"
    "  issues, body_key_id, body, holds, received)"
    " values (:id, :tenant, :captured_by, :consent, :key_id, :digest, :fingerprint,"
    "  cast(:issues as jsonb), :body_key_id, :body, :holds, :received)"
    " on conflict do nothing returning id"
)
_REFUSED = text("select * from refused_consent where id = :id for update")
_REFUSED_OF = text(
    "select r.* from refused_consent r join token t on t.key_id = r.key_id and t.digest = r.digest"
    " where t.patient = any(:keys) and r.resolved is null and r.holds order by r.received, r.id"
).bindparams(bindparam("keys", type_=_uuids))
_RESOLVE_REFUSED = text(
    "update refused_consent set resolved = :now, resolved_by = :by, resolution = :resolution,"
    "  why = cast(:why as jsonb), successor = :successor"
    " where id = :id and resolved is null returning id"
)
_REFUSED_UNDER = text(
    "select id, key_id, digest from refused_consent"
    " where tenant = :tenant and consent = :consent and resolved is null order by id for update"
)


async def add_refused(tx: Tx, **row: Any) -> bool:
    """Keep what was refused; False if it was refused before and still waits."""
    said = {**row, "issues": orjson.dumps(row["issues"]).decode()}
    return (await tx.execute(_ADD_REFUSED, said)).first() is not None


async def refused(tx: Tx, id_: UUID) -> Row[Any] | None:
    """A refused Consent, held until the commit."""
    return (await tx.execute(_REFUSED, {"id": id_})).first()


async def refused_of(tx: Tx, keys: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Those that hold these patients' cards, oldest first."""
    return (await tx.execute(_REFUSED_OF, {"keys": sorted(set(keys))})).all()


async def resolve_refused(tx: Tx, **row: Any) -> bool:
    """A person dealt with it; False if somebody had already. `why` is a box, or None."""
    said = {**row, "why": None if row["why"] is None else orjson.dumps(row["why"]).decode()}
    return (await tx.execute(_RESOLVE_REFUSED, said)).first() is not None


async def refused_under(tx: Tx, tenant: str, consent: str) -> Sequence[Row[Any]]:
    """What was refused under this id and waits, held until the commit."""
    return (await tx.execute(_REFUSED_UNDER, {"tenant": tenant, "consent": consent})).all()


# --- what a person must look at ---------------------------------------------------------------

# Served by work_item_one.
_OPEN_ITEMS = text(
    "select id, patient, about, reason, sites, basis from work_item"
    " where coalesce(about, patient) = any(:keys) and closed is null order by id for update"
).bindparams(bindparam("keys", type_=_uuids))
_SITES_OF = text("select key, sites from patient where key = any(:keys)").bindparams(
    bindparam("keys", type_=_uuids)
)
_ADD_ITEMS = text(
    "insert into work_item (id, patient, about, reason, sites, basis, opened)"
    " select id, patient, about, reason, sites, basis, :now"
    "  from jsonb_to_recordset(cast(:rows as jsonb)) as n"
    "   (id uuid, patient uuid, about uuid, reason text, sites text[], basis text[])"
    " on conflict do nothing"
)
_CHANGE_ITEMS = text(
    "update work_item w set sites = n.sites, basis = n.basis"
    " from jsonb_to_recordset(cast(:rows as jsonb)) as n (id uuid, sites text[], basis text[])"
    " where w.id = n.id and w.closed is null"
)
_CLOSE_ITEMS = text(
    "update work_item set closed = :now, closed_by = :by, outcome = :outcome"
    " where id = any(:ids) and closed is null returning id"
).bindparams(bindparam("ids", type_=_uuids))
_CREDIT = text(
    "update work_item set closed_by = :by, outcome = :outcome"
    " where id = :id and closed = :now and closed_by is null"
)
# Served by work_item_opened.
_ITEMS = text("select * from work_item where closed is null order by opened, id limit :most")
_ITEM = text("select * from work_item where id = :id")
_OVERDUE = text(
    "update work_item set alarmed = :now"
    " where closed is null and alarmed is null and opened <= :before returning id, reason, opened"
)
_WAITING = text(
    "select reason, count(*) as items, count(alarmed) as overdue from work_item"
    " where closed is null group by reason"
)


async def open_items(tx: Tx, keys: Iterable[UUID]) -> Sequence[Row[Any]]:
    """Work items not closed of these patients, or about these, held until the commit."""
    return (await tx.execute(_OPEN_ITEMS, {"keys": sorted(set(keys))})).all()


async def sites_of(tx: Tx, keys: Iterable[UUID]) -> dict[UUID, tuple[str, ...]]:
    """Hospitals that sent something of each patient key."""
    rows = await tx.execute(_SITES_OF, {"keys": sorted(set(keys))})
    return {row.key: tuple(row.sites) for row in rows}


async def add_items(tx: Tx, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    if rows:
        said = orjson.dumps(list(rows), default=str).decode()
        await tx.execute(_ADD_ITEMS, {"rows": said, "now": now})


async def change_items(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        await tx.execute(_CHANGE_ITEMS, {"rows": orjson.dumps(list(rows), default=str).decode()})


async def close_items(
    tx: Tx, ids: Iterable[UUID], now: datetime, *, by: str | None = None, outcome: str = "decided"
) -> None:
    wanted = sorted(set(ids))
    if wanted:
        await tx.execute(_CLOSE_ITEMS, {"ids": wanted, "now": now, "by": by, "outcome": outcome})


async def credit_item(tx: Tx, id_: UUID, now: datetime, *, by: str, outcome: str) -> None:
    """Whose doing it was that an item was closed just now, if it was."""
    await tx.execute(_CREDIT, {"id": id_, "now": now, "by": by, "outcome": outcome})


async def items(tx: Tx, most: int) -> Sequence[Row[Any]]:
    """Open work items that the transaction's role sees, oldest first."""
    return (await tx.execute(_ITEMS, {"most": most})).all()


async def item(tx: Tx, id_: UUID) -> Row[Any] | None:
    return (await tx.execute(_ITEM, {"id": id_})).first()


async def overdue(tx: Tx, before: datetime, now: datetime) -> Sequence[Row[Any]]:
    """Items opened before that nobody was alarmed of yet; marked, so each comes once."""
    return (await tx.execute(_OVERDUE, {"before": before, "now": now})).all()


async def waiting(tx: Tx) -> Sequence[Row[Any]]:
    """How many items of each reason are open, and how many of them too long."""
    return (await tx.execute(_WAITING)).all()


_ADD_ASSESSMENT = text(
    "insert into assessment (id, encounter, patient, labels, by, at)"
    " values (:id, :encounter, :patient, cast(:labels as jsonb), :by, :at)"
)


async def add_assessment(tx: Tx, **row: Any) -> None:
    """What a person found of a visit; it speaks instead of what they said of it before."""
    await tx.execute(_ADD_ASSESSMENT, {**row, "labels": orjson.dumps(row["labels"]).decode()})


# --- the glass --------------------------------------------------------------------------------

_ADD_OVERRIDE = text(
    "insert into override (id, person, tenant, patient, ground, why_key_id, why, at, ends,"
    "  opened_by, basis, notice)"
    " values (:id, :person, :tenant, :patient, :ground, :why_key_id, :why, :at, :ends,"
    "  :opened_by, :basis, :notice)"
)
_OVERRIDE = text("select * from override where id = :id")
_REVIEW_OVERRIDE = text(
    "update override set reviewed = :now, reviewed_by = :by, verdict = :verdict,"
    "  review = cast(:review as jsonb) where id = :id and reviewed is null returning id"
)
_TOLD_OF_OVERRIDE = text(
    "update override set notice = 'done', notice_by = :by"
    " where id = :id and notice = 'to-do' returning id"
)
_KEEP_DRAFT = text(
    "insert into draft (person, page, key_id, box, at) values (:person, :page, :key_id, :box, :at)"
    " on conflict (person, page) do update set key_id = excluded.key_id, box = excluded.box,"
    "  at = excluded.at"
)
_TAKE_DRAFT = text(
    "delete from draft where person = :person and page = :page returning key_id, box, at"
)
_FORGET_DRAFTS = text("delete from draft where at <= :before")


async def add_override(tx: Tx, **row: Any) -> None:
    await tx.execute(_ADD_OVERRIDE, row)


async def override(tx: Tx, id_: UUID) -> Row[Any] | None:
    return (await tx.execute(_OVERRIDE, {"id": id_})).first()


async def review_override(tx: Tx, **row: Any) -> bool:
    """What the privacy officer found; False if somebody had said so before."""
    said = {**row, "review": orjson.dumps(row["review"]).decode()}
    return (await tx.execute(_REVIEW_OVERRIDE, said)).first() is not None


async def told_of_override(tx: Tx, id_: UUID, by: str) -> bool:
    """The patient was told, by a person; False if there was nothing to tell, or it was done."""
    return (await tx.execute(_TOLD_OF_OVERRIDE, {"id": id_, "by": by})).first() is not None


async def keep_draft(tx: Tx, **row: Any) -> None:
    """What somebody entered and could not send."""
    await tx.execute(_KEEP_DRAFT, row)


async def forget_drafts(tx: Tx, before: datetime) -> None:
    await tx.execute(_FORGET_DRAFTS, {"before": before})


async def take_draft(tx: Tx, person: str, page: str) -> Row[Any] | None:
    """It, which is then there no more."""
    return (await tx.execute(_TAKE_DRAFT, {"person": person, "page": page})).first()


# --- subscriptions and notifications ----------------------------------------------------------

_SUBSCRIPTION = text("select * from subscription where clinic = :clinic and id = :id")
_SUBSCRIPTIONS = text(
    "select * from subscription where clinic = :clinic and client = :client order by created, id"
)
_LISTENING = text(
    "select * from subscription where clinic = any(:clinics) and status in ('active', 'error')"
    " and (ends is null or ends > :now) order by id for update"
).bindparams(bindparam("clinics", type_=_texts))
_COUNT = text(
    "update subscription s set counter = n.counter from unnest(:ids, :counters)"
    " as n (id, counter) where s.id = n.id"
).bindparams(bindparam("ids", type_=_uuids), bindparam("counters", type_=ARRAY(Integer)))
_DELETE_SUBSCRIPTION = text("delete from subscription where id = :id")


async def subscription(tx: Tx, clinic: str, id_: UUID) -> Row[Any] | None:
    return (await tx.execute(_SUBSCRIPTION, {"clinic": clinic, "id": id_})).first()


async def subscriptions(tx: Tx, clinic: str, client: str) -> Sequence[Row[Any]]:
    return (await tx.execute(_SUBSCRIPTIONS, {"clinic": clinic, "client": client})).all()


async def listening(tx: Tx, clinics: Iterable[str], now: datetime) -> Sequence[Row[Any]]:
    """Subscriptions that events of these clinics are numbered for, held until the commit."""
    rows = await tx.execute(_LISTENING, {"clinics": sorted(set(clinics)), "now": now})
    return rows.all()


async def put_subscription(tx: Tx, row: Mapping[str, Any]) -> None:
    statement = insert(tables.subscription).values(dict(row))
    keep = {
        name: statement.excluded[name]
        for name in row
        if name not in {"id", "clinic", "client", "created", "counter"}
    }
    await tx.execute(statement.on_conflict_do_update(index_elements=["id"], set_=keep))


_RENEW_SECRET = text(
    "update subscription set former_secret = secret, former_until = :until,"
    " secret = cast(:box as jsonb) where id = :id"
)


async def renew_secret(tx: Tx, id_: UUID, box: Box, until: datetime) -> None:
    """Sign with what is in `box`, and until `until` (real time) with the secret before it too."""
    params = {"id": id_, "box": orjson.dumps(box).decode(), "until": until}
    await tx.execute(_RENEW_SECRET, params)


async def delete_subscription(tx: Tx, id_: UUID) -> None:
    await tx.execute(_DELETE_SUBSCRIPTION, {"id": id_})


async def add_notifications(
    tx: Tx, rows: Sequence[Mapping[str, Any]], counters: Mapping[UUID, int]
) -> None:
    """New events, and how far their subscriptions have counted."""
    if rows:
        await tx.execute(insert(tables.notification), list(rows))
    if counters:
        await tx.execute(_COUNT, {"ids": list(counters), "counters": list(counters.values())})


# The oldest event of each subscription and patient that is due and nobody has: a stuck event
# holds only its patient, a failing destination is probed by one at a time (CA-63).
_LEASE = text(
    "with free as ("
    "  select n.id from notification n join subscription s on s.id = n.subscription"
    "  where n.state = 'pending' and n.due <= :now"
    "   and (n.leased_until is null or n.leased_until <= :now)"
    "   and (s.not_before is null or s.not_before <= :now)"
    "   and (n.kind = 'handshake' or s.status = 'active')"
    "   and not exists (select from notification o where o.subscription = n.subscription"
    "     and o.patient is not distinct from n.patient and o.state = 'pending'"
    "     and o.kind = n.kind and o.number < n.number)"
    "   and (s.failing_since is null or n.kind = 'handshake'"
    "     or not exists (select from notification o where o.subscription = n.subscription"
    "      and o.state = 'pending' and o.kind = 'event'"
    "      and (o.number < n.number and o.due <= :now or o.leased_until > :now and o.id <> n.id)))"
    "  order by n.due limit :most for update of n skip locked"
    ") update notification n set leased_until = :until, fence = n.fence + 1"
    " from free where n.id = free.id returning n.*"
)
_RELEASE = text(
    "update notification set state = :state, attempts = :attempts, due = :due,"
    "  leased_until = null, first_sent = coalesce(first_sent, :sent), last_sent = :sent,"
    "  delivered = :delivered, last_status = :last_status, reason = :reason"
    " where id = :id and fence = :fence returning id"
)
_BY_ID = text("select * from subscription where id = :id")
_BY_ID_HELD = text("select * from subscription where id = :id for update")
_BEGIN_ANEW = text(
    "update notification set attempts = 0, first_sent = null, due = :now"
    " where subscription = :id and state = 'pending'"
)
_FARED = text(
    "update subscription set status = :status, error = :error, failing_since = :failing_since,"
    "  failures = :failures, not_before = :not_before, alarmed = :alarmed,"
    "  last_sent = coalesce(:last_sent, last_sent) where id = :id"
)
_COMMUNICATIONS = text(
    "select * from notification where clinic = :clinic and kind = 'event' and attempts > 0"
    " order by first_sent, id"
)
_NEXT_DUE = text(
    "select min(greatest(n.due, coalesce(n.leased_until, n.due),"
    "  coalesce(s.not_before, n.due))) as at"
    " from notification n join subscription s on s.id = n.subscription"
    " where n.state = 'pending' and (n.kind = 'handshake' or s.status = 'active')"
)


# After a silent period, if asked for; any event sets it back (CA-57).
_HEARTBEATS = text(
    "insert into notification (id, subscription, clinic, kind, number, at, state, due)"
    " select gen_random_uuid(), s.id, s.clinic, 'heartbeat', 0, :at, 'pending', :now"
    " from subscription s where s.status = 'active' and s.heartbeat is not null"
    "  and s.last_sent + make_interval(secs => s.heartbeat) <= :now"
    "  and not exists (select from notification n where n.subscription = s.id"
    "   and n.kind = 'heartbeat' and n.state = 'pending')"
)


async def let_hearts_beat(tx: Tx, now: datetime, at: datetime) -> None:
    """A heartbeat for each subscription that has heard nothing for its period (real time)."""
    await tx.execute(_HEARTBEATS, {"now": now, "at": at})


async def lease(tx: Tx, now: datetime, until: datetime, most: int) -> Sequence[Row[Any]]:
    """Notifications to attempt now, ours until `until` (real time)."""
    return (await tx.execute(_LEASE, {"now": now, "until": until, "most": most})).all()


async def release(tx: Tx, **row: Any) -> bool:
    """Record an attempt; False if its lease was lost to another worker meanwhile (CS-133)."""
    return (await tx.execute(_RELEASE, row)).first() is not None


async def destination(tx: Tx, id_: UUID, *, hold: bool = False) -> Row[Any] | None:
    return (await tx.execute(_BY_ID_HELD if hold else _BY_ID, {"id": id_})).first()


async def begin_anew(tx: Tx, id_: UUID, now: datetime) -> None:
    """What waits for a destination is tried as if for the first time (CA-64)."""
    await tx.execute(_BEGIN_ANEW, {"id": id_, "now": now})


async def fared(tx: Tx, **row: Any) -> None:
    """How a destination fares after an attempt."""
    await tx.execute(_FARED, row)


async def communications(tx: Tx, clinic: str) -> Sequence[Row[Any]]:
    return (await tx.execute(_COMMUNICATIONS, {"clinic": clinic})).all()


_NOTIFICATION = text("select * from notification where clinic = :clinic and id = :id")


async def notification(tx: Tx, clinic: str, id_: UUID) -> Row[Any] | None:
    return (await tx.execute(_NOTIFICATION, {"clinic": clinic, "id": id_})).first()


async def next_due(tx: Tx) -> datetime | None:
    """When a notification is due next (real time)."""
    return (await tx.execute(_NEXT_DUE)).scalar_one_or_none()


# The register of incidents (CS-122)

_INCIDENTS = text(
    "select distinct on (number) id, version, number, recorded, by, closed, key_id, box,"
    " min(recorded) over (partition by id) as opened"
    " from incident order by number desc, version desc"
)
_INCIDENT = text("select * from incident where id = :id order by version desc")
# One at a time, so that numbers have no gaps and a version is written once.
_ONE_REGISTRAR = text("select pg_advisory_xact_lock(hashtext('notify incident'))")
_REGISTER = text(
    "insert into incident (id, version, number, recorded, by, closed, key_id, box)"
    " select :id, :version, coalesce("
    "   (select number from incident where id = :id limit 1),"
    "   (select max(number) + 1 from incident), 1), :at, :by, :closed, :key_id, :box"
    " where (select coalesce(max(version), 0) + 1 from incident where id = :id) = :version"
    " returning version"
)


async def incidents(tx: Tx) -> Sequence[Row[Any]]:
    """The newest version of each, the last opened first."""
    return (await tx.execute(_INCIDENTS)).all()


async def incident(tx: Tx, id_: UUID) -> Sequence[Row[Any]]:
    """Every version, the newest first; none: there is no such incident."""
    return (await tx.execute(_INCIDENT, {"id": id_})).all()


async def register_incident(tx: Tx, **row: Any) -> bool:
    """Keep a version; False if it does not follow the newest one."""
    await tx.execute(_ONE_REGISTRAR)
    return (await tx.execute(_REGISTER, row)).scalar_one_or_none() is not None
