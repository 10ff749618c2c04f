"""A body → the items of a batch, read and judged. No I/O.

Used by the door, and again when a refused body is replayed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from services.ingest import bundles, flow, gate, reading
from services.ingest.bundles import CONTEXT, RECORDED, TOLERATED, Entry
from services.ingest.flow import Door, Item
from services.ingest.gate import Problem
from services.ingest.reading import Identifier
from services.ingest.verbatim import Tree


def item_of(entry: Entry, door: Door) -> Item:
    """An entry as it arrived."""
    arrived = door.arrived or door.now
    return Item(entry, told_at=arrived, arrived=arrived)


def single(entry: Entry, door: Door) -> Item:
    """One resource by itself."""
    return flow.prepare(item_of(entry, door), door)


@dataclass(frozen=True, slots=True)
class Slot:
    """One entry of a batch or transaction on its way to its answer."""

    entry: Entry | None
    item: Item | None = None
    problems: Sequence[Problem] = ()
    is_dropped: bool = False

    def all_problems(self) -> Sequence[Problem]:
        if self.item is None:
            return self.problems
        return [rooted(one, self.item.entry) for one in self.item.problems]


def slot_of(
    made: Entry | tuple[int, list[Problem]], door: Door, conditions: Sequence[Entry]
) -> Slot:
    """An entry on its way: read, or with what is wrong with it."""
    if not isinstance(made, Entry):
        return Slot(None, problems=made[1])
    if made.kind not in RECORDED or made.kind in door.rules.drop_types:
        return _not_kept(made, door)
    if made.method == "GET":
        return Slot(made)
    item = item_of(made, door)
    if conditions and made.kind == "Encounter" and made.resource is not None:
        item.conditions = _conditions_of(made, conditions)
    return Slot(made, item=flow.prepare(item, door))


def _not_kept(entry: Entry, door: Door) -> Slot:
    """Validated and answered, not stored (HA-25)."""
    is_dropped = entry.kind in door.rules.drop_types
    if is_dropped or (entry.method != "GET" and entry.kind in (*CONTEXT, *TOLERATED)):
        problems = legal(entry)
        return Slot(entry, problems=problems, is_dropped=not problems)
    advice = "Encounter and Patient are kept here."
    return Slot(entry, problems=[Problem("not-found", entry.at, advice, 404)])


def in_one_transaction(entries: Sequence[Entry], slots: Sequence[Slot]) -> list[Problem]:
    """Tie the items of a transaction together; what forbids it as a whole (HA-25, HA-32, HA-34)."""
    items = items_of(slots)
    inside = {item.entry.full_url: item for item in items}
    for item in items:
        item.inside = {url: one for url, one in inside.items() if url is not None}
        item.must_match = _conditional_references(item)
    own = [
        replace(one, status=422, issue="not-supported") if one.status == 404 else one
        for slot in slots
        for one in slot.all_problems()
    ]
    return [*own, *bundles.dangling(entries), *bundles.twice(entries)]


def slots_of(made: Sequence[Entry | tuple[int, list[Problem]]], door: Door) -> list[Slot]:
    """The entries of a batch or transaction, read, in their order."""
    conditions = [one for one in made if isinstance(one, Entry) and one.kind == "Condition"]
    return [slot_of(one, door, conditions) for one in made]


def items_of(slots: Iterable[Slot]) -> list[Item]:
    return [slot.item for slot in slots if slot.item is not None]


def message_items(taken: bundles.Message, door: Door) -> tuple[list[Item], list[Problem]]:
    """The Patient and the Encounter of a notification, and all that is wrong with it."""
    told_at = reading.moment(taken.timestamp, door.rules.zone).earliest
    conditions = [
        (one.resource, one.text)
        for one in taken.entries
        if one.kind == "Condition" and one.resource is not None and one.text is not None
    ]
    problems = [
        problem
        for entry in taken.entries
        if entry.kind not in (*RECORDED, "MessageHeader")
        for problem in legal(entry)
    ]
    items: dict[int, Item] = {}
    for entry in taken.entries:
        if entry.kind in RECORDED:
            item = replace(item_of(entry, door), told_at=told_at, moves=taken.event == "transfer")
            if entry.kind == "Encounter" and not problems:
                item.conditions = conditions
            items[entry.number] = flow.prepare(item, door)
            problems += [rooted(one, entry) for one in item.problems]
    named = bundles.named_in(taken.entries)
    inside = {name: items[one.number] for name, one in named.items() if one.number in items}
    for item in items.values():
        item.inside = inside
    return list(items.values()), problems


def legal(entry: Entry) -> list[Problem]:
    if entry.resource is None or entry.text is None:
        return []
    return gate.check(entry.resource, entry.text, entry.kind, at=entry.at)


def _conditions_of(entry: Entry, conditions: Sequence[Entry]) -> list[tuple[Tree, str]]:
    """The Conditions of a Bundle that belong to an Encounter of it."""
    resource = entry.resource or {}
    diagnoses = resource.get("diagnosis")
    named = {
        path_reference[1]
        for path_reference in gate.references(
            diagnoses if isinstance(diagnoses, list) else [], "diagnosis"
        )
    }
    own = {entry.full_url, f"Encounter/{resource.get('id')}"}
    found: list[tuple[Tree, str]] = []
    for other in conditions:
        if other.resource is None or other.text is None:
            continue
        about = other.resource.get("encounter")
        literal = about.get("reference") if isinstance(about, dict) else None
        names = {other.full_url, f"Condition/{other.resource.get('id')}"}
        if (literal in own or names & named) and not legal(other):
            found.append((other.resource, other.text))
    return found


def _conditional_references(item: Item) -> list[tuple[str, Identifier, str]]:
    """Conditional references to what is kept here (HA-32); to others they are logical."""
    if item.entry.text is None or "?" not in item.entry.text:
        return []
    found: list[tuple[str, Identifier, str]] = []
    for path, reference in gate.references(item.entry.resource, item.entry.at):
        kind, mark, query = reference.partition("?")
        if mark and kind in RECORDED:
            condition = bundles.condition(query, kind)
            if isinstance(condition, bundles.Condition):
                found.append((kind, condition.identifier, path))
    return found


def sites_named(resource: Tree | None) -> set[str]:
    """What a resource says of where it comes from; compared with the sites of the region."""
    found: set[str] = set()
    for name in ("serviceProvider", "managingOrganization"):
        said = (resource or {}).get(name)
        if not isinstance(said, dict):
            continue
        literal, logical = said.get("reference"), said.get("identifier")
        if isinstance(literal, str):
            found.add(literal.rpartition("/")[2])
        if isinstance(logical, dict) and isinstance(logical.get("value"), str):
            found.add(logical["value"])
    meta = (resource or {}).get("meta")
    source = meta.get("source") if isinstance(meta, dict) else None
    return found | ({source} if isinstance(source, str) else set())


def rooted(problem: Problem, entry: Entry) -> Problem:
    """Of an entry of a Bundle, as seen from the Bundle (HA-63)."""
    if entry.number < 0 or problem.expression.startswith("Bundle"):
        return problem
    return replace(problem, expression=f"{entry.at}{problem.expression[len(entry.kind) :]}")
