"""Compares vLLM's own requests on a `vllm serve` without the plugin and on one with it.

    python -m picospec.bench.run.plain_requests --without URL --with URL [--at-once 1,8]

The servers answer the same requests by turns, in the order without with, with without, so that
a host whose speed drifts changes both alike. Each is idle while the other answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Annotated, Final

import httpx
import typer

from picospec.bench.run.versus import verdict

WITHIN_S: Final = 600.0
SETTINGS: Final[Mapping[str, Mapping[str, object]]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 1},
}


async def seconds(
    http: httpx.AsyncClient, url: str, at_once: int, tokens: int, settings: Mapping[str, object]
) -> float:
    """Return how long so many completions at once take together."""
    fixed = {"max_tokens": tokens, "ignore_eos": True, **settings}
    bodies = [{"prompt": f"Story {n}: once upon a time,", **fixed} for n in range(at_once)]
    started = perf_counter()
    replies = await asyncio.gather(
        *(http.post(f"{url}/v1/completions", json=body) for body in bodies)
    )
    took = perf_counter() - started
    for reply in replies:
        reply.raise_for_status()
    return took


async def compare(
    urls: Sequence[str], at_once: int, tokens: int, pairs: int, settings: Mapping[str, object]
) -> list[float]:
    """Return the second server's speed over the first's, pair by pair."""
    ratios = []
    async with httpx.AsyncClient(timeout=WITHIN_S) as http:
        for pair in range(pairs + 1):
            order = urls if pair % 2 else urls[::-1]
            took = {url: await seconds(http, url, at_once, tokens, settings) for url in order}
            ratios.append(took[urls[0]] / took[urls[1]])
    return ratios[1:]  # the first pair warms up


def main(
    without: Annotated[str, typer.Option(help="URL of the server without the plugin.")],
    with_: Annotated[str, typer.Option("--with", help="URL of the server with it.")],
    at_once: Annotated[str, typer.Option(help="Requests at once, by commas.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 64,
    pairs: Annotated[int, typer.Option(help="Pairs of turns.")] = 8,
) -> None:
    """Print, for each number of requests and settings, the speed with over that without."""
    for count in map(int, at_once.split(",")):
        for name, settings in SETTINGS.items():
            ratios = asyncio.run(compare([without, with_], count, tokens, pairs, settings))
            named = [(name, str(pair), ratio) for pair, ratio in enumerate(ratios)]
            typer.echo(verdict(f"{count} at once, {name}: speed with/without", named))


if __name__ == "__main__":
    typer.run(main)
