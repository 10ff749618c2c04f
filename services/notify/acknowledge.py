"""What a clinic's system asks of a card: PATCH and PUT of a Task → `card.Ask` (CA-20 to CA-25).

A change is read by comparing the Task as it is shown now with the Task as the client wants it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jsonpatch

from services.notify.card import Ask, Dismissal, NotAllowedError, Status
from services.notify.fhir import SNOOZE, progress

Json = dict[str, Any]
CHANGEABLE: Final = frozenset(
    {"status", "businessStatus", "statusReason", "owner", "note", "output", "extension"}
)
OURS: Final = frozenset({"meta", "lastModified"})
"""What changes with every version; a client that sends it back means nothing by it."""
PATCHES: Final = frozenset({"application/merge-patch+json", "application/json"})
JSON_PATCH: Final = "application/json-patch+json"
POOL: Final = ""


class BadPatchError(ValueError):
    """The patch cannot be read or applied. The text quotes nothing of it."""


class NoGuardError(ValueError):
    """Nothing says which version the client saw (CA-21)."""


class RefusedError(Exception):
    """Elements that cannot be changed so; nothing is applied (CA-22)."""

    def __init__(self, faults: Sequence[NotAllowedError]) -> None:
        super().__init__(f"{len(faults)} elements")
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The Task as the client wants it, and which state of it the client saw."""

    task: Json
    version: str | None
    """None: the guard was a `test` that `fresh` answers."""
    fresh: bool


def by_put(current: Json, body: Any, if_match: str | None) -> Wanted:
    if not isinstance(body, dict) or body.get("resourceType") != "Task":
        raise BadPatchError("Send the whole Task.")
    if body.get("id") != current["id"]:
        raise BadPatchError("The Task's id must be that of the address.")
    version = if_match or _meta_version(body)
    if version is None:
        raise NoGuardError
    return Wanted(body, version, fresh=version == current["meta"]["versionId"])


def by_merge(current: Json, body: Any, if_match: str | None) -> Wanted:
    if not isinstance(body, dict):
        raise BadPatchError("A merge patch is a JSON object.")
    version = if_match or _meta_version(body)
    if version is None:
        raise NoGuardError
    return Wanted(merged(current, body), version, fresh=version == current["meta"]["versionId"])


def by_patch(current: Json, body: Any, if_match: str | None) -> Wanted:
    if not isinstance(body, list) or not all(isinstance(step, dict) for step in body):
        raise BadPatchError("A JSON Patch is a list of operations.")
    tests = [s for s in body if s.get("op") == "test"]
    guards = [s for s in tests if s.get("path") in {"/status", "/meta/versionId"}]
    if if_match is None and not guards:
        raise NoGuardError
    fresh = if_match is None or if_match == current["meta"]["versionId"]
    fresh = fresh and all(s.get("value") == _at(current, str(s.get("path"))) for s in guards)
    rest = [s for s in body if s not in guards]
    try:
        task: Any = jsonpatch.JsonPatch(rest).apply(current)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError):
        raise BadPatchError("The patch does not apply to this Task.") from None
    if not isinstance(task, dict):
        raise BadPatchError("The patch must leave a Task.")
    return Wanted(task, if_match, fresh=fresh)


def _meta_version(body: Mapping[str, Any]) -> str | None:
    meta = body.get("meta")
    version = meta.get("versionId") if isinstance(meta, Mapping) else None
    return version if isinstance(version, str) else None


def _at(task: Json, path: str) -> Any:
    return task["meta"]["versionId"] if path == "/meta/versionId" else task.get("status")


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


# --- what is different ------------------------------------------------------------------------


def plain(node: Any) -> Any:
    """Without `display`, which follows the reader's language and is no content."""
    if isinstance(node, dict):
        return {name: plain(value) for name, value in node.items() if name != "display"}
    if isinstance(node, list):
        return [plain(one) for one in node]
    return node


def differences(current: Json, wanted: Json) -> frozenset[str]:
    """Top-level elements whose content differs."""
    names = (set(current) | set(wanted)) - OURS
    return frozenset(n for n in names if plain(current.get(n)) != plain(wanted.get(n)))


