"""Each loss of a verifier or a link has one outcome for an answer, on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from edge_agent.link.failover_policy import JITTER_S, RESPONSE_TIMEOUT_S
from edge_agent.link.known_verifiers import Event
from gateway.errors import ApiError, Overloaded, Unavailable
from local_models.checker import ANSWER_TIMEOUT_S
from local_models.constraints import NAME
from speculation.messages import Sampling
from tests.edge_agent.test_stalls import Fault, fall_silent, inject
from tests.edge_agent.virtual import PASS_S, PLAIN, RTT_S, TEXT, FakeVerifier, World, run


@pytest.fixture(autouse=True, params=[False, True], ids=["own", "carried"])
def multiplexed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions have a stream each, or an upload stream carries them."""
    monkeypatch.setattr(World, "carries", request.param)


def silence(verifier: FakeVerifier) -> None:
    verifier.silent = True


def seen(
    world: World,
    fault: Fault | None = None,
    *,
    after: int = 20,
    sampling: Sampling = PLAIN,
) -> list[int]:
    """Return an answer. fault: what befalls the first verifier after so many tokens."""
    text: list[int] = []

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            answering = tasks.create_task(world.answer(text, sampling))
            if fault is not None:
                while len(text) < after and not answering.done():  # noqa: ASYNC110 - virtual
                    await asyncio.sleep(PASS_S)
                await inject(fault, world.verifiers[0])

    try:
        run(main())
    except* ApiError as errors:
        raise errors.exceptions[0] from None
    return text


def test_after_a_cut_the_session_is_opened_again_at_once_where_it_was() -> None:
    world = World(2)

    assert seen(world, FakeVerifier.cut) == TEXT
    assert [verifier.opened for verifier in world.verifiers] == [2, 0]
    assert world.gap_s < 2 * RTT_S + 1.1 * PASS_S
    assert len(world.verifiers[0].names) == 1
    assert world.metrics.resumes._value.get() == 1
    assert world.metrics.reopens._value.get() == 0


def test_where_a_process_is_gone_another_verifier_goes_on_and_the_first_is_asked_once() -> None:
    world = World(2)

    assert seen(world, FakeVerifier.kill) == TEXT
    assert [verifier.asked for verifier in world.verifiers] == [2, 1]
    assert world.gap_s < JITTER_S + 3 * RTT_S + PASS_S


def test_a_new_answer_over_a_connection_that_died_while_it_was_idle_begins_on_another() -> None:
    world = World(1)
    world.verifiers[0].silent = True

    async def awake(verifier: FakeVerifier) -> None:
        await asyncio.sleep(RESPONSE_TIMEOUT_S - 1.0)
        verifier.silent = False

    assert seen(world, awake, after=0) == TEXT


@pytest.mark.parametrize("count", [1, 2])
def test_a_verifier_that_tries_a_grammar_for_long_is_waited_for(count: int) -> None:
    world = World(count)
    for verifier in world.verifiers:
        verifier.trial_s = ANSWER_TIMEOUT_S

    assert seen(world, sampling=Sampling(extras={NAME: b"{}"})) == TEXT
    assert [verifier.asked for verifier in world.verifiers] == [1, 0][:count]


def test_a_lost_answer_waits_no_longer_for_a_grammar_than_for_a_verifier() -> None:
    world = World(2, deadline_s=5.0)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill())
            with pytest.raises(Unavailable):
                await world.answer([], sampling=Sampling(extras={NAME: b"{}"}))

    async def kill() -> None:
        await asyncio.sleep(2.0)
        world.verifiers[1].trial_s = ANSWER_TIMEOUT_S
        world.verifiers[0].kill()

    run(main())

    assert world.gap_s == pytest.approx(world.deadline_s, abs=JITTER_S + PASS_S)


def test_verifiers_that_hand_an_answer_over_have_not_lost_it() -> None:
    world = World(5)
    for verifier in world.verifiers[:4]:
        verifier.hands_over = True

    assert seen(world) == TEXT


def test_where_a_link_is_silent_another_verifier_goes_on_within_a_second_and_a_half() -> None:
    world = World(2)

    assert seen(world, silence) == TEXT
    assert world.verifiers[1].opened == 1
    assert world.gap_s < 1.5
    assert world.metrics.reopens._value.get() == 1


def test_a_silent_link_that_is_the_only_one_is_opened_anew_and_frees_what_it_held() -> None:
    world = World(1)

    assert seen(world, fall_silent) == TEXT
    assert world.metrics.reopens._value.get() == 0


def test_a_prompt_that_takes_longer_to_read_than_the_link_holds_is_read_all_the_same() -> None:
    world = World(1)
    world.verifiers[0].first_token_s = 120.0

    async def cuts(verifier: FakeVerifier) -> None:
        for _ in range(10):
            await asyncio.sleep(10.0)
            verifier.cut()
            verifier.first_token_s -= 10.0  # the prefix cache keeps what was read

    assert seen(world, cuts, after=0) == TEXT
    assert world.verifiers[0].opened == 11


@pytest.mark.parametrize("every_s", [10.0, 0.2], ids=["after heartbeats", "before any beat"])
def test_a_verifier_that_takes_sessions_and_never_says_a_token_is_left_in_time(
    every_s: float,
) -> None:
    world = World(1)
    world.verifiers[0].first_token_s = 1e6

    async def cuts(verifier: FakeVerifier) -> None:
        while True:
            await asyncio.sleep(every_s)
            verifier.cut()

    with pytest.raises(Unavailable, match="no token for 6"):
        seen(world, cuts, after=0)


def test_an_answer_that_breaks_verifiers_does_not_break_all() -> None:
    world = World(4)
    for verifier in world.verifiers:
        verifier.poisoned = True

    with pytest.raises(Unavailable, match="3 verifiers"):
        seen(world)

    assert sum(verifier.up for verifier in world.verifiers) == 1


def test_where_no_verifier_comes_back_there_is_one_error_after_the_deadline() -> None:
    world = World(2, deadline_s=7.0)

    def kill_all(_: FakeVerifier) -> None:
        for verifier in world.verifiers:
            verifier.kill()

    with pytest.raises(Unavailable, match="refused"):
        seen(world, kill_all)

    assert 6.9 < world.gap_s < 8.0


def test_a_verifier_that_was_restarted_just_now_takes_what_a_draining_one_does_not() -> None:
    world = World(2)
    world.verifiers[0].draining = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: 0.0)  # when the world's clock begins
        world.edge.all[1].note(Event.LOST)  # as it was at the last probe

    assert seen(world) == TEXT


def test_a_full_verifier_is_asked_again_when_it_says() -> None:
    world = World(1)

    async def kill_and_fill(verifier: FakeVerifier) -> None:
        verifier.kill()
        verifier.up, verifier.refusal = True, Overloaded("full", retry_after_s=3)
        await asyncio.sleep(5.0)
        verifier.refusal = None

    assert seen(world, kill_and_fill) == TEXT
    assert world.gap_s >= 3.0
    assert world.verifiers[0].opened == 2
