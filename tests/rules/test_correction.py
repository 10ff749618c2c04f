"""What a person may say of a count (CT-17): complete or sent back, and never twice the same."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from services.notify.correction import LONGEST_NOTE, Correction, Reason, Subject, Wish, corrected

NOW = datetime(2026, 3, 2, 19, 0, tzinfo=UTC)
ABOUT = Subject(UUID(int=1), UUID(int=2), "hospital-a")
NOTE = "Inscrite deux fois."
EXCLUDE = Wish(excluded=True, reason=Reason.REGISTERED_TWICE, note=f"  {NOTE} ")
UNDO = Wish(excluded=False, reason=None, note="Le dossier est bien à son nom.")


def said(known: Correction | None, wish: Wish) -> Correction | None:
    return corrected(ABOUT, known, wish, "hospital-cm", NOW)


def test_ct_17_a_visit_is_taken_out_put_back_and_taken_out_again() -> None:
    first = said(None, EXCLUDE)
    assert first is not None
    assert (first.version, first.excluded, first.reason, first.note) == (
        1,
        True,
        Reason.REGISTERED_TWICE,
        NOTE,
    )
    second = said(first, UNDO)
    assert second is not None
    assert (second.version, second.excluded, second.reason) == (2, False, None)
    third = said(second, EXCLUDE)
    assert third is not None
    assert (third.version, third.excluded) == (3, True)


def test_ct_17_what_is_so_already_is_not_said_again() -> None:
    assert said(None, UNDO) is None
    assert said(said(None, EXCLUDE), EXCLUDE) is None


@pytest.mark.parametrize(
    ("wish", "lacks"),
    [
        (EXCLUDE, set()),
        (UNDO, set()),
        (Wish(excluded=True, reason=None, note=NOTE), {"reason"}),
        (Wish(excluded=True, reason=Reason.OTHER, note="123456789 "), {"note"}),
        (Wish(excluded=True, reason=Reason.OTHER, note="1234567890"), set()),
        (Wish(excluded=False, reason=None, note=""), {"note"}),
        (Wish(excluded=False, reason=None, note="x" * (LONGEST_NOTE + 1)), {"note"}),
        (Wish(excluded=True, reason=None, note=""), {"reason", "note"}),
    ],
)
def test_ct_17_a_reason_and_a_few_words_are_needed(wish: Wish, lacks: set[str]) -> None:
    assert wish.lacks == lacks


def test_what_the_person_wrote_is_in_no_repr() -> None:
    assert NOTE not in repr(said(None, EXCLUDE)) + repr(EXCLUDE)
