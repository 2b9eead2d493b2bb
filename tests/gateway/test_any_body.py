"""Whatever a client sends, it is served, or gets an error that names a field; never a 500."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.gateway.doors.chat import ChatRequest
from picospec.gateway.doors.completions import CompletionRequest
from picospec.gateway.doors.messages_schema import ChatMessage
from picospec.gateway.doors.ollama import OllamaChat, OllamaGenerate
from picospec.gateway.routes import TokenizeRequest
from picospec.gateway.schema import NEUTRAL
from tests.gateway.messages import claude_code
from tests.gateway.native.test_llama_server import LLAMA_VIM
from tests.gateway.native.test_ollama import HISTORY, OPTIONS, SCHEMA, TOOL
from tests.gateway.scripted import Body, ScriptedEngine, ask, door_of

FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
MORE = sorted({
    *FIELDS, *NEUTRAL, *OllamaChat.model_fields, *OllamaGenerate.model_fields,
})  # fmt: skip
NATIVE: list[tuple[str, Body]] = [
    ("/infill", LLAMA_VIM),
    ("/completion", {"prompt": ["a", [1, 2]], "n_predict": 3, "stream": True, "stop": ["x"]}),
    ("/api/chat", {"messages": HISTORY, "tools": [TOOL], "format": SCHEMA, "options": OPTIONS}),
    ("/api/generate", {"prompt": "a", "system": "b", "options": OPTIONS, "logprobs": True}),
    ("/api/generate", {"prompt": "a", "suffix": "b", "raw": True, "options": OPTIONS}),
    ("/api/show", {"model": "bytes-1"}),
]
NEEDED = {"messages", "prompt", "tokens", "input", "model", "input_prefix"}
"""Fields that an error may name though the body has them not."""

ODD = [None, True, -1, 0, 1, 2**70, 0.5, 1e308, "", "a", "{}", "\x00", [], [1], {}, {"a": 1}]
ROLES = ["system", "developer", "user", "assistant", "tool", "function", "robot"]
BODIES = [json.loads(path.read_text()) for path in (Path(__file__).parent / "data").iterdir()]

ANTHROPICS: Body = {
    "tool_choice": {"type": "tool", "name": "Bash", "disable_parallel_tool_use": True},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stop_sequences": ["a"],
}
values = st.sampled_from(ODD) | st.recursive(
    st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "function", "name", "json", "schema", "content", "text"]),
            inner,
        )
    ),
    max_leaves=5,
)
requests = (
    st.sampled_from([(door_of(body), body) for body in BODIES])
    | st.just(("/v1/messages", claude_code.request(**ANTHROPICS)))
    | st.sampled_from(NATIVE)
)
message_fields = st.sampled_from(sorted(ChatMessage.model_fields))
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES)}).flatmap(
        lambda role: st.dictionaries(message_fields, values, max_size=3).map(lambda m: m | role)
    ),
    max_size=3,
)


def replaced(body: object, data: st.DataObject) -> Any:  # noqa: ANN401 - JSON
    """Return a body in which some values somewhere are others."""
    if data.draw(st.integers(0, 19)) == 0:
        return data.draw(values)
    if isinstance(body, dict):
        return {name: replaced(value, data) for name, value in body.items()}
    if isinstance(body, list):
        return [replaced(item, data) for item in body]
    return body


def check(path: str, body: Any) -> None:  # noqa: ANN401 - JSON
    engine = ScriptedEngine(features=frozenset(FIELDS), context_tokens=4096)
    found = asyncio.run(ask(body, engine, path=path))

    assert found.status_code in (200, 400, 404), (body, found.text)
    if found.status_code == 400 and isinstance(body, dict):
        error = found.json()["error"]
        named = error if isinstance(error, str) else error.get("details", error)["param"]
        assert named, error
        assert re.split(r"[ :.]", named)[0] in body.keys() | NEEDED, error


@settings(max_examples=60)
@given(messages, st.dictionaries(st.sampled_from([*FIELDS, *NEUTRAL]), values, max_size=3))
def test_any_chat_is_served_or_named(sent: object, more: Body) -> None:
    check("/v1/chat/completions", {"messages": sent, **more})


@settings(max_examples=180)
@given(requests, st.dictionaries(st.sampled_from(MORE), values, max_size=2), st.data())
def test_a_request_with_odd_values_is_served_or_named(
    request: tuple[str, Body], more: Body, data: st.DataObject
) -> None:
    path, known = request

    check(path, replaced({**known, **more}, data))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*TokenizeRequest.model_fields, "tools"]), values))
def test_any_text_is_tokenised_or_named(body: Body) -> None:
    check("/tokenize", body)
