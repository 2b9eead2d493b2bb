"""Every patch of vLLM is a row of PATCHES: what it replaces, by what, why, and until when.

PicoSpec changes no file of vLLM. Where vLLM has no plugin, option or base class for what
sessions need, its processes get a function or value of ours in the place of one of vLLM's.
`patcher.apply` puts all rows of one place in, and returns a function that takes them out again.
Nothing else of PicoSpec assigns to modules and classes of vLLM, or to methods of its objects: a
test looks. Only the bench has a worker that stands in for a GPU, with two patches of its own.

Three things are no patches, and stand elsewhere: classes that vLLM takes by their names, such
as `PicoScheduler`, which extends its scheduler; options that the plugin sets as an operator
could (docs/vllm.md, "What is set"); and the state of vLLM's requests, plans and outputs, which
our scheduler and hooks write to.

All rows are for all tested versions of vLLM (`installation.TESTED`), and for the model runner
that their place names, or for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

Original = Callable[..., Any]
"""A function of ours receives vLLM's, which it has the place of, as first argument."""

Place = Literal[
    "plugin", "cores", "calls", "core", "core without a head", "core with batches",
    "answers", "accounts",
    "v1", "v1 on CPUs",
    "v2 modules", "v2 speculator", "v2 draft model",
    "v2", "v2 sampler", "v2 with a head", "v2 without a head",
]  # fmt: skip
"""The rows of one place are applied together, by the file in which their functions stand."""


@dataclass(frozen=True, slots=True)
class Patch:
    place: Place
    target: str
    """MODULE:NAME of an attribute of vLLM's, as in an entry point. `apply` raises an error if
    there is none. If instances get the patch, NAME begins with their class."""

    by: str
    """MODULE:NAME in this package of what takes its place. A method is that of an instance."""

    why: str
    until: str
    """This change of vLLM's makes the patch needless."""

    on: str = ""
    """The object that gets the patch, as a path from an argument of `apply`; empty for the
    module or class that the target names."""

    form: Literal["around", "instead", "added"] = "around"
    """`around`: ours receives vLLM's as first argument. `added`: vLLM has none of this name."""

    needs: tuple[str, ...] = ()
    """Ours relies on these too: NAME in the target's module, or MODULE:NAME. vLLM would ignore
    in silence that one of them is gone. Before a model loads, `conflicts` looks for them, and
    for the target, in vLLM's source: modules of workers must not be imported elsewhere."""

    @property
    def holder(self) -> str:
        """Return the target without the last part of its name."""
        module, _, name = self.target.partition(":")
        return f"{module}:{name.rpartition('.')[0]}"

    @property
    def name(self) -> str:
        """Return the last part of the target's name."""
        return self.target.partition(":")[2].rpartition(".")[2]

    @property
    def runner(self) -> str | None:
        """Return the model runner that the patch is for; None for both."""
        return self.place[:2] if self.place[0] == "v" else None


_A_HOOK: Final = "vLLM lets a plugin choose scheduler, workers and speculation of an engine"
_DRAFTS: Final = "a scheduler supplies draft tokens without a proposer (vLLM's #36391)"
_MESSAGES: Final = "vLLM carries messages to a scheduler, with the times of their arrival"
_STEPS: Final = "a scheduler says when its core plans the next step, and how long it sleeps"
_OUTPUTS: Final = "an output of vLLM's has a field that its API server hands on unmerged"
_V1_GOES: Final = "vLLM drops Model Runner V1, which it calls deprecated"
_JUDGE: Final = "vLLM takes a judge of draft tokens by its name, as it takes a scheduler"
_PROPOSER: Final = "vLLM has one registry of proposers, which receive request ids (#36219)"
_WIDTH: Final = "vLLM sizes what a step needs by its rows, not by the most of each request"

_CORE: Final = "vllm.v1.engine.core"
_V1: Final = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_V1_SAMPLE: Final = "vllm.v1.sample"
_V2: Final = "vllm.v1.worker.gpu"
_RUNNER: Final = f"{_V2}.model_runner:GPUModelRunner"
_REJECTION: Final = f"{_V2}.spec_decode.rejection_sampler"

