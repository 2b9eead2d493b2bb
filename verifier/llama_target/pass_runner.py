"""Runs passes, and pieces of prompts, in the one thread of llama.cpp, in order.

A sequence's KV may hold invalid entries, of rejected draft tokens or of an ended session. No
pass cleans up after itself: the next decode first removes what lies beyond its own start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

from local_models.errors import CannotOpen, GrammarFailed
from local_models.llama_cpp.model import Context, Model
from local_models.llama_cpp.prefix import common_prefix
from local_models.llama_cpp.segments import Segment
from speculation.distributions import Logits, logprob_of
from speculation.messages import TokenLogprob
from speculation.model_facts import TokenId
from speculation.verify_machine import Verdict
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
from verifier.llama_target.mtp_head import MtpHead
from verifier.llama_target.pass_part import PassPart, judge
from verifier.llama_target.placing import Plan
from verifier.settings import LlamaSettings


class _Rows:
    """The logits of one session's rows in a pass. It counts those that are read."""

    def __init__(self, read: Callable[[int], Logits], first: int) -> None:
        self._read, self._first = read, first
        self.count = 0

    def __call__(self, i: int) -> Logits:
        self.count += 1
        return self._read(self._first + i)


class PassRunner:
    """Runs a model with the KV cache of its slots. max_rows: a session has at most this many
    rows in a pass.

    Raises local_models.errors.ModelError.
    """

    def __init__(self, path: Path, settings: LlamaSettings, max_rows: int) -> None:
        plan = Plan.of(settings)
        tokens = plan.tokens(path, max_rows - 1)
        self.model = Model(path, placement=plan.placement, with_head=bool(settings.head))
        self.length = plan.length(self.model, tokens, max_rows - 1)
        self._context = Context(
            self.model,
            self.length.tokens + (max_rows if plan.may_pad else 0),
            plan.kv(max_rows - 1),
            threads=plan.threads,
            batch_tokens=settings.max_rows,
            flash_attention=plan.flash_attention,
            logits_rows=plan.logits_rows(max_rows),
        )
        self.head: MtpHead | None = None
        if settings.head:
            self.head = MtpHead(
                Context(
                    self.model,
                    self.length.tokens + max_rows,  # and draft tokens after the last one
                    plan.kv(max_rows - 1),
                    threads=plan.threads,
                    batch_tokens=settings.max_rows,
                    flash_attention=plan.flash_attention,
                    logits_rows=settings.slots,
                    is_head=True,
                ),
                self._tokens,
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
        self.prefill_rows = plan.prefill_rows
        """At most this many tokens of a prompt may be read at once."""

        if self.shape is not None:
            self.prefill_rows = self.shape.rows
        self._cheapest_row_s = inf

    @property
    def _tokens(self) -> int:
        """The number of the model's tokens: later logits are padding."""
        return len(self.model.vocabulary.pieces)

    @property
    def shapes(self) -> Sequence[object]:
        """These values shape a text, beside the weights and the settings."""
        return () if self.shape is None else (self.shape.rows, self.shape.is_padded)

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
            if self.shape.is_padded and self.head is not None:
                raise CannotOpen(
                    'exact = "strict" needs padded passes on this device, beside which'
                    ' llama.head = "mtp" cannot be used: take exact = "near"'
                )
            if self.shape.is_padded and self.model.is_recurrent:
                raise CannotOpen(
                    'exact = "strict" needs padded passes on this device, which begin before'
                    f" the last one; the recurrent layers of {self.model.architecture} cannot"
                    ' go back so far: take exact = "near"'
                )

    def close(self) -> None:
        """Free the memory."""
        if self.head is not None:
            self.head.close()
        self._context.close()
        self.model.close()

    def time_pass(self, rows: int) -> float:
        """Return the seconds that a pass over `rows` rows takes. It uses the first sequence,
        and so must be called before any session begins."""
        began = time.perf_counter()
        self._decode([Segment(0, 0, (0,) * rows)])
        return time.perf_counter() - began

    def prefill(
        self,
        sequence: int,
        start: int,
        tokens: Sequence[TokenId],
        after: TokenId | None = None,
    ) -> None:
        """Decode a piece of a prompt. start: the number of its tokens decoded before. after:
        the token after the piece; None if no head shall read it."""
        self._decode([Segment(sequence, start, tokens, logits=0)])
        if self.head is not None and after is not None:
            hidden = self._context.hidden(sequence)
            self.head.note(sequence, start + 1, (*tokens[1:], after), hidden)

    def score(
        self, sequence: int, start: int, tokens: Sequence[TokenId], after: TokenId, most: int
    ) -> list[TokenLogprob]:
        """Decode a piece of a prompt as `prefill` does, and return the log-probability of the
        token after each of its tokens. after: the token after the piece."""
        self._decode([Segment(sequence, start, tokens)])
        following = enumerate((*tokens[1:], after))
        return [logprob_of(self._row(i), token, most) for i, token in following]

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
            if self.head is not None:
                self.head.go_back(segment.sequence, segment.start, segment.tokens[0])
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
            began, read = time.perf_counter(), _Rows(self._row, first)
            try:
                verdicts.append(verdict := judge(part, read))
                if self.head is not None and (tokens := verdict.judgement.tokens):
                    hidden = self._context.hidden(part.sequence)[: len(tokens)]
                    self.head.note(part.sequence, part.held + 1, tokens, hidden)
            except GrammarFailed as error:
                verdicts.append(error)
            judging_s, rows = time.perf_counter() - began, max(1, read.count)
            self._cheapest_row_s = min(self._cheapest_row_s, judging_s / rows)
            extra_judging_s += judging_s - rows * self._cheapest_row_s
            first += len(part.tokens)
        return verdicts, extra_judging_s

    def _row(self, i: int) -> Logits:
        padded_pass = self.shape is not None and self.shape.is_padded
        read = self._padded_logits.__getitem__ if padded_pass else self._context.logits
        return read(i)[: self._tokens]
