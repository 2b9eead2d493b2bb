"""Times judging a step on a device, and counts what differs from a CPU's judgements.

    python -m picospec.bench.calibrate.kernels --device cuda --sessions 1,64 \
        --vocabulary 32000,152064

It needs torch, as the verifier's environment has it. Rows are random but peaked like a model's;
in `coupled` every draft token is accepted, so that every row counts: the dearest step there is.
The CPU judges lazily, and the device all rows at once, as on an accelerator: with the device
`cpu` the two ways are compared with each other. The exit status is 1 if a judgement differs, or
if the host waited for the device more often than MAX_WAITS.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product, zip_longest
from statistics import median
from time import perf_counter
from typing import Annotated, Final

import numpy as np
import torch
import typer
from picospec.speculation.sampling.judging import Judgement, Rejection
from torch import Tensor

from picospec.bench import options
from picospec.bench.data.tables import grid, markdown
from picospec.speculation.protocol.messages import Judge, Sampling
from picospec.speculation.sampling.adjustments import Adjustment
from picospec.speculation.sampling.distributions import Q_SCALE
from picospec.speculation.sampling.logit_settings import LogitSettings
from picospec.verifier.vllm_target.verify_request import VerifyRequest
from picospec.verifier.vllm_target.worker.judging import judge

PROMPT: Final = range(400)
STOP_TOKENS: Final = (6, 7)
"""The two tokens that BIASED makes likeliest, so that barring them changes the text."""

NEUTRAL: Final = LogitSettings()
PENALTIES: Final = LogitSettings(
    presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.3
)
BIASED: Final = LogitSettings(
    logit_bias={token: 12.0 + token for token in range(8)}, min_tokens=1 << 20
)


@dataclass(frozen=True, slots=True)
class Case:
    """What the requests of a step ask for."""

    sampling: Sampling
    settings: LogitSettings = NEUTRAL
    judge: Judge = "coupled"
    grid: float = 0.0
    """The logits are whole multiples of it, so that many are equal; 0: they are any numbers."""


CASES: Final = {
    "T=0": Case(Sampling(0.0)),
    "T=0, ties": Case(Sampling(0.0), grid=0.5),
    "T=0, penalties": Case(Sampling(0.0), PENALTIES),
    "T=0, bias, stop tokens barred": Case(Sampling(0.0), BIASED),
    "T=1": Case(Sampling(1.0)),
    "T=1, ties": Case(Sampling(1.0), grid=0.5),
    "T=1, top_p .95": Case(Sampling(1.0, top_p=0.95)),
    "T=2, top_p .95": Case(Sampling(2.0, top_p=0.95)),  # its support is thousands of tokens
    "T=.7, top_k 50": Case(Sampling(0.7, top_k=50)),
    "T=1, min_p .05": Case(Sampling(1.0, min_p=0.05)),
    "T=1, all cuts, ties": Case(Sampling(1.0, min_p=0.001, top_k=30, top_p=0.9), grid=0.5),
    "T=1, top_p .95, penalties": Case(Sampling(1.0, top_p=0.95), PENALTIES),
    "T=1, bias, stop tokens barred": Case(Sampling(1.0), BIASED),
    "T=1, separate": Case(Sampling(1.0), judge="separate"),
    "T=1, top_p .95, separate": Case(Sampling(1.0, top_p=0.95), judge="separate"),
}

PEAKS: Final = 40
"""Tokens of a row that get up to 20 logits more than the others."""

MAX_WAITS: Final = 2
"""How often judging a step may wait for an accelerator: see worker.judging."""

WAITED: Final = "called a synchronizing CUDA operation"
"""How torch's warning of a wait begins."""

P_RTOL: Final = 1e-6
"""Relative difference that two probabilities may have: they are rounded to float32."""


