"""The story of a batch of messages of one site: read each, keep it, state it once.

Live is a batch of one, a Bundle of a hundred a batch of a hundred, in one transaction: every
step is one statement for all. Nothing here commits; what is refused is a `Problem` in its item,
what must wait is kept with its reason, and comes by here again when the reason has ended.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from schemas import encounter_recorded_v1 as events
from schemas.encounter_recorded_v1 import ClassSince, EncounterRecorded
from schemas.envelope import Coding, Event
from schemas.envelope import Moment as EventMoment
from schemas.site_heard_v1 import SiteHeard
from services.ingest import bundles, gate, reading, store, verbatim
from services.ingest.bundles import Entry
from services.ingest.folding import Fact, Message, Moment, Status, fold, is_reused
from services.ingest.gate import Problem
from services.ingest.identity import Conflict
from services.ingest.people import People, Presented
from services.ingest.reading import (
    EncounterRead,
    Hold,
    Identifier,
    PatientRead,
    Reason,
    Reference,
    SiteRules,
)
from services.ingest.tables import Held, Kept, Oddity, Record, Version
from services.ingest.verbatim import Tree
from services.plumbing import audit, telemetry
from services.plumbing.audit import AuditRecord, Trail
from services.plumbing.auth import Authority
from services.plumbing.clock import Clock
from services.plumbing.db import Database, Tx
from services.plumbing.eventlog import append
from services.plumbing.identifiers import canonical_system, normalise, own_system
from services.plumbing.region import Region
from services.plumbing.sealing import RetiredKeyError, Seals, Tokens, UnknownKeyError
from services.plumbing.telemetry import new_id

BODY = "body"
CONTEXT = "context"
"""Names of the sealed fields of a version."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What makes tokens and seals."""

    tokens: Tokens
    seals: Seals
    opened: set[str] = field(default_factory=set)
    """Ids of token keys that the database knows to be in use."""
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class House:
    """What the service works with."""

    db: Database
    clock: Clock
    region: Callable[[], Region]
    keys: Keys
    heard: "Heard"
    base: str
    """`[base]`: links are made from it, never from the request's Host."""
    authority: Authority


@dataclass(frozen=True, slots=True)
class Door:
    """Through which door, for which site and whom, a batch comes."""

    site: str
    client: str
    now: datetime
    rules: SiteRules
    region: Region
    keys: Keys
    trail: Trail
    may: Callable[[str, str], bool]
    """Whether the caller's scopes grant a letter on a type (HA-99)."""
    heard: "Heard"
    name: str = "rest"
    arrived: datetime | None = None
    """When what comes through it came, if that is not now: a replay."""


@dataclass(slots=True)
class Heard:
    """When each site was last asked about: the database decides, once in a while (one process)."""

    asked: dict[str, datetime] = field(default_factory=dict)

    def is_due(self, site: str, now: datetime) -> bool:
        before = self.asked.get(site)
        return before is None or not timedelta() <= now - before < timedelta(minutes=1)


@dataclass(slots=True)
class Item:
    """One message of a batch: what came, and what became of it."""

    entry: Entry
    told_at: datetime
    arrived: datetime
    digest: str = ""
    problems: list[Problem] = field(default_factory=list)
    read: EncounterRead | PatientRead | None = None
    condition: Identifier | None = field(default=None, repr=False)
    moves: bool = False
    conditions: list[tuple[Tree, str]] = field(default_factory=list, repr=False)
    """Condition resources that came with it, and their text."""
    inside: Mapping[str, "Item"] = field(default_factory=dict, repr=False)
    """Items of the same Bundle, by what a reference to them says."""
    again: Kept | None = None
    """A version that was held, come by again."""
    # what became of it
    record: Record | None = None
    version: int = 0
    status: int = 0
    text: str | None = field(default=None, repr=False)
    hold: Hold | None = None
    must_match: list[tuple[str, Identifier, str]] = field(default_factory=list, repr=False)
    """Conditional references of a transaction: type, identifier, where (HA-32)."""
    is_ignored: bool = False
    """An unused condition: nothing of it was used (HA-12)."""
    proposal: UUID = field(default_factory=new_id)
    names: list[store.Name] | None = field(default=None, repr=False)
    is_fine: bool = False
    """It was read, and nothing was wrong with it by itself."""

    @property
    def kind(self) -> str:
        return self.entry.kind

    def refuse(self, *problems: Problem) -> None:
        self.problems += problems


@dataclass(slots=True)
class _Made:
    """What was made from one state of the region file: another state is another object."""

    region: Region
    rules: dict[str, SiteRules] = field(default_factory=dict)
    clinics: dict[tuple[str, str], str] | None = None


_made: list[_Made] = []


def _made_from(region: Region) -> _Made:
    if not _made or _made[0].region is not region:
        _made[:] = [_Made(region)]
    return _made[0]


def rules_of(region: Region, site: str) -> SiteRules:
    """How to read what `site` sends, from the region file."""
    made = _made_from(region)
    if site not in made.rules:
        made.rules[site] = _rules(region, site)
    return made.rules[site]


