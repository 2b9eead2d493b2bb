"""How many files one draft token and one streamed chat request go through, by calls.

    python -m tests.walk.measured --calls
    python -m tests.walk.measured --target vllm --target-model DIR \\
        --verifier-python .venv-vllm/bin/python

Both ends run as they are shipped, with SmolLM2. A *draft token* goes through what runs at both
ends in the last three quarters of an answer: drafting, judging, and the way back. (In the first
quarter the edge may still be opening the stream for its drafts, and posts them meanwhile.) A
*request* goes through what runs at the edge from its first byte to its last. Calls of services
that nobody asks are left out of both.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from bench.run.services import EdgePlan, Services, ServicesPlan
from tests.walk.calls import Walk, walk, without
from tests.walk.hook.sitecustomize import BUCKET_S

ROOT: Final = Path(__file__).parents[2]
IDLE_S: Final = 4.0
"""As long as every service needs to do each of its regular tasks once."""

BODY: Final[dict[str, Any]] = {"stream": True, "max_tokens": 128, "temperature": 0}
VLLM: Final = (
    "--vllm.dtype", "float32", "--vllm.max_model_len", "256", "--vllm.max_num_seqs", "4",
    "--vllm.kv_cache_memory_bytes", str(1 << 27),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Walks:
    """What was called for a draft token and for a streamed chat request."""

    draft_token: Walk
    request: Walk
    answer: Walk
    """Both ends called this from the request to its end, which has every draft token in it."""


FEW: Final = 16
"""A first answer of so few tokens does not teach an edge yet to rest, if drafts do not pay."""


async def ask(url: str, whom: str, **more: int) -> tuple[float, float]:
    """Ask for a story; return when a quarter of its text, and when all of it, had come. more:
    fields of the request."""
    pieces = []
    message = {"role": "user", "content": f"Tell me a long story about {whom}."}
    async with (
        httpx.AsyncClient(timeout=120, trust_env=False) as client,
        client.stream(
            "POST", f"{url}/v1/chat/completions", json=BODY | more | {"messages": [message]}
        ) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                pieces.append(time.monotonic())
    return pieces[len(pieces) // 4], pieces[-1]


async def measure(
    target: str = "llama", target_model: str = "smollm2", python: str = sys.executable
) -> Walks:
    """Start both ends, ask twice, and return the calls that the second answer took."""
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory)
        environment = {
            "PYTHONPATH": str(ROOT / "tests" / "walk" / "hook"),
            "WALK_INTO": directory,
            "WALK_ROOT": str(ROOT),
        }
        plan = ServicesPlan(
            target_model,
            "smollm2",
            {"edge": EdgePlan()},
            target=target,
            verifier_arguments=VLLM if target == "vllm" else (),
            verifier_python=python,
            environment=environment,
        )
        async with Services(plan) as services:
            edge = services.edge_urls["edge"]
            await ask(edge, "a keeper", max_tokens=FEW)
            await asyncio.sleep(IDLE_S)
            idle_s = time.monotonic()
            await asyncio.sleep(IDLE_S)
            idle = walk(into, idle_s, time.monotonic())
            await asyncio.sleep(5 * BUCKET_S)
            asked_s = time.monotonic() - BUCKET_S
            quarter_s, last_s = await ask(edge, "a sailor")
            await asyncio.sleep(0.2)
            answer = walk(into, asked_s, time.monotonic())
            request = walk(into, asked_s, time.monotonic(), [services.pids["edge"]])
            token = walk(into, quarter_s, last_s)
    return Walks(without(token, idle), without(request, idle), answer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="llama", choices=["llama", "vllm"])
    parser.add_argument("--target-model", default="smollm2")
    parser.add_argument("--verifier-python", default=sys.executable)
    parser.add_argument("--calls", action="store_true", help="print every call")
    given = parser.parse_args(argv)
    walks = asyncio.run(measure(given.target, given.target_model, given.verifier_python))
    for name, taken in (("draft token", walks.draft_token), ("request", walks.request)):
        print(f"{name}: {taken}")  # noqa: T201
        if given.calls:
            for call in sorted(taken.calls, key=lambda call: (call.caller, call.callee)):
                print(f"  {call.caller} -> {call.callee}")  # noqa: T201


if __name__ == "__main__":
    main()
