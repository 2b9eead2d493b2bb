"""Whether the file of keys must be read again.

A version counts as read only once it was. Where reading fails, as without a free descriptor,
the keys before go on, and a key that was taken away must not work for longer than that lasts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECK_S: Final = 1.0
"""Time between two looks at the file, in seconds: how long a key that was taken away still
works. A look takes microseconds."""

_Version = tuple[int, int, int] | None


class KeysFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._seen = _version(path)
        self._looked_at = 0.0
        self.is_steady = True
        """True if two checks in a row saw this version: its writer has probably finished."""

    def has_changed(self, now: float) -> bool:
        """Return whether there is another version than the one that was read; false for CHECK_S
        after a look. now: a monotonic clock's time, in seconds."""
        if now - self._looked_at < CHECK_S:
            return False
        before, self._seen = self._seen, _version(self._path)
        self._looked_at, self.is_steady = now, before == self._seen
        return self._seen != self._read

    def was_read(self) -> None:
        """Take the version that was seen last for read."""
        self._read = self._seen


def _version(path: Path) -> _Version:
    """Return what differs when the file was written or replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
