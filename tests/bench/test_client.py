"""The client notes when each piece of text comes, and what speculation did for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from picospec.bench.run.client import AnswerError, Client, Question, TooLong

QUESTION = Question("Say hello.", 0.0, seed=7, tokens=5)


def piece(text: str | None, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    "metrics": {
        "speculative_decoding": {
            "num_draft_tokens": 6, "num_accepted_draft_tokens": 2, "num_target_passes": 2
        }
    },
}  # fmt: skip


def client(*events: object, status: int = 200, body: str = "") -> Client:
    """A client of a service that sends these events; each reading of its clock is a second."""

    async def stream() -> AsyncIterator[bytes]:
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        asked = json.loads(request.content)
        assert (asked["model"], asked["seed"], asked["max_tokens"]) == ("m", 7, 5)
        assert asked["stream_options"]["include_usage"]
        return httpx.Response(status, content=body or stream())

    seconds: Iterator[float] = iter(range(100))
    transport = httpx.MockTransport(serve)
    http = httpx.AsyncClient(base_url="http://service", transport=transport)
    return Client(http, lambda: next(seconds))


async def test_pieces_are_timed_from_the_moment_of_asking() -> None:
    reply = await client(piece(""), piece("Hel"), piece("lo"), piece(None, "stop"), USAGE).ask(
        QUESTION
    )

    assert (reply.text, reply.tokens) == ("Hello", 4)
    assert reply.arrivals_s == (2.0, 3.0)
    assert reply.gaps_s == [1.0]
    assert reply.first_share == pytest.approx(3 / 5)
    assert reply.seconds == 4.0
    assert (reply.drafted, reply.accepted, reply.target_passes) == (6, 2, 2)


async def test_chunks_that_tell_of_speculation_are_no_text() -> None:
    looked_up = {"choices": [], "speculation": {"event": "chain", "tokens": 3, "drafted": 0}}
    chain = {"choices": [], "speculation": {"event": "chain", "text": "lo", "drafted": 2}}
    said = {**piece("Hello"), "speculation": {"tokens": {"draft": 1}}}
    last = {**USAGE, "speculation": {"event": "totals", "tokens": {"draft": 1, "target": 3}}}

    reply = await client(looked_up, chain, said, piece(None, "stop"), last).ask(QUESTION)

    assert (reply.text, reply.tokens) == ("Hello", 4)
    assert reply.arrivals_s == (3.0,)
    assert (reply.first_draft_s, reply.origins) == (2.0, {"draft": 1, "target": 3})
    assert (reply.drafted, reply.accepted, reply.target_passes) == (6, 2, 2)


@pytest.mark.parametrize(
    ("asked", "raised", "said"),
    [
        (client(piece("Hel"), {"error": {"code": "away"}}), AnswerError, "away"),
        (client(piece("Hel")), AnswerError, "before it was complete"),
        (client(status=400, body="context_length_exceeded: 8192"), TooLong, "8192"),
        (client(status=503), AnswerError, "503"),
    ],
    ids=["an error in the stream", "cut short", "too long for the context", "refused"],
)
async def test_an_answer_that_fails_says_why(
    asked: Client, raised: type[Exception], said: str
) -> None:
    with pytest.raises(raised, match=said):
        await asked.ask(QUESTION)
