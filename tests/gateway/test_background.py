"""The real openai SDK on responses. Those that run in the background outlive their connection,
are polled, cancelled, and streamed again from any event."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response
from structlog.testing import capture_logs

from gateway import request_context
from gateway.drain import Drain
from gateway.endpoints import background, response_store, responses_handlers
from gateway.endpoints.endpoint import EndpointRequest
from gateway.endpoints.recording import Recording
from gateway.endpoints.response_store import ResponseStore
from gateway.endpoints.responses import ResponsesRequest
from gateway.errors import Unavailable
from gateway.json_bounds import SMALL_BYTES
from tests.gateway import scripted as openai_sdk
from tests.gateway.scripted import (
    MODEL,
    Body,
    ByteTokenizer,
    ScriptedEngine,
    events_of,
    make_app,
    served,
    writes,
)
from tests.guards import GUARD_S

CALL = '<tool_call>\n{"name": "n__f", "arguments": {"a": 1}}\n</tool_call>'
TEXT = f"<think>why</think>Let me see.\n{CALL}"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
TOOLS: Any = [{"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION]}]
ENDED = ("completed", "incomplete", "failed", "cancelled")
sdk = partial(openai_sdk.sdk, tokenizer=ByteTokenizer(template="<think><tool_call>"))


async def begun(client: AsyncOpenAI, **request: Any) -> Any:  # noqa: ANN401 - SDK's
    given = {"model": MODEL, "input": "Hi", "background": True, **request}
    return await client.responses.create(**given)


async def until(client: AsyncOpenAI, id: str, *statuses: str) -> Response:
    """Poll until the response has one of these statuses; by default any that ends it."""
    async with asyncio.timeout(GUARD_S):
        while True:
            found = await client.responses.retrieve(id)
            if found.status in (statuses or ENDED):
                return found
            await asyncio.sleep(0.01)  # as clients do


@asynccontextmanager
async def waiting(
    **settings: object,
) -> AsyncIterator[tuple[AsyncOpenAI, asyncio.Event, ScriptedEngine]]:
    """Give a client, and an engine that waits for the event after its first three tokens."""
    on = asyncio.Event()
    engine = writes("Hi there", pause=on.wait)
    async with sdk(engine, **settings) as client, asyncio.timeout(GUARD_S):
        yield client, on, engine
        on.set()


async def test_a_response_is_polled_to_its_end_and_continued() -> None:
    async with waiting() as (client, on, engine):
        with capture_logs() as logs:
            first = await begun(client)
            running = await until(client, first.id, "in_progress")
            listed: Any = await client.responses.input_items.list(first.id)
            assert [line for line in logs if line["event"] == "request"] == []
            on.set()
            ended = await until(client, first.id)
        plain = await begun(client, background=False)
        await begun(client, previous_response_id=first.id)

    assert (first.status, first.background, first.output) == ("queued", True, [])
    assert (running.output_text, [item.role for item in listed.data]) == ("Hi ", ["user"])
    assert (ended.status, ended.output_text) == ("completed", plain.output_text)
    assert (ended.usage, plain.background) == (plain.usage, False)
    assert bytes(engine.jobs[-1].prompt).decode() == "u:Hi\na:Hi there\nu:Hi\n"
    Response.model_validate(ended.to_dict(), strict=True)
    (line,) = [line for line in logs if line["event"] == "request"]
    assert (line["status"], line["completion_tokens"]) == (200, len("Hi there") + 1)


async def test_a_stream_that_was_cut_at_each_of_ten_places_goes_on_to_an_equal_text() -> None:
    ask: Any = partial(begun, stream=True, tools=TOOLS)
    engine = writes(TEXT, context_tokens=400, pause=lambda: asyncio.sleep(0.002))
    async with sdk(engine) as client:
        whole = [event async for event in await ask(client)]
        for place in range(10):
            seen, cut = list[Any](), place * (len(whole) - 2) // 9
            async with await ask(client) as stream:
                async for event in stream:
                    seen.append(event)
                    if event.sequence_number == cut:
                        break
            id = seen[0].response.id
            again: Any = partial(client.responses.retrieve, id, stream=True)
            seen += [event async for event in await again(starting_after=cut)]

            assert [event.type for event in seen] == [event.type for event in whole]
            assert [event.sequence_number for event in seen] == list(range(len(whole)))
            texts = [getattr(event, "delta", "") for event in seen]
            assert texts == [getattr(event, "delta", "") for event in whole]
            assert seen[-1].response == await client.responses.retrieve(id)
            assert [event async for event in await again()] == seen

    kinds = [event.type for event in whole[:3]]
    assert kinds == ["response.created", "response.queued", "response.in_progress"]
    assert (whole[0].response.status, whole[-1].response.status) == ("queued", "completed")
    assert whole[-1].response.output_text == "Let me see."


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_is_cancelled_ends_at_once_and_stays_so(is_streamed: bool) -> None:
    async with waiting() as (client, on, engine):
        first = await begun(client, stream=is_streamed)
        id = (await anext(first)).response.id if is_streamed else first.id
        await until(client, id, "in_progress")
        with capture_logs() as logs:
            cancelled = await client.responses.cancel(id)
            await engine.closed.acquire()
            events = [event async for event in first] if is_streamed else []
        on.set()
        again, found = await client.responses.cancel(id), await client.responses.retrieve(id)
        await client.responses.delete(id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(id)

    assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hi ")
    assert cancelled == again == found
    assert [event.response for event in events[-1:]] == [found] * is_streamed
    assert [line["status"] for line in logs if line["path"] == "/v1/responses"] == [499]


async def test_what_is_deleted_while_it_runs_ends() -> None:
    async with waiting() as (client, _, engine):
        first = await begun(client)
        await until(client, first.id, "in_progress")
        await client.responses.delete(first.id)
        await engine.closed.acquire()
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_an_error_and_a_run_without_end_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sdk(ScriptedEngine((), Unavailable("it is gone"))) as client:
        lost = await until(client, (await begun(client)).id)
    monkeypatch.setattr(background, "MAX_RUN_S", 0.01)
    async with waiting() as (client, _, engine):
        late = await until(client, (await begun(client)).id)
        await engine.closed.acquire()

    for found, reason in ((lost, "it is gone"), (late, "more than 0.01 s")):
        assert found.status == "failed"
        assert found.error is not None
        assert found.error.code == "server_error"
        assert reason in found.error.message


async def test_only_what_was_streamed_is_streamed_again_and_only_the_background_cancelled() -> (
    None
):
    async with sdk(ScriptedEngine()) as client:
        quiet, plain = await begun(client), await begun(client, background=False)
        for id in (quiet.id, plain.id):
            with pytest.raises(openai.BadRequestError):
                await client.responses.retrieve(id, stream=True)
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(plain.id)


async def test_a_watched_chat_is_joined_by_its_id_and_cancelled() -> None:
    on, path = asyncio.Event(), "/v1/chat/completions"
    engine = writes("Hi there", pause=on.wait)
    chat: Body = {"messages": [{"role": "user", "content": "Hi"}], "background": True}
    watched = {**chat, "stream": True, "stream_options": {"include_speculation": True}}
    async with served(make_app(engine)) as url, httpx.AsyncClient(base_url=url) as client:
        ids = list[str]()
        for _ in range(2):
            async with client.stream("POST", path, json=watched) as stream:
                line = await anext(line async for line in stream.aiter_lines() if line)
                ids.append(json.loads(line.removeprefix("data: "))["id"])
        cancelled = await client.post(f"{path}/{ids[1]}/cancel", json={})
        on.set()
        first, rest, ended = [
            events_of((await client.get(f"{path}/{id}?stream=true{after}")).text)
            for id, after in ((ids[0], ""), (ids[0], "&starting_after=2"), (ids[1], ""))
        ]
        asked = {"input": "Hi", "previous_response_id": ids[0]}
        continued = await client.post("/v1/responses", json=asked)
        plain = await client.post(path, json=chat)

    texts = [c["delta"].get("content") or "" for e in first[:-1] for c in e["choices"]]
    assert ("".join(texts), first[-1], rest) == ("Hi there", "[DONE]", first[3:])
    assert (cancelled.status_code, continued.status_code) == (200, 400)
    assert ended[-1]["error"]["code"] == "client_closed_request"
    assert plain.headers["x-picospec-ignored"] == "background"


# What one key may have, and what other keys see of it.


async def test_a_running_response_counts_against_its_keys_limits_until_it_ends() -> None:
    limits = {"sessions": 1}
    async with waiting(api_keys=["k", "other"], key_limits=limits) as (client, on, _):
        first = await begun(client)
        for is_background in (True, False):
            with pytest.raises(openai.RateLimitError):
                await begun(client, background=is_background)
        await client.responses.cancel(first.id)
        second = await begun(client)
        on.set()
        await until(client, second.id)
        assert (await begun(client, background=False)).status == "completed"


async def test_a_key_has_a_bound_of_its_own_and_nobody_elses_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_store, "MAX_RUNNING", 2)
    async with waiting(api_keys=["k", "other"]) as (client, on, _):
        other = client.with_options(api_key="other")
        mine = [await begun(client) for _ in range(2)]
        with pytest.raises(openai.RateLimitError):
            await begun(client)
        theirs = await begun(other)
        for asked in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await asked(mine[0].id)
        on.set()
        ended = [
            await until(asked, each.id) for asked, each in ((client, mine[0]), (other, theirs))
        ]

    assert [each.status for each in ended] == ["completed"] * 2


async def test_no_bound_of_all_keys_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_store, "MAX_ALL_BYTES", 0)
    async with waiting() as (client, on, _):
        mine = await begun(client)
        running = await until(client, mine.id, "in_progress")
        on.set()
        with pytest.raises(openai.NotFoundError):
            await until(client, mine.id)

    assert running.output_text == "Hi "


async def test_what_running_responses_continue_counts_as_bodies_that_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_context, "MAX_HELD_BYTES", 1500)
    on = asyncio.Event()
    async with sdk(writes("Hi there", pause=on.wait, context_tokens=4000)) as client:
        long = await begun(client, input="a" * 1000)
        await client.responses.cancel(long.id)
        await begun(client, previous_response_id=long.id)
        with pytest.raises(openai.RateLimitError):
            await begun(client, previous_response_id=long.id)
        on.set()


async def test_what_was_dropped_is_an_error_that_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Recording.__init__, "__defaults__", (1000, 1))
    async with sdk(writes("Hi there, this is long"), keep_alive_s=60) as client:
        async with await begun(client, stream=True) as stream:
            id = (await anext(stream)).response.id
        await until(client, id)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.retrieve(id, stream=True)
        (kept,) = map(int, re.findall("before ([0-9]+) are", refused.value.message))
        rest = await client.responses.retrieve(id, stream=True, starting_after=kept - 1)
        events = [event async for event in rest]

    assert refused.value.param == "starting_after"
    assert (events[0].sequence_number, events[-1].type) == (kept, "response.completed")


# A service that drains lets what runs finish, and says of the rest that it failed.


async def test_what_ends_while_the_service_drains_can_still_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "ASKED_S", 0.5)
    drain = Drain()
    async with waiting(drain=drain) as (client, on, _):
        first = await begun(client)
        await until(client, first.id, "in_progress")
        drain.begin(60.0)
        with pytest.raises(openai.InternalServerError):
            await begun(client)
        assert not drain.over.is_set()
        on.set()
        ended = await until(client, first.id)
        assert not drain.over.is_set()
        await drain.over.wait()

    assert ended.output_text == "Hi there"


async def test_what_does_not_end_in_time_has_failed_for_those_who_watch_and_who_ask() -> None:
    drain = Drain()
    async with waiting(drain=drain) as (client, _, engine):
        stream = await begun(client, stream=True)
        id = (await anext(stream)).response.id
        await until(client, id, "in_progress")
        drain.begin(0.01)
        await drain.over.wait()
        await drain.cut()
        await engine.closed.acquire()
        events = [event async for event in stream]
        found = await client.responses.retrieve(id)

    assert (events[-1].type, found.status) == ("response.failed", "failed")
    assert found.error is not None
    assert "before the answer was complete" in found.error.message


# Responses that their connection waits for.


created = partial(begun, background=False)


async def test_a_conversation_goes_on_from_a_response_that_is_kept() -> None:
    engine = writes(TEXT, context_tokens=400)
    async with sdk(engine) as client:
        first = await created(client, tools=TOOLS)
        call = first.output[2]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
        reference = {"type": "item_reference", "id": call.id}
        second = await client.responses.create(
            model=MODEL, input=[result], previous_response_id=first.id
        )
        await client.responses.create(
            model=MODEL, input=[{"role": "user", "content": "Hi"}, reference, result]
        )
        listed = await client.responses.input_items.list(second.id, order="asc", limit=3)
        found = await client.responses.retrieve(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(second.id)

    assert found == first
    kinds = [item.type for item in listed.data]
    assert (kinds, listed.has_more) == (["message", "reasoning", "message"], True)
    history = "u:Hi\na:Let me see.\nt:2\n"
    assert bytes(engine.jobs[1].prompt).decode() == history
    assert bytes(engine.jobs[2].prompt).decode() == "u:Hi\na:\nt:2\n"


async def test_what_is_not_to_be_stored_or_is_anothers_is_not_found() -> None:
    async with sdk(ScriptedEngine(), api_keys=["k", "other"]) as client:
        forgotten, kept = await created(client, store=False), await created(client)
        other = client.with_options(api_key="other")
        for asked, id in ((client, forgotten.id), (other, kept.id)):
            with pytest.raises(openai.NotFoundError):
                await asked.responses.retrieve(id)
            with pytest.raises(openai.BadRequestError) as refused:
                await created(asked, previous_response_id=id)

    assert refused.value.code == "previous_response_not_found"


async def test_a_long_conversation_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, read = list[threading.Thread](), responses_handlers.convert

    def convert(store: ResponseStore, body: ResponsesRequest) -> EndpointRequest:
        threads.append(threading.current_thread())
        return read(store, body)

    monkeypatch.setattr(responses_handlers, "convert", convert)
    async with sdk(ScriptedEngine(context_tokens=100_000)) as client:
        short = await created(client)
        long = await client.responses.create(model=MODEL, input="a" * (SMALL_BYTES + 1))
        for id in (short.id, long.id):
            await created(client, previous_response_id=id)

    main = threading.main_thread()
    assert [thread is main for thread in threads] == [True, False, False, False]


async def test_a_stream_that_waits_has_events_and_an_error_is_the_last() -> None:
    engine = ScriptedEngine((), Unavailable("gone"), begins_after_s=0.05)
    async with sdk(engine, keep_alive_s=0.01) as client:
        events = [event async for event in await created(client, stream=True)]

    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "keepalive"]
    assert (kinds[-1], events[-1].response.error.code) == ("response.failed", "server_error")
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_log_probabilities_of_earlier_answers_are_not_kept_again() -> None:
    async with sdk(writes("Hi", context_tokens=400)) as client:
        first = await created(client, include=["message.output_text.logprobs"])
        second = await created(client, previous_response_id=first.id)
        kept = await client.responses.retrieve(first.id)
        listed = await client.responses.input_items.list(second.id, order="asc")

    assert kept.output[0].content[0].logprobs
    [answer] = [item for item in listed.data if item.role == "assistant"]
    assert answer.content[0].text == "Hi"
    assert not answer.content[0].logprobs
