"""Checks what the installed llama.cpp can compute on, and says how to get another build."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from local_models.llama_cpp.devices import Device, all_devices, backends, computing
from local_models.llama_cpp.library import INSTALL, has_llama
from picospec.findings import Finding

CUDA, ROCM, METAL, VULKAN = "CUDA", "ROCm", "Metal", "Vulkan"

_OPTIONS: Final = {
    CUDA: "-DGGML_CUDA=on",
    ROCM: "-DGGML_HIP=on",
    METAL: "-DGGML_METAL=on",
    VULKAN: "-DGGML_VULKAN=on",
}
"""CMake's option that builds llama.cpp for a kind of GPU."""

_WHEELS: Final = {
    CUDA: "cu121, cu122, cu123, cu124, cu125, cu130 or cu132, by the version of CUDA",
    ROCM: "rocm72",
    METAL: "metal",
    VULKAN: "vulkan",
}
"""llama-cpp-python has prebuilt wheels of these names; its README says where."""


def gpu_here() -> str | None:
    """Return the kind of this machine's GPU, by the driver that is installed."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return METAL
    if shutil.which("nvidia-smi"):
        return CUDA
    if Path("/dev/kfd").exists():
        return ROCM
    return VULKAN if any(Path("/dev/dri").glob("renderD*")) else None


def build_for(gpu: str) -> str:
    """Return how to get a llama.cpp for a kind of GPU."""
    return (
        f'CMAKE_ARGS="{_OPTIONS[gpu]}" {INSTALL} --force-reinstall --no-binary'
        f" llama-cpp-python; or llama-cpp-python's prebuilt wheel {_WHEELS[gpu]}, of the same"
        " version"
    )


def check_backends() -> list[Finding]:
    """Check this machine's llama.cpp; an empty list without one."""
    return findings(gpu_here(), backends(), all_devices()) if has_llama() else []


def findings(gpu: str | None, names: Sequence[str], devices: Sequence[Device]) -> list[Finding]:
    """Return what to show of backends and devices. A GPU that llama.cpp does not use is a
    warning: both models then run on the processor."""
    own = Finding("backends", True, f"llama.cpp was built for {', '.join(names)}")
    if used := computing(devices):
        return [own, *(Finding("device", True, str(each)) for each in used)]
    if gpu is None:
        return [own, Finding("device", True, "the processor alone; there is no GPU")]
    found = f"the processor alone: this llama.cpp does not use the GPU ({gpu})"
    return [own, Finding("device", True, found, build_for(gpu), warns=True)]
