"""Answers GET / and /page/{file} with the page for chatting and watching speculation.

The page needs no API key; its requests have the key that its user entered. Its
Content-Security-Policy lets it load from and call only this service, and run only the scripts
in `gateway/page`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from gateway.endpoints.services import Services

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types dompurify"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time, and gets a 304 if nothing changed
}
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
"""Only files of these types are served; others in the package, such as licences, are not."""


class _Page(StaticFiles):
    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path(path) if Path(path).suffix in _TYPES else ("", None)

    def file_response(self, full_path: Any, *more: Any, **options: Any) -> Response:  # noqa: ANN401 - of Starlette's types
        response = super().file_response(full_path, *more, **options)
        kind = f"{_TYPES[Path(full_path).suffix]}; charset=utf-8"
        response.headers.update({**_HEADERS, "content-type": kind})
        return response


FILES: Final = _Page(directory=Path(__file__).parent / "page")
"""This app serves the files of the page, for the paths below PAGE_PATHS."""


async def root(_: Services, request: Request) -> Response:
    """Answer a browser with the page, and other clients with the text by which Ollama's clients
    recognise a server."""
    response: Response = PlainTextResponse("Ollama is running")
    if "text/html" in request.headers.get("accept", ""):
        response = await FILES.get_response("index.html", request.scope)
    response.headers["vary"] = "accept"
    return response
