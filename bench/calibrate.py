"""`python -m bench speeds` measures the speed of both ends, for `simulate --hosts FILE`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Final

import numpy as np
import typer
from prometheus_client import CollectorRegistry
from rich.console import Console

from bench import options
from bench.prompts import Prompt, read
from bench.results import commit, save, this_host
from bench.run.services import Services, ServicesPlan, verifier_arguments
from bench.simulator.hosts import Speeds
from edge_agent.draft.drafter import DraftSlot
from edge_agent.draft.llama import LlamaDrafter
from edge_agent.draft.loading import find
from edge_agent.link.connection import Connection
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from gateway.errors import ApiError
from gateway.hosting.processes import ServiceError
from local_models.errors import ModelError
from local_models.llama_cpp.model import Context, Model
from local_models.store import open_store
from local_models.tokenizer_file import TokenizerFile
from speculation import coupled
from speculation.draft_token import DraftToken
from speculation.drafting import DraftingSession
from speculation.messages import (
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

# Measures a verifier's passes over the protocol, as an edge would.
#
# A session whose answer is known receives draft tokens that will be accepted, so each pass
# judges any wanted number: the tokens of a Commit are the rows of its pass. There are two ways
# to send:
#
# back to back    The draft tokens of the next pass are there when a pass ends. A period is then
#                 `queue_s` plus `pass_s` of a Commit, both measured by the verifier.
# stop and wait   The draft tokens of the next pass are sent when the Commit arrives: `queue_s`
#                 is the time that software takes for a round trip.

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
class TimedVerifier:
    """Times the passes of a verifier, at temperature 0."""

    verifier: Verifier
    facts: ModelFacts

    async def answer(self, prompt: Sequence[TokenId], tokens: int) -> list[Commit]:
        """Return the Commits of an answer that the target generates without draft tokens."""
        return await _run(self._session(prompt, tokens))

    async def tokens(self, prompt: Sequence[TokenId], tokens: int) -> tuple[TokenId, ...]:
        """Return the target's answer."""
        commits = await self.answer(prompt, tokens)
        return tuple(token for each in commits for token in each.tokens)

    async def rows(self, question: Question, drafts: int, *, ahead: bool) -> list[Commit]:
        """Return the Commits of passes over `drafts` draft tokens, sent back to back (`ahead`)
        or stop and wait; fewer if a draft token was rejected."""
        tokens = len(question.answer)
        session = self._session(question.prompt, tokens, fill="never")
        return (await _run(session, Drafted(question, drafts, ahead)))[WARM_UP:]

    async def first_s(self, prompt: Sequence[TokenId]) -> float:
        """Return the seconds from a request to the first token, for a prompt asked before."""
        await self.answer(prompt, 1)
        began_s = perf_counter()
        await self.answer(prompt, 1)
        return perf_counter() - began_s

    async def disturbed(self, prompt: Sequence[TokenId], passes: int) -> tuple[float, float]:
        """Return the median period while useless messages arrive, and their number in each
        period."""
        session = self._session(prompt, passes)
        posts = count()

        async def post() -> None:
            for _ in posts:
                session.send(Draft(0, 1, 1, (0,)))
                await asyncio.sleep(POST_EVERY_S)

        async with meanwhile(post()):
            commits = await _run(session)
        return period_s(commits[WARM_UP:]), next(posts) / len(commits)

    def _session(
        self, prompt: Sequence[TokenId], tokens: int, fill: Fill = "always"
    ) -> EdgeSession:
        model, vocabulary = self.facts.model, self.facts.vocabulary
        greedy = Sampling(temperature=0.0)
        request = Open(model, vocabulary, tuple(prompt), greedy, 0, tokens, (), fill=fill)
        return EdgeSession(self.verifier, request)


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


