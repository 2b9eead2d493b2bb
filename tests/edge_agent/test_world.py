"""The real edge over the real verifier: what befalls a link or a process costs time alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from edge_agent.link.connection import UPLOADS_PATH
from edge_agent.link.failover_policy import JITTER_S, RESPONSE_TIMEOUT_S
from edge_agent.link.known_verifiers import Event
from edge_agent.link.session import SILENCE_S
from gateway.errors import Draining, Unavailable
from local_models.checker import ANSWER_TIMEOUT_S
from local_models.constraints import NAME
from speculation.messages import Sampling
from tests.fakes.link import Link
from tests.fakes.world import (
    PASS_S,
    RTT_S,
    TEXT,
    TOKENS,
    Answers,
    VerifierProcess,
    WordTarget,
    World,
)
from tests.virtual_time import compute

Fault = Callable[[VerifierProcess], Awaitable[None] | None]

NOTICED_S = SILENCE_S + 3 * RTT_S + JITTER_S + 2 * PASS_S
"""A silent link is noticed, and the answer goes on, within this time."""

STALL_S = SILENCE_S + 0.4
GRAMMAR = Sampling(extras={NAME: b"{}"})

ASK = {"prompt": "w4 w5 w6", "max_tokens": TOKENS, "seed": 7}
SAID = "".join(f"w{token}" for token in TEXT)


@pytest.fixture(autouse=True, params=[False, True], ids=["own", "multiplexed"])
def multiplexes(request: pytest.FixtureRequest) -> bool:
    """Sessions have a stream each, or an upload stream carries them."""
    return bool(request.param)


async def answered(world: World, fault: Fault, *, after: int = 20) -> list[int]:
    """Return an answer. fault: what befalls the verifier in use after so many tokens."""
    text: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(world.answer(text))
        while len(text) < after and not answering.done():  # noqa: ASYNC110 - a virtual clock
            await asyncio.sleep(PASS_S / 4)
        if (going_on := fault(world.processes[0])) is not None:
            await going_on
    return text


def kill(process: VerifierProcess) -> None:
    process.kill()


def cut(process: VerifierProcess) -> None:
    process.link.cut()


async def restart(process: VerifierProcess) -> None:
    process.kill()
    await asyncio.sleep(1.5)
    await process.start()


async def refuse(process: VerifierProcess) -> None:
    process.link.refuses = True
    process.link.cut()
    await asyncio.sleep(1.0)
    process.link.refuses = False


async def silence(process: VerifierProcess) -> None:
    process.link.silence()
    await asyncio.sleep(3.0)
    process.link.silence(False)


async def stop(process: VerifierProcess) -> None:
    process.link.stop()
    await asyncio.sleep(20.0)
    process.link.stop(False)


def half_open(process: VerifierProcess) -> None:
    process.link.half_open()


def stand_still(_: VerifierProcess) -> None:
    compute(STALL_S)


def fall_silent(process: VerifierProcess) -> None:
    process.link.silence()
    compute(STALL_S)


def drain(process: VerifierProcess) -> None:
    process.signal(signal.SIGTERM)


ONE_SLOT = {"target": partial(WordTarget, slots=1)}
SOON_S = 5 * RTT_S + 2 * PASS_S
FAULTS: dict[str, tuple[list[int], dict[str, Any], Fault, int, float]] = {
    "a cut: the session is opened again at once where it was": ([2, 0], {}, cut, 0, SOON_S),
    "a process is gone: another goes on": ([1, 1], {}, kill, 1, JITTER_S + SOON_S),
    "a silent link: another way is found": ([1, 1], {}, silence, 1, NOTICED_S + 1.0),
    "a process that stands still": ([1, 1], {}, stop, 1, NOTICED_S + 1.0),
    "a connection that is dead": ([1, 1], {}, half_open, 1, NOTICED_S + 1.0),
    "its session gives its slot to the next": ([2], ONE_SLOT, half_open, 0, NOTICED_S),
    "the only verifier is restarted": ([2], {}, restart, 1, 5.0),
    "the loop stands still: what came meanwhile is read": ([1], {}, stand_still, 0, 5.0),
    "and then silence": ([1, 1], {}, fall_silent, 1, STALL_S + 2 * NOTICED_S),
    "a drain that is over before the answer": (
        [1, 1], {"drain_timeout_s": 0.2}, drain, 1, SOON_S + JITTER_S
    ),
}  # fmt: skip
"""How often each verifier takes the session, their settings, the fault, how often the answer
goes on at another process, and the longest time without a token."""


@pytest.mark.parametrize(
    ("opened", "settings", "fault", "reopens", "within_s"), FAULTS.values(), ids=FAULTS
)
async def test_what_befalls_an_answer_costs_it_little_time(
    multiplexes: bool,
    opened: list[int],
    settings: dict[str, Any],
    fault: Fault,
    reopens: int,
    within_s: float,
) -> None:
    async with World(len(opened), multiplexes=multiplexes, **settings) as world:
        assert await answered(world, fault) == TEXT

        assert [process.opened for process in world.processes] == opened
        assert world.metrics.reopens._value.get() == reopens
        assert world.metrics.resumes._value.get() == sum(opened) - 1 - reopens
        assert world.gap_s < within_s
        await asyncio.sleep(30.0)
        assert not any(process.target.running for process in world.processes)


async def test_an_upload_stream_that_is_cut_costs_no_draft_on_it(multiplexes: bool) -> None:
    async with World(1, multiplexes=multiplexes, fill="never") as world:
        link = world.processes[0].link
        resets = {20, 40, 60}

        async def took(text: list[int]) -> None:
            if len(text) in resets:
                resets.remove(len(text))
                await asyncio.sleep(RTT_S / 4)  # a draft is on its way
                for upload in link.streams(UPLOADS_PATH):
                    upload.reset()

        text: list[int] = []
        world.took = took  # type: ignore[method-assign]
        await world.answer(text)

        assert text == TEXT
        assert link.requests[f"POST {UPLOADS_PATH}"] >= 4
        assert link.opened == 1
        assert world.processes[0].opened == (4 if multiplexes else 1)
        assert world.gap_s < 4 * RTT_S + 2 * PASS_S


async def test_where_no_verifier_comes_back_there_is_one_error_after_the_deadline(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, deadline_s=7.0) as world:

        def kill_all(_: VerifierProcess) -> None:
            for process in world.processes:
                process.kill()

        with pytest.raises(ExceptionGroup) as raised:
            await answered(world, kill_all)

        assert raised.group_contains(Unavailable, match="refused")
        assert 6.9 < world.gap_s < 8.0


async def test_an_answer_that_breaks_verifiers_does_not_break_all(multiplexes: bool) -> None:
    async with World(4, multiplexes=multiplexes) as world:
        for process in world.processes:
            process.is_poisoned = True

        with pytest.raises(Unavailable, match="3 verifiers"):
            await world.answer([])

        assert sum(process.is_up for process in world.processes) == 1


async def test_streams_whose_pieces_overtake_one_another_change_no_text(
    multiplexes: bool,
) -> None:
    async with World(1, multiplexes=multiplexes) as world:
        world.processes[0].link.jitter_s = 3 * PASS_S
        texts: list[list[int]] = [[] for _ in range(4)]

        await asyncio.gather(*map(world.answer, texts))

        assert texts == [TEXT] * 4


async def befallen(world: World, chance: Random, faults: Sequence[Fault]) -> str:
    """Have faults befall an answer at random. Return why it ended early, if it did."""
    text: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        answering = asyncio.create_task(world.answer(text))
        await asyncio.sleep(4 * RTT_S)
        for _ in range(chance.randint(1, 8)):
            await asyncio.sleep(chance.uniform(0.0, 2.0))
            fault = chance.choice(faults)
            if (going_on := fault(chance.choice(world.processes))) is not None:
                tasks.create_task(going_on)  # type: ignore[arg-type]
    await asyncio.wait([answering])
    await asyncio.sleep(30.0)
    assert not any(process.target.running for process in world.processes)
    assert text == TEXT[: len(text)]
    return "" if len(text) == TOKENS else str(answering.exception())


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_befalls_links_costs_time_alone(multiplexes: bool, seed: int) -> None:
    chance = Random(seed)
    async with World(chance.randint(1, 3), multiplexes=multiplexes) as world:
        assert not await befallen(world, chance, [cut, silence, refuse, half_open])


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_befalls_processes_costs_time_or_one_error(
    multiplexes: bool, seed: int
) -> None:
    chance, absent = Random(seed), set[VerifierProcess]()

    async def begins_anew(process: VerifierProcess) -> None:
        """Have a process end, killed or drained, and begin again."""
        if process in absent:
            return
        absent.add(process)
        process.signal(signal.SIGTERM) if process.opened % 2 else process.kill()
        await process.ended.wait()
        await asyncio.sleep(4.0)
        await process.start()
        absent.remove(process)

    count = chance.randint(1, 3)
    async with World(count, multiplexes=multiplexes, drain_timeout_s=2.0) as world:
        error = await befallen(world, chance, [cut, silence, half_open, begins_anew])
        assert not error or "3 verifiers were lost" in error


async def test_an_answer_over_a_connection_that_died_while_it_was_idle_begins_on_another(
    multiplexes: bool,
) -> None:
    async with World(1, multiplexes=multiplexes) as world:
        link, text = world.processes[0].link, list[int]()
        link.silence()
        asyncio.get_running_loop().call_later(RESPONSE_TIMEOUT_S - 1.0, link.silence, False)

        await world.answer(text)

        assert text == TEXT


async def test_a_new_answer_asks_a_process_that_is_gone_once(multiplexes: bool) -> None:
    async with World(1, multiplexes=multiplexes) as world:
        world.processes[0].kill()

        with pytest.raises(Unavailable, match="refused"):
            await world.answer([])

        assert len(world.losses) == 1


@pytest.mark.parametrize("count", [1, 2])
async def test_a_verifier_that_tries_a_grammar_for_long_is_waited_for(
    multiplexes: bool, count: int
) -> None:
    async with World(count, multiplexes=multiplexes) as world:
        for process in world.processes:
            process.trial_s = ANSWER_TIMEOUT_S
        text: list[int] = []

        await world.answer(text, GRAMMAR)

        assert text == TEXT
        assert [process.asked for process in world.processes] == [1, 0][:count]


async def test_a_lost_answer_waits_no_longer_for_a_grammar_than_for_a_verifier(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, deadline_s=5.0) as world:
        world.processes[1].trial_s = ANSWER_TIMEOUT_S
        asyncio.get_running_loop().call_later(2.0, world.processes[0].kill)

        with pytest.raises(Unavailable):
            await world.answer([], GRAMMAR)

        assert world.gap_s == pytest.approx(5.0, abs=JITTER_S + PASS_S)


async def test_verifiers_that_hand_an_answer_over_have_not_lost_it(multiplexes: bool) -> None:
    async with World(5, multiplexes=multiplexes, drain_timeout_s=0.0) as world:

        async def took(_: list[int]) -> None:
            for process in world.processes[:4]:
                if process.is_up and process.target.running:
                    process.signal(signal.SIGTERM)

        text: list[int] = []
        world.took = took  # type: ignore[method-assign]
        await world.answer(text)

        assert text == TEXT
        assert [process.opened for process in world.processes] == [1] * 5


async def test_a_prompt_that_takes_longer_to_read_than_the_link_holds_is_read(
    multiplexes: bool,
) -> None:
    async with World(1, multiplexes=multiplexes) as world:
        (process,) = world.processes
        process.first_token_s = 120.0

        async def cuts(_: VerifierProcess) -> None:
            for _ in range(10):
                await asyncio.sleep(10.0)
                process.first_token_s -= 10.0  # the prefix cache keeps what was read
                process.link.cut()

        assert await answered(world, cuts, after=0) == TEXT
        assert process.opened == 11


@pytest.mark.parametrize("every_s", [10.0, 0.2], ids=["after heartbeats", "before any beat"])
async def test_a_verifier_that_takes_sessions_and_never_says_a_token_is_left_in_time(
    multiplexes: bool, every_s: float
) -> None:
    async with World(1, multiplexes=multiplexes) as world:
        world.processes[0].first_token_s = 1e6

        async def cuts(process: VerifierProcess) -> None:
            while True:
                await asyncio.sleep(every_s)
                process.link.cut()

        with pytest.raises(ExceptionGroup) as raised:
            await answered(world, cuts, after=0)

        assert raised.group_contains(Unavailable, match="no token for 6")


async def test_a_verifier_that_was_restarted_just_now_takes_what_a_draining_one_does_not(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, drain_timeout_s=60.0) as world:
        other: list[int] = []

        async def drain(process: VerifierProcess) -> None:
            process.signal(signal.SIGTERM)
            world.verifiers.all[1].note(Event.LOST)  # as it was at the last probe
            await world.answer(other)

        assert await answered(world, drain) == other == TEXT


async def test_a_full_verifier_is_asked_again_when_it_says(multiplexes: bool) -> None:
    async with World(1, multiplexes=multiplexes) as world:

        async def fill(process: VerifierProcess) -> None:
            process.is_full = True
            process.link.cut()
            await asyncio.sleep(5.0)
            process.is_full = False

        assert await answered(world, fill) == TEXT
        assert world.processes[0].opened == 2
        assert world.processes[0].asked < 7  # a second apart, and a wait that grows


async def test_behind_an_address_that_leads_elsewhere_now_a_draining_verifier_is_left(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, drain_timeout_s=60.0) as world:
        old, new = world.processes
        address = world.network["127.0.0.1:1"] = Link(old.link.app)
        edge = Answers()
        await edge.connect("http://127.0.0.1:1")

        async def drain(_: VerifierProcess) -> None:
            old.signal(signal.SIGTERM)
            address.app = new.link.app  # as behind a Service of Kubernetes
            with pytest.raises(Draining):
                await edge.answer([])
            text: list[int] = []
            await edge.answer(text)
            assert text == TEXT

        assert await answered(world, drain) == TEXT
        assert new.opened == 1
        await edge.verifiers.close()


async def test_a_verifier_that_drains_finishes_its_session_and_takes_nothing_else(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, drain_timeout_s=60.0) as world:
        other: list[int] = []
        codes = list[object]()

        async def drain(process: VerifierProcess) -> None:
            process.signal(signal.SIGTERM)
            async with world.client(process.url) as client:
                plain = await client.post("/v1/completions", json={"prompt": "a"})
                for refusal in (plain, await client.get("/ready")):
                    codes.append((refusal.status_code, refusal.json()["error"]["code"]))
                    assert refusal.headers["retry-after"] == "1"
                codes.append((await client.get("/health")).json()["state"])
            await world.answer(other)

        assert await answered(world, drain) == TEXT
        assert other == TEXT
        assert codes == [(503, "draining"), (503, "draining"), "draining"]
        assert [process.opened for process in world.processes] == [1, 1]
        assert world.metrics.reopens._value.get() == 0
        await world.processes[0].ended.wait()


async def test_a_target_that_hangs_ends_its_sessions_and_the_process(
    multiplexes: bool,
) -> None:
    async with World(2, multiplexes=multiplexes, pass_timeout_s=2.0) as world:

        def hang(process: VerifierProcess) -> None:
            process.target.hangs = True
            process.target.on_pass = lambda *_: asyncio.Event().wait()

        assert await answered(world, hang) == TEXT
        assert world.metrics.reopens._value.get() == 1


async def streamed(client: httpx.AsyncClient) -> str:
    """Return the text of a streamed answer and the error at its end, if it has one."""
    async with client.stream("POST", "/v1/completions", json=ASK | {"stream": True}) as a:
        assert a.status_code == 200
        body = "".join([line async for line in a.aiter_lines()])
    return body


async def test_a_clients_answer_goes_on_at_another_verifier(
    multiplexes: bool, tmp_path: Path
) -> None:
    async with World(2, multiplexes=multiplexes) as world, world.edge(tmp_path) as edge:
        asking = asyncio.create_task(edge.client.post("/v1/completions", json=ASK))
        while sum(process.opened for process in world.processes) == 0:  # noqa: ASYNC110 - virtual
            await asyncio.sleep(PASS_S)
        await asyncio.sleep(10 * PASS_S)
        next(process for process in world.processes if process.target.running).kill()
        answer = await asking

    assert answer.json()["choices"][0]["text"] == SAID


async def test_an_edge_that_drains_finishes_its_answer_and_takes_no_other(
    multiplexes: bool, tmp_path: Path
) -> None:
    async with World(1, multiplexes=multiplexes) as world, world.edge(tmp_path) as edge:
        asking = asyncio.create_task(streamed(edge.client))
        await asyncio.sleep(1.0)
        edge.drain.begin(60.0)
        refused = await edge.client.post("/v1/completions", json=ASK)
        body = await asking

        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert body.endswith("data: [DONE]")
        assert edge.drain.over.is_set()


async def test_an_edge_told_twice_ends_its_answer_with_an_error_and_its_session(
    multiplexes: bool, tmp_path: Path
) -> None:
    async with World(1, multiplexes=multiplexes) as world, world.edge(tmp_path) as edge:
        asking = asyncio.create_task(streamed(edge.client))
        await asyncio.sleep(1.0)
        edge.drain.hurry()
        await edge.drain.cut()
        body = await asking
        await asyncio.sleep(2 * RTT_S)

        assert '"code":"shutting_down"' in body
        assert not world.processes[0].target.running


async def test_a_client_that_leaves_ends_its_session(multiplexes: bool, tmp_path: Path) -> None:
    async with World(1, multiplexes=multiplexes) as world, world.edge(tmp_path) as edge:
        asking = asyncio.create_task(streamed(edge.client))
        await asyncio.sleep(1.0)
        assert world.processes[0].target.running
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(3 * RTT_S)

        assert not world.processes[0].target.running
