"""A fake target's text is a function of the prompt, so that edges and judges know it.

The fake target has it in its own process, the stand-in in vLLM's, and the loads in a third one.
It stands alone so that none of them imports another: vLLM's process gets no service of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Literal
from zlib import crc32

from bench.simulator.source import Source, guessed
from speculation.model_facts import TokenId

VOCABULARY: Final = 512
_FIRST: Final = 16
"""Tokens below this one may be special, and are in no text."""

KEY: Final = 2
"""A text is a function of this many first tokens of the prompt."""

CONFIDENCE: Final = 0.95
"""Edges believe in their draft tokens, also in those that are wrong."""

MIXED: Final = 0.8
"""This share of mixed draft tokens is right, and edges know it."""

Drafts = Literal["right", "mixed", "useless"]


def prompts(count: int) -> list[tuple[TokenId, ...]]:
    """Return this many different prompts."""
    pairs = (divmod(number, 256) for number in range(count))
    return [(_FIRST + high, _FIRST + low, 9, 11) for high, low in pairs]


def key(prompt: Sequence[TokenId]) -> str:
    """Return what a text depends on. prompt: the prompt, or any text that begins with it."""
    return ",".join(map(str, prompt[:KEY]))


def said(text: str, place: int) -> TokenId:
    """Return the target's token at a place, prompt included, of the text of a key. No tokens
    repeat often enough to be looked up."""
    return _FIRST + crc32(f"{text},{place}".encode()) % (VOCABULARY - _FIRST)


def source(prompt: Sequence[TokenId], tokens: int, drafts: Drafts = "right") -> Source:
    """Return an answer and an edge's draft tokens for it."""
    answer = [said(key(prompt), len(prompt) + i) for i in range(tokens)]
    right = {"right": 1.0, "mixed": MIXED, "useless": 0.0}[drafts]
    confidence = MIXED if drafts == "mixed" else CONFIDENCE
    return Source(prompt, answer, guessed(answer, right, Random(key(prompt)), confidence))
