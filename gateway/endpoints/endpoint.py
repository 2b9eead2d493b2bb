"""An endpoint reads one API's requests into ours, and writes our answers in that API's shape.

An endpoint has a schema of its request, a function that converts such a request to a
GenerationRequest, and an Answer that writes the result. Everything between is the same for all
endpoints: keys, limits, drain, tokens, speculation and fail-over.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.drain import Drain
from gateway.endpoints.request import GenerationRequest
from gateway.errors import ApiError, ClientGone
from gateway.http import PIECE_BYTES, connected, json_response, pieces, send_to_client
from gateway.output.detokenise import LogprobEntry, TextDelta
from gateway.output.message import CallStart, joined
from gateway.output.stream import ChoiceStream, together
from gateway.request_context import RequestContext, Usage
from gateway.schema import RequestModel
from speculation.messages import UNLIKELY

Json = dict[str, object]
Entries = Sequence[LogprobEntry]
Part = tuple[Literal["reasoning", "text", "call"], str, CallStart | None]
"""A part of an answer is its kind, its text, and the start of a call, which has no text yet."""

Body = TypeVar("Body", bound=RequestModel)


@dataclass(frozen=True, slots=True)
class Heading:
    """Holds what is known of an answer before its first token."""

    id: str
    created: int
    """The answer was created at this Unix time, in seconds."""

    model: str
    choices: int
    usage: Usage
    """The usage counts a delta before `events` gets it, so that usage is up to date."""

    fingerprint: str | None = None
    """OpenAI calls it `system_fingerprint`; not every answer has one."""


class Answer(ABC):
    """Writes one answer, streamed or whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """This is sent while there is nothing else to send; b"" for nothing. Clients skip a
    comment, as the standard of server-sent events says."""

    def waiting(self) -> bytes:
        """Return the bytes to send while there is nothing else to send."""
        return self.keep_alive

    @abstractmethod
    def events(self, index: int, delta: TextDelta) -> bytes:
        """Return the stream's bytes for the next delta of choice `index`."""

    def end(self) -> bytes:
        """Return the stream's bytes after all choices have finished."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """Return the bytes that end the stream after an error."""
        return sent_event(error.body())

    def write(self, entries: Entries) -> Sequence[object]:
        """Return log-probabilities for `full_answer`, encoded as far as they can be: an answer
        has up to a million, and nothing else runs while all of it is encoded."""
        return ()

    @abstractmethod
    def full_answer(self, choices: Sequence[TextDelta]) -> object:
        """Return the answer to encode if it is not streamed. choices: one delta for each, with
        its entries as `write` has returned them."""


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """Holds what a request asks for, and how its answer is written."""

    body: GenerationRequest
    id_prefix: str
    answer: Callable[[Heading], Answer]
    ignored: tuple[str, ...] = ()
    """These fields of the endpoint's own request have no effect, besides those of `body`."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Maps a field of `body` to its name in the client's request, if they differ. An error
    names the field as the client does."""

    replacement: Callable[[str], Response] | None = None
    """Takes the model's name and returns the whole answer if nothing is to be generated, as
    when Ollama's client only loads a model; None otherwise."""

    in_background: Callable[[EventStream], Response] | None = None
    """Runs an answer that outlives its connection, and returns what the request gets; None if
    the answer ends with its connection."""

    only_apart: bool = False
    """True if the client needs an answer that outlives its connection."""

    repeats: int = 1
    """The end of the answer has all log-probabilities this many times."""


Convert = Callable[[Body], EndpointRequest]
"""Converts an endpoint's request. Raises InvalidRequest with the endpoint's names of fields."""


def parts_of(delta: TextDelta) -> Iterator[Part]:
    """Yield the parts of a delta in the order in which a model writes them: the rest of the
    open call, reasoning, text and calls."""
    calls: list[Part] = [
        ("call", "", piece) if isinstance(piece, CallStart) else ("call", piece.text, None)
        for piece in (delta.parsed.calls if delta.parsed is not None else ())
    ]
    begins = next((i for i, (_, _, start) in enumerate(calls) if start), len(calls))
    yield from calls[:begins]
    if delta.parsed is not None and delta.parsed.reasoning:
        yield "reasoning", delta.parsed.reasoning, None
    if delta.text or delta.entries or delta.written:
        yield "text", delta.text, None
    yield from calls[begins:]


def sent_event(content: object, name: str = "") -> bytes:
    """Return a server-sent event with JSON data. name: the event's name, "" for none."""
    named = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (named, msgspec.json.encode(content))


def finite(logprob: float | None) -> float | None:
    """Return `logprob`, or UNLIKELY for minus infinity, which JSON cannot express."""
    return None if logprob is None else max(logprob, UNLIKELY)


