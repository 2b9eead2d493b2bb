"""Knows the engine core of each session: with data parallelism vLLM has one core a rank.

A session has one rank from its Open on, and its messages go to that core only. vLLM's own
`call_utility_async` would wake all cores for each, and return the first one's answer.

The messages of all sessions in one turn of the event loop are one message to their core, which
does not answer it. An answer is asked for only now and then, to bound the messages of a session
that its core has not read yet.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from speculation.errors import RemoteProtocolError
from verifier.target import TargetFailed
from verifier.vllm_target.ipc_messages import PUSH, Batch

if TYPE_CHECKING:  # not every installation has vLLM
    from vllm.v1.engine.core_client import AsyncMPClient

MAX_IN_FLIGHT: Final = 64
"""This many messages of a session may be on their way to the engine, which reads them between
two steps. An edge that sends more within a step waits."""

UTILITY: Final = b"\3"
"""This is the value of vLLM's EngineCoreRequestType for calls of the core's methods."""


class CoreChannel:
    """Sends messages to one core: those of one turn of the event loop at once, and in order.

    send: puts a batch on the way. read: returns once the core has read all batches before.
    """

    def __init__(
        self, send: Callable[[Batch], Awaitable[object]], read: Callable[[], Awaitable[object]]
    ) -> None:
        self._send = send
        self._read = read
        self._batch: list[tuple[str, bytes]] = []
        self._unread: Counter[str] = Counter()
        """The number of each session's messages that may be unread."""

        self._failures: dict[str, BaseException] = {}
        self._reading: asyncio.Future[object] | None = None
        self._room = asyncio.Event()

    async def push(self, session: str, frames: bytes) -> None:
        """Send a message. Wait only while too many of the session are on their way.

        Raises TargetFailed if an earlier message did not reach vLLM.
        """
        while self._unread[session] >= MAX_IN_FLIGHT:
            self._room.clear()
            await self._room.wait()
        if (failure := self._failures.get(session)) is not None:
            raise TargetFailed(f"not delivered: {failure}") from failure
        self._unread[session] += 1
        self._batch.append((session, frames))
        if len(self._batch) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def forget(self, session: str) -> None:
        """Forget a session that has ended. Its messages that wait are dropped by the core."""
        self._unread.pop(session, None)
        self._failures.pop(session, None)
        self._room.set()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        sessions = {session for session, _ in batch}
        try:
            sending = asyncio.ensure_future(self._send(batch))
        except Exception as error:  # vLLM may raise anything
            self._fail(sessions, error)
        else:
            sending.add_done_callback(partial(self._sent, sessions))
        self._read_on(sessions)

    def _read_on(self, sessions: Iterable[str]) -> None:
        """Ask for an answer if one of the sessions has come half the way to its bound."""
        if self._reading is None and any(
            self._unread[session] >= MAX_IN_FLIGHT // 2 for session in sessions
        ):
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(partial(self._has_read, self._unread.copy()))

    def _has_read(self, counts: Counter[str], reading: asyncio.Future[object]) -> None:
        self._reading = None
        self._sent(set(counts), reading)
        self._unread -= counts  # keeps the positive counts
        self._room.set()
        self._read_on(self._unread)

    def _sent(self, sessions: set[str], sending: asyncio.Future[object]) -> None:
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self._fail(sessions, error)

    def _fail(self, sessions: set[str], error: BaseException) -> None:
        self._failures |= dict.fromkeys(sessions & self._unread.keys(), error)


class Ranks:
    """Places sessions on cores. client: vLLM's connection to the cores of this API server. The
    folder `core` has added the called methods to EngineCore, as picospec_NAME."""

    def __init__(self, client: AsyncMPClient) -> None:
        self._client = client
        self._of: dict[str, int] = {}
        self._channels: dict[int, CoreChannel] = {}

    def __len__(self) -> int:
        return len(self._client.core_engines)

    @contextmanager
    def placed(self, session: str) -> Iterator[int]:
        """Give a session the rank with the least load while it runs. Raises RemoteProtocolError
        if a session of this name is running."""
        if session in self._of:
            raise RemoteProtocolError("there is a session of this name")
        rank = self._of[session] = self._least()
        try:
            yield rank
        finally:
            del self._of[session]
            if rank in self._channels:
                self._channels[rank].forget(session)

    def _least(self) -> int:
        """Return the rank with the least load: by vLLM's counts, which cover all API servers
        but are some 100 ms old, and by our own sessions. API servers break ties differently."""
        client, ours = self._client, Counter(self._of.values())
        known = getattr(client, "lb_engines", None) or [[0, 0]] * len(self)
        load = [max(client.client_count * ours[i], sum(known[i][:2])) for i in range(len(self))]
        ranks = range(len(self))
        return min(ranks, key=lambda i: (load[i], (i - client.client_index) % len(self)))

    async def push(self, session: str, frames: bytes) -> None:
        """Send messages to the core of a session; drop them if it is over. See
        CoreChannel.push."""
        if (rank := self._of.get(session)) is None:
            return
        if (channel := self._channels.get(rank)) is None:
            send, read = partial(self._send, rank), partial(self._call, "read", rank)
            channel = self._channels[rank] = CoreChannel(send, read)
        await channel.push(session, frames)

    def _send(self, rank: int, batch: Batch) -> Awaitable[Any]:
        client = self._client
        call = (client.client_index, 0, PUSH, [batch])
        message = (UTILITY, *client.encoder.encode(call))
        return client._send_input_message(message, client.core_engines[rank])

    async def _call(self, method: str, rank: int, *arguments: Any) -> Any:
        core, name = self._client.core_engines[rank], f"picospec_{method}"
        return await self._client._call_utility_async(name, *arguments, engine=core)

    async def call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call every core; return their answers in the order of ranks."""
        calls = (self._call(method, rank, *arguments) for rank in range(len(self)))
        return await asyncio.gather(*calls)
