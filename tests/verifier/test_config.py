"""Where settings come from, and what is refused."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from gateway.drain import Drain
from gateway.hosting.settings import WrongSettings
from tests.verifier.fake_target import FakeTarget
from verifier.__main__ import main, nested
from verifier.app import VerifierService
from verifier.settings import VerifierSettings, load
from verifier.vllm_target import launching
from verifier.vllm_target.launch_variables import CONFIG, SOCKET


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

    made = VerifierService(settings, lambda _: FakeTarget(), Drain(), device=device)

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
