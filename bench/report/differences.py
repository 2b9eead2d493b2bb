"""Where an answer leaves the text that `cloud` gave to the same question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from picospec.bench.data.results import Answer, Key, link_name

REFERENCE: Final = "edge-only"
"""This arm's texts are not compared, because they are another model's."""

SHOWN: Final = 24
"""From where two texts part, so many characters are shown."""

HEAD: Final = (
    "arm", "link", "prompt", "repeat", "at character", "cloud goes on", "the arm goes on"
)  # fmt: skip


def differences(
    answers: Sequence[Answer], cloud: Mapping[Key, Answer]
) -> list[tuple[str, ...]]:
    """Return a line of a table, with columns HEAD, for each text that is not cloud's."""
    lines: list[tuple[str, ...]] = []
    for a in answers:
        if a.arm != REFERENCE and a.asked in cloud and a.text != cloud[a.asked].text:
            text = cloud[a.asked].text
            at = first_difference(text, a.text)
            where = (a.arm, link_name(a.rtt_ms, a.rate_mbit), a.prompt, str(a.repeat), str(at))
            lines.append((*where, _quoted(text[at:]), _quoted(a.text[at:])))
    return lines


def _quoted(text: str) -> str:
    """Return the beginning of a text so that it stays within its cell."""
    return f"`{text[:SHOWN]!r}`".replace("|", "\\|")


def first_difference(one: str, other: str) -> int:
    """Return the index of the first character in which two texts differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
