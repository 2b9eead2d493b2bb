"""vLLM calls `register`, our entry point of `vllm.general_plugins`, in each of its processes.

It acts only if VLLM_PLUGINS names it, so that a vLLM which merely has PicoSpec installed beside
it stays as it is. An engine that generates gets our scheduler, our worker extension and room
for draft tokens; any other starts as it would without us.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from math import ceil
from pathlib import Path
from shutil import rmtree
from stat import S_IMODE, S_ISDIR
from typing import TYPE_CHECKING, Any, Final, Literal

import vllm.envs as envs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform

from verifier.vllm_target import conflicts, installation, patcher
from verifier.vllm_target.launch_variables import CONFIG, FOLDER_PREFIX, SOCKET
from verifier.vllm_target.parent_watchdog import die_with_parent
from verifier.vllm_target.patches import Original
from verifier.vllm_target.runner_choice import NAME, RunnerChoice

if TYPE_CHECKING:
    from verifier.settings import VerifierSettings

_NULL_PROPOSER: Final = "verifier.vllm_target.worker.extension.NullProposer"
_NOTHING_PROPOSED: Final[Mapping[str, Mapping[str, Any]]] = {
    "v1": {"method": "custom_class", "model": _NULL_PROPOSER},
    "v2": {"method": "ngram_gpu", "num_speculative_tokens_per_batch_size": [(1, 1, 0)]},
}
"""These speculative configs, by runner, make vLLM reserve room for draft tokens. V2's names
vLLM's n-gram method, which the worker extension keeps from proposing anything, by the name
beside which vLLM 0.32 schedules asynchronously. Its schedule has no draft tokens for any batch
size, so vLLM captures the CUDA graphs that it has without speculation: those of steps of one
row a request."""

LIMITS: Final = {"stop_token_ids": 112, "logit_bias": 1024, "allowed_token_ids": 1024}
"""These limits come from vllm/v1/worker/gpu/sample/logit_bias.py. It can bar 128 stop tokens,
and these include the model's own, whose number is not known here."""


def settings(environ: Mapping[str, str] = os.environ) -> VerifierSettings:
    """Return our settings inside vLLM, from the environment and the file that it names. Only
    vLLM's API servers and their parent call this: the modules that read settings are not
    imported elsewhere. All servers get one secret for salts, because they share a KV cache.

    Raises pydantic.ValidationError, OSError, ValueError (TOML).
    """
    from gateway.tenants import salt_secret
    from verifier.settings import VerifierSettings

    salt_secret(os.environ)
    path = environ.get(CONFIG)
    return VerifierSettings.load(Path(path) if path else None, environ, {"target": "vllm"})


def register() -> None:
    """Prepare this process of vLLM. A second call does nothing."""
    if NAME in (envs.VLLM_PLUGINS or ()):
        die_with_parent()
        patcher.apply("plugin")


def check_request(_: Original, params: Any, speculative_config: Any) -> None:
    """Raise VLLMValidationError, which names the parameter. This replaces vLLM's own rule.

    vLLM refuses min_p and logit_bias beside speculation, though both runners' samplers serve
    them. It also accepts more tokens in some settings than the worker of Model Runner V2 has
    room for, which ends the engine. params: vLLM's SamplingParams.
    """
    if speculative_config is None or speculative_config.method == "custom_class":
        return  # Model Runner V1
    settings = {
        "stop_token_ids": params.all_stop_token_ids if params.min_tokens else (),
        "logit_bias": params.logit_bias or (),
        "allowed_token_ids": params.allowed_token_ids or (),
    }
    for name, tokens in settings.items():
        if len(tokens) > LIMITS[name]:
            limit = LIMITS[name]
            raise VLLMValidationError(f"{name}: more than {limit} tokens", parameter=name)


def width(original: Original, config: Any) -> int:
    """Return the room that vLLM reserves in a step. Its own speculation keeps its own setting,
    and proposes as many tokens as the operator asked for."""
    choice = RunnerChoice.of(config)
    return int(original(config)) if choice is None else choice.width


def keep_schedule(original: Original, config: Any) -> None:
    """Keep a schedule that names one number of draft tokens for all batch sizes. Beside data
    parallelism vLLM drops any schedule, because by it ranks could choose different numbers;
    without it vLLM captures only graphs as wide as the room that it reserves.

    config: vLLM's VllmConfig.
    """
    schedule = getattr(config.speculative_config, "num_speculative_tokens_per_batch_size", None)
    if RunnerChoice.of(config) is None or len({count for *_, count in schedule or ()}) != 1:
        original(config)


