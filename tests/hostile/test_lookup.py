"""A long prompt does not hold up other answers while it is searched for what may come next."""

from __future__ import annotations

import asyncio
import threading

import pytest

from picospec.edge_agent import proposals
from picospec.edge_agent.proposals import ProposalFinder
from picospec.edge_agent.settings import EdgeSettings
from picospec.gateway.ports import Job, Sampling
from picospec.speculation.messages import TokenId, opening
from picospec.speculation.ngrams import PromptGrams
from tests.edge_agent.engines import FACTS, Paired

PROMPT = tuple(number % 97 for number in range(5000))


async def test_the_n_grams_of_a_long_prompt_are_made_once_and_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    making, let_go = threading.Event(), threading.Event()

    def make(prompt: tuple[TokenId, ...]) -> PromptGrams:
        made.append(threading.get_ident())
        making.set()
        let_go.wait(60.0)
        return PromptGrams(prompt)

    monkeypatch.setattr(proposals, "PromptGrams", make)
    finder = ProposalFinder(EdgeSettings(), Paired())
    jobs = [Job(f"r-{seed}", PROMPT, 8, Sampling(), seed) for seed in range(8)]
    finding = [asyncio.create_task(finder.find(opening(j, FACTS), j, FACTS)) for j in jobs]
    await asyncio.to_thread(making.wait, 30.0)
    finding.pop().cancel()
    let_go.set()
    found = await asyncio.gather(*finding)

    assert len(made) == 1
    assert threading.get_ident() not in made
    for each in found:
        assert each.proposer is not None
        each.proposer.follow((), ())
    assert not finder._grams
