"""`wheels.py [LOCK]` tells for which systems each package of a lock file has a wheel.

pip chooses files as it would on each system, and fetches no more than it needs for that. What
has no wheel is named with what serves instead; it is an error if nothing does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pip._vendor.packaging.requirements import Requirement  # any environment with pip has it

SYSTEMS: Final = {
    "macOS arm64": ("darwin", "Darwin", ["macosx_14_0_arm64"]),
    "Windows x64": ("win32", "Windows", ["win_amd64"]),
    **{
        f"Linux {name}": (
            "linux",
            "Linux",
            [
                f"manylinux_2_{minor}_{machine}"
                for minor in (36, 35, 34, 31, 28, 27, 24, 17, 12, 5)
            ]
            + [f"manylinux2014_{machine}"],
        )
        for name, machine in {"x64": "x86_64", "arm64": "aarch64"}.items()
    },
}
"""Maps a system to `sys.platform`, `platform.system()` and the tags of wheels that run there.
Linux is Debian 12 or newer, with glibc 2.36."""

VERSIONS: Final = ("3.11", "3.13")

INSTEAD: Final = {
    "llama-cpp-python": "only for `[llama]`: pip compiles it, which takes a C++ compiler",
}
"""Maps a package without a wheel to what serves in its place."""

_NONE: Final = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)==")


def entries(lock: str, platform: str, system: str, python: str) -> Iterator[str]:
    """Yield the entries of a lock file, "name==version", that a system takes."""
    environment = {"sys_platform": platform, "platform_system": system} | {
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    for line in re.findall(r"^[a-z0-9][^\\#\n]*", lock, re.MULTILINE):
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            yield f"{wanted.name}{wanted.specifier}"


def without_wheel(wanted: Sequence[str], tags: Sequence[str], python: str) -> list[str]:
    """Return the names of those of which pip finds no wheel. Raises RuntimeError if pip fails
    for another reason."""
    lacking, left = list[str](), list(wanted)
    options = [word for tag in tags for word in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed",
            "--no-deps", "--only-binary=:all:", "--target", folder, "--python-version", python,
            *options,
        ]  # fmt: skip
        while left:
            done = subprocess.run([*command, *left], capture_output=True, text=True)
            if done.returncode == 0:
                break
            if (match := _NONE.search(done.stderr)) is None:
                raise RuntimeError(done.stderr)
            lacking.append(match[1])
            left = [each for each in left if each.partition("==")[0] != match[1]]
    return lacking


def main(lock: Path = Path("requirements/run.lock")) -> int:
    """Print a line for each system and Python; return 1 if nothing serves for a package."""
    text, status = lock.read_text(), 0
    for name, (platform, system, tags) in SYSTEMS.items():
        for python in VERSIONS:
            wanted = [*entries(text, platform, system, python)]
            lacking = without_wheel(wanted, tags, python)
            count = f"{len(wanted) - len(lacking)} of {len(wanted)} have a wheel"
            sys.stdout.write(f"{name}, Python {python}: {count}\n")
            for each in lacking:
                sys.stdout.write(f"  {each}: {INSTEAD.get(each, 'nothing serves instead')}\n")
                status |= each not in INSTEAD
    return status


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
