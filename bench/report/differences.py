"""Where an answer leaves the text that `cloud` said to the same question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.report.results import Answer
from bench.report.speedups import Link

REFERENCE: Final = "edge-only"
"""Speaks for another model: its texts are not compared."""

SHOWN: Final = 24
"""Characters from where two texts part."""


@dataclass(frozen=True, slots=True)
class Difference:
    arm: str
    link: Link
    prompt: str
    repeat: int
    at: int
    """The first character that differs, from 0."""

    cloud: str
    said: str


def differences(
    answers: Sequence[Answer], cloud: Mapping[tuple[str, float, int], Answer]
) -> list[Difference]:
    """Return one for each text that is not cloud's, in the order of the answers."""
    return [
        _difference(answer, cloud[answer.asked].text)
        for answer in answers
        if answer.arm != REFERENCE
        and answer.asked in cloud
        and answer.text != cloud[answer.asked].text
    ]


def _difference(answer: Answer, text: str) -> Difference:
    at = parting(text, answer.text)
    return Difference(
        answer.arm,
        (answer.rtt_ms, answer.rate_mbit),
        answer.prompt,
        answer.repeat,
        at,
        text[at : at + SHOWN],
        answer.text[at : at + SHOWN],
    )


def parting(one: str, other: str) -> int:
    """Return the place of the first character in which two texts differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
