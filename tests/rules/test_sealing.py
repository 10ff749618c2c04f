"""Tokens and seals: what a value becomes, and who may turn it back (CS-94, CS-95)."""

from uuid import UUID

import pytest
from pydantic import SecretStr

from services.plumbing.sealing import SealBrokenError, Seals, Tokens, UnknownKeyError
from services.plumbing.settings import Keyring, Settings
from tests.conftest import keyring

PATIENT = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")
OTHER = UUID("4c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c04")
SEALS = Seals(keyring("dates"), keyring("seals"))
CARD = "https://health-card.example.ca"


def both() -> Keyring:
    old, new = keyring("tokens"), keyring("u-new")
    keys = {**old.keys, **new.keys}
    return Keyring.model_validate(
        {"active": new.active, "keys": {k: v.get_secret_value() for k, v in keys.items()}}
    )


def test_what_is_sealed_opens_and_never_looks_the_same_twice() -> None:
    boxes = {SEALS.seal(PATIENT, "family", "Fictif") for _ in range(50)}
    assert len(boxes) == 50
    assert {SEALS.open(PATIENT, "family", *box) for box in boxes} == {"Fictif"}
    assert not any("Fictif" in box for _, box in boxes)


@pytest.mark.parametrize(("patient", "name"), [(OTHER, "family"), (PATIENT, "given")])
def test_a_box_moved_to_another_patient_or_field_does_not_open(patient: UUID, name: str) -> None:
    box = SEALS.seal(PATIENT, "family", "Fictif")
    with pytest.raises(SealBrokenError):
        SEALS.open(patient, name, *box)


def test_a_changed_box_does_not_open() -> None:
    key, box = SEALS.seal(PATIENT, "family", "Fictif")
    for at in range(0, len(box), 7):
        changed = box[:at] + ("A" if box[at] != "A" else "B") + box[at + 1 :]
        with pytest.raises(SealBrokenError):
            SEALS.open(PATIENT, "family", key, changed)


def test_who_has_the_dates_alone_opens_birth_date_and_death_alone() -> None:
    """Screening."""
    dates = Seals(keyring("dates"))
    assert dates.open(PATIENT, "birthDate", *SEALS.seal(PATIENT, "birthDate", "1950-02-03"))
    with pytest.raises(UnknownKeyError):
        dates.open(PATIENT, "family", *SEALS.seal(PATIENT, "family", "Fictif"))
    with pytest.raises(UnknownKeyError):
        dates.seal(PATIENT, "family", "Fictif")


def test_an_unknown_key_is_said_and_nothing_is_guessed() -> None:
    _, box = SEALS.seal(PATIENT, "family", "Fictif")
    with pytest.raises(UnknownKeyError, match="s9"):
        SEALS.open(PATIENT, "family", "s9", box)


def test_equal_identifiers_have_equal_tokens_and_others_others() -> None:
    tokens = Tokens(keyring("tokens"))
    assert tokens.token(CARD, "TEST00000001") == tokens.token(CARD, "TEST00000001")
    said = {
        tokens.token(CARD, "TEST00000001"),
        tokens.token(CARD, "TEST00000002"),
        tokens.token("https://record.example.ca", "TEST00000001"),
        Tokens(keyring("u-new")).token(CARD, "TEST00000001"),
    }
    assert len(said) == 4


def test_in_a_rotation_a_value_is_looked_for_under_each_key() -> None:
    tokens = Tokens(both())
    old = Tokens(keyring("tokens")).token(CARD, "TEST00000001")
    assert tokens.token(CARD, "TEST00000001") != old
    assert set(tokens.all(CARD, "TEST00000001")) == {old, tokens.token(CARD, "TEST00000001")}


def test_no_repr_shows_a_key() -> None:
    ring = keyring("tokens")
    secret = next(iter(ring.keys.values())).get_secret_value()
    for one in (ring, Tokens(ring), SEALS):
        assert secret not in repr(one)
        assert secret not in str(one)
    assert repr(SEALS) == "Seals(active='d1')"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"t1": "c2hvcnQ="}, "shorter"),
        ({"t1": "QUJD" * 16, "t2": "QUJD" * 16}, "same key"),
        ({"t2": "QUJD" * 16}, "not among"),
        ({"t1": "A" * 43 + "="}, "no random one"),
        ({"t1": "QUFB" * 16}, "no random one"),
        ({"t1": "<base64 of 32 bytes, made once and kept well>"}, "not base64"),
    ],
)
def test_a_short_equal_missing_or_default_key_is_refused(keys: dict[str, str], why: str) -> None:
    """CS-95."""
    with pytest.raises(ValueError, match=why):
        Keyring.model_validate({"active": "t1", "keys": keys})


KEYS = {name: f"{name}_keys" for name in ("token", "seal", "date")}


@pytest.mark.parametrize("one", [*KEYS.values(), "cursor_key", "checkpoint_key"])
def test_a_key_that_serves_two_purposes_is_refused(one: str) -> None:
    """CS-95: what pages of screening show must not open names."""
    made = {field: keyring(word) for word, field in KEYS.items()}
    same = made["seal_keys" if one != "seal_keys" else "token_keys"].keys
    (secret,) = [key.get_secret_value() for key in same.values()]
    again: object = secret if one.endswith("key") else {"active": "x1", "keys": {"x1": secret}}
    with pytest.raises(ValueError, match="two keys are the same"):
        Settings.model_validate({**made, one: again})


def test_a_short_single_key_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Settings(cursor_key=SecretStr("c2hvcnQ="))
