"""Tenants whose keys are "key of" and their name: their file, and what their requests show."""

from __future__ import annotations

import hashlib
from pathlib import Path

Headers = dict[str, str]
ANN, BEN = ({"authorization": f"Bearer key of {name}"} for name in ("ann", "ben"))


class Clock:
    """The test sets its time, in seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def table(name: str, key: str = "", more: str = "") -> str:
    """Return the entry of a tenant. more: its limits, a line each."""
    digest = hashlib.sha256((key or f"key of {name}").encode()).hexdigest()
    return f'[{name}]\nsha256 = "{digest}"\n{more}\n'


def keys_toml(file: Path, *names: str) -> Path:
    file.write_text("".join(map(table, names)))
    return file
