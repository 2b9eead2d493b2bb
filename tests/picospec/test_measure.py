"""What drafting gains, measured on an edge whose direct way takes twice as long."""

from __future__ import annotations

import httpx
import pytest

from picospec.chat_client import ANSWER_CACHE, CHAT, DIRECT
from picospec.measure import PROMPTS, measure


class Edge:
    """Answers both ways; the time is that of its own clock."""

    def __init__(self, direct_text: str = "same") -> None:
        self.now_s = 0.0
        self.asked: list[str] = []
        self._direct_text = direct_text

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "picospec"}]})
        self.asked.append(path)
        if path == ANSWER_CACHE:
            return httpx.Response(204)
        self.now_s += {CHAT: 1.0, DIRECT: 2.0}[path]
        text = "same" if path == CHAT else self._direct_text
        event = f'{{"choices": [{{"delta": {{"content": "{text}"}}}}]}}'
        return httpx.Response(200, text=f"data: {event}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(("direct_text", "is_same"), [("same", True), ("other", False)])
async def test_the_ratio_is_that_of_both_ways_and_texts_are_compared(
    direct_text: str, is_same: bool
) -> None:
    edge = Edge(direct_text)
    transport = httpx.MockTransport(edge)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        gains = await measure(client, tokens=8, turns=2, clock=lambda: edge.now_s)

    assert [(each.kind, each.ratio, each.is_same_text) for each in gains] == [
        (kind, 2.0, is_same) for kind in PROMPTS
    ]
    first = [path for path in edge.asked if path != ANSWER_CACHE][:6]
    assert first == [CHAT, DIRECT, DIRECT, CHAT, CHAT, DIRECT]
