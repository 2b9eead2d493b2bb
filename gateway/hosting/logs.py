"""Where logs go: one line an event, to standard error. What it does not take is lost."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from typing import Literal, TextIO, cast

import stamina.instrumentation
import structlog

LogFormat = Literal["console", "json"]


class _Stderr(io.TextIOBase):
    """Standard error, where it is a file on a disk that may be full: the error of a log line
    would end the answer in which it was written."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def configure(log_format: LogFormat) -> None:
    """Set up structlog for this process.

    Stamina's own lines are left out: they have whole URLs, and with them sessions' names.
    """
    stamina.instrumentation.set_on_retry_hooks(())
    console = [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # without locals: prompts, keys
        )
    ]
    json = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(json if log_format == "json" else console),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )
