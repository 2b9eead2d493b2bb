"""The embedded target on a real model: no draft and no other session changes the text."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import llama_cpp
import numpy as np
import pytest

from gateway.errors import Overloaded
from gateway.ports import opening
from local_models.store import open_store
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.judges import JUDGES
from speculation.messages import Commit, Draft, Finish, Open, Reject, TokenLogprob
from speculation.model_facts import Limits, TokenId
from speculation.wire import Framed
from tests.verifier.down import begun, replies_of
from tests.verifier.served_llama import (
    LONG,
    PROMPTS,
    TEMPERATURES,
    TOKENS,
    Drafter,
    draft_half_right,
    job_of,
    late,
    patchy,
    perfect,
    plain,
    serving,
    useless,
    with_drafts,
)
from verifier.host import Host
from verifier.plain_engine import PlainEngine
from verifier.target import TargetFull

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

SHAPED: dict[str, object] = {
    "presence_penalty": 0.8,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {28: 5.0, 30: -100.0, 198: 2.0},
    "min_tokens": 12,
}
TOLERANCE = 1e-5
BUDGET: dict[str, object] = {"thinking_budget": {"tokens": 6, "closing": 9}}


async def test_kv_use_is_that_of_the_sessions_that_run(host: Host) -> None:
    target, job = host.ready(), job_of(host, PROMPTS[0], 0.0)
    deltas = PlainEngine(host).generate(job)
    async with aclosing(deltas):
        await anext(deltas)
        running = target._kv_usage()  # type: ignore[attr-defined]

    assert len(job.prompt) <= running * 4 * 512 <= len(job.prompt) + TOKENS
    assert target._kv_usage() == 0.0  # type: ignore[attr-defined]


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


async def test_what_the_machine_has_learned_can_be_read(host: Host) -> None:
    deltas = PlainEngine(host).generate(job_of(host, PROMPTS[0], 0.0))
    async with aclosing(deltas):
        await anext(deltas)
        (learned,) = await host.ready().learned_statistics()

    assert isinstance(learned["pass_s"], dict)
    assert 0.0 < learned["pass_s"]["1"] < 60.0
    assert len(learned["sessions"]) == 1  # type: ignore[arg-type]
    json.dumps(learned, allow_nan=False)


async def test_settings_change_the_text_and_a_budget_changes_what_follows_it(
    host: Host,
) -> None:
    free, shaped, ended = [
        await plain(host, job_of(host, PROMPTS[0], 0.0, **extras))
        for extras in ({}, SHAPED, BUDGET)
    ]

    assert free != shaped
    assert ended[:7] == [*free[:6], 9]
    assert len(ended) > 7


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


async def test_padded_passes_are_exact_where_kernels_round_by_the_number_of_rows() -> None:
    """Without flash attention they do so on processors, as on devices with it."""
    limits = Limits(max_verify=6)
    async with serving(limits=limits, flash_attention="off", exact="strict") as host:
        (learned,) = await host.ready().learned_statistics()
        job = replace(job_of(host, PROMPTS[0], 1.0), extras={"min_tokens": 20})
        request = opening(job, host.ready().facts)
        whole = await said_with_logprobs(host, request)
        committed = tuple(token for token, _ in whole[:9])
        rest = await said_with_logprobs(host, replace(request, committed=committed))
        text = [token for token, _ in whole]
        patched, finish = await with_drafts(host, job, text, patchy, "padded")

    assert learned["rounding"]["equal_rows"] < 7  # type: ignore[index]
    assert rest == whole[9:]
    assert patched == text
    assert finish.totals.accepted


async def said_with_logprobs(host: Host, request: Open) -> list[tuple[TokenId, TokenLogprob]]:
    """Return the tokens that a session without drafts commits, and their log-probabilities."""
    said: list[tuple[TokenId, TokenLogprob]] = []
    async with aclosing(replies_of(host.ready(), "committed", request)) as replies:
        async for reply in replies:
            if isinstance(commit := reply.message, Commit):
                assert commit.start == len(request.committed) + len(said)
                said += zip(commit.tokens, commit.logprobs or (), strict=True)
    return said


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


async def test_one_seed_gives_one_text_and_another_seed_another(host: Host) -> None:
    texts = [await plain(host, job_of(host, PROMPTS[1], 1.0, seed)) for seed in (1, 1, 2)]

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


async def test_logprobs_are_those_of_the_raw_logits(host: Host) -> None:
    deltas = PlainEngine(host).generate(job_of(host, PROMPTS[0], 0.0))
    async with aclosing(deltas):
        found = [
            (token, said)
            async for delta in deltas
            for token, said in zip(delta.tokens, delta.logprobs or (), strict=True)
        ]

    assert len(found) > 5
    for token, said in found:
        assert said.top[0] == (token, said.logprob)
        assert said.top[1][1] <= said.logprob <= 0.0


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
        await asyncio.sleep(0.1)
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


async def test_a_closed_session_frees_its_slot_even_while_it_waits_or_prefills(
    host: Host,
) -> None:
    target = host.ready()
    request = opening(job_of(host, LONG, 0.0), target.facts)
    sessions = [replies_of(target, f"s{i}", request) for i in range(5)]
    first = [asyncio.create_task(anext(session)) for session in sessions]
    await asyncio.sleep(0.03)
    with pytest.raises(TargetFull):
        await anext(replies_of(target, "one too many", request))
    for task in reversed(first):
        task.cancel()
    await asyncio.wait(first)

    assert target._slots == {}  # type: ignore[attr-defined]
    assert target._kv_slots.free == 4  # type: ignore[attr-defined]
    assert await plain(host, job_of(host, PROMPTS[0], 0.0)) != []


async def scored(host: Host, prompt: Sequence[TokenId], most: int = 2) -> list[TokenLogprob]:
    """Return what a prompt's tokens get, each but the first."""
    job = replace(job_of(host, "", 0.0), prompt=tuple(prompt), max_tokens=0)
    deltas = PlainEngine(host).generate(replace(job, prompt_logprobs=most))
    async with aclosing(deltas):
        (delta,) = [delta async for delta in deltas]
    assert (delta.tokens, delta.finish) == ((), "length")
    return [*delta.prompt_logprobs]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_prompts_tokens_have_the_log_probabilities_of_its_logits(
    host: Host, prompt: str
) -> None:
    """As llama-cpp-python has them, in passes of other lengths, with its sums in float64. One
    pass over all would not be as near: attention rounds differently from 64 rows on."""
    tokens = job_of(host, prompt, 0.0).prompt
    path = open_store(os.environ).find("smollm2", "target").path
    reference = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=63, n_threads=1,
        logits_all=True, flash_attn=True, verbose=False,
    )  # fmt: skip
    reference.eval(tokens)
    logits = np.array(reference.scores[: len(tokens)], np.float64)
    reference.close()
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    found = await scored(host, tokens)

    assert len(found) == len(tokens) - 1
    for row, token, said in zip(expected, tokens[1:], found, strict=False):
        assert said.logprob == pytest.approx(row[token], abs=TOLERANCE)
        assert [p for _, p in said.top] == pytest.approx(np.sort(row)[:-3:-1], abs=TOLERANCE)


async def test_a_prompts_token_has_what_generation_reports_whatever_runs_beside_it(
    host: Host,
) -> None:
    job = job_of(host, LONG, 0.0)
    said = await said_with_logprobs(host, opening(job, host.ready().facts))
    text = (*job.prompt, *(token for token, _ in said))
    alone = await scored(host, text)

    *together, other = await asyncio.gather(
        scored(host, text), scored(host, text), plain(host, job_of(host, PROMPTS[1], 0.0))
    )

    assert alone[len(job.prompt) - 1 :] == [logprob for _, logprob in said]
    assert together == [alone, alone]
    assert other == await plain(host, job_of(host, PROMPTS[1], 0.0))
