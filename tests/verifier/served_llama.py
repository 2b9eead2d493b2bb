"""The embedded target in this process, what it generates, and edges that draft by a rule."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from gateway.drain import Drain
from gateway.ports import Job, opening
from local_models.store import StoredModel, open_store
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Draft,
    Finish,
    Open,
    Sampling,
    TokenLogprob,
)
from speculation.model_facts import Limits, TokenId
from speculation.wire import Framed
from tests.verifier.down import begun, replies_of
from verifier.host import Host
from verifier.llama_target.scheduler import HEAD_TOKENS
from verifier.llama_target.target import LlamaTarget
from verifier.metrics import VerifierMetrics
from verifier.plain_engine import PlainEngine
from verifier.settings import LlamaSettings

LONG = "Here is what I know of the sea. " * 12
PROMPTS = ("Count from one to twenty.", "Write a haiku.", LONG, "What is 12 times 12?")
TEMPERATURES = (0.0, 1.0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@asynccontextmanager
async def serving(
    path: Path | None = None, limits: Limits | None = None, **settings: object
) -> AsyncIterator[Host]:
    """Give the host of a target that is ready: SmolLM2's, or that of other weights."""
    known = {"slots": 4, "waiting": 1, "context_tokens": 512, "threads": 1, "prefill_rows": 32}
    target = LlamaTarget(
        lambda: StoredModel(
            "smollm2", path or open_store(os.environ).find("smollm2", "target").path
        ),
        LlamaSettings.model_validate(known | settings),
        limits or Limits(),
        VerifierMetrics(CollectorRegistry()),
    )
    host = Host(target, Drain())
    async with host.running():
        async with asyncio.timeout(1200):  # a software device takes seconds a pass
            while host._state == "loading":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield host


@asynccontextmanager
async def serving_head(path: Path, limits: Limits) -> AsyncIterator[Host]:
    """Give the host of a target whose head drafts before each pass, whether it pays or not."""
    async with serving(path, limits, head="mtp") as host:
        machine = host.ready()._machine  # type: ignore[attr-defined]

        def heads_to_draft(names: Collection[str], *_: float) -> tuple[Collection[str], int]:
            sessions = {name: machine.session(name) for name in names}
            going = [n for n, each in sessions.items() if each.may_begin and each.head_room]
            return going, HEAD_TOKENS if going else 0

        machine.heads_to_draft = heads_to_draft
        yield host


def job_of(
    host: Host, prompt: str, temperature: float, seed: int = 11, **extras: object
) -> Job:
    tokens = host.ready().tokenizer.chat([{"role": "user", "content": prompt}])
    top_p = 0.95 if temperature else 1.0
    sampling = Sampling(temperature=temperature, top_p=top_p)
    return Job("job", tuple(tokens), TOKENS, sampling, seed, 2, extras)


async def plain(host: Host, job: Job) -> list[TokenId]:
    deltas = PlainEngine(host).generate(job)
    async with aclosing(deltas):
        return [token async for delta in deltas for token in delta.tokens]


Said = list[tuple[TokenId, TokenLogprob]]


async def said(host: Host, request: Open) -> tuple[Said, int]:
    """Return the tokens that a session without drafts commits, with their log-probabilities,
    and how many tokens of its prompt were cached."""
    found, cached_tokens = Said(), 0
    async with aclosing(host.ready().replies("said", request)) as replies:
        async for reply in replies:
            if isinstance(commit := reply.message, Commit):
                assert commit.start == len(request.committed) + len(found)
                found += zip(commit.tokens, commit.logprobs or (), strict=True)
            elif isinstance(reply.message, CachedPromptTokens):
                cached_tokens = reply.message.tokens
    return found, cached_tokens


async def go_on(host: Host, request: Open, text: Said, *places: int) -> None:
    """Assert that an answer goes on from these places of its text as if it had begun there."""
    for known in places:
        committed = tuple(token for token, _ in text[:known])
        rest, _ = await said(host, replace(request, committed=committed))
        assert rest == text[known:]


# Edges whose drafts follow a rule, for sessions at the embedded target.

TOKENS = 24
Drafter = Callable[[Sequence[TokenId], int, np.random.Generator], Draft | None]
"""Drafter(text, position, chance): the Draft sent once `position` tokens are committed."""


def perfect(text: Sequence[TokenId], at: int, _: np.random.Generator) -> Draft | None:
    return Draft(at, at, 0, tuple(text[at : at + 6])) if at < len(text) else None


def useless(text: Sequence[TokenId], at: int, _: np.random.Generator) -> Draft | None:
    return Draft(at, at, 0, (7, 8, 9))


def patchy(text: Sequence[TokenId], at: int, chance: np.random.Generator) -> Draft | None:
    drafted = [token if chance.random() < 0.8 else 9 for token in text[at : at + 8]]
    return Draft(at, at, 0, tuple(drafted)) if drafted else None


def late(text: Sequence[TokenId], at: int, _: np.random.Generator) -> Draft | None:
    start = max(0, at - 3)
    return Draft(at, start, 0, tuple(text[start : start + 6])) if start < len(text) else None


async def with_drafts(
    host: Host,
    job: Job,
    text: Sequence[TokenId],
    drafter: Drafter,
    name: str,
    is_judged: bool = False,
) -> tuple[list[TokenId], Finish]:
    """Run a session whose edge sends a draft after each Commit.

    Perfect drafts, and others that is_judged, are judged however dear their rows are on this
    machine: fill is `never`, and the first is there before the first pass.
    """
    target, chance = host.ready(), np.random.default_rng(5)
    committed: list[TokenId] = []
    request = opening(job, target.facts)
    if is_judged := is_judged or drafter is perfect:
        request = replace(request, fill="never")
    async with aclosing(replies_of(target, name, request)) as session:
        coming = asyncio.create_task(anext(session))
        await begun()
        if is_judged and (draft := drafter(text, 0, chance)):
            await target.push(name, Framed(draft))
        while not isinstance(message := (await coming).message, Finish):
            assert isinstance(message, Commit)
            assert message.start == len(committed)
            committed += message.tokens
            coming = asyncio.create_task(anext(session))
            draft = drafter(text, len(committed), chance)
            if (
                draft
                and len(committed) < TOKENS
                and committed[-1] not in target.facts.stop_tokens
            ):
                await target.push(name, Framed(draft))
    return committed, message
