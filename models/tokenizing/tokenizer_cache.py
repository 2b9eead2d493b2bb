"""Keeps the tokenizers that verifiers sent, by digest. Each was tried out before it was kept.

A tokenizer comes from another machine, and the libraries that open it are not written for
hostile files. So the first opening happens in a process of its own, within limits of time and
memory; what fails there is never opened here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from models.digests import tokenizer_name
from models.errors import CannotOpen
from models.tokenizing.tokenizer import Tokenizer
from models.tokenizing.tokenizer_file import TokenizerFile

TRIAL_S: Final = 60.0
"""Most seconds that a tokenizer may take to be opened and used once: the largest take 10 s on
a slow core."""

TRIAL_BYTES: Final = 4 << 30
"""Most address space of the process that tries it; the largest tokenizers take 1 GB."""


class TokenizerCache:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, digest: str) -> Tokenizer | None:
        """Open the tokenizer of that digest, if it is kept. Raises CannotOpen."""
        path = self._path(digest)
        if not path.is_file():
            return None
        found = TokenizerFile.unpack(path.read_bytes())
        return found.open() if found.digest == digest else None

    def keep(self, digest: str, packed: bytes) -> Tokenizer:
        """Try a tokenizer out, keep and open it. Raises CannotOpen, and then keeps nothing."""
        found = TokenizerFile.unpack(packed)
        if found.digest != digest:
            raise CannotOpen(f"the tokenizer has the digest {found.digest}, not {digest}")
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / f"{digest}.{os.getpid()}"
        try:
            fresh.write_bytes(packed)
            _try_out(fresh)
            fresh.replace(self._folder / digest)
        finally:
            fresh.unlink(missing_ok=True)
        return found.open()

    def _path(self, digest: str) -> Path:
        try:
            return self._folder / tokenizer_name(digest)
        except ValueError as error:
            raise CannotOpen(str(error)) from error


def _try_out(path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "models.tokenizing.tokenizer_trial",
        str(path),
        str(TRIAL_BYTES),
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S)
    except subprocess.TimeoutExpired:
        raise CannotOpen(f"the tokenizer takes more than {TRIAL_S:g} s to open") from None
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"status {result.returncode}"]
        raise CannotOpen(f"the tokenizer cannot be used: {reason[0]}")