def _rules(region: Region, site: str) -> SiteRules:
    said = region.site(site)
    assert said is not None, "a caller's sites are those of the region file"
    pattern = said.temporary_identity
    return SiteRules(
        site,
        ZoneInfo(said.timezone),
        frozenset(said.visit_systems),
        _known(said.codes.classes, events.EncounterClass),
        _known(said.codes.dispositions, events.Disposition),
        _known(said.codes.services, events.Service),
        said.codes.admit_sources,
        frozenset(said.codes.planned),
        said.codes.labels_assessed,
        said.codes.sensitive_services,
        said.source_sets_last_updated,
        None if pattern is None else re.compile(pattern),
        frozenset(said.temporary_types),
        frozenset(said.drop_types),
    )


def _known(mapped: Mapping[str, str], words: type[StrEnum]) -> dict[str, str]:
    """A code map without what it maps to no word of ours: such a code stays unknown."""
    known = {str(word) for word in words}
    return {code: word for code, word in mapped.items() if word in known}


def clinics_of(region: Region) -> dict[tuple[str, str], str]:
    """Clinics by the identifiers a hospital may know them by (CA-46)."""
    made = _made_from(region)
    if made.clinics is None:
        made.clinics = _clinics(region)
    return made.clinics


def _clinics(region: Region) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for clinic in region.clinics:
        for said in clinic.identifiers:
            system, _, value = said.rpartition("|")
            system = canonical_system(system, region.aliases)
            found[system, normalise(system, value) or value] = clinic.id
    return found


# Reading: no I/O, before a transaction is opened


def prepare(item: Item, door: Door) -> Item:
    """Judge and read what came; what is wrong is noted in the item."""
    entry = item.entry
    if entry.method == "DELETE":
        if entry.kind != "Encounter" or entry.logical_id is None or entry.query is not None:
            item.refuse(_unsupported(entry, "DELETE Encounter/[id] is what may be deleted."))
        item.is_fine = not item.problems
        return item
    assert entry.resource is not None
    assert entry.text is not None
    at = entry.at if entry.number >= 0 else entry.kind
    item.refuse(*gate.check(entry.resource, entry.text, entry.kind, at=at))
    if entry.resource.get("resourceType") == entry.kind:
        _request(item)
    if not item.problems:
        _interpret(item, door)
    item.is_fine = not item.problems
    return item


def _unsupported(entry: Entry, advice: str) -> Problem:
    return Problem("not-supported", entry.kind, advice, 405)


def _request(item: Item) -> None:
    """The condition or id the request goes by (HA-12 to 15)."""
    entry = item.entry
    query = entry.if_none_exist if entry.method == "POST" and entry.if_none_exist else entry.query
    if query is not None:
        found = bundles.condition(query, entry.kind)
        if isinstance(found, Problem):
            item.refuse(found)
        else:
            item.condition = found.identifier
    elif entry.method == "PUT" and item.again is None:
        body_id = (entry.resource or {}).get("id")
        if entry.logical_id is None:
            item.refuse(Problem("value", entry.kind, "PUT to Type/id or Type?identifier=."))
        elif body_id != entry.logical_id:
            advice = "The id of the body must be that of the URL."
            item.refuse(Problem("value", f"{entry.kind}.id", advice))


def _interpret(item: Item, door: Door) -> None:
    tree = item.entry.resource
    assert tree is not None
    item.digest = digest_of(tree)
    if door.name == "rest" and item.again is None:
        item.told_at = reading.event_time(tree, door.rules, item.arrived)
    if item.kind == "Patient":
        item.read = reading.read_patient(tree, door.rules, digest=item.digest, told_at=item.told_at)
        return
    try:
        item.read = reading.read_encounter(
            tree,
            door.rules,
            digest=item.digest,
            told_at=item.told_at,
            now=door.now,
            moves=item.moves,
            conditions=[condition for condition, _ in item.conditions],
        )
    except reading.RefusedError as refused:
        item.refuse(*refused.problems)


def digest_of(tree: Tree) -> str:
    """Of the content, whatever server and version marks it has."""
    content = {name: value for name, value in tree.items() if name != "id"}
    meta = {
        name: value
        for name, value in content.pop("meta", {}).items()
        if name not in ("versionId", "lastUpdated")
    }
    if meta:
        content["meta"] = meta
    raw = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(raw).hexdigest()


def _scope(kind: str, letters: str) -> Problem:
    return Problem("forbidden", kind, f"This needs the scope system/{kind}.{letters}.", 403)


def reset(item: Item) -> None:
    """As it was after `prepare`, for a transaction that is run again."""
    if item.is_fine:
        item.problems.clear()
    item.record, item.hold, item.text = None, None, None
    item.version = item.status = 0
    item.is_ignored = False
    item.proposal = new_id()
    item.names = None


def owner_of(digest: str) -> UUID:
    """To whom a refused body is sealed: it belongs to no resource."""
    return UUID(digest[:32])


def token(door: Door, kind: str, identifier: Identifier) -> str:
    """What an identifier is compared by; "" if it cannot be one."""
    spelt = _spelt(door, kind, identifier)
    return "" if spelt is None else door.keys.tokens.token(*spelt)[1]


def tokens(door: Door, kind: str, identifier: Identifier) -> list[str]:
    """`token` under every key: what to look for while a rotation is under way (HA-98)."""
    spelt = _spelt(door, kind, identifier)
    return [] if spelt is None else [digest for _, digest in door.keys.tokens.all(*spelt)]


