"""Whether the file of keys has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECK_S: Final = 1.0
"""Time between two looks at the file, in seconds: how long a key that was taken away still
works. A look takes microseconds."""


class KeysFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        self._looked_at = 0.0

    def has_changed(self, now: float) -> bool:
        """Return whether there is another version since the last that was seen, at most once in
        CHECK_S. now: a monotonic clock's time, in seconds."""
        if now - self._looked_at < CHECK_S:
            return False
        self._looked_at = now
        before, self._version = self._version, _version(self._path)
        return self._version != before


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return what differs when the file was written or replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
