"""Answers for an edge whose app is not there yet: it is alive, and not ready.

An edge may have to wait for its verifier to know which draft model fits, and to fetch that
model. Until then /health answers 200, and everything else a 503 that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway.access import HEALTH_PATHS
from gateway.background_work import start
from gateway.errors import Unavailable
from gateway.http import error_response, json_response
from gateway.turns import in_own_thread

T = TypeVar("T")
LOADING: Final = Unavailable(
    "the edge waits for its verifier, or loads its draft model; its log says which",
    code="loading",
)


class Starting:
    """An ASGI app that becomes the one that `make` returns."""

    def __init__(self, make: Callable[[], FastAPI], give_up: Callable[[], None]) -> None:
        """make: called once, in a thread. give_up: called if make or its app fails."""
        self._make = make
        self._give_up = give_up
        self._app: FastAPI | None = None
        self._left = asyncio.Event()
        self.error: Exception | None = None
        """The reason why there will be no app, once it is known."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif Request(scope).url.path in HEALTH_PATHS:
            await json_response({"status": "ok", "state": "loading"})(scope, receive, send)
        else:
            await error_response(LOADING)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        running = start(self._run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._app is None:
            running.cancel()
        self._left.set()
        await asyncio.wait([running])
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self) -> None:
        try:
            app = await in_own_thread(self._make, "starting")
            async with app.router.lifespan_context(app):
                self._app = app
                await self._left.wait()
        except Exception as error:  # whatever it is, there is nothing to serve
            self.error = error
            self._give_up()
