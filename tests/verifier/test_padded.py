"""A padded vocabulary: no id past the tokens is ever drawn, and the text stays what it was."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from picospec.models.llama_cpp.model import Context, Model, Segment
from picospec.models.store import open_store
from picospec.models.vocabulary import relate
from tests.models.padded import pad
from tests.verifier.served_llama import job_of, plain, serving

pytestmark = pytest.mark.models
PROMPT = "Count from one to twenty."


@pytest.fixture(scope="module")
def unpadded() -> Path:
    return open_store(os.environ).find("smollm2", "target").path


@pytest.fixture(scope="module")
def padded(unpadded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("padded") / "padded.gguf"
    pad(unpadded, target)
    return target


async def answer(path: Path, temperature: float) -> tuple[list[int], int]:
    """Return the tokens of an answer, and the target's padding."""
    async with serving(path) as host:
        tokens = await plain(host, job_of(host, PROMPT, temperature))
        return tokens, host.ready().facts.padding


def test_without_the_mask_padding_would_always_be_drawn(padded: Path) -> None:
    with closing(Model(padded)) as model, closing(Context(model, 128)) as context:
        tokens = len(model.vocabulary.pieces)
        context.decode([Segment(0, 0, model.tokenize(PROMPT, False))])
        likeliest = [int(np.argmax(context.logits(row))) for row in range(4)]

    assert model.vocabulary.padding == tokens
    assert all(token >= tokens for token in likeliest)


def test_a_padded_model_pairs_with_the_unpadded_one(padded: Path, unpadded: Path) -> None:
    wide, narrow = (Model(path, vocabulary_only=True).vocabulary for path in (padded, unpadded))

    assert (relate(wide, narrow), relate(narrow, wide)) == ("padded", "padded")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_the_text_is_that_of_the_unpadded_model(
    padded: Path, unpadded: Path, temperature: float
) -> None:
    expected, none = await answer(unpadded, temperature)
    tokens, padding = await answer(padded, temperature)

    assert (none, padding) == (0, 49152)
    assert tokens == expected
