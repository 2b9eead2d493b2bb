"""The wheel, in an environment that has nothing else, in a folder whose files have the rooms'
names. There is no llama.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.run.services import free_port
from tests.edge_agent.processes import ROOT, wait_for
from tests.guards import GUARD_S
from tests.local_models.gguf_files import Q6_K, gguf_header
from tests.verifier.conftest import KEY, serving

ROOMS = ("edge_agent", "gateway", "local_models", "speculation", "verifier")
INSTALL = "llama.cpp is not installed: pip install llama-cpp-python==0.3.36"
ENGINES = {"torch", "vllm"}
IMPORT_ALL = """
import pkgutil, picospec
from importlib import import_module
for room in ("picospec", *picospec.ROOMS):
    for module in pkgutil.walk_packages(import_module(room).__path__, f"{room}."):
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:
            print(error.name.partition(".")[0])
"""


def run(*command: object, cwd: Path | None = None) -> str:
    """Return what a command prints that works."""
    return subprocess.run(
        command, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


@pytest.fixture(scope="module")
def bin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of PICOSPEC_TEST_BIN, or of an environment as Dockerfile.cloud fills one."""
    if given := os.environ.get("PICOSPEC_TEST_BIN"):
        return Path(given)
    wheel: Path = request.getfixturevalue("wheel")
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", home)
    python, lock = home / "bin/python", home / "missing.lock"
    lacking = ROOT / "scripts/missing.py", ROOT / "requirements/run.lock"
    lock.write_text(run(python, *lacking, ROOT / "pyproject.toml"))
    install = python, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"
    run(*install, "--no-deps", "--require-hashes", "--requirement", lock)
    run(*install, "--no-index", wheel)
    return home / "bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are called; it holds modules that are not ours."""
    for name in os.environ:
        if name.startswith(("PICOSPEC_", "PYTHON")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PICOSPEC_CACHE", str(tmp_path / "cache"))
    for room in ROOMS:
        (tmp_path / f"{room}.py").write_text("raise RuntimeError('not the one')")
    return tmp_path


def test_it_holds_all_files_of_the_rooms_and_nothing_beside_them(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "ls-files", "picospec", *ROOMS, "configs", cwd=ROOT).split()

    wanted = {name.replace("configs/", "picospec/configs/") for name in tracked}
    assert wanted <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"picospec", *ROOMS}


def test_the_description_for_an_index_has_no_link_that_it_cannot_follow() -> None:
    text = run(sys.executable, ROOT / "scripts/index_readme.py")

    assert "# PicoSpec" in text
    assert all(link.startswith(("#", "https:")) for link in re.findall(r"\]\((.*?)\)", text))


def test_every_module_is_imported_that_needs_no_engine(bin: Path, folder: Path) -> None:
    lacking = set(run(bin / "python", "-P", "-c", IMPORT_ALL, cwd=folder).split())

    assert lacking == ENGINES


@pytest.mark.parametrize("command", ["", "chat", "config example edge"])
def test_commands_show_their_options(bin: Path, folder: Path, command: str) -> None:
    assert "Usage" in run(bin / "picospec", *command.split(), "--help", cwd=folder)


@pytest.mark.parametrize(
    "command",
    [
        "edge --verifier-url http://127.0.0.1:1 --draft smollm2 --port {port}",
        "verifier --port {port}",
        "up",
        "models pull --as target large.gguf",
        "doctor --verifier-port {port}",
    ],
)
def test_what_needs_llama_cpp_names_the_command_that_installs_it(
    bin: Path, folder: Path, command: str
) -> None:
    (folder / "large.gguf").write_bytes(gguf_header(Q6_K))
    words = [bin / "picospec", *command.format(port=free_port()).split()]

    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "COLUMNS": "200"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=GUARD_S,
    )  # fmt: skip

    assert done.returncode == 1
    assert INSTALL in done.stdout
    assert "Traceback" not in done.stdout


@pytest.fixture
def verifier() -> Iterator[str]:
    port = free_port()
    serve = ROOT / "tests/packaging/serve_words.py"
    with serving([sys.executable, str(serve), str(port)], port):
        yield f"http://127.0.0.1:{port}"


def test_an_edge_answers_without_a_draft_model(
    bin: Path, folder: Path, verifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", KEY)
    port = free_port()
    command = [bin / "picospec", "edge", "--verifier-url", verifier, "--port", str(port)]
    body = {"prompt": "w10 w11", "max_tokens": 4, "temperature": 0}

    with (
        subprocess.Popen(command, cwd=folder) as edge,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=GUARD_S, trust_env=False
        ) as http,
    ):
        try:
            wait_for(port, edge)
            while http.get("/ready").status_code != 200:
                time.sleep(0.1)
            answer = http.post("/v1/completions", json=body)
        finally:
            edge.terminate()

    assert answer.json()["usage"]["completion_tokens"] == 4
