"""The thread of llama.cpp: a slot for each session, passes, and prompts between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, TypeVar

import structlog

from local_models.errors import CannotOpen, GrammarFailed
from local_models.file_hashes import FileHashes
from local_models.llama_cpp.library import engine
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.prefix import common_prefix
from local_models.llama_cpp.segments import Segment
from speculation.distributions import Distribution, Logits, distribution, logprob_of
from speculation.logits import Adjust
from speculation.messages import Down, Open, TokenId, TokenLogprob
from speculation.verify_machine import Offer, Verdict, VerifyMachine
from speculation.verify_session import Pass, VerifyingSession
from verifier.llama_target.exactness import (
    TEXT,
    Decode,
    Rounding,
    Shape,
    check_rollback,
    exact_shape,
    padded,
    rounding,
    sample,
    windows,
)
from verifier.llama_target.placing import CHECKPOINTS, Plan
from verifier.metrics import VerifierMetrics
from verifier.settings import LlamaSettings
from verifier.target import Reply, TargetFailed, weights_of

# A pass judges the draft tokens of each session by that session's part of its logits.
#
# A part decodes the last committed token and the draft tokens after it: row i judges draft
# token i, and the row after the last draft token gives the bonus token. Rows are read lazily.


@dataclass(frozen=True, slots=True)
class PassPart:
    """A Part is what one session contributes to a pass."""

    sequence: int
    held: int
    """The KV cache already holds this many tokens before `last`, prompt included."""

    last: TokenId
    """This token was committed last, or ends the prompt before any is committed."""

    judged: Pass
    request: Open
    adjust: Adjust | None = None
    """Applies the request's changes to the logits; None leaves them unchanged."""

    committed: tuple[TokenId, ...] = ()
    """These output tokens precede the pass; empty where nothing is adjusted."""

    @property
    def tokens(self) -> tuple[TokenId, ...]:
        """Return the tokens of the K + 1 rows."""
        return (self.last, *self.judged.draft)


def judge(part: PassPart, logits: Callable[[int], Logits]) -> Verdict:
    """Judge a part's draft tokens. logits(i): float32[V] of row i, i = 0..K."""
    request, judged = part.request, part.judged

    def row(i: int) -> Distribution:
        row_logits = logits(i)
        if part.adjust is not None:
            row_logits = part.adjust(row_logits, (*part.committed, *judged.draft[:i]))
        return distribution(row_logits, request.sampling)

    judgement = judged.rule.judge(row, judged.draft)
    if (most := request.top_logprobs) is None:
        return Verdict(judgement)
    tokens = enumerate(judgement.tokens)
    return Verdict(judgement, tuple(logprob_of(logits(i), token, most) for i, token in tokens))


# A slot is one session of the embedded target: its place in the KV cache and unsent replies.
#
# Replies wait here until the session's generator takes them. The answer bounds their number:
# every reply but a Reject commits a token, and each Reject answers a message of the edge.


