"""Builds the verifier's app from one target, its sessions, and the routes over them.

This service runs llama.cpp's target. vLLM's target runs in vLLM's server (vllm_target.serving).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Literal

import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from rich.console import Console

from gateway.access import Access
from gateway.app import create_app
from gateway.drain import Drain, end_within, stopped_by_signals
from gateway.endpoints.services import Services, one_model
from gateway.hosting.strangers import hosts_of
from gateway.system import STOP_AT_ONCE
from gateway.tracing import Tracing, open_tracing
from local_models.errors import CannotOpen, NotPulled
from local_models.file_hashes import FileHashes
from local_models.gguf import is_exact
from local_models.progress import progress_bar
from local_models.store import Store, StoredModel, obtain, open_store
from verifier.host import Host
from verifier.llama_target.placing import Plan
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import VerifierMetrics
from verifier.plain_engine import PlainEngine
from verifier.routes import SESSION_PATHS, Routes, takes_drafts
from verifier.sessions.admission import Sessions
from verifier.settings import PASS_TIMEOUT_S, VerifierSettings
from verifier.target import Target


class VerifierService:
    """Runs the service. make: returns a target, not started. tracing: None: by the settings.
    device: the target's."""

    def __init__(
        self,
        settings: VerifierSettings,
        make: Callable[[VerifierMetrics], Target],
        drain: Drain,
        tracing: Tracing | None = None,
        *,
        device: Literal["cpu", "gpu"] = "cpu",
    ) -> None:
        self.settings = settings
        self.drain = drain
        self.registry = CollectorRegistry()
        counted = VerifierMetrics(self.registry)
        self.metrics = counted.gateway
        self.host = Host(
            make(counted),
            drain,
            settings.load_timeout_s,
            settings.pass_timeout_s or PASS_TIMEOUT_S[device],
        )
        self.sessions = Sessions(self.host, settings.sessions, counted)
        self.routes = Routes(self.host, self.sessions).all()
        self.tracing = tracing or open_tracing("picospec-verifier", wanted=settings.tracing)

    @asynccontextmanager
    async def running(
        self,
        end: Callable[[], None],
        *,
        at_once: signal.Signals,
        second_is_at_once: bool,
    ) -> AsyncGenerator[None]:
        """Serve sessions. After a signal drain, end the remaining sessions, stop the target,
        and call `end`, which ends the server."""
        settings = self.settings

        async def close() -> None:
            end_within(settings.stop_timeout_s)
            await self.sessions.end_all()
            await self.host.stop()
            end()

        stopping = stopped_by_signals(
            self.drain,
            settings.drain_timeout_s,
            close,
            at_once=at_once,
            second_is_at_once=second_is_at_once,
        )
        async with self.host.running():
            try:
                async with stopping:
                    yield
            finally:
                await self.sessions.end_all()
        await asyncio.to_thread(self.tracing.close)


def build(
    settings: VerifierSettings,
    make: Callable[[VerifierMetrics], Target],
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the ASGI app; its lifespan starts and stops the target that `make` returns.

    tracing: None creates it from the settings. The lifespan closes it.
    """
    verifier = VerifierService(settings, make, Drain(), tracing)
    stop_server = partial(os.kill, os.getpid(), signal.SIGINT)
    services = Services(
        one_model(PlainEngine(verifier.host), verifier.host.tokenizer, settings),
        settings,
        verifier.sessions.about,
        drain=verifier.drain,
        registry=verifier.registry,
    )
    app = create_app(
        services,
        Access(SESSION_PATHS, takes_drafts, hosts_of(settings), tracing=verifier.tracing),
        metrics=verifier.metrics,
        lifespan=lambda _: verifier.running(
            stop_server, at_once=STOP_AT_ONCE, second_is_at_once=False
        ),
    )
    app.router.routes[:0] = verifier.routes
    return app


def make_target(settings: VerifierSettings, metrics: VerifierMetrics) -> Target:
    """Return llama.cpp's target with these settings, not yet started.

    Raises local_models.errors.ModelError for an unknown model, and for one that the devices
    cannot compute or hold as the settings want; OSError for an unreadable template."""
    store = open_store(os.environ)
    hashes = FileHashes(store.root.with_name("hashes.json"))
    file = settings.chat_template
    template = None if file is None else file.read_text("utf-8")
    plan = Plan.of(settings.llama)
    with suppress(NotPulled):  # fetching may take long, so it waits until the target starts
        if not (path := store.find(settings.model, "target").path).exists():
            raise CannotOpen(f"there is no model {path}")
        plan.tokens(path, settings.limits.max_verify)
    find = partial(_weights, settings, store, template)
    return LlamaTarget(find, settings.llama, settings.limits, metrics, settings.owners, hashes)


def _weights(settings: VerifierSettings, store: Store, template: str | None) -> StoredModel:
    """Return the target's file, and fetch it first if it is missing. Raises ModelError."""
    exact = not Plan.of(settings.llama).devices  # of a device the self-test tells more
    with progress_bar(Console(stderr=True), settings.model) as show:
        model = obtain(store, settings.model, "target", show, exact=exact)
    if exact and not is_exact(model.path):
        structlog.get_logger("verifier").warning(
            "the weights are not exact: draft tokens may change a text",
            path=str(model.path),
            remedy=f"picospec models pull --as target {settings.model}",
        )
    return replace(model, name=settings.served_name or model.name, template=template)
