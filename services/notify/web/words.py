"""The words of the pages in two languages, and how each writes numbers and times (NW-40 to 43).

Catalogues are gettext files whose message ids are the keys of nurse-web.md's appendix; they are
read once, at import. A key that is not there is an error of ours and raises: no page ever shows a
key, or falls back to the other language.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from gettext import GNUTranslations
from importlib.resources import files
from typing import Literal
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_date, format_time
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal, format_percent
from markupsafe import Markup, escape


class Language(StrEnum):
    """The two languages; the first is the default."""

    FRENCH = "fr"
    ENGLISH = "en"

    @property
    def other(self) -> "Language":
        return Language.ENGLISH if self is Language.FRENCH else Language.FRENCH


LOCALES = {language: Locale(language.value, "CA") for language in Language}


def _read(language: Language) -> GNUTranslations:
    source = files("services.notify.web") / "locale" / language.value / "LC_MESSAGES"
    with (source / "passerelle.po").open("rb") as text:
        catalogue = read_po(text, locale=language.value)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)


CATALOGUES: Mapping[Language, GNUTranslations] = {one: _read(one) for one in Language}


def choose(*asked: str | None, accept: str = "") -> Language:
    """The first of `asked` that is one of ours, else the browser's best, else French (NW-40).

    `asked` in order: the choice made with the switch, then the person's own setting.
    `accept` is an Accept-Language header; what it cannot say is not guessed.
    """
    for one in asked:
        if one in {"fr", "en"}:
            return Language(one)
    wanted: list[tuple[float, int, Language]] = []
    for place, part in enumerate(accept.split(",")):
        tag, _, weight = part.partition(";")
        name = tag.strip().lower().partition("-")[0]
        if name in {"fr", "en"}:
            wanted.append((-_quality(weight), place, Language(name)))
    return min(wanted)[2] if wanted else Language.FRENCH


def _quality(text: str) -> float:
    _, _, figure = text.partition("=")
    try:
        return float(figure) if figure else 1.0
    except ValueError:
        return 0.0


def in_language(names: Mapping[Literal["fr", "en"], str], language: Language) -> str:
    """A name of the region file, in the other language if it has none in this one."""
    return names.get(language.value) or next(iter(names.values()), "")


def _one_stop(text: str) -> str:
    """A sentence that ends in `p.m.` has one full stop."""
    return text.replace(".m..", ".m.")


@dataclass(frozen=True, slots=True)
class Words:
    """One language in one time zone: what a template asks for everything that is read."""

    language: Language
    zone: ZoneInfo

    def has(self, key: str) -> bool:
        return CATALOGUES[self.language].gettext(key) != key

    def say(self, key: str, n: int | None = None, **values: object) -> str:
        """The message `key`, in the plural that `n` asks for if it has one, with `values` put in.

        Whole numbers are written as the language writes them; everything else as it is given.
        Raises KeyError if the catalogue has no such message.
        """
        catalogue = CATALOGUES[self.language]
        text = catalogue.gettext(key)
        if n is not None:
            values["n"] = n
            several = catalogue.ngettext(key, key, n)
            text = text if several == key else several
        if text == key:
            raise KeyError(key)
        return _one_stop(
            text.format_map(
                {name: self.number(v) if isinstance(v, int) else v for name, v in values.items()}
            )
        )

    def mark(self, key: str, **values: object) -> Markup:
        """As `say`, for HTML: what is put in is escaped, unless it is markup already."""
        text = CATALOGUES[self.language].gettext(key)
        if text == key:
            raise KeyError(key)
        return escape(text).format_map(values)

    def number(self, value: float) -> str:
        """5,6 in French, 5.6 in English."""
        return format_decimal(value, locale=LOCALES[self.language])

    def percent(self, share: float) -> str:
        """`share` is 0 to 1: `12 %` with a no-break space in French, `12%` in English."""
        return format_percent(share, locale=LOCALES[self.language])

    def nth(self, n: int) -> str:
        """1re, 2e (of a *visite*, a *hospitalisation*); 1st, 2nd, 3rd, 11th."""
        if self.language is Language.FRENCH:
            return f"{self.number(n)}re" if n == 1 else f"{self.number(n)}e"
        last = "th" if n % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
        return f"{self.number(n)}{last}"

    def day(self, at: date) -> str:
        """`1er décembre 2026`, `December 1, 2026`; of an instant, the day in the zone."""
        local = at.astimezone(self.zone).date() if isinstance(at, datetime) else at
        if self.language is Language.ENGLISH:
            return format_date(local, "MMMM d, y", locale=LOCALES[self.language])
        day = "1er" if local.day == 1 else str(local.day)
        return f"{day} {format_date(local, 'MMMM y', locale=LOCALES[self.language])}"

    def clock(self, at: datetime) -> str:
        """`14 h 32`, `2:32 p.m.`"""
        local = at.astimezone(self.zone)
        pattern = "H 'h' mm" if self.language is Language.FRENCH else "h:mm a"
        return format_time(local.time(), pattern, locale=LOCALES[self.language])

    def moment(self, at: datetime) -> str:
        """`24 novembre 2026, 14 h 32`, `November 24, 2026, 2:32 p.m.`"""
        return f"{self.day(at)}, {self.clock(at)}"

    def length(self, span: timedelta) -> str:
        """Minutes below an hour, hours and minutes below two days, else whole days."""
        minutes = max(0, round(span.total_seconds() / 60))
        if minutes < 60:
            return self.say("length.minutes", minutes=minutes)
        if minutes < 2 * 24 * 60:
            hours, rest = divmod(minutes, 60)
            return self.say("length.hours", hours=hours, minutes=f"{rest:02d}")
        return self.say("length.days", n=minutes // (24 * 60))
