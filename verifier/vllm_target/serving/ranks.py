"""Which of vLLM's engine cores holds a session: with data parallelism there is one a rank.

A session has one rank from its Open on, and its messages go to that core alone. vLLM's own
`call_utility_async` would wake all cores for each, and return the first one's answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from picospec.speculation.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:  # vLLM is not there in every installation
    from vllm.v1.engine.core_client import AsyncMPClient


class Ranks:
    """client: vLLM's connection to the cores that this API server serves. `core` has given them
    the methods that are called, by names that begin with picospec_."""

    def __init__(self, client: AsyncMPClient) -> None:
        self._client = client
        self._of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._client.core_engines)

    @contextmanager
    def placed(self, session: str) -> Iterator[int]:
        """Give a session a rank while it runs: that with the least to do. Raises
        RemoteProtocolError if there is one of this name."""
        if session in self._of:
            raise RemoteProtocolError("there is a session of this name")
        rank = self._of[session] = self._least()
        try:
            yield rank
        finally:
            del self._of[session]

    def _least(self) -> int:
        """Return a rank by vLLM's own account, which is some 100 ms old and of all API servers,
        and by our sessions, which are certain. API servers break ties differently."""
        client, ours = self._client, Counter(self._of.values())
        known = getattr(client, "lb_engines", None) or [[0, 0]] * len(self)
        load = [max(client.client_count * ours[i], sum(known[i][:2])) for i in range(len(self))]
        ranks = range(len(self))
        return min(ranks, key=lambda i: (load[i], (i - client.client_index) % len(self)))

    async def call(self, session: str, method: str, *arguments: Any) -> Any:
        """Call the core that holds a session. One that is over has no core: None."""
        if (rank := self._of.get(session)) is None:
            return None
        core = self._client.core_engines[rank]
        return await self._client._call_utility_async(
            f"picospec_{method}", session, *arguments, engine=core
        )

    async def call_all(self, method: str) -> list[Any]:
        """Call every core; return their answers, by rank."""
        name, call = f"picospec_{method}", self._client._call_utility_async
        return await asyncio.gather(
            *(call(name, engine=core) for core in self._client.core_engines)
        )
