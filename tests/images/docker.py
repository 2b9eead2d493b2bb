"""`docker build`, `docker run` and `docker compose up`, as far as this project uses them.

No daemon is needed, but root and buildah. A container is a copy of its image's files, entered
by chroot in a namespace of mounts, as the image's user and without privileges. Its network is
the host's: what is published has the same port outside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
STATE: Final = Path(os.environ.get("PICOSPEC_IMAGES", ROOT / "build/images"))
STOP_S: Final = 30.0
LIMITS: Final = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
os.environ.update(BUILDAH_ISOLATION="chroot", STORAGE_DRIVER="vfs")


def buildah(*arguments: str, shown: bool = False) -> str:
    where = ("--root", str(STATE / "storage"), "--runroot", str(STATE / "run"))
    out = None if shown else subprocess.PIPE
    done = subprocess.run(["buildah", *where, *arguments], stdout=out, text=True, check=True)
    return (done.stdout or "").strip()


def limits() -> list[str]:
    """Return options that buildah needs where it may not raise this process's limits."""
    hard = {name: resource.getrlimit(number)[1] for name, number in LIMITS.items()}
    return [word for name, n in hard.items() for word in ("--ulimit", f"{name}={n}:{n}")]


def build(arguments: Sequence[str]) -> None:
    """docker build. $BASE replaces the base image that the file names."""
    base = ["--build-arg", f"BASE={os.environ['BASE']}"] if "BASE" in os.environ else []
    # the format of OCI has no health check
    buildah(
        "build",
        "--format",
        "docker",
        "--network=host",
        "--pull=never",
        *limits(),
        *base,
        *arguments,
        shown=True,
    )


@dataclass
class Container:
    name: str
    image: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[str] = ()
    tmpfs: Sequence[str] = ()
    hosts: Sequence[str] = ()
    """Names that mean this machine."""

    read_only: bool = False
    healthcheck: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """In place of the image's."""

    def __post_init__(self) -> None:
        inspected = json.loads(buildah("inspect", "--type", "image", self.image))
        self.config: dict[str, Any] = inspected["Docker"]["config"]
        self.state = STATE / "containers" / self.name

    def start(self) -> None:
        """Start it in the background."""
        self.remove()
        buildah("from", "--pull=never", "--name", self.name, *limits(), self.image)
        self.root = Path(buildah("mount", self.name))
        self.state.mkdir(parents=True, exist_ok=True)
        command = [*self.config.get("Entrypoint", ()), *(self.command or self.config["Cmd"])]
        script = "\n".join([*self._mounts(), f"exec {self._inside(command)}"])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    def check_health(self) -> int:
        """Return the status of the image's health check."""
        check = self.healthcheck.get("test") or self.config["Healthcheck"]["Test"]
        kind, *command = check
        if kind != "CMD":
            raise ValueError(f"a health check of kind {kind}")
        words = ["nsenter", "--mount", "--target", str(self.process.pid), "sh", "-c"]
        return subprocess.run([*words, self._inside(command)]).returncode

    def stop(self) -> int:
        """Send SIGTERM; return the status, or that of SIGKILL after STOP_S."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            return self.process.wait()

    def remove(self) -> None:
        if self.name in buildah("containers", "--format", "{{.ContainerName}}").split():
            buildah("rm", self.name)

    def _inside(self, command: Sequence[str]) -> str:
        """Return a shell command that runs one in the container, as the image's user."""
        root, user = self.root, str(self.config["User"])
        entries = (line.split(":") for line in (root / "etc/passwd").read_text().splitlines())
        home = next((e[5] for e in entries if e[2] == user.split(":")[0]), "/")
        given = dict(pair.split("=", 1) for pair in self.config.get("Env") or ())
        environment = {"HOME": home, **given, **self.environment}
        words = ["chroot", f"--userspec={user}", "--groups=", str(root), "/usr/bin/env", "-i"]
        words += [f"{name}={value}" for name, value in environment.items()]
        enter = f'cd {self.config.get("WorkingDir") or "/"} && exec "$@"'
        return shlex.join([*words, "/bin/sh", "-c", enter, "sh", *command])

    def _mounts(self) -> list[str]:
        root = self.root
        lines = [f"mount --bind {root} {root}"]
        for volume in self.volumes:
            source, place, *options = volume.split(":")
            inside = root / place.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            lines.append(f"mount --bind {self._volume(source, inside)} {inside}")
            lines += [f"mount -o remount,bind,ro {inside}"] if "ro" in options else []
        for each in ("dev", "proc", "sys"):
            lines.append(f"mount --rbind /{each} {root}/{each}")
        (self.state / "hosts").write_text(f"127.0.0.1 {' '.join(('localhost', *self.hosts))}\n")
        for source, file in (
            (self.state / "hosts", "hosts"),
            ("/etc/resolv.conf", "resolv.conf"),
        ):
            (root / "etc" / file).touch()
            lines.append(f"mount --bind {source} {root}/etc/{file}")
        if self.read_only:
            lines.append(f"mount -o remount,bind,ro {root}")
        return lines + [
            f"mount -t tmpfs -o mode=1777 tmpfs {root}{each}" for each in self.tmpfs
        ]

    def _volume(self, source: str, inside: Path) -> Path:
        """Return a volume's directory; one with a name begins as what the image has there."""
        if "/" in source:
            return Path(source)
        if not (volume := STATE / "volumes" / source).exists():
            shutil.copytree(inside, volume, symlinks=True)
            owner = inside.stat()
            os.chown(volume, owner.st_uid, owner.st_gid)
        return volume


