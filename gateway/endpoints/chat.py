"""Parses the body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway import structured_outputs
from gateway.endpoints.messages_schema import ChatMessage
from gateway.endpoints.request import GenerationRequest, TokenIds
from gateway.endpoints.thinking import ThinkingFields
from gateway.endpoints.tools import ToolChoice, Tools, ToolUse, check_choice, tool_use
from gateway.errors import UNSUPPORTED, InvalidRequest, Unsupported
from gateway.grammars import in_lark
from gateway.output.answer_grammar import AllowedOutput, Constraint
from gateway.output.output_format import OutputFormat
from gateway.output.stream import Reader
from gateway.ports import Facts, GatewayTokenizer
from gateway.schema import FIRST_ERROR, Flag, Integer, unsupported
from speculation.model_facts import MAX_TOP_LOGPROBS

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
        return output_format.reader(
            self._detokeniser(stop_tokens),
            prompt,
            self.tool_use.call_rules,
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
        if tokens < 0 or "thinking" not in output_format.capabilities:
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
