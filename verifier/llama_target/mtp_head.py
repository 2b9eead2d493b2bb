"""Drafts with the MTP head of the target's own file, for each session after the text so far.

The head reads each token of a text with the target's hidden state of the token before. It reads
late, many tokens at once: a session whose edge drafts well costs it little. It has no states of
tokens that were read for another session, so what it knows of a text may begin after them.
Texts never depend on a head, because its draft tokens are judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from local_models.llama_cpp.model import Context, Hidden
from local_models.llama_cpp.segments import Segment
from speculation.distributions import Logits
from speculation.model_facts import TokenId

Pick = Callable[[Logits, int], TokenId]
"""pick(logits, position) draws the token at a position of the text."""


@dataclass(slots=True)
class HeadText:
    """The tokens of a sequence's text from position `begin` on. unread: the target's state
    before each of the last ones, which the head has not read, float32[E]."""

    begin: int
    tokens: list[TokenId] = field(default_factory=list)
    unread: list[Hidden] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.tokens)

    @property
    def read(self) -> int:
        return len(self.tokens) - len(self.unread)

    def add(self, tokens: Sequence[TokenId], hidden: Hidden) -> None:
        self.tokens += tokens
        self.unread += [*hidden]

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.unread[max(0, length - self.read) :]
        del self.tokens[length:]


class MtpHead:
    """context: the head's, with as many sequences as the target's. vocabulary_size: later
    logits are padding."""

    def __init__(self, context: Context, vocabulary_size: int) -> None:
        self._context = context
        self._vocabulary_size = vocabulary_size
        self._texts: dict[int, HeadText] = {}
        limits = context.limits
        self._most_unread = limits.batch_tokens // limits.sequences
        self.step_s = self._time_step()
        """The head drafts a token in so many seconds, as measured at the start."""

    def close(self) -> None:
        """Free the memory."""
        self._context.close()

    def go_back(self, sequence: int, position: int, token: TokenId) -> None:
        """Forget what the sequence had beyond a position, from where the target reads on with
        this token."""
        if text := self._texts.get(sequence):
            length = max(0, position - text.begin)
            same = text.tokens[length : length + 1] == [token]
            text.cut(length + same)

    def note(
        self, sequence: int, start: int, tokens: Sequence[TokenId], hidden: Hidden
    ) -> None:
        """Note the next tokens of a text. hidden: the target's state before each, float32[n,
        E]. Raises what Context.decode raises."""
        text = self._texts.get(sequence)
        if text is None or text.end != start:
            text = self._texts[sequence] = HeadText(start)
        text.add(tokens, hidden)
        if len(text.unread) > self._most_unread:
            most = self._context.limits.batch_tokens
            self._read({sequence: min(len(text.unread) - 1, most)}, logits=0)

    def draft(self, picks: Mapping[int, Pick], count: int) -> dict[int, list[TokenId]]:
        """Return `count` draft tokens for each of these sequences, after texts whose last
        tokens were noted since the last draft. They belong to the text until the target reads
        on. Raises what Context.decode raises."""
        texts = {sequence: self._texts[sequence] for sequence in picks}
        for _ in range(count):
            self._read({s: len(text.unread) for s, text in texts.items()}, logits=1)
            for row, (sequence, text) in enumerate(texts.items()):
                logits = self._context.logits(row)[: self._vocabulary_size]
                token = picks[sequence](logits, text.end)
                text.add([token], self._context.hidden(sequence)[-1:])
        return {sequence: text.tokens[-count:] for sequence, text in texts.items()}

    def _read(self, counts: Mapping[int, int], logits: int) -> None:
        """Read the first unread tokens of some texts, so many of each. logits: 1 for those
        after the last of each."""
        segments, hidden = list[Segment](), list[Hidden]()
        for sequence, count in counts.items():
            text = self._texts[sequence]
            start = text.read
            self._context.truncate(sequence, start)
            tokens = text.tokens[start : start + count]
            segments.append(Segment(sequence, start, tokens, logits))
            hidden += text.unread[:count]
        try:
            self._context.decode(segments, hidden)
        except Exception:
            for sequence in counts:
                del self._texts[sequence]
            raise
        for sequence, count in counts.items():
            del self._texts[sequence].unread[:count]

    def _time_step(self) -> float:
        seconds = []
        for _ in range(3):
            self.note(0, 0, (0,), np.zeros((1, self._context.hidden_size), np.float32))
            began = time.perf_counter()
            self.draft({0: lambda logits, _: int(logits.argmax())}, 1)
            seconds.append(time.perf_counter() - began)
        self._texts.clear()
        return min(seconds)
