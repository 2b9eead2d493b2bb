"""Puts our hooks into vLLM's worker: those of the model runner that vLLM chose."""

from __future__ import annotations

from typing import Any

from picospec.gateway.hosting.parent_death import die_with_parent
from picospec.verifier.vllm_target.worker.v1.hooks import SamplerHooks


class PicoWorkerExtension:
    """Mixed into vLLM's worker on any platform; `picospec_install` is called once, by RPC."""

    model_runner: Any

    def picospec_install(self, tokens: int) -> None:
        """Put the judge in place. tokens: how many of the model's ids are tokens."""
        runner = self.model_runner
        if hasattr(runner, "picospec_hooks"):
            return
        if hasattr(runner, "req_states"):
            raise NotImplementedError("sessions are not served on vLLM's Model Runner V2")
        runner.picospec_hooks = SamplerHooks(runner, tokens)
        die_with_parent()

    def picospec_answer(self) -> None:
        """Do nothing, to show that the worker lives."""
