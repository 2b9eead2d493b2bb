"""One world: real edges and real verifiers in one event loop, over links in memory.

A verifier is the verifier's app over a FakeTarget, whose text is `said`; an edge is the edge's
app, or its view of the verifiers alone (`World.verifiers`). Each service has a Link, where all
that befalls the way to it is done, and takes signals as a process does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from pyqwest import HTTPVersion
from pyqwest.httpx import AsyncPyqwestTransport
from starlette.types import ASGIApp, Message

from edge_agent import app as edge_app
from edge_agent import settings as edge_settings
from edge_agent.link import uploads
from edge_agent.link.connection import Connection, Credentials
from edge_agent.link.known_verifiers import Event
from edge_agent.link.verifier import Verifier
from edge_agent.link.verifiers import AnswerSessions, Verifiers
from edge_agent.metrics import EdgeMetrics
from gateway.background_work import running_alongside
from gateway.drain import Drain
from gateway.errors import ApiError
from gateway.tracing import NO_SPAN
from local_models.constraints import NAME
from local_models.store import open_store
from local_models.tokenizer_file import TokenizerFile
from speculation.messages import Commit, Draft, Fill, Finish, Open, Opened, Sampling
from tests.fakes.link import Link, Network
from tests.verifier.fake_target import FACTS, STREAMS, FakeTarget, V, opening, said
from verifier.app import build as build_verifier
from verifier.settings import load as load_verifier
from verifier.target import TargetFull

RTT_S, PASS_S = 0.05, 0.05
TOKENS = 100
PROMPT = (STREAMS, 5, 6)
TEXT = [said(PROMPT, position) for position in range(TOKENS)]
PLAIN = Sampling()

WORDS: Final = TokenizerFile(
    "huggingface",
    json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel",
                "vocab": {f"w{token}": token for token in range(V)},
                "unk_token": f"w{STREAMS}",
            },
        }
    ).encode(),
)
"""A tokenizer of words: w0, w1 and so on."""

_SERVICE: ContextVar[Service] = ContextVar("service")
"""Whose task this is."""


class Service:
    """A service as a process: it is started and killed, and gets signals. make: of its app."""

    def __init__(self, address: str, make: Callable[[], ASGIApp]) -> None:
        self.url = f"http://{address}"
        self.link = Link()
        self.link.delay_s = RTT_S / 2
        self.handlers: dict[int, Callable[[], object]] = {}
        self.ended = asyncio.Event()
        self._make = make
        self._living: asyncio.Task[None] | None = None
        self._leaves = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return self.link.app is not None

    async def start(self) -> None:
        """Start it, after `kill` anew."""
        self.ended, self._leaves, started = asyncio.Event(), asyncio.Event(), asyncio.Event()
        context = copy_context()
        context.run(_SERVICE.set, self)
        live = self._live(self._make(), started, self._leaves)
        self._living = asyncio.create_task(live, context=context)
        await started.wait()

    async def _live(self, app: ASGIApp, started: asyncio.Event, leaves: asyncio.Event) -> None:
        begun = False

        async def receive() -> Message:
            nonlocal begun
            if begun:
                await leaves.wait()
                return {"type": "lifespan.shutdown"}
            begun = True
            return {"type": "lifespan.startup"}

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.link.app = app
                started.set()

        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        self._is_gone()

    def _is_gone(self) -> None:
        self.link.app = None
        self.link.cut()
        self.ended.set()

    def signal(self, number: signal.Signals) -> None:
        self.handlers[number]()

    def end(self) -> None:
        """Have the server close, as by its last signal."""
        self._leaves.set()

    def kill(self) -> None:
        """End it without a word."""
        tasks = [stream.task for each in self.link.connections for stream in each.streams]
        self._is_gone()
        assert self._living is not None
        for task in (*tasks, self._living):
            task.cancel()

    def kill_after(self, seconds: float) -> None:
        """Kill this life of it after `seconds`, if it has not ended by then."""
        ended = self.ended

        def kill() -> None:
            if not ended.is_set():
                self.kill()

        asyncio.get_running_loop().call_later(seconds, kill)

    async def close(self) -> None:
        self.end()
        if self._living is not None:
            await asyncio.wait([self._living])


class VerifierProcess(Service):
    """A verifier. Its target is another one after each start; the hooks stay."""

    def __init__(self, number: int, target: Callable[[], FakeTarget], **settings: Any) -> None:  # noqa: ANN401 - of the verifier
        super().__init__(f"127.0.0.1:{9001 + number}", self._app)
        self.settings = settings
        self.first_token_s = self.trial_s = 0.0
        self.is_poisoned = False
        """It ends with each session after six tokens."""

        self.is_full = False

        self.opened = 0
        """So many sessions were taken, in all its lives."""

        self._target = target

    def _app(self) -> ASGIApp:
        self.target = self._target()
        self.target.on_check, self.target.on_pass = self._check, self._pass
        made = load_verifier(None, {}, self.settings)
        return build_verifier(made, lambda _: self.target)

    async def _check(self, request: Open, _: int) -> None:
        if request.sampling.extras:
            await asyncio.sleep(self.trial_s)
        if self.is_full:
            raise TargetFull("all slots are taken")
        self.opened += 1

    async def _pass(self, request: Open, passes: int) -> None:
        if not passes:
            await asyncio.sleep(self.first_token_s)
        if self.is_poisoned and len(request.committed) + passes > 5:
            self.kill()

    @property
    def asked(self) -> int:
        """So many sessions were asked of it."""
        return self.link.requests["POST /v1/speculate"]


class WordTarget(FakeTarget):
    """A target whose tokenizer an edge can use."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - FakeTarget's
        super().__init__(**{"slots": 64, "pass_s": PASS_S, **options})
        self._facts = msgspec.structs.replace(
            FACTS, vocabulary=WORDS.digest, identity="i", features=[*FACTS.features, NAME]
        )
        self._tokenizer, self.packed_tokenizer = WORDS.open(), WORDS.pack()


