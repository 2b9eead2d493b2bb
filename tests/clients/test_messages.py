"""Anthropic's SDK, unchanged, against the gateway over a scripted model that reasons."""

from __future__ import annotations

import asyncio
import json

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

HARMLESS = {
    "betas",  # a header
    "billing_policy",
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "metadata",
    "service_tier",
    "speed",
    "user_profile_id",
    "workspace_id",
}
"""Fields that are ignored by name, as nothing here can heed them."""

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
SCRIPT = (
    ("69.8", "It is 69.8 degrees Fahrenheit in Paris."),
    ("t:21", CALL % ("to_fahrenheit", '{"celsius": 21}')),
    (
        "Fahrenheit",
        "<think>First its temperature.</think>Let me look.\n"
        + CALL % ("temperature_of", '{"city": "Paris"}'),
    ),
    ("36 years", '{"name": "Ada", "age": 36}'),
)


@pytest.mark.clients
@pytest.mark.skipif(
    not python("anthropic").exists(), reason="run `make test-clients`, which installs it"
)
async def test_anthropics_sdk_streams_thinks_calls_counts_and_understands_errors() -> None:
    engine = ScriptedEngine(
        answers(SCRIPT), context_tokens=20_000, features=frozenset({"structured_outputs"})
    )
    tokenizer = ByteTokenizer(template="<think></think><tool_call>")

    async with served(make_app(engine, tokenizer=tokenizer)) as url:
        client = await asyncio.create_subprocess_exec(
            python("anthropic"), ROOT / "tests/clients/claude.py", url, MODEL,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed, _ = await client.communicate()

    assert client.returncode == 0
    found = json.loads(printed)
    assert found["called"] == ["temperature_of Paris", "to_fahrenheit 21"] * 2
    assert found["answers"] == ["It is 69.8 degrees Fahrenheit in Paris."] * 2
    assert found["blocks"] == ["thinking", "text", "tool_use"]
    assert found["reason"] == "tool_use"
    assert {"thinking", "text", "input_json", "signature"} <= set(found["kinds"])
    assert found["events"][0] == "message_start"
    assert found["events"][-2:] == ["message_delta", "message_stop"]
    assert found["person"] == {"name": "Ada", "age": 36}
    assert found["counted"] == len("u:How many degrees Fahrenheit are there in Paris?\n")
    assert found["models"] == [MODEL]
    known = {*MessagesRequest.model_fields, *REFUSED}
    assert set(found["fields"]) - known == HARMLESS
    assert found["unknown"][0] == "NotFoundError"
    assert found["long"] == [
        "BadRequestError",
        "prompt is too long: 40003 tokens > 20000 maximum",
    ]
