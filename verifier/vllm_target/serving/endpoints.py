"""This entry point of `vllm.endpoint_plugins` adds sessions to vLLM's API server.

The engine exists before `init_state`, which tests it: a failure there ends vLLM before it
listens. A SIGTERM to vLLM starts a drain, and its server ends only after that.
"""

from __future__ import annotations

import logging
import os
import signal
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from fastapi import FastAPI
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.datastructures import State
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from vllm.v1.engine.async_llm import AsyncLLM

from gateway.drain import Drain
from gateway.endpoints.rendering import PATH
from gateway.hosting import logs
from gateway.hosting.server import check_free, served_alongside
from gateway.metrics import WithoutCreatedSeries
from verifier.routes import OPEN
from verifier.vllm_target.patches import PATCHES
from verifier.vllm_target.plugin import settings as read_settings
from verifier.vllm_target.serving.plain import PlainRequests
from verifier.vllm_target.serving.service import VllmService

PATHS: Final = (
    f"{OPEN}/{{path:path}}", OPEN, "/ready", "/status", "/v1/model-facts", "/v1/tokenizer",
    PATH,
)  # fmt: skip
"""These paths are ours on vLLM's port; /health and /metrics there are vLLM's own."""


class Endpoints:
    """Implements vllm.plugins.endpoint_plugins.interface.EndpointPlugin."""

    name = "picospec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Put our routes before vLLM's, and our lifespan inside its server's."""
        self._app, self._drain = app, Drain()
        app.add_middleware(PlainRequests, drain=self._drain)
        app.router.routes[:0] = [
            Route(path, self, methods=["GET", "POST", "DELETE"]) for path in PATHS
        ]
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(server_app: FastAPI) -> AsyncGenerator[Any]:
            async with original(server_app) as state, self._living():
                yield state

        app.router.lifespan_context = lifespan

    async def init_state(self, engine_client: AsyncLLM, state: State, args: Namespace) -> None:
        """Open the engine to sessions. Raises SystemExit, which ends vLLM."""
        try:
            settings = read_settings()
            shared = (args.api_server_count or 1) > 1
            check_free("verifier", settings.host, settings.port, shared=shared)
            logs.configure(settings.log_format)
            self.service = VllmService(settings, engine_client, self._app, args, self._drain)
        except (OSError, ValueError) as error:
            raise SystemExit(f"settings: {error}") from error
        if why := await self.service.host.load():
            raise SystemExit(f"picospec: {why}")
        runner = "v2" if engine_client.vllm_config.use_v2_model_runner else "v1"
        replaced = sorted({each.target for each in PATCHES if each.runner in (None, runner)})
        structlog.get_logger("verifier").info("vllm_patched", patches=replaced)
        REGISTRY.register(_Of(self.service.registry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve our routes on vLLM's port, as an ASGI app."""
        await self.service.on_vllms_port(scope, receive, send)

    @asynccontextmanager
    async def _living(self) -> AsyncGenerator[None]:
        """Serve our port while vLLM's server runs, and drain before it ends."""
        service = self.service
        # the access log would contain sessions' names, which are secrets
        logging.getLogger("uvicorn.access").addFilter(lambda r: OPEN not in r.getMessage())
        port = served_alongside(service.settings, service.on_our_port)
        running = service.running(self._end, at_once=signal.SIGINT, second_is_at_once=True)
        async with running, port:
            yield
        if service.host.is_lost:  # vLLM noticed it first, and would end with status 0
            os._exit(1)

    def _end(self) -> None:
        if self.service.host.is_lost:
            os._exit(1)  # vLLM's processes end with this one, even those that hang
        self._app.state.server.should_exit = True


class _Of(Collector):
    """Shows our registry in vLLM's /metrics, which already has the process metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        shown = WithoutCreatedSeries(self._registry).collect()
        return (each for each in shown if each.name.startswith("picospec"))
