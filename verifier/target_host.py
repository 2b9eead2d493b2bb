"""The target's life in this process: loading, ready, draining, stopping, or failed.

Loading may take minutes and must not keep the server from answering /health. A target that
fails ends the process: the parent process reports it, and may start it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Literal

import structlog

from gateway.drain import Drain
from gateway.errors import Unavailable
from gateway.ports import Tokenizer
from verifier.target import Target

State = Literal["loading", "ready", "draining", "failed", "stopping"]

CHECK_S: Final = 1.0
"""Longest time until a lost target is noticed, in seconds."""


class Host:
    """Owns a Target from start to stop. When it cannot start, or is lost, the service stops."""

    def __init__(self, target: Target, drain: Drain) -> None:
        self.drain = drain
        self._target = target
        self._state: State = "loading"
        self._life: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        drains = self.drain.begun and self._state == "ready"
        return "draining" if drains else self._state

    def check(self) -> None:
        """Raise Unavailable once the target has failed: only another process can serve."""
        if self.state == "failed":
            raise self._unavailable

    def ready(self) -> Target:
        """Return the target. Raises Unavailable unless it is ready, and takes more work."""
        if self._state != "ready":
            raise self._unavailable
        self.drain.check()
        return self._target

    @property
    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the model is {self.state}", code=self.state)

    async def tokenizer(self) -> Tokenizer:
        """gateway.ports.TokenizerSource."""
        return self.ready().tokenizer

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Load in the background; on leaving, stop the target, ready or not."""
        self._life = asyncio.create_task(self._load_and_watch())
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Let `ready` raise from now on, and stop the target. Harmless when repeated."""
        life, self._life = self._life, None
        if life is None:
            return
        if self._state != "failed":
            self._state = "stopping"
        life.cancel()
        await asyncio.wait([life])
        await self._target.stop()

    async def _load_and_watch(self) -> None:
        try:
            await self._target.start()
        except Exception as error:  # whatever it is, there is nothing to serve
            self._fail("the target cannot start", error)
            return
        self._state = "ready"
        structlog.get_logger("verifier").info("ready", model=self._target.facts.model)
        while self._target.alive:  # noqa: ASYNC110 - vLLM has a flag, and no event
            await asyncio.sleep(CHECK_S)
        self._fail("the target is lost")

    def _fail(self, event: str, error: Exception | None = None) -> None:
        self._state = "failed"
        structlog.get_logger("verifier").error(event, error=str(error or ""), exc_info=error)
        self.drain.hurry()
