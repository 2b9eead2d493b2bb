"""Loads the draft model, and makes a drafter and the target's tokenizer of it.

The tokenizer has the draft model's vocabulary, which is the target's too, and the target's chat
template, so that both ends read the same prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from edge_agent.draft_model.drafter import Drafter, NoDrafter
from edge_agent.draft_model.llama_drafter import LlamaDrafter
from edge_agent.settings import EdgeSettings
from gateway.errors import EngineFault
from gateway.ports import Tokenizer
from models.llama import Context, Model
from models.store import Store
from models.tokenizer import GgufTokenizer
from speculation.protocol.messages import ModelFacts

MakeDrafter = Callable[[Model, EdgeSettings], Drafter]


def find(reference: str, store: Store) -> Path:
    """Return the draft model's file; see models.store for what a reference can be.

    Raises models.errors.UnknownModel or NotPulled.
    """
    return store.find(reference, "draft").path


def open_model(settings: EdgeSettings, store: Store) -> Model:
    """Open the file, without weights if none are needed. Raises models.errors.ModelError."""
    return Model(find(settings.draft_model, store), vocabulary_only=settings.drafter == "none")


def make_drafter(model: Model, settings: EdgeSettings) -> Drafter:
    """Return the drafter. Raises models.errors.CannotOpen when there is not enough memory."""
    if settings.drafter == "none":
        return NoDrafter()
    context_tokens = min(settings.context_tokens, model.context_tokens)
    return LlamaDrafter(
        Context(model, context_tokens, sequences=settings.slots, threads=settings.threads)
    )


class TargetTokenizer:
    """A gateway.ports.TokenizerSource that follows the verifier's chat template."""

    def __init__(self, model: Model, facts: Callable[[], Awaitable[ModelFacts]]) -> None:
        self._model = model
        self._facts = facts
        self._template = ""
        self._tokenizer: Tokenizer | None = None

    async def __call__(self) -> Tokenizer:
        """Raises gateway.errors.Unavailable, or EngineFault for an unusable template."""
        template = (await self._facts()).chat_template
        if self._tokenizer is None or template != self._template:
            try:
                self._tokenizer = GgufTokenizer(self._model, template or None)
            except ValueError as error:
                raise EngineFault(f"the target's chat template: {error}") from error
            self._template = template
        return self._tokenizer