def ask_of(current: Json, wanted: Json, owner: Callable[[str], str | None]) -> Ask:
    """What the client wants. `owner`: a reference → a person, POOL, or None if it is neither.

    RefusedError names every element that cannot be changed so.
    """
    different = differences(current, wanted)
    faults = [
        NotAllowedError(f"Task.{name}", "This element is not the clinic's to change.")
        for name in sorted(different - CHANGEABLE)
    ]
    said: dict[str, Any] = {}
    readers: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("status", lambda: _status(current, wanted, different)),
        ("statusReason", lambda: _reason(wanted) if "statusReason" in different else {}),
        ("owner", lambda: _owner(wanted, owner) if "owner" in different else {}),
        ("note", lambda: _notes(current, wanted) if "note" in different else {}),
        ("output", lambda: _outputs(current, wanted) if "output" in different else {}),
        ("extension", lambda: _snooze(current, wanted) if "extension" in different else {}),
    )
    for name, read in readers:
        try:
            said |= read()
        except NotAllowedError as fault:
            faults.append(fault)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError):
            faults.append(NotAllowedError(f"Task.{name}", "This is not as R4 has it.", "structure"))
    if faults:
        raise RefusedError(faults)
    return Ask(**said)


def _status(current: Json, wanted: Json, different: frozenset[str]) -> dict[str, Any]:
    said = wanted.get("status")
    if said not in set(Status):
        names = ", ".join(Status)
        raise NotAllowedError("Task.status", f"One of {names} is needed.", "value")
    status = Status(said)
    if "businessStatus" not in different:
        return {"status": status} if status != current["status"] else {}
    business = wanted["businessStatus"]["coding"][0]["code"]
    if status == current["status"]:
        return {"status": _moved_by(business)}
    if business != progress(status):
        raise NotAllowedError(
            "Task.businessStatus", f"With status {status} it can only be {progress(status)}."
        )
    return {"status": status}


def _moved_by(business: str) -> Status:
    """`businessStatus` sent alone moves the status (CA-24)."""
    match business:
        case "in-progress":
            return Status.ACCEPTED
        case "completed":
            return Status.COMPLETED
        case _:
            raise NotAllowedError(
                "Task.businessStatus", "Alone it can become in-progress or completed."
            )


def _reason(wanted: Json) -> dict[str, Any]:
    said = wanted.get("statusReason")
    if said is None:
        return {}
    codes = [c.get("code") for c in said.get("coding", [])]
    known = [Dismissal(c) for c in codes if c in set(Dismissal)]
    if not known:
        names = ", ".join(Dismissal)
        raise NotAllowedError("Task.statusReason", f"One of {names} is needed.", "value")
    return {"dismissal": known[0], "dismissal_text": said.get("text")}


def _owner(wanted: Json, owner: Callable[[str], str | None]) -> dict[str, Any]:
    reference = wanted["owner"]["reference"]
    found = owner(reference)
    if found is None:
        raise NotAllowedError(
            "Task.owner", "An active PractitionerRole of the clinic, or the clinic, is needed."
        )
    return {"to_pool": True} if found == POOL else {"owner": found}


def _appended(current: Json, wanted: Json, name: str) -> list[Json]:
    before, after = current.get(name, []), wanted.get(name, [])
    if plain(after[: len(before)]) != plain(before):
        raise NotAllowedError(f"Task.{name}", "Can only be appended to.")
    return list(after[len(before) :])


def _notes(current: Json, wanted: Json) -> dict[str, Any]:
    texts = [note["text"] for note in _appended(current, wanted, "note")]
    if not all(isinstance(t, str) and 0 < len(t) <= 4000 for t in texts):
        raise NotAllowedError("Task.note", "A note is text, 4000 characters at most.", "value")
    return {"notes": tuple(texts)}


def _outputs(current: Json, wanted: Json) -> dict[str, Any]:
    outputs = _appended(current, wanted, "output")
    for one in outputs:
        values = [name for name in one if name.startswith("value")]
        if not isinstance(one.get("type"), dict) or len(values) != 1:
            raise NotAllowedError("Task.output", "An output has a type and one value.", "structure")
    return {"outputs": tuple(outputs)}


def _snooze(current: Json, wanted: Json) -> dict[str, Any]:
    others = [e for e in wanted.get("extension", []) if e["url"] != SNOOZE]
    if others != [e for e in current.get("extension", []) if e["url"] != SNOOZE]:
        raise NotAllowedError("Task.extension", "Only snooze-until is the clinic's to change.")
    said = [e for e in wanted.get("extension", []) if e["url"] == SNOOZE]
    if not said:
        return {}
    if said[0].get("valueCode") == "discharge":
        return {"until_discharge": True}
    until = datetime.fromisoformat(said[0]["valueDateTime"])
    if until.tzinfo is None:
        raise NotAllowedError("Task.extension", "Give the time with its UTC offset.", "value")
    return {"snooze_until": until.astimezone(UTC)}
