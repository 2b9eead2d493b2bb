"""Shows that the edge says what the target says: the same prompts, with and without it.

    python -m bench.identity --tokens 64 --edges model,far,noise --temperatures 0,1

Each prompt goes to the verifier's plain engine and to every edge, through the openai SDK, with
one seed. A difference is a defect: it is counted, and makes the exit status 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import Progress

from bench.prompts import SHIPPED, Prompt, Selection, read
from bench.stand import EdgePlan, Stand, StandPlan

EDGES = {
    "model": EdgePlan(),
    "far": EdgePlan(rtt_ms=100.0, jitter_ms=20.0),
    "eager": EdgePlan(fill="never"),
    "noise": EdgePlan(drafter="noise"),
    "none": EdgePlan(drafter="none"),
    "separate": EdgePlan(judge="separate"),
}
"""The edges that can be asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one service said to one prompt."""

    arm: str
    prompt: str
    family: str
    temperature: float
    text: str
    tokens: int
    seconds: float
    speculation: dict[str, Any]
    identical: bool | None = None
    """To the plain engine's answer; None on the plain engine itself."""


async def ask(url: str, arm: str, prompt: Prompt, temperature: float, tokens: int) -> Answer:
    """Stream one answer and put it together."""
    began = perf_counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        model = (await client.models.list()).data[0].id
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt.prompt}],
            temperature=temperature,
            top_p=0.95 if temperature else 1.0,
            seed=7,
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, count = "", 0
        speculation: dict[str, Any] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            if chunk.usage:
                count = chunk.usage.completion_tokens
                metrics = (chunk.model_extra or {}).get("metrics") or {}
                speculation = metrics.get("speculative_decoding") or {}
    seconds = perf_counter() - began
    return Answer(arm, prompt.id, prompt.family, temperature, text, count, seconds, speculation)


async def compare(
    stand: Stand, prompts: list[Prompt], temperatures: list[float], tokens: int
) -> AsyncGenerator[Answer]:
    """Ask the plain engine and every edge, one after another, prompt by prompt."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=len(prompts) * len(temperatures))
        for temperature in temperatures:
            for prompt in prompts:
                plain = await ask(stand.verifier_url, "plain", prompt, temperature, tokens)
                yield plain
                for arm, url in stand.edge_urls.items():
                    answer = await ask(url, arm, prompt, temperature, tokens)
                    yield replace(answer, identical=answer.text == plain.text)
                progress.advance(task)


def tally(answers: list[Answer]) -> list[str]:
    """Return a line for each arm and temperature: identical answers of all."""
    same: Counter[tuple[str, float]] = Counter()
    asked: Counter[tuple[str, float]] = Counter()
    for answer in answers:
        key = answer.arm, answer.temperature
        asked[key] += 1
        same[key] += answer.identical is not False
    return [f"{arm} T={t:g}: {same[arm, t]}/{asked[arm, t]} identical" for arm, t in asked]


def main(
    target_model: Annotated[str, typer.Option()] = "qwen2.5-coder",
    draft_model: Annotated[str, typer.Option()] = "qwen2.5-coder",
    prompts: Annotated[Path, typer.Option()] = SHIPPED,
    per_family: Annotated[int | None, typer.Option()] = None,
    tokens: Annotated[int, typer.Option()] = 64,
    edges: Annotated[str, typer.Option(help=f"Of {', '.join(EDGES)}.")] = "model,far,noise",
    temperatures: Annotated[str, typer.Option()] = "0,1",
    out: Annotated[Path | None, typer.Option("--jsonl", help="Appended to.")] = None,
) -> None:
    """Compare the text from edges with the plain engine's."""
    chosen = read(prompts, Selection(per_family=per_family))
    plan = StandPlan(
        target_model,
        draft_model,
        {name: EDGES[name] for name in edges.split(",")},
    )

    answers: list[Answer] = []

    async def run() -> None:
        asked = [float(t) for t in temperatures.split(",")]
        async with Stand(plan) as stand:
            async for answer in compare(stand, chosen, asked, tokens):
                answers.append(answer)
                if out:
                    with out.open("a") as lines:
                        lines.write(json.dumps(asdict(answer)) + "\n")

    asyncio.run(run())
    Console().print("\n".join(tally(answers)))
    sys.exit(any(answer.identical is False for answer in answers))


if __name__ == "__main__":
    typer.run(main)
