"""Names of images and models are pinned by what a registry and a hub say that they mean."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.models.hub_server import COMMIT, FakeHub

ROOT: Final = Path(__file__).parents[2]
DIGEST: Final = f"sha256:{'1f' * 32}"
FILE: Final = """\
ARG BASE={at}/library/python:3.11
        - { name: own, newName: {at}/own, newTag: "0.1.0" }
          args:
            - --model=someone/Toy
            - --vllm.revision=main   # a branch
"""
PINNED: Final = """\
ARG BASE={at}/library/python:3.11@{digest}
        - { name: own, newName: {at}/own, newTag: "0.1.0", digest: "{digest}" }
          args:
            - --model=someone/Toy
            - --vllm.revision={commit}   # a branch
"""


class Registry(BaseHTTPRequestHandler):
    """A registry of `library/python` and `own`, which gives everybody a token of a scope."""

    digest = DIGEST

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        name = self.path.removeprefix("/v2/").partition("/manifests/")[0]
        if self.headers["authorization"] != f"Bearer for repository:{name}:pull":
            realm = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
            scope = f'service="here",scope="repository:{name}:pull"'
            return self.answer(401, www_authenticate=f'Bearer realm="{realm}",{scope}')
        known = self.path in ("/v2/library/python/manifests/3.11", "/v2/own/manifests/0.1.0")
        is_index = "image.index" in self.headers["accept"]
        self.answer(200 if known and is_index else 404,
                    **({"docker_content_digest": self.digest} if known else {}))  # fmt: skip

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        assert asked["service"] == ["here"]
        self.answer(200, json.dumps({"token": f"for {asked['scope'][0]}"}).encode())

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def registry() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({"someone/Toy": {}}).running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def pin(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/pin.py"), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


def test_each_name_gets_what_it_means_and_is_pinned_anew(
    registry: str, hub: FakeHub, tmp_path: Path
) -> None:
    file, expected = tmp_path / "file", PINNED.replace("{at}", registry)
    file.write_text(FILE.replace("{at}", registry))

    for digest, hub.commit in ((DIGEST, COMMIT), (f"sha256:{'2e' * 32}", "3d" * 20)):
        Registry.digest = digest
        done = pin(file)
        assert (done.returncode, done.stderr) == (0, "")
        assert file.read_text() == expected.replace("{digest}", digest).replace(
            "{commit}", hub.commit
        )
    Registry.digest = DIGEST


@pytest.mark.parametrize(
    ("there", "instead", "reason"),
    [
        (":3.11", ":3.12", "python:3.12: HTTP 404"),
        ("someone/Toy", "someone/else", "someone/else"),
        ("ARG BASE={at}/library/python", "ARG BASE=python", "set IMAGE_REGISTRY"),
    ],
)
def test_a_file_stays_as_it_is_where_one_name_is_not_found(
    registry: str, hub: FakeHub, tmp_path: Path, there: str, instead: str, reason: str
) -> None:
    file, text = tmp_path / "file", FILE.replace(there, instead).replace("{at}", registry)
    file.write_text(text)

    done = pin(file)

    assert done.returncode == 1
    assert reason in done.stderr
    assert file.read_text() == text
