"""The story of a back-test: asked for, run beside the live work, its result kept (CT-71).

It reads one snapshot, family by family as a recount does, and adds each patient's course to the
tallies of backtest.py. It writes no flag and states no event (PT-14). Live work goes first: it
is never locked out, the loop turns after each patient, and one back-test runs at a time, however
many processes there are. One that was broken off by a kill is begun again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson
import structlog

from services.plumbing.db import Database, Tx, is_passing, sqlstate
from services.plumbing.eventlog import reason_of
from services.screening import backtest, flag, policy, store
from services.screening.backtest import Period, Tally
from services.screening.ledger import Ledger, gather
from services.screening.policy import Policy
from services.screening.store import Trial

log = structlog.get_logger()

BATCH = 200
"""Patient keys a statement reads; what is held in memory at a time is theirs."""
PAUSE = 0.005
"""Real seconds between two batches, for whoever waits for the database."""
EVERY = 1.0
"""Real seconds between two looks for what was asked."""
TRIES = 3
KEPT = 50
"""Results."""
MOST = 20
"""Back-tests that may wait at a time."""
FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One policy, or two to be compared; and the days."""

    policies: Sequence[Policy]
    period: Period

    @classmethod
    def of(cls, trial: Trial) -> "Asked":
        canonical = [trial.policy, *([trial.against] if trial.against else [])]
        rules = [policy.load(one) for one in canonical]
        return cls(rules, Period(trial.first, trial.last, rules[0].zone))


class BrokenOffError(Exception):
    """The process is to stop; nothing is kept of what was counted."""


async def counted(
    tx: Tx,
    asked: Asked,
    told: Callable[[int], Awaitable[None]] | None = None,
    batch: int = BATCH,
) -> Tally:
    """The tallies over every patient that `tx`, a snapshot, sees; `told` hears the percentage."""
    tally = Tally.of(asked.period, len(asked.policies))
    patients, done, after = await store.patients(tx), 0, FIRST
    while keys := await store.keys_after(tx, after, batch):
        for ledger in await _ledgers(tx, keys):
            tally.add([flag.course(ledger, rule) for rule in asked.policies])
            await asyncio.sleep(0)
        done, after = done + len(keys), keys[-1]
        if told is not None:
            await told(min(99, 100 * done // patients))
        await asyncio.sleep(PAUSE)
    return tally


async def _ledgers(tx: Tx, keys: Sequence[UUID]) -> list[Ledger]:
    """Those of the surviving among `keys`, with all that is linked to them (CT-01)."""
    family = await store.family(tx, keys)
    rows = await store.rows(tx, family.keys)
    facts = await store.facts(tx, family.keys)
    persons = [row.person for row in rows.values() if row.person]
    return list(gather(keys, family.into, facts, persons).values())


async def run_next(db: Database, now: Callable[[], datetime], stop: asyncio.Event) -> bool:
    """Run the next back-test that was asked for; False if there is none, or one runs elsewhere."""
    async with db.work() as own:
        if not await store.trial_waits(own):
            return False
    async with db.snapshot() as tx:
        if not await store.alone(tx):
            return False
        async with db.work() as own:
            trial = await store.take_trial(own, now())
        if trial is None:
            return False
        if trial.attempts > TRIES:
            error = f"The service was stopped {TRIES} times while it ran."
            await _end(db, trial, now, error=error)
            return True
        await _run(db, tx, trial, now, stop)
    return True


async def _run(
    db: Database, tx: Tx, trial: Trial, now: Callable[[], datetime], stop: asyncio.Event
) -> None:
    said = 0

    async def told(percent: int) -> None:
        nonlocal said
        if stop.is_set():
            raise BrokenOffError
        if percent != said:
            said = percent
            async with db.work() as own:
                await store.trial_at(own, trial.id, percent)

    try:
        asked = Asked.of(trial)
        tally = await counted(tx, asked, told)
    except BrokenOffError:
        async with db.work() as own:
            await store.put_back_trial(own, trial.id)
    except Exception as error:
        if is_passing(error):
            raise
        log.error("backtest_failed", id=str(trial.id), why=reason_of(error))  # noqa: TRY400
        await _end(db, trial, now, error=f"The service failed: {reason_of(error)}.")
    else:
        result = orjson.dumps(backtest.result(tally, asked.policies)).decode()
        await _end(db, trial, now, result=result)


async def _end(
    db: Database,
    trial: Trial,
    now: Callable[[], datetime],
    *,
    result: str | None = None,
    error: str | None = None,
) -> None:
    async with db.work() as own:
        await store.end_trial(own, trial.id, now(), KEPT, result=result, error=error)


async def running(db: Database, now: Callable[[], datetime], stop: asyncio.Event) -> None:
    """Run what is asked for, one at a time, until told to stop; trouble that passes is waited out.

    What was broken off by it is begun again, TRIES times at most.
    """
    while not stop.is_set():
        ran = False
        try:
            ran = await run_next(db, now, stop)
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("backtest_waits", error=type(error).__name__, sqlstate=sqlstate(error))
        if not ran:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY)
