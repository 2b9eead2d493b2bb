"""Traces hold what both models generate, edges draft along them, and long work is in turns."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from bench.capacity import Figures, Load, figures
from bench.clients import Answered
from bench.link import Conditions
from bench.long_work import scenario_of
from bench.prompts import Conversation, Prompt, read
from bench.recording import Subject, answered, traces
from bench.results import Answer
from bench.run.arms import parse
from bench.run.command import Plan, stints
from bench.run.services import Services, ServicesPlan
from bench.simulator.source import traced
from bench.statistics import mean
from bench.traces import Trace
from local_models.store import open_store
from tests.bench.answers import answer, results


def subjects(*answers: Answer) -> list[Subject]:
    found = results(*answers)
    found.settings["seed"] = 7
    return answered(found, {"a": Prompt("a", "chat", "Name a colour.")})


def test_the_first_answer_of_the_target_alone_is_taken() -> None:
    answers = [
        answer("picospec", 1.0, prompt="a", text="no"),
        answer("cloud", 1.0, prompt="a", text="yes"),
        answer("cloud", 1.0, prompt="a", text="later", repeat=1),
        answer("cloud", 1.0, prompt="unknown"),
    ]

    assert [each.reply for each in subjects(*answers)] == answers[1:2]


@pytest.mark.models
def test_the_draft_model_is_asked_at_every_token_of_the_answer() -> None:
    file = open_store({}).find("smollm2", "draft").path
    blue = answer("cloud", 1.0, prompt="a", text="Blue is a colour.")

    [found] = traces(file, file, subjects(blue), tokens=0, context_tokens=256)

    assert (found.family, found.seed) == ("code", 7)
    assert len(found.tokens) == len(found.draft_tokens)
    assert (found.draft_logits[:, 0] >= found.draft_logits[:, 1]).all()
    missed = found.draft_tokens[:, 0] != found.tokens
    assert missed.any()
    assert (missed == (found.after_miss_tokens >= 0).T).all()  # kept there only


@pytest.fixture(scope="module")
def recorded() -> list[Trace]:
    """The traces of two turns, whose target is the draft model."""
    file = open_store({}).find("smollm2", "draft").path
    turns = [
        Prompt(f"agent/a/{n}", "agent/call", f"Say {n}.", scenario="agent/a", turn=n)
        for n in range(2)
    ]
    asked = [Subject(turn, turn.family, 0.0, 7) for turn in turns]
    return list(traces(file, file, asked, tokens=6, context_tokens=256))


@pytest.mark.models
def test_a_target_that_is_the_draft_model_agrees_with_it(
    tmp_path: Path, recorded: list[Trace]
) -> None:
    found = Trace.load(recorded[0].save(tmp_path))

    assert (found.draft_tokens[:, 0] == found.tokens).all()
    assert (found.after_miss_tokens == -1).all()


@pytest.mark.models
def test_a_turn_is_recorded_after_what_was_answered_before(recorded: list[Trace]) -> None:
    first, second = recorded

    before = [*first.prompt, *first.tokens]
    assert list(second.prompt[: len(before)]) == before


# Scripted edges draft along the traces; the figures are over all clients.


def client_answer(asked_s: float, arrivals_s: list[float], tokens: int) -> Answered:
    return Answered(asked_s, arrivals_s[-1], arrivals_s, tokens, len(arrivals_s), tokens // 2)


def test_figures_are_over_all_clients_and_the_slowest_is_one_client() -> None:
    fast = [client_answer(0.0, [1.0, 2.0], 10), client_answer(2.0, [3.0, 4.0], 10)]
    slow = [client_answer(0.0, [4.0, 8.0], 4)]

    found = figures([fast, slow])

    assert found == Figures(
        tokens_per_s=24 / 8,
        slowest_tokens_per_s=4 / 8,
        passes_per_token=6 / 24,
        gap_ms_p50=1000.0,
        gap_ms_p95=pytest.approx(3700.0),
        scripted_share=0.5,
    )


@pytest.mark.models
async def test_scripted_edges_draft_what_a_real_target_generates() -> None:
    file = open_store({}).find("smollm2", "target").path
    subject = Subject(Prompt("a", "chat", "Count to ten."), "chat", 0.0, 7)
    [recorded] = traces(file, file, [subject], tokens=8, context_tokens=256)
    arguments = ("--llama.slots", "3", "--llama.context-tokens", "512")

    async with Services(ServicesPlan("smollm2", "", {}, "llama", arguments)) as services:
        load = Load(services.verifier_url, [traced(recorded)], 5.0, 0.005)
        cloud, picospec = [row async for row in load.rows([2])]

    assert cloud.measured.passes_per_token == 1.0
    assert picospec.measured.scripted_share == 1.0  # Q8_0: the same text in any batch
    assert picospec.measured.passes_per_token < 1.0  # few drafts are in time on a busy host


# The scenarios are long work: each arm goes on from its own answers, turn by turn.


def test_scenarios_are_read_only_by_name_and_counted_as_conversations() -> None:
    assert not any(prompt.scenario for prompt in read())
    assert {p.scenario for p in read(families=["agent", "code"], per_family=2)} == {
        "", "agent/ngrams", "agent/uplink"
    }  # fmt: skip


def plan(arms: str = "cloud,picospec,cloud-suffix:3", *families: str) -> Plan:
    prompts = read(families=families or ["agent", "long"], per_family=2)
    return Plan(parse(arms), prompts, [Conditions(1.0), Conditions(2.0)])


def test_a_conversation_follows_its_own_arms_answers_in_order() -> None:
    for stint in stints(plan()):
        conversation = Conversation()
        for turn in stint:
            before = conversation.before(turn.prompt)
            conversation.answered(turn.prompt, f"{turn.arm.name} {turn.prompt.id}")

            said = [message["content"] for message in before if message["role"] == "assistant"]
            scenario, n = turn.prompt.scenario, turn.prompt.turn
            assert said == [f"{turn.arm.name} {scenario}/{i + 1}" for i in range(n)]


def test_a_turn_whose_last_one_has_no_answer_is_not_asked() -> None:
    with pytest.raises(ValueError, match="agent/ngrams/2"):
        Conversation().before(read(families=["agent"])[1])


def test_no_arm_finds_what_another_arm_or_link_left_and_no_services_see_a_turn_twice() -> None:
    for stint in stints(plan()):
        turns = [turn.prompt.id for turn in stint]
        assert len({(turn.arm.name, turn.link) for turn in stint}) == 1
        assert len(set(turns)) == len(turns)


def test_scenarios_come_after_the_questions_and_let_edges_tell_and_suffixes_remember() -> None:
    dealt = stints(plan("cloud,picospec,cloud-suffix:3", "code", "agent"))

    roots = [stint[0].prompt.root for stint in dealt]
    assert [root for root, _ in groupby(roots)] == ["code", "agent"]
    for stint in dealt:
        for turn in stint:
            long, arm = turn.prompt.root == "agent", turn.arm
            is_watched = turn.question.stream_options.get("include_speculation", False)
            assert is_watched == (long and arm.name == "picospec")
            forgets = arm.rival and "max_cached_requests" in str(arm.rival.speculation(""))
            assert bool(forgets) == (arm.name == "cloud-suffix:3" and not long)


def test_turns_of_one_conversation_widen_an_interval() -> None:
    """Within a conversation all turns gain alike, and between the two much."""
    ratios = [("agent", f"agent/{s}/{n}", 1.0 + s) for s in range(2) for n in range(8)]

    apart, together = mean(ratios), mean(ratios, scenario_of)

    assert apart
    assert together
    assert apart.value == together.value
    assert (together.low, together.high) == pytest.approx((1.0, 2.0))
    assert apart.low
    assert apart.low > 1.1
