"""The grammar of an answer says what it may contain, in a format of tool calls.

An answer is reasoning, and then content, calls, or either. `gateway.grammars` makes
a constraint of the content alone. If a model may reason before, or call a tool instead, the
constraint becomes a part of a larger grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway import grammars
from gateway.grammars import Special, Tags
from gateway.json_schemas import LARK, Schemas
from gateway.output.formats.base import ToolFormat

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
