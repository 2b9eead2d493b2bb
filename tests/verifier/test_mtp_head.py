"""The head of the target's own file drafts on llama.cpp, and changes no text.

The models are made here, with random weights and a head that agrees with them often.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from gateway.ports import Job, opening
from local_models.errors import CannotOpen
from local_models.file_hashes import FileHashes
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.segments import Segment
from speculation.messages import Totals
from speculation.model_facts import Limits, TokenId
from tests.local_models.llama_cpp.hybrids import MTP, write
from tests.verifier.served_llama import (
    LONG,
    PROMPTS,
    TEMPERATURES,
    job_of,
    plain,
    serving,
    tokens_of,
    useless,
    with_drafts,
)
from verifier.host import Host
from verifier.llama_target.mtp_head import MtpHead
from verifier.llama_target.pass_runner import PassRunner
from verifier.settings import LlamaSettings

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

LIMITS = Limits(max_verify=8)


@pytest.fixture(scope="module", params=MTP)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    return write(request.param, folder / "model.gguf", has_head=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(path: Path) -> AsyncIterator[Host]:
    """A target whose head costs nothing, so that it drafts before each pass."""
    async with serving(path, LIMITS, head="mtp") as opened:
        opened.ready()._engine.head_step_s = 0.0  # type: ignore[attr-defined]
        yield opened


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_the_head_changes_no_text_and_some_of_its_tokens_are_accepted(
    path: Path, host: Host, temperature: float
) -> None:
    async with serving(path, LIMITS) as without:
        texts = [await plain(without, job_of(without, p, temperature)) for p in PROMPTS]
    accepted = 0

    for prompt, text in zip(PROMPTS, texts, strict=True):
        job = job_of(host, prompt, temperature)
        said, finish = await with_drafts(host, job, text, lambda *_: None, "head")
        accepted += finish.totals.verifier_accepted

        assert said == text

    assert accepted > 0
