"""The tools of a response, and the functions of a chat that they become.

function       is a function
custom         is a function with one argument, `input`, which is a text
namespace      its tools are functions named `namespace__name`
anything else  is what only OpenAI's own service can run, so the model does not see it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from picospec.gateway.doors.chat.tools import MAX_TOOLS
from picospec.gateway.grammars.json_text import decode
from picospec.gateway.grammars.structured import Schema
from picospec.gateway.schemas.base import FIRST_ERROR, Flag, Name, RequestModel, missing

Json = dict[str, object]

INPUT: Final = "input"
"""The argument that a custom tool has as a function."""

_SERVED: Final = ("function", "custom", "namespace")


class Format(RequestModel):
    """What the input of a custom tool keeps to."""

    type: Literal["text", "grammar"] = "text"
    syntax: Literal["regex"] | None = None
    definition: Annotated[str | None, Field(validate_default=True)] = None

    @field_validator("definition")
    @classmethod
    def _goes_with_a_grammar(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("type") == "grammar" and value is None:
            missing()
        return value

    def schema_of_input(self) -> Json:
        if self.type == "text":
            return {"type": "string"}
        return {"type": "string", "pattern": f"^(?:{self.definition})$"}


class Tool(RequestModel):
    type: str
    name: Annotated[Name | None, Field(validate_default=True)] = None
    description: str | None = None
    parameters: Schema | None = None
    strict: Flag | None = None
    format: Format = Format()
    tools: Annotated[tuple[Tool, ...], FIRST_ERROR] = ()
    """Those of a namespace."""

    @field_validator("name")
    @classmethod
    def _has_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        return missing() if value is None and info.data.get("type") in _SERVED else value

    def shown(self) -> Json:
        """Return the tool as a response repeats it."""
        given = self.model_dump(exclude_unset=True)
        if self.type != "function":
            return given
        return {"description": None, "parameters": None, "strict": False, **given}


@dataclass(frozen=True, slots=True)
class Offered:
    """A function of the chat, and the tool that it stands for."""

    tool: Tool
    namespace: str | None
    path: str
    """Where the request has it."""

    @property
    def name(self) -> str:
        return flat_name(self.namespace, self.tool.name or "")

    @property
    def is_custom(self) -> bool:
        return self.tool.type == "custom"

    def function(self) -> Json:
        tool, strict, parameters = self.tool, self.tool.strict, self.tool.parameters
        if self.is_custom:
            strict = tool.format.type == "grammar" or None
            argument = {INPUT: tool.format.schema_of_input()}
            parameters = {"type": "object", "properties": argument, "required": [INPUT]}
        function = {
            "name": self.name,
            "description": tool.description,
            "parameters": parameters,
            "strict": strict,
        }
        return {"type": "function", "function": function}

    def names(self, place: str) -> Iterator[tuple[str, str]]:
        """Yield the request's names for the fields of the function, by those of the chat."""
        if self.is_custom:
            yield f"{place}.function.strict", f"{self.path}.format"
            yield f"{place}.function.parameters", f"{self.path}.format.definition"
        yield f"{place}.function", self.path

    def called(self) -> Json:
        """Return how a call names the tool."""
        name: Json = {"name": self.tool.name}
        return name if self.namespace is None else {**name, "namespace": self.namespace}


def flat_name(namespace: str | None, name: str) -> str:
    """Return the name of a tool as a function."""
    return name if namespace is None else f"{namespace}__{name}"


def input_of(arguments: str) -> str:
    """Return the input of a custom tool; a model may have written it without the argument."""
    try:
        found = decode(arguments)
    except ValueError:
        return arguments
    text = found.get(INPUT) if isinstance(found, Mapping) else None
    return text if isinstance(text, str) else arguments


def offered(
    tools: Sequence[Tool], path: str = "tools", namespace: str | None = None
) -> Iterator[Offered]:
    """Yield what becomes a function."""
    for index, tool in enumerate(tools):
        here = f"{path}.{index}"
        if tool.type == "namespace":
            yield from offered(tool.tools, f"{here}.tools", tool.name)
        elif tool.type in _SERVED:
            yield Offered(tool, namespace, here)


def unserved(tools: Sequence[Tool]) -> list[str]:
    """Return names of the tools that the model does not see."""
    inside = [name for tool in tools for name in unserved(tool.tools)]
    return inside + [f"tools.{tool.type}" for tool in tools if tool.type not in _SERVED]


def _few(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if sum(1 for _ in offered(tools)) > MAX_TOOLS:
        raise ValueError(f"expected at most {MAX_TOOLS} tools")
    return tools


Tools = Annotated[tuple[Tool, ...], FIRST_ERROR, AfterValidator(_few)]


def _as_choice(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


class Choice(RequestModel):
    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"]
    name: Annotated[str | None, Field(validate_default=True)] = None
    namespace: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[tuple[Choice, ...], FIRST_ERROR] = ()

    @field_validator("name")
    @classmethod
    def _has_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        named = info.data.get("type") in ("function", "custom")
        return missing() if value is None and named else value

    def chat(self) -> object:
        """Return the choice as a chat has it."""
        if self.type in ("none", "auto", "required"):
            return self.type
        if self.type != "allowed_tools":
            name = flat_name(self.namespace, self.name or "")
            return {"type": "function", "function": {"name": name}}
        allowed = [choice.chat() for choice in self.tools]
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": self.mode, "tools": allowed},
        }

    def shown(self) -> object:
        return (
            self.type
            if self.model_fields_set == {"type"}
            else self.model_dump(exclude_unset=True)
        )


ToolChoice = Annotated[Choice, BeforeValidator(_as_choice, json_schema_input_type=str | Choice)]
