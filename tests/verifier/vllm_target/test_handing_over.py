"""Answers of a verifier on vLLM that ends, or whose engine is killed, go on at another one."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.rig.asking import MODEL, Answer
from tests.faults.rig.world import FOLDER, Plan, World
from tests.faults.strikes import Strike, ask_again, drain, struck
from tests.verifier.vllm_target.conftest import ON_ENGINE, SMALL

pytestmark = ON_ENGINE
ENGINE = (
    "--target", "vllm", *SMALL, "--vllm.max-model-len", "1024", "--vllm.self-test", "false",
    "--pass-timeout-s", "300", "--served-name", MODEL,
)  # fmt: skip
ENDS = {"stop", "length", "tool_calls"}
REOPENED = "picospec:edge_reopened_answers_total"
AT_ONCE = ("--drain-timeout-s", "0")
"""Answers as short as these would end within a deadline."""


def _rounded(answer: Answer) -> Answer:
    """Return it with log-probabilities to three digits: their last ones depend on the other
    rows of a pass."""
    logprobs = [{**each, "logprob": round(each["logprob"], 3)} for each in answer.logprobs]
    return replace(answer, logprobs=[{**each, "top_logprobs": []} for each in logprobs])


def is_core(pid: int) -> bool:
    return b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def kill_core(world: World) -> None:
    """Kill vLLM's core; its API server is to notice, and to end."""
    verifier = await world.used()
    (core,) = filter(is_core, verifier.pids)
    os.kill(core, signal.SIGKILL)
    await verifier.ended()


@pytest.mark.parametrize("strike", [drain, kill_core])
async def test_answers_go_on_at_another_verifier_and_are_the_same(
    directory: Path, strike: Strike
) -> None:
    options = (*ENGINE, "--model", str(directory), *AT_ONCE)
    async with World(Plan(verifier_options=options, folder=FOLDER / "vllm")) as world:
        undisturbed = await ask_again(world)

        answers, _ = await struck(world, strike)

        assert {answer.outcome for answer in undisturbed.values()} <= ENDS
        assert {kind: _rounded(answer) for kind, answer in answers.items()} == {
            kind: _rounded(answer) for kind, answer in undisturbed.items()
        }
        assert sum((await world.edge.gauge(world.http, REOPENED)).values()) >= 1
