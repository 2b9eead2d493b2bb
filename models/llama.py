"""llama.cpp: the only file that imports llama_cpp.

A Model is a GGUF file; a Context is the KV cache of some sequences over it, and decodes rows.

* Rows of several sequences go through one llama_decode; a pass is one such call.
* A row's logits and cache depend, to the last bit, on the tokens before it alone, not on the
  rows that share its pass, given: Q8_0 or Q4_0 weights, flash attention, one cache stream a
  sequence (not shared), and either one thread and at most EXACT_ROWS rows of a sequence in
  one pass, or a Q8_0 cache. tests/models/test_llama.py holds this.
* Nothing here locks: one thread at a time per Context. llama_decode releases the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from models.errors import Aborted, BadSegment, CannotOpen, CannotQuantise, DecodeFailed, NoRoom
from models.segments import Limits, Segment, check
from models.vocabulary import Vocabulary

Quantisation = Literal["Q4_0", "Q8_0"]
Logits = NDArray[np.float32]

_FILE_TYPES: Final = {
    "Q4_0": (lib.LLAMA_FTYPE_MOSTLY_Q4_0, lib.GGML_TYPE_Q4_0),
    "Q8_0": (lib.LLAMA_FTYPE_MOSTLY_Q8_0, lib.GGML_TYPE_Q8_0),
}
"""Of a file, and of its output matrix: left to itself, llama.cpp keeps that in Q8_0, and a
small model with a large vocabulary spends two fifths of a step on reading it."""

_CACHE_TYPES: Final = {"F16": lib.GGML_TYPE_F16, "Q8_0": lib.GGML_TYPE_Q8_0}
_FAILURES: Final = {-1: BadSegment, 1: NoRoom, 2: Aborted}
EXACT_ROWS: Final = 63
"""From 64 rows on, llama.cpp's attention works in tiles, which round differently."""

_PIECE_BYTES: Final = 64
"""First guess at a piece's length; 240 tokens of Qwen are longer than 32 bytes."""

_SILENCE: Final = lib.llama_log_callback(lambda level, text, data: None)
"""Drops llama.cpp's log: what goes wrong comes back as a return code."""

lib.llama_log_set(_SILENCE, ctypes.c_void_p(0))
lib.llama_backend_init()


class Model:
    """A GGUF file. Raises CannotOpen. vocabulary_only: tokens and metadata, no weights."""

    def __init__(self, path: Path, vocabulary_only: bool = False) -> None:
        settings = lib.llama_model_default_params()
        settings.vocab_only = vocabulary_only
        model = lib.llama_model_load_from_file(str(path).encode(), settings)
        vocabulary = lib.llama_model_get_vocab(model) if model else None
        if model is None or vocabulary is None:
            raise CannotOpen(f"{path} is missing, or is not a GGUF file llama.cpp can read")
        self.path = path
        self.handle = model
        self._vocabulary = vocabulary
        self.vocabulary_size = lib.llama_vocab_n_tokens(vocabulary)

    def close(self) -> None:
        """Free the weights; every Context over them must be closed before."""
        if self.handle is not None:
            lib.llama_model_free(self.handle)
            self.handle = None

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of text, without BOS. special: read markers as special tokens."""
        data = text.encode()
        room = 4 * len(data) + 8  # the worst: a missing space becomes three bytes, a token each
        tokens = (ctypes.c_int32 * room)()
        call = lib.llama_tokenize
        count = call(self._vocabulary, data, len(data), tokens, room, False, special)
        return list(tokens[:count])

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokens mean; read at the first use, in 0.3 s for 152k tokens."""
        tokens = range(self.vocabulary_size)
        raw = self._vocabulary
        return Vocabulary(
            pieces=tuple(self._render(token) for token in tokens),
            attributes=tuple(int(lib.llama_vocab_get_attr(raw, token)) for token in tokens),
            ends=frozenset(token for token in tokens if lib.llama_vocab_is_eog(raw, token)),
            eos=lib.llama_vocab_eos(raw),
        )

    def piece(self, token: int, special: bool = False) -> bytes:
        return self.vocabulary.piece(token, special)

    def is_special(self, token: int) -> bool:
        return self.vocabulary.is_special(token)

    def stop_tokens(self) -> frozenset[int]:
        return self.vocabulary.stop_tokens

    def fingerprint(self) -> str:
        return self.vocabulary.fingerprint

    def metadata(self) -> dict[str, str]:
        """Return the file's key-value pairs, arrays left out."""
        pairs = {}
        for index in range(lib.llama_model_meta_count(self.handle)):
            key = _string(lib.llama_model_meta_key_by_index, self.handle, index)
            value = _string(lib.llama_model_meta_val_str_by_index, self.handle, index)
            pairs[key] = value
        return pairs

    @property
    def context_tokens(self) -> int:
        """The longest context the model was trained for."""
        facts = self.metadata()
        return int(facts[f"{facts['general.architecture']}.context_length"])

    @property
    def bos(self) -> int | None:
        """The token to put before every prompt, if the model wants one."""
        wanted = lib.llama_vocab_get_add_bos(self._vocabulary)
        return lib.llama_vocab_bos(self._vocabulary) if wanted else None

    def _render(self, token: int) -> bytes:
        size = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count


