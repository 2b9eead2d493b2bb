"""`picospec edge --install-service`: the edge as a service of this user.

It goes on with the variables and in the folder that it was installed with. The variables are in
`edge.env` beside the user's settings, because a service's own file, which others may read,
holds no key.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gateway.hosting.parent_death import program
from local_models.user_catalogue import user_file
from picospec.service_managers import Manager, manager_of, quoted

INSTALLED: Final = """{file} runs now, and whenever you log in,
with these variables of this shell, which are kept in {variables}:
{names}
Others: lines such as PICOSPEC_VERIFIER_KEY=... there, then {restart}
picospec status, picospec logs, picospec stop; picospec edge --remove-service"""

_PREFIXES: Final = ("PICOSPEC_", "OTEL_")
CARRIED: Final = frozenset(
    {
        *("EDGE_PORT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    }
)
"""A service has these variables of the shell, in small letters too, besides those with a prefix
of _PREFIXES. Without them an edge that works in a shell would not reach its verifier."""


class NoService(Exception):
    """Nothing here can run a service for this user; the text gives the reason."""


Run = Callable[[Sequence[str]], int]


def call(command: Sequence[str]) -> int:
    """Run a command of the service's manager; return its status. Raises NoService."""
    if shutil.which(command[0]) is None:
        needs = ": a service needs systemd" if command[0] in ("systemctl", "journalctl") else ""
        raise NoService(f"there is no {command[0]} here{needs}")
    return subprocess.run(command, check=False).returncode


def install(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    run: Run = call,
    manager: Manager | None = None,
) -> str:
    """Define a service for an edge with these arguments, and start it. Raises NoService."""
    manager = manager or manager_of(environ)
    variables = user_file(environ).with_name("edge.env")
    words = [sys.executable, *program("picospec"), "edge", *arguments]
    content = manager.content(words, Path.cwd(), variables)
    if status := run(manager.check):  # before anything is written
        reason = f"{' '.join(manager.check)} ended with status {status}"
        raise NoService(f"{reason}: {manager.advice}" if manager.advice else reason)
    manager.file.parent.mkdir(parents=True, exist_ok=True)
    manager.file.write_bytes(content)
    keep_variables(variables, carried := carried_by(environ))
    for command in manager.replace:
        run(command)
    for command in manager.begin:
        if status := run(command):
            raise NoService(f"{' '.join(command)} ended with status {status}")
    text = INSTALLED.format(
        file=manager.file,
        variables=variables,
        names=", ".join(sorted(carried)) or "none",
        restart=" ".join(manager.restart),
    )
    return f"{text}\n{manager.note}" if manager.note else text


def carried_by(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a service keeps of the shell in which it is installed."""
    return {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(_PREFIXES) or name.upper() in CARRIED
    }


def keep_variables(file: Path, carried: Mapping[str, str]) -> None:
    """Write variables to a file that only its owner can read. Those that the file has, and
    `carried` has not, stay."""
    before = file.read_text("utf-8").splitlines() if file.exists() else []
    others = [line for line in before if line.partition("=")[0].strip() not in carried]
    written = [f"{name}={quoted(value)}" for name, value in sorted(carried.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text("".join(f"{line}\n" for line in (*others, *written)), "utf-8")


def kept_variables(file: Path) -> dict[str, str]:
    """Read the variables that `keep_variables` or a user wrote. Raises OSError."""
    variables = dict[str, str]()
    for line in file.read_text("utf-8").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            if value.startswith('"') and value.endswith('"') and len(value) > 1:
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            variables[name.strip()] = value
    return variables


def remove(environ: Mapping[str, str], run: Run = call, manager: Manager | None = None) -> str:
    """Stop the service and delete its file. Raises NoService, also if none is installed."""
    manager = manager or manager_of(environ)
    if not manager.file.exists():
        raise NoService(f"no service of PicoSpec is installed: there is no {manager.file}")
    for command in manager.end:
        run(command)
    manager.file.unlink()
    for command in manager.after:
        run(command)
    return f"{manager.file} is removed, and its service stopped"


def state(environ: Mapping[str, str]) -> str | None:
    """Return the state of the service, such as "active"; None if none is installed."""
    manager = manager_of(environ)
    if not manager.file.exists() or shutil.which(manager.state[0]) is None:
        return None
    process = subprocess.run(manager.state, check=False, capture_output=True, text=True)
    if not manager.prints_state:
        return "loaded" if process.returncode == 0 else "not loaded"
    return process.stdout.strip() or process.stderr.strip()
