"""/tokenize and /detokenize speak as llama-server does, and as vLLM does."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.scripted import (
    CONTEXT_TOKENS,
    END,
    MODEL,
    ByteTokenizer,
    ScriptedEngine,
    client_of,
    make_app,
)

BOS = 7
MESSAGES = [{"role": "user", "content": "hi"}]


async def post(path: str, body: object) -> httpx.Response:
    tokenizer = ByteTokenizer(begins=(BOS,), takes_tools=False)
    async with client_of(make_app(ScriptedEngine(), tokenizer=tokenizer)) as client:
        return await client.post(path, json=body)


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
async def test_texts_and_chats_become_tokens(
    body: dict[str, object], tokens: list[int]
) -> None:
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


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"content": ["a"]}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "prompt"),
        ("/tokenize", {"content": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"content": "a", "add_special": 1}, "add_special"),
        ("/tokenize", {"content": "a", "parse_special": 1}, "parse_special"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"prompt": "a", "model": "g"}, "model"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content"),
        (
            "/tokenize",
            {"messages": MESSAGES, "add_generation_prompt": False},
            "add_generation_prompt",
        ),
        (
            "/tokenize",
            {
                "messages": MESSAGES,
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            "tools",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "ab"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens.1"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/detokenize", {"tokens": [END + 1]}, "tokens.0"),
    ],
)
async def test_bad_input_is_an_error_that_names_the_field(
    path: str, body: object, param: str
) -> None:
    answer = await post(path, body)

    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param
