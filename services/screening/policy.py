"""A counting rule as a value: counting.md section 6.

A policy is data, not code, so that a site can show which rule flagged whom. A key that is not
of the language is refused, never ignored, because a key without effect would be a promise
about who is counted that nobody keeps (CT-50).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml


class Measure(StrEnum):
    """What a clause counts (CT-31)."""

    ED_VISITS = "ed_visits"
    ED_SITES = "ed_sites"
    HOSPITAL_EPISODES = "hospital_episodes"
    HOSPITAL_DAYS = "hospital_days"


class Mode(StrEnum):
    ANY = "any"
    ALL = "all"


@dataclass(eq=False)
class PolicyRefused(Exception):  # noqa: N818 - it is refused, not broken
    """A policy file cannot be used. Says where, and what would do."""

    path: str
    line: int
    advice: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.path or 'the file'}: {self.advice}"


@dataclass(frozen=True, slots=True)
class Clause:
    measure: Measure
    at_least: int
    length: timedelta
    """Of its window; a clause may look back less far, or farther, than the policy (`days`)."""


@dataclass(frozen=True, slots=True)
class Condition:
    mode: Mode
    clauses: tuple[Clause, ...]

    def holds(self, counts: Sequence[int]) -> bool:
        """Whether `counts`, one per clause in order, meet it. Without clauses: never."""
        wanted = self.mode is Mode.ANY
        for clause, count in zip(self.clauses, counts, strict=True):
            if (count >= clause.at_least) is wanted:
                return wanted
        return bool(self.clauses) and not wanted


@dataclass(frozen=True, slots=True)
class Link:
    """The gap rule of CT-22: below the first always, up to the second only if coded."""

    below: timedelta
    coded_up_to: timedelta


@dataclass(frozen=True, slots=True)
class EdRules:
    link: Link
    reregistration: timedelta
    min_if_untriaged: timedelta
    assumed_end: timedelta
    stale_open: timedelta
    excluded_sites: frozenset[str]
    admitted: bool
    planned: bool
    lwbs: bool
    redirected: bool
    pregnancy: bool
    during_stay: bool


@dataclass(frozen=True, slots=True)
class HospitalRules:
    link: Link
    assumed_end: timedelta
    stale_open: timedelta
    elective: bool
    day_surgery: bool
    obstetric: bool
    series: bool
    dialysis: bool
    mental_health: bool
    palliative: bool
    reverted_same_day: bool


@dataclass(frozen=True, slots=True)
class Codes:
    """ICD-10 prefixes, without dots."""

    pregnancy: tuple[str, ...]
    obstetric: tuple[str, ...]
    newborn: tuple[str, ...]
    series: tuple[str, ...]
    dialysis: tuple[str, ...]
    mental_health: tuple[str, ...]
    palliative: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    version: int
    title: Mapping[str, str]
    source: str
    zone: ZoneInfo
    window: timedelta
    consecutive: int
    """In how many adjoining windows the clauses must be met (CT-31)."""
    flag: Condition
    watch: Condition
    hold: timedelta
    quiet_reentry: timedelta
    alert_max_age: timedelta
    age_min: int | None
    age_max: int | None
    ed_classes: frozenset[str]
    hospital_classes: frozenset[str]
    ed: EdRules
    hospital: HospitalRules
    codes: Codes
    canonical: str
    """The full form with every default, as JSON with sorted keys."""
    sha256: str
    """Of `canonical`, hexadecimal."""

    @property
    def lookback(self) -> timedelta:
        """How far back anything can matter: the longest window, as often as it is asked for."""
        clauses = self.flag.clauses + self.watch.clauses
        return self.consecutive * max([self.window, *(clause.length for clause in clauses)])

    @property
    def label(self) -> str:
        """How it is named: `name@version`."""
        return f"{self.name}@{self.version}"


MOST = 36_525
"""No number of a policy is larger: a hundred years of days, which no calendar overflows on."""
LAST_VERSION = 2**31 - 1
OLDEST = 150
"""Years of age."""
LONGEST = 18
"""Digits of a number that is read as one."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
"""It stands in addresses and before the @ of `name@version`."""
CLASSES = ("EMER", "IMP", "ACUTE", "NONAC", "OBSENC", "SS", "AMB", "HH", "VR", "FLD", "PRENC")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """One key: what it may hold, and what it holds if it is left out."""

    check: Callable[[object, str], object]
    default: object = None
    required: bool = False


