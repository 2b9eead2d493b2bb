"""Where an answer leaves the text that `cloud` gave to the same question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from bench.data.results import Answer, Key, link_name

REFERENCE: Final = "edge-only"
"""The arm whose texts are not compared, because they are another model's."""

SHOWN: Final = 24
"""Characters shown from where two texts part."""

HEAD: Final = (
    "arm", "link", "prompt", "repeat", "at character", "cloud goes on", "the arm goes on"
)  # fmt: skip


def differences(
    answers: Sequence[Answer], cloud: Mapping[Key, Answer]
) -> list[tuple[str, ...]]:
    """Return a line of a table, with columns HEAD, for each text that is not cloud's."""
    return [
        _line(answer, cloud[answer.asked].text)
        for answer in answers
        if answer.arm != REFERENCE
        and answer.asked in cloud
        and answer.text != cloud[answer.asked].text
    ]


def _line(answer: Answer, text: str) -> tuple[str, ...]:
    at = first_difference(text, answer.text)
    return (
        answer.arm, link_name(answer.rtt_ms, answer.rate_mbit), answer.prompt,
        str(answer.repeat), str(at), _quoted(text[at:]), _quoted(answer.text[at:]),
    )  # fmt: skip


def _quoted(text: str) -> str:
    """Return the beginning of a text so that it stays within its cell."""
    return f"`{text[:SHOWN]!r}`".replace("|", "\\|")


def first_difference(one: str, other: str) -> int:
    """Return the index of the first character in which two texts differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
