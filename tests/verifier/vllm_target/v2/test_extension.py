"""These tests show what the runner takes of the device's memory, and which graphs it makes."""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from triton_interpreted.kernels import apply_grammar_bitmask_kernel
from vllm.config import CompilationConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.triton_utils.dispatcher import KernelOverride
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.gpu import model_runner, structured_outputs, warmup
from vllm.v1.worker.gpu.sample import gumbel
from vllm.v1.worker.gpu.structured_outputs import StructuredOutputsWorker
from vllm.v1.worker.utils import AttentionGroup

from verifier.vllm_target.core.step_limits import narrowed
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.verify_request import MASK_ROWS
from verifier.vllm_target.worker import heads as extension
from verifier.vllm_target.worker.v2 import WARM_ROWS, RunnerHooks

CPU = torch.device("cpu")
V, WORDS = 70, 3
IDS = ["a", "stock", "b", "c"]
GRAMMARS = ["a", "b", "c"]
DRAFTS = [2, 0, 0, 1]
"""The batch has these draft tokens, request after request: 7 rows of logits."""


def stubbed(wrapped: Any, original: Any = dict) -> Any:
    """Return our function of this name of vLLM's, around another stock function."""
    return partial(wrapped.func, original)


@pytest.fixture(autouse=True)
def kernel_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter has no such mask of a store."""
    name = "_apply_grammar_bitmask_kernel"
    ours = KernelOverride(getattr(structured_outputs, name), apply_grammar_bitmask_kernel)
    monkeypatch.setattr(structured_outputs, name, ours)


@pytest.fixture(params=[0, 3])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many tokens are proposed by vLLM's own speculation."""
    config = SimpleNamespace(
        additional_config=RunnerChoice("v2", 32, request.param).added_to({})
    )
    monkeypatch.setattr(extension, "get_current_vllm_config_or_none", lambda: config)
    return int(request.param)


def test_tokens_are_on_the_device_only_for_what_reads_them_there(head: int) -> None:
    made = stubbed(model_runner.RequestState)(max_num_reqs=2, use_dense_all_token_ids=True)

    assert made == {"max_num_reqs": 2, "use_dense_all_token_ids": bool(head)}


