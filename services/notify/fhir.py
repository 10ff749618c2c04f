"""Cards, flags and what goes with them as FHIR R4 (clinic-api.md section 2).

Built as JSON from what `telling` composed; nothing in here decides. No narrative. `display`
follows the reader's language.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from schemas.envelope import CANON
from services.notify import card as cards
from services.notify.card import Card, Status
from services.notify.consent import Code, Level
from services.notify.days import zone
from services.notify.reading import owner_reference, priority
from services.notify.recount import Clause, Kind, State, Tally, Unit, View, Visit
from services.notify.store import FlagRow
from services.plumbing.region import Clinic, Person, Region, Site

Json = dict[str, Any]
Language = Literal["fr", "en"]

SNOOZE: Final = f"{CANON}/StructureDefinition/snooze-until"
NOT_COUNTED: Final = f"{CANON}/StructureDefinition/reason-not-counted"
REASON: Final = f"{CANON}/StructureDefinition/visit-reason"
DISPOSITION: Final = f"{CANON}/StructureDefinition/visit-disposition"
SUMMARY: Final = f"{CANON}/StructureDefinition/discharge-summary"
EPISODE: Final = f"{CANON}/NamingSystem/episode"
ENCOUNTER: Final = f"{CANON}/NamingSystem/encounter"
DOCUMENT: Final = f"{CANON}/NamingSystem/discharge-summary"
ORGANIZATION: Final = f"{CANON}/NamingSystem/organization"
PERSON: Final = f"{CANON}/NamingSystem/person"
WEBHOOK: Final = f"{CANON}/NamingSystem/webhook-id"
PARTICIPANT: Final = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
OPERATION: Final = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
FLAG_CATEGORY: Final = "http://terminology.hl7.org/CodeSystem/flag-category"

WORDS: Final[Mapping[str, Mapping[Language, str]]] = {
    "threshold-reached": {
        "fr": "Usage fréquent de l'hôpital : à revoir",
        "en": "Frequent use of hospital: review",
    },
    "left-ed": {
        "fr": "Sortie de l'urgence : suivi",
        "en": "Left the emergency department: follow up",
    },
    "discharged": {"fr": "Congé de l'hôpital : suivi", "en": "Discharged: follow up"},
    "not-started": {"fr": "Non commencée", "en": "Not started"},
    "in-progress": {"fr": "En cours", "en": "In progress"},
    "completed": {"fr": "Terminée", "en": "Completed"},
    "flagged": {"fr": "Usage fréquent de l'hôpital", "en": "Frequent use of hospital"},
    "watch": {"fr": "Près du seuil", "en": "Close to the threshold"},
    "below": {"fr": "Sous le seuil", "en": "Below the threshold"},
    "count-corrected": {"fr": "Compte corrigé", "en": "Count corrected"},
    "visit-cancelled": {"fr": "Visite annulée", "en": "Visit cancelled"},
    "merged": {"fr": "Dossiers fusionnés", "en": "Records merged"},
    "consent-withdrawn": {"fr": "Consentement retiré", "en": "Consent withdrawn"},
    "deceased": {"fr": "Personne décédée", "en": "Deceased"},
    "panel-changed": {"fr": "N'est plus inscrite à la clinique", "en": "No longer on the panel"},
    "wrong-person": {"fr": "Autre personne", "en": "Wrong person"},
    "no-longer-applies": {"fr": "Ne s'applique plus", "en": "No longer applies"},
    "a-hospital": {"fr": "Un hôpital", "en": "A hospital"},
}


@dataclass(frozen=True, slots=True)
class Voice:
    """For whom it is written: language, and where references lead."""

    region: Region
    base: str
    language: Language = "fr"

    def word(self, code: str) -> str | None:
        words = WORDS.get(code)
        return None if words is None else words[self.language]


@dataclass(frozen=True, slots=True)
class Whom:
    """Whom a card is about, as far as a permit opened it."""

    key: UUID
    health_card: str | None = field(default=None, repr=False)
    """`system|value`."""
    family: str | None = field(default=None, repr=False)
    given: str | None = field(default=None, repr=False)
    birth_date: str | None = field(default=None, repr=False)
    gender: str | None = field(default=None, repr=False)
    phone: str | None = field(default=None, repr=False)
    language: str | None = None
    contact_note: str | None = field(default=None, repr=False)


def instant(at: datetime) -> str:
    """As FHIR has it, in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def concept(system: str, code: str, voice: Voice) -> Json:
    coding: Json = {"system": f"{CANON}/CodeSystem/{system}", "code": code}
    display = voice.word(code)
    if display is not None:
        coding["display"] = display
    return {"coding": [coding]}


def progress(status: Status) -> str:
    """CA-24."""
    if status in {Status.REQUESTED, Status.RECEIVED}:
        return "not-started"
    if status in {Status.ACCEPTED, Status.IN_PROGRESS, Status.ON_HOLD}:
        return "in-progress"
    return "completed"


