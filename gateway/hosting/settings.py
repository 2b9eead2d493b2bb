"""Defines and loads the settings of every service.

They come from the command line, the environment, a TOML file and the defaults, each of which
wins over those after it. Secrets come from the environment alone, because files get copied and
committed: a file that holds a secret is an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, ClassVar, Final, NoReturn, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from gateway.hosting.logs import LogFormat
from gateway.keys import KeyLimits, digest_of
from gateway.output.output_format import FormatName
from gateway.tenants import SALT_SECRET
from gateway.tracing import check_installed

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
    """This TOML file has more keys, with names and limits. A change of
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

    log_requests: bool = True
    """If false, the log has no line for a request that succeeds. Requests that only read, such
    as those of the page, have none in any case."""

    tool_format: FormatName | None = None
    """The model writes tool calls in this format; None: the chat template tells which."""

    max_choices: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 16
    """One request may ask for at most this many choices: its prompts times `n`. An edge lets a
    verifier in vLLM answer for more, up to 128, if that one's own `max_choices` allows it."""

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


VARIABLES: Final[Mapping[str, str]] = {
    "PICOSPEC_API_KEYS": "The keys that clients of a service must show, separated by commas. A"
    " command shows an edge the first one.",
    "PICOSPEC_VERIFIER_KEY": "The key that an edge shows its verifiers.",
    "PICOSPEC_PROXY_KEY": "The key that an edge shows at `proxy.url`.",
    "PICOSPEC_FALLBACK_KEY": "The key that an edge shows at `fallback_server.url`.",
    "PICOSPEC_CACHE": "The folder of models, tokenizers and wheels; `~/.cache/picospec`.",
    "PICOSPEC_CONFIG_DIR": "The folder of the settings files, the catalogue of your own models"
    " and the copies of `picospec connect`; `~/.config/picospec`.",
    "PICOSPEC_MODEL_SOURCES": "Where models are looked for, in order. By default `folder,hub`;"
    " `wheels` is the package index.",
    "PICOSPEC_MODEL_FOLDER": "The folder of GGUF files that the source `folder` has.",
    "PICOSPEC_VERIFIER_CONFIG": "The settings file of a verifier that runs in `vllm serve`.",
    SALT_SECRET: "It tells the prompts of one key from those of others, and is random for each"
    " start. Verifiers behind one address need the same.",
    "PICOSPEC_VLLM_SOCKET": "Between the processes of vLLM; not to be set.",
    "EDGE_PORT": "The port of the edge, for commands and the edge itself. An address, as"
    " Kubernetes sets for a Service named `edge`, is ignored.",
    "VERIFIER_PORT": "The port of the verifier, likewise.",
}
"""Maps each variable that is no field of a service's settings to what it sets."""

_OF_SERVICES: Final = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|[A-Z0-9]_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$"
)
"""Kubernetes names variables so, after Services of the same namespace."""

_PORTS: Final = ("EDGE_PORT", "VERIFIER_PORT")


def drop_links(environ: MutableMapping[str, str]) -> None:
    """Remove the variables of ports that a Kubernetes Service or a Docker link of that name has
    set, such as tcp://10.0.0.7:8000: they set no port of ours."""
    for name in _PORTS:
        if "://" in environ.get(name, ""):
            del environ[name]


_NEAR: Final = 0.9
"""Names this much alike are taken for one another (difflib's ratio)."""


def _has(field: FieldInfo | None, part: str) -> bool:
    """Return True if a field is a table in which a variable may set this part."""
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    tables = [getattr(each, "model_fields", ()) for each in kinds]
    is_free = any(get_origin(each) is dict for each in kinds)
    return is_free or any(part.partition("__")[0] in names for names in tables)


class WrongSettings(ValueError):
    """Settings are wrong. Each line of the text names one, such as `edge.slots`, and says what
    it may be; no line has a value, which might be a secret."""


def wrong(error: Exception) -> NoReturn:
    """End a service that has no settings to start with, with the status of a wrong command."""
    sys.stderr.write(f"{error}\n")
    raise SystemExit(2)


