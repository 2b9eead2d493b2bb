"""Asks for one streamed answer, and records the arrival of each piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from time import perf_counter
from typing import Any

import httpx

from bench.prompts import Message, sampling
from gateway.ports import NONE


class AnswerError(Exception):
    """The service answered with an error, or ended the stream early."""


class TooLong(AnswerError):
    """The question does not fit into the model's context."""


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    temperature: float
    seed: int
    tokens: int
    """The answer has at most this many tokens."""

    likeliest: int | None = None
    """The log-probabilities of this many tokens at each position are requested; None requests
    none."""

    settings: Mapping[str, object] = field(default_factory=lambda: NONE)
    """The request has these fields too."""

    stream_options: Mapping[str, object] = field(default_factory=lambda: NONE)
    """Its `stream_options` have these fields beside `include_usage`."""

    before: Sequence[Message] = ()
    """This conversation precedes the prompt."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A Reply is an answer. All times are seconds since the request."""

    text: str
    tokens: int
    arrivals_s: tuple[float, ...]
    """Pieces with text arrived then. A piece is what one target pass committed."""

    first_share: float
    """The first piece has this share of the text's characters; 0 without text."""

    seconds: float
    """The finish reason, which ends the answer, arrived then."""

    drafted: int = 0
    """The target judged this many draft tokens."""

    accepted: int = 0
    target_passes: int = 0
    """If the service does not report it, each token that was no accepted draft token counts as
    a pass, and there is one at least: vLLM counts accepted draft tokens beyond the answer's
    end."""

    prompt_tokens: int = 0
    first_draft_s: float | None = None
    """A chain with tokens of the draft model was first reported then; None if none was."""

    origins: Mapping[str, int] = field(default_factory=dict)
    """The answer's tokens are counted here by origin, if the stream reports it."""

    logprobs: Sequence[dict[str, Any]] = ()
    """The API returned this for each token; empty unless log-probabilities were requested."""

    @property
    def gaps_s(self) -> list[float]:
        return [later - sooner for sooner, later in pairwise(self.arrivals_s)]


Clock = Callable[[], float]


class Client:
    """Asks one service over a connection that stays open. http: has the service's URL."""

    def __init__(self, http: httpx.AsyncClient, clock: Clock = perf_counter) -> None:
        self._http, self._clock, self._model = http, clock, ""

    async def ask(self, question: Question) -> Reply:
        """Return the whole answer. Raises AnswerError or httpx.TransportError."""
        body = await self._body(question)
        began_s = self._clock()
        chunks: list[tuple[float, dict[str, Any]]] = []
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                kind = TooLong if _is_too_long(response.status_code, text) else AnswerError
                raise kind(f"{response.status_code}: {text}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    if error := chunk.get("error"):
                        raise AnswerError(f"{error.get('code')}: {error.get('message', '')}")
                    chunks.append((self._clock() - began_s, chunk))
        return _reply(chunks)

    async def _body(self, question: Question) -> dict[str, object]:
        if not self._model:
            listed = (await self._http.get("/v1/models")).raise_for_status()
            self._model = listed.json()["data"][0]["id"]
        likeliest = question.likeliest
        return {
            "model": self._model,
            "messages": [*question.before, {"role": "user", "content": question.prompt}],
            "temperature": question.temperature,
            "top_p": sampling(question.temperature).top_p,
            "seed": question.seed,
            "max_tokens": question.tokens,
            "stream": True,
            "stream_options": {"include_usage": True, **question.stream_options},
            **({} if likeliest is None else {"logprobs": True, "top_logprobs": likeliest}),
            **question.settings,
        }


def _is_too_long(status: int, text: str) -> bool:
    """Return True if an error of our services or of vLLM's server means a too long prompt."""
    return status == 400 and ("context_length" in text or "context length" in text)


def _reply(chunks: Sequence[tuple[float, dict[str, Any]]]) -> Reply:
    """Combine the chunks of a stream, each with its arrival in seconds, into a Reply."""
    choices = [(at_s, choice) for at_s, chunk in chunks for choice in chunk["choices"]]
    ends_s = [at_s for at_s, choice in choices if choice.get("finish_reason")]
    last = chunks[-1][1] if chunks else {}
    if not ends_s or (usage := last.get("usage")) is None:
        raise AnswerError("the answer ended before it was complete")
    pieces = [(at_s, s) for at_s, choice in choices if (s := choice["delta"].get("content"))]
    text = "".join(piece for _, piece in pieces)
    scored = ((choice.get("logprobs") or {}).get("content") or () for _, choice in choices)
    speculation = (last.get("metrics") or {}).get("speculative_decoding") or {}
    accepted = speculation.get("num_accepted_draft_tokens", 0)
    reports = [(at_s, chunk.get("speculation") or {}) for at_s, chunk in chunks]
    drafted_s = (at_s for at_s, event in reports if event.get("drafted"))
    return Reply(
        text, usage["completion_tokens"], tuple(at_s for at_s, _ in pieces),
        len(pieces[0][1]) / len(text) if text else 0.0, ends_s[-1],
        speculation.get("num_draft_tokens", 0), accepted,
        speculation.get("num_target_passes", max(1, usage["completion_tokens"] - accepted)),
        usage["prompt_tokens"], next(drafted_s, None), dict(reports[-1][1].get("tokens") or {}),
        list(chain.from_iterable(scored)),
    )  # fmt: skip
