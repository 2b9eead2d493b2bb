"""`python -m bench.link`: an emulated link for any TCP service."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from bench.link.path import Conditions
from bench.link.relay_server import Link


def main(
    upstream: Annotated[str, typer.Option(help="HOST:PORT to carry connections to.")],
    rtt: Annotated[float, typer.Option(help="Round-trip time, ms.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="The RTT varies by so much, ms.")] = 0.0,
    rate: Annotated[float | None, typer.Option(help="Mbit/s in each direction.")] = None,
    loss: Annotated[float, typer.Option(help="Probability that a segment is lost.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of jitter and loss.")] = 0,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
) -> None:
    """Carry TCP connections over an emulated link until interrupted."""
    host, _, upstream_port = upstream.rpartition(":")

    async def run() -> None:
        conditions = Conditions(rtt, jitter, rate, loss)
        async with Link((host, int(upstream_port)), conditions, seed=seed, port=port) as link:
            typer.echo(f"127.0.0.1:{link.port} -> {upstream}, RTT {rtt:g} +- {jitter:g} ms")
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