def _lines(kind: type[ServiceSettings], error: ValidationError) -> str:
    """Return a line for each mistake. An error about a whole that follows from one about its
    part says nothing more."""
    errors = error.errors(include_input=False, include_url=False)
    places = [each["loc"] for each in errors]
    lines = []
    for place, each in zip(places, errors, strict=True):
        if any(other[: len(place)] == place != other for other in places):
            continue
        message = each["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        if each["type"] == "extra_forbidden":
            near = get_close_matches(str(place[-1]), _names(kind, place), 1)
            message = f"there is no such setting{f'; is it {near[0]}?' if near else ''}"
        lines.append(f"{'.'.join(map(str, (kind.service(), *place)))}: {message}")
    return "\n".join(dict.fromkeys(lines))


def _names(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the names of the settings in the table in which `place` is."""
    if not place[:-1]:
        return list(kind.model_fields)
    field = kind.model_fields.get(str(place[0]))
    of = [] if field is None else [field.annotation, *get_args(field.annotation)]
    tables = [each for each in of if isinstance(each, type) and issubclass(each, BaseModel)]
    return [name for table in tables for name in _names(table, place[1:])]


class ServiceSettings(GatewaySettings, BaseSettings):
    """Holds the settings of every service. A service adds its own fields and `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")
    secrets: ClassVar[dict[str, str]] = {"api_keys": "PICOSPEC_API_KEYS"}
    """Maps fields of keys, which no file may hold, to variables that list them with commas."""

    host: str = "127.0.0.1"
    """The service listens at this address. Beyond this machine it needs keys."""

    drain_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 15.0
    """Running work may take this many seconds after SIGTERM; new work is rejected meanwhile."""

    allow_anonymous: bool = False
    """True if a service without keys may listen beyond this machine."""

    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """If no key is needed, `Host` may also have these names, without a port. `Host` is checked
    if the service listens on loopback, or if this is set."""

    tls: TlsSettings | None = None
    """If set, the service serves HTTPS."""

    log_format: LogFormat = "console"
    """The form of the lines of the log."""

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
    def service(cls) -> str:
        """Return the name of the service that has these settings, such as "edge"."""
        prefix = str(cls.model_config.get("env_prefix"))
        return prefix.removeprefix("PICOSPEC_").strip("_").lower() or "settings"

    @classmethod
    def check_names(cls, environ: Mapping[str, str]) -> None:
        """Raise WrongSettings for a variable that looks like one of ours and sets nothing: a
        key that is not read would leave a service open. Names of the other service, and those
        that Kubernetes makes of Services, are no error."""
        prefix = str(cls.model_config.get("env_prefix"))
        fields = {f"{prefix}{name}".upper(): name for name in cls.model_fields}
        known = {*cls.secrets.values(), *VARIABLES} | fields.keys()
        for name in sorted(environ):
            ours = name.upper()
            field, _, part = ours.removeprefix(prefix).lower().partition("__")
            is_own = bool(prefix) and ours.startswith(prefix)
            if not ours.startswith("PICOSPEC_") or _OF_SERVICES.search(ours):
                continue
            if field in cls.secrets and is_own:
                raise WrongSettings(f"{name} sets nothing: keys are in {cls.secrets[field]}")
            if ours in known or (is_own and part and _has(cls.model_fields.get(field), part)):
                continue
            near = get_close_matches(ours, known, 1, _NEAR)
            if is_own or near:
                hint = f"; is it {near[0]}?" if near else ""
                raise WrongSettings(f"{name} sets nothing{hint}")

    @classmethod
    def load(
        cls, path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
    ) -> Self:
        """Return the settings. Raises WrongSettings, or OSError for the file.

        overrides: win over environment and file; tables are nested as in the file.
        """
        cls.check_names(environ)
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
                    raise WrongSettings(f"{path}: keep {field} out of files; set {variable}")
                return given["init_settings"], given["env_settings"], file

        keys = {field: _keys(environ.get(name, "")) for field, name in cls.secrets.items()}
        try:
            loaded: Self = Loaded(**{**overrides, **keys})
        except ValidationError as error:
            raise WrongSettings(_lines(cls, error)) from None
        except SettingsError as error:  # its text alone has the name of the field
            name = str(error).partition('field "')[2].partition('"')[0]
            variable = f"{cls.model_config.get('env_prefix')}{name}".upper()
            reason = f'{variable} is no JSON, such as ["a", "b"] or {{"a": 1}}'
            raise WrongSettings(f"{cls.service()}.{name}: {reason}") from None
        except TOMLDecodeError as error:
            raise WrongSettings(f"{path}: {error}") from None
        return loaded


def _keys(listed: str) -> tuple[SecretStr, ...]:
    return tuple(SecretStr(key.strip()) for key in listed.split(",") if key.strip())


class ServerSettings(ServiceSettings):
    """Adds the settings of a service that gateway.hosting.server serves."""

    port: Port
    """The service listens at this port."""

    stop_timeout_s: Annotated[int, Field(ge=1, le=600)] = 10
    """A worker that has not stopped this many seconds after draining is killed."""


def as_environment(service: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the variables that `service` reads; values except texts are JSON."""
    texts = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in settings.items())
    return {f"PICOSPEC_{service}__{name.upper()}": text for name, text in texts}
