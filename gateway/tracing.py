"""Records where a request's time goes, in OpenTelemetry spans that do nothing without its SDK.

A span has a name, a beginning, an end and a few facts: numbers and codes, never the text of a
prompt or an answer, and no key. The tracer provider is not set globally: FastAPI would then
send a span for every request for /ready, and paths in its spans contain session names.

The standard variables set where traces go (OTEL_EXPORTER_OTLP_ENDPOINT), the name of the
service (OTEL_SERVICE_NAME), and which requests are traced (OTEL_TRACES_SAMPLER). Without
tracing the SDK is neither imported nor needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Fact = str | int | float | bool | Sequence[str]
_NEEDED: Final = ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk.trace")
_W3C: Final = TraceContextTextMapPropagator()
_CONVENTIONS: Final = {
    "completion_tokens": "gen_ai.usage.output_tokens",
    "error": "error.type",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "method": "http.request.method",
    "model": "gen_ai.request.model",
    "operation": "gen_ai.operation.name",
    "path": "url.path",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "response_model": "gen_ai.response.model",
    "status": "http.response.status_code",
    "verifier": "url.full",
}
"""Maps our names of facts to OpenTelemetry's; any other fact is called picospec.NAME."""


@dataclass(frozen=True, slots=True)
class Span:
    tracer: Tracer
    span: trace.Span

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers by which another service continues the trace (W3C)."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self.span, Context()))
        return carrier

    def begin(self, name: str, **facts: Fact) -> Span:
        """Return a child of this span that begins now."""
        kind = SpanKind.CLIENT if "verifier" in facts else SpanKind.INTERNAL
        context = set_span_in_context(self.span, Context())
        part = self.tracer.start_span(name, context, kind, _attributes(facts))
        return Span(self.tracer, part)

    def note(self, **facts: Fact) -> None:
        """Add facts to the span. One that names an operation of a model names its provider."""
        if "operation" in facts:
            self.span.set_attribute("gen_ai.provider.name", "picospec")
        self.span.set_attributes(_attributes(facts))

    def end(self, error: str | None = None, **facts: Fact) -> None:
        """End the span, unless it has ended already. error: code of the failure."""
        if not self.span.is_recording():
            return
        if error is not None:
            facts["error"] = error
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.set_attributes(_attributes(facts))
        self.span.end()


NO_SPAN: Final = Span(trace.NoOpTracer(), trace.INVALID_SPAN)


@dataclass(frozen=True, slots=True)
class Tracing:
    tracer: Tracer
    close: Callable[[], None]
    """Sends the spans that were not sent yet, which may take seconds."""

    def begin(self, name: str, headers: Mapping[str, str], **facts: Fact) -> Span:
        """Return a span that begins now. The span continues the trace that a request's headers
        name, or begins a trace."""
        if self is NO_TRACING:
            return NO_SPAN
        context = _W3C.extract(headers, Context())
        span = self.tracer.start_span(name, context, SpanKind.SERVER, _attributes(facts))
        return Span(self.tracer, span)


NO_TRACING: Final = Tracing(NO_SPAN.tracer, lambda: None)


def _attributes(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {_CONVENTIONS.get(name, f"picospec.{name}"): fact for name, fact in facts.items()}


def open_tracing(service: str, *, wanted: bool) -> Tracing:
    """Return the tracing of a service, whose name the environment may replace. If `wanted`, it
    sends spans over OTLP, in batches, from a separate thread."""
    if not wanted:
        return NO_TRACING
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider.get_tracer("picospec"), provider.shutdown)


def check_installed() -> None:
    """Raise ValueError if the extra `otel` is not installed."""
    with suppress(ModuleNotFoundError):  # a package that contains one of them is missing
        if all(map(find_spec, _NEEDED)):
            return
    raise ValueError(
        "tracing needs OpenTelemetry: pip install opentelemetry-sdk"
        " opentelemetry-exporter-otlp-proto-http"
    )