class _Unfit(Exception):  # noqa: N818
    """`path` holds what it may not. Becomes PolicyRefused where the line is known."""

    def __init__(self, path: str, advice: str) -> None:
        super().__init__(path, advice)
        self.path, self.advice = path, advice


def _whole(
    lowest: int, highest: int = MOST, *, optional: bool = False
) -> Callable[[object, str], object]:
    def check(value: object, path: str) -> object:
        if value is None and optional:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise _Unfit(path, f"must be a whole number, {lowest} or more")
        if value > highest:
            raise _Unfit(path, f"must be {highest} or less")
        return value

    return check


def _yes_or_no(value: object, path: str) -> object:
    if not isinstance(value, bool):
        raise _Unfit(path, "must be true or false")
    return value


def _text(value: object, path: str) -> object:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _Unfit(path, "must be text, on one line")
    return value


def _name(value: object, path: str) -> object:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Unfit(path, "must be at most 64 letters, digits, dots and hyphens")
    return value


def _zone(value: object, path: str) -> object:
    try:
        ZoneInfo(str(_text(value, path)))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _Unfit(path, "must be a time zone such as America/Toronto") from None
    return value


def _titles(value: object, path: str) -> object:
    if not isinstance(value, dict) or not set(value) <= {"fr", "en"}:
        raise _Unfit(path, "may hold `fr` and `en`")
    return {language: _text(title, f"{path}.{language}") for language, title in value.items()}


def _texts(value: object, path: str) -> object:
    if not isinstance(value, list):
        raise _Unfit(path, "must be a list of texts")
    return [_text(entry, f"{path}[{i}]") for i, entry in enumerate(value)]


def _prefixes(value: object, path: str) -> object:
    """Codes as a manual prints them. Without a letter one would be the beginning of every code."""
    found = _texts(value, path)
    for i, entry in enumerate(_strings(found)):
        if not entry.replace(".", "").isalnum():
            raise _Unfit(f"{path}[{i}]", "must be the beginning of a code, such as Z51.0")
    return found


