"""The verifier has these routes. docs/protocol.md describes them.

POST   /v1/speculate                     takes an Open; answers with the session's stream
POST   /v1/speculate/{session}/drafts    takes Drafts and Redraws
POST   /v1/speculate/uploads             takes those of many sessions, as long as it lasts
GET    /v1/model-facts                   returns what the edge must know of the target
GET    /health                           answers 200 unless the target is lost
GET    /ready                            answers 200 and the load while sessions are opened
GET    /v1/tokenizer                     returns the target's tokenizer, packed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access import HEALTH_PATHS
from gateway.errors import ApiError, InvalidRequest, NotFound
from gateway.request_body import read_body
from gateway.request_context import context_of
from gateway.turns import ThreadTurns
from speculation import codecs, wire
from speculation.judges import JUDGES
from speculation.messages import (
    ANSWER_CACHE,
    MAX_PREDICTED,
    MAX_STOP_TOKENS,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MAX_TOP_LOGPROBS,
    PROMPT_LOGPROBS,
    PROTOCOL_VERSION,
    SALT,
    STOPPING,
    MalformedFrame,
    ModelFacts,
    Open,
    RemoteProtocolError,
    Sampling,
)
from verifier.sessions.session import Sessions
from verifier.sessions.streams import Downstream, Upstream, drafts, messages
from verifier.target import Host, UnknownSession, owner_of

# Checks an Open before any work is done for it. Each error names the field.


class IdentityMismatch(ApiError):
    """A verifier with another identity began the answer, so this one cannot continue it."""

    status, type, code = 409, "invalid_request_error", "identity_mismatch"


class VocabularyMismatch(ApiError):
    """The edge has another tokenizer: its token ids would stand for another text here."""

    status, type, code = 409, "invalid_request_error", "vocabulary_mismatch"


def check_open(request: Open, facts: ModelFacts) -> None:
    """Raise ApiError unless the target can serve this session."""
    if request.version != PROTOCOL_VERSION:
        raise InvalidRequest(
            f"version: this verifier speaks protocol {PROTOCOL_VERSION}, not {request.version}",
            param="version",
            code="unsupported_version",
        )
    names = (facts.model, *facts.adapters)
    if request.model not in names:
        message = f"the model {request.model!r} does not exist; this verifier has"
        known = ", ".join(map(repr, names))
        raise NotFound(f"{message} {known}", param="model", code="model_not_found")
    facts = facts.named(request.model)
    if request.vocabulary != facts.vocabulary:
        message = f"vocabulary: {request.vocabulary!r} is not the target's"
        raise VocabularyMismatch(f"{message} {facts.vocabulary!r}", param="vocabulary")
    if request.identity not in ("", facts.identity):
        message = f"identity: {request.identity!r} is not this verifier's {facts.identity!r}"
        raise IdentityMismatch(message, param="identity")
    _check_sizes(request, facts)  # before all tokens are read
    for named_field in ("prompt", "committed", "predicted", "stop_tokens"):
        highest = max(getattr(request, named_field), default=0)
        _require(highest < facts.vocabulary_size, named_field, f"{highest} is not a token")
    _check_sampling(request.sampling, facts)
    _check_judge(request, facts)


def _check_sizes(request: Open, facts: ModelFacts) -> None:
    most, stops = request.max_tokens, request.stop_tokens
    _require(request.prompt, "prompt", "empty")
    _require(most >= 1, "max_tokens", "at least 1")
    if len(request.prompt) + most > facts.context_tokens:
        raise InvalidRequest(
            f"the context has {facts.context_tokens} tokens; the prompt takes"
            f" {len(request.prompt)} and the answer may take {most}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    _require(len(stops) <= MAX_STOP_TOKENS, "stop_tokens", f"at most {MAX_STOP_TOKENS}")
    few = len(request.predicted) <= MAX_PREDICTED
    _require(few, "predicted", f"at most {MAX_PREDICTED} tokens")
    goes_on = len(request.committed) < most
    _require(goes_on, "committed", f"all {most} tokens of the answer are there")
    ended = set(stops).intersection(request.committed)
    _require(not ended, "committed", "a stop token has ended the answer")


def _check_sampling(sampling: Sampling, facts: ModelFacts) -> None:
    allowed = {
        "temperature": 0.0 <= sampling.temperature <= MAX_TEMPERATURE,
        "min_p": 0.0 <= sampling.min_p <= 1.0,
        "top_k": 0 <= sampling.top_k <= MAX_TOP_K,
        "top_p": 0.0 < sampling.top_p <= 1.0,
    }
    for named_field, is_allowed in allowed.items():
        value = getattr(sampling, named_field)
        in_range = is_allowed and isfinite(value)
        _require(in_range, f"sampling.{named_field}", f"{value} is out of range")
    for name in sampling.extras:
        named_field = f"sampling.extras.{name}"
        _require(name not in STOPPING, named_field, "stop_tokens must say it")
        served = name in facts.features and name != PROMPT_LOGPROBS
        _require(served, named_field, "not supported by this target")


def _check_judge(request: Open, facts: ModelFacts) -> None:
    has_judge = request.judge in facts.judges
    _require(has_judge, "judge", f"this target judges {', '.join(facts.judges)}")
    judge, not_in = JUDGES[request.judge], f"not in judge `{request.judge}`"
    _require(judge.takes_any_draft or not request.ngram_drafts, "ngram_drafts", not_in)
    if request.rejected:
        _require(not judge.takes_any_draft, "rejected", not_in)
        has_room = len(request.committed) + 2 <= request.max_tokens
        _require(has_room, "rejected", "no draft token is judged at the answer's last position")
    if (top_logprobs := request.top_logprobs) is not None:
        _require(
            top_logprobs <= MAX_TOP_LOGPROBS, "top_logprobs", f"at most {MAX_TOP_LOGPROBS}"
        )
        _require(judge.has_logprobs, "top_logprobs", not_in)


def _require(holds: object, named_field: str, reason: str) -> None:
    """Raise an InvalidRequest that names the field, unless the condition holds."""
    if not holds:
        raise InvalidRequest(f"{named_field}: {reason}", param=named_field)


MIN_OPEN_BYTES: Final = 1 << 20
"""An Open may have this many bytes, or with a long context as many as its text may need."""

TOKEN_BYTES: Final = 4
"""A token takes at most this many bytes in an Open."""

MAX_DECODING: Final = 256
"""This many Opens of a tenant may wait to be decoded. Most take milliseconds to decode, and the
largest half a second."""

OPEN: Final = "/v1/speculate"
SESSION_PATHS: Final = f"{OPEN}/"
"""The paths of a session begin with this prefix; the session's name follows."""

