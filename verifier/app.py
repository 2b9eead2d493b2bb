"""Puts the verifier together: one target, its sessions, and the routes over them.

Only this module knows the targets' implementations.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from gateway.app import create_app
from gateway.hosting.listening import hosts_of
from gateway.hosting.tracing import open_tracing
from gateway.metrics import Metrics
from gateway.tracing import Tracing
from models.gguf import is_exact
from models.store import open_store
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import PassMetrics, SessionMetrics
from verifier.plain_engine import PlainEngine
from verifier.routes import SESSION_PATHS, Routes, takes_drafts
from verifier.sessions.registry import Sessions
from verifier.settings import VerifierSettings
from verifier.target import Target
from verifier.target_host import Host
from verifier.vllm_target.service.settings import VllmSettings
from verifier.vllm_target.service.target import VllmTarget


def build(
    settings: VerifierSettings,
    make: Callable[[PassMetrics], Target],
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return the ASGI app; its lifespan starts and stops the target that `make` returns.

    tracing: None for what the settings say. The lifespan closes it.
    """
    tracing = tracing or open_tracing("picospec-verifier", settings)
    registry = CollectorRegistry()
    gateway = Metrics(registry)
    # without a target this process ends, and the one that started it reports that
    give_up = partial(os.kill, os.getpid(), signal.SIGTERM)
    host = Host(make(PassMetrics(registry, gateway)), give_up)
    sessions = Sessions(host, settings.sessions, SessionMetrics(registry, gateway))

    async def end() -> None:
        await sessions.end_all()
        await host.stop()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with host.running(), sessions.running(), _ended_by_sigterm(end):
            yield
        await asyncio.to_thread(tracing.close)

    app = create_app(
        PlainEngine(host),
        host.tokenizer,
        settings,
        registry=registry,
        metrics=gateway,
        lifespan=lifespan,
        session_paths=SESSION_PATHS,
        is_message=takes_drafts,
        hosts=hosts_of(settings),
        tracing=tracing,
        about=sessions.about,
    )
    Routes(host, sessions).add_to(app)
    return app


@asynccontextmanager
async def _ended_by_sigterm(end: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """Let SIGTERM await `end` once, and only then let the server close, by SIGINT.

    The server waits for responses that are being sent, and ours last as long as a session:
    without this it would wait until it is killed.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def stop() -> None:
        await asked.wait()
        await end()
        os.kill(os.getpid(), signal.SIGINT)

    stopping = asyncio.create_task(stop())
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        if not asked.is_set():
            stopping.cancel()
        await asyncio.wait([stopping])


def make_target(settings: VerifierSettings, metrics: PassMetrics) -> Target:
    """Return the target that the settings ask for, not started.

    Raises models.errors.ModelError for a model that is not there, and OSError for a template.
    """
    store = open_store(os.environ)
    file = settings.chat_template
    template = None if file is None else file.read_text("utf-8")
    if settings.target == "vllm":
        name = settings.served_name or settings.model.rstrip("/").rsplit("/", 1)[-1]
        options = VllmSettings.of(settings.model.removeprefix("hf://"), settings.vllm)
        return VllmTarget(name, options, settings.limits, metrics, template=template)
    found = store.find(settings.model, "target")
    if not is_exact(found.path):
        structlog.get_logger("verifier").warning(
            "the weights are not exact: draft tokens may change a text",
            path=str(found.path),
            remedy=f"picospec models pull --as target {settings.model}",
        )
    name = settings.served_name or found.name
    return LlamaTarget(
        name, found.path, settings.llama, settings.limits, metrics, template=template
    )