def written(file: Path, command: str) -> list[str]:
    """Return the words after `docker COMMAND` in the comments of a file."""
    text = file.read_text().replace("\\\n#", "")
    (line,) = re.findall(rf"^# +docker {command} (.*)$", text, re.MULTILINE)
    return shlex.split(line)


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> Container:
    """docker run, always in the background. environ: what `-e NAME` takes its value from."""
    parser = argparse.ArgumentParser("docker run")
    parser.add_argument("--name")
    parser.add_argument("-e", dest="environment", action="append", default=[])
    parser.add_argument("-v", dest="volumes", action="append", default=[])
    parser.add_argument("-d", action="store_true")
    for ignored in ("--gpus", "--shm-size", "--stop-timeout", "-p"):
        parser.add_argument(ignored)
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    environment = {}
    for each in given.environment:
        name, equals, value = each.partition("=")
        if equals or name in environ:
            environment[name] = value if equals else environ[name]
    name = given.name or given.image
    container = Container(name, given.image, given.command, environment, given.volumes)
    container.start()
    return container


def compose(environ: Mapping[str, str]) -> dict[str, Container]:
    """docker compose up: start all services that have no profile."""
    file = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = filled_in(file, environ)["services"]
    containers = {
        name: Container(
            name, each["image"], each["command"], each["environment"], each["volumes"],
            each["tmpfs"], tuple(services), each["read_only"], each.get("healthcheck", {}),
        )
        for name, each in services.items() if "profiles" not in each
    }  # fmt: skip
    for container in containers.values():
        container.start()
    return containers


def filled_in(tree: Any, environ: Mapping[str, str]) -> Any:  # noqa: ANN401 - YAML
    """Return compose's file with its variables replaced. Raises ValueError."""
    if isinstance(tree, dict):
        return {name: filled_in(value, environ) for name, value in tree.items()}
    if isinstance(tree, list):
        return [filled_in(value, environ) for value in tree]
    return replaced(tree, environ) if isinstance(tree, str) else tree


def replaced(text: str, environ: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, kind, other = match.groups()
        if found := environ.get(name):
            return found
        if kind == ":?":
            raise ValueError(f"{name}: {other}")
        return other or ""

    while (changed := re.sub(r"\$\{(\w+)(?:(:-|:\?)([^${}]*))?\}", value, text)) != text:
        text = changed
    return text


def main(arguments: Sequence[str]) -> int:
    match list(arguments):
        case ["build", *rest]:
            build(rest)
        case ["build-as-written", file]:
            build(written(Path(file), "build"))
        case other:
            sys.exit(f"docker {' '.join(other)}: not here")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