class Slot:
    """Keeps one session. session: the machine's record of it, which is only read here. adjust:
    called only in the engine's thread. owner: the owner of its tokens in the KV cache."""

    def __init__(
        self,
        name: str,
        session: VerifyingSession,
        adjust: Adjust | None = None,
        owner: str | None = None,
    ) -> None:
        self.name = name
        self.owner = owner
        self.request: Open = session.request
        self.sequence: int
        """The session has this sequence of the KV cache once `assign` was called."""

        self.has_sequence = False

        self.opening = (*self.request.prompt, *self.request.committed)
        """The session begins with these tokens; all but the last are prefilled."""

        self.prefilled = 0
        """The KV cache holds this many tokens of `opening`."""

        self.cached_tokens = 0
        """The sequence held this many tokens of `opening` when the session took it."""

        self.waits_since: float | None = None
        """The session's pass has waited for drafts since this time; None while it does not."""

        self._session = session
        self._adjust = adjust
        self._waiting: asyncio.Queue[Reply | TargetFailed] = asyncio.Queue()
        self._failed = False

    @property
    def finished(self) -> bool:
        return self._session.finished is not None

    @property
    def text(self) -> tuple[TokenId, ...]:
        """Return its tokens, of prompt and answer; none after a failure."""
        return () if self._failed else (*self.request.prompt, *self._session.committed)

    @property
    def held(self) -> tuple[TokenId, ...]:
        """Return the tokens surely in its KV: all but the last, which begins a pass."""
        if not self.has_sequence:
            return ()
        if self.unread:
            return self.opening[: self.prefilled]
        return self.text[:-1]

    @property
    def unread(self) -> int:
        """Return the number of tokens to prefill: all but the last, which begins a pass."""
        reads = self.has_sequence and not self._failed
        return len(self.opening) - 1 - self.prefilled if reads else 0

    @property
    def ready(self) -> bool:
        """True if the KV cache holds all that a pass needs."""
        return self.has_sequence and not self._failed and not self.unread

    def assign(self, sequence: int, cached_tokens: int) -> None:
        """Give the session a sequence whose KV holds the first `cached_tokens` tokens of
        `opening`."""
        self.sequence, self.has_sequence = sequence, True
        self.cached_tokens = self.prefilled = cached_tokens

    def decode(self, engine: PassRunner, count: int) -> Sequence[TokenLogprob]:
        """Decode the next `count` unread tokens, in the engine's thread. Return what a subclass
        wants of them."""
        start = self.prefilled
        engine.prefill(self.sequence, start, self.opening[start : start + count])
        return ()

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        """Note that so many tokens more were decoded. logprobs: what `decode` has returned."""
        self.prefilled += count

    def part(self, judged: Pass) -> PassPart:
        """Return the session's part of a pass that has begun."""
        last = (*self.request.prompt[-1:], *self._session.committed[-1:])[-1]
        held = len(self.request.prompt) + judged.start - 1
        committed = () if self._adjust is None else tuple(self._session.committed)
        return PassPart(
            self.sequence, held, last, judged, self.request, self._adjust, committed
        )

    def send(self, down: Sequence[Down]) -> None:
        """Queue the replies among these messages for the session's generator."""
        for message in down:
            if isinstance(message, Reply):
                self._waiting.put_nowait(message)

    def fail(self, failure: TargetFailed) -> None:
        """End the session: the queued replies are still sent, then the failure is raised."""
        self._failed = True
        self._waiting.put_nowait(failure)

    async def next(self) -> Reply:
        """Return the next message, once there is one. Raises TargetFailed."""
        if isinstance(message := await self._waiting.get(), TargetFailed):
            raise message
        return message


class PromptLogprobs(Slot):
    """Reads a prompt for its log-probabilities, and generates nothing. most: the number of the
    likeliest tokens that are reported in place of each."""

    def __init__(
        self, name: str, session: VerifyingSession, owner: str | None, most: int
    ) -> None:
        super().__init__(name, session, owner=owner)
        self.most = most
        self._found: list[TokenLogprob] = []
        self._over = asyncio.get_running_loop().create_future()
        if len(self.opening) == 1:
            self._over.set_result(None)

    @property
    def ready(self) -> bool:
        return False

    def assign(self, sequence: int, cached_tokens: int) -> None:
        """Take the sequence as an empty one, because a cache holds no logits."""
        super().assign(sequence, 0)

    def decode(self, engine: PassRunner, count: int) -> Sequence[TokenLogprob]:
        """Decode the next tokens, and return the log-probability of the token after each."""
        start, end = self.prefilled, self.prefilled + count
        tokens, after = self.opening[start:end], self.opening[end]
        return engine.score(self.sequence, start, tokens, after, self.most)

    def decoded(self, count: int, logprobs: Sequence[TokenLogprob]) -> None:
        super().decoded(count, logprobs)
        self._found += logprobs
        if not self.unread and not self._over.done():
            self._over.set_result(None)

    def fail(self, failure: TargetFailed) -> None:
        super().fail(failure)
        if not self._over.done():
            self._over.set_exception(failure)

    async def scores(self) -> Sequence[TokenLogprob]:
        """Return all of them, once the prompt was read. Raises TargetFailed."""
        await self._over
        return self._found


# This part of the embedded target runs in one thread, in order.
#
# A sequence's KV may hold invalid entries, of rejected draft tokens or of an ended session. No
# pass cleans up after itself: the next decode first removes what lies beyond its own start.


