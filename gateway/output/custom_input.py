"""The text that a custom tool gets, out of the JSON in which the model writes it."""

from __future__ import annotations

import json
import re
from typing import Final

from picospec.gateway.grammars.json_text import decode

FIELD: Final = "input"
"""The only argument of the function that the model is shown in place of a custom tool."""

_OPENING: Final = re.compile(rf'\s*\{{\s*"{FIELD}"\s*:\s*"')
_WHOLE: Final = re.compile(
    r"""(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"""
    r"""|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+"""
)
"""The part of a JSON string that is whole characters."""


class CustomInput:
    """Reads {"input": "..."} piece by piece. Arguments of another form are the text themselves,
    so that nothing is lost."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def feed(self, piece: str) -> str:
        """Take more of the arguments, and return what there is of the text."""
        self._held += piece
        if not self._begun and (opening := _OPENING.match(self._held)):
            self._begun, self._held = True, self._held[opening.end() :]
        found = _WHOLE.match(self._held) if self._begun else None
        if found is None:
            return ""
        self._held = self._held[found.end() :]
        text: str = json.loads(f'"{found[0]}"', strict=False)
        return text

    def finish(self) -> str:
        """Return the rest: the arguments have ended."""
        if self._begun:
            return ""
        try:
            value = decode(self._held)
        except ValueError:
            return self._held
        text = value.get(FIELD) if isinstance(value, dict) else None
        return text if isinstance(text, str) else self._held
