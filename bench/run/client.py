"""Asks for one streamed answer, and records when each piece of it arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import httpx
import msgspec

from bench.data.prompts import sampling


class AnswerError(Exception):
    """The service answered with an error, or ended the stream too soon."""


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    temperature: float
    seed: int
    tokens: int
    """Limit of the answer's length."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. All times are seconds since the request."""

    text: str
    tokens: int
    arrivals_s: tuple[float, ...]
    """Arrivals of the pieces that hold text; a piece is what one target pass committed."""

    first_share: float
    """Share of the text's characters in the first piece; 0 without text."""

    seconds: float
    """Arrival of the finish reason, which ends the answer."""

    drafted: int = 0
    """Draft tokens that the target judged."""

    accepted: int = 0
    target_passes: int = 0

    @property
    def gaps_s(self) -> list[float]:
        return [later - sooner for sooner, later in pairwise(self.arrivals_s)]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Speculation(msgspec.Struct):
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_target_passes: int = 0


class _Metrics(msgspec.Struct):
    speculative_decoding: _Speculation = msgspec.field(default_factory=_Speculation)


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Chunk(msgspec.Struct):
    choices: Sequence[_Choice] = ()
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: _Error | None = None


class Client:
    """Asks one service, over a connection that stays open. http: has the service's URL."""

    def __init__(
        self, http: httpx.AsyncClient, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._http = http
        self._clock = clock
        self._model = ""

    async def ask(self, question: Question) -> Reply:
        """Return the whole answer. Raises AnswerError, or httpx.TransportError."""
        body = await self._body(question)
        began_s = self._clock()
        received = _Received()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise AnswerError(f"{response.status_code}: {(await response.aread())!r}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = msgspec.json.decode(line.removeprefix("data: "), type=_Chunk)
                    received.add(chunk, self._clock() - began_s)
        return received.reply()

    async def _body(self, question: Question) -> dict[str, object]:
        if not self._model:
            listed = (await self._http.get("/v1/models")).raise_for_status()
            self._model = listed.json()["data"][0]["id"]
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": question.prompt}],
            "temperature": question.temperature,
            "top_p": sampling(question.temperature).top_p,
            "seed": question.seed,
            "max_tokens": question.tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class _Received:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._arrivals_s: list[float] = []
        self._seconds: float | None = None
        self._last = _Chunk()

    def add(self, chunk: _Chunk, at_s: float) -> None:
        if chunk.error is not None:
            raise AnswerError(f"{chunk.error.code}: {chunk.error.message}")
        for choice in chunk.choices:
            if choice.delta.content:
                self._text.append(choice.delta.content)
                self._arrivals_s.append(at_s)
            if choice.finish_reason:
                self._seconds = at_s
        self._last = chunk

    def reply(self) -> Reply:
        if self._seconds is None or self._last.usage is None:
            raise AnswerError("the answer ended before it was complete")
        metrics = self._last.metrics or _Metrics()
        text = "".join(self._text)
        return Reply(
            text,
            self._last.usage.completion_tokens,
            tuple(self._arrivals_s),
            len(self._text[0]) / len(text) if text else 0.0,
            self._seconds,
            metrics.speculative_decoding.num_draft_tokens,
            metrics.speculative_decoding.num_accepted_draft_tokens,
            metrics.speculative_decoding.num_target_passes,
        )
