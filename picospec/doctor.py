"""Runs the checks of `picospec doctor` on this machine and the verifier, in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from edge_agent.draft.loading import NONE
from edge_agent.settings import load
from gateway.hosting import logs
from local_models.store import open_store
from picospec.findings import Finding
from picospec.machine_checks import (
    check_cache,
    check_cores,
    check_engine,
    check_models,
    check_port,
    check_system,
    check_verifier_memory,
)
from picospec.preparing import DEFAULT_PAIR
from picospec.verifier_checks import check_edge
from verifier.settings import load as load_verifier


def examine(
    config: Path | None,
    url: str | None,
    draft: str | None,
    model: str | None,
    ports: Mapping[str, int],
    *,
    named: bool = True,
) -> list[Finding]:
    """Check this machine and the verifier, with the settings that an edge would have.

    url, draft: the verifier and the draft model; None: those of the settings. model: a model or
    pair that must be here; None: the default pair may be missing, because an edge has no
    target. ports: those of the edge and the verifier, by these names. named: see
    `not_reached`. Raises ValueError for settings, OSError, ModelError.
    """
    logs.configure("console")
    fields: dict[str, object] = {} if draft is None else {"draft_model": draft}
    if url is not None:
        fields |= {"verifier_urls": [url], "verifier_url": None}
    settings, store = load(config, os.environ, fields), open_store(os.environ)
    named_models = store.catalogue.files(DEFAULT_PAIR) if model is None else [model]
    here = [
        check_system(),
        check_engine(needed=settings.draft_model != NONE),
        check_cores(),
        check_cache(store.root),
        *(check_models(store, name, needed=model is not None) for name in named_models),
        *check_verifier_memory(
            store, model or DEFAULT_PAIR, load_verifier(config, os.environ, {})
        ),
        *(check_port(name, port, f"{name.upper()}_PORT") for name, port in ports.items()),
    ]
    return here + asyncio.run(check_edge(settings, named=named))
