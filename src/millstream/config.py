"""The configuration: flags over environment over file over defaults.

Environment variables are MILLSTREAM_ and the upper-case name; the file is `millstream.toml` in the working
directory, or what MILLSTREAM_CONFIG names.
"""

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

KIB = 1024
MIB = 1024 * KIB
DAY_S = 86_400


# In place of pydantic's own words. What is not here has words of ours, or says it well.
_WORDS = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "model_type": "must be a table",
    "missing": "is missing",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} items",
}


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line."""


class ApiKeySettings(BaseModel):
    """A static API key; `sha256` is the hash of the key, in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=128)
    sha256: SecretStr
    tenant: str = Field(default="default", min_length=1, max_length=128)
    roles: list[str] = Field(min_length=1)
    agent: str = ""
    labels: list[str] = []
    name: str = ""


class AgentCredentialSettings(BaseModel):
    """A header that servers send to the agents of a tenant at one origin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: str = Field(default="default", min_length=1, max_length=128)
    origin: str
    header: str = Field(default="authorization", max_length=128, pattern="^[A-Za-z0-9-]+$")
    value: SecretStr = Field(min_length=1, max_length=8192)

    @field_validator("origin")
    @classmethod
    def _origin(cls, origin: str) -> str:
        if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
            raise ValueError("must be scheme, host and maybe a port, such as https://agents.example.com")
        return origin

    @field_validator("value")
    @classmethod
    def _printable(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not (text.isascii() and text.isprintable()):
            raise ValueError("must be printable ASCII")
        return value


class Settings(BaseSettings):
    """All settings; sizes in bytes, times in seconds, as the names say."""

    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address that the gRPC server listens on.")
    port: int = Field(default=9090, ge=0, le=65535, description="Port of the gRPC server; 0 takes a free one.")
    database_url: SecretStr = Field(
        default=SecretStr(""), description="PostgreSQL: `postgresql://user:password@host/database`."
    )
    migrate_at_start: bool = Field(
        default=True, description="Migrate the database at start; of several servers one does it."
    )
    pool_size: int = Field(
        default=8, ge=2, le=100, description="Connections for reads and upkeep; writes have two of their own."
    )

    auth_mode: Literal["", "api_keys", "developer"] = Field(
        default="", description="Who may call; empty: `api_keys`. Without a key the server does not start."
    )
    api_keys: list[ApiKeySettings] = Field(default=[], description="Static API keys; see below.")
    proxy_token: SecretStr = Field(
        default=SecretStr(""),
        description="Secret shared with the proxy; by it the server knows that the JSON was checked.",
    )

    log_format: Literal["json", "console"] = Field(default="json", description="One JSON object a line, or for people.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="From this level on.")
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://[^/\s@]+/?)?$",
        description="Collector of traces (OTLP over gRPC), such as `http://127.0.0.1:4317`; empty: none are exported.",
    )
    trace_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Share of the traces begun here that is exported; others as their caller."
    )

    max_payload_bytes: int = Field(
        default=MIB, ge=KIB, le=8 * MIB, description="Largest payload within a request; larger ones are uploaded."
    )
    large_payload_bytes: int = Field(
        default=256 * KIB, ge=KIB, le=8 * MIB, description="Payloads of artifacts over this size are kept outside them."
    )
    max_upload_bytes: int = Field(
        default=5 * 1024 * MIB, ge=MIB, le=1024 * 1024 * MIB, description="Largest payload that is uploaded."
    )
    max_request_bytes: int = Field(default=4 * MIB, ge=KIB, le=16 * MIB, description="Largest request.")
    max_calls: int = Field(default=4096, ge=1, description="Calls served at once; then RATE_LIMITED.")
    max_calls_per_tenant: int = Field(default=3072, ge=1, description="Of them for one tenant.")
    queue_max_commands: int = Field(default=20_000, ge=1, description="Writes that may wait; then RATE_LIMITED.")
    queue_max_bytes: int = Field(default=64 * MIB, ge=MIB, description="Bytes that may wait; then RATE_LIMITED.")
    batch_max_commands: int = Field(default=500, ge=1, le=10_000, description="Most writes in one transaction.")
    batch_max_bytes: int = Field(default=8 * MIB, ge=KIB, description="Most bytes in one transaction.")
    owner_path: bool = Field(
        default=True, description="Write runs that this process keeps in memory without reading them."
    )

    lease_s: float = Field(
        default=30.0, ge=1, le=3600, description="After so long without a renewal a worker's tasks are taken back."
    )
    reconnect_grace_s: float = Field(
        default=5.0, ge=0, le=600, description="How long the tasks of a worker that lost its connection wait for it."
    )
    cancel_grace_s: float = Field(
        default=10.0, ge=0, le=3600, description="How long cancelled tasks may take to end by themselves."
    )
    max_streams: int = Field(
        default=4000, ge=1, description="Streams (exports, watches) that a server answers at once; then RATE_LIMITED."
    )
    max_streams_per_tenant: int = Field(default=2000, ge=1, description="The same for one tenant.")
    drain_delay_s: float = Field(
        default=3.0,  # Envoy asks every second, and waits for an answer for two
        ge=0,
        le=3600,
        description="How long a server that stops goes on taking calls after it said so, until proxies have noticed.",
    )
    drain_timeout_s: float = Field(
        default=10.0, ge=0, le=3600, description="How long calls in flight may take when the server stops."
    )

    idempotency_ttl_s: int = Field(
        default=DAY_S, ge=60, le=30 * DAY_S, description="How long idempotency keys are kept."
    )
    run_retention_days: int = Field(default=7, ge=1, le=3650, description="How long finished runs are kept.")
    artifact_retention_days: int = Field(default=30, ge=1, le=3650, description="How long artifacts are kept.")
    log_retention_days: int = Field(
        default=7, ge=1, le=3650, description="How long what tasks log is kept, by whole days since it was stored."
    )
    max_log_lines_per_task: int = Field(
        default=100_000, ge=1, le=10_000_000, description="Lines kept of what a task logs in all its attempts."
    )
    max_log_bytes_per_task: int = Field(
        default=16 * MIB, ge=KIB, le=1024 * MIB, description="Bytes kept of what a task logs in all its attempts."
    )
    payload_grace_s: int = Field(
        default=DAY_S,
        ge=60,
        le=365 * DAY_S,
        description="How long an uploaded payload is kept that no artifact refers to.",
    )

    watch_resume_s: int = Field(
        default=3600, ge=60, le=7 * DAY_S, description="How long after it broke off a watch can be resumed."
    )

    worker_retention_s: int = Field(
        default=DAY_S, ge=60, le=30 * DAY_S, description="How long a worker that went is listed."
    )
    agent_networks: list[str] = Field(
        default=[],
        description="Networks in which agents may be called though they are not public, such as `10.0.0.0/8`; none:"
        " in developer mode this machine.",
    )
    agent_credentials: list[AgentCredentialSettings] = Field(
        default=[], description="Headers by which agents that are called know who calls; see below."
    )
    agent_calls: int = Field(
        default=256, ge=1, le=10_000, description="Tasks for which a server calls agents (A2A, HTTP) at once."
    )
    agent_calls_per_tenant: int = Field(default=128, ge=1, le=10_000, description="Of them for one tenant.")
    agent_answer_bytes: int = Field(
        default=4 * MIB, ge=KIB, le=64 * MIB, description="Largest answer of such an agent; of a stream, all of it."
    )

    max_depth: int = Field(
        default=50,
        ge=1,
        le=1000,
        description="Longest chain of agents in a cascade, and of runs that begin each other.",
    )
    max_tasks_per_run: int = Field(default=10_000, ge=1, description="Most tasks of a cascade.")
    max_commands_per_run: int = Field(
        default=50_000,
        ge=1,
        description="Most commands of a code-first run, since it began or continued as new; then it fails.",
    )
    max_waiting_keys: int = Field(
        default=10_000, ge=1, description="Most keys that wait in gates of a cascade, or of the tenant by subscription."
    )

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text and not text.startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        return url

    @field_validator("agent_networks")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        for each in networks:
            try:
                ipaddress.ip_network(each)
            except ValueError:
                raise ValueError(f"{each!r} is no network, such as 10.0.0.0/8") from None
        return networks

    @model_validator(mode="after")
    def _closed(self) -> "Settings":
        if self.auth_mode == "developer" and not is_loopback(self.host):
            raise ValueError(f"auth_mode developer lets anyone in, so host must be loopback, not {self.host}")
        if self.auth_mode == "api_keys" and not self.api_keys:
            raise ValueError("auth_mode api_keys needs api_keys")
        if self.max_payload_bytes > self.max_request_bytes:
            raise ValueError("max_payload_bytes is over max_request_bytes")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=_file())
        return init_settings, env_settings, file

    def effective(self) -> dict[str, Any]:
        """The settings as plain values, secrets masked."""
        return self.model_dump(mode="json")


def load(**flags: Any) -> Settings:
    """The settings; flags that are None were not given. Raises ConfigError with one line for people."""
    given = {name: value for name, value in flags.items() if value is not None}
    named = os.environ.get("MILLSTREAM_CONFIG")
    if named and not Path(named).is_file():
        raise ConfigError(f"MILLSTREAM_CONFIG: there is no file {named}")
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_line, error.errors()))) from None
    except SettingsError as error:
        found = re.search(r'field "(\w+)"', str(error))
        name = found[1] if found else ""
        raise ConfigError(f"MILLSTREAM_{name.upper()}: must be JSON, as `millstream config --json` shows it") from None
    except ValueError as error:  # a file that is no TOML
        raise ConfigError(f"{_file()}: {error}".replace("\n", " ")) from None


def is_loopback(host: str) -> bool:
    """Whether the address is reached from this machine alone."""
    if host.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _file() -> Path:
    return Path(os.environ.get("MILLSTREAM_CONFIG") or "millstream.toml")


def _line(error: Any) -> str:
    """What is wrong with a setting, without its value, which may be a secret."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown(error['loc'])}"
    words = _WORDS.get(error["type"])
    text = words.format(**error.get("ctx", {})) if words else error["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _unknown(path: tuple[str | int, ...]) -> str:
    part = AgentCredentialSettings if path[0] == "agent_credentials" else ApiKeySettings
    name, known = str(path[-1]), list(Settings.model_fields if len(path) == 1 else part.model_fields)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"there is no such setting{meant or ';'} `millstream config` lists all"
