"""What the operator decides: `PASSERELLE_*` variables, read once into a frozen object.

No secret has a default. `up` and `demo` make their own secrets and keep them in the data
directory. docs/operations.md explains each variable; a test holds deploy/ to this list.
"""

import base64
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as PydanticSettingsError

Service = Literal["ingest", "screening", "notify"]
SERVICES: tuple[Service, ...] = ("ingest", "screening", "notify")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECRETS = Path("/run/secrets")
"""Where containers are given secrets as files; a variable of the same name has precedence."""
SHORTEST_KEY = 32
"""Bytes; a shorter key is refused at start (CS-95)."""
FEWEST_BYTES = 3
"""Different ones in a key: zeros, a letter again and again are what a default looks like."""


class SettingsError(Exception):
    """The environment does not say what is needed, in words for the operator."""


class Keyring(BaseModel):
    """Keys by id, one of them active: new values use it, old ones still open (CS-95)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, extra="forbid")

    active: str
    keys: dict[str, SecretStr] = Field(repr=False)
    """Base64 of at least 32 random bytes each."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.active not in self.keys:
            raise ValueError("the active key id is not among the keys")
        raw = [sound_key(secret) for secret in self.keys.values()]
        if len(set(raw)) != len(raw):
            raise ValueError("two key ids have the same key")
        return self

    def key(self, key_id: str) -> bytes:
        return base64.b64decode(self.keys[key_id].get_secret_value())


def sound_key(secret: SecretStr) -> bytes:
    """The bytes of a key. ValueError if it is none, is short, or is what stands in its place until
    somebody makes one (CS-95).
    """
    try:
        key = base64.b64decode(secret.get_secret_value(), validate=True)
    except ValueError:
        raise ValueError("a key is not base64") from None
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"a key is shorter than {SHORTEST_KEY} bytes")
    if len(set(key)) < FEWEST_BYTES:
        raise ValueError("a key is no random one: make it with `openssl rand -base64 32`")
    return key


def _no_slash(url: str) -> str:
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_no_slash)]


