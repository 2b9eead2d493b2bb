"""Converts the bodies of POST /api/chat and POST /api/generate to our requests.

Fields under `options`, and fields with Ollama's own names, are moved to where the requests of
other endpoints have them, and checked there. Errors name the client's field.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, field_validator

from gateway.answer_fields import NEUTRAL
from gateway.endpoints.answer import Json
from gateway.endpoints.chat import ChatRequest
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.request import GenerationRequest
from gateway.errors import InvalidRequest
from gateway.schema import FIRST_ERROR, Converted, Flag, Integer, unsupported, validated

LATEST: Final = ":latest"
"""Ollama's clients may add this tag to a model's name."""

_RENAMED: Final[Mapping[str, str]] = {
    "num_predict": "max_tokens",
    "penalize_newline": "penalize_nl",
}
"""Maps options to the names of the same fields in requests."""

_ANSWERING: Final = frozenset({*GenerationRequest.model_fields, *NEUTRAL, "repeat_last_n"})
"""Options with these names can change an answer; others concern memory and threads."""

_MESSAGE: Final[Mapping[str, str]] = {"thinking": "reasoning_content", "tool_name": "name"}


class OllamaRequest(Converted):
    """Parses the fields that both bodies have."""

    model: Annotated[str, Field(min_length=1)] | None = None
    stream: Flag = True
    format: Literal["json", ""] | dict[str, object] = ""
    """The answer is any JSON object at "json", or an object of this schema."""

    options: dict[str, object] = Field(default_factory=dict)
    logprobs: Flag = False
    top_logprobs: Integer | None = None

    @property
    def name(self) -> str | None:
        """Return the model's name without the tag LATEST."""
        return self.model and self.model.removesuffix(LATEST)

    @property
    def names(self) -> dict[str, str]:
        """Return a map from the names of fields in errors to the client's."""
        options = {_lifted_name(name): f"options.{name}" for name in self.options}
        form = {"json_schema": "format", "response_format": "format"} if self.format else {}
        return {**options, **form}

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """True if the request has no prompt: Ollama then only loads the model, and says so."""

    @abstractmethod
    def request(self) -> GenerationRequest:
        """Return the equivalent request. Raises InvalidRequest."""

    def _read(self, schema: type[GenerationRequest], **own: object) -> GenerationRequest:
        """Return a request with the fields `own`, and those common to all requests."""
        fields = {**(self.model_extra or {}), **_lifted(self.options), **self._common(), **own}
        request = validated(schema, fields, self.names, self.values)
        if request.n != 1:
            raise InvalidRequest.of("n", "an answer is one choice here")
        return request

    def _common(self) -> Json:
        common: Json = {"stream": self.stream, "model": self.name}
        common |= {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}
        if self.format == "json":
            common["response_format"] = {"type": "json_object"}
        elif self.format:
            common["json_schema"] = self.format
        return common


class OllamaChat(OllamaRequest):
    messages: Annotated[tuple[dict[str, object], ...], FIRST_ERROR] = ()
    tools: Annotated[tuple[dict[str, object], ...], FIRST_ERROR] = ()

    @field_validator("messages")
    @classmethod
    def _have_no_images(cls, value: Sequence[Json]) -> Sequence[Json]:
        if any(message.get("images") for message in value):
            unsupported("this model does not see images")
        return value

    @property
    def is_empty(self) -> bool:
        return not self.messages

    def request(self) -> GenerationRequest:
        messages = [{_MESSAGE.get(n, n): v for n, v in each.items()} for each in self.messages]
        tools = [{**tool, "type": "function"} for tool in self.tools]
        return self._read(ChatRequest, messages=messages, tools=tools)


class OllamaGenerate(OllamaRequest):
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: Flag = False
    """True if the prompt is not put into the model's chat template."""

    template: str = ""
    context: tuple[object, ...] = ()
    images: tuple[object, ...] = ()

    @field_validator("template", "context", "images")
    @classmethod
    def _is_empty(cls, value: object) -> object:
        if value:
            unsupported("this is not supported")
        return value

    @property
    def names(self) -> dict[str, str]:
        return {**super().names, "messages": "prompt"}

    @property
    def is_empty(self) -> bool:
        return not (self.prompt or self.suffix)

    def request(self) -> GenerationRequest:
        if self.suffix or self.raw:
            if self.system:
                raise InvalidRequest.of("system", "a raw prompt has no place for it")
            logprobs = (self.top_logprobs or 0) if self.logprobs else None
            own = {"prompt": self.prompt, "suffix": self.suffix, "logprobs": logprobs}
            return self._read(RawRequest, **own, top_logprobs=None)
        texts = {"system": self.system, "user": self.prompt}
        messages = [{"role": role, "content": text} for role, text in texts.items() if text]
        return self._read(ChatRequest, messages=messages)


class RawRequest(CompletionRequest):
    default_tokens: ClassVar[int | None] = None


def _lifted(options: Mapping[str, object]) -> Json:
    """Return the fields of a request for the given options."""
    lifted = {_lifted_name(name): value for name, value in options.items()}
    if type(limit := lifted.get("max_tokens")) is int and limit <= 0:
        lifted["max_tokens"] = -1
    return lifted


def _lifted_name(option: str) -> str:
    """Return the name of an option's field in a request. An option that changes no answer keeps
    its whole name, under which it is reported as ignored."""
    if option in _RENAMED:
        return _RENAMED[option]
    return option if option in _ANSWERING else f"options.{option}"
