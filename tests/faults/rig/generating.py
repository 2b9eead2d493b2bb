"""Runs the generator of loads in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping

from tests.edge_agent.processes import ROOT
from tests.faults.rig.world import World


async def generate(world: World, load: str, seconds: float, *options: str) -> dict[str, int]:
    """Put a load on the first verifier and the edge, and return how it was answered."""
    ports = ("--verifier", str(world.verifiers[0].port), "--edge", str(world.edge.port))
    return await counted(
        "tests.faults.flood", load, "--seconds", str(seconds), *ports, *options
    )


async def counted(module: str, *arguments: str) -> dict[str, int]:
    """Run a generator, and return how often each answer came."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    tally: dict[str, int] = json.loads(printed)
    return tally


def summary(tally: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(tally.items()))
