"""Everything this package raises.

* ModelError
  - CannotOpen        the file is missing, is no GGUF, or llama.cpp refuses it
  - CannotQuantise    llama.cpp could not write the other quantisation
  - CannotDequantise  it could not be written as safetensors
  - DecodeError
    - BadSegment      our bug: a gap, an unknown token or sequence, too many rows
    - NoRoom          the sequence or the cache is full; nothing was decoded
    - Aborted         the abort callback said stop; rows done so far stay in the cache
    - DecodeFailed    llama.cpp failed; truncate the sequences before they are used again
  - UnknownModel      the catalogue has no such name
  - NotPulled         the catalogue has it, the store does not
  - PullError
    - SourceFailed    one source could not give the file; the next one is tried
    - WrongHash       what was fetched, or is stored, is not what the catalogue names
    - DiskFull        no room for the file; what was fetched is kept for the next attempt
"""

from __future__ import annotations


class ModelError(Exception):
    """The root."""


class CannotOpen(ModelError):
    """A GGUF file that cannot be opened."""


class CannotQuantise(ModelError):
    """A GGUF file that cannot be written in another quantisation."""


class CannotDequantise(ModelError):
    """A GGUF file that cannot be written as safetensors."""


class DecodeError(ModelError):
    """Rows that were not decoded."""


class BadSegment(DecodeError):
    """The caller's mistake; the cache is as before."""


class NoRoom(DecodeError):
    """The cache is full; it is as before."""


class Aborted(DecodeError):
    """Stopped on request. `Context.length` tells how far each sequence came."""


class DecodeFailed(DecodeError):
    """llama.cpp's own failure. `Context.length` tells how far each sequence came."""


class UnknownModel(ModelError):
    """No such name in the catalogue."""


class NotPulled(ModelError):
    """Known, but not in the store."""


class PullError(ModelError):
    """A model that could not be brought into the store."""


class SourceFailed(PullError):
    """One source failed."""


class WrongHash(PullError):
    """Bytes that are not the model."""


class DiskFull(PullError):
    """No space left."""
