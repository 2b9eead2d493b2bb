"""The target's life in this process is: loading, ready, draining, stopping, or failed.

Loading may take minutes and must not keep the server from answering /health. A target that
fails, or makes no progress, ends the process; the parent process reports that, and may
restart it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import structlog

from gateway.background_work import start
from gateway.drain import Drain
from gateway.errors import Unavailable
from gateway.ports import GatewayTokenizer
from verifier.target import Target

State = Literal["loading", "ready", "draining", "failed", "stopping"]

CHECK_S: Final = 1.0

HEARTBEAT_S: Final = 5.0
"""The target's heartbeats are this many seconds apart. They add to the time until a hanging
target is noticed, and are much shorter than the limit of a pass."""


@dataclass(eq=False)
class Host:
    """Owns a Target from start to stop. If it cannot start, or is lost, the service stops.

    load_timeout_s, pass_timeout_s: the limits of loading and of one heartbeat.
    """

    target: Target
    drain: Drain
    load_timeout_s: float = inf
    pass_timeout_s: float = inf
    _state: State = "loading"
    _life: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        drains = self.drain.begun and self._state == "ready"
        return "draining" if drains else self._state

    @property
    def is_lost(self) -> bool:
        """True if only another process can serve, even before that was noticed."""
        return self._state == "failed" or not self.target.alive

    def check(self) -> None:
        """Raise Unavailable once the target has failed: only another process can serve."""
        if self.state == "failed":
            raise self._unavailable

    def ready(self) -> Target:
        """Return the target. Raises Unavailable unless it is ready and takes work."""
        if self._state != "ready":
            raise self._unavailable
        self.drain.check()
        return self.target

    @property
    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the model is {self.state}", code=self.state)

    async def tokenizer(self, vocabulary: str) -> GatewayTokenizer:
        """Implements gateway.ports.TokenizerSource."""
        return self.ready().tokenizer

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Load the target in the background, unless `load` has; on leaving, stop the target."""
        self._life = start(self._load_and_watch())
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Make `ready` raise from now on, and stop the target. Repeated calls do nothing."""
        life, self._life = self._life, None
        if life is None:
            return
        if self._state != "failed":
            self._state = "stopping"
        life.cancel()
        await asyncio.wait([life])
        await self.target.stop()

    async def load(self) -> str | None:
        """Start the target. Return the reason if it cannot start, else None."""
        try:
            async with asyncio.timeout(self.load_timeout_s) as loading:
                await self.target.start()
        except Exception as error:  # whatever it is, there is nothing to serve
            late = f"it was not loaded within {self.load_timeout_s:g} s"
            reason = late if loading.expired() else str(error)
            self._fail("the target cannot start", reason, error)
            return reason
        self._state = "ready"
        structlog.get_logger("verifier").info("ready", model=self.target.facts.model)
        return None

    async def _load_and_watch(self) -> None:
        if self._state == "ready" or await self.load() is None:
            self._fail("the target is lost", await self._lost())

    async def _lost(self) -> str:
        """Wait until the target is lost, and return the reason."""
        heart = start(self._watch_heart())
        try:
            while self.target.alive and not heart.done():
                await asyncio.wait([heart], timeout=CHECK_S)
            return heart.result() if heart.done() else "its engine has failed"
        finally:
            heart.cancel()

    async def _watch_heart(self) -> str:
        """Return the reason once a heartbeat fails or is late."""
        while True:
            try:
                async with asyncio.timeout(self.pass_timeout_s):
                    await self.target.heartbeat()
            except TimeoutError:
                return f"no pass has ended for {self.pass_timeout_s:g} s (pass_timeout_s)"
            except Exception as error:  # vLLM may raise anything
                return str(error)
            await asyncio.sleep(min(HEARTBEAT_S, self.pass_timeout_s))

    def _fail(self, event: str, reason: str, error: Exception | None = None) -> None:
        self._state = "failed"
        structlog.get_logger("verifier").error(event, error=reason, exc_info=error)
        self.drain.hurry()
