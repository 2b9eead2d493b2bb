"""`picospec up` with two fakes in place of the real services."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest

from picospec.bench.run.services import free_port
from picospec.cli.up import Plan, check_free, check_plain, read_settings, up, usage_lines
from picospec.gateway.hosting.processes import Service, ServiceError
from tests.cli.screen import Screen

FAKE = str(Path(__file__).parents[1] / "gateway" / "fake_service.py")


def plan() -> Plan:
    return Plan(edge_port=free_port(), verifier_port=free_port(), ready_within_s=10)


def fakes(planned: Plan, *edge_manner: str) -> tuple[Service, Service]:
    def fake(name: str, port: int, *manner: str) -> Service:
        command = (sys.executable, FAKE, str(port), *manner)
        return Service(name, command, f"http://127.0.0.1:{port}")

    edge = fake("edge", planned.edge_port, *edge_manner)
    return fake("verifier", planned.verifier_port), edge


def test_each_end_gets_its_port_and_the_edge_the_verifiers_address() -> None:
    verifier, edge = Plan(edge_port=1, verifier_port=2).services()

    python, here = sys.executable, ("--host", "127.0.0.1")
    assert verifier.command == (python, "-P", "-m", "picospec.verifier", "--port", "2", *here)
    assert edge.command[:8] == (python, "-P", "-m", "picospec.edge_agent", "--port", "1", *here)
    assert edge.command[8:] == ("--verifier-url", "http://127.0.0.1:2")


def test_settings_of_one_file_reach_each_end_by_its_environment(tmp_path: Path) -> None:
    file = tmp_path / "local.toml"
    file.write_text('[edge]\ndraft_model = "m"\nslots = 2\n[edge.drafting]\nflush_tokens = 3\n')

    verifier, edge = Plan(settings=read_settings(file)).services()

    assert verifier.environment == {"PICOSPEC_VERIFIER__DRAIN_TIMEOUT_S": "0"}
    assert edge.environment == {
        "PICOSPEC_EDGE__DRAIN_TIMEOUT_S": "0",
        "PICOSPEC_EDGE__DRAFT_MODEL": "m",
        "PICOSPEC_EDGE__SLOTS": "2",
        "PICOSPEC_EDGE__DRAFTING": '{"flush_tokens": 3}',
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

    with pytest.raises(ServiceError, match=rf"local\.toml.*{reason}"):
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
    with pytest.raises(ServiceError, match=named):
        check_plain(settings, environ)


async def test_it_prints_how_to_use_it_when_both_are_ready_and_ends_on_a_signal() -> None:
    planned, screen = plan(), Screen()

    async with asyncio.timeout(20):
        running = asyncio.create_task(up(planned, fakes(planned), screen))
        while "a browser" not in screen.text:  # noqa: ASYNC110 (a console has no events)
            await asyncio.sleep(0.02)
        last = screen.text.splitlines()[-1]
        signal.raise_signal(signal.SIGTERM)
        await running

    assert last == f"Open http://127.0.0.1:{planned.edge_port}/ in a browser."
    assert f"http://127.0.0.1:{planned.edge_port}/v1/chat/completions" in screen.text
    assert "edge | stopping" in screen.text
    check_free(planned.edge_port, "EDGE_PORT")
    check_free(planned.verifier_port, "VERIFIER_PORT")


async def test_a_port_in_use_is_an_error_before_anything_starts() -> None:
    planned = plan()
    with socket.socket() as other:
        other.bind(("127.0.0.1", planned.edge_port))
        other.listen()

        with pytest.raises(ServiceError, match=f"port {planned.edge_port} .*EDGE_PORT"):
            await up(planned, fakes(planned), Screen())


def test_the_usage_lines_name_a_key_and_never_show_it() -> None:
    lines = "\n".join(usage_lines(Plan(api_key="very-secret"), "qwen"))

    assert "very-secret" not in lines
    assert "PICOSPEC_API_KEYS" in lines
    assert '"model": "qwen"' in lines
