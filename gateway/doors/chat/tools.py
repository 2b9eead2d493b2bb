"""The tools of a chat: what the client offers, and which calls it wants.

A tool is OpenAI's object {"type": "function", "function": {name, description, parameters}}. The
chat template shows it to the model, and the answer's text is parsed for calls of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from picospec.gateway.grammars.structured import Schema
from picospec.gateway.schemas.base import FIRST_ERROR, Flag, Name, RequestModel, missing

Json = Mapping[str, object]

MAX_TOOLS: Final = 128
"""The limit of tools in a request, which is OpenAI's too."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The calls that an answer may have: none, as many as the model likes, or at least one."""

    tools: tuple[Json, ...] = ()
    """The tools that the client offers: OpenAI's objects, as the chat template gets them, also
    where none may be called."""

    choice: Literal["none", "auto", "required"] = "none"
    name: str | None = None
    """The function of the one call that the answer must be; `choice` is "required" then."""

    parallel: bool = True
    """The answer may have more than one call."""

    strict: frozenset[str] = frozenset()
    """The functions whose arguments must keep to their schema."""

    @property
    def callable(self) -> tuple[Json, ...]:
        """The tools that the answer may call."""
        return () if self.choice == "none" else self.tools

    @property
    def needs_grammar(self) -> bool:
        """The model alone cannot be trusted to make only such calls."""
        return self.choice == "required" or bool(self.strict)


class Function(RequestModel):
    name: Name
    description: str | None = None
    parameters: Schema | None = None
    """The JSON schema of the arguments."""

    strict: Flag | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: Function

    def shown(self) -> Json:
        """Return the tool as chat templates get it from vLLM: with null for what is absent,
        but for `strict`."""
        names = ("name", "description", "parameters")
        function: dict[str, object] = {name: getattr(self.function, name) for name in names}
        if self.function.strict is not None:
            function["strict"] = self.function.strict
        return {"type": "function", "function": function}


class NamedFunction(RequestModel):
    name: str


Word = Literal["none", "auto", "required"]


def _as_choice(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class Choice(RequestModel):
    type: Literal["none", "auto", "required", "function"]
    function: Annotated[NamedFunction | None, Field(validate_default=True)] = None

    @field_validator("function")
    @classmethod
    def _goes_with_its_type(
        cls, value: NamedFunction | None, info: ValidationInfo
    ) -> NamedFunction | None:
        if value is None and info.data.get("type") == "function":
            missing()
        return value


Tools = Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR]
ToolChoice = Annotated[
    Choice,
    BeforeValidator(_as_choice, json_schema_input_type=Word | Choice),
]


def check_choice(choice: Choice, tools: Sequence[Tool]) -> None:
    """Raise ValueError for a choice that these tools cannot satisfy."""
    if choice.type == "required" and not tools:
        raise ValueError("there are no tools")
    if choice.function and choice.function.name not in {each.function.name for each in tools}:
        raise ValueError(f"there is no tool {choice.function.name}")


def tool_use(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> ToolUse:
    """Return what a request asks for, where `choice` has been checked against `tools`."""
    shown = tuple(tool.shown() for tool in tools)
    if not tools or (choice is not None and choice.type == "none"):
        return ToolUse(shown)
    strict = frozenset(tool.function.name for tool in tools if tool.function.strict)
    if choice is None or choice.type == "auto":
        return ToolUse(shown, "auto", None, parallel, strict)
    name = choice.function.name if choice.function else None
    return ToolUse(shown, "required", name, parallel and name is None, strict)
