"""Puts our hooks into vLLM's worker: those of the model runner that vLLM chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

Stock = Callable[..., Any]
"""vLLM has this in the place of one of our functions."""


def wrap(holder: Any, name: str, ours: Callable[..., Any]) -> None:
    """Call ours in the place of a function of vLLM's, and give it that function."""
    setattr(holder, name, partial(ours, getattr(holder, name)))


class PicoWorkerExtension:
    """Mixed into vLLM's worker on any platform; `picospec_install` is called once, by RPC."""

    model_runner: Any

    def picospec_install(self, tokens: int) -> None:
        """Put the judge in place. tokens: how many of the model's ids are tokens."""
        runner = self.model_runner
        if not hasattr(runner, "picospec_hooks"):
            runner.picospec_hooks = _hooks(runner)(runner, tokens)

    def picospec_answer(self) -> None:
        """Do nothing, to show that the worker lives."""


def _hooks(runner: Any) -> Callable[[Any, int], Any]:
    """Return the hooks for a runner. Only one of the two can be imported on some platforms."""
    if hasattr(runner, "req_states"):
        from picospec.verifier.vllm_target.worker.v2.hooks import RunnerHooks

        return RunnerHooks
    from picospec.verifier.vllm_target.worker.v1.hooks import SamplerHooks

    return SamplerHooks


class NullProposer:
    """The proposer of Model Runner V1, which has it build its speculative path. It proposes
    nothing: the draft tokens come from the edge."""

    def __init__(self, vllm_config: object) -> None:
        """Take vLLM's settings, as its loader gives them."""

    def load_model(self, *args: object, **kwargs: object) -> None:
        """Load nothing; vLLM's CPU runner calls this of every proposer."""

    def propose(
        self, sampled_token_ids: Sequence[object], *args: object, **kwargs: object
    ) -> list[list[int]]:
        """Return no drafts for each row of the batch."""
        return [[] for _ in sampled_token_ids]
