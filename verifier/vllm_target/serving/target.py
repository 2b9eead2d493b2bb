"""Target, implemented by vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from picospec.models.file_hashes import FileHashes
from picospec.models.tokenizing.hugging_face import commit_of, directory_of
from picospec.models.tokenizing.tokenizer_file import TokenizerFile, tokenizer_file
from picospec.speculation.protocol import wire
from picospec.speculation.protocol.messages import Commit, Finish, Limits, Open, Pushed
from picospec.speculation.protocol.wire import Framed
from picospec.verifier.identity import weights_of
from picospec.verifier.metrics import PassMetrics
from picospec.verifier.target import (
    Described,
    Reply,
    TargetFailed,
    TargetFull,
    UnknownSession,
    asked_grammar,
    started,
    unservable,
)
from picospec.verifier.vllm_target.serving import compat
from picospec.verifier.vllm_target.serving.inflight import Inflight
from picospec.verifier.vllm_target.serving.parameters import FEATURES, engine_request
from picospec.verifier.vllm_target.serving.settings import VllmSettings

if TYPE_CHECKING:  # vLLM takes seconds to import, and is not there in every installation
    from picospec.verifier.vllm_target.core.session_slot import OutgoingFrame
    from picospec.verifier.vllm_target.serving.engine import Engine

SHAPELESS: Final = ("kv_cache_memory_bytes", "gpu_memory_utilization", "download_dir")
"""The engine options of which no text depends."""

FOLLOW_S: Final = 2.0
"""Time between two looks at the engine's counts, each of which costs it about 0.3 ms."""