def meta(version: int, updated: datetime) -> Json:
    return {"versionId": str(version), "lastUpdated": instant(updated)}


# --- Task -------------------------------------------------------------------------------------


def stub(card: Card, voice: Voice) -> Json:
    """All that is left of a card that may not be told any more (CA-32)."""
    why = cards.shown_reason(card) or cards.Why.NO_LONGER_APPLIES
    status = card.status if card.status in cards.TAKEN_BACK else Status.CANCELLED
    return {
        "resourceType": "Task",
        "id": str(card.id),
        "meta": meta(card.version, card.updated),
        "status": str(status),
        "statusReason": concept("card-reason", why, voice),
        "intent": "order",
        "code": concept("card-kind", card.what, voice),
        "lastModified": instant(card.updated),
    }


def task(
    card: Card,
    view: View,
    flag: UUID | None,
    voice: Voice,
    *,
    named: bool = False,
) -> Json:
    """The card with what its permit opens. `named`: the hospital of its last event may be named
    though it is a sensitive one (CS-45).
    """
    found: Json = {
        "resourceType": "Task",
        "id": str(card.id),
        "meta": meta(card.version, card.updated),
        "groupIdentifier": {"system": EPISODE, "value": card.key.partition(":")[2]},
        "status": str(card.status),
        "businessStatus": concept("card-progress", progress(card.status), voice),
        "intent": "order",
        "priority": priority(card.tier),
        "code": concept("card-kind", card.what, voice),
        "for": {"reference": f"Patient/{card.patient}"},
        "authoredOn": seconds(card.opened),
        "lastModified": instant(card.updated),
        "owner": {"reference": owner_reference(card.owner, card.clinic)},
        "restriction": {"recipient": [{"reference": f"Organization/{card.clinic}"}]},
        "input": _inputs(card, view, voice, named=named),
    }
    if card.key.startswith("flag:"):
        # Its number would tell how many changes there were that this reader did not see (CS-42).
        found["groupIdentifier"]["value"] = str(card.id)
    if flag is not None:
        found["focus"] = {"reference": f"Flag/{flag}"}
    if card.due is not None:
        found["restriction"]["period"] = {"end": _local(card.due, card, voice)}
    site = voice.region.site(card.site) if card.site else None
    if site is not None and (named or not site.sensitive):
        found["requester"] = {"reference": f"Organization/{site.id}"}
    reason = _status_reason(card, voice)
    if reason is not None:
        found["statusReason"] = reason
    if card.snoozed_until is not None:
        value = (
            {"valueCode": "discharge"}
            if card.until_discharge
            else {"valueDateTime": seconds(card.snoozed_until)}
        )
        found["extension"] = [{"url": SNOOZE, **value}]
    if card.notes:
        found["note"] = [_note(note) for note in card.notes]
    if card.outputs:
        found["output"] = [_output(output, voice) for output in card.outputs]
    return found


def _local(at: datetime, card: Card, voice: Voice) -> str:
    """An instant with the clinic's own offset, as its people read it."""
    clinic = voice.region.clinic(card.clinic)
    if clinic is None:
        return seconds(at)
    return at.astimezone(zone(clinic.timezone)).isoformat(timespec="seconds")


def _status_reason(card: Card, voice: Voice) -> Json | None:
    if card.status in cards.TAKEN_BACK:
        why = cards.shown_reason(card)
        found = None if why is None else concept("card-reason", why, voice)
        if found is not None and card.surviving is not None:
            found["text"] = f"Task/{card.surviving}"
        return found
    if card.dismissal is None:
        return None
    found = concept("card-reason", card.dismissal, voice)
    if card.dismissal_text:
        found["text"] = card.dismissal_text
    return found


def _note(note: cards.Note) -> Json:
    found: Json = {"time": instant(note.at), "text": note.text}
    if note.by is not None:
        found["authorString"] = note.by
    return found


def _output(output: Mapping[str, Any], voice: Voice) -> Json:
    if "type" in output:
        return dict(output)
    return {"type": concept("card-output", "outcome", voice), "valueCode": output["outcome"]}


def _input(code: str, voice: Voice, **value: Any) -> Json:
    return {"type": concept("card-input", code, voice), **value}


