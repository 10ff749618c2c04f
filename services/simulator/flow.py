"""The story of `passerelle demo`: a region goes live, catches up with its history, lives on.

The hospitals send the year before as history, at once; its flags are old and make no storm of
cards (CR-31). Then come the last weeks, with the business clock close behind the messages, so
that their alerts are cards. Then fast time, until told to stop. A later run goes on from the
bookmark that lies beside the clock file; what is sent twice has one effect.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import httpx
import orjson

from services.plumbing.clock import Clock, drive
from services.simulator import cast, papers
from services.simulator.clinic import Emr, keep_up, record_consents, upload_panel
from services.simulator.door import Door, Tally, TokenFor
from services.simulator.draws import code
from services.simulator.feed import Message, feed
from services.simulator.fhir import Json
from services.simulator.hospital import Engine, Truth, compare
from services.simulator.profiles import Profile, SimulateError, profile
from services.simulator.region import YEAR, ZONE

REGION_FILE = Path(__file__).parent / "demo" / "region.yaml"
PROFILE = "demo"
SPEED = 3600.0
"""Business seconds a real second, once the region is live."""
WEEKS = timedelta(days=35)
"""How long before the first live instant the region went live."""
STEP = timedelta(hours=12)
"""By how much the clock moves on in those weeks."""
SHORTEST_STEP = 0.2
"""Real seconds a step takes at least, so that the services stay within hours of the clock."""
TICK = 0.5
"""Real seconds between two looks at what is to be sent, in fast time."""
LOOK_AHEAD = 60
"""Days of life drawn beyond the year, before any of it is lived."""
EMR_CLINIC = "clinic-c"
"""The clinic whose own system takes its cards on; the others' wait for people at the pages."""

Progress = Callable[[str, int, int], None]
"""Hears what is going on, how much of it is done, of how much; 0 of 0 if that is open."""


class Phase(StrEnum):
    PAPERS = "papers"
    HISTORY = "history"
    WEEKS = "weeks"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a region has got: all that was to be sent before `until` has its answer."""

    seed: int
    region: str
    """Which one: `_mark` of its profile."""
    phase: Phase
    until: datetime


def demo(
    seed: int, *, clean: bool = False, effect: float = 0.0, start: date | None = None
) -> Profile:
    """The demo's region, with what its command may change. Raises SimulateError."""
    changes: dict[str, object] = {"start": start} if start is not None else {}
    return profile(PROFILE, clean=clean, seed=seed, effect=effect, **changes)


def region_file(region: Profile, folder: Path) -> Path:
    """The region file of a demo: the one that comes with it, or, for another start, a copy."""
    usual = profile(PROFILE).start
    if region.start == usual:
        return REGION_FILE
    said = REGION_FILE.read_text(encoding="utf-8")
    copy = folder / "demo-region.yaml"
    copy.write_text(said.replace(usual.isoformat(), region.start.isoformat()), encoding="utf-8")
    return copy


def prepare(region: Profile, clock_file: Path) -> None:
    """Sets the clock to where the region stands, not moving. Before the services start.

    Raises SimulateError if the clock file belongs to another region.
    """
    mark = _read(clock_file)
    if mark is None:
        drive(clock_file, _went_live(region), 0)
        return
    _same(region, mark)
    stopped = _stopped_at(clock_file)
    # A clock that runs was left by a crash: no later than a tick or two after the bookmark.
    ahead = timedelta(seconds=2 * TICK * SPEED) if mark.phase is Phase.LIVE else timedelta()
    drive(clock_file, max(mark.until, stopped or mark.until + ahead), 0)


def _same(region: Profile, mark: Bookmark) -> None:
    if mark.seed != region.seed:
        raise SimulateError(
            f"seed {region.seed}: this data belongs to seed {mark.seed}; "
            "use that seed, or another data folder (--data-dir)"
        )
    if mark.region != _mark(region):
        raise SimulateError(
            "this data belongs to a region of other parameters or of another version; "
            "use those, or another data folder (--data-dir)"
        )


