"""Completions: raw prompts, text between two texts, and the prompt as part of the answer."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.scripted import END, ByteTokenizer, ScriptedEngine, ask, events_of, refusal


def texts(answer: httpx.Response) -> list[str]:
    return [choice["text"] for choice in answer.json()["choices"]]


async def test_a_suffix_makes_a_prompt_for_the_text_before_it() -> None:
    engine = ScriptedEngine()

    await ask({"prompt": ["a", "b"], "suffix": "z"}, engine)
    await ask({"prompt": "a", "suffix": ""}, engine)

    assert [bytes(job.prompt) for job in engine.jobs] == [b"<a|z>", b"<b|z>", b"a"]


async def test_a_model_that_cannot_fill_in_is_a_400_that_names_the_suffix() -> None:
    class Plain(ByteTokenizer):
        def infill(self, *_: object, **__: object) -> list[int]:
            raise ValueError("the model has no tokens for that")

    refused = await refusal({"prompt": "a", "suffix": "z"}, tokenizer=Plain())

    assert refused == (400, "suffix")


async def test_the_tokens_that_begin_a_prompt_can_be_left_out() -> None:
    engine, tokenizer = ScriptedEngine(), ByteTokenizer(begins=(7,))

    await ask({"prompt": "a"}, engine, tokenizer=tokenizer)
    await ask({"prompt": "a", "add_special_tokens": False}, engine, tokenizer=tokenizer)

    assert [job.prompt for job in engine.jobs] == [(7, 97), (97,)]


async def test_echo_puts_each_prompt_before_its_choices() -> None:
    engine = ScriptedEngine(lambda job: [bytes(job.prompt[:1]), b"!"])

    several = await ask({"prompt": ["ab", "c"], "n": 2, "echo": True}, engine)
    tokens = await ask({"prompt": [100, END], "echo": True}, engine)

    assert texts(several) == ["aba!", "aba!", "cc!", "cc!"]
    assert [job.seed for job in engine.jobs[:4]] == [41, 42, 41, 42]
    assert texts(tokens) == ["d<end>d!"]
    assert several.json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("script", [[b"Hi", b"!"], []])
async def test_echo_streams_the_prompt_first(script: list[bytes]) -> None:
    answer = await ask({"prompt": "ab", "echo": True, "stream": True}, ScriptedEngine(script))

    *events, _ = events_of(answer.text)
    shown = [event["choices"][0]["text"] for event in events]
    assert "".join(shown) == "ab" + b"".join(script).decode()
    assert shown[0].startswith("ab")
