"""Converts the body of POST /v1/messages and /v1/messages/count_tokens to a chat.

A field that the body shares with chats, or that only a chat knows, has its meaning in a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.messages_blocks import MessagesMessage, Texts, chat_messages
from gateway.endpoints.messages_tools import ClientTool, ToolChoice, Tools
from gateway.endpoints.request import Stops
from gateway.endpoints.thinking import Effort
from gateway.errors import UNSUPPORTED, InvalidRequest, Unsupported
from gateway.schema import FIRST_ERROR, Flag, Integer, Number, RequestModel, validated
from gateway.structured_outputs import SchemaField


class ThinkingConfig(RequestModel):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    """"adaptive" leaves the choice to the model's template, as leaving out the field does."""


class SchemaFormat(RequestModel):
    type: Literal["json_schema"]
    content: Annotated[SchemaField, Field(alias="schema")]


class OutputConfig(RequestModel):
    effort: Effort | None = None
    format: SchemaFormat | None = None


class MessagesRequest(RequestModel):
    model: str | None = None
    messages: Annotated[tuple[MessagesMessage, ...], Field(min_length=1), FIRST_ERROR]
    system: Texts = ()
    max_tokens: Integer | None = None
    tools: Tools = ()
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: SchemaFormat | None = None
    """SDKs of 2025 send the format of `output_config` in this field."""

    stop_sequences: Stops = ()
    stream: Flag = False
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Integer | None = None

    def chat(self) -> ChatRequest:
        """Return the equivalent chat. Raises InvalidRequest."""
        for name in (self.model_extra or {}).keys() & REFUSED.keys():
            raise _unserved(name, REFUSED[name])
        own = self._own()
        others = {**(self.model_extra or {}), **{name: getattr(self, name) for name in _SHARED}}
        for name in own.keys() & others.keys():
            raise InvalidRequest(f"{name} is not a field of this API", param=name)
        chat = validated(ChatRequest, {**others, **own}, self.names())
        if chat.n > 1 or chat.logprobs:
            raise _unserved("logprobs" if chat.logprobs else "n")
        return chat

    def _own(self) -> dict[str, object]:
        """Return the fields that have another name or form in a chat, if they are in use."""
        own: dict[str, object] = {"messages": chat_messages(self.system, self.messages)}
        if self._client_tools:
            own["tools"] = [tool.shown() for _, tool in self._client_tools]
        if (choice := self.tool_choice) is not None:
            own["tool_choice"] = choice.shown()
            own["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        if self.stop_sequences:
            own["stop"] = self.stop_sequences
        config = self.output_config or OutputConfig()
        if self.output_format is not None and config.format is not None:
            raise InvalidRequest.of("output_format", "output_config has one, too")
        if (form := self.output_format or config.format) is not None:
            schema = {"schema": form.content}
            own["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.messages[-1].role == "assistant":
            own["continue_final_message"] = True
        if self.thinking is not None and self.thinking.type != "adaptive":
            own["enable_thinking"] = not self._no_thinking
        if config.effort is not None and not self._no_thinking:
            own["reasoning_effort"] = config.effort
        return own

    @property
    def _no_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.type == "disabled"

    @property
    def _client_tools(self) -> list[tuple[int, ClientTool]]:
        return [(i, t) for i, t in enumerate(self.tools) if isinstance(t, ClientTool)]

    def ignored(self) -> tuple[str, ...]:
        """Return the fields without effect, except unknown fields of the body itself."""
        names = [f"tools.{t.type}" for t in self.tools if not isinstance(t, ClientTool)]
        if self._no_thinking and self.output_config is not None and self.output_config.effort:
            names.append("output_config.effort")
        return (*names, *self.unknown_inside())

    def names(self) -> Mapping[str, str]:
        """Return a map from the chat's names of fields to this API's."""
        tools = enumerate(self._client_tools)
        names = {f"tools.{i}.function": f"tools.{own}" for i, (own, _) in tools}
        names["continue_final_message"] = "messages"
        # a client may have sent a `response_format` or a `stop` of its own
        form = ""
        if self.output_format is not None:
            form = "output_format"
        elif self.output_config is not None and self.output_config.format is not None:
            form = "output_config.format"
        if form:
            names |= {"response_format.json_schema": form, "response_format": form}
        if self.stop_sequences:
            names["stop"] = "stop_sequences"
        return names if self.thinking is None else {**names, "enable_thinking": "thinking"}


def _unserved(name: str, code: str = UNSUPPORTED) -> InvalidRequest:
    return Unsupported(f"{name} is not served here", param=name, code=code)


REFUSED: Final = {
    "compaction": UNSUPPORTED,
    "thread": "thread_unsupported_request",  # SDKs then send the whole conversation
}
"""Maps fields that are not served to the codes of their errors."""

_SHARED: Final = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k")
