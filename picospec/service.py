"""`picospec edge --install-service`: the edge as a systemd service of this user.

It goes on with the variables and in the folder that it was installed with. It reads them from
`edge.env` beside the user's settings, because a unit, which others may read, holds no key.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gateway.hosting.parent_death import program
from local_models.catalogue import user_file

NAME: Final = "picospec-edge"
UNIT: Final = """[Unit]
Description=PicoSpec edge
After=network-online.target

[Service]
ExecStart={command}
WorkingDirectory={folder}
EnvironmentFile=-{environment}
Restart=on-failure
RestartSec=2
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""

INSTALLED: Final = """{unit} runs now, and whenever you log in,
with the variables PICOSPEC_* of this shell, which are kept in {environment}.
Other keys: lines such as PICOSPEC_VERIFIER_KEY=... there, then start it again.
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
    words = [sys.executable, *program("picospec"), "edge", *arguments]
    unit = UNIT.format(
        command=" ".join(map(_word, words)),
        folder=str(Path.cwd()).replace("%", "%%"),
        environment=str(settings).replace("%", "%%"),
    )
    _systemctl(run, "show-environment")  # before anything is written
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit)
    keep_variables(settings, environ)
    for step in ("daemon-reload", f"enable {NAME}", f"restart {NAME}"):
        _systemctl(run, step)
    return INSTALLED.format(unit=path, environment=settings)


def keep_variables(file: Path, environ: Mapping[str, str]) -> None:
    """Write our variables to a file for systemd that only its owner can read. Those that the
    file has, and this environment has not, stay."""
    ours = {name: value for name, value in environ.items() if name.startswith("PICOSPEC_")}
    before = file.read_text().splitlines() if file.exists() else []
    others = [line for line in before if line.partition("=")[0].strip() not in ours]
    written = [f"{name}={_quoted(value)}" for name, value in sorted(ours.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text("".join(f"{line}\n" for line in (*others, *written)))


def remove(environ: Mapping[str, str], run: Run = call) -> str:
    """Stop the service and delete its unit. Raises NoService."""
    run(["systemctl", "--user", "disable", "--now", NAME])
    unit_path(environ).unlink(missing_ok=True)
    run(["systemctl", "--user", "daemon-reload"])
    return f"{NAME} is removed"


COMMANDS: Final[dict[str, tuple[str, Sequence[str]]]] = {
    "stop": ("Stop the edge's service.", ["systemctl", "--user", "stop", NAME]),
    "logs": (
        "Follow the log of the edge's service.",
        ["journalctl", "--user-unit", NAME, "-f"],
    ),
}
"""Maps the name of a command to its help text and to what it runs."""


def state(environ: Mapping[str, str]) -> str | None:
    """Return the state of the service, such as "active"; None if none is installed."""
    if not unit_path(environ).exists() or shutil.which("systemctl") is None:
        return None
    command = ["systemctl", "--user", "is-active", NAME]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    return process.stdout.strip() or process.stderr.strip()


def _systemctl(run: Run, step: str) -> None:
    if status := run(["systemctl", "--user", *step.split()]):
        raise NoService(f"systemctl --user {step} ended with status {status}")


def _word(text: str) -> str:
    """Quote a word of a command as systemd reads it."""
    return _quoted(text).replace("%", "%%").replace("$", "$$")


def _quoted(text: str) -> str:
    """Quote a text as systemd reads it: systemd.exec(5), EnvironmentFile."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
