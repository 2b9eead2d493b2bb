"""The judge of a step: many requests at once get what each gets alone, lazily or at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation.protocol.messages import Sampling
from picospec.speculation.sampling import distributions
from picospec.speculation.sampling.adjustments import Adjustment
from picospec.speculation.sampling.judging import Judgement, judge_coupled
from picospec.speculation.sampling.logit_settings import LogitSettings

torch = pytest.importorskip("torch")

from picospec.verifier.vllm_target.verify_request import VerifyRequest  # noqa: E402
from picospec.verifier.vllm_target.worker import judging  # noqa: E402
from tests.verifier.vllm_target.synchronisations import synchronisations  # noqa: E402

judge_lazily = partial(judging.judge, lazily=True)
judge_at_once = partial(judging.judge, lazily=False)

V = 50
SAMPLINGS = st.sampled_from(
    [
        Sampling(0.0),
        Sampling(1.0, top_p=0.9),
        Sampling(0.8, top_k=5),
        Sampling(1.0, min_p=0.02, top_p=0.99),
        Sampling(1.3),
    ]
)


def adjustment(output: Sequence[int] = (), **asked: Any) -> Adjustment:
    first = Adjustment.first(LogitSettings(**asked), (1, 3), (2,))
    assert first
    return first.after(output)


ADJUSTMENTS = [
    adjustment(logit_bias={1: 4.0, 2: 3.5}),
    adjustment((0, 1, 1, 30), frequency_penalty=1.5, presence_penalty=0.5),
    adjustment((0, 1), repetition_penalty=2.0, logit_bias={0: -100.0}, min_tokens=4),
]
"""Draft tokens are from 0 to 3, so that they change what follows them."""


class Table:
    """Rows of random logits; remembers which were looked at."""

    vocabulary_size = V

    def __init__(
        self, number: int, requests: Sequence[VerifyRequest], step: float = 0.0
    ) -> None:
        """step: the logits are whole multiples of it, so that many are equal."""
        random = np.random.default_rng(number)
        rows = max(request.injected for request in requests) + 1
        logits = random.normal(0, 2, (len(requests), rows, V))
        self.logits = (np.round(logits / step) * step if step else logits).astype(np.float32)
        self.seen: list[tuple[int, int]] = []

    def take(self, wanted: Sequence[tuple[int, int]]) -> torch.Tensor:
        self.seen += wanted
        return torch.from_numpy(np.stack([self.logits[place] for place in wanted]))


def requests_of(judge: str) -> st.SearchStrategy[VerifyRequest]:
    def complete(request: VerifyRequest, chance: list[float]) -> VerifyRequest:
        count = len(request.draft)
        q = tuple(1 + int(65535 * share**3) for share in chance[:count])
        u = tuple(chance[count : 2 * count + 1])
        return replace(request, judge=judge, q=q, u=u)  # type: ignore[arg-type]

    drawn = st.builds(
        VerifyRequest,
        sampling=SAMPLINGS,
        judge=st.just("coupled"),
        seed=st.integers(0, 2**62),
        at=st.integers(0, 1000),
        draft=st.lists(st.integers(0, 3), max_size=5).map(tuple),
        adjustment=st.sampled_from([None, None, *ADJUSTMENTS]),
        forced=st.sampled_from([None, None, 9]),
        silent=st.sampled_from([False, False, False, True]),
    )
    chances = st.lists(st.floats(0, 1, exclude_max=True), min_size=11, max_size=11)
    return st.builds(complete, drawn, chances)


COUPLED = requests_of("coupled")
EITHER = st.one_of(COUPLED, requests_of("separate"))


@contextmanager
def candidates(count: int, rows: int) -> Iterator[None]:
    """Look at the rows first among so many candidates, and so many rows a chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "CANDIDATES", count)
        patch.setattr(judging, "LAZY_CANDIDATES", count)
        patch.setattr(judging, "CHUNK_BYTES", rows * V * judging.FIRST_BYTES)
        yield


def with_targets_tokens(requests: list[VerifyRequest], table: Table) -> list[VerifyRequest]:
    """Replace some draft tokens by the target's own, so that they are accepted."""
    found = []
    for i, request in enumerate(requests):
        first = request.injected - len(request.draft)
        draft = list(request.draft)
        for k in range(max(0, len(draft) - 1)):
            draft[k] = alone(request, table.logits[i, first:], k)
        found.append(replace(request, draft=tuple(draft)))
    return found


def row_of(request: VerifyRequest, logits: np.ndarray, k: int) -> distributions.Distribution:
    """The distribution of row k. logits: the row's."""
    if request.adjustment is not None:
        logits = request.adjustment.after(request.draft[:k]).apply(logits)
    return distributions.distribution(logits, request.sampling)


def alone(request: VerifyRequest, logits: np.ndarray, k: int) -> int:
    return row_of(request, logits[k], k).coupled(request.seed, request.at + k)


