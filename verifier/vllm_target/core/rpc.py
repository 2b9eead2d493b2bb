"""vLLM's core gets these methods, which vLLM's own RPC finds by name."""

from __future__ import annotations

from vllm.v1.engine.core import EngineCore


def attach(core: EngineCore) -> bool:
    """Let the core's scheduler wake the core, see SessionScheduler.attach."""
    return core.scheduler.attach(core)


def read(core: EngineCore) -> None:
    """Do nothing; the answer shows that the core has read all messages before."""


def forget(core: EngineCore, tenant: str, user: str) -> None:
    """Forget the answers that are kept for an owner."""
    core.scheduler.forget(tenant, user)


def figures(core: EngineCore) -> dict[str, int]:
    """Return the scheduler's counts."""
    return core.scheduler.figures()


def learned_statistics(core: EngineCore) -> dict[str, object]:
    """Return what the scheduler's machine has learned."""
    return core.scheduler.learned_statistics()
