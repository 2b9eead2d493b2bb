"""Renders chats by a model's chat template, as `transformers` renders them.

The Jinja template runs in a sandbox, because it comes from outside: from the target.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Json = Mapping[str, object]
Clock = Callable[[], datetime.datetime]


class ChatTemplate:
    """A template in Jinja. variables: what it may name besides a request's own, such as
    `bos_token`. Raises ValueError if it cannot be parsed."""

    def __init__(
        self, text: str, variables: Json, *, now: Clock = datetime.datetime.now
    ) -> None:
        self.text = text
        self._template = _compile(text, now)
        self._variables = variables

    def render(self, messages: Sequence[Json], tools: Sequence[Json], options: Json) -> str:
        """Return the chat with the assistant's turn opened. Raises ValueError.

        options: more variables, which replace those of the template.
        """
        given = {**self._variables, **options}
        given |= {"messages": messages, "tools": tools or None, "documents": None}
        try:
            return self._template.render({"add_generation_prompt": True, **given})
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the chat template refuses: {error}") from error


class _Generation(Extension):
    """Renders the body of {% generation %}, a tag with which templates mark the assistant's
    turns for training."""

    tags = {"generation"}  # noqa: RUF012 - Jinja has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, now: Clock) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template cannot be read: {error}") from error


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode a value; Jinja's own filter escapes HTML, which chat templates do not expect."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
