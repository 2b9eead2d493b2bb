"""Serves the target without an edge: the text is the same, and each pass makes one token."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from picospec.gateway.errors import EngineFault
from picospec.gateway.ports import Delta, Facts, Job, Statistics
from picospec.speculation.messages import Commit, Finish, Reject, Reused, opening
from picospec.verifier.target import unservable
from picospec.verifier.target_host import Host


class PlainEngine:
    """Implements gateway.ports.Engine with a Target."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def facts(self) -> Facts:
        """Return the target's facts. Raises Unavailable while the target is loading."""
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
                match reply.message:
                    case Reused(tokens=tokens):
                        counted = replace(counted, cached_tokens=tokens)
                        yield Delta((), statistics=counted)
                    case Commit(tokens=tokens, logprobs=logprobs):
                        counted = replace(counted, target_passes=counted.target_passes + 1)
                        yield Delta(tokens, logprobs, statistics=counted)
                    case Finish(reason=reason):
                        yield Delta((), finish=reason, statistics=counted)
                    case Reject():
                        raise EngineFault("the target sent a Reject in a plain session")
