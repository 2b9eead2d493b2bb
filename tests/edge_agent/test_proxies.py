"""Two verifiers behind one address: the shipped configurations keep each session together."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Final

import pytest

from edge_agent.link.errors import LinkDown
from tests.edge_agent.processes import is_here, proxying
from tests.fakes.world import TEXT, Answers
from tests.guards import GUARD_S
from tests.verifier.conftest import KEY, fake_verifier

SESSIONS: Final = 12
CUTS: Final = 3
NOTICED_S: Final = 2.5
"""HAProxy looks every second, and twice before it believes that a verifier is not ready."""

Verifier = Popen[bytes]

pytestmark = pytest.mark.parametrize("name", ["haproxy", "nginx"])


class Edge(Answers):
    """cuts: it leaves each answer's session so often, and goes on with another. Without cuts an
    answer takes a second or more, because the verifier waits for each of its drafts."""

    def __init__(self, cuts: int = 0) -> None:
        super().__init__(fill="auto" if cuts else "never")
        self.cuts = cuts
        self._left = Counter[int]()

    async def took(self, text: list[int]) -> None:
        await asyncio.sleep(0.02)
        if self._left[id(text)] < min(self.cuts, len(text) // 20):
            self._left[id(text)] += 1
            raise LinkDown("the edge leaves")

    async def all(self, texts: list[list[int]]) -> None:
        """Generate all answers, each of which is right."""
        await asyncio.gather(*map(self.answer, texts))
        assert texts == [TEXT] * SESSIONS


def empty() -> list[list[int]]:
    return [[] for _ in range(SESSIONS)]


@asynccontextmanager
async def together(
    name: str, folder: Path, edge: Edge, change: Callable[[str], str] = str
) -> AsyncIterator[list[Verifier]]:
    """Run two verifiers, a proxy before them, and the edge's link to that."""
    if not is_here(name):
        pytest.skip(f"no {name} here")
    slow = {"drain_timeout_s": GUARD_S, "sessions": {"max_sessions": 4 * SESSIONS}}
    with fake_verifier(**slow) as (one, first), fake_verifier(**slow) as (two, second):
        ports = [int(url.rsplit(":", 1)[1]) for url in (first, second)]
        with proxying(name, (ports[0], ports[1]), folder, change) as (url, authority):
            await edge.connect(url, key=KEY, authority=authority)
            try:
                yield [one, two]
            finally:
                await edge.verifiers.close()


def without_header(configuration: str) -> str:
    """Return a proxy's configuration with another header in place of the session's."""
    return re.sub("picospec[-_]session", "x", configuration)


@pytest.mark.parametrize("change", [str, without_header], ids=["shipped", "without header"])
async def test_all_requests_of_a_session_reach_the_same_verifier(
    name: str, tmp_path: Path, change: Callable[[str], str]
) -> None:
    edge = Edge(CUTS)
    async with together(name, tmp_path, edge, change):
        await edge.all(empty())

    resumed = edge.metrics.resumes._value.get()
    assert (resumed == CUTS * SESSIONS) == (change is str)


async def test_drafts_go_on_upload_streams(name: str, tmp_path: Path) -> None:
    edge = Edge()
    async with together(name, tmp_path, edge):
        await edge.all(empty())

    counts = edge.metrics
    assert counts.uploaded._value.get() > 5 * counts.posts._value.get()
    assert counts.multiplexed._value.get() > SESSIONS / 2


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_verifier_that_ends_costs_no_answer(
    name: str, tmp_path: Path, how: signal.Signals
) -> None:
    edge, before = Edge(), empty()
    async with together(name, tmp_path, edge) as (ends, _):
        running = asyncio.create_task(edge.all(before))
        while not all(before):  # noqa: ASYNC110 - real time
            await asyncio.sleep(0.05)
        ends.send_signal(how)
        await asyncio.gather(running, asyncio.sleep(NOTICED_S))
        reopened = edge.metrics.reopens._value.get()
        await edge.all(empty())

    assert (reopened > 0) == (how == signal.SIGKILL)
    assert edge.metrics.reopens._value.get() == reopened
    assert ends.returncode == (0 if how == signal.SIGTERM else -how)
