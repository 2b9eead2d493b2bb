"""The grammar of an answer: its reasoning, and then content, calls, or either.

A constraint is what `gateway.grammars.structured` makes of a request. It is about the content
alone, so where a model may reason before, or call a tool instead, it becomes a part of a larger
grammar.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from picospec.gateway.grammars import lark
from picospec.gateway.grammars.json_schema import LARK, Schemas
from picospec.gateway.grammars.lark import Special, Tags

Constraint = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer may be, besides reasoning."""

    tools: Schemas
    """The functions that may be called."""

    required: bool
    """There is a call, and no content."""

    parallel: bool
    """There may be several calls."""

    content: Constraint | None
    """The constraint that content keeps to; None: it is free."""


class CallGrammar(ABC):
    """How a family of models writes tool calls, as a grammar tells it."""

    trigger: ClassVar[str]
    """It comes before the first call; "" means that calls are just the beginning of the
    answer."""

    untagged: ClassVar[str] = ""
    """A regular expression for how an answer begins that may be a call without a trigger."""

    also: ClassVar[str] = ""
    """Under a grammar that does not require calls an answer may also be this, in Lark."""

    @abstractmethod
    def calls(self, tools: Schemas, special: Special, *, parallel: bool) -> str:
        """Return Lark rules for `calls`: what comes after the trigger.

        Raises ValueError for a schema that this format cannot express.
        """


def grammar(
    wanted: Wanted, form: CallGrammar, special: Special, tags: Tags | None, *, opened: bool
) -> str:
    """Return the Lark grammar of an answer.

    tags: the model may reason first; opened: it is reasoning already. Raises ValueError for
    what a grammar of this form cannot express.
    """
    rules = [f"start: {_reasoning(tags, opened=opened)} ({_answer(wanted, form, special)})\n"]
    if wanted.tools:
        rules.append(form.calls(wanted.tools, special, parallel=wanted.parallel))
    if tags is not None:
        rules.append(lark.reasoning(tags, special))
    if wanted.content is not None:
        rules.append(lark.content(wanted.content))
    elif not wanted.required:
        rules.append(lark.free_text(form.trigger, special, form.untagged))
    return f"%llguidance {{}}\n{''.join(rules)}"


def _reasoning(tags: Tags | None, *, opened: bool) -> str:
    if tags is None:
        return ""
    return "closing" if opened else "reasoning?"


def _answer(wanted: Wanted, form: CallGrammar, special: Special) -> str:
    trigger = lark.marker(form.trigger, special) if form.trigger else ""
    if not wanted.tools:
        return "content"
    if wanted.required:
        return f"{trigger} calls"
    if wanted.content is not None and not trigger:
        raise ValueError("this model cannot choose between a call and a constrained answer")
    if wanted.content is not None:
        return f"content | {trigger} calls"
    also = form.also if any(LARK not in schema for schema in wanted.tools.values()) else ""
    return f"free | {'before' if form.trigger else ''} calls{also}"
