"""With our general plugin a plain `vllm serve MODEL` is configured for sessions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.v1.engine.core")  # its warnings are not ours
pytest.importorskip("vllm")

import vllm.config.vllm
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine.core import EngineCoreProc

from tests.verifier.vllm_target.model_configs import EMBEDS, EXPERTS, GENERATES, RECURRENT
from verifier.identity import identity_of
from verifier.vllm_target import conflicts, installation, parent_watchdog, plugin
from verifier.vllm_target.launch_variables import CONFIG, SOCKET
from verifier.vllm_target.runner_choice import RunnerChoice
from verifier.vllm_target.serving.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
CONNECTOR = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
PRODUCER = {"kv_role": "kv_producer"}
RECOMPUTE = {"kv_load_failure_policy": "recompute"}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
RANKS = {"model": EXPERTS, "data_parallel_size": 2}
Configure = Callable[..., Any]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plugin as vLLM loads it where VLLM_PLUGINS names it. Return the runners for which the
    installation is checked, which takes seconds and is left out."""
    checked: list[str] = []
    monkeypatch.setattr(installation, "check_installation", checked.append)
    ours = [name for name in os.environ if name.startswith("PICOSPEC_VERIFIER")]
    for name in ("VLLM_USE_V2_MODEL_RUNNER", *ours):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_PLUGINS", "lora_resolver,picospec")
    for holder, name in (
        (EngineArgs, "create_speculative_config"),
        (SamplingParams, "_validate_spec_decode"),
        (VllmConfig, "_maybe_disable_dynamic_sd_for_data_parallel"),
        (EngineCoreProc, "run_engine_core"),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name))  # undone after the test
    plugin.register()
    return checked


@pytest.fixture
def configured(tmp_path: Path) -> Configure:
    """Return vLLM's configuration of a model without weights."""

    def configure(model: dict[str, Any] = GENERATES, **options: Any) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(model))
        small = {"load_format": "dummy", "max_model_len": 128, "enforce_eager": True}
        options = {"skip_tokenizer_init": True, **small, **options}
        return EngineArgs(model=str(tmp_path), **options).create_engine_config(
            UsageContext.OPENAI_API_SERVER
        )

    return configure


class Host:
    """The machine and the environment that vLLM finds, which are a CPU's by default."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def has(
        self,
        *,
        triton: bool = False,
        gpu: bool = False,
        variables: dict[str, str] | None = None,
    ) -> None:
        self._patch.setattr(vllm.config.vllm, "HAS_TRITON", triton)
        if gpu:
            self._patch.setattr(current_platform, "is_cpu", lambda: False)
        for name, value in (variables or {}).items():
            self._patch.setenv(name, value)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_an_engine_that_generates_gets_scheduler_extension_and_place_for_drafts(
    registered: list[str], configured: Configure
) -> None:
    config = configured()

    assert registered == ["v1"]
    assert config.scheduler_config.scheduler_cls == conflicts.SCHEDULER
    assert config.scheduler_config.async_scheduling is False
    assert config.parallel_config.worker_extension_cls == conflicts.EXTENSIONS["v1"]
    assert config.structured_outputs_config.backend == "guidance"
    assert config.speculative_config.num_speculative_tokens == 33
    assert EngineCoreProc.run_engine_core is parent_watchdog.run_engine_core


MAX_VERIFY = "PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY"
LORA = {"enable_lora": True}
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any], RunnerChoice]] = {
    "by default": ({}, {}, RunnerChoice("v1", 32)),
    "the width of our settings": (
        {}, {"variables": {MAX_VERIFY: "5"}}, RunnerChoice("v1", 5),
    ),
    "a share of a step's rows beside adapters": (
        LORA | {"max_num_batched_tokens": 2048, "max_num_seqs": 256}, {}, RunnerChoice("v1", 6),
    ),
    "beside few adapters": (LORA | {"max_num_seqs": 4}, {}, RunnerChoice("v1", 32)),
    "beside adapters by default": (LORA, {}, RunnerChoice("v1", 14)),
    "few states of a recurrent model": ({"model": RECURRENT}, {}, RunnerChoice("v1", 3)),
    "as many as our settings say": (
        {"model": RECURRENT}, {"variables": {MAX_VERIFY: "8"}}, RunnerChoice("v1", 8),
    ),
    "the second runner where vLLM would choose it": (
        {}, {"triton": True}, RunnerChoice("v2", 32),
    ),
    "the first where the operator wants it": (
        {}, {"triton": True, "variables": {"VLLM_USE_V2_MODEL_RUNNER": "0"}},
        RunnerChoice("v1", 32),
    ),
    "the operator's speculation on the second": (
        {"speculative_config": NGRAM}, {"triton": True}, RunnerChoice("v2", 32, head=3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "has", "choice"), CHOICES.values(), ids=CHOICES)
def test_an_engine_has_the_runner_that_vllm_would_choose_and_room_for_draft_tokens(
    options: dict[str, Any],
    has: dict[str, Any],
    choice: RunnerChoice,
    registered: list[str],
    configured: Configure,
    host: Host,
) -> None:
    host.has(**has)

    config = configured(**options)

    assert RunnerChoice.of(config) == choice
    assert config.use_v2_model_runner is (choice.runner == "v2")
    assert config.num_speculative_tokens == choice.max_verify + 1
    own = {"v1": "custom_class", "v2": "ngram" if choice.head else "ngram_gpu"}
    assert config.speculative_config.method == own[choice.runner]
    assert not choice.head or config.speculative_config.num_speculative_tokens == choice.head


def test_the_file_of_our_settings_is_read(
    registered: list[str], configured: Configure, host: Host, tmp_path: Path
) -> None:
    toml = "[speculation]\nmax_verify = 7\nunequal_graphs = true"
    (file := tmp_path / "settings.toml").write_text(toml)
    host.has(variables={CONFIG: str(file)})

    assert RunnerChoice.of(configured()) == RunnerChoice("v1", 7, unequal_graphs=True)


@pytest.mark.parametrize(
    ("triton", "options", "is_asynchronous"),
    [
        (True, {}, True),
        (True, {"async_scheduling": True}, True),
        (True, {"async_scheduling": False}, False),
        (True, {"model": EXPERTS}, True),
        (True, RANKS, False),
        (False, {}, False),
    ],
)
def test_scheduling_is_asynchronous_where_that_of_a_vllm_without_us_is(
    triton: bool,
    options: dict[str, Any],
    is_asynchronous: bool,
    registered: list[str],
    configured: Configure,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On CPUs vLLM switches it off at last. With us V1 and ranks of experts cannot have it."""
    host.has(triton=triton)
    decided: list[bool | None] = []
    original = CpuPlatform.check_and_update_config

    def note(config: Any) -> None:
        decided.append(config.scheduler_config.async_scheduling)
        original(config)

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(note))
    configured(**options)

    assert decided == [is_asynchronous]


