"""The gateway's port at the edge, over a scripted verifier: what it asks, tells and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from threading import get_ident
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.draft.cross_vocabulary_sampler import CrossVocabularySampler
from edge_agent.draft.drafter import NoDrafter, step_sampler
from edge_agent.draft.token_mapping import Translation
from edge_agent.engine import MAX_DELTAS
from edge_agent.metrics import EdgeMetrics
from edge_agent.pace import Pace
from edge_agent.settings import EdgeSettings
from gateway.errors import ApiError, EngineFault, Unavailable
from gateway.ports import Delta, Job, Statistics, opening
from gateway.watching import ChainEvent, Event, LinkUse, PassEvent
from local_models.tokenizer import Tokenizer
from speculation import coupled
from speculation.messages import (
    Commit,
    Down,
    Fill,
    Finish,
    Sampling,
    TokenLogprob,
    Totals,
)
from speculation.model_facts import TokenId
from tests.edge_agent.cross_vocabulary import WordEncoder
from tests.edge_agent.fakes import (
    FACTS,
    JOB,
    OPENED,
    CountingSlot,
    FakeVerifiers,
    OneSlot,
    Paired,
    ScriptedLink,
    deltas,
    engine,
    let,
    on,
    opened,
    quiet,
    scripted,
    sent,
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
    verifiers, cross_vocabulary = FakeVerifiers(scripted(), known=known), Paired("different")

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
    logprobs = (TokenLogprob(-0.5, ((3, -0.5), (4, -2.0))),) * 3
    script = scripted(
        Commit(0, 0, (3, 4, 90), accepted=2, pass_s=0.1, logprobs=logprobs),
        Commit(0, 3, (91,), pass_s=0.1),
        Finish("length", Totals(passes=3, judged=6, accepted=2, filled=1)),
    )

    received = await deltas(
        engine(FakeVerifiers(script)).generate(replace(JOB, top_logprobs=2))
    )

    assert [delta.tokens for delta in received] == [(3, 4, 90), (91,), ()]
    assert received[0].logprobs == logprobs
    assert received[1].statistics == Statistics(Totals(2, 2, 2, 1), (1, 1))
    assert received[2].finish == "length"
    assert received[2].statistics == Statistics(Totals(3, 6, 2, 1), (1, 1))


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
    verifiers = FakeVerifiers(scripted(), known=known)

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

    verifiers = FakeVerifiers(
        Postless(first), scripted(Commit(0, last + 1, (101 + last,)), Finish("stop"))
    )
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


# Its sessions draft, and what they did is counted.

PIECES = [bytes([65 + token // 26, 97 + token % 26]) for token in range(101)]
SHIFTED = Translation(
    Tokenizer(WordEncoder(PIECES[:100], special={0}), None),
    WordEncoder(PIECES[1:], special={99}),
)
"""The draft model's tokens have lower numbers by one."""

STEPS = "picospec:edge_draft_step_seconds"


async def test_only_where_every_token_can_be_drafted_the_verifier_may_wait_for_drafts() -> None:
    waits = EdgeSettings(fill="never")

    assert (await opened(JOB, waits, OneSlot())).fill == "never"
    assert (await opened(JOB, waits, NoDrafter())).fill == "auto"


@pytest.mark.parametrize(
    ("paired", "context"),
    [
        (Paired("identical"), [50, 51, 52]),
        (Paired("padded"), [50, 51, 52]),
        (Paired("different"), None),
        (Paired(None), None),
        (Paired("different", SHIFTED), [49, 50, 51]),
    ],
    ids=["identical", "padded", "different", "unknown", "translated"],
)
async def test_the_draft_model_reads_the_prompt_in_its_own_tokens(
    paired: Paired, context: list[int] | None
) -> None:
    verifiers, drafter = FakeVerifiers(scripted(quiet, Finish("stop"))), OneSlot()

    await deltas(engine(verifiers, drafter=drafter, paired=paired).generate(JOB))

    assert drafter.slot.contexts[:1] == ([] if context is None else [context])


