"""A verifier as the edge uses it: its connection, its facts and its readiness."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import urlencode

import msgspec
import structlog
from msgspec import Meta
from pyqwest import Client

from edge_agent.link.connection import MAX_ANSWER_BYTES, REQUEST_TIMEOUT_S, Connection, Response
from edge_agent.link.errors import LinkDown, VerifierResponse, from_answer
from edge_agent.link.known_verifiers import Event, KnownModel, KnownVerifier
from edge_agent.link.uploads import Uploads
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import start
from gateway.errors import ApiError, Draining, EngineFault, Overloaded, Unavailable
from gateway.system import now_with_sleep
from gateway.tenants import identity_of_key
from local_models.tokenizer_file import MAX_PACKED_BYTES
from speculation.judges import JUDGES
from speculation.model_facts import (
    MAX_CONTEXT_TOKENS,
    PROTOCOL_VERSION,
    Limits,
    ModelFacts,
    Name,
    Version,
    Vocabulary,
)
from speculation.request_names import ANSWER_CACHE, SALT
from speculation.untrusted import Malformed, decode_json

FACTS_PATH: Final = "/v1/model-facts"

TOKENIZER_TIMEOUT_S: Final = 600.0
"""The target's tokenizer must come within this time: it has megabytes, and is fetched once."""

_FIRST_SAMPLES: Final = 3
"""This many round trips are measured at the start: the first ones include connecting."""

CHECK_TIMEOUT_S: Final = 1.0
"""A verifier that takes longer to answer whether it is ready counts as away."""

IDLE_S: Final = 5.0
"""A connection that has carried nothing for this long may be dead without a sign: a laptop was
suspended, a VPN came or went, or a router has forgotten it."""

WAKE_S: Final = 0.3
"""An idle connection that does not answer within this time and two round trips is replaced."""

LABEL_DIGITS: Final = 8
"""The label of a verifier has this many hexadecimal digits."""

ANSWER_TIMEOUT_S: Final = 600.0
"""A proxied answer must begin within this time, and so must each next piece of it. One that is
not streamed begins at its end."""


class _ReadyBody(msgspec.Struct):
    load: Annotated[float, Meta(ge=0, le=1)] = 0.0


class _KnownFacts(msgspec.Struct):
    """The facts that every version has."""

    model: Name
    vocabulary: Name
    vocabulary_size: Vocabulary
    context_tokens: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_TOKENS)]
    protocol: Version
    features: list[Name] = []


class VerifierStatus(msgspec.Struct):
    """The part of a verifier's /status that the edge's own /status shows."""

    version: Annotated[str, Meta(max_length=64)] | None = None
    uptime_s: Annotated[int, Meta(ge=0, lt=1 << 40)] | None = None


NO_PICOSPEC: Final = "no_picospec"
"""The error code for a peer that is a server, but no verifier."""

START_PLUGIN: Final = (
    "pip install ./picospec-*.whl && VLLM_PLUGINS=picospec PICOSPEC_VERIFIER__HOST=0.0.0.0"
    " PICOSPEC_API_KEYS=KEY vllm serve MODEL"
)
"""Its operator makes it one, for edges at port 9000, by this command."""


def no_picospec(url: str) -> Unavailable:
    """Return the error for a server that does not speak PicoSpec, whatever else it does."""
    reason = f"{url} answers, but is no verifier: a model server needs PicoSpec's plugin"
    return Unavailable(f"{reason} ({START_PLUGIN})", code=NO_PICOSPEC)


