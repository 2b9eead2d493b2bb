"""Has a fault strike in the middle of answers, and checks that all is well afterwards."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from bench.link import Conditions
from tests.faults.rig.asking import BRIEF, KINDS, Answer, Watch
from tests.faults.rig.world import World

BEGUN: Final = 30
"""Characters of each answer that have come when a fault strikes."""

WITHIN_S: Final = 240.0

Strike = Callable[[World], Awaitable[None] | None]


async def struck(world: World, strike: Strike) -> tuple[dict[str, Answer], float]:
    """Return an answer of each kind, and when the fault struck."""
    begun = {kind: asyncio.Event() for kind in KINDS}

    def watch(kind: str) -> Watch:
        def look(answer: Answer) -> None:
            if answer.shown >= BEGUN or answer.finish:
                begun[kind].set()

        return look

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        asked = {
            kind: tasks.create_task(world.ask(body, watch(kind)))
            for kind, body in KINDS.items()
        }
        for event in begun.values():
            await event.wait()
        assert not all(task.done() for task in asked.values()), "all ended before the fault"
        at = time.monotonic()
        if (striking := strike(world)) is not None:
            await striking
    return {kind: task.result() for kind, task in asked.items()}, at


async def serves_again(world: World) -> None:
    """Have the fault end; nothing may be left, and everything must work."""
    await world.heal()
    await world.settled()
    brief = [await world.ask(BRIEF) for _ in range(2)]
    assert brief[0] == brief[1]
    assert brief[0].outcome in ("stop", "length")


async def ask_again(world: World) -> dict[str, Answer]:
    """Return an answer of each kind; nothing happens to them."""
    answers = await asyncio.gather(*map(world.ask, KINDS.values()))
    return dict(zip(KINDS, answers, strict=True))


# --- verifiers


async def kill(world: World) -> None:
    await (await world.used()).kill()


async def stop(world: World) -> None:
    """Stop the verifier for longer than the edge waits for it."""
    used = await world.used()
    used.signal_all(signal.SIGSTOP)
    await asyncio.sleep(4.0)
    used.signal_all(signal.SIGCONT)


async def restart(world: World) -> None:
    """Kill all verifiers; one comes back."""
    used = await world.used()
    for verifier in world.verifiers:
        await verifier.kill()
    used.start()


async def drain(world: World) -> None:
    """Have the verifier end when its answers have."""
    await (await world.used()).terminate()


async def drain_one_after_another(world: World) -> None:
    """Have each verifier end when its answers have, and start again: a rolling restart."""
    for verifier in world.verifiers:
        await verifier.terminate()
        verifier.start()
        await verifier.ready(world.http)


async def hand_over(world: World) -> None:
    """Have the verifier end without waiting for its answers, by a second signal."""
    used = await world.used()
    used.running.terminate()
    await asyncio.sleep(0.2)
    await used.terminate()


async def fail_a_pass(world: World) -> None:
    (await world.used()).order.touch()


async def fill_verifiers_disk(world: World) -> None:
    (await world.used()).fill_disk(True)


# --- the edge, and the machine


async def fill_edges_disk(world: World) -> None:
    """Have the edge go on at another verifier while it cannot write its log."""
    world.edge.fill_disk(True)
    await kill(world)


async def strangers(world: World) -> None:
    """Hold more connections to the edge than it has descriptors; another client is served."""
    await world.connect_strangers(2 * EDGE_DESCRIPTORS)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{world.edge.url}/health")).status_code == 200


async def take_descriptors(world: World) -> None:
    """Silence the link while the edge can open nothing, and strangers knock."""
    used, before = await world.used(), world.edge.log.stat().st_size
    world.edge.take_descriptors(True)
    await world.connect_strangers(EDGE_DESCRIPTORS)
    await used.link.silence(4.0)
    world.edge.take_descriptors(False)
    assert world.edge.log.stat().st_size - before < MAX_LOG_BYTES


# --- the link


async def silence(world: World) -> None:
    await (await world.used()).link.silence(5.0)


async def silence_all(world: World) -> None:
    await asyncio.gather(*(verifier.link.silence(5.0) for verifier in world.verifiers))


async def reset(world: World) -> None:
    (await world.used()).link.cut()


async def half_open(world: World) -> None:
    (await world.used()).link.half_open()


EDGE_DESCRIPTORS: Final = 256
"""The edge's limit, which a stranger can exceed; the edge and its clients need far fewer."""

MAX_LOG_BYTES: Final = 100_000
"""Most that the edge logs while it can open nothing."""

SLOW: Final = Conditions(rtt_ms=60, rate_mbit=0.064)
LOSSY: Final = Conditions(rtt_ms=40, loss=0.05)

FAULTS: Final[dict[str, Strike]] = {
    "verifier SIGKILL": kill,
    "verifier SIGSTOP 4 s, then SIGCONT": stop,
    "all verifiers SIGKILL, one restarted": restart,
    "verifiers SIGTERM one after another": drain_one_after_another,
    "verifier SIGTERM twice": hand_over,
    "engine exception": fail_a_pass,
    "verifier's disk full": fill_verifiers_disk,
    "edge SIGTERM": lambda world: world.edge.terminate(),
    "edge's disk full, verifier SIGKILL": fill_edges_disk,
    "strangers hold connections to the edge": strangers,
    "edge without descriptors, link silent": take_descriptors,
    "clock one hour ahead": lambda world: world.set_clock(3600.0),
    "clock one hour back": lambda world: world.set_clock(-3600.0),
    "link silent 5 s": silence,
    "all links silent 5 s": silence_all,
    "link reset": reset,
    "link half-open": half_open,
    "links lose 5 %": lambda world: world.degrade(LOSSY),
    "links of 64 kbit/s": lambda world: world.degrade(SLOW),
}
"""After each of these, every answer is the one that nothing happened to. What else befalls
links and processes is for tests/edge_agent/test_world.py, on a virtual clock."""