async def test_a_prompt_is_translated_once_for_all_choices_and_by_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, translate = list[int](), SHIFTED.prompt

    def noted(tokens: Sequence[TokenId]) -> list[int]:
        threads.append(get_ident())
        return translate(tokens)

    monkeypatch.setattr(SHIFTED, "prompt", noted)
    verifiers = FakeVerifiers(scripted(quiet, Finish("stop")))
    edge = engine(verifiers, paired=Paired("different", SHIFTED))

    await asyncio.gather(*(deltas(edge.generate(JOB)) for _ in range(8)))

    assert len(threads) == 1
    assert threads[0] != get_ident()


async def test_a_other_vocabularys_draft_model_may_propose_all_of_the_targets_tokens() -> None:
    verifiers, drafter, known = FakeVerifiers(scripted(quiet, Finish("stop"))), OneSlot(), 10
    cross_vocabulary = Paired("different", SHIFTED)
    edge = engine(verifiers, drafter=drafter, paired=cross_vocabulary, draft_tokens=known)

    await deltas(edge.generate(JOB))

    assert drafter.slot.sampler is not None
    draw = drafter.slot.sampler([])
    assert isinstance(draw, CrossVocabularySampler)
    likely = np.eye(1, FACTS.vocabulary_size, known + 5, dtype=np.float32)[0] * 50
    assert draw.sampler([])(likely, 0).token == known + 5


@pytest.mark.parametrize("fill", ["never", "auto"])
async def test_where_the_verifier_waits_for_drafts_the_edge_never_pauses(fill: Fill) -> None:
    misses = (step for at in range(60) for step in (Commit(0, at, (900,), pass_s=0.1), quiet))
    verifiers = FakeVerifiers(scripted(*misses, Finish("length")))
    edge = engine(verifiers, settings=EdgeSettings(fill=fill))

    await deltas(edge.generate(replace(JOB, max_tokens=60)))

    chains = len({message.epoch for message in verifiers.link.sent})
    assert (chains >= 59) is (fill == "never")  # a pause would have both ends wait


async def test_draft_tokens_and_stale_steps_are_counted_at_the_end() -> None:
    metrics = EdgeMetrics(registry := CollectorRegistry())
    landed, stepping = asyncio.Event(), asyncio.Event()

    async def wait(context: Sequence[TokenId]) -> None:
        if len(context) == 5:
            stepping.set()
            await landed.wait()

    script = scripted(on(stepping), Commit(0, 0, (99,)), let(landed), quiet, Finish("stop"))
    drafter = OneSlot()
    drafter.slot = CountingSlot(wait=wait)

    await deltas(engine(FakeVerifiers(script), metrics, drafter).generate(JOB))

    assert metrics.stale._value.get() == 1
    assert metrics.accepted._value.get() == 0
    drafted = metrics.drafted._value.get()
    assert drafted == metrics.wasted._value.get() > 2
    assert len(drafter.slot.contexts) == drafted + 1
    assert registry.get_sample_value(f"{STEPS}_count") == drafted + 1


def test_the_target_alone_would_take_a_pass_of_one_row_for_each_token() -> None:
    times = iter((10.0, 10.5, 11.0))
    pace, untimed = Pace(times.__next__), Pace(float)
    prompt, judged = Commit(0, 0, (1,), pass_s=9.0), Commit(0, 1, (2, 3, 4), 3, pass_s=0.4)

    for commit in (prompt, judged, Commit(0, 4, (5,), pass_s=0.3)):
        pace.committed(commit)
    untimed.committed(Commit(0, 0, (1,)))

    assert pace.taken_s == 1.0
    assert pace.alone_s == pytest.approx(4 * 0.3)
    assert (untimed.taken_s, untimed.alone_s) == (0.0, 0.0)


