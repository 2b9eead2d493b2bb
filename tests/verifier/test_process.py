"""The verifier as a process: where its settings come from and what is refused, how it stops,
and that it never stays behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import httpx
import pytest
from pyqwest import Client, HTTPTransport, HTTPVersion

from picospec.bench.run.services import free_port
from picospec.gateway.drain import Drain
from picospec.gateway.hosting.settings import WrongSettings
from picospec.speculation import wire
from picospec.speculation.messages import Draft, Fault, Finish
from picospec.verifier.__main__ import main, nested
from picospec.verifier.app import Verifier
from picospec.verifier.settings import VerifierSettings, load
from picospec.verifier.vllm_target import launching
from picospec.verifier.vllm_target.crossing import CONFIG, SOCKET
from tests.verifier.conftest import (
    ROOT,
    fake_command,
    fake_verifier,
    http2_client,
    running,
    until,
)
from tests.verifier.down import opened, push, text_of
from tests.verifier.fake_target import HANGS, SLOW, STALLS, FakeTarget, opening, said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "verifier.toml"
    path.write_text("port = 9001\n[llama]\nslots = 3\ncontext_tokens = 512\n")
    return path


def test_the_command_line_beats_the_environment_beats_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_VERIFIER__LLAMA__SLOTS", "5")
    monkeypatch.setenv("PICOSPEC_VERIFIER__PORT", "9002")

    settings = load(file, {}, {"port": 9003})

    assert (settings.port, settings.llama.slots) == (9003, 5)
    assert settings.llama.context_tokens == 512


def test_keys_come_from_the_environment(file: Path) -> None:
    settings = load(file, {"PICOSPEC_API_KEYS": "horse, battery,"}, {})

    keys = [key.get_secret_value() for key in settings.api_keys]
    assert keys == ["horse", "battery"]
    assert "horse" not in repr(settings)


def test_keys_in_a_file_are_refused(file: Path) -> None:
    file.write_text('api_keys = ["one"]')

    with pytest.raises(ValueError, match="PICOSPEC_API_KEYS"):
        load(file, {}, {})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot"),
        ("[llama]\nslot = 1", "slot"),
        ("port = 0", "port"),
        ("[sessions]\nidle_timeout_s = 0", "idle_timeout_s"),
        ("[speculation]\nmax_verify = 64\n[llama]\nmax_rows = 64", "max_rows"),
        ("[llama]\nslots = 40\nmax_rows = 64", "max_rows"),
        ('target = "vllm"\n[speculation]\nmax_verify = 128', "max_verify"),
    ],
)
def test_unknown_names_and_values_that_cannot_be_are_refused(
    file: Path, text: str, named: str
) -> None:
    file.write_text(text)

    with pytest.raises(WrongSettings, match=named):
        load(file, {}, {})


def test_options_name_tables_and_read_values_as_toml() -> None:
    options = "--llama.slots 4 --vllm.max-model-len=2048 --served-name m --x.y [1]"

    assert nested(options.split()) == {
        "llama": {"slots": 4},
        "vllm": {"max_model_len": 2048},
        "served_name": "m",
        "x": {"y": [1]},
    }


@pytest.mark.parametrize("options", [["stray"], ["--llama.slots"], ["-p", "1"]])
def test_other_words_are_refused(options: list[str]) -> None:
    with pytest.raises(ValueError, match="--NAME VALUE"):
        nested(options)


@pytest.mark.parametrize(
    ("device", "asked", "timeout_s"),
    [("cpu", None, 300.0), ("gpu", None, 60.0), ("gpu", 9.0, 9.0)],
)
def test_a_pass_may_take_as_long_as_its_device_needs(
    device: Literal["cpu", "gpu"], asked: float | None, timeout_s: float
) -> None:
    settings = load(None, {}, {"pass_timeout_s": asked})

    made = Verifier(settings, lambda _: FakeTarget(), Drain(), device=device)

    assert made.host.pass_timeout_s == timeout_s


# `picospec verifier --target vllm` is vLLM's own command, with our settings beside it.

Launched = tuple[list[str], dict[str, str]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Launched]:
    """What is run, and in which environment, for a verifier's arguments."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(*args: str, **named: object) -> Launched:
        found: list[Launched] = []

        def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
            found.append((command, environment))
            raise SystemExit

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(launching, "find_spec", bool)
        with pytest.raises(SystemExit):
            main(SimpleNamespace(args=args), target="vllm", **named)  # type: ignore[arg-type]
        return found[0]

    return run


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_the_table_becomes_flags_and_the_rest_reaches_our_plugin(
    launched: Callable[..., Launched], tmp_path: Path
) -> None:
    file = tmp_path / "verifier.toml"
    file.write_text('[vllm]\nmax_model_len = 512\nlora-modules = ["a=b", "c=d"]\n')

    command, environment = launched(
        "--sessions.max-sessions", "3", "--vllm.enable-lora", "true", "--vllm.self-test",
        "false", config=file, model="hf://o/r", port=9123,
    )  # fmt: skip

    assert command[:3] == [sys.executable, "-P", "-m"]
    assert value(command, "--model") == "o/r"
    assert value(command, "--served-model-name") == "r"
    assert value(command, "--max-model-len") == "512"
    assert command[command.index("--lora-modules") :][:3] == ["--lora-modules", "a=b", "c=d"]
    assert "--enable-lora" in command
    assert not any("self-test" in each for each in command)
    settings = VerifierSettings.load(Path(environment[CONFIG]), {}, {})
    assert settings.vllm["max_model_len"] == 512
    assert environment["PICOSPEC_VERIFIER__SESSIONS__MAX_SESSIONS"] == "3"
    assert environment["PICOSPEC_VERIFIER__PORT"] == "9123"
    assert environment["PICOSPEC_VERIFIER__VLLM__SELF_TEST"] == "false"


