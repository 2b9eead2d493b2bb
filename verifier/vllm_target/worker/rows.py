"""The rows of a step that are looked at, and their sampling settings on the logits' device.

n  rows      V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from picospec.speculation.sampling.distributions import GREEDY_BELOW
from picospec.verifier.vllm_target.verify_request import VerifyRequest
from picospec.verifier.vllm_target.worker.adjusting import adjust
from picospec.verifier.vllm_target.worker.noise import prefixes_of
from picospec.verifier.vllm_target.worker.upload import upload

Kind = Literal["cut", "greedy", "whole"]
"""How a row's support is found: `cut` by min-p, top-k or top-p, `greedy` is the argmax alone,
`whole` the vocabulary."""


class StepLogits(Protocol):
    """The logits of one step, as vLLM left them after the masks of grammars."""

    @property
    def vocabulary_size(self) -> int: ...

    def take(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """Return copies of rows: float32[n, V]. wanted: (request, row), row 0 its first."""


Wanted = Literal["token", "p", "all"]


@dataclass(frozen=True, slots=True)
class Look:
    """One row, and what is to be found of it."""

    number: int
    """Which of the step's requests it belongs to."""

    index: int
    """Row i judges draft token i; the row after the last one gives the bonus token."""

    request: VerifyRequest
    candidates: int
    """Tokens among which the row's support is looked for; V or more always hold it."""

    wants: Wanted
    """float32, NaN if the support is not found: `token` is [1], the target's token, exact below
    2**24; `p` is [1], the probability of the draft token; `all` is [V], those of all tokens."""

    @property
    def kind(self) -> Kind:
        sampling = self.request.sampling
        if sampling.temperature < GREEDY_BELOW:
            return "greedy"
        cuts = sampling.min_p > 0.0 or sampling.top_k > 0 or sampling.top_p < 1.0
        return "cut" if cuts else "whole"


def logits_of(rows: Sequence[Look], step: StepLogits) -> Tensor:
    """Return the logits of rows, adjusted as their requests ask: float32[n, V]."""
    each = [(row, row.request) for row in rows]
    logits = step.take([(row.number, row.index + r.injected - len(r.draft)) for row, r in each])
    adjust(logits, [(row.request, row.index) for row in rows])
    return logits


@dataclass(frozen=True, slots=True)
class Columns:
    """The settings of n rows: one row of each tensor is one row's."""

    temperature: Tensor
    """float64[n, 1], as min_p and top_p."""

    min_p: Tensor
    top_p: Tensor
    top_k: Tensor
    """int64[n, 1]; 0 keeps all."""

    prefixes: Tensor
    """int32[n, 1]: see `noise`."""

    @staticmethod
    def of(rows: Sequence[Look], device: torch.device) -> Columns:
        """Copy the settings to the device."""
        each = [(row.request, row.request.sampling, row.index) for row in rows]
        settings = [(s.temperature, s.min_p, s.top_p, s.top_k) for _, s, _ in each]
        noise = [(r.seed % 2**32, r.seed >> 32, (r.at + i) % 2**32) for r, _, i in each]
        temperature, min_p, top_p, top_k = upload(np.array(settings), device).split(1, dim=1)
        words = upload(np.array(noise, np.uint32).view(np.int32), device)
        return Columns(temperature, min_p, top_p, top_k.to(torch.int64), prefixes_of(words))
