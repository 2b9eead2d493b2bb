"""The hooks by themselves: what is accepted, and that the host never waits for the device."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from triton_interpreted.kernels import gumbel_sample_kernel
from vllm.triton_utils.dispatcher import KernelOverride
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.sample import gumbel
from vllm.v1.worker.gpu.spec_decode import rejection_sampler

from bench.gpu_check.kernels import MOST_ULP, ON_CPU, Kernels
from bench.gpu_check.parts import VLLMS_NOISE
from speculation import noise
from speculation.coupled import Coupled
from speculation.messages import Sampling
from speculation.separate import Separate
from tests.verifier.vllm_target.synchronisations import synchronisations
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker import by_p
from verifier.vllm_target.worker.v2 import RunnerHooks

K, V, PADDED = 4, 50, 60
DRAFTS = {"a": [7, 8, 9], "b": [], "c": [5], "stock": [6, 4]}
SLOTS = {"a": 3, "b": 0, "c": 2, "stock": 5}
DRAWN = [7, 8, 1, 2, 3, 5, 9, 1, 4, 2]
"""What the rows draw: two draft tokens of a, then 1; b draws 3; and so on."""

ADAPTERS = (2, 0, 1, 0)
"""Each request of DRAFTS has one of these; 0 is none."""


def runner(head: int = 0) -> Any:
    """A runner that does nothing by itself. head: so many tokens are proposed by vLLM's."""
    states = SimpleNamespace(
        req_id_to_index=SLOTS,
        index_to_req_id={slot: name for name, slot in SLOTS.items()},
        draft_tokens=torch.zeros(8, K, dtype=torch.int64),
        device=torch.device("cpu"),
        max_num_reqs=8,
    )
    return SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config=RunnerChoice("v2", K, head).added_to({})),
        rejection_sampler=SimpleNamespace(num_speculative_steps=1),
        req_states=states,
        lora_state=SimpleNamespace(make_lora_inputs=lambda names: (ADAPTERS, (), set())),
        vocab_size=PADDED,
        sampler=SimpleNamespace(
            apply_sampling_params=lambda logits, *args: logits,
            add_request=lambda slot, wanted: wanted.seed,
        ),
        speculator=SimpleNamespace(propose=lambda **given: given),
        prepare_inputs=lambda plan: plan,
        _dummy_run=lambda rows, **given: (rows, given),
        sample=lambda hidden, batch: hidden,
        sample_tokens=lambda: SimpleNamespace(model_runner_output=SimpleNamespace()),
    )


def request(name: str, **fields: Any) -> VerifyRequest:
    given = {"rule": Coupled(1, 0), "draft": tuple(DRAFTS[name])} | fields
    return VerifyRequest(Sampling(), **given)


def judged(hooked: Any, logits: torch.Tensor, max_waits: int = 0) -> list[list[int]]:
    """Judge the step in one chunk, as vLLM's rejection sampler does."""
    counts = np.array([len(draft) + 1 for draft in DRAFTS.values()])
    bounds = torch.from_numpy(np.cumsum([0, *counts]))
    slots = np.array([SLOTS[name] for name in DRAFTS])
    rows = torch.from_numpy(np.repeat(slots, counts))
    columns = torch.cat([torch.arange(count) for count in counts])
    drafted = torch.tensor([t for draft in DRAFTS.values() for t in (99, *draft)])
    logits = hooked.sampler.apply_sampling_params(logits, rows, None, slots)
    with synchronisations() as waits:
        sampled, kept = rejection_sampler.rejection_sample(
            logits, None, drafted, bounds, rows, None, rows, columns, rows, rows, K
        )
    assert waits.count <= max_waits
    return [row[:n] for row, n in zip(sampled.tolist(), kept.tolist(), strict=True)]


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    for name in ("gather_draft_sampled", "rejection_sample"):
        monkeypatch.setattr(rejection_sampler, name, getattr(rejection_sampler, name))
    monkeypatch.setattr(gumbel, "gumbel_sample", lambda *a, **k: torch.tensor(DRAWN))
    found = runner(getattr(request, "param", 0))
    RunnerHooks(found, V)
    return found


def begin(hooked: Any, **requests: VerifyRequest) -> None:
    plan = SimpleNamespace(picospec_requests=requests, scheduled_spec_decode_tokens=DRAFTS)
    with synchronisations() as waits:
        hooked.prepare_inputs(plan)
    assert waits.count == 0


def test_only_sessions_lose_the_padding_of_the_vocabulary(hooked: Any) -> None:
    begin(hooked, a=request("a"), b=request("b"))
    logits = torch.zeros(10, PADDED)

    judged(hooked, logits)

    assert (logits[:5, V:] == -torch.inf).all()
    assert (logits[:5, :V] == 0).all()
    assert (logits[5:] == 0).all()


def test_separate_is_judged_by_its_own_rule_in_a_step_with_others(hooked: Any) -> None:
    separate = Separate((65535,) * 3, (0.5,) * 4)
    begin(hooked, a=request("a", rule=separate), c=request("c"))
    logits = torch.zeros(10, PADDED)
    logits[0, 7] = 20.0  # certain: accepted; the next draft token's p is 1/V: rejected

    tokens = judged(hooked, logits, max_waits=2)

    assert tokens == [[7], [3], [5, 9], [1]]
    output = hooked.sample_tokens().model_runner_output
    assert output.picospec_judged["a"].rejection.token == 8
    assert list(output.picospec_judged) == ["a"]


