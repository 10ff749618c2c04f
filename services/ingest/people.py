"""The patients that one batch touches: found, made, learnt of, linked, and announced once.

Holds what `store.meet` told of while the batch is decided; `store.settle` writes it. Values are
sealed here, so that nothing below or after this module sees one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from schemas.envelope import Event
from schemas.patient_identified_v1 import PatientIdentified, Sealed, Token
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from services.ingest import identity
from services.ingest.reading import Identifier, PatientRead
from services.plumbing.identifiers import (
    canonical_system,
    is_health_card,
    normalise,
    own_system,
)
from services.plumbing.sealing import Seals, Tokens
from services.plumbing.telemetry import new_id

FIELD = "urn:passerelle:field:"


@dataclass(frozen=True, slots=True)
class Presented:
    """An identifier of a message, normalised, with its token."""

    token: identity.Token
    key_id: str
    value: str = field(repr=False)


@dataclass(slots=True)
class Person:
    """One patient key as it stands in this batch."""

    key: UUID
    version: int = 0
    fields: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    sites: list[str] = field(default_factory=list)
    attributed: list[str] = field(default_factory=list)
    surviving: UUID | None = None
    link_version: int = 0
    link_record: UUID | None = None
    """The record that said so, if one did: it may take it back."""
    apart: list[UUID] = field(default_factory=list)
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    is_news: bool = False
    is_changed: bool = False
    taken: list[str] = field(default_factory=list, repr=False)
    """Digests that became this patient's in this batch."""

    def known(self) -> identity.Known:
        """As identity.py looks at it."""
        cards: dict[str, set[str]] = {}
        for digest, token in self.tokens.items():
            if token["is_card"]:
                cards.setdefault(token["system"], set()).add(digest)
        birth = self.fields.get("birthDate", {})
        return identity.Known(
            self.key,
            birth.get("d"),
            UUID(birth["from"]) if birth.get("from") else None,
            {system: frozenset(digests) for system, digests in cards.items()},
            frozenset(self.apart),
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A merge or unmerge that this batch makes."""

    retired: UUID
    version: int
    surviving: UUID
    merged: bool
    cause: str
    record: UUID | None
    by: str


@dataclass(slots=True)
class People:
    """All patients of one batch of one site."""

    site: str
    now: datetime
    tokens: Tokens
    seals: Seals
    aliases: Mapping[str, str]
    clinics: Mapping[tuple[str, str], str]
    """Clinic by identifier (canonical system, normalised value), for CA-46."""
    owners: dict[str, UUID] = field(default_factory=dict)
    by_key: dict[UUID, Person] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def present(self, identifier: Identifier) -> Presented | None:
        """The identifier as it is compared; None if it is not of its form (HA-92)."""
        system = (
            own_system(self.site)
            if identifier.system is None
            else canonical_system(identifier.system, self.aliases)
        )
        value = normalise(system, identifier.value)
        if value is None:
            return None
        key_id, digest = self.tokens.token(system, value)
        return Presented(identity.Token(digest, system, is_health_card(system)), key_id, value)

    def presented(self, identifiers: Iterable[Identifier]) -> list[Presented]:
        """Those of `identifiers` that can be compared, each once."""
        found = (self.present(one) for one in identifiers)
        return list({one.token.digest: one for one in found if one is not None}.values())

    def met(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in what `store.meet` told of."""
        for row in rows:
            if "digest" in row:
                self.owners[row["digest"]] = UUID(row["patient"])
                continue
            person = Person(
                key=UUID(row["key"]),
                version=row["version"],
                fields=row["fields"],
                sites=row["sites"],
                attributed=row["attributed"],
                surviving=UUID(row["surviving"]) if row["surviving"] else None,
                link_version=row["link_version"],
                link_record=UUID(row["link_record"]) if row["link_record"] else None,
                apart=[UUID(one) for one in row["apart"]],
                tokens={token["digest"]: token for token in row["tokens"]},
            )
            self.by_key[person.key] = person
            if self.tokens.rotating:
                self._renew(person)

    def _renew(self, person: Person) -> None:
        """Digests of fields under the active key, that equal values stay equal (HA-98)."""
        for name, said in person.fields.items():
            if "b" in said:
                value = self.seals.open(person.key, name, said["k"], said["b"])
                digest = self._digest(name, value)
                person.is_changed |= digest != said["d"]
                said["d"] = digest

    def linked(self) -> dict[UUID, UUID]:
        """The merges in force among these patients."""
        people = self.by_key.values()
        return {one.key: one.surviving for one in people if one.surviving is not None}

    def same(self, one: UUID | None, other: UUID | None) -> bool:
        """Whether two keys are one person, links resolved."""
        if one is None or other is None:
            return one is other
        links = self.linked()
        return identity.survivor(one, links) == identity.survivor(other, links)

    def match(
        self,
        presented: Sequence[Presented],
        *,
        record: UUID | None = None,
        own: UUID | None = None,
        birth: str | None = None,
        by: str,
    ) -> UUID | identity.Conflict:
        """Whose these identifiers are: a key, made or linked if need be (HA-94)."""
        born = None if birth is None else self._digest("birthDate", birth)
        chain = self._chain(presented, own)
        verdict = identity.match(
            [one.token for one in presented],
            self.owners,
            {person.key: person.known() for person in chain},
            {one.key: one.surviving for one in chain if one.surviving is not None},
            record=record,
            own=own,
            birth=born,
        )
        match verdict:
            case identity.New():
                return self._make()
            case identity.Same(key):
                return key
            case identity.Merge(key, surviving, retired):
                self.link(retired, surviving, cause="evidence", record=record, by=by)
                return key
            case identity.Conflict():
                return verdict

    def _chain(self, presented: Sequence[Presented], own: UUID | None) -> list[Person]:
        """Those whom the identifiers name, and whom these are merged into."""
        keys = [self.owners.get(one.token.digest) for one in presented]
        found: dict[UUID, Person] = {}
        for key in (own, *keys):
            at = key
            while at is not None and at not in found:
                found[at] = self.by_key[at]
                at = found[at].surviving
        return list(found.values())

    def _make(self) -> UUID:
        person = Person(new_id(), is_news=True, is_changed=True)
        self.by_key[person.key] = person
        return person.key

    def learn(
        self,
        key: UUID,
        presented: Sequence[Presented],
        read: PatientRead | None = None,
        record: UUID | None = None,
    ) -> None:
        """Add to `key` what a message says of it. Newer values replace, absence does not."""
        person = self.by_key[key]
        if self.site not in person.sites:
            person.sites = sorted({*person.sites, self.site})
            person.is_news = True
        added = [one for one in presented if one.token.digest not in self.owners]
        for one in added:
            self.owners[one.token.digest] = key
            person.taken.append(one.token.digest)
            person.tokens[one.token.digest] = {
                "digest": one.token.digest,
                "key_id": one.key_id,
                "system": one.token.system,
                "is_card": one.token.is_card,
            }
            person.is_news = True
        told_at = self.now if read is None else read.event_time
        self._number(person, added, told_at)
        if read is None:
            return
        for card in [one for one in presented if one.token.is_card][:1]:
            self._field(person, "healthCard", f"{card.token.system}|{card.value}", told_at, record)
        for name, value in read.fields.items():
            self._field(person, name, value, told_at, record)
        known = {self._clinic(one) for one in read.caregivers} - {None, *person.attributed}
        if known:
            person.attributed = sorted({*person.attributed, *(one for one in known if one)})
            person.is_news = True

    def gender_differs(self, key: UUID, read: PatientRead) -> bool:
        """A quality item, never a hold (HA-94)."""
        said, has = read.fields.get("gender"), self.by_key[key].fields.get("gender")
        return said is not None and has is not None and has["d"] != self._digest("gender", said)

    def _clinic(self, identifier: Identifier) -> str | None:
        system = canonical_system(identifier.system or "", self.aliases)
        return self.clinics.get((system, normalise(system, identifier.value) or ""))

    def _number(self, person: Person, added: Sequence[Presented], told_at: datetime) -> None:
        """Keep the record numbers readable for notify: a sealed list of all of them."""
        new = [
            {"site": self.site, "system": one.token.system, "value": one.value}
            for one in added
            if not one.token.is_card
        ]
        if not new:
            return
        has = person.fields.get("recordNumbers")
        before: list[dict[str, str]] = (
            []
            if has is None
            else orjson.loads(self.seals.open(person.key, "recordNumbers", has["k"], has["b"]))
        )
        self._field(person, "recordNumbers", orjson.dumps([*before, *new]).decode(), told_at, None)

    def _field(
        self, person: Person, name: str, value: str | None, at: datetime, record: UUID | None
    ) -> None:
        has = person.fields.get(name)
        if name != "recordNumbers" and has is not None and at < datetime.fromisoformat(has["at"]):
            return
        digest = None if value is None else self._digest(name, value)
        said = {"d": digest, "at": at.isoformat(), "from": None if record is None else str(record)}
        if has is not None and has["d"] == digest:
            if has["at"] != said["at"]:
                has["at"] = said["at"]
                person.is_changed = True
            return
        if has is None and value is None:
            return
        if value is not None:
            said["k"], said["b"] = self.seals.seal(person.key, name, value)
        person.fields[name] = said
        person.is_news = True

    def _digest(self, name: str, value: str) -> str:
        return self.tokens.token(f"{FIELD}{name}", value)[1]

    def link(
        self, retired: UUID, surviving: UUID, *, cause: str, record: UUID | None, by: str
    ) -> bool:
        """Merge `retired` into `surviving`; False if that would be a circle (HA-97)."""
        if self.by_key[retired].surviving == surviving:
            return True
        if not identity.may_link(retired, surviving, self.linked()):
            return False
        self._link(self.by_key[retired], surviving, merged=True, cause=cause, record=record, by=by)
        return True

    def unlink(self, retired: UUID, *, cause: str, record: UUID | None, by: str) -> None:
        """Undo the merge of `retired`, if there is one; never made again by itself."""
        person = self.by_key[retired]
        if (surviving := person.surviving) is None:
            return
        person.apart = sorted({*person.apart, surviving})
        self._link(person, surviving, merged=False, cause=cause, record=record, by=by)

    def _link(
        self,
        person: Person,
        surviving: UUID,
        *,
        merged: bool,
        cause: str,
        record: UUID | None,
        by: str,
    ) -> None:
        person.surviving = surviving if merged else None
        person.link_version += 1
        person.is_changed = True
        self.links.append(
            Link(person.key, person.link_version, surviving, merged, cause, record, by)
        )

    def changed(self) -> list[Person]:
        """Whom `store.settle` must write; versions are counted up here, once a batch."""
        found = [one for one in self.by_key.values() if one.is_news or one.is_changed]
        for person in found:
            person.version += person.is_news
        return found

    def events(self) -> list[Event]:
        """What the others must be told, after `changed`."""
        identified: list[Event] = [
            PatientIdentified.model_construct(
                patient=person.key,
                version=person.version,
                tokens=tuple(
                    Token.model_construct(key_id=token["key_id"], digest=digest)
                    for digest, token in sorted(person.tokens.items())
                ),
                demographics={
                    name: Sealed.model_construct(key_id=said["k"], box=said["b"])
                    for name, said in person.fields.items()
                    if "b" in said
                },
                attributed=tuple(person.attributed),
                sites=tuple(person.sites),
                recorded=self.now,
            )
            for person in self.by_key.values()
            if person.is_news
        ]
        links: list[Event] = [
            (PatientMerged if link.merged else PatientUnmerged).model_construct(
                surviving=link.surviving,
                retired=link.retired,
                version=link.version,
                recorded=self.now,
            )
            for link in self.links
        ]
        return identified + links
