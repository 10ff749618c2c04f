"""What the privacy officer looks through: the monthly review, and whom an incident reached.

Both read the audit of every service as the auditor, and are audited themselves (CS-114, CS-122).
Counts and keys only: nobody is named but the people of the region file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import typer
from sqlalchemy import text

from services.cli import auditing
from services.cli.auditing import DataDir
from services.plumbing import audit
from services.plumbing.account import Language
from services.plumbing.audit import Trail
from services.plumbing.clock import Clock
from services.plumbing.db import Tx
from services.plumbing.region import Region
from services.plumbing.settings import SERVICES, Settings, SettingsError

FEWEST: Final = 20
"""Patients in a month below which nobody stands out."""
TIMES: Final = 3
"""So many times as many as before, or as others of the role: unusual."""
BEFORE: Final = 3
"""Months that a person is held against."""

_ALL = " union all ".join(
    f"select '{service}' as service, * from {service}.audit"  # noqa: S608 - constants
    " where recorded >= :since and recorded < :until"
    for service in SERVICES
)
_READS = "shape in ('PatientRead', 'PatientQuery') and agent_kind = 'person'"
_VOLUME = text(
    "select agent, roles, date_trunc('month', recorded at time zone :zone) as month,"  # noqa: S608 - constants
    f" count(distinct patient) as patients from ({_ALL}) a where {_READS} group by 1, 2, 3"
)
_OVERRIDES = text(
    "select recorded, agent, patient, reasons from ("  # noqa: S608 - constants
    f"{_ALL}) a where purpose = 'BTG' and agent_kind = 'person' order by recorded, agent"
)
_REFUSALS = text(
    "select coalesce(recipient, tenant, '-') as recipient, reason, count(*) as decisions,"  # noqa: S608 - constants
    f" count(distinct patient) as patients from ({_ALL}) a, unnest(reasons) as reason"
    " where shape like 'AuthZ-%' and outcome = 8 group by 1, 2 order by 1, 2"
)
_DOORS = text(
    "select service, agent, reasons[1] as status, count(*) as attempts from ("  # noqa: S608 - constants
    f"{_ALL}) a where shape = 'Refused' group by 1, 2, 3 order by attempts desc, 1, 2, 3 limit 20"
)
_EXPORTS = text(
    "select recorded, service, agent, shape, entities from ("  # noqa: S608 - constants
    f"{_ALL}) a where shape in ('Export', 'Configuration') and agent_kind = 'person'"
    " order by recorded, service, agent"
)
# What left, or was looked at; a decision alone tells nobody anything.
_REACHED = text(
    "select patient, min(recorded) as first, max(recorded) as last, count(*) as times,"  # noqa: S608 - constants
    " array(select distinct unnest(array_agg(items_of))) as items,"
    " array_agg(distinct coalesce(recipient, tenant, '-')) as recipients"
    " from (select a.*, coalesce(nullif(array_to_string(items, ','), ''), '-') as items_of"
    f" from ({_ALL}) a where patient is not null"
    " and shape in ('PatientRead', 'PatientQuery', 'PrivacyDisclosure.Source')"
    " and (cast(:agent as text) is null or agent = :agent or reader = :agent)"
    " and (cast(:recipient as text) is null or recipient = :recipient or tenant = :recipient)"
    " and (cast(:token as text) is null or token_id = :token)"
    " and (cast(:network as text) is null or network = :network)) a"
    " group by patient order by patient"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """How many patients a person looked at in the month, and what that is held against."""

    person: str
    patients: int
    usual: float
    """Mean of their own months before; of those of their role, if they have none."""

    @property
    def is_unusual(self) -> bool:
        return self.patients >= FEWEST and self.patients > TIMES * self.usual


@dataclass(frozen=True, slots=True)
class Review:
    """One month (CS-114): break-glass, refusals, unusual volume, and what else a person did."""

    month: date
    overrides: Sequence[Mapping[str, Any]]
    refusals: Sequence[Mapping[str, Any]]
    unusual: Sequence[Volume]
    looked: int
    """People who looked at anybody."""
    doors: Sequence[Mapping[str, Any]]
    """Callers that were turned away most."""
    exports: Sequence[Mapping[str, Any]]


def volumes(counts: Mapping[tuple[str, tuple[str, ...], date], int], month: date) -> list[Volume]:
    """Of each person who looked in `month`; `counts` are by person, roles and month.

    A month in which somebody looked at nobody counts as 0 only after their first.
    """
    people: dict[str, dict[date, int]] = {}
    roles: dict[str, tuple[str, ...]] = {}
    for (person, held, at), patients in sorted(counts.items()):
        months = people.setdefault(person, {})
        months[at] = months.get(at, 0) + patients
        roles[person] = held
    found = []
    for person, months in sorted(people.items()):
        if month not in months:
            continue
        since = min(months)
        own = [months.get(at, 0) for at in _months_before(month) if at >= since]
        peers = [
            other[month]
            for one, other in people.items()
            if one != person and roles[one] == roles[person] and month in other
        ]
        against = own or peers
        usual = sum(against) / len(against) if against else 0.0
        found.append(Volume(person, months[month], usual))
    return found


def _months_before(month: date) -> list[date]:
    found = []
    for back in range(1, BEFORE + 1):
        number = month.year * 12 + month.month - 1 - back
        found.append(date(number // 12, number % 12 + 1, 1))
    return found


def _bounds(first: date, last: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """From the first day of `first` to that of the month after `last`, in the region's time."""
    following = date(last.year + last.month // 12, last.month % 12 + 1, 1)
    start, end = (datetime(day.year, day.month, 1, tzinfo=zone) for day in (first, following))
    return start.astimezone(UTC), end.astimezone(UTC)


async def reviewed(tx: Tx, month: date, zone: ZoneInfo) -> Review:
    """The month that begins on `month`, out of the audit of every service."""
    since, until = _bounds(month, month, zone)
    asked = {"since": since, "until": until}
    earlier, _ = _bounds(_months_before(month)[-1], month, zone)
    rows = await tx.execute(_VOLUME, {"since": earlier, "until": until, "zone": str(zone)})
    counts = {(r.agent, tuple(r.roles), r.month.date()): r.patients for r in rows}
    looked = volumes(counts, month)
    parts = {
        name: [dict(row._mapping) for row in await tx.execute(sql, asked)]  # noqa: SLF001 - public by its documentation
        for name, sql in (
            ("overrides", _OVERRIDES),
            ("refusals", _REFUSALS),
            ("doors", _DOORS),
            ("exports", _EXPORTS),
        )
    }
    return Review(
        month=month,
        unusual=[one for one in looked if one.is_unusual],
        looked=len(looked),
        **parts,
    )


@dataclass(frozen=True, slots=True)
class Reached:
    """One patient whose data an incident may have reached (CS-122)."""

    patient: UUID
    first: datetime
    last: datetime
    times: int
    items: tuple[str, ...]
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which accesses are meant: all of a time, narrowed by what is given."""

    since: datetime
    until: datetime
    agent: str | None = None
    """Person or client."""
    recipient: str | None = None
    """Clinic or site, and so its endpoint."""
    token: str | None = None
    """`jti` of an access token."""
    network: str | None = None
    """IP address."""


async def reached(tx: Tx, asked: Asked) -> list[Reached]:
    """Whose data were told or looked at, out of the audit of every service, by patient key."""
    return [
        Reached(r.patient, r.first, r.last, r.times, tuple(r.items), tuple(r.recipients))
        for r in await tx.execute(_REACHED, asdict(asked))
    ]


# In words

_WORDS: Mapping[str, Mapping[Language, str]] = {
    "title": {
        Language.FRENCH: "Revue des accès, {month}",
        Language.ENGLISH: "Review of access, {month}",
    },
    "overrides": {
        Language.FRENCH: "Accès d'urgence (bris de glace)",
        Language.ENGLISH: "Break-glass",
    },
    "refusals": {
        Language.FRENCH: "Refus, par destinataire et motif",
        Language.ENGLISH: "Refusals, by recipient and reason",
    },
    "unusual": {
        Language.FRENCH: "Volume inhabituel ({looked} personnes ont consulté)",
        Language.ENGLISH: "Unusual volume ({looked} people looked)",
    },
    "doors": {
        Language.FRENCH: "Appels repoussés à la porte",
        Language.ENGLISH: "Calls turned away at the door",
    },
    "exports": {
        Language.FRENCH: "Exportations et changements de configuration",
        Language.ENGLISH: "Exports and changes of configuration",
    },
    "volume": {
        Language.FRENCH: "{person}\u00a0: {patients} patients; d'ordinaire {usual}",
        Language.ENGLISH: "{person}: {patients} patients; usually {usual}",
    },
    "none": {Language.FRENCH: "rien", Language.ENGLISH: "nothing"},
}


def written(review: Review, known: Region, language: Language) -> str:
    """The review as a page of text."""

    def say(name: str, **values: object) -> str:
        return _WORDS[name][language].format(**values)

    def name_of(person: str) -> str:
        found = known.person(person)
        return f"{found.name} ({person})" if found else person

    zone = ZoneInfo(known.timezone)
    title = say("title", month=f"{review.month:%Y-%m}")
    sections = [
        (
            say("overrides"),
            [
                f"{r['recorded'].astimezone(zone):%Y-%m-%d %H:%M}  {name_of(r['agent'])}"
                f"  {r['patient']}  {', '.join(r['reasons'])}".rstrip()
                for r in review.overrides
            ],
        ),
        (
            say("refusals"),
            [
                f"{r['recipient']}  {r['reason']}  {r['decisions']} ({r['patients']})"
                for r in review.refusals
            ],
        ),
        (
            say("unusual", looked=review.looked),
            [
                say(
                    "volume",
                    person=name_of(one.person),
                    patients=one.patients,
                    usual=round(one.usual, 1),
                )
                for one in review.unusual
            ],
        ),
        (
            say("doors"),
            [f"{r['service']}  {r['agent']}  {r['status']}  {r['attempts']}" for r in review.doors],
        ),
        (
            say("exports"),
            [
                f"{r['recorded'].astimezone(zone):%Y-%m-%d %H:%M}  {r['service']}"
                f"  {name_of(r['agent'])}  {', '.join(r['entities'])}"
                for r in review.exports
            ],
        ),
    ]
    parts = [title, "=" * len(title)]
    for heading, lines in sections:
        parts += ["", heading, "-" * len(heading), *(lines or [say("none")])]
    return "\n".join(parts) + "\n"


# Commands

By = Annotated[str, typer.Option(help="Who draws it up: a person of the region file.")]


async def _drawn_up(tx: Tx, said: Settings, by: str, name: str, patients: Sequence[UUID]) -> None:
    """That it was drawn up is audited: of each patient in it, or once."""
    trail = Trail(at=Clock(said.clock).now(), agent=by, agent_kind="person", roles=("privacy",))
    about: Sequence[UUID | None] = patients or [None]
    await audit.record(tx, [trail.exported(name, one) for one in about])


def _month(said: str) -> date:
    try:
        return datetime.strptime(said, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise SettingsError(f"{said}: is not a month, as 2026-10") from None


async def _review(
    month: str, by: str, language: Language, data_dir: Path | None, *, as_json: bool
) -> str:
    first = _month(month)
    said, known = auditing.asked_by(by, data_dir)
    async with auditing.as_auditor(auditing.database_of(said, data_dir)) as tx:
        found = await reviewed(tx, first, ZoneInfo(known.timezone))
        await _drawn_up(tx, said, by, f"review-{month}", [])
    if as_json:
        return orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2).decode() + "\n"
    return written(found, known, language)


def review_(
    month: Annotated[str, typer.Argument(help="As 2026-10.")],
    by: By,
    language: Annotated[Language, typer.Option("--language", "-l")] = Language.FRENCH,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print a month's review: break-glass, refusals, unusual volume, calls turned away, exports."""
    typer.echo(auditing.run(_review(month, by, language, data_dir, as_json=as_json)), nl=False)


def _instant(name: str, said: str, zone: ZoneInfo) -> datetime:
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise SettingsError(f"--{name} {said}: is not an instant, as 2026-10-03T14:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)


async def _affected(
    since: str, until: str, by: str, data_dir: Path | None, narrowed: Mapping[str, str | None]
) -> list[Reached]:
    said, known = auditing.asked_by(by, data_dir)
    zone = ZoneInfo(known.timezone)
    asked = Asked(_instant("since", since, zone), _instant("until", until, zone), **narrowed)
    async with auditing.as_auditor(auditing.database_of(said, data_dir)) as tx:
        found = await reached(tx, asked)
        await _drawn_up(tx, said, by, "affected", [one.patient for one in found])
    return found


def affected_(
    since: Annotated[str, typer.Option(help="First instant, as 2026-10-03T14:00.")],
    until: Annotated[str, typer.Option(help="The instant after the last.")],
    by: By,
    agent: Annotated[str | None, typer.Option(help="A person or client.")] = None,
    recipient: Annotated[str | None, typer.Option(help="A clinic or site.")] = None,
    token: Annotated[str | None, typer.Option(help="The jti of an access token.")] = None,
    network: Annotated[str | None, typer.Option(help="An IP address.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print whose data an incident may have reached: keys, items, period, count (CS-122)."""
    narrowed = {"agent": agent, "recipient": recipient, "token": token, "network": network}
    found = auditing.run(_affected(since, until, by, data_dir, narrowed))
    if as_json:
        typer.echo(orjson.dumps(found, default=str, option=orjson.OPT_INDENT_2).decode())
        return
    for one in found:
        typer.echo(
            f"{one.patient}  {one.first:%Y-%m-%d %H:%M} to {one.last:%Y-%m-%d %H:%M} UTC"
            f"  {one.times} times  {', '.join(one.recipients)}  {'; '.join(one.items)}"
        )
    typer.echo(f"{len(found)} persons.")
