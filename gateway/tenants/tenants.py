"""Finds the tenant of a service whose key a request shows."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from picospec.gateway.errors import Unauthorized
from picospec.gateway.log_lines import LogLimit
from picospec.gateway.tenants.keys import (
    InvalidKeys,
    Key,
    KeyLimits,
    KeysFile,
    all_keys,
    digest_of,
)
from picospec.gateway.tenants.tenant import Tenant, TenantMetrics

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
        self.anonymous = Tenant("anonymous", limits, metrics)
        """Requests without a key are charged to this tenant if no key is needed."""

        self._digests = digests
        self._file = file
        self._watch = KeysFile(file) if file else None
        self._limits = limits
        self._metrics = metrics
        self._by_prefix: dict[bytes, _Holder] = {}
        self._tenants: dict[str, Tenant] = {}
        """Maps names to tenants. A tenant whose key was revoked stays: its sessions still run,
        and the key may come back, because an editor may write the file in two steps."""

        self._unread = LogLimit()
        self._take_over(all_keys(digests, file))

    @property
    def need_key(self) -> bool:
        return self._file is not None or bool(self._digests)

    def of(self, offered: str, now: float) -> Tenant:
        """Return the tenant whose key a request shows. Raises Unauthorized.

        The time taken reveals nothing of a key: the key's digest is looked up, which a caller
        without the key cannot know, and the comparison takes constant time.
        """
        if self._watch is not None and self._watch.has_changed(now):
            self._read_again(self._watch, now)
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
        self._take_over(keys)
        watch.was_read()
        self._metrics.keys_file_unread.set(0)
        self._unread = LogLimit()
        log.info("keys_read", keys=len(self._by_prefix))

    def _take_over(self, keys: Sequence[Key]) -> None:
        """Replace the keys. A tenant whose name was known before keeps its usage."""
        holders = {}
        for key in keys:
            limits = key.limits.or_else(self._limits)
            if (tenant := self._tenants.get(key.name)) is None:
                tenant = self._tenants[key.name] = Tenant(key.name, limits, self._metrics)
            elif tenant.limits != limits:
                tenant.limit(limits)
            holders[key.digest[:PREFIX_BYTES]] = _Holder(key.digest, tenant)
        self._by_prefix = holders
