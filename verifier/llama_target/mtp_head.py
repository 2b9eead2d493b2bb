"""Drafts with the MTP head of the target's own file, for each session after the text so far.

The head reads each token of the text with the target's hidden state of the token before. What
a session's passes brought is kept until the head drafts for it; if that is too much, the head
goes on without the text before. Texts never depend on it: its draft tokens are judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from local_models.llama_cpp.model import Context, Hidden
from local_models.llama_cpp.segments import Segment
from speculation.distributions import Logits
from speculation.model_facts import TokenId

MAX_UNREAD: Final = 64
"""So many tokens of a session are kept unread at most, each with a hidden state of 4 to 32 kB.
A session whose edge drafts well does without its head for long."""

Pick = Callable[[Logits, int], TokenId]
"""pick(logits, position) draws the token at a position of the whole text."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Tokens from position `start` on, with the hidden states before each: float32[n, E]."""

    start: int
    tokens: tuple[TokenId, ...]
    hidden: Hidden

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class MtpHead:
    """context: the head's, as large as the target's. Its positions are counted from the first
    token that the head has read of a text."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._starts: dict[int, int] = {}
        self._unread: dict[int, Unread] = {}

    def close(self) -> None:
        """Free the memory."""
        self._context.close()

    def read(
        self, sequence: int, start: int, tokens: Sequence[TokenId], hidden: Hidden
    ) -> None:
        """Read a part of a prompt at once. hidden: the states before each token."""
        self._unread[sequence] = Unread(start, tuple(tokens), hidden)
        self._decode([sequence], logits=0)

    def keep(
        self, sequence: int, start: int, tokens: Sequence[TokenId], hidden: Hidden
    ) -> None:
        """Keep what a pass has committed until the head reads it."""
        unread = Unread(start, tuple(tokens), hidden)
        if (before := self._unread.get(sequence)) and before.end == start:
            joined = np.concatenate((before.hidden, hidden))
            unread = Unread(before.start, before.tokens + unread.tokens, joined)
        if len(unread.tokens) > MAX_UNREAD:
            unread = Unread(start, tuple(tokens), hidden)
            self._starts.pop(sequence, None)
        self._unread[sequence] = unread

    def draft(self, wanted: Mapping[int, Pick], count: int) -> dict[int, list[TokenId]]:
        """Return `count` draft tokens after the text of each of these sequences, of which the
        last pass must be kept."""
        ends = {sequence: self._unread[sequence].end for sequence in wanted}
        drafts: dict[int, list[TokenId]] = {sequence: [] for sequence in wanted}
        for step in range(count):
            self._decode([*wanted], logits=1)
            for row, (sequence, pick) in enumerate(wanted.items()):
                at = ends[sequence] + step
                token = pick(self._context.logits(row), at)
                drafts[sequence].append(token)
                hidden = self._context.hidden(sequence)
                self._unread[sequence] = Unread(at, (token,), hidden)
        for sequence in wanted:
            del self._unread[sequence]
        return drafts

    def time_step(self) -> float:
        """Return the seconds of a step for one session, before any begins."""
        hidden = np.zeros((1, self._context.hidden_size), np.float32)
        seconds = []
        for _ in range(3):
            self.keep(0, 0, (0,), hidden)
            began = time.perf_counter()
            self.draft({0: lambda logits, at: 0}, 1)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def _decode(self, sequences: Sequence[int], logits: int) -> None:
        """Read what is unread of some sequences."""
        segments, hidden = [], []
        for sequence in sequences:
            unread = self._unread[sequence]
            begins = self._starts.get(sequence, unread.start)
            held = self._context.length(sequence)
            if sequence not in self._starts or not begins <= unread.start <= begins + held:
                begins = unread.start
            self._starts[sequence] = begins
            self._context.truncate(sequence, unread.start - begins)
            segments.append(Segment(sequence, unread.start - begins, unread.tokens, logits))
            hidden.append(unread.hidden)
        self._context.decode(segments, hidden)
        if not logits:
            for sequence in sequences:
                del self._unread[sequence]
