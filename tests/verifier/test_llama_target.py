"""The embedded target on real models: no draft and no other session changes the text.

Models with recurrent layers or a head are made here, with random weights, and tiny.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from gateway.errors import Overloaded
from gateway.ports import opening
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from local_models.store import open_store
from speculation.distributions import QuantisedDistribution
from speculation.draft_machine import DraftMachine
from speculation.draft_policy import StreamPolicy
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.judges import JUDGES
from speculation.messages import Draft, Finish, Reject, TokenLogprob
from speculation.model_facts import Limits, TokenId
from speculation.wire import Framed
from tests.local_models.conftest import pad
from tests.local_models.llama_cpp.hybrids import MTP, ROLLBACK
from tests.verifier.conftest import WITH_HEAD
from tests.verifier.down import begun, replies_of
from tests.verifier.served_llama import (
    LONG,
    PERSON,
    PROMPTS,
    TEMPERATURES,
    TOKENS,
    Drafter,
    go_on,
    job_of,
    late,
    patchy,
    perfect,
    plain,
    said,
    serving,
    useless,
    with_drafts,
)
from verifier.host import Host
from verifier.llama_target.pass_part import PassPart
from verifier.plain_engine import PlainEngine
from verifier.target import Target, TargetFull, UnknownSession

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

SMOLLM2 = pytest.param("smollm2", marks=pytest.mark.models)
HEADS = [name + WITH_HEAD for name in MTP]
on_smollm2 = pytest.mark.parametrize("host", [SMOLLM2], indirect=True)
without_a_head = pytest.mark.parametrize("host", [SMOLLM2, *ROLLBACK], indirect=True)
on_each_model = pytest.mark.parametrize("host", [SMOLLM2, *ROLLBACK, *HEADS], indirect=True)
at_each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)

SHAPED: dict[str, object] = {
    "presence_penalty": 0.8,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.2,
    "logit_bias": {28: 5.0, 30: -100.0, 198: 2.0},
    "min_tokens": 12,
}
BUDGET: dict[str, object] = {"thinking_budget": {"tokens": 6, "closing": 9}}
TOLERANCE = 1e-5


@without_a_head
@at_each_temperature
@pytest.mark.parametrize(
    "extras",
    [{}, SHAPED, BUDGET, {"structured_outputs": {"json": PERSON}}],
    ids=["plain", "shaped", "budget", "grammar"],
)
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


@without_a_head
@pytest.mark.parametrize("place", range(8))
async def test_a_rejection_at_any_place_of_a_draft_does_not_change_the_text(
    host: Host, place: int
) -> None:
    job = job_of(host, PROMPTS[0], 1.0, min_tokens=24)
    text = await plain(host, job)

    def wrong_once(text: Sequence[TokenId], at: int, _: np.random.Generator) -> Draft | None:
        tokens = [*text[at : at + 8]]
        if place < len(tokens):
            tokens[place] = (tokens[place] + 1) % 256
        return Draft(at, at, 0, tuple(tokens)) if tokens else None

    said, finish = await with_drafts(host, job, text, wrong_once, "wrong", is_judged=True)

    assert said == text
    assert finish.totals.judged > finish.totals.accepted >= 2 * place


@on_each_model
@at_each_temperature
@pytest.mark.parametrize("prompt", [PROMPTS[0], LONG], ids=["short", "long"])
async def test_a_session_goes_on_after_committed_tokens_as_if_it_had_generated_them(
    host: Host, prompt: str, temperature: float
) -> None:
    job = job_of(host, prompt, temperature)
    request = opening(replace(job, extras={"min_tokens": 20}), host.ready().facts)
    whole, _ = await said(host, request)

    await go_on(host, request, whole, 1, len(whole) // 2, len(whole) - 1)


@without_a_head
@at_each_temperature
async def test_a_session_that_ends_during_a_pass_can_be_resumed(
    host: Host, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot keeps nothing that the pass has read and nobody has judged."""
    target, job = host.ready(), job_of(host, PROMPTS[0], temperature, min_tokens=24)
    request = opening(job, target.facts)
    text, _ = await said(host, request)
    committed = tuple(token for token, _ in text[:7])
    engine, loop = target._engine, asyncio.get_running_loop()  # type: ignore[attr-defined]
    run, has_read, is_closed = engine.run, asyncio.Event(), threading.Event()

    def slow_run(parts: Sequence[PassPart]) -> object:
        outcome = run(parts)
        loop.call_soon_threadsafe(has_read.set)
        is_closed.wait(60.0)
        return outcome

    monkeypatch.setattr(engine, "run", slow_run)
    session = replies_of(target, "begun", replace(request, committed=committed, fill="never"))
    reply = asyncio.create_task(anext(session))
    await begun()
    await target.push("begun", Framed(Draft(7, 7, 0, (text[7][0], 9, 9))))
    await has_read.wait()
    reply.cancel()
    await asyncio.wait([reply])
    await session.aclose()
    is_closed.set()
    monkeypatch.setattr(engine, "run", run)

    await go_on(host, request, text, 7)