def _inputs(card: Card, view: View, voice: Voice, *, named: bool) -> list[Json]:
    found = [
        _input("ed-visits", voice, valueUnsignedInt=view.count(Kind.ED)),
        _input("hospital-stays", voice, valueUnsignedInt=view.count(Kind.HOSPITAL)),
    ]
    if view.met is not None:
        found.append(_input("clause-met", voice, valueCode=_clause_code(view.met)))
    found += [
        _input(
            "window",
            voice,
            valuePeriod={"start": seconds(view.after), "end": seconds(view.until)},
        ),
        _input("policy", voice, valueString=view.policy),
        _input(
            "coverage",
            voice,
            valueString=f"{view.connected_sites} of {view.known_sites} hospitals",
        ),
    ]
    if card.moment is not None and card.moment_at is not None:
        found += [
            _input("last-event", voice, valueCode=str(card.moment)),
            _input("last-event-time", voice, valueDateTime=_local(card.moment_at, card, voice)),
        ]
        if card.site is not None:
            found.append(_input("site", voice, valueReference=_site(card.site, voice, named)))
    for unit in view.units:
        found += [_visit(unit, visit, voice) for visit in unit.visits]
    return found


def _clause_code(clause: Clause) -> str:
    """`ed`, `hospital`; `ed-sites` and `hospital-days` where not the units are counted."""
    kind = str(clause.kind)
    return kind if clause.tally is Tally.UNITS else f"{kind}-{clause.tally}"


def _site(id_: str, voice: Voice, named: bool) -> Json:
    """A hospital by name; a sensitive one is only "a hospital" unless `named` (CS-45)."""
    site = voice.region.site(id_)
    if site is None or (site.sensitive and not named):
        return {"display": voice.word("a-hospital")}
    return {"reference": f"Organization/{id_}", "display": site.name.get(voice.language, id_)}


def _visit(unit: Unit, visit: Visit, voice: Voice) -> Json:
    """An encounter that was counted, or was not, and by which rule; with what its level opens."""
    reference = _fact(unit, visit, voice)
    more: list[Json] = []
    if not unit.counted and unit.reason is not None:
        more.append({"url": NOT_COUNTED, "valueCode": unit.reason})
    more += _more(visit, reference["display"])
    if more:
        reference["extension"] = more
    return _input("counted" if unit.counted else "excluded", voice, valueReference=reference)


def _fact(unit: Unit, visit: Visit, voice: Voice) -> Json:
    """That an encounter was: our key, its day, its hospital (L1)."""
    place = _site(visit.site, voice, visit.named)["display"]
    return {
        "type": "Encounter",
        "identifier": {"system": ENCOUNTER, "value": str(visit.key)},
        "display": f"{unit.anchor.date().isoformat()}, {place}",
    }


def _more(visit: Visit, display: str) -> list[Json]:
    """Reason and disposition (L2), and the discharge summary by reference (L3), as extensions of
    the encounter they are of. What is below its level is not in `visit` (CS-44).
    """
    found: list[Json] = []
    if visit.codes:
        said = [_coding(code) for code in sorted(visit.codes, key=str)]
        found.append({"url": REASON, "valueCodeableConcept": {"coding": said}})
    if visit.disposition is not None:
        found.append({"url": DISPOSITION, "valueCode": visit.disposition})
    if visit.level is Level.DOCUMENT and visit.end is not None:
        summary = {
            "type": "DocumentReference",
            "identifier": {"system": DOCUMENT, "value": str(visit.key)},
            "display": display,
        }
        found.append({"url": SUMMARY, "valueReference": summary})
    return found


def _coding(code: Code) -> Json:
    return {"system": code.system, "code": code.code}


# --- Flag, Patient, Provenance, Communication -------------------------------------------------


def flag(row: FlagRow, view: View | None, voice: Voice) -> Json:
    """The standing state as this reader may see it."""
    state = State.BELOW if view is None else view.state
    found: Json = {
        "resourceType": "Flag",
        "id": str(row.id),
        "meta": meta(row.version, row.updated),
        "status": "inactive" if state is State.BELOW and row.status == "active" else row.status,
        "category": [{"coding": [{"system": FLAG_CATEGORY, "code": "clinical"}]}],
        "code": concept("flag-state", state, voice),
        "subject": {"reference": f"Patient/{row.patient}"},
    }
    since = None if view is None else view.since
    if since is not None:
        found["period"] = {"start": seconds(since)}
    return found


def patient(person: Whom, version: int, updated: datetime | None) -> Json:
    found: Json = {"resourceType": "Patient", "id": str(person.key)}
    if updated is not None:
        found["meta"] = meta(version, updated)
    if person.health_card is not None:
        system, _, value = person.health_card.partition("|")
        found["identifier"] = [{"system": system, "value": value}]
    if person.family or person.given:
        name: Json = {}
        if person.family:
            name["family"] = person.family
        if person.given:
            name["given"] = person.given.split()
        found["name"] = [name]
    if person.phone:
        found["telecom"] = [{"system": "phone", "value": person.phone}]
        if person.contact_note:
            found["telecom"][0]["extension"] = [
                {
                    "url": f"{CANON}/StructureDefinition/contact-note",
                    "valueString": person.contact_note,
                }
            ]
    if person.gender in {"male", "female", "other", "unknown"}:
        found["gender"] = person.gender
    if person.birth_date:
        found["birthDate"] = person.birth_date
    if person.language:
        found["communication"] = [
            {
                "language": {"coding": [{"system": "urn:ietf:bcp:47", "code": person.language}]},
                "preferred": True,
            }
        ]
    return found


