"""Merges a client's settings into a file that has other settings too.

Files that cannot be merged without loss are left to the user: JSON with comments, YAML. The
result is read again, and must mean the old settings with the client's over them, no more.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, MutableMapping
from typing import Any

import tomlkit
import tomlkit.exceptions

from picospec.known_clients import Format


class NotMergeable(Exception):
    """The file must be changed by hand; the text gives the reason."""


def merged(format: Format, before: str, ours: str) -> str:
    """Return the text of a file with our settings merged into it. Raises NotMergeable."""
    if not before.strip() or before == ours:
        return ours
    if format == "json":
        return _merged_json(before, ours)
    if format == "toml":
        return _merged_toml(before, ours)
    raise NotMergeable(f"it is {format.upper()}, which would lose its comments")


def _merged_json(before: str, ours: str) -> str:
    try:
        settings = json.loads(before, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise NotMergeable(f"it is no plain JSON ({error}); it may have comments") from error
    our_table = json.loads(ours)
    if type(settings) is not type(our_table):
        raise NotMergeable("it holds something else than this client's settings")
    indent = re.search(r"^([ \t]+)\S", before, re.MULTILINE)
    text = json.dumps(
        _over(settings, our_table), indent=indent[1] if indent else 2, ensure_ascii=False
    )
    line_end = "\r\n" if "\r\n" in before else "\n"
    return text.replace("\n", line_end) + before[len(before.rstrip()) :]


def _merged_toml(before: str, ours: str) -> str:
    try:
        settings, expected = tomlkit.parse(before), tomllib.loads(before)
        our_table = tomllib.loads(ours)
        _set(settings, our_table)
        after = settings.as_string()
        if tomllib.loads(after) != _over(expected, our_table):
            raise NotMergeable("its tables are in an order that cannot be kept")
    except (tomlkit.exceptions.TOMLKitError, tomllib.TOMLDecodeError, TypeError) as error:
        raise NotMergeable(f"it is no TOML that can be added to: {error}") from error
    return after


def _set(table: MutableMapping[str, Any], our_values: Mapping[str, object]) -> None:
    for name, value in our_values.items():
        if isinstance(value, Mapping) and isinstance(table.get(name), Mapping):
            _set(table[name], value)
        else:
            table[name] = value


def _over(theirs: object, ours: object) -> object:
    """Return settings with ours over them. In lists, items of the same `name` are replaced."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return {**theirs, **{k: _over(theirs.get(k), ours[k]) for k in ours}}
    if isinstance(theirs, list) and isinstance(ours, list):
        names = [each["name"] for each in ours]
        kept = [e for e in theirs if not isinstance(e, Mapping) or e.get("name") not in names]
        return kept + ours
    return ours


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is there twice")
    return table
