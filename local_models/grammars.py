"""A compiled Grammar begins a GrammarState for each answer, which says which tokens may follow
its text, or must."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from local_models.errors import GrammarFailed
from local_models.guidance import Matcher, MatcherTokens, make_matcher, reason_of
from local_models.llama_cpp.prefix import common_prefix

Logits = NDArray[np.float32]


class Grammar:
    """A Grammar has passed its check. Raises InvalidGrammar.

    All its states share one lexer, which grows with the texts it has seen.
    """

    def __init__(self, tokens: MatcherTokens, text: str) -> None:
        self._kept = tokens  # its matchers do not keep them
        self._beginning = make_matcher(tokens, text)
        self.is_spent = False
        """True once a limit was reached: the grammar must then be compiled again."""

    def begin(self) -> GrammarState:
        """Return the state of an answer without tokens, for one thread at a time."""
        return GrammarState(self, self._beginning.deep_copy())


class GrammarState:
    """A GrammarState is an answer's position: a function of the grammar and the output tokens.

    Each method raises GrammarFailed if the grammar reaches a limit. The state is useless then.
    """

    def __init__(self, grammar: Grammar, matcher: Matcher) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._tokens: list[int] = []  # consumed by the matcher
        self.is_outside = False
        """True if the grammar does not allow the tokens of the last `follow`."""

        self._forced: list[int] | None = None

    def follow(self, output: Sequence[int]) -> None:
        """Move to the position after these tokens, which are all output tokens before it."""
        tokens = list(output)
        kept = common_prefix(self._tokens, tokens)
        if kept < len(self._tokens):
            self._check(self._matcher.rollback(len(self._tokens) - kept))
            del self._tokens[kept:]
            self._forced = None
        more = tokens[kept:]
        taken = self._matcher.try_consume_tokens(more) if more else 0
        self._check(not self._matcher.is_error())
        self._tokens += more[:taken]
        self.is_outside = taken < len(more)
        if more:
            foreseen = (self._forced or [])[: len(more)] == more
            self._forced = (self._forced or [])[len(more) :] or None if foreseen else None

    def mask(self, logits: Logits, output: Sequence[int]) -> Logits:
        """Return logits (float32[V]) with -inf for each token that may not follow `output`.

        Stop tokens may follow where the grammar may end. After its end nothing is masked.
        """
        self.follow(output)
        if self.is_outside:
            self._check(self._matcher.is_stopped())
            return logits
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(not self._matcher.is_error())
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf)) if allowed.any() else logits

    def forced(self) -> int | None:
        """Return the only token that the grammar allows here if it forces text, else None."""
        if self.is_outside or self._matcher.is_stopped():
            return None
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
            self._check(not self._matcher.is_error())
        return self._forced[0] if self._forced else None

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return the number of these tokens that may follow here, one after the other."""
        return 0 if self.is_outside else self._matcher.validate_tokens(list(tokens))

    def _check(self, succeeded: bool) -> None:
        if not succeeded:
            self._grammar.is_spent = True
            reason = reason_of(self._matcher) or "the text has left it"
            raise GrammarFailed(f"the grammar cannot go on: {reason}")
