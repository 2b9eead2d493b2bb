"""A look into a body says whether another service answers it, whatever its door."""

from __future__ import annotations

import json

import pytest

from picospec.edge_agent.relay import relayed_request
from tests.edge_agent.relaying import MODEL


def part(kind: str) -> dict[str, str]:
    return {"type": kind}


@pytest.mark.parametrize(
    ("body", "is_looked_at"),
    [
        ({"messages": [{"content": [part("text"), part("input_audio")]}]}, True),
        ({"messages": [{"content": [{"content": [part("image")]}]}]}, True),  # a tool's result
        ({"input": [{"content": [part("input_image")]}]}, True),
        ({"input": [part("input_file")]}, True),
        ({"messages": [{"content": 'the text "image_url"'}]}, False),
        ({"messages": [{"content": [part("text")]}], "tools": [part("image_url")]}, False),
        ({"messages": [[part("image_url")]], "model": 7}, False),
        ({"messages": {"content": part("image")}}, False),
        ({"messages": [{"content": [part("image")]}], "n": 0}, False),
        ({"model": MODEL, "n": 3}, True),
        ({"model": [MODEL]}, False),
    ],
)
def test_who_answers_is_seen_in_any_doors_body(body: object, is_looked_at: bool) -> None:
    assert (relayed_request(json.dumps(body).encode(), [MODEL]) is not None) == is_looked_at


@pytest.mark.parametrize("body", [b"", b"[" * 10**5, b"\xff", b'{"messages": [{"image":}]}'])
def test_a_body_that_is_wrong_goes_to_its_door(body: bytes) -> None:
    assert relayed_request(b'"image"' + body, [MODEL]) is None
    assert relayed_request(body, [MODEL]) is None
