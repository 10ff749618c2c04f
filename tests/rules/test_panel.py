"""Whose patient is it (CA-40, CA-43, CA-46)."""

from dataclasses import replace
from datetime import date

import pytest

from services.notify.panel import (
    Fault,
    Identity,
    Mode,
    PanelError,
    Row,
    Unroutable,
    confirms,
    decode,
    plan,
    read,
    routes,
    unroutable,
)

CARD = "https://health-card.example.ca"
HEAD = "card_system,card_number,family,birth_date,given,nurse,start,end"
NURSES = ["nurse-a"]


def normal(system: str, value: str) -> tuple[str, str] | None:
    plain = value.replace(" ", "").upper()
    return (system, plain) if plain.startswith("TEST") else None


def row(number: str = "TEST0001", **more: str) -> str:
    cells = {
        "card_system": CARD,
        "card_number": number,
        "family": "Fictif",
        "birth_date": "1950-02-03",
        "given": "Zoé",
        "nurse": "nurse-a",
        "start": "",
        "end": "",
        **more,
    }
    return ",".join(cells.values())


def test_a_good_row_is_read_with_its_card_in_one_spelling() -> None:
    found = read(f"{HEAD}\n{row('test 0001')}\n", normal, NURSES)
    (member,) = found.members
    assert member.card == (CARD, "TEST0001")
    assert (member.nurse, member.birth_date) == ("nurse-a", date(1950, 2, 3))
    assert found.faults == ()


def test_semicolons_quotes_and_windows_line_ends_are_read() -> None:
    text = f"{HEAD}\r\n{row(given='Zoé')}\r\n".replace(",", ";").replace("Fictif", '"Fic;tif"')
    assert read(text, normal, NURSES).members[0].family == "Fic;tif"


def test_utf8_with_a_bom_and_windows_1252_by_charset_are_read() -> None:
    assert decode("\ufeffZoé".encode(), None) == "Zoé"
    assert decode("Zoé".encode("cp1252"), "windows-1252") == "Zoé"
    with pytest.raises(PanelError, match="windows-1252"):
        decode("Zoé".encode("cp1252"), None)
    with pytest.raises(PanelError, match="UTF-8"):
        decode(b"x", "utf-16")


def test_a_bad_row_is_told_by_number_column_and_reason_without_its_value() -> None:
    text = "\n".join(
        [HEAD, row("SECRET-9"), row(birth_date="3 Feb"), row(nurse="nurse-z"), row("TEST0002"), "x"]
    )
    found = read(text, normal, NURSES)
    assert found.faults == (
        Fault(2, "card_number", "is not of the form its system has"),
        Fault(3, "birth_date", "must be a date as YYYY-MM-DD"),
        Fault(4, "nurse", "is nobody of this clinic in the region file"),
        Fault(6, "row", "has 1 cells, not 8"),
    )
    assert [m.row for m in found.members] == [5]
    told = repr(found)
    assert not any(value in told for value in ("SECRET", "TEST000", "Fictif", "1950", "3 Feb"))


def test_of_two_rows_of_one_card_the_later_speaks() -> None:
    found = read(f"{HEAD}\n{row(given='A')}\n{row(given='B')}\n", normal, NURSES)
    assert [m.given for m in found.members] == ["B"]
    assert found.duplicates == 1


@pytest.mark.parametrize(
    "text", ["", "card_number,family", f"{HEAD},{HEAD}", f"{HEAD},shoe_size", f'{HEAD}\n"x']
)
def test_a_file_that_is_no_panel_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(PanelError):
        read(text, normal, NURSES)


def test_a_full_list_ends_who_is_absent_and_a_delta_nobody() -> None:
    known = {"a": "1", "b": "1", "c": "1"}
    sent = {"a": "1", "b": "2", "d": "1"}
    full = plan(known, sent, frozenset(sent), Mode.FULL)
    assert (set(full.added), set(full.changed)) == ({"d"}, {"b"})
    assert (set(full.ended), set(full.unchanged)) == ({"c"}, {"a"})
    assert not plan(known, sent, frozenset(sent), Mode.DELTA).ended


