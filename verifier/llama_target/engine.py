"""This part of the embedded target runs in one thread, in order.

A sequence's KV may hold invalid entries, of rejected draft tokens or of an ended session. No
pass cleans up after itself: the next decode first removes what lies beyond its own start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from picospec.gateway.hosting.cores import compute_threads
from picospec.models.blobs import FileHashes
from picospec.models.errors import GrammarFailed
from picospec.models.llama_cpp.library import engine
from picospec.models.llama_cpp.model import Cache, Context, Model, Segment, context_length
from picospec.speculation.distributions import Logits
from picospec.speculation.messages import TokenId
from picospec.speculation.verify_machine import Verdict
from picospec.verifier.identity import weights_of
from picospec.verifier.llama_target.judging import Part, judge
from picospec.verifier.llama_target.settings import LlamaSettings

MIN_TOKENS: Final = 4096
"""A context has at least this many tokens on any machine, if its model supports them."""


class Engine:
    """Runs a model with the KV cache of its slots. hashes: the known hashes of model files.
    Raises models.errors.ModelError."""

    def __init__(self, path: Path, settings: LlamaSettings, hashes: FileHashes) -> None:
        self.model = Model(path)
        self._tokens = len(self.model.vocabulary.pieces)  # later logits are padding
        threads = settings.threads or compute_threads()
        # with several threads, an F16 cache lets passes differ in the last bit
        cache: Cache = "F16" if threads == 1 else "Q8_0"
        self.length = context_length(
            self.model.metadata(),
            self.model.context_tokens,
            settings.context_tokens,
            sequences=settings.slots,
            cache=cache,
            min_tokens=MIN_TOKENS,
        )
        self._context = Context(
            self.model,
            self.length.tokens,
            sequences=settings.slots,
            threads=threads,
            batch_tokens=settings.max_rows,
            cache=cache,
        )
        self.shapes = (engine(), weights_of(path, hashes), threads, cache)
        """These values shape a text; the target's identity contains them."""

        self._judged_rows = 0  # of the session that is judged
        self._cheapest_row_s = inf

    def close(self) -> None:
        """Free the memory."""
        self._context.close()
        self.model.close()

    def time_pass(self, rows: int) -> float:
        """Return the seconds that a pass over `rows` rows takes. It uses the first sequence,
        and so must be called before any session begins."""
        began = time.perf_counter()
        self._context.truncate(0, 0)
        self._context.decode([Segment(0, 0, (0,) * rows)])
        return time.perf_counter() - began

    def prefill(self, sequence: int, start: int, tokens: Sequence[TokenId]) -> None:
        """Decode a piece of a prompt. start: the number of its tokens decoded before."""
        self._context.truncate(sequence, start)
        self._context.decode([Segment(sequence, start, tokens, logits=0)])

    def run(self, parts: Sequence[Part]) -> tuple[list[Verdict | GrammarFailed], float]:
        """Run one pass and judge its rows. Return also the extra seconds that judging took,
        compared with the cheapest row so far. A failing grammar fails only its own session."""
        for part in parts:
            self._context.truncate(part.sequence, part.held)
        self._context.decode([Segment(part.sequence, part.held, part.tokens) for part in parts])
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
        return self._context.logits(first + i)[: self._tokens]
