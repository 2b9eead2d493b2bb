"""Keeps the tokenizers that verifiers sent, by digest. Each is tried out before it is kept.

A tokenizer comes from another machine, and the libraries that open it are not written for
hostile files. So it is first opened in a process of its own, with limits of time and memory;
one that fails there is never opened here. If the disk is full or not writable, tokenizers are
not kept, but still work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.system import limit_memory
from local_models.confined import command, environment
from local_models.digests import tokenizer_name
from local_models.errors import CannotOpen
from local_models.renderer import Overrun
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_file import TokenizerFile

TRIAL_S: Final = 60.0
"""A tokenizer may take this long to open and use once; the largest take 10 s on a slow core."""

MAX_KEPT: Final = 8
"""This many tokenizers, of some megabytes each, are kept on disk: the most recently used
ones."""


class TokenizerCache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, digest: str) -> Tokenizer | None:
        """Open the kept tokenizer with this digest; None if none is kept. Raises CannotOpen."""
        path = self._path(digest)
        try:
            file = TokenizerFile.unpack(path.read_bytes())
        except (OSError, CannotOpen):
            return None
        if file.digest != digest:
            return None
        with suppress(OSError):
            os.utime(path)  # marks it as used now
        return file.open()

    def keep(self, digest: str, packed: bytes) -> Tokenizer:
        """Try a tokenizer out, keep it if the disk has room, and open it. If it raises
        CannotOpen, it keeps nothing."""
        path = self._path(digest)
        file = TokenizerFile.unpack(packed)
        if file.digest != digest:
            raise CannotOpen(f"the tokenizer has the digest {file.digest}, not {digest}")
        _try_out(packed)
        with suppress(OSError):
            self._write(path, packed)
        return file.open()

    def _path(self, digest: str) -> Path:
        try:
            return self._folder / tokenizer_name(digest)
        except ValueError as error:
            raise CannotOpen(str(error)) from error

    def _write(self, path: Path, packed: bytes) -> None:
        """Write a file atomically, and remove the least recently used ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(packed)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        newest_first = sorted(self._folder.iterdir(), key=_used_at, reverse=True)
        for old in newest_first[MAX_KEPT:]:
            old.unlink(missing_ok=True)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0


def _try_out(packed: bytes) -> None:
    try:
        result = subprocess.run(
            command("local_models.tokenizer_cache"),
            input=packed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TRIAL_S,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise CannotOpen(f"the tokenizer takes more than {TRIAL_S:g} s to open") from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"status {result.returncode}"
        raise CannotOpen(f"the tokenizer cannot be used: {reason}")


TEXT: Final = (
    "def f(x):\n    return {'a': 1.5}  # \u00e9\u4e2d\U0001f600 " + "a" * 256 + " " * 256
)

MEMORY_BYTES: Final = 4 << 30
"""The process has at most this address space; the largest tokenizers take 1 GB."""


def main() -> None:
    """Use the tokenizer in the input once, in a process of its own. Raises SystemExit with a
    reason if that fails."""
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
    except ValueError:  # a template may require other messages
        return []


if __name__ == "__main__":
    main()
