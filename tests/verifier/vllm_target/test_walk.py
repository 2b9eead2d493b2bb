"""The walk in docs/architecture.md is what runs where vLLM is the target."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.walk.documented import missing
from tests.walk.measured import measure

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


async def test_the_documented_walk_is_made_of_calls(directory: Path) -> None:
    walks = await measure("vllm", str(directory), sys.executable)

    assert missing(walks.answer, "vLLM") == []
