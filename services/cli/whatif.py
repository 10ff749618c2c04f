"""`passerelle what-if`: what a policy would have listed, beside the live one (CT-71).

Asks screening's door, as any client does, waits, and says it in a table. The numbers come rounded
and masked; nothing about a patient reaches this command.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from babel.dates import format_date
from babel.numbers import format_decimal

from services.plumbing.account import Language

EVERY = 0.5
"""Real seconds between two questions whether it is done."""
NONE = "none"


class WhatIfError(Exception):
    """There is no answer to be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Door:
    """Screening's address, and a token that opens it."""

    url: str
    token: str = field(repr=False)


def named(said: str) -> str:
    """A policy as the door takes it: the text of a file, if `said` is one; else as it is."""
    file = Path(said)
    if file.suffix not in (".yaml", ".yml"):
        return said
    try:
        return file.read_text() + "\n"
    except OSError as error:
        raise WhatIfError(f"{said}: {error.strerror}") from None


async def ask(
    door: Door,
    policy: str,
    against: str,
    first: date | None,
    last: date | None,
) -> AsyncIterator[Mapping[str, Any]]:
    """Have it counted; yields how it stands until it is done, the result last of all.

    WhatIfError: refused, failed, or nobody answers.
    """
    said: dict[str, Any] = {"policy": named(policy)}
    if against != NONE:
        said["against"] = named(against)
    if first is not None:
        said["from"] = first.isoformat()
    if last is not None:
        said["to"] = last.isoformat()
    headers = {"Authorization": f"Bearer {door.token}"}
    async with httpx.AsyncClient(base_url=door.url, headers=headers, timeout=30) as http:
        answer = await _answered(http.post("/v1/backtests", json=said), door)
        where = answer.headers["Location"]
        while True:
            now = (await _answered(http.get(where), door)).json()
            yield now
            if now["state"] == "done":
                return
            if now["state"] == "failed":
                raise WhatIfError(now["error"])
            await asyncio.sleep(EVERY)


async def _answered(asked: Any, door: Door) -> httpx.Response:
    try:
        answer: httpx.Response = await asked
    except httpx.HTTPError:
        raise WhatIfError(f"Screening at {door.url} does not answer. Is it running?") from None
    if answer.status_code in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
        return answer
    try:
        issues = [issue["details"]["text"] for issue in answer.json()["issue"]]
    except (ValueError, KeyError, TypeError):
        issues = []
    raise WhatIfError(f"Refused ({answer.status_code}): {' '.join(issues)}")


# In words

_WORDS: Mapping[str, Mapping[Language, str]] = {
    "title": {
        Language.ENGLISH: "What if: {policy}",
        Language.FRENCH: "Et si\u00a0: {policy}",
    },
    "title-against": {
        Language.ENGLISH: "What if: {policy}, compared with {against}",
        Language.FRENCH: "Et si\u00a0: {policy}, comparée à {against}",
    },
    "period": {
        Language.ENGLISH: "From {first} to {last}, {days} days. Nothing was sent or changed.",
        Language.FRENCH: "Du {first} au {last}, {days} jours. Rien n'a été envoyé ni modifié.",
    },
    "known": {
        Language.ENGLISH: "On the facts known on {at}, as if each had come on time.",
        Language.FRENCH: "Selon les faits connus le {at}, comme si chacun était arrivé à temps.",
    },
    "list": {Language.ENGLISH: "On the list", Language.FRENCH: "Sur la liste"},
    "held": {
        Language.ENGLISH: "Of these, kept after the count fell",
        Language.FRENCH: "Dont maintenus après la baisse du compte",
    },
    "watch": {Language.ENGLISH: "Watched", Language.FRENCH: "Sous surveillance"},
    "last": {Language.ENGLISH: "on the last day", Language.FRENCH: "le dernier jour"},
    "mean": {Language.ENGLISH: "on average", Language.FRENCH: "en moyenne"},
    "most": {Language.ENGLISH: "at most", Language.FRENCH: "au plus"},
    "entries": {Language.ENGLISH: "New on the list", Language.FRENCH: "Nouveaux sur la liste"},
    "alerts": {
        Language.ENGLISH: "Alerts to nurses",
        Language.FRENCH: "Alertes aux infirmières",
    },
    "in_all": {Language.ENGLISH: "in all", Language.FRENCH: "en tout"},
    "a_week": {Language.ENGLISH: "a week", Language.FRENCH: "par semaine"},
    "both": {
        Language.ENGLISH: "On both lists, on average",
        Language.FRENCH: "Sur les deux listes, en moyenne",
    },
    "only": {
        Language.ENGLISH: "On this list only, on average",
        Language.FRENCH: "Sur cette liste seulement, en moyenne",
    },
    "ed_visits": {
        Language.ENGLISH: "Patients by ED visits that count, on the last day",
        Language.FRENCH: "Patients selon les visites à l'urgence comptées, le dernier jour",
    },
    "hospital_episodes": {
        Language.ENGLISH: "Patients by hospital episodes that count, on the last day",
        Language.FRENCH: "Patients selon les épisodes hospitaliers comptés, le dernier jour",
    },
    "at_least": {
        Language.ENGLISH: "{count} or more",
        Language.FRENCH: "{count} ou plus",
    },
    "top": {
        Language.ENGLISH: "reached by the top {percent} % with any",
        Language.FRENCH: "atteint par les {percent}\u00a0% les plus élevés",
    },
    "rounding": {
        Language.ENGLISH: "Numbers of patients are rounded down to {to}s; <{to} is 1 to {below}.",
        Language.FRENCH: (
            "Nombres de patients arrondis au multiple de {to} inférieur; <{to} : de 1 à {below}."
        ),
    },
}
_LOCALES = {Language.FRENCH: "fr_CA", Language.ENGLISH: "en_CA"}
_LABEL, _COLUMN = 58, 16


