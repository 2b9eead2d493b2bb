"""The verifiers behind a name, which come and go.

The name is asked for its addresses every few seconds, and at once when a verifier is lost. Each
address is a verifier, which is used once it has given its facts, and until the name leads to it
no more. Answers that run there then may end there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog

from edge_agent.link.verifier import Verifier
from gateway.background_work import kept_going, start
from gateway.errors import ApiError
from gateway.turns import in_own_thread

LOOK_S: Final = 5.0
"""A name is asked for its addresses as often as this."""

LOOK_AGAIN_S: Final = 0.5
"""If a verifier is lost, its name is asked no sooner than this after the last time."""

JOIN_S: Final = 2.0
"""A new verifier behind a name that is not ready yet is asked again after this."""

MAX_ADDRESSES: Final = 64
"""An edge uses this many of a name's addresses."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the IP addresses of a host. Raises OSError."""


async def addresses(host: str, port: int) -> Sequence[str]:
    """Return the IP addresses of a host, by the system. Raises OSError."""
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        infos = await in_own_thread(look, "name")
    except UnicodeError as error:  # a part of the name is too long
        raise OSError(f"{host} is no name: {error}") from error
    return list(dict.fromkeys(str(place[0]) for *_, place in infos))


class Name:
    """url: of the verifiers. make: returns the verifier at an IP address, or at the name itself
    if that is empty, which stands for one until the first has given its facts. resolve:
    replaces the system's lookup."""

    def __init__(
        self, url: str, make: Callable[[Name, str], Verifier], resolve: Resolve = addresses
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._make = make
        self._resolve = resolve
        self._due = asyncio.Event()
        self._looking: asyncio.Task[Sequence[str]] | None = None
        self._known = {"": make(self, "")}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, Verifier] = {}

    @property
    def verifiers(self) -> Sequence[Verifier]:
        """The verifiers for new answers, at least one."""
        return list(self._known.values())

    def look(self) -> None:
        """Let the name be asked soon: a verifier was lost."""
        self._due.set()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Follow the name until cancelled. changed: called when `verifiers` has changed."""
        try:
            while True:
                self._due.clear()
                with suppress(TimeoutError):  # what is known stays
                    async with asyncio.timeout(LOOK_S):
                        new_addresses = await self._look_up()
                    self._found(new_addresses, changed)
                await self._close_left()
                await asyncio.sleep(LOOK_AGAIN_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S - LOOK_AGAIN_S):
                        await self._due.wait()
        finally:
            joining, self._joining = self._joining.values(), {}
            for task in joining:
                task.cancel()

    async def _look_up(self) -> Sequence[str]:
        """Return the name's addresses; none if there is an error. One look-up runs at a time,
        also while the resolver is silent."""

        async def look_up() -> Sequence[str]:
            with suppress(OSError):
                return await self._resolve(self.host, self._port)
            return ()

        if self._looking is None or self._looking.done():
            self._looking = start(look_up())
        return await asyncio.shield(self._looking)

    def _found(self, new_addresses: Sequence[str], changed: Callable[[], None]) -> None:
        """Begin to use new addresses, and use no more those that are gone."""
        if not new_addresses:
            return
        known_first = sorted(new_addresses, key=lambda address: address not in self._known)
        used = set(known_first[:MAX_ADDRESSES])
        for address in used - self._known.keys() - self._joining.keys():
            if (back := self._leaving.pop(address, None)) is not None:
                self._known[address] = back
                changed()
            else:
                joining = kept_going(partial(self._join, address, changed))
                self._joining[address] = start(joining)
        for address in self._joining.keys() - used:
            self._joining.pop(address).cancel()
        self._leave(self._known.keys() - used - {""}, changed)

    async def _join(self, address: str, changed: Callable[[], None]) -> None:
        """Use the verifier at an address once it has given its facts."""
        verifier, is_known = self._make(self, address), False
        try:
            while not is_known:
                try:
                    await verifier.facts()
                    is_known = True
                except ApiError:
                    await asyncio.sleep(JOIN_S)
        finally:
            if not is_known:
                await verifier.close()
        del self._joining[address]
        self._known[address] = verifier
        self._log("verifier_joined", verifier)
        changed()
        self._leave({""} & self._known.keys(), changed)

    def _leave(self, gone: set[str], changed: Callable[[], None]) -> None:
        """Begin no answer there any more; but the last one stays, whatever the name says."""
        for address in gone:
            if len(self._known) > 1:
                self._leaving[address] = verifier = self._known.pop(address)
                self._log("verifier_left", verifier)
                changed()

    async def _close_left(self) -> None:
        """Close verifiers that have left, once no answer runs there."""
        for address, verifier in list(self._leaving.items()):
            if not verifier.open_sessions:
                del self._leaving[address]
                await verifier.close()

    def _log(self, event: str, verifier: Verifier) -> None:
        count = len(self._known)
        structlog.get_logger("edge_agent.link").info(event, verifier=verifier.url, known=count)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(v.close() for v in (*self.verifiers, *self._leaving.values())))
