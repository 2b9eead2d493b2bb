"""What Triton asks of a backend. Nothing is ever compiled."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import BaseBackend


def _never(*asked: object) -> Any:
    raise NotImplementedError("kernels are interpreted")


class CPUBackend(BaseBackend):
    hash = parse_options = add_stages = load_dialects = get_module_map = _never

    @staticmethod
    def supports_target(target: Any) -> bool:
        return target.backend == "cpu"
