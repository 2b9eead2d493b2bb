"""Whatever a verifier sends, its edge ends in time, with one error and with little memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from edge_agent import proxy as proxying
from edge_agent.app import build
from edge_agent.link import connection, failover_policy, session, verifier
from edge_agent.link.connection import Connection
from edge_agent.link.session import EdgeSession
from edge_agent.link.verifier import Verifier
from edge_agent.metrics import EdgeMetrics
from edge_agent.proxy import DIRECT
from edge_agent.settings import load
from gateway.drain import Drain
from gateway.errors import ApiError, EngineFault, Unavailable, first_error
from local_models.store import open_store
from speculation.messages import Draft, Open, Sampling
from tests.edge_agent.conftest import metrics as metrics
from tests.edge_agent.processes import TEXT, Answer, running, using
from tests.gateway.scripted import served
from tests.guards import GUARD_S
from tests.hostile.hostile_verifier import HOW, SESSIONS, WRONG_FACTS, hostile
from tests.memory import resident_bytes

DEADLINE_S = 0.5
"""In place of the link's deadlines."""

LONG_S = 120.0
"""Where a size ends an answer, however busy this machine is."""

TOO_LARGE = ("endless", "endless-error", "endless-json", "huge")
ATTACKS = {"size": TOO_LARGE, "time": [how for how in HOW if how not in TOO_LARGE]}
"""By what ends them, or lets them end soon."""

BUSY_S = 60.0
"""How much later a busy machine may be."""

MAX_GROWTH_BYTES = 64 << 20
OPEN = Open("plain", "fake", (1, 2, 3), Sampling(), 5, 40, (7,))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with hostile() as address:
        yield address


def set_deadlines(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module, names in {
        connection: "REQUEST_TIMEOUT_S",
        verifier: "REQUEST_TIMEOUT_S TOKENIZER_TIMEOUT_S ANSWER_TIMEOUT_S CHECK_TIMEOUT_S",
        failover_policy: "RESPONSE_TIMEOUT_S",
        session: "FIRST_TOKEN_S LATE_S",
    }.items():
        for name in names.split():
            monkeypatch.setattr(module, name, seconds)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resident_bytes()
    yield
    assert resident_bytes() - before < MAX_GROWTH_BYTES


def verifier_at(url: str, metrics: EdgeMetrics) -> Verifier:
    return Verifier(Connection(url), metrics)


async def follow(up: Verifier) -> None:
    async for _ in EdgeSession(up, OPEN, within_s=failover_policy.RESPONSE_TIMEOUT_S).events():
        pass


async def post(up: Verifier) -> None:
    session_of_one = EdgeSession(up, OPEN)
    session_of_one.send(Draft(0, 0, 0, (1,)))
    await session_of_one._posts.run("s")


async def chat(up: Verifier) -> None:
    async with up.ask("/v1/chat/completions", b"{}"):
        pass


USES: dict[str, Callable[[Verifier], Coroutine[Any, Any, object]]] = {
    "facts": Verifier.facts,
    "ready": Verifier.check,
    "tokenizer": Verifier.tokenizer,
    "open": follow,
    "drafts": post,
    "chat": chat,
}
"""What an edge does with each route."""

HARMLESS = {
    *product(("ready", "tokenizer"), ("packed", "garbage", "html", "cookies")),
    *(("chat", how) for how, (status, _, _) in HOW.items() if status == 200),
}
"""A load that cannot be read is none. A tokenizer is tried out in another process, and the body
of a chat is passed on: see below."""


@pytest.mark.parametrize("limit", ATTACKS)
@pytest.mark.parametrize("route", USES)
async def test_each_answer_is_read_up_to_a_limit(
    url: str, metrics: EdgeMetrics, route: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_deadlines(monkeypatch, DEADLINE_S if limit == "time" else LONG_S)

    async def meet(how: str) -> None:
        up = verifier_at(f"{url}/{route}+{how}", metrics)
        said = "nothing"
        async with asyncio.timeout(LONG_S):
            try:
                await USES[route](up)
            except* ApiError as errors:
                said = str(first_error(errors))
        assert said != "nothing" or (route, how) in HARMLESS, how
        if limit == "size" and (route in ("facts", "ready", "drafts") or "error" in how):
            assert "an answer of more than" in said, how

    await asyncio.gather(*map(meet, ATTACKS[limit]))


async def test_what_may_fail_unnoticed_ends_in_time(url: str, metrics: EdgeMetrics) -> None:
    async def meet(how: str) -> None:
        up = verifier_at(f"{url}/status+{how}", metrics)
        async with asyncio.timeout(DEADLINE_S + BUSY_S):
            assert await up.status() == verifier.VerifierStatus()

    await asyncio.gather(*map(meet, HOW))


async def test_facts_out_of_bounds_are_an_error(url: str, metrics: EdgeMetrics) -> None:
    for field in WRONG_FACTS:
        with pytest.raises(EngineFault):
            await verifier_at(f"{url}/fact+{field}", metrics).facts()


async def test_a_session_that_brings_nothing_or_what_is_wrong_ends_with_one_error(
    url: str, metrics: EdgeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_deadlines(monkeypatch, DEADLINE_S)

    async def meet(how: str) -> None:
        async with using([f"{url}/session+{how}"], metrics, DEADLINE_S) as verifiers:
            answer = Answer(verifiers, metrics)
            async with asyncio.timeout(3 * DEADLINE_S + BUSY_S):
                with pytest.raises((EngineFault, Unavailable)) as raised:
                    await answer.run()
        assert len(raised.value.error_code) <= 64
        assert len(raised.value.message) < 1200
        assert answer.tokens == TEXT[: len(answer.tokens)]

    await asyncio.gather(*map(meet, ["alive", *SESSIONS]))


@pytest.mark.parametrize("attack", ["facts+endless", "session+alive"])
async def test_answers_come_from_another_verifier_meanwhile(
    url: str, metrics: EdgeMetrics, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FIRST_TOKEN_S", 2.0)
    monkeypatch.setattr(session, "LATE_S", 0.0)
    with running("") as (other,):
        async with using([f"{url}/{attack}", other.url], metrics) as verifiers:
            verifiers.all[0].rtt_s = 1e-9  # the best, as far as can be known

            assert await Answer(verifiers, metrics).run() == TEXT


async def proxied(url: str, how: str, root: Path) -> httpx.Response:
    """What an edge answers whose verifier answers a chat so."""
    settings = load(None, {}, {"draft_model": "none", "verifier_url": f"{url}/chat+{how}"})
    app = build(settings, open_store({"PICOSPEC_CACHE": str(root)}), Drain())
    async with served(app) as edge, httpx.AsyncClient(base_url=edge, timeout=GUARD_S) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}], "seed": 4, "max_tokens": 9}
        return await client.post(DIRECT, json=body)


async def test_a_chat_of_the_verifier_alone_is_passed_on_up_to_a_size(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxying, "MAX_BYTES", 1 << 20)

    with capture_logs() as logs, pytest.raises(httpx.RemoteProtocolError):
        await proxied(url, "endless-json", tmp_path)

    (line,) = [line for line in logs if line["event"] == "request"]
    assert line["error"] == "verifier_unavailable"


async def test_a_page_of_the_verifier_is_no_page_of_the_edge(url: str, tmp_path: Path) -> None:
    answer = await proxied(url, "html", tmp_path)

    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
    assert "script" not in answer.text
