"""Anthropic's and Ollama's SDKs, unchanged, against the gateway over a scripted model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.endpoints.messages import REFUSED, MessagesRequest
from tests.clients.conftest import python
from tests.edge_agent.processes import ROOT
from tests.gateway.scripted import (
    MODEL,
    ByteTokenizer,
    ScriptedEngine,
    answers,
    make_app,
    served,
)

pytestmark = pytest.mark.clients
HARMLESS = {
    "betas",  # a header
    "billing_policy", "cache_control", "container", "context_management", "diagnostics",
    "fallback_credit_token", "fallbacks", "inference_geo", "mcp_servers", "metadata",
    "service_tier", "speed", "user_profile_id", "workspace_id",
}  # fmt: skip
"""Fields of Anthropic's API that are ignored by name, as nothing here can heed them."""

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
FIRST_CALL = "Let me look.\n" + CALL % ("temperature_of", '{"city": "Paris"}')
LOOP = ["temperature_of Paris", "to_fahrenheit 21"] * 2
ANSWERS = ["It is 69.8 degrees Fahrenheit in Paris."] * 2
PERSON = {"name": "Ada", "age": 36}
SCRIPT = (
    ("69.8", ANSWERS[0]),
    ("t:21", CALL % ("to_fahrenheit", '{"celsius": 21}')),
    ("36 years", json.dumps(PERSON)),
)


async def seen_by(
    script: str, *more: tuple[str, str], context_tokens: int, tokenizer: ByteTokenizer
) -> dict[str, Any]:
    """Run the script of an SDK against a model that answers by SCRIPT and more; return what it
    saw."""
    client = {"claude.py": "anthropic", "ollama_sdk.py": "ollama"}[script]
    engine = ScriptedEngine(
        answers((*SCRIPT, *more)),
        context_tokens=context_tokens,
        features=frozenset({"structured_outputs"}),
    )
    async with served(make_app(engine, tokenizer=tokenizer)) as url:
        running = await asyncio.create_subprocess_exec(
            python(client), ROOT / "tests/clients" / script, url, MODEL,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed, _ = await running.communicate()
    assert running.returncode == 0
    found: dict[str, Any] = json.loads(printed)
    return found


async def test_anthropics_sdk_streams_thinks_calls_counts_and_understands_errors() -> None:
    thinks = "Fahrenheit", f"<think>First its temperature.</think>{FIRST_CALL}"
    tokenizer = ByteTokenizer(template="<think></think><tool_call>")

    found = await seen_by("claude.py", thinks, context_tokens=20_000, tokenizer=tokenizer)

    assert found["called"] == LOOP
    assert found["answers"] == ANSWERS
    assert found["blocks"] == ["thinking", "text", "tool_use"]
    assert found["reason"] == "tool_use"
    assert {"thinking", "text", "input_json", "signature"} <= set(found["kinds"])
    assert found["events"][0] == "message_start"
    assert found["events"][-2:] == ["message_delta", "message_stop"]
    assert found["person"] == PERSON
    assert found["counted"] == len("u:How many degrees Fahrenheit are there in Paris?\n")
    assert found["models"] == [MODEL]
    known = {*MessagesRequest.model_fields, *REFUSED}
    assert set(found["fields"]) - known == HARMLESS
    assert found["unknown"][0] == "NotFoundError"
    assert found["long"] == [
        "BadRequestError",
        "prompt is too long: 40003 tokens > 20000 maximum",
    ]


async def test_ollamas_sdk_chats_generates_calls_thinks_and_lists() -> None:
    tokenizer = ByteTokenizer(template="<think><tool_call>")
    more = (
        ("Fahrenheit", FIRST_CALL),
        ("hello", "<think>A greeting.</think>Hello!"),
        ("<def add", "a + b"),
    )

    found = await seen_by("ollama_sdk.py", *more, context_tokens=4096, tokenizer=tokenizer)

    assert found["called"] == LOOP
    assert found["answers"] == ANSWERS
    assert found["texts"] == ["Hello!"] * 4
    assert found["thoughts"] == ["A greeting."] * 3
    assert found["tokens"] == [len(more[1][1]) + 1] * 3
    assert found["prompt_ns"] > 0
    assert (found["middle"], found["loaded"]) == ("a + b", "load")
    assert found["person"] == PERSON
    assert found["names"] == found["running"] == [MODEL]
    assert set(found["capabilities"]) == {"completion", "tools", "insert", "thinking"}
    assert (found["context"], found["statuses"]) == (4096, [501, 404])
    thinks = [shown["options"] for shown in tokenizer.rendered]
    assert {"enable_thinking": True} in thinks
    assert {"enable_thinking": False} in thinks
