"""Parses the tools of a chat, and decides which calls an answer may have.

A tool is OpenAI's object {"type": "function", "function": {name, description, parameters}}, or
a custom tool, {"type": "custom", "custom": {name, description, format}}, which takes a text:
the model is shown a function whose only argument is that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from gateway.json_schemas import LARK, MAX_BYTES, Schemas, schemas_of
from gateway.output.message import FIELD
from gateway.output.output_format import CallRules
from gateway.schema import FIRST_ERROR, Flag, Name, RequestModel, Typed, missing
from gateway.structured_outputs import SchemaField

Json = Mapping[str, object]

MAX_TOOLS: Final = 128
"""A request has at most this many tools, which is OpenAI's limit too."""


class Function(RequestModel):
    name: Name
    description: str | None = None
    parameters: SchemaField | None = None
    """The arguments have this JSON schema."""

    strict: Flag | None = None

    def shown(self) -> Json:
        """Return the function as chat templates get it from vLLM: with null for absent fields
        other than `strict`."""
        names = ("name", "description", "parameters")
        function: dict[str, object] = {name: getattr(self, name) for name in names}
        return function if self.strict is None else {**function, "strict": self.strict}


class ToolGrammar(RequestModel):
    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Field(min_length=1, max_length=MAX_BYTES)]

    @property
    def is_lark(self) -> bool:
        return self.syntax == "lark"


class InputFormat(Typed):
    type: Literal["text", "grammar"]
    grammar: ToolGrammar | None = None


class Custom(RequestModel):
    name: Name
    description: str | None = None
    format: InputFormat | None = None

    def shown(self) -> Json:
        """Return the function that is shown to the model."""
        text, about, grammar = {"type": "string"}, self.description or "", self.grammar
        if grammar is not None and not grammar.is_lark:
            text["pattern"] = f"^(?:{grammar.definition})$"
        elif grammar is not None:
            about += f"\n\nIts input keeps to this grammar:\n{grammar.definition}"
        schema = {"type": "object", "properties": {FIELD: text}, "required": [FIELD]}
        return {"name": self.name, "description": about.strip() or None, "parameters": schema}

    @property
    def grammar(self) -> ToolGrammar | None:
        """Return the grammar of the input; None for any text."""
        return self.format.grammar if self.format and self.format.type == "grammar" else None


class Tool(Typed):
    type: Literal["function", "custom"]
    function: Function | None = None
    custom: Custom | None = None

    @property
    def offered(self) -> Function | Custom:
        """Return the function or the custom tool, whichever the type names."""
        offered = self.custom if self.type == "custom" else self.function
        return offered or missing()

    @property
    def name(self) -> str:
        return self.offered.name

    def shown(self) -> Json:
        """Return the tool in the form that chat templates get."""
        return {"type": "function", "function": self.offered.shown()}

    @property
    def grammar(self) -> ToolGrammar | None:
        """Return the grammar of a custom tool's input; None for any input."""
        return self.offered.grammar if isinstance(self.offered, Custom) else None

    @property
    def is_strict(self) -> bool:
        """True if the arguments must conform to the schema or grammar of the tool."""
        offered = self.offered
        return bool(offered.strict if isinstance(offered, Function) else offered.grammar)


class Named(RequestModel):
    name: str


class _Naming(Typed):
    type: str
    function: Named | None = None
    custom: Named | None = None

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """Return the named tools as pairs of type and name."""
        named = {"function": self.function, "custom": self.custom}.get(self.type)
        return frozenset() if named is None else frozenset({(self.type, named.name)})


class ToolReference(_Naming):
    type: Literal["function", "custom"]


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[ToolReference, ...], Field(min_length=1, max_length=MAX_TOOLS)]


Word = Literal["none", "auto", "required"]