@pytest.mark.parametrize(
    ("asked", "left"), [([(1, 4, 0), (5, 9, 0)], True), ([(1, 4, 3), (5, 9, 1)], False)]
)
def test_ranks_keep_a_schedule_by_which_they_cannot_differ(
    asked: list[tuple[int, int, int]], left: bool, registered: list[str]
) -> None:
    speculation = SimpleNamespace(
        num_speculative_tokens_per_batch_size=asked, num_speculative_tokens=3,
        uses_dynamic_speculative_decoding=lambda: True,
    )  # fmt: skip
    config = object.__new__(VllmConfig)
    config.parallel_config = SimpleNamespace(data_parallel_size=2)
    config.speculative_config, config.additional_config = speculation, {}
    config._maybe_disable_dynamic_sd_for_data_parallel()
    assert speculation.num_speculative_tokens_per_batch_size is None  # not ours
    speculation.num_speculative_tokens_per_batch_size = asked
    config.additional_config = RunnerChoice("v2", 32).added_to({})

    config._maybe_disable_dynamic_sd_for_data_parallel()

    assert (speculation.num_speculative_tokens_per_batch_size == asked) is left


CONFLICTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("--scheduler-cls", {"scheduler_cls": "their.Scheduler"}, {}),
    ("--use-fp64-gumbel", {"use_fp64_gumbel": True}, {}),
    ("--logprobs-mode", {"logprobs_mode": "raw_logits"}, {}),
    ("--kv-transfer-config", {"kv_transfer_config": CONNECTOR | PRODUCER}, {}),
    ("--kv-transfer-config", {"kv_transfer_config": CONNECTOR | RECOMPUTE}, {}),
    ("--pipeline-parallel-size", {"pipeline_parallel_size": 2}, {}),
    ("--enable-batch-sharded-sampling", {"enable_batch_sharded_sampling": True}, {}),
    ("--watermark-config", {"watermark_config": {"algorithm": "gumbel"}}, {}),
    ("--speculative-config", {"speculative_config": NGRAM}, {}),
    ("--enable-lora", LORA | {"max_num_batched_tokens": 512, "max_num_seqs": 256}, {}),
    ("--async-scheduling", {"async_scheduling": True}, {}),
    ("--async-scheduling", RANKS | {"async_scheduling": True}, {"triton": True}),
    ("VLLM_USE_RUST_FRONTEND", {}, {"variables": {"VLLM_USE_RUST_FRONTEND": "1"}}),
    ("V2_MODEL_RUNNER.*copied to the host", {}, {"gpu": True}),
]


@pytest.mark.parametrize(("named", "options", "has"), CONFLICTS)
def test_what_conflicts_with_sessions_is_refused_by_its_name(
    named: str,
    options: dict[str, Any],
    has: dict[str, Any],
    registered: list[str],
    configured: Configure,
    host: Host,
) -> None:
    host.has(**has)

    with pytest.raises(conflicts.Conflict, match=named):
        configured(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_transfer_config": CONNECTOR},
        {"kv_transfer_config": KVTransferConfig(**CONNECTOR)},
        {"kv_offloading_size": 1.0},
        {"stream_interval": 2},
        {"structured_outputs_config": {"backend": "xgrammar"}, "additional_config": {"a": 1}},
    ],
)
def test_what_operators_use_beside_sessions_is_served_as_they_chose_it(
    options: dict[str, Any], registered: list[str], configured: Configure
) -> None:
    config = configured(**options)

    assert RunnerChoice.of(config) is not None
    if "additional_config" in options:
        assert config.structured_outputs_config.backend == "xgrammar"
        assert config.additional_config["a"] == 1


