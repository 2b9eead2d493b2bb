"""Traces by OpenTelemetry, sent over OTLP. Only this file imports it, and only if it is wanted.

The standard variables say where traces go (OTEL_EXPORTER_OTLP_ENDPOINT), what the service is
called (OTEL_SERVICE_NAME), and which requests are traced (OTEL_TRACES_SAMPLER).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from picospec.gateway.tracing import Fact

_W3C: Final = TraceContextTextMapPropagator()
_CONVENTIONS: Final = {
    "completion_tokens": "gen_ai.usage.output_tokens",
    "error": "error.type",
    "method": "http.request.method",
    "model": "gen_ai.request.model",
    "path": "url.path",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "status": "http.response.status_code",
    "verifier": "url.full",
}
"""OpenTelemetry's own names of facts; any other is picospec.NAME."""


class OtelSpan:
    """gateway.tracing.Span."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context)
        return carrier

    def begin(self, name: str, **facts: Fact) -> OtelSpan:
        kind = SpanKind.CLIENT if "verifier" in facts else SpanKind.INTERNAL
        span = self._tracer.start_span(name, self._context, kind, _attributes(facts))
        return OtelSpan(self._tracer, span)

    def end(self, error: str | None = None, **facts: Fact) -> None:
        if not self._span.is_recording():  # it has ended, or is not sampled
            return
        if error is not None:
            facts["error"] = error
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(_attributes(facts))
        self._span.end()

    @property
    def _context(self) -> Context:
        return set_span_in_context(self._span)


class OtelTracing:
    """gateway.tracing.Tracing."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("picospec")

    def begin(self, name: str, headers: Mapping[str, str], **facts: Fact) -> OtelSpan:
        context = _W3C.extract(headers, Context())
        span = self._tracer.start_span(name, context, SpanKind.SERVER, _attributes(facts))
        return OtelSpan(self._tracer, span)

    def close(self) -> None:
        self._provider.shutdown()


def exporting(service: str) -> OtelTracing:
    """Return tracing that sends its spans in batches, from a thread of its own."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracing(provider)


def _attributes(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {_CONVENTIONS.get(name, f"picospec.{name}"): fact for name, fact in facts.items()}
