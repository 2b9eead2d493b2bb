"""A body is bounded in bytes and in values; the values are counted exactly, in linear time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.bodies import BYTES_PER_TOKEN, MIN_LIMIT_BYTES
from gateway.errors import ApiError, InvalidRequest, Unavailable
from gateway.json_bounds import (
    MAX_CONTAINERS,
    MAX_STRINGS,
    MAX_VALUES,
    Structure,
    check_structure,
    count_structure,
)
from gateway.operator_fields import without_operators
from gateway.schema import RequestModel
from tests.gateway.scripted import ScriptedEngine, client_of, make_app

CHAT = "/v1/chat/completions"

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text('ab"\\\n,{[é\U0001f600'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a"\\,{'), inner),
    max_leaves=30,
)


def walked(value: Any) -> Structure:  # noqa: ANN401 - JSON
    """Return what a value has, counted one by one."""
    if isinstance(value, str):
        return Structure(0, 1, 0)
    if not isinstance(value, list | dict):
        return Structure(0, 0, 0)
    named = isinstance(value, dict)
    inside = [walked(item) for item in (value.values() if named else value)]
    return Structure(
        1 + sum(each.containers for each in inside),
        named * len(value) + sum(each.strings for each in inside),
        max(len(value) - 1, 0) + sum(each.commas for each in inside),
    )


@given(value=values, ascii_only=st.booleans(), piece_bytes=st.integers(1, 40))
def test_the_counts_are_those_of_a_walk_through_the_values(
    value: object, ascii_only: bool, piece_bytes: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()

    *_, counted = count_structure(text, piece_bytes)

    assert counted == walked(value)


@pytest.mark.parametrize("repeated", [r"\"", r"\\", r"\\\"", '"', r'"\\"', "a", "\\", "[", ","])
def test_counting_takes_a_time_in_proportion_to_the_bytes(repeated: str) -> None:
    text = ('"' + repeated * ((8 << 20) // len(repeated))).encode()

    for _ in count_structure(text):  # it takes 0.1 s; in quadratic time it would take hours
        pass


@pytest.mark.parametrize(
    ("item", "most", "what"),
    [
        ("{}", MAX_CONTAINERS - 1, f"{MAX_CONTAINERS} objects and arrays"),
        ('""', MAX_STRINGS, f"{MAX_STRINGS} strings"),
        ("0", MAX_VALUES + 1, f"{MAX_VALUES} values"),
    ],
)
async def test_too_many_values_are_a_400_that_says_of_what(
    item: str, most: int, what: str
) -> None:
    admitted, refused = (f"[{','.join([item] * n)}]".encode() for n in (most, most + 1))

    check_structure(admitted)
    async with client_of(make_app(ScriptedEngine(context_tokens=1 << 17))) as client:
        answer = await client.post(CHAT, content=refused)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "too_many_values")
    assert error["message"] == f"the body has more than {what}"


CALL = {"name": "f", "arguments": f'{{"a":[{",".join(["[]"] * 1000)}]}}'}
USER = {"role": "user", "content": "Hi"}


def calling(calls: int) -> dict[str, object]:
    """Return a turn that makes calls, in a chat."""
    return {"role": "assistant", "content": "", "tool_calls": [{"function": CALL}] * calls}


CALLING = {
    CHAT: lambda calls: {"messages": [USER, calling(calls)]},
    "/api/chat": lambda calls: {"messages": [USER, calling(calls)]},
    "/v1/responses": lambda calls: {
        "input": [USER, *[{"type": "function_call", "call_id": "c", **CALL}] * calls]
    },
}


@pytest.mark.parametrize("path", CALLING)
async def test_the_arguments_of_calls_count_with_their_body_however_small_each_is(
    path: str,
) -> None:
    half = [[]] * (MAX_CONTAINERS // 2 - 1_000)
    async with client_of(make_app(ScriptedEngine(context_tokens=1 << 17))) as client:
        answers = [
            await client.post(path, json={**CALLING[path](calls), "unknown": half})
            for calls in (15, 19)
        ]

    assert [answer.status_code for answer in answers] == [200, 400]
    assert f"more than {MAX_CONTAINERS} objects and arrays" in answers[1].text


def unbounded(schema: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - a schema of pydantic
    """Yield the arrays of a schema whose items could each have an error."""
    if isinstance(schema, list | tuple):
        for each in schema:
            yield from unbounded(each, path)
    elif isinstance(schema, dict):
        varies = schema.get("type") == "list" or "variadic_item_index" in schema
        checked = schema.get("fail_fast") or schema.get("max_length", 10_000) <= 1024
        items = schema.get("items_schema")
        anything = isinstance(items, list) and items[0].get("type") == "any"
        if varies and not checked and not anything:
            yield path
        for name, each in schema.items():
            if name not in ("metadata", "json_schema_input_schema"):
                yield from unbounded(each, f"{path}.{name}")


def kinds(model: type[RequestModel]) -> Iterator[type[RequestModel]]:
    for each in model.__subclasses__():
        yield each
        yield from kinds(each)


def test_a_body_of_wrong_values_has_one_error_an_array() -> None:
    import gateway.app  # noqa: F401 - imports all endpoints

    found = {
        path
        for kind in kinds(RequestModel)
        for path in unbounded(kind.__pydantic_core_schema__, kind.__name__)
    }

    assert {
        path for path in found if ".prompt." not in path
    } == set()  # it has a check of its own


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b'{"priority":1,"prompt":"a","priority":2}', b'{"prompt":"a"}'),
        (b'{"\\u0070riority":1,"n":1}', b'{"n":1}'),
        (b'{"n":1, "x":{"priority":1}}', b'{"n":1, "x":{"priority":1}}'),
        (b'{"priority":1,"x":NaN}', None),
        ('{"priority":1}'.encode("utf-16"), None),
        (b'[{"priority":1}]', None),
        (b'{"x":%b}' % (b"[" * 10_000), None),
    ],
)
def test_what_is_passed_on_has_no_field_of_an_operator(
    sent: bytes, passed: bytes | None
) -> None:
    if passed is None:
        with pytest.raises(InvalidRequest):
            without_operators(sent)
    else:
        assert without_operators(sent) == passed


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("context_tokens", "own", "limit"),
    [
        (64, None, MIN_LIMIT_BYTES),
        (1 << 16, None, BYTES_PER_TOKEN << 16),
        (1 << 16, 5000, 5000),
        (64, 1 << 22, MIN_LIMIT_BYTES),
    ],
)
async def test_the_limit_of_a_body_comes_from_the_context(
    path: str, context_tokens: int, own: int | None, limit: int
) -> None:
    app = make_app(ScriptedEngine(context_tokens=context_tokens), body_limit_bytes=own)
    async with client_of(app) as client:
        answers = [await client.post(path, content=b" " * size) for size in (limit, limit + 1)]

    assert [answer.status_code for answer in answers] == [400, 413]


@pytest.mark.parametrize("down", [None, Unavailable("there is no verifier")])
async def test_the_engine_is_asked_about_no_body_that_fits_in_any_context(
    down: ApiError | None,
) -> None:
    class EndpointRequest(ScriptedEngine):
        asked = 0

        async def facts(self) -> Any:  # noqa: ANN401
            self.asked += 1
            return await super().facts()

    engine = EndpointRequest(down=down)
    bodies = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": []}]
    async with client_of(make_app(engine)) as client:
        answers = [await client.post(CHAT, json=body) for body in bodies]

    assert [answer.status_code for answer in answers] == [503 if down else 200, 400]
    assert engine.asked == 1
