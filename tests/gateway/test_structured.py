"""All ways to ask for structured output reach the engine as one parameter, in one form."""

from __future__ import annotations

import json

import pytest

from picospec.gateway import grammars
from picospec.gateway.errors import InvalidRequest
from tests.gateway.meaning import job_of
from tests.gateway.scripted import Body, ScriptedEngine, ask

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "s", "strict": True, "schema": SCHEMA}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

SAME = [
    ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json": SCHEMA}),
    ({"structured_outputs": {"json": {}, "json_object": False}}, {"json": {}}),
    ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
    ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ({"structured_outputs": {"grammar": "root ::= a"}}, {"grammar": "root ::= a"}),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "auto"}, {"json": SCHEMA}),
    ({"guided_json": json.dumps(SCHEMA)}, {"json": SCHEMA}),
    ({"guided_json_object": True}, {"json_object": True}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
    ({"guided_grammar": "root ::= a"}, {"grammar": "root ::= a"}),
    ({"json_schema": SCHEMA}, {"json": SCHEMA}),
    ({"grammar": "root ::= a"}, {"grammar": "root ::= a"}),
    ({"grammar": "", "guided_regex": "a", "response_format": {"type": "text"}}, {"regex": "a"}),
]


@pytest.mark.parametrize(("change", "expected"), SAME)
async def test_each_way_reaches_the_engine_in_one_form(change: Body, expected: Body) -> None:
    job = await job_of(CHAT | change, ScriptedEngine(features=frozenset({grammars.NAME})))

    assert job.extras == {grammars.NAME: expected}


AT = [
    ({"guided_json": SCHEMA}, "guided_json.properties.a"),
    ({"json_schema": SCHEMA}, "json_schema.properties.a"),
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json.properties.a"),
    (
        {"response_format": {"type": "json_schema", "json_schema": NAMED}, "grammar": ""},
        "response_format.json_schema.schema.properties.a",
    ),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        "response_format.schema.properties.a",
    ),
    ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
]


@pytest.mark.parametrize(("change", "path"), AT)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_cannot_compile_is_named_as_the_client_does(
    change: Body, path: str, stream: bool
) -> None:
    kind = "grammar" if "tools" in change else "json.properties.a"
    param = f"structured_outputs.{kind}"
    error = InvalidRequest(f"{param}: an unknown type", param=param)
    serving = ScriptedEngine((), then=error, features=frozenset({grammars.NAME}))

    answer = await ask(CHAT | change | {"stream": stream}, serving)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == path
    assert answer.json()["error"]["message"] == f"{path}: an unknown type"
