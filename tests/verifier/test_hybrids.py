"""The embedded target on models with recurrent layers: what it promises, as on other models.

The models are made here, with random weights. They are tiny, and nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from gateway.ports import opening
from local_models.errors import CannotOpen
from speculation.messages import Draft
from speculation.model_facts import Limits, TokenId
from speculation.wire import Framed
from tests.local_models.llama_cpp.hybrids import ARCHITECTURES, ROLLBACK, write
from tests.verifier.down import begun, replies_of
from tests.verifier.served_llama import (
    LONG,
    PROMPTS,
    TEMPERATURES,
    job_of,
    plain,
    serving,
    tokens_of,
    with_drafts,
)
from tests.verifier.target_promises import (  # noqa: F401
    test_a_draft_token_that_was_rejected_elsewhere_is_not_judged_anew,
    test_a_session_goes_on_after_committed_tokens_as_if_it_had_generated_them,
    test_drafts_do_not_change_the_text,
    test_separate_runs_end_to_end,
    test_sessions_beyond_the_slots_wait_their_turn,
    test_sessions_side_by_side_do_not_change_each_other,
    test_the_next_turn_reads_only_what_is_new_and_generates_the_same,
)
from verifier.host import Host
from verifier.llama_target.pass_part import PassPart
from verifier.llama_target.pass_runner import PassRunner
from verifier.settings import LlamaSettings

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

LIMITS = Limits(max_verify=8)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ROLLBACK)
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    path = write(request.param, tmp_path_factory.mktemp("hybrid") / "model.gguf")
    async with serving(path, LIMITS) as opened:
        yield opened


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


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_a_session_that_ends_during_a_pass_can_be_resumed(
    host: Host, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot keeps nothing that the pass has read and nobody has judged."""
    target, job = host.ready(), job_of(host, PROMPTS[0], temperature, min_tokens=24)
    text = await plain(host, job)
    request = replace(opening(job, target.facts), committed=tuple(text[:7]))
    engine, loop = target._engine, asyncio.get_running_loop()  # type: ignore[attr-defined]
    run, has_read, is_closed = engine.run, asyncio.Event(), threading.Event()

    def slow_run(parts: Sequence[PassPart]) -> object:
        outcome = run(parts)
        loop.call_soon_threadsafe(has_read.set)
        is_closed.wait(60.0)
        return outcome

    monkeypatch.setattr(engine, "run", slow_run)
    session = replies_of(target, "begun", replace(request, fill="never"))
    reply = asyncio.create_task(anext(session))
    await begun()
    await target.push("begun", Framed(Draft(7, 7, 0, (text[7], 9, 9))))
    await has_read.wait()
    reply.cancel()
    await asyncio.wait([reply])
    await session.aclose()
    is_closed.set()
    monkeypatch.setattr(engine, "run", run)

    assert await tokens_of(host, "resumed", request) == text[7:]


async def test_another_answer_to_a_prompt_reads_little_of_it_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does a next turn that shows less of the first answer."""
    first = job_of(host, LONG, 0.0, min_tokens=24)
    other = replace(first, prompt=(*first.prompt[:-3], *first.prompt[:40]))
    texts = [await plain(host, other), await plain(host, first)]
    engine, read = host.ready()._engine, list[int]()  # type: ignore[attr-defined]
    prefill = engine.prefill
    monkeypatch.setattr(
        engine, "prefill", lambda *given: (read.append(len(given[2])), prefill(*given))
    )

    again = [await plain(host, other), await plain(host, first)]

    assert again == texts
    assert sum(read) < 40 + 3 * 32


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {*ROLLBACK}))
async def test_what_cannot_be_taken_back_is_refused_by_its_name(
    architecture: str, tmp_path: Path
) -> None:
    path = write(architecture, tmp_path / "model.gguf")

    with pytest.raises(CannotOpen, match=f"the recurrent layers of {architecture} back"):
        PassRunner(path, LlamaSettings(threads=1), max_rows=9)
