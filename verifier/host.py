"""The target's life in this process: loading, ready, failed.

Loading may take minutes and must not keep the server from answering /health.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import structlog

from gateway.errors import Unavailable
from gateway.ports import Tokenizer
from verifier.target import Target


class Host:
    """Owns a Target from start to stop. give_up is called when the target cannot start."""

    def __init__(self, target: Target, give_up: Callable[[], None]) -> None:
        self._target = target
        self._give_up = give_up
        self._state = "loading"
        self._loading: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("verifier")

    def ready(self) -> Target:
        """Return the target. Raises Unavailable unless it is ready."""
        if self._state != "ready":
            raise Unavailable(f"the model is {self._state}", code=self._state)
        return self._target

    async def tokenizer(self) -> Tokenizer:
        """gateway.ports.TokenizerSource."""
        return self.ready().tokenizer

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Load in the background; on leaving, stop the target, ready or not."""
        self._loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Refuse all from now on, and stop the target. Harmless when repeated."""
        if self._state == "stopping" or self._loading is None:
            return
        self._state = "stopping"
        self._loading.cancel()
        await asyncio.wait([self._loading])
        await self._target.stop()

    async def _load(self) -> None:
        try:
            await self._target.start()
        except Exception as error:  # whatever it is, there is nothing to serve
            self._state = "failed"
            self._log.error("the target cannot start", error=str(error), exc_info=error)
            self._give_up()
        else:
            self._state = "ready"
            self._log.info("ready", model=self._target.facts.model)
