"""Writes models of a few hundred kB with random weights, most of whose layers are recurrent.

Their tokens are bytes. The weights are so large that a layer's state changes the next tokens: a
state that is not the text's gives another text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import gguf
import numpy as np

WIDTH, HEADS, HEAD, KV_HEADS, FORWARD = 64, 2, 32, 1, 64
CONVOLUTION, STATE, GROUPS, INNER, STATE_HEADS = 4, 32, 1, 128, 4
EXPERTS: Final = 2

Shape = tuple[int, ...]
Layer = Mapping[str, Shape]
"""The tensors of a layer by their names; the shapes are ggml's, the inner length first."""

FORWARD_LAYER: Final[Layer] = {
    "ffn_gate.weight": (WIDTH, FORWARD),
    "ffn_up.weight": (WIDTH, FORWARD),
    "ffn_down.weight": (FORWARD, WIDTH),
}
NORM: Final[Layer] = {"attn_norm.weight": (WIDTH,)}
FORWARD_NORM: Final[Layer] = {"ffn_norm.weight": (WIDTH,)}
EXPERT_LAYER: Final[Layer] = {
    "ffn_gate_inp.weight": (WIDTH, EXPERTS),
    "ffn_gate_exps.weight": (WIDTH, FORWARD, EXPERTS),
    "ffn_up_exps.weight": (WIDTH, FORWARD, EXPERTS),
    "ffn_down_exps.weight": (FORWARD, WIDTH, EXPERTS),
    "ffn_gate_inp_shexp.weight": (WIDTH,),
    "ffn_gate_shexp.weight": (WIDTH, FORWARD),
    "ffn_up_shexp.weight": (WIDTH, FORWARD),
    "ffn_down_shexp.weight": (FORWARD, WIDTH),
}
ATTENTION: Final[Layer] = {
    "attn_q.weight": (WIDTH, HEADS * HEAD),
    "attn_k.weight": (WIDTH, KV_HEADS * HEAD),
    "attn_v.weight": (WIDTH, KV_HEADS * HEAD),
    "attn_output.weight": (HEADS * HEAD, WIDTH),
}
QK_NORMS: Final[Layer] = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
GATED_ATTENTION: Final[Layer] = {
    **ATTENTION,
    "attn_q.weight": (WIDTH, 2 * HEADS * HEAD),
    **QK_NORMS,
}
MAMBA: Final[Layer] = {
    "ssm_in.weight": (WIDTH, 2 * INNER),
    "ssm_conv1d.weight": (CONVOLUTION, INNER),
    "ssm_conv1d.bias": (INNER,),
    "ssm_x.weight": (INNER, STATE_HEADS + 2 * STATE),
    "ssm_dt_norm.weight": (STATE_HEADS,),
    "ssm_dt.weight": (STATE_HEADS, INNER),
    "ssm_dt.bias": (INNER,),
    "ssm_b_norm.weight": (STATE,),
    "ssm_c_norm.weight": (STATE,),
    "ssm_a": (STATE, INNER),
    "ssm_d": (INNER,),
    "ssm_out.weight": (INNER, WIDTH),
}
MAMBA2: Final[Layer] = {
    "ssm_in.weight": (WIDTH, 2 * INNER + 2 * GROUPS * STATE + STATE_HEADS),
    "ssm_conv1d.weight": (CONVOLUTION, INNER + 2 * GROUPS * STATE),
    "ssm_conv1d.bias": (INNER + 2 * GROUPS * STATE,),
    "ssm_dt.bias": (STATE_HEADS,),
    "ssm_a": (1, STATE_HEADS),
    "ssm_d": (1, STATE_HEADS),
    "ssm_norm.weight": (INNER // GROUPS, GROUPS),
    "ssm_out.weight": (INNER, WIDTH),
}
VALUES: Final = STATE * STATE_HEADS
DELTA_NET: Final[Layer] = {
    "attn_qkv.weight": (WIDTH, 2 * GROUPS * STATE + VALUES),
    "attn_gate.weight": (WIDTH, VALUES),
    "ssm_conv1d.weight": (CONVOLUTION, 2 * GROUPS * STATE + VALUES),
    "ssm_dt.bias": (STATE_HEADS,),
    "ssm_a": (STATE_HEADS,),
    "ssm_beta.weight": (WIDTH, STATE_HEADS),
    "ssm_alpha.weight": (WIDTH, STATE_HEADS),
    "ssm_norm.weight": (STATE,),
    "ssm_out.weight": (VALUES, WIDTH),
}
DELTA_NET_NEXT: Final[Layer] = {
    **{name: shape for name, shape in DELTA_NET.items() if name[4:8] not in ("beta", "alph")},
    "ssm_ba.weight": (WIDTH, 2 * STATE_HEADS),
}
SHORT_CONVOLUTION: Final[Layer] = {
    "shortconv.conv.weight": (CONVOLUTION, WIDTH),
    "shortconv.in_proj.weight": (WIDTH, 3 * WIDTH),
    "shortconv.out_proj.weight": (WIDTH, WIDTH),
}
POST_NORM: Final[Layer] = {"post_attention_norm.weight": (WIDTH,)}

ARCHITECTURES: Final[dict[str, Sequence[Layer]]] = {
    "qwen35": [
        {**NORM, **DELTA_NET, **POST_NORM, **FORWARD_LAYER},
        {**NORM, **GATED_ATTENTION, **POST_NORM, **FORWARD_LAYER},
    ],
    "qwen35moe": [
        {**NORM, **DELTA_NET, **POST_NORM, **EXPERT_LAYER},
        {**NORM, **GATED_ATTENTION, **POST_NORM, **EXPERT_LAYER},
    ],
    "nemotron_h": [
        {**NORM, **MAMBA2},
        {**NORM, **ATTENTION},
        {**NORM, "ffn_up.weight": (WIDTH, FORWARD), "ffn_down.weight": (FORWARD, WIDTH)},
    ],
    "lfm2": [
        {**NORM, **SHORT_CONVOLUTION, **FORWARD_NORM, **FORWARD_LAYER},
        {**NORM, **ATTENTION, **QK_NORMS, **FORWARD_NORM, **FORWARD_LAYER},
    ],
    "qwen3next": [
        {**NORM, **DELTA_NET_NEXT, **POST_NORM, **EXPERT_LAYER},
        {**NORM, **GATED_ATTENTION, **POST_NORM, **EXPERT_LAYER},
    ],
    "granitehybrid": [
        {**NORM, **MAMBA2, **FORWARD_NORM, **FORWARD_LAYER},
        {**NORM, **ATTENTION, **FORWARD_NORM, **FORWARD_LAYER},
    ],
    "jamba": [
        {**NORM, **MAMBA, **FORWARD_NORM, **FORWARD_LAYER},
        {**NORM, **ATTENTION, **FORWARD_NORM, **FORWARD_LAYER},
    ],
    "falcon-h1": [{**NORM, **MAMBA2, **ATTENTION, "ffn_norm": (WIDTH,), **FORWARD_LAYER}],
    "mamba2": [{**NORM, **MAMBA2}],
}
"""The layers of each architecture, which are repeated."""

SLIDING: Final[dict[str, Sequence[Layer]]] = {
    "gpt-oss": [
        {
            **NORM,
            **ATTENTION,
            **POST_NORM,
            **{name: shape for name, shape in EXPERT_LAYER.items() if "shexp" not in name},
            "attn_output.bias": (WIDTH,),
            "attn_sinks.weight": (HEADS,),
            "ffn_gate_inp.bias": (EXPERTS,),
            "ffn_gate_exps.bias": (FORWARD, EXPERTS),
            "ffn_up_exps.bias": (FORWARD, EXPERTS),
            "ffn_down_exps.bias": (WIDTH, EXPERTS),
        }
    ],
    "gemma4": [
        {
            **NORM,
            **ATTENTION,
            **QK_NORMS,
            **POST_NORM,
            **FORWARD_NORM,
            **FORWARD_LAYER,
            "post_ffw_norm.weight": (WIDTH,),
        }
    ],
}
"""These have no recurrent layers; every second layer sees the last WINDOW tokens alone."""

WINDOW: Final = 8
ROLLBACK: Final = ("qwen35", "qwen35moe", "nemotron_h", "lfm2")
"""llama.cpp takes the recurrent layers of these architectures back to earlier tokens."""

HEAD_LAYER: Final[Layer] = {
    "nextn.eh_proj.weight": (2 * WIDTH, WIDTH),
    "nextn.enorm.weight": (WIDTH,),
    "nextn.hnorm.weight": (WIDTH,),
}
MTP: Final = ("qwen35", "qwen35moe")
"""With a `head` these have one more layer, which predicts the token after the next."""

EMBEDDED: Final = 64
"""With a head, embeddings are multiplied by this, so that layers change them little."""

ADDED: Final = 0.1
"""What the layers of a head add to an embedding is multiplied by this."""

ROUNDS: Final = 2
TEMPLATE: Final = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write(
    architecture: str,
    path: Path,
    seed: int = 0,
    context_tokens: int = 2048,
    *,
    has_head: bool = False,
) -> Path:
    """Write a model of this architecture to `path`, and return it. has_head: one more layer
    predicts the token after the next; it agrees often, because most of the next token hangs on
    the last one alone."""
    layers = [*(ARCHITECTURES | SLIDING)[architecture]] * ROUNDS
    chance = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    if has_head:
        writer.add_nextn_predict_layers(1)
        layers.append({**layers[-1], **HEAD_LAYER})
    _describe(writer, layers, context_tokens)
    _vocabulary(writer)
    output_norm = "token_embd_norm" if architecture == "lfm2" else "output_norm"
    tensors: dict[str, Shape] = {
        "token_embd.weight": (WIDTH, TOKENS),
        f"{output_norm}.weight": (WIDTH,),
        "output.weight": (WIDTH, TOKENS),
    }
    if architecture == "gemma4":
        tensors["rope_freqs.weight"] = (HEAD // 2,)
    for index, layer in enumerate(layers):
        tensors |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    for name, shape in tensors.items():
        weights = _weights(name, shape, chance)
        if has_head:
            _make_agree(name, weights, f"blk.{len(layers) - 1}.")
        if (
            len(shape) > 1
            and shape[0] % 32 == 0
            and name.endswith(".weight")
            and "norm" not in name
        ):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(name: str, shape: Shape, chance: np.random.Generator) -> np.ndarray:
    drawn = chance.standard_normal(shape[::-1]).astype(np.float32)
    if "norm" in name:
        return 1 + drawn / 4
    if name.startswith("rope_freqs"):
        return np.exp(drawn)
    if name.endswith("ssm_a"):
        return -np.exp(drawn / 2)
    if name.endswith("ssm_dt.bias"):
        return drawn - 2  # a state is remembered for some tokens
    if name.endswith(".bias"):
        return drawn / 4
    if name == "output.weight":
        drawn[256:] = 0  # no text ends early
    return 1.5 * drawn / np.float32(np.sqrt(shape[0]))


def _make_agree(name: str, weights: np.ndarray, head: str) -> None:
    """Change weights so that the layers of a prefix, the head, often predict what the model
    does: both depend on the last token, and little on those before."""
    if name == "token_embd.weight":
        weights *= EMBEDDED
    elif name == f"{head}nextn.enorm.weight":
        weights[:] = 1
    elif name == f"{head}nextn.eh_proj.weight":
        weights *= ADDED
        weights[:, :WIDTH] = np.eye(WIDTH)
    elif name.startswith(head) and name.endswith(
        ("_output.weight", "_down.weight", "exp.weight", "down_exps.weight")
    ):
        weights *= ADDED


def _describe(writer: gguf.GGUFWriter, layers: Sequence[Layer], context_tokens: int) -> None:
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(len(layers))
    writer.add_head_count(HEADS)
    heads = [KV_HEADS if "attn_k.weight" in layer else 0 for layer in layers]
    by_layer = writer.arch in ("nemotron_h", "lfm2", "granitehybrid", "jamba")
    writer.add_head_count_kv(heads if by_layer else KV_HEADS)
    forward = [FORWARD if "ffn_up.weight" in layer else 0 for layer in layers]
    writer.add_feed_forward_length(forward if writer.arch == "nemotron_h" else FORWARD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_dimension_sections([6, 5, 5, 0])
    if writer.arch in SLIDING:
        writer.add_sliding_window(WINDOW)
        writer.add_sliding_window_pattern([bool(i % 2) for i in range(len(layers))])
        writer.add_key_length_swa(HEAD)
        writer.add_value_length_swa(HEAD)
        writer.add_embedding_length_per_layer_input(0)
    elif writer.arch == "lfm2":
        writer.add_shortconv_l_cache(CONVOLUTION)
    else:
        writer.add_ssm_conv_kernel(CONVOLUTION)
        writer.add_ssm_inner_size(INNER)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_time_step_rank(STATE_HEADS)
        writer.add_ssm_group_count(GROUPS)
    if writer.arch.startswith("qwen3"):
        writer.add_full_attention_interval(2)
    if any("ffn_up_exps.weight" in layer for layer in layers):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(1)
        writer.add_expert_feed_forward_length(FORWARD)
        writer.add_expert_shared_feed_forward_length(FORWARD)


def _bytes() -> list[str]:
    """Return the characters that stand for bytes in GPT-2's vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(each) if each in shown else chr(next(others)) for each in range(256)]


SPECIAL: Final = ("<|end|>", "<|im_start|>", "<|im_end|>")
TOKENS: Final = 256 + len(SPECIAL)


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*_bytes(), *SPECIAL])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges(["a b"])  # there is no such token
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
