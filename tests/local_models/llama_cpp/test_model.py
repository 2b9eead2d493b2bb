"""A row's logits depend only on the tokens before it, which makes the embedded target exact.

Contexts are long enough to cross 256 and 512 cells, where llama.cpp's kernels change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from local_models.errors import BadSegment, CannotOpen, NoRoom
from local_models.llama_cpp import context_length as context_room
from local_models.llama_cpp import model as llama_model
from local_models.llama_cpp.context_length import (
    context_length,
    fitting_tokens,
    kv_bytes_per_token,
)
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.model import EXACT_ROWS, Context, Model
from local_models.llama_cpp.prefix import common_prefix
from local_models.llama_cpp.segments import ContextLimits, Segment, check
from local_models.store import open_store
from tests.memory import resident_bytes

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
    opened = Context(model, 768, KvCache(2))
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


@pytest.mark.models
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


@pytest.mark.models
def test_a_cache_is_the_same_however_it_was_filled(model: Model, context: Context) -> None:
    text = model.tokenize(TEXT, False)
    prefill(context, 0, text[:280])
    reference = decode(context, 0, text[280:282])

    for rows in (3, 10, EXACT_ROWS - 1):
        prefill(context, 1, text[:280], rows)
        assert np.array_equal(decode(context, 1, text[280:282]), reference)


@pytest.mark.models
def test_more_rows_at_once_than_exact_rows_are_not_exact(model: Model) -> None:
    """This is the negative control: if it fails, EXACT_ROWS can be removed."""
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, KvCache(2))
    prefill(context, 0, text[:256], EXACT_ROWS)
    prefill(context, 1, text[:256], EXACT_ROWS + 65)

    assert not np.array_equal(
        decode(context, 0, text[256:258]), decode(context, 1, text[256:258])
    )
    context.close()


# Two threads wait for each other at every step, long ones if other programs want the cores: so
# each of these tests has weights of one type.


@pytest.mark.models
@pytest.mark.parametrize("model", ["q4_0"], indirect=True)
def test_a_coarse_cache_is_exact_with_two_threads_and_long_prefills(model: Model) -> None:
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, KvCache(2, "Q8_0"), threads=2)
    prefill(context, 0, text[:280], EXACT_ROWS)
    prefill(context, 1, text[:280], 256)

    assert np.array_equal(
        decode(context, 0, text[280:284]), decode(context, 1, text[280:284], 4)
    )
    context.close()


@pytest.mark.models
@pytest.mark.parametrize("model", ["q8_0"], indirect=True)
def test_two_threads_on_the_fine_cache_are_not_exact(model: Model) -> None:
    """This is the negative control of the test above."""
    text = model.tokenize(TEXT, False)
    context = Context(model, 768, threads=2)
    prefill(context, 0, text[:280])
    alone = decode(context, 0, text[280:284])
    context.truncate(0, 280)

    assert not np.array_equal(decode(context, 0, text[280:284], 4), alone)
    context.close()


@pytest.mark.models
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


@pytest.mark.models
def test_a_refused_segment_changes_nothing(model: Model, context: Context) -> None:
    text = model.tokenize(TEXT, False)
    prefill(context, 0, text[:50])

    with pytest.raises(BadSegment):
        context.decode([Segment(0, 50, [1]), Segment(1, 5, [1])])
    with pytest.raises(NoRoom):
        Context(model, 20).decode([Segment(0, 0, text[:21])])

    assert (context.length(0), context.length(1)) == (50, 0)


@pytest.mark.models
def test_only_the_logits_that_were_asked_for_are_there(model: Model, context: Context) -> None:
    context.decode([Segment(0, 0, [1, 2, 3], 0), Segment(1, 0, [4, 5], 1)])

    assert context.logits(0).shape == (model.vocabulary_size,)
    with pytest.raises(BadSegment):
        context.logits(1)


@pytest.mark.models
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF, but nothing more")

    with pytest.raises(CannotOpen, match=r"a\.gguf"):
        Model(tmp_path / "a.gguf")


@pytest.mark.models
def test_the_model_knows_its_facts(model: Model) -> None:
    assert model.context_tokens == 8192
    assert model.vocabulary.piece(2, special=True) == b"<|im_end|>"
    assert 2 in model.vocabulary.stop_tokens
    assert model.metadata()["general.architecture"] == "llama"


# Segments that are refused before llama.cpp gets them.

LIMITS = ContextLimits(
    sequences=2, context_tokens=10, batch_tokens=6, vocabulary_size=100, logits_rows=5
)
HELD = {0: 3, 1: 8}


PIECES = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</s>", "<|im_", "end|>"),
    *(" ", "  b", "\n", "a", "<", "|", "\u4e2d", "word 12"),
)


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_the_parts_of_a_long_text_have_the_tokens_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(open_store(os.environ).find(name, "draft").path, vocabulary_only=True)
    chance = np.random.default_rng(7)
    texts = ["".join(chance.choice(PIECES, 60)) for _ in range(200)]
    whole = [[model.tokenize(text, special) for text in texts] for special in (False, True)]

    monkeypatch.setattr(llama_model, "SHALLOW_CHARS", 0)
    monkeypatch.setattr(llama_model, "PART_CHARS", 20)

    assert len(model._parts("<|im_end|>" * 9, True)) == 5
    cut = [[model.tokenize(text, special) for text in texts] for special in (False, True)]
    assert cut == whole


def test_segments_of_two_sequences_that_go_on_where_they_are_pass() -> None:
    check(
        [Segment(0, 3, [1, 2, 3, 4], logits=3), Segment(1, 8, [0, 99])],
        LIMITS,
        HELD.__getitem__,
    )


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([], id="no-rows"),
        pytest.param([Segment(0, 3, [1] * 7)], id="more-rows-than-a-pass-takes"),
        pytest.param([Segment(0, 3, [1] * 4), Segment(1, 8, [1] * 2)], id="too-many-logits"),
        pytest.param([Segment(0, 3, [1]), Segment(1, 8, [])], id="an-empty-segment"),
        pytest.param([Segment(0, 3, [1]), Segment(0, 4, [2])], id="one-sequence-twice"),
        pytest.param([Segment(2, 0, [1])], id="a-sequence-that-does-not-exist"),
        pytest.param([Segment(-1, 0, [1])], id="a-negative-sequence"),
        pytest.param([Segment(0, 4, [1])], id="a-gap"),
        pytest.param([Segment(0, 2, [1])], id="a-position-already-decoded"),
        pytest.param([Segment(0, 3, [100])], id="a-token-beyond-the-vocabulary"),
        pytest.param([Segment(0, 3, [-1])], id="a-negative-token"),
    ],
)
def test_a_segment_that_breaks_a_rule_is_refused(segments: list[Segment]) -> None:
    with pytest.raises(BadSegment):
        check(segments, LIMITS, HELD.__getitem__)


def test_a_sequence_that_would_outgrow_its_context_has_no_room() -> None:
    with pytest.raises(NoRoom, match="sequence 1"):
        check([Segment(1, 8, [1, 2, 3])], LIMITS, HELD.__getitem__)


# Common prefixes, against the definition.

TOKENS = st.lists(st.integers(0, 1), max_size=6)


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_the_longest_that_both_have(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)

    assert a[:length] == b[:length]
    assert a[: length + 1] != b[: length + 1] or length == min(len(a), len(b))
    assert common_prefix(tuple(a), b) == length


# A context is as long as its model's, as far as a share of the memory holds its KV.

QWEN = {
    "general.architecture": "qwen2",
    "qwen2.block_count": "28",
    "qwen2.embedding_length": "1536",
    "qwen2.attention.head_count": "12",
    "qwen2.attention.head_count_kv": "2",
}
LEAST = 4096


@given(st.integers(16, 1 << 18), st.integers(1, 1 << 20), st.integers(0, 1 << 18))
def test_the_longest_context_that_fits_is_taken(trained: int, kv_bytes: int, fits: int) -> None:
    tokens = fitting_tokens(trained, kv_bytes, LEAST, fits * kv_bytes)

    assert min(LEAST, trained) <= tokens <= trained
    assert tokens <= max(LEAST, fits)
    assert tokens == trained or (tokens & (tokens - 1) == 0 and 2 * tokens > fits)


def test_a_setting_outdoes_the_memory_and_the_model_outdoes_it() -> None:
    given = {"kv": KvCache(2), "min_tokens": LEAST}

    lengths = [context_length(QWEN, 512, asked, **given).tokens for asked in (256, 1024)]

    assert lengths == [256, 512]


def test_the_bytes_of_a_token_are_those_of_its_keys_and_values() -> None:
    wide = QWEN | {"qwen2.attention.key_length": "256"}

    assert kv_bytes_per_token(QWEN, KvCache()) == 28 * 2 * (128 + 128) * 2
    assert kv_bytes_per_token(wide, KvCache(keys="Q8_0")) == 28 * 2 * (256 + 128) * 34 / 32


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/memory.max").write_text("4096\n")
    (tmp_path / "a/b/memory.max").write_text("max\n")

    assert list(context_room._limits(own, tmp_path)) == [4096]
    assert list(context_room._limits(tmp_path / "none", tmp_path)) == []


@pytest.mark.models
def test_the_memory_that_a_context_takes_is_what_is_said_of_it() -> None:
    model = Model(open_store(os.environ).find("smollm2", "target").path)
    kv = KvCache(4, "Q8_0")
    length = context_length(model.metadata(), 8192, None, kv=kv, min_tokens=LEAST)

    before = resident_bytes()
    context = Context(model, length.tokens, kv)
    taken = resident_bytes() - before
    context.close()
    model.close()

    assert length.kv_bytes == pytest.approx(taken, rel=0.1)