class Settings(BaseSettings):
    """Settings of one process. Which secrets a service needs, its subclass says."""

    model_config = SettingsConfigDict(
        env_prefix="PASSERELLE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    database_url: SecretStr | None = None
    """`postgresql://passerelle_<service>:…@host/passerelle`: the service's own login role."""
    database_pool: int = Field(default=10, ge=2)
    owner_database_url: SecretStr | None = None
    """Of the role that owns the tables; for `migrate` only."""
    role_passwords: dict[str, SecretStr] = Field(default_factory=dict, repr=False)
    """`migrate` gives these to the login roles: JSON `{"ingest": "…", …}`."""
    region: Path | None = None
    """The region file."""
    clock: Path | None = None
    """A clock file that drives business time. Loopback only."""
    local: bool = False
    """Set by `up` and `demo`: loopback only, plain http, endpoints on loopback allowed."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: the service's own (ingest 8001, screening 8002, notify 8003)."""
    ingest_url: Url = "http://127.0.0.1:8001"
    screening_url: Url = "http://127.0.0.1:8002"
    notify_url: Url = "http://127.0.0.1:8003"
    issuer: Url = "http://127.0.0.1:8000"
    """The authority whose tokens and sign-ins count."""
    jwks_url: str | None = None
    """Its keys; unset: as its discovery document says."""
    authority_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Private ranges in which the authority may be, `["10.3.0.0/16"]`; else only public addresses
    are called for its documents and keys (CS-97)."""
    audience: str = "passerelle"
    """What access tokens for Passerelle name."""
    oidc_client_id: str = "passerelle"
    oidc_client_secret: SecretStr | None = None
    oidc_person_claim: str = "sub"
    oidc_roles_claim: str | None = "roles"
    oidc_organization_claim: str | None = None
    session_idle_minutes: float = Field(default=30, gt=0)
    session_absolute_hours: float = Field(default=10, gt=0)
    sign_ins_per_minute: int = Field(default=10, ge=1)
    """From one address; more are answered 429 (CS-100)."""
    client_per_second: float | None = Field(default=None, gt=0)
    """Requests of one client at one process, a Bundle's entries counted each; more are answered
    429 (HA-101). Unset: 500, but no limit under `up` and `demo`."""
    client_burst: float = Field(default=1000, ge=1)
    """So many at once, after a silence."""
    address_per_second: float | None = Field(default=None, gt=0)
    """Requests from one address without a known client: public, refused, or of browsers. Unset:
    50, but no limit under `up` and `demo`."""
    address_burst: float = Field(default=500, ge=1)
    kafka_bootstrap: str | None = None
    """`host:port,…`. Unset: the log is carried by PostgreSQL."""
    kafka_partitions: int = Field(default=6, ge=1)
    kafka_replication: int = Field(default=1, ge=1)
    kafka_prefix: str = ""
    """Put before each topic's name, where several installations share a cluster."""
    kafka_security: Literal["plaintext", "ssl", "sasl_ssl"] = "plaintext"
    kafka_ca_file: Path | None = None
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    token_keys: Keyring | None = None
    """For the tokens of identifiers (HMAC)."""
    seal_keys: Keyring | None = None
    """For names, identifiers, kept bodies."""
    date_keys: Keyring | None = None
    """For birth date and death alone: all that screening may open (CS-94)."""
    cursor_key: SecretStr | None = None
    """Signs paging cursors and the like. Base64 of at least 32 bytes."""
    checkpoint_key: SecretStr | None = None
    """Signs the audit's hourly checkpoints. Base64 of at least 32 bytes. Unset: none are made."""
    checkpoint_folder: Path | None = None
    """Where checkpoints are kept besides the database: storage others administer."""
    sweep_seconds: float = Field(default=60, gt=0)
    """How often screening looks for standings that change by time alone (CT-45)."""
    consent_invalid: Literal["hold", "reject"] = "hold"
    """A Consent that is no valid R4 holds its patient's cards until a person has looked, or not."""
    hold_alarm_hours: float = Field(default=24, gt=0)
    """How long something may wait for a person before operations are alarmed (CS-36)."""
    override_minutes: float = Field(default=60, gt=0)
    """How long a patient stays open to who broke the glass (CS-55)."""
    fallback_phone: str = ""
    """Shown to nurses when the pages are away (NW-06)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    signing_key_file: Path | None = None
    """Where the loopback authority keeps its key; made if missing."""
    otlp_endpoint: str | None = None
    """Where traces go (OTLP over http); unset: nowhere."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - called by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - called by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables first, then the files in SECRETS, if there are any."""
        files = [SecretsSettingsSource(settings_cls, SECRETS)] if SECRETS.is_dir() else []
        return (init_settings, env_settings, *files)

    @model_validator(mode="after")
    def _each_key_for_one_purpose(self) -> Self:
        rings = (self.token_keys, self.seal_keys, self.date_keys)
        keys = [ring.key(key_id) for ring in rings if ring is not None for key_id in ring.keys]
        single = (self.cursor_key, self.checkpoint_key)
        keys += [sound_key(secret) for secret in single if secret is not None]
        if len(set(keys)) != len(keys):
            raise ValueError("two keys are the same: each purpose needs one of its own")
        return self

    @model_validator(mode="after")
    def _loopback_only(self) -> Self:
        if (self.local or self.clock) and self.host not in LOOPBACK:
            raise ValueError("a driven clock and local mode listen on loopback only")
        return self


class _ServiceSettings(Settings):
    database_url: SecretStr
    region: Path


class IngestSettings(_ServiceSettings):
    token_keys: Keyring
    seal_keys: Keyring
    date_keys: Keyring


class ScreeningSettings(_ServiceSettings):
    date_keys: Keyring
    cursor_key: SecretStr


class AuthoritySettings(_ServiceSettings):
    """Of the loopback authority, which exists under `up` and `demo` only."""

    oidc_client_secret: SecretStr
    signing_key_file: Path


class NotifySettings(_ServiceSettings):
    token_keys: Keyring
    seal_keys: Keyring
    date_keys: Keyring
    cursor_key: SecretStr
    oidc_client_secret: SecretStr


S = TypeVar("S", bound=Settings)


def read(kind: type[S]) -> S:
    """The settings of this process: its variables, or files of the same names in SECRETS.

    SettingsError names each variable that is wrong, no value.
    """
    try:
        return kind()
    except (ValidationError, PydanticSettingsError) as error:
        raise SettingsError(_in_words(error)) from None


def _in_words(error: ValidationError | PydanticSettingsError) -> str:
    if isinstance(error, PydanticSettingsError):
        return f"A PASSERELLE_ variable is not readable: {error.args[0]}"
    lines = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        names = [str(part) for part in fault["loc"]]
        variable = "PASSERELLE_" + names[0].upper() if names else "PASSERELLE_*"
        lines.append(f"{variable}: {fault['msg'] if fault['type'] != 'missing' else 'is not set'}")
    return "\n".join(lines)


def inherited() -> dict[str, str]:
    """What a process started by this one needs of its environment to run at all.

    No PASSERELLE_ variable is among it: a part of the house is told its own, and no other's.
    """
    wanted = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
    said = os.environ  # noqa: TID251 - here, and nowhere else
    return {name: said[name] for name in wanted if name in said}
