"""Shares a machine's cores between the two ends, so that neither slows the other's passes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pins:
    """Cores of each end; empty means any."""

    verifier: frozenset[int] = frozenset()
    edge: frozenset[int] = frozenset()


def share(available: Collection[int]) -> Pins:
    """The lower half for the verifier, the upper for the edge; no pins on one core."""
    ordered = sorted(available)
    if len(ordered) < 2:
        return Pins()
    middle = (len(ordered) + 1) // 2
    return Pins(frozenset(ordered[:middle]), frozenset(ordered[middle:]))


def parse_pins(text: str, available: Collection[int]) -> Pins:
    """Read "VERIFIER:EDGE", each a list such as 0,2-3; "none" pins nothing.

    ValueError names what is wrong: the form, or a core that is not there.
    """
    if text == "none":
        return Pins()
    verifier, colon, edge = text.partition(":")
    if not colon:
        raise ValueError(f'pins must read "VERIFIER:EDGE", such as 0:1, or none; not {text!r}')
    pins = Pins(_cores(verifier), _cores(edge))
    missing = sorted((pins.verifier | pins.edge) - set(available))
    if missing:
        raise ValueError(
            f"this process may not use cores {missing}; it may use {sorted(available)}"
        )
    return pins


def _cores(listed: str) -> frozenset[int]:
    """Read 0,2-3; nothing means any."""
    cores: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"not a list of cores: {listed!r}")
        cores.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(cores)
