"""Writes a GGUF file in another quantisation, all of it or nothing.

Variants are made on this machine, in seconds, so that only one file of a model is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from models.llama import Quantisation, quantise


def quantize(source: Path, target: Path, kind: Quantisation) -> None:
    """Write `source` to `target` as Q4_0 or Q8_0. Raises CannotQuantise, leaving no file."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        quantise(source, unfinished, kind)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
