"""Tokens of identifiers, and sealed demographics: how a value travels without being told (CS-94).

A token is HMAC-SHA-256 over system and normalised value: equal for equal identifiers, useless
otherwise. A sealed field is AES-256-GCM under a key of its own, bound to patient, field and key
id, so that a box moved elsewhere does not open. Birth date and death have another keyring than
the rest: screening holds only that one.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.plumbing.settings import Keyring

DATES = frozenset({"birthDate", "deceased"})
"""Fields that the `date_keys` seal."""


class UnknownKeyError(Exception):
    """A value was made with a key id that is not in the keyring: it waits, nothing is guessed."""


class RetiredKeyError(UnknownKeyError):
    """The active key was taken out of use: what it would make, nobody would find."""


class SealBrokenError(Exception):
    """A box does not open: it was altered, or belongs to another patient or field."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Makes tokens under every key of a ring, so that rotation loses no match (CS-95)."""

    ring: Keyring = field(repr=False)

    def token(self, system: str, value: str) -> tuple[str, str]:
        """(key id, digest) under the active key. `system` canonical, `value` normalised."""
        return self.ring.active, _digest(self.ring.key(self.ring.active), system, value)

    def all(self, system: str, value: str) -> list[tuple[str, str]]:
        """The token under each key: what to look for while a rotation is under way."""
        return [
            (key_id, _digest(self.ring.key(key_id), system, value)) for key_id in self.ring.keys
        ]

    @property
    def rotating(self) -> bool:
        """Whether values may be on file under more than one key."""
        return len(self.ring.keys) > 1

    def renewed(self, system: str, value: str) -> "Renewed":
        """What to move to the active key, and what to lock meanwhile."""
        found = dict(self.all(system, value))
        new = found[self.ring.active]
        olds = tuple(found[key] for key in found if key != self.ring.active)
        return Renewed(lock=found[min(found)], olds=olds, new=new)


@dataclass(frozen=True, slots=True)
class Renewed:
    """The digests of one value under the keys of a ring, while a rotation is under way."""

    lock: str
    """Under the key that sorts first: the same for all processes, whichever is active."""
    olds: tuple[str, ...]
    new: str


def _digest(key: bytes, system: str, value: str) -> str:
    said = f"{system}|{value}".encode()
    return _b64(hmac.new(key, said, hashlib.sha256).digest())


class Seals:
    """Seals and opens fields. Without `ring`, only the fields of `DATES`."""

    def __init__(self, dates: Keyring, ring: Keyring | None = None) -> None:
        self._dates = dates
        self._ring = ring
        self._ciphers: dict[tuple[bool, str, str], AESGCM] = {}

    def __repr__(self) -> str:
        return f"Seals(active={self._dates.active!r})"

    def seal(self, patient: UUID, name: str, value: str) -> tuple[str, str]:
        """(key id, box) of `value` as field `name` of `patient`."""
        ring = self._ring_of(name)
        nonce = os.urandom(12)
        box = self._cipher(name, ring.active).encrypt(
            nonce, value.encode(), _bound(patient, name, ring.active)
        )
        return ring.active, _b64(nonce + box)

    def open(self, patient: UUID, name: str, key_id: str, box: str) -> str:
        """The value. UnknownKeyError, SealBrokenError: it cannot be had, and no guess is made."""
        raw = _unb64(box)
        try:
            plain = self._cipher(name, key_id).decrypt(
                raw[:12], raw[12:], _bound(patient, name, key_id)
            )
        except InvalidTag:
            raise SealBrokenError(f"field {name} does not open") from None
        return plain.decode()

    def active(self, name: str) -> str:
        """The key id that field `name` is sealed under now."""
        return self._ring_of(name).active

    def _ring_of(self, name: str) -> Keyring:
        if name in DATES:
            return self._dates
        if self._ring is None:
            raise UnknownKeyError(f"this service has no key for {name}")
        return self._ring

    def _cipher(self, name: str, key_id: str) -> AESGCM:
        known = (name in DATES, name, key_id)
        if known not in self._ciphers:
            ring = self._ring_of(name)
            if key_id not in ring.keys:
                raise UnknownKeyError(f"no key {key_id!r} for {name}")
            derived = HKDF(SHA256(), 32, salt=None, info=f"passerelle field {name}".encode())
            self._ciphers[known] = AESGCM(derived.derive(ring.key(key_id)))
        return self._ciphers[known]


def open_all(seals: Seals, patient: UUID, boxes: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Each field of `boxes` ((key id, box) by name) opened."""
    return {name: seals.open(patient, name, *box) for name, box in boxes.items()}


def identifiers_of(
    seals: Seals, patient: UUID, boxes: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str]]:
    """System and value of a patient's identifiers, among the fields that ingest keeps sealed.

    Those that do not open are left out: nothing is guessed.
    """
    found: list[tuple[str, str]] = []
    try:
        if "healthCard" in boxes:
            card = seals.open(patient, "healthCard", *boxes["healthCard"])
            system, _, value = card.rpartition("|")
            found.append((system, value))
        if "recordNumbers" in boxes:
            said = orjson.loads(seals.open(patient, "recordNumbers", *boxes["recordNumbers"]))
            found += [(one["system"], one["value"]) for one in said]
    except (UnknownKeyError, SealBrokenError):
        return found
    return found


def _bound(patient: UUID, name: str, key_id: str) -> bytes:
    return f"{patient}|{name}|{key_id}".encode()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unb64(said: str) -> bytes:
    return base64.urlsafe_b64decode(said + "=" * (-len(said) % 4))
