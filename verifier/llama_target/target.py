"""Implements the Target port with llama.cpp in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import SystemRandom

import structlog
from msgspec.structs import replace

from local_models.errors import CannotCheck
from local_models.file_hashes import FileHashes
from local_models.llama_cpp import library
from local_models.store import StoredModel
from local_models.tokenizer_file import tokenizer_file
from speculation.answer_cache import Owner
from speculation.latency import measured
from speculation.logits import Adjust, adjustment, in_turn
from speculation.messages import Open, Pushed, TokenLogprob
from speculation.model_facts import Limits
from speculation.request_names import PROMPT_LOGPROBS
from speculation.thinking_budget import BUDGET
from speculation.verify_machine import VerifyMachine
from speculation.verify_session import VerifyingSession
from speculation.wire import Framed
from verifier.identity import weights_of
from verifier.llama_target.kv_slots import KvSlots, S
from verifier.llama_target.pass_runner import PassRunner
from verifier.llama_target.placing import Plan
from verifier.llama_target.scheduler import Scheduler
from verifier.llama_target.slot import PromptLogprobs, Slot
from verifier.metrics import VerifierMetrics
from verifier.owners import SEPARATE, Owners
from verifier.settings import LlamaSettings
from verifier.target import (
    FEATURES,
    Deliver,
    Target,
    TargetFailed,
    TargetFull,
    UnknownSession,
    Unservable,
    asked_grammar,
    started,
    unservable,
)


class LlamaTarget(Target):
    """Serves a GGUF model in this process.

    Raises local_models.errors.NoLlama, and ModelError when it starts.

    find: returns the model's file, and may fetch it first.
    """

    def __init__(
        self,
        find: Callable[[], StoredModel],
        settings: LlamaSettings,
        limits: Limits,
        metrics: VerifierMetrics,
        owners: Owners = SEPARATE,
        hashes: FileHashes | None = None,
    ) -> None:
        library.check_llama()
        super().__init__(limits, owners)
        self._find = find
        self._settings = settings
        self._metrics = metrics
        self._hashes = hashes or FileHashes()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama")
        self._kv_slots = KvSlots(settings.slots)
        self._slots: dict[str, Slot] = {}
        self._machine = VerifyMachine(iter(SystemRandom().random, None))
        self._engine: PassRunner | None = None
        self._scheduler: Scheduler | None = None

    @property
    def alive(self) -> bool:
        return self._scheduler is not None

    async def start(self) -> None:
        """Load the model and time it, both in the thread, and start the scheduler."""
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._thread, self._load)
        self._metrics.serves(model := self.facts.model)
        self._metrics.follow(model, self._kv_usage, lambda: len(self._waiting()))
        pieces = {"prefill_rows": engine.prefill_rows}
        settings = self._settings.model_copy(update=pieces)
        self._scheduler = Scheduler(
            engine, self._machine, self._thread, self._metrics, settings, self._slots
        )
        self._scheduler.start(self._over)

    async def heartbeat(self) -> None:
        """Run a no-op in the thread, which returns once the running pass has ended."""
        await asyncio.get_running_loop().run_in_executor(self._thread, int)

    async def stop(self) -> None:
        """End all sessions, wait for the running pass, and free the memory."""
        if self._scheduler is not None:
            await self._scheduler.stop()
        await super().stop()
        if self._engine:
            loop, engine = asyncio.get_running_loop(), self._engine
            self._engine = None
            await loop.run_in_executor(self._thread, engine.close)
        self._thread.shutdown()

    async def check(self, request: Open, tenant: str | None = None) -> None:
        """Compile the request's grammar for `serve`, and try what is committed, in a thread
        because it may be long. Raises the errors of Target.check."""
        if (grammar_bytes := asked_grammar(request)) is None:
            return
        with unservable():
            grammar = await self.grammars.compile(grammar_bytes, tenant)
        committed = request.committed
        allows = partial(grammar.begin().count_allowed, committed)
        if committed and await asyncio.to_thread(allows) < len(committed):
            raise Unservable("committed", "the grammar forbids these tokens")

    async def serve(
        self, session: str, request: Open, deliver: Deliver, tenant: str | None = None
    ) -> None:
        """Run one session to its Finish once a slot is free; cancelling it frees the slot."""
        size, owner = self.facts.vocabulary_size, self.owners.of_prefixes(tenant, request)
        with unservable():
            mask = self._mask(request, tenant)
            adjust = in_turn(mask, adjustment(request, vocabulary_size=size))
        make = partial(Slot, session, deliver=deliver, adjust=adjust, owner=owner)
        slot = self._admit(session, request, make, self.owners.of_answers(tenant, request))
        try:
            await slot.over
        finally:
            self._release(session, slot)

    async def score(
        self, session: str, request: Open, most: int, tenant: str | None = None
    ) -> Sequence[TokenLogprob]:
        owner = self.owners.of_prefixes(tenant, request)
        slot = self._admit(
            session, request, partial(PromptLogprobs, session, owner=owner, most=most)
        )
        try:
            return await slot.scores()
        finally:
            self._release(session, slot)

    async def push(self, session: str, message: Framed[Pushed]) -> None:
        slot = self._slots.get(session)
        if slot is None or slot.finished:
            raise UnknownSession(f"no session {session}")
        slot.send(self._machine.received(session, message.message, arrived=time.monotonic()))
        started(self._scheduler).wake()

    async def learned_statistics(self) -> Sequence[dict[str, object]]:
        learned = self._machine.learned_statistics()
        if self._engine is None or self._engine.rounding is None:
            return [learned]
        return [learned | {"rounding": self._engine.rounding.log_fields()}]

    async def forget(self, owner: Owner) -> None:
        self._machine.forget(owner)

    def _over(self, running: asyncio.Task[None]) -> None:
        """Fail all sessions once the scheduler has stopped, by cancellation or by a bug."""
        self._scheduler = None
        for slot in self._slots.values():
            slot.fail(TargetFailed("the target has stopped"))
        if not running.cancelled() and (bug := running.exception()):
            structlog.get_logger("verifier").error("the scheduler failed", exc_info=bug)

    def _admit(
        self,
        session: str,
        request: Open,
        make: Callable[[VerifyingSession], S],
        answers: Owner | None = None,
    ) -> S:
        started(self._scheduler)
        if not self._kv_slots.free and len(self._waiting()) >= self._settings.waiting:
            raise TargetFull(f"all {self._settings.slots} slots are taken")
        size, now = self.facts.vocabulary_size, time.monotonic()
        self._machine.open(
            session, request, self._limits, vocabulary_size=size, now=now, owner=answers
        )
        slot = self._slots[session] = make(self._machine.session(session))
        self._place()
        return slot

    def _mask(self, request: Open, tenant: str | None) -> Adjust | None:
        """Return an Adjust that bars the tokens which the request's grammar does not allow."""
        if (grammar_bytes := asked_grammar(request)) is None:
            return None
        if (grammar := self.grammars.compiled(grammar_bytes, tenant)) is None:
            raise CannotCheck("the grammar was not compiled, or long ago")
        return grammar.begin().mask

    def _release(self, session: str, slot: Slot) -> None:
        """Forget a session. If a pass of it is running, its outcome is dropped."""
        del self._slots[session]
        self._machine.close(session)
        if slot.has_sequence and self._engine and self._engine.model.is_recurrent:
            self._release_recurrent(slot, self._engine)
        elif slot.has_sequence:
            self._kv_slots.release(slot.sequence, slot.held, slot.owner)
        self._place()

    def _release_recurrent(self, slot: Slot, engine: PassRunner) -> None:
        """Free a session's sequence once its running pass has ended: a pass that is not judged
        leaves states after tokens that are not the text's."""

        def release(keeping: asyncio.Future[Sequence[int]]) -> None:
            has_failed = keeping.cancelled() or keeping.exception()
            lengths = [0] if has_failed else keeping.result()
            self._kv_slots.release(slot.sequence, text[: lengths[-1]], slot.owner, lengths)
            self._place()

        text = slot.text
        loop = asyncio.get_running_loop()
        keeping = loop.run_in_executor(self._thread, engine.keep, slot.sequence, text)
        keeping.add_done_callback(release)

    def _waiting(self) -> list[Slot]:
        """Return the sessions that wait for a sequence of the KV cache, oldest first."""
        return [slot for slot in self._slots.values() if not slot.has_sequence]

    def _place(self) -> None:
        """Give the free sequences to waiting sessions."""
        for slot in self._waiting()[: self._kv_slots.free]:
            slot.assign(*self._kv_slots.take(slot.opening, slot.owner))
        if self._scheduler:
            self._scheduler.wake()

    def _kv_usage(self) -> float:
        """Return the share of all KV cells that running sessions hold."""
        if self._engine is None:
            return 0.0
        cells = self._settings.slots * self._engine.length.tokens
        return sum(len(slot.held) for slot in self._slots.values()) / cells

    def _load(self) -> PassRunner:
        model = self._find()
        settings, rows = self._settings, self._limits.max_verify + 1
        engine = self._engine = PassRunner(model.path, settings, rows)
        structlog.get_logger("verifier").info("context", **engine.length.log_fields())
        if engine.rounding is not None:
            structlog.get_logger("verifier").info("rounding", **engine.rounding.log_fields())
        if engine.shape is not None:
            self._limits = replace(self._limits, max_verify=engine.shape.rows - 1)
        file = tokenizer_file(model.path, model.template)
        features = (*FEATURES, BUDGET, PROMPT_LOGPROBS)
        weights, plan = weights_of(model.path, self._hashes), Plan.of(settings)
        shapes = (library.engine(), weights, *plan.shapes, *engine.shapes)
        self.describe(model.name, file, engine.length.tokens, shapes, features)
        self.grammars.prepare()
        most = min(self._limits.max_verify, engine.length.tokens - 1)
        self._machine.latency = measured(engine.time_pass, most)
        return engine
