"""Recurrent layers go back to an earlier token, or are as if newly begun: never wrong.

llama.cpp itself goes back to a wrong state in two of these cases, and says that all is well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from local_models.llama_cpp.context_length import state_bytes
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import CHECKPOINT_TOKENS, Context, Model
from local_models.llama_cpp.segments import Segment
from tests.local_models.llama_cpp.hybrids import ARCHITECTURES, ROLLBACK, SLIDING, write

ROWS = 8
TEXT = [int(token) for token in np.random.default_rng(1).integers(0, 256, 64)]
OTHER = [int(token) for token in np.random.default_rng(2).integers(0, 256, 64)]

Rows = list[np.ndarray]


@pytest.fixture(scope="module")
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    opened = Model(write(request.param, tmp_path_factory.mktemp("hybrid") / "model.gguf"))
    yield opened
    opened.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    opened = Context(model, 128, KvCache(4, rollback=ROWS - 1), batch_tokens=32)
    yield opened
    opened.close()


def of_rollback(names: Sequence[str] = ROLLBACK) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", names, indirect=True)


def read(context: Context, sequence: int, tokens: Sequence[int], rows: int = ROWS) -> Rows:
    """Go on in a sequence with tokens, `rows` a pass; return the logits of each."""
    found: Rows = []
    for start in range(0, len(tokens), rows):
        part = tokens[start : start + rows]
        context.decode([Segment(sequence, context.length(sequence), part)])
        found += [context.logits(i).copy() for i in range(len(part))]
    return found


@of_rollback()
def test_rows_are_equal_whatever_the_pass(model: Model, context: Context) -> None:
    alone = read(context, 0, TEXT, rows=1)

    for rows in (2, 5, ROWS, 31):
        context.truncate(0, 0)
        np.testing.assert_array_equal(read(context, 0, TEXT, rows), alone)


@of_rollback([*ROLLBACK, *SLIDING])
@pytest.mark.parametrize("rows", range(1, ROWS + 1))
def test_a_pass_is_taken_back_to_any_of_its_rows(
    model: Model, context: Context, rows: int
) -> None:
    alone = read(context, 1, TEXT[:32], rows=1)

    for kept in range(1, rows + 1):
        context.truncate(0, 0)
        read(context, 0, TEXT[:16], 16)
        read(context, 0, [*TEXT[16 : 16 + kept], *OTHER[: rows - kept]])

        assert context.truncate(0, 16 + kept) == 16 + kept
        np.testing.assert_array_equal(
            read(context, 0, TEXT[16 + kept : 32], rows=3), alone[16 + kept :]
        )


@of_rollback()
@pytest.mark.parametrize(("rows", "back"), [(1, 1), (1, 2), (3, 3), (3, 4), (ROWS + 1, ROWS)])
def test_what_cannot_be_taken_back_is_removed_as_a_whole(
    model: Model, context: Context, rows: int, back: int
) -> None:
    read(context, 0, TEXT[:16], 16)
    read(context, 0, OTHER[:rows], rows)

    assert context.truncate(0, 16 + rows - back) == 0
    assert context.length(0) == 0


@of_rollback()
def test_a_pass_is_taken_back_once(model: Model, context: Context) -> None:
    read(context, 0, TEXT[:8])

    assert [context.truncate(0, length) for length in (6, 6, 5)] == [6, 6, 0]


@of_rollback()
def test_passes_of_other_sequences_leave_a_sequence_as_it_is(
    model: Model, context: Context
) -> None:
    """llama.cpp would move its state when others share a pass, and leave the copies behind."""
    alone = read(context, 3, OTHER[:32], rows=1)
    for sequence in (0, 2, 1):
        read(context, sequence, OTHER[:10] if sequence == 2 else TEXT[:10], 10)
    read(context, 2, [*OTHER[10:13], *TEXT[:3]])

    context.decode([Segment(sequence, 10, TEXT[10:16]) for sequence in (0, 1)])
    shared = [context.logits(i).copy() for i in range(12)]

    assert context.truncate(2, 13) == 13
    np.testing.assert_array_equal(read(context, 2, OTHER[13:32]), alone[13:])
    np.testing.assert_array_equal(shared[:6], shared[6:])
    context.truncate(3, 0)
    np.testing.assert_array_equal(read(context, 3, TEXT[:16], 16)[10:], shared[:6])


@of_rollback()
def test_a_copy_is_as_its_source_and_changes_apart_from_it(
    model: Model, context: Context
) -> None:
    alone = read(context, 1, TEXT[:16], rows=1)
    read(context, 0, [*TEXT[:6], *OTHER[:2]])
    context.truncate(0, 6)

    context.copy(0, 2)

    np.testing.assert_array_equal(read(context, 2, TEXT[6:11]), alone[6:11])
    assert context.truncate(2, 8) == 8
    for sequence, start in ((0, 6), (2, 8)):
        np.testing.assert_array_equal(read(context, sequence, TEXT[start:16]), alone[start:])


@of_rollback()
def test_a_target_goes_back_to_the_last_pieces_of_a_prompt(model: Model) -> None:
    context = Context(model, 128, KvCache(2, rollback=ROWS - 1, checkpoints=2))
    alone = read(context, 1, TEXT[:40], rows=1)
    for length in (24, 16):
        context.truncate(0, 0)
        for start in (0, 8, 16):
            context.decode([Segment(0, start, TEXT[start : start + 8], logits=0)])
        read(context, 0, [*TEXT[24:28], *OTHER[:4]])
        context.truncate(0, 28)
        read(context, 0, OTHER[:8])

        assert context.checkpoints(0) == [16, 24]
        assert context.truncate(0, length + 1) == length
        np.testing.assert_array_equal(read(context, 0, TEXT[length:40]), alone[length:])
    context.close()


@of_rollback([*ARCHITECTURES])
def test_checkpoints_go_back_to_shortly_before_every_token(model: Model) -> None:
    context = Context(model, 128, KvCache(3, checkpoints=4))
    alone = read(context, 1, TEXT[:40], rows=1)
    for length in range(24, 32):
        context.truncate(0, 0)
        read(context, 0, TEXT[:16], 16)
        read(context, 0, [*TEXT[16:length], *OTHER[length:34]], rows=1)

        left = context.truncate(0, length)

        assert length - CHECKPOINT_TOKENS < left <= length
        np.testing.assert_array_equal(read(context, 0, TEXT[left:40], rows=1), alone[left:])
    context.close()


@of_rollback([*ARCHITECTURES])
def test_the_size_of_a_state_is_known_before_it_is_made(model: Model, context: Context) -> None:
    read(context, 0, TEXT[:8])

    size = state_bytes(model.metadata())

    assert 0.9 * len(context._state(0)) < size < 4 * len(context._state(0))
