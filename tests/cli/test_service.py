"""The edge as a service of this user, under a systemd that only notes what it is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from picospec.cli.main import app
from picospec.cli.service import NoService, install, remove, unit_path

ARGUMENTS = ["--verifier-url", "https://gpu:9000", "--draft", 'a "b" %h $HOME \\']


def test_a_unit_is_written_started_and_removed(tmp_path: Path) -> None:
    commands, environ = list[str](), {"XDG_CONFIG_HOME": str(tmp_path)}

    def run(command: Sequence[str]) -> int:
        commands.append(" ".join(command).removeprefix("systemctl --user "))
        return 0

    said = install(ARGUMENTS, environ, run)
    unit = unit_path(environ)
    text = unit.read_text()
    remove(environ, run)

    assert str(unit) in said
    assert f'ExecStart="{sys.executable}" "-P" "-m" "picospec.cli" "edge" "--veri' in text
    assert '"a \\"b\\" %%h $$HOME \\\\"' in text
    assert f"EnvironmentFile=-{tmp_path}/picospec/edge.env" in text
    assert not unit.exists()
    assert commands[1:4] == ["daemon-reload", "enable picospec-edge", "restart picospec-edge"]
    assert commands[4:] == ["disable --now picospec-edge", "daemon-reload"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    install(ARGUMENTS, environ, lambda _: 0)

    command = ["systemd-analyze", "verify", str(unit_path(environ))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert "picospec-edge" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_step_that_fails_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        NoService, match="systemctl --user show-environment ended with status 1"
    ):
        install([], {"XDG_CONFIG_HOME": str(tmp_path)}, lambda _: 1)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["edge", "--install-service"], ["logs"], ["status"]])
def test_without_systemd_it_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 1
    assert "a service needs systemd" in result.output
