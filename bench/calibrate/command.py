"""`picospec bench speeds` measures the speed of both ends, for `simulate --hosts FILE`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Final

import typer
from prometheus_client import CollectorRegistry
from rich.console import Console

from picospec.bench import options
from picospec.bench.calibrate import pass_timing as passes
from picospec.bench.calibrate.pass_timing import (
    Question,
    TimingError,
    Verifier,
    curve,
    line,
    meanwhile,
)
from picospec.bench.data.files import save
from picospec.bench.data.host import commit, this_host
from picospec.bench.data.prompts import Prompt, read
from picospec.bench.run.services import Services, ServicesPlan, verifier_arguments
from picospec.bench.simulator.hosts import Speeds
from picospec.edge_agent.draft.drafter import DraftSlot
from picospec.edge_agent.draft.llama import LlamaDrafter
from picospec.edge_agent.draft.loading import find
from picospec.edge_agent.link.connection import Connection
from picospec.edge_agent.link.uplink import Uplink
from picospec.edge_agent.metrics import EdgeMetrics
from picospec.gateway.errors import ApiError
from picospec.gateway.hosting.processes import ServiceError
from picospec.models.errors import ModelError
from picospec.models.llama_cpp.model import Context, Model
from picospec.models.store import open_store
from picospec.models.tokenizer_file import TokenizerFile
from picospec.speculation import coupled
from picospec.speculation.messages import Commit, Sampling, TokenId


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
        found = asyncio.run(Measurement(plan, prompts, tokens, console).run())
    except* (ServiceError, ModelError, TimingError, ApiError) as errors:
        options.fail(console, errors)
    save(found, out)
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
            uplink = _uplink(services.verifier_url)
            with closing(Model(file)) as model:
                facts = await uplink.facts()
                tokenizer = TokenizerFile.unpack(await uplink.tokenizer()).open()
                asked = (
                    [{"role": "user", "content": prompt.prompt}] for prompt in self.prompts
                )
                prompts = [tuple(tokenizer.chat(messages)) for messages in asked]
                measured = await self._measure(Verifier(uplink, facts), prompts, model)
        return Speeds(host, commit(), self.plan.models, **measured)

    async def _measure(
        self, verifier: Verifier, prompts: Sequence[tuple[TokenId, ...]], model: Model
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

    async def _curve(self, verifier: Verifier, some: Sequence[Question]) -> dict[int, float]:
        """Return periods by rows, for passes of up to as many draft tokens as are judged."""
        found: list[Commit] = []
        for question in some:
            commits = await verifier.answer(question.prompt, self.tokens // 4)
            found += commits[passes.WARM_UP :]
        for drafts in passes.DRAFTS:
            for question in some:
                found += await verifier.rows(question, drafts, ahead=True)
            self.console.print({rows: round(s, 4) for rows, s in curve(found).items()})
        return curve(found)


def _uplink(url: str) -> Uplink:
    connection = Connection(url, key=None, ca_certificate=None)
    return Uplink(connection, EdgeMetrics(CollectorRegistry()))


async def _stack_s(verifier: Verifier, questions: Sequence[Question]) -> float:
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
    found: dict[int, float] = {}
    await slot.step(list(prompt), lambda _: _GREEDY)
    for count in READ:
        seconds = []
        for _ in range(REPEATS):
            await slot.step(list(prompt), lambda _: _GREEDY)
            began_s = perf_counter()
            await slot.step([*prompt, *answer[:count]], lambda _: _GREEDY)
            seconds.append(perf_counter() - began_s)
        found[count] = median(seconds)
    return found


async def _forever(slot: DraftSlot, question: Question) -> None:
    """Draft along the answer repeatedly until cancelled."""
    for count in cycle(range(len(question.answer))):
        await slot.step([*question.prompt, *question.answer[:count]], lambda _: _GREEDY)
