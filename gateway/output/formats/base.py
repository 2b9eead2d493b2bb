"""Defines the interface of a format of tool calls, and the grammar of an answer in a format.

An answer is reasoning, and then content, calls, or either. `gateway.grammars` makes
a constraint of the content alone. If a model may reason before, or call a tool instead, the
constraint becomes a part of a larger grammar.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from gateway import grammars
from gateway.grammars import Special, Tags
from gateway.json_schemas import LARK, Schemas
from gateway.output.message import ParsedMessage
from gateway.output.reading import Incoming, Malformed, Steps

Constraint = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AllowedOutput:
    """Defines what an answer may contain besides reasoning."""

    tools: Schemas
    required: bool
    """True if there must be a call, and no content."""

    parallel: bool
    content: Constraint | None
    """Content conforms to this constraint; None: it is free."""


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


def grammar(
    allowed: AllowedOutput,
    form: ToolFormat,
    special: Special,
    tags: Tags | None,
    *,
    opened: bool,
) -> str:
    """Return the Lark grammar of an answer.

    tags: enclose the reasoning that may come first. opened: True if the prompt has opened it.
    Raises ValueError for what a grammar of this format cannot express.
    """
    rules = [f"start: {_reasoning(tags, opened=opened)} ({_answer(allowed, form, special)})\n"]
    if allowed.tools:
        rules.append(form.calls(allowed.tools, special, parallel=allowed.parallel))
    if tags is not None:
        rules.append(grammars.reasoning(tags, special))
    if allowed.content is not None:
        rules.append(grammars.content(allowed.content))
    elif not allowed.required:
        rules.append(grammars.free_text(form.trigger, special, form.untagged))
    return f"%llguidance {{}}\n{''.join(rules)}"


def _reasoning(tags: Tags | None, *, opened: bool) -> str:
    if tags is None:
        return ""
    return "closing" if opened else "reasoning?"


def _answer(allowed: AllowedOutput, form: ToolFormat, special: Special) -> str:
    trigger = grammars.marker(form.trigger, special) if form.trigger else ""
    if not allowed.tools:
        return "content"
    if allowed.required:
        return f"{trigger} calls"
    if allowed.content is not None and not trigger:
        raise ValueError("this model cannot choose between a call and a constrained answer")
    if allowed.content is not None:
        return f"content | {trigger} calls"
    also = form.also if any(LARK not in schema for schema in allowed.tools.values()) else ""
    return f"free | {'before' if form.trigger else ''} calls{also}"


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
