"""What Triton asks of a driver. It is active, so that vLLM believes that kernels can run."""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class CPUDriver(DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 0)

    map_python_to_cpp_type = get_benchmarker = get_current_target  # never called

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")
