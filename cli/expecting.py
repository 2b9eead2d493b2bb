"""What an edge will gain here: both ends are timed, and the simulator says the rest.

The target answers two short prompts alone, then once more while the draft model works beside
it: on one machine they share the memory. The draft model reads the answers, which shows how
many of its tokens the target would accept. The simulator runs the machines of an edge and of a
verifier at these times; `bench.simulator` describes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Event
from typing import Final, TypeVar

import msgspec

from picospec.bench.link import Conditions
from picospec.bench.simulator.hosts import Curve, Hosts
from picospec.bench.simulator.source import synthetic
from picospec.bench.simulator.world import PLAIN, World, simulate
from picospec.edge_agent.draft.loading import open_context
from picospec.edge_agent.link.connection import read_answer
from picospec.edge_agent.link.verifier import Verifier
from picospec.edge_agent.settings import EdgeSettings
from picospec.models.llama_cpp.model import Context, Model, Segment
from picospec.speculation.messages import ModelFacts

T = TypeVar("T")

SAMPLES: Final = {
    "code": 'def mean(values):\n    """Return the arithmetic mean of a list."""\n',
    "prose": "The keeper of the lighthouse was an old man who",
}
"""The target answers these prompts, one of each kind of text."""

SAMPLE_TOKENS: Final = 25
ANSWER_S: Final = 60.0

LONGER: Final = " one, two; three: four. five?"
"""A prompt that ends with this differs in about 10 tokens from one that has been read."""

CONTEXT_TOKENS: Final = 256
WARM_TOKENS: Final = 64
DRAFT_STEPS: Final = 12
"""This many steps of the draft model are timed alone, after WARM_TOKENS tokens."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Both ends of a host take these times, in seconds."""

    token_s: float
    """The target alone takes this long for a token."""

    row_s: float
    """Each further row of one of its passes adds this much."""

    slowed: float
    """A token takes so many times as long while the draft model works, at least once."""

    draft_s: float
    """A step of the draft model takes this long while the target is idle."""

    beside_s: float
    """It takes this long while the target works."""

    rtt_s: float
    agreement: Mapping[str, float]
    """By kind of text, the draft model has this share of the target's tokens."""

    def gains(self) -> dict[str, float]:
        """Return, by kind of text, the predicted tokens a second over those of the target
        alone, once an edge knows what drafting gains."""
        return {kind: self._gain(share) for kind, share in self.agreement.items()}

    def _gain(self, agreement: float) -> float:
        rows = {rows: self.token_s + (rows - 1) * self.row_s for rows in (1, 9)}
        beside = {count: seconds * self.slowed for count, seconds in rows.items()}
        hosts = Hosts(
            Curve(rows),
            Curve({1: self.beside_s}),
            drafting_s=Curve(beside),
            alone_s=Curve({1: self.draft_s}),
        )
        world = World(hosts, Conditions(1000 * self.rtt_s))
        answers = [synthetic(agreement, 96, seed, 32) for seed in range(8)]
        drafted, alone = (
            simulate(world, PLAIN[arm], [answers]) for arm in ("picospec", "cloud")
        )
        pairs = zip(drafted[2:], alone[2:], strict=True)
        return median(ours.tokens_per_s / its.tokens_per_s for ours, its in pairs)


async def pace(
    verifier: Verifier, facts: ModelFacts, model: Model, settings: EdgeSettings
) -> Pace:
    """Time both ends, which takes about 80 tokens of the target.

    Raises ApiError, TimeoutError, models.errors.ModelError.
    """
    target = Target(verifier, facts)
    with closing(open_context(model, settings, CONTEXT_TOKENS)) as context:
        draft_s = median(await _in_thread(partial(_steps, context, Event(), DRAFT_STEPS)))
        found = {kind: await target.answer(prompt) for kind, prompt in SAMPLES.items()}
        row_s = await target.row_s(SAMPLES["prose"])
        stop = Event()
        drafting = asyncio.create_task(_in_thread(partial(_steps, context, stop)))
        try:
            busy_s = (await target.answer(SAMPLES["prose"])).token_s
        finally:
            stop.set()
            beside_s = median(await drafting)
        agreement = {
            kind: await _in_thread(partial(agreed, context, SAMPLES[kind], answer.text))
            for kind, answer in found.items()
        }
    token_s = min(answer.token_s for answer in found.values())
    slowed = max(1.0, busy_s / token_s)
    return Pace(token_s, row_s, slowed, draft_s, beside_s, verifier.rtt_s, agreement)


