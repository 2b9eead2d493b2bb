"""A padded vocabulary: no id past the tokens is ever drawn, and the text stays what it was."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from picospec.gateway.drain import Drain
from picospec.gateway.metrics import Metrics
from picospec.gateway.ports import Job, Sampling
from picospec.models.llama_cpp.model import Context, Model
from picospec.models.llama_cpp.segments import Segment
from picospec.models.store import Found, open_store
from picospec.models.vocabulary import relate
from picospec.speculation.protocol.messages import Limits
from picospec.verifier.llama_target.settings import LlamaSettings
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import PassMetrics
from picospec.verifier.plain_engine import PlainEngine
from picospec.verifier.target_host import Host
from tests.models.padded import pad

pytestmark = pytest.mark.models
PROMPT = "Count from one to twenty."
SETTINGS = LlamaSettings(slots=1, context_tokens=256, threads=1)


@pytest.fixture(scope="module")
def plain() -> Path:
    return open_store(os.environ).find("smollm2", "target").path


@pytest.fixture(scope="module")
def padded(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("padded") / "padded.gguf"
    pad(plain, target)
    return target


async def answer(path: Path, temperature: float) -> tuple[list[int], int]:
    """Return the tokens of an answer, and the target's padding."""
    registry = CollectorRegistry()
    metrics = PassMetrics(registry, Metrics(registry))
    host = Host(LlamaTarget(lambda: Found("m", path), SETTINGS, Limits(), metrics), Drain())
    async with host.running():
        while host._state == "loading":  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        target = host.ready()
        prompt = tuple(target.tokenizer.chat([{"role": "user", "content": PROMPT}]))
        job = Job("r", prompt, 24, Sampling(temperature), seed=3)
        deltas = [delta async for delta in PlainEngine(host).generate(job)]
        return [token for delta in deltas for token in delta.tokens], target.facts.padding


def test_without_the_mask_padding_would_always_be_drawn(padded: Path, plain: Path) -> None:
    with closing(Model(padded)) as model, closing(Context(model, 128)) as context:
        tokens = len(model.vocabulary.pieces)
        context.decode([Segment(0, 0, model.tokenize(PROMPT, False))])
        likeliest = [int(np.argmax(context.logits(row))) for row in range(4)]

    assert model.vocabulary.padding == tokens
    assert all(token >= tokens for token in likeliest)


def test_a_padded_model_pairs_with_the_unpadded_one(padded: Path, plain: Path) -> None:
    wide, narrow = (Model(path, vocabulary_only=True).vocabulary for path in (padded, plain))

    assert (relate(wide, narrow), relate(narrow, wide)) == ("padded", "padded")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_text_is_that_of_the_unpadded_model(
    padded: Path, plain: Path, temperature: float
) -> None:
    expected, none = await answer(plain, temperature)
    tokens, padding = await answer(padded, temperature)

    assert (none, padding) == (0, 49152)
    assert tokens == expected