class PassRunner:
    """Runs a model with the KV cache of its slots. hashes: the known hashes of model files;
    max_rows: a session has at most this many rows in a pass.

    Raises local_models.errors.ModelError.
    """

    def __init__(
        self, path: Path, settings: LlamaSettings, hashes: FileHashes, max_rows: int
    ) -> None:
        plan = Plan.of(settings)
        tokens = plan.tokens(path, max_rows - 1)
        self.model = Model(path, placement=plan.placement)
        self._tokens = len(self.model.vocabulary.pieces)  # later logits are padding
        self.length = plan.length(self.model, tokens, max_rows - 1)
        self._context = Context(
            self.model,
            self.length.tokens + (max_rows if plan.may_pad else 0),
            sequences=settings.slots,
            threads=plan.threads,
            batch_tokens=settings.max_rows,
            cache=plan.cache,
            cache_v=plan.cache_v,
            flash_attention=plan.flash_attention,
            rollback=max_rows - 1,
            checkpoints=CHECKPOINTS,
        )
        self.rounding: Rounding | None = None
        """The findings of the self-test; None if passes are exact by the settings alone."""

        self.shape: Shape | None = None
        """Each pass has this shape; None: a pass has rows of all sessions."""

        self._texts: dict[int, list[TokenId]] = {}
        """The tokens of each sequence, if passes are padded, because a pass may decode some
        again, or if the model is recurrent (`keep`)."""

        self._padded_logits: list[Logits] = []
        if self.model.is_recurrent:
            self._check_rollback(max_rows)
        if not plan.is_known:
            self._test(plan, max_rows)
        self.prefill_rows = settings.max_rows if plan.devices else settings.prefill_rows
        """At most this many tokens of a prompt may be read at once."""

        if self.shape is not None:
            self.prefill_rows = self.shape.rows
        self.shapes = (engine(), weights_of(path, hashes), *plan.shapes, *self._own_shapes())
        """These values shape a text; the target's identity contains them."""

        self._judged_rows = 0  # of the session that is judged
        self._cheapest_row_s = inf

    def _check_rollback(self, max_rows: int) -> None:
        """Raise CannotOpen unless llama.cpp takes recurrent layers back by max_rows - 1 tokens,
        and to the right state."""
        if self._context.rollback < max_rows - 1:
            raise CannotOpen(
                f"{self.model.path}: this llama.cpp cannot take the recurrent layers of"
                f" {self.model.architecture} back to an earlier token, as it must after a"
                " rejected draft token; it can for qwen35, qwen35moe, nemotron_h and lfm2"
            )
        rows = min(max_rows, self.length.tokens - 1)
        text = [token % self._tokens for token in range(rows + 1)]
        check_rollback(self._forced(text), text, rows)

    def _forced(self, text: Sequence[TokenId]) -> Decode:
        """Return what decodes tokens at a place of a text in the first sequence; it reads what
        is before them again, if a recurrent model cannot go back to it."""
        piece = self._context.limits.batch_tokens

        def decode(start: int, tokens: Sequence[TokenId]) -> list[Logits]:
            for read in range(self._context.truncate(0, start), start, piece):
                self.prefill(0, read, text[read : min(read + piece, start)])
            self._context.decode([Segment(0, start, tokens)])
            return [self._context.logits(i).copy() for i in range(len(tokens))]

        return decode

    def _test(self, plan: Plan, max_rows: int) -> None:
        """Find how passes round, and choose a shape in which they are exact if they must be."""
        text = sample(self.model.tokenize(TEXT, False), self.length.tokens)
        piece = self._context.limits.batch_tokens
        for start in range(0, len(text), piece):
            self.prefill(0, start, text[start : start + piece])
        decode = self._forced(text)
        self.rounding = rounding(decode, text, max_rows)
        if plan.exact == "strict":
            self.shape = exact_shape(decode, text, max_rows, self.rounding)
            if self.shape.is_padded and self.model.is_recurrent:
                raise CannotOpen(
                    'exact = "strict" needs padded passes on this device, which begin before'
                    f" the last one; the recurrent layers of {self.model.architecture} cannot"
                    ' go back so far: take exact = "near"'
                )

    def _own_shapes(self) -> Sequence[object]:
        return () if self.shape is None else (self.shape.rows, self.shape.is_padded)

    def close(self) -> None:
        """Free the memory."""
        self._context.close()
        self.model.close()

    def time_pass(self, rows: int) -> float:
        """Return the seconds that a pass over `rows` rows takes. It uses the first sequence,
        and so must be called before any session begins."""
        began = time.perf_counter()
        self._decode([Segment(0, 0, (0,) * rows)])
        return time.perf_counter() - began

    def prefill(self, sequence: int, start: int, tokens: Sequence[TokenId]) -> None:
        """Decode a piece of a prompt. start: the number of its tokens decoded before."""
        self._decode([Segment(sequence, start, tokens, logits=0)])

    def score(
        self, sequence: int, start: int, tokens: Sequence[TokenId], after: TokenId, most: int
    ) -> list[TokenLogprob]:
        """Decode a piece of a prompt as `prefill` does, and return the log-probability of the
        token after each of its tokens. after: the token after the piece."""
        self._decode([Segment(sequence, start, tokens)])
        following = enumerate((*tokens[1:], after))
        return [logprob_of(self._row(0, i), token, most) for i, token in following]

    def run(self, parts: Sequence[PassPart]) -> tuple[list[Verdict | GrammarFailed], float]:
        """Run one pass and judge its rows. Return also the extra seconds that judging took,
        compared with the cheapest row so far. A failing grammar fails only its own session."""
        if self.shape is None:
            return self._run(parts)
        runs = [self._run([part]) for part in parts]
        verdicts = [verdict for verdicts, _ in runs for verdict in verdicts]
        return verdicts, sum(extra_judging_s for _, extra_judging_s in runs)

    def _decode(self, segments: Sequence[Segment]) -> None:
        """Decode the segments, after removing what lies beyond their starts."""
        if self.shape is not None and self.shape.is_padded:
            (segment,) = segments
            return self._decode_padded(segment, self.shape.rows)
        for segment in segments:
            self._context.truncate(segment.sequence, segment.start)
        self._context.decode(segments)
        if self.model.is_recurrent:
            for segment in segments:
                text = self._texts.setdefault(segment.sequence, [])
                text[segment.start :] = segment.tokens

    def keep(self, sequence: int, text: Sequence[TokenId]) -> Sequence[int]:
        """Take a sequence of a recurrent model back to its common prefix with a text, or to
        less. Return the lengths from which it can go on, in rising order."""
        read = self._texts.get(sequence, [])[: self._context.length(sequence)]
        kept = self._context.truncate(sequence, common_prefix(read, list(text)))
        return sorted({*self._context.checkpoints(sequence), kept})

    def _decode_padded(self, segment: Segment, rows: int) -> None:
        """Decode a segment in padded passes, and copy its logits. The next decode removes the
        rows that pad."""
        text = self._texts.setdefault(segment.sequence, [])
        text[segment.start :] = segment.tokens
        self._padded_logits = []
        for each in windows(segment.start, len(text), rows):
            tokens = padded(text[each.begin : each.end], rows)
            self._context.truncate(segment.sequence, each.begin)
            self._context.decode([Segment(segment.sequence, each.begin, tokens)])
            if segment.logits != 0:
                wanted = range(each.first - each.begin, each.end - each.begin)
                self._padded_logits += [self._context.logits(i).copy() for i in wanted]

    def _run(self, parts: Sequence[PassPart]) -> tuple[list[Verdict | GrammarFailed], float]:
        self._decode([Segment(part.sequence, part.held, part.tokens) for part in parts])
        extra_judging_s = 0.0
        verdicts: list[Verdict | GrammarFailed] = []
        first = 0
        for part in parts:
            began, self._judged_rows = time.perf_counter(), 0
            try:
                verdicts.append(judge(part, partial(self._row, first)))
            except GrammarFailed as error:
                verdicts.append(error)
            judging_s, rows = time.perf_counter() - began, max(1, self._judged_rows)
            self._cheapest_row_s = min(self._cheapest_row_s, judging_s / rows)
            extra_judging_s += judging_s - rows * self._cheapest_row_s
            first += len(part.tokens)
        return verdicts, extra_judging_s

    def _row(self, first: int, i: int) -> Logits:
        self._judged_rows += 1
        padded_pass = self.shape is not None and self.shape.is_padded
        read = self._padded_logits.__getitem__ if padded_pass else self._context.logits
        return read(first + i)[: self._tokens]


