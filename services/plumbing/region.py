"""The region file: who takes part, what their codes mean, what is the default.

One file for all services, each reads what it needs. A token's tenant, the panel's nurse and a
Consent's actor all resolve here, never in what a caller says of itself.
"""

from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import structlog
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from services.plumbing.identifiers import ALIASES, QUEBEC

log = structlog.get_logger()

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$")]
"""An id of the file: it stands in URLs and references."""

RoleName = Literal[
    "clinic_cm",
    "hosp_cm",
    "physician",
    "lead_md",
    "clinic_manager",
    "coordinator",
    "manager",
    "ops",
    "privacy",
]


class RegionError(Exception):
    """The region file cannot be used; the message names each place that is wrong."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"unknown time zone {name!r}") from None
    return name


Zone = Annotated[str, AfterValidator(_zone)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Codes(_Part):
    """What a site's codes mean, in Passerelle's words. Keys are `system|code`, or a bare code."""

    classes: dict[str, str] = Field(default_factory=dict)
    """→ v3-ActCode classes (CT-03); the standard ones need no entry."""
    dispositions: dict[str, str] = Field(default_factory=dict)
    """→ Disposition of encounter.recorded."""
    services: dict[str, str] = Field(default_factory=dict)
    """→ Service of encounter.recorded (counting.md section 7)."""
    admit_sources: dict[str, Literal["emergency", "transfer", "elective", "other"]] = Field(
        default_factory=dict
    )
    planned: tuple[str, ...] = ()
    """Codes of Encounter.type or priority that say: by appointment (CR-07)."""
    labels_assessed: bool = False
    """The site labels every sensitive encounter: no label means none (CS-59)."""
    sensitive_services: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Service codes → sensitivity labels (v3-ActCode) of their encounters (CS-59)."""


class Site(_Part):
    """A hospital or installation that sends events, or that is known not to."""

    id: Name
    name: dict[Literal["fr", "en"], str]
    connected: bool = True
    data_from: date | None = None
    timezone: Zone = "America/Toronto"
    visit_systems: tuple[str, ...] = ()
    """Systems of visit numbers (HA-70)."""
    record_systems: tuple[str, ...] = ()
    """Systems of record numbers."""
    temporary_identity: str | None = None
    """Pattern (whole value) of record numbers that are temporary (HA-96)."""
    temporary_types: tuple[str, ...] = ()
    """Identifier type codes that are temporary (HA-96)."""
    source_sets_last_updated: bool = False
    """`meta.lastUpdated` is the source system's own (HA-82)."""
    drop_types: tuple[str, ...] = ()
    """Resource types validated and not stored (HA-25)."""
    silent_after_hours: float = 2
    sensitive: bool = False
    """Shown only as "a hospital" below an explicit permit (CS-45)."""
    override: bool = False
    """Who breaks the glass sees this hospital's visits though no Consent permits it (CS-55)."""
    codes: Codes = Codes()
    part_of: Name | None = None


class Clinic(_Part):
    id: Name
    name: dict[Literal["fr", "en"], str]
    language: Literal["fr", "en"] = "fr"
    timezone: Zone = "America/Toronto"
    part_of: Name | None = None
    opens: time = time(8)
    closes: time = time(17)
    content_levels: tuple[Literal["empty", "id-only", "full-resource"], ...] = ("empty", "id-only")
    """Content of notifications agreed with this clinic (CA-53)."""
    agreed_level: Literal["L2", "L3"] | None = None
    """How much of a visit an explicit permit may open to this clinic (CS-45); unset: as to all."""
    identifiers: tuple[str, ...] = ()
    """`system|value` by which a hospital names this clinic or its physicians (CA-46)."""
    endpoint_hosts: tuple[str, ...] = ()
    """Hosts, or `host:port`, of its endpoints beyond the public https ones (CA-67)."""


