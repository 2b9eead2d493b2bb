"""A pass judges the draft tokens of each session by that session's part of its logits.

A part decodes the last committed token and the draft tokens after it: row i judges draft
token i, and the row after the last draft token gives the bonus token. Rows are read lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from speculation.distributions import Distribution, Logits, distribution, logprob_of
from speculation.logits import Adjust
from speculation.messages import Open
from speculation.model_facts import TokenId
from speculation.verify_machine import Verdict
from speculation.verify_session import Pass


@dataclass(frozen=True, slots=True)
class PassPart:
    """A Part is what one session contributes to a pass."""

    sequence: int
    held: int
    """The KV cache already holds this many tokens before `last`, prompt included."""

    last: TokenId
    """This token was committed last, or ends the prompt before any is committed."""

    judged: Pass
    request: Open
    adjust: Adjust | None = None
    """Applies the request's changes to the logits; None leaves them unchanged."""

    committed: tuple[TokenId, ...] = ()
    """These output tokens precede the pass; empty where nothing is adjusted."""

    @property
    def tokens(self) -> tuple[TokenId, ...]:
        """Return the tokens of the K + 1 rows."""
        return (self.last, *self.judged.draft)


def judge(part: PassPart, logits: Callable[[int], Logits]) -> Verdict:
    """Judge a part's draft tokens. logits(i): float32[V] of row i, i = 0..K."""
    request, judged = part.request, part.judged

    def row(i: int) -> Distribution:
        row_logits = logits(i)
        if part.adjust is not None:
            row_logits = part.adjust(row_logits, (*part.committed, *judged.draft[:i]))
        return distribution(row_logits, request.sampling)

    judgement = judged.rule.judge(row, judged.draft)
    if (most := request.top_logprobs) is None:
        return Verdict(judgement)
    tokens = enumerate(judgement.tokens)
    return Verdict(judgement, tuple(logprob_of(logits(i), token, most) for i, token in tokens))
