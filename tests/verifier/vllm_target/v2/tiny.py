"""Random weights for the tiny Llama of the bench and for its heads, and what is asked there of
vLLM itself and of sessions, which must answer the same tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from bench.pace import tiny_model
from bench.pace.tiny_model import CONFIG, EOS, HEAD, INNER, KV_HEADS, TOKENS, WIDTH
from speculation.messages import Open, Sampling
from speculation.model_facts import ModelFacts
from tests.verifier.vllm_target.scripted import PERSON, said_by_vllm, with_extras
from verifier.vllm_target.serving.target import VllmTarget

if TYPE_CHECKING:  # these are beside vLLM alone
    import torch


def make(directory: Path, *, padding: int = 0, seed: int = 0) -> Path:
    """Write the model. padding: ids of the model beyond its tokens, as likely as these."""
    from safetensors.torch import save_file

    tiny_model.make(directory, padding=padding)
    weights = _weights(TOKENS + padding, seed)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


class Normal:
    """Draws weights by a seed."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: int, columns: int, scale: float) -> torch.Tensor:
        import torch

        drawn = torch.randn(rows, columns, generator=self._generator)
        return drawn * scale / columns**0.5


def _weights(size: int, seed: int) -> dict[str, torch.Tensor]:
    import torch

    normal = Normal(seed)
    weights = {
        "model.embed_tokens.weight": normal(size, WIDTH, WIDTH**0.5),
        "lm_head.weight": normal(size, WIDTH, 3.0),
        "model.norm.weight": torch.ones(WIDTH),
    }
    for number in range(2):
        weights |= layer(normal, f"model.layers.{number}.", WIDTH)
    return weights


def layer(normal: Normal, name: str, attended: int) -> dict[str, torch.Tensor]:
    """Return the weights of a layer whose attention reads vectors of such a width."""
    import torch

    shapes = {
        "self_attn.q_proj": (WIDTH, attended),
        "self_attn.k_proj": (KV_HEADS * HEAD, attended),
        "self_attn.v_proj": (KV_HEADS * HEAD, attended),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    ones = {f"{name}{norm}.weight": torch.ones(WIDTH) for norm in norms}
    return ones | {f"{name}{each}.weight": normal(*of, 1.5) for each, of in shapes.items()}


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


MAX_TOKENS: Final = 32
PENALTIES: Final = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.4,
}
CASES: Final[dict[str, dict[str, Any]]] = {
    "T=0": {"temperature": 0.0},
    "T=1": {},
    "T=0.8, top-p": {"temperature": 0.8, "top_p": 0.95},
    "top-k": {"top_k": 40},
    "top-k, top-p, min-p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "min-p": {"min_p": 0.05},
    "penalties": PENALTIES,
    "penalties, T=0": {"temperature": 0.0, **PENALTIES},
    "bias": {"logit_bias": {7: 4.0, 9: -50.0, 30: 2.0}, "presence_penalty": 0.4},
    "min tokens": {"min_tokens": 20, "stop_token_ids": list(range(2, 80))},
    "schema": {"structured_outputs": {"json": PERSON}, "stop_token_ids": [EOS]},
    "schema, T=0": {
        "temperature": 0.0,
        "structured_outputs": {"json": PERSON},
        "stop_token_ids": [EOS],
        "presence_penalty": 1.0,
    },
}
"""Keywords of vLLM's SamplingParams, which are also the names of the edge's settings."""


@dataclass(frozen=True)
class Text:
    """What vLLM itself says."""

    tokens: list[int]
    logprobs: list[float]


def prompts() -> list[list[int]]:
    """Return a short one, one whose answer needs a second block of KV, and one with two."""
    random = Random(1)
    return [[random.randrange(2, TOKENS) for _ in range(length)] for length in (5, 110, 190)]


def seed_of(number: int) -> int:
    """Return the seed for a prompt: a small one, a large one, and one of all 64 bits."""
    return (42, 2**62 + 5, 2**64 - 5)[number]


def keywords(name: str, number: int, **more: Any) -> dict[str, Any]:
    """Return the keywords of SamplingParams. vLLM's seeds are signed."""
    seed = seed_of(number)
    signed = seed - 2**64 if seed >= 2**63 else seed
    asked = {"max_tokens": MAX_TOKENS, "seed": signed, "ignore_eos": True, "detokenize": False}
    return asked | CASES[name] | more


def session(facts: ModelFacts, name: str, number: int, **fields: Any) -> Open:
    """Return the session that asks for the same."""
    settings = dict(CASES[name])
    stop = tuple(settings.pop("stop_token_ids", ()))
    shape = {k: settings.pop(k) for k in Sampling.__struct_fields__ if k in settings}
    asked = {"seed": seed_of(number), "max_tokens": MAX_TOKENS, "stop_tokens": stop} | fields
    sampling = with_extras(Sampling(**shape), **settings)
    return Open(facts.model, facts.vocabulary, tuple(prompts()[number]), sampling, **asked)


async def own(target: VllmTarget, name: str, number: int = 0) -> list[int]:
    """Return what the target's vLLM says without a session."""
    from tests.verifier.vllm_target.v2.stock import parameters

    asked = parameters(**keywords(name, number))
    output = await said_by_vllm(target, prompts()[number], asked)
    return list(output.outputs[0].token_ids)
