"""Knows the engine core of each session: with data parallelism vLLM has one core a rank.

A session has one rank from its Open on, and its messages go to that core only. vLLM's own
`call_utility_async` would wake all cores for each, and return the first one's answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from picospec.speculation.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:  # not every installation has vLLM
    from vllm.v1.engine.core_client import AsyncMPClient


class Ranks:
    """Places sessions on cores. client: vLLM's connection to the cores of this API server. The
    folder `core` has added the called methods to EngineCore, as picospec_NAME."""

    def __init__(self, client: AsyncMPClient) -> None:
        self._client = client
        self._of: dict[str, int] = {}

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

    def _least(self) -> int:
        """Return the rank with the least load: by vLLM's counts, which cover all API servers
        but are some 100 ms old, and by our own sessions. API servers break ties differently."""
        client, ours = self._client, Counter(self._of.values())
        known = getattr(client, "lb_engines", None) or [[0, 0]] * len(self)
        load = [max(client.client_count * ours[i], sum(known[i][:2])) for i in range(len(self))]
        ranks = range(len(self))
        return min(ranks, key=lambda i: (load[i], (i - client.client_index) % len(self)))

    async def call(self, session: str, method: str, *arguments: Any) -> Any:
        """Call the core of a session. Return None if the session is over."""
        if (rank := self._of.get(session)) is None:
            return None
        core = self._client.core_engines[rank]
        return await self._client._call_utility_async(
            f"picospec_{method}", session, *arguments, engine=core
        )

    async def call_all(self, method: str) -> list[Any]:
        """Call every core; return their answers in the order of ranks."""
        name, call = f"picospec_{method}", self._client._call_utility_async
        return await asyncio.gather(
            *(call(name, engine=core) for core in self._client.core_engines)
        )
