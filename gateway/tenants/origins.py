"""Which web pages may use a service that needs no key.

Any page that a browser shows can send requests to this machine. It cannot read the answers, but
they cost as much as others. A browser names the page's origin in `Origin`, and says in
`Sec-Fetch-Site` how that is related to the service; and it asks first (by a preflight) before a
page of another origin may send a content type that no form has (Fetch Standard, 2.2.2, 4.8).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers

from picospec.gateway.errors import Forbidden, UnsupportedMediaType

_UNASKED: Final = frozenset(
    {"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"}
)
"""The content types that a page may send anywhere without a preflight."""


def check_page(headers: Headers, method: str, origins: Collection[str]) -> None:
    """Raise Forbidden or UnsupportedMediaType for what a page of another origin may have sent.

    origins: those whose pages may use the service; "*" stands for all.
    """
    origin = headers.get("origin")
    allowed = "*" in origins or origin in origins
    if not (allowed or _is_own(origin, headers)):
        raise Forbidden(
            f"pages of {origin or 'other origins'} may not use this service (cors_origins)",
            code="origin_not_allowed",
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and kind in _UNASKED:
        raise UnsupportedMediaType(
            "a service without keys needs the header content-type: application/json, because"
            f" any web page can send {kind or 'a body without a type'}"
        )


def _is_own(origin: str | None, headers: Headers) -> bool:
    """Return whether no page sent the request, or one of this service; a proxy may have changed
    `Host`, but not what the browser says."""
    site = headers.get("sec-fetch-site", "none")
    if site != "none":
        return site == "same-origin"
    host = headers.get("host", "").lower()
    return origin is None or origin.partition("://")[2].lower() == host
