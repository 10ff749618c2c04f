"""A message as the FHIR R4 that the two hospitals write. Pure; built as JSON, field by field.

That it is legal R4 is for the tests to show (tests/rules/test_simulator_fhir.py): building
every resource as a model would cost more than the rest of the simulator.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from services.simulator.draws import code
from services.simulator.feed import Identity, Message, Snapshot
from services.simulator.life import Leaving
from services.simulator.region import HEALTH_CARD, ZONE

Json = dict[str, Any]

TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
ACT_CODE = f"{TERMINOLOGY}/v3-ActCode"
CONFIDENTIALITY = f"{TERMINOLOGY}/v3-Confidentiality"
IDENTIFIER_TYPE = f"{TERMINOLOGY}/v2-0203"
ICD_10 = "http://hl7.org/fhir/sid/icd-10"
NOTIFICATION = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"

_DISPOSITIONS = {
    Leaving.HOME: (f"{TERMINOLOGY}/discharge-disposition", "home"),
    Leaving.ADMITTED: ("https://example.ca/disposition", "admitted"),
    Leaving.TRANSFERRED: (f"{TERMINOLOGY}/discharge-disposition", "other-hcf"),
    Leaving.AGAINST_ADVICE: (f"{TERMINOLOGY}/discharge-disposition", "aadvice"),
    Leaving.NONACUTE: (f"{TERMINOLOGY}/discharge-disposition", "rehab"),
    Leaving.DIED: (f"{TERMINOLOGY}/discharge-disposition", "exp"),
    Leaving.UNSEEN: ("https://example.ca/disposition", "left-unseen"),
    Leaving.REDIRECTED: ("https://example.ca/disposition", "redirected"),
    Leaving.DEAD_ON_ARRIVAL: ("https://example.ca/disposition", "dead-on-arrival"),
}
"""demo/region.yaml says what the hospitals' own codes mean."""


BOTH_SEASONS = timedelta(hours=-9)
"""The offsets of winter and summer together."""


def stamp(at: datetime, *, shifted: bool = False) -> str:
    """The local time with its offset; `shifted`: with that of the other season.

    The wall clock is right then, and the instant an hour early in winter, an hour late in summer.
    """
    local = at.astimezone(ZONE)
    if not shifted:
        return local.isoformat()
    wrong = BOTH_SEASONS - (local.utcoffset() or timedelta())
    return local.replace(tzinfo=timezone(wrong)).isoformat()


def visit_system(site: str) -> str:
    return f"https://{site}.example.ca/visit"


def record_system(site: str) -> str:
    return f"https://{site}.example.ca/record"


def patient(site: str, identity: Identity, at: datetime) -> Json:
    """The record as `site` has it. Its record number is also the logical id."""
    found: Json = {
        "resourceType": "Patient",
        "id": identity.record,
        "meta": {"lastUpdated": stamp(at)},
        "identifier": [_identifier("MR", record_system(site), identity.record)],
        "active": identity.active,
    }
    for number, card in enumerate(identity.cards):
        held = _identifier("JHN", HEALTH_CARD, card)
        held["use"] = "official" if number == 0 else "old"
        found["identifier"].append(held)
    if identity.person is not None:
        who = identity.person
        found["name"] = [{"use": "official", "family": who.family, "given": [who.given]}]
        found["gender"] = "female" if who.female else "male"
        found["birthDate"] = who.born.isoformat()
        found["communication"] = [
            {"language": {"coding": [{"system": "urn:ietf:bcp:47", "code": who.language}]}}
        ]
    if identity.deceased is not None:
        found["deceasedDateTime"] = stamp(identity.deceased)
    if identity.replaced_by is not None:
        other = {"reference": f"Patient/{identity.replaced_by}"}
        found["link"] = [{"other": other, "type": "replaced-by"}]
    return found


def encounter(site: str, identity: Identity, snapshot: Snapshot, at: datetime) -> Json:
    """The encounter as `site` has it at `at`; its visit number is also the logical id."""
    wrong = snapshot.shifted
    start = stamp(snapshot.start, shifted=wrong)
    found: Json = {
        "resourceType": "Encounter",
        "id": snapshot.visit,
        "meta": {"lastUpdated": stamp(at)},
        "identifier": [_identifier("VN", visit_system(site), snapshot.visit)],
        "status": snapshot.status,
        "class": _class(snapshot.classes[-1][0].value, unmapped=snapshot.unmapped),
        "subject": {
            "reference": f"Patient/{identity.record}",
            "identifier": _identifier("MR", record_system(site), identity.record),
        },
        "period": {"start": start[:10] if snapshot.day_only else start},
        "serviceProvider": _logical("Organization", "https://example.ca/site", site),
    }
    if snapshot.label:
        found["meta"]["security"] = [
            {"system": CONFIDENTIALITY, "code": "R"},
            {"system": ACT_CODE, "code": snapshot.label},
        ]
    if len(snapshot.classes) > 1:
        found["classHistory"] = _history(snapshot)
    if snapshot.planned:
        found["type"] = [_concept("https://example.ca/visit-type", "by-appointment")]
    if snapshot.service:
        found["serviceType"] = _concept("https://example.ca/service", snapshot.service.value)
    if snapshot.code:
        found["reasonCode"] = [_concept(ICD_10, snapshot.code)]
    if snapshot.end:
        found["period"]["end"] = stamp(snapshot.end, shifted=wrong)
    hospitalization = _hospitalization(snapshot)
    if hospitalization:
        found["hospitalization"] = hospitalization
    if snapshot.part_of:
        found["partOf"] = _logical("Encounter", visit_system(site), snapshot.part_of)
    return found


