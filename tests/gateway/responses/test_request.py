"""A response is the chat that says the same: the same prompt, settings and grammar, and so the
same tokens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors import services
from picospec.gateway.doors.services import MAX_AGE_S, MAX_BYTES, MAX_RESPONSES
from picospec.gateway.errors import InvalidRequest
from tests.gateway.scripted import Body, ScriptedEngine, ask, meaning, refusal
from tests.gateway.tenants.holders import Clock

USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": False}
CALLS = [
    {"id": name, "type": "function", "function": {"name": name, "arguments": '{"a": "1"}'}}
    for name in ("f", "n__g")
]
SEALED = base64.b64encode(b"why").decode()
DONE = {"role": "assistant", "content": "So."}


def function(name: str = "f", **more: object) -> Body:
    return {"type": "function", "function": {**TOOL, "name": name, **more}}


CUSTOM = {"type": "grammar", "syntax": "regex", "definition": "a+"}
SAME: list[tuple[Body, Body]] = [
    ({"input": "Hi"}, {"messages": [USER]}),
    ({"input": [USER], "seed": 7, "top_k": 3, "stop": ["x"]},
     {"messages": [USER], "seed": 7, "top_k": 3, "stop": ["x"]}),
    ({"input": "Hi", "instructions": "Be.", "max_output_tokens": 5, "temperature": 0.5},
     {"messages": [{"role": "system", "content": "Be."}, USER], "max_tokens": 5,
      "temperature": 0.5}),
    ({"input": [USER, {"role": "system", "content": "Be."}]},
     {"messages": [USER, {"role": "developer", "content": "Be."}]}),
    ({"input": "Hi", "reasoning": {"effort": "low"}},
     {"messages": [USER], "reasoning_effort": "low"}),
    ({"input": "Hi",
      "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
     {"messages": [USER], "response_format": {
         "type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}),
    ({"input": "Hi", "include": ["message.output_text.logprobs"]},
     {"messages": [USER], "logprobs": True}),
    ({"input": "Hi", "top_logprobs": 2},
     {"messages": [USER], "logprobs": True, "top_logprobs": 2}),
    ({"input": "Hi", "tools": [{"type": "web_search"}, {"type": "function", **TOOL}]},
     {"messages": [USER], "tools": [function()]}),
    ({"input": "Hi", "parallel_tool_calls": False, "tools": [{"type": "function", **TOOL}],
      "tool_choice": {"type": "function", "name": "f"}},
     {"messages": [USER], "parallel_tool_calls": False, "tools": [function()],
      "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    ({"input": "Hi", "tools": [
        {"type": "namespace", "name": "n", "tools": [{"type": "function", **TOOL}]}]},
     {"messages": [USER], "tools": [function("n__f")]}),
    ({"input": "Hi", "tools": [{"type": "custom", "name": "f", "format": CUSTOM}]},
     {"messages": [USER], "tools": [{"type": "custom", "custom": {"name": "f", "format": {
         "type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}}}]}),
    ({"input": "Hi", "tool_choice": {"type": "custom", "name": "f"}, "tools": [
        {"type": "custom", "name": "f", "format": {**CUSTOM, "syntax": "lark"}}]},
     {"messages": [USER], "tool_choice": {"type": "custom", "custom": {"name": "f"}},
      "tools": [{"type": "custom", "custom": {"name": "f", "format": {
         "type": "grammar", "grammar": {"syntax": "lark", "definition": "a+"}}}}]}),
    ({"input": "Hi", "tools": [{"type": "function", **TOOL},
                               {"type": "custom", "name": "g", "format": {"type": "text"}}],
      "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [
          {"type": "custom", "name": "g"}]}},
     {"messages": [USER], "tools": [function(), {"type": "custom", "custom": {"name": "g"}}],
      "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
          {"type": "custom", "custom": {"name": "g"}}]}}}),
    ({"input": [
        USER,
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": SEALED},
        {"type": "message", **DONE},
        {"type": "function_call", "call_id": "f", "name": "f", "arguments": '{"a": "1"}'},
        {"type": "function_call", "call_id": "n__g", "name": "g", "namespace": "n",
         "arguments": '{"a": "1"}'},
        {"type": "function_call_output", "call_id": "f", "output": "2"},
        {"type": "function_call_output", "call_id": "n__g",
         "output": [{"type": "input_text", "text": "3"}]},
        {"type": "message", **DONE}, {"type": "message", **DONE}]},
     {"messages": [
        USER, {**DONE, "reasoning": "why", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "f", "content": "2"},
        {"role": "tool", "tool_call_id": "n__g", "content": "3"}, DONE, DONE]}),
    ({"input": [
        {"type": "custom_tool_call", "call_id": "f", "name": "f", "input": "1"},
        {"type": "custom_tool_call_output", "call_id": "f", "output": "2"}],
      "instructions": "Be."},
     {"messages": [
        {"role": "system", "content": "Be."},
        {"role": "assistant", "tool_calls": [
            {"id": "f", "type": "custom", "custom": {"name": "f", "input": "1"}}]},
        {"role": "tool", "tool_call_id": "f", "content": "2"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("response", "chat"), SAME)
async def test_a_response_has_the_job_of_the_chat_that_says_the_same(
    response: Body, chat: Body
) -> None:
    assert await meaning(response) == await meaning(chat)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"input": [{"type": "message", "role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id"),
        ({"input": [{"type": "mcp_call"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
         "input.0.content.0.type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"suffix": "a"}, "suffix"),
        ({"stream_options": {"include_speculation": True}, "stream": True},
         "stream_options.include_speculation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "custom", "name": "f", "format": {"type": "grammar"}}]},
         "tools.0.format.syntax"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
        ({"tools": [{"type": "web_search"}, {"type": "function", "name": "f", "strict": 1}]},
         "tools.1.strict"),
        ({"tools": [{"type": "function", "name": "f"}],
          "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"},
                    {"type": "namespace", "name": "n", "tools": [
                        {"type": "custom", "name": "f", "format": CUSTOM}]}]},
         "tools.1.tools.0.format"),
    ],
)  # fmt: skip
async def test_what_is_not_served_is_named_as_this_api_names_it(more: Body, field: str) -> None:
    assert await refusal({"input": "Hi", **more}, path="/v1/responses") == (400, field)


async def test_what_an_engine_says_of_a_grammar_is_named_as_this_api_names_it() -> None:
    of_schema = InvalidRequest("structured_outputs.json: no", param="structured_outputs.json")
    engine = ScriptedEngine((), of_schema, frozenset({"structured_outputs"}))
    schema = {"type": "json_schema", "name": "s", "schema": SCHEMA}

    found = await ask({"input": "Hi", "text": {"format": schema}}, engine)

    error = found.json()["error"]
    assert error["message"] == f"{error['param']}: no" == "text.format.schema: no"


# A ResponseStore keeps the responses that were used last, within its bounds.

HALF = services.StoredResponse(b"", bytes(MAX_BYTES // 2))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep large", "keep too large", "find", "remove", "wait"]),
        st.integers(0, 5),
    ),
    max_size=30,
)
KEPT = {
    "keep": services.StoredResponse(b"1", b"2"),
    "keep large": HALF,
    "keep too large": services.StoredResponse(b"1", bytes(MAX_BYTES)),
}


@given(STEPS)
def test_a_shelf_is_a_list_of_what_was_used_last_cut_at_its_bounds(
    steps: list[tuple[str, int]],
) -> None:
    clock = Clock()
    responses = services.ResponseStore(clock)
    used = list[tuple[str, services.StoredResponse, float]]()
    for number, (step, id) in enumerate(steps):
        name = f"{id}" if step in ("find", "remove") else f"{number}"
        if step == "wait":
            clock.now += MAX_AGE_S / 3
        elif step == "find":
            found = next((each for each in used if each[0] == name), None)
            assert responses.find(name) == (found and found[1])
            if found:
                used = [each for each in used if each is not found]
                used.append((found[0], found[1], clock.now))
        elif step == "remove":
            responses.remove(name)
            used = [each for each in used if each[0] != name]
        else:
            responses.keep(name, KEPT[step])
            if step != "keep too large":
                used.append((name, KEPT[step], clock.now))
        used = [each for each in used if each[2] > clock.now - MAX_AGE_S]
        while sum(kept.size_bytes for _, kept, _ in used) > MAX_BYTES:
            del used[0]
    for name, kept, _ in used:
        assert responses.find(name) == kept


def test_the_last_responses_are_kept() -> None:
    responses = services.ResponseStore(Clock())

    for number in range(MAX_RESPONSES + 2):
        responses.keep(str(number), KEPT["keep"])

    assert [responses.find(str(number)) is None for number in range(3)] == [True, True, False]
