"""vLLM's own server, which the bench compares with, starts with the verifier's options."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from bench.run.client import Client, Question
from bench.run.rivals import Rival
from bench.run.services import Services, ServicesPlan
from tests.verifier.vllm_target.conftest import SMALL

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


async def test_vllms_own_speculation_answers_and_counts_its_draft_tokens(
    directory: Path,
) -> None:
    arguments = (*SMALL, "--vllm.self-test", "false")
    plan = ServicesPlan(
        str(directory), "", {}, "vllm", arguments, sys.executable, rival=Rival("cloud-ngram", 4)
    )

    async with (
        Services(plan) as services,
        httpx.AsyncClient(base_url=services.verifier_url, timeout=120) as http,
    ):
        reply = await Client(http).ask(Question("Say yes ten times.", 0.0, 7, 32))

    assert reply.tokens == 32
    assert 0 < reply.accepted <= reply.drafted
    assert reply.target_passes == reply.tokens - reply.accepted
