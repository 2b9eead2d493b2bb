"""Writes logs to standard error, one line an event. A line that cannot be written is lost.

Text from others, such as a path or a verifier's error, is escaped, so that it cannot end a line
or control a terminal.
"""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from gateway.log_limits import printable

LogFormat = Literal["console", "json"]


class _Stderr(io.TextIOBase):
    """Writes to standard error and ignores errors: standard error may be a file on a full disk,
    and a failing log line would end the answer that wrote it."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def _escaped(_: object, __: str, event: EventDict) -> EventDict:
    """Escape an event's texts, as a processor of structlog; a traceback keeps its lines."""
    escape = {"traceback": _printable_lines}
    texts = {name: value for name, value in event.items() if isinstance(value, str)}
    return {**event, **{n: escape.get(n, printable)(text) for n, text in texts.items()}}


def _on_lines(_: object, __: str, event: EventDict) -> EventDict:
    """Let the console show a traceback below its event, and not as a fact."""
    if (traceback := event.pop("traceback", None)) is not None:
        event["exception"] = traceback
    return event


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _traceback(out: TextIO, raised: ExcInfo) -> None:
    """Write a traceback without local variables, which may be prompts and keys."""
    written = io.StringIO()
    structlog.dev.plain_traceback(written, raised)
    out.write(_printable_lines(written.getvalue()))


def configure(log_format: LogFormat) -> None:
    """Set up structlog for this process."""
    console: list[Processor] = [
        _on_lines,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            sort_keys=False,  # as they are given: what matters comes first
            pad_event_to=0,
            pad_level=False,
            exception_formatter=_traceback,
        ),
    ]
    json: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escaped,
            *(json if log_format == "json" else console),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )
