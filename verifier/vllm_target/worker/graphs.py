"""Adds CUDA graphs for steps in which requests have unequal rows, if the setting asks for them.

vLLM runs a step of one row a request on a FULL graph. One session's draft tokens make the rows
unequal, and the whole step runs on PIECEWISE graphs. vLLM has FULL graphs of unequal rows for
an engine that trims its own draft tokens; this captures the same ones beside those of one row.
"""

from __future__ import annotations

from typing import Any

from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu import model_runner
from vllm.v1.worker.gpu.attn_utils import get_varlen_cudagraph_unsupported_backend
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from verifier.vllm_target.runner_choice import RunnerChoice

_log = init_logger(__name__)


class UnequalGraphs(model_runner.ModelCudaGraphManager):
    """Captures FULL graphs of unequal rows too, where attention can replay them."""

    def capture(
        self, model: Any, model_state: Any, input_buffers: Any, intermediate_tensors: Any,
        block_tables: Any, attn_groups: Any, *args: Any, **more: Any,
    ) -> None:  # fmt: skip
        choice = RunnerChoice.of(self.vllm_config)
        if choice and choice.unequal_graphs and not choice.head:
            config, width = self.vllm_config, self.decode_query_len
            support, other = model_state.get_additional_cg_support()
            lacking = None if support == AttentionCGSupport.ALWAYS else (other, 0)
            lacking = lacking or get_varlen_cudagraph_unsupported_backend(
                attn_groups, config, width
            )
            if lacking is None:
                self._add_unequal()
            else:
                _log.warning("speculation.unequal_graphs: not with attention of %s", lacking[0])
        parts = model, model_state, input_buffers, intermediate_tensors, block_tables
        super().capture(*parts, attn_groups, *args, **more)

    def _add_unequal(self) -> None:
        """Add graphs of unequal rows for each size that vLLM captures. A step takes one of them
        unless it fits a graph of equal rows; a step that reads a prompt fits none."""
        full, mode = CUDAGraphMode.FULL, self.cudagraph_mode
        if not mode.separate_routine() or mode.decode_mode() != full:
            return
        known, first = self._capture_descs.setdefault(full, []), 0
        for size in sorted(self.compilation_config.cudagraph_capture_sizes or ()):
            requests = min(size, self.max_num_reqs)
            if size > self.max_num_reqs * self.decode_query_len:
                break
            for adapters in self.lora_capture_cases:
                graph = BatchExecutionDescriptor(
                    full, size, requests,
                    max_query_len=self.decode_query_len, num_active_loras=adapters,
                )  # fmt: skip
                if graph in known:
                    return
                known.append(graph)
                for rows in range(first, size + 1):
                    fitting = self._candidates.setdefault((rows, adapters), [])
                    fitting.insert(sum(each.cg_mode == full for each in fitting), graph)
            first = size + 1
        known.sort(key=lambda each: each.num_tokens, reverse=True)
