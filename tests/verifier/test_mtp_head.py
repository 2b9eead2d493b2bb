"""The head of the target's own file drafts on llama.cpp, and changes no text.

The models are made here, with random weights and a head that often agrees with them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from local_models.errors import CannotOpen
from local_models.llama_cpp.model import Model
from speculation.distributions import Logits
from speculation.messages import Finish, Sampling
from speculation.model_facts import Limits, TokenId
from speculation.verify_machine import Verdict
from speculation.verify_session import VerifyingSession
from tests.local_models.llama_cpp.hybrids import MTP, write
from tests.verifier.fake_target import opening
from tests.verifier.served_llama import (
    PROMPTS,
    TEMPERATURES,
    job_of,
    plain,
    serving,
    serving_head,
    with_drafts,
)
from verifier.host import Host
from verifier.llama_target.mtp_head import Pick
from verifier.llama_target.pass_part import PassPart
from verifier.llama_target.pass_runner import PassRunner
from verifier.llama_target.placing import Plan
from verifier.llama_target.scheduler import HEAD_TOKENS
from verifier.settings import LlamaSettings

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

LIMITS = Limits(max_verify=8)
SETTINGS = LlamaSettings(
    head="mtp", slots=2, threads=1, context_tokens=256, max_rows=32, prefill_rows=9
)
TEXT = tuple(int(token) for token in np.random.default_rng(3).integers(0, 256, 90))


@pytest.fixture(scope="module", params=MTP)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    return write(request.param, folder / "model.gguf", has_head=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(path: Path) -> AsyncIterator[Host]:
    async with serving_head(path, LIMITS) as opened:
        yield opened


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_texts_are_those_without_the_head_in_fewer_passes(
    path: Path, host: Host, temperature: float
) -> None:
    async with serving(path, LIMITS) as without:
        texts = [await plain(without, job_of(without, p, temperature)) for p in PROMPTS]
    jobs = [job_of(host, prompt, temperature) for prompt in PROMPTS]
    answers: list[tuple[list[TokenId], Finish]] = []

    for together in [*([job] for job in jobs), jobs]:
        sessions = [
            with_drafts(host, job, (), lambda *_: None, f"session {i}")
            for i, job in enumerate(together)
        ]
        answers += await asyncio.gather(*sessions)

    assert [committed for committed, _ in answers] == 2 * texts
    passes = sum(finish.totals.passes for _, finish in answers)
    assert passes < 0.7 * 2 * sum(map(len, texts))


@pytest.mark.parametrize("place", range(HEAD_TOKENS))
async def test_a_rejection_at_any_place_of_the_heads_tokens_does_not_change_the_text(
    host: Host, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(host, PROMPTS[0], 1.0, min_tokens=24)
    text = await plain(host, job)
    head = host.ready()._engine.head  # type: ignore[attr-defined]
    draft, prompt_tokens = head.draft, len(job.prompt)

    def wrong_once(picks: Mapping[int, Pick], count: int) -> dict[int, list[TokenId]]:
        at = head._texts[next(iter(picks))].end - prompt_tokens
        tokens = [*text[at:], 0, 0, 0, 0][:count]
        tokens[place] = (tokens[place] + 1) % 256
        return dict.fromkeys(draft(picks, count), tokens)

    monkeypatch.setattr(head, "draft", wrong_once)
    committed, finish = await with_drafts(host, job, text, lambda *_: None, "wrong")

    assert committed == text
    assert finish.totals.passes == 1 + math.ceil((len(text) - 1) / (place + 1))


class Observed:
    """A runner whose head's logits are kept as it drafts."""

    def __init__(self, path: Path) -> None:
        self.runner = PassRunner(path, SETTINGS, max_rows=9)
        self.seen: list[Logits] = []

    def reads(self, text: Sequence[TokenId], start: int = 0, most: int = 9) -> None:
        """Read a text but its last token."""
        for first in range(start, len(text) - 1, most):
            end = min(first + most, len(text) - 1)
            self.runner.prefill(0, first, text[first:end], text[end])

    def drafts(self) -> list[Logits]:
        def pick(logits: Logits, _: int) -> TokenId:
            self.seen.append(logits.copy())
            return int(logits.argmax())

        assert self.runner.head is not None
        self.runner.head.draft({0: pick}, 3)
        return self.seen[-3:]