async def play(
    region: Profile,
    urls: Mapping[str, str],
    token_for: TokenFor,
    clock_file: Path,
    progress: Progress,
    stop: asyncio.Event,
    *,
    speed: float = SPEED,
    misbehaves: bool = False,
) -> Tally:
    """Plays the region until `stop` is set; the clock stands still afterwards.

    Once live, `speed` business seconds pass in a real second; 0 is as fast as the doors accept
    (SIM-07). `urls`: `ingest`, the base of the hospitals' door with its `/fhir`, and `notify`,
    without. Returns what became of all that was sent. Raises SimulateError if the clock file
    belongs to another region.
    """
    mark = _read(clock_file) or Bookmark(
        region.seed, _mark(region), Phase.PAPERS, _went_live(region)
    )
    _same(region, mark)
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        house = House(
            region,
            urls,
            token_for,
            http,
            clock_file=clock_file,
            progress=progress,
            speed=speed,
            misbehaves=misbehaves,
        )
        living = asyncio.create_task(house.live_from(mark))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            living.cancel()
            drive(clock_file, Clock(clock_file).now(), 0)
        with suppress(asyncio.CancelledError):
            await living
    tally = house.tally()
    progress(f"Stopped: {tally}; {house.truth()}", 0, 0)
    return tally


class House:
    """The region's doors, and its life before them."""

    def __init__(
        self,
        region: Profile,
        urls: Mapping[str, str],
        token_for: TokenFor,
        http: httpx.AsyncClient,
        *,
        clock_file: Path,
        progress: Progress,
        speed: float,
        misbehaves: bool,
    ) -> None:
        self._region = region
        self._file = clock_file
        self._clock = Clock(clock_file)
        self._progress = progress
        self._speed = speed
        self._doors = [Door(urls["ingest"], site, token_for, http) for site in region.sites]
        self._engines = [
            Engine(site, number % 2 == 1, door, misbehaves=misbehaves)
            for number, (site, door) in enumerate(zip(region.sites, self._doors, strict=True))
        ]
        self._office = Door(urls["notify"], region.sites[0], token_for, http)
        self._clinics = {
            panel.clinic: (Door(urls["notify"], f"{panel.clinic}-emr", token_for, http), panel)
            for panel in papers.panels(region)
        }
        self._days = region.days + LOOK_AHEAD
        self._feed = feed(region, self._days, cast.messages(region))
        self._consents = list(papers.consents(region))
        self._told = (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC))
        """From when until when messages were sent in this run."""

    def tally(self) -> Tally:
        """What became of what the hospitals sent."""
        return sum((door.tally for door in self._doors), Tally())

    def truth(self) -> Truth:
        """The same by encounter: what happened in this run, and what the doors know of it."""
        since, until = self._told
        return compare([each for each in self._feed if since <= each.sent < until], self._engines)

    async def live_from(self, mark: Bookmark) -> None:
        """The whole story, from where it stands. Does not end by itself."""
        went_live = _went_live(self._region)
        if mark.phase is Phase.PAPERS:
            await self._papers(went_live)
            mark = self._keep(Phase.HISTORY, went_live)
        if mark.phase is Phase.HISTORY:
            await self._history([each for each in self._feed if each.sent < went_live])
            self._tell(datetime.min.replace(tzinfo=UTC), went_live)
            mark = self._keep(Phase.WEEKS, went_live)
        if mark.phase is Phase.WEEKS:
            await self._weeks(mark.until, cast.live(self._region))
            mark = self._keep(Phase.LIVE, cast.live(self._region))
        await self._on_and_on(mark.until)

    async def _papers(self, until: datetime) -> None:
        given = _between(self._consents, None, until)
        total = len(self._clinics) + 1
        for done, (door, panel) in enumerate(self._clinics.values()):
            self._progress(f"Uploading the panel of {panel.clinic}", done, total)
            await upload_panel(door, panel)
        self._progress("Recording the patients' restrictions", total - 1, total)
        await record_consents(self._office, given)

    async def _history(self, messages: Sequence[Message]) -> None:
        total, done = 0, 0

        def answered(more: int) -> None:
            nonlocal done
            done += more
            self._progress("Sending the year before", done, total)

        async with asyncio.TaskGroup() as together:
            for site, engine in enumerate(self._engines):
                own = [each for each in messages if each.site == site]
                total += len(own)
                together.create_task(engine.backfill(own, answered))

    async def _weeks(self, since: datetime, until: datetime) -> None:
        loop = asyncio.get_running_loop()
        total = (until - since) // STEP
        for step in range(total):
            began = loop.time()
            now = since + STEP
            drive(self._file, now, 0)
            await self._send(since, now)
            self._keep(Phase.WEEKS, now)
            self._progress("Living through the last weeks", step + 1, total)
            since = now
            await asyncio.sleep(max(SHORTEST_STEP - (loop.time() - began), 0))
        await self._send(since, until)

    async def _on_and_on(self, since: datetime) -> None:
        drive(self._file, max(since, self._clock.now()), self._speed)
        door, _ = self._clinics[EMR_CLINIC]
        never, seed = self._region.never_acknowledged, self._region.seed
        async with asyncio.TaskGroup() as together:
            together.create_task(keep_up(Emr(door), self._clock, seed, never, every=4 * TICK))
            while True:
                if not self._speed:
                    drive(self._file, max(since, self._clock.now()) + STEP, 0)
                now = self._clock.now()
                self._look_ahead(now)
                await self._send(since, now)
                self._keep(Phase.LIVE, now)
                since = now
                shown = now.astimezone(ZONE).strftime("%Y-%m-%d %H:%M")
                self._progress(f"Live, {self._pace()}: {shown}", 0, 0)
                await asyncio.sleep(TICK if self._speed else 0)

    def _pace(self) -> str:
        return f"{self._speed:g} times as fast" if self._speed else "as fast as it is taken in"

    async def _send(self, since: datetime, until: datetime) -> None:
        await record_consents(self._office, _between(self._consents, since, until))
        due = [each for each in self._feed if since <= each.sent < until]
        async with asyncio.TaskGroup() as together:
            for site, engine in enumerate(self._engines):
                own = [each for each in due if each.site == site]
                if own:
                    together.create_task(engine.deliver(own))
        self._tell(since, until)

    def _tell(self, since: datetime, until: datetime) -> None:
        self._told = (min(self._told[0], since), max(self._told[1], until))

    def _look_ahead(self, now: datetime) -> None:
        """A year more of life, shortly before the one that is known ends."""
        lived = (now.date() - self._region.start).days
        if lived + 2 > self._days:
            self._days = lived + int(YEAR)
            self._feed = feed(self._region, self._days, cast.messages(self._region))

    def _keep(self, phase: Phase, until: datetime) -> Bookmark:
        mark = Bookmark(self._region.seed, _mark(self._region), phase, until)
        _write(self._file, mark)
        return mark


