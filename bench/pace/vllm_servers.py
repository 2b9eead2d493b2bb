"""Says how vLLM's server starts: on the stand-in or on a CPU, with our plugin or without."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.run.services import FORGETFUL, free_port
from gateway.hosting.processes import Service
from picospec.link import HOST

if TYPE_CHECKING:
    import torch

# A Llama with random weights of 2 MB, and a tokenizer of 512 tokens.
#
#     python -m bench.pace.vllm_servers DIR
#
# Weights need torch and safetensors, which are beside vLLM.

TOKENS = 512
EOS = 1
WIDTH, HEADS, KV_HEADS, INNER = 128, 4, 2, 256
HEAD = WIDTH // HEADS
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "num_nextn_predict_layers": 1,  # an MTP head looks for it here
}


def make(directory: Path, *, padding: int = 0, seed: int = 0, weights: bool = True) -> Path:
    """Write the model. padding: ids of the model beyond its tokens, as likely as these.
    weights: False for a worker that computes nothing."""
    size = TOKENS + padding
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": size}))
    if weights:
        from safetensors.torch import save_file

        file = directory / "model.safetensors"
        save_file(_weights(size, seed), file, metadata={"format": "pt"})
    _tokenizer().save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special | kind))
    return directory


def _tokenizer() -> Tokenizer:
    """Return a byte-level BPE, trained on made-up words, so that it has some merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    chance = Random(2)
    words = (chance.choice("bdklmnrst") + chance.choice("aeiou") for _ in range(20_000))
    text = "".join(word + chance.choice(("", "", " ")) for word in words)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


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


MODEL: Final = "tiny"
_STAND_IN: Final = "bench.pace.standin.StandIn"
_QUIET: Final = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
_PLAIN: Final = ("bench.run.rivals", "--speculation", "{}")
_PLUGGED: Final = ("verifier", "--target", "vllm")


@dataclass(frozen=True, slots=True)
class Vllm:
    """A Vllm is one server that can be started."""

    python: str
    model: Path
    clients: int
    """This many requests run at once."""

    plugin: bool
    options: Mapping[str, str]
    """vLLM has these options, by name."""

    environment: Mapping[str, str] = field(default_factory=dict)
    plain_port: int = field(default_factory=free_port)
    own_port: int = field(default_factory=free_port)

    @property
    def plain_url(self) -> str:
        """Return the address of vLLM's own API."""
        return f"http://{HOST}:{self.plain_port}"

    @property
    def sessions_url(self) -> str:
        return f"http://{HOST}:{self.own_port}"

    @property
    def service(self) -> Service:
        options = {
            "served-model-name": MODEL,
            "port": str(self.plain_port),
            "max-num-seqs": str(self.clients),
            **self.options,
        }
        arguments = [
            text for name, value in options.items() for text in (f"--vllm.{name}", value)
        ]
        environment = {**_QUIET, **FORGETFUL, **self.environment}
        where = ("--model", str(self.model), "--host", HOST, "--port")
        if not self.plugin:
            command = (self.python, "-m", *_PLAIN, *where, str(self.plain_port), *arguments)
            return Service("vLLM", command, self.plain_url, (), environment, "/health")
        arguments += ["--sessions.max-sessions", str(self.clients)]
        command = (self.python, "-m", *_PLUGGED, *where, str(self.own_port), *arguments)
        return Service("vLLM with the plugin", command, self.sessions_url, (), environment)


def on_stand_in(
    python: str,
    model: Path,
    clients: int,
    settings: Mapping[str, float],
    *,
    plugin: bool,
    synchronous: bool = False,
) -> Vllm:
    """Return a server on the stand-in for a GPU. settings: its own. synchronous: True for a
    vLLM without asynchronous scheduling."""
    options = {
        "dtype": "bfloat16", "max-model-len": "2048", "block-size": "16",
        "load-format": "dummy", "max-num-batched-tokens": "2048",
        "worker-cls": f"{_STAND_IN}Worker",
        "distributed-executor-backend": f"{_STAND_IN}Executor",
        "additional-config": json.dumps({"standin": settings}),
    }  # fmt: skip
    if synchronous:
        options["async-scheduling"] = "false"
    return Vllm(python, model, clients, plugin, options, {"VLLM_USE_V2_MODEL_RUNNER": "1"})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
