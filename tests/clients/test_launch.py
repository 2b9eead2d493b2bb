"""Real agents edit a file when `picospec launch` starts them, or once `connect` set them up.

Each has a home of its own, where its settings name a service that is not there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from picospec.known_clients import Client, Edge, read_clients
from tests.clients.conftest import CLIENTS, run
from tests.edge_agent.processes import ROOT

pytestmark = pytest.mark.clients
ASKED = "Greet in the evening."
AIDER = "--edit-format whole --yes-always --no-check-update --no-analytics --map-tokens 0"
AGENTS = {
    "codex": ["exec", "--dangerously-bypass-approvals-and-sandbox", ASKED],
    "opencode": ["run", ASKED],
    "aider": [*AIDER.split(), "--message", ASKED, "hello.py"],
    "continue": ["-p", "--auto", ASKED],
}
"""What each is told, to edit a file without a question."""

PICOSPEC = ROOT / ".venv/bin/picospec"
NOWHERE = Edge("http://127.0.0.1:9", "nothing", 4096, "none")


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    programs = f"{CLIENTS / 'node_modules/.bin'}:{CLIENTS / 'aider/bin'}"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


def files_of(client: Client) -> dict[Path, bytes]:
    paths = [path for part in client.parts if (path := part.path(os.environ))]
    return {path: path.read_bytes() for path in paths if path.exists()}


def with_other_settings(client: Client) -> dict[Path, bytes]:
    for part in client.parts:
        if path := part.path(os.environ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(NOWHERE.fill(part))
    return files_of(client)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_is_launched_edits_a_file_and_keeps_its_settings(
    name: str, scripted: str, repository: Path, home: Path
) -> None:
    client = read_clients()[name]
    before = with_other_settings(client)

    run(PICOSPEC, "launch", name, "--url", scripted, "--", *AGENTS[name], cwd=repository)

    assert "good evening" in (repository / "hello.py").read_text()
    assert files_of(client) == before


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_is_connected_edits_a_file_until_that_is_undone(
    name: str, scripted: str, repository: Path, home: Path
) -> None:
    client = read_clients()[name]
    before = with_other_settings(client) if client.parts[0].format != "yaml" else {}

    run(PICOSPEC, "connect", name, "--write", "--url", scripted)
    run(client.program, *AGENTS[name], cwd=repository)
    run(PICOSPEC, "connect", name, "--undo")

    assert "good evening" in (repository / "hello.py").read_text()
    assert files_of(client) == before
