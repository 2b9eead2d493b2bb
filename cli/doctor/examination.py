"""Runs all checks of `picospec doctor`, in order."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from prometheus_client import CollectorRegistry

from picospec.cli.doctor import machine
from picospec.cli.doctor.finding import Finding
from picospec.cli.doctor.verifier import check_verifier
from picospec.cli.preparing import DEFAULT_PAIR
from picospec.edge_agent.app import open_verifiers
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.edge_agent.settings import load
from picospec.gateway.hosting import logs
from picospec.models.llama_cpp.library import can_use_gpu, has_llama
from picospec.models.store import open_store


def examine(
    config: Path | None,
    url: str | None,
    draft: str | None,
    model: str | None,
    edge_port: int,
    verifier_port: int,
) -> list[Finding]:
    """Check this machine and the verifier, with the settings that an edge would have.

    url, draft: the verifier and the draft model; None: those of the settings. model: a model or
    pair that must be here; None: the default pair may be missing, because an edge has no
    target. Raises ValueError for settings, OSError, models.errors.ModelError.
    """
    logs.configure("console")
    named: dict[str, object] = {} if draft is None else {"draft_model": draft}
    if url is not None:
        named |= {"verifier_urls": [url], "verifier_url": None}
    settings, store = load(config, os.environ, named), open_store(os.environ)
    named_models = store.catalogue.files(DEFAULT_PAIR) if model is None else [model]
    here = [
        machine.check_engine(needed="none" not in (settings.drafter, settings.draft_model)),
        *([machine.check_gpu(machine.gpu_here(), can_use_gpu())] if has_llama() else []),
        machine.check_cores(),
        machine.check_cache(store.root),
        *(machine.check_models(store, name, needed=model is not None) for name in named_models),
        machine.check_port("edge", edge_port, "EDGE_PORT"),
        machine.check_port("verifier", verifier_port, "VERIFIER_PORT"),
    ]
    for verifier in settings.verifiers:
        alone = settings.model_copy(update={"verifier_url": verifier})
        (uplink,) = open_verifiers(alone, EdgeMetrics(CollectorRegistry())).uplinks
        here += asyncio.run(check_verifier(alone, store, uplink))
    return here
