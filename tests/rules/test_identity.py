"""Which identifiers are one patient (hospital-api.md section 12)."""

from uuid import UUID

from services.ingest.identity import (
    Conflict,
    Known,
    Merge,
    New,
    Same,
    Token,
    match,
    may_link,
    survivor,
)

P, Q, R = UUID(int=1), UUID(int=2), UUID(int=3)
RECORD, OTHER_RECORD = UUID(int=11), UUID(int=12)
CARD = Token("card-1", "ramq", is_card=True)
NEW_CARD = Token("card-2", "ramq", is_card=True)
MRN_A = Token("mrn-a", "site-a", is_card=False)
MRN_B = Token("mrn-b", "site-b", is_card=False)


def known(key: UUID, birth: str | None = None, *cards: str, apart: UUID | None = None) -> Known:
    return Known(
        key,
        birth,
        OTHER_RECORD,
        {"ramq": frozenset(cards)} if cards else {},
        frozenset({apart} if apart else ()),
    )


def test_nobody_on_file_is_a_new_patient() -> None:
    assert match([CARD, MRN_A], {}, {}, {}) == New()


def test_a_card_matches_across_sites() -> None:
    """HA-93."""
    found = match([CARD, MRN_B], {"card-1": P}, {P: known(P, "b", "card-1")}, {}, birth="b")
    assert found == Same(P)


def test_a_renewed_card_on_a_known_record_number_is_added() -> None:
    """HA-95, CR-36: counts follow the person."""
    found = match([NEW_CARD, MRN_A], {"mrn-a": P}, {P: known(P, "b", "card-1")}, {}, birth="b")
    assert found == Same(P)


def test_the_same_card_with_another_birth_date_waits_for_a_person() -> None:
    """HA-94."""
    found = match([CARD], {"card-1": P}, {P: known(P, "b", "card-1")}, {}, birth="other")
    assert isinstance(found, Conflict)


def test_the_record_that_gave_the_birth_date_may_correct_it() -> None:
    on_file = Known(P, "b", RECORD, {"ramq": frozenset({"card-1"})})
    found = match([CARD], {"card-1": P}, {P: on_file}, {}, record=RECORD, own=P, birth="other")
    assert found == Same(P)


def test_two_patients_are_merged_if_birth_dates_agree_and_no_card_differs() -> None:
    """HA-94: the one with the card survives."""
    owners = {"card-1": P, "mrn-b": Q}
    on_file = {P: known(P, "b", "card-1"), Q: known(Q, "b")}
    assert match([CARD, MRN_B], owners, on_file, {}, birth="b") == Merge(Q, P, Q)


def test_two_patients_are_not_merged_otherwise() -> None:
    """HA-94: birth date unknown or different, another card, or told apart before."""
    owners = {"card-1": P, "mrn-b": Q}
    for one, other, birth in (
        (known(P, None, "card-1"), known(Q, "b"), "b"),
        (known(P, "b", "card-1"), known(Q), "b"),
        (known(P, "b", "card-1"), known(Q, "c"), "b"),
        (known(P, "b", "card-1"), known(Q, "b", "card-2"), "b"),
        (known(P, "b", "card-1"), known(Q, "b", apart=P), "b"),
    ):
        assert isinstance(
            match([CARD, MRN_B], owners, {P: one, Q: other}, {}, birth=birth), Conflict
        )


def test_three_patients_are_for_a_person() -> None:
    owners = {"card-1": P, "mrn-a": Q, "mrn-b": R}
    on_file = {key: known(key, "b") for key in (P, Q, R)}
    assert isinstance(match([CARD, MRN_A, MRN_B], owners, on_file, {}, birth="b"), Conflict)


def test_patients_who_are_linked_are_one_and_each_message_keeps_its_own_key() -> None:
    """HA-97: so that unmerge loses nothing."""
    owners = {"card-1": P, "mrn-b": Q}
    on_file = {P: known(P, "b", "card-1"), Q: known(Q, "c")}
    assert match([MRN_B, CARD], owners, on_file, {Q: P}) == Same(Q)


def test_chains_resolve_to_the_last_survivor() -> None:
    """CT-01."""
    assert survivor(R, {R: Q, Q: P}) == P
    assert survivor(P, {R: Q, Q: P}) == P


def test_merges_in_a_circle_or_with_oneself_are_not_made() -> None:
    """HA-97."""
    assert not may_link(P, P, {})
    assert not may_link(P, R, {R: Q, Q: P})
    assert may_link(R, P, {R: Q})
    assert may_link(Q, P, {})