UPLOADS: Final = f"{OPEN}/uploads"
"""No session has this path, because the paths of sessions have another part."""

DRAFTS_BYTES: Final = 64 * 1024
"""A body of drafts has at most this many bytes. A draft token takes about 3; thousands fit."""


def open_bytes(facts: ModelFacts) -> int:
    """Return how many bytes an Open may have: an answer whose text fills the context must be
    opened again after a cut."""
    needed = MIN_OPEN_BYTES // 2 + TOKEN_BYTES * facts.context_tokens
    return min(max(MIN_OPEN_BYTES, needed), wire.MAX_FRAME_BYTES) + codecs.MAX_VARINT_BYTES


def takes_drafts(path: str) -> bool:
    """Implements gateway.access.IsMessage."""
    return path == UPLOADS or (path.startswith(SESSION_PATHS) and path.endswith("/drafts"))


@dataclass(frozen=True, slots=True)
class Routes:
    host: Host
    sessions: Sessions
    decoding: ThreadTurns = field(
        default_factory=partial(ThreadTurns, 1, MAX_DECODING, "Opens wait to be decoded")
    )
    """Decodes Opens in one thread, because each running thread delays the event loop."""

    def all(self) -> list[Route]:
        """Return the routes, for an app that translates gateway.errors.

        Routes are tried in order, and an app may have fifty more. The drafts route comes first,
        because a session posts to it hundreds of times.
        """
        return [
            Route(f"{SESSION_PATHS}{{session}}/drafts", self.drafts, methods=["POST"]),
            Route(UPLOADS, self.uploads, methods=["POST"]),
            *(Route(path, self.health) for path in HEALTH_PATHS),
            Route("/ready", self.ready),
            Route("/v1/model-facts", self.facts, methods=["GET"]),
            Route("/v1/tokenizer", self.tokenizer, methods=["GET"]),
            Route(OPEN, self.open, methods=["POST"]),
            Route(ANSWER_CACHE, self.forget, methods=["DELETE"]),
        ]

    async def health(self, _: Request) -> Response:
        """Answer 200 and the state, even while the target loads; 503 once it has failed."""
        self.host.check()
        return JSONResponse({"status": "ok", "state": self.host.state})

    async def ready(self, _: Request) -> Response:
        """Answer 200 while sessions are opened, or 503 with the reason from `Host.ready`."""
        model, load = self.host.ready().facts.model, round(self.sessions.load, 3)
        return JSONResponse({"status": "ok", "model": model, "load": load})

    async def facts(self, _: Request) -> Response:
        facts = msgspec.json.encode(self.host.ready().facts)
        return Response(facts, media_type="application/json")

    async def tokenizer(self, _: Request) -> Response:
        packed = self.host.ready().packed_tokenizer
        return Response(packed, media_type="application/octet-stream")

    async def open(self, request: Request) -> Response:
        context = context_of(request)
        context.tenant.check_room(context.clock(), 0)  # 0: it may replace a running session
        facts = self.host.ready().facts
        body = await read_body(request, open_bytes(facts))
        decode = partial(_opening, body)  # a long prompt takes a while
        opening = await self.decoding.run(context.tenant, decode)
        check_open(opening, facts)
        context.outcome.is_session = True
        context.serve(opening.model, None, "text_completion")
        session = await self.sessions.open(opening, context.tenant, context.span)
        context.took_prompt(len(opening.prompt))
        context.tenant.spend(len(opening.committed), context.clock())  # these are prefilled too
        return Downstream(session, context)

    async def forget(self, request: Request) -> Response:
        """Forget the answers that are kept for the key's tenant, or for the one of the tenant's
        users whom the parameter `cache_salt` names."""
        salt = request.query_params.get(SALT)
        user = None if salt is None else msgspec.json.encode(salt)
        await self.host.ready().forget(owner_of(context_of(request).tenant.identity, user))
        return Response(status_code=204)

    async def drafts(self, request: Request) -> Response:
        context = context_of(request)
        session = self.sessions.find(request.path_params["session"], context.tenant)
        context.outcome.has_unknown_session = False
        if session.ending:
            raise UnknownSession("the session has ended")
        body = await read_body(request, DRAFTS_BYTES)
        try:
            await session.push(drafts(body))
        except RemoteProtocolError as error:
            raise InvalidRequest(str(error), code="protocol_error") from error
        return Response(status_code=204)

    async def uploads(self, request: Request) -> Response:
        context = context_of(request)
        context.outcome.has_unknown_session = False
        context.tenant.admit(context.clock())
        return Upstream(self.sessions, context, request.state.body, self.host.drain.over)


def _opening(body: bytes) -> Open:
    try:
        opening_messages = [framed.message for framed in messages(body)]
    except MalformedFrame as error:
        raise InvalidRequest(str(error), code="malformed_frame") from error
    match opening_messages:
        case [Open() as opening]:
            return opening
    raise InvalidRequest("the body must be one Open", code="malformed_frame")
