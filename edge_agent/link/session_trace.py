"""The spans of one session at the edge: until it is open, and then until its first token."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from picospec.gateway.errors import ApiError
from picospec.gateway.tracing import NO_SPAN, Fact, Span
from picospec.speculation.protocol.messages import Commit, Down, Open, Opened


class SessionTrace:
    """A context manager around the session: leaving it ends what has not ended.

    answer: the span that these are parts of. name: of the first one.
    """

    def __init__(self, answer: Span, name: str, request: Open, **facts: Fact) -> None:
        self._answer = answer
        self._span = answer.begin(
            name,
            model=request.model,
            prompt_tokens=len(request.prompt),
            committed_tokens=len(request.committed),
            **facts,
        )
        self.headers = self._span.headers
        """The request that opens the session bears these."""

    @classmethod
    def untraced(cls, request: Open) -> Self:
        return cls(NO_SPAN, "", request)

    def __enter__(self) -> Self:
        return self

    def note(self, message: Down) -> None:
        """A message has come."""
        if isinstance(message, Commit):
            self._span.end()
        elif isinstance(message, Opened):
            self._span.end()
            self._span = self._answer.begin("first token")

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        self._span.end(error.error_code if isinstance(error, ApiError) else None)
