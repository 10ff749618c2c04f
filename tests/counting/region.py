"""The people of the simulated region, as three systems would know them (ORC-03).

*Live*: fed message by message until the instant. *Replayed*: fed everything, asked what was
known at the instant. *Shuffled*: fed what was sent by then, in any order.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from uuid import UUID

from services.ingest import reading
from services.ingest.flow import rules_of
from services.ingest.folding import Message as Told
from services.ingest.folding import Moment as ToldMoment
from services.ingest.folding import fold
from services.plumbing.region import load
from services.screening.ledger import (
    Coding,
    Disposition,
    Fact,
    History,
    Link,
    Moment,
    Person,
    Service,
    Status,
)
from services.simulator import cast, fhir
from services.simulator.feed import Message, feed
from services.simulator.flow import REGION_FILE
from services.simulator.profiles import profile
from tests.counting.compare import answer, differing, history_told, ledger_of, plain_rule
from tests.counting.lives import Life
from tests.histories import SECOND, key, qc_default
from tests.oracle import ask

YEAR = timedelta(days=365)


@cache
def lanes() -> list[list[Message]]:
    """What is sent of each person of `demo`, in the order sent."""
    region = profile("demo")
    found: dict[int, list[Message]] = defaultdict(list)
    for message in feed(region, region.days, cast.messages(region)):
        found[message.lane].append(message)
    return [found[lane] for lane in sorted(found)]


@cache
def _rules() -> dict[str, reading.SiteRules]:
    file = load(REGION_FILE)
    return {site: rules_of(file, site) for site in profile("demo").sites}


@lru_cache(maxsize=4096)
def read(message: Message) -> Told | None:
    """What one message says of an encounter; None if ingest would hold it."""
    if message.encounter is None:
        return None
    site = profile("demo").sites[message.site]
    tree = fhir.put(site, message.site == 1, message)[1]
    told_at = reading.event_time(tree, _rules()[site], message.sent)
    found = reading.read_encounter(
        tree, _rules()[site], digest=message.id, told_at=told_at, now=message.sent
    )
    if found.hold is not None:
        return None
    whole = message.encounter.part_of
    return replace(
        found.message,
        patient=key(message.identity.record),
        part_of=key(whole) if whole else None,
    )


def facts_of(messages: Sequence[Message]) -> list[Fact]:
    """A version of an encounter for each message that is told of it."""
    told: dict[str, list[Told]] = defaultdict(list)
    sites = profile("demo").sites
    found = []
    for message in messages:
        said = read(message)
        if said is None or message.encounter is None:
            continue
        visit = message.encounter.visit
        told[visit].append(said)
        found.append(
            stated(told[visit], key(visit), len(told[visit]), sites[message.site], message.sent)
        )
    return found


def stated(
    told: Iterable[Told], encounter: UUID, version: int, site: str, recorded: datetime
) -> Fact:
    """The fact that messages tell together, as screening has it."""
    fact = fold(told)
    assert fact.patient is not None
    return Fact(
        encounter=encounter,
        version=version,
        patient=fact.patient,
        site=site,
        status=Status(fact.status),
        classes=fact.classes,
        start=_moment(fact.start),
        end=_moment(fact.end),
        event_time=fact.event_time,
        recorded=recorded.astimezone(UTC),
        first_recorded=recorded.astimezone(UTC),
        triaged=fact.triaged,
        disposition=Disposition(fact.disposition) if fact.disposition else None,
        service=Service(fact.service) if fact.service else None,
        part_of=fact.part_of,
        from_emergency=fact.from_emergency,
        transfer_in=fact.transfer_in,
        transfer_out=fact.transfer_out,
        planned=fact.planned,
        codes=None if fact.codes is None else tuple(Coding(c.system, c.code) for c in fact.codes),
        labels=None
        if fact.labels is None
        else tuple(Coding(c.system, c.code) for c in fact.labels),
        time_is_ambiguous=fact.time_is_ambiguous,
        start_is_assumed=fact.start_is_assumed,
        backfill=fact.backfill,
    )


def _moment(told: ToldMoment | None) -> Moment | None:
    return None if told is None else Moment(told.earliest, told.latest)


def history_of(messages: Sequence[Message]) -> History:
    """What ingest states of one lane. A temporary record is stated when it is merged (HA-96)."""
    persons: list[Person] = []
    links: list[Link] = []
    for message in messages:
        who, record = message.identity, key(message.identity.record)
        if message.encounter is not None:
            continue
        if who.person is not None or who.replaced_by:
            born = who.person.born if who.person else None
            version = sum(p.key == record for p in persons) + 1
            persons.append(Person(record, version, message.sent, born, who.deceased))
        active = who.replaced_by is not None
        known = [k for k in links if k.retired == record]
        if active != any(k is known[-1] and k.active for k in known):
            other = key(who.replaced_by) if who.replaced_by else known[-1].surviving
            links.append(Link(record, other, len(known) + 1, active, message.sent))
    return History(facts=facts_of(messages), persons=persons, links=links)


@dataclass(frozen=True)
class Comparison:
    """Of the people with these numbers, at `instants` instants each, in three systems."""

    instants: int

    def __call__(self, numbers: range) -> tuple[int, list[int]]:
        return len(numbers), [n for n in numbers if n < len(lanes()) and self.differences(n)]

    def report(self, number: int) -> str:
        return "\n".join([f"person {number} of the region", *self.differences(number)])

    def differences(self, number: int) -> list[str]:
        chance = random.Random(number)
        messages, rule = lanes()[number], qc_default()
        whole = history_of(messages)
        patient = key(messages[0].identity.record)
        for instant in self.moments(whole, chance):
            sent = [m for m in messages if m.sent <= instant]
            live = history_of(sent)
            shuffled = History(
                facts=chance.sample(live.facts, len(live.facts)),
                persons=live.persons[::-1],
                links=live.links[::-1],
            )
            oracle = ask(history_told(live), patient, plain_rule(rule), instant)
            for name, history in (("live", live), ("replayed", whole), ("shuffled", shuffled)):
                life = Life(number, "", history, patient, instant, instant)
                ledger = ledger_of(life, instant)
                if (ledger is None) is not (oracle is None):
                    return [f"{name}: {life}"]
                if ledger is None or oracle is None:
                    continue
                if lines := differing(answer(ledger, rule, instant), oracle.answer(instant)):
                    return [f"{name}: {life}", *lines]
        return []

    def moments(self, whole: History, chance: random.Random) -> list[datetime]:
        """When something was learnt or leaves the window, to the second, and any other time."""
        near = [f.recorded for f in whole.facts]
        near += [f.start.earliest + YEAR for f in whole.facts if f.start]
        near += [f.start.earliest + timedelta(days=180) for f in whole.facts if f.start]
        first = min(
            (f.recorded for f in whole.facts), default=min(p.recorded for p in whole.persons)
        )
        found = []
        for _ in range(self.instants):
            if near and chance.random() < 0.7:
                found.append(chance.choice(near) + chance.choice([-1, 0, 1]) * SECOND)
            else:
                found.append(first + chance.random() * 2 * YEAR)
        return found