def step(sessions: int, drafts: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Return a step's logits: float32[sessions, drafts + 1, V], on the CPU."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(sessions, drafts + 1, vocabulary, generator=chance)
    at = torch.randint(vocabulary, (sessions, drafts + 1, PEAKS), generator=chance)
    return logits.scatter_add(2, at, 20 * torch.rand(at.shape, generator=chance))


@dataclass(frozen=True)
class TableLogits:
    """One tensor of all requests' rows: float32[requests, rows, V]. See `rows.StepLogits`."""

    logits: Tensor

    @property
    def vocabulary_size(self) -> int:
        return int(self.logits.shape[2])

    def take(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """Return copies of rows."""
        return torch.stack([self.logits[number, row] for number, row in wanted])


def requests_of(case: Case, logits: Tensor) -> list[VerifyRequest]:
    """Return requests whose draft tokens are what a CPU generates; `separate` rejects some."""
    first = Adjustment.first(case.settings, PROMPT, STOP_TOKENS)
    requests = [
        VerifyRequest(case.sampling, "coupled", seed=i, at=9 * i, adjustment=first)
        for i in range(len(logits))
    ]
    for row in range(logits.shape[1] - 1):
        here = [_without_draft(request) for request in requests]
        requests = [
            replace(request, draft=(*request.draft, *judgement.tokens))
            for request, judgement in zip(requests, judged(here, logits[:, row:]), strict=True)
        ]
    drafts = logits.shape[1] - 1
    chance, q = np.random.default_rng(0), (Q_SCALE,) * drafts
    uniforms = [tuple(chance.random(drafts + 1).tolist()) for _ in requests]
    return [
        replace(request, judge=case.judge, q=q, u=u)
        for request, u in zip(requests, uniforms, strict=True)
    ]


def _without_draft(request: VerifyRequest) -> VerifyRequest:
    """Return the request of the row after its draft tokens."""
    after = request.adjustment and request.adjustment.after(request.draft)
    return replace(request, draft=(), at=request.at + len(request.draft), adjustment=after)


def judged(requests: Sequence[VerifyRequest], logits: Tensor) -> list[Judgement]:
    """Judge the step where its logits are, as the worker does there."""
    return judge(requests, TableLogits(logits), lazily=logits.device.type == "cpu")


def judged_at_once(
    requests: Sequence[VerifyRequest], logits: Tensor
) -> tuple[list[Judgement], int]:
    """Judge the step as on an accelerator; return also how often the host waited for it, which
    only CUDA tells."""
    work = partial(judge, requests, TableLogits(logits), lazily=False)
    return counted(work) if logits.is_cuda else (work(), 0)


def counted(work: Callable[[], list[Judgement]]) -> tuple[list[Judgement], int]:
    """Call `work`; return its result, and how often torch warned that it waited for CUDA."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # which itself warns that it is a prototype
        try:
            result = work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result, sum(str(each.message).startswith(WAITED) for each in warned)


def timed_s(requests: Sequence[VerifyRequest], logits: Tensor, repeats: int) -> float:
    """Return the median time of judging the step; tokens are on the CPU then."""
    took = []
    for _ in range(repeats + 2):  # the first two warm the device up
        began_s = perf_counter()
        judged(requests, logits)
        took.append(perf_counter() - began_s)
    return median(took[2:])


def differing(some: Sequence[Judgement], others: Sequence[Judgement]) -> int:
    """Return how many tokens, and distributions of rejections, are not the same."""
    return sum(
        sum(token != other for token, other in zip_longest(a.tokens, b.tokens))
        + (not _alike(a.rejection, b.rejection))
        for a, b in zip(some, others, strict=True)
    )


def _alike(some: Rejection | None, other: Rejection | None) -> bool:
    if some is None or other is None:
        return some is other
    a, b = some.p, other.p
    same = some.token == other.token and np.array_equal(a.tokens, b.tokens)
    return same and np.allclose(a.p, b.p, rtol=P_RTOL, atol=0.0)


def measured(case: Case, logits: Tensor, device: str, repeats: int) -> tuple[str, bool]:
    """Return a cell of the table for one case and step, and whether it is as it must be."""
    here = torch.round(logits / case.grid) * case.grid if case.grid else logits
    there, requests = here.to(device), requests_of(case, here)
    expected = judged(requests, here)
    found, waits = judged_at_once(requests, there)
    cell = [f"{1000 * timed_s(requests, there, repeats):.2f} ms"]
    if there.is_cuda:
        cell.append(f"{waits} waits")
    if wrong := differing(expected, found):
        cell.append(f"**{wrong} of {sum(len(each.tokens) for each in expected)} differ**")
    return ", ".join(cell), not wrong and waits <= MAX_WAITS


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    sessions: Annotated[str, typer.Option(help="E.g. 1,64.")] = "64",
    drafts: Annotated[int, typer.Option()] = 8,
    vocabulary: Annotated[str, typer.Option(help="E.g. 32000,152064.")] = "152064",
    repeats: Annotated[int, typer.Option()] = 10,
) -> None:
    """Print for each case and size: the time of a step, waits for the device, differences."""
    cells: dict[tuple[tuple[str], str], str] = {}
    right = True
    for size, many in product(options.numbers(vocabulary), options.numbers(sessions)):
        logits = step(int(many), drafts, int(size))
        for name, case in CASES.items():
            heading = f"{many:g} x {drafts + 1} rows of {size:.0f}"
            cells[(name,), heading], fine = measured(case, logits, device, repeats)
            right = right and fine
    name = torch.cuda.get_device_name() if device == "cuda" else device
    typer.echo(f"{name}, torch {torch.__version__}\n\n{markdown(*grid(('requests',), cells))}")
    sys.exit(not right)


if __name__ == "__main__":
    typer.run(main)
