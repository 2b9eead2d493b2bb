"""Heads with random weights for the tiny Llama of the bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from picospec.bench.pace.vllm_servers import (
    CONFIG,
    EOS,
    HEAD,
    TOKENS,
    WIDTH,
    Normal,
    layer,
    make,
)

if TYPE_CHECKING:  # these are beside vLLM alone
    import torch

__all__ = ["EOS", "HEADS_BY_METHOD", "TOKENS", "make", "make_head"]


def make_head(method: str, directory: Path, *, seed: int = 0) -> Path:
    """Write a head that reads the model's hidden states: EAGLE-3, MTP or DFlash, by vLLM's name
    of it. Its weights are random, so that it is hardly ever right."""
    from safetensors.torch import save_file

    config, weights = HEADS_BY_METHOD[method]
    shape = {"num_hidden_layers": 1, "vocab_size": TOKENS, "draft_vocab_size": TOKENS}
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | shape | config))
    save_file(weights(Normal(seed)), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _eagle3_weights(normal: Normal) -> dict[str, torch.Tensor]:
    import torch

    weights = {
        "fc.weight": normal(WIDTH, 2 * WIDTH, 1.0),
        "lm_head.weight": normal(TOKENS, WIDTH, 3.0),
        "norm.weight": torch.ones(WIDTH),
        "midlayer.hidden_norm.weight": torch.ones(WIDTH),
    }
    return weights | layer(normal, "midlayer.", 2 * WIDTH)


def _mtp_weights(normal: Normal) -> dict[str, torch.Tensor]:
    import torch

    weights = {
        "model.embed_tokens.weight": normal(TOKENS, WIDTH, WIDTH**0.5),
        "lm_head.weight": normal(TOKENS, WIDTH, 3.0),
        "model.mtp_emb_norm.0.weight": torch.ones(WIDTH),
        "model.mtp_hidden_norm.0.weight": torch.ones(WIDTH),
        "model.mtp_linear_proj.0.weight": normal(WIDTH, 2 * WIDTH, 1.0),
    }
    return weights | layer(normal, "model.mtp_block.0.", WIDTH)


def _dflash_weights(normal: Normal) -> dict[str, torch.Tensor]:
    import torch

    weights = {
        "fc.weight": normal(WIDTH, 2 * WIDTH, 1.0),
        "hidden_norm.weight": torch.ones(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "layers.0.self_attn.q_norm.weight": torch.ones(HEAD),
        "layers.0.self_attn.k_norm.weight": torch.ones(HEAD),
    }
    return weights | layer(normal, "layers.0.", WIDTH)


HEADS_BY_METHOD: Final[dict[str, Any]] = {
    "eagle3": (
        {
            "architectures": ["LlamaForCausalLMEagle3"],
            "eagle_aux_hidden_state_layer_ids": [0, 1],
            "num_aux_hidden_states": 2,
        },
        _eagle3_weights,
    ),
    "mtp": (
        {"architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe"},
        _mtp_weights,
    ),
    "dflash": (
        {
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            "dflash_config": {"mask_token_id": 0, "target_layer_ids": [0, 1]},
        },
        _dflash_weights,
    ),
}
"""Of each method, what its configuration has besides, and what draws its weights."""
