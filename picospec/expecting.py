"""What an edge will gain here: both ends are timed, and a formula says the rest.

The target answers two short prompts alone, then once more while the draft model works beside
it: on one machine they share the memory. The draft model reads the answers, which shows how
many of its tokens the target would accept. Over 324 pairs of such times the formula's gain
was 0.76 to 1.42 times the simulator's, and 1.03 in the mean (tests/bench/test_simulator.py).
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

from edge_agent.draft.loading import open_context
from edge_agent.link.connection import read_answer
from edge_agent.link.verifier import Verifier
from edge_agent.settings import EdgeSettings
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from speculation.model_facts import ModelFacts
from speculation.untrusted import decode_json

T = TypeVar("T")

SAMPLES: Final = {
    "code": 'def mean(values):\n    """Return the arithmetic mean of a list."""\n',
    "prose": "The keeper of the lighthouse was an old man who",
}
"""The target answers these prompts, one of each kind of text."""

SAMPLE_TOKENS: Final = 25

LONGER: Final = " one, two; three: four. five?"
"""A prompt that ends with this differs in about 10 tokens from one that has been read."""

CONTEXT_TOKENS: Final = 256
WARM_TOKENS: Final = 64
REJECTED: Final = 2
"""After a rejection the target commits this many tokens before a new chain is ahead, beside
those of the round trip; found by the simulator."""

MOST_ROWS: Final = 16
"""A pass checks at most this many draft tokens in the formula."""

DRAFT_STEPS: Final = 12
"""This many steps of the draft model are timed alone, after WARM_TOKENS tokens."""


@dataclass(frozen=True, slots=True)
class MeasuredPace:
    """Both ends of a host take these times, in seconds."""

    token_s: float
    """The target alone takes this long for a token."""

    row_s: float
    """Each further row of one of its passes adds this much."""

    slowed: float
    """A token takes so many times as long while the draft model works, at least once."""

    draft_s: float
    """A step of the draft model takes this long while the target is idle."""

    busy_step_s: float
    """It takes this long while the target works."""

    rtt_s: float
    agreement: Mapping[str, float]
    """By kind of text, the draft model has this share of the target's tokens."""

    def gains(self) -> dict[str, float]:
        """Return, by kind of text, the predicted tokens a second over those of the target
        alone, once an edge knows what drafting gains."""
        return {kind: self._gain(share) for kind, share in self.agreement.items()}

    def _gain(self, share: float) -> float:
        """Return the gain where the target takes this share of the draft tokens.

        After a rejection the target generates alone until a new chain has caught up with the
        text: that takes REJECTED passes and the round trip. All its tokens must be right;
        after that, each pass checks as many draft tokens as pay most, if they come in time.
        """
        alone_s, row_s = self.token_s * self.slowed, self.row_s * self.slowed
        drafted_s = min(
            max(alone_s + rows * row_s, rows * self.busy_step_s) / (1 + _accepted(share, rows))
            for rows in range(1, MOST_ROWS + 1)
        )
        if max(drafted_s, self.busy_step_s) >= alone_s:
            return 1.0
        behind = REJECTED + self.rtt_s / (alone_s - self.busy_step_s)
        ahead: float = share**behind  # this share of the tokens is committed from a chain
        return max(1.0, self.token_s / ((1 - ahead) * alone_s + ahead * drafted_s))


def _accepted(share: float, rows: int) -> float:
    """Return how many of a pass's draft tokens are accepted before the first that is not."""
    return share * (1 - share**rows) / (1 - share)


async def pace(
    verifier: Verifier, facts: ModelFacts, model: Model, settings: EdgeSettings
) -> MeasuredPace:
    """Time both ends, which takes about 80 tokens of the target.

    Raises ApiError, TimeoutError, local_models.errors.ModelError.
    """
    target = TimedTarget(verifier, facts)
    with closing(open_context(model, settings, CONTEXT_TOKENS)) as context:
        draft_s = median(await _in_thread(partial(_steps, context, Event(), DRAFT_STEPS)))
        answers = {kind: await target.answer(prompt) for kind, prompt in SAMPLES.items()}
        row_s = await target.row_s(SAMPLES["prose"])
        stop = Event()
        drafting = asyncio.create_task(_in_thread(partial(_steps, context, stop)))
        try:
            busy_s = (await target.answer(SAMPLES["prose"])).token_s
        finally:
            stop.set()
            busy_step_s = median(await drafting)
        agreement = {
            kind: await _in_thread(partial(agreed, context, SAMPLES[kind], answer.text))
            for kind, answer in answers.items()
        }
    token_s = min(answer.token_s for answer in answers.values())
    slowed = max(1.0, busy_s / token_s)
    return MeasuredPace(token_s, row_s, slowed, draft_s, busy_step_s, verifier.rtt_s, agreement)


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
class SampleAnswer:
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


class TimedTarget:
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

    async def answer(self, prompt: str) -> SampleAnswer:
        """Return an answer, and the time that each token takes after the first one."""
        await self._timed(prompt, 1)  # reads the prompt, whose cache is kept
        first_s, _ = await self._timed(prompt, 1)
        all_s, usage = await self._timed(prompt, SAMPLE_TOKENS)
        later = max(usage.usage.completion_tokens - 1, 1)
        return SampleAnswer(usage.choices[0].text, max(all_s - first_s, 1e-6) / later)

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
            asyncio.timeout(60.0),
            self._verifier.ask("/v1/completions", data) as response,
        ):
            answer = await read_answer(response)
        seconds = self._clock() - began_s
        return seconds, decode_json(answer.content, _Completion)
