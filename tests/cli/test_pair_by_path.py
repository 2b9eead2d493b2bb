"""One command runs a pair of one's own, by path, and the doctor finds it well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from picospec.bench.run.services import free_port
from picospec.cli.doctor import examine
from picospec.models.gguf import is_exact
from picospec.models.store import open_store

pytestmark = pytest.mark.models

ROOT = Path(__file__).parents[2]
KEY = "correct-horse"


@dataclass
class Running:
    edge_port: int
    verifier_port: int
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def answer(self, port: int) -> str:
        body = {
            "model": "mine", "temperature": 0, "max_tokens": 24,
            "messages": [{"role": "user", "content": "Count to ten."}],
        }  # fmt: skip
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        headers = {"authorization": f"Bearer {KEY}"}
        response = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)
        text: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
        return text


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`picospec up` with a target whose weights are not exact, under a name of its own; in a
    folder that holds programs which are named like PicoSpec's, as many a project does."""
    project = tmp_path_factory.mktemp("project")
    for name in ("models", "cli", "gateway", "verifier", "edge_agent", "speculation"):
        (project / f"{name}.py").write_text("raise SystemExit('the wrong program')")
    folder, store = tmp_path_factory.mktemp("own"), open_store({})
    target, draft = folder / "mine.gguf", store.find("smollm2", "draft").path
    target.symlink_to(store.find("smollm2-135m", "draft").path)
    edge, verifier = free_port(), free_port()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PICOSPEC_API_KEYS": KEY,
        "EDGE_PORT": str(edge), "VERIFIER_PORT": str(verifier),
        "PICOSPEC_CACHE": str(folder), "PICOSPEC_CONFIG_DIR": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-P", "-c", "from picospec.cli.main import app; app()", "up"]
    process = subprocess.Popen(
        [*command, "--target", str(target), "--draft", str(draft)],
        cwd=project, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "PicoSpec is up" in line:
            break
    yield Running(edge, verifier, environment, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_the_edge_answers_as_the_target_alone(running: Running) -> None:
    assert running.process.poll() is None
    assert running.answer(running.edge_port) == running.answer(running.verifier_port)


def test_the_target_runs_with_exact_weights(running: Running) -> None:
    store = open_store(running.environment)
    given = Path(running.environment["PICOSPEC_CACHE"]) / "mine.gguf"

    found = store.find(str(given), "target")

    assert not is_exact(given)
    assert is_exact(found.path)
    assert found.name == "mine"


def test_the_doctor_finds_the_way_to_the_verifier_and_times_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", KEY)
    url = f"http://127.0.0.1:{running.verifier_port}"
    ports = running.edge_port, running.verifier_port

    findings = {each.subject: each for each in examine(None, url, "smollm2", "smollm2", *ports)}

    well = ("verifier", "key", "protocol", "certificate", "draft model", "vocabulary")
    assert all(findings[subject].ok for subject in well)
    assert "identical" in findings["vocabulary"].found
    assert "a healthy edge has it" in findings[f"edge port {running.edge_port}"].found
    assert "a token takes the target" in findings["speed"].found


def test_the_doctor_says_that_a_key_is_wrong(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", "wrong")
    url, ports = f"http://127.0.0.1:{running.verifier_port}", (free_port(), free_port())

    findings = {each.subject: each for each in examine(None, url, "smollm2", "smollm2", *ports)}

    assert findings["verifier"].ok
    assert not findings["key"].ok
    assert "speed" not in findings
