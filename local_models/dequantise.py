"""Converts a GGUF file to safetensors, for targets that do not read GGUF.

The written directory contains what vLLM needs: weights, config, tokenizer and chat template.
The extra `cloud-cpu` installs the packages that the functions import.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from local_models.errors import CannotDequantise
from local_models.llama_cpp.model import Model
from local_models.vocabulary import Vocabulary

Weights = Literal["bfloat16", "float16", "float32"]


def dequantise(source: Path, target: Path, weights: Weights = "bfloat16") -> None:
    """Write the model in `source`, a GGUF file, to the directory `target`.

    All weights, in the given type, must fit into memory. Raises CannotDequantise, after which
    `target` may contain some of the files.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CannotDequantise(f"the extra `cloud-cpu` is not installed: {error}") from error
    location = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        transformers.AutoTokenizer.from_pretrained(**location).save_pretrained(target)
        transformers.AutoModelForCausalLM.from_pretrained(
            **location,
            dtype=getattr(torch, weights),
            quantization_config=transformers.GgufConfig(dequantize=True),
        ).save_pretrained(target)
        amend(target, Model(source, vocabulary_only=True).vocabulary)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise CannotDequantise(f"{source}: {error}") from error


def amend(folder: Path, vocabulary: Vocabulary) -> None:
    """Correct the tokenizer files that transformers writes: they count padding as tokens, and
    name one token that ends a turn although there may be several."""
    size = len(vocabulary.pieces)
    tokenizer = _read(folder / "tokenizer.json")
    known = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: token for text, token in known.items() if token < size}
    added = tokenizer["added_tokens"]
    tokenizer["added_tokens"] = [each for each in added if each["id"] < size]
    _write(folder / "tokenizer.json", tokenizer)
    generation = _read(folder / "generation_config.json")
    stops = sorted(vocabulary.stop_tokens)
    _write(folder / "generation_config.json", {**generation, "eos_token_id": stops})


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
