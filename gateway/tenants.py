"""Tenants of a service are found by a request's key, and get identities, salts and a share of
the service's places."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from gateway.errors import Unauthorized
from gateway.keys import KEY_BYTES, InvalidKeys, Key, KeyLimits, KeysFile, all_keys, digest_of
from gateway.log_limits import LogLimit
from gateway.tenant_limits import Tenant, TenantMetrics

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
"""One part of this many of the connections is kept from any single tenant of several: its next
request gets a 429."""


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
        self._by_digest: dict[bytes, Tenant] = {}
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
        return None if len(self._by_digest) < 2 else places - places // KEPT_PART

    def of(self, offered: str, now: float) -> Tenant:
        """Return the tenant whose key a request shows. Raises Unauthorized.

        The time taken reveals nothing of a key: the key's digest is looked up, and a dict
        compares only what has the same randomised hash.
        """
        if self._watch is not None and self._watch.has_changed(now):
            self._read_again(self._watch, now)
        if self._forget_at:
            self._forget(now)
        if not self.need_key:
            return self.anonymous
        if (tenant := self._by_digest.get(digest_of(offered.encode("latin-1")))) is None:
            raise Unauthorized("no API key, or a wrong one")
        return tenant

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
        log.info("keys_read", keys=len(self._by_digest))

    def _take_over(self, keys: Sequence[Key], now: float) -> None:
        """Replace the keys. A tenant whose name was known before keeps its usage and what is
        kept for it."""
        by_digest = {}
        for key in keys:
            limits = key.limits.or_else(self._limits)
            if (tenant := self._tenants.get(key.name)) is None:
                identity = identity_of_key(key.digest, os.environ)
                tenant = Tenant(key.name, limits, self._metrics, identity)
                self._tenants[key.name] = tenant
            elif tenant.limits != limits:
                tenant.limit(limits)
            tenant.models = key.models
            by_digest[key.digest] = tenant
        self._by_digest = by_digest
        missing = self._tenants.keys() - {key.name for key in keys}
        self._forget_at = {n: self._forget_at.get(n, now + FORGET_S) for n in missing}

    def _forget(self, now: float) -> None:
        """Drop the tenants whose time has come. Their sessions go on."""
        for name in [name for name, at in self._forget_at.items() if at <= now]:
            del self._forget_at[name], self._tenants[name]
