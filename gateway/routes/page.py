"""GET / and /page/{file}: the page on which one chats and watches the speculation.

The files of `gateway/page` are read once, when the app is built. The page needs no API key; the
requests that it makes show the key that its user gave it. Its Content-Security-Policy lets it
load and ask nothing but this service, and lets it run no script that is not one of these files.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from picospec.gateway.accounts.access import PAGE_PATHS
from picospec.gateway.doors.services import Services
from picospec.gateway.routes.documents import Route

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types dompurify"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time, and gets a 304 for what it has
}
_SERVED: Final = (".html", ".css", ".js", ".json", ".svg")
"""Other files, such as licences, are in the package and are not served."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    headers: dict[str, str]


@cache
def page() -> tuple[Route, ...]:
    """Return the routes of all files of the page; index.html is at "/"."""
    return tuple(
        Route(
            "GET",
            path,
            "A file of the page",
            partial(_root if path == "/" else _answer, file),
            answer_type="text/html",
        )
        for path, file in _read(files("picospec.gateway") / "page", PAGE_PATHS)
    )


def _read(folder: Traversable, prefix: str) -> list[tuple[str, _File]]:
    """Return the path and the content of each file of a folder and of the folders in it."""
    found: list[tuple[str, _File]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif PurePosixPath(entry.name).suffix in _SERVED:
            path = "/" if entry.name == "index.html" else prefix + entry.name
            found.append((path, _file(entry.name, entry.read_bytes())))
    return found


def _file(name: str, content: bytes) -> _File:
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, {**_HEADERS, "content-type": f"{kind}; charset=utf-8", "etag": etag})


async def _root(file: _File, services: Services, request: Request) -> Response:
    """Answer the page to a browser, and to others the text by which Ollama's clients know that
    they may go on."""
    headers = {"vary": "accept"}
    if "text/html" in request.headers.get("accept", ""):
        response = await _answer(file, services, request)
        response.headers.update(headers)
        return response
    return PlainTextResponse("Ollama is running", headers=headers)


async def _answer(file: _File, _: Services, request: Request) -> Response:
    """Answer the file, or a 304 to a browser that has it already."""
    known = request.headers.get("if-none-match", "")
    if file.headers["etag"] in known:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
