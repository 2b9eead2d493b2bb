"""Every arm gets the same questions, none of them always first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest

from picospec.bench.data.prompts import Prompt
from picospec.bench.link import Conditions
from picospec.bench.run.live_arms import parse
from picospec.bench.run.plan import Plan, turns
from picospec.bench.run.rounds import RoundPolicy

PROMPTS = [Prompt(f"p{i}", "code", f"Say {i}.") for i in range(3)]
LINKS = [Conditions(10), Conditions(50), Conditions(100)]


def plan(arms: str, repeats: int = 2) -> Plan:
    return Plan(parse(arms), PROMPTS, LINKS, (0.0, 1.0), tokens=8, repeats=repeats)


def test_far_arms_get_every_question_once_over_every_link() -> None:
    asked = list(turns(plan("cloud,picospec,sync:4")))

    for name in ("picospec", "sync:4"):
        mine = [
            (turn.repeat, turn.link, turn.prompt.id, turn.question.temperature)
            for turn in asked
            if turn.arm.name == name
        ]
        assert len(mine) == len(set(mine)) == 2 * 3 * 3 * 2


def test_the_seed_changes_with_the_repeat_and_nothing_else() -> None:
    seeds = {(turn.repeat, turn.question.seed) for turn in turns(plan("cloud,picospec"))}

    assert seeds == {(0, 7), (1, 8)}


def test_a_run_cut_short_has_prompts_of_every_family() -> None:
    prompts = [Prompt(f"{family}{i}", family, "Hi.") for family in "abc" for i in range(4)]
    short = replace(plan("cloud,picospec,sync:4,paper:4", repeats=1), prompts=prompts)

    asked = [prompt for prompt, _ in groupby(turn.prompt.id for turn in turns(short))][:12]

    assert asked == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]


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


def test_the_steady_arm_differs_by_its_stream_options_alone() -> None:
    asked = {t.arm.name: t.question for t in turns(plan("cloud,picospec,picospec-steady"))}

    steady = asked["picospec-steady"]
    assert steady.stream_options == {"steady": True}
    assert replace(steady, stream_options={}) == asked["picospec"]


@pytest.mark.parametrize(
    ("arms", "named"),
    [
        ("picospec", "cloud"),
        ("cloud,cloud", "arm"),
        ("cloud,other", "other"),
        ("cloud,sync:99", "sync:99"),
        ("cloud,cloud-ngram:0", "cloud-ngram:0"),
        ("cloud,cloud-draft:x", "cloud-draft:x"),
        ("cloud,cloud-vllm:3", "cloud-vllm:3"),
    ],
)
def test_arms_that_cannot_be_are_refused(arms: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(arms)


@pytest.mark.parametrize("text", ["sync", "sync:0", "sync:17", "paper:x", "other:4"])
def test_what_is_no_policy_of_rounds_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RoundPolicy.parse(text)


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