_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(eq=False)
class EventStream(Response):
    """Sends one answer once, and closes `streams` before it returns or raises: as server-sent
    events, or streamed in its endpoint's form.

    The status is sent with the first event, or with the first keep-alive. An error before that
    gets a status of its own; a later error becomes the stream's last event.

    A long prompt may take minutes to read. Without keep-alives, proxies and clients would give
    up on the connection meanwhile.
    """

    answer: Answer
    streams: Sequence[ChoiceStream]
    context: RequestContext
    drain: Drain
    keep_alive_s: float
    _has_status: bool = field(default=False, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.drain.answer():
                async with connected(receive) as tasks:
                    await self._stream(send, tasks)
                # Disconnects are not watched any more: servers report the end as a disconnect.
                *some, last = pieces(self.answer.end())
                for piece in some:
                    await send_to_client(send, stream_piece(piece))
                await send_to_client(send, stream_piece(last, more=False))
        except ClientGone as gone:
            self.context.outcome.cut(gone)
        except Exception as raised:
            if not self._has_status:
                raise
            last = self.answer.failure(self.context.failed(raised))
            with suppress(ClientGone):
                await send_to_client(send, stream_piece(last, more=False))

    async def _stream(self, send: Send, tasks: asyncio.TaskGroup) -> None:
        begun, waiting = asyncio.Event(), partial(self._keep_alive, send)
        kept = tasks.create_task(keep_alive(begun, waiting, self.keep_alive_s))
        async with together(self.streams) as deltas:
            async for index, delta in deltas:
                self.context.count(index, delta)
                if shown := self.answer.events(index, delta):
                    if not begun.is_set():
                        await self._begin(send, begun, kept)
                    if len(shown) > PIECE_BYTES:
                        *some, shown = pieces(shown)
                        for piece in some:
                            await send_to_client(send, stream_piece(piece))
                    await send_to_client(send, stream_piece(shown))
        await self._begin(send, begun, kept)

    async def _begin(self, send: Send, begun: asyncio.Event, kept: asyncio.Task[None]) -> None:
        begun.set()
        await kept
        await self._send_status(send)

    async def _keep_alive(self, send: Send) -> None:
        await self._send_status(send)
        await send_to_client(send, stream_piece(self.answer.waiting()))

    async def _send_status(self, send: Send) -> None:
        if not self._has_status:
            await send_to_client(send, stream_start(self.answer.media_type))
            self._has_status = True


def stream_start(media_type: str, *more: tuple[bytes, bytes]) -> Message:
    """Return the message that begins a stream. more: further headers."""
    headers = ((b"content-type", media_type.encode()), *_HEADERS, *more)
    return {"type": "http.response.start", "status": 200, "headers": headers}


def stream_piece(body: bytes, *, more: bool = True) -> Message:
    """Return the message with the next bytes of a stream. more: False if they are the last."""
    return {"type": "http.response.body", "body": body, "more_body": more}


async def keep_alive(
    begun: asyncio.Event, send: Callable[[], Awaitable[None]], interval_s: float
) -> None:
    """Await `send()` every `interval_s` seconds until `begun` is set."""
    while not begun.is_set():
        try:
            async with asyncio.timeout(interval_s):
                await begun.wait()
        except TimeoutError:
            await send()


async def json_answer(
    answer: Answer, streams: Sequence[ChoiceStream], context: RequestContext, receive: Receive
) -> Response:
    """Return the answer once all streams have ended. Raises ApiError, such as ClientGone."""
    read: list[list[TextDelta]] = [[] for _ in streams]
    blocks: list[list[TextDelta]] = [[] for _ in streams]
    async with connected(receive), together(streams) as deltas:
        async for index, delta in deltas:
            context.count(index, delta)
            if delta.entries:
                delta = replace(delta, entries=(), written=answer.write(delta.entries))
            (some := read[index]).append(delta)
            if len(some) == JOINED:
                blocks[index].append(_joined(some))
                some.clear()
    wholes = [_joined([*block, *rest]) for block, rest in zip(blocks, read, strict=True)]
    return json_response(answer.full_answer(wholes))


JOINED: Final = 256
"""So many deltas of a choice are joined at once, which takes less than a millisecond."""


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """Return all deltas of a choice joined into one."""
    parsed = [delta.parsed for delta in deltas if delta.parsed is not None]
    return TextDelta(
        text="".join(delta.text for delta in deltas),
        tokens=sum(delta.tokens for delta in deltas),
        finish=deltas[-1].finish,
        statistics=deltas[-1].statistics,
        parsed=joined(parsed) if parsed else None,
        stop=deltas[-1].stop,
        scores=deltas[0].scores,
        written=[each for delta in deltas for each in delta.written],
    )
