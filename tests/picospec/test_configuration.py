"""A service reads its default file, and it is shown where each setting is from."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from edge_agent.settings import EdgeSettings
from picospec.configuration import origin_of, with_default_file
from picospec.main import app
from picospec.service import NoService, install, kept_variables, remove
from picospec.service_managers import launchd, systemd, task_scheduler
from tests.guards import GUARD_S

FILE = 'slots = 2\ndraft_model = "[m]"\n[proxy]\nbody_limit_bytes = 5000\n'


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
    monkeypatch.setenv("picospec_edge__proxy", '{"models": ["m"]}')
    monkeypatch.setenv("COLUMNS", "250")

    shown = CliRunner().invoke(app, ["config", "show"]).output

    rows = [line.split() for line in shown.splitlines()]
    for row in (
        ["api_keys", "2", "of", "them", "PICOSPEC_API_KEYS"],
        ["port", "9001", "EDGE_PORT"],
        ["slots", "2", str(file)],
        ["draft_model", '"[m]"', str(file)],
        ["proxy.models", '["m"]', "picospec_edge__proxy"],
        ["proxy.body_limit_bytes", "5000", str(file)],
        ["lookup", "true", "default"],
    ):
        assert row in rows
    assert "secret" not in shown
    assert origin_of(EdgeSettings, "slots", None, {}) == "default"


def test_a_file_to_begin_with_is_printed() -> None:
    printed = CliRunner().invoke(app, ["config", "example", "verifier"]).output

    assert printed == (Path(__file__).parents[2] / "configs/verifier.toml").read_text()


def test_a_wrong_setting_is_one_line_that_names_it(file: Path) -> None:
    file.write_text("slotz = 2\n")

    result = CliRunner().invoke(app, ["config", "show"])

    assert result.exit_code == 2
    assert result.output == "edge.slotz: there is no such setting; is it slots?\n"


# The edge as a service of this user, under a systemd that only notes what it is told.

ARGUMENTS = ["--verifier-url", "https://gpu:9000", "--draft", 'a "b" %h $HOME \\']


def test_a_unit_is_written_started_and_removed(tmp_path: Path) -> None:
    commands, environ = list[str](), {"XDG_CONFIG_HOME": str(tmp_path)}

    def run(command: Sequence[str]) -> int:
        commands.append(" ".join(command).removeprefix("systemctl --user "))
        return 0

    said = install(ARGUMENTS, environ, run)
    unit = systemd(environ).file
    text = unit.read_text()
    remove(environ, run)

    assert str(unit) in said
    assert f'ExecStart="{sys.executable}" "-P" "-m" "picospec" "edge" "--veri' in text
    assert '"a \\"b\\" %%h $$HOME \\\\"' in text
    assert f"EnvironmentFile=-{tmp_path}/picospec/edge.env" in text
    assert not unit.exists()
    assert commands[1:4] == ["daemon-reload", "enable picospec-edge", "restart picospec-edge"]
    assert commands[4:] == ["disable --now picospec-edge", "daemon-reload"]


def test_a_service_keeps_what_it_was_installed_with_where_only_its_user_reads_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "picospec" / "edge.env"
    file.parent.mkdir()
    file.write_text('PICOSPEC_PROXY_KEY=mine\nPICOSPEC_API_KEYS="old"\n')
    file.chmod(0o644)
    ours = {
        "PICOSPEC_API_KEYS": 'a"b\\c', "PICOSPEC_EDGE__PORT": "1", "HF_TOKEN": 'a"\\"b',
        "HTTPS_PROXY": "p", "no_proxy": "n", "SSL_CERT_FILE": "c",
    }  # fmt: skip
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/root", "LANG": "C", **ours}

    printed = install([], environ, lambda _: 0)

    assert r'PICOSPEC_API_KEYS="a\"b\\c"' in file.read_text().splitlines()
    assert kept_variables(file) == {"PICOSPEC_PROXY_KEY": "mine", **ours}
    assert "HF_TOKEN, HTTPS_PROXY" in printed
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"WorkingDirectory={Path.cwd()}" in systemd(environ).file.read_text()


def test_launchd_and_the_task_scheduler_get_files_that_they_read(tmp_path: Path) -> None:
    environ = {name: str(tmp_path) for name in ("HOME", "LOCALAPPDATA", "PICOSPEC_CONFIG_DIR")}
    variables = str(tmp_path / "edge.env")
    commands = list[str]()

    for manager in (agent := launchd(environ), task := task_scheduler(environ)):
        install(ARGUMENTS, environ, lambda words: commands.append(words[0]) or 0, manager)

    plist = plistlib.loads(agent.file.read_bytes())
    words = [sys.executable, "-P", "-m", "picospec", "edge", "--variables", variables]
    assert plist["ProgramArguments"] == [*words, *ARGUMENTS]
    assert (plist["Label"], plist["RunAtLoad"]) == ("dev.picospec.edge", True)
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    xml = ElementTree.fromstring(task.file.read_text("utf-16"))
    texts = {each.tag.partition("}")[2]: each.text or "" for each in xml.iter()}
    assert (texts["Command"], texts["WorkingDirectory"]) == ("cmd.exe", str(Path.cwd()))
    assert texts["Arguments"].startswith(f'/c "{sys.executable} -P -m picospec edge --var')
    assert "https://gpu:9000" in texts["Arguments"]
    assert {*commands} == {"launchctl", "schtasks"}
    for manager in (agent, task):
        remove(environ, lambda _: 0, manager)
        with pytest.raises(NoService, match="no service of PicoSpec is installed"):
            remove(environ, lambda _: 0, manager)


@pytest.mark.system
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    install(ARGUMENTS, environ, lambda _: 0)

    command = ["systemd-analyze", "verify", str(systemd(environ).file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, check=False)

    assert "picospec-edge" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_step_that_fails_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        NoService, match="systemctl --user show-environment ended with status 1"
    ):
        install([], {"XDG_CONFIG_HOME": str(tmp_path)}, lambda _: 1)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["edge", "--install-service"], ["logs"], ["stop"]])
def test_without_systemd_it_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 1
    assert "a service needs systemd" in result.output
