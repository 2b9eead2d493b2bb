"""What a service may use, its cores and connections, and who may use the service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import httpx
import pytest

from edge_agent.settings import load
from gateway.access import Access
from gateway.app import create_app
from gateway.endpoints.services import Services, one_model
from gateway.hosting import cores
from gateway.hosting.cores import Pins, compute_threads, cores_of, parse_pins, share
from gateway.hosting.limits import MAX_CONNECTIONS, RESERVED, max_connections
from gateway.hosting.settings import ServiceSettings
from gateway.hosting.strangers import check_listening, hosts_of, is_loopback
from gateway.ports import GatewayTokenizer
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, client_of, make_app
from tests.guards import GUARD_S
from verifier.settings import VerifierSettings


def with_siblings(folder: Path, *siblings: str) -> Path:
    """Write the topology of CPUs, whose cores have these CPUs."""
    for cpu, text in enumerate(siblings):
        directory = folder / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("cpus", "siblings", "pins"),
    [
        ({3}, (), Pins()),
        ({0, 1}, (), Pins(frozenset({0}), frozenset({1}))),
        ({2, 5, 7}, (), Pins(frozenset({2, 5}), frozenset({7}))),
        ({0, 1}, ("0-1", "0-1"), Pins(frozenset({0}), frozenset({1}))),
        (range(4), ("0,2", "1,3", "0,2", "1,3"), Pins(frozenset({0, 2}), frozenset({1, 3}))),
        ({0, 1, 3}, ("0,2", "1,3", "0,2", "1,3"), Pins(frozenset({0}), frozenset({1, 3}))),
    ],
)
def test_the_verifier_gets_the_first_half_of_the_cores_and_the_edge_the_rest(
    tmp_path: Path, cpus: Collection[int], siblings: tuple[str, ...], pins: Pins
) -> None:
    assert share(cores_of(cpus, with_siblings(tmp_path, *siblings))) == pins


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_threads_are_as_many_as_the_cores_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    topology = with_siblings(tmp_path, "0,2", "1,3", "0,2", "1,3")
    monkeypatch.setattr(cores, "usable_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "cores_of", lambda cpus: cores_of(cpus, topology))
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert compute_threads() == 2

    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert compute_threads() == 2

    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert compute_threads() == 1


@pytest.mark.system
def test_a_system_without_linuxs_calls_still_has_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    sysctl = tmp_path / "sysctl"
    sysctl.write_text('#!/bin/sh\n[ "$2" = hw.perflevel0.physicalcpu ] && echo 6\n')
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert compute_threads() == 6
    assert cores.usable_cpus()


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("none", Pins()),
        ("0:1", Pins(frozenset({0}), frozenset({1}))),
        ("0,2-3:1", Pins(frozenset({0, 2, 3}), frozenset({1}))),
        (":1", Pins(frozenset(), frozenset({1}))),
    ],
)
def test_pins_are_read_as_written(text: str, pins: Pins) -> None:
    assert parse_pins(text, range(4)) == pins


@pytest.mark.parametrize("text", ["0", "a:1", "0:1-", "-1:0", "0:9"])
def test_pins_of_another_form_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"cores|pins"):
        parse_pins(text, range(4))


# A service listens to strangers only where that is wanted, answers to its own names, and with
# keys set, shows without one only what is of no client.

KEYED = {"PICOSPEC_API_KEYS": "one"}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)
    check_listening(load(None, {}, {"host": host}))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "gpu.example", "", "localhost.x"]
)
def test_beyond_this_machine_a_service_needs_keys_or_leave(host: str, tmp_path: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="allow_anonymous"):
        check_listening(load(None, {}, {"host": host}))

    check_listening(load(None, KEYED, {"host": host}))
    check_listening(load(None, {}, {"host": host, "allow_anonymous": True}))
    (tmp_path / "keys.toml").touch()
    check_listening(load(None, {}, {"host": host, "keys_file": tmp_path / "keys.toml"}))


def test_a_file_of_keys_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        check_listening(load(None, {}, {"keys_file": tmp_path / "nowhere.toml"}))
    with pytest.raises(ValueError, match="two keys are the same"):
        check_listening(load(None, {"PICOSPEC_API_KEYS": "one,one"}, {}))


def test_a_file_of_settings_is_read_and_one_that_is_not_there_is_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "some.toml").write_text('host = "10.0.0.1"\n')

    assert ServiceSettings.load(tmp_path / "some.toml", {}, {}).host == "10.0.0.1"
    assert ServiceSettings.load(None, {}, {}).host == "127.0.0.1"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        ServiceSettings.load(tmp_path / "nowhere.toml", {}, {})


WRONG_NAMES = {
    "PICOSPEC_EDGE__API_KEYS": "keys are in PICOSPEC_API_KEYS",
    "PICOSPEC_API_KEY": "is it PICOSPEC_API_KEYS?",
    "PICOSPEC_EDGE__VERIFER_URLS": "is it PICOSPEC_EDGE__VERIFIER_URLS?",
    "PICOSPEC_EDGE_VERIFIER_URLS": "is it PICOSPEC_EDGE__VERIFIER_URLS?",
    "picospec_edge__judges": "is it PICOSPEC_EDGE__JUDGE?",
    "PICOSPEC_EDGE__PROXY__NOTHING": "sets nothing",
    "PICOSPEC_EDGE__HOST__NAME": "sets nothing",
    "PICOSPEC_EDGE__TLS__CERT": "sets nothing",
}


@pytest.mark.parametrize(("name", "reason"), WRONG_NAMES.items())
def test_a_variable_that_looks_like_ours_and_sets_nothing_is_an_error(
    name: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        load(None, {name: "1"}, {})
    assert str(raised.value).startswith(name)


@pytest.mark.parametrize(
    "name",
    [
        "PICOSPEC_EDGE__JUDGE", "picospec_edge__judge", "PICOSPEC_EDGE__PROXY__URL",
        "PICOSPEC_EDGE__KEY_LIMITS__SESSIONS", "PICOSPEC_EDGE__TLS__CERTIFICATE",
        "PICOSPEC_VERIFIER__SESSIONS__ANYTHING", "PICOSPEC_VERIFIER_SERVICE_PORT_HTTP",
        "PICOSPEC_VERIFIER_PORT_9000_TCP_ADDR", "PICOSPEC_EDGE_PORT", "PICOSPEC_IMAGES",
        "PICOSPEC_API_KEYS", "PICOSPEC_PROXY_KEY", "PICO", "HOME",
    ],
)  # fmt: skip
def test_other_names_are_no_error(name: str) -> None:
    load(None, {name: "1"}, {})


def test_a_verifiers_table_of_flags_may_have_any() -> None:
    VerifierSettings.check_names({"PICOSPEC_VERIFIER__VLLM__MAX_MODEL_LEN": "1"})


@pytest.mark.system
@pytest.mark.parametrize("module", ["edge_agent", "verifier"])
def test_what_may_not_listen_is_said_in_a_line(module: str) -> None:
    command = [sys.executable, "-m", module, "--host", "0.0.0.0", "--port", "1"]
    environ = {"PYTHONPATH": str(ROOT), "PATH": ""}
    ended = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=GUARD_S
    )

    assert ended.returncode == 2
    assert ended.stderr.partition(".")[2].startswith("host: without keys")
    assert "Traceback" not in ended.stderr


async def status(said: str, environ: dict[str, str] | None = None, **settings: object) -> int:
    """What a request gets that says this as its `Host`."""

    async def source(_: str) -> GatewayTokenizer:
        return ByteTokenizer()

    given = load(None, environ or {}, settings)
    app = create_app(
        Services(one_model(ScriptedEngine(), source, given), given),
        Access(hosts=hosts_of(given)),
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/v1/models", headers={"host": said})
        if answer.status_code == 403:
            assert answer.json()["error"]["code"] == "host_not_allowed"
        return answer.status_code


OURS = ["localhost", "LocalHost:8000", "127.0.0.1:1", "127.0.0.1", "[::1]:8000", "[::1]"]
OTHERS = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "evil.example@localhost",
    "localhost:8000.evil.example", "127.0.0.1.nip.io:8000", ":8000", "[::2]:8000", "[::1",
    "localhost:8000:8000",
]  # fmt: skip


@pytest.mark.parametrize("host", [*OURS, *OTHERS])
async def test_only_a_request_by_this_machines_name_is_answered(host: str) -> None:
    assert await status(host) == (200 if host in OURS else 403)


async def test_more_names_can_be_allowed_and_with_keys_any_name_will_do() -> None:
    named = {"allowed_hosts": ["Box.lan"]}

    assert [await status(host, **named) for host in ("box.lan:8000", "other.lan")] == [200, 403]
    assert await status("any.example", KEYED) == 401
    beyond = {"host": "0.0.0.0", "allow_anonymous": True}
    assert await status("any.example", **beyond) == 200
    assert await status("any.example", **beyond, **named) == 403
    assert await status("127.0.0.2:8000", host="127.0.0.2") == 200


KEY = {"authorization": "Bearer right"}
PATHS = ["/v1/chat/completions", "/tokenize", "/v1/models", "/v1/nowhere"]
OPEN = ["/health", "/v1/health", "/ping", "/ready", "/metrics", "/openapi.json", "/docs"]


WRONG = [
    {},
    *({"authorization": key} for key in ("Bearer wrong", "Basic right", "right", "Bearer")),
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    {"x-api-key": "right", "authorization": "Bearer wrong"},
]


@pytest.mark.parametrize("headers", WRONG, ids=str)
@pytest.mark.parametrize("path", PATHS)
async def test_without_a_right_key_every_path_is_a_401(
    path: str, headers: dict[str, str]
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["other", "right"])) as client:
        answer = await client.post(path, content=b"{", headers=headers)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, {"x-api-key": "right"}], ids=str)
async def test_with_a_right_key_every_path_is_open_and_some_always_are(
    key: dict[str, str],
) -> None:
    async with client_of(make_app(ScriptedEngine(), api_keys=["other", "right"])) as client:
        answers = [
            await client.get("/v1/models", headers=key),
            *[await client.get(path) for path in OPEN],
        ]
        closed = [await client.get(path) for path in ("/version", "/models", "/props")]

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.status_code for answer in closed} == {401}


@pytest.mark.parametrize(
    ("limit", "most"), [(256, 128), (4096, 4096 - RESERVED), (1 << 20, MAX_CONNECTIONS)]
)
def test_connections_leave_descriptors_for_all_else(limit: int, most: int) -> None:
    assert max_connections(limit) == most
