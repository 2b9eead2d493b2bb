"""Whatever is sent to these doors, it is served, or gets an error that names a field."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from picospec.gateway.doors.ollama.request import OllamaChat, OllamaGenerate
from picospec.gateway.schemas.known import NEUTRAL
from tests.gateway.native.test_llama_server import LLAMA_VIM
from tests.gateway.native.test_ollama import FEATURES, HISTORY, OPTIONS, SCHEMA, TOOL
from tests.gateway.scripted import ScriptedEngine, ask
from tests.gateway.test_any_body import FIELDS, replaced, values

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/infill", LLAMA_VIM),
    ("/completion", {"prompt": ["a", [1, 2]], "n_predict": 3, "stream": True, "stop": ["x"]}),
    ("/api/chat", {"messages": HISTORY, "tools": [TOOL], "format": SCHEMA, "options": OPTIONS}),
    ("/api/generate", {"prompt": "a", "system": "b", "options": OPTIONS, "logprobs": True}),
    ("/api/generate", {"prompt": "a", "suffix": "b", "raw": True, "options": OPTIONS}),
    ("/api/show", {"model": "bytes-1"}),
]
MORE = sorted({*FIELDS, *NEUTRAL, *OllamaChat.model_fields, *OllamaGenerate.model_fields})


@settings(max_examples=80)
@given(
    st.sampled_from(REQUESTS),
    st.dictionaries(st.sampled_from(MORE), values, max_size=2),
    st.data(),
)
def test_any_body_is_served_or_named(
    request: tuple[str, dict[str, Any]], more: dict[str, object], data: st.DataObject
) -> None:
    path, known = request
    body = replaced({**known, **more}, data)

    engine = ScriptedEngine(features=FEATURES, context_tokens=4096)
    answer = asyncio.run(ask(body, engine, path=path))

    assert answer.status_code in (200, 400, 404), (body, answer.text)
    if answer.status_code == 400 and isinstance(body, dict):
        error = answer.json()["error"]
        named = error if isinstance(error, str) else error["param"]
        field = re.split(r"[ :.]", named)[0]
        assert field in body.keys() | {"messages", "prompt", "model", "input_prefix"}, error
