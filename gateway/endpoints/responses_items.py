"""Parses the items of a conversation, and converts them to chat messages.

A turn of the assistant is several items here, and one message to a chat template: reasoning,
text and calls, in this order. An item that can follow the last message's content joins it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter

from gateway.endpoints.responses_tools import Json, flat_name
from gateway.schema import FIRST_ERROR, RequestModel, Typed

_ORDER: Final = ("reasoning", "content", "tool_calls")
"""An assistant's message has these fields, in the order in which a model writes them."""


class ItemPart(RequestModel):
    """An item's content consists of such parts, which are all texts."""

    type: Literal[
        "input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"
    ]
    text: str = Field(validation_alias=AliasChoices("text", "refusal"))
    annotations: object = None
    logprobs: object = Field(None, exclude=True)  # no prompt has them, and they are large


def _as_parts(value: object) -> object:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Parts = Annotated[
    tuple[ItemPart, ...],
    FIRST_ERROR,
    BeforeValidator(_as_parts, json_schema_input_type=str | tuple[ItemPart, ...]),
]


class Item(Typed):
    needed: ClassVar = {
        "message": ("role", "content"),
        "function_call": ("name", "call_id", "arguments"),
        "custom_tool_call": ("name", "call_id", "input"),
        "function_call_output": ("call_id", "output"),
        "custom_tool_call_output": ("call_id", "output"),
        "item_reference": ("id",),
    }
    type: Literal[
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "item_reference",
        "web_search_call",
    ] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Parts | None = None
    summary: Parts = ()
    encrypted_content: str | None = None
    name: Annotated[str | None, Field(min_length=1)] = None
    namespace: str | None = None
    call_id: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Parts | None = None

    @property
    def thoughts(self) -> str | None:
        """Return the reasoning, decoded if only its encoding by this service came back; None if
        another service has encrypted it."""
        if self.content or not self.encrypted_content:
            return "\n".join(part.text for part in self.content or self.summary)
        try:
            return base64.b64decode(self.encrypted_content, validate=True).decode()
        except ValueError:
            return None

    def unseen(self) -> str | None:
        """Return the name of the part of the item that the model does not see, if any."""
        if self.type == "web_search_call":  # only reports that a service searched
            return f"input.{self.type}"
        hidden = self.type == "reasoning" and self.thoughts is None
        return "input.encrypted_content" if hidden else None


Items = Annotated[tuple[Item, ...], FIRST_ERROR]
ITEMS: Final[TypeAdapter[tuple[Item, ...]]] = TypeAdapter(Items)


def sealed(thoughts: str) -> str:
    """Return reasoning as `encrypted_content`: a client sends it back, so that nothing is kept.
    It needs no encryption, because `content` has the same text."""
    return base64.b64encode(thoughts.encode()).decode()


def messages_of(items: Sequence[Item]) -> list[Json]:
    """Return the messages of a chat. If a system message is not the first message, all system
    messages become developer messages, which rendering puts where the template accepts them."""
    messages: list[Json] = []
    for item in items:
        if (part := _assistants(item)) is not None:
            _join(messages, *part)
        elif item.type == "message":
            messages.append({"role": item.role, "content": _texts(item.content)})
        elif item.call_id is not None:
            output = _texts(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
    if any(message["role"] == "system" for message in messages[1:]):
        for message in messages:
            if message["role"] == "system":
                message["role"] = "developer"
    return messages


def _assistants(item: Item) -> tuple[str, Any] | None:
    """Return the field and the value that an item adds to an assistant's message, or None."""
    match item.type:
        case "message" if item.role == "assistant":
            return "content", _texts(item.content)
        case "reasoning" if item.thoughts:
            return "reasoning", item.thoughts
        case "function_call":
            return "tool_calls", [_call(item, "function", arguments=item.arguments)]
        case "custom_tool_call":
            return "tool_calls", [_call(item, "custom", input=item.input)]
    return None


def _join(messages: list[Json], kind: str, value: Any) -> None:  # noqa: ANN401 - of any kind
    """Add a value to the last message if it can follow there, or else begin a message."""
    last = messages[-1] if messages else {"role": None}
    if kind == "tool_calls" and kind in last:
        last[kind] += value
    elif last["role"] == "assistant" and last.keys().isdisjoint(_ORDER[_ORDER.index(kind) :]):
        last[kind] = value
    else:
        messages.append({"role": "assistant", kind: value})


def _call(item: Item, kind: str, **given: str | None) -> Json:
    called = {"name": flat_name(item.namespace, item.name), **given}
    return {"id": item.call_id, "type": kind, kind: called}


def _texts(parts: Sequence[ItemPart] | None) -> list[Json]:
    return [{"type": "text", "text": part.text} for part in parts or ()]
