"""This entry point of `vllm.endpoint_plugins` adds sessions to vLLM's API server, on two ports.

* vLLM's own port gets the session routes, guarded by vLLM's --api-key if it has one.
* Our port serves the same routes and vLLM's whole API over HTTP/2, behind our keys, limits, TLS
  and host names. vLLM knows one key; a request that we let in is forwarded with it.

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

from fastapi import FastAPI
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.datastructures import State
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from vllm.v1.engine.async_llm import AsyncLLM

from picospec.gateway.drain import Drain
from picospec.gateway.hosting import logs
from picospec.gateway.hosting.serving import check_free, served_beside
from picospec.verifier.routes import OPEN
from picospec.verifier.vllm_target.configuring.plugin import settings as read_settings
from picospec.verifier.vllm_target.serving.plain_requests import PlainRequests
from picospec.verifier.vllm_target.serving.service import Service

PATHS: Final = (
    f"{OPEN}/{{path:path}}", OPEN, "/ready", "/status", "/v1/model-facts", "/v1/tokenizer",
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
        stock = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(given: FastAPI) -> AsyncGenerator[Any]:
            async with stock(given) as state, self._living():
                yield state

        app.router.lifespan_context = lifespan

    async def init_state(self, engine_client: AsyncLLM, state: State, args: Namespace) -> None:
        """Open the engine to sessions. Raises SystemExit, which ends vLLM."""
        try:
            settings = read_settings()
            check_free(settings, shared=(args.api_server_count or 1) > 1)
            logs.configure(settings.log_format)
            self.service = Service(settings, engine_client, self._app, args, self._drain)
        except (OSError, ValueError) as error:
            raise SystemExit(f"settings: {error}") from error
        if why := await self.service.host.load():
            raise SystemExit(f"picospec: {why}")
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
        port = served_beside(service.settings, service.on_our_port)
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
        return (each for each in self._registry.collect() if each.name.startswith("picospec"))
