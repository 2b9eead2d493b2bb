"""Defines and loads the settings of every service.

They come from the command line, the environment, a TOML file and the defaults, each of which
wins over those after it. Secrets come from the environment alone, because files get copied and
committed: a file that holds a secret is an error.
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
"""`max_choices` is at most this: each choice is a session at the verifier."""


class Table(BaseModel):
    """Holds settings that have a table of their own in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySettings(Table):
    """Holds the settings of the OpenAI API, which are part of each service's settings."""

    api_keys: tuple[SecretStr, ...] = ()
    """Each of these keys opens every path; the page and /health, /ready, /metrics,
    /openapi.json and /docs need none. Without keys, here and in `keys_file`, all are open."""

    keys_file: Path | None = None
    """This TOML file has more keys, with names and limits (gateway.tenants.keys). A change of
    the file takes effect within a second. A file without keys admits nobody."""

    key_limits: KeyLimits = KeyLimits()
    """A key without limits of its own has these; without any keys, all clients share them."""

    share_prefixes: bool = False
    """True if all keys share what a model has read: a prompt that begins like one of another
    key is then read sooner, which reveals that somebody has asked it."""

    body_limit_bytes: Annotated[int, Field(ge=1024)] | None = None
    """A larger request body gets a 413. Whatever the setting, so does a body of more than 1 MiB
    that has more than 32 bytes for each token of the context."""

    model_aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Clients may also ask for the model by these names."""

    accept_any_model: bool = False
    """True if any name means the model: agents name a model of their maker for small tasks. An
    answer names the model that it is from."""

    cors_origins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Pages of these origins, such as "https://chat.example", may call this service from a
    browser; "*" stands for all."""

    keep_alive_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """A stream that has shown nothing yet gets a comment every `keep_alive_s` seconds."""

    tool_format: FormatName | None = None
    """The model writes tool calls in this format; None: the chat template tells which."""

    max_choices: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 16
    """One request may ask for at most this many choices: its prompts times `n`."""

    @property
    def separates_prefixes(self) -> bool:
        """True if a prefix that was read for one key must not serve another key, if any."""
        several = self.keys_file is not None or len(self.api_keys) > 1
        return several and not self.share_prefixes

    @property
    def key_digests(self) -> list[bytes]:
        """Return the SHA-256 digests of `api_keys`."""
        return [digest_of(key.get_secret_value().encode()) for key in self.api_keys]


class TlsSettings(Table):
    certificate: Path
    """This PEM file has the whole chain of certificates."""

    key: Path
    """This PEM file has the private key, as PKCS#8."""

    client_ca: Path | None = None
    """If set, clients must show a certificate of the authority in this PEM file on any path."""


class ServiceSettings(GatewaySettings, BaseSettings):
    """Holds the settings of every service. A service adds its own fields and `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")
    secrets: ClassVar[dict[str, str]] = {"api_keys": "PICOSPEC_API_KEYS"}
    """Maps fields of keys, which no file may hold, to variables that list them with commas."""

    host: str = "127.0.0.1"
    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 15.0
    """Running work may take this many seconds after SIGTERM; new work is rejected meanwhile."""

    allow_anonymous: bool = False
    """True if a service without keys may listen beyond this machine."""

    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """If no key is needed, `Host` may also have these names, without a port. `Host` is checked
    if the service listens on loopback, or if this is set."""

    tls: TlsSettings | None = None
    log_format: LogFormat = "console"
    tracing: bool = False
    """True if traces are sent by OpenTelemetry, which needs the extra `otel`. The standard
    variables OTEL_* set the destination, and what is traced."""

    @field_validator("tracing")
    @classmethod
    def _is_installed(cls, wanted: bool) -> bool:
        if wanted:
            check_installed()
        return wanted

    @property
    def needs_key(self) -> bool:
        """True if clients must show a key."""
        return bool(self.api_keys) or self.keys_file is not None

    @classmethod
    def load(
        cls, path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
    ) -> Self:
        """Return the settings. Raises pydantic.ValidationError, OSError, ValueError (TOML).

        overrides: win over environment and file; tables are nested as in the file.
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
    """Adds the settings of a service that gateway.hosting.serving serves."""

    port: Port
    stop_timeout_s: Annotated[int, Field(ge=1, le=600)] = 10
    """A worker that has not stopped this many seconds after draining is killed."""


def as_environment(service: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the variables that `service` reads; values except texts are JSON."""
    texts = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in settings.items())
    return {f"PICOSPEC_{service}__{name.upper()}": text for name, text in texts}
