"""Requests as well-known clients send them are served, by an engine with no feature at all.

Each file in data/ has the fields that the client's source sends, with short texts of our own.
No field of openai's SDK was forgotten: each is served, or known as one that changes an answer,
or listed here as one that cannot.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.responses import ResponsesRequest
from picospec.gateway.schema import NEUTRAL
from tests.gateway.scripted import ByteTokenizer, ScriptedEngine, ask, door_of
from tests.gateway.test_documents import errors_of

DATA = Path(__file__).parent / "data"
IGNORED = {
    "codex": "text.verbosity, reasoning.summary, tools.web_search, input.web_search_call,"
    " input.action, tools.external_web_access, client_metadata",
    "continue_chat": "prediction",
    "zed_agent": "prompt_cache_key",
    "open_webui": "params, features, chat_id, id, messages.tool_calls.index",
    "librechat": "user",
    "llama_server_webui": "return_progress, dynatemp_exponent, xtc_threshold, repeat_last_n,"
    " dry_base, dry_allowed_length, dry_penalty_last_n, backend_sampling, timings_per_token",
}
AGENTS = ("cline", "continue_agent", "zed_agent", "open_webui", "opencode")


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.iterdir()))
async def test_the_request_of_a_client_is_served(name: str) -> None:
    body = json.loads((DATA / f"{name}.json").read_text())
    tokenizer = ByteTokenizer()

    answer = await ask(body, ScriptedEngine(context_tokens=4096), tokenizer=tokenizer)

    assert errors_of(door_of(body), body) == []  # it fits the published schema
    assert answer.status_code == 200, answer.text
    assert (
        answer.text.endswith("data: [DONE]\n\n") or "event: response.completed" in answer.text
    )
    assert answer.headers.get("x-picospec-ignored") == IGNORED.get(name)
    if name in AGENTS:
        (shown,) = tokenizer.rendered
        calls = [call for each in shown["messages"] for call in each.get("tool_calls", ())]
        assert all(isinstance(call["function"]["arguments"], dict) for call in calls)
        assert len(calls) == sum(each["role"] == "tool" for each in shown["messages"]) > 0
        assert [tool["function"]["name"] for tool in shown["tools"]] == [
            tool["function"]["name"] for tool in body["tools"]
        ]


KNOWN = {*NEUTRAL, "n_cmpl", "n_predict"}

OPENAI_HARMLESS = {
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
}  # fmt: skip
RESPONSES_HARMLESS = {
    "access_programs", "background_options", "image", "prompt_cache_options",
    "prompt_cache_retention",
}  # fmt: skip


def test_every_field_of_openais_sdk_has_its_place() -> None:
    chat = set(chats.CompletionCreateParamsBase.__annotations__)
    text = set(completions.CompletionCreateParamsBase.__annotations__)

    assert chat - KNOWN - set(ChatRequest.model_fields) == OPENAI_HARMLESS
    assert text - KNOWN - set(CompletionRequest.model_fields) == {"user"}


def test_every_field_of_a_response_has_its_place() -> None:
    named = set(responses.ResponseCreateParamsBase.__annotations__)

    served = {*ResponsesRequest.model_fields, *ChatRequest.model_fields}
    assert named - KNOWN - served == RESPONSES_HARMLESS
