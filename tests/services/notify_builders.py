"""A small fictitious region, and events as ingest and screening state them. One a noun."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from schemas.envelope import Coding
from schemas.episode_changed_v1 import EpisodeChanged, EpisodeMoment
from schemas.flag_changed_v1 import (
    Cause,
    Clause,
    Counted,
    Coverage,
    Explanation,
    FlagChanged,
    Item,
    Kind,
    Measure,
    Notice,
    PolicyRef,
    State,
)
from schemas.patient_identified_v1 import PatientIdentified, Sealed, Token
from services.notify.flow import Turn
from services.notify.telling import House
from services.plumbing.db import Tx
from services.plumbing.identifiers import normalise
from services.plumbing.region import Region
from services.plumbing.sealing import Seals, Tokens
from tests.conftest import keyring

NOW = datetime(2026, 3, 2, 19, 5, 10, tzinfo=UTC)
DAY = timedelta(days=1)
CARD = "https://health-card.example.ca"
BASE = "http://127.0.0.1:8003/fhir"
TOKENS = Tokens(keyring("tokens"))
SEALS = Seals(keyring("dates"), keyring("seals"))
TERMS = "http://terminology.hl7.org/CodeSystem/"

CLINIC_SCOPES = [
    "system/Task.rus",
    "system/Flag.rs",
    "system/Patient.cruds",
    "system/Provenance.rs",
    "system/Communication.rs",
    "system/Organization.rs",
    "system/PractitionerRole.rs",
    "system/Group.ru",
    "system/Consent.cru",
    "system/Subscription.cruds",
]


def region(default: str = "implied", profile: str = "core", **more: Any) -> Region:
    return Region.model_validate(
        {
            "name": {"fr": "Région fictive", "en": "Fictitious region"},
            "sites": [
                {"id": "hospital-a", "name": {"fr": "Hôpital fictif A", "en": "Hospital A"}},
                {"id": "hospital-b", "name": {"fr": "Hôpital fictif B", "en": "Hospital B"}},
            ],
            "clinics": [
                {
                    "id": "clinic-a",
                    "name": {"fr": "Clinique fictive A", "en": "Clinic A"},
                    "content_levels": ["empty", "id-only", "full-resource"],
                },
                {"id": "clinic-b", "name": {"fr": "Clinique fictive B", "en": "Clinic B"}},
            ],
            "people": [
                {"id": "nurse-a", "name": "A", "roles": ["clinic_cm"], "clinic": "clinic-a"},
                {"id": "nurse-d", "name": "D", "roles": ["clinic_cm"], "clinic": "clinic-a"},
                {"id": "nurse-b", "name": "B", "roles": ["clinic_cm"], "clinic": "clinic-b"},
                {"id": "privacy", "name": "P", "roles": ["privacy"]},
            ],
            "groups": [{"id": "students", "members": ["nurse-d"]}],
            "clients": [
                {
                    "id": "hospital-a",
                    "sites": ["hospital-a"],
                    "scopes": ["system/Encounter.cruds", "system/Consent.cru"],
                },
                {
                    "id": "hospital-b",
                    "sites": ["hospital-b"],
                    "scopes": ["system/Consent.cru"],
                },
                {"id": "clinic-a-emr", "clinic": "clinic-a", "scopes": CLINIC_SCOPES},
                {"id": "clinic-a-other", "clinic": "clinic-a", "scopes": CLINIC_SCOPES},
                {"id": "clinic-b-emr", "clinic": "clinic-b", "scopes": CLINIC_SCOPES},
                {"id": "poor", "clinic": "clinic-a", "scopes": ["system/Task.s"]},
            ],
            "consent": {"default": default, "profile": profile},
            **more,
        }
    )


def house(at: Region | None = None) -> House:
    there = at or region()
    return House(region=lambda: there, seals=SEALS, tokens=TOKENS, base=BASE)


def turn(tx: Tx, at: House, now: datetime = NOW) -> Turn:
    return Turn(tx=tx, now=now, house=at)


def number(patient: UUID) -> str:
    """The health card of a patient of these tests."""
    return f"TEST{patient.int % 10**8:08d}"


def token(patient: UUID) -> Token:
    value = normalise(CARD, number(patient))
    assert value is not None
    key_id, digest = TOKENS.token(CARD, value)
    return Token(key_id=key_id, digest=digest)


def identified(
    patient: UUID,
    version: int = 1,
    family: str | None = "Fictif",
    birth_date: str = "1950-02-03",
    **more: Any,
) -> PatientIdentified:
    said = {"healthCard": f"{CARD}|{number(patient)}", "birthDate": birth_date}
    if family is not None:
        said |= {"family": family, "given": "Zoé", "gender": "female"}
    sealed = {name: SEALS.seal(patient, name, value) for name, value in said.items()}
    return PatientIdentified(
        patient=patient,
        version=version,
        tokens=(token(patient),),
        demographics={n: Sealed(key_id=k, box=b) for n, (k, b) in sealed.items()},
        sites=("hospital-a",),
        recorded=NOW,
        **more,
    )


def ed_visit(days_ago: float, key: UUID | None = None, **more: Any) -> Item:
    """An ED visit of three hours. `labels`: () = assessed, and none."""
    start = NOW - days_ago * DAY
    labels = more.pop("labels", ())
    site = more.pop("site", "hospital-a")
    codes, disposition = more.pop("codes", ()), more.pop("disposition", None)
    return Item(
        kind=Kind.ED,
        anchor=start,
        end=start + timedelta(hours=3),
        sites=(site,),
        encounters=(
            Counted(
                key=key or uuid4(),
                site=site,
                start=start,
                end=start + timedelta(hours=3),
                labels=labels,
                codes=codes,
                disposition=disposition,
            ),
        ),
        counted=more.pop("counted", True),
        **more,
    )


def label(code: str) -> tuple[Coding, ...]:
    return (Coding(system=TERMS + "v3-ActCode", code=code),)


def diagnosis(code: str) -> tuple[Coding, ...]:
    return (Coding(system="http://hl7.org/fhir/sid/icd-10-ca", code=code),)


def four_visits() -> list[Item]:
    return [ed_visit(1), ed_visit(40), ed_visit(120), ed_visit(300)]


def flag(
    patient: UUID,
    sequence: int = 1,
    visits: Sequence[Item] | None = None,
    *,
    cause: Cause = Cause.EVENT,
    notice: Notice = Notice.ALERT,
    retracts: int | None = None,
    merged_into: UUID | None = None,
    episode: UUID | None = None,
    at: datetime = NOW,
) -> FlagChanged:
    items = tuple(four_visits() if visits is None else visits)
    count = sum(item.counted for item in items)
    state = State.FLAGGED if count >= 4 else State.WATCH if count == 3 else State.BELOW
    return FlagChanged(
        patient=patient,
        sequence=sequence,
        cause=cause,
        notice=notice,
        retracts=retracts,
        merged_into=merged_into,
        received=at,
        counted=at,
        changed=at,
        explanation=Explanation(
            patient=patient,
            sequence=sequence,
            as_of=at,
            known_at=at,
            policy=PolicyRef(name="qc-default", version=1, sha256="0" * 64),
            window_after=at - 365 * DAY,
            window_until=at,
            state=state,
            held=False,
            since=None if state is State.BELOW else NOW - DAY,
            episode=episode,
            clauses=(
                Clause(
                    measure=Measure.ED_VISITS, count=count, at_least=4, met=count >= 4, days=365
                ),
                Clause(measure=Measure.HOSPITAL_EPISODES, count=0, at_least=3, met=False, days=365),
                Clause(
                    measure=Measure.ED_VISITS,
                    count=count,
                    at_least=3,
                    met=count >= 3,
                    state=State.WATCH,
                    days=365,
                ),
            ),
            items=items,
            coverage=Coverage(known_sites=2, connected_sites=2, complete=True, sites=()),
        ),
    )


def episode(
    patient: UUID,
    key: UUID,
    moment: EpisodeMoment = EpisodeMoment.LEFT,
    sequence: int = 1,
    at: datetime = NOW,
    **more: Any,
) -> EpisodeChanged:
    return EpisodeChanged(
        **{
            "patient": patient,
            "episode": key,
            "sequence": sequence,
            "moment": moment,
            "at": at,
            "site": "hospital-a",
            "encounters": (key,),
            "labels": (),
            "received": at,
            "counted": at,
            **more,
        }
    )
