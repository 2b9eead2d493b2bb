"""Converts Anthropic's tools, and the choice among them, to those of a chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from gateway.endpoints.tools import MAX_TOOLS
from gateway.endpoints.tools import Json as JsonView
from gateway.schema import FIRST_ERROR, Flag, Name, RequestModel, Typed
from gateway.structured_outputs import SchemaField


class ClientTool(RequestModel):
    """The client describes this tool."""

    type: Literal["custom"] = "custom"
    name: Name
    description: str | None = None
    input_schema: SchemaField
    strict: Flag | None = None

    def shown(self) -> JsonView:
        """Return the tool as OpenAI's object."""
        function: dict[str, object] = {"name": self.name, "parameters": self.input_schema}
        fields = {"description": self.description, "strict": self.strict}
        function |= {name: value for name, value in fields.items() if value is not None}
        return {"type": "function", "function": function}


class KnownTool(BaseModel):
    """Anthropic's models know this tool by its type, or Anthropic runs it. The model here does
    not see the tool, because it has no description."""

    model_config = ConfigDict(frozen=True)

    type: str


def _kind(tool: Any) -> str:  # noqa: ANN401 - any JSON value, or a tool
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "custom" if kind in (None, "custom") else "known"


Tool = Annotated[
    Annotated[ClientTool, Tag("custom")] | Annotated[KnownTool, Tag("known")],
    Discriminator(_kind),
]
Tools = Annotated[tuple[Tool, ...], Field(max_length=MAX_TOOLS), FIRST_ERROR]

_WORDS: Final = {"auto": "auto", "any": "required", "none": "none"}


class ToolChoice(Typed):
    needed: ClassVar = {"tool": ("name",)}
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Flag = False

    def shown(self) -> object:
        """Return OpenAI's `tool_choice`."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return _WORDS[self.type]
