"""Judges the draft tokens of a step, in rounds of looks at many sessions' rows.

Rows are looked at in chunks that bound the memory; the host waits for the device once a round.

    at once   for an accelerator, where waiting is dear: the first round looks at every row, for
              one number of each. A second and last round follows only for rows that needed more
              candidates, and in `separate` for the distribution that a pass ends with.
    lazily    for a CPU, where looking is dear: a round looks at the next row of each session
              whose draft tokens were accepted so far. The judgements are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from math import isnan, nan
from sys import maxsize
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from picospec.speculation.sampling.judging import Judgement, judge_coupled, judge_separate
from torch import Tensor

from picospec.speculation.protocol.messages import TokenId
from picospec.speculation.sampling.distributions import Distribution
from picospec.verifier.vllm_target.verify_request import VerifyRequest
from picospec.verifier.vllm_target.worker.rows import (
    Columns,
    Kind,
    Look,
    StepLogits,
    Wanted,
    logits_of,
)
from picospec.verifier.vllm_target.worker.support import supports
from picospec.verifier.vllm_target.worker.upload import upload

CANDIDATES: Final = 512
"""Candidates of a row's first look on an accelerator, so that few rows need a second. Not
tuned: no GPU was at hand. `python -m picospec.bench.calibrate.kernels --device cuda` times a
step."""

LAZY_CANDIDATES: Final = 64
"""Candidates of a row's first look on a CPU, where 512 take half as long again for the step of
`python -m picospec.bench.calibrate.kernels --device cpu --sessions 4`; most supports are
smaller."""

GROWTH: Final = 8
"""How many times as many candidates a row's next look has on a CPU, where sorting is dear."""

CHUNK_BYTES: Final = 1 << 30
"""Device memory for the rows of one chunk. vLLM leaves a tenth of a GPU free, which is more."""

FIRST_BYTES: Final = 32
"""Memory that a look among some candidates takes, by logit: `Support.best` over a whole row."""

SECOND_BYTES: Final = 96
"""Memory that a look at all of V takes, by logit: a stable sort, and sums in float64."""


def judge(
    requests: Sequence[VerifyRequest], step: StepLogits, *, lazily: bool
) -> list[Judgement]:
    """Return the outcome of each request's pass; of a silent one, nothing."""
    passes = {
        number: _Pass(number, request, lazily)
        for number, request in enumerate(requests)
        if not request.silent
    }
    unfinished = list(passes)
    while looks := [look for number in unfinished for look in passes[number].wanted()]:
        for look, found in _look_at(looks, step):
            passes[look.number].learn(look, found)
        unfinished = list(dict.fromkeys(look.number for look in looks))
    nothing = Judgement((), accepted=0)
    return [passes[n].judgement if n in passes else nothing for n in range(len(requests))]


class _Pass:
    """One session's rows. One that is not known is taken to accept its draft token."""

    judgement: Judgement
    """The outcome, once nothing is `wanted`."""

    def __init__(self, number: int, request: VerifyRequest, lazily: bool) -> None:
        self._request = request
        self._lazily = lazily
        self._accepting = [_certain(token) for token in (*request.draft, 0)]
        self._rows = self._accepting.copy()
        self._known: set[int] = set()
        wants: Wanted = "token" if request.judge == "coupled" else "all" if lazily else "p"
        count = LAZY_CANDIDATES if lazily else CANDIDATES
        first = Look(number, 0, request, count, wants)
        self._looks: list[Look | None] = [
            replace(first, index=index) for index in range(len(self._rows))
        ]
        """Of each row the next look; None where nothing is left to learn."""

    def wanted(self) -> list[Look]:
        """Judge by what is known; return the looks without which that is not certain."""
        self.judgement = self._judge()
        last = self.judgement.accepted
        self._rows[:last] = self._accepting[:last]  # accepted: the distribution has served
        wanted = [
            look
            for index, look in enumerate(self._looks[: last + 1])
            if look and (index == last or index not in self._known)
        ]
        return wanted[:1] if self._lazily else wanted

    def _judge(self) -> Judgement:
        request, row = self._request, self._rows.__getitem__
        if request.judge == "coupled":
            return judge_coupled(row, request.draft, request.seed, request.at)
        return judge_separate(row, request.draft, request.q, iter(request.u))

    def learn(self, look: Look, found: NDArray[np.float32]) -> None:
        """Take in what a look found; see `Look.wants`."""
        index = look.index
        after: Wanted = "token" if look.wants == "token" else "all"
        if isnan(found[0]):
            count = look.candidates * GROWTH if self._lazily else maxsize
            self._looks[index] = replace(look, candidates=count, wants=after)
            return
        self._looks[index] = replace(look, wants=after) if look.wants == "p" else None
        match look.wants:
            case "token":
                self._rows[index] = _certain(int(found[0]))
            case "p" if index < len(self._request.draft):
                token = np.array([self._request.draft[index]])
                self._rows[index] = Distribution(token, found.astype(np.float64))
                self._known.add(index)
            case "all":
                if index in self._known:  # another batch may round otherwise: this p decided
                    found[self._request.draft[index]] = self._rows[index].p[0]
                tokens = np.flatnonzero(found)
                self._rows[index] = Distribution(tokens, found[tokens].astype(np.float64))


def _certain(token: TokenId) -> Distribution:
    return Distribution(np.array([token]), np.ones(1))


def _look_at(
    looks: Sequence[Look], step: StepLogits
) -> Iterator[tuple[Look, NDArray[np.float32]]]:
    """Wait for the device once; yield what each look finds, in any order: see `Look.wants`."""
    chunks = list(_chunks(looks, step.vocabulary_size))
    values = torch.cat([_found(chunk, step).flatten() for chunk in chunks]).cpu().numpy()
    for look in chain.from_iterable(chunks):
        width = step.vocabulary_size if look.wants == "all" else 1
        yield look, values[:width]
        values = values[width:]


def _chunks(looks: Sequence[Look], size: int) -> Iterator[Sequence[Look]]:
    """Yield looks of one sort together, at most as many as memory allows."""
    for (_, _, count), alike in groupby(sorted(looks, key=_sort), _sort):
        row_bytes = size * (FIRST_BYTES if count < size else SECOND_BYTES)
        most, left = max(1, CHUNK_BYTES // row_bytes), list(alike)
        yield from (left[start : start + most] for start in range(0, len(left), most))


def _sort(look: Look) -> tuple[Kind, Wanted, int]:
    return look.kind, look.wants, look.candidates


def _found(looks: Sequence[Look], step: StepLogits) -> Tensor:
    """Return what looks of one sort find: float32[n, 1 or V]."""
    logits = logits_of(looks, step)
    columns = Columns.of(looks, logits.device)
    kind, wants, count = _sort(looks[0])
    support, found = supports(kind, logits, columns, count)
    match wants:
        case "token":
            values = support.best(columns.prefixes)
        case "p":
            drafted = [[(*look.request.draft, -1)[look.index]] for look in looks]
            values = support.p_of(upload(np.array(drafted, np.int64), logits.device))
        case _:
            values = support.spread(step.vocabulary_size)
    return values.to(torch.float32).masked_fill(~found, nan)
