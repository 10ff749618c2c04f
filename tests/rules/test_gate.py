"""Legal R4 passes, illegal does not, and every refusal says where and what to do (HA-63 to 69)."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.ingest import gate, verbatim

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "encounters"
"""Public R4 samples, beside the repository and not part of it."""
SECRET = "TESTSECRET99"


def encounter(**changes: Any) -> dict[str, Any]:
    """A legal Encounter; a change of `...` leaves that property out."""
    made = {
        "resourceType": "Encounter",
        "id": "e1",
        "identifier": [{"system": "https://example.ca/visits", "value": "TEST-1"}],
        "status": "finished",
        "class": {
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode",
            "code": "EMER",
        },
        "subject": {"reference": "Patient/p1"},
        "period": {"start": "2026-05-02T20:00:00-04:00", "end": "2026-05-03T04:30:00-04:00"},
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def problems(resource: dict[str, Any], kind: str = "Encounter") -> list[gate.Problem]:
    piece = verbatim.read(json.dumps(resource).encode())
    return gate.check(piece.tree, piece.text, kind)


def patient(**changes: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": "p1", **changes}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":{"b":1,"b":1}}',
        '{"a":[{"b":1,"b":1}]}',
        '{"a":NaN}',
        '{"a":01}',
        '{"a":1}{}',
        '{"a":1}x',
        '\ufeff{"a":1}',
        '{"a":"\x01"}',
        '{"a":"\\ud800"}',
        '{"a":1,}',
        "[]",
        '"text"',
        "",
        '{"a":' + "[" * 64 + "]" * 64 + "}",
        '{"a":' * 1200 + "1" + "}" * 1200,
    ],
)
def test_what_is_not_strict_json_is_refused(text: str) -> None:
    """HA-65."""
    with pytest.raises(verbatim.NotJsonError):
        verbatim.read(text.encode())


def test_bytes_that_are_not_utf8_are_refused() -> None:
    """HA-65."""
    with pytest.raises(verbatim.NotJsonError):
        verbatim.read(b'{"a":"\xff"}')


def test_a_duplicate_key_of_a_bundle_entry_is_found_too() -> None:
    """HA-65: also where the Bundle is cut by hand."""
    for text in (
        '{"type":"batch","type":"batch"}',
        '{"entry":[{"request":1,"request":2}]}',
        '{"entry":[{"resource":{"id":"a","id":"b"}}]}',
    ):
        with pytest.raises(verbatim.NotJsonError):
            verbatim.read_bundle(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"entry":[{"resource":%s}]}',
        '{"entry":[{"request":%s}]}',
        '{"entry":[%s]}',
        '{"entry":%s}',
        '{"meta":%s}',
    ],
)
def test_no_part_of_a_bundle_nests_too_deep(text: str) -> None:
    """HA-100: counted from the Bundle itself."""
    outer = (text % "").count("{") + (text % "").count("[")
    for inner, is_fine in ((64 - outer, True), (65 - outer, False)):
        raw = (text % ("[" * inner + "]" * inner)).encode()
        if is_fine:
            verbatim.read_bundle(raw)
        else:
            with pytest.raises(verbatim.NotJsonError, match="deeper"):
                verbatim.read_bundle(raw)


def test_a_bundle_is_cut_into_the_very_text_that_was_sent() -> None:
    """HA-04."""
    odd = '{ "id" : "e1",\n"value": 1.50, "text": "\\u00e9" }'
    raw = f'{{"entry" : [ {{"resource": {odd} , "request":{{}}}}, {{"request":{{}}}} ] }}'
    tree, texts = verbatim.read_bundle(raw.encode())
    assert texts == [odd, None]
    assert tree == json.loads(raw)


def test_only_id_and_meta_are_replaced_in_what_is_served() -> None:
    """HA-04, HA-11: the rest is the received text, decimals and spaces included."""
    text = '{"meta":{"versionId":"9","profile":["x"]}, "value" : 1.50,"id":"theirs", "z":[1, 2]}'
    served = verbatim.served(
        text, logical_id="ours", version=3, updated="2026-01-01T00:00:00Z", tags='{"code":"held"}'
    )
    assert '"value" : 1.50' in served
    assert json.loads(served) == {
        "id": "ours",
        "meta": {
            "versionId": "3",
            "lastUpdated": "2026-01-01T00:00:00Z",
            "profile": ["x"],
            "tag": [{"code": "held"}],
        },
        "value": 1.5,
        "z": [1, 2],
    }


def test_id_and_meta_are_added_where_there_were_none() -> None:
    for text in ("{}", '{"a":1}', ' { "a" : 1 }'):
        served = json.loads(verbatim.served(text, logical_id="x", version=1, updated="u"))
        assert served["id"] == "x"
        assert served["meta"] == {"versionId": "1", "lastUpdated": "u"}


LEGAL = [
    encounter(),
    encounter(period={"start": "2026"}),
    encounter(period={"start": "2026-05"}),
    encounter(period={"start": "2026-05-02"}),
    encounter(period={"start": "2016-12-31T23:59:60Z"}),
    encounter(period={"start": "2026-05-02T20:00:00.123456789012-04:00"}),
    encounter(period={"start": "2026-05-02T20:00:00+14:00"}),
    encounter(period={"start": "2026-05-02", "end": "2026-05-02T10:00:00-04:00"}),
    encounter(period={"start": "2026-05-02T10:00:00Z", "end": "2026-05-02T06:00:00-04:00"}),
    encounter(
        status=...,
        _status={
            "extension": [
                {
                    "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                    "valueCode": "unknown",
                }
            ]
        },
    ),
    encounter(**{"class": {"display": "no code here"}}),
    encounter(**{"class": {"system": "https://example.ca/classes", "code": "URG"}}),
    encounter(subject={"reference": "Patient?identifier=https://example.ca/mrn|TEST-1"}),
    encounter(subject={"reference": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520"}),
    encounter(subject={"reference": "https://example.org/fhir/Patient/1/_history/2"}),
    encounter(subject={"identifier": {"value": "TEST-1"}}),
    encounter(subject={"reference": "Group/g1"}),
    encounter(modifierExtension=[{"url": "https://example.ca/x", "valueBoolean": True}]),
    encounter(contained=[{"resourceType": "Patient", "id": "p"}], subject={"reference": "#p"}),
    encounter(length={"value": 1.50, "unit": "h"}),
    encounter(text={"status": "generated", "div": '<div xmlns="x">Été ☃</div>'}),
]


@pytest.mark.parametrize("resource", LEGAL)
def test_a_legal_encounter_passes(resource: dict[str, Any]) -> None:
    """HA-68: among them what is often wrongly refused."""
    assert problems(resource) == []


@pytest.mark.parametrize(
    "resource",
    [
        patient(),
        patient(name=[{"given": [None, "B"], "_given": [{"extension": [
            {"url": "https://example.ca/x", "valueString": "y"}]}, None]}]),
        patient(deceasedDateTime="2026-05-02", birthDate="1980-02", multipleBirthInteger=2),
        patient(link=[{"other": {"reference": "Patient/2"}, "type": "replaced-by"}], active=False),
        patient(_birthDate={"extension": [
            {"url": "http://hl7.org/fhir/StructureDefinition/patient-birthTime",
             "valueDateTime": "1974-12-25T14:35:45-05:00"}]}),
    ],
)  # fmt: skip
def test_a_legal_patient_passes(resource: dict[str, Any]) -> None:
    assert problems(resource, "Patient") == []


@pytest.mark.parametrize(
    ("change", "expression"),
    [
        # shape (HA-66)
        ({"resourceType": ...}, "Encounter.resourceType"),
        ({"resourceType": "Patient"}, "Encounter.resourceType"),
        ({"status": ...}, "Encounter.status"),
        ({"class": ...}, "Encounter.class"),
        ({"class": [{"code": "EMER"}]}, "Encounter.class"),
        ({"class_fhir": {"code": "EMER"}}, "Encounter.class_fhir"),
        ({"actualPeriod": {"start": "2026-05-02"}}, "Encounter.actualPeriod"),
        ({"admission": {}}, "Encounter.admission"),
        ({"identifier": {"value": "TEST"}}, "Encounter.identifier"),
        ({"identifier": []}, "Encounter.identifier"),
        ({"period": {}}, "Encounter.period"),
        ({"period": None}, "Encounter.period"),
        ({"period": "2026-05-02"}, "Encounter.period"),
        ({"subject": {"reference": ""}}, "Encounter.subject.reference"),
        ({"subject": {"display": 7}}, "Encounter.subject.display"),
        ({"diagnosis": [{"use": {"text": "AD"}}]}, "Encounter.diagnosis[0].condition"),
        (
            {"diagnosis": [{"condition": {"reference": "Condition/1"}, "rank": 1.0}]},
            "Encounter.diagnosis[0].rank",
        ),
        ({"_subject": {"id": "x"}}, "Encounter._subject"),
        (
            {"extension": [{"url": "x", "valueString": "a", "valueCode": "b"}]},
            "Encounter.extension[0]",
        ),
        # primitives (HA-67)
        ({"id": "a_b"}, "Encounter.id"),
        ({"id": "a" * 65}, "Encounter.id"),
        ({"period": {"start": "2026-02-30"}}, "Encounter.period.start"),
        ({"period": {"start": "2026-13"}}, "Encounter.period.start"),
        ({"period": {"start": "2026-05-02T20:00:00"}}, "Encounter.period.start"),
        ({"period": {"start": "2026-05-02T20:00-04:00"}}, "Encounter.period.start"),
        ({"period": {"start": "20260502200000"}}, "Encounter.period.start"),
        ({"period": {"start": 1777766400}}, "Encounter.period.start"),
        ({"period": {"start": "2026-05-02T24:00:00Z"}}, "Encounter.period.start"),
        ({"period": {"start": "0000-01-01"}}, "Encounter.period.start"),
        ({"meta": {"lastUpdated": "2026-05-02"}}, "Encounter.meta.lastUpdated"),
        ({"class": {"code": " EMER"}}, "Encounter.class.code"),
        ({"class": {"code": True}}, "Encounter.class.code"),
        ({"class": {"system": "two words", "code": "E"}}, "Encounter.class.system"),
        ({"language": "a\u0000"}, "Encounter.language"),
        ({"implicitRules": "x\u0001y"}, "Encounter.implicitRules"),
        (
            {"diagnosis": [{"condition": {"reference": "Condition/1"}, "rank": 0}]},
            "Encounter.diagnosis[0].rank",
        ),
        # meaning (HA-68)
        ({"status": "Finished"}, "Encounter.status"),
        ({"status": "completed"}, "Encounter.status"),
        ({"subject": {"reference": "Device/1"}}, "Encounter.subject.reference"),
        ({"partOf": {"reference": "Patient/1"}}, "Encounter.partOf.reference"),
        ({"subject": {"reference": "#none"}}, "Encounter.subject.reference"),
        ({"period": {"start": "2026-05-02", "end": "2026-05-01"}}, "Encounter.period"),
        (
            {"period": {"start": "2026-05-02T10:00:00Z", "end": "2026-05-02T05:59:59-04:00"}},
            "Encounter.period",
        ),
        ({"extension": [{"url": "https://example.ca/x"}]}, "Encounter.extension[0]"),
        (
            {"contained": [{"resourceType": "Location", "id": "l", "contained": [{}]}]},
            "Encounter.contained[0]",
        ),
    ],
)
def test_an_illegal_encounter_is_refused_at_the_element(
    change: dict[str, Any], expression: str
) -> None:
    found = problems(encounter(**change))
    assert expression in {problem.expression for problem in found}
    assert all(problem.advice and problem.status in (400, 413, 422) for problem in found)


def test_a_time_without_zone_is_answered_with_what_to_add() -> None:
    """HA-77."""
    found = problems(encounter(period={"start": "2026-05-02T20:00:00"}))
    assert [problem.status for problem in found] == [400]
    assert "add an offset such as -05:00" in found[0].advice


def test_all_problems_are_told_at_once_and_no_value_is_repeated() -> None:
    """HA-63."""
    found = problems(
        encounter(
            status=SECRET,
            period={"start": SECRET, "end": SECRET},
            subject={"reference": f"Device/{SECRET}"},
            **{"class": {"code": f" {SECRET}"}},
        )
    )
    assert len(found) == 5
    assert SECRET not in repr(found)


def test_no_more_than_a_hundred_problems_are_told() -> None:
    """HA-63."""
    found = problems(encounter(identifier=[{"value": 1}] * 500))
    assert len(found) == gate.MAX_PROBLEMS


def test_more_contained_resources_than_allowed_are_refused() -> None:
    """HA-100."""
    found = problems(
        encounter(contained=[{"resourceType": "Basic", "id": f"b{n}"} for n in range(51)])
    )
    assert [problem.status for problem in found] == [413]


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason=f"not run: the public samples are not at {SAMPLES}"
)
def test_the_public_samples_are_legal() -> None:
    """HA-02: 307 real R4 Encounters, none refused."""
    count = 0
    for file in sorted(SAMPLES.glob("*.ndjson")):
        for line in file.read_bytes().splitlines():
            piece = verbatim.read(line)
            assert gate.check(piece.tree, piece.text, "Encounter") == [], file.name
            count += 1
    assert count == 307


def test_the_table_takes_shapes_of_another_source() -> None:
    """HA-69: the generated table of all types drops in."""
    shapes = gate.table("Thing\n  resourceType 1..1 string\n  size 1..1 positiveInt\n")
    text = '{"resourceType":"Thing","size":0}'
    found = gate.check(json.loads(text), text, "Thing", shapes=shapes)
    assert [problem.expression for problem in found] == ["Thing.size"]
    assert gate.check({"resourceType": "Thing"}, "", "Thing", shapes=shapes)[0].issue == "required"
