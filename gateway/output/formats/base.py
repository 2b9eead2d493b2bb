"""What the formats of tool calls have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from picospec.gateway.grammars.answer import CallGrammar
from picospec.gateway.grammars.json_schema import Schemas
from picospec.gateway.output.incoming import Incoming, Malformed, Steps
from picospec.gateway.output.message import Message


class Format(CallGrammar):
    """How a family of models writes tool calls: the grammar, and the parser."""

    markers: ClassVar[tuple[str, ...]]
    """Texts that are special tokens in some models. The parser must see them all the same."""

    id_length: ClassVar[int | None] = None
    """The number of letters and digits of which an id consists; None: any id will do."""

    @abstractmethod
    def read(self, text: Incoming, out: Message, tools: Schemas) -> Steps[None]:
        """Parse the answer. It may return early when `out` is complete."""


def read_calls(
    text: Incoming,
    out: Message,
    opening: tuple[str, ...],
    read_call: Callable[[], Steps[None]],
) -> Steps[None]:
    """Pass content on, and have `read_call` read each call, which begins at an `opening`.

    The space around calls is no content, because chat templates add it again. What is no call
    after all becomes content.
    """
    while (yield from _content_until(text, out, opening)):
        begun = out.calls
        try:
            yield from read_call()
            yield from text.space()
            text.use()
        except Malformed:
            if not text.ended or out.calls == begun:
                out.content(text.use(), text.used)
        if text.ended and out.calls > begun:
            text.use(len(text.held))  # the text is cut within the call
        if out.complete:
            return


def pass_content(text: Incoming, out: Message) -> Steps[None]:
    """Pass everything on as content."""
    while True:
        out.content(text.use(len(text.held)), text.used)
        if text.ended:
            return
        yield


def pass_input(text: Incoming, out: Message, name: str) -> Steps[None]:
    """Pass everything on as what the custom tool `name` gets, in the only call."""
    out.begin_call(name)
    while True:
        out.input(text.use(len(text.held)), text.used)
        if text.ended:
            return
        yield


def _content_until(text: Incoming, out: Message, opening: tuple[str, ...]) -> Steps[bool]:
    """Pass content on up to an `opening`; tell whether there is one.

    Space is withheld until it is known whether a call follows, and so is what may be the
    beginning of an `opening`.
    """
    while True:
        end, found = text.settled(opening)
        if found or not text.ended:
            end = len(text.held[:end].rstrip())
        out.content(text.use(end), text.used)
        if found:
            yield from text.space()
            return True
        if text.ended:
            return False
        yield
