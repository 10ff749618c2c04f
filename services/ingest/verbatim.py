"""The received text itself: read once and strictly, cut into resources, never re-dumped (HA-04).

A round trip through a parser changes zone forms and decimals. So the text is kept as it
came; what is served or stored of it is a slice, with only `id` and `meta` replaced.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

import orjson

Tree = dict[str, Any]
"""A JSON object as Python sees it; gate.py judges what is in it."""

MAX_DEPTH = 64
"""Levels of nesting (HA-100)."""

_BLANK = re.compile(r"[ \t\n\r]*")


class NotJsonError(Exception):
    """The text is not one JSON object of the strict kind (HA-65). Its words never quote it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One resource: what it says, and the very text that said it."""

    tree: Tree
    text: str


def read(raw: bytes) -> Piece:
    """One resource. Raises `NotJsonError`."""
    text = _decoded(raw)
    return Piece(_value(text, _skip(text, 0))[0], text)


def read_bundle(raw: bytes) -> tuple[Tree, list[str | None]]:
    """A Bundle, and of each entry the text of its resource (None where it has none).

    Raises `NotJsonError`.
    """
    text = _decoded(raw, is_bundle=True)
    texts: list[str | None] = []

    def in_bundle(name: str, at: int) -> tuple[Any, int]:
        if name == "entry" and text[at] == "[":
            return _array(text, at, each)
        return _value(text, at)

    def each(at: int) -> tuple[Any, int]:
        texts.append(None)
        return _object(text, at, in_entry) if text[at] == "{" else _value(text, at)

    def in_entry(name: str, at: int) -> tuple[Any, int]:
        value, end = _value(text, at)
        if name == "resource":
            texts[-1] = text[at:end]
        return value, end

    bundle = _object(text, _skip(text, 0), in_bundle)[0]
    if any(one is not None and _may_be_deep(one) for one in texts) and _too_deep(bundle, MAX_DEPTH):
        raise NotJsonError(_DEEP)
    return bundle, texts


def parameter(raw: bytes, name: str) -> str | None:
    """The text of the resource that is the parameter `name` of Parameters; None if none is.

    Raises `NotJsonError`.
    """
    text = _decoded(raw)
    found: list[str] = []

    def in_parameters(key: str, at: int) -> tuple[Any, int]:
        return (
            _array(text, at, each) if key == "parameter" and text[at] == "[" else _value(text, at)
        )

    def each(at: int) -> tuple[Any, int]:
        if text[at] != "{":
            return _value(text, at)
        texts: list[str] = []

        def in_parameter(key: str, start: int) -> tuple[Any, int]:
            value, end = _value(text, start)
            if key == "resource":
                texts.append(text[start:end])
            return value, end

        said, end = _object(text, at, in_parameter)
        if said.get("name") == name:
            found.extend(texts)
        return said, end

    _object(text, _skip(text, 0), in_parameters)
    return found[0] if len(found) == 1 else None


def replaced(text: str, values: Mapping[str, str | Callable[[str | None], str]]) -> str:
    """The object `text` with the properties of `values` set to those JSON texts.

    A callable gets the property's present text (None where it is absent).
    """
    spans: dict[str, tuple[int, int]] = {}

    def note(name: str, at: int) -> tuple[Any, int]:
        value, end = _value(text, at)
        spans[name] = (at, end)
        return value, end

    start = _skip(text, 0)
    _object(text, start, note)
    out: list[str] = []
    added: list[str] = []
    cut = 0
    now = {name: text[slice(*spans[name])] if name in spans else None for name in values}
    new = {name: to(now[name]) if callable(to) else to for name, to in values.items()}
    for name, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        if name in new:
            out += text[cut:first], new[name]
            cut = last
    added = [f'"{name}":{value}' for name, value in new.items() if name not in spans]
    rest = "".join(out) + text[cut:]
    if not added:
        return rest
    head = rest[: start + 1]
    return head + ",".join(added) + ("," if spans else "") + rest[start + 1 :]


def served(
    text: str,
    *,
    logical_id: str,
    version: int,
    updated: str,
    tags: str | None = None,
) -> str:
    """The kept `text` as it is given out, with the server's id, version and time.

    `tags` is a JSON object to be added to `meta.tag`.
    """
    marks: dict[str, str | Callable[[str | None], str]] = {
        "versionId": f'"{version}"',
        "lastUpdated": f'"{updated}"',
    }
    if tags is not None:
        marks["tag"] = lambda was: f"[{tags}]" if was is None else f"{was.rstrip()[:-1]},{tags}]"
    return replaced(
        text,
        {
            "id": f'"{logical_id}"',
            "meta": lambda was: replaced("{}" if was is None else was, marks),
        },
    )


def _decoded(raw: bytes, *, is_bundle: bool = False) -> str:
    """`raw` as text, once all is refused that a lenient parser would let pass.

    Of a Bundle the depth is left to the caller, who knows its entries one by one.
    """
    if raw.startswith(b"\xef\xbb\xbf"):
        raise NotJsonError("The body starts with a byte order mark; send UTF-8 without one.")
    try:
        whole = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise NotJsonError(f"Not JSON in UTF-8, at character {error.pos}.") from None
    if not isinstance(whole, dict):
        raise NotJsonError("The body is not a JSON object.")
    text = raw.decode()
    shallow = {name: one for name, one in whole.items() if name != "entry"} if is_bundle else whole
    if (is_bundle or _may_be_deep(text)) and _too_deep(shallow, MAX_DEPTH):
        raise NotJsonError(_DEEP)
    if is_bundle and isinstance(whole.get("entry"), list):
        rest = [_without_resource(one) for one in whole["entry"]]
        if _too_deep(rest, MAX_DEPTH - 1):
            raise NotJsonError(_DEEP)
    return text


_DEEP = f"Nested deeper than {MAX_DEPTH} levels."


def _may_be_deep(text: str) -> bool:
    """Whether a text has enough brackets to nest too deep, within a Bundle's entry too."""
    return text.count("{") + text.count("[") > MAX_DEPTH - 3


def _without_resource(entry: Any) -> Any:
    if type(entry) is not dict:
        return entry
    return {name: one for name, one in entry.items() if name != "resource"}


def _too_deep(node: Any, left: int) -> bool:
    if not left:
        return True
    inner = node.values() if type(node) is dict else node
    return any(type(one) in (dict, list) and _too_deep(one, left - 1) for one in inner)


def _unique(pairs: list[tuple[str, Any]]) -> Tree:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotJsonError(_TWICE)
    return found


_TWICE = "An object has the same property twice; send each property once."
_DECODER = JSONDecoder(object_pairs_hook=_unique)


def _value(text: str, at: int) -> tuple[Any, int]:
    return _DECODER.raw_decode(text, at)


def _skip(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too


def _object(text: str, at: int, member: Callable[[str, int], tuple[Any, int]]) -> tuple[Tree, int]:
    """The object at `at`, each member read by `member`, and where it ends. `text` is JSON."""
    found: Tree = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _value(text, at)
        if name in found:
            raise NotJsonError(_TWICE)
        found[name], at = member(name, _skip(text, _skip(text, at) + 1))
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at + 1


def _array(text: str, at: int, element: Callable[[int], tuple[Any, int]]) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, at = element(at)
        found.append(value)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at + 1
