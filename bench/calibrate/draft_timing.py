"""How long the draft model takes for a draft token, by the tokens it must read for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Final

from picospec.bench.calibrate.pass_timing import Question
from picospec.edge_agent.draft_model.drafter import DraftSlot
from picospec.speculation.judges import coupled
from picospec.speculation.protocol.messages import Sampling, TokenId
from picospec.speculation.sampling.draft_token import DraftSampler

READ: Final = (1, 2, 4, 8, 16)
"""A step reads so many tokens: one in a chain, more where the target went ahead of it."""

REPEATS: Final = 8
_GREEDY: Final = coupled.sampler(Sampling(temperature=0.0), seed=0, prompt_tokens=0)


def greedy(_: Sequence[TokenId]) -> DraftSampler:
    """Return a StepSampler's sampler that draws the likeliest token."""
    return _GREEDY


async def steps(slot: DraftSlot, question: Question) -> dict[int, float]:
    """Return the median step in seconds, by the tokens read. The answer has as many or more."""
    prompt, answer = question.prompt, question.answer
    found: dict[int, float] = {}
    await slot.step(list(prompt), greedy)
    for count in READ:
        seconds = []
        for _ in range(REPEATS):
            await slot.step(list(prompt), greedy)
            began_s = perf_counter()
            await slot.step([*prompt, *answer[:count]], greedy)
            seconds.append(perf_counter() - began_s)
        found[count] = median(seconds)
    return found


async def forever(slot: DraftSlot, question: Question) -> None:
    """Draft along the answer, over and over, until cancelled."""
    for count in cycle(range(len(question.answer))):
        await slot.step([*question.prompt, *question.answer[:count]], greedy)
