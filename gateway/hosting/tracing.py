"""Switches tracing on: without that, OpenTelemetry's SDK is neither imported nor needed.

The standard variables say where traces go (OTEL_EXPORTER_OTLP_ENDPOINT), what the service is
called (OTEL_SERVICE_NAME), and which requests are traced (OTEL_TRACES_SAMPLER).
"""

from __future__ import annotations

from importlib.util import find_spec

from picospec.gateway.tracing import NO_TRACING, Tracing


def open_tracing(service: str, *, wanted: bool) -> Tracing:
    """Return what traces, under the service's name unless the environment has another."""
    return exporting(service) if wanted else NO_TRACING


def exporting(service: str) -> Tracing:
    """Return tracing that sends its spans over OTLP, in batches, from a thread of its own."""
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
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None or find_spec("opentelemetry.sdk.trace") is None:
        raise ValueError("tracing needs OpenTelemetry: pip install 'picospec[otel]'")
