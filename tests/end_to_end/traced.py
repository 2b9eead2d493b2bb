"""Both ends in this process, over HTTP/2 and without a model, with their spans in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from bench.run.services import free_port
from edge_agent.draft.drafter import NoDrafter
from edge_agent.link.connection import Connection
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.access import Access
from gateway.app import create_app
from gateway.endpoints.services import Services, one_model
from gateway.hosting.settings import GatewaySettings
from gateway.tracing import Tracing
from tests.edge_agent.fakes import engine
from tests.gateway.scripted import ByteTokenizer, client_of
from tests.guards import GUARD_S


class Recorder:
    """Tracing whose spans stay in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider.get_tracer("picospec"), provider.shutdown)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    async def until(self, name: str, count: int = 1) -> None:
        """Wait for spans that end a little after the response."""
        async with asyncio.timeout(GUARD_S):
            while len(self.named(name)) < count:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve by granian, and give the URL."""
    port = free_port()
    server = Server(
        app, port=port, interface=Interfaces.ASGI, http=HTTPModes.auto, websockets=False,
        log_enabled=False,
    )  # fmt: skip
    running = asyncio.create_task(server.serve())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        await running


@asynccontextmanager
async def edge(urls: list[str], recorder: Recorder) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of an edge that uses these verifiers, without a draft model."""
    metrics = EdgeMetrics(CollectorRegistry())
    connections = [Connection(url) for url in urls]
    each = [Verifier(made, metrics) for made in connections]
    verifiers = Verifiers(each, metrics, 10.0)

    async def tokenizer(_: str) -> ByteTokenizer:
        return ByteTokenizer()

    async with asyncio.timeout(GUARD_S):
        while not all(verifier.is_ready for verifier in each):
            await verifiers.probe()
            await asyncio.sleep(0.01)
    for verifier in each:
        await verifier.facts()
        verifier.rtt_s = 0.001  # however busy this host was: the first one is used
    settings = GatewaySettings()
    app = create_app(
        Services(
            one_model(engine(verifiers, metrics, NoDrafter()), tokenizer, settings), settings
        ),
        Access(tracing=recorder.tracing),
    )
    async with client_of(app) as client:
        yield client
    await verifiers.close()