@contextmanager
def _patched(network: Network, multiplexes: bool | None) -> Iterator[None]:
    """Have this process's clients use the network, and its services be none of the system's."""
    loop = asyncio.get_running_loop()

    def handle(number: int, handler: Callable[[], object]) -> None:
        _SERVICE.get().handlers[number] = handler

    def kill(_: int, __: int) -> None:
        _SERVICE.get().end()

    def end_within(seconds: float) -> None:
        _SERVICE.get().kill_after(seconds)

    system = SimpleNamespace(kill=kill, getpid=os.getpid, environ=os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_agent.link.connection.HTTPTransport", network.transport)
        patch.setattr(loop, "add_signal_handler", handle)
        patch.setattr(loop, "remove_signal_handler", lambda _: True)
        patch.setattr("verifier.app.end_within", end_within)
        patch.setattr("verifier.app.os", system)
        if multiplexes is not None:
            patch.setattr(uploads, "MIN_MULTIPLEXED", 1 if multiplexes else 1 << 20)
        yield


class Answers:
    """Answers that an edge without an engine gets of verifiers. fill: of their sessions."""

    def __init__(self, deadline_s: float = 30.0, fill: Fill = "auto") -> None:
        self.deadline_s = deadline_s
        self.fill = fill
        self.drafted = TOKENS
        """The edge drafts for so many positions."""

        self.metrics = EdgeMetrics(CollectorRegistry())
        self.gap_s = 0.0
        """The longest time between two tokens."""

        self.losses: list[ApiError] = []
        """These errors have ended sessions before their Finish."""

        self._last_s = 0.0

    async def connect(
        self, *urls: str, key: str | None = None, authority: bytes | None = None
    ) -> None:
        """Use these verifiers, all of which are ready. authority: of their certificates."""
        connect = partial(Connection, credentials=Credentials(key, authority))
        known = [Verifier(connect(url), self.metrics) for url in urls]
        self.verifiers = Verifiers(known, self.metrics, self.deadline_s)
        for verifier in known:
            await verifier.facts()
            verifier.note(Event.IS_READY)

    async def took(self, text: list[int]) -> None:
        """Return when the client of an answer has read it as far as it has come."""

    async def lost(self) -> None:
        """Return when the answer that has lost its session may go on."""

    async def answer(self, text: list[int], sampling: Sampling = PLAIN) -> None:
        """Generate an answer into `text`. Raises ApiError."""
        facts = await self.verifiers.facts()
        sessions = self.verifiers.answer(facts.identity, NO_SPAN)
        self._last_s = asyncio.get_running_loop().time()
        request = opening(
            vocabulary=facts.vocabulary, prompt=PROMPT, sampling=sampling,
            max_tokens=TOKENS, identity=facts.identity, fill=self.fill,
        )  # fmt: skip
        while not await self._follow(sessions, request, text):
            pass

    async def _follow(self, sessions: AnswerSessions, request: Open, text: list[int]) -> bool:
        session = sessions.open(replace(request, committed=tuple(text)))
        try:
            async with (
                running_alongside(session.post()),
                aclosing(session.events()) as events,
            ):
                async for message in events:
                    if isinstance(message, Commit):
                        assert message.start == len(text)
                        text += message.tokens
                    if isinstance(message, Opened | Commit):
                        if len(text) < min(self.drafted, TOKENS):
                            token = said(PROMPT, len(text))
                            session.send(Draft(0, len(text), 0, (token,)))
                        await self.took(text)
                    if isinstance(message, Commit):
                        self._note_gap()
                        self._last_s = asyncio.get_running_loop().time()
                    if isinstance(message, Finish):
                        return True
        except ApiError as error:
            self.losses.append(error)
            await self.lost()
            try:
                await sessions.again(session, error)
            finally:
                self._note_gap()
        return False

    def _note_gap(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self.gap_s = max(self.gap_s, now_s - self._last_s)


class World(Answers):
    """Some verifiers, and an edge's view of them, as an async context. settings: of each
    verifier. multiplexes: even one session's messages go down the upload stream; if False,
    none's do, and if None, those of several."""

    def __init__(
        self,
        count: int = 1,
        *,
        multiplexes: bool | None = False,
        deadline_s: float = 30.0,
        fill: Fill = "auto",
        target: Callable[[], FakeTarget] = WordTarget,
        **settings: Any,  # noqa: ANN401 - of the verifier
    ) -> None:
        super().__init__(deadline_s, fill)
        self.network = Network()
        self.multiplexes = multiplexes
        self.processes = [VerifierProcess(n, target, **settings) for n in range(count)]
        self._patches = ExitStack()

    async def __aenter__(self) -> Self:
        self._patches.enter_context(_patched(self.network, self.multiplexes))
        for process in self.processes:
            self.network[process.url.removeprefix("http://")] = process.link
            await process.start()
        await asyncio.sleep(0.001)  # the targets have started
        await self.connect(*(process.url for process in self.processes))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.verifiers.close()
        for process in self.processes:
            await process.close()
        self._patches.close()
        assert not [error for each in self.processes for error in each.link.errors]

    # Whole edges, and clients of them.

    def client(self, url: str, key: str = "") -> httpx.AsyncClient:
        """Return a client of a service, over a link of its own."""
        transport = self.network.transport(http_version=HTTPVersion.HTTP2)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(
            base_url=url,
            transport=AsyncPyqwestTransport(transport),  # type: ignore[arg-type]
            headers=headers,
            timeout=None,
        )

    @asynccontextmanager
    async def edge(self, cache: Path, **settings: Any) -> AsyncIterator[Edge]:  # noqa: ANN401
        """Run an edge of all verifiers. cache: a folder, where it finds the tokenizer: it need
        not try that in a process of its own."""
        edge = Edge(self, cache, settings)
        self.network[edge.url.removeprefix("http://")] = edge.link
        await edge.start()
        try:
            async with self.client(edge.url) as edge.client:
                yield edge
        finally:
            await edge.close()


class Edge(Service):
    """An edge without a draft model. drain: the one of its server."""

    client: httpx.AsyncClient

    def __init__(self, world: World, cache: Path, settings: dict[str, Any]) -> None:
        super().__init__("127.0.0.1:8000", self._app)
        self.drain = Drain()
        urls = tuple(process.url for process in world.processes)
        overrides = {"draft_model": "none", "verifier_urls": urls, **settings}
        self._settings = edge_settings.load(None, {}, overrides)
        self._store = open_store({"PICOSPEC_CACHE": str(cache)})
        folder = self._store.root / "tokenizers"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WORDS.digest).write_bytes(WORDS.pack())

    def _app(self) -> ASGIApp:
        return edge_app.build(self._settings, self._store, self.drain)
