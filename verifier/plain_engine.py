"""Serves the target without an edge: the same text, one token a pass."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from gateway.errors import (
    ApiError,
    EngineFault,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from gateway.ports import Delta, Facts, Job, Statistics, TokenLogprob
from speculation.protocol.messages import Commit, Finish, ModelFacts, Open, Sampling
from verifier.target import Reply, TargetError, TargetFull, UnknownSession, Unservable
from verifier.target_host import Host


class PlainEngine:
    """gateway.ports.Engine on a Target."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def facts(self) -> Facts:
        """Raise Unavailable while the target is loading."""
        facts = self._host.ready().facts
        stops, features = frozenset(facts.stop_tokens), frozenset(facts.features)
        return Facts(facts.model, facts.context_tokens, stops, facts.vocabulary_size, features)

    async def generate(self, job: Job) -> AsyncGenerator[Delta]:
        """Stream one choice; it equals what an edge gets with the same seed."""
        target = self._host.ready()
        passes = 0
        try:
            replies = target.serve(secrets.token_urlsafe(12), opening(job, target.facts))
            async with aclosing(replies):
                async for reply in replies:
                    passes += isinstance(reply.message, Commit)
                    yield _delta(reply.message, passes)
        except TargetError as error:
            raise translate(error) from error


def opening(job: Job, facts: ModelFacts) -> Open:
    """Return the session that a job asks for."""
    given = job.sampling
    extras = {
        name: msgspec.Raw(msgspec.json.encode(value)) for name, value in job.extras.items()
    }
    return Open(
        model=facts.model,
        vocabulary=facts.vocabulary,
        prompt=job.prompt,
        sampling=Sampling(given.temperature, given.min_p, given.top_k, given.top_p, extras),
        seed=job.seed,
        max_tokens=job.max_tokens,
        stop_tokens=tuple(facts.stop_tokens),
        fill="always",
        top_logprobs=job.top_logprobs,
    )


def _delta(message: Reply, passes: int) -> Delta:
    statistics = Statistics(target_passes=passes)
    match message:
        case Commit():
            return Delta(message.tokens, _logprobs(message), statistics=statistics)
        case Finish():
            return Delta((), finish=message.reason, statistics=statistics)
    raise EngineFault(f"the target sent {type(message).__name__} in a plain session")


def _logprobs(commit: Commit) -> tuple[TokenLogprob, ...] | None:
    if commit.logprobs is None:
        return None
    return tuple(TokenLogprob(each.logprob, each.top) for each in commit.logprobs)


def translate(error: TargetError) -> ApiError:
    """Return the error that the client gets."""
    match error:
        case TargetFull():
            return Overloaded(f"{error}; try again later")
        case UnknownSession():
            return NotFound(str(error), code="unknown_session")
        case Unservable():
            return InvalidRequest(str(error), param=error.field)
    return Unavailable(str(error), code="target_failed")
