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

from gateway.ports import opening
from local_models.store import open_store
from speculation.messages import TokenLogprob
from speculation.model_facts import Limits, TokenId
from tests.verifier.down import begun, replies_of
from tests.verifier.served_llama import (
    LONG,
    PROMPTS,
    TOKENS,
    job_of,
    patchy,
    plain,
    said_with_logprobs,
    serving,
    with_drafts,
)
from tests.verifier.target_promises import (  # noqa: F401
    BUDGET,
    SHAPED,
    test_a_draft_token_that_was_rejected_elsewhere_is_not_judged_anew,
    test_a_session_goes_on_after_committed_tokens_as_if_it_had_generated_them,
    test_drafts_do_not_change_the_text,
    test_separate_runs_end_to_end,
    test_sessions_beyond_the_slots_wait_their_turn,
    test_sessions_side_by_side_do_not_change_each_other,
    test_the_next_turn_reads_only_what_is_new_and_generates_the_same,
)
from verifier.host import Host
from verifier.plain_engine import PlainEngine
from verifier.target import TargetFull

pytestmark = [pytest.mark.models, pytest.mark.asyncio(loop_scope="module")]

TOLERANCE = 1e-5


async def test_kv_use_is_that_of_the_sessions_that_run(host: Host) -> None:
    target, job = host.ready(), job_of(host, PROMPTS[0], 0.0)
    deltas = PlainEngine(host).generate(job)
    async with aclosing(deltas):
        await anext(deltas)
        running = target._kv_usage()  # type: ignore[attr-defined]

    assert len(job.prompt) <= running * 4 * 512 <= len(job.prompt) + TOKENS
    assert target._kv_usage() == 0.0  # type: ignore[attr-defined]


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


async def test_a_closed_session_frees_its_slot_even_while_it_waits_or_prefills(
    host: Host,
) -> None:
    target = host.ready()
    request = opening(job_of(host, LONG, 0.0), target.facts)
    sessions = [replies_of(target, f"s{i}", request) for i in range(5)]
    first = [asyncio.create_task(anext(session)) for session in sessions]
    await begun()
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


@pytest.mark.parametrize(
    "prompt",
    [PROMPTS[0], *(pytest.param(each, marks=pytest.mark.long) for each in PROMPTS[1:])],
)
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
