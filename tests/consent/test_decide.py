"""The contract of `passerelle consent-decide` beside the table (CS-60 to CS-62)."""

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.notify import consent, decide, reading
from services.notify.consent import Request
from tests.consent.table import cases

Json = dict[str, Any]
ODD: list[Any] = [0, [], {}, "x", [[]], [{"coding": 1}], {"coding": [1]}, [None], True]
SECRET = "TEST-SECRET-4711"


def document(**request: Any) -> Json:
    """A small one; `request` over its request."""
    found = copy.deepcopy(next(case.document for case in cases() if case.id == "S4-1"))
    found["request"] |= request
    return found


def answer(said: Any) -> tuple[int, Json]:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    code, found = decide.answer(text)
    return code, json.loads(found)


def error(said: Any) -> Json:
    code, found = answer(said)
    assert code == decide.UNUSABLE
    assert set(found) == {"error"}
    assert set(found["error"]) == {"code", "path", "message"}
    return dict(found["error"])


def test_the_answer_has_the_fields_of_the_contract() -> None:
    code, found = answer(document())
    assert code == decide.DECIDED
    assert list(found) == [
        "outcome",
        "decision",
        "release",
        "redact",
        "items",
        "flags",
        "obligations",
        "basis",
        "engine",
        "codes",
    ]
    assert found["obligations"] == ["NORDSCLCD", "REDACT"]
    assert found["basis"] == ["Consent/c1/_history/1"]
    assert found["items"][0] == {
        "id": "d1",
        "outcome": "withhold",
        "reasons": ["restricted"],
        "basis": ["Consent/c1/_history/1"],
    }


def test_the_same_document_gives_the_same_bytes() -> None:
    for case in cases():
        text = json.dumps(case.document).encode()
        assert decide.answer(text) == decide.answer(text)


def test_the_order_of_consents_items_and_readers_does_not_show() -> None:
    """CP1 on whole documents."""
    for case in cases():
        turned = copy.deepcopy(case.document)
        turned["consents"].reverse()
        turned["request"]["items"].reverse()
        turned["request"]["recipient"]["practitioners"].reverse()
        assert answer(turned) == answer(case.document), case.id


def test_absent_is_null_and_null_is_absent() -> None:
    said = document(action=None, derived=None, circle_of_care=None)
    bare = document()
    for field in ("action", "circle_of_care"):
        bare["request"].pop(field)
    assert answer(said) == answer(bare)


def test_what_may_be_absent_has_a_default() -> None:
    said = document()
    del said["directory"]
    said["policy"] = {"default": "opt-in"}
    said["consents"] = [c | {"provision": {"type": "permit"}} for c in said["consents"]]
    code, found = answer(said)
    assert (code, found["outcome"]) == (decide.DECIDED, "permit")