def _condition(value: object, path: str) -> object:
    """`null` is no condition: it never holds."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) != 1 or not set(value) <= set(Mode):
        raise _Unfit(path, "must hold one of `any` and `all`")
    ((mode, clauses),) = value.items()
    if not isinstance(clauses, list) or not clauses:
        raise _Unfit(f"{path}.{mode}", "must be a list of clauses")
    return {mode: [_clause(c, f"{path}.{mode}[{i}]") for i, c in enumerate(clauses)]}


def _clause(value: object, path: str) -> object:
    if not isinstance(value, dict):
        raise _Unfit(path, "must be {measure, at_least}, and `days` if it has its own")
    for key in value:
        if key not in {"measure", "at_least", "days"}:
            raise _Unfit(f"{path}.{key}", "is not a key of a clause")
    if value.get("measure") not in set(Measure):
        raise _Unfit(f"{path}.measure", f"must be one of {', '.join(Measure)}")
    at_least = _whole(1)(value.get("at_least"), f"{path}.at_least")
    days = _whole(1, optional=True)(value.get("days"), f"{path}.days")
    return {"measure": value["measure"], "at_least": at_least, "days": days}


def _link(below: int, coded_up_to: int) -> dict[str, object]:
    return {
        "below_hours": _Leaf(_whole(0), below),
        "coded_up_to_hours": _Leaf(_whole(0), coded_up_to),
    }


def _switches(**defaults: bool) -> dict[str, object]:
    return {name: _Leaf(_yes_or_no, default) for name, default in defaults.items()}


def _lists(check: Callable[[object, str], object], **defaults: list[str]) -> dict[str, object]:
    return {name: _Leaf(check, default) for name, default in defaults.items()}


_FORM: dict[str, object] = {
    "name": _Leaf(_name, required=True),
    "version": _Leaf(_whole(1, LAST_VERSION), required=True),
    "title": _Leaf(_titles, {}),
    "source": _Leaf(_text, "not stated"),
    "timezone": _Leaf(_zone, "America/Toronto"),
    "window": {"days": _Leaf(_whole(1), 365), "consecutive": _Leaf(_whole(1), 1)},
    "flag": _Leaf(
        _condition,
        {
            "any": [
                {"measure": "ed_visits", "at_least": 4, "days": None},
                {"measure": "hospital_episodes", "at_least": 3, "days": None},
            ]
        },
    ),
    "watch": _Leaf(_condition, {"any": [{"measure": "ed_visits", "at_least": 3, "days": None}]}),
    "hold_days": _Leaf(_whole(0), 180),
    "quiet_reentry_days": _Leaf(_whole(0), 180),
    "alert_max_age_hours": _Leaf(_whole(0), 72),
    "person": {
        "age_min": _Leaf(_whole(0, OLDEST, optional=True), 18),
        "age_max": _Leaf(_whole(0, OLDEST, optional=True), None),
    },
    "classes": _lists(
        _texts,
        ed=["EMER"],
        hospital=["IMP", "ACUTE"],
        not_counted=["NONAC", "OBSENC", "SS", "AMB", "HH", "VR", "FLD", "PRENC"],
    ),
    "ed": {
        "link": _link(0, 12),
        "reregistration_minutes": _Leaf(_whole(0), 120),
        "min_minutes_if_untriaged": _Leaf(_whole(0), 10),
        "assumed_end_hours": _Leaf(_whole(1), 96),
        "stale_open_days": _Leaf(_whole(1), 14),
        "excluded_sites": _Leaf(_texts, []),
        "count": _switches(
            admitted=True,
            planned=False,
            lwbs=True,
            redirected=True,
            pregnancy=True,
            during_stay=False,
        ),
    },
    "hospital": {
        "link": _link(7, 12),
        "assumed_end_days": _Leaf(_whole(1), 30),
        "stale_open_days": _Leaf(_whole(1), 180),
        "count": _switches(
            elective=True,
            day_surgery=False,
            obstetric=False,
            series=False,
            dialysis=False,
            mental_health=True,
            palliative=True,
            reverted_same_day=False,
        ),
    },
    "codes": _lists(
        _prefixes,
        pregnancy=["O"],
        obstetric=["Z37"],
        newborn=["Z38", "P95"],
        series=["Z51.0", "Z51.1", "Z51.3"],
        dialysis=["Z49"],
        mental_health=["F"],
        palliative=["Z51.5"],
    ),
}


def load(text: str) -> Policy:
    """The policy that a YAML file states; JSON will do, being YAML.

    Raises:
        PolicyRefused: unreadable, an unknown or unfit key, a class in two sets or none.

    """
    lines: dict[str, int] = {}
    try:
        given = _plain(yaml.compose(text, Loader=yaml.SafeLoader), "", lines, set())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyRefused("", line, "is not readable YAML") from None
    except (yaml.YAMLError, RecursionError):
        raise PolicyRefused("", 1, "is not readable YAML") from None
    try:
        full = _fill(_FORM, given, "")
        _agree(full)
    except _Unfit as unfit:
        raise PolicyRefused(unfit.path, _line(unfit.path, lines), unfit.advice) from None
    return _build(full)


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that two policies set otherwise. Values as JSON has them."""

    path: str
    before: object
    after: object


