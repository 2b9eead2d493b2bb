"""Serves the target without an edge: the same text, one token a pass."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from picospec.gateway.errors import EngineFault
from picospec.gateway.ports import Delta, Facts, Job, Statistics
from picospec.speculation.protocol.messages import Commit, Finish, Reused
from picospec.speculation.protocol.opening import opening
from picospec.verifier.target import Reply, unservable
from picospec.verifier.target_host import Host


class PlainEngine:
    """gateway.ports.Engine on a Target."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def facts(self) -> Facts:
        """Raise Unavailable while the target is loading."""
        return Facts.of(self._host.ready().facts)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice; it equals what an edge gets with the same seed."""
        target = self._host.ready()
        counted = Statistics()
        with unservable():
            request = opening(job, target.facts, fill="always")
        tenant = job.owner.name if job.owner else None
        await target.check(request, tenant)
        replies = target.serve(secrets.token_urlsafe(12), request, tenant)
        async with aclosing(replies):
            async for reply in replies:
                counted = _counted(counted, reply.message)
                yield _delta(reply.message, counted)


def _counted(before: Statistics, message: Reply) -> Statistics:
    match message:
        case Reused(tokens=tokens):
            return replace(before, cached_tokens=tokens)
        case Commit():
            return replace(before, target_passes=before.target_passes + 1)
    return before


def _delta(message: Reply, statistics: Statistics) -> Delta:
    match message:
        case Reused():
            return Delta((), statistics=statistics)
        case Commit():
            return Delta(message.tokens, message.logprobs, statistics=statistics)
        case Finish():
            return Delta((), finish=message.reason, statistics=statistics)
    raise EngineFault(f"the target sent {type(message).__name__} in a plain session")
