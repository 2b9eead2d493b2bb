"""A DraftSlot whose draft model has another vocabulary than the target.

The draft model works in its own vocabulary on the same text. The target's tokenizer cuts what
it writes into tokens, which are proposed up to the last certain boundary. A wrong tokenisation
is only a wrong draft token, because the judge compares tokens.

* A step is one pass of the draft model, and may complete no target token, or several.
* The draft model's cache is used as always: its tokens change only where the text does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Final

from edge_agent.draft.cross_vocabulary_sampler import CrossVocabularySampler, Row
from edge_agent.draft.draft_text import DraftText
from edge_agent.draft.drafter import DraftSlot, StepSampler
from edge_agent.draft.retokeniser import PRECEDING_TOKENS
from edge_agent.draft.token_mapping import Translation
from speculation.draft_token import DraftToken
from speculation.model_facts import TokenId

_WORD: Final = re.compile(rb" [A-Za-z]+")
"""A word that the draft model wrote as one token is proposed at once, though more letters may
follow. In English text the target's token was longer in at most 13 of 1,000 cases, and waiting
costs each chain another pass: in chat 1.6 passes per draft token instead of 1.2."""

MAX_PENDING: Final = 8
"""The draft model may write this many tokens without a certain boundary; then the pending text
is proposed anyway."""


UNSETTLED: Final = 512
"""About this many last tokens of an output are spelt at each step: a rejection changes some."""


class CrossVocabularySlot:
    """A DraftSlot over `slot`, which was taken for `own`: the prompt in the draft model's
    tokens."""

    def __init__(
        self, slot: DraftSlot, translation: Translation, prompt_tokens: int, own: Sequence[int]
    ) -> None:
        self._slot = slot
        self._translation = translation
        self._prompt_tokens = prompt_tokens
        self._own_prompt = own
        self._text = DraftText(translation.draft)
        self._settled: list[TokenId] = []
        self._settled_bytes = b""

    async def step(
        self, context: Sequence[TokenId], sampler: StepSampler, *, ahead: Sequence[TokenId] = ()
    ) -> list[DraftToken]:
        """Return the draft tokens that are certain after one pass of the draft model. If some
        were certain before, return those at once."""
        output = context[self._prompt_tokens :]
        text = self._bytes_of(output)
        preceding = context[-PRECEDING_TOKENS:]
        can_continue = partial(self._translation.target.can_continue, preceding)
        required = self._text.follow(text, can_continue)
        if drafts := self._ready(len(text), preceding):
            return drafts
        read = self._readable(required, self._text.decoded[len(text) :], ahead)
        rows = self._rows(context, len(text), required, read)
        first = len(self._text.tokens)
        drawn = await self._slot.step(
            [*self._own_prompt, *self._text.tokens],
            lambda _: CrossVocabularySampler(self._translation, sampler, rows, first),
            ahead=read,
        )
        return self._take_in(drawn, len(text), preceding)

    def leave(self) -> None:
        """Give the slot back. Harmless when repeated."""
        self._slot.leave()

    def _bytes_of(self, output: Sequence[TokenId]) -> bytes:
        """Return the bytes of an output. Those of most of it are kept from step to step: to
        spell 100,000 tokens takes 20 ms."""
        bytes_of, known = self._translation.target.bytes_of, len(self._settled)
        if output[:known] != self._settled:
            self._settled, self._settled_bytes, known = [], b"", 0
        if (end := len(output) - UNSETTLED) > known + UNSETTLED:
            self._settled_bytes += bytes_of(output[known:end])
            self._settled, known = list(output[:end]), end
        return self._settled_bytes + bytes_of(output[known:])

    def _readable(self, required: bytes, pending: bytes, ahead: Sequence[TokenId]) -> list[int]:
        """Return the draft model's tokens that the pass reads after its own text: those of the
        required text, and of `ahead` if that agrees with the pending text."""
        follows = self._translation.target.bytes_of(ahead)
        agrees = follows.startswith(pending)
        known = required + (follows[len(pending) :] if agrees else b"")
        read = self._translation.draft.tokenise(known)
        return read if self._translation.draft.bytes_of(read) == known else []

    def _rows(
        self, context: Sequence[TokenId], start: int, required: bytes, read: Sequence[int]
    ) -> list[Row]:
        """Return the places of the pass's rows: one after the draft model's own text, and one
        after each token that the pass reads."""
        target, draft = self._translation.target, self._translation.draft
        output, preceding = context[self._prompt_tokens :], context[-PRECEDING_TOKENS:]
        pending, known = self._text.decoded[start:], draft.bytes_of(read)
        rows = []
        for end in (0, *draft.ends_of(read)):
            beyond = pending + known[len(required) : end]
            tokens = [*output, *target.tokenise(beyond, preceding)]
            rows.append(Row(tokens, required[end:], () if beyond else preceding))
        return rows

    def _take_in(
        self, drawn: Sequence[DraftToken], start: int, preceding: Sequence[TokenId]
    ) -> list[DraftToken]:
        """Add the drawn tokens to the text; return the draft tokens that can be proposed."""
        for each in drawn:
            if (marker := self._translation.to_target.get(each.token)) is not None:
                whole = self._translation.target.tokenise(self._text.decoded[start:], preceding)
                return [*self._drafts(start, whole), DraftToken(marker, each.confidence)]
            self._text.append(each.token, each.confidence)
        return self._ready(start, preceding)

    def _ready(self, start: int, preceding: Sequence[TokenId]) -> list[DraftToken]:
        """Return the draft tokens that can be proposed for the text from byte `start` on."""
        target, text = self._translation.target, self._text
        if not (pending := text.decoded[start:]):
            return []
        tokens = target.tokenise(pending, preceding)
        last = target.bytes_of(tokens[-1:])
        if last == text.last and _WORD.fullmatch(last):
            return self._drafts(start, tokens)
        certain = target.stable(pending, preceding)
        if not certain and text.drawn_since(start) >= MAX_PENDING:
            certain = tokens[:-1] or tokens
        return self._drafts(start, certain)

    def _drafts(self, start: int, tokens: Sequence[TokenId]) -> list[DraftToken]:
        confidences = self._text.confidences(
            start, self._translation.target.ends_of(tokens, start)
        )
        return [DraftToken(*each) for each in zip(tokens, confidences, strict=True)]
