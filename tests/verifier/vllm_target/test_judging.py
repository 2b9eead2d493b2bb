"""The judge of a step: many requests at once say what each says alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speculation.protocol.messages import Sampling
from speculation.sampling import distributions as distributions
from speculation.sampling.judging import judge_coupled

torch = pytest.importorskip("torch")

from verifier.vllm_target.verify_request import Shape, VerifyRequest  # noqa: E402
from verifier.vllm_target.worker.judging import judge  # noqa: E402

V = 50
SHAPES = st.sampled_from([Shape(0.0), Shape(1.0, top_p=0.9), Shape(0.8, top_k=5), Shape(1.3)])


class Table:
    """Rows of random logits; remembers which were looked at."""

    def __init__(self, number: int, requests: Sequence[VerifyRequest]) -> None:
        random = np.random.default_rng(number)
        rows = max(order.injected for order in requests) + 1
        self.logits = random.normal(0, 2, (len(requests), rows, V)).astype(np.float32)
        self.seen: list[tuple[int, int]] = []

    def __call__(self, wanted: list[tuple[int, int]]) -> object:
        self.seen += wanted
        return torch.from_numpy(np.stack([self.logits[place] for place in wanted]))


ORDERS = st.builds(
    VerifyRequest,
    shape=SHAPES,
    judge=st.just("coupled"),
    seed=st.integers(0, 2**62),
    at=st.integers(0, 1000),
    draft=st.lists(st.integers(0, 3), max_size=5).map(tuple),
)


@given(st.lists(ORDERS, min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_batch_judges_as_the_core_does_one_by_one(
    requests: list[VerifyRequest], number: int
) -> None:
    table = Table(number, requests)

    judged = judge(requests, table)

    for i, order in enumerate(requests):
        shape = order.shape
        sampling = Sampling(shape.temperature, shape.min_p, shape.top_k, shape.top_p)
        alone = judge_coupled(
            lambda row, i=i, sampling=sampling: distributions.distribution(
                table.logits[i, row], sampling
            ),
            order.draft,
            order.seed,
            order.at,
        )
        assert judged[i] == alone


@given(st.lists(ORDERS, min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_no_row_behind_a_fallen_draft_is_looked_at(
    requests: list[VerifyRequest], number: int
) -> None:
    table = Table(number, requests)

    judged = judge(requests, table)

    assert sorted(table.seen) == [
        (i, row) for i, said in enumerate(judged) for row in range(said.accepted + 1)
    ]


def test_a_forced_token_moves_the_rows_by_one() -> None:
    requests = [VerifyRequest(Shape(0.0), "coupled", 1, 5, (4, 4), forced=9)]
    table = Table(1, requests)
    table.logits[0, 1:, 4] = 90.0

    (judged,) = judge(requests, table)

    assert judged.tokens == (4, 4, 4)
    assert table.seen == [(0, 1), (0, 2), (0, 3)]


def test_a_silent_order_looks_at_nothing() -> None:
    requests = [VerifyRequest(Shape(0.0), "coupled", 1, 5, forced=9, silent=True)]
    table = Table(1, requests)

    assert judge(requests, table)[0].tokens == ()
    assert table.seen == []


def test_a_refusal_carries_the_whole_law() -> None:
    requests = [VerifyRequest(Shape(1.0), "separate", 0, 5, (4,), (65536,), (0.999999, 0.5))]
    table = Table(1, requests)

    (judged,) = judge(requests, table)

    assert judged.rejection is not None
    assert judged.rejection.token == 4
    assert judged.rejection.p.tokens.size == V
