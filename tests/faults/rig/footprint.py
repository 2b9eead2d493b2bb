"""What a process group holds of the machine: memory, descriptors, threads."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Footprint:
    anonymous_mb: float
    """Memory that no file backs: what a leak grows."""

    descriptors: int
    threads: int

    @classmethod
    def of(cls, pids: Iterable[int]) -> Self:
        """Return what these processes hold together. One that ends meanwhile holds nothing."""
        anonymous_kb = descriptors = threads = 0
        for pid in pids:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                fields = dict(line.split(":", 1) for line in lines)
                anonymous_kb += int(fields.get("RssAnon", "0").split()[0])  # a zombie has none
                threads += int(fields["Threads"])
                descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(anonymous_kb / 1024, descriptors, threads)
