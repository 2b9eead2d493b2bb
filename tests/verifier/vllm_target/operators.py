"""What an operator may have given vLLM besides: an extension of workers, and a KV connector.

vLLM's processes import these by their names.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector

LOST: Final = 3
"""The KV of prompts that begin with this token is saved, but never loaded."""


class Extension:
    """Extends vLLM's worker."""

    model_runner: Any

    def theirs(self) -> str:
        return f"{type(self).__name__} of the operator"

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


class Connector(ExampleConnector):
    """Saves the KV of prompts to files, and loads it; some is reported as not loaded."""

    lost: frozenset[int] = frozenset()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        metadata: Any = self._get_connector_metadata()
        lost = (r for r in metadata.requests if not r.is_store and r.token_ids[0] == LOST)
        slots = (slot for request in lost for slot in request.slot_mapping.tolist())
        self.lost = frozenset(slot // self._block_size for slot in slots)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set(self.lost)
