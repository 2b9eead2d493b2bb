"""Checks that an edge generates the target's own text, on the same prompts and seed.

    python -m bench.identity --tokens 64 --edges model,late,noise --temperatures 0,1
    python -m bench.identity --target vllm --target-model DIRECTORY \
        --verifier-python PYTHON --sessions 12 --explain --vllm.dtype bfloat16

Each prompt goes to the verifier's plain engine and to every edge, with one seed. A difference
is a defect, and makes the exit status 1, unless --explain shows that it was a near-tie.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Final

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from bench import options
from bench.divergence import Divergence, TokenScores, divergence
from bench.link import Conditions
from bench.prompts import SHIPPED, Prompt, read
from bench.run.client import Client, Question, Reply
from bench.run.services import EdgePlan, Services, ServicesPlan, verifier_arguments
from local_models.store import open_store
from local_models.tokenizer_file import tokenizer_file
from local_models.vocabulary import Vocabulary
from speculation.noise import gumbel, noise_index

SEED: Final = 7
TIMEOUT_S: Final = 1800.0
"""An answer fails after this time without a byte: a slow target takes long for many at once."""

EDGES = {
    "model": EdgePlan(),
    "far": EdgePlan(link=Conditions(100.0, 20.0)),
    "late": EdgePlan(fill="always", link=Conditions(300.0, 100.0)),
    "eager": EdgePlan(fill="never"),
    "noise": EdgePlan(rounds="useless"),
    "bad": EdgePlan(rounds="useless", fill="never"),
    "none": EdgePlan(draft_model="none"),
    "separate": EdgePlan(judge="separate"),
}
"""These edges can be selected. With `late` the target never waits for draft tokens. With `bad`
it waits for useless ones and judges them; with `noise` it soon judges none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An Answer is what one service generated for one prompt."""

    arm: str
    prompt: str
    temperature: float
    reply: Reply
    identical: bool | None = None
    """True if this equals the plain engine's answer; None for the plain engine's own."""

    divergence: Divergence | None = None

    @property
    def scores(self) -> list[TokenScores]:
        """Return the known scores of each token; empty without log-probabilities."""
        return list(map(_scores, self.reply.logprobs))


async def ask(url: str, arm: str, prompt: Prompt, t: float, *, of: Question) -> Answer:
    """Ask for one answer. of: a question with the other fields. Raises AnswerError or
    httpx.TransportError."""
    question = replace(of, prompt=prompt.prompt, temperature=t)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
        return Answer(arm, prompt.id, t, await Client(http).ask(question))


def _scores(entry: dict[str, Any]) -> TokenScores:
    top = ((bytes(each["bytes"] or ()), each["logprob"]) for each in entry["top_logprobs"])
    return TokenScores(bytes(entry["bytes"] or ()), entry["logprob"], tuple(top))


Ask = Callable[[str, str, Prompt, float], Coroutine[None, None, Answer]]
"""An Ask is called with url, arm, prompt and temperature, and asks for one answer."""

Explain = Callable[[Answer, Answer], Divergence | None]
"""An Explain is called with the plain answer and an edge's, and finds the first difference."""


def explainer(vocabulary: Vocabulary) -> Explain:
    """Return a function that finds where two answers differ first, with the noise that sampled
    them. vocabulary: the target's."""

    def explain(plain: Answer, edge: Answer) -> Divergence | None:
        def noise(position: int, piece: bytes) -> float:
            if plain.temperature == 0:
                return 0.0
            token = vocabulary.pieces.index(piece) if piece else vocabulary.eos or 0
            at = noise_index(plain.reply.prompt_tokens, position)
            return plain.temperature * float(gumbel(SEED, at, np.array([token]))[0])

        return divergence(plain.scores, edge.scores, noise)

    return explain


async def compare(
    plain_url: str, edge_urls: Mapping[str, str],
    batches: Sequence[tuple[float, Sequence[Prompt]]], ask: Ask, explain: Explain,
) -> AsyncGenerator[Answer]:  # fmt: skip
    """Yield the answers of the plain engine and of every edge, one service after another."""

    async def all_of(url: str, arm: str, t: float, prompts: Sequence[Prompt]) -> list[Answer]:
        async with asyncio.TaskGroup() as tasks:
            requests = [tasks.create_task(ask(url, arm, p, t)) for p in prompts]
        return [each.result() for each in requests]

    for temperature, prompts in batches:
        expected = await all_of(plain_url, "plain", temperature, prompts)
        for answer in expected:
            yield answer
        for arm, url in edge_urls.items():
            answers = await all_of(url, arm, temperature, prompts)
            for answer, plain in zip(answers, expected, strict=True):
                yield judged(answer, plain, explain)


