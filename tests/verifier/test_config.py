"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from picospec.gateway.drain import Drain
from picospec.verifier.__main__ import nested
from picospec.verifier.app import Verifier
from picospec.verifier.settings import load
from tests.verifier.fake_target import FakeTarget


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

    with pytest.raises(ValidationError, match=named):
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
