"""A request is put into the form for the service that answers it in place of this edge, or
refused.

An invalid body goes to its endpoint, which reports best what is wrong. Nothing that would be
ignored is passed on: a field that the verifier's own API does not have is refused by name if it
would change the answer, and left out otherwise. A content part of a type that its model does
not take is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from gateway.answer_fields import NEUTRAL, is_neutral
from gateway.endpoints.services import Forward, Json
from gateway.errors import UNSUPPORTED, ApiError, InvalidRequest
from gateway.hosting.settings import MAX_CHOICES
from gateway.json_bounds import check_structure
from gateway.operator_fields import OPERATORS
from gateway.ports import Facts
from gateway.prompt_reader import CHARGED_BYTES_PER_TOKEN
from gateway.schema import RequestModel
from gateway.tenants import salted
from speculation.request_names import SALT
from speculation.untrusted import Malformed, decode_json, encode_json

MEDIA: Final = frozenset(
    {"image_url", "input_audio", "audio_url", "video_url", "file"}  # of a chat
    | {"input_image", "input_file"}  # of a response
    | {"image", "document"}  # of a message
)
"""Parts of these types have bytes that are no text."""

MEDIA_BYTES: Final = 1 << 15
"""A request with media is charged for at most this much if its answer has no token counts."""


def listed(path: str, body: bytes, models: Collection[str]) -> Forward | None:
    """Return what a request for one of these models asks another service for; None if an
    endpoint here answers it."""
    try:
        check_structure(body)
        fields = fields_of(body)
        model, answers = fields.get("model"), fields.get("n")
        if not isinstance(model, str) or model not in models:
            return None
        has_media = _has_media(fields.get("messages")) or _has_media(fields.get("input"))
    except (ApiError, RecursionError):  # `_has_media` goes as deep as the body
        return None
    answers = 1 if answers is None else answers
    if type(answers) is not int or not 1 <= answers <= MAX_CHOICES:
        return None
    most = MEDIA_BYTES if has_media else None
    return Forward(path, fields, model, answers, is_listed=True, most_charged_bytes=most)


def _has_media(items: object) -> bool:
    """Return True if a list contains media parts: directly, in messages, or in their parts."""
    return isinstance(items, list) and any(
        isinstance(item, dict)
        and (_is_medium(item.get("type")) or _has_media(item.get("content")))
        for item in items
    )


def _is_medium(kind: object) -> bool:
    return isinstance(kind, str) and kind in MEDIA


def fields_of(body: bytes) -> Json:
    """Return those fields of a body that another service may get. Raises InvalidRequest."""
    try:
        fields = decode_json(body, Json)
    except Malformed as error:  # stricter than `parse`, which takes NaN
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    for name in OPERATORS & fields.keys():
        del fields[name]
    if "messages" in fields:  # a chat that is not drafted ends with its connection
        fields.pop("background", None)
    return fields


def addressed(fields: Json, model: str, identity: str | None = None) -> bytes:
    """Return the request for another service, with its own name of the model. Encoding it anew
    removes duplicate fields. identity: of the tenant, if KV of others must not serve it. Raises
    InvalidRequest."""
    salt = {} if identity is None else {SALT: salted(identity, fields.get(SALT))}
    try:
        return encode_json({**fields, **salt, "model": model})
    except Malformed as error:
        raise InvalidRequest(f"the body cannot be passed on: {error}") from None


def for_any_server(path: str, fields: Json) -> Json:
    """Return a request without what only this service has."""
    own: Json = {"store": False} if path == _RESPONSES else {}  # neither end keeps the response
    if isinstance(options := fields.get("stream_options"), dict):
        others = {name: options[name] for name in options if name != "include_speculation"}
        own["stream_options"] = others or None
    merged = {**fields, **own}
    return {name: value for name, value in merged.items() if value is not None}


_WITHOUT_EFFECT: Final = frozenset({"prediction", "safety_identifier"})
"""These fields of endpoints change no answer."""

_RESPONSES: Final = "/v1/responses"
_COUNTING: Final = ("/v1/chat/completions", "/v1/completions")
"""A stream of these APIs has `usage` only if the request asks for it."""


def own_api(
    path: str, fields: Json, field: str, facts: Facts, schema: type[RequestModel]
) -> Forward:
    """Return what to ask the verifier's own API for, so that it serves `field`. schema: of the
    endpoint. Raises InvalidRequest for a field that is served only here, and for a content part
    that is served nowhere."""
    values = {name: value for name, value in fields.items() if value is not None}
    passed = {name: value for name, value in values.items() if name in facts.served[path]}
    ignored = [name for name in values if name not in passed]
    for name in ignored:
        if _changes_answers(name, values[name], schema):
            reason = f"the verifier alone serves {field}, and it does not know this field"
            raise InvalidRequest.of(name, reason, UNSUPPORTED)
    _check_parts(passed, facts.parts.get(path, ()))
    if path == _RESPONSES and values.get("store", True):
        ignored.append("store")  # neither end keeps the response
        passed["store"] = False
    options = values.get("stream_options")
    options = options if isinstance(options, dict) else {}
    if options.get("include_speculation"):
        ignored.append("stream_options.include_speculation")
    asks = options.get("include_usage") is True
    hides_usage = path in _COUNTING and bool(values.get("stream")) and not asks
    if hides_usage:
        passed["stream_options"] = {"include_usage": True}
    return Forward(
        path,
        passed,
        facts.model,
        _answers(values),
        field,
        ignored=ignored,
        hides_usage=hides_usage,
        most_charged_bytes=facts.context_tokens * CHARGED_BYTES_PER_TOKEN,
    )


def _changes_answers(name: str, value: object, schema: type[RequestModel]) -> bool:
    if name in NEUTRAL:
        return not is_neutral(value, NEUTRAL[name])
    if name in _WITHOUT_EFFECT:
        return False
    fields, own = schema.model_fields, Json({name: value})
    known = fields.keys() & schema.model_construct(**own).model_fields_set
    usual = (fields[field].get_default(call_default_factory=True) for field in known)
    return not all(is_neutral(value, (default,)) for default in usual)


def _check_parts(fields: Json, kinds: Sequence[str]) -> None:
    """Raise InvalidRequest for the first content part that is of none of these types."""
    for path, kind in _parts(fields):
        taken = ("text",) if path.startswith("system") else kinds  # vLLM drops others there
        if kind not in taken:
            reason = f"no such part is served; {', '.join(taken) or 'texts'} are"
            raise InvalidRequest.of(f"{path}.type", reason, UNSUPPORTED)


def _parts(fields: Json) -> Iterator[tuple[str, str]]:
    """Yield path and type of each content part of a request."""
    yield from _parts_of("system", fields.get("system"))
    for name in ("messages", "input"):
        items = fields.get(name)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict) and item.get("type") != "reasoning":
                yield from _parts_of(f"{name}.{index}.content", item.get("content"))
                yield from _parts_of(f"{name}.{index}.output", item.get("output"))


def _parts_of(path: str, content: object, levels: int = 2) -> Iterator[tuple[str, str]]:
    """levels: a part may have parts itself, as a tool's result has, and those have none."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict):
            if isinstance(kind := part.get("type"), str):
                yield f"{path}.{index}", kind
            if levels > 1:
                yield from _parts_of(f"{path}.{index}.content", part.get("content"), 1)


def _answers(fields: Json) -> int:
    """Return how many answers a request asks for; beams count as answers. Raises InvalidRequest
    for a number that is none: another parser might read it as one."""
    number = fields.get("n", 1)
    if type(number) is not int or number < 1:
        raise InvalidRequest.of("n", "expected a whole number from 1")
    prompts = [fields[name] for name in ("prompt", "prompt_embeds") if name in fields]
    return number * max(sum(map(_prompts, prompts)), 1)


def _prompts(value: object) -> int:
    if not isinstance(value, list) or all(type(each) is int for each in value):
        return 1
    return len(value)
