"""The tools of a chat, as requests name them: what the client offers, and what it chooses.

A tool is OpenAI's object {"type": "function", "function": {name, description, parameters}}, or
a custom tool, {"type": "custom", "custom": {name, description, format}}, which takes a text:
the model is shown a function whose only argument is that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from picospec.gateway.grammars.structured import MAX_BYTES, Schema
from picospec.gateway.output.message import FIELD
from picospec.gateway.schemas.base import FIRST_ERROR, Flag, Name, RequestModel, Typed, missing

Json = Mapping[str, object]

MAX_TOOLS: Final = 128
"""The limit of tools in a request, which is OpenAI's too."""


class Function(RequestModel):
    name: Name
    description: str | None = None
    parameters: Schema | None = None
    """The JSON schema of the arguments."""

    strict: Flag | None = None

    def shown(self) -> Json:
        """Return the function as chat templates get it from vLLM: with null for what is absent,
        but for `strict`."""
        names = ("name", "description", "parameters")
        function: dict[str, object] = {name: getattr(self, name) for name in names}
        return function if self.strict is None else {**function, "strict": self.strict}


class Grammar(RequestModel):
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]

    @property
    def is_lark(self) -> bool:
        return self.syntax == "lark"


class InputFormat(Typed):
    type: Literal["text", "grammar"]
    grammar: Grammar | None = None


class Custom(RequestModel):
    name: Name
    description: str | None = None
    format: InputFormat | None = None

    def shown(self) -> Json:
        """Return the function that the model is shown."""
        text, told, grammar = {"type": "string"}, self.description or "", self.grammar
        if grammar is not None and not grammar.is_lark:
            text["pattern"] = f"^(?:{grammar.definition})$"
        elif grammar is not None:
            told += f"\n\nIts input keeps to this grammar:\n{grammar.definition}"
        schema = {"type": "object", "properties": {FIELD: text}, "required": [FIELD]}
        return {"name": self.name, "description": told.strip() or None, "parameters": schema}

    @property
    def grammar(self) -> Grammar | None:
        """What the input keeps to, if anything."""
        return self.format.grammar if self.format and self.format.type == "grammar" else None


class Tool(Typed):
    type: Literal["function", "custom"]
    function: Function | None = None
    custom: Custom | None = None

    @property
    def offered(self) -> Function | Custom:
        """What is offered, of either type."""
        offered = self.custom if self.type == "custom" else self.function
        return offered or missing()

    @property
    def name(self) -> str:
        return self.offered.name

    def shown(self) -> Json:
        """Return the tool as chat templates get it."""
        return {"type": "function", "function": self.offered.shown()}

    @property
    def grammar(self) -> Grammar | None:
        """What the input of a custom tool keeps to, if anything."""
        return self.offered.grammar if isinstance(self.offered, Custom) else None

    @property
    def is_strict(self) -> bool:
        """Whether the arguments must keep to what is shown of them."""
        offered = self.offered
        return bool(offered.strict if isinstance(offered, Function) else offered.grammar)


class Named(RequestModel):
    name: str


class _Naming(Typed):
    function: Named | None = None
    custom: Named | None = None

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """The tools that it names, each after its type."""
        named = {"function": self.function, "custom": self.custom}.get(self.type)
        return frozenset() if named is None else frozenset({(self.type, named.name)})


class Reference(_Naming):
    type: Literal["function", "custom"]


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=MAX_TOOLS)]


Word = Literal["none", "auto", "required"]


def _as_choice(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class Choice(_Naming):
    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"]
    allowed_tools: AllowedTools | None = None

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        if self.type == "allowed_tools" and self.allowed_tools:
            return frozenset().union(*(each.names for each in self.allowed_tools.tools))
        return super().names


Tools = Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR]
ToolChoice = Annotated[
    Choice,
    BeforeValidator(_as_choice, json_schema_input_type=Word | Choice),
]


def check_choice(choice: Choice, tools: Sequence[Tool]) -> None:
    """Raise ValueError for a choice that these tools cannot satisfy."""
    if choice.type == "required" and not tools:
        raise ValueError("there are no tools")
    if strange := choice.names - {(tool.type, tool.name) for tool in tools}:
        raise ValueError(f"there is no tool {min(strange)[1]}")