@given(st.lists(COUPLED, min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_batch_judges_as_the_core_does_one_by_one(
    requests: list[VerifyRequest], number: int
) -> None:
    table = Table(number, requests)
    requests = with_targets_tokens(requests, table)

    with candidates(2, 3):
        judged = judge_lazily(requests, table)

    for i, request in enumerate(requests):
        first = request.injected - len(request.draft)
        expected = judge_coupled(
            lambda k, i=i, request=request, first=first: row_of(
                request, table.logits[i, first + k], k
            ),
            request.draft,
            request.seed,
            request.at,
        )
        assert judged[i] == (Judgement((), 0) if request.silent else expected)


@given(
    st.lists(EITHER, min_size=1, max_size=6),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([2, 8, 50]),
    st.sampled_from([1, 3, 1000]),
)
@settings(max_examples=200, deadline=None)
def test_judging_at_once_gives_what_judging_lazily_gives(
    requests: list[VerifyRequest], number: int, step: float, count: int, rows: int
) -> None:
    table = Table(number, requests, step)
    requests = with_targets_tokens(requests, table)

    with candidates(count, rows), synchronisations() as counted:
        judged = judge_at_once(requests, table)

    assert counted.count <= 2
    for found, expected in zip(judged, judge_lazily(requests, table), strict=True):
        assert (found.tokens, found.accepted) == (expected.tokens, expected.accepted)
        assert (found.rejection is None) == (expected.rejection is None)
        if found.rejection and expected.rejection:
            assert found.rejection.token == expected.rejection.token
            assert found.rejection.p.tokens.tolist() == expected.rejection.p.tokens.tolist()
            np.testing.assert_allclose(found.rejection.p.p, expected.rejection.p.p, rtol=2e-7)


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.tolist(),
        lambda tensor: tensor[0].item(),
        lambda tensor: tensor.cpu(),
        lambda tensor: bool(tensor[0] > 0),
        lambda tensor: torch.nonzero(tensor),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: int(tensor.sum()),
    ],
)
def test_the_counter_of_synchronisations_notices(wait: Any) -> None:
    with synchronisations() as counted:
        wait(torch.arange(3.0))

    assert counted.count == 1


def test_a_step_whose_supports_are_found_waits_once() -> None:
    sampling = Sampling(1.0, top_p=0.9)
    requests = [VerifyRequest(sampling, "coupled", seed, 5, (1, 2, 3)) for seed in range(9)]
    table = Table(1, requests)

    with synchronisations() as counted:
        judge_at_once(requests, table)

    assert counted.count == 1


def test_judging_lazily_waits_in_every_wave() -> None:
    requests = [VerifyRequest(Sampling(1.3), "coupled", 1, 5, (0, 0, 0))]
    table = Table(1, requests)
    requests = with_targets_tokens(requests, table)

    with synchronisations() as counted:
        (judged,) = judge_lazily(requests, table)

    assert judged.accepted >= 2
    assert counted.count == judged.accepted + 1


@given(st.lists(COUPLED, min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_no_row_after_a_rejected_draft_token_is_looked_at_on_a_cpu(
    requests: list[VerifyRequest], number: int
) -> None:
    table = Table(number, requests)

    judged = judge_lazily(requests, table)

    assert sorted(table.seen) == [
        (i, request.injected - len(request.draft) + row)
        for i, (request, found) in enumerate(zip(requests, judged, strict=True))
        if not request.silent
        for row in range(found.accepted + 1)
    ]


@pytest.mark.parametrize("judge", [judge_lazily, judge_at_once])
def test_a_forced_token_moves_the_rows_by_one(judge: Any) -> None:
    requests = [VerifyRequest(Sampling(0.0), "coupled", 1, 5, (4, 4), forced=9)]
    table = Table(1, requests)
    table.logits[0, 1:, 4] = 90.0

    (judged,) = judge(requests, table)

    assert judged.tokens == (4, 4, 4)
    assert table.seen == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("judge", [judge_lazily, judge_at_once])
def test_a_silent_request_looks_at_nothing(judge: Any) -> None:
    requests = [VerifyRequest(Sampling(0.0), "coupled", 1, 5, forced=9, silent=True)]
    table = Table(1, requests)

    assert judge(requests, table)[0].tokens == ()
    assert table.seen == []


@pytest.mark.parametrize("judge", [judge_lazily, judge_at_once])
def test_a_rejection_carries_the_whole_distribution(judge: Any) -> None:
    requests = [VerifyRequest(Sampling(1.0), "separate", 0, 5, (4,), (65536,), (0.999999, 0.5))]
    table = Table(1, requests)

    (judged,) = judge(requests, table)

    assert judged.rejection is not None
    assert judged.rejection.token == 4
    assert judged.rejection.p.tokens.size == V


@pytest.mark.parametrize("judge", [judge_lazily, judge_at_once])
def test_a_bias_is_added_before_all_else(judge: Any) -> None:
    bias = adjustment(logit_bias={42: 5.0, 7: -100.0})
    requests = [VerifyRequest(Sampling(0.0), "coupled", 0, 0, adjustment=bias)]
    table = Table(1, requests)
    table.logits[:] = 0.0

    assert judge(requests, table)[0].tokens == (42,)
    assert np.abs(table.logits).max() == 0.0  # the step's own logits are untouched


def test_a_negative_control_judging_with_other_noise_differs() -> None:
    requests = [VerifyRequest(Sampling(1.3), "coupled", seed, 5) for seed in range(20)]
    table = Table(1, requests)
    others = [VerifyRequest(Sampling(1.3), "coupled", seed + 1, 5) for seed in range(20)]

    assert judge_at_once(requests, table) != judge_lazily(others, table)
