"""Traces of a run hold the answers of its target, and what the draft model drafts there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.data.prompts import Prompt
from bench.data.results import Answer
from bench.traces.files import Trace
from bench.traces.from_answers import Replies
from edge_agent.draft_model.loading import find
from models.store import open_store
from tests.bench.answers import answer, results


def replies(*answers: Answer, file: Path = Path("none")) -> Replies:
    found = results(*answers)
    found.settings["seed"] = 7
    prompts = {"a": Prompt("a", "chat", "Name a colour.")}
    return Replies(found, prompts, file, file, context_tokens=256)


def test_the_first_answer_of_the_target_alone_is_taken() -> None:
    answers = [
        answer("picospec", 1.0, prompt="a", text="no"),
        answer("cloud", 1.0, prompt="a", text="yes"),
        answer("cloud", 1.0, prompt="a", text="later", repeat=1),
        answer("cloud", 1.0, prompt="unknown"),
    ]

    assert [each.text for each in replies(*answers).wanted] == ["yes"]


@pytest.mark.models
def test_the_draft_model_is_asked_at_every_token_of_the_answer(tmp_path: Path) -> None:
    file = find("smollm2", open_store({}))
    answered = answer("cloud", 1.0, prompt="a", text="Blue is a colour.")

    [path] = replies(answered, file=file).traces(tmp_path)

    found = Trace.load(path)
    assert (found.family, found.seed) == ("code", 7)
    assert len(found.tokens) == len(found.draft_tokens) == len(found.target_tokens)
    assert (found.target_tokens[:, 0] == found.tokens).all()
    assert (found.draft_logits[:, 0] >= found.draft_logits[:, 1]).all()
    missed = found.draft_tokens[:, 0] != found.tokens
    assert missed.any()
    assert (missed == (found.after_miss_tokens >= 0).T).all()  # kept there only
