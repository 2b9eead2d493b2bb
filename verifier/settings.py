"""The verifier has these settings. They are read once, at start, and passed down by value.

From strongest to weakest: the command line, the environment, a TOML file, the defaults below.
In the environment a field is PICOSPEC_VERIFIER__FIELD, a nested one PICOSPEC_VERIFIER__A__B.
API keys come from PICOSPEC_API_KEYS (comma separated) and from `keys_file`, which has hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from gateway.hosting.settings import Port, ServerSettings, Table
from local_models.llama_cpp.devices import SplitMode
from speculation.model_facts import Limits
from verifier.owners import Owners

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class LlamaSettings(Table):
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    """This many sessions run at once. The KV of all is allocated at the start."""

    waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    """This many sessions may wait for a slot; further ones are rejected."""

    context_tokens: Annotated[int, Field(ge=16)] | None = None
    """A session has at most this many tokens, prompt and answer together. None: as many as the
    model was trained for, or as fit into the memory."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """llama.cpp uses this many threads. None: one for each core that this process may use. More
    than one keep the KV in Q8_0: with a 16-bit cache llama.cpp splits a row's attention among
    threads, and its last bits depend on the other rows of the pass."""

    max_rows: Annotated[int, Field(ge=2, le=4096)] = 256
    """One pass has at most this many rows; each of its sessions may need two."""

    prefill_rows: Annotated[int, Field(ge=1, le=63)] = 63
    """At most this many prompt tokens are decoded between two passes; beside running sessions
    only as many as take the time of two passes (llama_target.scheduler), so that these go on.
    From 64 rows of a sequence on llama.cpp's attention rounds differently, and a prompt's
    KV would depend on how it was divided. A device with `exact = "near"` takes max_rows."""

    gpu_layers: Annotated[int, Field(ge=-1)] | None = None
    """Devices compute this many of the last layers, the output layer included (-ngl); -1: all.
    None: all if this build of llama.cpp has a device, and else 0."""

    split_mode: SplitMode = "layer"
    """How several devices divide the model (-sm): by layers, rows or tensors, or not at all."""

    tensor_split: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """The shares of several devices (-ts), such as [3, 1]. Empty: by their free memory."""

    main_gpu: Annotated[int, Field(ge=0)] = 0
    """With split_mode = "none" the device with this index computes all (-mg)."""

    override_tensor: tuple[Annotated[str, Field(pattern="^.+=.+$")], ...] = ()
    """Each is REGEX=DEVICE (-ot): tensors whose names match are there. DEVICE is CPU, or a name
    that picospec doctor shows."""

    cache_type_k: CacheType | None = None
    """The keys of the KV cache have this type (-ctk). None: f16, or q8_0 if several threads of
    the processor compute (`threads`)."""

    cache_type_v: CacheType | None = None
    """The values of the KV cache have this type (-ctv). None: the keys' type."""

    flash_attention: Literal["on", "off", "auto"] | None = None
    """Attention without a matrix of scores (-fa). None: on on processors, where exactness needs
    it, and auto on a device: if the device has it."""

    head: Literal["mtp"] | None = None
    """mtp: the head for multi-token prediction in the model's file drafts where it pays and the
    edge's draft tokens do not. A model without one is refused."""

    exact: Literal["near", "strict"] | None = None
    """strict: a text does not depend on draft tokens to the last bit. near: its distribution
    does not; a text may part where two tokens are nearly equally likely. None: near on a
    device, and strict on processors, whose passes are exact by their settings above."""

    @model_validator(mode="after")
    def _rows_suffice(self) -> Self:
        if self.max_rows < max(2 * self.slots, self.prefill_rows):
            raise ValueError("max_rows must be at least twice the slots, and prefill_rows")
        return self


EXACT_DRAFTS: Final = 62
"""One pass of llama.cpp has at most this many draft tokens of a session. With the token before
them they take 63 rows; from 64 on its attention rounds differently, and texts could change."""

VLLM_DRAFTS: Final = 127
"""A step of vLLM, whose kernels take 128, has at most this many draft tokens of a session. One
row is left for a committed token that vLLM does not know yet."""

MAX_VERIFY: Final = {"llama": 16, "vllm": 32}
"""speculation.max_verify has these defaults, in draft tokens. llama.cpp's is lower, because
rows are dear on a CPU and one rejected draft token makes the rest of a long pass useless. They
come from `python -m bench.simulator`; docs/decisions.md has the figures."""

