"""The draft model of this edge: the one that is named, or a draft of the catalogue that fits.

It is fetched if it is not here. Which one fits depends on the target, so the edge waits for the
verifier where none is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from picospec.edge_agent.draft_model.loading import AUTO, NONE, pull_if_missing
from picospec.edge_agent.draft_model.target_tokenizer import RETRY_S, TargetTokenizer
from picospec.edge_agent.link.verifiers import Verifiers
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.errors import ApiError
from picospec.models.llama_cpp.library import INSTALL, has_llama
from picospec.models.obtaining import fitting_draft
from picospec.models.store import Store
from picospec.models.tokenizing.tokenizer_cache import TokenizerCache


def with_draft_model(
    settings: EdgeSettings, store: Store, connect: Callable[[], Verifiers]
) -> EdgeSettings:
    """Return settings that name a draft model of this machine, or say that there is none.

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
    """Return the name of a draft that fits the target, once the verifier can be reached."""
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
