"""The decision whose time CS-37 bounds: 5 Consents, 20 items, 2 readers."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from services.notify import reading
from services.notify.consent import (
    ACT_CODE,
    Code,
    Default,
    Directory,
    Item,
    Policy,
    Profile,
    Request,
    decide,
)
from tests.consent.table import cases

NOW: Final = datetime(2026, 4, 3, 13, tzinfo=UTC)
LABELS: Final = (None, frozenset[Code](), frozenset({Code(ACT_CODE, "HIV")}))
ICD: Final = "http://hl7.org/fhir/sid/icd-10-ca"
CODES: Final = (None, frozenset[Code](), frozenset({Code(ICD, "F32.1")}))


def decisions(rounds: int) -> list[float]:
    """Seconds of processor time of each of `rounds` decisions, least first."""
    table = {case.id: case.document for case in cases()}
    named = ("S6-1", "S4-2", "S4-4", "R06", "B11")
    resources = [table[name]["consents"][0] | {"id": name} for name in named]
    on_file = [reading.directive(resource, ZoneInfo("America/Toronto")) for resource in resources]
    said = table["S6-1"]["directory"]
    asked = Request(
        at=NOW,
        patient="Patient/TEST-p1",
        recipient="Organization/TEST-north",
        readers=("Practitioner/TEST-rn-7", "Practitioner/TEST-rn-8"),
        items=tuple(
            Item(
                id=f"v{n}",
                kind=("Encounter", "Condition")[n % 2],
                custodian=f"Organization/TEST-hospital-{n % 3}",
                author=(None, "Organization/TEST-hospital-1")[n % 2],
                start=NOW - timedelta(days=17 * n),
                labels=LABELS[n % 3],
                codes=CODES[n % 4 % 3],
            )
            for n in range(20)
        ),
        circle=True,
        directory=Directory(
            part_of=said["partOf"],
            groups={person: frozenset(groups) for person, groups in said["groups"].items()},
            identifiers=said["identifiers"],
        ),
    )
    policy = Policy(Default.IMPLIED, Profile.QC)
    taken = []
    for _ in range(rounds):
        begun = time.thread_time()
        decide(on_file, asked, policy)
        taken.append(time.thread_time() - begun)
    return sorted(taken)
