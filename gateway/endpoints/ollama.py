"""The endpoint of Ollama's API."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from pydantic import AliasChoices, Field, field_validator
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from gateway.answer_fields import NEUTRAL
from gateway.endpoints.bodies import parse
from gateway.endpoints.chat import ChatRequest, logprobs_of
from gateway.endpoints.completions import CompletionRequest
from gateway.endpoints.endpoint import Answer, EndpointRequest, Entries, Heading, Json
from gateway.endpoints.request import GenerationRequest
from gateway.endpoints.services import Services
from gateway.errors import ApiError, InvalidRequest, NotServed, Shape
from gateway.http import json_response
from gateway.output.detokenise import TextDelta
from gateway.output.message import CallPiece, CallStart
from gateway.ports import Facts
from gateway.request_context import context_of
from gateway.schema import (
    FIRST_ERROR,
    Converted,
    Flag,
    Integer,
    RequestModel,
    unsupported,
    validated,
)

# Converts the bodies of POST /api/chat and POST /api/generate to our requests.
#
# Fields under `options`, and fields with Ollama's own names, are moved to where the requests of
# other endpoints have them, and checked there. Errors name the client's field.

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


# Writes the answers of POST /api/chat and POST /api/generate: JSON, or a stream of JSON lines.
#
# A call is shown once it is whole, because its arguments are an object here.

_NS: Final = 10**9


def error_body(error: ApiError) -> Json:
    """Return the body of an error, which is also the line of an error in a stream."""
    return {"error": error.message}


SHAPE: Final = Shape(error_body)


def convert(answer: type[OllamaAnswer], body: OllamaRequest) -> EndpointRequest:
    """Return what a request asks for. answer: class that writes its answer."""
    make_answer = partial(answer, body.logprobs)
    if body.is_empty:
        unused = CompletionRequest(model=body.name, prompt="")
        ignored = tuple(body.model_extra or ())
        return EndpointRequest(
            unused, answer.id_prefix, make_answer, ignored, body.names, answer.loaded
        )
    request = body.request()
    return EndpointRequest(
        request, answer.id_prefix, make_answer, request.unserved_options, body.names
    )


class OllamaAnswer(Answer):
    """Writes an object for each piece of text, and a last one with the counts."""

    media_type = "application/x-ndjson"
    id_prefix: str

    def __init__(self, wants_logprobs: bool, heading: Heading) -> None:
        self._wants_logprobs = wants_logprobs
        self._heading = heading
        self._call: CallStart | None = None  # the call that is not whole
        self._arguments: list[str] = []

    @classmethod
    @abstractmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        """Return the fields that show a part of an answer."""

    @classmethod
    def loaded(cls, model: str) -> Response:
        """Return the answer to an empty request, which says that the model is loaded."""
        head = {"model": model, "created_at": _now()}
        done = {"done": True, "done_reason": "load"}
        return json_response({**head, **cls.shown("", "", ()), **done})

    def events(self, index: int, delta: TextDelta) -> bytes:
        shown = self._shown(delta)
        lines = [{**self._head(), **shown, "done": False}] if shown else []
        if delta.finish is not None:
            lines.append({**self._head(), **self.shown("", "", ()), **self._counted(delta)})
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)

    def failure(self, error: ApiError) -> bytes:
        return msgspec.json.encode(error_body(error)) + b"\n"

    def write(self, entries: Entries) -> Sequence[msgspec.Raw]:
        return logprobs_of(entries)

    def full_answer(self, choices: Sequence[TextDelta]) -> Json:
        (choice,) = choices
        shown = self._shown(choice) or self.shown("", "", ())
        return {**self._head(), **shown, **self._counted(choice)}

    def _head(self) -> Json:
        return {"model": self._heading.model, "created_at": _now()}

    def _shown(self, delta: TextDelta) -> Json:
        """Return the fields that show a delta; none if the delta shows nothing."""
        pieces = delta.parsed.calls if delta.parsed else ()
        thinking = delta.parsed.reasoning if delta.parsed else ""
        calls, rest = self._read_calls(pieces, ended=delta.finish is not None)
        logprobs = delta.written or logprobs_of(delta.entries)
        if not (delta.text or rest or thinking or calls or logprobs):
            return {}
        shown = self.shown(delta.text + rest, thinking, calls)
        if self._wants_logprobs:
            shown["logprobs"] = logprobs
        return shown

    def _read_calls(
        self, pieces: Sequence[CallPiece], *, ended: bool
    ) -> tuple[list[Json], str]:
        """Return the calls that these pieces complete, and the arguments that are not a JSON
        object, as in an answer that was cut: these are shown as text."""
        calls, rest = list[Json](), ""
        for piece in pieces:
            if isinstance(piece, CallStart):
                rest += self._end_call(calls)
                self._call = piece
            else:
                self._arguments.append(piece.text)
        if ended:
            rest += self._end_call(calls)
        return calls, rest

    def _end_call(self, calls: list[Json]) -> str:
        """Add the open call, if there is one, or return its arguments if they are no object."""
        call, text = self._call, "".join(self._arguments)
        self._call, self._arguments = None, []
        if call is None or (arguments := _object(text)) is None:
            return text
        function = {"index": call.index, "name": call.name, "arguments": arguments}
        calls.append({"id": call.id, "function": function})
        return ""

    def _counted(self, delta: TextDelta) -> Json:
        usage = self._heading.usage
        times = usage.times
        total, first = int(times.elapsed_s * _NS), int((times.first_s or 0) * _NS)
        return {
            "done": True,
            "done_reason": "length" if delta.finish == "length" else "stop",
            "total_duration": total,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": first,
            "eval_count": usage.completion_tokens,
            "eval_duration": total - first,
        }


class OllamaChatAnswer(OllamaAnswer):
    id_prefix = "chatcmpl-"
    keep_alive = b'{"message":{"role":"assistant","content":""},"done":false}\n'

    @classmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        message: Json = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class TextAnswer(OllamaAnswer):
    id_prefix = "cmpl-"
    keep_alive = b'{"response":"","done":false}\n'

    @classmethod
    def shown(cls, text: str, thinking: str, calls: Sequence[Json]) -> Json:
        return {"response": text, "thinking": thinking} if thinking else {"response": text}


def _object(text: str) -> Json | None:
    try:
        value = from_json(text or "{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat()


# Answers GET /api/tags, /api/ps and /api/version, POST /api/show, and unserved paths.

API_VERSION: Final = "0.13.0"
"""This is the API of this version of Ollama; some clients refuse older versions."""

FAMILY: Final = "picospec"
"""This name replaces the architecture, which no client needs: clients look for the length of
the context that `model_info` has under the name."""

_DETAILS: Final[Json] = {
    "parent_model": "",
    "format": "gguf",
    "family": FAMILY,
    "families": [FAMILY],
    "parameter_size": "",
    "quantization_level": "",
}
_FOREVER: Final = datetime(9999, 12, 31, tzinfo=UTC).isoformat()


class ShowRequest(RequestModel):
    model: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("model", "name"))]


async def version(_: Services, __: Request) -> Response:
    """Answer with the version of Ollama whose API this is."""
    return json_response({"version": API_VERSION})


async def tags(services: Services, request: Request) -> Response:
    """Answer with the models that can be reached, under each of their names, and their
    adapters."""
    return json_response({"models": await _models(services, request)})


async def running(services: Services, request: Request) -> Response:
    """Answer with the same models as `tags`, which stay loaded."""
    models = [
        {**model, "expires_at": _FOREVER, "size_vram": 0}
        for model in await _models(services, request)
    ]
    return json_response({"models": models})


async def show(services: Services, request: Request) -> Response:
    """Answer with a model's capabilities and the length of its context."""
    body = await parse(ShowRequest, services, request)
    context = context_of(request)
    backend, facts = await services.find(context, body.model.removesuffix(LATEST))
    output_format = await services.output_format_of(
        await backend.tokenizer(facts.vocabulary), context
    )
    shown: Json = {
        "modelfile": "",
        "parameters": "",
        "template": output_format.tokenizer.template,
        "details": _DETAILS,
        "model_info": {
            "general.architecture": FAMILY,
            f"{FAMILY}.context_length": facts.context_tokens,
        },
        "capabilities": output_format.capabilities,
        "modified_at": _time(services.started),
    }
    return json_response(shown)


async def not_served(_: Services, request: Request) -> Response:
    """Raise NotServed, because models are managed elsewhere."""
    raise NotServed(f"{request.url.path} is not served: `picospec models` manages models")


async def no_embeddings(_: Services, request: Request) -> Response:
    """Raise NotServed, because another service makes embeddings."""
    path = request.url.path
    raise NotServed(f"{path} is not served: an edge proxies embeddings at /v1/embeddings")


async def _models(services: Services, request: Request) -> list[Json]:
    models = await services.all(context_of(request))
    return [_model(services, each.facts, each.name) for each in models]


def _model(services: Services, facts: Facts, name: str) -> Json:
    return {
        "name": name,
        "model": name,
        "modified_at": _time(services.started),
        "size": 0,
        "digest": hashlib.sha256(f"{facts.model} {facts.identity}".encode()).hexdigest(),
        "details": _DETAILS,
        "context_length": facts.context_tokens,
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
