"""Completions: raw prompts, text between two texts, and the prompt as part of the answer."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.gateway.scripted import END, ByteTokenizer, ScriptedEngine, client_of, make_app


async def post(
    body: dict[str, object],
    engine: ScriptedEngine | None = None,
    tokenizer: ByteTokenizer | None = None,
) -> httpx.Response:
    async with client_of(make_app(engine or ScriptedEngine(), tokenizer=tokenizer)) as client:
        return await client.post("/v1/completions", json=body)


def texts(answer: httpx.Response) -> list[str]:
    return [choice["text"] for choice in answer.json()["choices"]]


async def test_a_suffix_makes_a_prompt_for_the_text_before_it() -> None:
    engine = ScriptedEngine()

    await post({"prompt": ["a", "b"], "suffix": "z"}, engine)
    await post({"prompt": "a", "suffix": ""}, engine)

    assert [bytes(job.prompt) for job in engine.jobs] == [b"<a|z>", b"<b|z>", b"a"]


async def test_a_model_that_cannot_fill_in_is_a_400_that_names_the_suffix() -> None:
    class Plain(ByteTokenizer):
        def infill(self, prefix: str, suffix: str) -> list[int]:
            raise ValueError("the model has no tokens for that")

    answer = await post({"prompt": "a", "suffix": "z"}, tokenizer=Plain())

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")


async def test_the_tokens_that_begin_a_prompt_can_be_left_out() -> None:
    engine, tokenizer = ScriptedEngine(), ByteTokenizer(begins=(7,))

    await post({"prompt": "a"}, engine, tokenizer)
    await post({"prompt": "a", "add_special_tokens": False}, engine, tokenizer)

    assert [job.prompt for job in engine.jobs] == [(7, 97), (97,)]


async def test_echo_puts_each_prompt_before_its_choices() -> None:
    engine = ScriptedEngine(lambda job: [bytes(job.prompt[:1]), b"!"])

    several = await post({"prompt": ["ab", "c"], "n": 2, "echo": True}, engine)
    tokens = await post({"prompt": [100, END], "echo": True}, engine)

    assert texts(several) == ["aba!", "aba!", "cc!", "cc!"]
    assert [job.seed for job in engine.jobs[:4]] == [41, 42, 41, 42]
    assert texts(tokens) == ["d<end>d!"]
    assert several.json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("script", [[b"Hi", b"!"], []])
async def test_echo_streams_the_prompt_first(script: list[bytes]) -> None:
    answer = await post({"prompt": "ab", "echo": True, "stream": True}, ScriptedEngine(script))

    *events, _ = answer.text.strip().split("\n\n")
    shown = [json.loads(event[6:])["choices"][0]["text"] for event in events]
    assert "".join(shown) == "ab" + b"".join(script).decode()
    assert shown[0].startswith("ab")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": 7}, "suffix"),
        ({"suffix": "z", "prompt": [5]}, "suffix"),
        ({"suffix": "z", "prompt": ["a", [5]]}, "suffix"),
        ({"echo": "yes"}, "echo"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
    ],
)
async def test_what_cannot_be_completed_is_a_400_that_names_the_field(
    body: dict[str, object], param: str
) -> None:
    engine = ScriptedEngine()

    answer = await post({"prompt": "a", **body}, engine)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.jobs == []