def test_vllms_own_port_is_there_only_if_it_is_named(
    launched: Callable[..., Launched],
) -> None:
    private, environment = launched(model="m")
    named, _ = launched("--vllm.port", "8001", model="m")

    folder = Path(value(private, "--uds")).parent
    assert folder == Path(environment[SOCKET])
    assert folder.stat().st_mode & 0o077 == 0
    assert "--uds" not in named
    assert (value(named, "--host"), value(named, "--port")) == ("127.0.0.1", "8001")


def test_vllm_fetches_no_media_from_domains_that_are_not_named(
    launched: Callable[..., Launched],
) -> None:
    none, _ = launched(model="m")
    some, _ = launched("--vllm.allowed-media-domains", "images.example", model="m")

    flag = "--allowed-media-domains"
    assert [value(each, flag) for each in (none, some)] == [
        launching.NO_DOMAIN,
        "images.example",
    ]


@pytest.mark.parametrize(
    ("table", "tokens"),
    [
        ((), "64"),
        (("--speculation.max-verify", "100"), "102"),
        (("--vllm.long_prefill_token_threshold", "0"), "0"),
    ],
)
def test_on_cpus_prompts_are_read_in_short_pieces_unless_the_table_has_another_length(
    launched: Callable[..., Launched],
    monkeypatch: pytest.MonkeyPatch,
    table: tuple[str, ...],
    tokens: str,
) -> None:
    flag = "--long-prefill-token-threshold"
    monkeypatch.setattr(launching, "_is_for_cpus", lambda: False)
    assert (flag in launched(*table, model="m")[0]) == (tokens == "0")

    monkeypatch.setattr(launching, "_is_for_cpus", lambda: True)
    assert value(launched(*table, model="m")[0], flag) == tokens


@pytest.mark.parametrize(
    ("named", "allowed"), [("a,b", "a,b,picospec"), ("picospec", "picospec"), ("", "picospec")]
)
def test_our_plugin_is_appended_to_those_that_are_allowed(
    launched: Callable[..., Launched],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    allowed: str,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", named)

    assert launched(model="m")[1]["VLLM_PLUGINS"] == allowed


def test_where_vllm_is_missing_a_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda _: None)

    with pytest.raises(SystemExit, match="pip install"):
        launching.launch(VerifierSettings(target="vllm"), None, {})


@pytest.mark.parametrize("group", launching.PLUGINS)
def test_an_installation_without_our_plugins_is_refused(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "find_spec", bool)
    stock = launching.entry_points
    monkeypatch.setattr(
        launching,
        "entry_points",
        lambda *, group: stock(group="nothing" if group == lacking else group),
    )
    lacking = group

    with pytest.raises(SystemExit, match=f"no {group} here: install it again"):
        launching.launch(VerifierSettings(target="vllm"), None, {})


# How it stops, and that it never stays behind.


def worker_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (worker,) = map(int, children)
    return worker


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while is_running(pid):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("numbers", "drain_timeout_s"),
    [
        ([signal.SIGTERM], 0.1),
        ([signal.SIGTERM, signal.SIGTERM], 60.0),
        ([signal.SIGINT], 60.0),
    ],
    ids=["after the deadline", "a second SIGTERM", "SIGINT"],
)
async def test_what_runs_ends_with_a_fault_and_then_the_process(
    numbers: list[signal.Signals], drain_timeout_s: float
) -> None:
    stalls = opening(prompt=(STALLS,))
    with fake_verifier(drain_timeout_s=drain_timeout_s) as (process, url):
        worker = worker_of(process.pid)
        async with http2_client(url) as client, opened(client, stalls) as stream:
            await stream.opened()
            for number in numbers:
                process.send_signal(number)
                await until(partial(drains, client))
            (fault,) = await stream.rest()
        await gone(process.pid, within_s=5)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("shutting_down", True)
    assert process.returncode == 0
    assert not is_running(worker)


