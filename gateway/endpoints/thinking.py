"""Reads whether a model should think before it answers, and how hard, in several APIs' fields.

The fields become two variables of the chat template:

    reasoning_effort    OpenAI, vLLM
    reasoning           OpenAI's Responses, OpenRouter
    think               Ollama, LM Studio
    thinking            Anthropic, DeepSeek, Z.ai
    enable_thinking     Alibaba, SGLang
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from gateway.schema import Flag, Integer, RequestModel, Unserved

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
