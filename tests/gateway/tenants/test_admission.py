"""Requests of several tenants over HTTP: who is let in, who must wait, and what logs show."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from structlog.testing import capture_logs

from gateway import request_context
from gateway.errors import EngineFault, Overloaded
from gateway.metrics import MetricsPage
from gateway.request_body import STRANGERS_BYTES
from gateway.turns import ThreadTurns, Turns
from tests.gateway.scripted import (
    ANN,
    BEN,
    MODEL,
    Body,
    Headers,
    ScriptedEngine,
    SetClock,
    client_of,
    keys_toml,
    make_app,
    table,
    writes,
)
from tests.virtual_time import compute

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ann may do anything, and Ben little."""
    limits = "sessions = 2\nrequests_a_minute = 6\ntokens_a_minute = 60"
    path = tmp_path / "keys.toml"
    path.write_text(table("ann") + table("ben", more=limits))
    return path


async def ask(client: httpx.AsyncClient, who: Headers, **fields: object) -> httpx.Response:
    return await client.post(PATH, json={**CHAT, **fields}, headers=who)


def statuses(answers: Sequence[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


async def test_a_tenant_at_its_limit_gets_429_and_when_to_come_back_and_the_other_an_answer(
    file: Path,
) -> None:
    clock = SetClock()
    app = make_app(ScriptedEngine((b"x",)), clock=clock, keys_file=file)
    async with client_of(app) as client:
        bens = [await client.get("/v1/models", headers=BEN) for _ in range(5)]
        bens += [await ask(client, BEN), await ask(client, BEN)]
        anns = [await ask(client, ANN) for _ in range(20)]
        clock.now += 10.0
        after = await ask(client, BEN)

    assert statuses(bens) == [200] * 6 + [429]
    assert bens[-1].headers["retry-after"] == "10"
    error = bens[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "6 requests a minute" in error["message"]
    assert statuses([*anns, after]) == [200] * 21


async def test_each_choice_is_an_answer_and_ends_with_its_request(file: Path) -> None:
    release = asyncio.Event()
    engine = ScriptedEngine((b"x",), pause=release.wait)
    async with client_of(make_app(engine, keys_file=file)) as client:
        running = asyncio.create_task(ask(client, BEN, n=2))
        async with asyncio.timeout(5):
            while len(engine.jobs) < 2:  # noqa: ASYNC110 - the engine has no event for that
                await asyncio.sleep(0)
        more = await ask(client, BEN)
        free = [await client.get("/v1/models", headers=BEN), await client.get("/metrics")]
        release.set()
        bens = [await running, await ask(client, BEN, n=2), await ask(client, BEN, n=3)]

    assert statuses([more, *free, *bens]) == [429, 200, 200, 200, 200, 429]
    assert "2 answers at once" in more.json()["error"]["message"]
    assert 'picospec:tenant_answers{tenant="ben"} 2.0' in free[1].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", ["well", "with an error"])
async def test_an_answer_that_ends_makes_room_however_it_ends(
    file: Path, stream: bool, ends: str
) -> None:
    engine = ScriptedEngine((b"x",), then=None if ends == "well" else EngineFault("broken"))
    async with client_of(make_app(engine, keys_file=file)) as client:
        for _ in range(3):
            await ask(client, BEN, stream=stream)
        metrics = await client.get("/metrics")

    assert 'picospec:tenant_answers{tenant="ben"} 0.0' in metrics.text


async def test_tokens_of_prompts_and_answers_are_counted_when_they_are_known(
    file: Path,
) -> None:
    async def complete(prompt: str) -> httpx.Response:
        return await client.post("/v1/completions", json={"prompt": prompt}, headers=BEN)

    clock, engine = SetClock(), ScriptedEngine((b"x" * 20,), context_tokens=200)
    async with client_of(make_app(engine, clock=clock, keys_file=file)) as client:
        long = [await complete("y" * 39) for _ in range(2)]
        metrics = await client.get("/metrics")
        other = await client.get("/v1/models", headers=BEN)
        clock.now += 2.0
        after = await complete("y")

    assert statuses([*long, other, after]) == [200, 429, 200, 200]
    assert long[1].headers["retry-after"] == "1"
    assert 'picospec:tenant_tokens_total{tenant="ben"} 60.0' in metrics.text
    assert 'picospec:tenant_limited_total{limit="tokens",tenant="ben"} 1.0' in metrics.text


@pytest.mark.parametrize("limit", ["requests_a_minute = 6", "sessions = 1"])
async def test_of_a_request_over_a_limit_little_of_the_body_is_read_and_nothing_is_kept(
    tmp_path: Path, limit: str
) -> None:
    file, piece, read = tmp_path / "keys.toml", b" " * 65536, 0
    await asyncio.to_thread(file.write_text, table("ben", more=limit))
    engine = ScriptedEngine((b"x",), pause=asyncio.Event().wait)
    app = make_app(engine, keys_file=file, body_limit_bytes=1 << 30)

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += len(piece)
            yield piece

    async with client_of(app) as client:
        for _ in range(6 if "requests" in limit else 0):
            await client.get("/v1/models", headers=BEN)
        running = asyncio.create_task(ask(client, BEN))
        for _ in range(50):
            await asyncio.sleep(0)
        refused = await client.post(PATH, content=endless(), headers=BEN)
        running.cancel()

    assert refused.status_code == 429
    assert read <= STRANGERS_BYTES + len(piece)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/chat/completions", 200),
        ("/v1/messages/count_tokens", 200),
        ("/v1/responses/input_tokens", 400),  # a body of another form
        ("/tokenize", 200),
        ("/detokenize", 400),
    ],
)
async def test_bodies_on_their_way_are_answers_that_have_begun(
    file: Path, path: str, status: int
) -> None:
    rest = asyncio.Event()
    async with client_of(make_app(ScriptedEngine((b"x",)), keys_file=file), BEN) as client:
        coming = [await on_its_way(client, BEN, CHAT, rest, path) for _ in range(2)]
        third = await client.post(path, json=CHAT)
        rest.set()
        answers = [await each for each in coming]

    assert statuses([third, *answers]) == [429, status, status]


async def on_its_way(
    client: httpx.AsyncClient, who: Headers, body: Body, rest: asyncio.Event, path: str = PATH
) -> asyncio.Task[httpx.Response]:
    """Send a body but for its last byte, which comes once `rest` is set."""
    sent = json.dumps(body).encode()

    async def slow() -> AsyncIterator[bytes]:
        yield sent[:-1]
        await rest.wait()
        yield sent[-1:]

    coming = asyncio.create_task(client.post(path, content=slow(), headers=who))
    for _ in range(50):
        await asyncio.sleep(0)
    return coming


async def test_the_bodies_of_a_key_hold_a_limited_number_of_bytes_until_their_answers_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_context, "MAX_HELD_BYTES", 3000)
    body, rest = {"messages": [{"role": "user", "content": "x" * 1600}]}, asyncio.Event()
    other = {"authorization": "Bearer other"}
    app = make_app(ScriptedEngine(context_tokens=4000), keys_file=file, api_keys=["other"])
    async with client_of(app) as client:
        first = await on_its_way(client, ANN, body, rest)
        answers = [await ask(client, who, **body) for who in (ANN, other)]
        rest.set()
        answers += [await first, await ask(client, ANN, **body)]

    assert statuses(answers) == [429, 200, 200, 200]


