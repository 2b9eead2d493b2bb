"""Options become llama.cpp's parameters, and what does not fit is refused with the numbers."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest

from local_models.errors import CannotOpen
from local_models.llama_cpp import devices as room
from local_models.llama_cpp.devices import (
    CPU,
    Demand,
    Device,
    Placement,
    check_fit,
    checked,
    computing,
    device_room,
    division,
    place,
)
from local_models.llama_cpp.library import lib

MIB = 1 << 20
HOST = Device("CPU", "a processor", "CPU", "cpu", 8000 * MIB, 16000 * MIB)
CARDS = [Device(f"CUDA{i}", "a card", "CUDA", "gpu", 1000 * MIB, 1200 * MIB) for i in range(2)]
INTEGRATED = Device("Vulkan0", "integrated", "Vulkan", "igpu", 4000 * MIB, 8000 * MIB)

TENSORS = {
    "token_embd.weight": 50 * MIB,
    **{f"blk.{i}.{part}.weight": 50 * MIB for i in range(4) for part in ("attn", "ffn")},
    "output_norm.weight": 0,
    "output.weight": 60 * MIB,
}
ALL = Placement(-1)


def test_every_option_reaches_the_parameters_of_llama_cpp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_buffer_type", {"CPU": 8, "CUDA1": 16}.get)
    wanted = Placement(7, "row", (3.0, 1.0), 1, (r"ffn=CPU", r"blk\.(1|2)=CUDA1"))
    settings = lib.llama_model_default_params()

    kept = place(settings, wanted)

    assert (settings.n_gpu_layers, settings.main_gpu) == (7, 1)
    assert settings.split_mode == lib.LLAMA_SPLIT_MODE_ROW
    assert settings.tensor_split[:3] == [3.0, 1.0, 0.0]
    rows = ctypes.cast(settings.tensor_buft_overrides, ctypes.POINTER(room._Override))
    overrides = [(rows[i].pattern, rows[i].buffer_type) for i in range(3)]
    assert overrides == [(b"ffn", 8), (rb"blk\.(1|2)", 16), (None, None)]
    assert len(kept) == 2


def test_without_layers_on_devices_none_computes() -> None:
    settings = lib.llama_model_default_params()

    kept = place(settings, CPU)

    devices = ctypes.cast(settings.devices, ctypes.POINTER(ctypes.c_void_p))
    assert kept
    assert devices[0] is None


def test_integrated_devices_compute_only_where_there_is_no_other() -> None:
    assert computing([HOST, INTEGRATED, *CARDS]) == CARDS
    assert computing([HOST, INTEGRATED]) == [INTEGRATED]
    assert computing([HOST]) == []


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(-1, main_gpu=2), "main_gpu = 2: devices are 0..1"),
        (Placement(-1, tensor_split=(1, 1, 1)), "tensor_split has 3 of 2 parts"),
        (Placement(-1, override_tensor=("ffn=CUDA7",)), "CUDA7 is none of CPU, CUDA0, CUDA1"),
        (Placement(-1, override_tensor=("(=CPU",)), r"override_tensor: '\('"),
    ],
)
def test_what_the_devices_cannot_do_is_refused_by_its_name(
    placement: Placement, message: str
) -> None:
    with pytest.raises(CannotOpen, match=message):
        checked(placement, [HOST, *CARDS])


def test_layers_for_a_device_that_is_not_there_are_refused() -> None:
    with pytest.raises(CannotOpen, match=r"gpu_layers = 3: .* picospec doctor"):
        checked(Placement(3), [HOST])
    with pytest.raises(CannotOpen, match="override_tensor are for a device"):
        checked(Placement(override_tensor=("ffn=CPU",)), [HOST, *CARDS])
    assert checked(CPU, [HOST, *CARDS]) == []
    assert checked(Placement(-1, "none", main_gpu=1), CARDS) == CARDS[1:]


def test_the_last_layers_are_on_devices_and_named_tensors_where_they_are_named() -> None:
    every, some = division(TENSORS, 4, ALL), division(TENSORS, 4, Placement(3))
    moved = division(TENSORS, 4, Placement(-1, override_tensor=(r"\.ffn\.=CPU",)))
    tied = {name: size for name, size in TENSORS.items() if name != "output.weight"}

    assert every.device_bytes == 460 * MIB
    assert (some.device_bytes, some.device_layers, some.kv_share) == (260 * MIB, 2, 0.5)
    assert (moved.device_bytes, moved.kv_share) == (260 * MIB, 1.0)
    assert division(tied, 4, ALL).device_bytes == 450 * MIB
    assert division(TENSORS, 4, CPU).device_bytes == 0


def test_what_does_not_fit_is_refused_with_the_numbers_and_what_would_fit() -> None:
    demand = Demand(slots=4, kv_bytes=MIB / 16, pass_bytes=40 * MIB)
    divided = division(TENSORS, 4, ALL)
    card = CARDS[:1]

    assert device_room(demand, divided, card) == 2000
    assert device_room(demand, divided, [replace(CARDS[0], total_bytes=0)]) == float("inf")
    check_fit(2000, demand, TENSORS, divided, ALL, card)
    with pytest.raises(CannotOpen) as refusal:
        check_fit(2600, demand, TENSORS, divided, ALL, card)

    message = str(refusal.value)
    assert "CUDA0 (a card), 1,000 of 1,200 MiB free" in message
    assert "460 MiB for weights, 650 for the KV of 4 slots of 2600 tokens" in message
    assert "gpu_layers = 4 of 5" in message
    states = replace(demand, state_bytes=50 * MIB)
    assert device_room(states, divided, card) == 2000 - 800
    with pytest.raises(CannotOpen, match=r"weights, 200 for the states .* lower speculation"):
        check_fit(2000, states, TENSORS, divided, ALL, card)
    check_fit(2600, demand, TENSORS, division(TENSORS, 4, Placement(4)), Placement(4), card)
