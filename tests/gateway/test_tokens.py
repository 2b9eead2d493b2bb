"""/tokenize and /detokenize speak as llama-server does, and as vLLM does."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.scripted import CONTEXT_TOKENS, END, MODEL, Body, ByteTokenizer, ask

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
