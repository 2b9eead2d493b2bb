"""A service with a scripted engine, for the page: `python -m tests.page.service PORT [KEY]`.

What the user writes last chooses the answer: see text_of.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.app import create_app
from gateway.endpoints.services import Services, one_model
from gateway.errors import Unavailable
from gateway.hosting.settings import GatewaySettings
from gateway.ports import (
    MAX_CHAT_BYTES,
    NONE,
    Delta,
    Facts,
    FinishReason,
    GatewayTokenizer,
    Job,
    Json,
    Statistics,
)
from gateway.watching import ChainEvent, Event, LinkUse, PassEvent
from speculation.messages import TokenLogprob, Totals

MODEL = "words-1"
CONTEXTS = {MODEL: 4_000_000, "words-2": 32_768, "words-3": None}
DRAFTS: Mapping[str, Json | None] = {
    MODEL: {"model": "small-1", "state": "loaded", "bytes": 415_000_000},
    "words-2": {"model": "small-2", "state": "asleep", "bytes": 1_200_000_000},
    "words-3": None,
}
DIRECT = "/v1/picospec/direct/chat/completions"
END = 0


# What the scripted engine answers, by what it is asked.

FAULT = (" always", " usually")
TEXTS = Path(__file__).with_name("texts")
MARKDOWN = (TEXTS / "merging.md").read_text()


HOSTILE = (TEXTS / "hostile.md").read_text()


_LONG = {
    "mixed": "".join(
        f"Line {n} is a **bold** word, an *italic* one and a `mark`.\n\n" for n in range(500)
    )
    + "```python\n"
    + "x = f(x, 1) + g(y)  # and so on\n" * 500
    + "```\n",
    "one line": "so it goes on and on, " * 1700,
}


def _call(city: str) -> str:
    return f'<tool_call> {{"name": "weather", "arguments": {{"city": "{city}"}}}} </tool_call>'


def text_of(asked: str, *, alone: bool) -> str:
    """Return the answer to what the user asked. With "planted" in it, both ends differ."""
    if "planted" in asked and alone:
        return MARKDOWN.replace(*FAULT)
    if "hostile" in asked:
        return HOSTILE
    if "ten thousand" in asked:
        return _LONG[asked.strip().partition(": ")[2]]
    if "long" in asked:
        return "".join(f"Line {n} goes **on** and `on`.\n\n" for n in range(2000))
    if "tool" in asked:
        cities = ("Oslo", "Rome") if "twice" in asked else ("Oslo",)
        return " ".join(map(_call, cities))
    if "think" in asked:
        return "<think>Let me see.</think>The answer is 42."
    return MARKDOWN


# The service.


class Words:
    """A tokenizer that takes a word, with the space before it, for a token."""

    template = "<think></think><tool_call>"
    takes_tools = True
    hides_unused_tools = False
    named_tokens: Json = NONE

    def __init__(self) -> None:
        self._words = [b""]
        self._ids: dict[bytes, int] = {}

    def encode(self, text: str, *, special: bool = True, begin: bool = True) -> list[int]:
        return [self._id(word.encode()) for word in re.findall(r" ?[^ ]+| +", text)]

    def _id(self, word: bytes) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]

    def chat(
        self,
        messages: Sequence[Json],
        *,
        tools: Sequence[Json] = (),
        options: Json = NONE,
        max_bytes: int = MAX_CHAT_BYTES,
    ) -> list[int]:
        return self.encode("".join(f"{m['role']}: {m['content']}\n" for m in messages))

    def infill(self, *_: object, **__: object) -> list[int]:
        raise ValueError("there are no tokens for that")

    def piece(self, token: int, special: bool = False) -> bytes:
        return self._words[token]


@dataclass
class PageEngine:
    """Answers by a script, with a draft model that is right about three words in four."""

    words: Words = field(default_factory=Words)
    pass_s: float = 0.06
    """The time of a pass, and the cloud's for one token."""

    down: bool = False
    alone: bool = False
    """Whether it is the target alone, without an edge."""

    more: dict[str, str] = field(default_factory=dict)
    """Further models that the same words answer for: "words-2", "words-3", and their states."""

    jobs: list[Job] = field(default_factory=list)
    closed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once by each answer that has ended."""

    def restore(self) -> None:
        """Forget what a test has done."""
        self.pass_s, self.down = 0.02, False
        self.jobs.clear()

    @property
    def states(self) -> dict[str, str]:
        return {MODEL: "away" if self.down else "ready", **self.more}

    def origins_of(self, text: str) -> list[str]:
        """Return the origin of each character of an answer."""
        found: list[str] = []
        for number, part in enumerate(_parts(self.words.encode(text), most=6), 1):
            for token, origin in zip(part, _origins(number, part), strict=True):
                found += [origin] * len(self.words.piece(token).decode())
        return found

    def tokens_of(self, text: str) -> Counter[str]:
        """Return the tokens of an answer, and the one that ends it, by their origin."""
        parts = enumerate(_parts(self.words.encode(text), most=6), 1)
        return Counter(["target", *(o for n, part in parts for o in _origins(n, part))])

    def words_of(self, text: str) -> tuple[int, ...]:
        return tuple(self.words.encode(text))

    async def facts(self) -> Facts:
        if self.down:
            raise Unavailable("the verifier is away")
        return Facts(MODEL, 4_000_000, frozenset({END}), 1_000_000)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        self.jobs.append(job)
        try:
            async for delta in self._deltas(job):
                yield delta
        finally:
            self.closed.release()

    async def _deltas(self, job: Job) -> AsyncGenerator[Delta]:
        prompt = b"".join(map(self.words.piece, job.prompt)).decode()
        asked = prompt.rpartition("user: ")[2]
        tokens = self.words.encode(text_of(asked, alone=self.alone))[: job.max_tokens]
        finish: FinishReason = "length" if len(tokens) == job.max_tokens else "stop"
        position, accepted, number = len(job.prompt), 0, 0
        for number, part in enumerate(_parts(tokens, most=1 if self.alone else 6), 1):
            if self.down and number > 3:
                raise Unavailable("the verifier cannot be reached: connection refused")
            accepted += len(part) - 1
            counted = Statistics(Totals(number, accepted + number, accepted))
            watched = job.watched and not self.alone
            events = self._events(number, position, part) if watched else ()
            origins = _origins(number, part)
            logprobs = self._logprobs(job, part, near="tie" in asked)
            yield Delta(tuple(part), logprobs, None, counted, origins, events)
            position += len(part)
            await asyncio.sleep(self.pass_s)
        counted = Statistics(Totals(number, accepted + number, accepted))
        if finish == "length":
            yield Delta((), (), finish, counted, ())
            return
        ending = self._logprobs(job, [END], near=False)
        yield Delta((END,), ending, finish, counted, ("target",))

    def _logprobs(
        self, job: Job, part: list[int], *, near: bool
    ) -> tuple[TokenLogprob, ...] | None:
        if job.top_logprobs is None:
            return None
        other = self.words.encode(FAULT[0])[0]
        own, less = (-0.70, -0.71) if near else (-0.05, -3.1)
        return tuple(TokenLogprob(own, ((token, own), (other, less))) for token in part)

    def _events(self, number: int, position: int, part: list[int]) -> tuple[Event, ...]:
        """Return what happens before a pass commits `part`: the fourth has a wrong token."""
        wrong = tuple(self.words.encode(" and so on")) if number % 4 == 0 else ()
        drafted, row_ms = tuple(part[:-1]), self.pass_s * 1000
        rows, waited_ms = len(part) + len(wrong), 8.0 if number % 3 == 0 else 0.0
        beyond = "recovered" if wrong else "bonus" if drafted else "fill"
        ahead = wrong or (part[-1], *self.words.encode(" or it"))
        first = ChainEvent(
            number, position, len(drafted) + len(ahead), False, (*drafted, *ahead)
        )
        broken = ChainEvent(number, position + len(drafted), 3, True, wrong)
        judged = PassEvent(
            position, rows, len(drafted), len(part), beyond, row_ms, waited_ms, 30.0, row_ms
        )
        link = LinkUse(24.5, 3 * position, 6 * position, "0", 0)
        return (first, *([broken] if wrong else []), judged, link)


def _origins(number: int, part: list[int]) -> tuple[str, ...]:
    """Return who had the tokens of a pass first."""
    origin = "lookup" if number % 5 == 4 else "ahead" if number % 7 == 6 else "draft"
    return (*(origin,) * (len(part) - 1), "target")


def _parts(tokens: list[int], most: int) -> Iterator[list[int]]:
    """Yield what each pass commits: 1 to `most` tokens."""
    at = 0
    for number in count():
        if at >= len(tokens):
            return
        size = 1 + (number * 7 + number // 3) % most
        yield tokens[at : at + size]
        at += size


def page_app(engine: PageEngine, **settings: object) -> FastAPI:
    async def source(_: str) -> GatewayTokenizer:
        return engine.words

    aliases = {"model_aliases": [*engine.more]}
    given = GatewaySettings.model_validate({**aliases, **settings})
    about = partial(_about, engine)
    if engine.alone:
        return create_app(Services(one_model(engine, source, given), given))
    app, proxy = (
        create_app(Services(one_model(engine, source, given), given, about)),
        Relay(engine, settings),
    )
    app.router.routes.insert(0, Route(DIRECT, proxy, methods=["POST"]))
    if engine.more:
        app.router.routes.insert(0, Route("/v1/models", partial(_listed, engine)))
    return app


class Relay:
    """Passes a request on to the target alone."""

    def __init__(self, engine: PageEngine, settings: Mapping[str, object]) -> None:
        self._engine = engine
        self._alone = replace(engine, alone=True)
        self._app = page_app(self._alone, **settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope = {**scope, "path": "/v1/chat/completions", "state": {}}
        self._alone.down, self._alone.pass_s = self._engine.down, self._engine.pass_s
        await self._app(scope, receive, send)


async def _listed(engine: PageEngine, _: Request) -> JSONResponse:
    """List the models as an edge of several does, with a second name and another service's."""
    about = {"object": "model", "created": 0, "owned_by": "picospec"}
    data: list[dict[str, object]] = [
        {"id": name, **about, "root": name}
        | ({"state": state} if state == "away" else {})
        | ({"max_model_len": length} if (length := CONTEXTS[name]) else {})
        for name, state in engine.states.items()
    ]
    data.append({"id": "alias", **about, "root": MODEL, "max_model_len": CONTEXTS[MODEL]})
    data.append({"id": "embed", **about, "owned_by": "relayed"})
    return JSONResponse({"object": "list", "data": data})