def choose(
    original: Original, args: Any, target_model_config: Any, target_parallel_config: Any
) -> Any:
    """Return the speculative config of an engine. Sessions are only for a model that generates
    token by token from token ids alone. args: vLLM's EngineArgs."""
    from vllm.config import SpeculativeConfig

    speculation = original(args, target_model_config, target_parallel_config)
    model = target_model_config
    generates = model.runner_type == "generate"
    if not generates or model.is_encoder_decoder or model.is_diffusion:
        _stand_back()
        return speculation
    choice = _choice(args, model, target_parallel_config, speculation)
    _apply(choice, args, model, target_parallel_config)
    _remove_folder(Path(os.environ.pop(SOCKET, "")))  # vLLM has opened the socket
    _let_drain(args, settings())
    if speculation is None:
        return SpeculativeConfig(
            **_NOTHING_PROPOSED[choice.runner],
            num_speculative_tokens=choice.width,
            target_model_config=model,
            target_parallel_config=target_parallel_config,
        )
    if speculation.num_speculative_tokens_per_batch_size is None:
        # otherwise vLLM captures CUDA graphs with as many rows as it reserves
        own = [(1, 1, speculation.num_speculative_tokens)]
        speculation.num_speculative_tokens_per_batch_size = own
    return speculation


def _remove_folder(folder: Path) -> None:
    """Remove the socket's folder if we made it: it has our name, is this process's user's, and
    nobody else can open it. The variable may come from somebody else."""
    with suppress(OSError):
        status = folder.lstat()
        ours = S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if ours and S_IMODE(status.st_mode) == 0o700 and folder.name.startswith(FOLDER_PREFIX):
            rmtree(folder)


def _stand_back() -> None:
    """Remove our name from VLLM_PLUGINS: no process that starts later loads our plugins, and
    this one adds no routes."""
    others = (each for each in envs.VLLM_PLUGINS or () if each != NAME)
    os.environ["VLLM_PLUGINS"] = ",".join(others)


def _choice(args: Any, model: Any, parallel: Any, speculation: Any) -> RunnerChoice:
    """Return the choice for an engine. speculation: the operator's speculation. Raises
    Conflict."""
    conflicts.check_flags(args, rust=envs.VLLM_USE_RUST_FRONTEND)
    runner = _runner(args, model, parallel, speculation)
    if runner == "v1" and speculation is not None:
        raise conflicts.Conflict(
            f"--speculative-config: {speculation.method} runs on Model Runner V1 here, where "
            "sessions take the place of vLLM's own speculation"
        )
    if runner == "v1" and not current_platform.is_cpu():
        raise conflicts.Conflict(
            "VLLM_USE_V2_MODEL_RUNNER: vLLM would use Model Runner V1, with which every row of "
            "a session is copied to the host and judged there: that is for CPUs only"
        )
    installation.check_installation(runner)
    import_module(conflicts.SCHEDULER.rpartition(".")[0])  # fail before the model loads
    ours, head = settings(), 0 if speculation is None else speculation.num_speculative_tokens
    wanted, own = ours.limits.max_verify, ours.speculation
    if own.max_verify is None and model.has_inner_state:
        wanted = conflicts.lowered(wanted, conflicts.RECURRENT_DRAFTS)
    max_verify = conflicts.max_drafts(wanted, args)
    return RunnerChoice(runner, max_verify, head, own.seed_exact, own.unequal_graphs)


def _runner(args: Any, model: Any, parallel: Any, speculation: Any) -> Literal["v1", "v2"]:
    """Return the runner that vLLM would choose, by vLLM's own rule."""
    from vllm.config import VllmConfig

    trial: VllmConfig = object.__new__(VllmConfig)
    trial.attention_config, trial.watermark_config = (
        args.attention_config,
        args.watermark_config,
    )
    trial.model_config, trial.parallel_config = model, parallel
    trial.speculative_config, trial.lora_config = speculation, args.enable_lora or None
    return "v2" if trial.use_v2_model_runner else "v1"


def _apply(choice: RunnerChoice, args: Any, model: Any, parallel: Any) -> None:
    """Set the engine options that are read later, and those of the workers. Raises Conflict."""
    from vllm.config import StructuredOutputsConfig

    patcher.apply("cores")
    args.scheduler_cls = conflicts.SCHEDULER
    args.async_scheduling = conflicts.async_scheduling(
        args.async_scheduling,
        runner=choice.runner,
        steps_with_others=model.is_moe and parallel.data_parallel_size > 1,
    )
    extension = conflicts.extension(choice.runner, args.worker_extension_cls)
    args.worker_extension_cls = parallel.worker_extension_cls = extension
    args.additional_config = choice.added_to(args.additional_config)
    grammars = args.structured_outputs_config
    if isinstance(grammars, dict):  # from a caller in Python
        grammars = args.structured_outputs_config = StructuredOutputsConfig(**grammars)
    if grammars.backend == "auto":
        grammars.backend = "guidance"  # the library that edges use too


def _let_drain(args: Any, ours: VerifierSettings) -> None:
    """Make the parent of several API servers wait for them after a SIGTERM: without this
    setting of vLLM's it kills them at once. A single server needs no such time."""
    if args._api_process_count > 1 and not args.shutdown_timeout:
        args.shutdown_timeout = ceil(ours.drain_timeout_s) + ours.stop_timeout_s
