"""Tests pull models from these sources, and nobody watches."""

from __future__ import annotations

from pathlib import Path

from picospec.models.catalogue import ModelFile
from picospec.models.errors import SourceFailed
from picospec.models.hub import Hub, Progress

CONTENT = bytes(range(256)) * 40
"""The model of the fixtures has these bytes."""


def silent(what: str, done: int, total: int) -> None:
    pass


class Fake:
    """A source that writes given bytes, or raises."""

    name = "fake"

    def __init__(self, act: bytes | Exception) -> None:
        self.act = act
        self.calls = 0

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        self.calls += 1
        if isinstance(self.act, Exception):
            raise self.act
        partial.write_bytes(self.act)


class NoHub(Hub):
    def files(self, repository: str) -> dict[str, ModelFile]:
        raise SourceFailed("no hub")

    def directory(self, repository: str) -> Path:
        raise SourceFailed("no hub")
