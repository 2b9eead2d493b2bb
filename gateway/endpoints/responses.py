"""Parses the body of POST /v1/responses, and converts it to a chat.

A field that this API does not have has its meaning in a chat: `seed` and `top_k` are served,
and a field that no endpoint serves is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.responses_items import Item, Items, messages_of
from gateway.endpoints.responses_tools import (
    CHOICE_NAMES,
    Json,
    Offered,
    Tools,
    chosen,
    grouped,
    unserved,
)
from gateway.errors import InvalidRequest
from gateway.schema import (
    FIRST_ERROR,
    Converted,
    Flag,
    Integer,
    RequestModel,
    Unserved,
    validated,
)
from speculation.model_facts import MAX_TOP_LOGPROBS

ENCRYPTED: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"

_NAMES: Final[Mapping[str, str]] = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}
"""Maps a chat's names of fields to this API's; a longer name comes before its prefix."""


class Text(RequestModel):
    format: dict[str, object] = Field(default_factory=lambda: dict[str, object](type="text"))
    verbosity: str | None = None
    """This field has no effect: the served models do not know it."""


class ResponsesReasoning(RequestModel):
    effort: str | None = None
    summary: str | None = None
    """This field has no effect: reasoning is shown in full."""


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsesRequest(Converted):
    model: Annotated[str, Field(min_length=1)] | None = None
    input: Annotated[
        Items, BeforeValidator(_as_items, json_schema_input_type=str | tuple[Item, ...])
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Tools = ()
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: Flag = True
    text: Text = Text()
    reasoning: ResponsesReasoning = ResponsesReasoning()
    include: Annotated[tuple[str, ...], FIRST_ERROR] = ()
    stream: Flag = False
    store: Flag = True
    background: Flag = False
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    truncation: Literal["auto", "disabled"] = "disabled"
    """With either value, a prompt that is too long is an error."""

    conversation: Unserved = False
    prompt: Unserved = False
    context_management: Unserved = False
    max_tool_calls: Integer | None = None
    """This limits only calls of the tools that OpenAI's service runs."""

    metadata: dict[str, object] = Field(default_factory=dict)
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    user: str | None = None

    def chat(self, items: Sequence[Item], tools: Sequence[Offered]) -> ChatRequest:
        """Return the chat that the request asks for. items: whole conversation, without the
        instructions. Raises InvalidRequest."""
        logprobs = LOGPROBS in self.include or self.top_logprobs > 0
        system = [Item(role="system", content=self.instructions)] if self.instructions else []
        meant: Json = {
            "model": self.model,
            "messages": messages_of([*system, *items]),
            "tools": [tool.chat() for tool in tools] or None,
            "tool_choice": chosen(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort,
            "response_format": grouped(self.text.format, "json_schema"),
            "logprobs": logprobs,
            "top_logprobs": self.top_logprobs if logprobs else None,
            "stream": self.stream,
            "n": 1,
        }
        extra = self.model_extra or {}
        for name in meant.keys() & extra.keys():
            if extra[name] not in (None, meant[name]):
                raise InvalidRequest.of(name, "this is not a field of responses")
        chat = validated(ChatRequest, {**extra, **meant}, names_of(tools), self.values)
        if chat.is_watched:
            name = "stream_options.include_speculation"
            raise InvalidRequest.of(name, "only chats and completions tell of it")
        return chat

    def ignored(self) -> Iterator[str]:
        """Yield the names of parts without effect, except for fields that no API has."""
        if self.text.verbosity is not None:
            yield "text.verbosity"
        if self.reasoning.summary is not None:
            yield "reasoning.summary"
        yield from unserved(self.tools)
        yield from (name for item in self.input if (name := item.unseen()) is not None)
        yield from self.unknown_inside()


def names_of(tools: Sequence[Offered]) -> dict[str, str]:
    """Return a map from the names of fields in the resulting chat to this API's."""
    of_tools = dict(
        pair for index, tool in enumerate(tools) for pair in tool.names(f"tools.{index}")
    )
    return {**of_tools, **CHOICE_NAMES, **_NAMES}
