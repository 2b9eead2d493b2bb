"""Where a request's time goes: spans, which become OpenTelemetry's if that is switched on.

A span has a name, a beginning, an end and a few facts: numbers and codes, never any text of a
prompt or an answer, and no key. Without tracing the spans are NO_SPAN, which does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

Fact = str | int | float | bool


class Span(Protocol):
    @property
    def headers(self) -> Mapping[str, str]:
        """What a request to another service must bear so that the trace goes on there (W3C)."""

    def begin(self, name: str, **facts: Fact) -> Span:
        """Return a part of this span, which begins now."""

    def end(self, error: str | None = None, **facts: Fact) -> None:
        """End the span; one that has ended stays as it is. error: the code of what failed."""


class Tracing(Protocol):
    def begin(self, name: str, headers: Mapping[str, str], **facts: Fact) -> Span:
        """Return a span that begins now. It goes on with the trace that a request's headers
        name, or begins one."""

    def close(self) -> None:
        """Send what was not sent yet; it may take seconds."""


class NoSpan:
    headers: Mapping[str, str] = MappingProxyType({})

    def begin(self, name: str, **facts: Fact) -> Span:
        return self

    def end(self, error: str | None = None, **facts: Fact) -> None:
        pass


NO_SPAN: Final = NoSpan()


class NoTracing:
    def begin(self, name: str, headers: Mapping[str, str], **facts: Fact) -> Span:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_TRACING: Final = NoTracing()
