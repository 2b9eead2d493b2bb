"""Which settings are refused, and what options of llama-server and of vLLM become."""

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
from picospec.up import with_options
from tests.verifier.fake_target import FakeTarget
from verifier.__main__ import main, nested
from verifier.app import VerifierService
from verifier.options import SETTINGS, llama_options
from verifier.settings import LlamaSettings, VerifierSettings, load
from verifier.vllm_target import launching
from verifier.vllm_target.launch_variables import CONFIG, SOCKET


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
    tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "verifier.toml"
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


# llama-server's options become settings, in both commands.

LINE = [
    *("-ngl", "33", "-sm", "row", "-ts", "3,1", "-mg", "1", "-ctk", "q8_0", "-ctv", "q5_1"),
    *("-ot", r"\.ffn_.*_exps\.=CPU,out=CUDA1", "-fa", "on", "-c", "16384", "-np", "2"),
    *("-t", "6", "--head", "mtp", "--exact", "strict"),
]
MADE = LlamaSettings(
    gpu_layers=33, split_mode="row", tensor_split=(3, 1), main_gpu=1,
    override_tensor=(r"\.ffn_.*_exps\.=CPU", "out=CUDA1"),
    cache_type_k="q8_0", cache_type_v="q5_1", flash_attention="on",
    context_tokens=16384, slots=2, threads=6, head="mtp", exact="strict",
)  # fmt: skip


def test_every_option_sets_its_setting_and_the_rest_is_left() -> None:
    settings, others = llama_options([*LINE[:2], "--port", "9", *LINE[2:]])

    assert VerifierSettings.load(None, {}, {"llama": settings}).llama == MADE
    assert others == ["--port", "9"]
    assert settings.keys() == SETTINGS.keys() <= LlamaSettings.model_fields.keys()


def test_both_spellings_are_taken_and_what_means_the_default_sets_nothing() -> None:
    for name, options in SETTINGS.items():
        for option in options:
            assert list(llama_options([f"{option}=7"])[0]) == [name]
    assert llama_options(["-ngl", "all", "-c", "0"]) == ({}, [])
    assert llama_options(["-ngl", "-1"]) == ({"gpu_layers": "-1"}, [])
    with pytest.raises(ValueError, match="-ngl: expected a value"):
        llama_options(["-ngl"])


def test_up_gives_them_to_the_verifier_and_refuses_what_it_does_not_know() -> None:
    file = {"verifier": {"llama": {"slots": 4, "threads": 2}}, "edge": {"threads": 1}}

    tables = with_options(file, LINE)

    assert tables["edge"] == file["edge"]
    assert LlamaSettings.model_validate(tables["verifier"]["llama"]) == MADE
    with pytest.raises(WrongSettings, match="no option --verifer-port"):
        with_options({}, ["--verifer-port", "9"])


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


def test_vllms_own_port_and_domains_of_media_are_there_only_if_they_are_named(
    launched: Callable[..., Launched],
) -> None:
    private, environment = launched(model="m")
    line = "--vllm.port 8001 --vllm.allowed-media-domains images.example"
    named, _ = launched(*line.split(), model="m")

    folder = Path(value(private, "--uds")).parent
    assert folder == Path(environment[SOCKET])
    assert folder.stat().st_mode & 0o077 == 0
    assert "--uds" not in named
    assert (value(named, "--host"), value(named, "--port")) == ("127.0.0.1", "8001")
    flag = "--allowed-media-domains"
    assert value(private, flag) == launching.NO_DOMAIN
    assert value(named, flag) == "images.example"


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


@pytest.mark.parametrize("lacking", ["vllm", *launching.PLUGINS])
def test_an_installation_that_lacks_something_is_refused(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = launching.entry_points
    monkeypatch.setattr(launching, "find_spec", lambda name: None if name == lacking else True)
    monkeypatch.setattr(
        launching,
        "entry_points",
        lambda *, group: stock(group="nothing" if group == lacking else group),
    )

    reason = "pip install" if lacking == "vllm" else f"no {lacking} here: install it again"
    with pytest.raises(SystemExit, match=reason):
        launching.launch(VerifierSettings(target="vllm"), None, {})
