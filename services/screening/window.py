"""Which visits and episodes count, seen from an instant: counting.md section 4.

The source says "in the previous year" and leaves open what a year is, which end of it is
included, and whether a stay counts from its admission or its discharge. Here: 365 days of
24 hours, the near end included, from the admission, because the nurse must know now.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self


@dataclass(frozen=True, slots=True)
class Window:
    after: datetime
    until: datetime

    @classmethod
    def ending(cls, until: datetime, length: timedelta) -> Self:
        """The year that ends now: 365 days of 24 h, so no leap day or clock change moves it.

        A visit that began exactly `length` ago has just left (CT-30, CR-40).
        """
        return cls(after=until - length, until=until)

    def __contains__(self, anchor: datetime) -> bool:
        return self.after < anchor <= self.until

    def count(self, anchors: Iterable[datetime]) -> int:
        return sum(self.after < anchor <= self.until for anchor in anchors)
