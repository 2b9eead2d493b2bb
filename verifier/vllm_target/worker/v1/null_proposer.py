"""Gives Model Runner V1 a proposer of its own, so that it builds its speculative path."""

from __future__ import annotations

from collections.abc import Sequence


class NullProposer:
    """It proposes nothing: the draft tokens come from the edge."""

    def __init__(self, vllm_config: object) -> None:
        """Take vLLM's settings, as its loader gives them."""

    def load_model(self, *args: object, **kwargs: object) -> None:
        """Load nothing; vLLM's CPU runner calls this of every proposer."""

    def propose(
        self, sampled_token_ids: Sequence[object], *args: object, **kwargs: object
    ) -> list[list[int]]:
        """Return no drafts for each row of the batch."""
        return [[] for _ in sampled_token_ids]