PASS_TIMEOUT_S: Final = {"cpu": 300.0, "gpu": 60.0}
"""pass_timeout_s has these defaults, by the device of the target. With a 7B model on one CPU
core the longest pass of llama.cpp takes about 50 s, and a full step of vLLM about 200 s; on a
GPU it takes a second. vLLM itself gives up on a step after 300 s."""

Seconds = Annotated[float, Field(gt=0, le=86400)]


class SessionSettings(Table):
    """These settings limit the number of sessions and their waits."""

    max_sessions: Annotated[int, Field(ge=1, le=4096)] = 64
    """This many sessions may run at once; more get a 429. A target may have fewer slots."""

    first_token_timeout_s: Seconds = 600.0
    """Ends a session that gets no draft for this time before its first reply."""

    idle_timeout_s: Seconds = 60.0
    """Ends a session that later gets no draft and no reply for this time."""

    max_age_s: Seconds = 7200.0
    """Ends a session of this age even if it is active, so that none holds its slot for ever."""

    replacement_timeout_s: Seconds = 30.0
    """`separate`: ends a session whose edge does not replace a rejected token in this time."""


class SpeculationSettings(Table):
    max_verify: Annotated[int, Field(ge=1, le=256)] | None = None
    """One pass judges at most this many draft tokens of a session. None: 16 with llama.cpp,
    and 32 with vLLM (MAX_VERIFY)."""

    max_ahead: Annotated[int, Field(ge=1, le=4096)] = 128
    """At most this many draft tokens of a session are kept beyond its last committed token."""

    keep_answers: bool = True
    """The verifier drafts from earlier answers of the same key and cache salt. It keeps the
    latest 32,768 tokens of each, in memory alone."""

    seed_exact: bool = False
    """vLLM with a --speculative-config: requests without a session are judged as sessions are,
    so that a text depends on its seed alone, as without speculation."""

    unequal_graphs: bool = False
    """vLLM on a GPU: steps with draft tokens run on FULL CUDA graphs, if attention can replay
    them. They take memory and time at the start, and no GPU has run them."""


class VerifierSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="PICOSPEC_VERIFIER__")

    port: Port = 9000
    target: Literal["llama", "vllm"] = "llama"
    """What runs the model: llama.cpp, or vLLM."""

    model: str = "qwen2.5-coder"
    """A name of the catalogue (of a pair, its target), owner/repo of the hub, or a path."""

    served_name: str | None = None
    """Requests call the model by this name. None: its catalogue name, or its file's."""

    chat_template: Path | None = None
    """This Jinja file replaces the model's own chat template."""

    sessions: SessionSettings = SessionSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    llama: LlamaSettings = LlamaSettings()
    vllm: dict[str, Any] = Field(default_factory=dict)
    """This table has the flags of `vllm serve`, by name, and `self_test`, which is ours."""

    body_limit_bytes: Annotated[int, Field(ge=1 << 21)] | None = None

    load_timeout_s: Seconds = 7200.0
    """The process ends if the target takes longer to load, fetching by vLLM included."""

    pass_timeout_s: Seconds | None = None
    """The process ends, to be started again, when no pass has ended or the engine has not
    answered for this time. None: 300 s on CPUs, and 60 s on a GPU (PASS_TIMEOUT_S)."""

    @model_validator(mode="after")
    def _pass_holds_a_draft(self) -> Self:
        most = self.limits.max_verify
        if self.target == "llama" and self.llama.max_rows <= most:
            raise ValueError("llama.max_rows must exceed speculation.max_verify")
        if self.target == "llama" and most > EXACT_DRAFTS:
            raise ValueError(f"speculation.max_verify: llama.cpp is exact up to {EXACT_DRAFTS}")
        if self.target == "vllm" and most > VLLM_DRAFTS:
            raise ValueError(f"speculation.max_verify: vLLM takes at most {VLLM_DRAFTS}")
        return self

    @property
    def limits(self) -> Limits:
        """Return the limits that a session is opened with."""
        return Limits(
            self.speculation.max_verify or MAX_VERIFY[self.target],
            self.speculation.max_ahead,
            self.sessions.idle_timeout_s,
        )

    @property
    def owners(self) -> Owners:
        """Return what tells whose prefixes and answers a request may use."""
        return Owners(self.share_prefixes, self.speculation.keep_answers)


load = VerifierSettings.load
