"""Switches tracing on: without that, OpenTelemetry is neither imported nor needed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

from picospec.gateway.tracing import NO_TRACING, Tracing


class Switch(Protocol):
    @property
    def tracing(self) -> bool: ...


def open_tracing(service: str, switch: Switch) -> Tracing:
    """Return what traces, under the service's name unless the environment has another."""
    if not switch.tracing:
        return NO_TRACING
    from picospec.gateway.hosting.otel import exporting

    return exporting(service)


def check_installed() -> None:
    """Raise ValueError if the extra `otel` is not installed."""
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None or find_spec("opentelemetry.sdk.trace") is None:
        raise ValueError("tracing needs OpenTelemetry: pip install 'picospec[otel]'")
