"""The judge of vLLM's worker, by itself and behind the hooks of Model Runner V1: rows, drafts
and settings meet as in the core.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation import noise
from speculation.coupled import Coupled
from speculation.distributions import Logits, distribution
from speculation.judge import Judgement
from speculation.logit_settings import LogitSettings
from speculation.logits import Adjustment
from speculation.messages import Sampling
from speculation.separate import Separate
from verifier.vllm_target.verify_request import VerifyRequest

V = 50
judge = VerifyRequest.judge_logits


def rows(number: int, count: int = 7) -> Logits:
    return np.random.default_rng(number).normal(0, 2, (count, V)).astype(np.float32)


def greedy(*draft: int, **fields: Any) -> VerifyRequest:
    return VerifyRequest(Sampling(0.0), Coupled(1, 5), draft, **fields)


def adjusted(**asked: Any) -> Adjustment:
    found = Adjustment.first(LogitSettings(**asked), (1, 3), (2,))
    assert found
    return found


def test_each_row_is_drawn_with_the_noise_of_its_place() -> None:
    logits, sampling = rows(2), Sampling(1.3)
    own = [distribution(logits[i], sampling).picked(9, 40 + i) for i in range(3)]
    request = VerifyRequest(sampling, Coupled(9, 40), tuple(own[:2]))

    assert judge(request, logits.__getitem__).tokens == tuple(own)
    assert judge(replace(request, rule=Coupled(8, 40)), logits.__getitem__).tokens != tuple(own)


def test_a_token_that_vllm_is_told_of_takes_the_first_row_unjudged() -> None:
    logits = rows(3)
    logits[1:, 4] = 90.0

    judged = judge(greedy(9, 4, 4, known=1), logits.__getitem__)

    assert judged == Judgement((9, 4, 4, 4), accepted=3)
    assert judged.after(1) == Judgement((4, 4, 4), accepted=2)


def test_where_no_pass_has_begun_nothing_is_read() -> None:
    def row(i: int) -> Logits:
        raise AssertionError(i)

    assert judge(VerifyRequest(Sampling(0.0), None), row).tokens == ()


def test_settings_see_the_draft_tokens_before_a_row_and_leave_the_steps_logits() -> None:
    logits = np.zeros((3, V), np.float32)
    logits[:, 42] = 1.0
    request = greedy(42, 7, adjustment=adjusted(presence_penalty=2.0, logit_bias={7: 0.5}))

    assert judge(request, logits.__getitem__).tokens == (42, 7, 0)
    assert sorted(set(logits.ravel().tolist())) == [0.0, 1.0]


def complete(draft: list[int], chance: list[float], temperature: float) -> VerifyRequest:
    q = tuple(1 + int(65535 * share**3) for share in chance[: len(draft)])
    u = tuple(chance[5 : 6 + len(draft)])
    return VerifyRequest(Sampling(temperature), Separate(q, u), tuple(draft))


SEPARATE = st.builds(
    complete,
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.lists(st.floats(0, 0.999), min_size=11, max_size=11),
    st.sampled_from([0.0, 1.0, 1.0]),
)


@given(st.lists(SEPARATE, min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_on_a_device_separate_is_judged_as_on_the_host_and_the_host_waits_twice(
    requests: list[VerifyRequest], number: int
) -> None:
    torch = pytest.importorskip("torch")
    from tests.verifier.vllm_target.synchronisations import synchronisations
    from verifier.vllm_target.worker import by_p

    logits = rows(number, 7 * len(requests))
    logits[:, :4] += 4.0
    starts = range(0, len(logits), 7)
    with synchronisations() as waits:
        judged = by_p.judge_by_p(requests, torch.from_numpy(logits), starts)

    assert waits.count == 2
    for found, request, start in zip(judged, requests, starts, strict=True):
        expected = judge(request, logits[start:].__getitem__)
        assert (found.tokens, found.accepted) == (expected.tokens, expected.accepted)
        assert (found.rejection is None) == (expected.rejection is None)
        if found.rejection and expected.rejection:
            assert found.rejection.token == expected.rejection.token
            assert found.rejection.p.tokens.tolist() == expected.rejection.p.tokens.tolist()
            np.testing.assert_allclose(found.rejection.p.p, expected.rejection.p.p, rtol=1e-5)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 40, 500])
def test_the_support_is_the_one_vllm_masks_to(top_p: float, top_k: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    random = np.random.default_rng(1)
    logits = np.stack([random.normal(0, 1 + i % 4, 5000) for i in range(20)]).astype(np.float32)
    k, p = torch.full((20,), top_k or 5000, dtype=torch.int32), torch.full((20,), top_p)

    masked = ops.apply_top_k_top_p_pytorch(torch.from_numpy(logits.copy()), k, p)

    for row, original in zip(logits, masked, strict=True):
        kept = distribution(row, Sampling(top_k=top_k, top_p=top_p)).tokens.tolist()
        assert sorted(kept) == torch.nonzero(original > -torch.inf)[:, 0].tolist()


# What the hooks of Model Runner V1 draw of one step, without an engine.


ORIGINALS = 7
"""The token that vLLM's own sampler draws in every row."""


def drawn(logits: Any, generators: object, *cuts: object) -> tuple[Any, None]:
    import torch

    assert not generators
    return torch.full((len(logits),), ORIGINALS), None


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner with three requests: a session, one of vLLM's own with a seed, one without."""
    pytest.importorskip("vllm.v1.sample.rejection_sampler")  # its warnings are not ours
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample import rejection_sampler, sampler

    from verifier.vllm_target.worker.v1 import SamplerHooks

    for holder, name in (
        (rejection_sampler, "apply_sampling_constraints"),
        (rejection_sampler, "rejection_sample"),
        (sampler, "batched_count_greater_than"),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name))  # undone after the test
    names = ["session", "seeded", "unseeded"]
    batch = SimpleNamespace(
        logitsprocs=SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[]),
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        num_tokens_no_spec=np.array([5, 6, 7]),
    )
    seeded = SimpleNamespace(sampling_params=SamplingParams(seed=-4))
    found = SimpleNamespace(
        execute_model=lambda plan: None,
        sample_tokens=lambda grammar: None,
        _sample=lambda logits, drafts: drafts,
        sampler=SimpleNamespace(topk_topp_sampler=SimpleNamespace(forward=drawn)),
        device=torch.device("cpu"),
        input_batch=batch,
        requests={"seeded": seeded},
        vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4)),
    )
    found.hooks = SamplerHooks(found, V)
    return found


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_each_row_is_drawn_by_its_own_law_and_no_generator_is_drawn_from(runner: Any) -> None:
    import torch

    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(3, V)).astype(np.float32))
    generators: dict[int, Any] = {1: torch.Generator()}
    asked = VerifyRequest(Sampling(), Coupled(9, 4))
    runner.execute_model(SimpleNamespace(picospec_requests={"session": asked}))

    tokens, _ = runner.sampler.topk_topp_sampler.forward(logits, generators, None, None)

    every = np.arange(V)
    of_session = logits[0].numpy() + noise.gumbel(9, 4, every)
    of_seed = logits[1].numpy() + noise.gumbel(2**64 - 4, 5, every)
    assert tokens.tolist() == [of_session.argmax(), of_seed.argmax(), ORIGINALS]
    generators[1].set_offset(generators[1].get_offset() - 4)  # as vLLM does inside a prompt
