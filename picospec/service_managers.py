"""How a system runs the edge as a service of one user: systemd, launchd or the Task Scheduler.

Each has a file that says what runs, and commands. Only systemd reads a file of variables; under
the other two the edge reads it itself: `picospec edge --variables FILE`.
"""

from __future__ import annotations

import plistlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

NAME: Final = "picospec-edge"
LABEL: Final = "dev.picospec.edge"

Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Manager:
    """A Manager runs the services of one system; it has the commands for ours."""

    file: Path
    """This file defines the service; it may not exist."""

    content: Callable[[Sequence[str], Path, Path], bytes]
    """Takes the arguments of `python`, a folder and the file of variables; returns `file`'s
    content."""

    check: Command
    """This command fails where no service can run."""

    replace: Sequence[Command]
    """These commands end a service of an earlier installation; they may fail."""

    begin: Sequence[Command]
    restart: Command
    stop: Command
    logs: Command
    state: Command
    """This command succeeds while the service is loaded."""

    end: Sequence[Command]
    after: Sequence[Command] = ()
    """These commands follow when `file` is deleted."""

    prints_state: bool = False
    """True if `state` prints the state itself, such as "active"."""

    advice: str = ""
    """This is what to do if `check` fails."""

    note: str = ""
    """This is to be known once the service is installed."""


def manager_of(environ: Mapping[str, str], platform: str = sys.platform) -> Manager:
    """Return what runs services under a system."""
    makers = {"darwin": launchd, "win32": task_scheduler}
    return makers.get(platform, systemd)(environ)


UNIT: Final = """[Unit]
Description=PicoSpec edge
After=network-online.target

[Service]
ExecStart={command}
WorkingDirectory={folder}
EnvironmentFile=-{variables}
Restart=on-failure
RestartSec=2
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def systemd(environ: Mapping[str, str]) -> Manager:
    """Return the systemd of this user."""
    base = environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"

    def content(words: Sequence[str], folder: Path, variables: Path) -> bytes:
        return UNIT.format(
            command=" ".join(quoted(w).replace("%", "%%").replace("$", "$$") for w in words),
            folder=str(folder).replace("%", "%%"),
            variables=str(variables).replace("%", "%%"),
        ).encode()

    def systemctl(*words: str) -> Command:
        return ["systemctl", "--user", *words]

    return Manager(
        Path(base) / "systemd" / "user" / f"{NAME}.service",
        content,
        check=systemctl("show-environment"),
        replace=(),
        begin=[
            systemctl("daemon-reload"),
            systemctl("enable", NAME),
            systemctl("restart", NAME),
        ],
        restart=systemctl("restart", NAME),
        stop=systemctl("stop", NAME),
        logs=["journalctl", "--user-unit", NAME, "-f"],
        state=systemctl("is-active", NAME),
        prints_state=True,
        end=[systemctl("disable", "--now", NAME)],
        after=[systemctl("daemon-reload")],
        advice=(
            "this shell has no session of systemd, as after `su` or in a container; log in as"
            " this user, or run `loginctl enable-linger`"
        ),
        note="Without a login, too: loginctl enable-linger",
    )


def quoted(text: str) -> str:
    """Quote a text as systemd reads it: systemd.exec(5), EnvironmentFile."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def launchd(environ: Mapping[str, str]) -> Manager:
    """Return macOS's launchd, for the agents of this user: launchd.plist(5)."""
    home = Path(environ.get("HOME") or Path.home())
    domain = f"gui/{home.stat().st_uid}"
    file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    log = str(home / "Library" / "Logs" / f"{NAME}.log")

    def content(words: Sequence[str], folder: Path, variables: Path) -> bytes:
        return plistlib.dumps(
            {
                "Label": LABEL,
                "ProgramArguments": [*_with_variables(words, variables)],
                "WorkingDirectory": str(folder),
                "RunAtLoad": True,
                "KeepAlive": {"SuccessfulExit": False},
                "ExitTimeOut": 30,
                "StandardOutPath": log,
                "StandardErrorPath": log,
            }
        )

    gone = ["launchctl", "bootout", f"{domain}/{LABEL}"]
    return Manager(
        file,
        content,
        check=["launchctl", "print", domain],
        replace=[gone],
        begin=[["launchctl", "bootstrap", domain, str(file)]],
        restart=["launchctl", "kickstart", "-k", f"{domain}/{LABEL}"],
        stop=["launchctl", "kill", "SIGTERM", f"{domain}/{LABEL}"],
        logs=["tail", "-F", log],
        state=["launchctl", "print", f"{domain}/{LABEL}"],
        end=[gone],
        advice="an agent needs a user who is logged in at the screen, and not by ssh alone",
    )


TASK: Final = """<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers><LogonTrigger><Enabled>true</Enabled></LogonTrigger></Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Hidden>true</Hidden>
    <RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>cmd.exe</Command>
      <Arguments>{arguments}</Arguments>
      <WorkingDirectory>{folder}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""


def task_scheduler(environ: Mapping[str, str]) -> Manager:
    """Return Windows' Task Scheduler, for the tasks of this user: schtasks(1), Task Schema."""
    base = Path(environ.get("LOCALAPPDATA") or Path.home()) / "picospec"
    file, log = base / f"{NAME}.xml", base / f"{NAME}.log"

    def content(words: Sequence[str], folder: Path, variables: Path) -> bytes:
        line = subprocess.list2cmdline(_with_variables(words, variables))
        arguments = f'/c "{line} >> "{log}" 2>&1"'
        return TASK.format(arguments=escape(arguments), folder=escape(str(folder))).encode(
            "utf-16"
        )

    def schtasks(action: str, *words: str) -> Command:
        return ["schtasks", f"/{action}", "/TN", NAME, *words]

    return Manager(
        file,
        content,
        check=["schtasks", "/Query", "/FO", "LIST"],
        replace=[schtasks("End")],
        begin=[schtasks("Create", "/F", "/XML", str(file)), schtasks("Run")],
        restart=schtasks("Run"),
        stop=schtasks("End"),
        logs=["powershell", "-Command", f"Get-Content -Wait -Tail 20 '{log}'"],
        state=schtasks("Query"),
        end=[schtasks("End"), schtasks("Delete", "/F")],
    )


def _with_variables(words: Sequence[str], variables: Path) -> list[str]:
    """Return a command of `picospec edge` that reads the file of variables first."""
    after = words.index("edge") + 1
    return [*words[:after], "--variables", str(variables), *words[after:]]