async def _run(session: EdgeSession, script: Drafted | None = None) -> list[Commit]:
    """Run a session until its script is done or it ends; return its Commits."""
    commits: list[Commit] = []
    async with asyncio.TaskGroup() as tasks:
        posting = tasks.create_task(session.post())
        async with aclosing(session.events()) as events:
            async for message in events:
                if isinstance(message, Commit):
                    commits.append(message)
                if script and (draft := script.receive(message)):
                    session.send(draft)
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
    return median(each.queue_s + each.pass_s for each in commits)


def curve(commits: Sequence[Commit]) -> dict[int, float]:
    """Return median periods by rows, over passes whose draft tokens were all accepted."""
    commits_by_size: dict[int, list[Commit]] = {}
    for each in commits:
        if each.accepted == len(each.tokens) - 1:
            commits_by_size.setdefault(len(each.tokens), []).append(each)
    return {
        r: period_s(some)
        for r, some in sorted(commits_by_size.items())
        if len(some) >= MIN_PASSES
    }


def line(prompt_tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit a line through first passes; return its start at no tokens and its slope. If longer
    prompts are not slower, return the mean and 0."""
    if len(set(prompt_tokens)) > 1:
        slope, start = np.polyfit(prompt_tokens, seconds, 1)
        if slope > 0.0 and start > 0.0:
            return float(start), float(slope)
    return float(np.mean(seconds)), 0.0


def speeds(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--json", help="Where the speeds go.")],
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    verifier_python: options.VerifierPython = sys.executable,
    families: options.Families = "code,maths,chat",
    tokens: Annotated[int, typer.Option(help="Of an answer that is timed.")] = 192,
) -> None:
    """Measure both ends as `run` starts them, half the machine each; 3 to 6 minutes."""
    plan = ServicesPlan(
        target_model, draft_model, {}, target,
        verifier_arguments(target, 1, context.args), verifier_python,
    )  # fmt: skip
    prompts = read(families=options.names(families), per_family=2)
    os.sched_setaffinity(0, plan.edge_cores)  # as in `run`
    console = Console()
    try:
        result = asyncio.run(Measurement(plan, prompts, tokens, console).run())
    except* (ServiceError, ModelError, TimingError, ApiError) as errors:
        options.fail(console, errors)
    save(result, out)
    console.print(str(out))


TIMED: Final = 2
"""The passes of this many prompts are timed; the first token is timed for all prompts."""

STACK_DRAFTS: Final = 4
DISTURBED_PASSES: Final = 12

READ: Final = (1, 2, 4, 8, 16)
"""A draft step may read this many tokens: one in a chain, more if the target is ahead of it."""

REPEATS: Final = 8
_GREEDY: Final = coupled.sampler(Sampling(temperature=0.0), seed=0, prompt_tokens=0)


@dataclass(frozen=True, slots=True)
class Measurement:
    plan: ServicesPlan
    prompts: Sequence[Prompt]
    tokens: int
    """A timed answer has this many tokens."""

    console: Console

    async def run(self) -> Speeds:
        """Measure both ends. Raises ServiceError, ModelError, TimingError or ApiError."""
        host = this_host()
        file = find(self.plan.draft_model, open_store(os.environ))
        async with Services(self.plan) as services:
            verifier = _verifier(services.verifier_url)
            with closing(Model(file)) as model:
                facts = await verifier.facts()
                tokenizer = TokenizerFile.unpack(await verifier.tokenizer()).open()
                questions = (
                    [{"role": "user", "content": prompt.prompt}] for prompt in self.prompts
                )
                prompts = [tuple(tokenizer.chat(messages)) for messages in questions]
                measured = await self._measure(TimedVerifier(verifier, facts), prompts, model)
        return Speeds(host, commit(), self.plan.models, **measured)

    async def _measure(
        self, verifier: TimedVerifier, prompts: Sequence[tuple[TokenId, ...]], model: Model
    ) -> dict[str, Any]:
        """Return the measured times by the names of their fields in Speeds."""
        show = self.console.print
        firsts_s = [await verifier.first_s(prompt) for prompt in prompts]
        show(f"first tokens: {[round(s, 3) for s in firsts_s]} s")
        timed = prompts[:TIMED]
        questions = [Question(p, await verifier.tokens(p, self.tokens)) for p in timed]
        pass_s = await self._curve(verifier, questions)
        stack_s = await _stack_s(verifier, questions)
        disturbed_s, posts = await verifier.disturbed(prompts[0], DISTURBED_PASSES)
        message_s = max(0.0, disturbed_s - pass_s[1]) / posts
        show(f"software: {stack_s:.4f} s a round trip, {message_s:.5f} s a message")
        room = max(len(q.prompt) + len(q.answer) + 64 for q in questions)
        first = questions[0]
        context = Context(model, room, sequences=2, flash_attention=False)
        with closing(LlamaDrafter(context)) as drafter:
            slot = drafter.take(first.prompt)
            if slot is None:
                raise TimingError("the draft model has no room for the prompt")
            alone_s = await _steps(slot, first)
            async with meanwhile(verifier.answer(first.prompt, len(first.answer))):
                draft_s = await _steps(slot, first)
            show("draft steps:", draft_s, "while the target is idle:", alone_s)
            async with meanwhile(_forever(slot, first)):
                drafting_s = await self._curve(verifier, questions)
        at_once_s, prefill_s = line([len(p) for p in prompts], firsts_s)
        return {
            "pass_s": pass_s, "drafting_s": drafting_s, "draft_s": draft_s, "alone_s": alone_s,
            "first_s": max(0.0, at_once_s - stack_s), "prefill_s": prefill_s,
            "stack_s": stack_s, "message_s": message_s,
        }  # fmt: skip

    async def _curve(
        self, verifier: TimedVerifier, some: Sequence[Question]
    ) -> dict[int, float]:
        """Return periods by rows, for passes of up to as many draft tokens as are judged."""
        row_commits: list[Commit] = []
        for question in some:
            commits = await verifier.answer(question.prompt, self.tokens // 4)
            row_commits += commits[WARM_UP:]
        for drafts in DRAFTS:
            for question in some:
                row_commits += await verifier.rows(question, drafts, ahead=True)
            self.console.print({rows: round(s, 4) for rows, s in curve(row_commits).items()})
        return curve(row_commits)


def _verifier(url: str) -> Verifier:
    connection = Connection(url, key=None, ca_certificate=None)
    return Verifier(connection, EdgeMetrics(CollectorRegistry()))


async def _stack_s(verifier: TimedVerifier, questions: Sequence[Question]) -> float:
    """Return the time of a round trip without distance, beyond the pause between two passes."""
    waits_s: dict[bool, float] = {}
    for ahead in (True, False):
        commits: list[Commit] = []
        for question in questions:
            commits += await verifier.rows(question, STACK_DRAFTS, ahead=ahead)
        if not commits:
            raise TimingError("the answers were too short to be timed")
        waits_s[ahead] = median(commit.queue_s for commit in commits)
    return max(0.0, waits_s[False] - waits_s[True])


async def _steps(slot: DraftSlot, question: Question) -> dict[int, float]:
    """Return the median time of a draft step in seconds, by the number of tokens it reads. The
    answer must have that many."""
    prompt, answer = question.prompt, question.answer
    steps_s: dict[int, float] = {}
    await slot.step(list(prompt), lambda _: _GREEDY)
    for known in READ:
        seconds = []
        for _ in range(REPEATS):
            await slot.step(list(prompt), lambda _: _GREEDY)
            began_s = perf_counter()
            await slot.step([*prompt, *answer[:known]], lambda _: _GREEDY)
            seconds.append(perf_counter() - began_s)
        steps_s[known] = median(seconds)
    return steps_s


async def _forever(slot: DraftSlot, question: Question) -> None:
    """Draft along the answer repeatedly until cancelled."""
    for known in cycle(range(len(question.answer))):
        await slot.step([*question.prompt, *question.answer[:known]], lambda _: _GREEDY)
