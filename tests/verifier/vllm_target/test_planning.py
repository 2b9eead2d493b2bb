"""vLLM's own scheduler plans the steps of sessions here, without workers."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest

from speculation.logit_settings import LogitSettings
from speculation.messages import Draft, Fill, Open, Sampling
from speculation.model_facts import Limits
from tests.verifier.vllm_target.model_configs import GENERATES
from verifier.vllm_target.ipc_messages import FIELD, Admission
from verifier.vllm_target.packing import packed
from verifier.vllm_target.patcher import original
from verifier.vllm_target.runner_choice import RunnerChoice

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


class Planner:
    """A scheduler, and the core that has its steps under way. blocks: of 16 tokens each."""

    def __init__(self, folder: Path, blocks: int = 64, **options: Any) -> None:
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.kv_cache_interface import (
            FullAttentionSpec,
            KVCacheConfig,
            KVCacheGroupSpec,
        )
        from vllm.v1.structured_output import StructuredOutputManager

        from verifier.vllm_target.core.scheduler import PicoScheduler

        (folder / "config.json").write_text(json.dumps(GENERATES))
        small = {"load_format": "dummy", "max_model_len": 128, "enforce_eager": True}
        small |= {"skip_tokenizer_init": True, "max_num_seqs": 4, "block_size": 16}
        small |= {"enable_prefix_caching": False}
        room = {"method": "ngram", "num_speculative_tokens": 8}
        args = EngineArgs(str(folder), speculative_config=room, **small, **options)
        own = original(
            EngineArgs, "create_speculative_config"
        )  # another test may use the plugin
        args.create_speculative_config = MethodType(own, args)  # type: ignore[method-assign]
        config = args.create_engine_config()
        config.additional_config = RunnerChoice("v2", 7).added_to({})
        config.cache_config.num_gpu_blocks = blocks
        config.scheduler_config.async_scheduling = True
        spec = FullAttentionSpec(
            block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        cache = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        manager = StructuredOutputManager(config)
        self.scheduler = PicoScheduler(config, cache, manager, 16, log_stats=False)
        self.under_way: deque[Any] = deque()
        self.scheduler.engine = SimpleNamespace(  # type: ignore[assignment]
            batch_queue=self.under_way, output_queue=SimpleNamespace(put_nowait=lambda _: None)
        )

    def add(
        self, name: str, adapter: int = 0, fill: Fill | None = None, tokens: int = 5
    ) -> None:
        """Add a request of a prompt of `tokens`, which is a session if it has a fill."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.v1.request import Request

        opened = Open("m", "v", (), Sampling(), 0, 90, (), fill=fill or "auto")
        admission = Admission(
            name, opened, tokens, Limits(max_verify=7), LogitSettings(), 256, True
        )
        params = SamplingParams(
            max_tokens=90, extra_args={FIELD: admission.pack()} if fill else None
        )
        lora = LoRARequest(f"{adapter}", adapter, "/") if adapter else None
        self.scheduler.add_request(
            Request(name, list(range(tokens)), params, None, lora_request=lora)
        )

    def drafted(self, name: str, known: int, *tokens: int) -> None:
        """Send draft tokens after `known` ones, each of which ended a chain."""
        self.scheduler.push(name, packed(Draft(known, known, 0, tokens)), 0.0)

    def remove(self, *names: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    @property
    def plans_ahead(self) -> bool:
        running = self.scheduler._taken_apart()
        return not self.scheduler._planner.decide(running, 0.0).waits

    def plan(self) -> set[str]:
        """Plan a step, and return the requests that it has."""
        self.under_way.append(output := self.scheduler.schedule())
        return set(output.num_scheduled_tokens)

    def end(self, token: int = 9) -> None:
        """End the oldest step, in which each request accepts no draft token."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list((output := self.under_way.popleft()).num_scheduled_tokens)
        places = {name: i for i, name in enumerate(names)}
        self.scheduler.update_from_output(
            output, ModelRunnerOutput(names, places, [[token]] * len(names))
        )


def test_a_request_waits_while_the_adapter_of_a_hidden_session_has_the_last_place(
    tmp_path: Path,
) -> None:
    pytest.importorskip("vllm")
    planner = Planner(tmp_path, enable_lora=True, max_loras=1)
    planner.add("session", adapter=1, fill="never")
    assert planner.plan() == {"session"}
    planner.end()
    planner.drafted("session", 1, 7, 7)
    assert planner.plan() == {"session"}
    planner.add("other", adapter=2)
    planner.add("same", adapter=1)

    without_the_session = planner.plan()  # whose drafts are under way

    planner.end()
    planner.end()
    planner.drafted("session", 2, 7, 7)
    assert planner.plan() == {"session", "same"}
    assert without_the_session == set()
    assert planner.scheduler.lora_config.max_loras == 1
    planner.remove("session", "same")
    assert planner.plan() == {"other"}


@pytest.mark.parametrize(
    ("options", "other"),
    [({"blocks": 5}, {"tokens": 50}), ({"enable_lora": True, "max_loras": 1}, {"adapter": 2})],
    ids=["no KV cache", "no adapter's place"],
)
def test_a_request_that_cannot_be_admitted_is_tried_once_and_no_more_steps_are_planned_ahead(
    options: dict[str, Any], other: dict[str, int], tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    planner = Planner(tmp_path, **options)
    planner.add("session", adapter=int("adapter" in other), fill="auto")
    planner.plan()
    planner.end()
    planner.drafted("session", 1, 7, 7)
    planner.add("other", **other)

    tried = planner.plans_ahead, planner.plan(), planner.plans_ahead

    assert tried == (True, {"session"}, False)
    planner.end()
    planner.remove("session")
    assert planner.plan() == {"other"}


def test_steps_are_learned_apart_if_vllm_has_no_full_graph_for_them(tmp_path: Path) -> None:
    """Of two steps of as many rows one has a draft token, and runs on PIECEWISE graphs."""
    pytest.importorskip("vllm")
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu import cudagraph_utils

    planner = Planner(tmp_path)
    config, latency = planner.scheduler.vllm_config, planner.scheduler._machine.latency
    config.compilation_config.cudagraph_capture_sizes = [1, 2, 4, 8]
    config.compilation_config.max_cudagraph_capture_size = 8
    manager = object.__new__(cudagraph_utils.CudaGraphManager)
    vars(manager).update(
        vllm_config=config, compilation_config=config.compilation_config, max_num_reqs=4,
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, decode_query_len=1,
        varlen_decode=False, ubatch_runner=None, lora_capture_cases=[0], _candidates={},
        _capture_descs={}, _graphs_captured=True, _lora_dispatch_map={},
    )  # fmt: skip
    manager._init_candidates()
    latency.observe(1, 1.0)

    def step() -> CUDAGraphMode:
        planner.plan()
        counts = planner.under_way[0].num_scheduled_tokens.values()
        requests, rows, most = len(counts), sum(counts), max(counts)
        uniform = most if rows == most * requests else None
        planner.end()
        return manager.dispatch(requests, rows, uniform, 0, most).cg_mode

    for name in ("session", "a", "b"):
        planner.add(name, fill="auto" if name == "session" else None)
    step()  # reads the prompts
    without = step()
    planner.remove("b")
    planner.drafted("session", 2, 7)
    with_draft = step()

    assert (without, with_draft) == (CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE)
    assert [*latency.learned_statistics()] == ["1", "3", "3 with drafts"]


def test_a_plan_has_the_length_that_each_request_will_have_on_the_device(
    tmp_path: Path,
) -> None:
    """Two batches are under way, and all draft tokens are rejected."""
    planner, lengths, drafted = Planner(tmp_path), dict[str, int](), 0
    planner.scheduler._machine.latency.observe(1, 1.0)

    def plan() -> None:
        nonlocal drafted
        planner.plan()
        output = planner.under_way[-1]
        cached = output.scheduled_cached_reqs
        known = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, rows in output.num_scheduled_tokens.items():
            drafts = output.scheduled_spec_decode_tokens.get(name, ())
            assert known.get(name, 0) == lengths.get(name, 0)
            lengths[name] = lengths.get(name, 0) + rows - len(drafts)
            drafted += len(drafts)

    planner.add("session", fill="auto")
    planner.add("other")
    plan()
    planner.end()
    for known in range(1, 4):
        planner.drafted("session", known, 7, 7)
        plan()
        plan()  # while the draft tokens are judged
        planner.end()
        planner.end()

    assert drafted > 0
