"""Chance, the same everywhere: raw bits of a hash, transforms of our own (SIM-04).

Library distributions change between versions; BLAKE2b does not. A stream belongs to one
purpose (a seed, a person, what is being drawn), so that a new draw somewhere disturbs
nothing elsewhere.
"""

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")

_EIGHT = struct.Struct("<8Q").unpack
_TO_UNIT = 2.0**-53
_TURN = 2.0 * math.pi


def _units(purpose: bytes) -> Iterator[float]:
    """Eight draws of 53 bits from the hash of `purpose`, then of it and a counter, for ever.

    0xFF stands in no UTF-8 text, so no stream runs into another.
    """
    root = blake2b(purpose, digest_size=64)
    digest, block = root.digest(), 0
    while True:
        for bits in _EIGHT(digest):
            yield (bits >> 11) * _TO_UNIT
        block += 1
        following = root.copy()
        following.update(b"\xff" + block.to_bytes(8, "little"))
        digest = following.digest()


class Draws:
    """An endless stream of draws for one purpose."""

    __slots__ = ("unit",)

    unit: Callable[[], float]
    """Uniform in [0, 1), 53 bits."""

    def __init__(self, *purpose: object) -> None:
        self.unit = _units("|".join(map(str, purpose)).encode()).__next__

    def chance(self, probability: float) -> bool:
        """True with `probability`. Always uses one draw, so that 0 and 1 shift nothing."""
        return self.unit() < probability

    def below(self, bound: int) -> int:
        """A whole number in 0 … `bound` - 1."""
        return int(self.unit() * bound)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[int(self.unit() * len(choices))]

    def weighted(self, sums: Sequence[float]) -> int:
        """An index of the weights whose `running` sums are given; they need not end at 1."""
        return bisect_right(sums, self.unit() * sums[-1], hi=len(sums) - 1)

    def exponential(self) -> float:
        """Exponential of mean 1."""
        return -math.log(1.0 - self.unit())

    def normal(self) -> float:
        """Standard normal (Box and Muller, one of the pair)."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.unit()))
        return radius * math.cos(_TURN * self.unit())

    def lognormal(self, median: float, sigma: float) -> float:
        return median * math.exp(sigma * self.normal())

    def gamma(self, shape: float) -> float:
        """Gamma of `shape` and mean 1 (Marsaglia and Tsang; below 1 boosted by a power)."""
        if shape < 1.0:
            return self._unscaled(shape + 1.0) * math.pow(1.0 - self.unit(), 1.0 / shape) / shape
        return self._unscaled(shape) / shape

    def _unscaled(self, shape: float) -> float:
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            u = 1.0 - self.unit()
            if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v


def running(weights: Sequence[float]) -> tuple[float, ...]:
    """The sums of `weights` from the first to each: what `Draws.weighted` takes."""
    return tuple(accumulate(weights))


def code(*purpose: object) -> str:
    """Sixteen bytes by `purpose` alone, written as a UUID (version 8: made by its maker)."""
    text = "|".join(map(str, purpose))
    raw = bytearray(blake2b(text.encode(), digest_size=16).digest())
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    hexed = raw.hex()
    return f"{hexed[:8]}-{hexed[8:12]}-{hexed[12:16]}-{hexed[16:20]}-{hexed[20:]}"
