"""What the hooks of Model Runner V1 draw of one step, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm.v1.sample.rejection_sampler")  # its warnings are not ours

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample import rejection_sampler, sampler

from picospec.speculation import noise
from picospec.speculation.coupled import Coupled
from picospec.speculation.messages import Sampling
from picospec.verifier.vllm_target.crossing import VerifyRequest
from picospec.verifier.vllm_target.worker.v1 import SamplerHooks

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
V = 50
STOCKS = 7
"""The token that vLLM's own sampler draws in every row."""


def drawn(logits: Tensor, generators: object, *cuts: object) -> tuple[Tensor, None]:
    assert not generators
    return torch.full((len(logits),), STOCKS), None


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner with three requests: a session, one of vLLM's own with a seed, one without."""
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


def test_each_row_is_drawn_by_its_own_law_and_no_generator_is_drawn_from(runner: Any) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(3, V)).astype(np.float32))
    generators: dict[int, Any] = {1: torch.Generator()}
    asked = VerifyRequest(Sampling(), Coupled(9, 4))
    runner.execute_model(SimpleNamespace(picospec_requests={"session": asked}))

    tokens, _ = runner.sampler.topk_topp_sampler.forward(logits, generators, None, None)

    every = np.arange(V)
    of_session = logits[0].numpy() + noise.gumbel(9, 4, every)
    of_seed = logits[1].numpy() + noise.gumbel(2**64 - 4, 5, every)
    assert tokens.tolist() == [of_session.argmax(), of_seed.argmax(), STOCKS]
    generators[1].set_offset(generators[1].get_offset() - 4)  # as vLLM does inside a prompt


def test_a_step_without_draft_tokens_is_sampled_as_without_speculation(runner: Any) -> None:
    some, none = (SimpleNamespace(num_draft_tokens=counts) for counts in ([0, 2], [0, 0]))

    assert runner._sample(None, none) is None
    assert runner._sample(None, some) is some


def test_draft_tokens_of_a_session_are_judged_beside_requests_that_have_none(
    runner: Any,
) -> None:
    drafted, last = torch.zeros(3, V + 2), torch.zeros(3, V)
    drafted[0, 5] = drafted[1, 8] = drafted[2, 4] = (
        9.0  # of a token before the pass, and of two in it
    )
    drafted[:, V:] = 99.0  # padding
    last[0, 3] = 9.0
    asked = VerifyRequest(Sampling(0.0), Coupled(9, 4), (6, 8, 4), known=1)
    runner.execute_model(SimpleNamespace(picospec_requests={"session": asked}))
    drawn_last, _ = runner.sampler.topk_topp_sampler.forward(last, {}, None, None)

    tokens = rejection_sampler.rejection_sample(
        torch.tensor([6, 8, 4]), [3, 0, 0], 3, None, None, drafted, drawn_last[:, None], None
    )

    assert tokens.tolist() == [[6, 8, 4, 3], [STOCKS, -1, -1, -1], [STOCKS, -1, -1, -1]]
    output = SimpleNamespace()
    runner.hooks._return_judgements(lambda: output)
    assert output.picospec_judged["session"].accepted == 3
