"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from picospec.gateway.doors.chat.tools import ToolChoice, Tools, ToolUse, check_choice, tool_use
from picospec.gateway.doors.request import GenerationRequest, TokenIds
from picospec.gateway.errors import InvalidRequest
from picospec.gateway.grammars import structured
from picospec.gateway.grammars.answer import Constraint, Wanted
from picospec.gateway.grammars.json_schema import schemas_of
from picospec.gateway.output.choice_stream import Reader
from picospec.gateway.output.style import Style
from picospec.gateway.ports import Facts
from picospec.gateway.schemas.base import FIRST_ERROR, Flag, Integer
from picospec.gateway.schemas.messages import ChatMessage
from picospec.gateway.tokenizer import Tokenizer

_EFFORTS = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_RESERVED: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)
"""Only this service sets these variables of a chat template."""


class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1), FIRST_ERROR]
    tools: Tools = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag = True
    reasoning_effort: _EFFORTS | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] = "auto"
    """llama-server has this field: at "none", reasoning stays in the text of the answer."""

    chat_template_kwargs: Annotated[dict[str, object], Field(default_factory=dict)]
    logprobs: Flag = False
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None

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
        """Whether the answer's reasoning is shown apart from its content."""
        return self.reasoning_format != "none"

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def reader(
        self, style: Style, prompt: TokenIds, stop_tokens: frozenset[int], min_tokens: int
    ) -> Reader:
        return style.reader(
            self._detokeniser(stop_tokens, min_tokens),
            prompt,
            schemas_of(self.tool_use.callable),
            parallel=self.tool_use.parallel,
            splits_reasoning=self.splits_reasoning,
        )

    def constraint(
        self, style: Style, prompt: TokenIds, content: Constraint | None
    ) -> Constraint | None:
        use = self.tool_use
        if content is None and not use.needs_grammar:
            return None
        tools = schemas_of(use.callable)
        wanted = Wanted(
            tools if use.name is None else {use.name: tools[use.name]},
            required=use.choice == "required",
            parallel=use.parallel,
            content=content,
        )
        try:
            return style.constraint(prompt, wanted, splits_reasoning=self.splits_reasoning)
        except ValueError as error:
            raise InvalidRequest(f"tools: {error}", param="tools") from error

    def check_served(self, facts: Facts) -> None:
        """Raise InvalidRequest for calls that need a grammar, if the engine has none."""
        use = self.tool_use
        if structured.NAME in facts.features or not use.needs_grammar:
            return
        field = "tool_choice"
        if use.choice != "required":
            first = [tool.function.strict for tool in self.tools].index(True)
            field = f"tools.{first}.function.strict"
        raise InvalidRequest(
            f"{field}: this model cannot be made to call a function",
            param=field,
            code="unsupported_parameter",
        )

    def tokenise(self, tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
        messages = [message.shown() for message in self.messages]
        use = self.tool_use
        tools = use.callable if tokenizer.hides_unused_tools else use.tools
        if use.callable and not tokenizer.takes_tools:
            raise InvalidRequest(
                "tools: the model's chat template has no place for them",
                param="tools",
                code="unsupported_parameter",
            )
        try:
            return (tuple(tokenizer.chat(messages, tools=tools, options=self._options())),)
        except ValueError as error:
            raise InvalidRequest(f"messages: {error}", param="messages") from error

    def _options(self) -> Mapping[str, object]:
        """Return variables for the template, as vLLM makes them: some effort means to think at
        all, and null and "auto" set nothing."""
        asked = self.chat_template_kwargs
        given = {name: value for name, value in asked.items() if value not in (None, "auto")}
        if self.reasoning_effort is None:
            return given
        if "enable_thinking" not in asked:
            given["enable_thinking"] = self.reasoning_effort != "none"
        return {**given, "reasoning_effort": self.reasoning_effort}
