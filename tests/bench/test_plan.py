"""Every arm gets the same questions, none of them always first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest

from picospec.bench.data.prompts import Prompt
from picospec.bench.link.path import Conditions
from picospec.bench.run.arms import parse
from picospec.bench.run.plan import Plan, turns

PROMPTS = [Prompt(f"p{i}", "code", f"Say {i}.") for i in range(3)]
LINKS = [Conditions(10), Conditions(50), Conditions(100)]


def plan(arms: str, repeats: int = 2) -> Plan:
    return Plan(parse(arms), PROMPTS, LINKS, (0.0, 1.0), tokens=8, repeats=repeats)


def test_far_arms_get_every_question_once_over_every_link() -> None:
    asked = list(turns(plan("cloud,picospec,sync:4")))

    for name in ("picospec", "sync:4"):
        mine = [
            (
                turn.repeat,
                turn.link.rtt_ms,
                turn.prompt.id,
                turn.question.temperature,
                turn.question.seed,
            )
            for turn in asked
            if turn.arm.name == name
        ]
        assert len(mine) == len(set(mine)) == 2 * 3 * 3 * 2


def test_the_seed_changes_with_the_repeat_and_nothing_else() -> None:
    seeds = {(turn.repeat, turn.question.seed) for turn in turns(plan("cloud,picospec"))}

    assert seeds == {(0, 7), (1, 8)}


def test_a_prompt_is_asked_of_every_arm_over_every_link_before_the_next() -> None:
    asked = [
        (turn.repeat, turn.question.temperature, turn.prompt.id)
        for turn in turns(plan("cloud,picospec,sync:4"))
    ]

    assert len([kind for kind, _ in groupby(asked)]) == len(set(asked))


def test_a_run_cut_short_has_prompts_of_every_family() -> None:
    prompts = [Prompt(f"{family}{i}", family, "Hi.") for family in "abc" for i in range(4)]
    short = replace(plan("cloud,picospec,sync:4,paper:4", repeats=1), prompts=prompts)

    asked = [prompt for prompt, _ in groupby(turn.prompt.id for turn in turns(short))][:12]

    assert asked == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


def test_no_family_always_begins_with_the_same_arm() -> None:
    prompts = [Prompt(f"{family}{i}", family, "Hi.") for family in "abc" for i in range(6)]
    three = replace(plan("cloud,picospec,sync:4,paper:4", repeats=1), prompts=prompts)

    middle = [
        turn for turn in turns(three) if turn.link == LINKS[1] and not turn.question.temperature
    ]
    first = [next(some) for _, some in groupby(middle, key=lambda turn: turn.prompt.id)]

    begins = Counter((turn.prompt.family, turn.arm.name) for turn in first)
    assert len(begins) == 9
    assert set(begins.values()) == {2}


def test_cloud_alone_is_asked_over_the_first_and_the_last_link() -> None:
    assert len(list(turns(plan("cloud", repeats=1)))) == 2 * len(PROMPTS) * 2


def test_each_arm_is_first_about_as_often() -> None:
    first: Counter[str] = Counter()
    last = None
    for turn in turns(plan("cloud,picospec,sync:4", repeats=3)):
        asked = (turn.repeat, turn.link, turn.question.temperature, turn.prompt.id)
        if turn.link.rtt_ms == 10 and asked != last:
            first[turn.arm.name] += 1
        last = asked

    assert set(first.values()) == {6}


def test_cloud_is_measured_in_every_repeat_and_checked_at_the_last_link() -> None:
    links = {
        (turn.repeat, turn.link.rtt_ms)
        for turn in turns(plan("cloud,picospec"))
        if turn.arm.name == "cloud"
    }

    assert links == {(0, 10), (0, 100), (1, 10)}


def test_an_arm_can_have_a_draft_model_of_its_own() -> None:
    arms = parse("cloud,picospec,picospec@/models/small.gguf")

    assert [arm.edge.draft_model for arm in arms if arm.edge] == ["", "/models/small.gguf"]
    assert arms[2].name == "picospec@/models/small.gguf"


def test_a_round_arm_without_a_length_has_the_papers() -> None:
    assert [arm.name for arm in parse("cloud,sync,colocated:2")] == [
        "cloud", "sync:4", "colocated:2"
    ]  # fmt: skip


def test_the_steady_arm_differs_by_its_stream_options_alone() -> None:
    asked = {t.arm.name: t.question for t in turns(plan("cloud,picospec,picospec-steady"))}

    steady = asked["picospec-steady"]
    assert steady.stream_options == {"steady": True}
    assert replace(steady, stream_options={}) == asked["picospec"]


@pytest.mark.parametrize("text", ["picospec", "cloud,cloud", "cloud,other", "cloud,sync:99"])
def test_arms_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"arm|cloud|sync"):
        parse(text)


def test_only_a_watched_arm_asks_how_its_text_comes_about() -> None:
    asked = {
        turn.arm.name: turn.question.stream_options
        for turn in turns(plan("cloud,picospec,picospec-watched"))
    }

    watched = {"include_speculation": True}
    assert asked == {"cloud": {}, "picospec": {}, "picospec-watched": watched}


def test_an_arm_sends_its_prompts_prediction_or_anothers_or_none() -> None:
    prompts = [Prompt(f"p{i}", "edit", f"Say {i}.", prediction=f"said {i}") for i in range(3)]
    arms = "cloud,picospec-predicted,picospec-mispredicted"
    asked = turns(replace(plan(arms, repeats=1), prompts=prompts, links=LINKS[:1]))

    sent = {
        (turn.arm.name, turn.prompt.id): turn.question.settings.get("prediction")
        for turn in asked
    }

    for i in range(3):
        own, other = f"said {i}", f"said {(i + 1) % 3}"
        assert sent["cloud", f"p{i}"] is None
        assert sent["picospec-predicted", f"p{i}"] == {"type": "content", "content": own}
        assert sent["picospec-mispredicted", f"p{i}"] == {"type": "content", "content": other}
