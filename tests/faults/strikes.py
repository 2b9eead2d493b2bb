"""Has a fault strike in the middle of answers, and checks that all is well afterwards."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from bench.link import Conditions
from tests.fakes.faulty_link import FaultyLink
from tests.faults.rig.asking import BRIEF, KINDS, Answer, Watch
from tests.faults.rig.world import PASS_TIMEOUT_S, World
from tests.local_models.chats import Json
from verifier.host import HEARTBEAT_S

BEGUN: Final = 30
"""Characters of each answer that have come when a fault strikes."""

WITHIN_S: Final = 240.0


async def struck(world: World, strike: Strike) -> tuple[dict[str, Answer], float]:
    """Return an answer of each kind, and when the fault struck."""
    answers, at = await _struck(world, list(KINDS.values()), strike)
    return dict(zip(KINDS, answers, strict=True)), at


async def struck_one(world: World, body: Json, strike: Strike) -> tuple[Answer, float]:
    """Return an answer, and when the fault struck."""
    (answer,), at = await _struck(world, [body], strike)
    return answer, at


async def _struck(
    world: World, bodies: Sequence[Json], strike: Strike
) -> tuple[list[Answer], float]:
    begun = [asyncio.Event() for _ in bodies]

    def watch(number: int) -> Watch:
        def look(answer: Answer) -> None:
            if answer.shown >= BEGUN or answer.finish:
                begun[number].set()

        return look

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(world.ask(body, watch(number)))
            for number, body in enumerate(bodies)
        ]
        for event in begun:
            await event.wait()
        assert not all(task.done() for task in asked), "all ended before the fault"
        at = time.monotonic()
        if (striking := strike(world)) is not None:
            await striking
    return [task.result() for task in asked], at


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


# What may happen while answers are generated, and what must become of them.

Strike = Callable[[World], Awaitable[None] | None]

GAP_S: Final = 8.0
"""Most time without text where another verifier goes on: a dead link is noticed within a
second, and the rest is for a busy machine."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    strike: Strike
    within_s: float = GAP_S
    """Most time without text."""

    is_long: bool = False
    """Whether it takes too long for the short campaign."""


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


async def hand_over(world: World) -> None:
    """Have the verifier end without waiting for its answers, by a second signal."""
    used = await world.used()
    used.running.terminate()
    await asyncio.sleep(0.2)
    await used.terminate()


async def kill_one_after_another(world: World) -> None:
    """Kill a verifier, start it again, and kill the other when it is back."""
    first = await world.used()
    await first.kill()
    first.start()
    await first.ready(world.http)
    (other,) = [v for v in world.verifiers if v is not first]
    await other.kill()


def engine(order: str) -> Strike:
    """Return what has the engine break in its next pass; breakable.py knows how."""

    async def strike(world: World) -> None:
        (await world.used()).order.write_text(order)

    return strike


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
    await used.link.silence(NO_DESCRIPTORS_S)
    world.edge.take_descriptors(False)
    assert world.edge.log.stat().st_size - before < MAX_LOG_BYTES


# --- the link


def on_links(act: Callable[[FaultyLink], Awaitable[None]], everywhere: bool) -> Strike:
    async def strike(world: World) -> None:
        struck = world.verifiers if everywhere else [await world.used()]
        await asyncio.gather(*(act(verifier.link) for verifier in struck))

    return strike


def silence(seconds: float, everywhere: bool = False) -> Strike:
    return on_links(lambda link: link.silence(seconds), everywhere)


def refuse(seconds: float, everywhere: bool = False) -> Strike:
    return on_links(lambda link: link.refuse(seconds), everywhere)


async def half_open(world: World) -> None:
    (await world.used()).link.half_open()


EDGE_DESCRIPTORS: Final = 256
"""The edge's limit, which a stranger can exceed; the edge and its clients need far fewer."""

NO_DESCRIPTORS_S: Final = 4.0
MAX_LOG_BYTES: Final = 100_000
"""Most that the edge logs meanwhile."""

SLOW: Final = Conditions(rtt_ms=60, rate_mbit=0.064)
LOSSY: Final = Conditions(rtt_ms=40, loss=0.05)
RELOADS_S: Final = 20.0
"""Most time until a verifier has loaded SmolLM2 and goes on."""

FAULTS: Final = (
    Fault("verifier SIGKILL", kill),
    Fault("verifier SIGSTOP 4 s, then SIGCONT", stop),
    Fault("all verifiers SIGKILL, one restarted", restart, within_s=RELOADS_S),
    Fault("verifiers SIGKILL one after another", kill_one_after_another, is_long=True),
    Fault("verifier SIGTERM", drain, is_long=True),
    Fault("verifier SIGTERM twice", hand_over),
    Fault("engine exception", engine("raise")),
    Fault("engine hangs", engine("hang"), PASS_TIMEOUT_S + HEARTBEAT_S + GAP_S, is_long=True),
    Fault("verifier's disk full", fill_verifiers_disk),
    Fault("edge's disk full, verifier SIGKILL", fill_edges_disk),
    Fault("strangers hold connections to the edge", strangers),
    Fault(
        "edge without descriptors, link silent", take_descriptors, NO_DESCRIPTORS_S + 2 * GAP_S
    ),
    Fault("clock one hour ahead", lambda world: world.set_clock(3600.0)),
    Fault("clock one hour back", lambda world: world.set_clock(-3600.0), is_long=True),
    Fault("link silent 1 s", silence(1.0)),
    Fault("link silent 5 s", silence(5.0)),
    Fault("link silent 30 s", silence(30.0), is_long=True),
    Fault("all links silent 1 s", silence(1.0, everywhere=True), is_long=True),
    Fault("all links silent 5 s", silence(5.0, everywhere=True), within_s=5.0 + GAP_S),
    Fault("all links silent 30 s", silence(30.0, True), within_s=30.0 + GAP_S, is_long=True),
    Fault("link reset", refuse(0.0)),
    Fault("link refused 5 s", refuse(5.0), is_long=True),
    Fault("all links refused 5 s", refuse(5.0, everywhere=True), 5.0 + GAP_S, is_long=True),
    Fault("link half-open", half_open),
    Fault("links lose 5 %", lambda world: world.degrade(LOSSY)),
    Fault("links of 64 kbit/s", lambda world: world.degrade(SLOW)),
)
"""After each of these, every answer is the one that nothing happened to."""
