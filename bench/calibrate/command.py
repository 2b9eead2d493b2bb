"""`picospec bench speeds`: measure how fast both ends are, for `simulate --hosts FILE`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from prometheus_client import CollectorRegistry
from rich.console import Console

from bench.calibrate import draft_timing as drafting
from bench.calibrate.pass_timing import (
    DRAFTS,
    WARM_UP,
    Question,
    TimingError,
    Verifier,
    curve,
    line,
)
from bench.calibrate.speeds import Speeds
from bench.run.host import Host, commit, this_host
from bench.run.plan import repository
from bench.run.prompts import SHIPPED, Prompt, Selection, read
from bench.run.services import Stand, StandPlan, options
from edge_agent.draft_model.drafter import DraftSlot as Seat
from edge_agent.draft_model.llama_drafter import LlamaDrafter
from edge_agent.draft_model.loading import find
from edge_agent.link.uplink import Uplink, connect
from edge_agent.metrics import EdgeMetrics
from gateway.errors import ApiError
from gateway.hosting.processes import ServiceError
from gateway.ports import Message
from models.errors import ModelError
from models.llama import Context, Model
from models.store import open_store
from models.tokenizer import GgufTokenizer
from speculation.protocol.messages import Commit, TokenId

TIMED: Final = 2
"""Prompts whose passes are timed; the first tokens of all are."""


@dataclass(frozen=True, slots=True)
class Measurement:
    stand: StandPlan
    prompts: Sequence[Prompt]
    tokens: int
    """Of an answer."""

    console: Console

    async def run(self) -> Speeds:
        """Raises ServiceError, ModelError, TimingError, or gateway.errors.ApiError."""
        store = open_store(os.environ)
        host = this_host()
        async with Stand(self.stand) as stand, _uplink(stand.verifier_url) as uplink:
            with closing(Model(find(self.stand.draft_model, store))) as model:
                facts = await uplink.facts()
                tokenizer = GgufTokenizer(model, facts.chat_template or None)
                prompts = [
                    tuple(tokenizer.chat([Message("user", prompt.prompt)]))
                    for prompt in self.prompts
                ]
                return await self._measure(Verifier(uplink, facts), prompts, model, host)

    async def _measure(
        self,
        verifier: Verifier,
        prompts: Sequence[tuple[TokenId, ...]],
        model: Model,
        host: Host,
    ) -> Speeds:
        say = self.console.print
        firsts_s = [await verifier.first_s(prompt) for prompt in prompts]
        say(f"first tokens: {[round(s, 3) for s in firsts_s]} s")
        alone = [(p, await verifier.answer(p, self.tokens)) for p in prompts[:TIMED]]
        questions = [Question(p, _tokens(commits)) for p, commits in alone]
        pass_s = await self._curve(verifier, questions)
        base_s = pass_s[1]
        stack_s = await _stack_s(verifier, questions)
        disturbed_s, posts = await verifier.disturbed(prompts[0], 12)
        message_s = max(0.0, disturbed_s - base_s) / posts
        say(f"software: {stack_s:.4f} s a round trip, {message_s:.5f} s a message")
        room = max(map(model_room, questions))
        with closing(LlamaDrafter(Context(model, room))) as drafter:
            draft_s, alone_s = await _draft_s(verifier, drafter, questions[0])
            say("drafts:", draft_s, "while the target rests:", alone_s)
            async with _drafting(drafter, questions[0]):
                drafting_s = await self._curve(verifier, questions)
        at_once_s, prefill_s = line([len(p) for p in prompts], firsts_s)
        first_s = max(0.0, at_once_s - stack_s)
        return Speeds(
            host, commit(repository()), self._models(), pass_s, drafting_s, draft_s, alone_s,
            first_s, prefill_s, stack_s, message_s,
        )  # fmt: skip

    async def _curve(
        self, verifier: Verifier, questions: Sequence[Question]
    ) -> dict[int, float]:
        """Return periods over rows, as many drafts as the verifier would judge."""
        found: list[Commit] = []
        for question in questions:
            found += (await verifier.answer(question.prompt, self.tokens // 4))[WARM_UP:]
        for drafts in DRAFTS:
            for question in questions:
                found += await verifier.rows(question, drafts, ahead=True)
            self.console.print({rows: round(s, 4) for rows, s in curve(found).items()})
        return curve(found)

    def _models(self) -> dict[str, str]:
        stand = self.stand
        return {
            "target": stand.target_model,
            "draft": stand.draft_model,
            "engine": stand.target,
            "engine_arguments": " ".join(stand.verifier_arguments),
        }


@asynccontextmanager
async def _uplink(url: str) -> AsyncGenerator[Uplink]:
    connection = connect(url, key=None, ca_certificate=None)
    uplink = Uplink(connection, EdgeMetrics(CollectorRegistry()))
    try:
        yield uplink
    finally:
        await uplink.close()


async def _stack_s(verifier: Verifier, questions: Sequence[Question]) -> float:
    """Return what a round trip takes at no distance, beyond what lies between two passes."""
    waits_s: dict[bool, float] = {}
    for ahead in (True, False):
        commits = [c for q in questions for c in await verifier.rows(q, 4, ahead=ahead)]
        if not commits:
            raise TimingError("the answers were too short to be timed")
        waits_s[ahead] = median(commit.queue_s for commit in commits)
    return max(0.0, waits_s[False] - waits_s[True])


async def _draft_s(
    verifier: Verifier, drafter: LlamaDrafter, question: Question
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the draft model's steps while the target works, and while it rests."""
    seat = _seat(drafter, question)
    alone_s = await drafting.steps(seat, question.prompt, question.answer)
    answering = verifier.answer(question.prompt, len(question.answer))
    async with _meanwhile(answering):
        draft_s = await drafting.steps(seat, question.prompt, question.answer)
    seat.leave()
    return draft_s, alone_s


