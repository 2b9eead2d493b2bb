"""Extends vLLM's workers, as an operator may: compares lengths of requests in each step."""

from __future__ import annotations

from typing import Any

import torch


class Lengths:
    model_runner: Any

    def compare_lengths(self) -> None:
        """Count from now on the steps, and those in which the host takes some request to be
        longer than it is on the device."""
        prepare_inputs, self.compared = self.model_runner.prepare_inputs, [0, 0]

        def comparing(*args: Any, **more: Any) -> Any:
            batch = prepare_inputs(*args, **more)
            ours, own = batch.seq_lens_cpu_upper_bound, batch.seq_lens
            same = torch.equal(ours[: batch.num_reqs], own[: batch.num_reqs].cpu())
            self.compared = [self.compared[0] + 1, self.compared[1] + (not same)]
            return batch

        self.model_runner.prepare_inputs = comparing

    def lengths(self) -> list[int]:
        return self.compared