def provenance_id(kind: str, target: UUID, version: int) -> str:
    return f"{kind}-{target}-{version}"


def provenance(
    target: Card | FlagRow, view: View, software: str, voice: Voice, created: datetime
) -> Json:
    """Why: every counted encounter, by our key, with date and site (section 2)."""
    kind = "Task" if isinstance(target, Card) else "Flag"
    return {
        "resourceType": "Provenance",
        "id": provenance_id(kind.lower(), target.id, target.version),
        "meta": meta(1, target.updated),
        "target": [
            {"reference": f"{kind}/{target.id}/_history/{target.version}"},
            {"reference": f"Patient/{target.patient}"},
        ],
        "recorded": instant(created),
        "activity": {
            "coding": [{"system": OPERATION, "code": "CREATE" if target.version == 1 else "UPDATE"}]
        },
        "agent": [
            {
                "type": {"coding": [{"system": PARTICIPANT, "code": "assembler"}]},
                "who": {"display": f"{software}, {view.policy}"},
            }
        ],
        "entity": [
            {"role": "source", "what": _fact(unit, visit, voice)}
            for unit in view.units
            if unit.counted
            for visit in unit.visits
        ],
    }


def communication(row: Any, *, focus: bool) -> Json:
    """One delivery. `row` is a notification that was attempted."""
    status = {"pending": "in-progress", "delivered": "completed", "dead": "stopped"}[row.state]
    found: Json = {
        "resourceType": "Communication",
        "id": str(row.id),
        "meta": meta(row.attempts, row.delivered or row.last_sent),
        "identifier": [{"system": WEBHOOK, "value": str(row.id)}],
        "status": status,
        "recipient": [{"reference": f"Organization/{row.clinic}"}],
        "sent": instant(row.first_sent),
    }
    if focus and row.card is not None:
        found["about"] = [{"reference": f"Task/{row.card}"}]
    if row.delivered is not None:
        found["received"] = instant(row.delivered)
    return found


# --- who is who -------------------------------------------------------------------------------


def organization(one: Site | Clinic, voice: Voice) -> Json:
    found: Json = {
        "resourceType": "Organization",
        "id": one.id,
        "identifier": [{"system": ORGANIZATION, "value": one.id}],
        "active": True,
        "name": one.name.get(voice.language, one.id),
    }
    if one.part_of is not None:
        found["partOf"] = {"reference": f"Organization/{one.part_of}"}
    return found


def practitioner_role(person: Person, *, active: bool) -> Json:
    found: Json = {
        "resourceType": "PractitionerRole",
        "id": person.id,
        "identifier": [{"system": PERSON, "value": person.id}],
        "active": active,
        "practitioner": {"display": person.name},
        "code": [
            {"coding": [{"system": f"{CANON}/CodeSystem/role", "code": role}]}
            for role in person.roles
        ],
    }
    if person.clinic is not None:
        found["organization"] = {"reference": f"Organization/{person.clinic}"}
    return found


# --- Bundles ----------------------------------------------------------------------------------


def searchset(
    base: str,
    matches: Sequence[Json],
    included: Sequence[Json],
    total: int,
    links: Mapping[str, str],
) -> Json:
    """CA-13: exact total, absolute addresses, no `entry` if there is none."""
    found: Json = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": total,
        "link": [{"relation": relation, "url": url} for relation, url in links.items()],
    }
    entries = [
        {
            "fullUrl": f"{base}/{resource['resourceType']}/{resource['id']}",
            "resource": resource,
            "search": {"mode": mode},
        }
        for mode, resources in (("match", matches), ("include", included))
        for resource in resources
    ]
    if entries:
        found["entry"] = entries
    return found


def history(base: str, versions: Sequence[Json]) -> Json:
    """Every version of one resource, newest first; the oldest is the one that was created."""
    name = f"{versions[0]['resourceType']}/{versions[0]['id']}"
    return {
        "resourceType": "Bundle",
        "type": "history",
        "total": len(versions),
        "link": [{"relation": "self", "url": f"{base}/{name}/_history"}],
        "entry": [
            {
                "fullUrl": f"{base}/{name}",
                "resource": resource,
                "request": {"method": "PUT", "url": name},
                "response": {
                    "status": "201" if place == len(versions) else "200",
                    "etag": f'W/"{resource["meta"]["versionId"]}"',
                    "lastModified": resource["meta"]["lastUpdated"],
                },
            }
            for place, resource in enumerate(versions, start=1)
        ],
    }
