"""Where settings come from: the command line, the environment, a TOML file, the defaults.

The first is the strongest. Secrets come from the environment and from nowhere else: a file that
holds one is refused.
"""

from __future__ import annotations

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

    values: what outweighs environment and file, nested as the file is. secrets: the fields that
    no file may hold, and the variables that hold them.
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
    """Read comma-separated keys; blanks are none."""
    return tuple(SecretStr(key.strip()) for key in listed.split(",") if key.strip())


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
