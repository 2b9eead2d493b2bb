"""Times judging a step on a device, and counts tokens that differ from a CPU's.

    python -m bench.calibrate.kernels --device cuda --sessions 64 --drafts 8 --vocabulary 152064

It needs torch, as the verifier's environment has it. Rows are random but peaked like a model's;
every draft token is accepted, so that every row counts: the dearest step there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import median
from time import perf_counter
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from torch import Tensor

from bench.data.tables import console
from speculation.protocol.messages import Sampling
from speculation.sampling.judging import Judgement
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.judging import judge

SAMPLINGS: Final = {
    "T=0": Sampling(0.0),
    "T=1": Sampling(1.0),
    "T=1 top_p .95": Sampling(1.0, top_p=0.95),
    "T=.7 top_k 50": Sampling(0.7, top_k=50),
}

HEAD: Final = ("sampling", "tokens", "other than a CPU's", "ms a step")
PEAKS: Final = 40
"""Tokens of a row that get up to 20 logits more than the others."""


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


def accepted_everywhere(sampling: Sampling, logits: Tensor) -> list[VerifyRequest]:
    """Return requests whose draft tokens are what a CPU generates."""
    requests = [
        VerifyRequest(sampling, "coupled", seed=i, at=9 * i) for i in range(len(logits))
    ]
    for row in range(logits.shape[1] - 1):
        here = [replace(each, draft=(), at=each.at + row) for each in requests]
        requests = [
            replace(each, draft=(*each.draft, *judgement.tokens))
            for each, judgement in zip(requests, judged(here, logits[:, row:]), strict=True)
        ]
    return requests


def judged(requests: Sequence[VerifyRequest], logits: Tensor) -> list[Judgement]:
    """Judge the step where its logits are, as the worker does there."""
    return judge(requests, TableLogits(logits), lazily=logits.device.type == "cpu")


def timed_s(requests: Sequence[VerifyRequest], logits: Tensor, repeats: int) -> float:
    """Return the median time of judging the step; tokens are on the CPU then."""
    took = []
    for _ in range(repeats + 2):  # the first two warm the device up
        began_s = perf_counter()
        judged(requests, logits)
        took.append(perf_counter() - began_s)
    return median(took[2:])


def differing(some: Sequence[Judgement], others: Sequence[Judgement]) -> int:
    """Return how many tokens are not the same."""
    return sum(
        token != other
        for a, b in zip(some, others, strict=True)
        for token, other in zip_longest(a.tokens, b.tokens)
    )


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    sessions: Annotated[int, typer.Option()] = 64,
    drafts: Annotated[int, typer.Option()] = 8,
    vocabulary: Annotated[int, typer.Option()] = 152_064,
    repeats: Annotated[int, typer.Option()] = 10,
) -> None:
    """Print for each sampling: tokens that differ from the CPU's, and the time of a step."""
    here = step(sessions, drafts, vocabulary)
    there = here.to(device)
    title = torch.cuda.get_device_name() if there.is_cuda else device
    lines = []
    for name, sampling in SAMPLINGS.items():
        requests = accepted_everywhere(sampling, here)
        expected, found = judged(requests, here), judged(requests, there)
        tokens = sum(len(judgement.tokens) for judgement in expected)
        ms = f"{1000 * timed_s(requests, there, repeats):.1f}"
        lines.append((name, str(tokens), str(differing(expected, found)), ms))
    Console().print(console(HEAD, lines, title))


if __name__ == "__main__":
    typer.run(main)
