"""What crosses between vLLM's processes: the choice made at start, sessions, and orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import msgspec

from speculation.answer_cache import Owner
from speculation.distributions import Distribution, Logits, distribution
from speculation.judge import Judgement, Row, Rule
from speculation.logit_settings import LogitSettings
from speculation.logits import Adjustment
from speculation.messages import Limits, Open, Sampling, TokenId

# A Choice carries the plugin's choice for this engine to the core and the workers.
#
# It travels in `VllmConfig.additional_config`, which vLLM passes to all of its processes.

NAME: Final = "picospec"
"""Our plugins have this name in VLLM_PLUGINS, and our entry in `additional_config` this key."""

CONFIG: Final = "PICOSPEC_VERIFIER_CONFIG"
"""This environment variable gives our plugin the path of the settings file."""

MOST_ROWS: Final = 1024
"""A step with draft tokens has at most this many rows, or one for each request if that is more:
the memory of their logits is taken when KV has its memory already, and vLLM measures before
only a step with a row for each request. 1,024 rows of 152,000 tokens take 0.9 GB, in bfloat16
and once more in float32."""

MASK_ROWS: Final = (1, 4, 16)
"""The masks of each request with a grammar have one of these numbers of rows, or that of the
room for draft tokens: vLLM compiles a kernel for each number."""

SOCKET: Final = "PICOSPEC_VLLM_SOCKET"
"""This environment variable names the folder of vLLM's socket, for a vLLM without a port of its
own."""

FOLDER_PREFIX: Final = "picospec-vllm-"
"""The folder's name begins with this."""


@dataclass(frozen=True, slots=True)
class RunnerChoice:
    runner: Literal["v1", "v2"]
    """vLLM uses this model runner."""

    max_verify: int
    """One step has at most this many draft tokens of a session. A token that is already
    committed may precede them."""

    head: int = 0
    """vLLM's own speculation (--speculative-config) proposes this many draft tokens."""

    seed_exact: bool = False
    """True if our judge also judges the requests without a session."""

    unequal_graphs: bool = False
    """True if steps in which requests have unequal rows should run on FULL CUDA graphs."""

    @property
    def width(self) -> int:
        """Return the most draft tokens of a request in one step, including a committed one."""
        return max(self.max_verify + 1, self.head)

    def added_to(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return `additional_config` with this choice added."""
        return {**parameters, NAME: asdict(self)}

    @staticmethod
    def of(vllm_config: Any) -> RunnerChoice | None:
        """Return the choice in a config; None if the engine serves no sessions."""
        parameters = vllm_config.additional_config
        fields = parameters.get(NAME) if isinstance(parameters, dict) else None
        return None if fields is None else RunnerChoice(**fields)


# Carries a session into vLLM's core, packed into the one free field of vLLM's request, and its
# messages after it.

FIELD: Final = "picospec"
"""Our entry in SamplingParams.extra_args and in outputs' kv_transfer_params has this key."""

PUSH: Final = "picospec_push"
"""A call of this name has a Batch. A core passes it to its scheduler, and does not answer."""

Batch = Sequence[tuple[str, bytes]]
"""A Batch has the names of sessions, each with a packed message."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An Admission has the data from which the core runs a session."""

    session: str
    request: Open
    """This Open lacks its prompt, which vLLM has, and the extras."""

    prompt_tokens: int
    limits: Limits
    settings: LogitSettings
    """The request's extras ask for these changes of the logits."""

    vocabulary_size: int
    drawn_by_vllm: bool = False
    """True if vLLM's own sampler draws the session's tokens, with the settings of vLLM's
    request; `settings` then changes nothing."""

    owner: Owner | None = None
    """The session may draft from this owner's earlier answers."""

    def pack(self) -> bytes:
        """Return the admission in a type that vLLM can carry between processes."""
        return msgspec.msgpack.encode(replace(self, request=replace(self.request, prompt=())))

    @staticmethod
    def unpack(packed: bytes) -> Admission:
        """Return the admission that was packed."""
        return msgspec.msgpack.decode(packed, type=Admission)


# A VerifyRequest tells the worker what to judge in one step for one session.
#
# It holds values only, and travels pickled inside vLLM's SchedulerOutput. The worker answers
# with a `speculation.judge.Judgement` inside vLLM's ModelRunnerOutput. No answer means that
# vLLM judged the pass by shared noise, and all tokens that it generated are the outcome.

NOTHING: Final = Judgement((), accepted=0)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """A VerifyRequest is one session's part of a step that samples."""

    sampling: Sampling
    """Our judge still applies these settings to the logits. They have no extras."""

    rule: Rule | None
    """The pass is judged by this rule; None if none has begun: then nothing is generated."""

    draft: tuple[TokenId, ...] = ()
    """The step has all of these tokens of ours."""

    known: int = 0
    """The first `known` tokens of the draft are committed, and only tell vLLM so: they precede
    the pass and are accepted whatever their p."""

    adjustment: Adjustment | None = None
    """This adjusts the logits of the step's first row to the session; None adjusts no row."""

    def judge_logits(self, logits: Callable[[int], Logits]) -> Judgement:
        """Return the outcome of the step, judged on the host. Rows are read one by one, and
        none after that of the first rejected draft token.

        logits(i): float32[V] of the i-th row that vLLM computed for the session, after the
        masks of grammars.
        """

        def row(i: int) -> Distribution:
            logits_row = logits(i)
            if self.adjustment is not None:
                logits_row = self.adjustment.after(self.draft[:i]).apply(logits_row)
            return distribution(logits_row, self.sampling)

        return self.judge(row)

    def judge(self, row: Row) -> Judgement:
        """Return the outcome of the step: committed tokens, then those of the pass."""
        if self.rule is None:
            return NOTHING
        judgement = self.rule.judge(lambda i: row(self.known + i), self.draft[self.known :])
        before = self.draft[: self.known]
        return replace(
            judgement,
            tokens=(*before, *judgement.tokens),
            accepted=self.known + judgement.accepted,
        )
