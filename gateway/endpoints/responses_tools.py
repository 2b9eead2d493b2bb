"""Converts the tools of a response to those of a chat.

    function, custom  are the same in a chat
    namespace         its tools are named `namespace__name` in a chat
    anything else     only OpenAI's own service can run it, so the model does not see it

The chat checks the tools, and its errors are translated to this API's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from gateway.endpoints.tools import MAX_TOOLS
from gateway.schema import FIRST_ERROR, Typed

Json = dict[str, Any]

_SERVED: Final = ("function", "custom", "namespace")

CHOICE_NAMES: Final[Mapping[str, str]] = {
    f"tool_choice.{kind}": "tool_choice" for kind in ("function", "custom", "allowed_tools")
}
"""Maps a chat's names of fields inside a choice to this API's."""


class ResponsesTool(Typed):
    needed = dict.fromkeys(_SERVED, ("name",))
    type: str
    name: str | None = None
    description: object = None
    parameters: object = None
    strict: object = None
    format: dict[str, Any] | None = None
    """The input of a custom tool conforms to this format."""

    tools: Annotated[tuple[ResponsesTool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR] = ()
    """A namespace has these tools."""

    def shown(self) -> Json:
        """Return the tool in the form in which a response repeats it."""
        fields = self.model_dump(exclude_unset=True)
        if self.type != "function":
            return fields
        return {"description": None, "parameters": None, "strict": False, **fields}


Tools = Annotated[tuple[ResponsesTool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR]


@dataclass(frozen=True, slots=True)
class Offered:
    """Holds a tool that the chat has, too."""

    tool: ResponsesTool
    namespace: str | None
    path: str
    """The request has the tool at this path."""

    @property
    def name(self) -> str:
        return flat_name(self.namespace, self.tool.name)

    @property
    def called(self) -> Json:
        """Return the fields by which a call names the tool."""
        name = {"name": self.tool.name}
        return name if self.namespace is None else {**name, "namespace": self.namespace}

    def chat(self) -> Json:
        """Return the tool in a chat's form."""
        tool, kind = self.tool, self.tool.type
        more: Json = {"parameters": tool.parameters, "strict": tool.strict}
        if kind == "custom":
            more = {"format": tool.format and grouped(tool.format, "grammar")}
        return {
            "type": kind,
            kind: {"name": self.name, "description": tool.description, **more},
        }

    def names(self, place: str) -> Iterator[tuple[str, str]]:
        """Yield pairs of the chat's and the request's name of each of the tool's fields."""
        yield f"{place}.custom.format.grammar", f"{self.path}.format"
        yield f"{place}.custom", self.path
        yield f"{place}.function", self.path


def grouped(fields: Mapping[str, Any], kind: str) -> Json:
    """Return a typed object in a chat's form: if its type is `kind`, all other fields are moved
    into a field with that name."""
    others = {name: value for name, value in fields.items() if name != "type"}
    is_kind = fields.get("type") == kind
    return {"type": fields.get("type"), **({kind: others} if is_kind else {})}


def flat_name(namespace: str | None, name: str | None) -> str:
    """Return the name of a tool in a chat."""
    return f"{namespace}__{name}" if namespace else name or ""


def offered(
    tools: Sequence[ResponsesTool], path: str = "tools", namespace: str | None = None
) -> Iterator[Offered]:
    """Yield the tools that the chat has."""
    for index, tool in enumerate(tools):
        here = f"{path}.{index}"
        if tool.type == "namespace":
            yield from offered(tool.tools, f"{here}.tools", tool.name)
        elif tool.type in _SERVED:
            yield Offered(tool, namespace, here)


def unserved(tools: Sequence[ResponsesTool]) -> Iterator[str]:
    """Yield names of the tools that the model does not see."""
    for tool in tools:
        yield from unserved(tool.tools)
        if tool.type not in _SERVED:
            yield f"tools.{tool.type}"


def chosen(choice: str | Json | None) -> object:
    """Return a `tool_choice` in a chat's form."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind == "allowed_tools":
        tools = choice.get("tools")
        allowed = [chosen(each) for each in tools] if isinstance(tools, list) else tools
        return {"type": kind, kind: {"mode": choice.get("mode"), "tools": allowed}}
    if kind in ("function", "custom") and isinstance(name := choice.get("name"), str):
        return {"type": kind, kind: {"name": flat_name(choice.get("namespace"), name)}}
    return {"type": kind}
