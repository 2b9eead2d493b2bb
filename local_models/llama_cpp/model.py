"""Binds llama.cpp: a Model is a GGUF file, and a Context is a KV cache of its sequences.

A Context decodes rows of several sequences in one pass, which is one call of llama_decode.

* A row's logits and KV depend, to the last bit, only on the tokens before it, and not on the
  rows that share its pass. This needs Q8_0 or Q4_0 weights, flash attention, a separate cache
  stream for each sequence, and either a Q8_0 cache, or one thread and at most EXACT_ROWS rows
  of a sequence in a pass. tests/local_models/llama_cpp checks it.
* There are no locks: one thread at a time may use a Context. llama_decode releases the GIL.
* Recurrent layers keep a state in place of each token's KV, and go back by copies of it, which
  llama.cpp makes for the last tokens of a pass. That of llama-cpp-python 0.3.36 goes back to a
  wrong state, and says that all is well, if a pass had no more rows than are taken back, or if
  other sequences shared it. So a Context counts rows, and divides such a pass by sequences.
* Some files have a head for multi-token prediction (MTP): a layer that predicts the next token
  from a token and the model's hidden state of the token before. It has a Context of its own.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from gateway.system import drop_mapped, return_freed_memory
from local_models.errors import BadSegment, CannotOpen, DecodeFailed, NoRoom
from local_models.llama_cpp.devices import CPU, Placement, place
from local_models.llama_cpp.kv_cache import KvCache
from local_models.llama_cpp.library import extension, lib, on_stack
from local_models.llama_cpp.segments import ContextLimits, Segment, check
from local_models.markers import Markers
from local_models.vocabulary import Vocabulary

Logits = NDArray[np.float32]
Hidden = NDArray[np.float32]
_State = ctypes.Array[ctypes.c_uint8]

CHECKPOINT_TOKENS: Final = 4
"""A draft model goes back to every token, and reads at most three again. To copy its states
takes a part of a step's time, to read a token again a whole step's."""

HEADS: Final = ("qwen35", "qwen35moe")
"""The heads of these architectures were tried. llama.cpp ends the process if it can load a head
but not compute it."""

ONE_SEQUENCE: Final = KvCache()
_FAILURES: Final = {-1: BadSegment, 1: NoRoom}
EXACT_ROWS: Final = 63
"""llama.cpp's attention computes 64 or more rows in tiles, which round differently."""

STACK_BYTES_A_CHAR: Final = 640
"""llama.cpp takes at most this much stack for a character. For some models it splits texts by
std::regex, which recurses at each character of a word and takes 400 bytes. A stack overflow
ends the process."""

SHALLOW_CHARS: Final = 2048
"""Longer texts are tokenised on a stack of their own."""

PART_CHARS: Final = 8192
"""A text is cut at the first place after as many characters where that changes no token. Half
a megabyte of markers took 20 s in one piece; a chat of 100,000 tokens took twice as long."""


