"""GGUF files that tests write: of a few tokens, and of matrices of any type."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import gguf

WEIGHTS: Final = bytes(9 << 20)
BYTES: Final = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS: Final = [chr(b) for b in BYTES] + [chr(256 + n) for n in range(256 - len(BYTES))]
"""How GGUF spells the tokens of one byte."""
F32, F16, Q4_0, Q8_0, Q6_K = 0, 1, 2, 8, 14


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_header(*matrices: int) -> bytes:
    """A GGUF header: metadata of each kind, a vector in F32, and matrices of these types."""
    metadata = (
        string("a") + struct.pack("<II", 4, 7),
        string("b") + struct.pack("<I", 8) + string("text"),
        string("c") + struct.pack("<IIQ", 9, 8, 2) + string("x") + string("yy"),
        string("d") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    )
    tensors = [string("norm") + struct.pack("<IQIQ", 1, 64, F32, 0)]
    tensors += [string("w") + struct.pack("<IQQIQ", 2, 64, 64, kind, 0) for kind in matrices]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    return b"".join((head, *metadata, *tensors))


def small(folder: Path, *more: str) -> bytes:
    """Return a GGUF file whose tokens are the bytes and `more`, before some weights."""
    file = folder / "written.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*LETTERS, *more, "<end>"])
    writer.add_token_types([1] * (len(LETTERS) + len(more)) + [3])
    writer.add_token_merges(["h e", "t h"])
    writer.add_eos_token_id(len(LETTERS) + len(more))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file.read_bytes() + WEIGHTS
