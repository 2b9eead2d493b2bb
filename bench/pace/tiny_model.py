"""Writes a tiny Llama without its weights: a configuration and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TOKENS = 512
EOS = 1
WIDTH, HEADS, KV_HEADS, INNER = 128, 4, 2, 256
HEAD = WIDTH // HEADS

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": 0,
    "eos_token_id": EOS, "num_nextn_predict_layers": 1,
}  # fmt: skip
"""An MTP head looks for num_nextn_predict_layers here."""


def make(directory: Path, *, padding: int = 0) -> Path:
    """Write the model. padding: ids of the model beyond its tokens."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps(CONFIG | {"vocab_size": TOKENS + padding})
    )
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
        vocab_size=TOKENS, special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    chance = Random(2)
    words = (chance.choice("bdklmnrst") + chance.choice("aeiou") for _ in range(20_000))
    text = "".join(word + chance.choice(("", "", " ")) for word in words)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer
