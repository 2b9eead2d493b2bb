"""A model hub on this machine, as huggingface_hub asks it: the API, and files kept with LFS.

Like the real one it answers a file's address with its size and sha256, and redirects to another
host for the bytes, which must never see a token.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@dataclass
class FakeHub:
    """Repositories by name, each with its files, and how the hub behaves."""

    repositories: Mapping[str, Mapping[str, bytes]]
    token: str = ""
    """The one that clients must show; empty if any may come."""

    cut_after: int = 0
    """Bytes of a file after which the connection breaks, once for each of `cuts`."""

    cuts: int = 0
    sent_instead: bytes | None = None
    """What is sent in place of each file's bytes: a damaged file."""

    hides_hashes: bool = False
    """A mirror that does not know the files' sha256."""

    digest: str = ""
    """What the hub says is each file's sha256; empty if it says what is true."""

    commit: str = COMMIT
    description: bytes = b""
    """What the hub answers in place of what it has; empty if it answers that."""

    knows_ranges: bool = True
    """A mirror may answer with the whole file where a part is asked for."""

    has_xet: bool = False
    """Whether the hub says that each file is in its newer storage too."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and range of each request for bytes."""

    tokens_at_storage: list[str] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        with _serving(_hub(self)) as self.endpoint, _serving(_storage(self)) as self.storage:
            yield self

    def sha256(self, data: bytes) -> str:
        return self.digest or hashlib.sha256(data).hexdigest()

    def file(self, path: str) -> bytes | None:
        """Return the file of a path OWNER/REPO/FILE."""
        owner, repository, file = path.split("/", 2)
        return self.repositories.get(f"{owner}/{repository}", {}).get(file)


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", headers.get("size", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _hub(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Quiet):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/")
            if hub.token and self.headers["authorization"] != f"Bearer {hub.token}":
                self.answer(401, x_error_code="RepoNotFound")
            elif path.startswith("api/models/"):
                repository, _, tree = path.removeprefix("api/models/").partition("/tree/")
                self.describe(repository.removesuffix("/revision/main"), bool(tree))
            else:
                self.locate(re.sub(f"/resolve/(main|{re.escape(hub.commit)})/", "/", path))

        def describe(self, repository: str, tree: bool) -> None:
            if (files := hub.repositories.get(repository)) is None:
                return self.answer(404, x_error_code="RepoNotFound")
            if hub.description:
                return self.answer(200, hub.description, content_type="application/json")
            siblings = [_sibling(name, data, hub) for name, data in files.items()]
            card = {"license": "mit"}
            body: object = siblings
            if not tree:
                about = {"id": repository, "sha": hub.commit, "cardData": card}
                body = {**about, "siblings": siblings}
            self.answer(200, json.dumps(body).encode(), content_type="application/json")

        def locate(self, path: str) -> None:
            if (data := hub.file(path)) is None:
                return self.answer(404, x_error_code="EntryNotFound")
            etag = "unknown" if hub.hides_hashes else hub.sha256(data)
            self.answer(
                302,
                location=f"{hub.storage}/{path}",
                x_linked_etag=f'"{etag}"',
                x_linked_size=str(len(data)),
                x_repo_commit=hub.commit,
            )

    return Handler


def _storage(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Quiet):
        def do_GET(self) -> None:
            hub.tokens_at_storage.append(self.headers.get("authorization", ""))
            path, asked = self.path.removeprefix("/"), self.headers.get("range", "")
            hub.asked.append((path, asked))
            data = hub.sent_instead or hub.file(path) or b""
            start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
            start = start if hub.knows_ranges else 0
            if hub.cuts:
                hub.cuts -= 1
                self.answer(206 if start else 200, data[start : start + hub.cut_after],
                            size=str(len(data) - start))  # fmt: skip
                self.close_connection = True
            else:
                self.answer(206 if start else 200, data[start:])

    return Handler


def _sibling(name: str, data: bytes, hub: FakeHub) -> dict[str, object]:
    digest = hub.sha256(data)
    lfs = {"size": len(data), "sha256": digest, "oid": digest, "pointerSize": 134}
    sibling = {"rfilename": name, "path": name, "type": "file", "size": len(data), "oid": "0"}
    sibling |= {"xetHash": "0" * 64} if hub.has_xet else {}
    return sibling | ({} if hub.hides_hashes else {"lfs": lfs})
