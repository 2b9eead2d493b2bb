"""JSON as text: strict where it is read, and unescaped where it is written."""

from __future__ import annotations

import json
from typing import NoReturn


def decode(text: str) -> object:
    """Return the value of a JSON text. Raises ValueError, for NaN and for deep nesting too."""
    try:
        return json.loads(text, parse_constant=_reject)
    except RecursionError as error:
        raise ValueError("the value is nested too deeply") from error


def encode(value: object) -> str:
    """Return a value as JSON. Raises ValueError or TypeError for what JSON cannot express."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
