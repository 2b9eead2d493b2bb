"""Lock files have all that pyproject.toml asks for, by hash, and all is installed by them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS: Final = PROJECT["dependency-groups"]
OWN: Final = PROJECT["project"]["dependencies"]
EXTRAS: Final = PROJECT["project"]["optional-dependencies"]
LOCKED: Final = ("bench", "llama", "otel")
ASKED: Final = {
    "run": [*OWN, *EXTRAS["llama"]],
    "dev": [*OWN, *GROUPS["dev"], *(each for name in LOCKED for each in EXTRAS[name])],
    "build": [*GROUPS["build"], *PROJECT["build-system"]["requires"]],
    "tools": GROUPS["tools"],
}
PLATFORMS: Final = [
    {"python_full_version": f"{python}.4", "python_version": python, "sys_platform": system,
     "platform_machine": machine}
    for python in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]  # fmt: skip


def entries(lock: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each requirement of a lock file, with its hashes."""
    text = (ROOT / f"requirements/{lock}.lock").read_text().replace("\\\n", "")
    for line in text.splitlines():
        if not line.startswith("#"):
            requirement, *hashes = line.split("--hash=sha256:")
            yield Requirement(requirement.strip()), [each.strip() for each in hashes]


def versions(lock: str, platform: dict[str, str]) -> dict[str, str]:
    """Return what a lock file installs on a platform; each package has one version."""
    here = [each for each, _ in entries(lock)
            if each.marker is None or each.marker.evaluate(platform)]  # fmt: skip
    found = {canonicalize_name(each.name): str(each.specifier) for each in here}
    assert len(found) == len(here)
    return {name: version.removeprefix("==") for name, version in found.items()}


@pytest.mark.parametrize("lock", ASKED)
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: " ".join(p.values()))
def test_a_lock_file_admits_all_that_is_asked_for(lock: str, platform: dict[str, str]) -> None:
    found = versions(lock, platform)

    for requirement in map(Requirement, ASKED[lock]):
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run make lock"


@pytest.mark.parametrize("lock", ASKED)
def test_each_entry_has_hashes_and_no_file_names_an_index(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert hashes, requirement
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes), requirement
        assert requirement.url is None
    assert "://" not in (ROOT / f"requirements/{lock}.lock").read_text()


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: " ".join(p.values()))
def test_tests_run_on_what_users_run_on(platform: dict[str, str]) -> None:
    assert versions("run", platform).items() <= versions("dev", platform).items()


@pytest.mark.parametrize("file", ["scripts/setup.sh", "Dockerfile.edge", "Dockerfile.cloud"])
def test_nothing_is_installed_without_a_hash(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = re.findall(r"(?:-m|RUN|&&) pip install [^&\n]*", text)

    assert commands
    for command in commands:
        assert re.search(r"--(require-hashes|no-deps|no-index)", command), command
        assert "--build-constraint" in command or not command.rstrip().endswith("."), command


def test_an_image_with_packages_of_its_own_gets_only_what_it_lacks(tmp_path: Path) -> None:
    lock, project = tmp_path / "run.lock", tmp_path / "pyproject.toml"
    lock.write_text(
        "absent==1.0 \\\n    --hash=sha256:00\nhttpx==99.0 \\\n    --hash=sha256:01 \\\n"
        "    --hash=sha256:02\nrich==99.0 \\\n    --hash=sha256:03\n"
        "large==1.0 \\\n    --hash=sha256:04\n"
    )
    project.write_text(
        '[project]\ndependencies = ["httpx[http2]>=99", "rich>=1"]\n'
        '[project.optional-dependencies]\nmore = ["large>=1", "rich>=1"]\n'
    )

    command = [sys.executable, ROOT / "scripts/missing.py", lock, project]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert found == lock.read_text().partition("rich")[0]