def _seat(drafter: LlamaDrafter, question: Question) -> Seat:
    seat = drafter.take(question.prompt)
    if seat is None:
        raise TimingError("the draft model has no room for the prompt")
    return seat


def _drafting(drafter: LlamaDrafter, question: Question) -> AbstractAsyncContextManager[None]:
    """Have the draft model work all the time."""
    seat = _seat(drafter, question)
    return _meanwhile(drafting.forever(seat, question.prompt, question.answer))


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, object]) -> AsyncGenerator[None]:
    """Run `work` beside the block, and cancel it at its end."""
    other = asyncio.create_task(work)
    try:
        yield
    finally:
        other.cancel()
        await asyncio.wait([other])


def model_room(question: Question) -> int:
    """Return the context that drafts for this question need."""
    return len(question.prompt) + len(question.answer) + 64


def _tokens(commits: Sequence[Commit]) -> tuple[TokenId, ...]:
    return tuple(token for commit in commits for token in commit.tokens)


def main(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--json", help="Where the speeds go.")],
    target: Annotated[str, typer.Option(help="llama or vllm.")] = "llama",
    target_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    draft_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    verifier_python: Annotated[str, typer.Option(help="Has vLLM.")] = sys.executable,
    families: Annotated[str, typer.Option()] = "code,maths,chat",
    tokens: Annotated[int, typer.Option(help="Of an answer that is timed.")] = 192,
) -> None:
    """Measure both ends as `run` starts them, half the machine each; 3 to 6 minutes."""
    prompts = read(SHIPPED, Selection(tuple(families.split(",")), per_family=2))
    stand = StandPlan(
        target_model,
        draft_model,
        {},
        target=target,
        verifier_arguments=(*options(target, sessions=1), *context.args),
        verifier_python=verifier_python,
    )
    os.sched_setaffinity(0, stand.edge_cores)  # as in `run`
    console = Console()
    try:
        speeds = asyncio.run(Measurement(stand, prompts, tokens, console).run())
    except* (ServiceError, ModelError, TimingError, ApiError) as errors:
        console.print(*errors.exceptions, style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    speeds.save(out)
    console.print(str(out))
