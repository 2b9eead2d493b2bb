"""Names of images and models are pinned by what a registry and a hub say that they mean."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.local_models.hub_server import COMMIT, FakeHub

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


# Lock files have all that pyproject.toml asks for, by hash, and all is installed by them.

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS: Final = PROJECT["dependency-groups"]
OWN: Final = PROJECT["project"]["dependencies"]
EXTRAS: Final = PROJECT["project"]["optional-dependencies"]
LOCKED: Final = ("llama", "otel")
ASKED: Final = {
    "run": [*OWN, *EXTRAS["llama"]],
    "dev": [*OWN, *GROUPS["dev"], *(each for name in LOCKED for each in EXTRAS[name])],
    "build": [*GROUPS["build"], *PROJECT["build-system"]["requires"]],
    "tools": GROUPS["tools"],
}
PLATFORMS: Final = [
    {"python_full_version": f"{python}0.4", "python_version": python, "sys_platform": system,
     "platform_machine": machine}
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]  # fmt: skip


def entries(lock: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each requirement of a lock file, with its hashes."""
    text = (ROOT / f"requirements/{lock}.lock").read_text().replace("\\\n", "")
    for line in text.splitlines():
        if not line.startswith("#"):
            requirement, *hashes = line.split("--hash=sha256:")
            yield Requirement(requirement.strip()), [each.strip() for each in hashes]


def versions(lock: str, platform: dict[str, str]) -> dict[str, str]:
    """Return what a lock file installs on a platform; each package has one version."""
    here = [each for each, _ in entries(lock)
            if each.marker is None or each.marker.evaluate(platform)]  # fmt: skip
    found = {canonicalize_name(each.name): str(each.specifier) for each in here}
    assert len(found) == len(here)
    return {name: version.removeprefix("==") for name, version in found.items()}


@pytest.mark.parametrize("lock", ASKED)
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: " ".join(p.values()))
def test_a_lock_file_admits_all_that_is_asked_for(lock: str, platform: dict[str, str]) -> None:
    found = versions(lock, platform)

    for requirement in map(Requirement, ASKED[lock]):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run make lock"


@pytest.mark.parametrize("lock", ASKED)
def test_each_entry_has_hashes_and_no_file_names_an_index(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert hashes, requirement
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes), requirement
        assert requirement.url is None
    assert "://" not in (ROOT / f"requirements/{lock}.lock").read_text()


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: " ".join(p.values()))
def test_tests_run_on_what_users_run_on(platform: dict[str, str]) -> None:
    assert versions("run", platform).items() <= versions("dev", platform).items()


@pytest.mark.parametrize("file", ["scripts/setup.sh", "Dockerfile.edge", "Dockerfile.cloud"])
def test_nothing_is_installed_without_a_hash(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = re.findall(r"(?:-m|RUN|&&) pip install [^&\n]*", text)

    assert commands
    for command in commands:
        assert re.search(r"--(require-hashes|no-deps|no-index)", command), command
        assert "--build-constraint" in command or not command.rstrip().endswith("."), command


def test_an_image_with_packages_of_its_own_gets_only_what_it_lacks(tmp_path: Path) -> None:
    lock, project = tmp_path / "run.lock", tmp_path / "pyproject.toml"
    lock.write_text(
        "absent==1.0 \\\n    --hash=sha256:00\nhttpx==99.0 \\\n    --hash=sha256:01 \\\n"
        "    --hash=sha256:02\nrich==99.0 \\\n    --hash=sha256:03\n"
        "large==1.0 \\\n    --hash=sha256:04\n"
    )
    project.write_text(
        '[project]\ndependencies = ["httpx[http2]>=99", "rich>=1"]\n'
        '[project.optional-dependencies]\nmore = ["large>=1", "rich>=1"]\n'
    )

    command = [sys.executable, ROOT / "scripts/missing.py", lock, project]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert found == lock.read_text().partition("rich")[0]
