"""Builds the verifier's app from one target, its sessions, and the routes over them.

This service runs llama.cpp's target. vLLM's target runs in vLLM's server (vllm_target.serving).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog
from fastapi import FastAPI
from rich.console import Console

from picospec.gateway.accounts.access import Access
from picospec.gateway.app import create_app
from picospec.gateway.drain import Drain
from picospec.gateway.hosting.listening import hosts_of
from picospec.gateway.hosting.serving import STOP_AT_ONCE
from picospec.gateway.tracing import Tracing
from picospec.models.blobs import FileHashes
from picospec.models.errors import NotPulled
from picospec.models.gguf import is_exact
from picospec.models.hub import progress_bar
from picospec.models.store import Found, Store, obtain, open_store
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.plain_engine import PlainEngine
from picospec.verifier.routes import SESSION_PATHS, takes_drafts
from picospec.verifier.service import Verifier
from picospec.verifier.settings import VerifierSettings
from picospec.verifier.target import Target


def build(
    settings: VerifierSettings,
    make: Callable[[VerifierMetrics], Target],
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the ASGI app; its lifespan starts and stops the target that `make` returns.

    tracing: None creates it from the settings. The lifespan closes it.
    """
    verifier = Verifier(settings, make, Drain(), tracing)
    stop_server = partial(os.kill, os.getpid(), signal.SIGINT)
    app = create_app(
        PlainEngine(verifier.host),
        verifier.host.tokenizer,
        settings,
        Access(SESSION_PATHS, takes_drafts, hosts_of(settings), tracing=verifier.tracing),
        registry=verifier.registry,
        metrics=verifier.metrics,
        lifespan=lambda _: verifier.running(
            stop_server, at_once=STOP_AT_ONCE, second_is_at_once=False
        ),
        drain=verifier.drain,
        about=verifier.sessions.about,
    )
    app.router.routes[:0] = verifier.routes
    return app


def make_target(settings: VerifierSettings, metrics: VerifierMetrics) -> Target:
    """Return llama.cpp's target with these settings, not yet started.

    Raises models.errors.ModelError for an unknown model, and OSError for an unreadable
    template."""
    store, shared = open_store(os.environ), settings.share_prefixes
    hashes = FileHashes(store.root.with_name("hashes.json"))
    file = settings.chat_template
    template = None if file is None else file.read_text("utf-8")
    with suppress(NotPulled):  # fetching may take long, so it waits until the target starts
        store.find(settings.model, "target")
    find = partial(_weights, settings, store)
    return LlamaTarget(
        find, settings.llama, settings.limits, metrics,
        template=template, share_prefixes=shared, hashes=hashes,
        keeps_answers=settings.speculation.keep_answers,
    )  # fmt: skip


def _weights(settings: VerifierSettings, store: Store) -> Found:
    """Return the target's file, and fetch it first if it is missing. Raises ModelError."""
    with progress_bar(Console(stderr=True), settings.model) as show:
        found = obtain(store, settings.model, "target", show)
    if not is_exact(found.path):
        structlog.get_logger("verifier").warning(
            "the weights are not exact: draft tokens may change a text",
            path=str(found.path),
            remedy=f"picospec models pull --as target {settings.model}",
        )
    return replace(found, name=settings.served_name or found.name)
