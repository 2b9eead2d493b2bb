"""API keys: the file that names them, and what the holder of one may use.

A key is kept nowhere, only its SHA-256: who reads the file, or what is in memory, cannot use
what is there as a key. No error of this module quotes what is in the file.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

KEY_BYTES: Final = 24
"""This module makes keys of so many random bytes."""

MAX_FILE_BYTES: Final = 1 << 20
"""The largest file of keys: about 10,000 keys, which are read in 0.2 s. No request is served
meanwhile."""

Count = Annotated[int, Field(ge=1)]


class KeyLimits(BaseModel):
    """What the holder of one key may use; None means any amount."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: Count | None = None
    """So many answers may run at once. A request for several choices takes one for each."""

    requests_a_minute: Count | None = None
    """So many requests may begin in a minute. Those that belong to an open session are not
    counted."""

    tokens_a_minute: Count | None = None
    """Tokens of prompts and answers. They are counted as they come, so an answer begins while
    any are left, and goes on when none are; the next one waits until what it took has come
    back. How much answers that run at once can overdraw, `sessions` bounds."""

    def or_else(self, others: KeyLimits) -> KeyLimits:
        """Return these limits, and the others where there are none."""
        own = {name: value for name, value in self if value is not None}
        return others.model_copy(update=own)


class _Entry(KeyLimits):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_FILE: Final = TypeAdapter(dict[Name, _Entry])


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    digest: bytes
    """The key's SHA-256."""

    limits: KeyLimits


class InvalidKeys(ValueError):
    """A file of keys cannot be read, or says what no such file may; the message names it."""


def digest_of(key: bytes) -> bytes:
    """Return a key's SHA-256. That is enough: a key is random, and long."""
    return hashlib.sha256(key).digest()


def all_keys(digests: Sequence[bytes], file: Path | None) -> list[Key]:
    """Return the keys of the environment, as key-1, key-2 and so on, and those of the file.

    digests: of the environment's. Raises InvalidKeys, also for two keys that are the same or
    have the same name.
    """
    keys = [Key(f"key-{i}", digest, KeyLimits()) for i, digest in enumerate(digests, 1)]
    keys += read_keys(file) if file else ()
    for differ in ({key.name for key in keys}, {key.digest for key in keys}):
        if len(differ) < len(keys):
            raise InvalidKeys("two keys are the same, or have the same name")
    return keys


def read_keys(file: Path) -> list[Key]:
    """Return the keys of a file. Raises InvalidKeys."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"a file of keys has at most {MAX_FILE_BYTES} bytes")
        entries = _FILE.validate_python(tomllib.loads(content.decode("utf-8")))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidKeys(f"{file}: {where}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise InvalidKeys(f"{file}: {error}") from None
    return [
        Key(
            name, bytes.fromhex(entry.sha256), KeyLimits(**entry.model_dump(exclude={"sha256"}))
        )
        for name, entry in entries.items()
    ]


def add_key(file: Path, name: str, limits: KeyLimits) -> str:
    """Add a key to a file, which is made if there is none, and return the key.

    Raises InvalidKeys, and OSError; the file is then as it was.
    """
    if file.exists() and name in {key.name for key in read_keys(file)}:
        raise InvalidKeys(f"{file}: there is a key {name!r} already")
    key = f"pico-{secrets.token_urlsafe(KEY_BYTES)}"
    try:
        entry = _Entry(sha256=digest_of(key.encode()).hex(), **limits.model_dump())
        _FILE.validate_python({name: entry.model_dump()})
    except ValidationError:
        raise InvalidKeys(
            f"{name!r}: a name has letters, digits, - and _, at most 64"
        ) from None
    values = entry.model_dump(exclude_none=True).items()
    lines = [f"{field} = {json.dumps(value)}" for field, value in values]
    file.touch(mode=0o600)
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n".join(["", f"[{name}]", *lines, ""]))
    return key


CHECK_S: Final = 1.0
"""Time between two looks at the file, in seconds: how long a key that was taken away still
works. A look takes microseconds."""

_Version = tuple[int, int, int] | None


class KeysFile:
    """Whether the file of keys must be read again.

    A version counts as read only once it was. Where reading fails, as without a free
    descriptor, the keys before go on, and a key that was taken away must not work for longer
    than that lasts.
    """

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
