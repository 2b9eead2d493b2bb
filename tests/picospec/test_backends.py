"""What the doctor shows of llama.cpp's backends and devices."""

from __future__ import annotations

import pytest

from local_models.llama_cpp.devices import Device
from picospec.backends import findings

HOST = Device("CPU", "a processor", "CPU", "cpu", 1 << 30, 1 << 30)
CARD = Device("CUDA0", "a card", "CUDA", "gpu", 23 << 30, 24 << 30)


def test_backends_and_devices_are_shown_with_their_memory() -> None:
    backends, device = findings("CUDA", ["CUDA", "CPU"], [CARD, HOST])

    assert "CUDA, CPU" in backends.found
    assert device.found == "CUDA0 (a card), 23,552 of 24,576 MiB free"
    assert not device.advice


@pytest.mark.parametrize(
    ("gpu", "option", "wheel"),
    [("CUDA", "-DGGML_CUDA=on", "cu124"), ("Vulkan", "-DGGML_VULKAN=on", "vulkan")],
)
def test_a_gpu_that_is_not_used_is_a_warning_with_two_ways_out(
    gpu: str, option: str, wheel: str
) -> None:
    *_, device = findings(gpu, ["CPU"], [HOST])

    assert device.ok
    assert device.warns
    assert option in device.advice
    assert wheel in device.advice


def test_without_a_gpu_there_is_nothing_to_do() -> None:
    *_, device = findings(None, ["CPU"], [HOST])

    assert not device.advice
