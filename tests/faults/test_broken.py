"""Faults that end an answer: of the edge itself, and of a request that kills every engine."""

from __future__ import annotations

import asyncio
import time

import pytest

from edge_agent.link.failover_policy import MAX_LOST
from gateway.background_work import running_alongside
from tests.faults.rig.asking import BRIEF, KINDS, MODEL, Answer
from tests.faults.rig.breakable import POISON
from tests.faults.rig.report import Report
from tests.faults.rig.world import World
from tests.faults.strikes import ask_again, kill, serves_again, struck, struck_one

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_edges_answers_can_be_asked_for_again(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    answers, at = await struck(world, lambda world: world.edge.kill())
    await serves_again(world)
    again_s = time.monotonic() - at
    again = await ask_again(world)

    report.add("edge SIGKILL", "cut, asked again", again_s, again == undisturbed)
    for kind, answer in answers.items():  # on a fast host some had ended before
        assert answer.outcome in ("connection", "cut") or answer == undisturbed[kind]
        assert undisturbed[kind].text.startswith(answer.text)
    assert answers != undisturbed
    assert again == undisturbed


async def test_an_edge_that_is_asked_to_end_ends_its_answers_first(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    answers, at = await struck(world, lambda world: world.edge.terminate())

    gap_s = max(answer.gap_s(at) for answer in answers.values())
    report.add("edge SIGTERM", "complete", gap_s, answers == undisturbed)
    await serves_again(world)
    assert answers == undisturbed


async def test_in_separate_an_answer_goes_on_and_is_greedy_where_the_target_is(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    async with world.other_edge(45.0, "--judge", "separate") as separate:
        answer, at = await struck_one(separate, KINDS["greedy"], kill)

    same = answer == undisturbed["greedy"]
    report.add("verifier SIGKILL, judge separate", answer.outcome, answer.gap_s(at), same)
    assert same


async def test_where_no_verifier_comes_back_there_is_an_error_after_the_deadline(
    world: World, undisturbed: dict[str, Answer], report: Report, is_long: bool
) -> None:
    async def kill_all(world: World) -> None:
        for verifier in world.verifiers:
            await verifier.kill()

    async with world.other_edge(1.5) as hasty:
        answer, at = await struck_one(hasty, KINDS["drawn"], kill_all)
        seconds = time.monotonic() - at
        begun = time.monotonic()
        later = await hasty.ask(BRIEF)
        later_s = time.monotonic() - begun
        ready, health = [
            await world.http.get(f"{hasty.edge.url}/{name}") for name in ("ready", "health")
        ]

    report.add("all verifiers SIGKILL, none restarted", answer.outcome, seconds)
    assert seconds > 1.4
    assert answer.outcome == later.outcome == "verifier_unavailable"
    assert undisturbed["drawn"].text.startswith(answer.text)
    assert ready.status_code == 503
    assert "no verifier can be used" in ready.json()["error"]["message"]
    assert (health.status_code, health.json()["state"]) == (200, "unavailable")
    assert not is_long or later_s < 1.0  # an answer that has not begun waits for nothing


async def test_a_request_that_kills_engines_is_given_up_and_others_go_on(
    world: World, undisturbed: dict[str, Answer], report: Report
) -> None:
    """One of the others may be given up too: if it had no token between three losses, nothing
    tells it from the request that kills."""
    poison: dict[str, object] = {}
    deaths = 0

    async def supervise() -> None:
        """Start verifiers that have ended, as a service manager does."""
        nonlocal deaths
        while True:
            for verifier in world.verifiers:
                if not verifier.alive:
                    deaths += 1
                    verifier.start()
            await asyncio.sleep(0.1)

    async def ask_poison(world: World) -> None:
        body = {"model": MODEL, "prompt": [1, 2, POISON, 3], "max_tokens": 5}
        path = f"{world.edge.url}/v1/completions"
        poison.update((await world.http.post(path, json=body, timeout=150)).json()["error"])

    async with running_alongside(supervise()):
        answers, at = await struck(world, ask_poison)

    gap_s = max(answer.gap_s(at) for answer in answers.values())
    others = [name for name, answer in answers.items() if answer != undisturbed[name]]
    note = f"{deaths} verifiers died, {len(others)} others given up"
    report.add("poison request", str(poison["code"]), gap_s, not others, note)
    await serves_again(world)
    assert deaths == MAX_LOST
    for name in others:
        assert answers[name].error is not None
        assert undisturbed[name].text.startswith(answers[name].text)
