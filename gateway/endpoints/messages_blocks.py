"""Parses Anthropic's messages, which consist of blocks, and converts them to chat messages.

* Consecutive messages of one role become one message.
* A tool's result is a block of the user's message here, and a separate message in a chat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, ValidationInfo, field_validator

from gateway.endpoints.messages_schema import (
    ChatMessage,
    ContentPart,
    Json,
    as_parts,
    without_billing,
)
from gateway.schema import FIRST_ERROR, Flag, RequestModel


class TextBlock(ContentPart):
    type: Literal["text"]


Texts = Annotated[
    tuple[TextBlock, ...],
    FIRST_ERROR,
    BeforeValidator(as_parts, json_schema_input_type=str | tuple[TextBlock, ...]),
]


class ThinkingBlock(RequestModel):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""
    """Any text is accepted: this service trusts the reasoning that a client sends back."""


class RedactedThinkingBlock(RequestModel):
    """This reasoning, which only Anthropic can read, is left out of the chat."""

    type: Literal["redacted_thinking"]
    data: str = ""


class ToolUseBlock(RequestModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]
    caller: object = None
    """Every answer names the model as the caller; clients send this back."""


class ToolResultBlock(RequestModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = ()
    is_error: Flag = False


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock,
    Discriminator(
        "type",
        custom_error_type="unsupported",
        custom_error_message="no such block is served; text, thinking, redacted_thinking,"
        " tool_use and tool_result are",
    ),
]
Kind = TypeVar("Kind", bound=RequestModel)
_OF_ROLE: Final[dict[str, tuple[type[RequestModel], ...]]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class MessagesMessage(RequestModel):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        tuple[Block, ...],
        FIRST_ERROR,
        BeforeValidator(as_parts, json_schema_input_type=str | tuple[Block, ...]),
    ]

    @field_validator("content")
    @classmethod
    def _are_of_the_role(
        cls, value: tuple[RequestModel, ...], info: ValidationInfo
    ) -> tuple[RequestModel, ...]:
        role = info.data.get("role", "user")
        if not all(isinstance(block, _OF_ROLE[role]) for block in value):
            raise ValueError(f"a message of the role {role} has no such blocks")
        return value


def chat_messages(
    system: Sequence[TextBlock], messages: Iterable[MessagesMessage]
) -> list[ChatMessage]:
    """Return the messages of a chat, beginning with `system`."""
    contents = [("system", system), *((message.role, message.content) for message in messages)]
    chat: list[Json] = []
    for role, turns in groupby(contents, key=lambda turn: turn[0]):
        blocks = tuple(chain.from_iterable(content for _, content in turns))
        chat += _OF_BLOCKS[role](blocks)
    return [ChatMessage.model_validate(message) for message in chat]


def _system(blocks: Sequence[RequestModel]) -> Iterator[Json]:
    if texts := tuple(without_billing(_of(TextBlock, blocks))):
        yield {"role": "system", "content": texts}


def _user(blocks: Sequence[RequestModel]) -> Iterator[Json]:
    for is_result, run in groupby(blocks, key=lambda block: isinstance(block, ToolResultBlock)):
        if is_result:
            yield from map(_result, _of(ToolResultBlock, tuple(run)))
        else:
            yield {"role": "user", "content": _of(TextBlock, tuple(run))}
    if not blocks:
        yield {"role": "user", "content": ()}


def _result(block: ToolResultBlock) -> Json:
    content: tuple[ContentPart, ...] = block.content
    if block.is_error:  # no template has a place for the flag
        content = (ContentPart(type="text", text="Error:"), *content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _assistant(blocks: Sequence[RequestModel]) -> Iterator[Json]:
    calls = [
        {"id": use.id, "function": {"name": use.name, "arguments": use.input}}
        for use in _of(ToolUseBlock, blocks)
    ]
    thoughts = [block.thinking for block in _of(ThinkingBlock, blocks)]
    yield {
        "role": "assistant",
        "content": _of(TextBlock, blocks),
        "tool_calls": calls,
        "reasoning": "\n".join(thoughts) if thoughts else None,
    }


_OF_BLOCKS: Final = {"system": _system, "user": _user, "assistant": _assistant}


def _of(kind: type[Kind], blocks: Sequence[RequestModel]) -> tuple[Kind, ...]:
    return tuple(block for block in blocks if isinstance(block, kind))
