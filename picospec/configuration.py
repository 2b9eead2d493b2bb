"""Finds the default settings files, and implements `picospec config show`."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer import Option

from edge_agent.settings import EdgeSettings
from local_models.user_catalogue import user_file
from picospec.command_parts import fail
from verifier.settings import VerifierSettings

_HERE: Final = Path(__file__).parent
_CONFIGS: Final = next(
    filter(Path.is_dir, (_HERE / "configs", _HERE.parent / "configs")), _HERE / "configs"
)
"""The settings files of the wheel, or of a clone."""

config_app = typer.Typer(help="Settings of the services.", no_args_is_help=True)

SettingsType = type[EdgeSettings] | type[VerifierSettings]

SERVICES: Final[dict[str, SettingsType]] = {"edge": EdgeSettings, "verifier": VerifierSettings}


def default_file(service: str, environ: Mapping[str, str]) -> Path:
    """Return the settings file of a service that is started without one."""
    return user_file(environ).with_name(f"{service}.toml")


def with_default_file(
    service: str, arguments: Sequence[str], environ: Mapping[str, str]
) -> list[str]:
    """Return arguments of a service, with the default file if it exists and none is given."""
    file = default_file(service, environ)
    named = any(each.partition("=")[0] == "--config" for each in arguments)
    if named or not file.is_file():
        return list(arguments)
    return ["--config", str(file), *arguments]


def loaded(
    service: str, environ: Mapping[str, str], config: Path | None = None
) -> EdgeSettings | VerifierSettings:
    """Return the settings that a service started here would have. config: replaces the default
    file. Raises WrongSettings, OSError."""
    default = default_file(service, environ)
    file = config or (default if default.is_file() else None)
    port = environ.get(f"{service.upper()}_PORT")
    return SERVICES[service].load(file, environ, {"port": port} if port else {})


@config_app.command()
def show(
    service: Annotated[Literal["edge", "verifier"], typer.Argument()] = "edge",
    config: Annotated[Path | None, Option(help="A file in place of the default one.")] = None,
) -> None:
    """Show each setting, and where its value is from. Keys are counted, and not shown."""
    default = default_file(service, os.environ)
    file = config or (default if default.is_file() else None)
    try:
        settings = loaded(service, os.environ, file)
    except (ValueError, OSError) as error:
        fail(error)
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in _flat(settings):
        origin = origin_of(type(settings), name, file, os.environ)
        style = "dim" if origin == "default" else ""
        table.add_row(name, escape(_shown(value)), escape(origin), style=style)
    Console().print(table)
    Console(stderr=True).print(f"the default file is {default}", style="dim", highlight=False)


@config_app.command()
def example(name: Literal["edge", "verifier", "local", "local-vllm"]) -> None:
    """Print a settings file to begin yours with: each setting, its default and its meaning."""
    typer.echo((_CONFIGS / f"{name}.toml").read_text("utf-8"), nl=False)


def origin_of(
    kind: SettingsType, name: str, file: Path | None, environ: Mapping[str, str]
) -> str:
    """Return what sets a field, "a.b" in a table: a variable, the file or "default"."""
    variables = {variable.upper(): variable for variable in environ}
    prefix, parts = str(kind.model_config.get("env_prefix")), name.split(".")
    if name in kind.secrets:
        return kind.secrets[name] if environ.get(kind.secrets[name]) else "default"
    if name == "port" and (own := prefix.split("_")[1] + "_PORT") in environ:
        return own
    for count in range(len(parts), 0, -1):
        variable = variables.get((prefix + "__".join(parts[:count])).upper())
        rest = parts[count:]
        if variable and (not rest or _within(json.loads(environ[variable]), rest)):
            return variable
    read: object = tomllib.loads(file.read_text("utf-8")) if file else {}
    return str(file) if _within(read, parts) else "default"


def _within(table: object, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True


def _flat(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of settings and of the tables in them, with their values."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: object) -> str:
    if isinstance(value, tuple) and any(isinstance(each, SecretStr) for each in value):
        return f"{len(value)} of them"
    if value is None:
        return "none"
    return json.dumps(value, default=str, ensure_ascii=False)
