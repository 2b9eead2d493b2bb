"""The command line reads its arguments, and hands the rest on."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from bench.__main__ import app as bench_app
from edge_agent.__main__ import app as edge_app
from gateway.keys import KeyLimits, digest_of, read_keys
from picospec import doctor as examination
from picospec import findings
from picospec.main import app
from verifier.__main__ import app as verifier_app

runner = CliRunner()


@pytest.mark.parametrize(
    ("command", "becomes"),
    [
        (["edge", "--port", "8001"], ["edge_agent", "--port", "8001"]),
        (
            ["verifier", "--target", "vllm", "--help"],
            ["verifier", "--target", "vllm", "--help"],
        ),
    ],
)
def test_a_service_gets_its_arguments_as_they_are(
    command: list[str], becomes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda _, arguments: executed.append(arguments))

    result = runner.invoke(app, command)

    assert result.exit_code == 0, result.output
    assert executed == [[sys.executable, "-P", "-m", *becomes]]


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_is_that_of_the_package(word: str) -> None:
    assert runner.invoke(app, [word]).output == f"picospec {version('picospec')}\n"


@pytest.mark.parametrize("command", ["pull", "list", "ps", "serve"])
def test_the_words_of_ollamas_users_are_known(command: str) -> None:
    assert runner.invoke(app, [command, "--help"]).exit_code == 0


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, with the words that call it."""
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), get_command(app))]
    for words, command in waiting:
        more = getattr(command, "commands", {})
        waiting += [((*words, name), each) for name, each in more.items()]
        yield words, command
    yield ("edge",), get_command(edge_app)
    yield ("verifier",), get_command(verifier_app)
    yield ("bench",), get_command(bench_app)


def test_no_word_of_a_help_text_is_taken_for_markup() -> None:
    texts = [each for _, command in commands() for each in (command, *command.params)]
    for text in filter(None, (getattr(each, "help", None) for each in texts)):
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


def test_a_wrong_setting_ends_a_start_before_a_model_is_fetched(tmp_path: Path) -> None:
    file = tmp_path / "local.toml"
    file.write_text('[verifier]\nllama = {slots = "many", thread = 2}\n[edge]\nport = 0\n')

    result = runner.invoke(app, ["up", "--config", str(file)])

    assert result.exit_code == 2
    assert result.output == "edge.port: it should be greater than or equal to 1\n"


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "named"),
    [
        (["--pin", "zero"], {}, 2, "zero"),
        (["--config", "nowhere.toml"], {}, 2, "nowhere.toml"),
        ([], {"EDGE_PORT": "not-a-port"}, 2, "EDGE_PORT"),
    ],
)
def test_what_is_wrong_with_an_option_file_or_variable_is_named(
    arguments: list[str], environ: dict[str, str], status: int, named: str
) -> None:
    result = runner.invoke(app, ["up", *arguments], env=environ)

    assert result.exit_code == status
    assert named in result.output
    assert "Traceback" not in result.output


def test_an_address_that_a_cluster_puts_into_a_ports_variable_is_no_port() -> None:
    environ = {f"{name}_PORT": "tcp://10.0.0.7:8000" for name in ("EDGE", "VERIFIER")}

    result = runner.invoke(app, ["config", "show", "edge"], env=environ)

    assert "8000" in result.output, result.output
    assert "EDGE_PORT" not in result.output


@pytest.mark.parametrize(
    ("line", "ending"), [("edge --fallb", "--fallback"), ("verifier --target ll", "llama")]
)
def test_a_shell_completes_the_options_of_both_ends(line: str, ending: str) -> None:
    words = f"picospec {line}"
    environ = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}

    result = runner.invoke(
        app, env=environ | {"_PICOSPEC_COMPLETE": "complete_bash"}, prog_name="picospec"
    )

    assert result.output.split() == [ending]


@pytest.mark.parametrize(
    ("variable", "verifier"),
    [
        ("PICOSPEC_EDGE__VERIFIER_URL", None),
        ("PICOSPEC_EDGE__VERIFIER_URLS", None),
        ("UNUSED", "http://127.0.0.1:9000"),
    ],
)
def test_the_doctor_goes_to_the_verifiers_of_the_environment(
    variable: str, verifier: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def examine(*given: object, named: bool) -> list[findings.Finding]:
        asked.append((*given, named))
        return []

    monkeypatch.setattr(examination, "examine", examine)

    runner.invoke(app, ["doctor"], env={variable: "http://gpu.example"})

    ports = {"edge": 8000, "verifier": 9000}
    assert asked == [(None, verifier, None, None, ports, verifier is None)]


def test_what_a_doctor_finds_is_there_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        findings.Finding("a", True, "fine"),
        findings.Finding("b", False, "no", "do"),
    ]
    monkeypatch.setattr(examination, "examine", lambda *_, **__: found)
    monkeypatch.setattr("picospec.main.check_backends", list)

    result = runner.invoke(app, ["doctor", "--json"])

    assert result.exit_code == 1
    assert [each["subject"] for each in json.loads(result.output)] == ["a", "b"]
    assert json.loads(result.output)[1]["remedy"] == "do"


@pytest.mark.system
def test_a_doctor_who_is_told_of_no_model_needs_none_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PICOSPEC_CACHE", "PICOSPEC_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))

    def found(model: str | None) -> dict[str, bool]:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            findings = examination.examine(None, url, "none", model, {})
        return {each.subject: each.ok for each in findings if "models of" in each.subject}

    assert found(None) == {
        "models of qwen2.5-coder-0.5b-q4_0": True,
        "models of qwen2.5-coder-1.5b-q8_0": True,
    }
    assert found("qwen2.5-coder") == {"models of qwen2.5-coder": False}


def test_the_key_that_is_printed_is_the_one_whose_hash_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    limits = ["--sessions", "2", "--tokens-a-minute", "900"]

    printed = runner.invoke(app, ["keys", "add", "ann", str(file), *limits])

    (key,) = read_keys(file)
    assert (printed.exit_code, key.name) == (0, "ann")
    assert digest_of(printed.output.strip().encode()) == key.digest
    assert file.stat().st_mode & 0o777 == 0o600
    assert key.limits == KeyLimits(sessions=2, tokens_a_minute=900)