class Model:
    """A Model is a GGUF file; with vocabulary_only, without its weights. Raises CannotOpen.

    placement: what devices compute. Their passes are faster, but round by their shape.
    with_head: load the head, too; then the file `has_head`.
    """

    def __init__(
        self,
        path: Path,
        vocabulary_only: bool = False,
        *,
        placement: Placement = CPU,
        with_head: bool = False,
    ) -> None:
        settings = lib.llama_model_default_params()
        settings.load_mtp = with_head
        settings.vocab_only = vocabulary_only
        kept = place(settings, placement)
        self.handle = lib.llama_model_load_from_file(str(path).encode(), settings)
        del kept
        if not self.handle:
            reason = "is missing, or is not a GGUF file llama.cpp can read"
            if placement.gpu_layers:
                reason += "; or a device has no room for it, or does not take these options"
            raise CannotOpen(f"{path} {reason}")
        if not vocabulary_only:  # the processor has a copy of most weights, laid out for it
            drop_mapped(path)
        self.path = path
        self.with_head = with_head
        self._free = finalize(self, lib.llama_model_free, self.handle)
        self._free.atexit = False  # a context may still be in use then
        self._vocabulary = lib.llama_model_get_vocab(self.handle)
        self.vocabulary_size = lib.llama_vocab_n_tokens(self._vocabulary)

    def close(self) -> None:
        """Free the weights, as they are when nobody refers to the model any more. Every Context
        of the model must be closed first."""
        self.handle = None
        self._free()
        return_freed_memory()

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Return the tokens of text, without BOS. special: markers become special tokens.
        Several threads may call this at once."""
        if len(text) <= SHALLOW_CHARS:
            return self._tokens(text, special)
        parts = self._parts(text, special)
        size = STACK_BYTES_A_CHAR * max(map(len, parts))
        return on_stack(
            size, lambda: [t for part in parts for t in self._tokens(part, special)]
        )

    def _tokens(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        room = 4 * len(data) + 8  # a token is a byte at worst, and a space becomes three bytes
        tokens = (ctypes.c_int32 * room)()
        arguments = self._vocabulary, data, len(data), tokens, room, False, special
        return list(tokens[: lib.llama_tokenize(*arguments)])

    def _parts(self, text: str, special: bool) -> list[str]:
        """Return the parts of a text, which have the tokens of the whole: each but the first
        begins with a text that llama.cpp takes for one token whatever stands around it.
        llama.cpp takes a time in proportion to such texts times the length of a part."""
        parts = [""]
        for piece, is_token in self._cuts[special].split(text):
            if is_token and len(parts[-1]) >= PART_CHARS:
                parts.append("")
            parts[-1] += piece
        return parts

    @cached_property
    def _cuts(self) -> tuple[Markers, Markers]:
        """Find where a text may be cut, without special tokens and with them: before a token
        that takes no space before it, and that no other one can overlap from before."""
        named, control = lib.LLAMA_TOKEN_ATTR_USER_DEFINED, lib.LLAMA_TOKEN_ATTR_CONTROL
        control |= named | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        tokens = range(self.vocabulary_size)
        attributes = [
            int(lib.llama_vocab_get_attr(self._vocabulary, token)) for token in tokens
        ]
        whole = [
            (self._render(t).decode("latin-1"), attributes[t])
            for t in tokens
            if attributes[t] & control
        ]
        inner = {character for text, _ in whole for character in text[1:]}
        cuts = [
            (text, has)
            for text, has in whole
            if text
            and text[0] not in inner
            and text.isascii()
            and " " not in text
            and not has & lib.LLAMA_TOKEN_ATTR_LSTRIP
        ]
        of_kind = ([text for text, has in cuts if has & kind] for kind in (named, control))
        without, with_special = map(Markers, of_kind)
        return without, with_special

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the meaning of the tokens; the first use takes 0.3 s for 152k tokens.

        llama.cpp treats some tokens as special that the file calls text, because of their
        spelling (Qwen's "</s>"). Here they are text: they are shown and end nothing.
        """
        raw, size = self._vocabulary, self.vocabulary_size
        attributes = [int(lib.llama_vocab_get_attr(raw, token)) for token in range(size)]
        while size and attributes[size - 1] & lib.LLAMA_TOKEN_ATTR_UNUSED:
            size -= 1
        marker = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        text = lib.LLAMA_TOKEN_ATTR_NORMAL
        special = frozenset(
            t for t in range(size) if attributes[t] & marker and not attributes[t] & text
        )
        eos = int(lib.llama_vocab_eos(raw))
        ends = {token for token in range(size) if lib.llama_vocab_is_eog(raw, token)}
        return Vocabulary(
            pieces=tuple(map(self._render, range(size))),
            special=special,
            stop_tokens=frozenset(ends & (special | {eos})),
            eos=eos if 0 <= eos < size else None,
            padding=self.vocabulary_size - size,
        )

    def metadata(self) -> dict[str, str]:
        """Return the file's key-value pairs except arrays."""
        key, value = lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index
        indices = range(lib.llama_model_meta_count(self.handle))
        return {_string(key, self.handle, i): _string(value, self.handle, i) for i in indices}

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture, such as qwen35."""
        return self.metadata()["general.architecture"]

    @cached_property
    def is_recurrent(self) -> bool:
        """True if some layers keep a state in place of each token's KV, as in Mamba or Qwen3.5:
        then a sequence cannot be cut at any length."""
        of = lib.llama_model_is_recurrent, lib.llama_model_is_hybrid
        return any(each(self.handle) for each in of)

    @property
    def has_head(self) -> bool:
        """True if the file names a head that llama.cpp can compute: one layer."""
        name = self.architecture
        return name in HEADS and self.metadata().get(f"{name}.nextn_predict_layers") == "1"

    @property
    def context_tokens(self) -> int:
        """Return the longest context that the model was trained for."""
        facts = self.metadata()
        return int(facts[f"{facts['general.architecture']}.context_length"])

    @property
    def raw_beginning(self) -> tuple[int, ...]:
        """Return the token, if any, that must begin every prompt."""
        wanted = lib.llama_vocab_get_add_bos(self._vocabulary)
        return (lib.llama_vocab_bos(self._vocabulary),) if wanted else ()

    chat_beginning = raw_beginning

    def named_tokens(self) -> dict[str, str]:
        """Return the spellings of the tokens that chat templates use, by their names."""
        tokens = {
            name: getattr(lib, f"llama_vocab_{name}")(self._vocabulary)
            for name in ("bos", "eos", "pad")
        }
        return {
            f"{name}_token": self.vocabulary.piece(token, special=True).decode(errors="replace")
            for name, token in tokens.items()
            if token >= 0
        }

    def _render(self, token: int) -> bytes:
        size = 64  # bytes, enough for most tokens; a longer one takes a second call
        while True:
            buffer = ctypes.create_string_buffer(size)
            size = -lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, True)
            if size <= 0:
                return buffer.raw[:-size]


class Context:
    """A Context is a KV cache whose sequences have `context_tokens` tokens each.

    `batch_tokens` is the limit of rows in one pass, and logits_rows that of rows with logits,
    each of which takes eight bytes a token of the vocabulary; None: of all. Without
    `flash_attention` no pass is exact, and passes over long contexts take at most two thirds of
    the time on a CPU; None: llama.cpp finds out whether the devices have it. is_head: the
    model's head computes, in place of its other layers. Raises CannotOpen if memory is short.
    """

    def __init__(
        self,
        model: Model,
        context_tokens: int,
        kv: KvCache = ONE_SEQUENCE,
        *,
        threads: int = 1,
        batch_tokens: int = 256,
        flash_attention: bool | None = True,
        logits_rows: int | None = None,
        is_head: bool = False,
    ) -> None:
        self._is_head = is_head
        self._is_recurrent = model.is_recurrent and not is_head
        settings = lib.llama_context_default_params()
        settings.n_ctx = context_tokens * kv.sequences
        settings.n_batch = settings.n_ubatch = batch_tokens
        if is_head:
            settings.ctx_type = lib.LLAMA_CONTEXT_TYPE_MTP
        if self._is_recurrent:
            settings.n_rs_seq = kv.rollback
            rows = max(batch_tokens, kv.rollback + 2)  # with fewer llama.cpp ends the process
            settings.n_batch = settings.n_ubatch = rows
        logits_rows = min(logits_rows or batch_tokens, batch_tokens)
        settings.n_outputs_max = logits_rows
        settings.n_seq_max = kv.sequences
        settings.n_threads = settings.n_threads_batch = threads
        kind = {True: "ENABLED", False: "DISABLED", None: "AUTO"}[flash_attention]
        settings.flash_attn_type = getattr(lib, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
        settings.kv_unified = False
        settings.type_k = getattr(lib, f"GGML_TYPE_{kv.keys}")
        settings.type_v = getattr(lib, f"GGML_TYPE_{kv.values or kv.keys}")
        settings.no_perf = True
        self._handle = model.handle and lib.llama_init_from_model(model.handle, settings)
        self._memory = self._handle and lib.llama_get_memory(self._handle)
        if not self._memory:
            raise CannotOpen(
                f"{model.path}: no room for {kv.sequences} x {context_tokens} tokens"
            )
        self.model = model
        self.limits = ContextLimits(
            kv.sequences, context_tokens, batch_tokens, model.vocabulary_size, logits_rows
        )
        self.rollback = int(lib.llama_n_rs_seq(self._handle))
        """A pass can be taken back by as many tokens, if the model is recurrent; less than was
        wanted, if llama.cpp cannot do it for this architecture."""

        self._rollback = [0] * kv.sequences
        """Each sequence of a recurrent model can now go back by as many tokens."""

        self._checkpoints = [
            deque[tuple[int, _State]](maxlen=kv.checkpoints) for _ in range(kv.sequences)
        ]
        """The lengths of each sequence after which its states were copied, with the copies."""

        self._rows: list[int] = []
        self._spans: dict[int, range] = {}  # the rows of each sequence
        self._batch = lib.llama_batch_init(batch_tokens, 0, 1)
        columns = self._batch.token, self._batch.pos, self._batch.logits, self._batch.n_seq_id
        arrays = (np.ctypeslib.as_array(column, (batch_tokens,)) for column in columns)
        self._tokens, self._positions, self._wanted, sequence_counts = arrays
        sequence_counts[:] = 1
        self.hidden_size = int(lib.llama_model_n_embd_out(model.handle))
        if model.with_head:
            extension("llama_set_embeddings_nextn")(self._handle, True, False)
        if is_head:
            self._inputs = np.zeros((batch_tokens, self.hidden_size), np.float32)
            self._batch.embd = self._inputs.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def close(self) -> None:
        """Free the cache; later decodes raise BadSegment. A second call does nothing."""
        if self._handle is not None:
            self._batch.embd = None  # numpy's
            lib.llama_batch_free(self._batch)
            lib.llama_free(self._handle)
            self._handle = self._memory = None
            self.limits = ContextLimits(0, 0, 0, 0, 0)
            self._rows = []

    def length(self, sequence: int) -> int:
        """Return the number of tokens in a sequence."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def truncate(self, sequence: int, length: int) -> int:
        """Remove a sequence's tokens from position `length` on. Return the number of tokens
        that are left: fewer if recurrent layers can only go back farther."""
        held = self.length(sequence)
        if self._is_recurrent and length < held:
            length = self._go_back(sequence, held - length, length)
        lib.llama_memory_seq_rm(self._memory, sequence, length, -1)
        return min(length, held)

    def checkpoints(self, sequence: int) -> list[int]:
        """Return the lengths of a recurrent model's sequence at which it has a checkpoint."""
        return [length for length, _ in self._checkpoints[sequence]]

    def _go_back(self, sequence: int, tokens: int, length: int) -> int:
        """Prepare recurrent layers to go back by `tokens` to `length`. Return the length to
        which they can."""
        checkpoints = self._checkpoints[sequence]
        while checkpoints and checkpoints[-1][0] > length:
            checkpoints.pop()
        if tokens > self._rollback[sequence]:
            length, state = checkpoints[-1] if checkpoints else (0, None)
            if state is not None:
                self._set_state(sequence, state)
        self._rollback[sequence] = 0  # llama.cpp goes back once after each pass
        return length

    def _state(self, sequence: int) -> _State:
        """Return a copy of the states that a sequence's recurrent layers are in."""
        where = sequence, lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = lib.llama_state_seq_get_size_ext(self._handle, *where)
        state: _State = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data_ext(self._handle, state, len(state), *where)
        return state

    def _set_state(self, sequence: int, state: _State) -> None:
        """Put a sequence's recurrent layers into a state. Raises DecodeFailed."""
        where = sequence, lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        if not lib.llama_state_seq_set_data_ext(self._handle, state, len(state), *where):
            raise DecodeFailed("llama.cpp could not restore a state")

    def copy(self, source: int, target: int) -> None:
        """Replace the tokens of `target` by those of `source`."""
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self._is_recurrent:  # or both would share one state
            self._set_state(target, self._state(source))
            self._rollback[target] = 0
            self._checkpoints[target].clear()

    def decode(self, segments: Sequence[Segment], hidden: Sequence[Hidden] = ()) -> None:
        """Decode the rows in one pass. hidden: for a head, the model's state of the token
        before each row's, float32[E]. Raises BadSegment, NoRoom or DecodeFailed."""
        check(segments, self.limits, self.length)
        row, self._rows, self._spans = 0, [], {}
        if self._is_head:
            self._inputs[: len(hidden)] = hidden
        wanted_rows: dict[int, range] = {}
        # llama.cpp joins sequences whose numbers ascend; joined, their states change places,
        # and the copies of the states do not
        ordered = sorted(segments, key=_falling) if self._is_recurrent else segments
        for segment in ordered:
            end = row + len(segment.tokens)
            self._tokens[row:end] = segment.tokens
            self._positions[row:end] = np.arange(segment.start, segment.start + end - row)
            first = max(row, end - segment.logits_rows)
            self._wanted[row:first], self._wanted[first:end] = 0, 1
            wanted_rows[segment.sequence] = range(first, end)
            self._spans[segment.sequence] = range(row, end)
            for index in range(row, end):
                self._batch.seq_id[index][0] = segment.sequence
            row = end
        self._batch.n_tokens = row
        if code := lib.llama_decode(self._handle, self._batch):
            raise _FAILURES.get(code, DecodeFailed)(f"llama_decode returned {code}")
        if self._is_recurrent:
            self._note_states(segments)
        self._rows = [row for segment in segments for row in wanted_rows[segment.sequence]]

    def _note_states(self, segments: Sequence[Segment]) -> None:
        """Note which states can be gone back to after a pass."""
        for segment in segments:
            sequence, length = segment.sequence, segment.start + len(segment.tokens)
            self._rollback[sequence] = min(self.rollback, len(segment.tokens) - 1)
            checkpoints = self._checkpoints[sequence]
            last = checkpoints[-1][0] if checkpoints else 0
            is_due = length - last >= CHECKPOINT_TOKENS
            if self.rollback:
                is_due = segment.logits == 0
            if checkpoints.maxlen and is_due:
                checkpoints.append((length, self._state(sequence)))

    def logits(self, index: int) -> Logits:
        """Return the logits, float32[V], of the index-th row whose logits were requested.

        The array is a view of llama.cpp's buffer, and valid until the next decode.
        """
        if not 0 <= index < (held := len(self._rows)):
            raise BadSegment(f"the pass has logits of {held} rows, not of row {index}")
        row = lib.llama_get_logits_ith(self._handle, self._rows[index])
        return np.ctypeslib.as_array(row, (self.model.vocabulary_size,))

    def hidden(self, sequence: int) -> Hidden:
        """Return the hidden states of a sequence's rows in the last pass, float32[n, E].
        model.with_head must be True."""
        rows = self._spans[sequence]
        first = extension("llama_get_embeddings_nextn_ith")(self._handle, rows[0])
        return np.ctypeslib.as_array(first, (len(rows), self.hidden_size)).copy()


def _falling(segment: Segment) -> int:
    return -segment.sequence


def _string(read: Callable[..., int], model: int | None, index: int) -> str:
    """Return the string that a llama.cpp function writes to a buffer."""
    buffer = ctypes.create_string_buffer(max(read(model, index, None, 0), 0) + 1)
    read(model, index, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
