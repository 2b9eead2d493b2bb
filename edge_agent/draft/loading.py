"""Finds, fetches and opens the draft model of this edge, and makes a drafter of it.

The settings name the model, or it is one that fits the target (local_models.choosing); a
missing one is fetched. The target decides which draft fits, so without a name the edge waits
for the verifier.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from rich.console import Console

from edge_agent.draft.drafter import LoadedDrafter
from edge_agent.draft.llama import LOGITS_ROWS, LlamaDrafter
from edge_agent.draft.target_tokenizer import RETRY_S, TargetTokenizer
from edge_agent.link.verifiers import Verifiers
from edge_agent.settings import EdgeSettings, ModelSettings
from gateway.background_work import kept_going, running_alongside
from gateway.errors import ApiError
from gateway.hosting.cores import compute_threads
from gateway.turns import in_own_thread
from local_models.choosing import HubPolicy, choose_draft
from local_models.llama_cpp.context_length import Length, context_length
from local_models.llama_cpp.footprint import Footprint, footprint
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.library import INSTALL, can_use_gpu, check_llama, has_llama
from local_models.llama_cpp.model import Context, Model
from local_models.progress import progress_bar
from local_models.store import Store, obtain
from local_models.tokenizer_cache import TokenizerCache
from local_models.vocabulary import Vocabulary

AUTO: Final = "auto"
NONE: Final = "none"
"""Values of the setting draft_model that name no model."""

MIN_TOKENS: Final = 8192
"""A slot holds this many tokens on the smallest machine, if the draft model allows it."""

CHECKPOINTS: Final = 9
"""A draft model with recurrent layers keeps so many copies of their states in each slot. They
reach back by 32 tokens, as many as an edge drafts ahead."""


def pull_if_missing(name: str, store: Store) -> None:
    """Fetch a missing draft model and show the progress.

    Raises local_models.errors.ModelError.
    """
    check_llama()
    with progress_bar(Console(stderr=True), name) as show:
        obtain(store, name, "draft", show)


@dataclass(frozen=True, slots=True)
class FirstDraft:
    """The draft model that an edge starts with; the others are loaded when they are needed.

    name: of one on this machine; None for none. target: it was chosen for the target of this
    name; empty if the settings name it, and so for all targets."""

    name: str | None = None
    target: str = ""


def wanted_draft(settings: EdgeSettings, model: ModelSettings | None) -> str:
    """Return the setting for a model's draft model: a name, AUTO or NONE. model: what the
    settings say of that model, if anything."""
    return (model and model.draft_model) or settings.draft_model


def _wanted_first(settings: EdgeSettings) -> str:
    return wanted_draft(settings, next(iter(settings.models), None))


def named_draft(settings: EdgeSettings) -> FirstDraft:
    """Return the draft model that the settings name for the first model, if they do."""
    wanted = _wanted_first(settings)
    return FirstDraft(None if wanted in (AUTO, NONE) else wanted)


def first_draft(
    settings: EdgeSettings, store: Store, connect: Callable[[], Verifiers]
) -> FirstDraft:
    """Return the draft model that the settings name, or one that fits the verifier's target.
    It is fetched if it is missing.

    connect: returns the verifiers, which are closed again.
    Raises local_models.errors.ModelError, OSError.
    """
    first = named_draft(settings)
    if _wanted_first(settings) == AUTO and has_llama():
        first = asyncio.run(_fitting(connect(), store, settings))
    elif _wanted_first(settings) == AUTO:
        log = structlog.get_logger("edge_agent")
        log.warning("no draft model", reason="llama.cpp is not installed", remedy=INSTALL)
    if first.name is not None:
        pull_if_missing(first.name, store)
    return first


async def _fitting(verifiers: Verifiers, store: Store, settings: EdgeSettings) -> FirstDraft:
    """Wait for the verifier; return a draft that fits the target, if one does."""
    tokenizer = TargetTokenizer(verifiers, TokenizerCache(store.root / "tokenizers"), None)
    try:
        async with running_alongside(kept_going(verifiers.watch)):
            target, vocabulary = await _target(verifiers, tokenizer)
    finally:
        await verifiers.close()
    policy = HubPolicy(settings.draft_from_hub, settings.draft_max_gb)
    return FirstDraft(await chosen_draft(target, vocabulary, store, policy), target)


async def chosen_draft(
    target: str, vocabulary: Vocabulary, store: Store, policy: HubPolicy
) -> str | None:
    """Return the name of a draft model that fits a target, if one does; log why."""
    choose = partial(choose_draft, store, target, vocabulary, policy)
    choice = await in_own_thread(choose, "choice")
    more = {"remedy": f'{choice.remedy}, or draft_from_hub = "always"'} if choice.remedy else {}
    structlog.get_logger("edge_agent").info(
        "draft model", target=target, chosen=choice.name or "none", why=choice.why, **more
    )
    return choice.name


async def _target(verifiers: Verifiers, tokenizer: TargetTokenizer) -> tuple[str, Vocabulary]:
    """Wait for the verifier; return the target's name and vocabulary."""
    log, reason = structlog.get_logger("edge_agent"), ""
    while True:
        try:
            return (await verifiers.facts()).model, (await tokenizer()).vocabulary
        except ApiError as error:
            if str(error) != reason:
                reason = str(error)
                log.info("the draft model depends on the verifier; waiting", reason=reason)
            await asyncio.sleep(RETRY_S)


def make_drafter(model: Model, settings: EdgeSettings, length: Length) -> LoadedDrafter:
    """Return the drafter.

    Raises local_models.errors.CannotOpen if there is not enough memory.
    """
    structlog.get_logger("edge_agent").info("context", **length.log_fields())
    return LlamaDrafter(
        open_context(model, settings, length.tokens, length.sequences),
        share_prefixes=settings.share_prefixes,
    )


def open_context(
    model: Model, settings: EdgeSettings, tokens: int, sequences: int = 1
) -> Context:
    """Return a KV cache of the draft model with the edge's settings. Raises
    local_models.errors.CannotOpen.

    One core is left to the event loop, which would interrupt a thread that all others wait for.
    """
    return Context(
        model,
        tokens,
        KvCache(sequences, checkpoints=CHECKPOINTS),
        threads=settings.threads or max(1, compute_threads() - 1),
        flash_attention=settings.gpu_layers != 0,
        logits_rows=logits_rows(sequences),
    )


def logits_rows(sequences: int) -> int:
    """Return how many rows of a pass may have logits: at least one of each sequence."""
    return max(LOGITS_ROWS, sequences)


def footprint_of(model: Model, length: Length) -> Footprint:
    """Return the memory that an edge takes with a draft model, whose vocabulary suffices."""
    return footprint(model, length, logits_rows(length.sequences))


def length_of(model: Model, settings: EdgeSettings, context_tokens: int | None) -> Length:
    """Return how many tokens a slot of the draft model holds: those that are asked for, or as
    many as fit. A GPU with its own memory does not report how much of it is free."""
    facts = model.metadata()
    if (
        context_tokens is None
        and settings.gpu_layers
        and sys.platform != "darwin"
        and can_use_gpu()
    ):
        context_tokens = MIN_TOKENS
    return context_length(
        facts,
        model.context_tokens,
        context_tokens,
        kv=KvCache(settings.slots + 1, checkpoints=CHECKPOINTS),  # one spare, to read on in
        min_tokens=MIN_TOKENS,
    )