def _as_choice(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class ChatToolChoice(_Naming):
    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"]
    allowed_tools: AllowedTools | None = None

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        if self.type == "allowed_tools" and self.allowed_tools:
            return frozenset().union(*(each.names for each in self.allowed_tools.tools))
        return super().names


Tools = Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR]
ToolChoice = Annotated[
    ChatToolChoice, BeforeValidator(_as_choice, json_schema_input_type=Word | ChatToolChoice)
]


def check_choice(choice: ChatToolChoice, tools: Sequence[Tool]) -> None:
    """Raise ValueError for a choice that these tools cannot satisfy."""
    if choice.type == "required" and not tools:
        raise ValueError("there are no tools")
    if strange := choice.names - {(tool.type, tool.name) for tool in tools}:
        raise ValueError(f"there is no tool {min(strange)[1]}")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tells which calls an answer may have: none, any number, or at least one."""

    tools: tuple[Json, ...] = ()
    """The client offers these tools: OpenAI's objects in the form for the chat template, even
    if none may be called."""

    choice: Literal["none", "auto", "required"] = "none"
    name: str | None = None
    """If set, the answer must be one call of this tool; `choice` is "required" then."""

    parallel: bool = True
    strict: frozenset[str] = frozenset()
    """The arguments of these tools must conform to their schemas."""

    allowed: frozenset[str] | None = None
    """Only these of the tools that are shown to the model may be called; None: all."""

    custom: frozenset[str] = frozenset()
    """These tools take a text."""

    lark_tools: Mapping[str, str] = field(default_factory=dict)
    """Maps custom tools to the grammars of their texts, in Lark."""

    @property
    def callable(self) -> tuple[Json, ...]:
        """Return all tools if an answer may have calls; `allowed` may exclude some of them."""
        return () if self.choice == "none" else self.tools

    @property
    def schemas(self) -> Schemas:
        """Return the schemas of the tools that the answer may call."""
        schemas = schemas_of(self.callable)
        marked = {
            name: {**schemas[name], LARK: rules} for name, rules in self.lark_tools.items()
        }
        return {
            name: schema
            for name, schema in {**schemas, **marked}.items()
            if self.allowed is None or name in self.allowed
        }

    @property
    def only_text(self) -> str | None:
        """Return the grammar of an answer that is only the text for the custom tool `name`."""
        return None if self.name is None else self.lark_tools.get(self.name)

    @property
    def call_rules(self) -> CallRules:
        """Return the tools that the answer may call, for its reader."""
        only = None if self.only_text is None else self.name
        return CallRules(self.schemas, self.parallel, self.custom, only)

    @property
    def needs_grammar(self) -> bool:
        """True if only a grammar ensures that the model makes no other calls."""
        return self.choice == "required" or bool(self.strict) or self.allowed is not None


def tool_use(
    tools: Sequence[Tool], choice: ChatToolChoice | None, *, parallel: bool
) -> ToolUse:
    """Return the ToolUse of a request. choice: has been checked against `tools`."""
    shown = tuple(tool.shown() for tool in tools)
    if not tools or (choice is not None and choice.type == "none"):
        return ToolUse(shown)
    named = frozenset(name for _, name in choice.names) if choice else frozenset[str]()
    may = [tool for tool in tools if not named or tool.name in named]
    lark_tools = {t.name: t.grammar.definition for t in may if t.grammar and t.grammar.is_lark}
    is_free = _is_free(choice)
    only = choice is not None and choice.type in ("function", "custom")
    only = only or (len(may) == 1 and bool(lark_tools) and not is_free)
    return ToolUse(
        shown,
        "auto" if is_free else "required",
        may[0].name if only else None,
        parallel and not only,
        frozenset(tool.name for tool in may if tool.is_strict),
        None if only or len(may) == len(tools) else named,
        frozenset(tool.name for tool in tools if tool.type == "custom"),
        lark_tools,
    )


def _is_free(choice: ChatToolChoice | None) -> bool:
    """Return True if the answer need not have a call."""
    if choice is not None and choice.type == "allowed_tools" and choice.allowed_tools:
        return choice.allowed_tools.mode == "auto"
    return choice is None or choice.type == "auto"