@pytest.fixture
def observed(path: Path) -> Iterator[tuple[Observed, Observed]]:
    both = Observed(path), Observed(path)
    yield both
    for each in both:
        each.runner.close()


async def test_the_heads_state_is_the_same_however_a_text_was_read(
    observed: tuple[Observed, Observed],
) -> None:
    once, often = observed
    once.reads(TEXT)
    for start, end in ((0, 20), (19, 21), (20, 50), (49, len(TEXT))):
        often.reads(TEXT[:end], start, most=4)
        drafts = often.drafts()  # which leave nothing behind

    np.testing.assert_array_equal(drafts, once.drafts())


async def test_the_heads_state_after_passes_is_that_of_the_text_that_they_committed(
    observed: tuple[Observed, Observed],
) -> None:
    fresh, used = observed
    greedy = Sampling(temperature=0.0)
    request = opening(prompt=TEXT[:20], max_tokens=50, sampling=greedy, stop_tokens=())
    session = VerifyingSession(request, LIMITS, vocabulary_size=259, u=repeat(0.5))
    used.reads(text := [*TEXT[:20]])

    while len(text) < 50:
        begun = session.begin(0, head=3)
        judged = replace(begun, draft=tuple(int(row.argmax()) for row in used.drafts()))
        part = PassPart(0, len(text) - 1, text[-1], judged, request, None, ())
        ((verdict,), _) = used.runner.run([part])
        assert isinstance(verdict, Verdict)
        session.resolve(verdict.judgement)
        text = [*request.prompt, *session.committed]

    fresh.reads(text)
    np.testing.assert_array_equal(used.drafts(), fresh.drafts())
    assert 0 < session.totals.accepted < session.totals.judged


@pytest.mark.parametrize("others", [1, 10])
async def test_a_text_that_begins_like_the_one_before_leaves_none_of_that_to_the_head(
    observed: tuple[Observed, Observed], others: int
) -> None:
    fresh, used = observed
    used.reads((*TEXT[:18], *TEXT[60 : 60 + others]))
    used.drafts()
    used.runner.keep(0, TEXT[:18])
    fresh.runner.prefill(0, 0, TEXT[:9])
    fresh.runner.prefill(0, 9, TEXT[9:18])

    for each in (fresh, used):
        each.reads(TEXT, start=18)

    np.testing.assert_array_equal(used.drafts(), fresh.drafts())


@pytest.mark.parametrize("start", [27, 36])
async def test_a_text_that_goes_on_keeps_all_that_the_head_has_read(
    observed: tuple[Observed, Observed], start: int
) -> None:
    fresh, used = observed
    used.reads(TEXT[:37])
    used.drafts()
    used.runner.keep(0, TEXT[:start])

    used.reads(TEXT, start)
    fresh.reads(TEXT)

    np.testing.assert_array_equal(used.drafts(), fresh.drafts())


async def test_a_file_without_a_head_is_refused_by_the_names_of_setting_and_file(
    tmp_path: Path,
) -> None:
    path = write("qwen35", tmp_path / "headless.gguf")

    with pytest.raises(CannotOpen, match=r'llama\.head = "mtp": .*headless\.gguf has no MTP'):
        PassRunner(path, SETTINGS, max_rows=9)


async def test_the_predicted_memory_has_the_heads_kv_and_logits(path: Path) -> None:
    model = Model(path, vocabulary_only=True)
    without, with_head = (
        Plan(SETTINGS.model_copy(update={"head": head}), []).footprint(model, 9)
        for head in (None, "mtp")
    )

    assert with_head.kv - without.kv == 2 * 256 * 1 * 32 * (2 + 2)  # slots, tokens, F16
    assert with_head.passes - without.passes == 2 * 4 * 2 * model.vocabulary_size
    assert with_head.weights == without.weights