def _spelt(door: Door, kind: str, identifier: Identifier) -> tuple[str, str] | None:
    """System and value: a visit number is compared as it is, a patient's identifier as HA-92
    says.
    """
    system = identifier.system or own_system(door.site)
    if kind == "Encounter":
        return system, identifier.value.strip()
    system = canonical_system(system, door.region.aliases)
    value = normalise(system, identifier.value)
    return None if value is None else (system, value)


# The batch


async def open_key(house: House) -> None:
    """Have the active token key on the list that every process looks at, before it is used.

    In a transaction of its own, once a process: who comes later waits for no batch.
    """
    active = house.keys.tokens.ring.active
    if active in house.keys.opened:
        return
    async with house.keys.opening:
        if active not in house.keys.opened:
            async with house.db.work() as tx:
                await store.open_key(tx, active)
            house.keys.opened.add(active)


async def take_in(tx: Tx, items: Sequence[Item], door: Door) -> None:
    """Keep `items` and state what they tell, in the caller's transaction.

    Each item learns what became of it. An item with problems, before or now, has no effect.
    """
    todo = [item for item in items if not item.problems]
    told = max((item.told_at for item in todo), default=None)
    while todo:
        todo = await _round(tx, todo, door)
    if told is not None and door.heard.is_due(door.site, door.now):
        await _say_heard(tx, door, told)


async def _round(tx: Tx, items: Sequence[Item], door: Door) -> list[Item]:
    """One pass: claim, read, decide, write, tell. What it woke comes back, for another."""
    people = People(
        door.site, door.now, door.keys.tokens, door.keys.seals, door.region.aliases,
        clinics_of(door.region),
    )  # fmt: skip
    batch = _Batch(door, people)
    await _renew(tx, items, door)
    again = {item.again.key for item in items if item.again is not None}
    names = batch.names(items)
    batch.keys, batch.records, in_use = await store.claim(tx, door.site, names, again)
    _check_key(door.keys, in_use)
    digests = batch.conditions(items)
    if digests:
        batch.matches = await store.matching(tx, door.site, digests)
        matched = {key for keys in batch.matches.values() for key in keys}
        if matched - batch.records.keys():
            _, more, _ = await store.claim(tx, door.site, {}, matched - batch.records.keys())
            batch.records |= more
    tokens, own = batch.presented(items)
    if tokens or own:
        people.met(await store.meet(tx, door.site, tokens, own))
    for item in sorted(items, key=_effect_order):
        batch.decide(item)
    await store.repoint(tx, door.site, batch.repointed)
    await store.settle(tx, people.changed(), people.links, door.now)
    facts = batch.facts()
    touched = [record for record in batch.records.values() if record.touched]
    await store.keep(tx, door.site, door.client, touched, batch.versions, door.now)
    await store.release(tx, touched, batch.released, door.now)
    await store.note(tx, door.site, batch.oddities, door.now)
    await append(tx, [*people.events(), *facts], door.now)
    _measure(door, batch)
    await audit.record(tx, batch.trail)
    if not batch.woken and not batch.started:
        return []
    waiting = await store.waiting(tx, door.site, batch.woken, batch.started)
    revivals = (revived(kept, door) for kept in waiting)
    return [item for item in revivals if not item.problems]


async def _renew(tx: Tx, items: Sequence[Item], door: Door) -> None:
    """What the batch names is found under the active key, whatever it was written under (HA-98).

    First in the transaction: two processes with different active keys that name the same patient
    wait for each other here.
    """
    keys = door.keys.tokens
    if keys.rotating:
        spelt = {_spelt(door, kind, one) for item in items for kind, one in _named_by(item)}
        found = [keys.renewed(*one) for one in spelt if one is not None]
        await store.renew(tx, door.site, found, keys.ring.active)


def _named_by(item: Item) -> Iterator[tuple[str, Identifier]]:
    """Every identifier an item is looked up by, with the type of resource it is of."""
    read = item.read
    if isinstance(read, EncounterRead):
        visit = () if read.visit is None else (read.visit,)
        whole = () if read.part_of is None else read.part_of.identifiers
        yield from (("Encounter", one) for one in (*visit, *read.identifiers, *whole))
        yield from (("Patient", one) for one in read.subject.identifiers)
    elif isinstance(read, PatientRead):
        other = () if read.replaced_by is None else read.replaced_by.identifiers
        yield from (("Patient", one) for one in (*read.identifiers, *other))
    if item.condition is not None:
        yield item.kind, item.condition
    yield from ((kind, one) for kind, one, _ in item.must_match)


def _check_key(keys: Keys, in_use: Mapping[str, bool]) -> None:
    """UnknownKeyError unless this process finds all that was ever written, and is found itself.

    Then nothing of the batch has an effect: the sender keeps it and sends it again (CS-95).
    """
    ring = keys.tokens.ring
    if in_use.get(ring.active):
        raise RetiredKeyError(f"token key {ring.active!r} is retired: make another one active")
    unknown = sorted(id_ for id_, retired in in_use.items() if not retired and id_ not in ring.keys)
    if unknown:
        raise UnknownKeyError(
            f"tokens may be kept under {', '.join(unknown)}, not in this keyring: put it back, and"
            " take it out only after `passerelle keys retire ingest`"
        )
    if ring.active not in in_use:
        keys.opened.discard(ring.active)
        raise UnknownKeyError(f"token key {ring.active!r} is not on the list yet")


