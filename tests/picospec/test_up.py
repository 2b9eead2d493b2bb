"""`picospec up` with two fakes in place of the real services."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.run.services import free_port
from gateway.hosting.cores import Pins
from gateway.hosting.processes import ServiceError
from gateway.hosting.settings import WrongSettings
from local_models.errors import UnknownModel
from local_models.gguf import is_exact
from local_models.store import Store, open_store
from picospec import preparing
from picospec.doctor import examine
from picospec.preparing import ModelChoice, prepare, with_threads
from picospec.up import Plan, check_free, check_plain, read_settings, up, usage_lines
from tests.guards import GUARD_S
from tests.local_models.hub_server import FakeHub
from tests.picospec.screen import Screen


def test_the_edge_shows_its_verifier_a_key_that_both_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PICOSPEC_VERIFIER_KEY", raising=False)
    verifier, edge = Plan(api_key="k").services()
    assert edge.environment["PICOSPEC_VERIFIER_KEY"] == "k"
    assert "PICOSPEC_VERIFIER_KEY" not in verifier.environment

    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", "another")
    assert "PICOSPEC_VERIFIER_KEY" not in Plan(api_key="k").services()[1].environment


def test_each_target_has_a_verifier_at_the_next_port_and_the_edge_their_addresses() -> None:
    given = {"verifier": ("--model", "a"), "edge": ("--draft", "auto")}
    *verifiers, edge = Plan(1, 2, arguments=given, others=[("--model", "b")]).services()

    python, here = sys.executable, ("--host", "127.0.0.1")
    for service, port, model in zip(verifiers, ("2", "3"), ("a", "b"), strict=True):
        listens = ("--port", port, *here, "--model", model)
        assert service.command == (python, "-P", "-m", "verifier", *listens)
        assert service.url == f"http://127.0.0.1:{port}"
    urls = [word for each in verifiers for word in ("--verifier-url", each.url)]
    more = ("--port", "1", *here, *urls, "--draft", "auto")
    assert edge.command == (python, "-P", "-m", "edge_agent", *more)


def test_settings_of_one_file_reach_each_end_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "local.toml"
    edge_table = '[edge]\ndraft_model = "m"\nslots = 2\n[edge.proxy]\nmodels = ["e"]\n'
    file.write_text(f'[models]\nsources = "hub,wheels"\n{edge_table}')
    monkeypatch.delenv("PICOSPEC_MODEL_SOURCES", raising=False)

    verifier, edge = Plan(settings=read_settings(file)).services()

    assert verifier.environment.pop("PICOSPEC_MODEL_SOURCES") == "hub,wheels"
    assert edge.environment.pop("PICOSPEC_MODEL_SOURCES") == "hub,wheels"
    assert verifier.environment == {
        "PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S": "0",
        "PICOSPEC_VERIFIER__LOG_REQUESTS": "false",
    }
    assert edge.environment == {
        "PICOSPEC_EDGE__DRAIN_TIMEOUT_S": "0",
        "PICOSPEC_EDGE__DRAFT_MODEL": "m",
        "PICOSPEC_EDGE__SLOTS": "2",
        "PICOSPEC_EDGE__PROXY": '{"models": ["e"]}',
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[edge", "Expected"), ("[cloud]", "not cloud"), ("edge = 3", "not edge")],
)
def test_a_file_of_another_form_is_an_error_that_names_it(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "local.toml"
    file.write_text(text)

    with pytest.raises(WrongSettings, match=rf"local\.toml.*{reason}"):
        read_settings(file)


@pytest.mark.parametrize(
    ("settings", "environ", "named"),
    [
        ({"edge": {"tls": {"key": "k"}}}, {}, r"^\[edge\.tls\]: "),
        ({"verifier": {"tls": {}}}, {}, r"^\[verifier\.tls\]: "),
        ({}, {"PICOSPEC_EDGE__TLS__KEY": "k"}, "^PICOSPEC_EDGE__TLS__KEY: "),
        ({}, {"picospec_verifier__tls": "{}"}, "^picospec_verifier__tls: "),
    ],
)
def test_tls_is_refused_by_the_name_that_asks_for_it(
    settings: dict[str, dict[str, object]], environ: dict[str, str], named: str
) -> None:
    with pytest.raises(WrongSettings, match=named):
        check_plain(settings, environ)


@pytest.mark.system
async def test_a_port_in_use_is_an_error_before_anything_starts() -> None:
    planned = Plan(edge_port=free_port(), verifier_port=free_port())
    with socket.socket() as other:
        other.bind(("127.0.0.1", planned.edge_port))
        other.listen()

        with pytest.raises(ServiceError, match=f"port {planned.edge_port} .*EDGE_PORT"):
            await up(planned, planned.services(), Screen())


def test_the_usage_lines_name_a_key_and_never_show_it() -> None:
    lines = "\n".join(usage_lines(Plan(api_key="very-secret"), "qwen"))

    assert "very-secret" not in lines
    assert "PICOSPEC_API_KEYS" in lines
    assert '"model": "qwen"' in lines


# `picospec up` brings what it runs, and decides which engine and which draft model.


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    smollm = open_store({}).find("smollm2-135m", "draft").path.read_bytes()
    files = {"o/small-GGUF": {"small-Q4_1.gguf": smollm}, "o/safe": {"model.safetensors": b"0"}}
    with FakeHub(files).running() as running:
        yield running


@pytest.fixture
def store(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else object()
    )
    return open_store({
        "PICOSPEC_CACHE": str(tmp_path), "PICOSPEC_CONFIG_DIR": str(tmp_path),
        "PICOSPEC_MODEL_SOURCES": "hub", "HF_ENDPOINT": hub.endpoint,
    })  # fmt: skip


def test_options_win_over_the_environment_and_that_over_the_file() -> None:
    file = {"verifier": {"model": "t1", "target": "vllm"}, "edge": {"draft_model": "d1"}}
    environ = {"PICOSPEC_VERIFIER__MODEL": "t2", "PICOSPEC_EDGE__DRAFT_MODEL": "d2"}

    assert ModelChoice.of({}, {}) == ModelChoice("qwen2.5-coder", "auto", "")
    assert ModelChoice.of(file, {}) == ModelChoice("t1", "d1", "vllm")
    assert ModelChoice.of(file, environ) == ModelChoice("t2", "d2", "vllm")
    given = ModelChoice.of(file, environ, target="t3", draft=None)
    assert given == ModelChoice("t3", "d2", "vllm")


def test_threads_are_shared_where_cores_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "compute_threads", lambda: 5)

    assert with_threads({}, Pins()) == {
        "verifier": {"llama": {"threads": 3}},
        "edge": {"threads": 2},
    }
    given = {"edge": {"threads": 1}, "verifier": {"llama": {"threads": 4, "slots": 2}}}
    assert with_threads(given, Pins()) == given
    assert with_threads({}, Pins(frozenset({0}), frozenset({1}))) == {}


@pytest.mark.models
@pytest.mark.parametrize("on_device", [False, True])
def test_a_target_of_the_hub_is_fetched_and_made_exact_unless_a_device_takes_it(
    on_device: bool, store: Store
) -> None:
    choice = ModelChoice("o/small-GGUF", "none")

    arguments = prepare(choice, store, Screen(), on_device=on_device)

    assert arguments["verifier"] == ("--target", "llama", "--model", "o/small-GGUF")
    assert arguments["edge"] == ("--draft", "none")
    assert is_exact(store.find("o/small-GGUF", "target").path) is not on_device


@pytest.mark.models
def test_a_path_is_taken_as_it_is_and_a_draft_as_large_is_not_chosen(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "mine.gguf"
    target.symlink_to(open_store({}).find("smollm2", "target").path)

    assert prepare(ModelChoice(str(target)), store, Screen()) == {
        "verifier": ("--target", "llama", "--model", str(target)),
        "edge": ("--draft", "none"),
    }


@pytest.mark.models
def test_safetensors_need_vllm_and_the_edge_chooses_its_draft(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (str(tmp_path), "o/safe", "hf://o/safe"):
        with pytest.raises(ServiceError, match="vLLM is not installed"):
            prepare(ModelChoice(target), store, Screen())

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    arguments = prepare(ModelChoice(str(tmp_path)), store, Screen())

    assert arguments["verifier"] == ("--target", "vllm", "--model", str(tmp_path))
    assert arguments["edge"] == ("--draft", "auto")


def test_the_edges_settings_of_the_hub_are_read_and_checked() -> None:
    given: dict[str, dict[str, object]] = {"edge": {"draft_max_gb": 2.5}}
    choice = ModelChoice.of(given, {"PICOSPEC_EDGE__DRAFT_FROM_HUB": "never"})

    assert (choice.hub.consent, choice.hub.max_gb) == ("never", 2.5)
    with pytest.raises(ServiceError, match="draft_max_gb"):
        _ = ModelChoice(draft_max_gb="much").hub


def test_an_unknown_name_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="gpt"):
        prepare(ModelChoice("gpt"), open_store({"PICOSPEC_CACHE": str(tmp_path)}), Screen())


# One command runs a pair of one's own, by path, and the doctor finds it well.

ROOT = Path(__file__).parents[2]
KEY = "correct-horse"
RTT_MS = 30


@dataclass
class Running:
    edge_port: int
    verifier_port: int
    environment: dict[str, str]
    said: str

    def answer(self, port: int) -> str:
        body = {
            "model": "mine", "temperature": 0, "max_tokens": 24,
            "messages": [{"role": "user", "content": "Count to ten."}],
        }  # fmt: skip
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        headers = {"authorization": f"Bearer {KEY}"}
        response = httpx.post(url, json=body, headers=headers, timeout=GUARD_S, trust_env=False)
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
    command = [sys.executable, "-P", "-c", "from picospec.main import app; app()", "up"]
    process = subprocess.Popen(
        [*command, "--target", str(target), "--draft", str(draft), "--rtt", str(RTT_MS)],
        cwd=project, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = [next(process.stdout)]
    while "in a browser" not in said[-1]:
        said.append(next(process.stdout))
    yield Running(edge, verifier, environment, "".join(said))
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=GUARD_S)
    assert (process.returncode, "edge | " in rest) == (0, True), rest
    check_free(edge, "EDGE_PORT")
    check_free(verifier, "VERIFIER_PORT")


@pytest.mark.models
def test_the_edge_answers_as_the_target_alone_from_as_far_away_as_asked(
    running: Running,
) -> None:
    url = f"http://127.0.0.1:{running.edge_port}/status"
    headers = {"authorization": f"Bearer {KEY}"}
    given = Path(running.environment["PICOSPEC_CACHE"]) / "mine.gguf"

    (verifier,) = httpx.get(url, headers=headers, trust_env=False).json()["verifiers"]

    assert f"\nOpen http://127.0.0.1:{running.edge_port}/ in a browser.\n" in running.said
    assert running.answer(running.edge_port) == running.answer(running.verifier_port)
    assert verifier["rtt_ms"] >= RTT_MS
    assert not verifier["url"].endswith(f":{running.verifier_port}")
    exact = open_store(running.environment).find(str(given), "target")
    assert (exact.name, is_exact(exact.path), is_exact(given)) == ("mine", True, False)


@pytest.mark.models
def test_the_doctor_finds_the_way_to_the_verifier_and_times_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", KEY)
    url = f"http://127.0.0.1:{running.verifier_port}"
    ports = {"edge": running.edge_port, "verifier": running.verifier_port}

    findings = {each.subject: each for each in examine(None, url, "smollm2", "smollm2", ports)}

    well = ("verifier", "key", "protocol", "certificate", "draft model", "vocabulary")
    assert all(findings[subject].ok for subject in well)
    assert "identical" in findings["vocabulary"].found
    assert "a healthy edge has it" in findings[f"edge port {running.edge_port}"].found
    assert "a token takes the target" in findings["speed"].found


@pytest.mark.models
def test_the_doctor_says_that_a_key_is_wrong(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER_KEY", "wrong")
    url = f"http://127.0.0.1:{running.verifier_port}"

    findings = {each.subject: each for each in examine(None, url, "smollm2", "smollm2", {})}

    assert findings["verifier"].ok
    assert not findings["key"].ok
    assert "speed" not in findings