def judged(answer: Answer, plain: Answer, explain: Explain) -> Answer:
    """Return an answer with the result of its comparison with the plain engine's."""
    same = answer.reply.text == plain.reply.text
    divergence = None if same else explain(plain, answer)
    return replace(answer, identical=same, divergence=divergence)


def is_defect(answer: Answer) -> bool:
    """Return True if an answer differs in a way that rounding does not explain."""
    near_tie = answer.divergence is not None and answer.divergence.near_tie
    return answer.identical is False and not near_tie


def tally(answers: Sequence[Answer]) -> list[str]:
    """Return a line for each arm and temperature, and one for each difference."""
    lines = []
    for arm, t in dict.fromkeys((a.arm, a.temperature) for a in answers):
        own = [a for a in answers if (a.arm, a.temperature) == (arm, t)]
        same = sum(a.identical is not False for a in own)
        passes, judged, accepted = (
            sum(getattr(a.reply, name) for a in own)
            for name in ("target_passes", "drafted", "accepted")
        )
        lines.append(
            f"{arm} T={t:g}: {same}/{len(own)} identical; {passes} passes judged"
            f" {judged} drafts, {accepted} accepted"
        )
    return lines + [_difference(answer) for answer in answers if answer.identical is False]


def _difference(answer: Answer) -> str:
    where = f"{answer.arm} T={answer.temperature:g} {answer.prompt}"
    divergence = answer.divergence
    if divergence is None:
        return f"{where}: another text"
    gaps = [
        f"{name}'s gap {gap:.4f} = {gap / divergence.step:.2f} steps of {divergence.step:g}"
        for name, gap in (("plain", divergence.plain_gap), ("edge", divergence.edge_gap))
        if gap is not None
    ]
    change = f"{divergence.plain!r} became {divergence.edge!r} at {divergence.position}"
    return f"{where}: {change}; {', '.join(gaps) or 'not among the likeliest'}"


def batched(
    temperatures: Sequence[float], prompts: Sequence[Prompt], sessions: int
) -> list[tuple[float, Sequence[Prompt]]]:
    """Return batches of prompts, to be asked at once, with their temperatures."""
    return [
        (temperature, prompts[first : first + sessions])
        for temperature in temperatures
        for first in range(0, len(prompts), sessions)
    ]


LIKELIEST = 20
"""A difference is explained by the log-probabilities of this many tokens at each position."""


def main(
    context: typer.Context,
    target: options.Engine = "llama",
    target_model: options.TargetModel = options.PAIR,
    draft_model: options.DraftModel = options.PAIR,
    verifier_python: options.VerifierPython = sys.executable,
    prompts: options.Prompts = SHIPPED,
    per_family: options.PerFamily = None,
    tokens: options.Tokens = 64,
    sessions: Annotated[int, typer.Option(help="Answers at once.")] = 1,
    edges: Annotated[str, typer.Option(help=f"Of {', '.join(EDGES)}.")] = "model,late,noise",
    temperatures: options.Temperatures = "0,1",
    explain: Annotated[bool, typer.Option(help="Show how close a difference was.")] = False,
) -> None:
    """Compare edges' texts with the plain engine's. Unknown options go to the verifier."""
    likeliest = LIKELIEST if explain else None
    question = Question("", 0.0, SEED, tokens, likeliest)
    asking = partial(ask, of=question)
    path = open_store(os.environ).find(target_model, "target").path
    vocabulary = tokenizer_file(path).open().vocabulary
    explain_difference: Explain = explainer(vocabulary) if explain else lambda plain, edge: None
    questions = read(prompts, per_family=per_family)
    batches = batched(options.numbers(temperatures), questions, sessions)
    slots = {"PICOSPEC_EDGE__SLOTS": str(sessions), "PICOSPEC_EDGE__CONTEXT_TOKENS": "2048"}
    plan = ServicesPlan(
        target_model, draft_model, {name: EDGES[name] for name in edges.split(",")}, target,
        verifier_arguments(target, sessions, context.args), verifier_python, environment=slots,
    )  # fmt: skip

    answers: list[Answer] = []

    async def run() -> None:
        async with Services(plan) as services:
            urls = services.verifier_url, services.edge_urls
            compared = compare(*urls, batches, asking, explain_difference)
            with Progress(console=Console(stderr=True)) as progress:
                total = sum(len(some) for _, some in batches) * (1 + len(plan.edges))
                task = progress.add_task("asking", total=total)
                async for answer in compared:
                    answers.append(answer)
                    progress.advance(task)

    asyncio.run(run())
    Console().print("\n".join(tally(answers)), markup=False, soft_wrap=True)
    sys.exit(any(map(is_defect, answers)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings=options.VERIFIER_OPTIONS)(main)
    app()
