"""Adds the methods that the service calls in vLLM's core process, by vLLM's own RPC.

Importing this module adds them to EngineCore; `picospec_attach` must be the first call.
"""

from __future__ import annotations

from vllm.v1.engine.core import EngineCore


def _attach(core: EngineCore) -> bool:
    """Let the scheduler wake the core and send between steps; False if this vLLM cannot."""
    core.scheduler.engine = core
    return hasattr(core, "input_queue") and hasattr(core, "output_queue")


EngineCore.picospec_attach = _attach
EngineCore.picospec_push = lambda core, session, data, arrived: core.scheduler.push(
    session, data, arrived
)
EngineCore.picospec_recall = lambda core, session, first: core.scheduler.recall(session, first)
EngineCore.picospec_figures = lambda core: core.scheduler.figures()
