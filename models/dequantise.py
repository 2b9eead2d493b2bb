"""Converts a GGUF file to safetensors, for targets that do not read GGUF.

The written directory holds what vLLM needs (weights, config, tokenizer, chat template) and
`vocabulary.gguf`, the GGUF's metadata without its weights; tokens and fingerprint read from it
are exactly the GGUF's own. The extra `cloud-cpu` installs what is imported in the functions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from models.errors import CannotDequantise

VOCABULARY: Final = "vocabulary.gguf"
Weights = Literal["bfloat16", "float16", "float32"]


def dequantise(source: Path, target: Path, weights: Weights = "bfloat16") -> None:
    """Write the model in `source`, a GGUF file, to the directory `target`.

    This needs memory for all weights in that type. Raises CannotDequantise, after which
    `target` may hold some of the files.
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
        copy_metadata(source, target / VOCABULARY)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise CannotDequantise(f"{source}: {error}") from error


def copy_metadata(source: Path, target: Path) -> None:
    """Write a GGUF file that has the metadata of `source` and no tensors."""
    import gguf

    fields = gguf.GGUFReader(source).fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for name, entry in fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *item_kinds = entry.types
            writer.add_key_value(name, entry.contents(), kind, *item_kinds[-1:])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
