"""A region sent to doors that run already: what `passerelle simulate --send` does.

All of its time lies in the past, so that the order of different people means nothing: a few at a
time, each in their own order, as fast as the doors accept (`--speed 0` of SIM-07).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import httpx
import orjson

from services.simulator import cast, papers
from services.simulator.clinic import record_consents, upload_panel
from services.simulator.door import Door, Tally, TokenFor
from services.simulator.draws import code
from services.simulator.feed import Message, of_person
from services.simulator.hospital import Engine, Truth, compare
from services.simulator.life import life
from services.simulator.profiles import Profile, SimulateError
from services.simulator.region import person

TOGETHER = 200
"""People at a time: what memory holds, and what is sent again after an interruption."""

Progress = Callable[[str, int, int], None]
"""Hears what is going on, how much of it is done, of how much."""


class Account(NamedTuple):
    """What became of all that was sent, message by message and encounter by encounter."""

    tally: Tally
    truth: Truth

    def __str__(self) -> str:
        return f"{self.tally}; {self.truth}"


async def send(
    region: Profile,
    urls: Mapping[str, str],
    token_for: TokenFor,
    bookmark: Path,
    progress: Progress,
    now: datetime,
    *,
    misbehaves: bool = False,
) -> Account:
    """Sends panels, restrictions, then all that the hospitals have to say until the end.

    `urls`: `ingest`, the base of the hospitals' door with its `/fhir`, and `notify`, without.
    `bookmark` is a file; a run that was interrupted goes on after the people all of whose
    messages have an answer (SIM-08). The account is of this run. Raises SimulateError if the
    region's time is not over at `now`.
    """
    end = cast.live(region)
    if end > now:
        raise SimulateError(
            f"parameter start: {region.start} and {region.days} days end after now; "
            "`passerelle demo` lives in time to come"
        )
    mark = code(region)
    done = _read(bookmark, mark)
    truth = Truth()
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        doors = [Door(urls["ingest"], site, token_for, http) for site in region.sites]
        engines = [
            Engine(site, number % 2 == 1, doors[number], misbehaves=misbehaves)
            for number, site in enumerate(region.sites)
        ]
        if done is None:
            await _papers(region, urls["notify"], token_for, http, progress)
        for last, messages in _parts(region, done or 0):
            due = [each for each in messages if each.at < end]
            async with asyncio.TaskGroup() as together:
                for site, engine in enumerate(engines):
                    own = [each for each in due if each.site == site]
                    together.create_task(engine.deliver(own))
            truth = truth.plus(compare(due, engines))
            _write(bookmark, mark, last)
            progress("Sending what the hospitals have to say", last, region.people)
            for engine in engines:
                engine.troubled.clear()
    _done(bookmark)
    return Account(sum((door.tally for door in doors), Tally()), truth)


async def _papers(
    region: Profile, notify: str, token_for: TokenFor, http: httpx.AsyncClient, progress: Progress
) -> None:
    panels = papers.panels(region)
    for number, panel in enumerate(panels):
        progress(f"Uploading the panel of {panel.clinic}", number, len(panels))
        await upload_panel(Door(notify, f"{panel.clinic}-emr", token_for, http), panel)
    progress("Recording the patients' restrictions", 0, 0)
    office = Door(notify, region.sites[0], token_for, http)
    await record_consents(office, list(papers.consents(region)))


def _parts(region: Profile, done: int) -> Iterator[tuple[int, list[Message]]]:
    """What is sent of a few people at a time, with the number of the last; the cast at first."""
    scripted = cast.messages(region) if not done else []
    for first in range(done + 1, region.people + 1, TOGETHER):
        last = min(first + TOGETHER - 1, region.people)
        found, scripted = scripted, []
        for number in range(first, last + 1):
            who = person(region, number)
            found += of_person(region, who, life(region, who, region.days), region.days)
        yield last, found


def _read(bookmark: Path, mark: str) -> int | None:
    """Up to which person all is sent of this very region; None if nothing is."""
    try:
        said = orjson.loads(bookmark.read_bytes())
    except FileNotFoundError:
        return None
    return int(said["people"]) if said["region"] == mark else None


def _write(bookmark: Path, mark: str, people: int) -> None:
    new = bookmark.with_name(f"{bookmark.name}.new")
    new.write_bytes(orjson.dumps({"region": mark, "people": people}))
    new.replace(bookmark)


def _done(bookmark: Path) -> None:
    bookmark.unlink(missing_ok=True)
