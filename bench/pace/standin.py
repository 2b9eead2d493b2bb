"""A stand-in for a GPU in vLLM: its worker computes nothing and returns the script's tokens.

    vllm serve ... --distributed-executor-backend bench.pace.standin.StandInExecutor \\
      --worker-cls bench.pace.standin.StandInWorker \\
      --additional-config '{"standin": {"pass_ms": 8, "twice_at": 1024, "launch_ms": 0.5}}'

Server, scheduler, executor and processes are vLLM's own, with and without our plugin. A pass
takes pass_ms, twice that with `twice_at` rows. The device runs one pass after another, as in
order of their launches. Importing this module, which vLLM does for the executor before it asks
the platform, lets the settings of the CPU's platform stand as on a GPU: asynchronous scheduling
is what vLLM or our plugin chose. A launch takes launch_ms of the core's thread beside that.

Sessions are judged `coupled`: a draft token is accepted if it is the script's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any, Final

import torch
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from bench.pace.script import key, said

SETTINGS: Final = "standin"
"""`additional_config` of vLLM has our settings by this name."""

_HEAD_SIZE: Final = 64
_EXTRA_BLOCKS: Final = 64


class StandInExecutor(UniProcExecutor):
    """Runs the worker in the core's process, as vLLM does for one GPU. It leaves out our
    plugin's extension of the worker, whose kernels need Triton: the stand-in judges itself."""

    def _init_executor(self) -> None:
        self.parallel_config.worker_extension_cls = ""
        super()._init_executor()


_NAME: Final = f"{__name__}.{StandInExecutor.__name__}"


def _completed(stock: Callable[[Any], None], config: Any) -> None:
    """Let the platform complete a config, but not switch asynchronous scheduling off."""
    wanted = config.scheduler_config.async_scheduling
    stock(config)
    if config.parallel_config.distributed_executor_backend == _NAME:
        config.scheduler_config.async_scheduling = wanted


def _validated(config: Any, stock: Callable[[Any], None]) -> None:
    """Demand Triton for Model Runner V2 only where it computes something."""
    if config.parallel_config.distributed_executor_backend != _NAME:
        stock(config)


_platform = partial(_completed, CpuPlatform.check_and_update_config)
CpuPlatform.check_and_update_config = staticmethod(_platform)
_validation = partialmethod(_validated, VllmConfig._validate_v2_model_runner)
VllmConfig._validate_v2_model_runner = _validation


@dataclass(slots=True)
class _Text:
    """The worker's record of a request. key: of the script. known: the number of tokens that
    are read before the first is generated. computed: that of tokens in the KV cache."""

    key: str
    known: int
    computed: int


class StandInOutput(AsyncModelRunnerOutput):
    """Has the result of a pass, which the device brings at a time."""

    def __init__(self, output: ModelRunnerOutput, at_s: float) -> None:
        self._output, self._at_s = output, at_s

    def get_output(self) -> ModelRunnerOutput:
        time.sleep(max(0.0, self._at_s - time.monotonic()))
        return self._output


class StandInWorker(WorkerBase):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = self.vllm_config.additional_config[SETTINGS]
        self._pass_s = settings["pass_ms"] / 1000
        self._twice_at = settings["twice_at"]
        self._launch_s = settings.get("launch_ms", 0.0) / 1000
        self._free_at = 0.0  # when the device has run all launched passes
        self._texts: dict[str, _Text] = {}
        self._result: StandInOutput | None = None

    def init_device(self) -> None:
        """Have no device."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load nothing."""

    def picospec_install(self, tokens: int) -> None:
        """Install nothing, for our plugin."""

    def picospec_answer(self) -> None:
        """Answer our plugin."""

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Return one layer of attention, so that the scheduler keeps blocks as for a model."""
        size = self.cache_config.block_size
        spec = FullAttentionSpec(
            block_size=size, num_kv_heads=1, head_size=_HEAD_SIZE, dtype=torch.bfloat16
        )
        return {"layer": spec}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["LBNHC"]

    def determine_available_memory(self) -> int:
        """Return room for as many tokens as the longest requests have together."""
        (spec,) = self.get_kv_cache_spec().values()
        each = 1 + self.model_config.max_model_len // spec.block_size
        blocks = self.scheduler_config.max_num_seqs * each + _EXTRA_BLOCKS
        return int(blocks * spec.page_size_bytes)

    def initialize_from_config(self, kv_cache_config: object) -> None:
        """Keep no KV cache."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(0.0, 0.0)

    def take_draft_token_ids(self) -> None:
        """Propose nothing."""

    def execute_dummy_batch(self) -> None:
        """Run nothing."""

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput | None:
        """Launch a pass; `sample_tokens` returns its result."""
        self._update(scheduler_output)
        rows = scheduler_output.total_num_scheduled_tokens
        if not rows:
            return EMPTY_MODEL_RUNNER_OUTPUT
        if self._launch_s:
            time.sleep(self._launch_s)
        names = list(scheduler_output.num_scheduled_tokens)
        tokens = [self._sampled(name, scheduler_output) for name in names]
        places = {name: i for i, name in enumerate(names)}
        began_at = max(self._free_at, time.monotonic())
        self._free_at = began_at + self._pass_s * (1 + rows / self._twice_at)
        result = ModelRunnerOutput(names, places, tokens)
        self._result = StandInOutput(result, self._free_at)
        return None

    def sample_tokens(self, grammar_output: object) -> StandInOutput | None:
        result, self._result = self._result, None
        return result

    def _update(self, plan: SchedulerOutput) -> None:
        """Take in what the scheduler says of requests that are over, new or running."""
        for name in plan.finished_req_ids:
            self._texts.pop(name, None)
        for new in plan.scheduled_new_reqs:
            prompt_tokens = new.prompt_token_ids or []
            known = len(new.prefill_token_ids or prompt_tokens)
            self._texts[new.req_id] = _Text(key(prompt_tokens), known, new.num_computed_tokens)
        cached = plan.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            text = self._texts[name]
            text.computed = cached.num_computed_tokens[i]
            if name in cached.resumed_req_ids and name in cached.all_token_ids:
                text.known = len(cached.all_token_ids[name])

    def _sampled(self, name: str, plan: SchedulerOutput) -> list[int]:
        """Return a request's tokens of this pass: the accepted draft tokens and the one after
        them; none before the end of its prompt."""
        text = self._texts[name]
        end = text.computed + plan.num_scheduled_tokens[name]
        if end < text.known:
            return []
        draft = plan.scheduled_spec_decode_tokens.get(name, ())
        tokens = list[int]()
        for place, token in enumerate((*draft, None), end - len(draft)):
            tokens.append(said(text.key, place))
            if tokens[-1] != token:
                break
        return tokens
