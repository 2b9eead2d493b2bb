"""Edges whose drafts follow a rule, for sessions at the embedded target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import numpy as np

from picospec.gateway.ports import Job
from picospec.speculation.distributions import DraftToken, QuantisedDistribution
from picospec.speculation.drafting import DraftingSession
from picospec.speculation.messages import Commit, Draft, Finish, TokenId
from picospec.speculation.wire import Framed
from picospec.verifier.app import opening
from picospec.verifier.target import Target, UnknownSession
from picospec.verifier.target_host import Host
from tests.verifier.down import replies_of

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
    host: Host, job: Job, text: Sequence[TokenId], drafter: Drafter, name: str
) -> tuple[list[TokenId], Finish]:
    """Run a session whose edge sends a draft after each Commit.

    Perfect drafts are judged however dear their rows are on this machine: fill is `never`, and
    the first is there before the first pass.
    """
    target, chance = host.ready(), np.random.default_rng(5)
    committed: list[TokenId] = []
    request = opening(job, target.facts)
    if drafter is perfect:
        request = replace(request, fill="never")
    async with aclosing(replies_of(target, name, request)) as session:
        coming = asyncio.create_task(anext(session))
        await asyncio.sleep(0)
        if drafter is perfect:
            await target.push(name, Framed(Draft(0, 0, 0, tuple(text[:6]))))
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


async def draft_half_right(
    target: Target, edge: DraftingSession, text: Sequence[TokenId]
) -> None:
    """Extend the chain from a distribution that is half right, and send it."""
    while edge.may_extend and len(edge.chain) < 4:
        at = edge.end
        distribution = QuantisedDistribution(
            np.array([text[at % len(text)], 9]), np.array([1 << 15, 1 << 15])
        )
        edge.extend(
            DraftToken(
                distribution.at(0.75 if at % 3 == 2 else 0.25), confidence=0.5, q=distribution
            )
        )
    if draft := edge.flush():
        with suppress(UnknownSession):  # it may have finished by now
            await target.push("separate", Framed(draft))
