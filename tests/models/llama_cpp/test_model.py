"""A row's logits depend only on the tokens before it, which makes the embedded target exact.

Contexts are long enough to cross 256 and 512 cells, where llama.cpp's kernels change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from picospec.models.errors import BadSegment, CannotOpen, NoRoom
from picospec.models.llama_cpp.model import EXACT_ROWS, Context, Model, Segment

pytestmark = pytest.mark.models

Rows = NDArray[np.float32]
ROWS = 6
TEXT = "".join(
    f"{n} squared is {n * n}, and its last digit is {n * n % 10}. " for n in range(80)
)
OTHER = "".join(f"In the year {1900 + 7 * n} nothing of note happened. " for n in range(80))


@pytest.fixture(scope="module", params=["q8_0", "q4_0"])
def model(request: pytest.FixtureRequest, smollm: Callable[[str], Model]) -> Iterator[Model]:
    opened = smollm(request.param)
    yield opened
    opened.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    opened = Context(model, 768, sequences=2)
    yield opened
    opened.close()


def prefill(context: Context, sequence: int, tokens: list[int], rows: int = EXACT_ROWS) -> None:
    context.truncate(sequence, 0)
    for start in range(0, len(tokens), rows):
        context.decode([Segment(sequence, start, tokens[start : start + rows], 0)])


def decode(context: Context, sequence: int, tokens: list[int], rows: int = 1) -> Rows:
    """Decode tokens, `rows` a pass; return logits [len(tokens), V]."""
    found = []
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        context.decode([Segment(sequence, context.length(sequence), part)])
        found += [context.logits(i).copy() for i in range(len(part))]
    return np.array(found)


@pytest.mark.parametrize("held", [40, 250, 508])
def test_logits_are_bit_identical_whatever_shares_the_pass(
    model: Model, context: Context, held: int
) -> None:
    text, other = model.tokenize(TEXT, False), model.tokenize(OTHER, False)
    prefill(context, 0, text[:held])
    now = text[held : held + ROWS]
    alone = decode(context, 0, now)

    for rows in (2, 4, 6):
        context.truncate(0, held)
        assert np.array_equal(decode(context, 0, now, rows), alone)

    wrong = []
    context.truncate(0, held)
    for token in now:
        start = context.length(0)
        context.decode([Segment(0, start, [token, *other[:7]])])
        wrong.append(context.logits(0).copy())
        context.truncate(0, start + 1)
    assert np.array_equal(np.array(wrong), alone)

    prefill(context, 1, other[:100])
    for count in (1, 3, EXACT_ROWS):
        context.truncate(0, held)
        context.truncate(1, 100)
        segment = Segment(1, 100, other[100 : 100 + count], 1)
        context.decode([Segment(0, held, now[:2]), segment])
        shared = np.array([context.logits(i) for i in range(2)])
        assert np.array_equal(shared, alone[:2])


def test_a_cache_is_the_same_however_it_was_filled(model: Model, context: Context) -> None:
    text = model.tokenize(TEXT, False)
    prefill(context, 0, text[:280])
    reference = decode(context, 0, text[280:282])

    for rows in (3, 10, EXACT_ROWS - 1):
        prefill(context, 1, text[:280], rows)
        assert np.array_equal(decode(context, 1, text[280:282]), reference)


def test_more_rows_at_once_than_exact_rows_are_not_exact(model: Model) -> None:
    """This is the negative control: if it fails, EXACT_ROWS can be removed."""
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, sequences=2)
    prefill(context, 0, text[:256], EXACT_ROWS)
    prefill(context, 1, text[:256], EXACT_ROWS + 65)

    assert not np.array_equal(
        decode(context, 0, text[256:258]), decode(context, 1, text[256:258])
    )
    context.close()


def test_a_coarse_cache_is_exact_with_two_threads_and_long_prefills(model: Model) -> None:
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, sequences=2, threads=2, cache="Q8_0")
    prefill(context, 0, text[:280], EXACT_ROWS)
    prefill(context, 1, text[:280], 256)

    assert np.array_equal(
        decode(context, 0, text[280:284]), decode(context, 1, text[280:284], 4)
    )
    context.close()


def test_two_threads_on_the_fine_cache_are_not_exact(model: Model) -> None:
    """This is the negative control of the test above."""
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, threads=2)
    prefill(context, 0, text[:280])
    alone = decode(context, 0, text[280:284])
    context.truncate(0, 280)

    assert not np.array_equal(decode(context, 0, text[280:284], 4), alone)
    context.close()


def test_a_closed_context_raises_and_does_not_crash(model: Model) -> None:
    context = Context(model, 256)
    context.decode([Segment(0, 0, [1])])
    context.close()
    context.close()

    assert context.length(0) == 0
    with pytest.raises(BadSegment):
        context.decode([Segment(0, 0, [1])])
    with pytest.raises(BadSegment):
        context.logits(0)


def test_a_refused_segment_changes_nothing(model: Model, context: Context) -> None:
    text = model.tokenize(TEXT, False)
    prefill(context, 0, text[:50])

    with pytest.raises(BadSegment):
        context.decode([Segment(0, 50, [1]), Segment(1, 5, [1])])
    with pytest.raises(NoRoom):
        Context(model, 20).decode([Segment(0, 0, text[:21])])

    assert (context.length(0), context.length(1)) == (50, 0)


def test_only_the_logits_that_were_asked_for_are_there(model: Model, context: Context) -> None:
    context.decode([Segment(0, 0, [1, 2, 3], 0), Segment(1, 0, [4, 5], 1)])

    assert context.logits(0).shape == (model.vocabulary_size,)
    with pytest.raises(BadSegment):
        context.logits(1)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF, but nothing more")

    with pytest.raises(CannotOpen, match=r"a\.gguf"):
        Model(tmp_path / "a.gguf")


def test_the_model_knows_its_facts(model: Model) -> None:
    assert model.context_tokens == 8192
    assert model.vocabulary.piece(2, special=True) == b"<|im_end|>"
    assert 2 in model.vocabulary.stop_tokens
    assert model.metadata()["general.architecture"] == "llama"