def _models(engine: PageEngine) -> dict[str, object]:
    """Return what an edge of several models says of them."""
    reasons = (("words-2", "prefix", 4.2), (MODEL, "near", 95.0), ("words-2", "only", 700.0))
    return {
        "models": [
            {"name": name, "state": state, "verifiers": [f"v{number}"]}
            | {"context_tokens": CONTEXTS[name], "draft": DRAFTS[name]}
            for number, (name, state) in enumerate(engine.states.items(), 1)
        ],
        "placed": [
            {"model": name, "verifier": f"v{name[-1]}", "reason": why, "seconds_ago": ago}
            for name, why, ago in reasons
        ],
    }


async def _about(engine: PageEngine) -> dict[str, object]:
    """Return what an edge says of itself."""
    verifier = {"rtt_ms": 24.5, "load": 0.1, "sessions": 0, "identity": "5f0c", "version": "1"}
    verifier |= {"speedups": {"draft": {"cost": 1.1, "speedup": 1.304, "probes": 2}}}
    draft = {"model": "small-1", "vocabularies": "same", "slots": 4}
    state = {"service": "edge", "protocol": 3, "judge": "coupled", "fill": "auto"}
    verifiers = [
        verifier
        | {"url": f"http://127.0.0.1:900{n}", "verifier": f"v{n + 1}"}
        | {"ready": model == "ready", "in_use": model == "ready"}
        for n, model in enumerate(engine.states.values())
    ]
    several = _models(engine) if engine.more else {}
    return state | {"lookup": True, "draft": draft, "verifiers": verifiers, **several}


if __name__ == "__main__":
    keys = {"api_keys": sys.argv[2:]} if sys.argv[2:] else {}
    uvicorn.run(page_app(PageEngine(), **keys), port=int(sys.argv[1]), log_level="warning")
