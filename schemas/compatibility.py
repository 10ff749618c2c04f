"""Whether an event version may change as it did: rules over its old and its new JSON Schema.

Two readers must not be harmed. Today's reader meets yesterday's events, which stay on the log
and in the backups; yesterday's reader meets today's events while services are upgraded one by
one. So the only change allowed to a published version is a further field with a default; all
else is a new version: a new module, a new `type`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

CONSTRAINTS = (
    "format",
    "pattern",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)


def incompatible(old: Schema, new: Schema) -> list[str]:
    """What of `new` breaks a reader of the published version `old`; empty if nothing does.

    Each entry names the place, as `data.start.precision`, and says which reader is harmed.
    Texts (title, description) may change. A draft (`x-published` false) may change in any way.
    """
    if not old["x-published"]:
        return []
    if not new["x-published"]:
        return ["data: was published, so it cannot become a draft again"]
    return list(_Comparison(old, new).node(old, new, "data"))


class _Comparison:
    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old.get("$defs", {})
        self._new = new.get("$defs", {})
        self._seen: set[tuple[str, str]] = set()

    def node(self, old: Schema, new: Schema, at: str) -> Iterator[str]:
        names = (old.get("$ref", ""), new.get("$ref", ""))
        if all(names):
            if names in self._seen:
                return
            self._seen.add(names)
        before = _alternatives(_resolved(old, self._old), self._old)
        after = _alternatives(_resolved(new, self._new), self._new)
        yield from (f"{at}: narrowed, no longer {kind}" for kind, _ in before.keys() - after.keys())
        yield from (
            f"{at}: widened to {kind}, which an older reader refuses"
            for kind, _ in after.keys() - before.keys()
        )
        if "default" in old and old.get("default") != new.get("default"):
            yield f"{at}: default changed, so older events that leave it out now say another thing"
        for kind in before.keys() & after.keys():
            yield from self._same_kind(before[kind], after[kind], at)

    def _same_kind(self, old: Schema, new: Schema, at: str) -> Iterator[str]:
        yield from _values(old, new, at)
        for word in CONSTRAINTS:
            if old.get(word) != new.get(word):
                yield f"{at}: {word} changed from {old.get(word)} to {new.get(word)}"
        yield from self._fields(old, new, at)
        for word, place in (("items", "[]"), ("additionalProperties", ".*")):
            yield from self._inner(old.get(word, True), new.get(word, True), at + place)

    def _inner(self, old: Schema | bool, new: Schema | bool, at: str) -> Iterator[str]:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from self.node(old, new, at)
        elif old != new:
            yield f"{at}: what may stand here changed"

    def _fields(self, old: Schema, new: Schema, at: str) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        must_before, must_after = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(before.keys() - after.keys()):
            yield f"{at}.{name}: removed or renamed"
        for name in sorted(must_after - must_before):
            yield f"{at}.{name}: required now, and older events may lack it; give it a default"
        for name in sorted((must_before - must_after) & after.keys()):
            yield f"{at}.{name}: may be missing now, and an older reader requires it"
        for name in sorted(before.keys() & after.keys()):
            yield from self.node(before[name], after[name], f"{at}.{name}")


def _values(old: Schema, new: Schema, at: str) -> Iterator[str]:
    before, after = old.get("enum"), new.get("enum")
    if before is None and after is None:
        return
    if before is None or after is None:
        yield f"{at}: a closed list of values {'appeared' if before is None else 'went away'}"
        return
    for value in before:
        if value not in after:
            yield f"{at}: narrowed, no longer {value!r}"
    for value in after:
        if value not in before:
            yield f"{at}: widened to {value!r}, which an older reader refuses"


def _resolved(node: Schema, definitions: Schema) -> Schema:
    found = definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
    return dict(found) | {k: v for k, v in node.items() if k != "$ref"}


def _alternatives(node: Schema, definitions: Schema) -> dict[tuple[str, int], Schema]:
    """The forms a value may have, by JSON type; the number tells apart two of one type."""
    forms: dict[tuple[str, int], Schema] = {}
    for form in node.get("anyOf", [node]):
        whole = _resolved(form, definitions)
        kind, nth = str(whole.get("type", "anything")), 0
        while (kind, nth) in forms:
            nth += 1
        forms[kind, nth] = whole
    return forms
