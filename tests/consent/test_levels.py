"""How much of a released visit is shown (CS-44, CS-45), and when time alone changes it (CS-51)."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.notify import reading
from services.notify.consent import (
    ACT_CODE,
    CONFIDENTIALITY,
    KIND_OF_LEVEL,
    Ceilings,
    Code,
    Default,
    Finding,
    Item,
    Level,
    Outcome,
    Policy,
    Reason,
    Request,
    decide,
    decide_again_at,
    level_shown,
)

PLAIN: frozenset[Code] = frozenset()
NOW = datetime(2026, 3, 2, tzinfo=UTC)
HIV = frozenset({Code(ACT_CODE, "HIV")})
OPT_IN = Policy(Default.OPT_IN)


def findings(*grounds: str) -> dict[str, Finding]:
    """By kind, from the lowest level up: implied, explicit, labelled, or kept."""
    found = {}
    for kind, ground in zip(KIND_OF_LEVEL.values(), grounds, strict=False):
        outcome = Outcome.WITHHOLD if ground == "kept" else Outcome.RELEASE
        reasons = frozenset({Reason.PERMITTED})
        explicit, labelled = ground in {"explicit", "labelled"}, ground == "labelled"
        found[kind] = Finding(kind, outcome, reasons, frozenset(), explicit, labelled)
    return found


@pytest.mark.parametrize(
    ("grounds", "labels", "agreed", "shown"),
    [
        (["kept", "explicit", "explicit"], PLAIN, False, None),
        (["implied", "implied", "implied"], PLAIN, True, Level.FACT),
        (["explicit"], PLAIN, False, Level.FACT),
        (["explicit", "explicit", "explicit"], PLAIN, False, Level.REASON),
        (["implied", "explicit", "explicit"], PLAIN, False, Level.REASON),
        (["explicit", "explicit", "explicit"], PLAIN, True, Level.DOCUMENT),
        (["explicit", "kept", "explicit"], PLAIN, True, Level.FACT),
        (["explicit", "explicit", "kept"], PLAIN, True, Level.REASON),
        (["explicit", "explicit", "explicit"], HIV, True, Level.FACT),
        (["explicit", "explicit", "explicit"], None, True, Level.FACT),
        (["labelled", "labelled", "labelled"], HIV, True, Level.DOCUMENT),
        (["explicit", "labelled", "explicit"], HIV, True, Level.REASON),
        (["explicit", "explicit"], frozenset({Code(CONFIDENTIALITY, "R")}), False, Level.REASON),
    ],
)
def test_the_highest_level_whose_lower_levels_are_released(
    grounds: list[str], labels: frozenset[Code] | None, *, agreed: bool, shown: Level | None
) -> None:
    """CS-45."""
    ceilings = Ceilings(agreed=Level.DOCUMENT if agreed else Level.REASON)
    assert level_shown(labels, findings(*grounds), ceilings) is shown


def decided(labels: list[dict[str, Any]], held: frozenset[Code], **rule: Any) -> Finding:
    """Of one visit labelled `held`, under a permit that names `labels`."""
    on_file = [consent({"type": "permit", **({"securityLabel": labels} if labels else {}), **rule})]
    (finding,) = decide(on_file, asked(Item("v1", "Encounter", labels=held)), OPT_IN).findings
    return finding


def consent(provision: dict[str, Any]) -> Any:
    privacy = {
        "system": "http://terminology.hl7.org/CodeSystem/consentscope",
        "code": "patient-privacy",
    }
    resource = {
        "resourceType": "Consent",
        "id": "TEST-c1",
        "status": "active",
        "scope": {"coding": [privacy]},
        "patient": {"reference": "Patient/TEST-p1"},
        "provision": provision,
    }
    return reading.directive(resource, ZoneInfo("America/Toronto"))


def asked(*items: Item) -> Request:
    return Request(NOW, "Patient/TEST-p1", "Organization/TEST-north", (), items, circle=True)


def test_a_permit_covers_labels_that_it_names() -> None:
    """CS-45: one that names none does not, though it releases the visit."""
    hiv = [{"system": ACT_CODE, "code": "HIV"}]
    assert decided(hiv, HIV).labelled
    assert decided([], HIV).outcome is Outcome.RELEASE
    assert not decided([], HIV).labelled
    nested = decided([], HIV, provision=[{"type": "permit", "securityLabel": hiv}])
    assert nested.labelled


def test_an_end_in_9999_is_no_instant_to_wait_for() -> None:
    """CS-51: "for ever" on a form."""
    for_ever = consent({"type": "permit", "period": {"end": "9999-12-31"}})
    assert decide_again_at([for_ever], asked(), OPT_IN) is None