def test_a_bad_row_does_not_end_its_patients_membership() -> None:
    known = {"a": "1", "b": "1"}
    assert not plan(known, {"a": "1"}, frozenset({"a", "b"}), Mode.FULL).ended


def test_ending_more_than_a_fifth_is_many() -> None:
    known = {str(n): "1" for n in range(10)}

    def without(count: int) -> bool:
        sent = {str(n): "1" for n in range(count, 10)}
        return plan(known, sent, frozenset(sent), Mode.FULL).ends_many

    assert not without(2)
    assert without(3)


CLAIM = Identity("s|TEST0001", "Tremblay-Fictif", "1950-02-03")


@pytest.mark.parametrize(
    ("sent", "agrees"),
    [
        (Identity("s|TEST0001", "TREMBLAY FICTIF", "1950-02-03"), True),
        (Identity("s|TEST0001", "Trémblay Fictif", "1950-02-03"), True),
        (Identity("s|TEST0002", "Tremblay-Fictif", "1950-02-03"), False),
        (Identity("s|TEST0001", "Gagnon", "1950-02-03"), False),
        (Identity("s|TEST0001", "Tremblay-Fictif", "1950-03-02"), False),
        (Identity("s|TEST0001", None, "1950-02-03"), False),
        (Identity("s|TEST0001", "Tremblay-Fictif", None), False),
    ],
)
def test_a_claim_is_confirmed_only_if_card_name_and_birth_date_agree(
    sent: Identity, *, agrees: bool
) -> None:
    """CA-46."""
    assert confirms(CLAIM, sent) is agrees


def test_nothing_known_confirms_nothing() -> None:
    assert not confirms(Identity(None, None, None), Identity(None, None, None))
    for gap in ("card", "family", "birth_date"):
        less = replace(CLAIM, **{gap: None})
        assert not confirms(less, less)
    assert not confirms(Identity("s|1", "-", "1950-02-03"), Identity("s|1", "''", "1950-02-03"))


TODAY = date(2026, 3, 2)
CLINICS = frozenset({"clinic-a", "clinic-b"})


def panel_row(clinic: str = "clinic-a", **more: object) -> Row:
    return Row(**{"clinic": clinic, "nurse": "nurse-a", "confirmed": True, **more})  # type: ignore[arg-type]


def test_a_confirmed_row_in_force_routes_to_its_nurse_else_the_pool() -> None:
    assert routes([panel_row()], TODAY, CLINICS)[0].nurse == "nurse-a"
    assert routes([panel_row(nurse=None)], TODAY, CLINICS)[0].nurse is None


def test_each_of_two_clinics_gets_a_card() -> None:
    """CA-44."""
    found = routes([panel_row("clinic-b"), panel_row("clinic-a")], TODAY, CLINICS)
    assert [r.clinic for r in found] == ["clinic-a", "clinic-b"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], Unroutable.NO_PANEL),
        ([panel_row(end=date(2026, 3, 1))], Unroutable.ENDED),
        ([panel_row(start=date(2026, 3, 3))], Unroutable.ENDED),
        ([panel_row("clinic-z")], Unroutable.CLINIC_UNKNOWN),
        ([panel_row(confirmed=False)], Unroutable.UNCONFIRMED),
    ],
)
def test_what_cannot_be_routed_has_a_reason(rows: list[Row], reason: Unroutable) -> None:
    """CA-43."""
    assert routes(rows, TODAY, CLINICS) == []
    assert unroutable(rows, TODAY, CLINICS) is reason


def test_a_row_is_in_force_on_its_last_day() -> None:
    assert routes([panel_row(start=TODAY, end=TODAY)], TODAY, CLINICS)
