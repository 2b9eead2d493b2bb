"""The endpoint of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, cast

import msgspec
from pydantic import Field, ValidationInfo, field_validator
from starlette.requests import Request
from starlette.responses import Response

from gateway import structured_outputs
from gateway.endpoints.background import LastingAnswer, Recording, Replay, RunningAnswer
from gateway.endpoints.completions import ChunkAnswer
from gateway.endpoints.endpoint import (
    EndpointRequest,
    Entries,
    EventStream,
    Json,
    finite,
    sent_event,
)
from gateway.endpoints.generation import generate
from gateway.endpoints.messages_schema import ChatMessage
from gateway.endpoints.request import GenerationRequest, TokenIds
from gateway.endpoints.services import Services
from gateway.endpoints.tools import ToolChoice, Tools, ToolUse, check_choice, tool_use
from gateway.errors import UNSUPPORTED, ClientGone, InvalidRequest, Unsupported
from gateway.grammars import in_lark
from gateway.output.detokenise import Finish, LogprobEntry, TextDelta
from gateway.output.formats.base import AllowedOutput, Constraint
from gateway.output.message import CallPiece, CallStart, whole_calls
from gateway.output.output_format import OutputFormat
from gateway.output.stream import Reader
from gateway.ports import Facts, GatewayTokenizer
from gateway.schema import FIRST_ERROR, Flag, Integer, RequestModel, Unserved, unsupported
from gateway.watching import Report, Spans
from speculation.messages import MAX_TOP_LOGPROBS

# Reads whether a model should think before it answers, and how hard, in several APIs' fields.
#
# The fields become two variables of the chat template:
#
#     reasoning_effort    OpenAI, vLLM
#     reasoning           OpenAI's Responses, OpenRouter
#     think               Ollama, LM Studio
#     thinking            Anthropic, DeepSeek, Z.ai
#     enable_thinking     Alibaba, SGLang

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_NONE: Final = "none"
_BUDGETS: Final = (
    "thinking_token_budget",
    "thinking_budget",
    "thinking_budget_tokens",
    "reasoning_budget_tokens",
)
_SPELLINGS: Final = ("reasoning_effort", "reasoning", "think", "thinking", "enable_thinking")


Budget = Annotated[Integer, Field(ge=-1)]


class ThinkingChoice(NamedTuple):
    """Holds what a field asks for; None if the field does not specify it."""

    thinks: bool | None = None
    effort: str | None = None


class Reasoning(RequestModel):
    effort: Effort | None = None
    enabled: Flag | None = None
    exclude: Unserved = False
    max_tokens: Unserved = False

    @field_validator("enabled")
    @classmethod
    def _goes_with_the_effort(cls, value: bool, info: ValidationInfo) -> bool:
        if _differ(_choice_of(info.data.get("effort")), ThinkingChoice(value)):
            raise ValueError("it contradicts effort")
        return value


class Thinking(RequestModel):
    type: Literal["enabled", "adaptive", "auto", "disabled"]
    """"adaptive" and "auto" leave the choice to the model, as leaving out the field does."""


class ThinkingFields(RequestModel):
    """Parses the fields of a request about thinking. Two that contradict each other are an
    error; `budget_tokens` is a target that no model here knows, and reported as ignored."""

    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    think: Literal[True, False, Effort] | None = None
    thinking: Thinking | None = None
    enable_thinking: Flag | None = None

    thinking_token_budget: Budget = -1
    """The reasoning ends after this many tokens; -1: by itself. The name is vLLM's; Alibaba and
    llama-server use the next three."""

    thinking_budget: Budget = -1
    thinking_budget_tokens: Budget = -1
    reasoning_budget_tokens: Budget = -1

    chat_template_kwargs: dict[str, object] = Field(default_factory=dict)
    """The chat template gets these variables. As in vLLM, an `enable_thinking` here overrides
    `reasoning_effort`."""

    @field_validator(
        "reasoning", "think", "thinking", "enable_thinking", "chat_template_kwargs"
    )
    @classmethod
    def _contradicts_none_before(cls, value: object, info: ValidationInfo) -> object:
        outdone = "reasoning_effort" if info.field_name == "chat_template_kwargs" else ""
        for name in info.data.keys() & set(_SPELLINGS) - {outdone}:
            if _differ(_choice_of(info.data[name]), _choice_of(value)):
                raise ValueError(f"it contradicts {name}")
        return value

    @field_validator(*_BUDGETS[1:])
    @classmethod
    def _is_the_only_budget(cls, value: int, info: ValidationInfo) -> int:
        if value >= 0 and any(info.data.get(name, -1) >= 0 for name in _BUDGETS):
            raise ValueError("only one field may limit the reasoning")
        return value

    @property
    def budget(self) -> tuple[str, int]:
        """Return the field that limits the reasoning, and its tokens; -1 without a limit."""
        name = max(_BUDGETS, key=partial(getattr, self))
        return name, getattr(self, name)

    @property
    def thinking_choice(self) -> ThinkingChoice:
        """Return what the fields ask for together."""
        choices = [_choice_of(getattr(self, name)) for name in _SPELLINGS]
        thinks = next((each.thinks for each in choices if each.thinks is not None), None)
        effort = next((each.effort for each in choices if each.effort), None)
        return ThinkingChoice(thinks, effort)

    @property
    def template_variables(self) -> dict[str, object]:
        """Return the variables of the chat template as vLLM sets them: any effort also means to
        think, and null and "auto" set nothing."""
        own = self.chat_template_kwargs
        values = {name: value for name, value in own.items() if value not in (None, "auto")}
        thinks, effort = self.thinking_choice
        if "enable_thinking" not in own and thinks is not None:
            values["enable_thinking"] = thinks
        return values if effort is None else {**values, "reasoning_effort": effort}


def _choice_of(value: object) -> ThinkingChoice:
    match value:
        case bool():
            return ThinkingChoice(value)
        case str():
            return ThinkingChoice(value != _NONE, value)
        case Reasoning(effort=effort, enabled=enabled):
            return ThinkingChoice(enabled if effort is None else effort != _NONE, effort)
        case Thinking(type="enabled" | "disabled" as kind):
            return ThinkingChoice(kind == "enabled")
        case {"enable_thinking": bool(thinks)}:
            return ThinkingChoice(thinks)
    return ThinkingChoice()


def _differ(one: ThinkingChoice, other: ThinkingChoice) -> bool:
    return any(None not in pair and pair[0] != pair[1] for pair in zip(one, other, strict=True))


# Parses the body of POST /v1/chat/completions.

BUDGET: Final = "thinking_budget"
"""The budget of reasoning has this name in Job.extras and in Facts.features."""

_RESERVED: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    | {"bos_token", "eos_token"}
)
"""Only this service sets these variables of a chat template."""


class ChatRequest(ThinkingFields, GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1), FIRST_ERROR]
    continue_final_message: Flag = False
    """The answer continues the last message, which is the assistant's."""

    add_generation_prompt: Flag | None = None
    """vLLM has this field: it is false only if the answer continues a message."""

    tools: Tools = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag = True
    reasoning_format: Literal["auto", "deepseek", "none"] = "auto"
    """llama-server has this field: at "none", reasoning stays in the text of the answer."""

    background: Flag = False
    """A stream that is watched outlives its connection, and can be joined again. The page asks
    for this; a response does for others."""

    logprobs: Flag = False
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("continue_final_message")
    @classmethod
    def _has_what_it_continues(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (messages := info.data.get("messages")) and not messages[-1].can_go_on:
            raise ValueError("the last message is no text of the assistant's")
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def _goes_with_it(cls, value: bool, info: ValidationInfo) -> bool:
        if value is info.data.get("continue_final_message"):
            unsupported("it is true unless continue_final_message is")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _can_be_satisfied(
        cls, value: ToolChoice | None, info: ValidationInfo
    ) -> ToolChoice | None:
        if value is not None:
            check_choice(value, info.data.get("tools", ()))
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leave_the_services_own(cls, value: dict[str, object]) -> dict[str, object]:
        if taken := sorted(_RESERVED & value.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("logprobs") is False:
            raise ValueError("top_logprobs needs logprobs: true")
        return value

    @cached_property
    def tool_use(self) -> ToolUse:
        return tool_use(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def splits_reasoning(self) -> bool:
        """True if the answer's reasoning is shown separately from its content."""
        return self.reasoning_format != "none"

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def reader(
        self, output_format: OutputFormat, prompt: TokenIds, stop_tokens: frozenset[int]
    ) -> Reader:
        use = self.tool_use
        return output_format.reader(
            self._detokeniser(stop_tokens),
            prompt,
            use.schemas,
            parallel=use.parallel,
            custom=use.custom,
            only=None if use.only_text is None else use.name,
            splits_reasoning=self.splits_reasoning,
        )

    def constraint(
        self, output_format: OutputFormat, prompt: TokenIds, content: Constraint | None
    ) -> Constraint | None:
        use = self.tool_use
        if content is None and not use.needs_grammar:
            return None
        tools = use.schemas
        if use.only_text is not None:
            content = in_lark(use.only_text)
            wanted = AllowedOutput({}, required=False, parallel=False, content=content)
        else:
            wanted = AllowedOutput(
                tools if use.name is None else {use.name: tools[use.name]},
                required=use.choice == "required",
                parallel=use.parallel,
                content=content,
            )
        try:
            return output_format.constraint(
                prompt, wanted, splits_reasoning=self.splits_reasoning
            )
        except ValueError as error:
            field = "tools" if tools else next(self.constraints())[0]
            raise InvalidRequest.of(field, error) from error

    def more_extras(
        self, output_format: OutputFormat, prompt: TokenIds
    ) -> Mapping[str, object]:
        name, tokens = self.budget
        if tokens < 0 or output_format.tags is None:
            return {}
        try:
            return {BUDGET: output_format.budget(prompt, tokens)}
        except ValueError as error:
            raise Unsupported.of(name, error) from error

    def check_served(self, facts: Facts) -> None:
        """Raise InvalidRequest for calls that need a grammar, or for a budget of reasoning, if
        the engine does not serve it."""
        name, tokens = self.budget
        if tokens >= 0 and BUDGET not in facts.features:
            reason = "this target does not count tokens of reasoning"
            raise Unsupported.of(name, reason)
        use = self.tool_use
        if structured_outputs.NAME in facts.features or not use.needs_grammar:
            return
        field = "tool_choice"
        if use.choice != "required" and use.allowed is None:
            first = [tool.is_strict for tool in self.tools].index(True)
            is_custom = self.tools[first].type == "custom"
            field = f"tools.{first}.{'custom.format' if is_custom else 'function.strict'}"
        reason = "this model cannot be made to call a function"
        raise Unsupported.of(field, reason)

    def tokenise(self, tokenizer: GatewayTokenizer) -> tuple[TokenIds, ...]:
        messages = [message.shown() for message in self.messages]
        use = self.tool_use
        tools = use.callable if tokenizer.hides_unused_tools else use.tools
        if use.callable and not tokenizer.takes_tools:
            reason = "the model's chat template has no place for them"
            # no other server's either: the model would not see them by any other way
            raise InvalidRequest.of("tools", reason, UNSUPPORTED)
        options = self.template_variables
        if self.continue_final_message:
            options["continue_final_message"] = True
        try:
            return (tuple(tokenizer.chat(messages, tools=tools, options=options)),)
        except ValueError as error:
            # vLLM renders chats of some models by code
            raise Unsupported.of("messages", error, InvalidRequest.code) from error


# Writes the answer of POST /v1/chat/completions.


async def create(services: Services, request: Request) -> Response:
    """Answer a chat, which may outlive its connection."""
    return await generate(ChatRequest, partial(convert, keeps=services), services, request)


def convert(body: ChatRequest, keeps: Services | None = None) -> EndpointRequest:
    """Return what a chat asks for: the chat itself. keeps: has the stores of what outlives its
    connection; None if nothing does."""
    lasts = body.background and body.is_watched
    in_background = partial(_run, keeps) if lasts and keeps is not None else None
    ignored = ("background",) if body.background and in_background is None else ()
    return EndpointRequest(
        body, "chatcmpl-", partial(ChatAnswer, body), ignored, in_background=in_background
    )


def _run(services: Services, stream: EventStream) -> Response:
    """Run a chat apart from its connection, and stream it. Raises Overloaded."""
    answer = cast(ChatAnswer, stream.answer)  # as `convert` has it
    running = RunningAnswer(answer, stream, b"[]", events := Recording())
    services.store_of(stream.context).begin(running)
    return Replay(events, 0, stream.keep_alive_s, stream.context)


class ChatAnswer(ChunkAnswer, LastingAnswer):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    @property
    def id(self) -> str:
        return self._heading.id

    def opening(self) -> bytes:
        """Return a chunk without a choice, which has the id."""
        return sent_event(self._body([], chunk=True))

    def mark(self) -> bytes:
        """Return a comment that says when the events came, in milliseconds."""
        return b": %d\n" % (1000 * self._answer_usage.times.elapsed_s)

    def cancelled(self) -> bytes:
        return self.failure(ClientGone("the answer was cancelled"))

    @property
    def state(self) -> bytes:
        return msgspec.json.encode({"id": self.id, "object": self.object, "background": True})

    def first_chunk(self, delta: TextDelta) -> Json:
        """Return the chunk with the role; `content` is null if calls alone may follow."""
        content = "" if delta.parsed is None else None
        return self._chunk({"role": "assistant", "content": content}, None, None)

    def chunks(self, delta: TextDelta, report: Report) -> list[tuple[Json, Spans]]:
        chunks = super().chunks(delta, report)
        if delta.parsed is None:
            return chunks
        if thoughts := delta.parsed.reasoning:
            thought = self._chunk({"reasoning_content": thoughts}, None, None)
            chunks.insert(0, (thought, report.reasoning))
        for piece in delta.parsed.calls:
            chunks.append((self._chunk({"tool_calls": [_piece(piece)]}, None, None), ()))
        return chunks

    def text_chunk(self, text: str, entries: Entries) -> Json:
        return self._chunk({"content": text}, self._logprobs(self.write(entries)), None)

    def last_chunk(self, finish: Finish) -> Json:
        return self._chunk({}, None, finish)

    def choice(self, whole: TextDelta) -> Json:
        return {
            "message": _message(whole),
            "logprobs": self._logprobs(whole.written),
            "finish_reason": whole.finish,
        }

    def _chunk(self, delta: Json, logprobs: Json | None, finish: Finish | None) -> Json:
        return {"delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def write(self, entries: Entries) -> Sequence[msgspec.Raw]:
        return logprobs_of(entries)

    def _logprobs(self, written: Sequence[Any]) -> Json | None:
        return {"content": written, "refusal": None} if self.wants_logprobs else None


def _message(whole: TextDelta) -> Json:
    """Return the message; fields for reasoning and calls are present only if there are any."""
    message: Json = {"role": "assistant", "content": whole.text, "refusal": None}
    message["annotations"] = []  # these would be citations of a search
    if whole.parsed is not None and whole.parsed.reasoning:
        message["reasoning_content"] = whole.parsed.reasoning
    if whole.parsed is not None and whole.parsed.calls:
        message["content"] = whole.text or None
        message["tool_calls"] = [_call(*call) for call in whole_calls(whole.parsed.calls)]
    return message


def _piece(piece: CallPiece) -> Json:
    """Return a piece of a call for a stream; clients join `arguments` by index."""
    if isinstance(piece, CallStart):
        return {"index": piece.index, **_call(piece, "")}
    if piece.custom:
        return {"index": piece.index, "custom": {"input": piece.text}}
    return {"index": piece.index, "function": {"arguments": piece.text}}


def _call(start: CallStart, arguments: str) -> Json:
    if start.custom:
        custom = {"name": start.name, "input": arguments}
        return {"id": start.id, "type": "custom", "custom": custom}
    function = {"name": start.name, "arguments": arguments}
    return {"id": start.id, "type": "function", "function": function}


def logprobs_of(entries: Entries) -> list[msgspec.Raw]:
    """Return log-probabilities in OpenAI's form, each encoded."""
    return [msgspec.Raw(msgspec.json.encode(_entry(entry))) for entry in entries]


def _entry(entry: LogprobEntry) -> Json:
    top = [_token(piece, logprob) for piece, logprob in entry.top]
    return {**_token(entry.piece, entry.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> Json:
    text = piece.decode("utf-8", "backslashreplace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(piece)}
