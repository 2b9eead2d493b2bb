"""Who can reach a service: strangers only where that is wanted, and no page by another name.

A page that a browser shows may call a service on this machine by a name that its author lets
point here (DNS rebinding); such a request says that name in `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers

from picospec.gateway.errors import Forbidden, InvalidRequest
from picospec.gateway.hosting.settings import ServiceSettings
from picospec.gateway.tenants.keys import all_keys

_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
_SINGLE: Final = ("host", "authorization", "x-api-key")
"""A request has each of these headers once at most (RFC 9112, 3.2; RFC 9110, 11.6.2): a proxy
in front might read another one than this service."""

_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Return whether a host, as an address or in a URL, is this machine."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(settings: ServiceSettings) -> None:
    """Raise ValueError unless a service with these settings may listen."""
    all_keys(settings.key_digests, settings.keys_file)
    for name, file in settings.tls or ():
        if file is not None and not file.is_file():
            raise ValueError(f"tls.{name}: there is no file {file}")
    if is_loopback(settings.host) or settings.needs_key or settings.allow_anonymous:
        return
    raise ValueError(
        f"host {settings.host}: without keys everybody who reaches it could use this service;"
        " set PICOSPEC_API_KEYS or keys_file, or else allow_anonymous = true"
    )


def hosts_of(settings: ServiceSettings) -> frozenset[str] | None:
    """Return the names in `Host` that a service answers to; None for any.

    With keys any name will do, because no page has one.
    """
    if settings.needs_key or not (is_loopback(settings.host) or settings.allowed_hosts):
        return None
    own = settings.host.strip("[]").lower()
    named = (name.lower() for name in settings.allowed_hosts)
    return frozenset((*_THIS_MACHINE, own, f"[{own}]", *named))


def check_head(headers: Headers, version: str, hosts: Collection[str] | None) -> None:
    """Raise InvalidRequest or Forbidden unless a request's head names one service, one of ours,
    and at most one key. version: of HTTP. hosts: as of `hosts_of`."""
    for name in _SINGLE:
        if len(headers.getlist(name)) > 1:
            raise InvalidRequest(f"the header {name} is there twice", code="invalid_header")
    if version == "1.1" and not headers.get("host"):  # granian makes an empty one of none
        raise InvalidRequest("a request in HTTP/1.1 has a Host", code="invalid_header")
    if hosts is not None and _host_name(headers.get("host", "")) not in hosts:
        raise Forbidden("this Host is not one of the service's names (allowed_hosts)")


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; "" for what is no such header."""
    found = _HOST.fullmatch(host)
    return found[1].lower() if found else ""
