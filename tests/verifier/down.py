"""Reads what a verifier sends: frames over HTTP, as an edge receives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise

import httpx

from speculation import wire
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Heartbeat,
    Message,
    Open,
    Opened,
    Pushed,
)
from speculation.wire import Framed
from verifier.target import Reply, Target

HEADERS = {"content-type": "application/vnd.picospec"}


class Stream:
    """One response: messages in order, and how many heartbeats came between them."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.heartbeats = 0
        self._chunks = response.aiter_raw()
        self._decoder = wire.Decoder()
        self._messages: list[Message] = []

    async def next(self) -> Message | None:
        """Return the next message; None at the end."""
        while not self._messages:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._decoder.close()
                return None
            for message in self._decoder.feed(chunk):
                if isinstance(message, Heartbeat):
                    self.heartbeats += 1
                else:
                    self._messages.append(message)
        return self._messages.pop(0)

    async def rest(self) -> list[Message]:
        """Return all messages up to the end."""
        messages = []
        while (message := await self.next()) is not None:
            messages.append(message)
        return messages

    async def opened(self) -> str:
        message = await self.next()
        assert isinstance(message, Opened)
        return message.session


@asynccontextmanager
async def opened(client: httpx.AsyncClient, request: Open) -> AsyncIterator[Stream]:
    content = wire.encode(request)
    async with client.stream(
        "POST", "/v1/speculate", content=content, headers=HEADERS
    ) as response:
        assert response.status_code == 200
        yield Stream(response)


async def push(client: httpx.AsyncClient, session: str, *messages: Pushed) -> httpx.Response:
    content = b"".join(map(wire.encode, messages))
    path = f"/v1/speculate/{session}/drafts"
    return await client.post(path, content=content, headers=HEADERS)


def text_of(messages: Sequence[Message | None]) -> list[int]:
    """The tokens of Commits that must follow one another."""
    commits = [message for message in messages if isinstance(message, Commit)]
    for before, after in pairwise(commits):
        assert after.start == before.start + len(before.tokens)
    return [token for commit in commits for token in commit.tokens]


async def replies_of(
    target: Target, session: str, request: Open
) -> AsyncGenerator[Framed[Reply]]:
    """Yield what a target serves, without what it did not have to read."""
    async with aclosing(target.replies(session, request)) as replies:
        async for reply in replies:
            if not isinstance(reply.message, CachedPromptTokens):
                yield reply


async def begun() -> None:
    """Let another task begin a session, which has a task of its own."""
    for _ in range(2):
        await asyncio.sleep(0)
