"""Decides from the settings what llama.cpp computes where, and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, cast

from gateway.hosting.cores import compute_threads
from local_models.errors import CannotOpen
from local_models.gguf import tensor_bytes
from local_models.llama_cpp.context_length import (
    Length,
    context_length,
    fitting_tokens,
    kv_bytes_per_token,
    memory_bytes,
    state_bytes,
)
from local_models.llama_cpp.devices import (
    Demand,
    Device,
    Placement,
    all_devices,
    check_fit,
    checked,
    computing,
    device_room,
    division,
    mib,
    pass_bytes,
)
from local_models.llama_cpp.footprint import Footprint, footprint, gigabytes
from local_models.llama_cpp.kv_cache import Cache, KvCache
from local_models.llama_cpp.model import HEADS, Model
from verifier.settings import LlamaSettings

MIN_TOKENS: Final = 4096
"""A context has at least this many tokens on any machine, if its model supports them."""

CHECKPOINTS: Final = 3
"""A slot of a recurrent model keeps its states after as many of the last pieces of a prompt:
the next turn often begins with all of it but its last tokens, and a piece may be short."""

FILLED: Final = 0.9
"""A context that no setting chooses takes at most this share of a device's room for KV."""


@dataclass(frozen=True)
class Plan:
    """A Plan says how a target is computed. here: the devices of this machine."""

    settings: LlamaSettings
    here: Sequence[Device]

    @classmethod
    def of(cls, settings: LlamaSettings) -> Plan:
        """Return the plan for this machine. Raises NoLlama, CannotOpen."""
        return cls(settings, [] if settings.gpu_layers == 0 else all_devices())

    @cached_property
    def placement(self) -> Placement:
        """Return what devices compute: all, unless a setting wants less."""
        wanted = self.settings
        layers = wanted.gpu_layers
        if layers is None:
            layers = -1 if computing(self.here) else 0
        return Placement(
            layers,
            wanted.split_mode,
            wanted.tensor_split,
            wanted.main_gpu,
            wanted.override_tensor,
        )

    @cached_property
    def devices(self) -> Sequence[Device]:
        """Return the devices that compute. Raises CannotOpen."""
        return checked(self.placement, self.here)

    @property
    def threads(self) -> int:
        return self.settings.threads or compute_threads()

    @property
    def cache(self) -> Cache:
        """Return the type of the keys. With several threads of the processor, an F16 cache lets
        passes differ in the last bit."""
        if self.settings.cache_type_k:
            return cast(Cache, self.settings.cache_type_k.upper())
        return "F16" if self.devices or self.threads == 1 else "Q8_0"

    @property
    def cache_v(self) -> Cache:
        return cast(Cache, (self.settings.cache_type_v or self.cache).upper())

    def kv(self, max_verify: int) -> KvCache:
        return KvCache(
            self.settings.slots,
            self.cache,
            self.cache_v,
            max_verify,
            CHECKPOINTS,
            has_head=self.settings.head is not None,
        )

    @property
    def flash_attention(self) -> bool | None:
        default = "auto" if self.devices else "on"
        return {"on": True, "off": False, "auto": None}[
            self.settings.flash_attention or default
        ]

    @property
    def exact(self) -> Literal["near", "strict"]:
        return self.settings.exact or ("near" if self.devices else "strict")

    @property
    def is_known(self) -> bool:
        """True if passes are exact by the settings alone, as on processors by default: then no
        test is needed at the start."""
        own = self.settings
        changes = (own.cache_type_k, own.cache_type_v, own.flash_attention)
        return not self.devices and not any(changes)

    @property
    def may_pad(self) -> bool:
        """True if passes may be padded by rows that need room in a slot."""
        return not self.is_known and self.exact == "strict"

    @property
    def shapes(self) -> Sequence[object]:
        """Return what shapes a text beside the weights and the engine."""
        shapes: tuple[object, ...] = (self.threads, self.cache)
        if self.is_known:
            return shapes
        names = [(each.backend, each.description) for each in self.devices]
        placement = astuple(self.placement) if self.devices else ()
        shapes = (*shapes, self.cache_v, self.flash_attention, self.exact, names, placement)
        return (*shapes, self.settings.head) if self.settings.head else shapes

    @property
    def prefill_rows(self) -> int:
        """Return how many tokens of a prompt may be read at once."""
        return self.settings.max_rows if self.devices else self.settings.prefill_rows

    def logits_rows(self, max_rows: int) -> int:
        """Return how many rows of a pass may have logits: those of all sessions, with max_rows
        each, or those of a prompt whose log-probabilities are wanted."""
        wanted = max(self.settings.slots * max_rows, self.prefill_rows)
        return min(wanted, self.settings.max_rows)

    def footprint(self, model: Model, max_rows: int) -> Footprint:
        """Return the memory that the verifier takes without devices. model: its vocabulary
        suffices. Raises CannotOpen as `length` and `check_head` do."""
        self.check_head(model)
        length = self.length(model, self.settings.context_tokens, max_rows - 1)
        head_rows = self.settings.slots if self.settings.head else 0
        return footprint(model, length, self.logits_rows(max_rows) + head_rows)

    def check_head(self, model: Model) -> None:
        """Raise CannotOpen if the settings want a head and the model, of which the vocabulary
        suffices, has none."""
        if self.settings.head and not model.has_head:
            raise CannotOpen(
                f'llama.head = "{self.settings.head}": {model.path} has no MTP head of one'
                f" layer, or its heads were not tried; those of {' and '.join(HEADS)} were"
            )

    def length(self, model: Model, tokens: int | None, max_verify: int) -> Length:
        """Return the length of a slot's context. tokens: those chosen for it. Raises CannotOpen
        if the states of recurrent layers, one a draft token, do not fit into the memory."""
        length = context_length(
            model.metadata(),
            model.context_tokens,
            tokens,
            kv=self.kv(max_verify),
            min_tokens=MIN_TOKENS,
        )
        if not self.devices and length.state_bytes > (most := memory_bytes()):
            raise CannotOpen(
                f"the states of {model.architecture}'s recurrent layers take"
                f" {mib(length.state_bytes)} MiB of {mib(most)}. Each of {length.sequences}"
                f" slots has one for each of {max_verify} draft tokens, and"
                f" {CHECKPOINTS + 1} more. Take fewer llama.slots, or a lower"
                " speculation.max_verify"
            )
        return length

    def tokens(self, path: Path, max_verify: int) -> int | None:
        """Return the tokens of a slot for which devices have room; the setting, if there are
        none. Raises CannotOpen with the numbers, before weights are loaded."""
        wanted = self.settings.context_tokens
        model = Model(path, vocabulary_only=True)
        if not self.devices:
            needed = self.footprint(model, max_verify + 1)
            model.close()
            if needed.total > (most := memory_bytes()):
                raise CannotOpen(
                    f"the model does not fit into the memory of {gigabytes(most)}: the"
                    f" verifier takes {needed}. What helps: fewer llama.slots, or a shorter"
                    " llama.context_tokens"
                )
            return wanted
        self.check_head(model)
        facts, trained = model.metadata(), model.context_tokens
        model.close()

        def number(name: str) -> int:
            return int(facts.get(f"{facts['general.architecture']}.{name}", "0"))

        tensors = tensor_bytes(path)
        divided = division(tensors, number("block_count"), self.placement)
        demand = Demand(
            self.settings.slots,
            kv_bytes_per_token(facts, self.kv(max_verify)),
            (2 if self.settings.head else 1)
            * pass_bytes(
                self.settings.max_rows, model.vocabulary_size, number("embedding_length")
            ),
            state_bytes(facts) * (1 + max_verify),
        )
        room = device_room(demand, divided, self.devices)
        chosen = fitting_tokens(trained, 1, MIN_TOKENS, FILLED * room)
        tokens = min(trained, wanted or chosen)
        check_fit(tokens, demand, tensors, divided, self.placement, self.devices)
        return tokens
