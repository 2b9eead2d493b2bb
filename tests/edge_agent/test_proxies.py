"""Two verifiers behind one address: the shipped configurations keep each session together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.link.errors import LinkDown
from edge_agent.link.verifiers import Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import running_alongside
from gateway.tracing import NO_SPAN
from speculation.messages import Commit, Draft, Open, Sampling
from tests.edge_agent.fake_verifier import target_at
from tests.edge_agent.processes import (
    PROXIES,
    TEXT,
    Answer,
    Process,
    ask,
    proxying,
    running,
    seen,
    using,
)

SESSIONS = 12
LONG = 400
"""Tokens of an answer that takes four seconds or more."""

NOTICED_S = 2.5
"""HAProxy looks every second, and twice before it believes that a verifier is not ready."""

GAP_S = 2.0
"""A bound of the time without text after a kill; on a quiet host it is 0.35 s."""

pytestmark = pytest.mark.parametrize("name", PROXIES)


async def session(verifiers: Verifiers, model: str = "cut", tokens: int = 40) -> list[int]:
    """Send drafts for an answer, whose stream is cut thrice by `cut`, and return its text."""
    sessions, text = verifiers.answer("", NO_SPAN), list[int]()
    while True:
        known = tuple(text)
        opened = sessions.open(
            Open(model, "fake", (1, 2, 3), Sampling(), 5, tokens, (7,), committed=known)
        )
        try:
            async with asyncio.timeout(60), running_alongside(opened.post()):
                async for message in opened.events():
                    if isinstance(message, Commit):
                        text[message.start :] = message.tokens
                        at = message.start + len(message.tokens)
                        opened.send(Draft(0, at, at - len(known), (target_at(at),)))
            return text
        except LinkDown as error:
            await sessions.again(opened, error)


def without_uploads(configuration: str) -> str:
    """Return a proxy's configuration that holds bodies back, as nginx does by default."""
    held_back = configuration.replace("proxy_request_buffering off;", "")
    waiting = "http-request wait-for-body time 9s"
    return held_back.replace("frontend edges\n", f"frontend edges\n    {waiting}\n")


def without_header(configuration: str) -> str:
    """Return a proxy's configuration with another header in place of the session's."""
    return re.sub("picospec[-_]session", "x", configuration)


@asynccontextmanager
async def together(
    name: str,
    metrics: EdgeMetrics,
    folder: Path,
    *,
    kind: str = "",
    change: Callable[[str], str] = str,
) -> AsyncIterator[tuple[list[Process], Verifiers]]:
    """Run two fake verifiers of a kind, a proxy before them, and an edge's link to that."""
    with running(kind, kind) as processes:
        ports = (processes[0].port, processes[1].port)
        with proxying(name, ports, folder, change) as (url, authority):
            async with using([url], metrics, ca=authority) as verifiers:
                yield processes, verifiers


def arrived(count: dict[str, int]) -> int:
    return count["posts"] + count["uploaded"]


async def counted(processes: list[Process]) -> list[dict[str, int]]:
    return [await seen(process.url) for process in processes]


async def test_all_requests_of_a_session_reach_the_same_verifier(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    async with together(name, metrics, tmp_path, kind="cut") as (processes, verifiers):
        texts = await asyncio.gather(*(session(verifiers) for _ in range(SESSIONS)))
        counts = await counted(processes)

    assert all(text == TEXT[:40] for text in texts)
    # drafts that are on their way when a stream is cut: nginx asks the other verifier for them
    assert sum(count["strays"] for count in counts) <= 3 * SESSIONS  # one a cut
    assert sum(count["opened"] for count in counts) == 4 * SESSIONS
    assert sum(count["different"] for count in counts) == SESSIONS
    assert all(count["opened"] > 0 for count in counts)
    assert metrics.resumes._value.get() == 3 * SESSIONS


async def test_drafts_go_on_upload_streams(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    async with together(name, metrics, tmp_path) as (processes, verifiers):
        texts = await asyncio.gather(*(session(verifiers, "", LONG) for _ in range(SESSIONS)))
        counts = await counted(processes)

    assert all(text == [target_at(i) for i in range(LONG)] for text in texts)
    assert all(count["uploaded"] > 10 * count["posts"] for count in counts)
    assert sum(count["carried"] for count in counts) > SESSIONS / 2


@pytest.mark.long
async def test_a_proxy_that_holds_bodies_back_delays_no_draft(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    changed = together(name, metrics, tmp_path, change=without_uploads)
    async with changed as (processes, verifiers):
        texts = await asyncio.gather(*(session(verifiers, "", LONG) for _ in range(SESSIONS)))
        counts = await counted(processes)

    assert all(text == [target_at(i) for i in range(LONG)] for text in texts)
    assert not any(count["uploaded"] + count["carried"] for count in counts)
    sent = metrics.posts._value.get()
    assert sum(count["posts"] for count in counts) > 0.9 * sent > SESSIONS


@pytest.mark.long
async def test_without_the_header_requests_go_astray(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    changed = together(name, metrics, tmp_path, change=without_header)
    async with changed as (processes, verifiers):
        each = (session(verifiers) for _ in range(SESSIONS))
        await asyncio.gather(*each, return_exceptions=True)
        counts = await counted(processes)

    assert sum(count["strays"] for count in counts) > 0


@pytest.mark.long
async def test_a_killed_verifier_costs_no_answer(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    async with together(name, metrics, tmp_path) as (processes, verifiers):
        answers = [Answer(verifiers) for _ in range(SESSIONS)]

        async def kill() -> None:
            assert all(count["opened"] for count in await counted(processes))
            processes[0].kill()

        texts = await asyncio.gather(answers[0].run(kill), *(a.run() for a in answers[1:]))

    assert all(text == TEXT for text in texts)
    assert max(answer.gap_s for answer in answers) < GAP_S
    assert 0 < metrics.reopens._value.get() < SESSIONS


@pytest.mark.long
async def test_a_verifier_that_drains_goes_on_with_its_sessions_and_gets_no_others(
    name: str, metrics: EdgeMetrics, tmp_path: Path
) -> None:
    async with together(name, metrics, tmp_path) as (processes, verifiers):
        before = [asyncio.create_task(session(verifiers, "", LONG)) for _ in range(SESSIONS)]
        while sum(map(arrived, await counted(processes))) < 2 * SESSIONS:  # noqa: ASYNC110 - processes
            await asyncio.sleep(0.05)
        await ask(processes[0].url, "/drain")
        (had, _) = [count["opened"] for count in await counted(processes)]
        await asyncio.sleep(NOTICED_S)
        after = await asyncio.gather(*(session(verifiers, "", 40) for _ in range(SESSIONS)))
        texts = await asyncio.gather(*before)
        counts = await counted(processes)

    assert all(text == [target_at(i) for i in range(LONG)] for text in texts)
    assert all(text == TEXT[:40] for text in after)
    sent = metrics.posts._value.get() + metrics.uploaded._value.get()
    lost = sent - sum(map(arrived, counts))
    assert lost < sent / 10  # those on their way when a session ended
    assert counts[0]["opened"] == had > 0