def test_a_backend_with_graphs_of_single_tokens_keeps_them(head: int) -> None:
    config = CompilationConfig(mode=3, cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    config.splitting_ops = list(config._attention_ops)

    found = config.resolve_cudagraph_mode_and_sizes(
        AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, "linear", 34, use_v2_model_runner=True
    )

    kept = CUDAGraphMode.FULL_AND_PIECEWISE
    assert found == (CUDAGraphMode.PIECEWISE if head else kept)


def test_attention_takes_the_hosts_lengths_if_nothing_is_proposed(head: int) -> None:
    class Builder:
        requires_block_table_width = False

        def __init__(self, spec: object, layers: object, config: Any, device: object) -> None:
            self._num_speculative_tokens = config.num_speculative_tokens

    backend: Any = SimpleNamespace(get_builder_cls=lambda: Builder)
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
    group = AttentionGroup(backend, [], spec, 0)

    group.create_metadata_builders(SimpleNamespace(num_speculative_tokens=33), CPU)

    assert [vars(each) for each in group.metadata_builders] == [
        {"_num_speculative_tokens": 33 if head else 0}
    ]


@pytest.mark.parametrize(("most", "width", "requests"), [(1024, 34, 30), (4, 34, 4)])
def test_a_warm_up_has_no_more_rows_than_a_step(most: int, width: int, requests: int) -> None:
    asked = SimpleNamespace(max_num_seqs=most)
    runner = SimpleNamespace(scheduler_config=asked, decode_query_len=width)
    seen: list[int] = []

    def warm_up(given: Any, _: object) -> None:
        seen.append(given.scheduler_config.max_num_seqs)

    stubbed(warmup._warmup_kernels, warm_up)(runner, None)

    assert (seen, runner.scheduler_config, asked.max_num_seqs) == ([requests], asked, most)


def batch() -> Any:
    ends = np.cumsum([0, *(count + 1 for count in DRAFTS)]).astype(np.int32)
    return SimpleNamespace(
        req_ids=IDS, num_draft_tokens_per_req=np.array(DRAFTS), cu_num_logits_np=ends,
        cu_num_logits=torch.from_numpy(ends), num_reqs=len(IDS),
    )  # fmt: skip


VARIES = "num_bonus_tokens" in signature(StructuredOutputsWorker).parameters
"""With vLLM 0.32 each request has its own number of mask rows."""


def worker(rows: int) -> Any:
    """vLLM's worker of masks, with room for so many rows."""
    more = {"num_bonus_tokens": 1} if VARIES else {}
    return extension.GrammarMasks(
        max_num_logits=rows, vocab_size=V, device=CPU, mask_stride=34, **more
    )


@pytest.mark.parametrize("room", [4, 100])
def test_masks_are_applied_in_parts_as_at_once(room: int) -> None:
    chance = np.random.default_rng(3)
    allowed = chance.integers(-(2**31), 2**31, (len(IDS), 34, WORDS), dtype=np.int32)
    places = [IDS.index(name) for name in GRAMMARS]
    if VARIES:
        sent = np.concatenate([allowed[i, : DRAFTS[i] + 1] for i in places])
    else:
        sent = narrowed(allowed[places].reshape(-1, WORDS), [DRAFTS[i] for i in places], 34)
        assert len(sent) == 3 * 4
    logits = torch.zeros(7, V)

    worker(room).apply_grammar_bitmask(logits, batch(), GRAMMARS, sent)

    bits = np.unpackbits(allowed.view(np.uint8), axis=-1, bitorder="little")[..., :V]
    expected = [
        bits[i, row] if name in GRAMMARS else np.ones(V, np.uint8)
        for i, name in enumerate(IDS) for row in range(DRAFTS[i] + 1)
    ]  # fmt: skip
    assert np.array_equal(logits.isfinite().numpy(), np.array(expected, bool))


@pytest.mark.parametrize(("drafts", "rows"), [(0, 1), (1, 4), (3, 4), (15, 16), (16, 34)])
def test_a_request_has_masks_for_the_most_draft_tokens_of_any(drafts: int, rows: int) -> None:
    masks = np.arange(2 * 34 * WORDS).reshape(2 * 34, WORDS)

    found = narrowed(masks, [0, drafts], 34)

    assert found.tolist() == [*masks[:rows].tolist(), *masks[34 : 34 + rows].tolist()]


def test_kernels_are_compiled_before_the_first_user(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    original = gumbel.gumbel_sample

    def gumbel_sample(logits: torch.Tensor, *args: Any) -> torch.Tensor:
        judged.append(len(logits))
        return original(logits, *args)

    monkeypatch.setattr(gumbel, "gumbel_sample", gumbel_sample)
    masks, masked = worker(64), list[int]()
    apply = masks.apply_grammar_bitmask
    masks.apply_grammar_bitmask = lambda *given: masked.append(len(given[3])) or apply(*given)
    states = SimpleNamespace(
        temperature=SimpleNamespace(gpu=torch.zeros(2)),
        seeds=SimpleNamespace(gpu=torch.zeros(2, dtype=torch.int64)),
    )
    hooks = object.__new__(RunnerHooks)
    hooks._runner = SimpleNamespace(
        sampler=SimpleNamespace(sampling_states=states),
        device=CPU,
        vocab_size=V,
        structured_outputs_worker=masks,
        input_buffers=model_runner.InputBuffers(max_num_reqs=2, max_num_tokens=4, device=CPU),
    )

    hooks.warm_up()

    assert judged == list(WARM_ROWS)
    assert masked == ([1] if VARIES else list(MASK_ROWS))


REQUESTS = 256


def graphs(directory: Path, ranks: int) -> dict[Any, Any]:
    """Return what vLLM would capture on a GPU, by mode."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    arguments = EngineArgs(
        model=str(directory), max_model_len=256, max_num_seqs=REQUESTS,
        data_parallel_size=ranks,
    )  # fmt: skip
    config = arguments.create_engine_config()
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    config.compilation_config.cudagraph_capture_sizes = None
    config.compilation_config.max_cudagraph_capture_size = None
    config._set_cudagraph_sizes()
    manager = object.__new__(CudaGraphManager)
    vars(manager).update(
        vllm_config=config, compilation_config=config.compilation_config,
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, max_num_reqs=REQUESTS,
        decode_query_len=1 + config.num_speculative_tokens, varlen_decode=False,
        ubatch_runner=None, lora_capture_cases=[0], _candidates={}, _capture_descs={},
    )  # fmt: skip
    manager._init_candidates()
    return manager._capture_descs


@pytest.mark.parametrize(
    "support", [AttentionCGSupport.ALWAYS, AttentionCGSupport.UNIFORM_BATCH]
)
@pytest.mark.parametrize("is_wanted", [True, False])
def test_steps_of_unequal_rows_have_full_graphs_if_wanted_and_attention_can_replay_them(
    is_wanted: bool, support: AttentionCGSupport, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[object] = []
    base = model_runner.ModelCudaGraphManager.__base__
    monkeypatch.setattr(base, "capture", lambda *given, **more: captured.append(given))
    choice = RunnerChoice("v2", 32, unequal_graphs=is_wanted)
    builder = SimpleNamespace(
        get_cudagraph_support=lambda *given: support,
        get_varlen_cudagraph_max_query_len=lambda *given: None,
    )
    group = SimpleNamespace(
        get_metadata_builder=lambda n: builder, kv_cache_spec=None, backend=SimpleNamespace
    )
    state = SimpleNamespace(get_additional_cg_support=lambda: (AttentionCGSupport.ALWAYS, None))
    manager = object.__new__(model_runner.ModelCudaGraphManager)
    vars(manager).update(
        vllm_config=SimpleNamespace(
            additional_config=choice.added_to({}),
            speculative_config=None,
            cache_config=SimpleNamespace(use_kda_recoverssm=False),
        ),
        compilation_config=SimpleNamespace(
            cudagraph_capture_sizes=[1, 2, 4, 8, 16], max_cudagraph_capture_size=16
        ),
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, max_num_reqs=4, decode_query_len=1,
        varlen_decode=False, ubatch_runner=None, lora_capture_cases=[0], _candidates={},
        _capture_descs={}, _graphs_captured=True, _lora_dispatch_map={}, use_breakable_cg=True,
    )  # fmt: skip
    manager._init_candidates()  # as with our schedule: those of one row
    manager.decode_query_len = 33
    monkeypatch.setattr(manager, "init_breakable_cg_runner", lambda model: None)

    manager.capture(None, state, None, None, None, [[group]], None)

    full = CUDAGraphMode.FULL if is_wanted and support.value == 3 else CUDAGraphMode.PIECEWISE
    assert manager.dispatch(3, 6, None, 0, max_query_len=4).cg_mode == full
    assert manager.dispatch(3, 3, 1, 0, max_query_len=1).uniform_token_count == 1
    assert manager.dispatch(3, 6, None, 0).cg_mode == CUDAGraphMode.PIECEWISE  # reads a prompt
    sizes = [each.num_tokens for each in manager._capture_descs[CUDAGraphMode.FULL]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(captured) == 1


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_graphs_are_those_of_a_vllm_without_us(
    directory: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from verifier.vllm_target import plugin

    plugin.register()
    ours = graphs(directory, ranks)
    chosen = EngineArgs.create_speculative_config
    monkeypatch.setattr(EngineArgs, "create_speculative_config", chosen.__wrapped__)

    original = graphs(directory, ranks)

    assert ours == original
    assert len(original) == 2
