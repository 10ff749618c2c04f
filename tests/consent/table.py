"""The consent case table, written out as documents of `passerelle consent-decide` (CS-60).

This module knows the contract and FHIR, and nothing of the engine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

FILE: Final = Path(__file__).parent / "cases.yaml"
EXAMPLE: Final = Path(__file__).parent / "example.json"
TERMS: Final = "http://terminology.hl7.org/CodeSystem/"
SYSTEMS: Final = {
    "icd": "http://hl7.org/fhir/sid/icd-10-ca",
    "local": "https://example.ca/codes",
}
LEVELS: Final = frozenset("ULMNRV")
MARKS: Final = {"+": "release", "?": "hold", "-": "withhold"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    id: str
    why: str
    covers: tuple[str, ...]
    document: Json
    outcome: str
    decision: str
    items: Mapping[str, str]
    """Item → release, hold or withhold."""
    flags: tuple[str, ...]
    alert: Json | None
    reasons: Mapping[str, list[str]]
    """Exact, of the items that are named."""
    basis: Mapping[str, list[str]]
    """Exact, of the items that are named: `id/version` of each Consent."""


@cache
def _said() -> Json:
    said: Json = yaml.safe_load(FILE.read_text())
    return said


@cache
def cases() -> tuple[Case, ...]:
    return tuple(_case(row) for row in _said()["cases"])


def _case(row: Json) -> Case:
    outcome, decision, *marks = row["expect"].split()
    return Case(
        id=row["id"],
        why=row["why"],
        covers=tuple(row["covers"]),
        document=_document({**_said()["world"], **row}),
        outcome=outcome,
        decision=decision,
        items={m[1:]: MARKS[m[0]] for m in marks if m[0] in MARKS},
        flags=tuple(sorted(m[1:] for m in marks if m[0] == "!")),
        alert=row.get("alert"),
        reasons=row.get("reasons", {}),
        basis=row.get("basis", {}),
    )


def _document(row: Json) -> Json:
    request = {
        "at": row["at"],
        "patient": row["patient"],
        "patient_aliases": [_name(a) for a in row.get("aliases", [])],
        "patient_birth_date": row.get("born"),
        "custodian": _name(row["custodian"]),
        "recipient": {
            "organization": _name(row["recipient"]),
            "practitioners": [_name(r) for r in row["readers"]],
        },
        "purpose": row.get("purpose", "COC"),
        "action": row.get("action"),
        "circle_of_care": row["circle"],
        "items": [_item(id_, item, row) for id_, item in row["items"].items()],
    }
    if "derived" in row:
        request["derived"] = {"kind": "frequent-user-flag", **row["derived"]}
    return {
        "consents": [_consent(c, f"c{n}", row) for n, c in enumerate(row.get("consents", []), 1)],
        "request": request,
        "directory": _directory(),
        "policy": {"profile": "core", **row["policy"]},
    }


def _name(short: str | None) -> str | None:
    names: dict[str, str] = _said()["names"]
    return None if short is None else names.get(short, short)


@cache
def _directory() -> Json:
    said = _said()["directory"]
    return {
        "partOf": {_name(k): _name(v) for k, v in said["partOf"].items()},
        "affiliation": {_name(k): [_name(v) for v in vs] for k, vs in said["affiliation"].items()},
        "groups": {_name(k): [_name(v) for v in vs] for k, vs in said["groups"].items()},
        "identifiers": {k: _name(v) for k, v in said["identifiers"].items()},
        "bases": said["bases"],
    }


def _item(id_: str, said: Json, row: Json) -> Json:
    labels, codes = said.get("labels", []), said.get("codes", [])
    return {
        "id": id_,
        "resourceType": said.get("type", "Encounter"),
        "encounterClass": said.get("as"),
        "date": said.get("date", row["item_date"]),
        "end": said.get("end"),
        "labels": None if labels is None else [_label(c) for c in labels],
        "codes": None if codes is None else [_coding(c, "") for c in codes],
        "custodian": _name(said.get("custodian")),
        "author": _name(said.get("author")),
        "encounter": said.get("encounter"),
        "episode": said.get("episode"),
    }


def _coding(code: str, system: str) -> Json:
    if "|" in code:
        system, code = code.rsplit("|", 1)
    return {"system": SYSTEMS.get(system, system), "code": code}


def _label(code: str) -> Json:
    return _coding(code, TERMS + ("v3-Confidentiality" if code in LEVELS else "v3-ActCode"))


def _consent(said: Json, name: str, row: Json) -> Any:
    if "whole" in said:
        return said["whole"]
    if said.get("example"):
        return json.loads(EXAMPLE.read_text())
    privacy = {"system": TERMS + "consentscope", "code": "patient-privacy"}
    found: Json = {
        "resourceType": "Consent",
        "id": said.get("id", name),
        "status": said.get("status", "active"),
        "scope": {"coding": [privacy]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": row["patient"]},
        "dateTime": said.get("dated", row["consent_date"]),
        "policy": [{"uri": "https://example.ca/policies/sharing-2026"}],
    }
    if found["dateTime"] is None:
        del found["dateTime"]
    if "version" in said:
        found["meta"] = {"versionId": said["version"]}
    if "base" in said:
        found["policyRule"] = {"coding": [_coding(said["base"], TERMS + "v3-ActCode")]}
    if "performer" in said:
        found["performer"] = [{"reference": _name(p)} for p in said["performer"]]
    if "root" in said:
        found["provision"] = _rule(said["root"])
    return {**found, **said.get("raw", {})}


def _rule(said: Json) -> Json:
    found: Json = {}
    for element, value in said.items():
        match element:
            case "type":
                found["type"] = value
            case "actor":
                found["actor"] = [_actor(a) for a in value]
            case "action":
                codings = [_coding(c, TERMS + "consentaction") for c in value]
                found["action"] = [{"coding": [c]} for c in codings]
            case "purpose":
                found["purpose"] = [_coding(c, TERMS + "v3-ActReason") for c in value]
            case "label":
                found["securityLabel"] = [_label(c) for c in value]
            case "class":
                system = "http://hl7.org/fhir/resource-types"
                found["class"] = [_coding(c, system) for c in value]
            case "code":
                found["code"] = [{"coding": [_coding(c, "")]} for c in value]
            case "period" | "dataPeriod":
                found[element] = _period(str(value))
            case "data":
                found["data"] = [_datum(d) for d in value]
            case "rules":
                found["provision"] = [_rule(r) for r in value]
            case "raw":
                found |= value
            case _:
                raise ValueError(element)
    return found


def _actor(said: str | Json) -> Json:
    if isinstance(said, str):
        code, name = said.split()
        return _actor({"role": code, "reference": {"reference": _name(name)}})
    role = said["role"]
    if isinstance(role, str):
        coding = _coding(role, TERMS + "v3-ParticipationType")
        return {"role": {"coding": [coding]}, "reference": said["reference"]}
    return {"role": role, "reference": said["reference"]}


def _period(said: str) -> Json:
    start, _, end = said.partition("/") if "/" in said else (said, "", said)
    return {k: v for k, v in (("start", start), ("end", end)) if v}


def _datum(said: str) -> Json:
    meaning, reference = said.split()
    return {"meaning": meaning, "reference": {"reference": reference}}


def differences(case: Case, code: int, answer: Json) -> list[str]:
    """What in an answer of `consent-decide` is not as the table has it; empty: exact."""
    if code != 0:
        return [f"exit code {code}: {answer}"]
    released = sorted(id_ for id_, said in case.items.items() if said == "release")
    wanted = {
        "outcome": case.outcome,
        "decision": case.decision,
        "release": released,
        "redact": sorted(set(case.items) - set(released)),
        "flags": list(case.flags),
        "alert": case.alert,
        "obligations": [
            code
            for code, due in (
                ("NORDSCLCD", case.outcome == "permit"),
                ("REDACT", len(released) < len(case.items)),
            )
            if due
        ],
    }
    found = [
        f"{field}: {answer.get(field)}, not {value}"
        for field, value in wanted.items()
        if answer.get(field) != value
    ]
    items = {item["id"]: item for item in answer["items"]}
    found += [
        f"{id_}: {items[id_]['outcome']}, not {said}"
        for id_, said in case.items.items()
        if items[id_]["outcome"] != said
    ]
    found += [
        f"{id_}: {items[id_]['reasons']}, not {reasons}"
        for id_, reasons in case.reasons.items()
        if items[id_]["reasons"] != sorted(reasons)
    ]
    basis = {
        id_: sorted("Consent/" + b.replace("/", "/_history/") for b in said)
        for id_, said in case.basis.items()
    }
    found += [
        f"{id_}: {items[id_]['basis']}, not {said}"
        for id_, said in basis.items()
        if items[id_]["basis"] != said
    ]
    if answer["basis"] != sorted({b for item in answer["items"] for b in item["basis"]}):
        found.append("basis is not that of the items")
    return found


def leaks(case: Case, answer: Json) -> list[str]:
    """Items that were released, or an alert that was sent, against the table."""
    told = answer["release"] if answer["outcome"] == "permit" else []
    found = [id_ for id_ in told if case.items[id_] != "release" or case.outcome != "permit"]
    return found + (["alert"] if answer.get("alert") != case.alert and told else [])
