"""What the embedded target promises on each model, for test files that serve the models."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from gateway.errors import Overloaded
from gateway.ports import opening
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.judges import JUDGES
from speculation.messages import Draft, Finish, Reject
from speculation.wire import Framed
from tests.verifier.down import begun, replies_of
from tests.verifier.served_llama import (
    LONG,
    PROMPTS,
    TEMPERATURES,
    Drafter,
    draft_half_right,
    job_of,
    late,
    patchy,
    perfect,
    plain,
    said_with_logprobs,
    serving,
    useless,
    with_drafts,
)
from verifier.host import Host

SHAPED: dict[str, object] = {
    "presence_penalty": 0.8,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {28: 5.0, 30: -100.0, 198: 2.0},
    "min_tokens": 12,
}
BUDGET: dict[str, object] = {"thinking_budget": {"tokens": 6, "closing": 9}}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("extras", [{}, SHAPED, BUDGET], ids=["plain", "shaped", "budget"])
@pytest.mark.parametrize("drafter", [perfect, useless, patchy, late])
async def test_drafts_do_not_change_the_text(
    host: Host, drafter: Drafter, extras: dict[str, object], temperature: float
) -> None:
    job = job_of(host, PROMPTS[0], temperature, **extras)
    text = await plain(host, job)

    said, finish = await with_drafts(host, job, text, drafter, "alone")

    assert said == text
    assert len(text) > 5
    if drafter is perfect:
        assert finish.totals.accepted == finish.totals.judged >= len(text) // 2
        assert finish.totals.passes <= (len(text) + 1) // 2


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("prompt", [PROMPTS[0], LONG])
async def test_a_session_goes_on_after_committed_tokens_as_if_it_had_generated_them(
    host: Host, prompt: str, temperature: float
) -> None:
    job = job_of(host, prompt, temperature)
    request = opening(replace(job, extras={"min_tokens": 20}), host.ready().facts)
    whole = await said_with_logprobs(host, request)

    for known in (1, len(whole) // 2, len(whole) - 1):
        committed = tuple(token for token, _ in whole[:known])
        rest = await said_with_logprobs(host, replace(request, committed=committed))

        assert rest == whole[known:]


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_sessions_side_by_side_do_not_change_each_other(
    host: Host, temperature: float
) -> None:
    jobs = [job_of(host, prompt, temperature) for prompt in PROMPTS]
    texts = [await plain(host, job) for job in jobs]

    together = await asyncio.gather(
        *(
            with_drafts(host, job, text, drafter, f"session {i}")
            for i, (job, text, drafter) in enumerate(
                zip(jobs, texts, (perfect, useless, patchy, late), strict=True)
            )
        )
    )

    assert [said for said, _ in together] == texts


async def test_separate_runs_end_to_end(host: Host) -> None:
    """An edge that draws from a poor distribution of its own recovers from rejections: at
    temperature 0 the text is the plain one, whatever is drawn."""
    target = host.ready()
    job = job_of(host, PROMPTS[3], 0.0)
    text = await plain(host, job)
    request = replace(
        opening(job, target.facts), judge="separate", fill="never", top_logprobs=None
    )
    half = JUDGES["separate"].edge(request, iter(np.random.default_rng(3).random, None))
    machine = DraftMachine(
        request, StreamPolicy(), target.facts.limits, half, rtt_s=lambda: 0.0
    )
    edge, rejected = machine.session, 0
    async with aclosing(replies_of(target, "separate", request)) as session:
        coming = asyncio.create_task(anext(session))
        await begun()
        await draft_half_right(target, edge, text)
        while not isinstance(message := (await coming).message, Finish):
            coming = asyncio.create_task(anext(session))
            rejected += isinstance(message, Reject)
            for answer in machine.received(message).send:
                await target.push("separate", Framed(answer))
            await draft_half_right(target, edge, text)

    assert rejected > 0
    assert message.totals.accepted > 0
    assert message.totals.filled <= 1  # the last position has no room for a draft
    assert edge.committed == text


async def test_a_draft_token_that_was_rejected_elsewhere_is_not_judged_anew(host: Host) -> None:
    target, job = host.ready(), job_of(host, PROMPTS[3], 0.0)
    text = await plain(host, job)
    request = replace(
        opening(job, target.facts), judge="separate", committed=tuple(text[:2]), rejected=True
    )
    async with aclosing(replies_of(target, "moved", request)) as session:
        coming = asyncio.create_task(anext(session))
        await begun()
        await target.push("moved", Framed(Draft(5, 2, 0, (text[2], 7), (1, 1))))

        assert (await coming).message == Reject(5, 2, 0, ((text[2], 1.0),), 0.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_the_next_turn_reads_only_what_is_new_and_generates_the_same(
    host: Host, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was rejected in the first turn."""
    engine = host.ready()._engine  # type: ignore[attr-defined]
    read: list[int] = []
    prefill = engine.prefill
    monkeypatch.setattr(
        engine, "prefill", lambda *given: (read.append(len(given[2])), prefill(*given))
    )
    first = job_of(host, LONG, temperature)
    said, _ = await with_drafts(host, first, await plain(host, first), patchy, "turn 1")
    more = host.ready().tokenizer.encode(" And then?")
    second = replace(first, prompt=(*first.prompt, *said, *more))
    await host.ready().heartbeat()  # a recurrent model's sequence is freed in the thread

    read.clear()
    text = await plain(host, second)

    assert sum(read) == len(more)  # the last generated token, and all but the last of these
    async with serving(engine.model.path) as fresh:
        assert text == await plain(fresh, second)


async def test_sessions_beyond_the_slots_wait_their_turn(host: Host) -> None:
    """Five for four slots, and one that is too many."""
    jobs = [job_of(host, PROMPTS[0], 0.0)] * 5
    together = [asyncio.create_task(plain(host, job)) for job in jobs]
    await begun()
    with pytest.raises(Overloaded):
        await plain(host, jobs[0])

    texts = await asyncio.gather(*together)

    assert texts == [texts[0]] * 5