class Verifier(KnownVerifier):
    """Owns the connections to a verifier. Its address is in no metric, because anybody may read
    these; its label is a hash of it and a secret. apart: a connection for requests that may be
    large; the same one by default. lost: called when a verifier that was ready is lost.
    learned: called when its facts are known anew. model: the name that the settings give it:
    under another one it is not used."""

    def __init__(
        self,
        connection: Connection,
        metrics: EdgeMetrics,
        proxy_connection: Connection | None = None,
        lost: Callable[[], None] = lambda: None,
        learned: Callable[[], None] = lambda: None,
        model: str = "",
    ) -> None:
        digest = identity_of_key(connection.url.encode(), os.environ)
        super().__init__(digest[:LABEL_DIGITS], model=KnownModel(model))
        self.url = connection.url
        self.connection = connection
        self.proxy_connection = proxy_connection or connection
        self.metrics = metrics
        self._expected = model
        self._lost = lost
        self._learned = learned
        self.sessions = metrics.verifier_sessions.labels(self.label)
        self._ready_gauge = metrics.verifier_ready.labels(self.label)
        self._rtt_gauge = metrics.verifier_rtt_s.labels(self.label)
        self._facts: ModelFacts | None = None
        self._heard_at = 0.0  # when the last answer came, by now_with_sleep
        self._waking: asyncio.Task[None] | None = None
        self._complaint = ""  # why its facts could not be used, as logged
        self._fetching: asyncio.Task[ModelFacts] | None = None
        self.encoding = asyncio.Lock()
        """Long Opens are encoded one after the other: several threads that compute hold up the
        event loop by as many turns."""

        self._lost_at = 0.0
        self.uploads = Uploads(self)

    @property
    def known(self) -> ModelFacts | None:
        """The latest facts, if they need not be fetched anew."""
        return self._facts

    @property
    def protocol(self) -> int | None:
        """The version that the verifier speaks; None until its facts are known."""
        return self._facts.protocol if self._facts else None

    def note(self, event: Event) -> None:
        was_ready = self.is_ready
        super().note(event)
        self._heard_at = now_with_sleep()
        self._ready_gauge.set(self.is_ready)
        if not self.is_ready:
            self._lost_at = time.monotonic()
        if was_ready and not self.is_ready:
            self._renew_proxy_connection()
            self._lost()

    def _renew_proxy_connection(self) -> None:
        """Let requests apart use their connection no more: it may be as dead as the other."""
        if self.proxy_connection is not self.connection:
            self.proxy_connection.renew(self.proxy_connection.client)

    def answered(self, begun: float, event: Event) -> None:
        """Note an answer to a request that began at `begun`, and its round trip. One that began
        before the verifier was lost does not say that it is back."""
        if self.is_ready or begun >= self._lost_at:
            self.note(event)
        self.timed(time.monotonic() - begun)
        self._rtt_gauge.set(self.rtt_s)

    def delivered(self, begun: float) -> None:
        """Note that the verifier has got what a session sent at `begun`."""
        self.answered(begun, Event.ANSWERED)
        self.metrics.rtt_s.set(self.rtt_s)

    def uploaded(self, size_bytes: int) -> None:
        """Note that a message went on an upload stream."""
        self.metrics.uploaded.inc()
        self.metrics.bytes_up.inc(size_bytes)

    async def post(self, session: str, frames: bytes, headers: Mapping[str, str]) -> None:
        """Send drafts of a session. Raises ApiError."""
        begun = time.monotonic()
        self.metrics.posts.inc()
        self.metrics.bytes_up.inc(len(frames))
        if await self.connection.post(session, frames, headers):
            self.delivered(begun)

    async def facts(self) -> ModelFacts:
        """Return the target's facts, which are fetched once and after each `forget`, for all
        who wait for them.

        Raises Unavailable, Overloaded, or EngineFault if the peer is no verifier.
        """
        if self._facts is not None:
            return self._facts
        if self._fetching is None or self._fetching.done():
            self._fetching = start(self._facts_or_error())
        fetching, waiter = self._fetching, asyncio.current_task()
        try:
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            if not fetching.cancelled() or (waiter and waiter.cancelling()):
                raise
            raise Unavailable(f"{self.url} is used no more") from None  # see `close`

    async def _facts_or_error(self) -> ModelFacts:
        """Return the facts, fetched anew. Whatever the verifier has sent, its failure is an
        ApiError: another verifier may serve. Why it cannot be used is logged once."""
        try:
            return await self._fetch()
        except (Unavailable, Overloaded) as error:
            if self.latest is None and error.message != self._complaint:
                self._complaint = error.message
                log = structlog.get_logger("edge_agent")
                log.warning("verifier unreachable", url=self.url, reason=error.message)
            raise
        except Exception as error:
            complaint = str(error)
            if complaint != self._complaint:
                log = structlog.get_logger("edge_agent")
                is_fault = isinstance(error, ApiError)
                log.warning("verifier", url=self.url, reason=complaint, exc_info=not is_fault)
                self._complaint = complaint
            if isinstance(error, ApiError):
                raise
            raise EngineFault(f"{self.url} cannot be used as a verifier") from error

    async def _fetch(self) -> ModelFacts:
        facts = self._read(await self._first_answer())
        for _ in range(_FIRST_SAMPLES):  # it lives, though its host may be busy
            await self.check(REQUEST_TIMEOUT_S)
        self._facts = facts
        self.learn(facts)
        self._learned()
        if not facts.is_compatible:
            structlog.get_logger("edge_agent").warning(
                "undrafted", verifier=self.url, protocol=facts.protocol,
                own=PROTOCOL_VERSION, remedy="install one version at both ends",
            )  # fmt: skip
        return facts

    async def _first_answer(self) -> VerifierResponse:
        """Return the answer that has the facts. One who has never answered may be an ordinary
        server, to which HTTP/2 without TLS is noise: it is asked in HTTP/1.1, without a key."""
        try:
            return await self._get(FACTS_PATH, REQUEST_TIMEOUT_S)
        except LinkDown as error:
            if (
                self.model.identity
                or error.how != "broken"
                or not self.url.startswith("http://")
            ):
                raise
            base, address = self.connection.base, self.connection.address
            plain = Connection(base, prior_knowledge=False, address=address)
            with suppress(LinkDown):
                answer = await plain.ask("GET", FACTS_PATH, within_s=CHECK_TIMEOUT_S)
                if answer.status == HTTPStatus.NOT_FOUND:
                    raise no_picospec(self.url) from error
                reason = f"{self.url} speaks HTTP/1.1 alone; edges need PicoSpec's port (9000)"
                raise Unavailable(f"{reason}, or HTTPS", code=NO_PICOSPEC) from error
            raise

    async def tokenizer(self) -> bytes:
        """Return the target's tokenizer, packed. Raises Unavailable or EngineFault."""
        answer = await self._get("/v1/tokenizer", TOKENIZER_TIMEOUT_S, MAX_PACKED_BYTES)
        return answer.content

    async def check(self, within_s: float = CHECK_TIMEOUT_S) -> None:
        """Ask whether the verifier is ready, and time it. Raises ApiError."""
        begun, client = time.monotonic(), self.connection.client
        try:
            response = await self._get("/ready", within_s)
        except ApiError as error:
            if isinstance(error, Draining):  # its address may lead to another one by now
                self.connection.renew(client)
            self.forget()
            self.note(Event.DRAINS if isinstance(error, Draining) else Event.LOST)
            raise
        self.load = _load(response)
        self.answered(begun, Event.IS_READY)

    def wake(self) -> None:
        """Begin to find out whether an idle connection still carries anything, and replace it
        if it does not. `awake` waits for that."""
        is_idle = self._facts is not None and now_with_sleep() > self._heard_at + IDLE_S
        if is_idle and (self._waking is None or self._waking.done()):
            self._waking = start(self._wake(self.connection.client))

    async def _wake(self, client: Client | None) -> None:
        try:
            await self._get("/ready", WAKE_S + 2 * self.rtt_s)
        except LinkDown:
            self.connection.renew(client)  # whoever asks next finds out what is wrong
            self._renew_proxy_connection()
        except ApiError:
            return
        else:
            self.note(Event.ANSWERED)

    async def awake(self) -> None:
        """Return when what `wake` has begun is done."""
        if self._waking is not None:
            await asyncio.wait([self._waking])

    async def close(self) -> None:
        await self.uploads.close()
        await self.awake()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        self.metrics.forget(self.label)

    async def status(self) -> VerifierStatus:
        """Return the verifier's status; an empty one if it gives none."""
        try:
            response = await self._get("/status", CHECK_TIMEOUT_S)
            return decode_json(response.content, VerifierStatus)
        except (ApiError, Malformed):
            return VerifierStatus()

    def ask(self, path: str, body: bytes) -> AbstractAsyncContextManager[Response]:
        """Send a request to the verifier's own API; see Connection.post_to."""
        headers = {"content-type": "application/json"}
        return self.connection.post_to(path, headers, body, within_s=ANSWER_TIMEOUT_S)

    async def forget_answers(self, salt: str | None) -> None:
        """Let the verifier forget the answers that it keeps for this edge, or for one of its
        users. One of another version may keep none. Raises ApiError."""
        query = "" if salt is None else f"?{urlencode({SALT: salt})}"
        answer = await self.connection.ask(
            "DELETE", ANSWER_CACHE + query, within_s=CHECK_TIMEOUT_S
        )
        if answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND):
            raise Unavailable("the verifier has not forgotten its answers")

    def forget(self) -> None:
        """Let the facts be fetched again: the verifier was away, or has changed."""
        self._facts = None

    async def _get(
        self, path: str, within_s: float, max_bytes: int = MAX_ANSWER_BYTES
    ) -> VerifierResponse:
        answer = await self.connection.ask("GET", path, within_s=within_s, max_bytes=max_bytes)
        if answer.status == HTTPStatus.OK:
            return answer
        error = from_answer(answer)
        if isinstance(error, EngineFault | Unavailable | Overloaded):
            raise error
        if answer.status == HTTPStatus.NOT_FOUND and path == FACTS_PATH:
            raise no_picospec(self.url)
        # the client did not make this request, and must not be blamed for it
        raise Unavailable(f"the verifier does not answer as one: {error.message}")

    def _read(self, answer: VerifierResponse) -> ModelFacts:
        try:
            facts = decode_json(answer.content, ModelFacts)
        except Malformed as error:
            if (other_facts := _of_another_version(answer)) is None:
                reason = f"{self.url} does not look like a verifier: {error}"
                raise EngineFault(reason) from error
            return other_facts
        if max(facts.stop_tokens, default=0) >= facts.vocabulary_size:
            raise EngineFault(f"{self.url} names a stop token that is no token")
        if self._expected not in ("", facts.model):
            raise EngineFault(
                f"{self.url} serves {facts.model!r}, and the settings name {self._expected!r}"
            )
        return facts


def _of_another_version(answer: VerifierResponse) -> ModelFacts | None:
    """Return as much of the facts as answers without drafts need, if the verifier speaks
    another version of the protocol, whose facts may have values that are not known here."""
    try:
        known = decode_json(answer.content, _KnownFacts)
    except Malformed:
        return None
    if known.protocol == PROTOCOL_VERSION:
        return None
    fields = msgspec.structs.asdict(known)
    return ModelFacts(**fields, stop_tokens=[], limits=Limits(), judges=list(JUDGES))


def _load(answer: VerifierResponse) -> float:
    """Return the verifier's load; 0 if the answer does not have it, as behind some proxies."""
    try:
        return decode_json(answer.content, _ReadyBody).load
    except Malformed:
        return 0.0