# Decides which prompt is read next, and how much of it before the next pass.
#
# A prompt's KV is the same however it is divided (LlamaSettings.prefill_rows).

PASSES: Final = 2
"""A piece takes as long as this many passes of the sessions that run beside it: the gaps in
their texts triple, and two thirds of the time go to reading prompts."""


class Pieces:
    """Chooses pieces. most: a piece has this many tokens while no session runs beside it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._token_s = 0.0  # seconds a token in the latest piece; 0 before the first
        self._is_shortest = False  # True if the latest piece was of the shortest prompt

    def choose(self, unread: Sequence[int]) -> int:
        """Return the index of the prompt to read from. unread: the number of unread tokens of
        each prompt, in order of arrival."""
        self._is_shortest = not self._is_shortest
        return unread.index(min(unread)) if self._is_shortest else 0

    def rows(self, pass_s: float) -> int:
        """Return the number of tokens to read. pass_s: seconds that a pass of the running
        sessions takes; 0 while none runs."""
        if not (pass_s and self._token_s):
            return self._most
        return max(1, min(self._most, int(PASSES * pass_s / self._token_s)))

    def observe(self, tokens: int, seconds: float) -> None:
        """Record that a piece of `tokens` tokens took `seconds`."""
        self._token_s = seconds / tokens


# Drives the VerifyMachine with llama.cpp: runs the offered passes, and reads prompts between.
#
# A turn is one pass, if the machine offers one, then one piece of one prompt, if any is unread:
# so a long prompt stops the other sessions for no longer than a piece takes. Pieces alternate
# between the oldest prompt and the one with the least unread: a short prompt does not wait for
# long ones, and the long ones get at least half of the time.

T = TypeVar("T")


@dataclass(eq=False)
class Scheduler:
    """Takes turns for all sessions. slots: the sessions in order of arrival; one that waits for
    a sequence of the KV cache does not take part yet. settings: max_rows bounds one pass, and
    prefill_rows one piece of a prompt."""

    engine: PassRunner
    machine: VerifyMachine
    thread: Executor
    metrics: VerifierMetrics
    settings: LlamaSettings
    slots: Mapping[str, Slot]

    def __post_init__(self) -> None:
        self._pieces = Pieces(self.settings.prefill_rows)
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Ask the machine again, because something changed."""
        self._changed.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            self._changed.clear()
            offer = self._offer(time.monotonic())
            if offer.start:
                await self._pass(offer)
            if unread := [slot for slot in self.slots.values() if slot.unread]:
                await self._prefill(unread[self._pieces.choose([s.unread for s in unread])])
            elif not offer.start:
                with suppress(TimeoutError):
                    async with asyncio.timeout(offer.wait_s if offer.wait_s < inf else None):
                        await self._changed.wait()

    def _offer(self, now: float) -> Offer:
        ready = [slot.name for slot in self.slots.values() if slot.ready]
        offer = self.machine.offer(ready, now, rows=self.settings.max_rows)
        for name in offer.waiting_for_drafts:
            slot = self.slots[name]
            slot.waits_since = slot.waits_since or now
        return offer

    async def _pass(self, offer: Offer) -> None:
        slots = {name: self.slots[name] for name in offer.start}
        plan = self.machine.begin({n: len(d) for n, d in offer.start.items()}, time.monotonic())
        for slot in slots.values():
            if slot.waits_since is not None:
                self.metrics.draft_wait_s.observe(plan.started - slot.waits_since)
                slot.waits_since = None
        parts = [slots[name].part(judged) for name, judged in plan.passes.items()]
        outcome = await self._call(list(slots.values()), self.engine.run, parts)
        if outcome is None:
            return
        outcomes, extra_judging_s = outcome
        now, rows = time.monotonic(), sum(len(part.tokens) for part in parts)
        self.metrics.passed(rows, now - plan.started)
        verdicts = {}
        for name, verdict, part in zip(plan.passes, outcomes, parts, strict=True):
            if isinstance(verdict, GrammarFailed):
                slots[name].fail(TargetFailed(str(verdict)))
                continue
            verdicts[name] = verdict
            self.metrics.judged(len(part.judged.draft), verdict.judgement.accepted)
        down = self.machine.ran(plan, verdicts, now, rows=rows, extra_judging_s=extra_judging_s)
        for name, messages in down.items():
            slots[name].send(messages)

    async def _prefill(self, slot: Slot) -> None:
        began = time.monotonic()
        running = sum(each.ready for each in self.slots.values())
        pass_s = self.machine.latency.of(running) if running else 0.0
        count = min(self._pieces.rows(pass_s), slot.unread)
        logprobs = await self._call([slot], slot.decode, self.engine, count)
        self._pieces.observe(count, time.monotonic() - began)
        slot.decoded(count, logprobs or ())
        self.metrics.prefilled.inc(count)

    async def _call(
        self, slots: Sequence[Slot], work: Callable[..., T], *arguments: object
    ) -> T | None:
        """Run `work` in the thread. If it fails, fail the given sessions and return None."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.thread, work, *arguments)
        except Exception as error:  # whatever it is, only these sessions are lost
            structlog.get_logger("verifier").error(
                "pass failed", sessions=len(slots), exc_info=error
            )
            for slot in slots:
                slot.fail(TargetFailed(f"the target failed: {error}"))
            return None
