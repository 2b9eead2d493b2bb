"""Renders chats with a model's chat template, as `transformers` does.

The Jinja template runs in a sandbox, because it is foreign code from the target. `renderer`
limits its time and memory, which this module does not.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from local_models.template_messages import Json

Clock = Callable[[], datetime.datetime]

MAX_BYTES: Final = 32 << 20
"""A chat without a known smaller limit has this one: four times the largest request body."""


class ChatTemplate:
    """Renders a Jinja template. variables: values that it may use besides a request's own, such
    as `bos_token`. Raises ValueError if it cannot be parsed."""

    def __init__(
        self, text: str, variables: Json, *, now: Clock = datetime.datetime.now
    ) -> None:
        self.text = text
        environment = _environment(now)
        try:
            parsed = environment.parse(text)
            self._template = environment.from_string(parsed)
        except Exception as error:  # parsing computes constants, which may raise anything
            raise ValueError(f"the chat template cannot be read: {error}") from error
        self._variables = variables
        self.takes_tools = any(name.name == "tools" for name in parsed.find_all(nodes.Name))

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json],
        options: Json,
        max_bytes: int = MAX_BYTES,
    ) -> str:
        """Return the chat with the assistant's turn opened. Raises ValueError, and
        OverflowError if it has more than `max_bytes`.

        options: more variables, which replace the template's own. Many templates know some of
        them: `documents`, `enable_thinking`, `add_generation_prompt`.
        """
        _check(options)
        variables = {
            "add_generation_prompt": True,
            "documents": None,
            **self._variables,
            **options,
        }
        variables |= {"messages": messages, "tools": tools or None}
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables):
                size += len(piece.encode(errors="surrogatepass"))
                if size > max_bytes:
                    break
                pieces.append(piece)
        except MemoryError:
            raise
        except Exception as error:  # the template is foreign code: it may raise anything
            raise ValueError(f"the chat template refuses: {error}") from error
        if size > max_bytes:
            raise OverflowError(f"the chat has more than {max_bytes} bytes")
        return "".join(pieces)


def _check(options: Json) -> None:
    if taken := {"messages", "tools"} & options.keys():
        raise ValueError(f"{min(taken)} is no template variable: it has a field of its own")
    match options.get("documents"):
        case None:
            return
        case list(documents) if all(isinstance(each, Mapping) for each in documents):
            return
    raise ValueError("documents: expected a list of objects")


def joined(default: str, with_tools: str | None) -> str:
    """Return one template made of two, if there are two: `default` is for chats without tools.

    Neither a line break after a tag nor the last one of a template is text.
    """
    if not with_tools:
        return default
    first, last = (text.removesuffix("\n") for text in (with_tools, default))
    return f"{{% if tools %}}\n{first}{{%+ else %}}\n{last}{{%+ endif %}}"


class _Generation(Extension):
    """Renders the body of {% generation %}, a tag that marks the assistant's turns for
    training. The body is a block: variables set in it end with it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja requires a set here

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment(now: Clock) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode a value. Jinja's own filter escapes HTML, which chat templates do not expect."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
