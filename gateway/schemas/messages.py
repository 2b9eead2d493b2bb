"""Chat messages: as clients send them, and as a chat template gets them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import from_json

from picospec.gateway.schemas.base import FIRST_ERROR, RequestModel, Unserved, missing
from picospec.gateway.schemas.structure import check_structure

Json = dict[str, object]

_ROLES: Final = {"developer": "system", "function": "tool"}
"""OpenAI's newer name for "system", and its older name for "tool"."""

_REASONING: Final = ("reasoning", "thinking")


def as_parts(value: object) -> object:
    """Return a text as the list of its only part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_object(value: Any) -> Any:  # noqa: ANN401 - whatever JSON value it is
    """Return the arguments of a call as the object that templates expect, or else as a text."""
    if not isinstance(value, str | dict):
        raise ValueError("expected the text of a JSON object")
    if value == "":
        return {}
    if isinstance(value, str):
        check_structure(value.encode())
    try:
        parsed = from_json(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return parsed if isinstance(parsed, dict) else value


class Part(RequestModel):
    """A part of a message's content. There are none but texts."""

    type: Literal["text", "input_text", "output_text", "refusal", "reasoning", "thinking"]
    text: str = Field(validation_alias=AliasChoices("text", "refusal", *_REASONING))


Parts = Annotated[
    tuple[Part, ...],
    FIRST_ERROR,
    BeforeValidator(as_parts, json_schema_input_type=str | tuple[Part, ...]),
]


def text_of(parts: tuple[Part, ...]) -> str:
    """Join the parts by newlines, as vLLM does for templates that expect a text."""
    return "\n".join(part.text for part in parts)


class Prediction(RequestModel):
    """OpenAI's predicted output: text that the answer is expected to have much of."""

    type: Literal["content"]
    content: Parts


class FunctionCall(RequestModel):
    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[Any, AfterValidator(_as_object), Field(default_factory=dict)]


class ToolCall(RequestModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall

    def shown(self) -> Json:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        call: Json = {"type": "function", "function": function}
        return call if self.id is None else {"id": self.id, **call}


class ChatMessage(RequestModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: str | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], FIRST_ERROR] = ()
    function_call: FunctionCall | None = None
    """A call as it was in the API before `tool_calls`."""

    tool_call_id: str | None = None
    reasoning_content: str | None = Field(
        None, validation_alias=AliasChoices("reasoning_content", "reasoning")
    )
    refusal: str | None = None
    audio: Unserved = False
    content: Annotated[Parts | None, Field(validate_default=True)] = None

    @field_validator("tool_calls")
    @classmethod
    def _are_the_assistants(
        cls, value: tuple[ToolCall, ...], info: ValidationInfo
    ) -> tuple[ToolCall, ...]:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only the assistant calls tools")
        return value

    @field_validator("content")
    @classmethod
    def _is_there(
        cls, value: tuple[Part, ...] | None, info: ValidationInfo
    ) -> tuple[Part, ...] | None:
        if value is None and info.data.get("role") in ("system", "developer", "user"):
            missing()
        return value

    def shown(self) -> Json:
        """Return what a template gets; `content` is None only beside tool calls."""
        calls = [call.shown() for call in self.tool_calls]
        if self.function_call is not None:
            calls.append(ToolCall(function=self.function_call).shown())
        optional = {
            "name": self.name,
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self._reasoning(),
        }
        message: Json = {"role": _ROLES.get(self.role, self.role)}
        message["content"] = self._text(has_calls=bool(calls))
        return message | {name: value for name, value in optional.items() if value is not None}

    def _text(self, *, has_calls: bool) -> str | None:
        if self.content is None:
            return self.refusal or (None if has_calls else "")
        return text_of(tuple(part for part in self.content if part.type not in _REASONING))

    def _reasoning(self) -> str | None:
        thoughts = tuple(part for part in self.content or () if part.type in _REASONING)
        return text_of(thoughts) if thoughts else self.reasoning_content
