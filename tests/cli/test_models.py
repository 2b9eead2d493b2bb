"""`picospec models`, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.models import models_app


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOSPEC_CACHE", str(tmp_path))
    monkeypatch.setenv("PICOSPEC_MODEL_SOURCES", "folder")
    monkeypatch.setenv("COLUMNS", "200")


def test_list_shows_every_model_and_pair() -> None:
    result = CliRunner().invoke(models_app, ["list"])

    assert result.exit_code == 0
    assert "smollm2-135m-q8_0" in result.stdout
    assert "pair qwen2.5-coder" in result.stdout


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        ("pull", "gpt", "no model 'gpt'"),
        ("pull", "smollm2", "no folder is set"),
        ("verify", "smollm2", "models pull smollm2-135m-q4_0"),
    ],
)
def test_what_fails_is_one_line_and_an_exit_code(command: str, name: str, reason: str) -> None:
    result = CliRunner().invoke(models_app, [command, name])

    assert result.exit_code == 1
    assert reason in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_file_in_the_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not the model")
    monkeypatch.setenv("PICOSPEC_MODEL_FOLDER", str(tmp_path))

    result = CliRunner().invoke(models_app, ["pull", "smollm2"])

    assert result.exit_code == 1
    assert "sha256" in result.stderr
