"""A fault has the same outcome at both ends over the link in memory and over real HTTP/2."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import httpx
import pytest

from bench.link import Conditions
from edge_agent.link import session, uploads
from edge_agent.link.errors import LinkDown
from tests.fakes.faulty_link import FaultyLink
from tests.fakes.link import Link
from tests.fakes.world import RTT_S, TEXT, Answers, World
from tests.verifier.conftest import KEY, fake_verifier, http2_client, metrics

PATIENCE_S: Final = 3.0
"""On the wire a link is silent after this time: nothing else on a busy host takes as long."""


@dataclass(frozen=True)
class Outcome:
    losses: tuple[str, ...] = ()
    """These are the losses of the sessions before the last one, as the edge sees them."""

    connections: int = 1
    """So many connections the edge has made."""

    resumes: int = 0
    cancelled: int = 0
    """So many sessions the verifier has ended because their edge was gone."""


@pytest.fixture(params=[False, True], ids=["own", "multiplexed"])
def multiplexes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(uploads, "MIN_MULTIPLEXED", 1 if request.param else 1 << 20)
    return bool(request.param)


each_fault = pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("none", Outcome()),
        ("delay", Outcome()),
        ("cut", Outcome(("broken",), 2, 1, 1)),
        ("refuse", Outcome(("broken", "refused"), 2, 1, 1)),
        ("half-open", Outcome(("silent",), 2, 1, 1)),
        ("silence", Outcome(("silent",), 2, 1, 1)),
        ("stop", Outcome(("silent",), 2, 1, 1)),
        ("leave", Outcome((), 1, 0, 1)),
    ],
)
Befall = Callable[[str, bool], Awaitable[None]]
"""Begins a fault, or ends it (False)."""


async def outcome_of(
    fault: str,
    edge: Answers,
    befall: Befall,
    client: httpx.AsyncClient,
    opened: Callable[[], int],
) -> Outcome:
    """Have a fault befall an answer. The text cannot run ahead of it: without a draft the
    verifier says nothing. client: of the verifier. opened: the number of connections."""
    before, text = await metrics(client), list[int]()
    begun = is_over = False

    async def took(_: list[int]) -> None:
        nonlocal begun
        if len(text) >= 20 and not begun:
            begun = True
            if fault == "leave":
                raise asyncio.CancelledError
            await befall(fault, True)

    async def lost() -> None:
        nonlocal is_over
        last = edge.losses[-1]
        assert isinstance(last, LinkDown)
        if not is_over and (fault != "refuse" or last.how == "refused"):
            is_over = True
            await befall(fault, False)

    edge.took, edge.lost = took, lost  # type: ignore[method-assign]
    await asyncio.wait([answering := asyncio.create_task(edge.answer(text))])
    assert answering.cancelled() == (fault == "leave")
    assert text == (TEXT[:20] if fault == "leave" else TEXT)

    async with asyncio.timeout(300.0):
        while (after := await metrics(client))["picospec:sessions_open"]:  # noqa: ASYNC110
            await asyncio.sleep(RTT_S)
    cancelled = 'picospec:session_faults_total{code="cancelled"}'
    return Outcome(
        tuple(str(getattr(each, "how", each)) for each in edge.losses),
        opened(),
        int(edge.metrics.resumes._value.get()),
        int(after.get(cancelled, 0) - before.get(cancelled, 0)),
    )


@each_fault
async def test_in_memory(fault: str, outcome: Outcome, multiplexes: bool) -> None:
    async with World(1, multiplexes=multiplexes, fill="never") as world:
        link: Link = world.processes[0].link

        async def befall(fault: str, begins: bool) -> None:
            match fault:
                case "cut" | "refuse":
                    link.refuses = begins and fault == "refuse"
                    if begins:
                        link.cut()
                case "half-open" if begins:
                    link.half_open()
                case "silence":
                    link.silence(begins)
                case "stop":
                    link.stop(begins)
                case "delay":
                    link.delay_s, link.jitter_s = 2 * RTT_S, RTT_S

        world.network["127.0.0.1:1"] = Link(link.app)
        async with world.client("http://127.0.0.1:1") as client:
            found = outcome_of(fault, world, befall, client, lambda: link.opened)
            assert await found == outcome


class CountedLink(FaultyLink):
    opened = 0

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.opened += 1
        super().accept(reader, writer)


@pytest.fixture(scope="module")
def verifier() -> Iterator[tuple[int, str]]:
    """The process of a verifier behind a real server, and its address."""
    with fake_verifier() as (process, url):
        yield process.pid, url


@pytest.mark.system
@each_fault
async def test_over_http2(
    fault: str,
    outcome: Outcome,
    multiplexes: bool,
    verifier: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "SILENCE_S", PATIENCE_S)
    process, url = verifier
    async with CountedLink(int(url.rsplit(":", 1)[1])) as link, http2_client(url) as client:

        async def befall(fault: str, begins: bool) -> None:
            match fault:
                case "cut" if begins:
                    link.cut()
                case "refuse" if begins:
                    link.close_port()
                    link.cut()
                case "refuse":
                    await link.listen()
                case "half-open" if begins:
                    link.half_open()
                case "silence":
                    link.fall_silent(begins)
                case "stop":
                    os.killpg(process, signal.SIGSTOP if begins else signal.SIGCONT)
                case "delay":
                    link.change(Conditions(rtt_ms=20, jitter_ms=10))

        edge = Answers(fill="never")
        await edge.connect(link.url, key=KEY)
        try:
            assert outcome == await outcome_of(fault, edge, befall, client, lambda: link.opened)
        finally:
            await edge.verifiers.close()