async def drains(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 503
    except httpx.TransportError:
        return True  # the process has ended


async def test_while_it_drains_nothing_new_is_taken_and_a_session_goes_on() -> None:
    request = opening(prompt=(SLOW,), max_tokens=15)
    with fake_verifier(drain_timeout_s=60.0) as (process, url):
        async with http2_client(url) as client, opened(client, request) as stream:
            session = await stream.opened()
            messages = [await stream.next()]
            os.killpg(process.pid, signal.SIGTERM)  # as systemd does: to all processes
            await until(partial(drains, client))
            refused = [
                await client.get("/ready"),
                await client.post("/v1/speculate", content=wire.encode(request)),
                await client.post("/v1/completions", json={"prompt": "a", "stream": True}),
            ]
            health = await client.get("/health")
            pushed = await push(client, session, Draft(0, 0, 0, (1,)))
            messages += await stream.rest()
        await gone(process.pid, within_s=5)

    for answer in refused:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "draining"
    assert health.json() == {"status": "ok", "state": "draining"}
    assert pushed.status_code == 204
    assert text_of(messages) == [said((SLOW,), position) for position in range(15)]
    assert isinstance(messages[-1], Finish)
    assert process.returncode == 0


async def test_a_target_that_hangs_ends_its_sessions_and_the_process() -> None:
    hangs = opening(prompt=(HANGS,))
    with fake_verifier(pass_timeout_s=0.5, stop_timeout_s=2) as (process, url):
        worker = worker_of(process.pid)
        async with http2_client(url) as client, opened(client, hangs) as stream:
            await stream.opened()
            (fault,) = await stream.rest()
            health = await client.get("/health")
        await gone(process.pid, within_s=10)

    assert isinstance(fault, Fault)
    assert (fault.code, fault.retryable) == ("target_failed", True)
    assert (health.status_code, health.json()["error"]["code"]) == (503, "failed")
    assert process.returncode == 1
    assert not is_running(worker)


async def test_a_plain_answer_that_is_cut_off_ends_with_an_error_that_says_so() -> None:
    body = {"prompt": [SLOW], "max_tokens": 200, "stream": True}
    with fake_verifier(drain_timeout_s=0.1) as (process, url):
        async with (
            http2_client(url) as client,
            client.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            events = [line async for line in lines if line]
        await gone(process.pid, within_s=5)

    assert '"code":"shutting_down"' in events[-1]
    assert process.returncode == 0


async def test_the_worker_does_not_outlive_a_killed_parent() -> None:
    with fake_verifier() as (process, url):
        worker = worker_of(process.pid)
        process.kill()
        await gone(worker, within_s=5)

    async with http2_client(url) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")


async def test_while_the_target_loads_the_process_is_healthy_and_not_ready() -> None:
    port = free_port()
    with running(fake_command(port, model="")) as process:
        async with http2_client(f"http://127.0.0.1:{port}") as client:
            health = await _get(client, "/health")
            answers = [await _get(client, path) for path in ("/ready", "/v1/model-facts")]

    assert process.returncode == 0
    assert (health.status_code, health.json()) == (200, {"status": "ok", "state": "loading"})
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")


async def _get(client: httpx.AsyncClient, path: str) -> httpx.Response:
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.get(path)
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "reason", "status"),
    [
        (["--model", "nope"], "no model 'nope'", 1),
        (["--bogus", "1"], "bogus", 2),
        (["--config", "nowhere.toml"], "nowhere.toml", 2),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    options: list[str], reason: str, status: int
) -> None:
    command = [sys.executable, "-m", "picospec.verifier", "--port", str(free_port()), *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)

    assert ended.returncode == status
    assert reason in ended.stderr
    assert len((ended.stdout + ended.stderr).splitlines()) == 1
    assert "Traceback" not in ended.stderr


async def test_without_keys_a_page_of_another_name_reaches_nothing_by_any_version_of_http() -> (
    None
):
    with fake_verifier(keys="") as (_, here):
        there = here.replace("127.0.0.1", "evil.example")
        for version in (HTTPVersion.HTTP1, HTTPVersion.HTTP2):
            transport = HTTPTransport(
                http_version=version,
                dns_overrides={"evil.example": ["127.0.0.1"]},
                enable_otel=False,
            )
            answers = [await Client(transport).get(f"{at}/v1/models") for at in (here, there)]

            assert [answer.status for answer in answers] == [200, 403]