def test_an_operators_worker_extension_is_joined_with_ours(
    registered: list[str], configured: Configure
) -> None:
    theirs, ours = "tests.verifier.vllm_target.operators.Extension", conflicts.EXTENSIONS["v1"]

    name = configured(worker_extension_cls=theirs).parallel_config.worker_extension_cls
    again = configured(worker_extension_cls=name).parallel_config.worker_extension_cls

    joined = resolve_obj_by_qualname(name)
    assert joined is resolve_obj_by_qualname(again)  # vLLM compares the classes of two workers
    assert issubclass(joined, resolve_obj_by_qualname(theirs))
    assert issubclass(joined, resolve_obj_by_qualname(ours))


@pytest.mark.parametrize(
    ("model", "options"), [(EMBEDS, {}), (GENERATES, {"runner": "pooling"})], ids=str
)
def test_a_model_that_does_not_generate_starts_as_without_us(
    model: dict[str, Any],
    options: dict[str, Any],
    registered: list[str],
    configured: Configure,
) -> None:
    config = configured(model, scheduler_cls=None, use_fp64_gumbel=True, **options)

    assert RunnerChoice.of(config) is None
    assert config.scheduler_config.scheduler_cls is None
    assert config.speculative_config is None
    assert config.parallel_config.worker_extension_cls == ""
    assert os.environ["VLLM_PLUGINS"] == "lora_resolver"


@pytest.mark.parametrize("plugins", [{}, {"VLLM_PLUGINS": ""}, {"VLLM_PLUGINS": "another"}])
def test_where_vllm_plugins_does_not_name_it_nothing_changes(
    plugins: dict[str, str], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    host.has(variables=plugins)
    original = EngineArgs.create_speculative_config

    plugin.register()

    assert EngineArgs.create_speculative_config is original


def test_requests_may_have_what_vllm_refuses_beside_speculation(
    registered: list[str], configured: Configure
) -> None:
    config = configured()
    params = SamplingParams(min_p=0.1, logit_bias={3: 1.0})

    params.verify(config.model_config, config.speculative_config, None, None)


@pytest.mark.parametrize(
    "asked",
    [
        {"stop_token_ids": list(range(200)), "min_tokens": 1},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"allowed_token_ids": list(range(1025))},
    ],
)
def test_what_would_end_the_worker_of_the_second_runner_is_refused_by_its_name(
    asked: dict[str, Any], registered: list[str]
) -> None:
    with pytest.raises(VLLMValidationError) as error:
        SamplingParams(**asked)._validate_spec_decode(SimpleNamespace(method="ngram"))

    assert error.value.parameter == next(iter(asked))
    SamplingParams(**asked)._validate_spec_decode(SimpleNamespace(method="custom_class"))


@pytest.mark.parametrize(("count", "asked", "timeout_s"), [(1, 0, 0), (2, 0, 25), (2, 7, 7)])
def test_several_api_servers_are_given_time_to_drain(
    count: int, asked: int, timeout_s: int, registered: list[str], configured: Configure
) -> None:
    given = configured(_api_process_count=count, shutdown_timeout=asked)

    assert given.shutdown_timeout == timeout_s


@pytest.mark.parametrize(
    ("name", "mode", "stays"),
    [("picospec-vllm-a", 0o700, False), ("picospec-vllm-a", 0o755, True), ("a", 0o700, True)],
)
@pytest.mark.usefixtures("registered")
def test_the_folder_of_the_socket_is_gone_and_one_that_is_not_ours_stays(
    configured: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, mode: int, stays: bool,
) -> None:  # fmt: skip
    (folder := tmp_path / name).mkdir(mode)
    (folder / "socket").touch()
    monkeypatch.setenv(SOCKET, str(folder))

    configured()

    assert folder.exists() is stays
    assert SOCKET not in os.environ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hf_overrides", {"rope_theta": 5.0}),
        ("hf_overrides", dict),  # vLLM takes functions, too
        ("logits_processors", [Path, "own.Processor"]),
        ("disable_sliding_window", True),
        ("use_fp64_gumbel", True),
        ("VLLM_BATCH_INVARIANT", "1"),
        ("VLLM_USE_V2_MODEL_RUNNER", "1"),
    ],
)
def test_what_changes_a_text_is_part_of_the_identity(
    configured: Configure, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    def identity() -> str:
        llm = SimpleNamespace(vllm_config=config)
        engine = VllmEngine.__new__(VllmEngine)
        engine._llm = llm
        return identity_of(engine.shapes)

    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    config = configured()
    usual = identity()
    assert identity() == usual
    if name.isupper():
        monkeypatch.setenv(name, str(value))
    else:
        setattr(config.model_config, name, value)

    assert identity() != usual
