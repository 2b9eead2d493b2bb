"""Writes a real model whose vocabulary is padded, with the largest logits on the padding."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

LARGER = np.float16(8.0)
"""How many times as large the logit of a padding row is as that of the token it copies."""

_UNUSED = 5  # GGUF's type of a token that is only padding


def pad(source: Path, target: Path) -> int:
    """Write a GGUF model with Q8_0 embeddings, tied to its output, with twice as many rows.

    Row V + i is row i, eight times as large: wherever the largest logit is positive, a padding
    row has a larger one. Return V.
    """
    reader = gguf.GGUFReader(source)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    more = {
        "tokenizer.ggml.tokens": [f"[PAD{token}]" for token in range(tokens, 2 * tokens)],
        "tokenizer.ggml.token_type": [_UNUSED] * tokens,
    }
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "llama.vocab_size"):
            continue
        kind, *item_kinds = field.types
        value = field.contents()
        value = [*value, *more[name]] if name in more else value
        writer.add_key_value(name, value, kind, *item_kinds[-1:])
    writer.add_uint32("llama.vocab_size", 2 * tokens)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensor.name == "token_embd.weight":
            data = np.concatenate([data, _scaled(data)])
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokens


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Scale Q8_0 rows: each block has a float16 scale and 32 integers of one byte."""
    blocks = rows.reshape(len(rows), -1, 34).copy()
    scales = blocks[:, :, :2].copy().view(np.float16) * LARGER
    blocks[:, :, :2] = scales.view(np.uint8)
    return blocks.reshape(rows.shape)
