"""Loads a server with clients, and measures the processor time of each process meanwhile.

The clients and the link, if there is one, run in this process; each server has others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from time import perf_counter, process_time
from typing import Final

import msgspec

from bench.clients import Answered, Client, ScriptedDrafter, scripted
from bench.host import processor_s_by_title
from bench.pace import script
from bench.pace.script import VOCABULARY, Drafts
from bench.run.client import AnswerError
from bench.run.services import port
from bench.simulator.hosts import Curve
from bench.simulator.source import Source
from bench.statistics import mean
from picospec.link import HOST

DRAFT_S: Final = 0.005
"""A scripted edge makes a draft token in this time, if nothing else is asked for."""

WARM_UP: Final = 24
"""Each client first asks for this many tokens, which opens its connections."""

_KINDS: Final = {"VLLM::EngineCore": "engine", "VLLM::Worker": "worker"}
"""A process whose title has this is one of vLLM's; any other serves the API."""


Rounds = Sequence[Sequence[Source]]
"""These are what each client asks, round by round."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An Arm loads one server. group: the server's processes."""

    clients: Sequence[Client]
    rounds: Rounds
    """In a round each client asks for one source. The first round is the warm-up; no later one
    repeats a question, because edges keep answers and propose them again."""

    group: int

    async def answers(self, number: int, tokens: int) -> list[Answered]:
        """Let all clients ask at once in this round. Raises what a Client does."""
        pairs = zip(self.clients, self.rounds[number], strict=True)
        return list(await asyncio.gather(*(ask(source, tokens) for ask, source in pairs)))

    async def measured(self, number: int, tokens: int) -> Turn:
        before, began_s = _spent_s(self.group), perf_counter()
        answers = await self.answers(number, tokens)
        seconds, after = perf_counter() - began_s, _spent_s(self.group)
        spent_s = {kind: s - before.get(kind, 0.0) for kind, s in after.items()}
        answer_tokens, passes, scripted = (
            sum(getattr(each, of) for each in answers)
            for of in ("tokens", "passes", "scripted")
        )
        return Turn(answer_tokens, passes, scripted, seconds, spent_s)


@dataclass(frozen=True, slots=True)
class Turn:
    """A Turn has the measurement of an arm. scripted: the number of tokens that the edges knew
    beforehand. spent_s: processor seconds by kind of process."""

    tokens: int
    passes: int
    scripted: int
    seconds: float
    spent_s: Mapping[str, float]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


async def by_turns(arms: Mapping[str, Arm], tokens: int) -> dict[str, list[Turn]]:
    """Measure the arms in alternating order, after a warm-up that opens all connections."""
    for arm in arms.values():
        await arm.answers(0, WARM_UP)
    turns_by_arm: dict[str, list[Turn]] = {name: [] for name in arms}
    for turn in range(1, min(len(arm.rounds) for arm in arms.values())):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            turns_by_arm[name].append(await arms[name].measured(turn, tokens))
    return turns_by_arm


def rounds(clients: int, turns: int, tokens: int, drafts: Drafts = "right") -> Rounds:
    """Return what each client asks in each turn, the warm-up included."""
    prompts = iter(script.prompts(clients * (turns + 1)))
    sources = (script.source(prompt, tokens, drafts) for prompt in prompts)
    return [list(islice(sources, clients)) for _ in range(turns + 1)]


def figures(turns: Sequence[Turn], base: Sequence[Turn] = ()) -> dict[str, float]:
    """Return the figures of an arm. base: the turns of the arm that it is compared with; the
    ratio has a 95 % interval if there are several turns."""
    tokens, seconds = (sum(getattr(turn, of) for turn in turns) for of in ("tokens", "seconds"))
    by_name = {
        "tokens/s": tokens / seconds,
        "passes a token": sum(turn.passes for turn in turns) / tokens,
        "known text": sum(turn.scripted for turn in turns) / tokens,
    }
    pairs = zip(turns, base, strict=False)
    rates = [("", f"{i}", t.tokens_per_s / b.tokens_per_s) for i, (t, b) in enumerate(pairs)]
    if (ratio := mean(rates)) is not None:
        by_name["over the first"] = ratio.value
        if ratio.low is not None and ratio.high is not None:
            by_name["of it, low"], by_name["of it, high"] = ratio.low, ratio.high
    for kind in turns[0].spent_s:
        spent_s = sum(turn.spent_s[kind] for turn in turns)
        by_name[f"{kind}, us a token"] = 1e6 * spent_s / tokens
        by_name[f"{kind}, cores"] = spent_s / seconds
    return by_name


def _spent_s(group: int) -> dict[str, float]:
    """Return the processor seconds of a server's processes, by kind, and of this process."""
    spent_by_process: dict[str, float] = {}
    for title, seconds in processor_s_by_title(group).items():
        kind = next((kind for part, kind in _KINDS.items() if part in title), "API")
        spent_by_process[kind] = spent_by_process.get(kind, 0.0) + seconds
    return spent_by_process | {"clients": process_time()}


@asynccontextmanager
async def edges(
    url: str, rounds_: Rounds, *, together: bool = False, draft_s: float = DRAFT_S
) -> AsyncGenerator[list[Client]]:
    """Yield a scripted edge for each source of a round, or one that is asked by all. Its
    answers have as many tokens as were asked for. draft_s: it makes a draft token in this
    time."""
    sources = {source.prompt: source for each in rounds_ for source in each}
    drafter = ScriptedDrafter(sources, Curve({1: draft_s}), VOCABULARY)
    async with AsyncExitStack() as stack:
        count = 1 if together else len(rounds_[0])
        clients = [
            await stack.enter_async_context(scripted(url, drafter, ignore_eos=True))
            for _ in range(count)
        ]
        yield clients * (len(rounds_[0]) // count)


def plain(url: str, model: str) -> Client:
    """Return a client of the completions of vLLM's own API. It takes as little processor time
    as it can, because two cores may carry clients and servers."""

    async def ask(source: Source, tokens: int) -> Answered:
        body = msgspec.json.encode({
            "model": model, "prompt": source.prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
        })  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        asked_s, arrivals_s, end = perf_counter(), list[float](), b""
        reader, writer = await asyncio.open_connection(HOST, port(url))
        try:
            writer.write(head.encode() + body)
            while data := await reader.read(1 << 16):
                arrivals_s.append(perf_counter())
                end = (end + data)[-1024:]
        finally:
            writer.close()
        if b"data: [DONE]" not in end or b'"finish_reason":"length"' not in end:
            raise AnswerError(f"no whole answer; it ends with {end!r}")
        return Answered(asked_s, perf_counter(), arrivals_s, tokens, tokens, tokens)

    return ask
