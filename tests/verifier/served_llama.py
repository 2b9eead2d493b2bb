"""The embedded target on SmolLM2 in this process, and what it generates without an edge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from picospec.gateway.drain import Drain
from picospec.gateway.ports import Job
from picospec.gateway.ports import Sampling as PlainSampling
from picospec.models.store import Found, open_store
from picospec.speculation.messages import Commit, Limits, Open, TokenId
from picospec.verifier.app import PlainEngine
from picospec.verifier.llama_target.target import LlamaTarget
from picospec.verifier.metrics import VerifierMetrics
from picospec.verifier.settings import LlamaSettings
from picospec.verifier.target_host import Host
from tests.verifier.down import replies_of
from tests.verifier.llama_edges import TOKENS

LONG = "Here is what I know of the sea. " * 12
PROMPTS = ("Count from one to twenty.", "Write a haiku.", LONG, "What is 12 times 12?")
TEMPERATURES = (0.0, 1.0)


@asynccontextmanager
async def serving(path: Path | None = None) -> AsyncIterator[Host]:
    """Give the host of a target that is ready: SmolLM2's, or that of other weights."""
    target = LlamaTarget(
        lambda: Found("smollm2", path or open_store(os.environ).find("smollm2", "target").path),
        LlamaSettings(slots=4, waiting=1, context_tokens=512, threads=1, prefill_rows=32),
        Limits(),
        VerifierMetrics(CollectorRegistry()),
    )
    host = Host(target, Drain())
    async with host.running():
        async with asyncio.timeout(60):
            while host._state == "loading":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield host


def job_of(
    host: Host, prompt: str, temperature: float, seed: int = 11, **extras: object
) -> Job:
    tokens = host.ready().tokenizer.chat([{"role": "user", "content": prompt}])
    top_p = 0.95 if temperature else 1.0
    sampling = PlainSampling(temperature=temperature, top_p=top_p)
    return Job("job", tuple(tokens), TOKENS, sampling, seed, 2, extras)


async def plain(host: Host, job: Job) -> list[TokenId]:
    deltas = PlainEngine(host).generate(job)
    async with aclosing(deltas):
        return [token async for delta in deltas for token in delta.tokens]


async def tokens_of(host: Host, name: str, request: Open) -> list[TokenId]:
    async with aclosing(replies_of(host.ready(), name, request)) as replies:
        messages = [reply.message async for reply in replies]
    return [token for m in messages if isinstance(m, Commit) for token in m.tokens]