UNUSABLE: dict[str, tuple[Callable[[Json], Any], str, str]] = {
    "not JSON": (lambda d: b"{", "not-json", "$"),
    "nothing": (lambda d: b"", "not-json", "$"),
    "not UTF-8": (lambda d: b'{"a": "\xff"}', "not-json", "$"),
    "half a surrogate": (lambda d: b'{"a": "\\ud800"}', "not-json", "$"),
    "no number": (lambda d: b'{"a": NaN}', "not-json", "$"),
    "a list": (lambda d: [d], "invalid-value", "$"),
    "too deep": (lambda d: b'{"consents":' + b"[" * 3000 + b"]" * 3000 + b"}", "not-json", "$"),
    "a field twice": (lambda d: b'{"consents": [], "consents": []}', "duplicate-field", "$"),
    "no consents": (lambda d: d.pop("consents") and d, "missing-field", "consents"),
    "no policy": (lambda d: d | {"policy": None}, "missing-field", "policy"),
    "no default": (lambda d: d | {"policy": {}}, "missing-field", "policy.default"),
    "no instant": (
        lambda d: d | {"request": d["request"] | {"at": None}},
        "missing-field",
        "request.at",
    ),
    "no purpose": (
        lambda d: d | {"request": d["request"] | {"purpose": None}},
        "missing-field",
        "request.purpose",
    ),
    "no offset": (
        lambda d: d | {"request": d["request"] | {"at": "2026-03-02T14:00:00"}},
        "no-offset",
        "request.at",
    ),
    "a day as instant": (
        lambda d: d | {"request": d["request"] | {"at": "2026-03-02"}},
        "invalid-value",
        "request.at",
    ),
    "an item date without offset": (
        lambda d: (
            d
            | {
                "request": d["request"]
                | {
                    "items": [
                        {"id": "v", "resourceType": "Encounter", "date": "2026-03-02T14:00:00"}
                    ]
                }
            }
        ),
        "no-offset",
        "request.items[0].date",
    ),
    "a field nobody knows": (
        lambda d: d | {"request": d["request"] | {SECRET: 1}},
        "unknown-field",
        "request",
    ),
    "one at the top": (lambda d: d | {SECRET: 1}, "unknown-field", "$"),
    "one in an item": (
        lambda d: (
            d
            | {
                "request": d["request"]
                | {"items": [{"id": "v", "resourceType": "Encounter", SECRET: 1}]}
            }
        ),
        "unknown-field",
        "request.items[0]",
    ),
    "an item twice": (
        lambda d: (
            d | {"request": d["request"] | {"items": [{"id": SECRET, "resourceType": "Flag"}] * 2}}
        ),
        "duplicate-item",
        "request.items[1].id",
    ),
    "a default nobody knows": (
        lambda d: d | {"policy": {"default": SECRET}},
        "invalid-value",
        "policy.default",
    ),
    "a time zone nobody knows": (
        lambda d: d | {"policy": {"default": "implied", "time_zone": SECRET}},
        "invalid-value",
        "policy.time_zone",
    ),
    "a directory that is wrong in a patient's own key": (
        lambda d: d | {"directory": {"identifiers": {SECRET: 7}}},
        "invalid-value",
        "directory.identifiers",
    ),
    "a text for a truth": (
        lambda d: d | {"request": d["request"] | {"circle_of_care": SECRET}},
        "invalid-value",
        "request.circle_of_care",
    ),
    "no threshold": (
        lambda d: (
            d
            | {
                "request": d["request"]
                | {"derived": {"kind": "frequent-user-flag", "ed_threshold": 4}}
            }
        ),
        "missing-field",
        "request.derived.hosp_threshold",
    ),
    "a threshold of none": (
        lambda d: (
            d
            | {
                "request": d["request"]
                | {
                    "derived": {
                        "kind": "frequent-user-flag",
                        "ed_threshold": 0,
                        "hosp_threshold": 3,
                    }
                }
            }
        ),
        "invalid-value",
        "request.derived.ed_threshold",
    ),
    "a birth date that is none": (
        lambda d: d | {"request": d["request"] | {"patient_birth_date": SECRET}},
        "invalid-value",
        "request.patient_birth_date",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_document_is_named_by_place_and_never_by_value(what: str) -> None:
    """CS-62."""
    spoil, code, path = UNUSABLE[what]
    found = error(spoil(document()))
    assert (found["code"], found["path"]) == (code, path)
    assert SECRET not in json.dumps(found)


def test_more_than_8_mib_is_refused_and_8_mib_are_not() -> None:
    text = json.dumps(document()).encode()
    assert answer(text + b" " * (decide.LIMIT - len(text)))[0] == decide.DECIDED
    assert error(text + b" " * (decide.LIMIT - len(text) + 1))["code"] == "too-large"


def test_a_consent_never_makes_the_document_unusable() -> None:
    """Whatever it is: it is not computable, or it says nothing (CS-13, CS-60)."""
    odd: list[Any] = [
        None,
        0,
        "x",
        [],
        {},
        {"resourceType": "Patient"},
        {"resourceType": "Consent"},
        {"resourceType": "Consent", "status": {}, "scope": [], "patient": 5, "meta": "x"},
    ]
    legal = document()["consents"][0]
    odd += [
        legal | {element: value}
        for element in (
            "id",
            "meta",
            "status",
            "scope",
            "category",
            "dateTime",
            "performer",
            "policyRule",
            "provision",
            "contained",
        )
        for value in ODD
    ]
    odd += [
        legal | {"provision": {"type": "permit", element: value}}
        for element in (*reading.RULE_ELEMENTS, "_type", "surprise")
        for value in [*ODD, [{"coding": [1]}]]
    ]
    odd.append(legal | {"meta": {"versionId": "9" * 5000}})
    deep: Json = {"type": "permit"}
    for _ in range(400):
        deep = {"type": "permit", "provision": [deep]}
    odd.append(legal | {"provision": deep})
    for one in odd:
        said = document()
        said["consents"] = [one]
        said["policy"] = {"default": "opt-in"}
        code, found = answer(said)
        assert code == decide.DECIDED, one
        assert found["outcome"] != "permit" or found["decision"] == "permit"
        assert "decision-error" not in json.dumps(found), one


def test_what_is_no_consent_is_a_hold() -> None:
    for one in (None, "x", {}, {"resourceType": "Patient", "id": "TEST-p1"}):
        said = document()
        said["consents"] = [one]
        code, found = answer(said)
        assert (code, found["outcome"], found["flags"]) == (0, "hold", ["NOT_COMPUTABLE"])


def test_lines_are_answered_one_by_one_and_a_bad_one_does_not_stop_the_rest() -> None:
    """CS-62."""
    good = json.dumps(document()).encode()
    long = b"[" + b" " * decide.LIMIT + b"]"
    lines = [good, b"{", good, long, b"", good]
    sink = io.BytesIO()
    code = decide.run(io.BytesIO(b"\n".join(lines) + b"\n"), sink, lines=True)
    answers = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert code == decide.UNUSABLE
    assert [a.get("error", a).get("code", a.get("outcome")) for a in answers] == [
        "permit",
        "not-json",
        "permit",
        "too-large",
        "not-json",
        "permit",
    ]
    sink = io.BytesIO()
    assert decide.run(io.BytesIO(good + b"\r\n" + good), sink, lines=True) == decide.DECIDED
    assert len(sink.getvalue().splitlines()) == 2


def test_an_exception_in_the_decision_is_a_hold_of_every_item() -> None:
    """CS-01, CS-61."""

    def broken(visible: frozenset[str]) -> bool:
        raise RuntimeError(SECRET)

    item = consent.Item(id="v1", kind="Encounter")
    at = datetime(2026, 3, 2, tzinfo=UTC)
    asked = Request(at, "Patient/p", "Organization/o", (), (item,), circle=True, met=broken)
    decision = consent.decide([], asked, consent.Policy(consent.Default.IMPLIED))
    assert isinstance(decision, consent.Hold)
    assert decision.reasons == {consent.Reason.DECISION_ERROR}
    assert [f.outcome for f in decision.findings] == [consent.Outcome.HOLD]


def command(said: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", "consent-decide", *options],
        input=said,
        capture_output=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": ":".join(sys.path)},
    )


def test_the_command_answers_the_whole_table_line_by_line() -> None:
    """CS-60: without settings, in any folder, by the same function."""
    documents = [json.dumps(case.document).encode() for case in cases()]
    done = command(b"\n".join(documents), "--lines")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines() == [decide.answer(text)[1] for text in documents]


def test_the_command_ends_with_two_for_an_unusable_document() -> None:
    done = command(b'{"request": {"patient": "TEST-SECRET-4711"}}')
    assert done.returncode == decide.UNUSABLE
    assert json.loads(done.stdout)["error"]["code"] == "missing-field"
    assert SECRET.encode() not in done.stdout + done.stderr


def test_the_example_of_the_docs_is_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "consent.md").read_text()
    example = page.split("$ cat question.json\n")[1].split("```")[0]
    question, printed = example.split("$ passerelle consent-decide < question.json\n")
    assert decide.answer(question.encode()) == (decide.DECIDED, printed.strip().encode())
