"""The gateway's port at the edge, over a scripted verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType

import msgspec
import pytest

from edge_agent.driver import EdgeSession
from edge_agent.engine import MAX_DELTAS
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, EngineFault, Unavailable
from gateway.ports import Job, Statistics
from speculation.messages import (
    Commit,
    Down,
    Finish,
    Open,
    Sampling,
    TokenLogprob,
    Totals,
)
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    OPENED,
    FakeVerifiers,
    OneSlot,
    Paired,
    ScriptedLink,
    deltas,
    engine,
    on,
    opened,
    scripted,
)

SEPARATE = EdgeSettings(judge="separate")


async def test_the_facts_are_the_verifiers() -> None:
    facts = await engine(FakeVerifiers(scripted())).facts()

    assert (facts.model, facts.context_tokens) == ("big", 512)
    assert facts.stop_tokens == {7}
    assert facts.features == {"logit_bias", "prediction"}


async def test_a_judge_the_verifier_does_not_have_is_a_fault() -> None:
    with pytest.raises(EngineFault, match="separate"):
        await engine(FakeVerifiers(scripted()), settings=SEPARATE).facts()


async def test_separate_with_another_vocabulary_is_a_fault_that_names_the_setting() -> None:
    known = msgspec.structs.replace(FACTS, judges=["coupled", "separate"])
    verifiers, cross_vocabulary = FakeVerifiers(scripted(), known), Paired("different")

    with pytest.raises(EngineFault, match=r"judge: `separate` needs .* target's vocabulary"):
        await engine(verifiers, settings=SEPARATE, paired=cross_vocabulary).facts()
    await engine(verifiers, settings=SEPARATE).facts()


async def test_the_session_asks_for_what_the_job_wants() -> None:
    extras = MappingProxyType({"logit_bias": {"5": 1}})

    asked = await opened(Job("r", (1, 2), 20, Sampling(0.5, 0.1, 3, 0.9), 9, 4, extras))

    assert (asked.model, asked.vocabulary, asked.prompt) == ("big", "print", (1, 2))
    assert (asked.seed, asked.max_tokens, asked.stop_tokens) == (9, 20, (7,))
    wanted = asked.sampling
    assert (wanted.temperature, wanted.min_p, wanted.top_k, wanted.top_p) == (0.5, 0.1, 3, 0.9)
    assert bytes(wanted.extras["logit_bias"]) == b'{"5":1}'
    assert (asked.judge, asked.fill, asked.top_logprobs) == ("coupled", "auto", 4)


async def test_statistics_grow_and_the_finish_sets_them_right() -> None:
    script = scripted(
        Commit(0, 0, (3, 4, 90), accepted=2, pass_s=0.1),
        Commit(0, 3, (91,), pass_s=0.1),
        Finish("length", Totals(passes=3, judged=6, accepted=2, filled=1)),
    )

    received = await deltas(engine(FakeVerifiers(script)).generate(JOB))

    assert [delta.tokens for delta in received] == [(3, 4, 90), (91,), ()]
    assert received[1].statistics == Statistics(Totals(2, 2, 2, 1), (1, 1))
    assert received[2].finish == "length"
    assert received[2].statistics == Statistics(Totals(3, 6, 2, 1), (1, 1))


async def test_log_probabilities_are_passed_on() -> None:
    logprobs = (TokenLogprob(-0.5, ((3, -0.5), (4, -2.0))),)
    verifiers = FakeVerifiers(scripted(Commit(0, 0, (3,), logprobs=logprobs), Finish("length")))

    received = await deltas(engine(verifiers).generate(replace(JOB, top_logprobs=2)))

    assert received[0].logprobs is not None
    assert received[0].logprobs[0].top == ((3, -0.5), (4, -2.0))


@pytest.mark.parametrize("error", [Unavailable("gone"), EngineFault("another vocabulary")])
async def test_the_slot_is_left_at_the_end_and_on_an_error(error: ApiError) -> None:
    async def die(_: ScriptedLink) -> None:
        raise error

    well, ill, verifiers = OneSlot(), OneSlot(), FakeVerifiers(scripted(die))
    await opened(drafter=well)
    with pytest.raises(type(error)):
        await deltas(engine(verifiers, drafter=ill).generate(JOB))

    assert (well.slot.left, ill.slot.left) == (1, 1)
    assert verifiers.forgotten == 1


async def test_a_prompt_that_was_made_for_another_model_is_not_sent() -> None:
    known = msgspec.structs.replace(FACTS, identity="now")
    verifiers = FakeVerifiers(scripted(), known)

    with pytest.raises(Unavailable, match="another one"):
        await deltas(engine(verifiers).generate(replace(JOB, identity="before")))

    assert verifiers.opened == []
    await opened(replace(JOB, identity="now"), known=known)


async def test_a_prompt_for_an_adapter_is_sent_to_that_adapter() -> None:
    adapters = {"other": "of-other", "styled": "of-styled"}
    known = msgspec.structs.replace(FACTS, identity="now", adapters=adapters)

    asked = await opened(replace(JOB, identity="of-styled"), known=known)

    assert (asked.model, asked.identity) == ("styled", "of-styled")


async def test_no_token_is_lost_with_a_session_while_a_slow_client_keeps_them_waiting() -> None:
    lost, last = asyncio.Event(), MAX_DELTAS + 1  # one is read, and the last finds no room

    async def first(link: ScriptedLink) -> AsyncGenerator[Down]:
        yield OPENED
        for position in range(last + 1):
            if position == last:
                asyncio.get_running_loop().call_later(0.01, lost.set)
            yield Commit(0, position, (100 + position,))

    class Postless(ScriptedLink):
        async def post(self) -> None:
            await lost.wait()
            raise Unavailable("no way up")

    class TwoSessions(FakeVerifiers):
        def open(self, request: Open) -> EdgeSession:
            self.opened.append(request)
            after = Commit(0, last + 1, (101 + last,)), Finish("stop")
            return ScriptedLink(scripted(*after)) if request.committed else Postless(first)

        async def again(self, session: EdgeSession, error: ApiError) -> None:
            pass

    verifiers = TwoSessions(scripted())
    stream = engine(verifiers).generate(JOB)
    received = [await anext(stream)]
    await lost.wait()
    await asyncio.sleep(0.01)
    received += await deltas(stream)

    assert [t for d in received for t in d.tokens] == list(range(100, 102 + last))
    assert len(verifiers.opened) == 2


async def test_closing_early_cancels_the_session_and_leaves_no_task() -> None:
    endless, drafter = scripted(Commit(0, 0, (3,)), on(asyncio.Event())), OneSlot()
    verifiers = FakeVerifiers(endless)
    stream = engine(verifiers, drafter=drafter).generate(JOB)

    async with asyncio.timeout(2), aclosing(stream):
        await anext(stream)

    assert verifiers.link.closed == 1
    assert drafter.slot.left == 1
    assert len(asyncio.all_tasks()) == 1
