"""Asks an OpenAI-compatible service for one streamed chat answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Annotated, Final, TypeVar

import httpx
import msgspec

from gateway.hosting.strangers import is_loopback
from picospec.command_parts import START, visible
from speculation.untrusted import Malformed, decode_json

CHAT: Final = "/v1/chat/completions"
DIRECT: Final = "/v1/picospec/direct/chat/completions"
"""On this path an edge lets the large model alone answer a chat."""

ANSWER_CACHE: Final = "/v1/picospec/pool"
"""A DELETE on this path makes an edge forget answers."""

SILENCE_S: Final = 120.0
"""A service counts as dead after this many seconds without a byte."""


class ChatError(Exception):
    """The service cannot be reached, or answered with an error; the text says which."""


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str


class Speculation(msgspec.Struct):
    """The speculation data of a chunk that the terminal uses; docs/api.md has the rest."""

    event: str = ""
    spans: Sequence[tuple[int, str]] = ()
    tokens: dict[str, int] | int = 0
    text: str = ""
    broken: bool = False
    rows: int = 0
    accepted: int = 0
    drafted: int = 0
    rtt_ms: float | None = None
    cloud_row_ms: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The tokens by origin, if the chunk counts them."""
        return self.tokens if isinstance(self.tokens, dict) else {}


class Chunk(msgspec.Struct):
    """A piece of an answer."""

    text: str
    speculation: Speculation | None = None
    reasoning: str = ""


class ListedModel(msgspec.Struct):
    id: str
    owned_by: str | None = ""
    max_model_len: int | None = None
    context_length: int | None = None
    root: object = None
    state: object = None

    def __post_init__(self) -> None:
        self.id = visible(self.id)

    @property
    def context_tokens(self) -> int:
        """The model's context, by any of the names that services use, or a small default."""
        return self.context_length or self.max_model_len or 4096

    @property
    def is_away(self) -> bool:
        return self.state == "away"

    @property
    def is_settable(self) -> bool:
        """True if a client's settings can list the model: it is no other service's, and its
        context is known, which that of a model that was always away is not."""
        known = self.context_length or self.max_model_len
        return self.owned_by != "relayed" and bool(known or not self.is_away)

    @property
    def reports_speculation(self) -> bool:
        """True if the service reports speculation. Other services may reject the option."""
        return self.owned_by == "picospec"


class _Models(msgspec.Struct):
    data: Annotated[Sequence[ListedModel], msgspec.Meta(min_length=1)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Error(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: Sequence[_Choice] | None = ()
    speculation: Speculation | None = None
    error: _Error | str | None = None


_Body = TypeVar("_Body", _Models, _Chunk)


def client_of(url: str, key: str | None, silence_s: float = 5.0) -> httpx.AsyncClient:
    """Return a client that sends the key. silence_s: its limit on the time without a byte."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(silence_s, connect=5.0)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False)


async def empty_answer_cache(client: httpx.AsyncClient) -> None:
    """Make an edge forget the answers that it keeps for this key."""
    await _request(client, "DELETE", ANSWER_CACHE)


async def models_of(client: httpx.AsyncClient) -> Sequence[ListedModel]:
    """Return the models that the service offers, each under all its names."""
    return _decoded(await _request(client, "GET", "/v1/models"), _Models).data


async def first_model(client: httpx.AsyncClient) -> ListedModel:
    """Return the first model that the service offers now."""
    return chosen(await models_of(client), None)


def distinct(models: Sequence[ListedModel]) -> list[ListedModel]:
    """Return the models without further names of the same ones."""
    names = {each.id for each in models}
    return [each for each in models if str(each.root) not in names - {each.id}]


def chosen(models: Sequence[ListedModel], name: str | None) -> ListedModel:
    """Return the model of that name, or without a name the first that is ready and no other
    service's, if there is one. Raises ChatError, which lists the names."""
    if name is None:
        ready = (each for each in models if not (each.is_away or each.owned_by == "relayed"))
        return next(ready, models[0])
    model = next((each for each in models if each.id == name), None)
    if model is None:
        raise ChatError(f"there is no model {name}; there are {listed(models)}")
    if model.is_away:
        raise ChatError(f"the model {name} is away; there are {listed(models)}")
    return model


def model_to_ask(models: Sequence[ListedModel], name: str | None) -> ListedModel:
    """Return the model to ask. The service says whether it has that name: the fallback answers
    for a model that is away."""
    first = chosen(models, None)
    return first if name is None else msgspec.structs.replace(first, id=name)


def listed(models: Sequence[ListedModel]) -> str:
    """Return the models' names in a line."""
    return ", ".join(f"{each.id} (away)" if each.is_away else each.id for each in models)


async def _request(client: httpx.AsyncClient, method: str, path: str) -> bytes:
    try:
        response = await client.request(method, path)
    except httpx.TransportError as error:
        here = is_loopback(client.base_url.host)
        remedy = f"No edge answers there. {START}" if here else "Is the address right?"
        reason = f"{str(client.base_url).rstrip('/')} cannot be reached: {error}. {remedy}"
        raise ChatError(reason) from error
    if not response.is_success:
        raise ChatError(_reason(response))
    return response.content


async def stream_answer(
    client: httpx.AsyncClient,
    model: ListedModel,
    turns: Sequence[Turn],
    path: str = CHAT,
    **options: float | None,
) -> AsyncGenerator[Chunk]:
    """Yield the answer as it comes. Closing the generator cancels the answer. options: further
    fields of the request, such as `seed`; None: not given."""
    payload: dict[str, object] = {"model": model.id, "messages": turns, "stream": True}
    payload |= {name: value for name, value in options.items() if value is not None}
    if model.reports_speculation and path == CHAT:
        payload["stream_options"] = {"include_speculation": True}
    body = msgspec.json.encode(payload)
    headers = {"content-type": "application/json"}
    request = client.stream("POST", path, content=body, headers=headers)
    try:
        async with request as response:
            if response.status_code != 200:
                await response.aread()
                raise ChatError(_reason(response))
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _chunk(line.removeprefix("data: "))
    except httpx.TransportError as error:
        raise ChatError(f"the connection broke: {error}") from error
    raise ChatError("the answer ended before it was complete")


def _chunk(event: str) -> Chunk:
    chunk = _decoded(event, _Chunk)
    if chunk.error is not None:
        raise ChatError(_text(chunk.error))
    deltas = [choice.delta for choice in chunk.choices or ()]
    text = "".join(delta.content or "" for delta in deltas)
    reasoning = "".join(delta.reasoning_content or "" for delta in deltas)
    return Chunk(text, chunk.speculation, reasoning)


def _decoded(body: bytes | str, kind: type[_Body]) -> _Body:
    try:
        return decode_json(body, kind)
    except Malformed as error:
        raise ChatError(f"this is no OpenAI-compatible service: {error}") from error


def _reason(response: httpx.Response) -> str:
    with suppress(Malformed):
        if error := decode_json(response.content, _Chunk).error:
            return _text(error)
    return f"{response.url} answered {response.status_code}"


def _text(error: _Error | str) -> str:
    return visible(error if isinstance(error, str) else error.message)
