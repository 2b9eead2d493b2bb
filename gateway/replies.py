"""Answers in one JSON body: results and errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response
from starlette.types import Receive

from gateway.account import Account
from gateway.errors import ApiError, Overloaded, Unauthorized
from gateway.performing import Voice, perform, unless_gone
from gateway.ports import FinishReason
from gateway.reading import Entry, Said
from gateway.shapes import Json, Shape
from gateway.statistics import speculative_decoding, total


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a body that msgspec can encode."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def error_response(error: ApiError) -> Response:
    """Return the error in OpenAI's shape, with the headers its status calls for."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return json_response(error.body(), error.status, headers)


@dataclass(frozen=True, slots=True)
class Heading:
    """What every body and chunk of one answer begins with."""

    id: str
    created: int
    """Unix time, seconds."""

    model: str
    shape: Shape
    logprobs: bool

    def body(self, *, chunk: bool, choices: Sequence[Json]) -> Json:
        kind = self.shape.chunk_object if chunk else self.shape.object
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def entries(self, entries: Sequence[Entry]) -> Sequence[Entry] | None:
        return entries if self.logprobs else None


def closing(account: Account) -> Json:
    """Return what ends an answer: vLLM's `metrics` and llama.cpp's `timings`."""
    counted = total(account.statistics.values())
    known = speculative_decoding(counted) if account.statistics else None
    return {"metrics": {"speculative_decoding": known}, "timings": account.timings()}


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    finish: FinishReason | None = None


async def whole_reply(
    heading: Heading, voices: Sequence[Voice], account: Account, receive: Receive
) -> Response:
    """Answer in one body. Raise ApiError if it fails, ClientGone if nobody waits for it."""
    choices: defaultdict[int, _Choice] = defaultdict(_Choice)

    async def emit(index: int, said: Said) -> None:
        account.heard(index, said)
        choice = choices[index]
        choice.texts.append(said.text)
        choice.entries.extend(said.entries)
        choice.finish = said.finish

    await unless_gone(receive, lambda: perform(voices, emit))
    whole = [
        {
            "index": index,
            **heading.shape.whole(
                "".join(choice.texts), heading.entries(choice.entries), choice.finish
            ),
        }
        for index, choice in sorted(choices.items())
    ]
    body = heading.body(chunk=False, choices=whole)
    return json_response({**body, "usage": account.usage(), **closing(account)})