def written(told: Mapping[str, Any], language: Language) -> str:
    """A back-test that is done, as a table for a programme manager."""
    return "\n".join(_Page(told["result"], language).lines(told["known_at"])) + "\n"


@dataclass(frozen=True, slots=True)
class _Page:
    result: Mapping[str, Any]
    language: Language

    def say(self, name: str, **values: Any) -> str:
        return _WORDS[name][self.language].format(**values)

    @property
    def sides(self) -> Sequence[str]:
        return [name for name in ("policy", "against") if name in self.result]

    def day(self, said: str) -> str:
        day = date.fromisoformat(said[:10])
        return str(format_date(day, "long", locale=_LOCALES[self.language]))

    def number(self, value: float | None) -> str:
        if value is None:
            return f"<{self.result['rounded_down_to']}"
        return str(format_decimal(value, locale=_LOCALES[self.language]))

    def lines(self, known_at: str) -> list[str]:
        names = {side: self._name(side) for side in self.sides}
        title = self.say("title-against" if "against" in names else "title", **names)
        to = self.result["rounded_down_to"]
        return [
            title,
            "=" * len(title),
            self.say(
                "period",
                first=self.day(self.result["from"]),
                last=self.day(self.result["to"]),
                days=len(self.result["days"]),
            ),
            self.say("known", at=self.day(known_at)),
            "",
            self.row("", list(names.values())),
            *self.block("list", "flagged", ("last", "mean", "most")),
            *self.block("held", "held", ("last", "mean")),
            *self.block("watch", "watch", ("last", "mean")),
            *self.block("entries", "entries", ("in_all", "a_week")),
            *self.block("alerts", "alerts", ("in_all", "a_week")),
            *self.overlap(),
            *self.counts("ed_visits"),
            *self.counts("hospital_episodes"),
            "",
            self.say("rounding", to=to, below=to - 1),
        ]

    def _name(self, side: str) -> str:
        rule = self.result[side]
        return f"{rule['name']}@{rule['version']}"

    def row(self, label: str, values: Sequence[str]) -> str:
        return (label.ljust(_LABEL) + "".join(value.rjust(_COLUMN) for value in values)).rstrip()

    def block(self, label: str, measure: str, parts: Sequence[str]) -> list[str]:
        summary = self.result["summary"]
        return [
            self.row(
                f"{self.say(label)}, {self.say(part)}" if not n else f"  {self.say(part)}",
                [self.number(summary[side][measure][part]) for side in self.sides],
            )
            for n, part in enumerate(parts)
        ]

    def overlap(self) -> list[str]:
        found = self.result["summary"].get("overlap")
        if found is None:
            return []
        both = self.number(found["both"]["mean"])
        only = [self.number(found[f"only_{side}"]["mean"]) for side in self.sides]
        return [self.row(self.say("both"), [both, both]), self.row(self.say("only"), only)]

    def counts(self, measure: str) -> list[str]:
        told = {side: self.result["counts"][side][measure] for side in self.sides}
        by_count = {
            side: {one["count"]: one["patients"] for one in each["at_least"]}
            for side, each in told.items()
        }
        most = max((count for each in by_count.values() for count in each), default=0)
        rows = [
            self.row(
                "  " + self.say("at_least", count=count),
                [self._at_least(by_count[side], count) for side in self.sides],
            )
            for count in range(1, most + 1)
        ]
        tops = [
            self.row(
                "  " + self.say("top", percent=percent),
                [self._top(told[side]["top_percent"][percent]) for side in self.sides],
            )
            for percent in told[self.sides[0]]["top_percent"]
        ]
        return ["", self.say(measure), *rows, *tops] if rows else []

    def _at_least(self, patients: Mapping[int, int | None], count: int) -> str:
        """Beyond the last number told there are at most as many: none, or too few."""
        if count in patients:
            return self.number(patients[count])
        return "" if None in patients.values() else self.number(0)

    def _top(self, least: int | None) -> str:
        return "-" if least is None else self.number(least)


async def answered(
    door: Door,
    asked: tuple[str, str, date | None, date | None],
    progress: Callable[[int], None],
) -> Mapping[str, Any]:
    """The whole answer; `progress` hears the percentage."""
    now: Mapping[str, Any] = {}
    async for now in ask(door, *asked):
        progress(now["percent"])
    return now