def differences(before: Policy, after: Policy) -> list[Difference]:
    """Where two policies differ, by path. Lists, so the clauses of a condition, are one value."""
    one, other = (dict(_leaves(json.loads(p.canonical), "")) for p in (before, after))
    return [
        Difference(path, one.get(path), other.get(path))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _plain(node: yaml.Node | None, path: str, lines: dict[str, int], seen: set[int]) -> object:
    """The node as plain values; `lines` learns where each path stands.

    An alias is refused: a few of aliases of aliases are a page that never ends.
    """
    if node is None:
        return None
    if id(node) in seen:
        raise PolicyRefused(path, node.start_mark.line + 1, "must be written out, not an alias")
    seen.add(id(node))
    lines[path] = node.start_mark.line + 1
    match node:
        case yaml.MappingNode():
            found: dict[str, object] = {}
            for key, value in node.value:
                name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
                below = f"{path}.{name}" if path else name
                if name in found:
                    raise PolicyRefused(below, key.start_mark.line + 1, "stands there twice")
                found[name] = _plain(value, below, lines, seen)
                lines[below] = key.start_mark.line + 1
            return found
        case yaml.SequenceNode():
            return [_plain(e, f"{path}[{i}]", lines, seen) for i, e in enumerate(node.value)]
        case _:
            return _scalar(node)


def _scalar(node: yaml.Node) -> object:
    """Texts, whole numbers, yes or no, nothing; what else YAML knows stays text, and is unfit."""
    kind = str(node.tag).rpartition(":")[2]
    text = str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in {"true", "yes", "on"}
    if kind == "int" and text.removeprefix("-").isdecimal() and len(text) <= LONGEST:
        return int(text)
    return text


def _line(path: str, lines: Mapping[str, int]) -> int:
    """Where `path` stands, or the nearest key above it that is there."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path, 1)


def _fill(form: Mapping[str, object], given: object, path: str) -> dict[str, object]:
    """`given` checked against `form`, with every omitted key at its default."""
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise _Unfit(path, f"must hold keys: {', '.join(form)}")
    for key in given:
        if key not in form:
            raise _Unfit(f"{path}.{key}" if path else key, "is not a key of a policy")
    full: dict[str, object] = {}
    for key, leaf in form.items():
        below = f"{path}.{key}" if path else key
        if isinstance(leaf, _Leaf):
            if key in given:
                full[key] = leaf.check(given[key], below)
            elif leaf.required:
                raise _Unfit(below, "is required")
            else:
                full[key] = leaf.default
        elif isinstance(leaf, dict):
            full[key] = _fill(leaf, given.get(key), below)
    return full


def _agree(full: Mapping[str, object]) -> None:
    """What no key can check alone."""
    classes = _part(full, "classes")
    placed = [c for name in ("ed", "hospital", "not_counted") for c in _strings(classes[name])]
    for name in classes:
        for i, code in enumerate(_strings(classes[name])):
            if code not in CLASSES:
                raise _Unfit(f"classes.{name}[{i}]", "is not a class of v3-ActCode that is known")
            if placed.count(code) > 1:
                raise _Unfit(f"classes.{name}[{i}]", "is in two sets")
    if missing := [code for code in CLASSES if code not in placed]:
        raise _Unfit("classes", f"{', '.join(missing)} must be in one of the sets")
    window = _part(full, "window")
    windows, days = _number(window["consecutive"]), _number(window["days"])
    if windows * days > MOST:
        raise _Unfit("window.consecutive", f"must look back {MOST} days or less in all")
    for name in ("flag", "watch"):
        for mode, clauses in (_mapping(full[name]) if full[name] else {}).items():
            for i, clause in enumerate(_sequence(clauses)):
                if windows * _number(_mapping(clause)["days"] or 0) > MOST:
                    place = f"{name}.{mode}[{i}].days"
                    raise _Unfit(place, f"must look back {MOST} days or less in all")
    person = _part(full, "person")
    lowest, highest = person["age_min"], person["age_max"]
    if highest is not None and lowest is not None and _number(highest) < _number(lowest):
        raise _Unfit("person.age_max", "must not be below age_min")


def _build(full: dict[str, object]) -> Policy:
    canonical = json.dumps(full, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    window = timedelta(days=_number(_part(full, "window")["days"]))
    consecutive = _number(_part(full, "window")["consecutive"])
    person, classes = _part(full, "person"), _part(full, "classes")
    ed, hospital = _part(full, "ed"), _part(full, "hospital")
    return Policy(
        name=str(full["name"]),
        version=_number(full["version"]),
        title={k: str(v) for k, v in _part(full, "title").items()},
        source=str(full["source"]),
        zone=ZoneInfo(str(full["timezone"])),
        window=window,
        consecutive=consecutive,
        flag=_built_condition(full["flag"], window),
        watch=_built_condition(full["watch"], window),
        hold=timedelta(days=_number(full["hold_days"])),
        quiet_reentry=timedelta(days=_number(full["quiet_reentry_days"])),
        alert_max_age=timedelta(hours=_number(full["alert_max_age_hours"])),
        age_min=None if person["age_min"] is None else _number(person["age_min"]),
        age_max=None if person["age_max"] is None else _number(person["age_max"]),
        ed_classes=frozenset(_strings(classes["ed"])),
        hospital_classes=frozenset(_strings(classes["hospital"])),
        ed=EdRules(
            link=_built_link(ed["link"]),
            reregistration=timedelta(minutes=_number(ed["reregistration_minutes"])),
            min_if_untriaged=timedelta(minutes=_number(ed["min_minutes_if_untriaged"])),
            assumed_end=timedelta(hours=_number(ed["assumed_end_hours"])),
            stale_open=timedelta(days=_number(ed["stale_open_days"])),
            excluded_sites=frozenset(_strings(ed["excluded_sites"])),
            **_booleans(ed["count"]),
        ),
        hospital=HospitalRules(
            link=_built_link(hospital["link"]),
            assumed_end=timedelta(days=_number(hospital["assumed_end_days"])),
            stale_open=timedelta(days=_number(hospital["stale_open_days"])),
            **_booleans(hospital["count"]),
        ),
        codes=Codes(
            **{
                name: tuple(c.replace(".", "").upper() for c in _strings(prefixes))
                for name, prefixes in _part(full, "codes").items()
            }
        ),
        canonical=canonical,
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def _built_condition(value: object, window: timedelta) -> Condition:
    if value is None:
        return Condition(Mode.ANY, ())
    ((mode, clauses),) = _mapping(value).items()
    return Condition(
        Mode(mode),
        tuple(
            Clause(
                measure=Measure(str(clause["measure"])),
                at_least=_number(clause["at_least"]),
                length=timedelta(days=_number(clause["days"])) if clause["days"] else window,
            )
            for clause in map(_mapping, _sequence(clauses))
        ),
    )


def _built_link(value: object) -> Link:
    hours = _mapping(value)
    return Link(
        below=timedelta(hours=_number(hours["below_hours"])),
        coded_up_to=timedelta(hours=_number(hours["coded_up_to_hours"])),
    )


# The form has checked the values; these tell the type checker so.


def _part(full: Mapping[str, object], name: str) -> Mapping[str, object]:
    return _mapping(full[name])


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, dict)
    return value


def _sequence(value: object) -> Sequence[object]:
    assert isinstance(value, list)
    return value


def _strings(value: object) -> Sequence[str]:
    return [str(entry) for entry in _sequence(value)]


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _booleans(value: object) -> dict[str, bool]:
    return {name: bool(switch) for name, switch in _mapping(value).items()}
