"""Shares a machine's CPU cores between the two ends, so that neither slows the other down."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pins:
    """The cores that each end may use; empty means any."""

    verifier: frozenset[int] = frozenset()
    edge: frozenset[int] = frozenset()


def share(available: Collection[int]) -> Pins:
    """Give the verifier the lower half and the edge the upper; a single core stays unpinned."""
    ordered = sorted(available)
    if len(ordered) < 2:
        return Pins()
    middle = (len(ordered) + 1) // 2
    return Pins(frozenset(ordered[:middle]), frozenset(ordered[middle:]))


def parse_pins(text: str, available: Collection[int]) -> Pins:
    """Read "VERIFIER:EDGE", each a list such as 0,2-3; "none" pins nothing.

    Raises ValueError for another form, or a core that is not in `available`.
    """
    if text == "none":
        return Pins()
    verifier, colon, edge = text.partition(":")
    if not colon:
        raise ValueError(f'pins must read "VERIFIER:EDGE", such as 0:1, or none; not {text!r}')
    pins = Pins(_cores(verifier), _cores(edge))
    missing = sorted((pins.verifier | pins.edge) - set(available))
    if missing:
        may = sorted(available)
        raise ValueError(f"this process may not use cores {missing}; it may use {may}")
    return pins


def _cores(listed: str) -> frozenset[int]:
    """Read a list such as 0,2-3; an empty text means any core."""
    cores: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"not a list of cores: {listed!r}")
        cores.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cores)
