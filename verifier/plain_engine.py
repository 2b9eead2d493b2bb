"""Serves the target without an edge: the text is the same, and each pass makes one token."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from gateway.errors import EngineFault
from gateway.ports import Delta, Facts, Job, Statistics, opening
from speculation.messages import (
    CachedPromptTokens,
    Commit,
    Finish,
    FinishReason,
    Reject,
    Totals,
)
from verifier.host import Host
from verifier.target import unservable


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
        tenant = job.owner.identity if job.owner else None
        await target.check(request, tenant)
        if (most := job.prompt_logprobs) is not None:
            prompt_logprobs = await target.score(
                secrets.token_urlsafe(12), request, most, tenant
            )
            finish: FinishReason | None = None if job.max_tokens else "length"
            yield Delta((), None, finish, counted, prompt_logprobs=tuple(prompt_logprobs))
            if finish:
                return
        replies = target.replies(secrets.token_urlsafe(12), request, tenant)
        async with aclosing(replies):
            async for reply in replies:
                match reply.message:
                    case CachedPromptTokens(tokens=tokens) if most is None:
                        counted = replace(counted, cached_tokens=tokens)
                        yield Delta((), statistics=counted)
                    case Commit(tokens=tokens, logprobs=logprobs):
                        passes = counted.target_passes + 1
                        counted = replace(counted, totals=Totals(passes, filled=passes))
                        yield Delta(tokens, logprobs, statistics=counted)
                    case Finish(reason=reason):
                        yield Delta((), finish=reason, statistics=counted)
                    case Reject():
                        raise EngineFault("the target sent a Reject in a plain session")
