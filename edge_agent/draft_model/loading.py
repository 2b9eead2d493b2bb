"""Finds and loads the draft model, and makes a drafter of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_agent.draft_model.drafter import Drafter, NoDrafter
from edge_agent.draft_model.llama_drafter import LlamaDrafter
from edge_agent.settings import EdgeSettings
from models.llama import Context, Model
from models.store import Store

MakeDrafter = Callable[[Model | None, EdgeSettings], Drafter]


def find(name: str, store: Store) -> Path:
    """Return the draft model's file.

    name: a path, or a name in the catalogue: of a pair, whose draft model is used, of a variant
    or of a model. Raises models.errors.UnknownModel or NotPulled.
    """
    path = Path(name)
    if path.suffix == ".gguf" or path.is_file():
        return path
    pairs = store.catalogue.pairs
    return store.path(pairs[name].draft if name in pairs else name)


def open_model(settings: EdgeSettings, store: Store) -> Model | None:
    """Open the draft model, if there is to be one. Raises models.errors.ModelError."""
    return None if settings.drafter == "none" else Model(find(settings.draft_model, store))


def make_drafter(model: Model | None, settings: EdgeSettings) -> Drafter:
    """Return the drafter. Raises models.errors.CannotOpen when there is not enough memory."""
    if model is None:
        return NoDrafter()
    context_tokens = min(settings.context_tokens, model.context_tokens)
    return LlamaDrafter(
        Context(model, context_tokens, sequences=settings.slots, threads=settings.threads)
    )
