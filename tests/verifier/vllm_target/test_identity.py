"""With the real engine no draft changes the text, coupled, greedy and drawn; and judged
`separate`, tokens have the target's distribution.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from speculation import distributions
from speculation.distributions import Distribution, QuantisedDistribution, quantise
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.judges import JUDGES
from speculation.messages import Open, Reject, Sampling
from speculation.wire import Framed
from tests.verifier.down import replies_of
from tests.verifier.vllm_target.conftest import ON_ENGINE, make
from tests.verifier.vllm_target.scripted import (
    DRAWN,
    GREEDY,
    PROMPTS,
    SHAPED,
    Script,
    drafted,
    moved,
    opening,
    plain,
    recovered,
    uniforms,
    with_extras,
)
from verifier.vllm_target import installation
from verifier.vllm_target.serving.target import VllmTarget

pytestmark = ON_ENGINE
BLOCK = 128
"""Tokens whose keys vLLM caches together, on CPUs."""

SCRIPTS = {
    "good": Script(),
    "15 % wrong": Script(wrong=0.15),
    "all wrong": Script(wrong=1.0),
    "late": Script(wrong=0.1, late_s=0.12),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_drafts_do_not_change_the_text(
    target: VllmTarget, sampling: Sampling, name: str
) -> None:
    request = opening(target, PROMPTS[0], sampling)
    expected = (await plain(target, f"plain {name}", request)).tokens

    script = SCRIPTS[name]
    if script.wrong in (0.0, 1.0):  # else how many are judged is this host's speed
        request = replace(request, fill="never")

    answer = await drafted(target, f"drafted {name}", request, expected, script)

    assert answer.tokens == expected
    assert answer.finish is not None
    assert answer.finish.reason == "length"
    assert answer.finish.totals.judged > 0
    assert name != "good" or answer.finish.totals.passes < 15


async def test_a_version_that_is_not_tested_runs_its_self_test_though_it_is_switched_off(
    target: VllmTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "TESTED", ((0, 1), (0, 2)))
    before = (await target.figures())["steps"]

    again = make(target._engine, self_test=False)
    await again.start()

    assert (await target.figures())["steps"] > before
    await again.stop()


@pytest.mark.parametrize("name", ["good", "all wrong"])
async def test_a_prompt_whose_keys_are_all_cached_but_one_is_answered_as_before(
    target: VllmTarget, name: str
) -> None:
    request = opening(target, PROMPTS[2] * 20, GREEDY, max_tokens=24)
    request = replace(request, prompt=request.prompt[: BLOCK + 1])
    expected = (await plain(target, f"first {name}", request)).tokens

    again = (await plain(target, f"again {name}", request)).tokens
    answer = await drafted(target, f"cached {name}", request, expected, SCRIPTS[name])

    assert again == expected
    assert answer.tokens == expected


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("edits", [(), (3, 17)], ids=["right", "misleading"])
async def test_the_verifiers_own_draft_tokens_do_not_change_the_text(
    target: VllmTarget, sampling: Sampling, edits: tuple[int, ...]
) -> None:
    request = opening(target, PROMPTS[1], sampling, max_tokens=40)
    name = f"{sampling.temperature} {edits}"
    expected = (await plain(target, f"plain {name}", request)).tokens
    predicted = tuple(5 if at in edits else token for at, token in enumerate(expected))

    asked = replace(request, fill="auto", ngram_drafts=True, predicted=predicted)
    answer = await plain(target, f"own {name}", asked)

    assert answer.tokens == expected
    assert answer.finish is not None
    assert answer.finish.totals.verifier_accepted > 20
    assert answer.finish.totals.passes < 20


# Judged `separate`, tokens have the target's distribution; a cut one would be noticed.


DRAWS = 512
"""As many as show that a distribution was cut; with --long, four times as many."""

AT_ONCE = 16


@dataclass(frozen=True)
class Exact:
    """Holds what a model says after a prompt."""

    prompt: str
    shape: Sampling
    head: int
    """The distribution is cut to so many tokens, which is to be noticed."""

    first: int = 0
    """The first token, the only one of this shape."""

    second: Distribution = field(
        default_factory=lambda: Distribution(np.array([]), np.array([]))
    )


OF_LAYERS = Exact(PROMPTS[4], Sampling(temperature=1.5, top_p=0.8), head=2)
OF_MODEL = Exact(PROMPTS[5], Sampling(temperature=1.0, top_p=0.8), head=10)


@pytest.fixture(scope="session")
def exact(directory: Path, target: VllmTarget, is_long: bool) -> Exact:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = OF_MODEL if is_long else OF_LAYERS
    prompt = target.tokenizer.encode(found.prompt)

    def distribution_after(tokens: list[int]) -> Distribution:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].numpy()
        return distributions.distribution(logits, found.shape)

    first = distribution_after(prompt)
    assert first.tokens.size == 1
    token = int(first.tokens[0])
    return replace(found, first=token, second=distribution_after([*prompt, token]))


def skewed(p: Distribution) -> QuantisedDistribution:
    """Return a draft's distribution: wrong on purpose, over a part of p's support and one token
    outside it."""
    outside = next(t for t in range(1000, 2000) if p.of(t) == 0.0)
    tokens = np.append(p.tokens[::2], outside)
    weights = np.append(np.sqrt(p.p[::2]), np.sqrt(p.p).mean())
    return quantise(Distribution(tokens, weights / weights.sum()))


async def second_token(
    target: VllmTarget,
    session: str,
    request: Open,
    q: QuantisedDistribution,
    random: Random,
    most: int,
) -> tuple[int, bool]:
    """Return the token at position 1, and whether the draft token there was rejected.

    most: of a Reject, the edge reads only this many tokens.
    """
    half = JUDGES["separate"].edge(request, uniforms(random))
    machine = DraftMachine(
        request, StreamPolicy(), target.facts.limits, half, rtt_s=lambda: 0.0
    )
    edge, rejected = machine.session, False
    async with aclosing(replies_of(target, session, request)) as messages:
        async for reply in messages:
            message = reply.message
            if isinstance(message, Reject):
                rejected = True
                if most < len(message.head):
                    message = replace(message, head=message.head[:most], tail_mass=0.0)
            machine.received(message)
            if len(edge.committed) > 1:
                break
            edge.extend(DraftToken(q.at(random.random()), 1.0, q))
            if draft := edge.flush():
                await target.push(session, Framed(draft))
    return edge.committed[1], rejected


async def draw(
    target: VllmTarget,
    exact: Exact,
    name: str,
    most: int,
    draws: int,
) -> tuple[float, float, float]:
    """Return the chi-square test's p-value, the share rejected, and what it should be."""
    p = exact.second
    q = skewed(p)
    fields: dict[str, Any] = {"judge": "separate", "fill": "never", "max_tokens": 3}
    request = opening(target, exact.prompt, exact.shape, **fields)
    random = Random(name)
    counts: Counter[int] = Counter()
    rejected = 0
    for batch in range(0, draws, AT_ONCE):
        running = (
            second_token(target, f"{name} {batch + i}", request, q, random, most)
            for i in range(AT_ONCE)
        )
        for token, was_rejected in await asyncio.gather(*running):
            counts[token] += 1
            rejected += was_rejected
    drawn = sum(counts.values())
    assert set(counts) <= set(p.tokens.tolist())
    order = np.argsort(-p.p)
    frequent = [i for i in order if p.p[i] * drawn >= 5]
    observed = [counts[int(p.tokens[i])] for i in frequent]
    expected = [p.p[i] * drawn for i in frequent]
    observed.append(drawn - sum(observed))
    expected.append(drawn - sum(expected))
    kept = [i for i, e in enumerate(expected) if e > 0.5]
    table = [observed[i] for i in kept], [expected[i] for i in kept]
    scaled = np.array(table[1]) * sum(table[0]) / sum(table[1])
    overlap = sum(min(p.of(int(t)), q.of(int(t)) / distributions.Q_SCALE) for t in q.tokens)
    return stats.chisquare(table[0], scaled).pvalue, rejected / drawn, 1.0 - overlap