def notification(site: str, message: Message) -> Json:
    """A Da Vinci notification, as the first hospital sends it (hospital-api.md section 4)."""
    assert message.encounter is not None
    about = f"urn:uuid:{code(message.id, 'encounter')}"
    whom = f"urn:uuid:{code(message.id, 'patient')}"
    resource = encounter(site, message.identity, message.encounter, message.at)
    resource["subject"] = {"reference": whom}
    header = {
        "resourceType": "MessageHeader",
        "id": code(message.id, "header"),
        "eventCoding": {"system": NOTIFICATION, "code": f"notification-{message.kind.value}"},
        "source": {"name": site, "endpoint": f"https://{site}.example.ca/engine"},
        "focus": [{"reference": about}],
    }
    entries = (
        (f"urn:uuid:{header['id']}", header),
        (about, resource),
        (whom, patient(site, message.identity, message.at)),
    )
    return {
        "resourceType": "Bundle",
        "id": message.id,
        "type": "message",
        "timestamp": stamp(message.at),
        "entry": [{"fullUrl": url, "resource": each} for url, each in entries],
    }


def put(site: str, in_place: bool, message: Message) -> tuple[str, Json]:
    """The same by REST: the URL to put it to, relative to the base, and the resource."""
    if message.encounter is None:
        resource = patient(site, message.identity, message.at)
        return f"Patient/{resource['id']}", resource
    resource = encounter(site, message.identity, message.encounter, message.at)
    if in_place:
        return f"Encounter/{resource['id']}", resource
    del resource["id"]
    return f"Encounter?identifier={visit_system(site)}|{message.encounter.visit}", resource


def batch(entries: Sequence[tuple[str, Json]]) -> Json:
    """Many of them in one request."""
    return {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [
            {"resource": resource, "request": {"method": "PUT", "url": url}}
            for url, resource in entries
        ],
    }


def consent(id_: str, card: str, said: datetime, provision: Json | None, organization: str) -> Json:
    """A restriction as a hospital's consent office records it; None: nothing is restricted."""
    found: Json = {
        "resourceType": "Consent",
        "id": id_,
        "status": "active" if provision else "inactive",
        "scope": _concept(f"{TERMINOLOGY}/consentscope", "patient-privacy"),
        "category": [_concept("http://loinc.org", "59284-0")],
        "patient": {"identifier": {"system": HEALTH_CARD, "value": card}},
        "dateTime": stamp(said),
        "performer": [{"identifier": {"system": HEALTH_CARD, "value": card}, "type": "Patient"}],
        "organization": [{"reference": f"Organization/{organization}"}],
        "policy": [{"uri": "https://example.ca/policies/sharing"}],
        "verification": [{"verified": True, "verificationDate": stamp(said)}],
    }
    if provision:
        found["provision"] = provision
    return found


def deny(*actors: str) -> Json:
    """A denial to `actors`, references such as Practitioner/nurse-a; to all if none is named."""
    found: Json = {"type": "deny"}
    if actors:
        role = _concept(f"{TERMINOLOGY}/v3-ParticipationType", "IRCP")
        found["actor"] = [{"role": role, "reference": {"reference": each}} for each in actors]
    return found


def _identifier(type_: str, system: str, value: str) -> Json:
    return {
        "type": {"coding": [{"system": IDENTIFIER_TYPE, "code": type_}]},
        "system": system,
        "value": value,
    }


def _logical(type_: str, system: str, value: str) -> Json:
    return {"type": type_, "identifier": {"system": system, "value": value}}


@cache
def _concept(system: str, code_: str) -> Json:
    """One for all resources that say it, so never to be edited."""
    return {"coding": [{"system": system, "code": code_}]}


@cache
def _class(code_: str, *, unmapped: bool) -> Json:
    """One for all resources that say it, so never to be edited."""
    if unmapped:
        return {"system": "https://example.ca/class", "code": f"TEST-{code_}"}
    return {"system": ACT_CODE, "code": code_}


def _history(snapshot: Snapshot) -> list[Json]:
    ends = [since for _, since in snapshot.classes[1:]] + [None]
    found = []
    for (care, since), until in zip(snapshot.classes, ends, strict=True):
        period = {"start": stamp(since, shifted=snapshot.shifted)}
        if until:
            period["end"] = stamp(until, shifted=snapshot.shifted)
        found.append({"class": _class(care.value, unmapped=snapshot.unmapped), "period": period})
    return found


def _hospitalization(snapshot: Snapshot) -> Json:
    found: Json = {}
    if snapshot.from_ed or snapshot.transfer_in:
        source = "emd" if snapshot.from_ed else "hosp-trans"
        found["admitSource"] = _concept(f"{TERMINOLOGY}/admit-source", source)
    if snapshot.leaving in _DISPOSITIONS:
        system, code_ = _DISPOSITIONS[snapshot.leaving]
        found["dischargeDisposition"] = _concept(system, code_)
    return found
