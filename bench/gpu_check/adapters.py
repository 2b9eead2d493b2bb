"""Writes LoRA adapters with random weights for a model, so that any model can be checked with
several at once.

Models whose attention has `q_proj` and `v_proj` take them, such as Llama, Qwen and Mistral.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

NAMES: Final = ("one", "two")
RANK: Final = 8
SIZE: Final = 0.05
"""Weights of this size change an answer within a few tokens."""


def write(model: str, folder: Path) -> None:
    """Write an adapter for each of NAMES, in a folder of that name. model: a name or directory.
    Raises OSError, ValueError for a model without such attention."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or hidden // heads
    rows = {"q_proj": heads * head, "v_proj": kv_heads * head}
    about = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": list(rows),
    }  # fmt: skip
    for seed, name in enumerate(NAMES):
        chance = torch.Generator().manual_seed(seed)
        weights = dict[str, torch.Tensor]()
        for layer in range(config.num_hidden_layers):
            for module, count in rows.items():
                key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                a = torch.randn(RANK, hidden, generator=chance) / hidden**0.5
                b = torch.randn(count, RANK, generator=chance) * SIZE
                weights |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(json.dumps(about))
        save_file(weights, folder / name / "adapter_model.safetensors")
