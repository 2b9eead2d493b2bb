"""Ends an answer by its lines: at a smaller indentation, or after a time.

Editors ask for these limits: a line that is less indented than the line at the cursor belongs
to the text that follows, and a late suggestion is of no use. The limit of time counts from
the first token, and applies only once there is a whole line to show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from msgspec.structs import replace

from gateway.output.stream import ChoiceStream

_LINE: Final = re.compile(r"\n([ \t]*)(?=[^ \t])")
_OPEN_LINE: Final = re.compile(r"\n[ \t]*\Z")


class LineLimits:
    """Decides what may be shown of a text that comes piece by piece.

    indent: a line after the first that begins with fewer spaces and tabs ends the text before
    it; so does an empty line. max_s: seconds from the first piece; 0 for no limit.
    """

    def __init__(self, *, indent: int, max_s: float) -> None:
        self._indent = indent
        self._max_s = max_s
        self._ends_s: float | None = None
        self._withheld = ""
        self._has_line = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether the whole text ends with it."""
        text, self._withheld = self._withheld + text, ""
        if self._indent:
            for line in _LINE.finditer(text):
                if len(line[1]) < self._indent:
                    return text[: line.start()], True
            if begun := _OPEN_LINE.search(text):
                text, self._withheld = text[: begun.start()], begun[0]
        self._has_line = self._has_line or "\n" in text
        return text, False

    def is_late(self, now_s: float) -> bool:
        """Return True if the time is up and a whole line was fed."""
        if self._ends_s is None:
            self._ends_s = now_s + self._max_s
        return self._has_line and self._max_s > 0 and now_s > self._ends_s

    def finish(self) -> str:
        """Return the withheld rest of a text that has ended by itself."""
        return self._withheld


async def limited(
    stream: ChoiceStream, limits: LineLimits, clock: Callable[[], float]
) -> ChoiceStream:
    """Yield a choice up to one of its limits, at which it finishes with "length"."""
    async with aclosing(stream):
        async for index, delta in stream:
            text, ends = limits.feed(delta.text)
            if ends or delta.finish is not None or limits.is_late(clock()):
                break
            yield index, replace(delta, text=text)
        else:
            return
    if ends or delta.finish is None:
        yield index, replace(delta, text=text, finish="length")
    else:
        yield index, replace(delta, text=text + limits.finish())
