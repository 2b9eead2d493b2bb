"""Finds the devices of llama.cpp, and decides what of a model each of them holds.

* llama.cpp computes a model's last layers on devices, and the rest on the processor. A layer's
  KV is where its weights are. `Placement` has llama-server's options for this.
* What does not fit into the memory is refused before it is loaded, with the numbers. The sizes
  of weights and KV are exact; that of a pass's buffers is an estimate.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from local_models.errors import CannotOpen
from local_models.llama_cpp.library import ggml, lib

Kind = Literal["cpu", "gpu", "igpu", "accelerator", "meta"]
SplitMode = Literal["none", "layer", "row", "tensor"]

_KINDS: Final[tuple[Kind, ...]] = ("cpu", "gpu", "igpu", "accelerator", "meta")
"""The order of ggml's enum ggml_backend_dev_type."""

PASS_BYTES: Final = 256 << 20
"""A device keeps so much for its own kernels and small buffers. An estimate."""


@dataclass(frozen=True, slots=True)
class Device:
    """A Device computes for llama.cpp. name: as in -ot, such as CUDA0."""

    name: str
    description: str
    backend: str
    kind: Kind
    free_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.description}), {mib(self.free_bytes)} of"
            f" {mib(self.total_bytes)} MiB free"
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """A Placement names the parts of a model that devices compute, in llama-server's terms."""

    gpu_layers: int = 0
    """Devices hold this many of the last layers, the output layer included; -1: all. With 0
    nothing is computed on a device."""

    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    override_tensor: tuple[str, ...] = ()
    """Each is REGEX=DEVICE, and moves the tensors whose names match; DEVICE may be CPU."""


CPU: Final = Placement()


def mib(size_bytes: float) -> str:
    """Return a size in MiB, as messages show it."""
    return f"{size_bytes / (1 << 20):,.0f}"


def all_devices() -> list[Device]:
    """Return all devices of the installed llama.cpp, the processor included. Raises NoLlama."""
    return [_device(handle) for handle in _handles()]


