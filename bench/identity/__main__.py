"""Shows that the edge says what the target says: the same prompts, with and without it.

    python -m bench.identity --tokens 64 --edges model,late,noise --temperatures 0,1
    python -m bench.identity --target vllm --target-model DIRECTORY --verifier-python PYTHON \
        --sessions 12 --explain --vllm.dtype bfloat16

Each prompt goes to the verifier's plain engine and to every edge, through the openai SDK, with
one seed. A difference is counted; it is a defect, and makes the exit status 1, unless --explain
finds that it was a near-tie (bench.identity.ties).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from bench.identity.ties import Parting, parting
from bench.run.prompts import SHIPPED, Prompt, Selection, read
from bench.run.sdk_client import Answer, Asking, ask, noise_of
from bench.run.services import EdgePlan, Stand, StandPlan, options
from edge_agent.draft_model.loading import find
from models.llama import Model
from models.store import open_store

EDGES = {
    "model": EdgePlan(),
    "far": EdgePlan(rtt_ms=100.0, jitter_ms=20.0),
    "late": EdgePlan(fill="always", rtt_ms=300.0, jitter_ms=100.0),
    "eager": EdgePlan(fill="never"),
    "noise": EdgePlan(drafter="noise"),
    "bad": EdgePlan(drafter="noise", fill="never"),
    "none": EdgePlan(drafter="none"),
    "separate": EdgePlan(judge="separate"),
}
"""The edges that can be asked for. `late`: the target never waits for a draft; `bad`:
it waits for useless ones, and judges them, where `noise` soon has none judged."""

Ask = Callable[[str, str, Prompt, float], Coroutine[None, None, Answer]]
"""Ask(url, arm, prompt, temperature)."""

_COUNTED = ("target_passes", "draft_tokens", "accepted_draft_tokens")

Explain = Callable[[Answer, Answer], Parting | None]
"""Explain(plain, edge): where they part."""


async def compare(
    plain_url: str,
    edge_urls: Mapping[str, str],
    batches: Sequence[tuple[float, Sequence[Prompt]]],
    ask: Ask,
    explain: Explain,
) -> AsyncGenerator[Answer]:
    """Ask the plain engine and every edge, one after another, batch by batch of temperature
    and prompts that are asked at once."""

    async def everybody(
        url: str, arm: str, heat: float, prompts: Sequence[Prompt]
    ) -> list[Answer]:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(url, arm, p, heat)) for p in prompts]
        return [each.result() for each in asked]

    for heat, prompts in batches:
        expected = await everybody(plain_url, "plain", heat, prompts)
        for answer in expected:
            yield answer
        for arm, url in edge_urls.items():
            for answer, plain in zip(
                await everybody(url, arm, heat, prompts), expected, strict=True
            ):
                same = answer.text == plain.text
                yield replace(
                    answer, identical=same, parting=None if same else explain(plain, answer)
                )


def is_defect(answer: Answer) -> bool:
    """Tell whether rounding does not explain the difference."""
    near_tie = answer.parting is not None and answer.parting.near_tie
    return answer.identical is False and not near_tie


def tally(answers: Sequence[Answer]) -> list[str]:
    """Return a line for each arm and temperature, and one for each difference."""
    counts: Counter[tuple[str, float, str]] = Counter()
    for answer in answers:
        for name, count in (
            ("asked", 1),
            ("same", answer.identical is not False),
            *((n, answer.speculation.get(f"num_{n}", 0)) for n in _COUNTED),
        ):
            counts[answer.arm, answer.temperature, name] += count
    lines = []
    for arm, t in dict.fromkeys((a.arm, a.temperature) for a in answers):
        asked, same, passes, judged, accepted = (
            counts[arm, t, name] for name in ("asked", "same", *_COUNTED)
        )
        lines.append(
            f"{arm} T={t:g}: {same}/{asked} identical; {passes} passes judged {judged} drafts,"
            f" {accepted} accepted"
        )
    return lines + [_told(answer) for answer in answers if answer.identical is False]


def _told(answer: Answer) -> str:
    where = f"{answer.arm} T={answer.temperature:g} {answer.prompt}"
    found = answer.parting
    if found is None:
        return f"{where}: another text"
    gaps = [
        f"{name}'s gap {gap:.4f} = {gap / found.step:.2f} steps of {found.step:g}"
        for name, gap in (("plain", found.plain_gap), ("edge", found.edge_gap))
        if gap is not None
    ]
    said = f"{found.plain!r} became {found.edge!r} at {found.position}"
    return f"{where}: {said}; {', '.join(gaps) or 'not among the likeliest'}"


def batched(
    temperatures: Sequence[float], prompts: Sequence[Prompt], sessions: int
) -> list[tuple[float, Sequence[Prompt]]]:
    """Return what is asked at once."""
    return [
        (heat, prompts[first : first + sessions])
        for heat in temperatures
        for first in range(0, len(prompts), sessions)
    ]


def main(
    context: typer.Context,
    target: Annotated[str, typer.Option(help="llama or vllm.")] = "llama",
    target_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    draft_model: Annotated[str, typer.Option(help="Pair, or path.")] = "qwen2.5-coder",
    verifier_python: Annotated[str, typer.Option(help="Has vLLM.")] = sys.executable,
    prompts: Annotated[Path, typer.Option()] = SHIPPED,
    per_family: Annotated[int | None, typer.Option()] = None,
    tokens: Annotated[int, typer.Option()] = 64,
    sessions: Annotated[int, typer.Option(help="Answers at once.")] = 1,
    edges: Annotated[str, typer.Option(help=f"Of {', '.join(EDGES)}.")] = "model,late,noise",
    temperatures: Annotated[str, typer.Option()] = "0,1",
    explain: Annotated[bool, typer.Option(help="Show how close a difference was.")] = False,
    out: Annotated[Path | None, typer.Option("--jsonl", help="Appended to.")] = None,
) -> None:
    """Compare the text from edges with the plain engine's. Options it does not know go to the
    verifier, as --vllm.dtype float32."""
    asking = Asking(tokens, 20 if explain else None)
    vocabulary = Model(find(draft_model, open_store(os.environ)), vocabulary_only=True)
    batches = batched(
        [float(t) for t in temperatures.split(",")],
        read(prompts, Selection(per_family=per_family)),
        sessions,
    )
    plan = StandPlan(
        target_model,
        draft_model,
        {name: EDGES[name] for name in edges.split(",")},
        target=target,
        verifier_arguments=(*options(target, sessions), *context.args),
        verifier_python=verifier_python,
        environment={
            "PICOSPEC_EDGE__SLOTS": str(sessions),
            "PICOSPEC_EDGE__CONTEXT_TOKENS": "2048",
        },
    )

    def explained(plain: Answer, edge: Answer) -> Parting | None:
        noise = noise_of(vocabulary.vocabulary, plain)
        return parting(plain.said, edge.said, noise) if explain else None

    answers: list[Answer] = []

    async def run() -> None:
        async with Stand(plan) as stand:
            urls = stand.verifier_url, stand.edge_urls
            with Progress(console=Console(stderr=True)) as progress:
                total = sum(len(asked) for _, asked in batches) * (1 + len(stand.edge_urls))
                task = progress.add_task("asking", total=total)
                async for answer in compare(*urls, batches, partial(ask, asking), explained):
                    answers.append(answer)
                    progress.advance(task)
                    if out:
                        with out.open("a") as lines:
                            kept = asdict(replace(answer, said=()))
                            lines.write(json.dumps(kept) + "\n")

    asyncio.run(run())
    Console().print("\n".join(tally(answers)), markup=False, soft_wrap=True)
    sys.exit(any(map(is_defect, answers)))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        main
    )
    app()
