"""GGUF to safetensors: for targets that read no GGUF, on machines without a model hub.

The directory written holds what vLLM needs (weights, config, tokenizer, chat template) and
`vocabulary.gguf`: the GGUF's metadata without its weights. From that file both ends know the
tokens and their fingerprint, exactly as from the GGUF itself.

Needs transformers, torch, accelerate and gguf, which the extra `cloud-cpu` brings; they are
imported when called, so that this package does not depend on them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

from models.errors import CannotDequantise

VOCABULARY: Final = "vocabulary.gguf"
Weights = Literal["bfloat16", "float16", "float32"]


def dequantise(source: Path, target: Path, weights: Weights = "bfloat16") -> None:
    """Write the model in `source`, a GGUF file, to the directory `target`.

    Takes the model's size in memory, in `weights`. Raises CannotDequantise; `target` may then
    hold a part.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise CannotDequantise(f"the extra `cloud-cpu` is not installed: {error}") from error
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(target)
        transformers.AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=getattr(torch, weights),
            quantization_config=transformers.GgufConfig(dequantize=True),
        ).save_pretrained(target)
        copy_metadata(source, target / VOCABULARY)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise CannotDequantise(f"{source}: {error}") from error


def copy_metadata(source: Path, target: Path) -> None:
    """Write a GGUF file with the metadata of `source` and no tensors."""
    import gguf

    fields = gguf.GGUFReader(source).fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for name, entry in fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, entry.contents(), *_types(entry))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _types(entry: Any) -> tuple[Any, Any]:
    """Return a field's type, and that of its items if it is an array."""
    kinds = entry.types
    return kinds[0], kinds[-1] if len(kinds) > 1 else None