def backends() -> list[str]:
    """Return the names of the backends that llama.cpp was built with. Raises NoLlama."""
    names = ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    get = ggml("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    count = ggml("ggml_backend_reg_count", ctypes.c_size_t)
    return [names(get(index)).decode() for index in range(count())]


def computing(devices: Sequence[Device]) -> list[Device]:
    """Return the devices that llama.cpp puts layers on: its GPUs; if none, integrated ones."""
    gpus = [each for each in devices if each.kind == "gpu"]
    return gpus or [each for each in devices if each.kind == "igpu"]


def checked(placement: Placement, devices: Sequence[Device]) -> list[Device]:
    """Return those of the computing devices that a placement uses. Raises CannotOpen for what
    they cannot do; the message names the option."""
    used = computing(devices)
    if not placement.gpu_layers:
        if placement != CPU:
            raise CannotOpen(
                "split_mode, tensor_split, main_gpu and override_tensor are for a device, and"
                " none computes (gpu_layers)"
            )
        return []
    if not used:
        raise CannotOpen(
            f"gpu_layers = {placement.gpu_layers}: this llama.cpp was built without a backend"
            " for a device, or finds none; picospec doctor shows how to get another build"
        )
    if not 0 <= placement.main_gpu < len(used):
        raise CannotOpen(f"main_gpu = {placement.main_gpu}: devices are 0..{len(used) - 1}")
    if len(placement.tensor_split) > len(used):
        raise CannotOpen(f"tensor_split has {len(placement.tensor_split)} of {len(used)} parts")
    known = {"CPU", *(each.name for each in used)}
    for pattern, name in _overrides(placement):
        if name not in known:
            raise CannotOpen(f"override_tensor: {name} is none of {', '.join(sorted(known))}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise CannotOpen(f"override_tensor: {pattern!r}: {error}") from None
    return [used[placement.main_gpu]] if placement.split_mode == "none" else used


def place(settings: ctypes.Structure, placement: Placement) -> list[object]:
    """Write a placement into llama_model_params. Return what must live until the model is
    loaded."""
    settings.n_gpu_layers = placement.gpu_layers
    if not placement.gpu_layers:
        # else a build for devices would compute large passes there, which round differently
        none = (ctypes.c_void_p * 1)(None)
        settings.devices = ctypes.cast(none, ctypes.c_void_p)
        return [none]
    settings.split_mode = getattr(lib, f"LLAMA_SPLIT_MODE_{placement.split_mode.upper()}")
    settings.main_gpu = placement.main_gpu
    kept: list[object] = []
    if placement.tensor_split:
        parts = (ctypes.c_float * lib.llama_max_devices())(*placement.tensor_split)
        settings.tensor_split = ctypes.cast(parts, ctypes.POINTER(ctypes.c_float))
        kept.append(parts)
    if overrides := _overrides(placement):
        rows = (_Override * (len(overrides) + 1))()
        for row, (pattern, name) in zip(rows, overrides, strict=False):
            row.pattern, row.buffer_type = pattern.encode(), _buffer_type(name)
        settings.tensor_buft_overrides = ctypes.cast(rows, ctypes.c_void_p)
        kept.append(rows)
    return kept


class _Override(ctypes.Structure):
    """ggml's llama_model_tensor_buft_override."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _overrides(placement: Placement) -> list[tuple[str, str]]:
    pairs = [each.rpartition("=") for each in placement.override_tensor]
    return [(pattern, name) for pattern, _, name in pairs]


def _buffer_type(name: str) -> int:
    if name == "CPU":
        return int(ggml("ggml_backend_cpu_buffer_type", ctypes.c_void_p)())
    by_name = ggml("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    of = ggml("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
    return int(of(by_name(name.encode())))


def _handles() -> Iterator[int]:
    get = ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    for index in range(ggml("ggml_backend_dev_count", ctypes.c_size_t)()):
        yield get(index)


def _device(handle: int) -> Device:
    def text(name: str, of: int) -> str:
        return bytes(ggml(name, ctypes.c_char_p, ctypes.c_void_p)(of)).decode()

    registry = ggml("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    kind = ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    sizes = ctypes.POINTER(ctypes.c_size_t)
    memory = ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, sizes, sizes)
    memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        text("ggml_backend_dev_name", handle),
        text("ggml_backend_dev_description", handle),
        text("ggml_backend_reg_name", registry(handle)),
        _KINDS[kind(handle)],
        free.value,
        total.value,
    )


_LAYER: Final = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Division:
    """A Division says how many bytes of the weights, and how many layers, devices hold."""

    device_bytes: int
    device_layers: int
    layers: int

    @property
    def kv_share(self) -> float:
        """Return the share of the KV that devices hold."""
        return self.device_layers / self.layers if self.layers else 0.0


def division(tensors: Mapping[str, int], layers: int, placement: Placement) -> Division:
    """Return how llama.cpp divides a model (llama_model::load_tensors). tensors: maps the
    names of a file's tensors to their sizes in bytes. layers: the number without the output
    layer."""
    wanted = placement.gpu_layers
    count = min(wanted if wanted >= 0 else layers + 1, layers + 1)
    first = layers + 1 - count
    overrides = [(re.compile(pattern), name) for pattern, name in _overrides(placement)]

    def on_device(tensor: str) -> bool:
        for pattern, name in overrides:
            if pattern.search(tensor):
                return name != "CPU"
        if layer := _LAYER.match(tensor):
            return int(layer[1]) >= first
        return count > 0 and tensor.startswith("output")

    device = sum(size for name, size in tensors.items() if on_device(name))
    if count and "output.weight" not in tensors:  # the input matrix is copied as the output one
        device += tensors.get("token_embd.weight", 0)
    return Division(device, min(layers, max(0, count - 1)), layers)


@dataclass(frozen=True, slots=True)
class Demand:
    """A Demand is what a verifier wants to hold: slots, and bytes of a token's KV in each.
    state_bytes: the states of recurrent layers in each slot take so many, whatever it holds."""

    slots: int
    kv_bytes: float
    pass_bytes: int
    """The buffers of a pass take this many bytes on each device."""

    state_bytes: int = 0


def device_room(demand: Demand, divided: Division, devices: Sequence[Device]) -> float:
    """Return the number of tokens in each slot for which devices have room; it may be below
    zero, and is inf if a device does not report its memory."""
    if not all(each.total_bytes for each in devices):
        return float("inf")
    free = sum(each.free_bytes for each in devices) - demand.pass_bytes * len(devices)
    a_token = demand.slots * demand.kv_bytes * divided.kv_share
    room = free - divided.device_bytes - demand.slots * demand.state_bytes * divided.kv_share
    return room / a_token if a_token else float("inf") if room >= 0 else -1.0


def check_fit(
    tokens: int,
    demand: Demand,
    tensors: Mapping[str, int],
    divided: Division,
    placement: Placement,
    devices: Sequence[Device],
) -> None:
    """Raise CannotOpen, with the numbers and what to do, unless the devices have room for the
    weights and the KV of `tokens` tokens in each slot."""
    if device_room(demand, divided, devices) >= tokens:
        return
    kv_bytes = tokens * demand.slots * demand.kv_bytes
    state_bytes = demand.slots * demand.state_bytes * divided.kv_share
    states, fewer = "", ""
    if state_bytes:
        states = f" {mib(state_bytes)} for the states of recurrent layers"
        states += " (one a slot and draft token),"
        fewer = " a lower speculation.max_verify,"
    fitting = next(
        count
        for count in range(divided.layers, -1, -1)
        if count == 0
        or device_room(
            demand,
            division(tensors, divided.layers, replace(placement, gpu_layers=count)),
            devices,
        )
        >= tokens
    )
    raise CannotOpen(
        f"the model does not fit into the memory of {'; '.join(map(str, devices))}: it needs"
        f" {mib(divided.device_bytes)} MiB for weights,{states}"
        f" {mib(kv_bytes * divided.kv_share)} for the KV of {demand.slots} slots of {tokens}"
        f" tokens and about {mib(demand.pass_bytes * len(devices))} for passes. What helps:"
        f" gpu_layers = {fitting} of {divided.layers + 1}, fewer slots,{fewer} a shorter"
        ' context_tokens, or cache_type_k and cache_type_v = "q8_0"'
    )


def pass_bytes(rows: int, vocabulary_size: int, width: int) -> int:
    """Return an estimate of what the buffers of a pass take on a device. width: the length of
    the model's widest vector of a row."""
    return PASS_BYTES + 4 * rows * (vocabulary_size + 4 * width)