async def test_without_keys_all_clients_share_the_services_limits() -> None:
    limits = {"requests_a_minute": 2}
    async with client_of(make_app(ScriptedEngine(), key_limits=limits)) as client:
        answers = [await client.get("/v1/models") for _ in range(3)]

    assert statuses(answers) == [200, 200, 429]


async def test_no_key_is_in_any_log(
    file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = {"authorization": "Bearer a wrong key"}
    engine = ScriptedEngine((b"x",), then=RuntimeError("a bug"))
    async with client_of(make_app(engine, keys_file=file, api_keys=["third key"])) as client:
        with capture_logs() as logs:
            answers = [await ask(client, who) for who in (ANN, wrong)]
            answers.append(await ask(client, {"authorization": "Bearer third key"}))
        answers += [await ask(client, who) for who in (ANN, wrong)]

    assert statuses(answers) == [500, 401, 500, 500, 401]
    assert [line["tenant"] for line in logs] == ["ann", "anonymous", "key-1"]
    shown = f"{logs} {caplog.text} {capfd.readouterr()}"
    assert "a bug" in shown
    for secret in ("key of", "a wrong key", "third key"):
        assert secret not in shown


async def test_a_flood_of_requests_over_the_limit_is_one_line_of_the_log(file: Path) -> None:
    clock = SetClock()
    async with client_of(make_app(ScriptedEngine(), clock=clock, keys_file=file)) as client:
        with capture_logs() as logs:
            first = [await ask(client, BEN, messages=[]) for _ in range(50)]
        clock.now += 60.0
        with capture_logs() as later:
            await asyncio.gather(*(ask(client, BEN, messages=[]) for _ in range(50)))

    assert statuses(first) == [400] * 6 + [429] * 44
    for lines in (logs, later):
        assert [line["event"] for line in lines].count("rate_limited") == 1
        assert len(lines) == 7


# Work that is shared out among owners: in turn, never all places to one, none lost.


@given(
    places=st.integers(1, 4),
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=24),
)
def test_all_are_served_in_turn_and_nobody_has_all_places(
    places: int, asked: list[tuple[str, bool]]
) -> None:
    """asked: whose work it is, and whether it is given up before its turn."""

    async def run() -> None:
        turns, running, served = Turns(places, 24, "wait"), list[str](), list[str]()

        async def work(owner: str) -> None:
            async with turns.take(owner):
                running.append(owner)
                assert len(running) <= places
                assert running.count(owner) <= max(1, places - 1)
                try:
                    await asyncio.sleep(0)
                    served.append(owner)
                finally:
                    running.remove(owner)

        tasks = [asyncio.create_task(work(owner)) for owner, _ in asked]
        await asyncio.sleep(0)
        for task, (_, leaves) in zip(tasks, asked, strict=True):
            if leaves:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert len(served) >= sum(not leaves for _, leaves in asked)
        async with asyncio.timeout(1):  # no place was lost
            async with turns.take("d"):
                pass

    asyncio.run(run())