class Person(_Part):
    """Somebody who signs in, or whom a Consent or panel names."""

    id: Name
    name: str
    roles: tuple[RoleName, ...] = ()
    clinic: Name | None = None
    site: Name | None = None
    language: Literal["fr", "en"] = "fr"
    licence: str | None = None
    active_until: date | None = None


class Group(_Part):
    """A Group, CareTeam or PractitionerRole that a Consent may name."""

    id: Name
    kind: Literal["Group", "CareTeam", "PractitionerRole"] = "Group"
    members: tuple[Name, ...]


class Client(_Part):
    """A machine that calls with a token."""

    id: Name
    scopes: tuple[str, ...]
    """SMART v2 scopes it may be granted."""
    sites: tuple[Name, ...] = ()
    clinic: Name | None = None
    roles: tuple[Literal["ops"], ...] = ()
    jwks: dict[str, Any] | None = None
    jwks_url: str | None = None
    jwks_file: Path | None = None
    """Public keys in a file, relative to the region file."""
    may_import: bool = False


class ConsentDefaults(_Part):
    default: Literal["implied", "opt-in"] = "implied"
    profile: Literal["core", "qc"] = "qc"
    optin_purposes: tuple[str, ...] = ("TREAT",)
    timezone: Zone = "America/Toronto"
    implied_level: Literal["L1", "L2"] = "L1"
    """How much of a visit silence may release (CS-45)."""
    explicit_level: Literal["L1", "L2"] = "L2"
    """How much an explicit permit may, where no agreement with the clinic goes further."""
    tell_of_override: bool = False
    """The patient is to be told when the glass was broken; a person does it (CS-55)."""


def _quebec() -> dict[str, dict[Literal["fr", "en"], str]]:
    return {QUEBEC: {"fr": "Carte d'assurance maladie (NAM)", "en": "Quebec health card (RAMQ)"}}


FIVE_YEARS = 1827
"""Days, leap days included."""


class Retention(_Part):
    """How long what is kept is kept, in days (CS-120); `passerelle purge` destroys what is over."""

    facts: int | None = Field(default=None, ge=1)
    """Encounters and what was counted of them. Unset: nothing is destroyed (CT-02)."""
    cards: int = Field(default=FIVE_YEARS, ge=1)
    """After a card was closed, a panel row superseded, a standing replaced."""
    consents: int = Field(default=FIVE_YEARS, ge=1)
    """After a Consent's last effect: replaced, withdrawn, refused and settled."""
    audit: int = Field(default=FIVE_YEARS, ge=1)
    """Of audit records and decisions, and of incidents after they were closed (CS-122)."""


