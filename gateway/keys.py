"""Reads and writes the file of API keys, which names each key and limits its use.

No key is kept, only its SHA-256: a digest that somebody reads in the file or in memory cannot
be used as a key. No error of this module quotes the content of the file.
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
"""Keys and salts have 192 random bits: nobody guesses them."""

MAX_FILE_BYTES: Final = 1 << 20
"""A file of keys has at most this many bytes: about 10,000 keys, which are read in 0.2 s. No
request is served meanwhile."""

Count = Annotated[int, Field(ge=1)]


class KeyLimits(BaseModel):
    """Limits what the holder of one key may use; None means any amount."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sessions: Count | None = None
    """At most this many answers run at once. Each choice of a request counts as one, and so
    does a request that only counts or shows tokens."""

    requests_a_minute: Count | None = None
    """At most this many requests begin in a minute. Requests that belong to an open session are
    not counted."""

    tokens_a_minute: Count | None = None
    """Prompts and answers have at most this many tokens in a minute. They are counted as they
    come: an answer begins while any are left, and continues if none are; the next answer waits
    until the overdraft has been refilled. `sessions` bounds how many answers overdraw."""

    def or_else(self, others: KeyLimits) -> KeyLimits:
        """Return these limits, with missing ones taken from `others`."""
        own = {name: value for name, value in self if value is not None}
        return others.model_copy(update=own)


ModelNames = tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...]


class _Entry(KeyLimits):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    models: Annotated[ModelNames, Field(min_length=1)] | None = None
    """The key opens these models and no others; None: all."""


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_FILE: Final = TypeAdapter(dict[Name, _Entry])


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    digest: bytes
    """The digest is the key's SHA-256."""

    limits: KeyLimits
    models: ModelNames = ()
    """The key opens these models alone; if empty, all."""


class InvalidKeys(ValueError):
    """Raised if a file of keys cannot be read or is invalid; the message names the file."""


def digest_of(key: bytes) -> bytes:
    """Return a key's SHA-256, which needs no salt because a key is random and long."""
    return hashlib.sha256(key).digest()


def all_keys(digests: Sequence[bytes], file: Path | None) -> list[Key]:
    """Return the keys of the environment, named key-1, key-2 and so on, and those of the file.

    digests: digests of the environment's keys. Raises InvalidKeys, also for two keys that are
    the same or have the same name.
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
        Key(name, bytes.fromhex(entry.sha256), _limits_of(entry), entry.models or ())
        for name, entry in entries.items()
    ]


def _limits_of(entry: _Entry) -> KeyLimits:
    return KeyLimits(**entry.model_dump(include=set(KeyLimits.model_fields)))


def add_key(file: Path, name: str, limits: KeyLimits, models: Sequence[str] = ()) -> str:
    """Add a key to a file, which is created if it does not exist, and return the key. models:
    those that it opens; if empty, all.

    Raises InvalidKeys and OSError, and then leaves the file unchanged.
    """
    if file.exists() and name in {key.name for key in read_keys(file)}:
        raise InvalidKeys(f"{file}: there is a key {name!r} already")
    key = f"pico-{secrets.token_urlsafe(KEY_BYTES)}"
    try:
        digest, named = digest_of(key.encode()).hex(), tuple(models) or None
        entry = _Entry(sha256=digest, models=named, **limits.model_dump())
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
"""The file is checked every CHECK_S seconds: a revoked key still works for as long. A check
takes microseconds."""

_Version = tuple[int, int, int] | None


class KeysFile:
    """Decides whether the file of keys must be read again.

    A version counts as read only once reading it has succeeded. While reading fails, as without
    a free descriptor, the previous keys go on; a revoked key must not work for longer than that
    failure lasts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._seen = _version(path)
        self._looked_at = 0.0
        self.is_steady = True
        """True if two checks in a row saw this version: its writer has probably finished."""

    def has_changed(self, now: float) -> bool:
        """Return True if the file's version is not the one that was read; False for CHECK_S
        after a check. now: time of a monotonic clock, in seconds."""
        if now - self._looked_at < CHECK_S:
            return False
        before, self._seen = self._seen, _version(self._path)
        self._looked_at, self.is_steady = now, before == self._seen
        return self._seen != self._read

    def was_read(self) -> None:
        """Record that the version that was seen last has been read."""
        self._read = self._seen


def _version(path: Path) -> _Version:
    """Return a value that changes if the file is written or replaced; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
