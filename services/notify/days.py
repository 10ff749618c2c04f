"""Days of the civil calendar as instants."""

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from zoneinfo import ZoneInfo


@cache
def zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def midnight(day: date, where: tzinfo) -> datetime:
    """The first instant of a day there."""
    return datetime.combine(day, time(), where).astimezone(UTC)


def after(day: date, where: tzinfo) -> datetime:
    """The first instant that is not of that day any more."""
    return midnight(day + timedelta(days=1), where)