@on_each_model
@at_each_temperature
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


@on_each_model
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


async def draft_half_right(
    target: Target, edge: DraftingSession, text: Sequence[TokenId]
) -> None:
    """Extend the chain from a distribution that is half right, and send it."""
    while edge.may_extend and len(edge.chain) < 4:
        at = edge.end
        distribution = QuantisedDistribution(
            np.array([text[at % len(text)], 9]), np.array([1 << 15, 1 << 15])
        )
        edge.extend(
            DraftToken(
                distribution.at(0.75 if at % 3 == 2 else 0.25), confidence=0.5, q=distribution
            )
        )
    if draft := edge.flush():
        with suppress(UnknownSession):  # it may have finished by now
            await target.push("separate", Framed(draft))


@without_a_head
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


@pytest.fixture
def read(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of prompt tokens that the target reads, piece by piece."""
    engine, read = host.ready()._engine, list[int]()  # type: ignore[attr-defined]
    prefill = engine.prefill
    monkeypatch.setattr(
        engine, "prefill", lambda *given: (read.append(len(given[2])), prefill(*given))
    )
    return read


@on_each_model
@at_each_temperature
async def test_the_next_turn_reads_only_what_is_new_and_generates_the_same(
    host: Host, temperature: float, read: list[int]
) -> None:
    """Whatever was rejected in the first turn."""
    first = job_of(host, LONG, temperature)
    said, _ = await with_drafts(host, first, await plain(host, first), patchy, "turn 1")
    more = host.ready().tokenizer.encode(" And then?")
    second = replace(first, prompt=(*first.prompt, *said, *more))
    await host.ready().heartbeat()  # a recurrent model's sequence is freed in the thread

    read.clear()
    text = await plain(host, second)

    assert sum(read) == len(more)  # the last generated token, and all but the last of these
    async with serving(host.ready()._engine.model.path) as fresh:  # type: ignore[attr-defined]
        assert text == await plain(fresh, second)


@without_a_head
async def test_another_answer_to_a_prompt_reads_little_of_it_again(
    host: Host, read: list[int]
) -> None:
    """And so does a next turn that shows less of the first answer."""
    first = job_of(host, LONG, 0.0, min_tokens=24)
    other = replace(first, prompt=(*first.prompt[:-3], *first.prompt[:40]))
    texts = [await plain(host, other), await plain(host, first)]

    read.clear()
    again = [await plain(host, other), await plain(host, first)]

    assert again == texts
    assert sum(read) < 40 + 3 * 32


@on_each_model
async def test_sessions_beyond_the_slots_wait_their_turn(host: Host) -> None:
    """Five for four slots, and one that is too many."""
    jobs = [job_of(host, PROMPTS[0], 0.0)] * 5
    together = [asyncio.create_task(plain(host, job)) for job in jobs]
    await begun()
    with pytest.raises(Overloaded):
        await plain(host, jobs[0])

    texts = await asyncio.gather(*together)

    assert texts == [texts[0]] * 5


@on_smollm2
async def test_while_a_session_runs_its_kv_is_counted_and_what_was_learned_can_be_read(
    host: Host,
) -> None:
    target, job = host.ready(), job_of(host, PROMPTS[0], 0.0)
    deltas = PlainEngine(host).generate(job)
    async with aclosing(deltas):
        await anext(deltas)
        running = target._kv_usage()  # type: ignore[attr-defined]
        (learned,) = await target.learned_statistics()

    assert len(job.prompt) <= running * 4 * 512 <= len(job.prompt) + TOKENS
    assert target._kv_usage() == 0.0  # type: ignore[attr-defined]
    assert isinstance(learned["pass_s"], dict)
    assert 0.0 < learned["pass_s"]["1"] < 60.0
    assert len(learned["sessions"]) == 1  # type: ignore[arg-type]
    json.dumps(learned, allow_nan=False)


@on_smollm2
async def test_seeds_and_settings_change_the_text_and_a_budget_changes_what_follows_it(
    host: Host,
) -> None:
    free, shaped, ended = [
        await plain(host, job_of(host, PROMPTS[0], 0.0, **extras))
        for extras in ({}, SHAPED, BUDGET)
    ]
    one, again, other = [
        await plain(host, job_of(host, PROMPTS[1], 1.0, seed)) for seed in (1, 1, 2)
    ]

    assert free != shaped
    assert ended[:7] == [*free[:6], 9]
    assert len(ended) > 7
    assert one == again != other


@pytest.mark.models
async def test_padded_passes_are_exact_where_kernels_round_by_the_number_of_rows() -> None:
    """Without flash attention they do so on processors, as on devices with it."""
    limits = Limits(max_verify=6)
    async with serving(limits=limits, flash_attention="off", exact="strict") as host:
        (learned,) = await host.ready().learned_statistics()
        job = replace(job_of(host, PROMPTS[0], 1.0), extras={"min_tokens": 20})
        request = opening(job, host.ready().facts)
        whole, _ = await said(host, request)
        await go_on(host, request, whole, 9)
        text = [token for token, _ in whole]
        patched, finish = await with_drafts(host, job, text, patchy, "padded")

    assert learned["rounding"]["equal_rows"] < 7  # type: ignore[index]
    assert patched == text
    assert finish.totals.accepted


@on_smollm2
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


@on_smollm2
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
    for row, token, of_token in zip(expected, tokens[1:], found, strict=False):
        assert of_token.logprob == pytest.approx(row[token], abs=TOLERANCE)
        assert [p for _, p in of_token.top] == pytest.approx(
            np.sort(row)[:-3:-1], abs=TOLERANCE
        )


@on_smollm2
async def test_a_prompts_token_has_what_generation_reports_whatever_runs_beside_it(
    host: Host,
) -> None:
    job = job_of(host, LONG, 0.0)
    whole, _ = await said(host, opening(job, host.ready().facts))
    text = (*job.prompt, *(token for token, _ in whole))
    alone = await scored(host, text)

    *together, other = await asyncio.gather(
        scored(host, text), scored(host, text), plain(host, job_of(host, PROMPTS[1], 0.0))
    )

    assert alone[len(job.prompt) - 1 :] == [logprob for _, logprob in whole]
    assert together == [alone, alone]
    assert other == await plain(host, job_of(host, PROMPTS[1], 0.0))


# A padded vocabulary: no id past the tokens is ever drawn, and the text stays what it was.


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("padded") / "padded.gguf"
    pad(open_store(os.environ).find("smollm2", "target").path, target)
    return target


@pytest.mark.models
async def test_without_the_mask_padding_would_always_be_drawn(padded: Path) -> None:
    with closing(Model(padded)) as model, closing(Context(model, 128)) as context:
        tokens = len(model.vocabulary.pieces)
        context.decode([Segment(0, 0, model.tokenize(PROMPTS[0], False))])
        likeliest = [int(np.argmax(context.logits(row))) for row in range(4)]

    assert model.vocabulary.padding == tokens
    assert all(token >= tokens for token in likeliest)


@on_smollm2
async def test_the_text_is_that_of_the_unpadded_model(host: Host, padded: Path) -> None:
    jobs = [job_of(host, PROMPTS[0], temperature) for temperature in TEMPERATURES]
    async with serving(padded) as wide:
        texts = [await plain(wide, job) for job in jobs]
        padding = wide.ready().facts.padding

    assert (host.ready().facts.padding, padding) == (0, 49152)
    assert texts == [await plain(host, job) for job in jobs]
