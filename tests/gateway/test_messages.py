"""A stream of blocks, which come one after the other, adds up to the message as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from picospec.gateway.doors.messages_answer import SIGNATURE, ContentEvents, content_of
from tests.gateway.output.reading import CUTS
from tests.gateway.output.test_style import grouped, parse
from tests.gateway.scripted import Body, ScriptedEngine, client_of, make_app

CALL = '<tool_call>{{"name": "weather", "arguments": {}}}</tool_call>'


ARGUMENTS = ("{}", '{"city": "Oslo", "days": [1, 2.0]}', '{"city": "Ålesund\\n"}')


GROWS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}


answers = st.tuples(
    st.sampled_from(["", "<think>Hm, \u00e9.</think>"]),
    st.sampled_from(["", "Let me see."]),
    st.lists(st.sampled_from([CALL.format(text) for text in ARGUMENTS]), max_size=2),
).map(lambda parts: (parts[0] + parts[1] + "\n".join(parts[2])).encode())


def added_up(events: Iterable[Body]) -> list[Body]:
    """Return the blocks of a stream, in which each event must be in its place."""
    blocks: list[Body] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("content_block_")
        assert is_open == (kind != "start")
        assert event["index"] == len(blocks) - (kind != "start")
        if kind == "start":
            blocks.append({**event["content_block"], "partial_json": ""})
        elif kind == "delta":
            of, field = GROWS[event["delta"]["type"]]
            assert blocks[-1]["type"] == of
            blocks[-1][field] += event["delta"][field]
        is_open = kind != "stop"
    assert not is_open
    for block in blocks:
        if written := block.pop("partial_json"):
            block["input"] = json.loads(written)
    return blocks


def without_ids(blocks: Iterable[Body]) -> list[Body]:
    return [{name: block[name] for name in block.keys() - {"id"}} for block in blocks]


@given(answers, CUTS)
def test_any_grouping_of_tokens_adds_up_to_the_whole_message(
    written: bytes, cuts: list[int]
) -> None:
    deltas, content = parse(grouped(written, cuts)), ContentEvents()

    events = [event for delta in deltas for event in content.read(delta)] + list(content.end())

    (at_once,) = parse(grouped(written))
    blocks, whole = added_up(events), content_of(at_once)
    assert without_ids(blocks) == without_ids(whole)
    assert all(block["signature"] == SIGNATURE for block in blocks if "signature" in block)
    assert all(block["id"].startswith("toolu_") for block in blocks if "id" in block)


async def test_a_key_at_its_limit_and_another_method_have_errors_of_anthropics_shape() -> None:
    app = make_app(ScriptedEngine(), key_limits={"requests_a_minute": 1}, api_keys=["k"])
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    async with client_of(app, {"x-api-key": "k"}) as client:
        answers = [await client.post("/v1/messages", json=body) for _ in range(2)]
    async with client_of(make_app(ScriptedEngine())) as client:
        answers.append(await client.get("/v1/messages"))

    assert [answer.status_code for answer in answers] == [200, 429, 405]
    errors = [answer.json() for answer in answers[1:]]
    assert [each["type"] for each in errors] == ["error"] * 2
    kinds = [each["error"]["type"] for each in errors]
    assert kinds == ["rate_limit_error", "invalid_request_error"]
