"""A context is as long as its model's, as far as a share of the memory holds its KV."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.models.llama_cpp import model as context_room
from picospec.models.llama_cpp.model import (
    Context,
    Model,
    context_length,
    fitting_tokens,
    kv_bytes_per_token,
)
from picospec.models.store import open_store

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
    given = {"sequences": 2, "cache": "F16", "min_tokens": LEAST}

    lengths = [context_length(QWEN, 512, asked, **given).tokens for asked in (256, 1024)]

    assert lengths == [256, 512]


def test_the_bytes_of_a_token_are_those_of_its_keys_and_values() -> None:
    wide = QWEN | {"qwen2.attention.key_length": "256"}

    assert kv_bytes_per_token(QWEN, "F16") == 28 * 2 * (128 + 128) * 2
    assert kv_bytes_per_token(wide, "Q8_0") == 28 * 2 * (256 + 128) * 34 / 32


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
    length = context_length(
        model.metadata(), 8192, None, sequences=4, cache="Q8_0", min_tokens=LEAST
    )

    before = _resident_bytes()
    context = Context(model, length.tokens, sequences=4, cache="Q8_0")
    taken = _resident_bytes() - before
    context.close()
    model.close()

    assert length.kv_bytes == pytest.approx(taken, rel=0.1)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
