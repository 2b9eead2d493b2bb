"""The draft model alone: what it says, and when it is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.app import open_verifiers
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.fallback import FEATURES, DraftEngine, is_away
from edge_agent.link.known_verifiers import Event
from edge_agent.metrics import EdgeMetrics
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, EngineFault, Overloaded, Unavailable
from gateway.ports import Delta, Job, opening
from speculation.distributions import Logits
from speculation.judges import seeded
from speculation.logits import adjustment
from speculation.messages import Sampling
from speculation.model_facts import Limits, ModelFacts
from speculation.noise import noise_index
from speculation.verify_session import Pass
from tests.edge_agent.fake_cache import FakeCache, V, truth
from tests.local_models.grammars.small import TOKENIZER
from verifier.llama_target.pass_part import PassPart, judge

PROMPT = (1, 2, 3)
STOP = 98
FACTS = ModelFacts("small", V, "d" * 32, 300, [STOP], Limits(), ["coupled"], list(FEATURES))
JOB = Job("r", PROMPT, 12, Sampling(temperature=0.0), 7)


@pytest.fixture
def engine(drafter: LlamaDrafter) -> DraftEngine:
    return DraftEngine(FACTS, drafter, None)  # type: ignore[arg-type]


async def deltas(engine: DraftEngine, asked: Job = JOB) -> list[Delta]:
    return [delta async for delta in engine.generate(asked)]


def tokens_of(found: list[Delta]) -> list[int]:
    return [token for delta in found for token in delta.tokens]


async def test_it_says_what_its_model_says_up_to_the_limit(engine: DraftEngine) -> None:
    found = await deltas(engine)

    context = list(PROMPT)
    for _ in range(12):
        context.append(truth(context))
    assert tokens_of(found) == context[3:]
    assert found[-1].finish == "length"
    assert found[-1].statistics is not None
    assert found[-1].statistics.target_passes == 12
    assert {delta.origins for delta in found if delta.tokens} == {("draft",)}


async def test_a_stop_token_ends_it(engine: DraftEngine) -> None:
    stop = truth([*PROMPT, truth(PROMPT)])

    found = await deltas(engine, replace(JOB, extras={"stop_token_ids": [stop]}))

    assert tokens_of(found) == [truth(PROMPT), stop]
    assert found[-1].finish == "stop"


async def test_its_answer_is_the_one_that_a_verifier_with_its_model_would_give(
    engine: DraftEngine, cache: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(context: list[int]) -> Logits:
        return np.random.default_rng(context).normal(size=V).astype(np.float32) * 3

    read: list[list[int]] = []

    def decode(segments: object) -> None:
        FakeCache.decode(cache, segments)  # type: ignore[arg-type]
        read[:] = [list(cache._held[0])]

    monkeypatch.setattr(cache, "decode", decode)
    monkeypatch.setattr(cache, "logits", lambda _: rows(read[0]))
    drawn, extras = Sampling(1.0, top_p=0.9), {"frequency_penalty": 0.5}
    asked = replace(JOB, sampling=drawn, extras=extras, top_logprobs=2)

    found = await deltas(engine, asked)

    request, expected, logprobs = opening(asked, FACTS), list[int](), []
    while len(expected) < 12 and STOP not in expected:
        context = [*PROMPT, *expected]
        rule = seeded(request.seed, noise_index(len(PROMPT), len(expected)))
        part = PassPart(
            0, len(context) - 1, context[-1], Pass(len(expected), (), rule), request,
            adjustment(request, vocabulary_size=V), tuple(expected),
        )  # fmt: skip
        verdict = judge(part, lambda _, context=context: rows(context))
        expected += verdict.judgement.tokens
        logprobs += verdict.logprobs or ()
    assert tokens_of(found) == expected
    given = [each for delta in found for each in delta.logprobs or ()]
    assert [(each.logprob, each.top) for each in given] == [
        (each.logprob, each.top) for each in logprobs
    ]


async def test_when_all_slots_are_taken_the_client_may_come_again(
    engine: DraftEngine, drafter: LlamaDrafter
) -> None:
    slots = [drafter.take([1]) for _ in range(4)]

    with pytest.raises(Overloaded):
        await deltas(engine)

    assert slots[0] is not None
    slots[0].leave()
    assert len(await deltas(engine)) == 13
    assert drafter.take([1]) is not None  # the answer has left its slot


@pytest.mark.system
async def test_where_no_grammar_can_be_tried_the_client_may_come_again(
    drafter: LlamaDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    asked = replace(JOB, extras={"structured_outputs": {"choice": ["a"]}})

    with pytest.raises(Overloaded, match="try again later"):
        await deltas(DraftEngine(FACTS, drafter, TOKENIZER), asked)


async def test_a_draft_model_that_fails_is_an_error(
    engine: DraftEngine, cache: FakeCache
) -> None:
    cache.broken = True

    with pytest.raises(Unavailable, match="the draft model failed") as raised:
        await deltas(engine)

    assert raised.value.error_code == "draft_model_failed"


class Verifiers:
    """Verifiers, and the target's tokenizer. error: what asking them raises."""

    def __init__(self, error: ApiError | None = None) -> None:
        self.error = error

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    async def facts(self) -> ModelFacts:
        return FACTS

    async def tokenizer(self, _: str) -> None:
        pass


async def away(verifiers: object) -> bool:
    return await is_away(verifiers, Verifiers().tokenizer)


async def test_a_verifier_that_cannot_be_reached_is_away() -> None:
    assert await away(Verifiers(Unavailable("away")))
    assert not await away(Verifiers())


async def test_it_may_be_away_though_it_answered_just_now() -> None:
    settings = EdgeSettings(verifier_urls=("http://127.0.0.1:9",))  # type: ignore[arg-type]
    verifiers = open_verifiers(settings, EdgeMetrics(CollectorRegistry()))
    verifiers.all[0].note(Event.IS_READY)

    assert await away(verifiers)
    await verifiers.close()


async def test_a_verifier_that_refuses_the_edge_is_no_verifier_that_is_away() -> None:
    refusing = Verifiers(EngineFault("the verifier refuses this edge's key"))

    with pytest.raises(EngineFault):
        await away(refusing)
