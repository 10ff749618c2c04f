"""`up` and `demo`: the house, what the terminal says, and the simulated region beside it."""

import asyncio
import signal
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli import house
from services.cli.house import House, Plan
from services.simulator import flow

SEED = 2018
SPEED = flow.SPEED

WHO = (
    ("nurse-a", "infirmière de la clinique A, en français"),
    ("nurse-b", "nurse of clinic B, in English"),
    ("hospital-cm", "hospital case manager"),
    ("privacy", "privacy officer: what was withheld, and why"),
)


async def up(terminal: Console, data: Path, port: int, region: Path | None) -> None:
    """Everything on this machine, until Ctrl-C. Data stays in `data`."""
    plan = Plan(data=data, region=region or flow.REGION_FILE, port=port)
    stop = _on_signals()
    with terminal.status("Starting") as status:
        async with house.running(plan, lambda text: status.update(f"Starting: {text}")) as built:
            status.stop()
            _say_where(terminal, built)
            await stop.wait()
            terminal.print("Stopping; the data stays.")


@dataclass(frozen=True, slots=True)
class Play:
    """How the region of the demo is drawn and played."""

    seed: int = SEED
    start: date | None = None
    speed: float = SPEED
    clean: bool = False
    effect: float = 0.0
    misbehaves: bool = False


async def demo(terminal: Console, data: Path, port: int, play: Play) -> None:
    """`up` with a simulated region that sends its year, then lives on in fast time."""
    region = flow.demo(play.seed, clean=play.clean, effect=play.effect, start=play.start)
    house.make_folder(data)
    clock = data / "clock.json"
    flow.prepare(region, clock)
    # An hour a second: a sweep once a minute of real time would come days late.
    quick = {"PASSERELLE_SWEEP_SECONDS": "2"}
    file = flow.region_file(region, data)
    plan = Plan(data=data, region=file, port=port, clock=clock, extra=quick)
    stop = _on_signals()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal, transient=True) as shown:
        bar = shown.add_task("Starting PostgreSQL", total=None)

        said = ""

        def progress(text: str, done: int, total: int) -> None:
            nonlocal said
            shown.update(bar, description=text, completed=done, total=total or None)
            stage = text.partition(":")[0]
            if not terminal.is_terminal and stage != said:
                terminal.print(f"  {text}")
                said = stage

        async with house.running(plan, lambda text: progress(f"Started {text}", 0, 0)) as built:
            _say_where(terminal, built)
            urls = {"ingest": f"{built.url('ingest')}/fhir", "notify": built.url("notify")}
            playing = asyncio.create_task(
                flow.play(
                    region,
                    urls,
                    built.token,
                    clock,
                    progress,
                    stop,
                    speed=play.speed,
                    misbehaves=play.misbehaves,
                )
            )
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            shown.stop()
            terminal.print("Stopping; the data stays, and the next start continues.")
            await playing


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _say_where(terminal: Console, built: House) -> None:
    port = "" if built.plan.port == house.PORT else f" --port {built.plan.port}"
    folder = f" --data-dir {built.plan.data}"
    lines = [
        "",
        f"  [bold]{built.url('notify')}[/bold]   the pages: open this",
        f"  {built.url('ingest')}/fhir   the hospitals' door (FHIR R4)",
        f"  {built.url('notify')}/fhir   the clinics' door (FHIR R4)",
        f"  {built.url('screening')}/v1   counting, for operations",
        "",
        "  Sign in as (one click each, no password; nobody here exists):",
        *(f"    {name:<12} {what}" for name, what in WHO),
        "",
        f"  A token for curl:  passerelle token --as hospital-a{port}{folder}",
        f"  Data and logs:     {built.plan.data}",
        "  Ctrl-C stops everything; the data stays.",
        "",
    ]
    for line in lines:
        terminal.print(line, soft_wrap=True)
