"""Parses chat messages as clients send them, and converts them for chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

from gateway.json_bounds import Values
from gateway.schema import FIRST_ERROR, RequestModel, Typed, Unserved

Json = dict[str, object]

_BILLING: Final = "x-anthropic-billing-header"
"""Claude Code begins its billing line with this. The line differs in every request, so that no
prefix of a prompt beyond the line would ever be found in a cache."""


def as_parts(value: object) -> object:
    """Return a text as a list with the text as its only part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_object(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any JSON value
    """Return the arguments of a call as the object that templates expect. A text that is not
    an object becomes an empty one: the call is history, and the chat can go on. The values of a
    text count with those of the body."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise ValueError("expected the text of a JSON object")
    values = info.context if isinstance(info.context, Values) else Values()
    values.add(value.encode())
    try:
        parsed = from_json(value)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


class ContentPart(RequestModel):
    """A message's content consists of such parts, which are all texts."""

    type: Literal["text", "input_text", "output_text", "refusal", "reasoning", "thinking"]
    text: str = Field(validation_alias=AliasChoices("text", "refusal", "reasoning", "thinking"))

    def shown(self) -> Json:
        return {"type": "text", "text": self.text}


Parts = Annotated[
    tuple[ContentPart, ...],
    FIRST_ERROR,
    BeforeValidator(as_parts, json_schema_input_type=str | tuple[ContentPart, ...]),
]


def text_of(parts: tuple[ContentPart, ...]) -> str:
    """Join the parts by newlines, as vLLM does for templates that expect a text."""
    return "\n".join(part.text for part in parts)


class PredictedOutput(RequestModel):
    """Much of this text, OpenAI's predicted output, is expected in the answer."""

    type: Literal["content"]
    content: Parts


class FunctionCall(RequestModel):
    name: Annotated[str, Field(min_length=1)]
    arguments: Annotated[Any, AfterValidator(_as_object), Field(default_factory=dict)]


class CustomCall(RequestModel):
    name: Annotated[str, Field(min_length=1)]
    input: str


class ToolCall(Typed):
    type: Literal["function", "custom"] = "function"
    id: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    def shown(self) -> Json:
        function: Json = {}
        if self.type == "custom" and self.custom is not None:
            function = {"arguments": {"input": self.custom.input}, "name": self.custom.name}
        elif self.function is not None:
            function = {"arguments": self.function.arguments, "name": self.function.name}
        call: Json = {"function": function, "type": "function"}
        return call if self.id is None else {"id": self.id, **call}


class ChatMessage(Typed):
    needed = dict.fromkeys(("system", "developer", "user"), ("content",))
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    name: str | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], FIRST_ERROR] = ()
    function_call: FunctionCall | None = None
    """Calls had this field in the API before `tool_calls`."""

    tool_call_id: str | None = None
    reasoning: str | None = Field(
        None, validation_alias=AliasChoices("reasoning", "reasoning_content")
    )
    refusal: str | None = None
    annotations: tuple[object, ...] = ()
    """Clients send an answer's citations back; no template shows them."""

    audio: Unserved = False
    content: Parts | None = None

    @field_validator("tool_calls")
    @classmethod
    def _are_the_assistants(
        cls, value: tuple[ToolCall, ...], info: ValidationInfo
    ) -> tuple[ToolCall, ...]:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only the assistant calls tools")
        return value

    @property
    def can_go_on(self) -> bool:
        """True if an answer may continue this message: it is a text of the assistant's."""
        return self.role == "assistant" and not (self.tool_calls or self.function_call)

    def shown(self) -> Json:
        """Return the message for a tokenizer. vLLM gives templates the same fields in this
        order, which matters because some templates write a message as JSON."""
        message: Json = {"role": self.role, "content": self._content()}
        if self.role == "assistant":
            message |= self._calls_and_reasoning()
        if self.role == "tool" and self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message if self.name is None else {**message, "name": self.name}

    def _content(self) -> str | list[Json]:
        """Return the text of the only part, or a list of parts if they are several or none."""
        parts = self.content or ()
        if self.role == "system":
            parts = tuple(without_billing(parts))
        if len(parts) == 1:
            return parts[0].text
        return [part.shown() for part in parts]

    def _calls_and_reasoning(self) -> Json:
        calls = [call.shown() for call in self.tool_calls]
        if self.function_call is not None:
            calls.append(ToolCall(function=self.function_call).shown())
        fields: Json = {"tool_calls": calls} if calls else {}
        if self.reasoning is not None:  # templates read either name
            fields |= {"reasoning": self.reasoning, "reasoning_content": self.reasoning}
        return fields


def without_billing(parts: Iterable[ContentPart]) -> Iterator[ContentPart]:
    """Yield the parts of a system message, without Claude Code's billing line."""
    for part in parts:
        if not part.text.startswith(_BILLING):
            yield part
        elif rest := part.text.partition("\n")[2]:
            yield part.model_copy(update={"text": rest})
