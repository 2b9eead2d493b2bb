"""A TokenizerFile is a target's tokenizer, read from its model, sent, checked and opened.

Both ends open the same file with the same library: llama.cpp for a GGUF model's metadata, and
`tokenizers` for a tokenizer.json. A file is named by its digest.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import JsonValue, TypeAdapter

from local_models.errors import CannotOpen
from local_models.gguf import check_metadata, metadata_of
from local_models.hugging_face import HuggingFaceEncoder, read_directory
from local_models.llama_cpp.model import Model
from local_models.renderer import Renderer
from local_models.template import joined
from local_models.tokenizer import Encoder, Tokenizer
from speculation.untrusted import decode_msgpack

MAX_BYTES: Final = 64 << 20
"""A tokenizer has at most this many bytes uncompressed; the largest known ones have 35 MB."""

MAX_PACKED_BYTES: Final = 32 << 20
"""A tokenizer has at most this many bytes as a verifier sends it, compressed."""

MAX_TEMPLATE_CHARS: Final = 1 << 20


Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]

_VARIABLES: Final = TypeAdapter(dict[str, JsonValue])
"""Refuses what is no JSON, or is nested too deeply."""


class TokenizerFile(msgspec.Struct, frozen=True):
    """A tokenizer is opened from this data."""

    kind: Literal["gguf", "huggingface"]
    data: bytes
    """This is a GGUF file without tensors, or a tokenizer.json."""

    template: str = ""
    named_tokens: dict[str, str] = {}
    """A chat template knows these tokens as `bos_token`, `eos_token` and so on."""

    eos: Id | None = None
    """See Vocabulary. A GGUF file contains this and the next two; they are unset here then."""

    stop_tokens: list[Id] = []
    padding: Id = 0
    """See Vocabulary."""

    defaults: dict[str, float] = {}
    """Requests without settings get these, by their OpenAI names, as the model's makers or the
    target's server recommend. `max_tokens` limits the tokens of every answer."""

    variables: dict[str, Any] = {}
    """More variables of the chat template have these default values."""

    takes_parts: bool = False
    """True if the chat template takes the content of a message as parts instead of a text."""

    hides_unused_tools: bool = False
    """See gateway.ports.Tokenizer."""

    @property
    def digest(self) -> str:
        """Return the name of this tokenizer: 32 hex digits."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()[:32]

    def pack(self) -> bytes:
        """Return the bytes that are sent and stored."""
        return zlib.compress(msgspec.msgpack.encode(self), level=6)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Read untrusted packed bytes. Raises CannotOpen. The memory it takes is bounded."""
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(packed, MAX_BYTES)
            if not inflater.eof:
                raise ValueError(f"cut, or more than {MAX_BYTES} bytes")
            file = decode_msgpack(data, cls)
            if len(file.template) > MAX_TEMPLATE_CHARS:
                raise ValueError(f"a template of more than {MAX_TEMPLATE_CHARS} characters")
            _VARIABLES.validate_python(file.variables, strict=True)
            if file.kind == "gguf":
                check_metadata(file.data)
        except (ValueError, zlib.error) as error:
            raise CannotOpen(f"the tokenizer cannot be read: {error}") from error
        return file

    def open(self) -> Tokenizer:
        """Return a tokenizer made of this file. Raises CannotOpen."""
        try:
            known = {**self.named_tokens, **self.variables}
            template = Renderer(self.template, known) if self.template else None
            return Tokenizer(
                self._encoder(),
                template,
                takes_parts=self.takes_parts,
                hides_unused_tools=self.hides_unused_tools,
                named_tokens=self.named_tokens,
            )
        except CannotOpen:
            raise
        except Exception as error:  # it is foreign: what reads it may raise anything
            raise CannotOpen(f"{type(error).__name__}: {error}") from error

    def _encoder(self) -> Encoder:
        if self.kind == "huggingface":
            return HuggingFaceEncoder(
                self.data, self.eos, frozenset(self.stop_tokens), self.padding
            )
        with _file_of(self.data) as path:
            return Model(path, vocabulary_only=True)


@contextmanager
def _file_of(data: bytes) -> Iterator[Path]:
    """Yield the path of a file with this content, which is in memory on Linux, because the disk
    may be full."""
    if sys.platform == "linux":
        with open(os.memfd_create("tokenizer.gguf"), "wb") as file:
            file.write(data)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder, "tokenizer.gguf")
            path.write_bytes(data)
            yield path


def tokenizer_file(model: Path, template: str | None = None) -> TokenizerFile:
    """Read the tokenizer of a model. Raises CannotOpen.

    model: a GGUF file, or a directory of Hugging Face's files, which do not state the padding,
    so it is 0. template: replaces the model's own.
    """
    if model.is_dir():
        file = TokenizerFile("huggingface", **read_directory(model))
    else:
        gguf = Model(model, vocabulary_only=True)
        facts, key = gguf.metadata(), "tokenizer.chat_template"
        file = TokenizerFile(
            "gguf",
            metadata_of(model),
            template=joined(facts.get(key, ""), facts.get(f"{key}.tool_use")),
            named_tokens=gguf.named_tokens(),
            defaults=_recommended(facts),
        )
        gguf.close()
    return file if template is None else msgspec.structs.replace(file, template=template)


def _recommended(facts: Mapping[str, str]) -> dict[str, float]:
    """Return the recommended sampling settings in a GGUF file's metadata."""
    names = {
        "temperature": "temp",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "penalty_repeat",
    }
    keys = {name: f"general.sampling.{key}" for name, key in names.items()}
    return {name: float(facts[key]) for name, key in keys.items() if key in facts}
