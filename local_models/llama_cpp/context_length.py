"""Chooses a context's length if no setting does: the model's own, as far as memory allows.

The KV of all sequences is allocated at the start. It may take a share of the memory that this
process may have, which is the same at each start, and less only if little of it is free. A
context that is shorter than the model's has a power of two of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.system import physical_memory_bytes
from local_models.llama_cpp.kv_cache import Cache, KvCache

SHARE: Final = 8
"""The KV takes at most 1/SHARE of the memory: an eighth leaves room for both ends with their
weights on one machine of 8 GiB."""

FREE_SHARE: Final = 2
"""The KV takes at most 1/FREE_SHARE of the free memory."""

_CGROUPS: Final = Path("/sys/fs/cgroup")
_CACHES: Final[Mapping[Cache, float]] = {
    **{"F32": 4, "F16": 2, "BF16": 2, "Q8_0": 34 / 32},
    **{"Q5_1": 24 / 32, "Q5_0": 22 / 32, "Q4_1": 20 / 32, "Q4_0": 18 / 32, "IQ4_NL": 18 / 32},
}
"""A value has this many bytes in each type of cache; Q8_0 has two more for each 32."""


@dataclass(frozen=True, slots=True)
class Length:
    """A Length is that of a context, with the memory of its KV."""

    tokens: int
    trained: int
    """The model was trained for this many tokens."""

    sequences: int
    kv_bytes: int
    state_bytes: int = 0
    """The states of recurrent layers in all sequences, with the copies to go back by."""

    def log_fields(self) -> dict[str, int]:
        """Return the fields for a log."""
        fields = {
            "tokens": self.tokens,
            "model_tokens": self.trained,
            "slots": self.sequences,
            "kv_mib": self.kv_bytes >> 20,
        }
        return fields | {"states_mib": self.state_bytes >> 20} if self.state_bytes else fields


def context_length(
    facts: Mapping[str, str],
    trained: int,
    context_tokens: int | None,
    *,
    kv: KvCache,
    min_tokens: int,
) -> Length:
    """Return the length of a context. facts: the metadata of the model's GGUF file;
    context_tokens: the setting; min_tokens: the minimum, even if memory is short."""
    kv_bytes = kv_bytes_per_token(facts, kv) * kv.sequences
    states = state_bytes(facts) * kv.states * kv.sequences
    room = room_bytes() - states
    tokens = context_tokens or fitting_tokens(trained, kv_bytes, min_tokens, room)
    tokens = min(tokens, trained)
    return Length(tokens, trained, kv.sequences, int(tokens * kv_bytes), states)


def fitting_tokens(trained: int, kv_bytes: float, min_tokens: int, room_bytes: float) -> int:
    """Return the longest context that fits. kv_bytes: bytes of a token in all sequences."""
    if trained * kv_bytes <= room_bytes:
        return trained
    tokens = min_tokens
    while 2 * tokens * kv_bytes <= room_bytes:
        tokens *= 2
    return min(tokens, trained)


def kv_bytes_per_token(facts: Mapping[str, str], kv: KvCache) -> float:
    """Return the bytes of KV of a token in one sequence. facts: the metadata of a GGUF file.
    This is an upper bound: some layers of some models take less."""
    heads = _number(facts, "attention.head_count", 1)
    width = _number(facts, "embedding_length") // max(heads, 1)
    key_bytes = _number(facts, "attention.key_length", width) * _CACHES[kv.keys]
    value_bytes = (
        _number(facts, "attention.value_length", width) * _CACHES[kv.values or kv.keys]
    )
    kv_heads = _number(facts, "attention.head_count_kv", heads)
    layers = _attention_layers(facts) + (_head_layers(facts) if kv.has_head else 0)
    return layers * kv_heads * (key_bytes + value_bytes)


def state_bytes(facts: Mapping[str, str]) -> int:
    """Return the bytes of the recurrent layers' states after one token of one sequence; 0 if
    there are none. This is an upper bound: a file does not always name these layers. The source
    is llama.cpp's llama_hparams::n_embd_r and n_embd_s, which are kept in F32."""
    kernel, width = _number(facts, "ssm.conv_kernel"), _number(facts, "ssm.inner_size")
    state = _number(facts, "ssm.state_size")
    channels = width + 2 * _number(facts, "ssm.group_count") * state
    short = _number(facts, "embedding_length") * (_number(facts, "shortconv.l_cache", 1) - 1)
    layers = _number(facts, "block_count") - _head_layers(facts)
    if (attention := _attention_layers(facts)) < layers:
        layers -= attention
    return 4 * layers * (max(kernel - 1, 0) * channels + state * width + short)


def _attention_layers(facts: Mapping[str, str]) -> int:
    layers = _number(facts, "block_count") - _head_layers(facts)
    return layers // _number(facts, "full_attention_interval", 1)


def _head_layers(facts: Mapping[str, str]) -> int:
    """Return the number of the last layers that are a head."""
    return _number(facts, "nextn_predict_layers")


def _number(facts: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    value = facts.get(f"{facts['general.architecture']}.{name}", "")
    return int(value) if value.isdecimal() else otherwise


def memory_bytes() -> int:
    """Return how much memory this process may take at most."""
    return min([physical_memory_bytes(), *_limits(Path("/proc/self/cgroup"), _CGROUPS)])


def room_bytes() -> float:
    """Return the number of bytes that the KV may take."""
    return min(memory_bytes() / SHARE, free_bytes() / FREE_SHARE)


def _limits(own: Path, root: Path) -> Iterator[int]:
    """Yield the memory limits of this process's control groups."""
    try:
        path = root / own.read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:  # the system has none, as on macOS
        return
    for group in (path, *path.parents):
        try:
            limit = (group / "memory.max").read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():
            yield int(limit)


def free_bytes() -> int:
    """Return how much memory is free; `memory_bytes` if the system does not report it."""
    memory = memory_bytes()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return memory
    free = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "")
    return min(memory, int(free) * 1024) if free.isdecimal() else memory
