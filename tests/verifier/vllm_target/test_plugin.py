"""With our general plugin a plain `vllm serve MODEL` is configured for sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
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
from verifier.vllm_target import conflicts, parent_watchdog, plugin
from verifier.vllm_target.launch_variables import CONFIG, SOCKET
from verifier.vllm_target.runner_choice import NAME, RunnerChoice
from verifier.vllm_target.serving.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
CONNECTOR = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
Configure = Callable[..., Any]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin as vLLM loads it where VLLM_PLUGINS names it."""
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


def test_an_engine_that_generates_gets_scheduler_extension_and_place_for_drafts(
    registered: None, configured: Configure
) -> None:
    config = configured()

    assert config.scheduler_config.scheduler_cls == conflicts.SCHEDULER
    assert config.scheduler_config.async_scheduling is False
    assert config.parallel_config.worker_extension_cls == conflicts.EXTENSIONS["v1"]
    assert config.structured_outputs_config.backend == "guidance"
    assert config.speculative_config.num_speculative_tokens == 33
    assert RunnerChoice.of(config) == RunnerChoice("v1", 32)


def test_the_width_and_the_kinds_of_graphs_are_those_of_our_settings(
    registered: None, configured: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toml = "[speculation]\nmax_verify = 7\nunequal_graphs = true"
    (file := tmp_path / "settings.toml").write_text(toml)
    monkeypatch.setenv(CONFIG, str(file))

    assert configured().speculative_config.num_speculative_tokens == 8

    monkeypatch.setenv("PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY", "5")

    assert RunnerChoice.of(configured()) == RunnerChoice("v1", 5, unequal_graphs=True)


@pytest.mark.parametrize(
    ("triton", "options", "is_asynchronous"),
    [
        (True, {}, True),
        (True, {"async_scheduling": True}, True),
        (True, {"async_scheduling": False}, False),
        (True, {"model": EXPERTS}, True),
        (True, {"model": EXPERTS, "data_parallel_size": 2}, False),
        (False, {}, False),
    ],
)
def test_scheduling_is_asynchronous_where_that_of_a_vllm_without_us_is(
    triton: bool,
    options: dict[str, Any],
    is_asynchronous: bool,
    registered: None,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On CPUs vLLM switches it off at last. With us V1 and ranks of experts cannot have it."""
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", triton)
    decided: list[bool | None] = []
    original = CpuPlatform.check_and_update_config

    def note(config: Any) -> None:
        decided.append(config.scheduler_config.async_scheduling)
        original(config)

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(note))
    configured(**options)

    assert decided == [is_asynchronous]


@pytest.mark.parametrize(
    ("triton", "options"), [(False, {}), (True, {"model": EXPERTS, "data_parallel_size": 2})]
)
def test_asynchronous_scheduling_is_refused_where_sessions_cannot_have_it(
    triton: bool,
    options: dict[str, Any],
    registered: None,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", triton)

    with pytest.raises(conflicts.Conflict, match="--async-scheduling"):
        configured(async_scheduling=True, **options)


@pytest.mark.parametrize(
    ("triton", "chosen", "method"),
    [(True, None, "ngram_gpu"), (True, "0", "custom_class"), (False, None, "custom_class")],
)
def test_the_runner_is_the_one_that_vllm_would_choose_by_itself(
    triton: bool,
    chosen: str | None,
    method: str,
    registered: None,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", triton)
    if chosen is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", chosen)

    config = configured()

    assert config.use_v2_model_runner is (method == "ngram_gpu")
    assert config.speculative_config.method == method


def test_speculation_of_the_operator_stays_on_v2(
    registered: None, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", True)

    config = configured(speculative_config={"method": "ngram", "num_speculative_tokens": 3})

    assert config.speculative_config.num_speculative_tokens == 3
    assert RunnerChoice.of(config) == RunnerChoice("v2", 32, head=3)
    assert config.num_speculative_tokens == 33


@pytest.mark.parametrize(
    ("tokens", "requests", "max_verify"), [(2048, 256, 6), (None, 4, 32), (None, None, 14)]
)
def test_beside_adapters_a_session_has_its_share_of_a_steps_rows(
    tokens: int | None,
    requests: int | None,
    max_verify: int,
    registered: None,
    configured: Configure,
) -> None:
    config = configured(enable_lora=True, max_num_batched_tokens=tokens, max_num_seqs=requests)

    assert RunnerChoice.of(config) == RunnerChoice("v1", max_verify)


@pytest.mark.parametrize(("asked", "max_verify"), [(None, 3), ("8", 8)])
def test_a_model_with_recurrent_layers_has_room_for_few_states_of_a_request(
    asked: str | None,
    max_verify: int,
    registered: None,
    configured: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if asked:
        monkeypatch.setenv("PICOSPEC_VERIFIER__SPECULATION__MAX_VERIFY", asked)

    config = configured(RECURRENT)

    assert RunnerChoice.of(config) == RunnerChoice("v1", max_verify)
    assert config.num_speculative_tokens == max_verify + 1


def test_a_gpu_with_the_first_model_runner_is_refused(
    registered: None, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)

    with pytest.raises(conflicts.Conflict, match=r"V2_MODEL_RUNNER.*copied to the host"):
        configured()


@pytest.mark.parametrize(
    ("asked", "left"), [([(1, 4, 0), (5, 9, 0)], True), ([(1, 4, 3), (5, 9, 1)], False)]
)
def test_ranks_keep_a_schedule_by_which_they_cannot_differ(
    asked: list[tuple[int, int, int]], left: bool, registered: None
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


def test_where_a_session_would_have_no_rows_the_flag_is_named(
    registered: None, configured: Configure
) -> None:
    with pytest.raises(conflicts.Conflict, match="--enable-lora"):
        configured(enable_lora=True, max_num_batched_tokens=512, max_num_seqs=256)


def test_what_the_operator_chose_stays(registered: None, configured: Configure) -> None:
    config = configured(
        structured_outputs_config={"backend": "xgrammar"}, additional_config={"theirs": 1}
    )

    assert config.structured_outputs_config.backend == "xgrammar"
    assert config.additional_config["theirs"] == 1


@pytest.mark.parametrize(
    ("model", "options"), [(EMBEDS, {}), (GENERATES, {"runner": "pooling"})], ids=str
)
def test_a_model_that_does_not_generate_starts_as_without_us(
    model: dict[str, Any],
    options: dict[str, Any],
    registered: None,
    configured: Configure,
) -> None:
    config = configured(model, scheduler_cls=None, use_fp64_gumbel=True, **options)

    assert RunnerChoice.of(config) is None
    assert config.scheduler_config.scheduler_cls is None
    assert config.speculative_config is None
    assert config.parallel_config.worker_extension_cls == ""
    assert os.environ["VLLM_PLUGINS"] == "lora_resolver"


@pytest.mark.parametrize("plugins", ["", "lora_resolver", None])
def test_where_vllm_plugins_does_not_name_it_nothing_changes(
    plugins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    original = EngineArgs.create_speculative_config

    plugin.register()

    assert EngineArgs.create_speculative_config is original


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--scheduler-cls", "their.Scheduler"),
        ("--use-fp64-gumbel", True),
        ("--logprobs-mode", "raw_logits"),
        ("--kv-transfer-config", CONNECTOR | {"kv_role": "kv_producer"}),
        ("--kv-transfer-config", CONNECTOR | {"kv_load_failure_policy": "recompute"}),
        ("--pipeline-parallel-size", 2),
        ("--enable-batch-sharded-sampling", True),
        ("--watermark-config", {"algorithm": "gumbel"}),
        ("--speculative-config", {"method": "ngram", "num_speculative_tokens": 3}),
    ],
)
def test_a_flag_that_conflicts_is_named(
    flag: str, value: Any, registered: None, configured: Configure
) -> None:
    option = flag.removeprefix("--").replace("-", "_")

    with pytest.raises(conflicts.Conflict, match=flag):
        configured(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kv_transfer_config", CONNECTOR),
        ("kv_transfer_config", KVTransferConfig(**CONNECTOR)),
        ("kv_offloading_size", 1.0),
        ("stream_interval", 2),
    ],
)
def test_what_operators_use_beside_sessions_is_served(
    option: str, value: Any, registered: None, configured: Configure
) -> None:
    config = configured(**{option: value})

    assert RunnerChoice.of(config) is not None


def test_an_operators_worker_extension_is_joined_with_ours(
    registered: None, configured: Configure
) -> None:
    theirs, ours = "tests.verifier.vllm_target.operators.Extension", conflicts.EXTENSIONS["v1"]

    name = configured(worker_extension_cls=theirs).parallel_config.worker_extension_cls
    again = configured(worker_extension_cls=name).parallel_config.worker_extension_cls

    joined = resolve_obj_by_qualname(name)
    assert joined is resolve_obj_by_qualname(again)  # vLLM compares the classes of two workers
    assert issubclass(joined, resolve_obj_by_qualname(theirs))
    assert issubclass(joined, resolve_obj_by_qualname(ours))


def test_the_front_end_in_rust_is_refused(
    registered: None, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")

    with pytest.raises(conflicts.Conflict, match="VLLM_USE_RUST_FRONTEND"):
        configured()


def test_the_entry_point_is_this_plugin() -> None:
    (found,) = (
        each for each in entry_points(group="vllm.general_plugins") if each.name == NAME
    )

    assert found.load() is plugin.register


def test_requests_may_have_what_vllm_refuses_beside_speculation(
    registered: None, configured: Configure
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
    asked: dict[str, Any], registered: None
) -> None:
    with pytest.raises(VLLMValidationError) as error:
        SamplingParams(**asked)._validate_spec_decode(SimpleNamespace(method="ngram"))

    assert error.value.parameter == next(iter(asked))
    SamplingParams(**asked)._validate_spec_decode(SimpleNamespace(method="custom_class"))


@pytest.mark.parametrize(("count", "asked", "timeout_s"), [(1, 0, 0), (2, 0, 25), (2, 7, 7)])
def test_several_api_servers_are_given_time_to_drain(
    count: int, asked: int, timeout_s: int, registered: None, configured: Configure
) -> None:
    given = configured(_api_process_count=count, shutdown_timeout=asked)

    assert given.shutdown_timeout == timeout_s


def test_a_core_is_bound_to_its_parent(registered: None, configured: Configure) -> None:
    configured()

    assert EngineCoreProc.run_engine_core is parent_watchdog.run_engine_core


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


def test_vllms_core_and_workers_import_nothing_of_the_gateway() -> None:
    script = """
import sys
from verifier.vllm_target.plugin import register
register()
import verifier.vllm_target.core.scheduler
import verifier.vllm_target.worker.v1
print(*(name for name in sys.modules if name.startswith("gateway")))
"""
    environment = {**os.environ, "VLLM_PLUGINS": "picospec"}

    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )

    assert ran.stdout == "\n", ran.stderr
