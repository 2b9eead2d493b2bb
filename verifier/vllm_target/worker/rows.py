"""The rows of a step that are judged, and their sampling settings on the logits' device.

    n  rows      V  vocabulary size

What goes to the device is copied from pinned memory where there is any: a copy from other
memory waits until the device has done all that it was asked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speculation.sampling.distributions import GREEDY_BELOW
from verifier.vllm_target.verify_request import VerifyRequest
from verifier.vllm_target.worker.noise import prefixes_of

Kind = Literal["cut", "greedy", "whole"]
"""How a row's support is found: `cut` by min-p, top-k or top-p, `greedy` is the argmax alone,
`whole` the vocabulary."""


class StepLogits(Protocol):
    """The logits of one step, as vLLM left them after penalties and masks."""

    @property
    def vocabulary_size(self) -> int: ...

    def take(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """Return copies of rows: float32[n, V]. wanted: (request, row), row 0 its first."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    number: int
    """Which of the step's requests it belongs to."""

    index: int
    """Row i judges draft token i; the row after the last one gives the bonus token."""

    request: VerifyRequest

    @property
    def kind(self) -> Kind:
        sampling = self.request.sampling
        if sampling.temperature < GREEDY_BELOW:
            return "greedy"
        cuts = sampling.min_p > 0.0 or sampling.top_k > 0 or sampling.top_p < 1.0
        return "cut" if cuts else "whole"


def rows_of(requests: Sequence[VerifyRequest]) -> list[Row]:
    """Return every row that may have to be judged."""
    return [
        Row(number, index, request)
        for number, request in enumerate(requests)
        if not request.silent
        for index in range(len(request.draft) + 1)
    ]


def logits_of(rows: Sequence[Row], step: StepLogits) -> Tensor:
    """Return the logits of rows, with logit_bias added: float32[n, V]."""
    skipped = [row.request.injected - len(row.request.draft) for row in rows]
    wanted = [(row.number, row.index + first) for row, first in zip(rows, skipped, strict=True)]
    logits = step.take(wanted)
    biases = [(i, *pair) for i, row in enumerate(rows) for pair in row.request.bias]
    if biases:
        places, tokens, values = zip(*biases, strict=True)
        at = upload(np.array([places, tokens], np.int64), logits.device)
        logits[at[0], at[1]] += upload(np.array(values, np.float32), logits.device)
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
    def of(rows: Sequence[Row], device: torch.device) -> Columns:
        """Copy the settings to the device."""
        each = [(row.request, row.request.sampling) for row in rows]
        settings = [(s.temperature, s.min_p, s.top_p, s.top_k) for _, s in each]
        noise = [
            (request.seed % 2**32, request.seed >> 32, (request.at + row.index) % 2**32)
            for row, (request, _) in zip(rows, each, strict=True)
        ]
        temperature, min_p, top_p, top_k = upload(np.array(settings), device).split(1, dim=1)
        words = upload(np.array(noise, np.uint32).view(np.int32), device)
        return Columns(temperature, min_p, top_p, top_k.to(torch.int64), prefixes_of(words))


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
