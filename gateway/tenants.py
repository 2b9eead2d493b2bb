"""Who may ask, and how much: keys, the tenants who hold them, and their limits."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from gateway.errors import RateLimited, Unauthorized
from gateway.tracing import LogLimit

# Reads and writes the file of API keys, which names each key and limits its use.
#
# No key is kept, only its SHA-256: a digest that somebody reads in the file or in memory cannot
# be used as a key. No error of this module quotes the content of the file.

KEY_BYTES: Final = 24

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


# Tracks what a tenant, the holder of one key, uses and may use, without a clock of its own.
#
# All times are in seconds, on one monotonic clock.

MINUTE_S: Final = 60.0

ROUNDING_S: Final = 1e-6
"""Waits below this count as zero: rounding may leave a remainder for a client that waited
exactly `retry-after`."""


class TenantMetrics:
    """Holds metrics labelled with the names of tenants, which are as many as the keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(
                f"picospec:tenant_{name}", text, ("tenant", *labels), registry=registry
            )

        self.requests = counter("requests", "Requests that were counted and let in.")
        self.tokens = counter("tokens", "Tokens of prompts and answers.")
        self.limited = counter("limited", "Requests that got a 429, by limit.", "limit")
        self.answers = Gauge(
            "picospec:tenant_answers",
            "Answers being generated.",
            ("tenant",),
            registry=registry,
        )
        self.keys_file_unread = Gauge(
            "picospec:keys_file_unread",
            "1 while the file of keys that is there could not be read: older keys go on.",
            registry=registry,
        )


class Tenant:
    def __init__(
        self, name: str, limits: KeyLimits, metrics: TenantMetrics, identity: str = ""
    ) -> None:
        self.name = name
        self.models: ModelNames = ()
        """The tenant's keys open these models alone; if empty, all."""

        self.identity = identity or name
        """Stands for the tenant's first key in salts, by which nobody is served what others
        have asked: no name, because others may have the same or know it."""

        self.limited = LogLimit()
        """Limits the log lines that report this tenant at a limit, and is asked before each of
        them. Rejected requests have no log lines of their own."""

        self._answers = 0
        self._running = 0  # requests, each on a connection or a stream of its own
        self.held_bytes = 0
        """The bodies of the tenant's requests have this many bytes."""

        self._metrics = metrics
        self._requests_metric = metrics.requests.labels(name)
        self._tokens_metric = metrics.tokens.labels(name)
        self._answers_metric = metrics.answers.labels(name)
        self.limit(limits)

    def limit(self, limits: KeyLimits) -> None:
        """Set these limits. The requests and tokens used in the last minute are forgotten."""
        self.limits = limits
        self._requests = _Bucket(limits.requests_a_minute)
        self._tokens = _Bucket(limits.tokens_a_minute)

    def opens(self, model: str) -> bool:
        """Return True if the tenant may ask for a model. model: its name, or an adapter's."""
        return not self.models or model in self.models

    def usual_model(self, model: str | None) -> str | None:
        """Return the model that a request asks for. model: None, if it names none."""
        return model if model is not None or not self.models else self.models[0]

    def admit(self, now: float) -> None:
        """Count a request. Raises RateLimited."""
        if wait_s := self._requests.wait_s(now):
            raise self._limited("requests", self.limits.requests_a_minute, wait_s)
        self._requests.take(1, now)
        self._requests_metric.inc()

    @contextmanager
    def running(self, most: int | None) -> Iterator[None]:
        """Count a request while it runs. most: the tenant may have this many at once; None: any
        number. Raises RateLimited."""
        if most is not None and self._running >= most:
            raise self._limited("connections", most)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def check_room(self, now: float, answers: int = 1) -> None:
        """Raise RateLimited unless this many answers may begin."""
        most = self.limits.sessions
        if most is not None and self._answers + answers > most:
            raise self._limited("sessions", most)
        if wait_s := self._tokens.wait_s(now):
            raise self._limited("tokens", self.limits.tokens_a_minute, wait_s)

    def begin(self, now: float, answers: int = 1) -> None:
        """Begin answers; `end` must be called for each of them. Raises RateLimited."""
        self.check_room(now, answers)
        self._answers += answers
        self._answers_metric.inc(answers)

    def end(self, answers: int = 1) -> None:
        self._answers -= answers
        self._answers_metric.dec(answers)

    def spend(self, tokens: int, now: float) -> None:
        """Count tokens of a prompt or an answer."""
        self._tokens.take(tokens, now)
        self._tokens_metric.inc(tokens)

    def _limited(self, limit: str, most: int | None, wait_s: float = 0.0) -> RateLimited:
        self._metrics.limited.labels(self.name, limit).inc()
        at_once = {"sessions": "answers at once", "connections": "requests at once"}
        what = at_once.get(limit, f"{limit} a minute")
        return RateLimited(f"no more than {most} {what}", retry_after_s=ceil(wait_s) or 1)


class _Bucket:
    """A token bucket fills steadily, from empty to full in a minute, and may be overdrawn.
    per_minute: amount of a full bucket, None for one that is never empty."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute or 0)
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Return the seconds until the bucket holds at least one; 0.0 if it does already."""
        if self._per_minute is None:
            return 0.0
        self._fill(now)
        wait_s = (1.0 - self._level) * MINUTE_S / self._per_minute
        return wait_s if wait_s > ROUNDING_S else 0.0

    def take(self, amount: int, now: float) -> None:
        if self._per_minute is not None:
            self._fill(now)
            self._level -= amount

    def _fill(self, now: float) -> None:
        per_minute = self._per_minute or 0
        gained = (now - self._at) * per_minute / MINUTE_S
        self._level, self._at = min(float(per_minute), self._level + gained), now


