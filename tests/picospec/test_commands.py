"""The commands that ask an edge, from their arguments to what they print, over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from picospec.main import app
from picospec.status import Place, ServiceStatus, read, show
from tests.page.service import MODEL
from tests.page.visiting import Serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = Serving()
    service.start()
    yield service.url
    service.stop()


@pytest.fixture(scope="module")
def several() -> Iterator[str]:
    service = Serving({"words-2": "ready", "words-3": "away"})
    service.start()
    yield service.url
    service.stop()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "PICOSPEC_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def said(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


def test_an_edge_is_connected_and_that_is_taken_back(url: str, home: Path) -> None:
    file = home / ".codex/config.toml"

    pasted = said("connect", "codex", "--url", f"{url}/v1", "--api-keys", "k-1,k-2")
    written = said("connect", "codex", "--write", "--url", url)
    content = file.read_text()
    undone = said("connect", "codex", "--undo")

    assert 'experimental_bearer_token = "k-1"' in pasted
    assert f'base_url = "{url}/v1"' in pasted
    assert f'model = "{MODEL}"' in content
    assert f'+model = "{MODEL}"' in written
    assert f"{file} is as it was" in undone
    assert not file.parent.exists()


def test_of_several_models_one_is_named(several: str) -> None:
    at = ("--url", several)

    first, named = (
        said("connect", "codex", *at),
        said("connect", "codex", "--model", "words-2", *at),
    )
    listing = said("connect", "opencode", "--model", "words-2", *at)

    assert f'model = "{MODEL}"' in first
    assert "The model is words-2; --model takes another: words-1\n" in named
    assert 'model = "words-2"\n' in named
    assert all(f'"name": "{name}"' in listing for name in (MODEL, "words-2"))
    assert not any(name in listing for name in ("words-3", "alias", "embed"))
    for asked in (("chat",), ("connect", "codex"), ("launch", "codex")):
        refused = said(*asked, "--model", "nosuch", *at, status=1)
        assert (
            "no model nosuch; there are words-1, words-2, words-3 (away), alias, embed"
            in refused
        )


def test_what_cannot_be_done_is_one_line(url: str) -> None:
    nowhere = ("--url", "http://127.0.0.1:9")

    assert "cannot be reached" in said("connect", "codex", *nowhere, status=1)
    assert "cannot be reached" in said("run", "hi", *nowhere, status=1)
    assert "cannot be reached" in said("forget", *nowhere, status=1)
    assert "http://[::1]:9 cannot be" in said("run", "hi", "--url", "[::1]:9/v1/", status=1)
    assert "/v1/picospec/pool" in said("forget", "--url", url, status=1)
    assert "is none of codex, claude" in said("connect", "x", *nowhere, status=2)
    assert "connected by its settings" in said("launch", "zed", "--url", url, status=1)
    assert "nothing to ask" in said("run", "--url", url, status=2)
    assert "nothing of Zed was written" in said("connect", "zed", "--undo")


def test_what_runs_is_shown_and_what_does_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    port = url.rpartition(":")[2]
    ports = ("--edge-port", port, "--verifier-port", "9")

    shown = said("status", *ports)
    told = json.loads(said("status", "--json", *ports))
    nothing = said("status", "--edge-port", "9", "--verifier-port", "9", status=1)
    another = said("status", "--edge-port", "9", "--verifier-port", port, status=1)

    (edge,) = (line.split() for line in shown.splitlines() if line.startswith("edge "))
    assert edge[:4] == ["edge", "ok", MODEL, "small-1"]
    assert edge[-1] == url
    assert "http://127.0.0.1:9000" in shown
    assert "verifier at http://127.0.0.1:9: not running" in shown
    assert told["edge"]["said"]["model"]["name"] == MODEL
    assert told["verifier"]["runs"] is False
    assert "Start it with `picospec up`" in nothing
    assert "another service answers there" in another


def test_a_service_that_wants_a_key_or_loads_runs() -> None:
    place = Place("edge", "http://127.0.0.1:8000")
    loading = json.dumps({"error": {"code": "loading"}}).encode()

    assert "PICOSPEC_API_KEYS" in read(place, 401, b"{}").error
    assert read(place, 503, loading).state == "loading"
    assert not read(place, 200, b"[]").runs


def test_a_chat_says_at_its_start_that_nobody_answers() -> None:
    told = said("chat", "--edge-port", "9", status=1)

    assert "Start it with `picospec up`" in told
    assert ">" not in told


def test_run_takes_what_an_answer_depends_on(url: str) -> None:
    asked = ("run", "Say it", "--url", url, "--seed", "1")

    whole = said(*asked)
    short = said(*asked, "--max-tokens", "3", "--temperature", "0")

    assert len(short.split()) < len(whole.split())
    assert "nosuch" in said(*asked, "--model", "nosuch", status=1)
    assert whole.splitlines()[0] in said("run", "words-1", "Say it", *asked[2:])
    assert "no model llama3:8b" in said("run", "llama3:8b", "--url", url, status=1)


def test_run_prints_the_answer_and_nothing_else(url: str) -> None:
    asked = ["run", "Say it", "--seed", "1", "--url", url]
    command = [sys.executable, "-m", "picospec", *asked]

    first, again = (subprocess.check_output(command, input=b"x = 1\n") for _ in range(2))

    assert first == again
    assert first.rstrip() + b"\n" == first
    assert b"request" not in first


def test_the_status_has_a_line_for_each_further_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draft = {"model": "tiny", "state": "asleep", "bytes": 0}
    models = [
        {"name": "a", "state": "ready", "context_tokens": 9, "draft": draft},
        {"name": "b", "state": "away", "context_tokens": None, "draft": draft},
        {"name": "c", "state": "ready", "context_tokens": 8, "draft": None},
    ]
    told = {"model": {"name": "a", "context_tokens": 9}, "models": models}

    show([ServiceStatus("edge", "http://here", True, "ok", said=told)], Console(width=200))

    _, first, *others = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[:3] == ["edge", "ok", "a"]
    assert others == [["away", "b", "tiny", "(asleep)", "-"], ["ready", "c", "-", "8"]]


def test_what_measures_without_an_edge_says_how_to_start_one() -> None:
    assert "No edge answers there" in said("measure", "--edge-port", "1", status=1)