def _measure(door: Door, batch: "_Batch") -> None:
    telemetry.counter("ingest_accepted_total", door.site).inc(len(batch.versions))
    for version in batch.versions:
        if version.hold is not None:
            telemetry.counter("ingest_held_total", f"{door.site} {version.hold}").inc()


_METHODS = {"DELETE": 0, "POST": 1, "PUT": 2, "GET": 3}


def _effect_order(item: Item) -> tuple[bool, int, int]:
    """HA-32; patients first, so that encounters find them."""
    return (
        item.kind == "Encounter" and item.entry.method != "DELETE",
        _METHODS[item.entry.method] if item.again is None else 0,
        item.entry.number,
    )


def revived(kept: Kept, door: Door) -> Item:
    """A held version as an item again: under its own arrival and event time, today's rules."""
    assert kept.box is not None
    text = door.keys.seals.open(kept.key, BODY, *kept.box)
    item = Item(
        Entry(-1, "PUT", kept.kind, kept.id, resource=verbatim.read(text.encode()).tree, text=text),
        told_at=kept.told_at,
        arrived=kept.arrived,
        moves=kept.moves,
        again=kept,
    )
    if kept.context is not None:
        texts = orjson.loads(door.keys.seals.open(kept.key, CONTEXT, *kept.context))
        item.conditions = [(verbatim.read(one.encode()).tree, one) for one in texts]
    return prepare(item, door)


async def _say_heard(tx: Tx, door: Door, told: datetime) -> None:
    """`site.heard`, at most once a minute."""
    heard = await store.heard(tx, door.site, told, door.now)
    door.heard.asked[door.site] = door.now
    if heard is not None:
        await append(tx, [SiteHeard(site=door.site, last_event=heard, heard=door.now)], door.now)