def test_rows_are_judged_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        request(name, rule=Separate((40000,) * len(draft), (0.3,) * (len(draft) + 1)))
        for name, draft in DRAFTS.items()
    ]
    starts = np.cumsum([0, *(len(each.draft) + 1 for each in requests)])[:-1].tolist()
    logits = torch.randn(10, V, generator=torch.Generator().manual_seed(2)) * 4
    at_once = repr(by_p.judge_by_p(requests, logits, starts))
    original, sizes = by_p._p, []

    def p(rows: torch.Tensor, greedy: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return original(rows, greedy)

    monkeypatch.setattr(by_p, "_p", p)
    monkeypatch.setattr(by_p, "ROWS", 3)

    assert repr(by_p.judge_by_p(requests, logits, starts)) == at_once
    assert sizes == [3, 3, 3, 1, 3, 1]


def test_without_a_pass_a_request_generates_nothing_and_takes_its_row_back(
    hooked: Any,
) -> None:
    begin(hooked, b=request("b", rule=None), c=request("c"))
    output = object()
    counts, rejected = torch.ones(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)

    with synchronisations() as waits:
        hooked.sample((output, counts, rejected), SimpleNamespace(req_ids=list(DRAFTS)))

    assert waits.count == 0
    assert counts.tolist() == [1, 0, 1, 1]
    assert rejected.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("hooked", [2], indirect=True)
def test_a_head_has_a_row_of_each_request_though_one_is_silent(hooked: Any) -> None:
    begin(hooked, b=request("b", rule=None))
    counts, rejected = torch.ones(4, dtype=torch.int32), torch.tensor([2, 0, 0, 1])
    hooked.sample((object(), counts, rejected), SimpleNamespace(req_ids=list(DRAFTS)))

    proposed = hooked.speculator.propose(rejected=rejected)

    assert proposed["rejected"].tolist() == [2, 0, 0, 1]
    assert "dummy_run" not in proposed


def test_each_row_of_logits_has_its_requests_adapter(hooked: Any) -> None:
    begin(hooked, a=request("a"), b=request("b"), c=request("c"))

    adapters, *_ = hooked.lora_state.make_lora_inputs(list(DRAFTS))

    assert adapters == (2, 2, 2, 2, 0, 1, 1, 0, 0, 0)


class Idle(SimpleNamespace):
    """As much of vLLM's runner as a dummy run has before it executes the model."""

    max_num_reqs, max_num_tokens, decode_query_len = 8, 64, 34
    is_first_pp_rank, is_last_pp_rank, lora_config = True, False, None
    kv_connector = SimpleNamespace(set_disabled=lambda disabled: None)
    speculator = SimpleNamespace(num_query_per_req=1, num_extra_query_per_req=0)

    def maybe_dummy_run_with_lora(self, *args: Any, **given: Any) -> Any:
        return nullcontext()

    def execute_model(self, plan: Any, **given: Any) -> None:
        self.planned = list(plan.num_scheduled_tokens.values())


def test_an_idle_rank_runs_steps_of_one_row_where_vllm_has_full_width(hooked: Any) -> None:
    original: Any = inspect.unwrap(GPUModelRunner._dummy_run)
    idle = Idle()
    original(idle, 1, uniform_decode=True)
    before = idle.planned

    rows, given = hooked._dummy_run(1, uniform_decode=True)
    original(idle, rows, **given)

    assert (before, idle.planned) == ([34], [1])


# vLLM's own sampler draws the noise that edges share; and so does the kernel in torch.

INTERPRETED = [gumbel._gumbel_sample_kernel]
"""In a list, where vLLM does not find it when it puts the other kernel everywhere."""


def test_a_thousand_draws_of_vllms_own_sampler_are_those_of_the_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (interpreted,), steps, rows, words = INTERPRETED, 50, 20, 1100
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        logits = torch.randn(rows, words, generator=generator) * 2
        slots = torch.randint(0, rows, (rows,), generator=generator)
        temperatures = (torch.rand(rows, generator=generator) * 2).round()
        seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
        at = torch.randint(0, 4000, (rows,), generator=generator)
        expected = []
        for row, slot, noise_index in zip(logits.double().numpy(), slots, at, strict=True):
            drawn = bool(temperatures[slot])
            seed = int(seeds[slot]) % 2**64
            added = noise.gumbel(seed, int(noise_index), np.arange(words)) if drawn else 0.0
            expected.append(int((row + added).argmax()))

        for kernel in (interpreted, KernelOverride(interpreted, gumbel_sample_kernel)):
            monkeypatch.setattr(gumbel, "_gumbel_sample_kernel", kernel)
            found = gumbel.gumbel_sample(
                logits, slots, temperatures, seeds, at,
                apply_temperature=False, is_drafting=False,
            )  # fmt: skip
            assert found.tolist() == expected


# The check of a GPU host compares that sampler with noise.py: here its kernel is interpreted.

SHORT = replace(ON_CPU, seeds=2, vocabulary=300)


GUMBEL = noise.gumbel


def later(seed: int, at: int, tokens: np.ndarray) -> np.ndarray:
    """Noise of the next place."""
    return GUMBEL(seed, at + 1, tokens)


def lower(seed: int, at: int, tokens: np.ndarray) -> np.ndarray:
    """Noise that is lower at one token, by little more than what is accepted."""
    found = GUMBEL(seed, at, tokens).astype(np.float32)
    found[7] -= 2 * MOST_ULP * np.spacing(max(np.float32(1.0), abs(found[7])))
    return found


def test_vllms_sampler_draws_what_our_noise_draws() -> None:
    kernels = Kernels(SHORT, "cpu")

    right, _ = kernels.vllms_noise()

    assert right
    (line,) = kernels.figures[VLLMS_NOISE]
    assert line["draws"] == 10


@pytest.mark.parametrize("other", [later, lower])
def test_another_noise_is_found_out(other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "gumbel", other)

    assert not Kernels(SHORT, "cpu").vllms_noise()[0]
