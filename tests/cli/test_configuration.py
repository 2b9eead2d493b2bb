"""A service reads its default file, and it is shown where each setting is from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from picospec.cli.configuration import origin_of, with_default_file
from picospec.cli.main import app
from picospec.edge_agent.settings import EdgeSettings

FILE = 'slots = 2\ndraft_model = "[m]"\n[drafting]\nflush_tokens = 5\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PICOSPEC_CONFIG_DIR", str(tmp_path))
    (tmp_path / "edge.toml").write_text(FILE)
    return tmp_path / "edge.toml"


def test_a_file_that_is_named_or_not_there_is_in_place_of_the_default_one(file: Path) -> None:
    def becomes(service: str, *arguments: str) -> list[str]:
        return with_default_file(service, arguments, os.environ)

    assert becomes("edge", "--port", "1") == ["--config", str(file), "--port", "1"]
    assert becomes("edge", "--config", "x") == ["--config", "x"]
    assert becomes("edge", "--config=x") == ["--config=x"]
    assert becomes("verifier") == []


def test_each_value_is_shown_with_where_it_is_from_and_no_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOSPEC_API_KEYS", "secret-1,secret-2")
    monkeypatch.setenv("EDGE_PORT", "9001")
    monkeypatch.setenv("picospec_edge__drafting", '{"min_survival": 0.2}')
    monkeypatch.setenv("COLUMNS", "250")

    shown = CliRunner().invoke(app, ["config", "show"]).output

    rows = [line.split() for line in shown.splitlines()]
    for row in (
        ["api_keys", "2", "of", "them", "PICOSPEC_API_KEYS"],
        ["port", "9001", "EDGE_PORT"],
        ["slots", "2", str(file)],
        ["draft_model", '"[m]"', str(file)],
        ["drafting.min_survival", "0.2", "picospec_edge__drafting"],
        ["drafting.flush_tokens", "5", str(file)],
        ["lookup", "true", "default"],
    ):
        assert row in rows
    assert "secret" not in shown
    assert origin_of(EdgeSettings, "slots", None, {}) == "default"


def test_a_wrong_setting_is_one_line_that_names_it(file: Path) -> None:
    file.write_text("slotz = 2\n")

    result = CliRunner().invoke(app, ["config", "show"])

    assert result.exit_code == 1
    assert "slotz" in result.output
    assert "Traceback" not in result.output