class Region(_Part):
    name: dict[Literal["fr", "en"], str]
    timezone: Zone = "America/Toronto"
    sites: tuple[Site, ...]
    clinics: tuple[Clinic, ...]
    people: tuple[Person, ...] = ()
    groups: tuple[Group, ...] = ()
    clients: tuple[Client, ...] = ()
    consent: ConsentDefaults = ConsentDefaults()
    retention: Retention = Retention()
    identifier_aliases: dict[str, str] = Field(default_factory=dict)
    cards: dict[str, dict[Literal["fr", "en"], str]] = Field(default_factory=_quebec)
    """Systems of health cards by which people look somebody up, and their names."""
    policy: Path | None = None
    """A policy file, relative to the region file, or the name of a preset; unset: qc-default."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        organisations: list[Site | Clinic] = [*self.sites, *self.clinics]
        _unique("sites and clinics", [one.id for one in organisations])
        _unique("people", [one.id for one in self.people])
        _unique("groups", [one.id for one in self.groups])
        _unique("clients", [one.id for one in self.clients])
        known = {one.id for one in organisations}
        sites, clinics = set(self._sites), set(self._clinics)
        people = set(self._people)
        for person in self.people:
            _one_of(f"people {person.id}: clinic", person.clinic, clinics)
            _one_of(f"people {person.id}: site", person.site, sites)
        for client in self.clients:
            _one_of(f"clients {client.id}: clinic", client.clinic, clinics)
            for site in client.sites:
                _one_of(f"clients {client.id}: sites", site, sites)
            if client.sites and client.clinic:
                raise ValueError(f"clients {client.id}: sites or a clinic, not both")
        for group in self.groups:
            for member in group.members:
                _one_of(f"groups {group.id}: members", member, people)
        for one in organisations:
            _one_of(f"{one.id}: part_of", one.part_of, known)
            self.above(one.id)
        return self

    @cached_property
    def _sites(self) -> dict[str, Site]:
        return {site.id: site for site in self.sites}

    @cached_property
    def _clinics(self) -> dict[str, Clinic]:
        return {clinic.id: clinic for clinic in self.clinics}

    @cached_property
    def _people(self) -> dict[str, Person]:
        return {person.id: person for person in self.people}

    @cached_property
    def _clients(self) -> dict[str, Client]:
        return {client.id: client for client in self.clients}

    def site(self, id_: str) -> Site | None:
        return self._sites.get(id_)

    def clinic(self, id_: str) -> Clinic | None:
        return self._clinics.get(id_)

    def person(self, id_: str) -> Person | None:
        return self._people.get(id_)

    def client(self, id_: str) -> Client | None:
        return self._clients.get(id_)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Identifier systems by their other names (HA-91)."""
        return {**ALIASES, **self.identifier_aliases}

    def above(self, organisation: str) -> tuple[str, ...]:
        """What `organisation` is part of, nearest first."""
        organisations: list[Site | Clinic] = [*self.sites, *self.clinics]
        parents = {one.id: one.part_of for one in organisations}
        found: list[str] = []
        at = parents.get(organisation)
        while at is not None:
            if at in found or at == organisation:
                raise ValueError(f"{organisation}: part_of goes round in a circle")
            found.append(at)
            at = parents.get(at)
        return tuple(found)


def _unique(what: str, ids: list[str]) -> None:
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise ValueError(f"{what}: {', '.join(twice)} stands twice")


def _one_of(what: str, one: str | None, known: set[str]) -> None:
    if one is not None and one not in known:
        raise ValueError(f"{what}: {one} is not in this file")


def load(file: Path) -> Region:
    """The region of `file`. RegionError names file, place and fault."""
    try:
        said = yaml.safe_load(file.read_text())
        region = Region.model_validate(said)
    except OSError as error:
        raise RegionError(f"{file}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RegionError(f"{file}, line {line}: {error.problem}") from None
    except ValidationError as error:
        faults = "\n".join(
            f"{file}: {'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise RegionError(faults) from None
    clients = tuple(_with_keys(client, file.parent) for client in region.clients)
    return region.model_copy(update={"clients": clients})


def _with_keys(client: Client, folder: Path) -> Client:
    """`client` with the keys of its file; without any, those that `up` made for it, if any."""
    if client.jwks is not None or client.jwks_url is not None:
        return client
    path = folder / (client.jwks_file or Path("clients") / f"{client.id}.jwks.json")
    try:
        return client.model_copy(update={"jwks": yaml.safe_load(path.read_text())})
    except OSError:
        return client


class RegionFile:
    """The region as its file has it now. A changed file speaks from the next call on.

    A changed file that cannot be used is logged once, and the region stays as it was.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._region = load(file)
        self._read = self._stamp()

    def current(self) -> Region:
        stamp = self._stamp()
        if stamp != self._read:
            self._read = stamp
            try:
                self._region = load(self._file)
            except RegionError as error:
                log.error("region_unusable", why=str(error))  # noqa: TRY400 - no traceback
        return self._region

    def reachable(self) -> bool:
        """Whether the file can be read at all; until then nobody knows who has left since."""
        try:
            with self._file.open("rb"):
                return True
        except OSError:
            return False

    def _stamp(self) -> tuple[int, int]:
        try:
            stat = self._file.stat()
        except OSError:
            return (0, 0)
        return (stat.st_mtime_ns, stat.st_ino)
