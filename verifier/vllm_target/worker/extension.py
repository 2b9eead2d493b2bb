"""Puts into vLLM's worker our hooks for the model runner that vLLM chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class PicoWorkerExtension:
    """Extends vLLM's worker on any platform. RPC calls `picospec_install` once."""

    model_runner: Any
    picospec_hooks: Any = None

    def picospec_install(self, tokens: int) -> None:
        """Install the judge. tokens: the number of the model's ids that are tokens."""
        runner = self.model_runner
        if self.picospec_hooks is None:
            self.picospec_hooks = _hooks(runner)(runner, tokens)
            if runner.device.type != "cpu":
                self.picospec_hooks.warm_up()

    def picospec_answer(self) -> None:
        """Do nothing; the answer shows that the worker is alive."""


def _hooks(runner: Any) -> Callable[[Any, int], Any]:
    """Return the hooks for a runner. Some platforms can import only one of the two."""
    if hasattr(runner, "req_states"):
        from verifier.vllm_target.worker.v2 import RunnerHooks

        return RunnerHooks
    from verifier.vllm_target.worker.v1 import SamplerHooks

    return SamplerHooks


class NullProposer:
    """Makes Model Runner V1 build its speculative path, as a proposer. It proposes nothing: the
    draft tokens come from the edge."""

    def __init__(self, vllm_config: object) -> None:
        """Accept vLLM's settings, which its loader passes."""

    def load_model(self, *args: object, **kwargs: object) -> None:
        """Load nothing; vLLM's CPU runner calls this on every proposer."""

    def propose(
        self, sampled_token_ids: Sequence[object], *args: object, **kwargs: object
    ) -> list[list[int]]:
        """Return an empty draft for each row of the batch."""
        return [[] for _ in sampled_token_ids]
