"""Has chats rendered by other processes, see `rendering`; starts these, and anew when one ends.

A chat for which the template takes too long is lost, and its process with it; other chats have
processes of their own, one for each thread that renders at a time.
"""

from __future__ import annotations

import json
import subprocess
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from picospec.models.confined import command, environment
from picospec.models.tokenizing.chat_template import MAX_BYTES, Json
from picospec.models.tokenizing.rendering import CPU_S

START_TIMEOUT_S: Final = 60.0
"""A process that has not started after so many seconds is given up. The start takes a fifth of
a second on an idle machine."""

ANSWER_TIMEOUT_S: Final = 10.0
"""A chat that is not rendered after so many seconds is given up. The process limits its
processor time, for which a busy machine takes longer."""

_MAX_ESCAPED: Final = 6
"""A byte of text takes at most so many bytes of JSON."""

_MAX_OTHER_BYTES: Final = 1 << 20
"""An answer has no more bytes besides a text."""

_Process = subprocess.Popen[bytes]


class Overrun(ValueError):
    """The template takes more time or memory than a chat may."""

    def __init__(self) -> None:
        super().__init__(f"the chat template takes more than {CPU_S:g} s, or too much memory")


class Renderer:
    """A ChatTemplate that renders elsewhere. variables: see there. Raises ValueError if
    the template cannot be read, or OSError if no process can be started."""

    def __init__(self, text: str, variables: Json) -> None:
        self.text = text
        self._variables = variables
        self._idle: list[_Process] = []
        weakref.finalize(self, _end_all, self._idle)
        try:
            properties = self._start()
        except ValueError:
            _end_all(self._idle)
            raise
        self.takes_tools = bool(properties["takes_tools"])

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json],
        options: Json,
        most_bytes: int = MAX_BYTES,
    ) -> str:
        """See ChatTemplate.render. It may be called in several threads at once."""
        chat = {
            "messages": messages,
            "tools": tools,
            "options": options,
            "most_bytes": most_bytes,
        }
        answer = self._ask(self._take(), chat, ANSWER_TIMEOUT_S, most_bytes)
        if reason := answer.get("too_long"):
            raise OverflowError(reason)
        return str(answer["text"])

    def _take(self) -> _Process:
        """Return a process that nobody else uses."""
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                self._start()
                continue
            if process.poll() is None:
                return process
            _end(process)

    def _start(self) -> dict[str, Any]:
        """Start a process, and return the properties of its template."""
        process = subprocess.Popen(
            command("picospec.models.tokenizing.rendering"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        template = {"text": self.text, "variables": dict(self._variables)}
        return self._ask(process, template, START_TIMEOUT_S)

    def _ask(
        self, process: _Process, question: Json, within_s: float, text_bytes: int = 0
    ) -> dict[str, Any]:
        """Return the answer of a process, which is idle after that. Raises ValueError."""
        try:
            answer = _exchange(process, question, within_s, text_bytes)
        except BaseException as error:
            _end(process)
            if isinstance(error, (EOFError, OSError)):
                raise Overrun from error
            raise
        self._idle.append(process)
        if reason := answer.get("error"):
            raise ValueError(reason)
        return answer


def _exchange(
    process: _Process, question: Json, within_s: float, text_bytes: int
) -> dict[str, Any]:
    line = json.dumps(question).encode() + b"\n"
    if process.stdin is None or process.stdout is None:
        raise EOFError
    overdue = threading.Timer(within_s, process.kill)
    overdue.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline(_MAX_ESCAPED * text_bytes + _MAX_OTHER_BYTES)
    finally:
        overdue.cancel()
    if not answer.endswith(b"\n"):
        raise EOFError
    found: dict[str, Any] = json.loads(answer)
    return found


def _end(process: _Process) -> None:
    process.kill()
    with suppress(OSError), process:  # this closes its pipes, and waits for it
        pass


def _end_all(processes: list[_Process]) -> None:
    while processes:
        _end(processes.pop())
