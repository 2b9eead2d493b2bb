"""Settings of every service, and where they come from: the command line, the environment, a
TOML file, the defaults.

Each of these wins over those after it. Secrets come from the environment alone, because files
get copied and committed: a file that holds one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from picospec.gateway.hosting.logs import LogFormat
from picospec.gateway.output.style import FormatName
from picospec.gateway.tenants.keys import KeyLimits, digest_of
from picospec.gateway.tracing import check_installed

Port = Annotated[int, Field(ge=1, le=65535)]

MAX_CHOICES: Final = 128
"""The most that `max_choices` may be: each choice is a session at the verifier."""


class Table(BaseModel):
    """Settings that have a table of their own in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(Table):
    """Settings of the OpenAI API, which each service has as a part of its own."""

    api_keys: tuple[SecretStr, ...] = ()
    """Each of these keys opens every path; the page and /health, /ready, /metrics,
    /openapi.json and /docs need none. Without keys, here and in `keys_file`, all are open."""

    keys_file: Path | None = None
    """A TOML file of more keys, with names and limits (gateway.tenants.keys); a change of it
    counts within a second. A file without keys lets nobody in."""

    key_limits: KeyLimits = KeyLimits()
    """What a key without limits of its own may use; without any keys, all clients together."""

    share_prefixes: bool = False
    """Whether what a model has read for one key is kept for all: a prompt that begins like one
    of another key is then read sooner, which shows that somebody has asked it."""

    body_limit_bytes: Annotated[int, Field(ge=1024)] | None = None
    """A larger request body gets a 413. So does, whatever is set here, one of more than 1 MiB
    and of more than 32 bytes for each token of the context."""

    model_aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Other names by which clients may ask for the model."""

    accept_any_model: bool = False
    """Whether any name means the model: agents name one of their maker's for small work. An
    answer says which model it is from."""

    cors_origins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Origins whose pages may call this service from a browser, such as
    "https://chat.example"; "*" stands for all."""

    keep_alive_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """A stream in which nothing was shown yet gets a comment this often, in seconds."""

    tool_format: FormatName | None = None
    """How the model writes tool calls, if its chat template does not tell it rightly."""

    max_choices: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 16
    """Limit of the choices that one request may ask for: its prompts times `n`."""

    @property
    def separates_prefixes(self) -> bool:
        """Whether what was read for one key is to be of no use to another; with one key, or
        none, there is no other."""
        several = self.keys_file is not None or len(self.api_keys) > 1
        return several and not self.share_prefixes

    @property
    def key_digests(self) -> list[bytes]:
        """The hashes of `api_keys`."""
        return [digest_of(key.get_secret_value().encode()) for key in self.api_keys]


class TlsSettings(Table):
    certificate: Path
    """PEM, the whole chain."""

    key: Path
    """PEM, PKCS#8."""

    client_ca: Path | None = None
    """PEM of an authority. Whoever connects must show a certificate of it, for every path."""


class ServiceSettings(GatewaySettings, BaseSettings):
    """What every service can set. A service adds its own fields and its `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")
    secrets: ClassVar[dict[str, str]] = {"api_keys": "PICOSPEC_API_KEYS"}
    """Fields of keys that no file may hold, and the variables that list them, with commas."""

    host: str = "127.0.0.1"
    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 15.0
    """How long, after SIGTERM, what runs may take to finish; new work is rejected meanwhile."""

    allow_anonymous: bool = False
    """Whether a service without keys may listen beyond this machine."""

    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """More names of this service, without a port, that `Host` may have where no key is needed;
    it is checked if the service listens on loopback, or if this is set."""

    tls: TlsSettings | None = None
    log_format: LogFormat = "console"
    tracing: bool = False
    """Whether traces are sent by OpenTelemetry, which needs the extra `otel`. The standard
    variables OTEL_* say where to, and what is traced."""

    @field_validator("tracing")
    @classmethod
    def _is_installed(cls, wanted: bool) -> bool:
        if wanted:
            check_installed()
        return wanted

    @property
    def needs_key(self) -> bool:
        """Whether clients must show a key."""
        return bool(self.api_keys) or self.keys_file is not None

    @classmethod
    def load(
        cls, path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
    ) -> Self:
        """Return the settings. Raises pydantic.ValidationError, OSError, ValueError (TOML).

        overrides: these win over environment and file; tables are nested as in the file.
        """
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no settings file {path}")

        class Loaded(cls):  # type: ignore[valid-type,misc]
            @classmethod
            def settings_customise_sources(
                cls, *_: type[BaseSettings], **given: PydanticBaseSettingsSource
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                file = TomlConfigSettingsSource(cls, toml_file=path)
                for field in cls.secrets.keys() & file.toml_data.keys():
                    variable = cls.secrets[field]
                    raise ValueError(f"{path}: keep {field} out of files; set {variable}")
                return given["init_settings"], given["env_settings"], file

        keys = {field: _keys(environ.get(name, "")) for field, name in cls.secrets.items()}
        loaded: Self = Loaded(**{**overrides, **keys})
        return loaded


def _keys(listed: str) -> tuple[SecretStr, ...]:
    return tuple(SecretStr(key.strip()) for key in listed.split(",") if key.strip())


class ServerSettings(ServiceSettings):
    """What a service can set besides, where gateway.hosting.serving serves it."""

    port: Port
    stop_timeout_s: Annotated[int, Field(ge=1, le=600)] = 10
    """A worker that has not stopped so long after draining is killed."""


def as_environment(service: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the variables that `service` reads; all but text is JSON."""
    texts = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in settings.items())
    return {f"PICOSPEC_{service}__{name.upper()}": text for name, text in texts}
