"""Keeps strangers away from a service unless they are wanted, and web pages of other sites.

A web page may call a service on this machine by a name that its author lets point here (DNS
rebinding); the request then has that name in `Host`.

Any page can send requests to this machine. The page cannot read the answers, but they cost as
much as others. A browser names the page's origin in `Origin`, and the origin's relation to
the service in `Sec-Fetch-Site`. It sends a preflight before a page of another origin may send
a content type that no form has (Fetch Standard, 2.2.2, 4.8). A POST with neither header is of
a program, such as `curl -d`, and may have any type (Fetch Standard, 3.1: each POST of a page
has an Origin).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers

from gateway.errors import Forbidden, InvalidRequest, UnsupportedMediaType
from gateway.hosting.settings import ServiceSettings
from gateway.keys import all_keys

_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
_SINGLE: Final = ("host", "authorization", "x-api-key")
"""A request has each of these headers at most once (RFC 9112, 3.2; RFC 9110, 11.6.2): otherwise
a proxy in front might read a different one than this service."""

_UNASKED: Final = frozenset(
    {"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"}
)
"""A page may send these content types anywhere without a preflight."""
_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Return True if a host, as an address or in a URL, is this machine."""
    try:
        return host.lower() == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(settings: ServiceSettings) -> None:
    """Raise ValueError unless a service with these settings may listen."""
    all_keys(settings.key_digests, settings.keys_file)
    for name, file in settings.tls or ():
        if file is not None and not file.is_file():
            raise ValueError(f"{settings.service()}.tls.{name}: there is no file {file}")
    if is_loopback(settings.host) or settings.needs_key or settings.allow_anonymous:
        return
    raise ValueError(
        f"{settings.service()}.host: without keys everybody who reaches {settings.host} could"
        " use this service; set PICOSPEC_API_KEYS or keys_file, or else allow_anonymous = true"
    )


def hosts_of(settings: ServiceSettings) -> frozenset[str] | None:
    """Return the names in `Host` that a service answers to; None means any.

    A service with keys accepts any name, because no page has a key.
    """
    if settings.needs_key or not (is_loopback(settings.host) or settings.allowed_hosts):
        return None
    own = settings.host.strip("[]").lower()
    named = (name.lower() for name in settings.allowed_hosts)
    return frozenset((*_THIS_MACHINE, own, f"[{own}]", *named))


def check_head(headers: Headers, version: str, hosts: Collection[str] | None) -> None:
    """Raise InvalidRequest or Forbidden unless a request's head names one service, which is
    ours, and at most one key. version: version of HTTP. hosts: result of `hosts_of`."""
    for name in _SINGLE:
        if len(headers.getlist(name)) > 1:
            raise InvalidRequest(f"the header {name} is there twice", code="invalid_header")
    if version == "1.1" and not headers.get("host"):  # granian adds an empty one if none came
        raise InvalidRequest("a request in HTTP/1.1 has a Host", code="invalid_header")
    if hosts is not None and _host_name(headers.get("host", "")) not in hosts:
        raise Forbidden("this Host is not one of the service's names (allowed_hosts)")


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; "" if the header is malformed."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else ""


def check_page(headers: Headers, method: str, origins: Collection[str]) -> None:
    """Raise Forbidden or UnsupportedMediaType for a request that a page of another origin may
    have sent to a service without keys.

    origins: pages of these origins may use the service; "*" stands for all.
    """
    origin = headers.get("origin")
    allowed = "*" in origins or origin in origins
    if not (allowed or _is_own(origin, headers)):
        raise Forbidden(
            f"pages of {origin or 'other origins'} may not use this service (cors_origins)",
            code="origin_not_allowed",
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    by_page = origin is not None or "sec-fetch-site" in headers
    if method == "POST" and by_page and kind in _UNASKED:
        raise UnsupportedMediaType(
            "a service without keys needs the header content-type: application/json, because"
            f" any web page can send {kind or 'a body without a type'}"
        )


def _is_own(origin: str | None, headers: Headers) -> bool:
    """Return True if no page, or a page of this service, sent the request. A proxy may have
    changed `Host`, but not the browser's `Sec-Fetch-Site`."""
    site = headers.get("sec-fetch-site", "none")
    if site != "none":
        return site == "same-origin"
    host = headers.get("host", "").lower()
    return origin is None or origin.partition("://")[2].lower() == host
