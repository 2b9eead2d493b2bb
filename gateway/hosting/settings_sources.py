"""Where settings come from: the command line, the environment, a TOML file, the defaults.

Each of these wins over those after it. Secrets come from the environment alone, because files
get copied and committed: a file that holds one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

S = TypeVar("S", bound=BaseSettings)


def load(
    kind: type[S], path: Path | None, values: Mapping[str, Any], secrets: Mapping[str, str]
) -> S:
    """Return the settings. Raises pydantic.ValidationError, OSError, or ValueError for TOML.

    values: these win over environment and file; tables are nested as in the file. secrets: maps
    each field that no file may hold to the variable that holds it.
    """

    class Loaded(kind):  # type: ignore[valid-type,misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, _file(settings_cls, path, secrets)

    loaded: S = Loaded(**values)
    return loaded


def keys(listed: str) -> tuple[SecretStr, ...]:
    """Read comma-separated keys, without the blank ones."""
    return tuple(SecretStr(key.strip()) for key in listed.split(",") if key.strip())


def as_environment(service: str, settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the variables that `service` reads; all but text is JSON."""
    return {
        f"PICOSPEC_{service}__{name.upper()}": value
        if isinstance(value, str)
        else json.dumps(value)
        for name, value in settings.items()
    }


def _file(
    settings_cls: type[BaseSettings], path: Path | None, secrets: Mapping[str, str]
) -> TomlConfigSettingsSource:
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"there is no settings file {path}")
    source = TomlConfigSettingsSource(settings_cls, toml_file=path)
    for field, variable in secrets.items():
        if field in source.toml_data:
            raise ValueError(f"{path}: keep {field} out of files; set {variable}")
    return source