async def _in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns. It has ended even if the caller is cancelled: only then may
    the draft model's context be closed."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    finally:
        await asyncio.wait([working])


def agreed(context: Context, prompt: str, answer: str) -> float:
    """Return the share of such tokens that are the draft model's best ones there, as a short
    answer tells it: by Laplace's rule of succession, so that none is thought certain."""
    model = context.model
    before, after = (model.tokenize(text, special=False) for text in (prompt, prompt + answer))
    tokens = [*model.raw_beginning, *after][:CONTEXT_TOKENS]
    rows = max(1, len(after) - len(before))
    context.truncate(0, 0)
    context.decode([Segment(0, 0, tokens[:-1], rows)])
    best = [int(context.logits(row).argmax()) for row in range(rows)]
    return (1 + sum(map(int.__eq__, best, tokens[-rows:]))) / (2 + rows)


def _steps(context: Context, stop: Event, count: int | None = None) -> list[float]:
    """Return the seconds of the draft model's steps, `count` of them or until `stop` is set."""
    seconds: list[float] = []
    position = CONTEXT_TOKENS
    while len(seconds) != count and not (stop.is_set() and seconds):
        if position == CONTEXT_TOKENS:
            context.truncate(0, 0)
            context.decode([Segment(0, 0, [0] * WARM_TOKENS, 1)])
            position = WARM_TOKENS
        began_s = time.perf_counter()
        context.decode([Segment(0, position, [0], 1)])
        seconds.append(time.perf_counter() - began_s)
        position += 1
    return seconds


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    token_s: float


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Choice(msgspec.Struct):
    text: str


class _Completion(msgspec.Struct):
    usage: _Usage
    choices: tuple[_Choice, ...]


class Target:
    """Asks the target alone for answers, and times them."""

    def __init__(
        self,
        verifier: Verifier,
        facts: ModelFacts,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._verifier = verifier
        self._model = facts.model

    async def answer(self, prompt: str) -> Answer:
        """Return an answer, and the time that each token takes after the first one."""
        await self._timed(prompt, 1)  # reads the prompt, whose cache is kept
        first_s, _ = await self._timed(prompt, 1)
        all_s, said = await self._timed(prompt, SAMPLE_TOKENS)
        later = max(said.usage.completion_tokens - 1, 1)
        return Answer(said.choices[0].text, max(all_s - first_s, 1e-6) / later)

    async def row_s(self, prompt: str) -> float:
        """Return how much each further row of a pass adds, by reading more of a prompt."""
        await self._timed(prompt, 1)  # a longer answer may have taken the prompt's place
        known_s, known = await self._timed(prompt, 1)
        more_s, more = await self._timed(prompt + LONGER, 1)
        rows = more.usage.prompt_tokens - known.usage.prompt_tokens
        return max(0.0, more_s - known_s) / max(rows, 1)

    async def _timed(self, prompt: str, most: int) -> tuple[float, _Completion]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": most, "temperature": 0}
        data, began_s = msgspec.json.encode(body), self._clock()
        async with (
            asyncio.timeout(ANSWER_S),
            self._verifier.ask("/v1/completions", data) as response,
        ):
            answer = await read_answer(response)
        seconds = self._clock() - began_s
        return seconds, msgspec.json.decode(answer.content, type=_Completion)
