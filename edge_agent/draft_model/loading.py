"""Finds, fetches and opens the draft model of this edge, and makes a drafter of it.

The settings name the model, or it is the draft of the catalogue that fits the target; a missing
one is fetched. The target decides which draft fits, so without a name the edge waits for the
verifier.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from rich.console import Console

from picospec.edge_agent.draft_model.drafter import Drafter, NoDrafter
from picospec.edge_agent.draft_model.llama_drafter import LlamaDrafter
from picospec.edge_agent.draft_model.target_tokenizer import RETRY_S, TargetTokenizer
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.cores import compute_threads
from picospec.models.hub import progress_bar
from picospec.models.llama_cpp.library import INSTALL, can_use_gpu, check_llama, has_llama
from picospec.models.llama_cpp.model import Context, Length, Model, context_length
from picospec.models.store import Store, fitting_draft, obtain
from picospec.models.tokenizer_file import TokenizerCache

AUTO: Final = "auto"
NONE: Final = "none"
"""Values of the setting draft_model that name no model."""

MIN_TOKENS: Final = 8192
"""A slot holds this many tokens on the smallest machine, if the draft model allows it."""

MakeDrafter = Callable[[Model | None, EdgeSettings], Drafter]


def find(reference: str, store: Store) -> Path:
    """Return the path of the draft model's file; models.store describes the references.

    Raises models.errors.UnknownModel or NotPulled.
    """
    return store.find(reference, "draft").path


def pull_if_missing(name: str, store: Store) -> None:
    """Fetch a missing draft model and show the progress. Raises models.errors.ModelError."""
    check_llama()
    with progress_bar(Console(stderr=True), name) as show:
        obtain(store, name, "draft", show)


def with_draft_model(
    settings: EdgeSettings, store: Store, connect: Callable[[], Verifiers]
) -> EdgeSettings:
    """Return settings that name a draft model on this machine, or have the drafter `none`.

    connect: returns the verifiers, which are closed again. Raises models.errors.ModelError,
    OSError.
    """
    name: str | None = settings.draft_model
    if settings.drafter == "none" or name == NONE:
        return settings.model_copy(update={"drafter": "none"})
    if name == AUTO and not has_llama():
        log = structlog.get_logger("edge_agent")
        log.warning("no draft model", reason="llama.cpp is not installed", remedy=INSTALL)
        name = None
    if name == AUTO:
        name = asyncio.run(_fitting(connect(), store))
    if name is None:
        return settings.model_copy(update={"drafter": "none"})
    pull_if_missing(name, store)
    return settings.model_copy(update={"draft_model": name})


async def _fitting(verifiers: Verifiers, store: Store) -> str | None:
    """Wait for the verifier; return the name of a draft that fits the target, if one does."""
    log, reason = structlog.get_logger("edge_agent"), ""
    tokenizer = TargetTokenizer(verifiers, TokenizerCache(store.root / "tokenizers"), None)
    try:
        while True:
            try:
                vocabulary = (await tokenizer()).vocabulary
                target = (await verifiers.facts()).model
                break
            except ApiError as error:
                if str(error) != reason:
                    reason = str(error)
                    log.info("the draft model depends on the verifier; waiting", reason=reason)
                await asyncio.sleep(RETRY_S)
    finally:
        await verifiers.close()
    name = await asyncio.to_thread(fitting_draft, store, target, vocabulary)
    log.info("draft model", target=target, chosen=name or "none of the catalogue fits")
    return name


def open_model(settings: EdgeSettings, store: Store) -> Model | None:
    """Open the draft model that the settings name, if any. Raises models.errors.ModelError."""
    if settings.drafter == "none":
        return None
    return Model(find(settings.draft_model, store), gpu_layers=settings.gpu_layers)


def make_drafter(model: Model | None, settings: EdgeSettings) -> Drafter:
    """Return the drafter. Raises models.errors.CannotOpen if there is not enough memory."""
    if model is None:
        return NoDrafter()
    length = length_of(model, settings)
    structlog.get_logger("edge_agent").info("context", **length.log_fields())
    return LlamaDrafter(
        open_context(model, settings, length.tokens, length.sequences),
        share_prefixes=settings.share_prefixes,
    )


def open_context(
    model: Model, settings: EdgeSettings, tokens: int, sequences: int = 1
) -> Context:
    """Return a KV cache of the draft model with the edge's settings. Raises
    models.errors.CannotOpen.

    One core is left to the event loop, which would interrupt a thread that all others wait for.
    """
    return Context(
        model,
        tokens,
        sequences=sequences,
        threads=settings.threads or max(1, compute_threads() - 1),
        flash_attention=settings.gpu_layers != 0,
    )


def length_of(model: Model, settings: EdgeSettings) -> Length:
    """Return how many tokens a slot of the draft model holds. A GPU with its own memory does
    not report how much of it is free."""
    facts, asked = model.metadata(), settings.context_tokens
    if asked is None and settings.gpu_layers and sys.platform != "darwin" and can_use_gpu():
        asked = MIN_TOKENS
    return context_length(
        facts,
        model.context_tokens,
        asked,
        sequences=settings.slots + 1,  # one spare sequence, to read on in
        cache="F16",
        min_tokens=MIN_TOKENS,
    )
