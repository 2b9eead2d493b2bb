"""Converts the body of POST /v1/messages and /v1/messages/count_tokens to a chat.

A field that the body shares with chats, or that only a chat knows, has its meaning in a chat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from gateway.endpoints.chat import ChatRequest, Effort
from gateway.endpoints.messages_schema import (
    ChatMessage,
    ContentPart,
    Json,
    as_parts,
    without_billing,
)
from gateway.endpoints.request import Stops
from gateway.endpoints.tools import MAX_TOOLS
from gateway.endpoints.tools import Json as JsonView
from gateway.errors import UNSUPPORTED, InvalidRequest, Unsupported
from gateway.schema import (
    FIRST_ERROR,
    Flag,
    Integer,
    Name,
    Number,
    RequestModel,
    Typed,
    validated,
)
from gateway.structured_outputs import SchemaField

# Converts Anthropic's tools, and the choice among them, to those of a chat.


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


# Parses Anthropic's messages, which consist of blocks, and converts them to chat messages.
#
# * Consecutive messages of one role become one message.
# * A tool's result is a block of the user's message here, and a separate message in a chat.


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