class _Batch:
    """Decides item by item on what was read for all; collects what is to be written for all."""

    def __init__(self, door: Door, people: People) -> None:
        self.door = door
        self.people = people
        self.keys: dict[store.Name, UUID] = {}
        self.records: dict[UUID, Record] = {}
        self.matches: dict[store.Name, list[UUID]] = {}
        self._tokens: dict[tuple[str, Identifier], str] = {}
        self._granted: dict[tuple[str, str], bool] = {}
        self.repointed: dict[store.Name, UUID] = {}
        self.versions: list[Version] = []
        self.released: list[Version] = []
        self.oddities: list[Oddity] = []
        self.trail: list[AuditRecord] = []
        self.woken: set[UUID] = set()
        """Patient records that have come, or were merged: encounters may wait for them."""
        self.started: set[UUID] = set()
        """Encounters whose start has come: earlier messages may wait for it."""

    # Names

    def token(self, kind: str, identifier: Identifier) -> str:
        """`token`, each once a batch."""
        known = self._tokens.get((kind, identifier))
        if known is None:
            known = self._tokens[kind, identifier] = token(self.door, kind, identifier)
        return known

    def conditions(self, items: Iterable[Item]) -> list[str]:
        """Tokens of the identifiers that the batch's conditions go by."""
        return [
            self.token(kind, identifier)
            for item in items
            for kind, identifier in [
                *([(item.kind, item.condition)] if item.condition is not None else []),
                *((kind, one) for kind, one, _ in item.must_match),
            ]
        ]

    def names(self, items: Iterable[Item]) -> dict[store.Name, UUID]:
        """Every name the batch needs to hold, with the key it gets if it is new."""
        found: dict[store.Name, UUID] = {}
        for item in items:
            for name in self._own_names(item):
                found.setdefault(name, item.proposal)
            if item.condition is not None:
                found.setdefault(self._number(item.kind, item.condition), item.proposal)
            for kind, reference in self._references(item):
                for name in self._names_of(kind, reference):
                    found.setdefault(name, new_id())
        return found

    def _own_names(self, item: Item) -> list[store.Name]:
        """The names that say which resource an item is, the deciding one first (HA-70)."""
        if item.names is None:
            item.names = self._names_that_decide(item)
        return item.names

    def _names_that_decide(self, item: Item) -> list[store.Name]:
        entry, read = item.entry, item.read
        by_id = [(item.kind, f"id/{entry.logical_id}")] if entry.logical_id else []
        if isinstance(read, EncounterRead):
            visit = [] if read.visit is None else [self._number("Encounter", read.visit)]
            return [*by_id, *visit, *self._alias(item, read.identifiers)]
        if isinstance(read, PatientRead):
            presented = self.people.presented(read.identifiers)
            numbers = [one for one in presented if not one.token.is_card]
            if not by_id:
                numbers = numbers or presented
            names = [("Patient", f"no/{one.token.digest}") for one in numbers]
            if not by_id and not names:
                names = [("Patient", f"as/{item.digest}")]
            return [*by_id, *names, *self._alias(item, read.identifiers)]
        return by_id

    def _alias(self, item: Item, identifiers: Sequence[Identifier]) -> list[store.Name]:
        """The sender's own id, under which it may come back (HA-11).

        The ids of a message's resources are local to it, unless one is also the number that the
        hospital knows the resource by.
        """
        alias = (item.entry.resource or {}).get("id")
        if item.entry.method != "POST" or alias is None:
            return []
        if self.door.name == "message" and all(one.value != alias for one in identifiers):
            return []
        return [(item.kind, f"id/{alias}")]

    def _number(self, kind: str, identifier: Identifier) -> store.Name:
        return kind, f"no/{self.token(kind, identifier)}"

    def _references(self, item: Item) -> list[tuple[str, Reference]]:
        """Whom an item points to, within the site."""
        read = item.read
        if isinstance(read, EncounterRead):
            found = [("Patient", read.subject), ("Encounter", read.part_of)]
        elif isinstance(read, PatientRead):
            found = [("Patient", read.replaced_by)]
        else:
            found = []
        return [
            (kind, one) for kind, one in found if one is not None and one.literal not in item.inside
        ]

    def _names_of(self, kind: str, reference: Reference) -> list[store.Name]:
        if reference.logical_id is not None:
            return [(kind, f"id/{reference.logical_id}")]
        numbers = [self._number(kind, one) for one in reference.identifiers]
        return [name for name in numbers if name[1] != "no/"]

    def _referred(self, item: Item, kind: str, reference: Reference) -> Record | None:
        """The record a reference means, come or not; None if nothing can be made of it."""
        inner = item.inside.get(reference.literal or "")
        if inner is not None:
            return inner.record
        keys = [self.keys[name] for name in self._names_of(kind, reference)]
        come = [key for key in keys if key in self.records and self.records[key].version]
        return self._record((come or keys)[0], kind) if keys else None

    def _record(self, key: UUID, kind: str) -> Record:
        if key not in self.records:
            self.records[key] = Record(key, kind, str(key))
        return self.records[key]

    def presented(
        self, items: Iterable[Item]
    ) -> tuple[list[tuple[str, str, str, bool]], list[UUID]]:
        """Identifiers the patients of the batch go by, and keys that its records name."""
        found: dict[str, Presented] = {}
        own: set[UUID] = set()
        for item in items:
            read = item.read
            identifiers: Sequence[Identifier] = ()
            if isinstance(read, PatientRead):
                identifiers = read.identifiers
                own |= self._patients(item)
            elif isinstance(read, EncounterRead) and read.subject.literal not in item.inside:
                record = self._referred(item, "Patient", read.subject)
                if record is None or not record.version:
                    identifiers = read.subject.identifiers
                elif self._changes_hands(item, record):
                    own |= self._patients(item)
            elif isinstance(read, EncounterRead):
                own |= self._patients(item)
            for one in self.people.presented(identifiers):
                found[one.token.digest] = one
        tokens = [
            (one.token.digest, one.key_id, one.token.system, one.token.is_card)
            for _, one in sorted(found.items())
        ]
        return tokens, sorted(own)

    def _patients(self, item: Item) -> set[UUID]:
        """Patient keys of the records an item may concern."""
        names = [*self._own_names(item)]
        for kind, reference in self._references(item):
            names += self._names_of(kind, reference)
        records = (self.records.get(self.keys[name]) for name in names)
        return {one.patient for one in records if one is not None and one.patient is not None}

    def _changes_hands(self, item: Item, subject: Record) -> bool:
        """Whether an encounter comes with another patient than it had."""
        return bool(self._patients(item) - {subject.patient})

    # Decisions

    def decide(self, item: Item) -> None:
        """What becomes of an item, and all that follows for the others of the batch."""
        record = self._resolve(item)
        if record is None:
            return
        item.record = record
        item.version = record.version if item.again is None else item.again.version
        if self._precondition_fails(item, record) or self._reference_fails(item):
            return
        if item.entry.method == "DELETE":
            self._delete(item, record)
        elif isinstance(item.read, PatientRead):
            self._patient(item, record, item.read)
        elif isinstance(item.read, EncounterRead):
            self._encounter(item, record, item.read)

    def _resolve(self, item: Item) -> Record | None:
        """Which resource an item is; None if it has an answer already."""
        if item.again is not None:
            return self.records[item.again.key]
        if item.entry.method == "DELETE":
            record = self.records.get(self.keys[self._own_names(item)[0]])
            if record is None or not record.version:
                item.refuse(Problem("not-found", item.kind, "There is no such resource.", 404))
                return None
            return record
        if item.condition is not None:
            matches = self.matches.get((item.kind, self.token(item.kind, item.condition)), [])
            if len(matches) > 1:
                advice = "Several resources match the condition."
                item.refuse(Problem("multiple-matches", item.kind, advice, 412))
                return None
            if matches:
                return self._matched(item, self.records[matches[0]])
        return self._named(item)

    def _matched(self, item: Item, record: Record) -> Record | None:
        """HA-12, HA-15: the one resource that a condition names."""
        if item.entry.method == "PUT":
            body_id = (item.entry.resource or {}).get("id")
            if body_id not in (None, record.id):
                advice = "The id of the body is not that of the match."
                item.refuse(Problem("value", f"{item.kind}.id", advice))
                return None
            return record
        if not self.door.may(item.kind, "c"):
            item.refuse(_scope(item.kind, "c"))
            return None
        item.record, item.version, item.status = record, record.version, 200
        item.is_ignored = item.digest != record.digest
        return None

    def _named(self, item: Item) -> Record | None:
        """HA-70: a PUT's logical id decides first, then the visit number."""
        read = item.read
        own = self._own_names(item)
        deciding = own
        if item.entry.method == "POST" or item.condition is not None:
            if isinstance(read, EncounterRead) and read.visit is None:
                assert read.no_visit is not None
                item.refuse(read.no_visit)
                return None
            if isinstance(read, PatientRead) and not read.identifiers:
                advice = "Send a record number or health card, or PUT to an id of your own."
                item.refuse(Problem("business-rule", "Patient.identifier", advice, 422))
                return None
            deciding = [name for name in own if not name[1].startswith("id/")]
        keys = [self.keys[name] for name in deciding]
        come = [key for key in keys if key in self.records and self.records[key].version]
        if isinstance(read, PatientRead) and item.entry.logical_id is not None:
            # Another record with the same number is another record, unless it has no id of the
            # hospital's own: then it came by a message, and this is its id.
            come = [
                key
                for key in come
                if key == keys[0] or self.records[key].id == str(self.records[key].key)
            ]
            keys = keys[:1]
        known = [key for key in keys if key != item.proposal]
        key = (come or known or [item.proposal])[0]
        for name in own:
            was = self.keys[name]
            if was != key and (was not in self.records or not self.records[was].version):
                self.repointed[name] = self.keys[name] = key
                if was != item.proposal:
                    self.woken.add(was)  # who waited for the name waited for this
        record = self._record(key, item.kind)
        if not record.version and item.entry.logical_id is not None:
            record.id = item.entry.logical_id
        return record

    def _precondition_fails(self, item: Item, record: Record) -> bool:
        """HA-20, and the scopes of HA-99."""
        wanted = item.entry.if_match
        if wanted is not None and _version(wanted) != str(record.version):
            advice = f"The version is {record.version}." if record.version else "There is none."
            item.refuse(Problem("conflict", item.kind, advice, 412))
            return True
        if item.again is not None:
            return False
        letters = {"POST": "c", "PUT": "u", "DELETE": "d"}[item.entry.method]
        if self.door.name == "message":
            letters = ""  # Encounter.cu was asked for at the door
        elif (item.entry.method == "PUT" and not record.version) or (
            item.entry.method == "POST" and record.version and item.digest != record.digest
        ):
            letters = "cu"
        if not self._may(item.kind, letters):
            item.refuse(_scope(item.kind, letters))
        return bool(item.problems)

    def _may(self, kind: str, letters: str) -> bool:
        known = self._granted.get((kind, letters))
        if known is None:
            known = all(self.door.may(kind, letter) for letter in letters)
            self._granted[kind, letters] = known
        return known

    def _reference_fails(self, item: Item) -> bool:
        """Each conditional reference of a transaction has one match (HA-32)."""
        for kind, identifier, path in item.must_match:
            found = self.matches.get((kind, self.token(kind, identifier)), [])
            if len(found) != 1:
                advice = f"This conditional reference has {len(found)} matches; it needs one."
                item.refuse(Problem("multiple-matches", path, advice, 412))
        return bool(item.problems)

    def _delete(self, item: Item, record: Record) -> None:
        """HA-17: entered in error; the row and its versions stay."""
        item.status = 204
        if record.deleted:
            return
        message = Message(
            self.door.now, Status.ENTERED_IN_ERROR, hashlib.sha256(b"deleted").hexdigest()
        )
        item.told_at = message.event_time
        self._add(item, record, message)
        record.deleted = True

    def _patient(self, item: Item, record: Record, read: PatientRead) -> None:
        self._rewrite(item)
        if self._is_unchanged(item, record):
            return
        presented = self.people.presented(read.identifiers)
        verdict = self.people.match(
            presented,
            record=record.key,
            own=record.patient,
            birth=read.fields.get("birthDate"),
            by=self.door.client,
        )
        before = (record.patient, record.temporary)
        is_older = record.told_at is not None and read.event_time < record.told_at
        if isinstance(verdict, Conflict):
            item.hold = Hold(Reason.IDENTITY_CONFLICT)
        else:
            record.patient = verdict
            if self.people.gender_differs(verdict, read):
                self._odd(record, "gender-differs", "Patient.gender")
            self.people.learn(verdict, presented, read, record.key)
            if not is_older:
                item.hold = self._links(item, record, verdict, read)
                # Once merged it has a lasting identity, whatever its number looks like.
                is_merged = self.people.by_key[verdict].surviving is not None
                record.temporary = read.temporary and not is_merged
        if len(presented) < len({(one.system, one.value) for one in read.identifiers}):
            self._odd(record, "identifier-unusable", "Patient.identifier")
        self._add(item, record, None)
        released = item.again is not None and item.hold is None
        if released or before != (record.patient, record.temporary):
            self.woken.add(record.key)

    def _links(self, item: Item, record: Record, key: UUID, read: PatientRead) -> Hold | None:
        """Merge and unmerge as the hospital says (HA-97)."""
        person = self.people.by_key[key]
        if read.replaced_by is None or read.active:
            # A copy of the patient in a notification about a visit is no word on a merge.
            speaks = read.active and self.door.name != "message"
            if person.surviving is not None and person.link_record == record.key and speaks:
                self.people.unlink(key, cause="record", record=record.key, by=self.door.client)
            return None
        other = self._referred(item, "Patient", read.replaced_by)
        if other is None or not other.version:
            waits_for = None if other is None else str(other.key)
            return Hold(Reason.AWAITING_PATIENT, detail=waits_for or "")
        if other.patient is None:
            return Hold(Reason.IDENTITY_CONFLICT, detail=str(other.key))
        if not self.people.link(
            key, other.patient, cause="record", record=record.key, by=self.door.client
        ):
            return Hold(Reason.MERGE_CIRCLE)
        return None

    def _encounter(self, item: Item, record: Record, read: EncounterRead) -> None:
        patient, subject_hold, waits_for = self._whose(item, read)
        self._rewrite(item)
        if self._is_unchanged(item, record):
            return
        part_of = None
        if read.part_of is not None:
            whole = self._referred(item, "Encounter", read.part_of)
            part_of = None if whole is None or whole.key == record.key else whole.key
        message = replace(read.message, digest=item.digest, patient=patient, part_of=part_of)
        hold = read.hold
        if hold is not None and hold.reason in (Reason.START_MISSING, Reason.START_IMPRECISE):
            message, hold = self._start(item, record, read, message)
        if not (message.status.is_void and record.told):  # what was stated can be taken back
            hold = hold or subject_hold
        if hold is None and record.told and not (item.again and item.again.admitted):
            fact = fold(record.told)
            if is_reused(fact, message, self.people.same(fact.patient, message.patient)):
                hold = Hold(Reason.KEY_REUSED)
        item.hold = hold
        record.patient = record.patient or patient
        self._add(item, record, message, waits_for if hold is subject_hold else None)
        if message.start is not None and hold is None and record.held:
            self.started.add(record.key)

    def _start(
        self, item: Item, record: Record, read: EncounterRead, message: Message
    ) -> tuple[Message, Hold | None]:
        """A start that is missing: known from elsewhere, waited for, or assumed (CR-30)."""
        assert read.hold is not None
        if any(one.start is not None and not one.start_is_assumed for one in record.told):
            return message, None
        due = item.arrived + reading.PATIENCE
        if self.door.now < due:
            return message, replace(read.hold, due=due)
        best = read.best_start
        if best is None and self.door.name == "message" and not item.moves:
            best = Moment(item.told_at, item.told_at)
        if best is None:
            return message, replace(read.hold, due=None)
        return replace(message, start=best, start_is_assumed=True), None

    def _whose(
        self, item: Item, read: EncounterRead
    ) -> tuple[UUID | None, Hold | None, UUID | None]:
        """The patient of an encounter, or what it must wait for (HA-72, HA-94, HA-96)."""
        record = self._referred(item, "Patient", read.subject)
        if record is not None and record.version:
            if record.patient is None:
                return None, Hold(Reason.IDENTITY_CONFLICT), record.key
            if record.temporary:
                return record.patient, Hold(Reason.TEMPORARY_IDENTITY), record.key
            return record.patient, None, None
        waits_for = None if record is None else record.key
        presented = self.people.presented(read.subject.identifiers)
        if not presented:
            return None, Hold(Reason.AWAITING_PATIENT), waits_for
        if any(reading.is_temporary(one, self.door.rules) for one in read.subject.identifiers):
            return None, Hold(Reason.TEMPORARY_IDENTITY), waits_for
        verdict = self.people.match(presented, by=self.door.client)
        if isinstance(verdict, Conflict):
            return None, Hold(Reason.IDENTITY_CONFLICT), waits_for
        self.people.learn(verdict, presented)
        return verdict, None, None

    def _rewrite(self, item: Item) -> None:
        """References to others of the Bundle become their ids, in the text as kept (HA-32)."""
        if not item.inside or item.entry.text is None:
            return

        def named(match: re.Match[str]) -> str:
            inner = item.inside.get(match[2])
            if inner is None or inner.record is None:
                return match[0]
            return f'{match[1]}"{inner.kind}/{inner.record.id}"'

        item.text = _REFERENCE.sub(named, item.entry.text)
        settled = _URN.sub(r'\1"urn:elsewhere"', item.text)
        item.digest = digest_of(orjson.loads(settled))

    def _is_unchanged(self, item: Item, record: Record) -> bool:
        """The same content as the newest version has no effect (HA-11)."""
        if item.again is not None or not record.version or record.deleted:
            return False
        if item.digest != record.digest:
            return False
        item.status = 200
        if record.hold is not None:
            item.hold = Hold(Reason(record.hold))
        self._audit(item, record, created=False)
        return True

    def _add(
        self, item: Item, record: Record, message: Message | None, waits_for: UUID | None = None
    ) -> None:
        """Keep an item as a new version, or settle the version that was held."""
        hold = item.hold
        if hold is not None and waits_for is None and isinstance(item.read, PatientRead):
            waits_for = UUID(hold.detail) if hold.detail else None
        said = message if hold is None else None
        record.touched = True
        if item.again is None:
            self._new_version(item, record)
            if isinstance(item.read, (PatientRead, EncounterRead)):
                tokens = (self.token(item.kind, one) for one in item.read.identifiers)
                record.identifiers = sorted({one for one in tokens if one})
                if item.condition is None:
                    for digest in record.identifiers:
                        self._matches_now(item.kind, digest, record.key)
        version = Version(
            record.key,
            item.version,
            item.kind,
            self._seal(item, record),
            self._seal_context(item, record),
            item.digest or (message.digest if message else ""),
            item.arrived,
            item.told_at,
            self.door.name,
            item.moves,
            said,
            None if hold is None else hold.reason.value,
            None if hold is None else hold.due,
            "" if hold is None or isinstance(item.read, PatientRead) else hold.detail,
            waits_for,
        )
        (self.versions if item.again is None else self.released).append(version)
        if said is not None:
            record.told.append(said)
        if item.again is None:
            record.hold = version.hold
            if hold is not None:
                record.held.append(Held(record.key, item.version, hold.reason.value))

    def _new_version(self, item: Item, record: Record) -> None:
        created = not record.version or record.deleted
        item.status = item.status or (201 if created else 200)
        record.version += 1
        record.deleted = False
        record.digest = item.digest
        record.updated = self.door.now
        if record.told_at is None or item.told_at > record.told_at:
            record.told_at = item.told_at
        item.version = record.version
        self._audit(item, record, created=created)

    def _matches_now(self, kind: str, digest: str, key: UUID) -> None:
        """What this batch brings, its later conditions find."""
        found = self.matches.setdefault((kind, digest), [])
        if key not in found:
            found.append(key)

    def _seal(self, item: Item, record: Record) -> tuple[str, str] | None:
        if item.again is not None or item.entry.text is None:
            return None
        item.text = item.text or item.entry.text
        return self.door.keys.seals.seal(record.key, BODY, item.text)

    def _seal_context(self, item: Item, record: Record) -> str | None:
        if item.again is not None or not item.conditions:
            return None
        texts = orjson.dumps([text for _, text in item.conditions]).decode()
        return self.door.keys.seals.seal(record.key, CONTEXT, texts)[1]

    def _odd(self, record: Record, code: str, expression: str) -> None:
        self.oddities.append(Oddity(record.key, record.version + 1, code, expression))

    def _audit(self, item: Item, record: Record, *, created: bool) -> None:
        """One record for each accepted write (HA-102)."""
        entity = f"{record.kind}/{record.key}/_history/{record.version}"
        trail = self.door.trail
        if item.entry.method == "DELETE":
            self.trail.append(trail.deleted(entity, record.patient))
        elif created:
            self.trail.append(trail.created(entity, record.patient))
        else:
            self.trail.append(trail.updated(entity, record.patient))

    # Facts

    def facts(self) -> list[Event]:
        """State each encounter whose fact is another than the one last stated (CT-15)."""
        news: list[Event] = []
        for record in self.records.values():
            if record.kind != "Encounter" or not record.touched or not record.told:
                continue
            fact = fold(record.told)
            if fact.patient is None:
                continue  # it was never stated, and what voids it names nobody
            record.patient = fact.patient
            stated = _digest(fact)
            if stated == record.stated:
                continue
            record.stated = stated
            record.fact_version += 1
            news.append(
                statement(record.key, record.fact_version, self.door.site, fact, self.door.now)
            )
        return news


