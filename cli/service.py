"""`picospec edge --install-service`: the edge as a systemd service of this user.

The service reads its keys from `edge.env` beside the user's settings; a unit holds none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from picospec.gateway.hosting.parent_death import program
from picospec.models.catalogue import user_file

NAME: Final = "picospec-edge"
UNIT: Final = """[Unit]
Description=PicoSpec edge
After=network-online.target

[Service]
ExecStart={command}
EnvironmentFile=-{environment}
Restart=on-failure
RestartSec=2
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""

INSTALLED: Final = """{unit} runs now, and whenever you log in.
Keys: lines such as PICOSPEC_VERIFIER_KEY=... in {environment}, then start it again.
picospec status, picospec logs, picospec stop; picospec edge --remove-service
Without a login, too: loginctl enable-linger"""


class NoService(Exception):
    """There is no systemd that can serve this user; the text gives the reason."""


Run = Callable[[Sequence[str]], int]


def call(command: Sequence[str]) -> int:
    """Run a command of systemd; return its status. Raises NoService."""
    if shutil.which(command[0]) is None:
        raise NoService(f"there is no {command[0]} here: a service needs systemd")
    return subprocess.run(command, check=False).returncode


def unit_path(environ: Mapping[str, str]) -> Path:
    """Return the path of the unit, which may not exist."""
    base = environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user" / f"{NAME}.service"


def install(arguments: Sequence[str], environ: Mapping[str, str], run: Run = call) -> str:
    """Write a unit for an edge with these arguments, and start it. Raises NoService."""
    path, settings = unit_path(environ), user_file(environ).with_name("edge.env")
    words = [sys.executable, *program("picospec.cli"), "edge", *arguments]
    unit = UNIT.format(
        command=" ".join(map(_word, words)), environment=str(settings).replace("%", "%%")
    )
    _systemctl(run, "show-environment")  # before anything is written
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit)
    for step in ("daemon-reload", f"enable {NAME}", f"restart {NAME}"):
        _systemctl(run, step)
    return INSTALLED.format(unit=path, environment=settings)


def remove(environ: Mapping[str, str], run: Run = call) -> str:
    """Stop the service and delete its unit. Raises NoService."""
    run(["systemctl", "--user", "disable", "--now", NAME])
    unit_path(environ).unlink(missing_ok=True)
    run(["systemctl", "--user", "daemon-reload"])
    return f"{NAME} is removed"


COMMANDS: Final[dict[str, tuple[str, Sequence[str]]]] = {
    "status": ("How the edge's service is.", ["systemctl", "--user", "status", NAME]),
    "stop": ("Stop the edge's service.", ["systemctl", "--user", "stop", NAME]),
    "logs": (
        "Follow the log of the edge's service.",
        ["journalctl", "--user-unit", NAME, "-f"],
    ),
}
"""Maps the name of a command to its help text and to what it runs."""


def _systemctl(run: Run, step: str) -> None:
    if status := run(["systemctl", "--user", *step.split()]):
        raise NoService(f"systemctl --user {step} ended with status {status}")


def _word(text: str) -> str:
    """Quote a word as systemd reads it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'