class Context:
    """The KV cache of `sequences` sequences of `context_tokens` tokens each, over one model.

    batch_tokens: the most rows of one pass. cache: Q8_0 is smaller, coarser, and exact with any
    threads and rows.

    Raises CannotOpen if memory does not suffice.
    """

    def __init__(
        self,
        model: Model,
        context_tokens: int,
        sequences: int = 1,
        threads: int = 1,
        batch_tokens: int = 256,
        flash_attention: bool = True,
        cache: Literal["F16", "Q8_0"] = "F16",
    ) -> None:
        settings = lib.llama_context_default_params()
        settings.n_ctx = context_tokens * sequences
        settings.n_batch = settings.n_ubatch = batch_tokens
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = int(flash_attention)
        settings.kv_unified = False
        settings.type_k = settings.type_v = _CACHE_TYPES[cache]
        settings.no_perf = True
        handle = lib.llama_init_from_model(model.handle, settings) if model.handle else None
        memory = lib.llama_get_memory(handle) if handle else None
        if handle is None or memory is None:
            raise CannotOpen(f"{model.path}: no room for {sequences} x {context_tokens} tokens")
        self.model = model
        self.limits = Limits(sequences, context_tokens, batch_tokens, model.vocabulary_size)
        self._handle: int | None = handle
        self._memory: int | None = memory
        self._rows: list[int] = []
        self._batch = lib.llama_batch_init(batch_tokens, 0, 1)
        shape = (batch_tokens,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape)
        self._wanted = np.ctypeslib.as_array(self._batch.logits, shape)
        np.ctypeslib.as_array(self._batch.n_seq_id, shape)[:] = 1

    def close(self) -> None:
        """Free the cache; every later decode is refused. Harmless when repeated."""
        if self._handle is not None:
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._handle)
            self._handle = self._memory = None
            self.limits = Limits(0, 0, 0, 0)
            self._rows = []

    def length(self, sequence: int) -> int:
        """Return how many tokens of a sequence are decoded."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def truncate(self, sequence: int, length: int) -> None:
        """Forget everything from position `length` on."""
        lib.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def decode(self, segments: Sequence[Segment]) -> None:
        """Decode the segments' rows in one pass.

        Raises BadSegment, NoRoom, Aborted or DecodeFailed.
        """
        check(segments, self.limits, self.length)
        self._fill(segments)
        self._rows = []
        if code := lib.llama_decode(self._handle, self._batch):
            raise _FAILURES.get(code, DecodeFailed)(f"llama_decode returned {code}")
        self._rows = np.flatnonzero(self._wanted[: self._batch.n_tokens]).tolist()

    def logits(self, index: int) -> Logits:
        """Return float32[V] of the index-th row whose logits were asked for, in batch order.

        A view into llama.cpp's buffer: valid until the next decode.
        """
        if not 0 <= index < len(self._rows):
            raise BadSegment(f"logits {index} of {len(self._rows)} were asked for")
        row = lib.llama_get_logits_ith(self._handle, self._rows[index])
        return np.ctypeslib.as_array(row, (self.model.vocabulary_size,))

    def _fill(self, segments: Sequence[Segment]) -> None:
        row = 0
        for segment in segments:
            end = row + len(segment.tokens)
            self._tokens[row:end] = segment.tokens
            self._positions[row:end] = np.arange(segment.start, segment.start + end - row)
            wanted = end - row if segment.logits is None else segment.logits
            self._wanted[row:end] = np.arange(end - row, 0, -1) <= wanted
            for index in range(row, end):
                self._batch.seq_id[index][0] = segment.sequence
            row = end
        self._batch.n_tokens = row


def quantise(source: Path, target: Path, kind: Quantisation) -> None:
    """Write `source` in another quantisation. Raises CannotQuantise; may leave half a file."""
    settings = lib.llama_model_quantize_default_params()
    settings.ftype, settings.output_tensor_type = _FILE_TYPES[kind]
    settings.allow_requantize = True
    files = str(source).encode(), str(target).encode()
    if lib.llama_model_quantize(*files, ctypes.byref(settings)):
        raise CannotQuantise(f"llama.cpp could not write {source} as {kind}")


def _string(read: Callable[..., int], model: int | None, index: int) -> str:
    """Call one of llama.cpp's functions that fill a string buffer and return its length."""
    size = read(model, index, None, 0) + 1
    buffer = ctypes.create_string_buffer(max(size, 1))
    read(model, index, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
