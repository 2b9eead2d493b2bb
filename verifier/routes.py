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
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.access import HEALTH_PATHS
from gateway.errors import InvalidRequest
from gateway.request_body import read_body
from gateway.request_context import context_of
from gateway.turns import ThreadTurns
from speculation import codecs, wire
from speculation.errors import MalformedFrame, RemoteProtocolError
from speculation.messages import Open
from speculation.model_facts import ModelFacts
from speculation.request_names import ANSWER_CACHE, SALT
from verifier.host import Host
from verifier.open_checks import check_open
from verifier.owners import owner_of
from verifier.sessions.admission import Sessions
from verifier.sessions.downstream import Downstream
from verifier.sessions.upstream import Upstream, drafts, messages
from verifier.target import UnknownSession

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
