"""Which calls an answer may have, as the tools and the choice of a request say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from picospec.gateway.doors.chat.tools import Choice, Json, Tool
from picospec.gateway.grammars.json_schema import LARK, Schemas, schemas_of


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The calls that an answer may have: none, as many as the model likes, or at least one."""

    tools: tuple[Json, ...] = ()
    """The tools that the client offers: OpenAI's objects, as the chat template gets them, also
    where none may be called."""

    choice: Literal["none", "auto", "required"] = "none"
    name: str | None = None
    """The tool of the one call that the answer must be; `choice` is "required" then."""

    parallel: bool = True
    """The answer may have more than one call."""

    strict: frozenset[str] = frozenset()
    """The tools whose arguments must keep to their schema."""

    allowed: frozenset[str] | None = None
    """The tools that may be called, where the model is shown others, too; None: all."""

    custom: frozenset[str] = frozenset()
    """The tools that take a text."""

    larks: Mapping[str, str] = field(default_factory=dict)
    """The grammars, in Lark, of texts that custom tools get."""

    @property
    def callable(self) -> tuple[Json, ...]:
        """All tools, where an answer may have calls; `allowed` may leave out some of them."""
        return () if self.choice == "none" else self.tools

    @property
    def schemas(self) -> Schemas:
        """The schemas of the tools that the answer may call."""
        found = schemas_of(self.callable)
        marked = {name: {**found[name], LARK: rules} for name, rules in self.larks.items()}
        return {
            name: schema
            for name, schema in {**found, **marked}.items()
            if self.allowed is None or name in self.allowed
        }

    @property
    def only_text(self) -> str | None:
        """The grammar of an answer that is nothing but the text for the custom tool `name`."""
        return None if self.name is None else self.larks.get(self.name)

    @property
    def needs_grammar(self) -> bool:
        """The model alone cannot be trusted to make only such calls."""
        return self.choice == "required" or bool(self.strict) or self.allowed is not None


def tool_use(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> ToolUse:
    """Return what a request asks for, where `choice` has been checked against `tools`."""
    shown = tuple(tool.shown() for tool in tools)
    if not tools or (choice is not None and choice.type == "none"):
        return ToolUse(shown)
    named = frozenset(name for _, name in choice.names) if choice else frozenset[str]()
    may = [tool for tool in tools if not named or tool.name in named]
    larks = {t.name: t.grammar.definition for t in may if t.grammar and t.grammar.is_lark}
    is_free = _is_free(choice)
    only = choice is not None and choice.type in ("function", "custom")
    only = only or (len(may) == 1 and bool(larks) and not is_free)
    return ToolUse(
        shown,
        "auto" if is_free else "required",
        may[0].name if only else None,
        parallel and not only,
        frozenset(tool.name for tool in may if tool.is_strict),
        None if only or len(may) == len(tools) else named,
        frozenset(tool.name for tool in tools if tool.type == "custom"),
        larks,
    )


def _is_free(choice: Choice | None) -> bool:
    """Tell whether the answer need not have a call."""
    if choice is not None and choice.type == "allowed_tools" and choice.allowed_tools:
        return choice.allowed_tools.mode == "auto"
    return choice is None or choice.type == "auto"
