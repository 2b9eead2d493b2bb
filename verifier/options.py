"""Takes llama-server's options, under its names, as settings of the table `llama`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "gpu_layers": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
    "split_mode": ("-sm", "--split-mode"),
    "tensor_split": ("-ts", "--tensor-split"),
    "main_gpu": ("-mg", "--main-gpu"),
    "override_tensor": ("-ot", "--override-tensor"),
    "cache_type_k": ("-ctk", "--cache-type-k"),
    "cache_type_v": ("-ctv", "--cache-type-v"),
    "flash_attention": ("-fa", "--flash-attn"),
    "context_tokens": ("-c", "--ctx-size"),
    "slots": ("-np", "--parallel"),
    "threads": ("-t", "--threads"),
    "head": ("--head",),
    "exact": ("--exact",),
}
"""Maps a setting to its options; `head` and `exact` are ours. -c counts the tokens of each
slot."""

_SETTING: Final = {option: name for name, options in SETTINGS.items() for option in options}
_ALL: Final = {"gpu_layers": ("all", "auto"), "context_tokens": ("0",)}
"""These values mean the default, as at llama-server."""


def llama_options(arguments: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Return the settings that llama-server's options among the arguments make, and all other
    arguments in order. Raises ValueError for an option without a value."""
    settings: dict[str, object] = {}
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        name = _SETTING.get(option)
        if name is None:
            others.append(word)
            continue
        if not equals and (value := next(words, "")) == "":
            raise ValueError(f"{option}: expected a value")
        if name in ("override_tensor", "tensor_split"):
            several = settings.setdefault(name, [])
            several.extend(value.split(","))  # type: ignore[attr-defined]
        elif value in _ALL.get(name, ()):
            settings.pop(name, None)
        else:
            settings[name] = value
    return settings, others
