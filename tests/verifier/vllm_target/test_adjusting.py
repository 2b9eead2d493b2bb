"""What requests change of the logits: in torch, for many rows at once, as in the core."""

from __future__ import annotations

import pickle
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.speculation.protocol.messages import Sampling
from picospec.speculation.sampling.adjustments import Adjustment
from picospec.speculation.sampling.logit_settings import LogitSettings

torch = pytest.importorskip("torch")

from picospec.verifier.vllm_target.verify_request import VerifyRequest  # noqa: E402
from picospec.verifier.vllm_target.worker.adjusting import adjust  # noqa: E402

V = 20
TEXT = st.lists(st.integers(0, V - 1), max_size=30)
SETTINGS = st.builds(
    LogitSettings,
    presence_penalty=st.sampled_from([0.0, 0.3, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -1.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.1]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=4),
    min_tokens=st.sampled_from([0, 9, 40]),
)


def after(asked: LogitSettings, prompt: list[int], output: list[int]) -> Adjustment | None:
    first = Adjustment.first(asked, prompt, (0, 2))
    return first and first.after(output)


REQUESTS = st.builds(
    VerifyRequest,
    sampling=st.just(Sampling()),
    judge=st.just("coupled"),
    seed=st.just(0),
    at=st.just(0),
    draft=st.lists(st.integers(0, V - 1), max_size=6).map(tuple),
    adjustment=st.builds(after, SETTINGS, TEXT, TEXT),
)


def some_logits(count: int, number: int) -> np.ndarray:
    logits = np.random.default_rng(number).normal(0, 5, (count, V)).astype(np.float32)
    logits[::3, 3:] = -np.inf  # a grammar leaves three tokens, two of which may be barred
    logits[::4, 1] = -np.inf
    return logits


@given(st.lists(REQUESTS, min_size=1, max_size=5), st.randoms(), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_rows_together_become_to_the_bit_what_the_core_makes_of_each(
    requests: list[VerifyRequest], chance: Random, number: int
) -> None:
    """Some rows of each pass, in any order."""
    rows = [(each, index) for each in requests for index in range(len(each.draft) + 1)]
    rows = chance.sample(rows, chance.randint(1, len(rows)))
    logits = some_logits(len(rows), number)
    together = torch.from_numpy(logits.copy())

    adjust(together, rows)

    for found, before, (request, index) in zip(together.numpy(), logits, rows, strict=True):
        here = request.adjustment and request.adjustment.after(request.draft[:index])
        expected = before if here is None else here.apply(before)
        assert found.tobytes() == expected.tobytes()


def test_rows_without_settings_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise AssertionError("something went to the device")

    monkeypatch.setattr("picospec.verifier.vllm_target.worker.adjusting.upload", fail)
    plain = VerifyRequest(Sampling(), "coupled", 0, 0, (1, 2))

    adjust(torch.zeros(3, V), [(plain, index) for index in range(3)])


@given(SETTINGS, TEXT, TEXT)
@settings(max_examples=50)
def test_it_survives_its_journey_to_the_worker(
    asked: LogitSettings, prompt: list[int], output: list[int]
) -> None:
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=LogitSettings)
    assert packed == asked
    if (there := after(asked, prompt, output)) is None:
        return

    here = pickle.loads(pickle.dumps(there))

    logits = some_logits(2, 1)[1]
    assert here.apply(logits).tobytes() == there.apply(logits).tobytes()