def _mark(region: Profile) -> str:
    """A region and how it was drawn; the number goes up when the draws change."""
    return code(2, region)


def _went_live(region: Profile) -> datetime:
    return cast.live(region) - WEEKS


def _between(
    consents: Sequence[tuple[datetime, Json]], since: datetime | None, until: datetime
) -> list[tuple[datetime, Json]]:
    return [each for each in consents if (since is None or since <= each[0]) and each[0] < until]


def _place(clock_file: Path) -> Path:
    return clock_file.with_name(f"{clock_file.name}.bookmark")


def _read(clock_file: Path) -> Bookmark | None:
    try:
        said = orjson.loads(_place(clock_file).read_bytes())
    except FileNotFoundError:
        return None
    until = datetime.fromisoformat(said["until"])
    return Bookmark(said["seed"], said.get("region", ""), Phase(said["phase"]), until)


def _write(clock_file: Path, mark: Bookmark) -> None:
    said = {**asdict(mark), "until": mark.until.isoformat()}
    new = clock_file.with_name(f"{clock_file.name}.bookmark.new")
    new.write_bytes(orjson.dumps(said))
    new.replace(_place(clock_file))


def _stopped_at(clock_file: Path) -> datetime | None:
    """What the clock shows if it stands; None if it runs or is not there."""
    try:
        said = orjson.loads(clock_file.read_bytes())
    except FileNotFoundError:
        return None
    return datetime.fromisoformat(said["shows"]) if said["speed"] == 0 else None
