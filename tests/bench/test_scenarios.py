"""The scenarios are long work: their files are those of one commit, and one is held out."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from zipfile import ZipFile

import pytest

from picospec.bench.data.prompts import Prompt, read
from picospec.bench.data.scenarios.script import SOURCES

CHARACTERS_A_TOKEN = 3.9
"""Of these texts in Qwen's tokenizer."""

SCENARIOS: dict[str, list[Prompt]] = defaultdict(list)
for _prompt in read(families=["agent", "held-out", "long"]):
    SCENARIOS[_prompt.scenario].append(_prompt)

AGENTS = [name for name in SCENARIOS if not name.startswith("long")]


def tokens(turns: list[Prompt]) -> list[int]:
    """The prompt's tokens before each answer, without the answers before."""
    characters = accumulate((len(t.prompt) for t in turns), initial=len(turns[0].system))
    return [round(n / CHARACTERS_A_TOKEN) for n in list(characters)[1:]]


def test_four_conversations_have_every_kind_of_turn_and_one_is_held_out() -> None:
    kinds = {kind for name in AGENTS for kind in (t.family for t in SCENARIOS[name])}

    assert [name.partition("/")[0] for name in AGENTS] == ["agent"] * 3 + ["held-out"]
    asked = ("call", "edit", "explain", "patch", "react")
    assert kinds == {f"{root}/{kind}" for root in ("agent", "held-out") for kind in asked}


@pytest.mark.parametrize("name", AGENTS)
def test_a_conversation_has_6_to_8_turns_and_ends_at_8_to_16k_tokens(name: str) -> None:
    turns = SCENARIOS[name]

    assert 6 <= len(turns) <= 8
    assert 8_000 <= tokens(turns)[-1] + 250 * (len(turns) - 1) <= 16_000
    assert [turn.turn for turn in turns] == list(range(len(turns)))


def test_the_questions_about_one_long_text_differ_in_their_last_line_only() -> None:
    questions = [SCENARIOS[name][0] for name in SCENARIOS if name not in AGENTS]

    assert len({question.prompt.rpartition("\n")[0] for question in questions}) == 1
    assert len({question.prompt for question in questions}) == len(questions) == 4
    assert 7_000 <= tokens([questions[0]])[0] <= 9_000


def test_the_sources_name_their_commit() -> None:
    with ZipFile(SOURCES) as sources:
        assert len(bytes.fromhex(sources.comment.decode())) == 20


def test_scenarios_are_read_only_by_name_and_counted_as_conversations() -> None:
    assert not any(prompt.scenario for prompt in read())
    assert {p.scenario for p in read(families=["agent", "code"], per_family=2)} == {
        "", *AGENTS[:2]
    }  # fmt: skip
