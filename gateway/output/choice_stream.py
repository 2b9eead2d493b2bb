"""Streams the choices of one request concurrently, for as long as the client is connected.

When one of these functions returns or raises, all it started has ended: the engine's generators
are closed, which cancels their work on the edge and on the verifier.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from starlette.types import Message, Receive, Send

from picospec.gateway.alongside import alongside
from picospec.gateway.errors import ClientGone, EngineFault, first_error
from picospec.gateway.output.detokenise import TextDelta
from picospec.gateway.ports import Delta

UNREAD_S: Final = 60.0
"""How long a message may wait for a client that does not read. Server and system hold hundreds
of kilobytes of a stream before it has to wait at all."""

T = TypeVar("T")
ChoiceStream = AsyncGenerator[TextDelta]
Emit = Callable[[int, TextDelta], Awaitable[None]]
Put = Callable[[TextDelta], Awaitable[None]]
Forward = Callable[[ChoiceStream, Put], Coroutine[None, None, None]]
"""Puts every TextDelta of a stream, and closes it."""


class DeltaReader(Protocol):
    """A Detokeniser, or a parser of what one shows."""

    def read(self, delta: Delta) -> TextDelta: ...


async def stream_choice(deltas: AsyncGenerator[Delta], reader: DeltaReader) -> ChoiceStream:
    """Yield the text of one choice. The engine's generator is closed before the last TextDelta.

    Raises what the engine raises, and EngineFault if it ends without a finish.
    """
    async with aclosing(deltas):
        async for delta in deltas:
            text_delta = reader.read(delta)
            if text_delta.finish is not None:
                break
            yield text_delta
        else:
            raise EngineFault("the engine ended a choice without saying why")
    yield text_delta


async def at_once(stream: ChoiceStream, put: Put) -> None:
    """Pass on every TextDelta as soon as it is there."""
    async with aclosing(stream):
        async for delta in stream:
            await put(delta)


async def merge(
    streams: Sequence[ChoiceStream], emit: Emit, forward: Forward = at_once
) -> None:
    """Await `emit(index, delta)` for every TextDelta of every stream, one at a time.

    A slow `emit` slows the streams down: at most one TextDelta of each waits in the queue. The
    first error closes all streams and is raised as itself, when what its stream showed before
    has been emitted.
    """
    queue: asyncio.Queue[tuple[int, TextDelta | Exception]] = asyncio.Queue(len(streams))

    async def follow(index: int, stream: ChoiceStream) -> None:
        try:
            await forward(stream, lambda delta: queue.put((index, delta)))
        except Exception as error:
            await queue.put((index, error))

    try:
        async with asyncio.TaskGroup() as group:
            for index, stream in enumerate(streams):
                group.create_task(follow(index, stream))
            running = len(streams)
            while running:
                index, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                await emit(index, item)
                running -= item.finish is not None
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors


async def cancel_on_disconnect(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancel it and raise ClientGone if the client disconnects.

    The request's body must have been read.
    """
    return await alongside(_wait_for_disconnect(receive), work())


async def send_to_client(send: Send, message: Message) -> None:
    """Raise ClientGone when the server reports that the connection is closed, or when the
    client reads nothing for so long that it is as good as gone."""
    try:
        async with asyncio.timeout(UNREAD_S):
            await send(message)
    except TimeoutError as error:
        raise ClientGone(f"the client read nothing for {UNREAD_S:g} s") from error
    except OSError as error:
        raise ClientGone("the client went away") from error


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone("the client went away")
