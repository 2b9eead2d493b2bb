"""Streams the choices of one request: one iterator, from the engine to the client.

Leaving a stream closes the engine's generators, which cancels their work on the edge and on the
verifier.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final

from gateway.background_work import running_alongside
from gateway.channel import Channel, as_generator
from gateway.errors import EngineFault
from gateway.output.detokenise import Detokeniser, TextDelta
from gateway.output.output_parser import OutputParser
from gateway.ports import Delta

QUEUED: Final = 64
"""At most this many items of parallel streams wait for the client; a pass commits no more than
33 tokens by default."""

ChoiceStream = AsyncGenerator[tuple[int, TextDelta]]
"""Yields the TextDeltas of choices, each with the choice's index."""

Reader = Detokeniser | OutputParser


async def stream_choice(
    index: int, deltas: AsyncGenerator[Delta], reader: Reader
) -> ChoiceStream:
    """Yield the text of one choice. The engine's generator is closed before the last TextDelta.

    Raises what the engine raises, and EngineFault if it ends without a finish.
    """
    async with aclosing(deltas):
        async for delta in deltas:
            text_delta = reader.read(delta)
            if text_delta.finish is not None:
                break
            yield index, text_delta
        else:
            raise EngineFault("the engine ended a choice without saying why")
    yield index, text_delta


@asynccontextmanager
async def together(streams: Sequence[ChoiceStream]) -> AsyncGenerator[ChoiceStream]:
    """Yield all streams as one, in which items are as they come, and close them at the end.

    While the client does not read, the streams pause. An error of one stream ends all of them,
    once the client has got the items before the error.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            yield only
        return
    channel = Channel[tuple[int, TextDelta]](QUEUED)
    read_all = partial(_read_all, streams, channel)
    async with aclosing(as_generator(read_all, channel)) as joined:
        yield joined


async def _read_all(
    streams: Sequence[ChoiceStream], channel: Channel[tuple[int, TextDelta]]
) -> None:
    async with running_alongside() as tasks:
        for stream in streams:
            tasks.create_task(_read(stream, channel))


async def _read(stream: ChoiceStream, channel: Channel[tuple[int, TextDelta]]) -> None:
    async with aclosing(stream):
        async for item in stream:
            await channel.send(item)
