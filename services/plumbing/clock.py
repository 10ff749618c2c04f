"""The only reader of the time.

Business time (`Clock.now`) is what rules see: windows, periods, due dates. It is real time,
unless `PASSERELLE_CLOCK` names a clock file, which drives it for demos and tests. Real time
(`real_now`) is for tokens, sessions, leases and retries, whatever the business clock shows.
"""

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson


def real_now() -> datetime:
    """Now, as the machine has it, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place


@dataclass(frozen=True, slots=True)
class _Drive:
    real: datetime
    shows: datetime
    speed: float

    def at(self, real: datetime) -> datetime:
        return self.shows + (real - self.real) * self.speed


class Clock:
    """Business time. With a clock file, it shows what the file says, from one call to the next.

    The file is JSON: `{"real": instant, "shows": instant, "speed": number}`: at real time
    `real` the clock shows `shows`, and then runs `speed` times as fast as real time.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._read: tuple[int, int] | None = None
        self._drive: _Drive | None = None

    def now(self) -> datetime:
        """The business instant, in UTC."""
        real = real_now()
        if self._file is None:
            return real
        drive = self._current()
        return real if drive is None else drive.at(real)

    def real_seconds_until(self, instant: datetime) -> float:
        """How many real seconds pass until business time is `instant`; at least 0."""
        wait = max((instant - self.now()).total_seconds(), 0.0)
        return wait / self._drive.speed if self._drive and self._drive.speed > 0 else wait

    def _current(self) -> _Drive | None:
        assert self._file is not None
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            return None
        if (stat.st_mtime_ns, stat.st_ino) != self._read:
            said = orjson.loads(self._file.read_bytes())
            self._drive = _Drive(
                real=datetime.fromisoformat(said["real"]),
                shows=datetime.fromisoformat(said["shows"]),
                speed=float(said["speed"]),
            )
            self._read = (stat.st_mtime_ns, stat.st_ino)
        return self._drive


def drive(file: Path, shows: datetime, speed: float) -> None:
    """Make every clock on `file` show `shows` from now on, running `speed` times as fast."""
    said = {"real": real_now().isoformat(), "shows": shows.isoformat(), "speed": speed}
    with tempfile.NamedTemporaryFile("wb", dir=file.parent, delete=False) as new:
        new.write(orjson.dumps(said))
    Path(new.name).chmod(0o644)
    os.replace(new.name, file)  # noqa: PTH105 - atomic, and says so
