"""Large bodies of many small values, of each kind that bodies.tsv has."""

from __future__ import annotations

from pathlib import Path

from gateway.endpoints.bodies import MIN_LIMIT_BYTES
from gateway.json_bounds import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, count_structure

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

HERE = "@"
"""Where the items of a body are."""

LINES = Path(__file__).with_name("bodies.tsv").read_text(encoding="utf-8").splitlines()
KINDS = {kind: columns for kind, *columns in (line.split("\t") for line in LINES)}
"""Paths, bodies and their items. A number stands for %d, another one in each item."""


def body_of(kind: str, *, admitted: bool) -> bytes:
    """Return a body of as many bytes as the service takes. admitted: of as many values, too."""
    _, body, item = KINDS[kind]
    comma = "" if kind in ("deep nesting", "escaped quotes", "a long text") else ","
    width = len((item % 10**6 if "%" in item else item) + comma)
    count = (MIN_LIMIT_BYTES - len(body) + len(HERE)) // width
    if admitted:
        *_, each = count_structure(f"{item},".encode())
        each_in_all = ((MAX_CONTAINERS, each.containers), (MAX_STRINGS, each.strings))
        most = ((limit - 16) // taken for limit, taken in each_in_all if taken)
        count = min(count, *most, MAX_VALUES)
    items = (item % (10**6 + i) for i in range(count)) if "%" in item else [item] * count
    return body.replace(HERE, comma.join(items)).encode()
