"""Writing a GGUF file in another quantisation."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.models.errors import CannotQuantise
from picospec.models.llama_cpp.library import quantise


def test_a_file_that_cannot_be_quantised_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(b"not a gguf")

    with pytest.raises(CannotQuantise):
        quantise(source, tmp_path / "b.gguf", "Q4_0")

    assert list(tmp_path.iterdir()) == [source]
