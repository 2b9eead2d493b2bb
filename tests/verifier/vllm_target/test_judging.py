"""The judge of vLLM's worker: rows, drafts and settings meet as in the core, on each runner."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation.coupled import Coupled
from picospec.speculation.distributions import Logits, distribution
from picospec.speculation.judge import Judgement
from picospec.speculation.logits import Adjustment, LogitSettings
from picospec.speculation.messages import Sampling
from picospec.speculation.separate import Separate
from picospec.verifier.vllm_target.crossing import VerifyRequest

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


def test_draft_tokens_are_accepted_up_to_the_first_wrong_one_and_no_row_after_it_is_read() -> (
    None
):
    logits, read = rows(1), []
    best = logits.argmax(axis=1).tolist()

    def row(i: int) -> Logits:
        read.append(i)
        return logits[i]

    judged = judge(greedy(best[0], best[1], V - 1 - best[2], best[3]), row)

    assert judged.tokens == tuple(best[:3])
    assert judged.accepted == 2
    assert read == [0, 1, 2]


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


def test_a_rejection_carries_the_whole_distribution() -> None:
    request = VerifyRequest(Sampling(), Separate((65536,), (0.999999, 0.5)), (4,))

    rejection = judge(request, rows(1).__getitem__).rejection

    assert rejection is not None
    assert (rejection.token, rejection.p.tokens.size) == (4, V)


def test_an_adjustment_survives_its_journey_to_the_worker() -> None:
    asked = LogitSettings(repetition_penalty=1.3, logit_bias={4: -7.0}, min_tokens=9)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=LogitSettings)
    there = adjusted(**msgspec.structs.asdict(packed)).after((0, 5, 5))

    here = pickle.loads(pickle.dumps(there))

    assert packed == asked
    assert here.apply(rows(1)[1]).tobytes() == there.apply(rows(1)[1]).tobytes()


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
    from picospec.verifier.vllm_target.worker import by_p
    from tests.verifier.vllm_target.synchronisations import synchronisations

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


WAITING: Sequence[Callable[[Any], object]] = (
    lambda tensor: tensor.tolist(),
    lambda tensor: tensor[0].item(),
    lambda tensor: tensor.cpu(),
    lambda tensor: bool(tensor[0] > 0),
    lambda tensor: tensor[tensor > 0],
    lambda tensor: int(tensor.sum()),
)


@pytest.mark.parametrize("wait", WAITING)
def test_the_counter_of_synchronisations_notices(wait: Callable[[Any], object]) -> None:
    torch = pytest.importorskip("torch")
    from tests.verifier.vllm_target.synchronisations import synchronisations

    with synchronisations() as counted:
        wait(torch.arange(3.0))

    assert counted.count == 1


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 1, 40, 500])
def test_the_support_is_the_one_vllm_masks_to(top_p: float, top_k: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")
    random = np.random.default_rng(1)
    logits = np.stack([random.normal(0, 1 + i % 4, 5000) for i in range(20)]).astype(np.float32)
    k, p = torch.full((20,), top_k or 5000, dtype=torch.int32), torch.full((20,), top_p)

    masked = ops.apply_top_k_top_p_pytorch(torch.from_numpy(logits.copy()), k, p)

    for row, stock in zip(logits, masked, strict=True):
        kept = distribution(row, Sampling(top_k=top_k, top_p=top_p)).tokens.tolist()
        assert sorted(kept) == torch.nonzero(stock > -torch.inf)[:, 0].tolist()
