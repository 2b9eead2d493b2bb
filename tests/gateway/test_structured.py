"""All ways to ask for structured output reach the engine as one parameter, in one form."""

from __future__ import annotations

import json

import pytest

from picospec.gateway.errors import InvalidRequest
from picospec.gateway.grammars import structured
from tests.gateway.scripted import ScriptedEngine, client_of, make_app

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "s", "strict": True, "schema": SCHEMA}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
LARGE = {"description": "a" * structured.MAX_BYTES}

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

BAD = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "text", "json_schema": NAMED}},
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_object", "json_schema": NAMED}},
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": LARGE}}},
        "response_format.json_schema.schema",
    ),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[" * 9000}}, "structured_outputs.json"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice.0"),
    ({"structured_outputs": {"grammar": 7}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
    ),
    (
        {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
        "structured_outputs.disable_any_whitespace",
    ),
    ({"guided_json": 7}, "guided_json"),
    ({"guided_json": LARGE}, "guided_json"),
    ({"guided_regex": "a" * structured.MAX_BYTES}, "guided_regex"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "grammar": "a"}, "grammar"),
    ({"json_schema": [1]}, "json_schema"),
    ({"grammar": ["a"]}, "grammar"),
]


async def post(engine: ScriptedEngine, change: dict[str, object]) -> tuple[int, object]:
    async with client_of(make_app(engine)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT | change)
    return answer.status_code, answer.json().get("error", {}).get("param")


def engine() -> ScriptedEngine:
    return ScriptedEngine(features=frozenset({structured.NAME}))


@pytest.mark.parametrize(("change", "expected"), SAME)
async def test_each_way_reaches_the_engine_in_one_form(
    change: dict[str, object], expected: dict[str, object]
) -> None:
    serving = engine()

    status, _ = await post(serving, change)

    assert status == 200
    assert serving.jobs[0].extras == {structured.NAME: expected}


@pytest.mark.parametrize(("change", "param"), BAD)
async def test_a_bad_constraint_is_a_400_that_names_the_field(
    change: dict[str, object], param: str
) -> None:
    serving = engine()

    assert await post(serving, change) == (400, param)
    assert serving.jobs == []


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
    change: dict[str, object], path: str, stream: bool
) -> None:
    kind = "grammar" if "tools" in change else "json.properties.a"
    param = f"structured_outputs.{kind}"
    error = InvalidRequest(f"{param}: an unknown type", param=param)
    serving = ScriptedEngine((), then=error, features=frozenset({structured.NAME}))

    async with client_of(make_app(serving)) as client:
        body = CHAT | change | {"stream": stream}
        answer = await client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == path
    assert answer.json()["error"]["message"] == f"{path}: an unknown type"
