"""Uses a tokenizer once: `python -m models.tokenizing.tokenizer_trial FILE BYTES`."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

from models.errors import CannotOpen
from models.tokenizing.tokenizer_file import TokenizerFile

TEXT = "def f(x):\n    return {'a': 1.5}  # \u00e9\u4e2d\U0001f600 " + "a" * 256 + " " * 256


def main(path: Path, limit_bytes: int) -> None:
    """Raises SystemExit with the reason if the tokenizer cannot be used."""
    with suppress(ValueError, OSError):  # a system may allow no such limit
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    try:
        tokenizer = TokenizerFile.unpack(path.read_bytes()).open()
        tokens = tokenizer.encode(TEXT)
        with suppress(ValueError):  # a template may demand other messages than this one
            tokens += tokenizer.chat([{"role": "user", "content": TEXT}])
    except (CannotOpen, MemoryError) as error:
        sys.exit(str(error) or type(error).__name__)
    if tokens and not 0 <= min(tokens) <= max(tokens) < len(tokenizer.vocabulary.pieces):
        sys.exit("it makes ids that are no tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
