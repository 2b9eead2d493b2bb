"""A DraftSlot whose draft model has another vocabulary than the target.

The draft model works in its own vocabulary on the same text. The target's tokenizer cuts what
it writes into tokens, which are proposed up to the last certain boundary. A wrong tokenisation
is only a wrong draft token, because the judge compares tokens.

* A step is one pass of the draft model, and may complete no target token, or several.
* The draft model's cache is used as always: its tokens change only where the text does.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Final

import numpy as np

from edge_agent.draft.drafter import DraftSlot, StepSampler
from edge_agent.draft.retokeniser import PRECEDING_TOKENS, Retokeniser, Translation
from local_models.llama_cpp.prefix import common_prefix
from speculation.distributions import Logits
from speculation.draft_token import DraftToken
from speculation.messages import TokenId

# Draws the tokens of a draft model that has another vocabulary than the target.

MAX_DRAWS: Final = 4
"""At most this many tokens are drawn for a row to find one that fits the target's text."""


@dataclass(frozen=True, slots=True)
class Row:
    """The place of a row of the draft model's logits in the target's text."""

    output: list[TokenId]
    """The target's tokens of all text before the token that the row draws."""

    required: bytes
    """Text that is known to follow: only tokens that agree with it can be drawn."""

    preceding: Sequence[TokenId]
    """The target's last tokens; empty if the draft model has written beyond them."""


@dataclass(frozen=True, slots=True)
class CrossVocabularySampler:
    """A DraftSampler in the draft model's ids, made from a StepSampler in the target's ids.

    first: the position of the first row.
    """

    translation: Translation
    sampler: StepSampler
    rows: Sequence[Row]
    first: int

    def __call__(self, logits: Logits, position: int) -> DraftToken:
        logits = logits[: len(self.translation.draft.vocabulary.pieces)]  # the rest is padding
        row = self.rows[position - self.first]
        draws = self._agreeing(logits, row) if row.required else self._free(logits, row)
        drawn = list[DraftToken]()
        for each in islice(draws, MAX_DRAWS):
            if self._fits(each.token, row):
                return each
            drawn.append(each)
        return drawn[0] if drawn else DraftToken(int(np.argmax(logits)), 0.0)

    def _free(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Draw target tokens, each time without those drawn before, and yield the draft model's
        likeliest token for each."""
        projection = self.translation.projection
        projected, draw = projection(logits), self.sampler(row.output)
        while True:
            drafted = draw(projected, len(row.output))
            own = projection.likeliest(logits, drafted.token)
            yield DraftToken(int(np.argmax(logits)) if own is None else own, drafted.confidence)
            projected[drafted.token] = -np.inf

    def _agreeing(self, logits: Logits, row: Row) -> Iterator[DraftToken]:
        """Yield the tokens that agree with the required text, the likeliest first."""
        tokens = self.translation.draft.compatible(row.required)
        weights = np.exp(logits[tokens] - logits[tokens].max(initial=-np.inf))
        for index in np.argsort(-weights):
            yield DraftToken(int(tokens[index]), float(weights[index] / weights.sum()))

    def _fits(self, token: int, row: Row) -> bool:
        """Return True if the target's text can go on with a token of the draft model: the
        target's tokenizer must not merge the new text into the target's last token."""
        beyond = self.translation.draft.vocabulary.piece(token)[len(row.required) :]
        if not (row.preceding and beyond):
            return True
        return self.translation.target.can_continue(row.preceding, beyond)


# One answer's text in the tokens of a draft model with another vocabulary.

REREAD_TOKENS: Final = 4
"""When the text changes, this many tokens before the change are tokenised again, because the
new text may merge with them."""


class DraftText:
    """The tokens spell a beginning of the text that they follow, or the whole text and what the
    draft model has written beyond it."""

    def __init__(self, retokeniser: Retokeniser) -> None:
        self.tokens: list[int] = []
        self.decoded = b""
        self._retokeniser = retokeniser
        self._ends: list[int] = []  # the end of each token, in bytes
        self._confidences: list[float] = []
        self._followed = b""

    def follow(self, text: bytes, can_continue: Callable[[bytes], bool]) -> bytes:
        """Make the tokens spell the beginning of `text`, or more. Return the end of it that
        they do not spell: the draft model chooses the tokens for it, because its next tokens
        depend on them. `return` after four spaces, say, begins with the fourth.

        can_continue: returns True if the text can go on with these bytes.
        """
        if text != self._followed:
            self._followed = text
            beyond = self.decoded[len(text) :]
            if not self.decoded.startswith(text) or (beyond and not can_continue(beyond)):
                self._rewrite(text)
        return text[len(self.decoded) :]

    def _rewrite(self, text: bytes) -> None:
        same = common_prefix(self.decoded, text)
        kept = max(0, bisect_right(self._ends, same) - REREAD_TOKENS)
        start = self._ends[kept - 1] if kept else 0
        for each in self.tokens, self._ends, self._confidences:
            del each[kept:]
        tokens = self._retokeniser.tokenise(text[start:])
        if self._retokeniser.bytes_of(tokens) == text[start:]:
            tokens = self._retokeniser.stable(text[start:])
            ends = self._retokeniser.ends_of(tokens, start)
            self.decoded = text[: ends[-1]] if ends else text[:start]
        else:  # the draft model lacks tokens for some of it
            ends = [len(text)] * len(tokens)
            self.decoded = text
        self.tokens += tokens
        self._ends += ends
        self._confidences += [1.0] * len(tokens)

    @property
    def last(self) -> bytes:
        """The bytes that the last token spells."""
        return self._retokeniser.bytes_of(self.tokens[-1:])

    def append(self, token: int, confidence: float) -> None:
        """Add a token that the draft model drew."""
        self.decoded += self._retokeniser.vocabulary.pieces[token]
        self.tokens.append(token)
        self._ends.append(len(self.decoded))
        self._confidences.append(confidence)

    def drawn_since(self, start: int) -> int:
        """Return how many tokens end after byte `start`."""
        return len(self._ends) - bisect_right(self._ends, start)

    def confidences(self, start: int, ends: Iterable[int]) -> list[float]:
        """Return the confidence in each stretch of the text from `start` on, given their ends.

        This is the product over the draft model's tokens that begin in the stretch: a token
        that spells several stretches counts for the first.
        """
        result = []
        first = bisect_left(self._ends, start) + 1 if start else 0
        for end in ends:
            last = bisect_left(self._ends, end) + 1
            result.append(prod(self._confidences[first:last]))
            first = last
        return result


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
        self,
        context: Sequence[TokenId],
        sampler: StepSampler,
        *,
        ahead: Sequence[TokenId] = (),
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