class VllmTarget(Described):
    def __init__(
        self,
        name: str,
        settings: VllmSettings,
        limits: Limits,
        metrics: PassMetrics,
        *,
        template: str | None = None,
        share_prefixes: bool = False,
        hashes: FileHashes | None = None,
    ) -> None:
        super().__init__(limits, share_prefixes=share_prefixes)
        self._name = name
        self._template = template
        self._hashes = hashes or FileHashes()
        self._settings = settings
        self._metrics = metrics
        self._engine: Engine | None = None
        self._sessions: dict[str, Inflight] = {}
        self._figures: dict[str, float] = {}
        self._following: asyncio.Task[None] | None = None
        metrics.follow(
            lambda: self._figures.get("kv_usage", 0.0),
            lambda: int(self._figures.get("waiting", 0)),
        )

    @property
    def alive(self) -> bool:
        return self._engine is not None and self._engine.alive

    async def start(self) -> None:
        """Load the model and test that drafts change nothing. Raises TargetFailed."""
        version = compat.check(self._settings.options)
        from picospec.verifier.vllm_target.serving.engine import Engine
        from picospec.verifier.vllm_target.serving.selftest import self_test

        file, tokens = await asyncio.to_thread(self._tokenizer_file)
        self._engine = await Engine.start(
            self._settings.model, self._settings.options, self._limits.max_verify, tokens
        )
        try:
            size = self._engine.size
            file = msgspec.structs.replace(file, padding=size.vocabulary - tokens)
            shapes = await asyncio.to_thread(self._shapes, self._engine.version)
            self.describe(self._name, file, size.context_tokens, FEATURES, shapes)
            structlog.get_logger("verifier").info("loaded", model=self._name)
            if compat.must_self_test(version, self._settings.self_test):
                await self_test(self)
            self._following = asyncio.create_task(self._follow())
        except BaseException:
            await self.stop()
            raise

    def _shapes(self, version: str) -> Sequence[object]:
        """Return what shapes a text: of a repository, the commit that was loaded."""
        model, options = Path(self._settings.model), self._settings.options
        weights = weights_of(model, self._hashes) if model.is_dir() else self._commit()
        shaping = {k: str(v) for k, v in options.items() if k not in SHAPELESS}
        return version, weights, shaping

    def _commit(self) -> tuple[str, str | None]:
        """Return the name of a repository, and its commit if that can be found."""
        model, options = self._settings.model, self._settings.options
        commit = commit_of(model, options.get("revision"), options.get("download_dir"))
        if commit is None:
            structlog.get_logger("verifier").warning(
                "the weights are known by their name alone: verifiers that have others by this "
                "name go on with each other's answers",
                model=model,
                remedy="serve a directory of files: --model PATH",
            )
        return model, commit

    def _tokenizer_file(self) -> tuple[TokenizerFile, int]:
        """Return the target's tokenizer, and how many tokens it has. Raises CannotOpen."""
        revision = self._settings.options.get("tokenizer_revision")
        folder = directory_of(self._settings.tokenizer, revision)
        file = tokenizer_file(folder, self._template)
        return file, len(file.open().vocabulary.pieces)

    async def stop(self) -> None:
        """End the sessions, then the engine and its processes."""
        engine, self._engine = self._engine, None
        if self._following is not None:
            self._following.cancel()
        for inflight in self._sessions.values():
            inflight.cancel()
        await self.close_grammars()
        if engine is not None:
            await engine.stop()

    async def heartbeat(self) -> None:
        """Hear from the engine's core and workers."""
        await started(self._engine).heartbeat()

    async def check(self, request: Open, tenant: str | None = None) -> None:
        """Try the request's grammar before vLLM does, which limits neither time nor memory.

        Raises Unservable, TargetFull or Overloaded.
        """
        if (asked := asked_grammar(request)) is not None:
            with unservable():
                await self.grammars.check(asked, tenant)

    async def figures(self) -> dict[str, float]:
        """Return the engine's counts: see SessionScheduler.figures."""
        return await started(self._engine).figures()

    async def _follow(self) -> None:
        """Keep the engine's counts known, for the metrics, as long as it lives."""
        while self.alive:
            with suppress(Exception):  # whatever it raises, `alive` says what became of it
                self._figures = await self.figures()
            await asyncio.sleep(FOLLOW_S)

    async def serve(
        self, session: str, request: Open, tenant: str | None = None
    ) -> AsyncGenerator[Framed[Reply]]:
        """Run one session to its Finish; closing the generator frees its KV within a step."""
        engine = started(self._engine)
        if len(self._sessions) >= (room := engine.size.sessions):
            raise TargetFull(f"all {room} sequences are taken")
        wanted = engine_request(
            session, request, self.facts, drawn_by_vllm=engine.drawn_by_vllm
        )
        inflight = self._sessions[session] = Inflight()
        try:
            text = (*request.prompt, *request.committed)
            owner = self.owner_of_prefixes(tenant, request)
            frames = engine.generate(session, text, wanted, owner)
            async with aclosing(frames):
                async for outgoing in frames:
                    inflight.check()
                    reply = self._decoded(outgoing)
                    yield reply
                    if isinstance(reply.message, Finish):
                        return
            inflight.check()
            raise TargetFailed("vLLM ended the session")
        finally:
            del self._sessions[session]
            inflight.cancel()

    def _decoded(self, outgoing: OutgoingFrame) -> Framed[Reply]:
        """Decode a frame of the core's, and count what its pass did."""
        (message,) = wire.Decoder().feed(outgoing.frame)
        if not isinstance(message, Reply):
            raise TargetFailed(f"the engine sent {type(message).__name__}")
        commit = message if isinstance(message, Commit) else None
        if commit and outgoing.rows:
            self._metrics.passed(outgoing.rows, commit.pass_s)
        if outgoing.judged:
            self._metrics.judged(outgoing.judged, commit.drafts if commit else 0)
        return Framed(message, outgoing.frame)

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        """Hand a message to a running session, and return before the engine has taken it in.

        Raises UnknownSession. What no honest edge sends raises RemoteProtocolError, from a
        later push or from `serve`: the engine looks at messages between two steps.
        """
        engine, inflight = started(self._engine), self._sessions.get(session)
        if inflight is None:
            raise UnknownSession(f"no session {session}")
        inflight.check()
        await inflight.send(partial(engine.push, session, message.frame))