async def test_what_an_answer_gains_is_counted_at_its_end(metrics: EdgeMetrics) -> None:
    first, second = Commit(0, 0, (7,), pass_s=0.5), Commit(0, 1, (8, 9), pass_s=0.25)
    finish = Finish("stop", Totals(passes=2))
    script = scripted(first, lambda _: asyncio.sleep(1.0), second, finish)

    await deltas(engine(FakeVerifiers(script), metrics, NoDrafter()).generate(JOB))

    assert (metrics.passes._value.get(), metrics.committed._value.get()) == (2, 3)
    assert metrics.alone_s._value.get() == 0.5
    assert metrics.answering_s._value.get() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "looks_up"),
    [
        (EdgeSettings(), True),
        (EdgeSettings(lookup=False), False),
        (EdgeSettings(judge="separate"), False),
    ],
)
async def test_without_a_slot_it_looks_up_repeated_text_unless_told_not_to(
    metrics: EdgeMetrics, settings: EdgeSettings, looks_up: bool
) -> None:
    verifiers = FakeVerifiers(scripted(Commit(0, 0, (51, 52, 53)), quiet, Finish("stop")))
    job = Job("r1", (51, 52, 53, 54, 55, 56), 20, Sampling(temperature=0.5), seed=9)

    await deltas(engine(verifiers, metrics, NoDrafter(), settings).generate(job))

    assert (verifiers.link.drafted[:3] == [54, 55, 56]) is looks_up
    assert (metrics.looked_up._value.get() > 0) is looks_up


async def test_an_answer_begins_with_what_the_last_one_learned_of_the_verifier() -> None:
    verifiers, drafter = FakeVerifiers(scripted(quiet, Finish("length"))), OneSlot()
    estimate = verifiers.verifier.speedups.draft
    estimate.cost, estimate.pause = 2.0, 100.0  # drafting has made its passes twice as long

    await deltas(engine(verifiers, drafter=drafter).generate(JOB))

    assert drafter.slot.contexts == []


# --- who watches an answer learns what happens, and nobody else does


WATCHED = replace(JOB, watched=True)
COMMIT = Commit(0, 0, (3, 4, 90), accepted=2, queue_s=0.003, pass_s=0.02)
FINISH = Finish("length", Totals(1, 4, 2, 0))


def kinds(events: tuple[Event, ...]) -> list[type]:
    return [type(event) for event in events]


async def test_the_chain_and_the_link_are_told_while_nothing_is_committed() -> None:
    seen = asyncio.Event()
    edge = engine(FakeVerifiers(scripted(sent(4), on(seen), COMMIT, FINISH)))
    received = list[Delta]()

    async with asyncio.timeout(2):
        async for delta in edge.generate(WATCHED):
            received.append(delta)
            if any(isinstance(e, ChainEvent) and e.tokens >= 4 for e in delta.events):
                seen.set()

    first = received[0]
    assert first.tokens == ()
    assert set(kinds(first.events)) == {ChainEvent, LinkUse}
    (committed,) = [delta for delta in received if delta.tokens]
    assert committed.origins == ("draft", "draft", "target")
    assert kinds(committed.events) == [PassEvent, ChainEvent]
    assert received[-1].finish == "length"
    assert received[-1].events == ()


async def test_an_answer_that_nobody_watches_has_tokens_only() -> None:
    edge = engine(FakeVerifiers(scripted(sent(4), quiet, COMMIT, FINISH)))

    received = await deltas(edge.generate(JOB))

    assert [delta.tokens for delta in received] == [(3, 4, 90), ()]
    assert all(delta.origins is None and not delta.events for delta in received)


async def test_an_error_is_raised_as_itself_and_the_looking_ends() -> None:
    async def lose(_: ScriptedLink) -> None:
        raise Unavailable("gone")

    edge = engine(FakeVerifiers(scripted(sent(2), lose)))

    with pytest.raises(Unavailable, match="gone"):
        await deltas(edge.generate(WATCHED))

    assert len(asyncio.all_tasks()) == 1


def test_a_request_cannot_have_a_token_drafted_that_the_draft_model_lacks() -> None:
    asked = replace(JOB, extras={"logit_bias": {"6": 100.0}})
    facts = msgspec.structs.replace(FACTS, vocabulary_size=8)
    draw = coupled.sampler(Sampling(temperature=0.0), 0, 1)
    sampler = step_sampler(opening(asked, facts), facts, draw, draft_tokens=5)

    drawn = sampler([])(np.arange(5, dtype=np.float32), 0)

    assert drawn.token == 4
