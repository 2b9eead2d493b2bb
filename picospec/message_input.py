"""Reads the user's messages: one line, or several between lines of three quotation marks.

On a terminal, lines can be edited, and those of earlier chats come back with the arrow keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

QUOTES: Final = '"""'
_BOLD_CYAN: Final = "\001\x1b[1;36m\002{}\001\x1b[0m\002"
"""The first and last byte of each mark tell readline which characters take no room."""


def message_reader(history: Path) -> Callable[[], str]:
    """Return a function that reads a message from standard input, or raises EOFError."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        return lambda: read_message(input)
    try:
        import readline
    except ImportError:
        return lambda: read_message(input)
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(1000)

    def read() -> str:
        message = read_message(lambda prompt: input(_BOLD_CYAN.format(prompt)))
        with suppress(OSError):  # a chat goes on without a history
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(0o600)
            readline.write_history_file(history)
        return message

    return read


def read_message(read_line: Callable[[str], str]) -> str:
    """Return the next message. read_line: takes a prompt, returns a line without its end."""
    line = read_line("> ")
    if not line.startswith(QUOTES):
        return line
    lines = [line.removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(read_line(". "))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")
