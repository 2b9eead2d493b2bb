"""Traces of a run hold the answers of its target, and what the draft model drafts there."""

from __future__ import annotations

from pathlib import Path

import pytest

from picospec.bench.data.prompts import Prompt
from picospec.bench.data.results import Answer
from picospec.bench.traces import Subject, Trace, answered, traces
from picospec.edge_agent.draft.loading import find
from picospec.models.store import open_store
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
    file = find("smollm2", open_store({}))
    blue = answer("cloud", 1.0, prompt="a", text="Blue is a colour.")

    [found] = traces(file, file, subjects(blue), tokens=0, context_tokens=256)

    assert (found.family, found.seed) == ("code", 7)
    assert len(found.tokens) == len(found.draft_tokens)
    assert (found.draft_logits[:, 0] >= found.draft_logits[:, 1]).all()
    missed = found.draft_tokens[:, 0] != found.tokens
    assert missed.any()
    assert (missed == (found.after_miss_tokens >= 0).T).all()  # kept there only


@pytest.mark.models
def test_a_target_that_is_the_draft_model_agrees_with_it(tmp_path: Path) -> None:
    file = find("smollm2", open_store({}))
    subject = Subject(Prompt("a", "chat", "Name a colour."), "chat", 0.0, 7)

    [recorded] = traces(file, file, [subject], tokens=6, context_tokens=256)
    found = Trace.load(recorded.save(tmp_path))

    assert (found.draft_tokens[:, 0] == found.tokens).all()
    assert (found.after_miss_tokens == -1).all()


@pytest.mark.models
def test_a_turn_is_recorded_after_what_was_answered_before() -> None:
    file = find("smollm2", open_store({}))
    turns = [
        Prompt(f"agent/a/{n}", "agent/call", f"Say {n}.", scenario="agent/a", turn=n)
        for n in range(2)
    ]
    asked = [Subject(turn, turn.family, 0.0, 7) for turn in turns]

    first, second = traces(file, file, asked, tokens=6, context_tokens=256)

    before = [*first.prompt, *first.tokens]
    assert list(second.prompt[: len(before)]) == before
