"""Uses a tokenizer once, in a process of its own, which gets it as its input.

It exits with status 0 if that works, and else says why as its last line of errors.
"""

from __future__ import annotations

import sys
from typing import Final

from picospec.models.confined import limit_memory
from picospec.models.errors import CannotOpen
from picospec.models.tokenizing.renderer import Overrun
from picospec.models.tokenizing.tokenizer import Tokenizer
from picospec.models.tokenizing.tokenizer_file import TokenizerFile

TEXT = "def f(x):\n    return {'a': 1.5}  # \u00e9\u4e2d\U0001f600 " + "a" * 256 + " " * 256


MEMORY_BYTES: Final = 4 << 30
"""The process has no more address space; the largest tokenizers take 1 GB."""


def main() -> None:
    """Raises SystemExit with the reason if the tokenizer cannot be used."""
    limit_memory(MEMORY_BYTES)
    try:
        tokenizer = TokenizerFile.unpack(sys.stdin.buffer.read()).open()
        tokens = tokenizer.encode(TEXT)
        tokens += _chat(tokenizer)
    except (CannotOpen, MemoryError, OverflowError, Overrun) as error:
        sys.exit(str(error) or type(error).__name__)
    if tokens and not 0 <= min(tokens) <= max(tokens) < len(tokenizer.vocabulary.pieces):
        sys.exit("it makes ids that are no tokens")


def _chat(tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.chat([{"role": "user", "content": TEXT}])
    except Overrun:
        raise
    except ValueError:  # a template may demand other messages than this one
        return []


if __name__ == "__main__":
    main()
