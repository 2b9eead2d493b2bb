"""Runs the parts of the long tests that are due, and keeps a record of what has passed.

A part is due if its files are no longer those on which it last passed, as `tests/long.toml`
says. `make test-long` runs what is due, and its record is committed with the change. `.ci/run`
runs what a change has left due, as far as its time allows, and names the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
RECORD: Final = ROOT / "tests" / "long.toml"
TITLE: Final = (
    "# Written by `make test-long`: what files each part of the long tests passed on.\n"
)


class Part(NamedTuple):
    """A part depends on its own tests, on what they reach, and on the helpers of all tests."""

    command: Sequence[str]
    reaches: Sequence[str]
    """Folders and files."""

    tests: str


CORE: Final = ("speculation", "local_models", "gateway", "edge_agent", "verifier", "picospec")
EVERYWHERE: Final = (*CORE, "bench/run", "configs", "requirements/run.lock")
LONG: Final = "long and not (clients or faults or images or vllm)"
PARTS: Final[Mapping[str, Part]] = {
    "faults": Part(["make", "test-faults"], EVERYWHERE, "tests/faults"),
    "clients": Part(
        ["make", "test-clients"], [*EVERYWHERE, "scripts/setup-clients.sh"], "tests/clients"
    ),
    "timing": Part(
        ["make", "PARTS=0", "test", f'ARGS=--long -m "{LONG}"'], [*CORE, "bench"], "tests"
    ),
}
VLLM: Final = "vllm_target"
"""Only the tests of vLLM reach folders of this name, and they have a run of their own."""


def digest(root: Path, part: Part) -> str:
    """Return a hash of the names and contents of a part's files."""
    found = {file for each in (*part.reaches, part.tests) for file in files(root / each)}
    found |= {
        file for file in files(root / "tests") if file.match("*.py") and not is_test(file)
    }
    total = hashlib.sha256()
    for path in sorted(found):
        name = path.relative_to(root)
        if VLLM not in name.parts and name != RECORD.relative_to(ROOT):
            total.update(f"{name.as_posix()}\0{hash_of(path)}\n".encode())
    return total.hexdigest()[:16]


def files(place: Path) -> Iterator[Path]:
    """Yield the files at a place, but for those that Python writes."""
    if place.is_file():
        yield place
    yield from (
        path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def is_test(file: Path) -> bool:
    """Return True for a file of tests, False for one that helps them."""
    return file.name.startswith("test_")


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Record:
    """Keeps what each part passed on, and how many seconds it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = tomllib.loads(path.read_text()) if path.exists() else {}

    def is_due(self, name: str, now: str) -> bool:
        return bool(self.entries.get(name, {}).get("files") != now)

    def seconds(self, name: str) -> int:
        return int(self.entries.get(name, {}).get("seconds", 0))

    def passed(self, name: str, now: str, seconds: float) -> None:
        date = datetime.now(UTC).date()
        self.entries[name] = {"files": now, "seconds": round(seconds), "date": date}
        lines = [
            f'\n["{part}"]\nfiles = "{each["files"]}"\nseconds = {each["seconds"]}\n'
            f"date = {each['date']}\n"
            for part, each in sorted(self.entries.items())
        ]
        self.path.write_text(TITLE + "".join(lines))


def run_due(
    parts: Mapping[str, Part],
    record: Record,
    within_s: float,
    run: Callable[[Sequence[str]], int],
    root: Path = ROOT,
) -> int:
    """Run the parts that are due, the shortest first, while time is left. Return the number of
    those that failed."""
    began, failed = time.monotonic(), 0
    for name, part in sorted(parts.items(), key=lambda each: record.seconds(each[0])):
        now, start = digest(root, part), time.monotonic()
        if not record.is_due(name, now):
            say(f"{name}: passed on these files")
        elif start - began + record.seconds(name) > within_s:
            say(f"{name}: DUE, and not run: {record.seconds(name)} s are more than is left")
        elif run(part.command):
            say(f"{name}: FAILED")
            failed += 1
        else:
            record.passed(name, now, time.monotonic() - start)
            say(f"{name}: passed")
    return failed


def say(line: str) -> None:
    """Print a line that stands out in the log of a run."""
    sys.stdout.write(f"==> long tests: {line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run what the command line asks for; exit with 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="all if none is named")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS")
    options = parser.parse_args()
    wanted = {name: PARTS[name] for name in options.part or PARTS}

    def run(command: Sequence[str]) -> int:
        own = {"MAKEFLAGS", "MAKEOVERRIDES", "ARGS"}  # of the make that has called this script
        environ = {name: value for name, value in os.environ.items() if name not in own}
        return subprocess.run(command, cwd=ROOT, env=environ).returncode

    sys.exit(run_due(wanted, Record(RECORD), options.within, run) > 0)


if __name__ == "__main__":
    main()