PATCHES: Final = (
    # in each process of vLLM, when it loads its plugins
    Patch(
        "plugin", "vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        "plugin:choose",
        "When vLLM calls it, the model is known and the scheduler is not yet: the plugin sets "
        "scheduler, workers and room for draft tokens of an engine that generates.",
        _A_HOOK,
        needs=(
            "_api_process_count", "shutdown_timeout",
            "vllm.config.parallel:worker_extension_cls",
        ),
    ),
    Patch(
        "plugin", "vllm.config.vllm:VllmConfig.num_speculative_tokens", "plugin:width",
        "A step has room for the draft tokens of an edge, which are more than a head's.",
        _DRAFTS,
    ),
    Patch(
        "plugin", "vllm.config.vllm:VllmConfig._maybe_disable_dynamic_sd_for_data_parallel",
        "plugin:keep_schedule",
        "Without its schedule an engine beside others captures only graphs of full width.",
        "vLLM keeps a schedule that has the same number of draft tokens for all batches",
    ),
    Patch(
        "plugin", "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "plugin:check_request",
        "vLLM refuses min_p and logit_bias beside speculation, which its samplers serve. It "
        "takes more tokens in some settings than V2's worker has room for.",
        "vLLM refuses what its samplers cannot serve, and only that",
    ),
    # in the API server, before it starts its cores
    Patch(
        "cores", f"{_CORE}:EngineCoreProc.run_engine_core", "parent_watchdog:run_engine_core",
        "A core ends with its parent from the start; vLLM loads plugins there minutes later.",
        "a core of vLLM's ends when its parent is gone",
        form="instead",
    ),
    # in the core, when it makes its scheduler
    *(
        Patch(
            "calls", f"{_CORE}:EngineCore.picospec_{name}", f"core.rpc:{name}",
            f"vLLM's RPC finds methods of the core by name: {why}.", _MESSAGES, form="added",
        )
        for name, why in {
            "attach": "it connects the scheduler with its core",
            "read": "its answer shows that earlier messages were read",
            "forget": "it forgets an owner's answers",
            "figures": "it reports counts of steps and sessions",
            "learned_statistics": "it reports what the machine has learned",
        }.items()
    ),
    # in the core, when the API server attaches the scheduler
    Patch(
        "core", f"{_CORE}:EngineCoreProc.input_queue.put_nowait", "core.sessions:put_stamped",
        "A message gets its time of arrival: the core reads it only after a step.",
        _MESSAGES, on="engine.input_queue",
    ),
    Patch(
        "core", f"{_CORE}:EngineCoreProc.input_queue.get",
        "core.sessions:SessionScheduler._get",
        "A core that waits for messages wakes when the first waiting session is due.",
        _STEPS, on="engine.input_queue",
    ),
    Patch(
        "core", f"{_CORE}:EngineCoreProc._handle_client_request",
        "core.sessions:SessionScheduler._handle",
        "Messages go to the scheduler without an answer, which vLLM's RPC always sends.",
        _MESSAGES, on="engine",
    ),
    Patch(
        "core without a head", f"{_CORE}:EngineCore.check_for_draft_tokens",
        "core.sessions:SessionScheduler.asks_for_proposals",
        "Else the core asks the workers for draft tokens after each step; there are none.",
        _DRAFTS, on="engine", form="instead",
    ),
    Patch(
        "core with batches", f"{_CORE}:EngineCore.step_fn",
        "core.sessions:SessionScheduler._step",
        "A step waits for the result of the last one where a session needs it.",
        _STEPS, on="engine", needs=("async_scheduling",),
    ),
    # in the API server, beside its client of the engine
    Patch(
        "answers", "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        "serving.engine:VllmEngine._collect",
        "vLLM merges outputs for a slow reader, and would keep the last one's frames alone.",
        _OUTPUTS, on="outputs",
        needs=(
            "_update_stats_from_output", "is_prefilling", "num_cached_tokens",
            "request_states",
        ),
    ),
    Patch(
        "accounts", "vllm.v1.engine.async_llm:AsyncLLM.generate",
        "serving.plain:Charging.generate",
        "Tokens of vLLM's own requests on our port are charged, and their prefixes kept apart.",
        "vLLM's endpoint plugins see the tokens of each request", on="llm",
    ),
    # in a worker of Model Runner V1, when the API server installs the judge
    Patch(
        "v1", f"{_V1}.execute_model", "worker.v1:SamplerHooks._take_requests",
        "The hooks see what the step's plan has for sessions.", _V1_GOES, on="runner",
    ),
    Patch(
        "v1", f"{_V1}.sample_tokens", "worker.v1:SamplerHooks._return_judgements",
        "The outcomes of sessions go out with vLLM's output.", _V1_GOES, on="runner",
    ),
    Patch(
        "v1", f"{_V1}._sample", "worker.v1:SamplerHooks._sample",
        "A step without draft tokens does not need the rejection sampler. That fails on top-k "
        "if there are no rows, and copies all logits.", _V1_GOES, on="runner",
    ),
    Patch(
        "v1", f"{_V1_SAMPLE}.ops.topk_topp_sampler:TopKTopPSampler.forward",
        "worker.v1:SamplerHooks._draw_last_rows",
        "The row after the draft tokens is drawn with the noise that edges share.",
        _V1_GOES, on="runner.sampler.topk_topp_sampler",
    ),
    Patch(
        "v1", f"{_V1_SAMPLE}.rejection_sampler:apply_sampling_constraints",
        "worker.v1:SamplerHooks._apply_none",
        "Our judge applies temperature and cuts. On CPUs vLLM 0.32 reads uninitialised memory "
        "there.", _V1_GOES,
    ),
    Patch(
        "v1", f"{_V1_SAMPLE}.rejection_sampler:rejection_sample",
        "worker.v1:SamplerHooks._judge_draft_rows",
        "Our judge compares draft tokens with what shared noise draws.", _V1_GOES,
    ),
    Patch(
        "v1 on CPUs", f"{_V1_SAMPLE}.sampler:batched_count_greater_than",
        "worker.v1:uncompiled",
        "Its compilation at the first request with log-probabilities stops all sessions for up "
        "to a minute.", _V1_GOES,
    ),
    # in a worker of Model Runner V2, before it builds its runner
    Patch(
        "v2 modules", f"{_V2}.model_runner:init_speculator", "worker.heads:init_speculator",
        "A speculator gets the rows of the next two places when it is made.", _PROPOSER,
    ),
    Patch(
        "v2 modules", f"{_V2}.model_runner:RequestState", "worker.heads:request_state",
        "For n-grams, which the null proposer is by name, vLLM keeps all tokens in the "
        "device's memory: 1 GB for 1,024 requests of 262,144.",
        _DRAFTS, needs=("use_dense_all_token_ids",),
    ),
    Patch(
        "v2 modules", f"{_V2}.model_runner:StructuredOutputsWorker",
        "worker.heads:GrammarMasks",
        "vLLM's buffer of masks takes 0.7 GB of the device for 1,024 requests; ours has parts.",
        _WIDTH, form="instead",
        needs=tuple(
            f"{_V2}.structured_outputs:{name}"
            for name in (
                "apply_grammar_bitmask", "logits_indices", "mask_stride", "max_num_logits",
            )
        ),
    ),
    Patch(
        "v2 modules", f"{_V2}.warmup:_warmup_kernels", "worker.heads:warm_up",
        "The warm-up has no more rows than a step may have: KV has its memory already.",
        _WIDTH, needs=("scheduler_config",),
    ),
    Patch(
        "v2 modules",
        "vllm.config.compilation:CompilationConfig.resolve_cudagraph_mode_and_sizes",
        "worker.heads:resolve_graphs",
        "vLLM asks attention for graphs of full width, and drops those of one row with them.",
        _WIDTH, needs=("uniform_decode_query_len",),
    ),
    Patch(
        "v2 modules", f"{_V2}.model_runner:ModelCudaGraphManager",
        "worker.graphs:UnequalGraphs",
        "With `speculation.unequal_graphs` steps with draft tokens run on FULL graphs, too.",
        "vLLM captures graphs of unequal rows beside those of equal rows", form="instead",
        needs=tuple(
            f"{_V2}.cudagraph_utils:{name}"
            for name in ("_candidates", "_capture_descs", "capture", "lora_capture_cases")
        ),
    ),
    Patch(
        "v2 modules", "vllm.v1.worker.utils:AttentionGroup.create_metadata_builders",
        "worker.heads:create_metadata_builders",
        "FlashInfer waits for the lengths of requests in each step if there may be drafts.",
        "FlashInfer takes the host's lengths wherever they are exact",
        needs=(
            "metadata_builders",
            "vllm.v1.attention.backends.flashinfer:_num_speculative_tokens",
            "vllm.v1.attention.backends.flashinfer:seq_lens_cpu_upper_bound",
        ),
    ),
    Patch(
        "v2 speculator", f"{_V2}.spec_decode.speculator:BaseSpeculator.propose",
        "worker.heads:HeadProposals.widened",
        "A head's proposal fits into rows that are as wide as an edge's draft.",
        _PROPOSER, on="speculator",
    ),
    Patch(
        "v2 draft model", f"{_V2}.spec_decode.speculator:DraftModelSpeculator.sample_draft",
        "worker.heads:HeadProposals.sample_draft",
        "A head draws the tokens of sessions with the judge's noise: more of them are right.",
        _PROPOSER, on="speculator", needs=("compute_draft_logits",),
    ),
    Patch(
        "v2 draft model", f"{_V2}.spec_decode.speculator:DraftModelSpeculator.picospec_ours",
        "worker.heads:HeadProposals.ours",
        "The hooks of each step mark there which requests are sessions.",
        _PROPOSER, on="speculator", form="added",
    ),
    # in a worker of Model Runner V2, when the API server installs the judge
    Patch(
        "v2", f"{_RUNNER}.prepare_inputs", "worker.v2:RunnerHooks._begin",
        "V2 takes only the number of draft tokens from the plan: the hooks write the tokens.",
        _DRAFTS, on="runner", needs=("req_states",),
    ),
    Patch(
        "v2", f"{_V2}.lora_utils:LoraState.make_lora_inputs",
        "worker.v2:RunnerHooks._spread_adapters",
        "vLLM names one adapter a request, which is wrong for the rows of draft tokens.",
        "vLLM names the adapter of each row of logits", on="runner.lora_state",
    ),
    Patch(
        "v2", f"{_RUNNER}.sample", "worker.v2:RunnerHooks._sample",
        "A session whose edge owes a token generates nothing.", _JUDGE, on="runner",
    ),
    Patch(
        "v2", f"{_RUNNER}.sample_tokens", "worker.v2:RunnerHooks._return_judgements",
        "The outcomes of sessions that are judged by p go out with vLLM's output.",
        _JUDGE, on="runner",
    ),
    Patch(
        "v2 sampler", f"{_V2}.sample.sampler:Sampler.apply_sampling_params",
        "worker.v2:RunnerHooks._cut_padding",
        "No session receives an id that is no token.",
        "vLLM never draws the padding of a vocabulary", on="runner.sampler",
    ),
    Patch(
        "v2 sampler", f"{_V2}.sample.sampler:Sampler.add_request",
        "worker.v2:RunnerHooks._add_request",
        "A session's seed may be -1, which vLLM takes for none.",
        "a seed of -1 is one, or seeds are unsigned", on="runner.sampler",
        needs=("sampling_states",),
    ),
    Patch(
        "v2 sampler", f"{_REJECTION}:gather_draft_sampled", "worker.v2:RunnerHooks._gather",
        "Draft tokens count also in a step that begins inside the prompt.", _DRAFTS,
    ),
    Patch(
        "v2 sampler", f"{_REJECTION}:rejection_sample", "worker.v2:RunnerHooks._judge",
        "Our judge compares draft tokens with the tokens that vLLM's sampler draws.", _JUDGE,
    ),
    Patch(
        "v2 sampler", f"{_REJECTION}:RejectionSampler.num_speculative_steps",
        "worker.v2:RunnerHooks.width",
        "Its results are as wide as an edge's draft.",
        _WIDTH, on="runner.rejection_sampler", form="instead",
    ),
    Patch(
        "v2 with a head", f"{_V2}.spec_decode.speculator:BaseSpeculator.propose",
        "worker.v2:RunnerHooks._propose",
        "A head reads the last row of a session that generated nothing.",
        _JUDGE, on="runner.speculator",
    ),
    Patch(
        "v2 without a head", f"{_V2}.spec_decode.speculator:BaseSpeculator.propose",
        "worker.v2:RunnerHooks._propose_nothing",
        "The n-gram method has the place of a null proposer: each of its runs is a dummy run.",
        _DRAFTS, on="runner.speculator",
    ),
    Patch(
        "v2 without a head", f"{_RUNNER}._dummy_run", "worker.v2:RunnerHooks._run_dummy",
        "An idle rank of experts has one row, or all ranks lose their FULL graphs.",
        _WIDTH, on="runner", needs=("uniform_decode",),
    ),
)  # fmt: skip


def names(runner: Literal["v1", "v2"]) -> dict[str, list[str]]:
    """Return what each module of vLLM must contain for the patches of a runner."""
    names_by_target: dict[str, list[str]] = {}
    for patch in PATCHES:
        if patch.runner not in (None, runner):
            continue
        target = patch.holder if patch.form == "added" else patch.target
        module, _, path = target.partition(":")
        names_by_target.setdefault(module, []).extend(path.split("."))
        for need in patch.needs:
            other, _, name = need.rpartition(":")
            names_by_target.setdefault(other or module, []).append(name)
    return {module: list(dict.fromkeys(each)) for module, each in names_by_target.items()}