_REFERENCE = re.compile(r'("reference"\s*:\s*)"([^"\\]+)"')
_URN = re.compile(r'("reference"\s*:\s*)"urn:[^"\\]+"')


def _version(etag: str) -> str:
    """`W/"1"`, `"1"` or bare `1` (HA-16)."""
    return etag.strip().removeprefix("W/").strip('"')


def _digest(fact: Fact) -> str:
    """Of what a fact says; when it was said matters only to a plan (CT-16)."""
    said = [getattr(fact, name) for name in _STATED]
    if fact.status is Status.PLANNED:
        said.append(fact.event_time)
    return hashlib.sha256(orjson.dumps(said, default=str)).hexdigest()


_STATED = tuple(one.name for one in fields(Fact) if one.name != "event_time")


def statement(
    encounter: UUID,
    version: int,
    site: str,
    fact: Fact,
    recorded: datetime,
    restated: UUID | None = None,
) -> EncounterRecorded:
    """The event that states `fact`; `restated`: for the rebuild of this id."""
    assert fact.patient is not None
    return EncounterRecorded(
        patient=fact.patient,
        encounter=encounter,
        version=version,
        site=site,
        status=events.Status(fact.status),
        classes=tuple(
            ClassSince(code=events.EncounterClass(code), since=since)
            for code, since in fact.classes
        ),
        triaged=fact.triaged,
        start=_moment(fact.start),
        end=_moment(fact.end),
        disposition=None if fact.disposition is None else events.Disposition(fact.disposition),
        service=None if fact.service is None else events.Service(fact.service),
        part_of=fact.part_of,
        from_emergency=fact.from_emergency,
        transfer_in=fact.transfer_in,
        transfer_out=fact.transfer_out,
        planned=fact.planned,
        codes=_codings(fact.codes),
        labels=_codings(fact.labels),
        time_is_ambiguous=fact.time_is_ambiguous,
        start_is_assumed=fact.start_is_assumed,
        event_time=fact.event_time,
        recorded=recorded,
        backfill=fact.backfill,
        restated=restated,
    )


def _moment(moment: Moment | None) -> EventMoment | None:
    if moment is None:
        return None
    return EventMoment(earliest=moment.earliest, latest=moment.latest, precision=moment.precision)


def _codings(codes: Sequence[Any] | None) -> tuple[Coding, ...] | None:
    if codes is None:
        return None
    return tuple(Coding(system=one.system, code=one.code) for one in codes)
