"""Completions: raw prompts, text between two texts, and the prompt as part of the answer; and
/tokenize and /detokenize, which speak as llama-server does, and as vLLM does."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.meaning import job_of
from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    END,
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    ask,
    events_of,
    refusal,
)


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
    tokenizer = ByteTokenizer(begins=(7,))

    begun = await job_of({"prompt": "a"}, tokenizer=tokenizer)
    bare = await job_of({"prompt": "a", "add_special_tokens": False}, tokenizer=tokenizer)

    assert (begun.prompt, bare.prompt) == ((7, 97), (97,))


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


BOS = 7
MESSAGES = [{"role": "user", "content": "hi"}]


async def post(path: str, body: Body) -> httpx.Response:
    tokenizer = ByteTokenizer(begins=(BOS,), takes_tools=False)
    return await ask(body, path=path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "ab"}, [*b"ab"]),
        ({"content": "ab", "add_special": True}, [BOS, *b"ab"]),
        ({"content": ""}, []),
        ({"prompt": "ab"}, [BOS, *b"ab"]),
        ({"prompt": "ab", "add_special_tokens": False, "model": MODEL}, [*b"ab"]),
        ({"messages": MESSAGES}, [BOS, *b"u:hi\n"]),
        ({"messages": MESSAGES, "add_generation_prompt": True}, [BOS, *b"u:hi\n"]),
    ],
)
async def test_texts_and_chats_become_tokens(body: Body, tokens: list[int]) -> None:
    answer = await post("/tokenize", body)

    assert answer.json() == {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": CONTEXT_TOKENS,
        "token_strs": None,
    }


async def test_pieces_come_as_each_server_names_them() -> None:
    llama = await post("/tokenize", {"content": "aé", "with_pieces": True})
    vllm = await post("/tokenize", {"messages": MESSAGES, "return_token_strs": True})

    assert llama.json()["tokens"][0] == {"id": 97, "piece": "a"}
    assert len(llama.json()["tokens"]) == 3
    assert vllm.json()["token_strs"] == ["\x07", "u", ":", "h", "i", "\n"]


async def test_tokens_become_text_with_special_tokens_spelt_out() -> None:
    answer = await post("/detokenize", {"tokens": [104, 0xC3, 0xA9, END]})

    assert answer.json() == {"content": "hé<end>", "prompt": "hé<end>"}
