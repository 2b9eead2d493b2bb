"""Measures a verifier's passes over the protocol, as an edge would.

A session whose answer is known receives draft tokens that will be accepted, so each pass judges
any wanted number: the tokens of a Commit are the rows of its pass. There are two ways to send:

back to back    The draft tokens of the next pass are there when a pass ends. A period is then
                `queue_s` plus `pass_s` of a Commit, both measured by the verifier.
stop and wait   The draft tokens of the next pass are sent when the Commit arrives: `queue_s` is
                the time that software takes for a round trip.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from picospec.edge_agent.link.session import Link
from picospec.edge_agent.link.uplink import Uplink
from picospec.speculation.distributions import DraftToken
from picospec.speculation.drafting import DraftingSession
from picospec.speculation.messages import (
    Commit,
    Down,
    Draft,
    Fill,
    Finish,
    ModelFacts,
    Open,
    Opened,
    Sampling,
    TokenId,
)

DRAFTS: Final = (1, 2, 4, 8, 16, 32)
WARM_UP: Final = 2
"""This many first Commits do not count: the prompt's, and one that may lack draft tokens."""

MAX_PASSES: Final = 12
MIN_PASSES: Final = 3
"""Row counts with fewer passes are left out, because they occurred by chance."""

POST_EVERY_S: Final = 0.02
"""Messages that disturb a pass follow one another after this many seconds."""


class TimingError(Exception):
    """The verifier's answers cannot be timed."""


@dataclass(frozen=True, slots=True)
class Question:
    """A Question has a prompt and the target's answer to it, as tokens."""

    prompt: tuple[TokenId, ...]
    answer: tuple[TokenId, ...]


@dataclass(frozen=True, slots=True)
class Verifier:
    """Times the passes of the verifier behind an uplink, at temperature 0."""

    uplink: Uplink
    facts: ModelFacts

    async def answer(self, prompt: Sequence[TokenId], tokens: int) -> list[Commit]:
        """Return the Commits of an answer that the target generates without draft tokens."""
        return await _run(self._link(prompt, tokens))

    async def tokens(self, prompt: Sequence[TokenId], tokens: int) -> tuple[TokenId, ...]:
        """Return the target's answer."""
        commits = await self.answer(prompt, tokens)
        return tuple(token for commit in commits for token in commit.tokens)

    async def rows(self, question: Question, drafts: int, *, ahead: bool) -> list[Commit]:
        """Return the Commits of passes over `drafts` draft tokens, sent back to back (`ahead`)
        or stop and wait; fewer if a draft token was rejected."""
        tokens = len(question.answer)
        link = self._link(question.prompt, tokens, fill="never")
        return (await _run(link, Drafted(question, drafts, ahead)))[WARM_UP:]

    async def first_s(self, prompt: Sequence[TokenId]) -> float:
        """Return the seconds from a request to the first token, for a prompt asked before."""
        await self.answer(prompt, 1)
        began_s = perf_counter()
        await self.answer(prompt, 1)
        return perf_counter() - began_s

    async def disturbed(self, prompt: Sequence[TokenId], passes: int) -> tuple[float, float]:
        """Return the median period while useless messages arrive, and their number in each
        period."""
        link = self._link(prompt, passes)
        posts = count()

        async def post() -> None:
            for _ in posts:
                link.send(Draft(0, 1, 1, (0,)))
                await asyncio.sleep(POST_EVERY_S)

        async with meanwhile(post()):
            commits = await _run(link)
        return period_s(commits[WARM_UP:]), next(posts) / len(commits)

    def _link(self, prompt: Sequence[TokenId], tokens: int, fill: Fill = "always") -> Link:
        model, vocabulary = self.facts.model, self.facts.vocabulary
        greedy = Sampling(temperature=0.0)
        asked = Open(model, vocabulary, tuple(prompt), greedy, 0, tokens, (), fill=fill)
        return Link(self.uplink, asked)


class Drafted:
    """Sends draft tokens that will be accepted."""

    def __init__(self, question: Question, drafts: int, ahead: bool) -> None:
        self.done = False
        self._answer = question.answer
        self._first_reach = drafts + 1
        self._reach = 2 * drafts + 1 if ahead else drafts
        self._session = DraftingSession(max_tokens=len(question.answer), stop_tokens=())
        self._passes = 0

    def receive(self, message: Down) -> Draft | None:
        """Return the Draft that answers a message, if any."""
        session, reach = self._session, self._first_reach
        if isinstance(message, Commit):
            session.receive(message)
            self._passes += 1
            broken = session.epoch > 0
            self.done = broken or self._passes == MAX_PASSES + WARM_UP
            reach = self._reach
        if self.done or not isinstance(message, Commit | Opened):
            return None
        known = len(session.committed)
        for token in self._answer[known + len(session.chain) : known + reach]:
            session.extend(DraftToken(token, 1.0))
        return session.flush()


async def _run(link: Link, script: Drafted | None = None) -> list[Commit]:
    """Run a session until its script is done or it ends; return its Commits."""
    commits: list[Commit] = []
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(link.post())
        async with aclosing(link.events()) as events:
            async for message in events:
                if isinstance(message, Commit):
                    commits.append(message)
                if script and (draft := script.receive(message)):
                    link.send(draft)
                if isinstance(message, Finish) or (script and script.done):
                    break
        posting.cancel()
    return commits


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, object]) -> AsyncGenerator[None]:
    """Run `work` concurrently with the body, and cancel it at the end."""
    other = asyncio.create_task(work)
    try:
        yield
    finally:
        other.cancel()
        await asyncio.wait([other])


def period_s(commits: Sequence[Commit]) -> float:
    """Return the median time from the start of one pass to the start of the next."""
    if not commits:
        raise TimingError("the answer was too short to be timed")
    return median(commit.queue_s + commit.pass_s for commit in commits)


def curve(commits: Sequence[Commit]) -> dict[int, float]:
    """Return median periods by rows, over passes whose draft tokens were all accepted."""
    found: dict[int, list[Commit]] = {}
    for commit in commits:
        if commit.accepted == len(commit.tokens) - 1:
            found.setdefault(len(commit.tokens), []).append(commit)
    return {r: period_s(some) for r, some in sorted(found.items()) if len(some) >= MIN_PASSES}


def line(prompt_tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit a line through first passes; return its start at no tokens and its slope. If longer
    prompts are not slower, return the mean and 0."""
    if len(set(prompt_tokens)) > 1:
        slope, start = np.polyfit(prompt_tokens, seconds, 1)
        if slope > 0.0 and start > 0.0:
            return float(start), float(slope)
    return float(np.mean(seconds)), 0.0
