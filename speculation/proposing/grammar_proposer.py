"""Draft tokens that the answer's grammar forces, and of another proposer's those it allows.

Where a grammar leaves a single token, as for the names in a JSON object of a known schema, the
target can only generate that one. So it needs no draft step, and is accepted for certain if the
target holds the same grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from picospec.speculation.proposing.proposer import Latencies, Proposer
from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.draft_token import DraftToken


class Grammar(Protocol):
    """Where an answer stands in its grammar: models.grammars.grammar.GrammarState."""

    def follow(self, output: Sequence[TokenId]) -> None:
        """Move to the position after these tokens, which are all output tokens before it."""

    def forced(self) -> TokenId | None:
        """Return the only token that may follow, if there is but one."""

    def count_allowed(self, tokens: Sequence[TokenId]) -> int:
        """Return how many of these tokens may follow, one after the other."""


class GrammarProposer:
    """A Proposer. other: what proposes where the grammar leaves a choice."""

    def __init__(self, grammar: Grammar, other: Proposer | None) -> None:
        self._grammar = grammar
        self._other = other

    def follow(self, committed: Sequence[TokenId], chain: Sequence[DraftToken]) -> None:
        self._grammar.follow([*committed, *(drafted.token for drafted in chain)])
        if self._other is not None:
            self._other.follow(committed, chain)

    def propose(self, latencies: Latencies) -> DraftToken | None:
        if (token := self._grammar.forced()) is not None:
            return DraftToken(token, confidence=1.0, origin="grammar")
        found = None if self._other is None else self._other.propose(latencies)
        return found if found and self._grammar.count_allowed([found.token]) else None

    def ahead(self, latencies: Latencies) -> list[TokenId]:
        found = [] if self._other is None else self._other.ahead(latencies)
        return found[: self._grammar.count_allowed(found)]

    def observe_reading(self, more: int, took_s: float, draft_s: float) -> None:
        if self._other is not None:
            self._other.observe_reading(more, took_s, draft_s)