async def test_one_who_waits_with_much_is_served_after_each_other() -> None:
    turns, served = Turns(1, 8, "wait"), []

    async def work(owner: str) -> None:
        async with turns.take(owner):
            served.append(owner)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(owner) for owner in "aaaaabc"))

    assert "".join(served) == "aabcaaa"


async def test_work_that_is_given_up_waits_no_longer() -> None:
    turns = Turns(1, 1, "wait")

    async def work() -> None:
        async with turns.take("a"):
            pass

    async with turns.take("a"):
        for _ in range(3):
            waits = asyncio.create_task(work())
            await asyncio.sleep(0)
            waits.cancel()
            await asyncio.wait([waits])
            assert waits.cancelled()


async def test_too_much_of_one_owner_is_refused_and_another_is_let_in() -> None:
    turns = Turns(1, 1, "prompts wait to be read")

    async def work(owner: str) -> None:
        async with turns.take(owner):
            pass

    async with turns.take("a"):
        waits = asyncio.create_task(work("a"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 prompts wait to be read"):
            await work("a")
        other = asyncio.create_task(work("b"))
    await asyncio.gather(waits, other)


@pytest.mark.system
async def test_a_thread_keeps_its_place_when_nobody_waits_for_it_any_more() -> None:
    turns, goes_on = ThreadTurns(1, 4, "wait"), threading.Event()
    first = asyncio.create_task(turns.run("a", goes_on.wait))
    await asyncio.sleep(0)
    second = asyncio.create_task(turns.run("b", lambda: 2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0.05)
    assert not second.done()

    goes_on.set()

    assert await second == 2


async def test_a_key_learns_of_no_model_but_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("ann", more='models = ["her own"]'))
    async with client_of(make_app(ScriptedEngine(), keys_file=file), ANN) as client:
        found = [await client.get("/status"), await client.get("/v1/models/another")]
        found += [await ask(client, ANN, model=name) for name in (None, "another")]

    assert not [answer.text for answer in found if MODEL in answer.text]
    assert "her own" in found[-1].text


async def test_a_removed_keys_answer_in_the_background_ends(tmp_path: Path) -> None:
    file, on = keys_toml(tmp_path / "keys.toml", "ann", "ben"), asyncio.Event()
    clock, engine = SetClock(), writes("Hi there", pause=on.wait)
    app = make_app(engine, keys_file=file, clock=clock)
    body = {"input": "Hi", "background": True}
    with capture_logs() as logs:
        async with client_of(app) as client, asyncio.timeout(10):
            await client.post("/v1/responses", json=body, headers=ANN)
            while not engine.jobs:  # noqa: ASYNC110
                await asyncio.sleep(0)
            keys_toml(file, "ben")
            clock.now += 100.0
            on.set()
            while not any("error" in line for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0)

    assert logs[-1]["error"] == "invalid_api_key"


async def test_a_page_of_metrics_that_takes_long_is_kept_for_a_while() -> None:
    made = list[CollectorRegistry]()

    class Slow(CollectorRegistry):
        def collect(self) -> Iterator[Metric]:
            made.append(self)
            compute(0.3)
            return super().collect()

    page, registry = MetricsPage(), Slow()
    for seconds in (0, 5, 2, 5):
        await asyncio.sleep(seconds)
        page.of(registry)

    assert len(made) == 2