async def test_the_tokens_have_the_targets_distribution(
    target: VllmTarget, exact: Exact, is_long: bool
) -> None:
    draws = DRAWS * (4 if is_long else 1)

    pvalue, rejected, expected = await draw(target, exact, "exact", 10**6, draws)

    assert pvalue > 0.001
    assert rejected == pytest.approx(expected, abs=4 * (0.25 / draws) ** 0.5)
    assert (await target.figures())["sessions"] == 0


async def test_a_distribution_cut_to_its_head_is_noticed(
    target: VllmTarget, exact: Exact
) -> None:
    pvalue, _, _ = await draw(target, exact, "cut", exact.head, DRAWS)

    assert pvalue < 1e-6


async def test_a_draft_token_that_was_rejected_elsewhere_is_not_judged_anew(
    target: VllmTarget, exact: Exact
) -> None:
    p, first = exact.second, exact.first
    likely, other = p.tokens[np.argsort(-p.p)[:2]].tolist()
    fields: dict[str, Any] = {"judge": "separate", "max_tokens": 6, "rejected": True}
    request = opening(target, exact.prompt, exact.shape, committed=(first,), **fields)

    reject, tokens = await moved(target, "moved", request, likely, other)

    assert (reject.epoch, reject.position, reject.draw) == (5, 1, 0)
    assert dict(reject.head) == pytest.approx(dict(zip(p.tokens, p.p, strict=True)), abs=1e-4)
    assert (tokens[0], len(tokens)) == (other, 5)


async def test_sessions_that_await_recovered_tokens_outlive_preemption(
    target: VllmTarget,
) -> None:
    """With settings that depend on the text, recovered tokens included."""
    shape = SHAPED | {"min_tokens": 10}
    no_choice = with_extras(Sampling(temperature=1.0, top_k=1), **shape)  # the text is known
    prompt = tuple(target.tokenizer.encode(PROMPTS[5] * 20))[:120]
    request = replace(
        opening(target, PROMPTS[5], no_choice, judge="separate", fill="never", max_tokens=16),
        prompt=prompt,
    )
    alone = (
        await plain(target, "unrejected", replace(request, judge="coupled", fill="auto"))
    ).tokens
    before = (await target.figures())["preemptions"]

    answers = await asyncio.gather(
        *(
            recovered(target, f"pressed {i}", request, Random(i), late_s=0.01 * (i % 3))
            for i in range(10)  # two blocks each, of the seventeen
        )
    )

    assert (await target.figures())["preemptions"] > before
    assert sum(rejections for _, rejections in answers) > 10 * 10
    assert [tokens for tokens, _ in answers] == [alone] * 10
    assert (await target.figures())["sessions"] == 0
