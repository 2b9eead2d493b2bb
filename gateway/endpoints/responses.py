"""Parses the body of POST /v1/responses, and converts it to a chat.

A field that this API does not have has its meaning in a chat: `seed` and `top_k` are served,
and a field that no endpoint serves is an error.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter

from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.tools import MAX_TOOLS
from gateway.errors import InvalidRequest
from gateway.schema import (
    FIRST_ERROR,
    Converted,
    Flag,
    Integer,
    RequestModel,
    Typed,
    Unserved,
    validated,
)
from speculation.messages import MAX_TOP_LOGPROBS

# Converts the tools of a response to those of a chat.
#
#     function, custom  are the same in a chat
#     namespace         its tools are named `namespace__name` in a chat
#     anything else     only OpenAI's own service can run it, so the model does not see it
#
# The chat checks the tools, and its errors are translated to this API's names.

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


# Parses the items of a conversation, and converts them to chat messages.
#
# A turn of the assistant is several items here, and one message to a chat template: reasoning,
# text and calls, in this order. An item that can follow the last message's content joins it.

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