# Finds the tenant of a service whose key a request shows.

SALT_SECRET: Final = "PICOSPEC_SALT_SECRET"
"""Identities of keys are made with this variable's text, so processes that share a KV cache
must share it. It is drawn if it is not set, and child processes inherit it."""

FORGET_S: Final = 60.0
"""A name that is missing in the file for as long is somebody else's when it is back: what was
kept for it goes. An editor may write the file in two steps."""


def salt_secret(environ: MutableMapping[str, str]) -> bytes:
    """Return the secret of this process and its children; draw it at the first call."""
    return environ.setdefault(SALT_SECRET, secrets.token_hex(KEY_BYTES)).encode()


def identity_of_key(digest: bytes, environ: MutableMapping[str, str]) -> str:
    """Return a text that stands for a key in salts."""
    return hmac.new(salt_secret(environ), digest, hashlib.sha256).hexdigest()


def salted(identity: str, salt: object = None) -> str:
    """Return the salt of what a tenant asks at a target that others ask, too. salt: the salt
    by which the tenant's own users differ, if any.

    An identity has no space, so different pairs have different salts. Sessions and plain
    requests of one tenant, or of one of its users, have the same: what the target has read for
    either serves both."""
    return f"{identity} {salt}" if isinstance(salt, str) and salt else identity


KEPT_PART: Final = 4
"""One part of this many of the connections is kept from any single tenant of several."""

PREFIX_BYTES: Final = 8
"""A key is looked up by this many bytes of its digest; then the whole digest is compared."""


@dataclass(frozen=True, slots=True)
class _Holder:
    digest: bytes
    tenant: Tenant


class Tenants:
    """Keys come from the environment and from the file. With neither, every request is the
    anonymous tenant's; a file without keys admits nobody.

    digests: digests of the environment's keys. limits: apply to a key without limits of its
    own, and to the anonymous tenant. Raises InvalidKeys.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        file: Path | None,
        limits: KeyLimits,
        metrics: TenantMetrics,
    ) -> None:
        self.anonymous = Tenant(
            "anonymous", limits, metrics, identity_of_key(b"anonymous", os.environ)
        )
        """Requests without a key are charged to this tenant if no key is needed."""

        self._digests = digests
        self._file = file
        self._watch = KeysFile(file) if file else None
        self._limits = limits
        self._metrics = metrics
        self._by_prefix: dict[bytes, _Holder] = {}
        self._tenants: dict[str, Tenant] = {}
        """Maps names to tenants. A tenant whose key was revoked stays for a while: its sessions
        still run, and the key may come back."""

        self._forget_at: dict[str, float] = {}
        """Maps names that the file has no more to the times when they are forgotten."""

        self._unread = LogLimit()
        self._take_over(all_keys(digests, file), 0.0)

    @property
    def need_key(self) -> bool:
        return self._file is not None or bool(self._digests)

    def share(self, places: int) -> int | None:
        """Return how many of a service's places one tenant may take at once; None for all,
        where there is no other tenant."""
        return None if len(self._by_prefix) < 2 else places - places // KEPT_PART

    def of(self, offered: str, now: float) -> Tenant:
        """Return the tenant whose key a request shows. Raises Unauthorized.

        The time taken reveals nothing of a key: the key's digest is looked up, which a caller
        without the key cannot know, and the comparison takes constant time.
        """
        if self._watch is not None and self._watch.has_changed(now):
            self._read_again(self._watch, now)
        if self._forget_at:
            self._forget(now)
        if not self.need_key:
            return self.anonymous
        digest = digest_of(offered.encode("latin-1"))
        holder = self._by_prefix.get(digest[:PREFIX_BYTES])
        if holder and hmac.compare_digest(holder.digest, digest):
            return holder.tenant
        raise Unauthorized("no API key, or a wrong one")

    def _read_again(self, watch: KeysFile, now: float) -> None:
        """Take over the keys that the file has now. A bad file changes nothing and is read
        again at the next check, as is a file that has become empty: an editor may be about to
        write it."""
        log = structlog.get_logger("gateway")
        try:
            keys = all_keys(self._digests, self._file)
            if len(keys) == len(self._digests) and not watch.is_steady:
                raise InvalidKeys(f"{self._file}: it has become empty")
        except InvalidKeys as error:
            self._metrics.keys_file_unread.set(1)
            if self._unread.count(now):
                consequence = "the keys before go on"
                log.error("keys_not_read", error=str(error), consequence=consequence)
            return
        self._take_over(keys, now)
        watch.was_read()
        self._metrics.keys_file_unread.set(0)
        self._unread = LogLimit()
        log.info("keys_read", keys=len(self._by_prefix))

    def _take_over(self, keys: Sequence[Key], now: float) -> None:
        """Replace the keys. A tenant whose name was known before keeps its usage and what is
        kept for it."""
        holders = {}
        for key in keys:
            limits = key.limits.or_else(self._limits)
            if (tenant := self._tenants.get(key.name)) is None:
                identity = identity_of_key(key.digest, os.environ)
                tenant = Tenant(key.name, limits, self._metrics, identity)
                self._tenants[key.name] = tenant
            elif tenant.limits != limits:
                tenant.limit(limits)
            tenant.models = key.models
            holders[key.digest[:PREFIX_BYTES]] = _Holder(key.digest, tenant)
        self._by_prefix = holders
        missing = self._tenants.keys() - {key.name for key in keys}
        self._forget_at = {n: self._forget_at.get(n, now + FORGET_S) for n in missing}

    def _forget(self, now: float) -> None:
        """Drop the tenants whose time has come. Their sessions go on."""
        for name in [name for name, at in self._forget_at.items() if at <= now]:
            del self._forget_at[name], self._tenants[name]
