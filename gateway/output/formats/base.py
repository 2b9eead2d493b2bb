"""A format of tool calls has this interface, and shares these readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from gateway.grammars import Special
from gateway.json_schemas import Schemas
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps


class ToolFormat(ABC):
    """Has the grammar and the parser of the tool calls of a family of models."""

    trigger: ClassVar[str]
    """This text precedes the first call; "" means that calls are simply the beginning of an
    answer."""

    untagged: ClassVar[str] = ""
    """An answer that may be a call without a trigger begins with this regular expression."""

    also: ClassVar[str] = ""
    """Under a grammar that does not require calls, an answer may also match this Lark rule."""

    markers: ClassVar[tuple[str, ...]]
    """These texts are special tokens in some models. The parser must see them even then."""

    spelling: ClassVar[Mapping[str, str]] = {}
    """The parser sees these texts in place of the markers themselves."""

    has_channels: ClassVar[bool] = False
    """True if reasoning and content are marked as calls are: `read` parses every answer."""

    id_length: ClassVar[int | None] = None
    """A call's id has this many letters and digits; None: any id is accepted."""

    @abstractmethod
    def read(self, text: Incoming, out: ParsedMessage, tools: Schemas) -> Steps[None]:
        """Parse the answer. The parser may return early when `out` is complete."""

    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        """Return Lark rules for `calls`: the text after the trigger.

        Raises ValueError for a schema that this format cannot express; by default for any.
        """
        raise ValueError("no grammar has the calls of this model")


def read_calls(
    text: Incoming,
    out: ParsedMessage,
    opening: tuple[str, ...],
    read_call: Callable[[], Steps[None]],
) -> Steps[None]:
    """Pass content on, and let `read_call` read each call, which begins at an `opening`.

    The space around calls is not content, because chat templates add it again. Text that turns
    out not to be a call becomes content.
    """
    while (yield from text.pass_on(opening, out.content, strips=True)):
        yield from text.space()
        begun = out.calls
        try:
            yield from read_call()
            yield from text.space()
            text.consume()
        except Malformed:
            if not text.ended or out.calls == begun:
                out.content(text.consume(), text.consumed)
        if text.ended and out.calls > begun:
            text.consume(len(text.held))  # the text is cut within the call
        if out.complete:
            return


def pass_content(text: Incoming, out: ParsedMessage) -> Steps[None]:
    """Pass all text on as content."""
    yield from text.pass_on((), out.content)


def pass_input(text: Incoming, out: ParsedMessage, name: str) -> Steps[None]:
    """Pass all text on as the input of the custom tool `name`, in the only call."""
    out.begin_call(name)
    yield from text.pass_on((), lambda piece, _: out.input(piece))
