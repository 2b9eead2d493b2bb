"""Ollama's SDK, unchanged, against the gateway over a scripted model that reasons."""

from __future__ import annotations

import asyncio
import json

import pytest

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

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
SCRIPT = (
    ("69.8", "It is 69.8 degrees Fahrenheit in Paris."),
    ("t:21", CALL % ("to_fahrenheit", '{"celsius": 21}')),
    ("Fahrenheit", "Let me look.\n" + CALL % ("temperature_of", '{"city": "Paris"}')),
    ("36 years", '{"name": "Ada", "age": 36}'),
    ("hello", "<think>A greeting.</think>Hello!"),
    ("<def add", "a + b"),
)


@pytest.mark.clients
@pytest.mark.skipif(
    not python("ollama").exists(), reason="run `make test-clients`, which installs it"
)
async def test_ollamas_sdk_chats_generates_calls_thinks_and_lists() -> None:
    tokenizer = ByteTokenizer(template="<think><tool_call>")
    engine = ScriptedEngine(
        answers(SCRIPT), context_tokens=4096, features=frozenset({"structured_outputs"})
    )
    sdk = ROOT / "tests/clients/ollama_sdk.py"

    async with served(make_app(engine, tokenizer=tokenizer)) as url:
        client = await asyncio.create_subprocess_exec(
            python("ollama"), sdk, url, MODEL, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await client.communicate()

    found = json.loads(printed)
    loop = ["temperature_of Paris", "to_fahrenheit 21"]
    assert found["called"] == [*loop, *loop]
    assert found["answers"] == ["It is 69.8 degrees Fahrenheit in Paris."] * 2
    assert found["texts"] == ["Hello!"] * 4
    assert found["thoughts"] == ["A greeting."] * 3
    assert found["tokens"] == [len(SCRIPT[4][1]) + 1] * 3
    assert found["prompt_ns"] > 0
    assert (found["middle"], found["loaded"]) == ("a + b", "load")
    assert found["person"] == {"name": "Ada", "age": 36}
    assert found["names"] == found["running"] == [MODEL]
    assert set(found["capabilities"]) == {"completion", "tools", "insert", "thinking"}
    assert (found["context"], found["statuses"]) == (4096, [501, 404])
    thinks = [shown["options"] for shown in tokenizer.rendered]
    assert {"enable_thinking": True} in thinks
    assert {"enable_thinking": False} in thinks
