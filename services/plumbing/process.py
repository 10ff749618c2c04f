"""A service's process: serves until told to stop, then finishes what is in hand."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

log = structlog.get_logger()

Background = Callable[[asyncio.Event], Awaitable[None]]
"""Runs until the event is set. If it raises, the process ends with its reason."""

GRACE = 20
"""Real seconds that requests in hand have to finish."""


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a service's `work` on the fast loop; its exit code."""
    return uvloop.run(work)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are this module's; uvicorn's own handling would end the background first."""
        yield


async def serve(
    app: FastAPI,
    host: str,
    port: int,
    background: Sequence[Background] = (),
    *,
    local: bool = False,
) -> int:
    """Serve `app` beside `background` until SIGTERM or SIGINT; the exit code.

    `local`: stop also when the process that started this one is gone, so that a killed `up`
    leaves nothing running.
    """
    stop = asyncio.Event()
    if local:
        background = [*background, _parent_gone]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=75,
        )
    )
    failed = False

    async def watched(work: Background) -> None:
        nonlocal failed
        try:
            await work(stop)
        except Exception as error:  # noqa: BLE001 - the process must not live on without this part
            failed = True
            log.error(  # noqa: TRY400 - a traceback may quote a value
                "stopped", part=getattr(work, "__qualname__", "?"), why=_words(error)
            )
        finally:
            stop.set()

    tasks = [asyncio.create_task(watched(work)) for work in background]
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stop.set()
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping
    _, late = await asyncio.wait({serving, *tasks}, timeout=GRACE + 5)
    for task in late:
        task.cancel()
    return 1 if failed or not server.started else 0


async def _parent_gone(stop: asyncio.Event) -> None:
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.5)


def _words(error: Exception) -> str:
    """The message of an error of ours; of any other, its kind: its text may quote a value."""
    ours = type(error).__module__.startswith("services.")
    return str(error) if ours else type(error).__name__
