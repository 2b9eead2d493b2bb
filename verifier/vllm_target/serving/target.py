"""Implements the Target port with vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from local_models.file_hashes import FileHashes
from local_models.hugging_face import commit_of, directory_of
from local_models.tokenizer_file import TokenizerFile, tokenizer_file
from speculation.answer_cache import Owner
from speculation.judges import JUDGES
from speculation.messages import Commit, Finish, Open, Pushed
from speculation.model_facts import Judge, Limits
from speculation.wire import Framed
from verifier.identity import weights_of
from verifier.metrics import VerifierMetrics
from verifier.owners import SEPARATE, Owners
from verifier.target import (
    Deliver,
    Reply,
    Target,
    TargetFailed,
    TargetFull,
    UnknownSession,
    Unservable,
)
from verifier.vllm_target import installation
from verifier.vllm_target.packing import packed, unpacked
from verifier.vllm_target.serving.adapters import Adapters
from verifier.vllm_target.serving.engine_request import engine_request
from verifier.vllm_target.serving.selftest import self_test

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

    from verifier.vllm_target.core.slot import OutgoingFrame
    from verifier.vllm_target.serving.engine import VllmEngine

SEE: Final = "docs/vllm.md#models-with-recurrent-layers"


class Served(NamedTuple):
    """A model's tokenizer as vLLM's server uses it, and ModelFacts.served and .parts for it."""

    file: TokenizerFile
    fields: Mapping[str, list[str]] = MappingProxyType({})
    parts: Mapping[str, list[str]] = MappingProxyType({})


class VllmTarget(Target):
    """Runs sessions on an engine that vLLM's own server has started, and will stop.

    name: the model's name in requests. adapters: the adapters that vLLM has loaded. self_test:
    None if another of vLLM's API servers runs it.
    """

    def __init__(
        self,
        name: str,
        engine: VllmEngine,
        limits: Limits,
        metrics: VerifierMetrics,
        *,
        adapters: Mapping[str, LoRARequest] = MappingProxyType({}),
        as_served: Callable[[TokenizerFile], Served] = Served,
        owners: Owners = SEPARATE,
        hashes: FileHashes | None = None,
        self_test: bool | None = True,
    ) -> None:
        super().__init__(limits, owners)
        self._name = name
        self._as_served = as_served
        self._hashes = hashes or FileHashes()
        self._adapters = Adapters(adapters, self._hashes)
        self._self_test = self_test
        self._metrics = metrics
        metrics.serves(name)
        self._engine = engine
        self._sessions: set[str] = set()

    @property
    def alive(self) -> bool:
        return self._engine.alive

    async def start(self) -> None:
        """Open the engine to sessions, and test that draft tokens change no text.

        Raises TargetFailed, or CannotOpen for the model's tokenizer.
        """
        engine = self._engine
        served, tokens = await asyncio.to_thread(self._served)
        await engine.install(tokens)
        padding = engine.model.get_vocab_size() - tokens
        file = msgspec.structs.replace(served.file, padding=padding)
        shapes = (await asyncio.to_thread(self._weights), *engine.shapes)
        judges = [name for name in JUDGES if self._can_judge(name)]
        self.describe(self._name, file, engine.model.max_model_len, shapes)
        self._facts = msgspec.structs.replace(
            self.facts, judges=judges, served=dict(served.fields), parts=dict(served.parts)
        )
        if len(judges) < len(JUDGES):
            log = structlog.get_logger("verifier")
            log.warning("recurrent_model", judges=judges, fill="auto, always", see=SEE)
        await self._publish_adapters()
        if self._self_test is None:
            return
        wanted = self._self_test or engine.reads_kv
        if installation.must_self_test(installation.version(), wanted):
            await self_test(self, engine.precision)

    async def check(self, request: Open, tenant: str | None = None) -> None:
        """See Target.check. A pass that must wait for a draft token is refused as well where
        `_can_judge` refuses a judge, for the same reason."""
        if self._engine.is_recurrent and request.fill == "never":
            raise Unservable("fill", "`never`: the model's recurrent layers cannot take it")
        await super().check(request, tenant)

    def _can_judge(self, name: Judge) -> bool:
        """Return True for a judge with which every step of a session commits a token. A step
        that commits none leaves its token in the state of a model's recurrent layers, which
        then read it twice: vLLM takes back positions of the KV cache only."""
        return JUDGES[name].takes_any_draft or not self._engine.is_recurrent

    def _weights(self) -> Sequence[object]:
        """Return values that identify the weights: hashes, or a repository's commit."""
        model = self._engine.model
        if (folder := Path(model.model)).is_dir():
            return weights_of(folder, self._hashes)
        commit = commit_of(model.model, model.revision, self._engine.download_dir)
        if commit is None:
            structlog.get_logger("verifier").warning(
                "the weights are known by their name alone: verifiers that have others by this "
                "name go on with each other's answers",
                model=model.model,
                remedy="serve a directory of files",
            )
        return model.model, commit

    def _served(self) -> tuple[Served, int]:
        """Return the target's tokenizer, and the number of its tokens. Raises CannotOpen."""
        model = self._engine.model
        file = tokenizer_file(directory_of(model.tokenizer, model.tokenizer_revision))
        served = self._as_served(file)
        return served, len(served.file.open().vocabulary.pieces)

    async def heartbeat(self) -> None:
        """Wait for an answer of the engine's cores and workers, and note changed adapters."""
        await self._engine.heartbeat()
        if self._adapters.have_changed:
            await self._publish_adapters()

    async def _publish_adapters(self) -> None:
        facts, folder = self.facts, self._engine.download_dir
        identities = await asyncio.to_thread(self._adapters.identities, facts.identity, folder)
        self._facts = msgspec.structs.replace(facts, adapters=identities)

    async def learned_statistics(self) -> Sequence[dict[str, object]]:
        return await self._engine.learned_statistics()

    async def forget(self, owner: Owner) -> None:
        await self._engine.forget(owner)

    async def figures(self) -> dict[str, int]:
        """Return the engine's counts: see SessionScheduler.figures."""
        return await self._engine.figures()

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        """Run one session to its Finish; cancelling it frees its KV within a step."""
        engine = self._engine
        if len(self._sessions) >= (room := engine.max_sessions):
            raise TargetFull(f"all {room} sequences are taken")
        adapter = self._adapters.loaded.get(request.model)
        if adapter is None and request.model != self.facts.model:
            raise Unservable("model", f"the adapter {request.model!r} is no longer loaded")
        wanted = engine_request(
            session,
            request,
            self.facts,
            drawn_by_vllm=engine.drawn_by_vllm,
            owner=self.owners.of_answers(tenant, request),
        )
        has_finished = False

        def take(outgoing: OutgoingFrame) -> None:
            nonlocal has_finished
            reply = self._decoded(outgoing)
            has_finished = isinstance(reply.message, Finish)
            deliver(reply)

        self._sessions.add(session)
        try:
            text = (*request.prompt, *request.committed)
            owner = self.owners.of_prefixes(tenant, request)
            await engine.generate(session, text, wanted, take, owner, adapter)
            if not has_finished:
                raise TargetFailed("vLLM ended the session")
        finally:
            self._sessions.discard(session)

    def _decoded(self, outgoing: OutgoingFrame) -> Framed[Reply]:
        """Decode a frame from the core, and count the work of its pass."""
        message = unpacked(outgoing.frame)
        if not isinstance(message, Reply):
            raise TargetFailed(f"the engine sent {type(message).__name__}")
        commit = message if isinstance(message, Commit) else None
        if commit and outgoing.rows:
            self._metrics.passed(outgoing.rows, commit.pass_s)
        if outgoing.judged:
            self._metrics.judged(outgoing.judged, commit.drafts if commit else 0)
        return Framed(message)

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        """Hand a message to a running session, and return before the engine has processed it.

        Raises UnknownSession. For a message that no correct edge sends `serve` raises
        RemoteProtocolError, because the engine reads messages between two steps.
        """
        if session not in self._sessions:
            raise UnknownSession(f"no session {session}")
        await self._engine.push(session, packed(message.message))
